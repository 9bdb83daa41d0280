//! Every scheduler whose definition is exact, against a model written from the definition alone,
//! while weights, health, limits and connection counts change in mid-run.

#[path = "sched/bench.rs"]
mod bench;

use bench::{Bench, Server};
use evenkeel::lb::snapshot::{BackendState, Scheduler};
use proptest::prelude::*;

#[test]
fn rr_goes_in_list_order_and_skips_who_cannot() {
    let mut bench = Bench::new(Scheduler::RoundRobin, &[1, 1, 1]);
    assert_eq!(bench.sequence(7), "ABCABCA");
    bench.lab.backend(1).weight = 0;
    assert_eq!(bench.sequence(5), "CACAC");
    bench.lab.backend(1).weight = 5;
    bench.lab.backend(2).state = BackendState::Drained;
    assert_eq!(bench.sequence(4), "ABAB");
}

#[test]
fn wrr_is_the_textbook_cycle() {
    let mut bench = Bench::new(Scheduler::WeightedRoundRobin, &[4, 3, 2]);
    assert_eq!(bench.sequence(18), "AABABCABCAABABCABC");
    // The cycle depends on ratios, not on size.
    let mut bench = Bench::new(Scheduler::WeightedRoundRobin, &[400, 300, 200]);
    assert_eq!(bench.sequence(9), "AABABCABC");
}

#[test]
fn wrr_goes_on_after_a_change_and_is_fair_from_there() {
    let mut bench = Bench::new(Scheduler::WeightedRoundRobin, &[4, 3, 2]);
    bench.sequence(5);
    bench.lab.backend(0).weight = 0;
    let mut counts = [0; 3];
    bench
        .sequence(500)
        .bytes()
        .for_each(|b| counts[usize::from(b - b'A')] += 1);
    assert_eq!(counts, [0, 300, 200]);
    bench.lab.backend(0).weight = 6;
    bench.lab.backend(1).weight = 4;
    bench.sequence(12);
    let mut counts = [0; 3];
    bench
        .sequence(600)
        .bytes()
        .for_each(|b| counts[usize::from(b - b'A')] += 1);
    assert_eq!(counts, [300, 200, 100]);
}

#[test]
fn a_heavy_server_that_is_full_costs_no_passes_down_to_a_light_one() {
    let mut bench = Bench::new(Scheduler::WeightedRoundRobin, &[65_535, 1, 2]);
    bench.lab.backend(0).upper = 1;
    bench.connect(0);
    assert_eq!(bench.sequence(6), "CBCCBC");
}

#[test]
fn cursors_survive_a_swap_and_workers_start_apart() {
    for scheduler in [Scheduler::RoundRobin, Scheduler::WeightedRoundRobin] {
        let mut bench = Bench::on_worker(scheduler, &[1, 1, 1, 1], 0, 2);
        assert_eq!(bench.sequence(3), "ABC");
        bench.lab = evenkeel::lb::fixture::Lab::new(scheduler, &[1, 1, 1, 1]);
        assert_eq!(bench.sequence(2), "DA");
        let mut other = Bench::on_worker(scheduler, &[1, 1, 1, 1], 1, 2);
        assert_eq!(other.sequence(2), "CD");
        // Evenly spread: of four workers, each begins with another backend.
        let firsts: String = (0..4)
            .map(|w| Bench::on_worker(scheduler, &[1, 1, 1, 1], w, 4).sequence(1))
            .collect();
        assert_eq!(firsts, "ABCD");
    }
}

#[test]
fn a_tie_goes_to_the_first_in_the_list() {
    for scheduler in [
        Scheduler::LeastConnection,
        Scheduler::WeightedLeastConnection,
        Scheduler::ShortestExpectedDelay,
        Scheduler::NeverQueue,
        Scheduler::Failover,
        Scheduler::Overflow,
    ] {
        let mut bench = Bench::new(scheduler, &[5, 5, 5]);
        assert_eq!(bench.sequence(1), "A", "{}", scheduler.name());
    }
}

#[test]
fn an_overloaded_server_returns_below_its_lower_limit() {
    let mut bench = Bench::new(Scheduler::Failover, &[9, 1]);
    bench.lab.backend(0).upper = 4;
    let mut picks = String::new();
    for _ in 0..6 {
        let pick = bench.pick().expect("one can");
        picks.push(bench::letter(pick));
        bench.connect(pick);
    }
    assert_eq!(picks, "AAAABB");
    // Without a lower limit, below three quarters of the upper one.
    bench.disconnect(0);
    assert_eq!(bench.sequence(1), "B");
    bench.disconnect(0);
    assert_eq!(bench.sequence(1), "A");
    bench.connect(0);
    bench.connect(0);
    assert_eq!(bench.sequence(1), "B");
    bench.lab.backend(0).lower = 1;
    bench.disconnect(0);
    bench.disconnect(0);
    bench.disconnect(0);
    assert_eq!(bench.sequence(1), "B");
    bench.disconnect(0);
    assert_eq!(bench.sequence(1), "A");
}

#[test]
fn a_limit_holds_for_all_workers_together() {
    for (upper, workers, most) in [(100, 4, 100), (7, 4, 7), (2, 4, 4)] {
        let mut all = 0;
        for worker in 0..workers {
            let mut bench =
                Bench::on_worker(Scheduler::WeightedLeastConnection, &[1], worker, workers);
            bench.lab.backend(0).upper = upper;
            while let Some(pick) = bench.pick() {
                bench.connect(pick);
                all += 1;
                assert!(all < 1000);
            }
        }
        assert_eq!(all, most, "limit {upper} over {workers} workers");
    }
}

