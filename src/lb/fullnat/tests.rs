use super::ports::*;
use super::*;
use crate::lb::fixture;
use crate::lb::owner::{end_hash, local_port};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 200);

fn ownership(reta: u16, workers: u8) -> Ownership {
    Ownership {
        reta,
        workers,
        compute: true,
    }
}

fn conn(lease: Lease) -> Conn<Ipv4Addr> {
    let mut conn = fixture::conn("10.9.9.9:1000", "192.0.2.80:80");
    lease.write(&mut conn);
    conn
}

fn exhaust<A: Address>(ports: &mut LocalPorts, group: u8, local: A) -> Vec<Lease> {
    exhaust_at(ports, group, local, 100)
}

fn exhaust_at<A: Address>(ports: &mut LocalPorts, group: u8, local: A, second: u32) -> Vec<Lease> {
    std::iter::from_fn(|| ports.take(0, group, local, second)).collect()
}

#[test]
fn the_port_of_a_hash_is_the_one_with_that_hash() {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6);
    for hash in 0..=u16::MAX {
        assert_eq!(end_hash(LOCAL, local_port(LOCAL, hash)), hash);
        assert_eq!(end_hash(v6, local_port(v6, hash)), hash);
    }
}

/// Together the workers use every port but the reserved ones, each only those whose replies come
/// to it, and none twice.
#[test]
fn the_workers_share_all_ports_by_who_gets_the_replies() {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    for (reta, workers) in [
        (1, 1),
        (128, 1),
        (128, 4),
        (128, 3),
        (512, 7),
        (64, 64),
        (128, 128),
    ] {
        let ownership = ownership(reta, workers);
        let (mut v4_ports, mut v6_ports) = (HashSet::new(), HashSet::new());
        for worker in 0..workers {
            let mut ports = LocalPorts::new(1, 2, ownership, worker).expect("memory");
            for lease in exhaust(&mut ports, 0, LOCAL) {
                assert_eq!(ownership.two_way(LOCAL, lease.port), worker);
                assert!(lease.port >= FIRST_PORT && v4_ports.insert(lease.port));
                let cell = ports.cell(0, 0, LOCAL, lease.port).expect("ours");
                assert_eq!(cell, ports.place(&lease).1);
            }
            for lease in exhaust(&mut ports, 1, v6) {
                assert_eq!(ownership.two_way(v6, lease.port), worker);
                assert!(lease.port >= FIRST_PORT && v6_ports.insert(lease.port));
            }
        }
        let all = 65536 - usize::from(FIRST_PORT);
        assert_eq!((v4_ports.len(), v6_ports.len()), (all, all));
    }
}

/// Of many pools a few are looked at at a time: the fullest is found all the same, and forgotten when
/// it is empty.
#[test]
fn the_fullest_pool_is_found_wherever_it_is() {
    let mut ports = LocalPorts::new(3, 256, ownership(128, 128), 5).expect("memory");
    let turn = |ports: &mut LocalPorts| (0..12).map(|_| ports.survey()).last();
    assert_eq!(turn(&mut ports), Some(0));
    let lease = |ports: &mut LocalPorts| ports.take(2, 200, LOCAL, 100).expect("a port");
    let leases: Vec<_> = (0..248).map(|_| lease(&mut ports)).collect();
    assert_eq!(turn(&mut ports), Some(500), "248 of 496");
    assert_eq!(turn(&mut ports), Some(500));
    for lease in leases {
        ports.give_back(lease);
    }
    turn(&mut ports);
    assert_eq!(turn(&mut ports), Some(0));
}

#[test]
fn a_port_of_another_worker_has_no_cell() {
    let ownership = ownership(128, 4);
    let ports = LocalPorts::new(1, 1, ownership, 2).expect("memory");
    for port in 0..=u16::MAX {
        let ours = ownership.two_way(LOCAL, port) == 2;
        assert_eq!(ports.cell(0, 0, LOCAL, port).is_some(), ours);
    }
    assert_eq!(ports.cell(1, 0, LOCAL, 5000), None, "no such address");
    let nobody = LocalPorts::new(0, 1, ownership, 2).expect("memory");
    assert_eq!(nobody.cell(0, 0, LOCAL, 5000), None);
    assert_eq!(nobody.slot(0), None);
}

