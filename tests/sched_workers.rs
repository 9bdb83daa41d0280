//! Least-connection on four workers that share nothing, beside one ideal counter.

#[path = "sched/bench.rs"]
mod bench;

use bench::Bench;
use evenkeel::lb::maglev::mix;
use evenkeel::lb::snapshot::Scheduler;

const FLOWS: usize = 10_000;

/// A run of arrivals and departures over `workers` workers: flows are steered by a hash, each
/// arrival above [`FLOWS`] live ones ends one at random. Returns the live flows of each server.
fn run(scheduler: Scheduler, weights: &[u32], workers: u32, arrivals: usize) -> Vec<u64> {
    let mut benches: Vec<Bench> = (0..workers)
        .map(|w| Bench::on_worker(scheduler, weights, w, workers))
        .collect();
    let mut live: Vec<(usize, usize)> = Vec::new();
    for n in 0..arrivals as u64 {
        let worker = (mix(n) % u64::from(workers)) as usize;
        let server = benches[worker].pick().expect("one can");
        benches[worker].connect(server);
        benches[worker].establish(server);
        live.push((worker, server));
        if live.len() > FLOWS {
            let at = (mix(n ^ 0x5eed) % live.len() as u64) as usize;
            let (worker, server) = live.swap_remove(at);
            benches[worker].disconnect(server);
        }
    }
    let count = |n: usize| {
        benches
            .iter()
            .map(|b| b.counters.backends[n].active.get())
            .sum()
    };
    (0..weights.len()).map(count).collect()
}

/// The largest relative difference from the single counter's result.
fn error(scheduler: Scheduler, weights: &[u32], arrivals: usize) -> f64 {
    let (ideal, ours) = (
        run(scheduler, weights, 1, arrivals),
        run(scheduler, weights, 4, arrivals),
    );
    let worst = ideal
        .iter()
        .zip(&ours)
        .map(|(&i, &o)| (o as f64 - i as f64).abs() / i as f64)
        .fold(0.0, f64::max);
    println!(
        "{:>4}, {:>3} servers, {arrivals} arrivals: worst {:.2} % off the single counter",
        scheduler.name(),
        weights.len(),
        worst * 100.0
    );
    worst
}

#[test]
fn four_workers_come_within_five_percent_of_one_counter() {
    let mixed: Vec<u32> = (0..30).map(|n| [1, 2, 4][n % 3]).collect();
    for scheduler in [
        Scheduler::LeastConnection,
        Scheduler::WeightedLeastConnection,
        Scheduler::ShortestExpectedDelay,
        Scheduler::NeverQueue,
    ] {
        for weights in [&[1; 10][..], &[1; 100], &mixed] {
            for arrivals in [FLOWS, 6 * FLOWS] {
                let off = error(scheduler, weights, arrivals);
                assert!(off <= 0.05, "{}: {off:.3}", scheduler.name());
            }
        }
    }
}
