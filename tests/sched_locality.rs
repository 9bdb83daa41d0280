//! lblc and lblcr against a model kept in ordinary maps.

#[path = "sched/bench.rs"]
mod bench;

use std::collections::HashMap;
use std::net::Ipv4Addr;

use bench::{Bench, Server};
use evenkeel::lb::snapshot::{BackendState, Scheduler};
use proptest::prelude::*;

const DAY: u32 = 24 * 3600;

fn wanted(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc633_0000 + n)
}

fn pick(bench: &mut Bench, n: u32) -> Option<usize> {
    bench.pick_for(Ipv4Addr::new(10, 64, 0, 1), 1024, wanted(n))
}

fn cost(s: &Server) -> f64 {
    (s.active * 256 + s.inactive) as f64 / f64::from(s.weight)
}

fn wlc(servers: &[Server], among: impl Iterator<Item = usize>) -> Option<usize> {
    let able: Vec<usize> = among.filter(|&n| servers[n].is_able()).collect();
    let best = able
        .iter()
        .map(|&n| cost(&servers[n]))
        .fold(f64::INFINITY, f64::min);
    able.into_iter().find(|&n| cost(&servers[n]) == best)
}

fn is_crowded(servers: &[Server], n: usize) -> bool {
    servers[n].active > u64::from(servers[n].weight)
        && servers
            .iter()
            .any(|s| s.is_able() && 2 * s.active < u64::from(s.weight))
}

/// Destination to servers, and the second of the last change.
type Memory = HashMap<u32, (Vec<usize>, u32)>;

fn lblc(memory: &mut Memory, servers: &[Server], destination: u32) -> Option<usize> {
    let known = memory
        .get(&destination)
        .and_then(|(set, _)| set.first().copied());
    if let Some(n) = known.filter(|&n| servers[n].is_able() && !is_crowded(servers, n)) {
        return Some(n);
    }
    let n = wlc(servers, 0..servers.len())?;
    memory.insert(destination, (vec![n], 0));
    Some(n)
}

fn lblcr(memory: &mut Memory, servers: &[Server], destination: u32, second: u32) -> Option<usize> {
    let (set, changed) = memory.entry(destination).or_insert((Vec::new(), second));
    let lightest = wlc(servers, set.iter().copied());
    if set.len() > 1 && second - *changed > DAY {
        let out = set.iter().position(|&n| !servers[n].is_able());
        let most = set.iter().map(|&n| cost(&servers[n])).fold(0.0, f64::max);
        let at = out.or(set.iter().position(|&n| cost(&servers[n]) == most));
        set.remove(at.expect("one has the most"));
        *changed = second;
    }
    if let Some(n) = lightest.filter(|&n| !is_crowded(servers, n)) {
        return Some(n);
    }
    let n = wlc(servers, 0..servers.len())?;
    if !set.contains(&n) {
        set.push(n);
        *changed = second;
    }
    Some(n)
}

#[test]
fn a_destination_keeps_its_server_until_that_one_is_crowded() {
    let mut bench = Bench::new(Scheduler::Locality, &[4, 4]);
    assert_eq!(pick(&mut bench, 1), Some(0));
    for _ in 0..5 {
        bench.connect(0);
        bench.establish(0);
        assert_eq!(
            pick(&mut bench, 1),
            Some(if bench.servers()[0].active > 4 { 1 } else { 0 })
        );
    }
    // It stays with the new one when the old one has recovered.
    for _ in 0..5 {
        bench.disconnect(0);
    }
    assert_eq!(pick(&mut bench, 1), Some(1));
    bench.lab.backend(1).state = BackendState::Down;
    assert_eq!(pick(&mut bench, 1), Some(0));
}

#[test]
fn a_set_grows_when_crowded_and_shrinks_after_a_day() {
    let mut bench = Bench::new(Scheduler::LocalityReplicated, &[4, 4, 4]);
    assert_eq!(pick(&mut bench, 1), Some(0));
    for _ in 0..5 {
        bench.connect(0);
        bench.establish(0);
    }
    assert_eq!(pick(&mut bench, 1), Some(1));
    for _ in 0..5 {
        bench.disconnect(0);
    }
    // Both belong to the set now: the lighter one serves.
    bench.connect(1);
    assert_eq!(pick(&mut bench, 1), Some(0));
    bench.connect(0);
    bench.connect(0);
    assert_eq!(pick(&mut bench, 1), Some(1));
    // After a day the heavier one leaves, and the set is 1 alone even when 0 is idle. The day
    // is spent in steps, for a destination that rests for a day is forgotten.
    for _ in 0..3 {
        bench.second += DAY / 2;
        assert_eq!(pick(&mut bench, 1), Some(1));
    }
    bench.disconnect(0);
    bench.disconnect(0);
    assert_eq!(pick(&mut bench, 1), Some(1));
}

#[test]
fn workers_together_judge_a_crowd_by_their_part() {
    // A quarter of the flows is seen here: two of them stand for eight.
    let mut bench = Bench::on_worker(Scheduler::Locality, &[7, 7], 0, 4);
    assert_eq!(pick(&mut bench, 1), Some(0));
    bench.connect(0);
    bench.establish(0);
    assert_eq!(pick(&mut bench, 1), Some(0));
    bench.connect(0);
    bench.establish(0);
    assert_eq!(pick(&mut bench, 1), Some(1));
}

#[derive(Clone, Debug)]
enum Step {
    Pick(u32),
    Establish(usize),
    End(usize),
    Weight(usize, u32),
    Health(usize, bool),
    Wait(u32),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agree_with_the_model(steps in prop::collection::vec(prop_oneof![
        8 => (0..6u32).prop_map(Step::Pick),
        6 => (0..4usize).prop_map(Step::Establish),
        2 => (0..4usize).prop_map(Step::End),
        1 => (0..4usize, 0..5u32).prop_map(|(n, w)| Step::Weight(n, w)),
        1 => (0..4usize, any::<bool>()).prop_map(|(n, up)| Step::Health(n, up)),
        // Never a whole day at once, or memory would be swept at a moment the model does not know.
        2 => (1..DAY / 200).prop_map(Step::Wait),
    ], 1..600)) {
        for scheduler in [Scheduler::Locality, Scheduler::LocalityReplicated] {
            let mut bench = Bench::new(scheduler, &[2, 4, 1, 2]);
            let mut memory = Memory::new();
            for step in &steps {
                match *step {
                    Step::Pick(destination) => {
                        let servers = bench.servers();
                        let want = match scheduler {
                            Scheduler::Locality => lblc(&mut memory, &servers, destination),
                            _ => lblcr(&mut memory, &servers, destination, bench.second),
                        };
                        let got = pick(&mut bench, destination);
                        prop_assert_eq!(got, want, "{}", scheduler.name());
                        if let Some(n) = got {
                            bench.connect(n);
                        }
                    }
                    Step::Establish(n) => bench.establish(n),
                    Step::End(n) => bench.disconnect(n),
                    Step::Weight(n, weight) => bench.lab.backend(n as u32).weight = weight,
                    Step::Health(n, up) => {
                        bench.lab.backend(n as u32).state =
                            if up { BackendState::Up } else { BackendState::Down };
                    }
                    Step::Wait(seconds) => bench.second += seconds,
                }
            }
        }
    }
}