#[test]
fn backends_of_different_groups_share_ports_and_one_group_never_does() {
    let mut ports = LocalPorts::new(1, 8, ownership(128, 4), 0).expect("memory");
    let of = |ports: &LocalPorts, n| ports.group(6, Ipv4Addr::new(10, 0, 1, n), 8080);
    let groups: HashSet<u8> = (1..9).map(|n| of(&ports, n)).collect();
    assert!(groups.len() > 4, "8 neighbours in {} groups", groups.len());
    let one = exhaust(&mut ports, 0, LOCAL);
    let two = exhaust(&mut ports, 1, LOCAL);
    assert!(one.len() > 15_000 && one.len() == two.len());
    assert_eq!(one[7].port, two[7].port);
    assert_eq!(ports.usage().0, 2 * one.len() as u64);
    assert_eq!(ports.fullest(0..8), 1000);
    assert_eq!(ports.fullest(2..8), 0);
}

#[test]
fn ports_are_lent_in_a_circle_and_the_rested_before_the_others() {
    let mut ports = LocalPorts::new(1, 1, ownership(128, 4), 1).expect("memory");
    let first = ports.take(0, 0, LOCAL, 100).expect("a port");
    ports.release(&conn(first), 100);
    let others = exhaust(&mut ports, 0, LOCAL);
    assert_eq!(
        others.last(),
        Some(&first),
        "the circle ends where it began"
    );
    let indexes: Vec<u16> = others.iter().map(|lease| lease.index).collect();
    let turn = indexes.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(turn <= 1, "in order, and round once");
    let freed = |ports: &mut LocalPorts, n: usize, last_seen| {
        let mut conn = conn(others[n]);
        conn.last_seen = last_seen;
        ports.release(&conn, last_seen);
    };
    // All freed at once: in the order in which they were lent, whatever the order they came back.
    for n in [5, 3, 9] {
        freed(&mut ports, n, 100);
    }
    ports.give_back(others[4]);
    assert_eq!(ports.take(0, 0, LOCAL, 100), Some(others[4]), "never used");
    let order = [others[5], others[9], others[3]].map(Some);
    assert_eq!([(); 3].map(|()| ports.take(0, 0, LOCAL, 100)), order);
    assert_eq!(ports.take(0, 0, LOCAL, 100), None);
    // One that has just been freed waits while there is one that has rested.
    freed(&mut ports, 10, 200);
    freed(&mut ports, 11, 199);
    freed(&mut ports, 12, 150);
    let order = [others[12], others[11], others[10]].map(Some);
    assert_eq!([(); 3].map(|()| ports.take(0, 0, LOCAL, 200)), order);
}

#[test]
fn the_port_of_a_backend_that_closed_first_is_held_unless_need_be() {
    let mut ports = LocalPorts::new(1, 1, ownership(128, 4), 1).expect("memory");
    let leases = exhaust(&mut ports, 0, LOCAL);
    for (lease, last_seen) in [(leases[0], 1000), (leases[1], 1010)] {
        let mut conn = conn(lease);
        (conn.flags, conn.last_seen) = (conn.flags | flag::BACKEND_CLOSED, last_seen);
        ports.release(&conn, 1010);
    }
    assert_eq!(ports.take(0, 0, LOCAL, 1000 + HOLD - 1), None);
    assert_eq!(ports.take(0, 0, LOCAL, 1000 + HOLD), Some(leases[0]));
    assert_eq!(ports.take(0, 0, LOCAL, 1000 + HOLD), None);
    assert_eq!(ports.take_held(0, 0, LOCAL, 1000 + HOLD), Some(leases[1]));
    assert_eq!(ports.take_held(0, 0, LOCAL, 1000 + HOLD), None);
    // Forgotten long after the backend did, it is free at once.
    let mut old = conn(leases[2]);
    (old.flags, old.last_seen) = (old.flags | flag::BACKEND_CLOSED, 1000);
    ports.release(&old, 1000 + HOLD);
    assert_eq!(ports.take(0, 0, LOCAL, 1000 + HOLD), Some(leases[2]));
}

