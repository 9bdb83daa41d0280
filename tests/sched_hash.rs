//! mh, sh and dh: the same flow gets the same server, any weights get their share, and only the
//! clients of a server that cannot take them move.

#[path = "sched/bench.rs"]
mod bench;

use std::net::Ipv4Addr;

use bench::Bench;
use evenkeel::lb::snapshot::{BackendState, Scheduler};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);

fn client(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a40_0000 + n)
}

fn owners(bench: &mut Bench) -> Vec<Option<usize>> {
    (0..3000)
        .map(|n| bench.pick_for(client(n), 1024, VIP))
        .collect()
}

fn shares(owners: &[Option<usize>], servers: usize) -> Vec<f64> {
    let count = |n| owners.iter().filter(|o| **o == Some(n)).count();
    (0..servers)
        .map(|n| count(n) as f64 / owners.len() as f64)
        .collect()
}

#[test]
fn mh_moves_only_the_clients_of_the_one_that_went() {
    for out in [BackendState::Down, BackendState::Drained] {
        let mut bench = Bench::new(Scheduler::Maglev, &[1, 1, 1, 1]);
        let before = owners(&mut bench);
        bench.lab.backend(2).state = out;
        let after = owners(&mut bench);
        for (b, a) in before.iter().zip(&after) {
            assert!(if *b == Some(2) {
                *a != Some(2) && a.is_some()
            } else {
                a == b
            });
        }
        // Those that went spread over all others.
        let moved: Vec<_> = before
            .iter()
            .zip(&after)
            .filter(|(b, _)| **b == Some(2))
            .map(|(_, a)| *a)
            .collect();
        assert!(
            shares(&moved, 4)
                .iter()
                .enumerate()
                .all(|(n, s)| n == 2 || *s > 0.25),
            "{:?}",
            shares(&moved, 4)
        );
        bench.lab.backend(2).state = BackendState::Up;
        assert_eq!(owners(&mut bench), before);
    }
}

#[test]
fn weights_in_force_do_not_move_a_hash_but_nought_does() {
    for scheduler in [Scheduler::Maglev, Scheduler::SourceHash] {
        let mut bench = Bench::new(scheduler, &[10, 10, 10]);
        let before = owners(&mut bench);
        bench.lab.backend(1).weight = 3;
        assert_eq!(owners(&mut bench), before, "{}", scheduler.name());
        bench.lab.backend(1).weight = 0;
        assert!(
            !owners(&mut bench).contains(&Some(1)),
            "{}",
            scheduler.name()
        );
    }
}

#[test]
fn sh_starves_nobody_with_weights_over_256_in_total() {
    let mut bench = Bench::new(Scheduler::SourceHash, &[300, 300, 300, 100]);
    let shares = shares(&owners(&mut bench), 4);
    for (share, want) in shares.iter().zip([0.3, 0.3, 0.3, 0.1]) {
        // Six deviations of 3,000 draws.
        assert!((share - want).abs() < 0.05, "{shares:?}");
    }
}

#[test]
fn sh_hashes_the_port_only_when_told() {
    let mut bench = Bench::new(Scheduler::SourceHash, &[1; 8]);
    let seen = |bench: &mut Bench| {
        let mut seen: Vec<_> = (0..100)
            .map(|p| bench.pick_for(client(1), p, VIP))
            .collect();
        seen.sort();
        seen.dedup();
        seen.len()
    };
    assert_eq!(seen(&mut bench), 8);
    bench.lab.service().hash_port = false;
    assert_eq!(seen(&mut bench), 1);
}

#[test]
fn without_fallback_a_client_of_a_lost_server_is_refused() {
    for scheduler in [Scheduler::SourceHash, Scheduler::DestinationHash] {
        let mut bench = Bench::new(scheduler, &[1, 1, 1]);
        let wanted = |n: u32| Ipv4Addr::from_bits(0xc633_0000 + n);
        let owners = |bench: &mut Bench| -> Vec<Option<usize>> {
            (0..300)
                .map(|n| bench.pick_for(client(n), 1, wanted(n)))
                .collect()
        };
        let before = owners(&mut bench);
        bench.lab.backend(0).state = BackendState::Down;
        let refused = owners(&mut bench);
        for (b, a) in before.iter().zip(&refused) {
            assert_eq!(*a, b.filter(|n| *n != 0), "{}", scheduler.name());
        }
        bench.lab.service().hash_fallback = true;
        let moved = owners(&mut bench);
        for (b, a) in before.iter().zip(&moved) {
            assert!(if *b == Some(0) {
                matches!(a, Some(1 | 2))
            } else {
                a == b
            });
        }
    }
}

#[test]
fn dh_goes_by_the_wanted_address_alone() {
    let mut bench = Bench::new(Scheduler::DestinationHash, &[1; 8]);
    let wanted = |n: u32| Ipv4Addr::from_bits(0xc633_0000 + n);
    let one: Vec<_> = (0..100)
        .map(|n| bench.pick_for(client(n), n as u16, VIP))
        .collect();
    assert!(one.iter().all(|o| *o == one[0]));
    let many: Vec<_> = (0..400)
        .map(|n| bench.pick_for(client(1), 1, wanted(n)))
        .collect();
    assert!(
        shares(&many, 8).iter().all(|s| *s > 0.05),
        "{:?}",
        shares(&many, 8)
    );
}

#[test]
fn workers_agree_on_a_hash() {
    for scheduler in Scheduler::ALL.into_iter().filter(|s| s.is_hash()) {
        let mut one = Bench::on_worker(scheduler, &[5, 2, 9], 0, 4);
        let mut two = Bench::on_worker(scheduler, &[5, 2, 9], 3, 4);
        assert_eq!(owners(&mut one), owners(&mut two), "{}", scheduler.name());
    }
}
