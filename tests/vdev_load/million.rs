//! The table filled to 95 %, used, and emptied by time, again and again.

use std::net::Ipv4Addr;
use std::time::Instant;

use evenkeel::lb::conn::{State, Timeouts};
use evenkeel::lb::fixture::{Build, Lab, VIP, between};
use evenkeel::lb::parse::tcp::{ACK, RST, SYN};
use evenkeel::lb::snapshot::{ForwardMethod, Scheduler, Untracked};
use evenkeel::port::Eal;

use crate::bench::{Bench, read};

/// Client `n`'s packet, which says so in its sequence number.
fn packet(n: usize, flags: u8) -> Build {
    let client = Ipv4Addr::from_bits(0x0a80_0000 + n as u32 / 50_000);
    let client = (client, 2000 + (n % 50_000) as u16);
    let vip = VIP.parse().expect("an endpoint");
    between(client.into(), vip, 6)
        .flags(flags)
        .numbers(n as u32, 0)
}

pub fn run(eal: &Eal, method: ForwardMethod, connections: usize, rounds: usize) {
    let mut lab = Lab::with_method(method, Scheduler::RoundRobin, &[1; 4]);
    // Those that were reset go after a second.
    let mut timeouts = Timeouts::default();
    timeouts.set(State::Close, 1);
    lab.service().timeouts = timeouts;
    lab.service().untracked = Untracked::Drop;
    let mut bench = Bench::start(eal, lab.snapshot, connections);
    let count = bench.capacity * 95 / 100;
    assert!(count >= connections);
    // The backend of each connection, by the last byte of its MAC address.
    let mut backends = vec![u8::MAX; count];
    let mut memory = Vec::new();
    for round in 1..=rounds {
        let begun = Instant::now();
        let mut back = 0;
        for n in 0..count {
            for flags in [SYN, ACK] {
                bench.send(&packet(n, flags).frame(), &mut |frame| {
                    backends[read(frame).2 as usize] = frame[5];
                    back += 1;
                });
            }
        }
        bench.settle(&mut |frame| {
            backends[read(frame).2 as usize] = frame[5];
            back += 1;
        });
        let c = &bench.counters;
        assert_eq!((back, c.dropped_total()), (2 * count, 0), "{c:?}");
        assert_eq!(c.new_connections.get(), (round * count) as u64);
        assert_eq!(c.evicted.get(), 0);
        let filled = begun.elapsed();
        bench.wait_for("all entries", |c| c.table_v4.get() == count as u64);
        // Every one is found where it is.
        let mut right = 0;
        let mut seen = |frame: &[u8]| {
            right += usize::from(backends[read(frame).2 as usize] == frame[5]);
        };
        for n in 0..count {
            bench.send(&packet(n, ACK).frame(), &mut seen);
        }
        bench.settle(&mut seen);
        assert_eq!(right, count);
        assert_eq!(bench.counters.new_connections.get(), (round * count) as u64);
        memory.push(resident());
        for n in 0..count {
            bench.send(&packet(n, RST).frame(), &mut |_| {});
        }
        bench.settle(&mut |_| {});
        bench.wait_for("an empty table", |c| c.table_v4.get() == 0);
        let c = &bench.counters;
        assert_eq!(c.expired.get(), (round * count) as u64);
        let gauges = c.backends.iter();
        let left: u64 = gauges.map(|b| b.active.get() + b.inactive.get()).sum();
        assert_eq!(left, 0, "the backends' counts");
        memory.push(resident());
        println!(
            "{} connections of {} slots ({:.1} %), round {round}: filled in {filled:.1?}, all found again, expired in {:.1?}; {} MiB resident",
            count,
            bench.capacity,
            count as f64 * 100.0 / bench.capacity as f64,
            begun.elapsed() - filled,
            resident() >> 20
        );
    }
    // What the first round took serves all others.
    let (first, last) = (memory[0], *memory.iter().max().expect("some"));
    assert!(last - first < 1 << 20, "{memory:?}");
    bench.end();
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: usize = kib.expect("VmRSS").parse().expect("a number");
    kib * 1024
}
