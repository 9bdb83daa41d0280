//! A worker under loads: a flood of SYNs from anywhere beside flows that must not notice, and more
//! connections than are to stay. It sits between two rings of DPDK; this test has their other ends and
//! is clients and backends at once. Needs no privileges and no huge pages.
//!
//! `scripts/test` runs the short forms; `--long` asks for the rates of a release build and a million
//! connections: `cargo test --locked --release --test vdev_load -- --long`.

mod bench;
mod flood;
mod million;

use evenkeel::lb::snapshot::{ForwardMethod, Scheduler};
use evenkeel::mgmt::desired::FLOOD_GUARD;
use evenkeel::port::{Eal, EalOptions, Huge};
use flood::Flood;

const METHODS: [ForwardMethod; 4] = [
    ForwardMethod::DirectRouting,
    ForwardMethod::Tunnel,
    ForwardMethod::Nat,
    ForwardMethod::FullNat,
];

const SCHEDULERS: [Scheduler; 2] = [Scheduler::WeightedLeastConnection, Scheduler::Maglev];

fn main() {
    let long = std::env::args().any(|word| word == "--long");
    let options = EalOptions {
        lcores: vec![(0, cpu(0)), (1, cpu(1))],
        file_prefix: format!("ek-load-{}", std::process::id()),
        memory_mib: Some(192),
        huge: Huge::Never,
        ..EalOptions::default()
    };
    let eal = Eal::init(&options).expect("DPDK starts without huge pages");
    for method in METHODS {
        for scheduler in SCHEDULERS {
            // Ten times the guard's rate in any build; at the default guard a million a second. The
            // table is full a good while before the end.
            let (guard, connections, flood) = match long {
                true => (
                    FLOOD_GUARD,
                    1_000_000,
                    Flood {
                        syns: 5_000_000,
                        at_most: u64::MAX,
                    },
                ),
                false => (
                    2_000,
                    12_000,
                    Flood {
                        syns: 30_000,
                        at_most: 40_000,
                    },
                ),
            };
            let least = match long {
                true => (10 * FLOOD_GUARD).max(1_000_000),
                false => 10 * guard,
            };
            let report = flood::run(&eal, method, scheduler, guard, connections, flood);
            report.judge(least.into());
        }
    }
    match long {
        true => million::run(&eal, ForwardMethod::Nat, 1_000_000, 3),
        false => million::run(&eal, ForwardMethod::DirectRouting, 50_000, 1),
    }
}

/// The n-th CPU that this process may use; the same ones again where there are not so many.
fn cpu(n: usize) -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let ranges = list.expect("a list of CPUs").trim().split(',');
    let all: Vec<u32> = ranges
        .flat_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.parse::<u32>().expect("a CPU's number");
            number(first)..=number(last)
        })
        .collect();
    all[n % all.len()]
}