/// The hold that ends is found wherever it is, and of those that must be cut short the oldest of
/// the next few.
#[test]
fn many_holds_end_one_by_one() {
    let mut ports = LocalPorts::new(1, 1, ownership(128, 4), 1).expect("memory");
    let leases = exhaust(&mut ports, 0, LOCAL);
    for (n, lease) in leases.iter().enumerate() {
        let mut conn = conn(*lease);
        (conn.flags, conn.last_seen) = (conn.flags | flag::BACKEND_CLOSED, 1000 + n as u32 % 7);
        ports.release(&conn, 1010);
    }
    assert_eq!(ports.take(0, 0, LOCAL, 1010), None);
    let early = ports.take_held(0, 0, LOCAL, 1010).expect("a port");
    let at = leases.iter().position(|lease| *lease == early);
    assert_eq!(
        at.map(|at| at % 7),
        Some(0),
        "of the next 8 the one freed first"
    );
    let all = exhaust_at(&mut ports, 0, LOCAL, 1006 + HOLD);
    let all: HashSet<u16> = all.iter().map(|lease| lease.port).collect();
    assert_eq!(all.len(), leases.len() - 1);
    assert!(!all.contains(&early.port));
}

#[test]
fn of_those_that_are_over_the_one_that_was_lent_first_gives_way() {
    let mut ports = LocalPorts::new(1, 1, ownership(128, 4), 1).expect("memory");
    let leases = exhaust(&mut ports, 0, LOCAL);
    for (n, lease) in leases[..4].iter().enumerate() {
        ports.settled(&conn(*lease), Slot::at(n as u32));
    }
    assert_eq!(ports.yields(0, 0), None);
    for n in [2, 0, 2, 3] {
        ports.over(&conn(leases[n]));
    }
    assert_eq!(ports.yields(0, 0), Some(Slot::at(0)));
    // The table moves it, and it still is the one.
    ports.settled(&conn(leases[0]), Slot::at(77));
    assert_eq!(ports.yields(0, 0), Some(Slot::at(77)));
    ports.release(&conn(leases[0]), 100);
    assert_eq!(ports.yields(0, 0), Some(Slot::at(2)));
    assert_eq!(ports.slot(ports.place(&leases[0]).1), None);
    // The freed port is lent anew, so its connection is the youngest of all.
    let again = ports.take(0, 0, LOCAL, 200).expect("a port");
    assert_eq!(again, leases[0]);
    ports.settled(&conn(again), Slot::at(78));
    ports.over(&conn(again));
    assert_eq!(ports.yields(0, 0), Some(Slot::at(2)));
}

#[test]
fn two_million_ports_take_9_megabytes() {
    let ports = LocalPorts::new(4, 8, ownership(128, 1), 0).expect("memory");
    let each = ports.memory() as f64 / ports.usage().1 as f64;
    assert!((4.5..4.9).contains(&each), "{each} bytes a port");
}

/// What is over yields first, then what is embryonic, oldest first; a confirmed one never.
#[test]
fn embryonic_connections_give_way_and_confirmed_ones_do_not() {
    let mut ports = LocalPorts::new(1, 1, ownership(128, 4), 1).expect("memory");
    let leases = exhaust(&mut ports, 0, LOCAL);
    let young = |lease| {
        let mut conn = conn(lease);
        conn.flags |= flag::EMBRYONIC;
        conn
    };
    for (n, lease) in leases[..5].iter().enumerate() {
        ports.settled(&young(*lease), Slot::at(n as u32));
    }
    assert_eq!(ports.yields(0, 0), Some(Slot::at(0)));
    ports.settled(&young(leases[0]), Slot::at(70));
    assert_eq!(ports.yields(0, 0), Some(Slot::at(70)), "moved, not renewed");
    ports.confirmed(&young(leases[0]));
    assert_eq!(ports.yields(0, 0), Some(Slot::at(1)));
    ports.over(&young(leases[3]));
    assert_eq!(ports.yields(0, 0), Some(Slot::at(3)));
    for n in [3, 1, 2] {
        ports.release(&young(leases[n]), 100);
    }
    assert_eq!(ports.yields(0, 0), Some(Slot::at(4)));
    ports.release(&young(leases[4]), 100);
    assert_eq!(ports.yields(0, 0), None);
}