#[test]
fn nobody_eligible_means_none() {
    for scheduler in Scheduler::ALL {
        for weights in [&[][..], &[0, 0]] {
            let mut bench = Bench::new(scheduler, weights);
            assert_eq!(bench.sequence(2), "--", "{}", scheduler.name());
        }
        let mut bench = Bench::new(scheduler, &[3, 2]);
        bench.lab.backend(0).state = BackendState::Down;
        bench.lab.backend(1).state = BackendState::Drained;
        assert_eq!(bench.sequence(2), "--", "{}", scheduler.name());
        bench.lab.backend(0).state = BackendState::Up;
        bench.lab.backend(0).upper = 1;
        bench.connect(0);
        assert_eq!(bench.sequence(2), "--", "{} at its limit", scheduler.name());
    }
}

/// The definitions, as naively as they can be written: what to minimise, as a fraction, in list
/// order.
fn by_definition(scheduler: Scheduler, servers: &[Server]) -> Option<usize> {
    let able = || (0..servers.len()).filter(|&n| servers[n].is_able());
    let least = |cost: &dyn Fn(&Server) -> f64| {
        let costs: Vec<(usize, f64)> = able().map(|n| (n, cost(&servers[n]))).collect();
        let best = costs.iter().map(|c| c.1).fold(f64::INFINITY, f64::min);
        costs.iter().find(|c| c.1 == best).map(|c| c.0)
    };
    let overhead = |s: &Server| (s.active * 256 + s.inactive) as f64;
    let sed = |s: &Server| (s.active + 1) as f64 / f64::from(s.weight);
    match scheduler {
        Scheduler::LeastConnection => least(&overhead),
        Scheduler::WeightedLeastConnection => least(&|s| overhead(s) / f64::from(s.weight)),
        Scheduler::ShortestExpectedDelay => least(&sed),
        Scheduler::NeverQueue => able()
            .find(|&n| servers[n].active == 0)
            .or_else(|| least(&sed)),
        Scheduler::Failover => least(&|s| -f64::from(s.weight)),
        Scheduler::Overflow => {
            let rooms: Vec<Server> = servers
                .iter()
                .map(|s| Server {
                    down: s.down || s.active >= u64::from(s.weight),
                    ..*s
                })
                .collect();
            by_definition(Scheduler::Failover, &rooms)
        }
        _ => unreachable!("not a scheduler of least or rank"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Pick,
    Establish(usize),
    End(usize),
    Weight(usize, u32),
    Health(usize, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => Just(Step::Pick),
        3 => (0..6usize).prop_map(Step::Establish),
        2 => (0..6usize).prop_map(Step::End),
        1 => (0..6usize, 0..12u32).prop_map(|(n, w)| Step::Weight(n, w)),
        1 => (0..6usize, any::<bool>()).prop_map(|(n, up)| Step::Health(n, up)),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn least_and_rank_agree_with_their_definitions(steps in steps()) {
        for scheduler in [
            Scheduler::LeastConnection,
            Scheduler::WeightedLeastConnection,
            Scheduler::ShortestExpectedDelay,
            Scheduler::NeverQueue,
            Scheduler::Failover,
            Scheduler::Overflow,
        ] {
            // Powers of two and small counts keep the model's fractions exact.
            let mut bench = Bench::new(scheduler, &[4, 8, 1, 2, 4, 1]);
            for step in &steps {
                match *step {
                    Step::Pick => {
                        let want = by_definition(scheduler, &bench.servers());
                        let got = bench.pick();
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
                }
            }
        }
    }

    #[test]
    fn rr_visits_all_between_two_visits_of_one(flips in prop::collection::vec((0..5usize, any::<bool>()), 1..60)) {
        let mut bench = Bench::new(Scheduler::RoundRobin, &[1; 5]);
        let mut last = 4;
        for (n, up) in flips {
            bench.lab.backend(n as u32).weight = u32::from(up);
            for _ in 0..3 {
                let servers = bench.servers();
                let want = (1..=5).map(|d| (last + d) % 5).find(|&n| servers[n].is_able());
                let got = bench.pick();
                prop_assert_eq!(got, want);
                last = got.unwrap_or(last);
            }
        }
    }

    #[test]
    fn wrr_gives_each_its_weight_in_every_cycle(weights in prop::collection::vec(0..9u32, 1..8)) {
        let mut bench = Bench::new(Scheduler::WeightedRoundRobin, &weights);
        let divisor = weights.iter().fold(0, |a, &b| { let (mut a, mut b) = (a, b); while b != 0 { (a, b) = (b, a % b); } a });
        prop_assume!(divisor > 0);
        // The textbook, unrolled: level by level, everybody whose weight reaches the level.
        let heaviest = weights.iter().copied().max().unwrap_or(0);
        let levels = (1..=heaviest / divisor).rev().map(|level| level * divisor);
        let cycle: String = levels
            .flat_map(|level| (0..weights.len()).filter(|&n| weights[n] >= level).map(bench::letter).collect::<Vec<_>>())
            .collect();
        prop_assert_eq!(bench.sequence(cycle.len() * 3), cycle.repeat(3));
    }
}
