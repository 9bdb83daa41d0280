use std::net::IpAddr;
use std::sync::Arc;

use crate::lb::counters::{DropReason, WorkerCounters};
use crate::lb::fixture::{
    Lab, TestOutbox, VIP, VIP6, backend_mac, checksums_are_right, tcp4, udp4, udp6,
};
use crate::lb::flow::{Seed, protocol};
use crate::lb::frame::{Frame, MemoryFrame};
use crate::lb::parse::tcp;
use crate::lb::route::{Link, Prefix};
use crate::lb::service_map::{Listen, ServiceMap};
use crate::lb::shard::{Shard, ShardSize};
use crate::lb::snapshot::{BackendId, ForwardMethod, Scheduler, ServiceId};
use crate::lb::weights::Weights;
use crate::lb::{Arrival, MAX_BURST, Now, Pass, Verdict};

/// Any numbers without a pattern.
const SEED: Seed = Seed([
    0x9e37_79b9_7f4a_7c15,
    0xd1b5_4a32_d192_ed03,
    0x8cb9_2ba7_2f3d_8dd7,
]);

struct World {
    lab: Lab,
    shard: Shard,
    counters: Arc<WorkerCounters>,
    verdicts: [Verdict; MAX_BURST],
}

impl World {
    /// One backend for each method, in turn.
    fn new(methods: &[ForwardMethod]) -> Self {
        Self::with_room(methods, 100)
    }

    fn with_room(methods: &[ForwardMethod], connections: usize) -> Self {
        let mut lab = Lab::new(Scheduler::RoundRobin, &vec![1; methods.len()]);
        for (n, &method) in methods.iter().enumerate() {
            lab.backend(n as u32).method = method;
        }
        let counters = Arc::new(WorkerCounters::new(methods.len()));
        let size = ShardSize {
            connections_v4: connections,
            connections_v6: 100,
            services: 2,
        };
        let shard = Shard::new(size, SEED, 0, 1, counters.clone()).expect("memory");
        Self {
            lab,
            shard,
            counters,
            verdicts: [Verdict::Pass(Pass::Resolve); MAX_BURST],
        }
    }

    /// Sends a burst; the port by which all of it leaves, if there is one.
    fn burst(&mut self, frames: &mut [MemoryFrame]) -> Option<u8> {
        let decided = self.shard.process(
            &self.lab.snapshot,
            Now::from_nanos(1_000_000_000),
            Arrival::Port(0),
            frames,
            &mut self.verdicts,
            &mut TestOutbox::default(),
        );
        let exit = decided.exit?;
        let bytes: usize = frames.iter().map(|frame| frame.bytes().len()).sum();
        assert_eq!(exit.bytes, bytes as u64);
        Some(exit.port)
    }

    fn received(&self, backend: usize) -> (u64, u64) {
        let counters = &self.counters.backends[backend];
        (counters.in_packets.get(), counters.in_bytes.get())
    }
}

fn udp(port: u16) -> MemoryFrame {
    MemoryFrame::new(
        &udp4(&format!("10.0.0.1:{port}"), VIP)
            .payload(&[7; 20])
            .frame(),
    )
}

fn udp_v6(port: u16) -> MemoryFrame {
    let from = format!("[2001:db8:c::1]:{port}");
    MemoryFrame::new(&udp6(&from, VIP6).payload(&[7; 20]).frame())
}

#[test]
fn a_settled_burst_leaves_together_by_the_port_of_its_backends() {
    let mut world = World::new(&[ForwardMethod::DirectRouting; 2]);
    let frames = || [udp(1), udp(2), udp(3), udp(4)];
    // New flows, flows that are confirmed, and settled ones.
    for round in 1..=3 {
        assert_eq!(world.burst(&mut frames()), Some(0), "round {round}");
        assert_eq!(world.verdicts[..4], [Verdict::Transmit(0); 4]);
        assert_eq!(world.received(0), (2 * round, 2 * round * 48));
    }
    assert_eq!(world.burst(&mut []), None);
    let link = Some(Link {
        macs: [9; 12],
        port: 1,
    });
    world.lab.backend(1).link = link;
    assert_eq!(world.burst(&mut frames()), None, "by two ports");
    let ports = [0, 1, 0, 1].map(Verdict::Transmit);
    assert_eq!(world.verdicts[..4], ports);
    world.lab.backend(0).link = link;
    assert_eq!(world.burst(&mut frames()), Some(1));
}

