//! What is foreseen is what happens, and foreseeing leaves no trace.

use proptest::prelude::*;

use super::*;
use crate::lb::cluster::Cluster;
use crate::lb::counters::DropReason;
use crate::lb::fixture::{Build, Lab, VIP, tcp4, udp4};
use crate::lb::owner::Ownership;
use crate::lb::parse::{Parsed, parse, tcp};
use crate::lb::snapshot::{BackendState, ForwardMethod, Scheduler};

/// Foresees the end of `frame` as a running appliance would, asking workers one after the other.
fn foresee(cluster: &Cluster, snapshot: &Snapshot, frame: &[u8]) -> Foreseen {
    let (flow, key) = match parse(frame, false) {
        Parsed::V4(packet) => (Flow::V4(packet.key), packet.key),
        other => panic!("not an IPv4 packet: {other:?}"),
    };
    let map = &snapshot.service_map;
    let found = map.find(key.protocol, key.destination.into(), key.destination_port);
    let service = found.and_then(|found| snapshot.service(found.id));
    let mut question = Question::new(1, flow, snapshot, service.map(|s| &**s));
    while let Some(worker) = question.next() {
        let shard = &cluster.shards[usize::from(worker)];
        question.fill(shard, snapshot, cluster.now);
    }
    let counters = |worker: u8| Some(cluster.counters(usize::from(worker)));
    let foreseen = question
        .foresee(snapshot, counters, frame, 0)
        .expect("memory");
    foreseen.expect("it was answered")
}

fn lab(method: ForwardMethod, scheduler: Scheduler, workers: u8, persistent: bool) -> Lab {
    let mut lab = Lab::with_method(method, scheduler, &[4, 3, 2]);
    lab.snapshot.ownership = Ownership {
        reta: 128,
        workers,
        compute: workers > 1,
    };
    lab.backend(1).upper = 6;
    lab.service().persistence = persistent.then_some(persistence::Persistence {
        timeout: 300,
        prefix_v4: 24,
        prefix_v6: 64,
        group: 7,
    });
    lab
}

fn packet(number: u8, kind: u8) -> Build {
    // Few clients, so that they come back.
    let client = format!(
        "10.{}.0.{}:{}",
        number % 3,
        number % 5,
        1000 + u16::from(number % 4)
    );
    match kind {
        0 | 1 => tcp4(&client, VIP).flags(tcp::SYN),
        2 => tcp4(&client, VIP).flags(tcp::ACK),
        3 => tcp4(&client, VIP).flags(tcp::ACK | tcp::FIN),
        4 => udp4(&client, VIP),
        5 => tcp4(&client, VIP).flags(tcp::SYN).ttl(1),
        _ => tcp4(&client, "192.0.2.80:81").flags(tcp::SYN),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two clusters get the same packets; one is asked about each before, and must decide as it
    /// said, and as the other does.
    #[test]
    fn what_is_foreseen_happens_and_nothing_is_changed_by_it(
        scheduler in proptest::sample::select(&Scheduler::ALL),
        method in proptest::sample::select(&[
            ForwardMethod::Nat,
            ForwardMethod::Tunnel,
            ForwardMethod::DirectRouting,
        ]),
        workers in 1u8..4,
        persistent in any::<bool>(),
        flood in any::<bool>(),
        packets in proptest::collection::vec((any::<u8>(), 0u8..7, 0u64..30), 1..60),
    ) {
        let mut lab = lab(method, scheduler, workers, persistent);
        lab.snapshot.flood_guard = if flood { 10 } else { 0 };
        let mut asked = Cluster::new(usize::from(workers), 100);
        let mut twin = Cluster::new(usize::from(workers), 100);
        for (number, kind, pause) in packets {
            asked.pass_seconds(pause);
            twin.pass_seconds(pause);
            let frame = packet(number, kind).frame();
            let foreseen = foresee(&asked, &lab.snapshot, &frame);
            let entry = usize::from(number % workers);
            let happened = asked.feed(&lab.snapshot, entry, &frame);
            prop_assert_eq!(foreseen.verdict, happened.verdict);
            prop_assert_eq!(&foreseen.frame, &happened.frame);
            let unasked = twin.feed(&lab.snapshot, entry, &frame);
            prop_assert_eq!(unasked.verdict, happened.verdict);
            prop_assert_eq!(&unasked.frame, &happened.frame);
        }
    }
}

#[test]
fn a_reply_finds_its_connection() {
    for method in [ForwardMethod::Nat, ForwardMethod::FullNat] {
        let lab = lab(method, Scheduler::RoundRobin, 1, false);
        let mut cluster = Cluster::new(1, 100);
        let ownership = lab.snapshot.ownership;
        let shard = cluster.shards.pop().expect("a shard");
        let shard = shard.with_local_ports(2, 4, ownership).expect("memory");
        cluster.shards.push(shard);
        let request = tcp4("10.9.0.1:1000", VIP).flags(tcp::SYN).frame();
        let before = foresee(&cluster, &lab.snapshot, &request);
        assert_eq!(
            (before.backend, before.why),
            (Some(BackendId(0)), Why::Scheduled)
        );
        let sent = cluster.feed(&lab.snapshot, 0, &request).transmitted();
        let Parsed::V4(sent) = parse(&sent, false) else {
            panic!("not IPv4");
        };
        let end = |address: Ipv4Addr, port| format!("{address}:{port}");
        let reply = tcp4(
            &end(sent.key.destination, sent.key.destination_port),
            &end(sent.key.source, sent.key.source_port),
        );
        let reply = reply.flags(tcp::SYN | tcp::ACK).frame();
        let foreseen = foresee(&cluster, &lab.snapshot, &reply);
        let why = Why::Tracked {
            state: State::SynRecv,
            expires: 60,
            reply: true,
        };
        assert_eq!(
            (foreseen.backend, foreseen.why),
            (Some(BackendId(0)), why),
            "{method:?}"
        );
        let happened = cluster.feed(&lab.snapshot, 0, &reply);
        assert_eq!(
            (foreseen.verdict, foreseen.frame),
            (happened.verdict, happened.frame)
        );
        // The request again meets the connection, and under FullNAT keeps its local port.
        let foreseen = foresee(&cluster, &lab.snapshot, &request);
        let happened = cluster.feed(&lab.snapshot, 0, &request);
        assert_eq!(
            (foreseen.verdict, foreseen.frame),
            (happened.verdict, happened.frame)
        );
    }
}

#[test]
fn the_reason_is_the_workers() {
    let mut lab = lab(ForwardMethod::Nat, Scheduler::RoundRobin, 1, false);
    for id in 0..3 {
        lab.backend(id).state = BackendState::Down;
    }
    let cluster = Cluster::new(1, 100);
    let frame = tcp4("10.9.0.1:1000", VIP).flags(tcp::SYN).frame();
    let foreseen = foresee(&cluster, &lab.snapshot, &frame);
    assert_eq!(foreseen.verdict, Verdict::Drop(DropReason::NoBackend));
    assert_eq!((foreseen.backend, foreseen.why), (None, Why::Nobody));
    let frame = tcp4("10.9.0.1:1000", "192.0.2.80:81").frame();
    let foreseen = foresee(&cluster, &lab.snapshot, &frame);
    assert_eq!(foreseen.verdict, Verdict::Pass(Pass::Local));
    assert_eq!(cluster.total(|c| c.dropped_total()), 0);
}