#[derive(Clone, Debug)]
enum Step {
    Take,
    Over(usize),
    Move(usize, u32),
    Release(usize, bool),
}

proptest! {
    /// Against a model of four sets and a map. 256 ports: reta 256, worker 7 of 255.
    #[test]
    fn behaves_as_sets_and_a_map(steps in prop::collection::vec(
        (0..6u8, any::<u16>(), any::<bool>()).prop_map(|(kind, n, held)| match kind {
            0..=2 => Step::Take,
            3 => Step::Over(n.into()),
            4 => Step::Move(n.into(), u32::from(n) + 1000),
            _ => Step::Release(n.into(), held),
        }), 1..900))
    {
        let mut ports = LocalPorts::new(1, 1, ownership(256, 255), 7).expect("memory");
        let all = exhaust(&mut ports, 0, LOCAL);
        let mut free: HashSet<u16> = all.iter().map(|lease| lease.port).collect();
        ports = LocalPorts::new(1, 1, ownership(256, 255), 7).expect("memory");
        let mut live: Vec<(Conn<Ipv4Addr>, u32)> = Vec::new();
        let (mut held, mut over) = (HashSet::new(), HashSet::new());
        let mut slots = 0;
        for step in steps {
            match step {
                Step::Take => {
                    let lease = ports.take(0, 0, LOCAL, 100);
                    let lease = match lease {
                        Some(lease) => {
                            prop_assert!(free.remove(&lease.port));
                            Some(lease)
                        }
                        None => {
                            prop_assert!(free.is_empty());
                            let lease = ports.take_held(0, 0, LOCAL, 100);
                            prop_assert_eq!(lease.is_some(), !held.is_empty());
                            prop_assert!(lease.is_none_or(|l| held.remove(&l.port)));
                            lease
                        }
                    };
                    let Some(lease) = lease else { continue };
                    slots += 1;
                    ports.settled(&conn(lease), Slot::at(slots));
                    live.push((conn(lease), slots));
                }
                Step::Over(n) if !live.is_empty() => {
                    let (conn, _) = live[n % live.len()];
                    ports.over(&conn);
                    over.insert(conn.local_port);
                }
                Step::Move(n, slot) if !live.is_empty() => {
                    let count = live.len();
                    let (conn, place) = &mut live[n % count];
                    *place = slot;
                    ports.settled(conn, Slot::at(slot));
                }
                Step::Release(n, hold) if !live.is_empty() => {
                    let (mut conn, _) = live.swap_remove(n % live.len());
                    conn.last_seen = 90;
                    if hold {
                        conn.flags |= flag::BACKEND_CLOSED;
                        held.insert(conn.local_port);
                    } else {
                        free.insert(conn.local_port);
                    }
                    over.remove(&conn.local_port);
                    ports.release(&conn, 100);
                }
                _ => {}
            }
            prop_assert_eq!(ports.usage().0 as usize, live.len());
            let named: HashMap<u16, u32> = live.iter().map(|(c, s)| (c.local_port, *s)).collect();
            let over: Vec<_> = over.iter().map(|port| Slot::at(named[port])).collect();
            match ports.yields(0, 0) {
                Some(slot) => prop_assert!(over.contains(&slot)),
                None => prop_assert!(over.is_empty()),
            }
            for (conn, slot) in &live {
                let cell = ports.cell(0, 0, LOCAL, conn.local_port).expect("ours");
                prop_assert_eq!(ports.slot(cell), Some(Slot::at(*slot)));
            }
        }
    }
}