#[test]
fn whatever_stands_between_settled_packets_gets_its_own_verdict() {
    let mut world = World::new(&[ForwardMethod::DirectRouting]);
    world.burst(&mut [udp(1), udp_v6(1)]);
    world.burst(&mut [udp(1), udp_v6(1)]);
    let dying = || MemoryFrame::new(&udp4("10.0.0.1:1", VIP).ttl(1).frame());
    let untracked = tcp4("10.0.0.1:7", VIP).flags(tcp::ACK).frame();
    let mut frames = [
        udp(1),
        MemoryFrame::new(&[0; 60]),
        udp_v6(1),
        udp(1),
        dying(),
        udp(2),
        MemoryFrame::new(&untracked),
        udp_v6(1),
        udp(1),
    ];
    assert_eq!(world.burst(&mut frames), None);
    let sent = Verdict::Transmit(0);
    for at in [0, 2, 3, 5, 7, 8] {
        assert_eq!(world.verdicts[at], sent, "frame {at}");
        assert_eq!(frames[at].bytes()[..6], backend_mac(0), "frame {at}");
    }
    let foreign = Verdict::Drop(DropReason::ForeignMac);
    assert_eq!(world.verdicts[1], foreign);
    let expired = matches!(
        world.verdicts[4],
        Verdict::Reply {
            reason: DropReason::TtlExpired,
            ..
        }
    );
    assert!(expired, "{:?}", world.verdicts[4]);
    assert_ne!(world.verdicts[6], sent);
    // Both rounds of both flows, and what was sent now.
    assert_eq!(world.received(0).0, 4 + 6);
}

/// Whether a packet is a flow's first or a settled one, its outer header has the flow's source.
#[test]
fn a_tunnelled_flow_keeps_its_outer_source() {
    let mut world = World::new(&[ForwardMethod::Tunnel]);
    world.lab.backend(0).outer_source = "10.9.0.0".parse().expect("IPv4");
    world.lab.backend(0).outer_spread = 0xffff;
    let mut sources = || {
        let mut frames = [udp(1), udp(2), udp(3)];
        assert_eq!(world.burst(&mut frames), Some(0));
        frames.map(|frame| frame.bytes()[26..30].to_vec())
    };
    let first = sources();
    assert!(first.iter().all(|source| source[..2] == [10, 9]));
    assert!(first[0] != first[1] && first[1] != first[2]);
    assert_eq!((sources(), sources()), (first.clone(), first));
}

/// A flow's settled packets see at once that its backend serves at another port.
#[test]
fn a_settled_packet_goes_to_the_port_that_its_backend_has_now() {
    let mut world = World::new(&[ForwardMethod::Nat]);
    for port in [0, 0, 0, 8080, 81, 0] {
        world.lab.backend(0).port = port;
        let mut frames = [udp(1), udp(2)];
        assert_eq!(world.burst(&mut frames), Some(0));
        let wanted = if port == 0 { 80 } else { port };
        for frame in frames {
            let bytes = frame.bytes();
            assert_eq!(bytes[36..38], u16::to_be_bytes(wanted));
            assert!(checksums_are_right(bytes));
        }
    }
}

#[test]
fn methods_may_change_from_packet_to_packet() {
    let methods = [
        ForwardMethod::DirectRouting,
        ForwardMethod::Tunnel,
        ForwardMethod::DirectRouting,
    ];
    let mut world = World::new(&methods);
    let frames = || [udp(1), udp(2), udp(3), udp(4), udp(5), udp(6)];
    world.burst(&mut frames());
    world.burst(&mut frames());
    let mut sent = frames();
    assert_eq!(world.burst(&mut sent), Some(0));
    let grown = |frame: &MemoryFrame| frame.bytes().len() - udp(1).bytes().len();
    assert_eq!(sent.each_ref().map(grown), [0, 20, 0, 0, 20, 0]);
    for backend in 0..3 {
        assert_eq!(world.received(backend), (6, 6 * 48));
    }
}

/// Whether it has an entry is asked once more, where the second pass saw none.
#[test]
fn packets_of_one_new_flow_in_one_burst_open_it_once() {
    for flows in [1, 7, MAX_BURST as u16 / 2] {
        let mut world = World::new(&[ForwardMethod::DirectRouting; 2]);
        let mut frames: Vec<_> = (0..MAX_BURST as u16).map(|n| udp(n % flows)).collect();
        assert_eq!(world.burst(&mut frames), Some(0));
        let opened = world.counters.new_connections.get();
        assert_eq!(
            (opened, world.shard.tables.v4.len()),
            (u64::from(flows), usize::from(flows))
        );
        let flow = usize::from(flows);
        for (n, frame) in frames.iter().enumerate() {
            let first = &frames[n % flow];
            assert_eq!(
                frame.bytes()[..6],
                first.bytes()[..6],
                "packet {n} of {flows} flows"
            );
        }
    }
}

