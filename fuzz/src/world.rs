//! The configurations an input can choose, and the workers that process its packets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::lb::answers::AnswerRates;
use crate::lb::counters::{DropReason, WorkerCounters};
use crate::lb::fixture::{Lab, TestOutbox, VIP, VIP6};
use crate::lb::flow::Seed;
use crate::lb::fragment::FragmentStore;
use crate::lb::frame::{Frame, MemoryFrame};
use crate::lb::keepalive::{Front, Fronts};
use crate::lb::owner::Ownership;
use crate::lb::persistence::Persistence;
use crate::lb::shard::{Shard, ShardSize};
use crate::lb::snapshot::{ForwardMethod, Scheduler, ServiceId, Untracked, WhenNoBackend};
use crate::lb::{Arrival, MAX_BURST, Now, Pass, Verdict};

pub const BACKENDS: u32 = 4;
/// Few, so that the table fills.
const CONNECTIONS: usize = 40;
/// Nanoseconds: longer than the longest timeout.
const AGES: u64 = 2_000_000_000_000;
/// Inputs after which new workers begin at the start of time, before the clock ends.
pub const ERA: u64 = 1 << 20;

pub fn backend(n: u32) -> IpAddr {
    match n % 2 {
        0 => std::net::Ipv4Addr::new(10, 0, 1, n as u8 + 1).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n as u16 + 1).into(),
    }
}

/// What the first two bytes of an input say.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Choice(pub u8, pub u8);

impl Choice {
    pub fn method(self) -> ForwardMethod {
        use ForwardMethod::*;
        [Nat, FullNat, Tunnel, DirectRouting][usize::from(self.0 & 3)]
    }

    pub fn workers(self) -> usize {
        if self.0 & 4 == 0 { 1 } else { 2 }
    }

    pub fn clamps(self) -> bool {
        self.0 & 8 != 0
    }

    fn lab(self) -> Lab {
        let scheduler = Scheduler::ALL[usize::from(self.1 >> 4) % Scheduler::ALL.len()];
        let mut lab = Lab::with_method(self.method(), scheduler, &[3, 2, 1, 1]);
        for n in 0..BACKENDS {
            let mut changed = lab.backend(n);
            changed.address = backend(n);
            changed.upper = if self.0 & 16 == 0 { 0 } else { 5 };
            if changed.address.is_ipv6() {
                changed.outer_source = "2001:db8:1::fe".parse().expect("IPv6");
                changed.mtu -= if self.method() == ForwardMethod::Tunnel {
                    20
                } else {
                    0
                };
            }
        }
        let service = lab.service();
        service.untracked =
            [Untracked::Reset, Untracked::Drop, Untracked::Hash][usize::from(self.1 & 3) % 3];
        service.when_no_backend = [
            WhenNoBackend::Reset,
            WhenNoBackend::Drop,
            WhenNoBackend::UseAll,
        ][usize::from(self.1 >> 2 & 3) % 3];
        service.mss_clamp = if self.clamps() { 1200 } else { 0 };
        service.one_packet = self.0 & 32 != 0 && !self.method().is_two_way();
        service.hash_fallback = self.0 & 128 != 0;
        if self.1 >> 4 == 15 {
            service.persistence = Some(Persistence {
                timeout: 60,
                prefix_v4: 31,
                prefix_v6: 127,
                group: 7,
            });
        }
        if self.1 & 0x0c == 0x0c {
            (service.limits.connections, service.limits.rate) = (12, 40);
        }
        if self.method() == ForwardMethod::Nat {
            lab.snapshot.fronts = Arc::new(fronts(&lab));
        }
        lab.snapshot.flood_guard = if self.0 & 64 == 0 { 0 } else { 50 };
        lab.snapshot.ownership = Ownership {
            reta: 128,
            workers: self.workers() as u8,
            compute: true,
        };
        lab
    }
}

/// The service as its backends' answers are known by.
fn fronts(lab: &Lab) -> Fronts {
    let backends = lab.snapshot.backends.iter();
    Fronts::new(backends.map(|backend| {
        let vip = if backend.address.is_ipv4() { VIP } else { VIP6 };
        let vip: SocketAddr = vip.parse().expect("an endpoint");
        let front = Front {
            service: ServiceId(0),
            vip: vip.ip(),
            port: vip.port(),
        };
        ((backend.address, backend.port), front)
    }))
}

/// A frame on its way, and what it was when it came.
pub struct Travelling {
    pub frame: MemoryFrame,
    pub sent: Arc<[u8]>,
}

pub struct Worker {
    pub shard: Shard,
    store: FragmentStore<Travelling>,
}

/// All that outlives an input.
pub struct Worlds {
    labs: HashMap<Choice, Lab>,
    /// By number of workers.
    workers: [Vec<Worker>; 2],
    pub now: Now,
    pub outbox: TestOutbox,
}

/// What became of a frame.
pub struct Outcome {
    pub verdict: Verdict,
    pub travelling: Travelling,
}

