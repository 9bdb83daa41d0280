//! Schedulers that draw: the odds are tested with chi-square, under weight and health changes.

#[path = "sched/bench.rs"]
mod bench;

use bench::Bench;
use evenkeel::lb::snapshot::{BackendState, Scheduler};

/// The statistic of observed against expected counts. With the fixed seed a run is repeatable.
fn chi_square(observed: &[u64], odds: &[f64]) -> f64 {
    let all: u64 = observed.iter().sum();
    let sum: f64 = odds.iter().sum();
    observed
        .iter()
        .zip(odds)
        .filter(|(_, odds)| **odds > 0.0)
        .map(|(&seen, odds)| {
            let expected = all as f64 * odds / sum;
            (seen as f64 - expected).powi(2) / expected
        })
        .sum()
}

/// The 99.9 % point of chi-square with 1 to 7 degrees of freedom.
const LIMIT: [f64; 8] = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32];

fn draw(bench: &mut Bench, picks: usize) -> Vec<u64> {
    let mut counts = vec![0; bench.counters.backends.len()];
    for _ in 0..picks {
        if let Some(n) = bench.pick() {
            counts[n] += 1;
        }
    }
    counts
}

fn assert_odds(counts: &[u64], odds: &[f64], what: &str) {
    let able = odds.iter().filter(|o| **o > 0.0).count();
    for (n, odds) in odds.iter().enumerate() {
        assert!(*odds > 0.0 || counts[n] == 0, "{what}: {counts:?}");
    }
    let statistic = chi_square(counts, odds);
    assert!(
        statistic < LIMIT[able - 1],
        "{what}: {statistic:.1} of {counts:?}"
    );
}

#[test]
fn random_draws_by_weight_through_changes() {
    let mut bench = Bench::new(Scheduler::Random, &[1, 70, 300, 0, 29]);
    assert_odds(
        &draw(&mut bench, 40_000),
        &[1.0, 70.0, 300.0, 0.0, 29.0],
        "at first",
    );
    bench.lab.backend(2).state = BackendState::Down;
    assert_odds(
        &draw(&mut bench, 40_000),
        &[1.0, 70.0, 0.0, 0.0, 29.0],
        "one down",
    );
    bench.lab.backend(3).weight = 100;
    assert_odds(
        &draw(&mut bench, 40_000),
        &[1.0, 70.0, 0.0, 100.0, 29.0],
        "one heavier",
    );
    // Full servers are found out while drawing, and the others keep their odds.
    for n in [1, 3] {
        bench.lab.backend(n).upper = 1;
        bench.connect(n as usize);
    }
    assert_odds(
        &draw(&mut bench, 40_000),
        &[1.0, 0.0, 0.0, 0.0, 29.0],
        "two full",
    );
}

#[test]
fn workers_draw_differently() {
    let mut one = Bench::on_worker(Scheduler::Random, &[1; 8], 0, 2);
    let mut two = Bench::on_worker(Scheduler::Random, &[1; 8], 1, 2);
    let same = (0..8000).filter(|_| one.pick() == two.pick()).count();
    // An eighth by chance, give or take six deviations.
    assert!((1000 - 178..1000 + 178).contains(&same), "{same}");
}

/// The odds of winning two weighted draws, each against its own or another server's load.
fn two_draws(weights: &[f64], overhead: &[f64]) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    let cost = |n: usize| overhead[n] / weights[n];
    let mut odds = vec![0.0; weights.len()];
    for first in 0..weights.len() {
        for second in 0..weights.len() {
            let chance = weights[first] * weights[second] / sum / sum;
            let wins = if cost(second) < cost(first) {
                second
            } else {
                first
            };
            if chance > 0.0 {
                odds[wins] += chance;
            }
        }
    }
    odds
}

#[test]
fn twos_takes_the_better_of_two_draws() {
    let weights = [10.0, 30.0, 60.0, 20.0];
    let mut bench = Bench::new(Scheduler::TwoChoices, &[10, 30, 60, 20]);
    for (n, connections) in [5, 20, 90, 1].into_iter().enumerate() {
        for _ in 0..connections {
            bench.connect(n);
        }
    }
    let odds = two_draws(&weights, &[5.0, 20.0, 90.0, 1.0]);
    assert_odds(&draw(&mut bench, 40_000), &odds, "inactive alone");
    bench.establish(3);
    let odds = two_draws(&weights, &[5.0, 20.0, 90.0, 256.0]);
    assert_odds(&draw(&mut bench, 40_000), &odds, "one active");
    bench.lab.backend(0).weight = 0;
    let odds = two_draws(&[1e-12, 30.0, 60.0, 20.0], &[0.0, 20.0, 90.0, 256.0]);
    let counts = draw(&mut bench, 40_000);
    assert_eq!(counts[0], 0);
    assert_odds(&counts[1..], &odds[1..], "one out");
    bench.lab.backend(2).state = BackendState::Down;
    let odds = two_draws(&[30.0, 20.0], &[20.0, 256.0]);
    let counts = draw(&mut bench, 40_000);
    assert_eq!((counts[0], counts[2]), (0, 0));
    assert_odds(&[counts[1], counts[3]], &odds, "one down besides");
}

/// What two choices are for: far less imbalance than one.
#[test]
fn twos_balances_better_than_random() {
    let spread = |scheduler| {
        let mut bench = Bench::new(scheduler, &[1; 50]);
        for _ in 0..5000 {
            let n = bench.pick().expect("one can");
            bench.connect(n);
        }
        let counts = bench
            .servers()
            .iter()
            .map(|s| s.inactive)
            .collect::<Vec<_>>();
        counts.iter().max().expect("some") - counts.iter().min().expect("some")
    };
    let (one, two) = (spread(Scheduler::Random), spread(Scheduler::TwoChoices));
    assert!(two * 3 < one, "{two} and {one}");
}