#[test]
fn new_flows_of_several_services_may_come_in_one_burst() {
    let mut world = World::new(&[ForwardMethod::DirectRouting; 2]);
    let backends = world.lab.snapshot.backends.clone();
    let service = |id: u32| {
        let mut service = world
            .lab
            .snapshot
            .service(ServiceId(0))
            .map(|s| (**s).clone());
        if let Some(service) = &mut service {
            (service.id, service.backends) = (ServiceId(id), [BackendId(id)].into());
            service.weights = Arc::new(Weights::of(&service.backends, &backends));
        }
        service.map(Arc::new)
    };
    let services = [service(0), service(1)].into_iter().collect();
    world.lab.snapshot.services = services;
    let listens = |world: &mut World, ids: [u32; 2]| {
        let listens = [80, 81]
            .into_iter()
            .zip(ids.map(ServiceId))
            .map(|(port, id)| {
                let prefix = Prefix::new(IpAddr::from([192, 0, 2, 80]), 32);
                let listen = Listen {
                    protocol: protocol::UDP,
                    prefix,
                    first_port: port,
                    last_port: port,
                };
                (listen, id)
            });
        world.lab.snapshot.service_map = Arc::new(ServiceMap::new(listens));
    };
    let to = |client: u16, port: u16| {
        let from = format!("10.0.0.1:{client}");
        MemoryFrame::new(&udp4(&from, &format!("192.0.2.80:{port}")).frame())
    };
    // The backend of each new flow, in the order in which the burst's packets come.
    let mut clients = 1..;
    let mut met = |world: &mut World, ports: &[u16]| {
        let mut frames: Vec<_> = ports
            .iter()
            .zip(&mut clients)
            .map(|(&port, n)| to(n, port))
            .collect();
        world.burst(&mut frames);
        let met = frames
            .iter()
            .zip(&world.verdicts)
            .map(|(frame, verdict)| match verdict {
                Verdict::Transmit(0) => (0..2).find(|&n| frame.bytes()[..6] == backend_mac(n)),
                verdict => {
                    assert_eq!(*verdict, Verdict::Pass(Pass::Local));
                    None
                }
            });
        met.collect::<Vec<_>>()
    };
    let ports = [80, 80, 81, 81, 80, 82, 80, 82, 81];
    let (web, other, nobody) = (Some(0), Some(1), None);
    listens(&mut world, [0, 1]);
    let wanted = [web, web, other, other, web, nobody, web, nobody, other];
    assert_eq!(met(&mut world, &ports), wanted);
    // What was found for one burst says nothing about the next.
    listens(&mut world, [1, 0]);
    assert_eq!(met(&mut world, &[81, 80]), [web, other]);
}

#[test]
fn padding_behind_a_settled_packet_is_cut_off() {
    let mut world = World::new(&[ForwardMethod::DirectRouting]);
    world.burst(&mut [udp(1)]);
    world.burst(&mut [udp(1)]);
    let whole = udp(1).bytes().len();
    let mut padded = [MemoryFrame::new(&[udp(1).bytes(), &[0; 6]].concat())];
    assert_eq!(world.burst(&mut padded), Some(0));
    assert_eq!(padded[0].bytes().len(), whole);
    assert_eq!(world.received(0), (3, 3 * 48));
}

/// The passes go over a burst in parts then.
#[test]
fn of_a_large_table_every_packet_of_a_burst_of_any_length_is_forwarded() {
    const FLOWS: usize = 40_000;
    let mut world = World::with_room(&[ForwardMethod::DirectRouting; 2], FLOWS);
    let udp = |n: usize| {
        let from = format!("10.{}.{}.1:{}", n >> 8, n & 0xff, 1000 + n % 7);
        MemoryFrame::new(&udp4(&from, VIP).payload(&[7; 20]).frame())
    };
    let all: Vec<usize> = (0..FLOWS).collect();
    for flows in all.chunks(MAX_BURST) {
        let mut frames: Vec<_> = flows.iter().map(|&n| udp(n)).collect();
        assert_eq!(world.burst(&mut frames), Some(0));
    }
    assert!(world.shard.buckets() > 1024, "{}", world.shard.buckets());
    let sent = |world: &World| [0, 1].map(|n| world.received(n).0).iter().sum::<u64>();
    for length in [1, 15, 16, 17, 31, 32, 33, 48, 63, MAX_BURST] {
        let before = sent(&world);
        let mut frames: Vec<_> = (0..length).map(|n| udp(n * 599)).collect();
        assert_eq!(world.burst(&mut frames), Some(0), "{length}");
        assert_eq!(sent(&world) - before, length as u64);
        let ours = [0, 1].map(backend_mac);
        assert!(
            frames
                .iter()
                .all(|f| ours.iter().any(|mac| f.bytes().starts_with(mac)))
        );
    }
    assert_eq!(world.counters.new_connections.get(), FLOWS as u64);
}
