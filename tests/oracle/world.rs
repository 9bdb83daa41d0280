//! The configurations that frames are sent to, and sending them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use evenkeel::lb::answers::AnswerRates;
use evenkeel::lb::conn::State;
use evenkeel::lb::counters::WorkerCounters;
use evenkeel::lb::fixture::{self, Lab, backend_mac};
use evenkeel::lb::flow::Seed;
use evenkeel::lb::fragment::FragmentStore;
use evenkeel::lb::frame::{Frame, MemoryFrame, Note};
use evenkeel::lb::owner::Ownership;
use evenkeel::lb::route::Prefix;
use evenkeel::lb::service_map::{Listen, ServiceMap};
use evenkeel::lb::shard::{Shard, ShardSize};
use evenkeel::lb::snapshot::{
    BackendState, ForwardMethod, Scheduler, ServiceId, Untracked, WhenNoBackend,
};
use evenkeel::lb::{Arrival, MAX_BURST, Now, Outbox, Pass, Verdict};

use crate::generate::{self, Random};
use crate::judge::Judge;

pub const VIPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 80)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80)),
];
/// The services' ports: a range, so that two flows can share a NAT backend's port.
pub const PORTS: [u16; 2] = [80, 81];
pub const NAT_PORT: u16 = 8080;
/// FullNAT's local addresses.
pub const LOCALS: [IpAddr; 2] = [IpAddr::V4(fixture::LOCAL), IpAddr::V6(fixture::LOCAL6)];
pub const BACKENDS: u32 = 4;

/// One configuration: a service on both VIPs with four backends.
#[derive(Clone)]
pub struct World {
    pub name: &'static str,
    pub method: ForwardMethod,
    pub untracked: Untracked,
    pub when_no_backend: WhenNoBackend,
    pub connections: usize,
    pub clients: u32,
    /// Connections that the service takes; 0 for as many as come.
    pub limit: u32,
    /// FullNAT's local addresses that the service may use.
    pub locals: &'static [IpAddr],
}

impl World {
    pub fn all() -> Vec<World> {
        let world = |name, method, untracked, when_no_backend| World {
            name,
            method,
            untracked,
            when_no_backend,
            connections: 20_000,
            clients: 200,
            limit: 0,
            locals: &LOCALS,
        };
        use ForwardMethod::*;
        vec![
            world("nat, reset", Nat, Untracked::Reset, WhenNoBackend::Reset),
            World {
                limit: 600,
                ..world("nat, drop", Nat, Untracked::Drop, WhenNoBackend::Drop)
            },
            world(
                "direct routing",
                DirectRouting,
                Untracked::Reset,
                WhenNoBackend::UseAll,
            ),
            world(
                "tunnel, hash",
                Tunnel,
                Untracked::Hash,
                WhenNoBackend::Reset,
            ),
            world(
                "fullnat, reset",
                FullNat,
                Untracked::Reset,
                WhenNoBackend::UseAll,
            ),
            World {
                locals: &LOCALS[..1],
                ..world(
                    "fullnat, hash",
                    FullNat,
                    Untracked::Hash,
                    WhenNoBackend::Reset,
                )
            },
            World {
                connections: 1,
                clients: 4000,
                ..world("a full table", Nat, Untracked::Hash, WhenNoBackend::Drop)
            },
        ]
    }

    /// The address of a backend: the even ones IPv4, the odd ones IPv6.
    pub fn backend(n: u32) -> IpAddr {
        if n.is_multiple_of(2) {
            Ipv4Addr::new(10, 0, 1, n as u8 + 1).into()
        } else {
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n as u16 + 1).into()
        }
    }

    /// The longest packet that goes to a backend unanswered.
    pub fn mtu(&self, n: u32) -> usize {
        match self.method {
            ForwardMethod::Tunnel if World::backend(n).is_ipv4() => 1480,
            ForwardMethod::Tunnel => 1460,
            _ => 1500,
        }
    }

    /// There is room for hardly a connection.
    pub fn is_tiny(&self) -> bool {
        self.connections < 100
    }

    fn lab(&self) -> Lab {
        let mut lab = Lab::with_method(self.method, Scheduler::RoundRobin, &[1; BACKENDS as usize]);
        for n in 0..BACKENDS {
            let mut backend = lab.backend(n);
            backend.address = World::backend(n);
            backend.mtu = self.mtu(n) as u16;
            if backend.address.is_ipv6() {
                backend.outer_source = "2001:db8:1::fe".parse().expect("IPv6");
            }
        }
        let service = lab.service();
        // Time jumps, and only fragments shall be forgotten.
        for state in State::ALL {
            service.timeouts.set(state, u16::MAX);
        }
        service.locals = (0..self.locals.len() as u16).collect();
        lab.service().limits.connections = self.limit;
        lab.service().untracked = self.untracked;
        lab.service().when_no_backend = self.when_no_backend;
        let listens = VIPS.into_iter().flat_map(|vip| {
            let prefix = Prefix::new(vip, if vip.is_ipv4() { 32 } else { 128 });
            [6, 17].map(|protocol| {
                let (first_port, last_port) = (PORTS[0], PORTS[1]);
                (
                    Listen {
                        protocol,
                        prefix,
                        first_port,
                        last_port,
                    },
                    ServiceId(0),
                )
            })
        });
        lab.snapshot.service_map = Arc::new(ServiceMap::new(listens));
        lab
    }
}