impl Worlds {
    pub fn new() -> Self {
        let seed = Seed([
            0x9e37_79b9_7f4a_7c15,
            0xd1b5_4a32_d192_ed03,
            0x8cb9_2ba7_2f3d_8dd7,
        ]);
        let worker = |index: u32, of: u32| {
            let size = ShardSize {
                connections_v4: CONNECTIONS,
                connections_v6: CONNECTIONS,
                services: 1,
            };
            let counters = Arc::new(WorkerCounters::new(BACKENDS as usize));
            let shard = Shard::new(size, seed, index, of, counters).expect("memory");
            // One of very many workers has few local ports: 256 of each address and group.
            let few = Ownership {
                reta: 128,
                workers: of as u8,
                compute: true,
            };
            let mut shard = shard.with_local_ports(2, 1, few).expect("memory");
            shard.limit_answers(AnswerRates {
                icmp: 1_000_000,
                resets: 1_000_000,
            });
            Worker {
                shard,
                store: FragmentStore::default(),
            }
        };
        Self {
            labs: HashMap::new(),
            workers: [vec![worker(0, 1)], vec![worker(0, 2), worker(1, 2)]],
            now: Now::from_nanos(1_000_000_000),
            outbox: TestOutbox::default(),
        }
    }

    pub fn lab(&mut self, choice: Choice) -> Lab {
        let lab = self.labs.entry(choice).or_insert_with(|| choice.lab());
        Lab {
            snapshot: lab.snapshot.clone(),
        }
    }

    pub fn pass(&mut self, nanos: u64) {
        self.now = Now::from_nanos(self.now.nanos + nanos);
    }

    /// Follows a frame from the worker it came in at until none hands it on.
    pub fn follow(
        &mut self,
        lab: &Lab,
        choice: Choice,
        at: usize,
        arrival: Arrival,
        mut travelling: Travelling,
    ) -> Outcome {
        let workers = &mut self.workers[choice.workers() - 1];
        let (mut at, mut arrival) = (at % workers.len(), arrival);
        for _ in 0..5 {
            let mut verdicts = [Verdict::Pass(Pass::Local); MAX_BURST];
            workers[at].shard.process(
                &lab.snapshot,
                self.now,
                arrival,
                std::slice::from_mut(&mut travelling.frame),
                &mut verdicts,
                &mut self.outbox,
            );
            match verdicts[0] {
                Verdict::HandOff(next) => {
                    // Padding may be cut off.
                    assert!(
                        travelling.sent.starts_with(travelling.frame.bytes()),
                        "changed"
                    );
                    assert_ne!(usize::from(next), at, "handed to itself");
                    (at, arrival) = (usize::from(next), Arrival::HandOff);
                }
                Verdict::Hold(ticket) => {
                    let dummy = Travelling {
                        frame: MemoryFrame::new(&[]),
                        sent: Arc::clone(&travelling.sent),
                    };
                    let _longest = workers[at].store.put(ticket, travelling);
                    return Outcome {
                        verdict: verdicts[0],
                        travelling: dummy,
                    };
                }
                verdict => {
                    return Outcome {
                        verdict,
                        travelling,
                    };
                }
            }
        }
        panic!("handed around without end");
    }

    /// The next fragment that need not wait any longer, and its worker; `None` in its place where
    /// it is dropped.
    pub fn released(&mut self, choice: Choice) -> Option<(usize, Option<Travelling>)> {
        let workers = &mut self.workers[choice.workers() - 1];
        for (at, worker) in workers.iter_mut().enumerate() {
            if worker.shard.fragments.is_idle() {
                continue;
            }
            if let Some(released) = worker.shard.release_fragment(self.now) {
                let held = worker
                    .store
                    .take(released.ticket)
                    .expect("a ticket has a frame");
                return Some((at, released.goes_on.then_some(held)));
            }
        }
        None
    }

    /// After so long a time nothing is left: no connection, no port, no fragment, no count.
    pub fn forget(&mut self, choice: Choice) {
        self.pass(AGES);
        while let Some((_, goes_on)) = self.released(choice) {
            assert!(goes_on.is_none(), "it waited too long");
        }
        for Worker { shard, .. } in &mut self.workers[choice.workers() - 1] {
            let buckets = shard.buckets();
            shard.sweep(self.now, buckets);
            assert!(shard.tables.v4.is_empty() && shard.tables.v6.is_empty());
            let counters = &shard.counters;
            assert_eq!(counters.local_ports.get(), 0, "local ports are lost");
            assert_eq!(shard.fragments.held(), 0);
            for backend in &counters.backends {
                assert_eq!((backend.active.get(), backend.inactive.get()), (0, 0));
            }
            assert_eq!(counters.dropped[DropReason::Shutdown as usize].get(), 0);
        }
        self.outbox.sent.clear();
        self.outbox.buffers = usize::MAX;
    }
}
