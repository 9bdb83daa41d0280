//! What feedback is worth, simulated with the controller and the schedulers that run in
//! production. `scripts/plot-feedback` draws the same.

#[path = "feedback/sim.rs"]
mod sim;

use sim::{BOTH, CPU, Change, SETUPS, SITE, See, Setup, Site, Weights, p99s, run, setup, spread};

use std::ops::Range;

use evenkeel::lb::snapshot::Scheduler;
use evenkeel::mgmt::feedback::Policy;

/// The policy was developed on other seeds, all below 10,000.
const SEEDS: Range<u64> = 100_000..100_020;
/// Seconds over which a p99 is taken.
const MEASURED: f64 = 200.0;

/// Prints the means and returns them.
fn compare(setups: &[Setup], site: &Site, load: f64, seeds: Range<u64>) -> Vec<f64> {
    println!("load {load}: p99 in ms, mean over seeds {seeds:?} and its standard deviation");
    let all = p99s(setups, site, load, seeds, MEASURED);
    for (setup, p99s) in setups.iter().zip(&all) {
        let (mean, deviation) = spread(p99s);
        let (mean, deviation) = (mean * 1e3, deviation * 1e3);
        println!("  {:<30} {mean:>9.1} ± {deviation:>8.1}", setup.name);
    }
    all.iter().map(|p99s| spread(p99s).0).collect()
}

fn is_relative(setup: &Setup) -> bool {
    matches!(setup.feedback, Some((Policy::Relative, _)))
}

#[test]
fn p99_of_all_policies_on_the_same_arrivals() {
    for load in [0.5, 0.8, 0.9] {
        let means = compare(&SETUPS, &SITE, load, SEEDS);
        for (setup, mean) in SETUPS.iter().zip(&means).filter(|(s, _)| is_relative(s)) {
            assert!(*mean <= means[1] * 1.1, "{} at {load}", setup.name);
            let is_enough = *mean <= means[0] / 2.0;
            assert!(load != 0.8 || is_enough, "{} at {load}", setup.name);
        }
    }
}

/// Capacities and loads that nothing was developed on. From the right weights the promise is the
/// same. From equal ones, which are wrong by a factor of up to 3.4 here, more piles up first.
#[test]
fn other_capacities_and_loads() {
    let sites: [[u32; 10]; 2] = [
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 8],
        [1, 1, 2, 2, 3, 3, 5, 5, 6, 6],
    ];
    for right in sites {
        let site = Site {
            capacities: right.map(f64::from),
            right,
            ..SITE
        };
        println!("capacities {right:?}");
        for load in [0.7, 0.85] {
            let means = compare(&SETUPS[..4], &site, load, 150_000..150_010);
            assert!(means[3] <= means[1] * 1.1, "right weights at {load}");
            assert!(means[2] <= means[1] * 1.25, "equal weights at {load}");
        }
    }
}

/// Steps after the change until the server's share stays within a fifth of what is due, and how
/// often it turned round by more than a tenth meanwhile and after.
fn settled(shares: &[[f64; 10]], server: usize, due: f64) -> (usize, usize) {
    let is_near = |share: f64| (share / due - 1.0).abs() <= 0.2;
    let last_off = shares.iter().rposition(|s| !is_near(s[server]));
    let mut turns = 0;
    let (mut extreme, mut rising) = (shares[0][server], None);
    for share in shares.iter().map(|s| s[server]) {
        let up = share > extreme;
        if rising == Some(up) || share == extreme {
            extreme = share;
        } else if (share / extreme - 1.0).abs() > 0.1 {
            turns += usize::from(rising.is_some());
            (rising, extreme) = (Some(up), share);
        }
    }
    (last_off.map_or(0, |n| n + 1), turns)
}

/// With many requests in an interval, so that what is seen is the controller and not the chance
/// that one server got the long ones. The load is that before the change, which makes 0.7 a 0.81.
#[test]
fn a_step_change_settles_within_ten_intervals_and_does_not_swing() {
    const SERVER: usize = 8;
    let slow = Change {
        at: 100.0,
        server: SERVER,
        capacity: 1.0,
    };
    let well = Change {
        at: 250.0,
        capacity: 4.0,
        ..slow
    };
    let busy = Site {
        full: 500.0,
        ..SITE
    };
    let sees: [(&str, See); 2] = [("cpu", CPU), ("cpu and response times", BOTH)];
    for (what, see) in sees {
        let relative = Some((Policy::Relative, see));
        let setup = setup(
            what,
            Scheduler::WeightedRoundRobin,
            Weights::Right,
            relative,
        );
        for (n, load) in [0.5, 0.6, 0.7, 0.5, 0.6, 0.7].into_iter().enumerate() {
            let seed = 300_000 + n as u64;
            let run = run(&setup, &busy, load, seed, (0.0, 400.0), &[slow, well]);
            let phase = |from: f64| {
                let first = (from / sim::INTERVAL) as usize;
                &run.shares[first..(first + 30).min(run.shares.len())]
            };
            let (down, down_turns) = settled(phase(slow.at), SERVER, 1.0 / 19.0);
            let (up, up_turns) = settled(phase(well.at), SERVER, 4.0 / 22.0);
            println!(
                "{what}, load {load}: slow after {down} intervals, {down_turns} turns; well after {up}, {up_turns} turns; {} pushes",
                run.pushes
            );
            assert!(down <= 10 && up <= 10, "{down} and {up}");
            assert!(
                down_turns <= 1 && up_turns <= 1,
                "{down_turns} and {up_turns}"
            );
        }
    }
}