/// A frame on its way in.
#[derive(Clone)]
pub struct Sent {
    pub bytes: Vec<u8>,
    /// It lies in one buffer.
    pub whole: bool,
    /// Bytes free in front of it.
    pub headroom: usize,
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "whole {} headroom {} {}",
            self.whole,
            self.headroom,
            hex(&self.bytes)
        )
    }
}

/// What became of it.
pub struct Outcome {
    pub verdict: Verdict,
    pub bytes: Vec<u8>,
    /// The backend of the entry that was made.
    pub attached: Option<u32>,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.verdict, hex(&self.bytes))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A buffer whose room in front and pieces can be chosen.
pub struct Buffer {
    frame: MemoryFrame,
    whole: bool,
    headroom: usize,
}

impl Frame for Buffer {
    fn bytes(&self) -> &[u8] {
        self.frame.bytes()
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.frame.bytes_mut()
    }
    fn prepend(&mut self, count: usize) -> bool {
        if count > self.headroom {
            return false;
        }
        self.headroom -= count;
        self.frame.prepend(count)
    }
    fn append(&mut self, count: usize) -> bool {
        self.frame.append(count)
    }
    fn trim_front(&mut self, count: usize) -> bool {
        self.headroom += count;
        self.frame.trim_front(count)
    }
    fn truncate(&mut self, length: usize) {
        self.frame.truncate(length);
    }
    fn ip_checksum_verified(&self) -> bool {
        false
    }
    fn note(&self) -> Note {
        self.frame.note()
    }
    fn set_note(&mut self, note: Note) {
        self.frame.set_note(note);
    }
    fn is_contiguous(&self) -> bool {
        self.whole
    }
    fn interface(&self) -> Option<u8> {
        self.frame.interface()
    }
    fn set_interface(&mut self, interface: u8) {
        self.frame.set_interface(interface);
    }
}

/// Frames beside the burst; none while `dry`.
#[derive(Default)]
struct Beside {
    dry: bool,
}

impl Outbox for Beside {
    type Frame = Buffer;
    fn make(&mut self) -> Option<Buffer> {
        (!self.dry).then(|| Buffer {
            frame: MemoryFrame::new(&[]),
            whole: true,
            headroom: 128,
        })
    }
    fn send(&mut self, port: u8, frame: Buffer) {
        assert_eq!(port, 0);
        crate::look::assert_sound(frame.bytes());
    }
}

/// A world in use.
pub struct Run {
    world: World,
    lab: Lab,
    shard: Shard,
    beside: Beside,
    now: Now,
    /// Fragments that wait, and what is still to come of a datagram that was cut.
    held: FragmentStore<Buffer>,
    backlog: Vec<Sent>,
}

impl Run {
    pub fn new(world: World) -> Self {
        let size = ShardSize {
            connections_v4: world.connections,
            connections_v6: world.connections,
            services: 1,
        };
        let seed = Seed([
            0x9e37_79b9_7f4a_7c15,
            0xd1b5_4a32_d192_ed03,
            0x8cb9_2ba7_2f3d_8dd7,
        ]);
        let counters = Arc::new(WorkerCounters::new(BACKENDS as usize));
        let shard = Shard::new(size, seed, 0, 1, counters).expect("memory");
        let mut shard = shard
            .with_local_ports(2, 4, Ownership::default())
            .expect("memory");
        shard.limit_answers(AnswerRates {
            icmp: u32::MAX,
            resets: u32::MAX,
        });
        Self {
            lab: world.lab(),
            beside: Beside::default(),
            shard,
            world,
            now: Now::from_nanos(5_000_000_000),
            held: FragmentStore::default(),
            backlog: Vec::new(),
        }
    }

