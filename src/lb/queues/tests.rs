use super::*;
use crate::lb::cluster::Cluster;
use crate::lb::fixture::{Build, Lab, VIP, VIP6, tcp4, tcp6, udp4, udp6};
use crate::lb::frame::MemoryFrame;
use crate::lb::parse::{Parsed, parse, tcp};
use crate::lb::snapshot::{ForwardMethod, PortView, Scheduler, Snapshot};
use crate::lb::{Arrival, Verdict};

const WORKERS: u8 = 4;

fn lab(method: ForwardMethod, queues: Option<Queues>) -> Lab {
    let mut lab = Lab::with_method(method, Scheduler::RoundRobin, &[1]);
    let snapshot = &mut lab.snapshot;
    snapshot.ownership = Ownership {
        reta: 128,
        workers: WORKERS,
        compute: true,
    };
    let port = snapshot.ports[0].clone();
    snapshot.ports = [PortView { queues, ..port }].into();
    lab
}

/// A first packet of each class, of client `n`.
fn packets(n: u16) -> [Build; Classes::COUNT] {
    let port = 1024 + n * 37;
    let v4 = format!("10.9.{}.9:{port}", n % 200);
    let v6 = format!("[2001:db8:9::{n:x}]:{port}");
    [
        tcp4(&v4, VIP).flags(tcp::SYN),
        udp4(&v4, VIP),
        tcp6(&v6, VIP6).flags(tcp::SYN),
        udp6(&v6, VIP6),
    ]
}

fn hash(snapshot: &Snapshot, frame: &[u8]) -> u16 {
    match parse(frame, false) {
        Parsed::V4(packet) => snapshot.side(&packet.key).hash(&packet.key),
        Parsed::V6(packet) => snapshot.side(&packet.key).hash(&packet.key),
        other => panic!("{other:?}"),
    }
}

fn owner(snapshot: &Snapshot, frame: &[u8]) -> usize {
    usize::from(snapshot.ownership.worker(hash(snapshot, frame)))
}

/// Whether the worker hands the packet over.
fn hands_over(cluster: &mut Cluster, lab: &Lab, worker: usize, frame: &[u8]) -> bool {
    let mut frame = MemoryFrame::new(frame);
    let verdict = cluster.step(&lab.snapshot, worker, Arrival::Port(0), &mut frame);
    matches!(verdict, Verdict::HandOff(_))
}

#[test]
fn on_trial_owners_are_computed_and_it_is_noted_who_was_right() {
    let queues = Queues {
        by: By::Both,
        proven: Classes::NONE,
    };
    let lab = lab(ForwardMethod::DirectRouting, Some(queues));
    let mut cluster = Cluster::new(WORKERS.into(), 10_000);
    let mut seen = [0u128; Classes::COUNT];
    for n in 0..300 {
        for (class, packet) in packets(n).iter().enumerate() {
            let frame = packet.frame();
            let owner = owner(&lab.snapshot, &frame);
            seen[class] |= 1 << (hash(&lab.snapshot, &frame) % 128);
            assert!(!hands_over(&mut cluster, &lab, owner, &frame));
        }
    }
    for (class, seen) in seen.into_iter().enumerate() {
        let noted = (0..4).map(|w| cluster.counters(w).queues[0].agreed(class));
        assert_eq!(noted.fold(0, |all, one| all | one), seen);
        assert!(seen.count_ones() > 96);
    }
    assert_eq!(cluster.total(|c| c.queues[0].disagreed.get()), 0);
    let frame = packets(0)[1].frame();
    let wrong = (owner(&lab.snapshot, &frame) + 1) % 4;
    assert!(hands_over(&mut cluster, &lab, wrong, &frame));
    assert_eq!(cluster.counters(wrong).queues[0].disagreed.get(), 1);
    cluster.counters(wrong).queues[0].forget();
    assert_eq!(cluster.counters(wrong).queues[0].disagreed.get(), 0);
}

#[test]
fn what_is_proven_stays_where_it_came_in_and_all_else_is_computed() {
    let only_udp4 = Queues {
        by: By::Both,
        proven: Classes::NONE.with(1),
    };
    let all = Queues {
        by: By::Both,
        proven: Classes::ALL,
    };
    for (queues, trusted) in [(only_udp4, [1].as_slice()), (all, &[0, 1, 2, 3])] {
        let lab = lab(ForwardMethod::DirectRouting, Some(queues));
        let mut cluster = Cluster::new(WORKERS.into(), 1000);
        for (class, packet) in packets(7).into_iter().enumerate() {
            let frame = packet.frame();
            let wrong = (owner(&lab.snapshot, &frame) + 1) % 4;
            let handed = hands_over(&mut cluster, &lab, wrong, &frame);
            assert_eq!(handed, !trusted.contains(&class), "{class}");
            // No NIC need hash what is not plain as we do.
            let tagged = packet.vlan(7).frame();
            assert!(hands_over(&mut cluster, &lab, wrong, &tagged));
        }
    }
}

#[test]
fn queues_that_go_by_one_end_are_trusted_for_one_direction() {
    for (by, requests, replies) in [
        (By::Source, true, false),
        (By::Destination, false, true),
        (By::Both, false, false),
    ] {
        let proven = Classes::ALL;
        let lab = lab(ForwardMethod::Nat, Some(Queues { by, proven }));
        let mut cluster = Cluster::new(WORKERS.into(), 1000);
        let client = "10.9.9.9:77";
        let request = tcp4(client, VIP).flags(tcp::SYN).frame();
        let reply = tcp4("10.0.1.1:8080", client).flags(tcp::ACK).frame();
        let owner = owner(&lab.snapshot, &request);
        assert_eq!(super::tests::owner(&lab.snapshot, &reply), owner);
        let wrong = (owner + 1) % 4;
        assert_eq!(hands_over(&mut cluster, &lab, wrong, &request), !requests);
        assert_eq!(hands_over(&mut cluster, &lab, wrong, &reply), !replies);
    }
}

#[test]
fn a_port_that_proves_nothing_is_computed_without_a_note() {
    let lab = lab(ForwardMethod::DirectRouting, None);
    let mut cluster = Cluster::new(WORKERS.into(), 1000);
    let frame = packets(0)[0].frame();
    let owner = owner(&lab.snapshot, &frame);
    for worker in 0..4 {
        let handed = hands_over(&mut cluster, &lab, worker, &frame);
        assert_eq!(handed, worker != owner);
    }
    assert_eq!(cluster.total(|c| c.queues[0].disagreed.get()), 0);
}

#[test]
fn what_is_proven_is_still_checked_now_and_then() {
    let proven = Classes::ALL;
    let queues = Some(Queues {
        by: By::Both,
        proven,
    });
    let lab = lab(ForwardMethod::DirectRouting, queues);
    let mut cluster = Cluster::new(WORKERS.into(), 1000);
    let frame = packets(3)[2].frame();
    let owner = owner(&lab.snapshot, &frame);
    for _ in 0..1000 {
        assert!(!hands_over(&mut cluster, &lab, owner, &frame));
    }
    assert_eq!(cluster.counters(owner).queues[0].disagreed.get(), 0);
    let wrong = (owner + 1) % 4;
    for _ in 0..1000 {
        assert!(!hands_over(&mut cluster, &lab, wrong, &frame));
    }
    let noticed = cluster.counters(wrong).queues[0].disagreed.get();
    assert!((10..100).contains(&noticed), "{noticed} of 1,000");
}
