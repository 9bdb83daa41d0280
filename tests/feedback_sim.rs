//! What feedback is worth, simulated with the controller and the schedulers that run in
//! production. `scripts/plot-feedback` draws the same.

#[path = "feedback/sim.rs"]
mod sim;

use sim::{BOTH, CPU, Change, RESPONSE, SETUPS, See, Setup, p99s, run, setup, spread};

use evenkeel::lb::snapshot::Scheduler;
use evenkeel::mgmt::feedback::Policy;

const SEEDS: u64 = 20;
/// Seconds until the p99 is taken, and for how long it is.
const TIMES: (f64, f64) = (240.0, 120.0);

#[test]
fn p99_of_all_policies_on_the_same_arrivals() {
    for load in [0.5, 0.8, 0.9] {
        println!("load {load}: p99 in ms, mean over {SEEDS} seeds and its standard deviation");
        let all = p99s(load, SEEDS, TIMES);
        let mean = |n: usize| spread(&all[n]).0;
        for (setup, p99s) in SETUPS.iter().zip(&all) {
            let (mean, deviation) = spread(p99s);
            println!(
                "  {:<30} {:>9.1} ± {:>8.1}",
                setup.name,
                mean * 1e3,
                deviation * 1e3
            );
        }
        let (equal, right) = (mean(0), mean(1));
        for (n, setup) in SETUPS.iter().enumerate() {
            let is_relative = matches!(setup.feedback, Some((Policy::Relative, _)));
            if !is_relative {
                continue;
            }
            assert!(
                load != 0.8 || mean(n) <= equal / 2.0,
                "{} at {load}",
                setup.name
            );
            // At 90 % what piled up at slow servers while weights were equal takes ten times as
            // long to be worked off, and wrr does not look at it.
            let still_piled_up = load == 0.9 && setup.name == "wrr, equal weights, relative";
            assert!(
                still_piled_up || mean(n) <= right * 1.1,
                "{} at {load}",
                setup.name
            );
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

#[test]
fn a_step_change_settles_within_ten_intervals_and_does_not_swing() {
    const SERVER: usize = 8;
    let slow = Change {
        at: 200.0,
        server: SERVER,
        capacity: 1.0,
    };
    let well = Change {
        at: 400.0,
        capacity: 4.0,
        ..slow
    };
    let wrr = Scheduler::WeightedRoundRobin;
    let sees: [(&str, See, f64); 3] = [
        ("cpu", CPU, 0.6),
        ("response times", RESPONSE, 0.6),
        ("both", BOTH, 0.6),
    ];
    for (what, see, load) in sees {
        for seed in 0..5 {
            let setup: Setup = setup(what, wrr, sim::RIGHT, Some((Policy::Relative, see)));
            let run = run(&setup, load, 1000 + seed, (0.0, 600.0), &[slow, well]);
            let phase = |from: f64| {
                let first = (from / sim::INTERVAL) as usize;
                &run.shares[first..(first + 40).min(run.shares.len())]
            };
            let (down, down_turns) = settled(phase(200.0), SERVER, 1.0 / 19.0);
            let (up, up_turns) = settled(phase(400.0), SERVER, 4.0 / 22.0);
            println!(
                "{what}, seed {seed}: slow after {down} intervals, {down_turns} turns; well after {up}, {up_turns} turns; {} pushes",
                run.pushes
            );
            if what == "cpu" {
                assert!(down <= 10 && up <= 10, "{down} and {up}");
                assert!(
                    down_turns <= 1 && up_turns <= 1,
                    "{down_turns} and {up_turns}"
                );
            }
        }
    }
}