    pub fn name(&self) -> &'static str {
        self.world.name
    }

    /// Changes the backends and the supply of buffers now and then.
    pub fn disturb(&mut self, random: &mut Random, judge: &mut Judge) {
        if random.one_in(300) {
            for n in 0..BACKENDS {
                let state = match random.below(24) {
                    0..6 => BackendState::Removed,
                    6..9 => BackendState::Down,
                    9 => BackendState::Drained,
                    _ => BackendState::Up,
                };
                let state = if judge.is_tiny() {
                    BackendState::Up
                } else {
                    state
                };
                let linked = !random.one_in(20);
                let mut backend = self.lab.backend(n);
                backend.state = state;
                if linked {
                    let mut macs = [2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1];
                    macs[..6].copy_from_slice(&backend_mac(n as u8));
                    backend.link = Some(evenkeel::lb::route::Link { macs, port: 0 });
                } else {
                    backend.link = None;
                }
                judge.set_backend(n, state, linked);
            }
        }
        self.beside.dry = random.one_in(6);
        judge.dry = self.beside.dry;
    }

    /// The next frame: of a datagram that was cut before, or another.
    pub fn frame(&mut self, random: &mut Random, judge: &Judge) -> Sent {
        if self.backlog.is_empty() && random.one_in(12) {
            self.backlog = generate::fragments(random, &self.world, judge);
        }
        match self.backlog.is_empty() || random.one_in(2) {
            false => self.backlog.remove(0),
            true => generate::frame(random, &self.world, judge),
        }
    }

    /// Lets more time pass than any fragment waits. What waited comes out, dropped.
    pub fn jump(&mut self) -> usize {
        self.now = Now::from_nanos(self.now.nanos + 11_000_000_000);
        let mut dropped = 0;
        while let Some(released) = self.shard.release_fragment(self.now) {
            assert!(!released.goes_on && self.held.take(released.ticket).is_some());
            dropped += 1;
        }
        dropped
    }

    /// Frames go in one by one, so that the counters tell which flow got which backend.
    pub fn process(&mut self, sent: &Sent) -> Outcome {
        let buffer = Buffer {
            frame: MemoryFrame::new(&sent.bytes),
            whole: sent.whole,
            headroom: sent.headroom,
        };
        self.step(Arrival::Port(0), buffer)
    }

    /// The next fragment whose first one has come.
    pub fn release(&mut self) -> Option<Outcome> {
        let released = self.shard.release_fragment(self.now)?;
        assert!(released.goes_on, "no time has passed");
        let buffer = self.held.take(released.ticket).expect("a frame");
        Some(self.step(Arrival::HandOff, buffer))
    }

    fn step(&mut self, arrival: Arrival, buffer: Buffer) -> Outcome {
        let before = self.connections();
        let mut frames = [buffer];
        let mut verdicts = [Verdict::Pass(Pass::Resolve); MAX_BURST];
        let decided = self.shard.process(
            &self.lab.snapshot,
            self.now,
            arrival,
            &mut frames,
            &mut verdicts,
            &mut self.beside,
        );
        let length = frames[0].bytes().len() as u64;
        let sent = decided
            .exit
            .map(|exit| (Verdict::Transmit(exit.port), exit.bytes));
        let decided = matches!(verdicts[0], Verdict::Transmit(_)).then_some((verdicts[0], length));
        assert_eq!(sent, decided);
        let after = self.connections();
        let attached = (0..BACKENDS).find(|&n| before[n as usize] != after[n as usize]);
        let [frame] = frames;
        let outcome = Outcome {
            verdict: verdicts[0],
            bytes: frame.bytes().to_vec(),
            attached,
        };
        if let Verdict::Hold(ticket) = outcome.verdict {
            assert!(self.held.put(ticket, frame).is_none(), "more wait than may");
        }
        outcome
    }

    fn connections(&self) -> [u64; BACKENDS as usize] {
        let backends = &self.shard.counters.backends;
        std::array::from_fn(|n| backends[n].connections.get())
    }
}
