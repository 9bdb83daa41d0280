//! SYNs from random sources, beside flows that are established and clients that connect.

use std::time::{Duration, Instant};

use evenkeel::lb::checksum::Sum;
use evenkeel::lb::fixture::{Build, Lab, VIP, between, tcp4};
use evenkeel::lb::parse::tcp::{ACK, SYN};
use evenkeel::lb::snapshot::{ForwardMethod, Scheduler, Untracked};
use evenkeel::port::Eal;

use crate::bench::{Bench, read};

/// Established flows, all of which send and, under NAT and FullNAT, are answered.
const RUNNING: u32 = 1000;
/// Their sequence numbers say whose packets are whose: from here on a backend's, and from there on those
/// of new connections.
const ANSWERS: u32 = 1 << 20;
const FRESH: u32 = 1 << 21;
const FORGED: u32 = u32::MAX;
/// So many SYNs, no faster than so many a second.
#[derive(Clone, Copy)]
pub struct Flood {
    pub syns: u64,
    pub at_most: u64,
}

pub struct Report {
    name: String,
    syns_a_second: u64,
    /// Packets of established flows, and those of them that arrived where they should.
    offered: u64,
    forwarded: u64,
    opened: u64,
    through: u64,
    guard_was_up: bool,
    is_one_way: bool,
    stateless: u64,
    evicted: u64,
}

impl Report {
    pub fn judge(&self, least: u64) {
        println!(
            "{}: {} SYN/s forged; established: {} packets offered, {} forwarded; new connections: {} of {} through; {} without an entry, {} evicted",
            self.name,
            self.syns_a_second,
            self.offered,
            self.forwarded,
            self.through,
            self.opened,
            self.stateless,
            self.evicted
        );
        assert!(self.syns_a_second >= least, "{} wanted", least);
        assert!(self.offered > 0 && self.opened > 0);
        assert_eq!(self.forwarded, self.offered);
        assert!(self.through * 100 >= self.opened * 99);
        assert!(self.guard_was_up);
        assert_eq!(self.stateless > 0, self.is_one_way);
        assert_eq!(self.evicted > 0, !self.is_one_way);
    }
}

/// A client's connection, as its backend sees it.
#[derive(Clone, Default)]
struct Flow {
    /// MAC address, and source and destination, of its first packet on the way to the backend.
    there: Option<([u8; 6], String)>,
    arrived: u32,
}

/// What came back, flow by flow.
struct Seen {
    running: Vec<Flow>,
    fresh: Vec<Flow>,
    /// Frames that clients and backends send because of what they got.
    next: Vec<Vec<u8>>,
    forwarded: u64,
    answers: u64,
    through: u64,
    two_way: bool,
}

fn client(n: u32) -> String {
    let (host, port) = (n / 50_000, 2000 + n % 50_000);
    format!("10.9.{}.{}:{port}", host / 200, host % 200 + 1)
}

fn packet(n: u32, flags: u8) -> Build {
    tcp4(&client(n), VIP).flags(flags).numbers(n, 0)
}

impl Seen {
    fn frame(&mut self, frame: &[u8]) {
        let (source, destination, n) = read(frame);
        let mac: [u8; 6] = frame[..6].try_into().expect("six bytes");
        if n == FORGED {
            return;
        }
        if (ANSWERS..FRESH).contains(&n) {
            let to = destination.to_string();
            let is_right = source.to_string() == VIP && to == client(n - ANSWERS);
            self.answers += u64::from(is_right);
            return;
        }
        let flow = match n.checked_sub(FRESH) {
            Some(n) => &mut self.fresh[n as usize],
            None => &mut self.running[n as usize],
        };
        let here = (mac, format!("{source} {destination}"));
        let is_first = flow.there.is_none();
        if *flow.there.get_or_insert_with(|| here.clone()) != here {
            return;
        }
        flow.arrived += 1;
        let arrived = flow.arrived;
        match n.checked_sub(FRESH) {
            None => {
                self.forwarded += 1;
                if self.two_way && !is_first {
                    let answer = between(destination, source, 6).flags(ACK);
                    self.next.push(answer.numbers(n + ANSWERS, 0).frame());
                }
            }
            Some(_) if arrived == 1 => self.next.push(packet(n, ACK).frame()),
            Some(_) if arrived == 2 => self.next.push(packet(n, ACK | 8).frame()),
            Some(_) => self.through += u64::from(arrived == 3),
        }
    }
}

/// With a table for so many connections, which the flood fills many times over.
pub fn run(
    eal: &Eal,
    method: ForwardMethod,
    scheduler: Scheduler,
    guard: u32,
    connections: usize,
    flood: Flood,
) -> Report {
    let mut lab = Lab::with_method(method, scheduler, &[1, 1, 1]);
    lab.service().untracked = Untracked::Drop;
    lab.snapshot.flood_guard = guard;
    let mut bench = Bench::start(eal, lab.snapshot, connections);
    let mut seen = Seen {
        running: vec![Flow::default(); RUNNING as usize],
        fresh: Vec::new(),
        next: Vec::new(),
        forwarded: 0,
        answers: 0,
        through: 0,
        two_way: method.is_two_way(),
    };
    // Within the guard's rate.
    for n in 0..RUNNING {
        for flags in [SYN, ACK] {
            bench.send(&packet(n, flags).frame(), &mut |frame| seen.frame(frame));
        }
        if n % 50 == 49 {
            bench.settle(&mut |frame| seen.frame(frame));
            std::thread::sleep(Duration::from_secs(75) / guard);
        }
    }
    bench.settle(&mut |frame| seen.frame(frame));
    assert_eq!(seen.forwarded, 2 * u64::from(RUNNING));
    assert_eq!(bench.counters.guard_up.get(), 0, "before the flood");
    for frame in std::mem::take(&mut seen.next) {
        bench.send(&frame, &mut |frame| seen.frame(frame));
    }
    bench.settle(&mut |frame| seen.frame(frame));
    seen.next.clear();

    let frames: Vec<_> = (0..RUNNING).map(|n| packet(n, ACK).frame()).collect();
    let mut forged = Forged::default();
    let (begun, mut offered, before) = (Instant::now(), 0, (seen.forwarded, seen.answers));
    let mut answered = 0;
    while forged.count < flood.syns {
        let due = begun.elapsed().as_secs_f64() * flood.at_most as f64;
        if forged.count as f64 > due {
            bench.settle(&mut |frame| seen.frame(frame));
            continue;
        }
        for _ in 0..28 {
            bench.send(forged.next(), &mut |frame| seen.frame(frame));
        }
        for _ in 0..2 {
            let frame = &frames[offered as usize % frames.len()];
            bench.send(frame, &mut |frame| seen.frame(frame));
            offered += 1;
        }
        if forged.count % (28 * 50) == 0 {
            let n = FRESH + seen.fresh.len() as u32;
            seen.fresh.push(Flow::default());
            bench.send(&packet(n, SYN).frame(), &mut |frame| seen.frame(frame));
        }
        for frame in std::mem::take(&mut seen.next) {
            answered += u64::from((ANSWERS..FRESH).contains(&read(&frame).2));
            bench.send(&frame, &mut |frame| seen.frame(frame));
        }
    }
    let elapsed = begun.elapsed();
    bench.wait_for("a sweep", |c| c.guard_up.get() == 1);
    loop {
        bench.settle(&mut |frame| seen.frame(frame));
        if seen.next.is_empty() {
            break;
        }
        for frame in std::mem::take(&mut seen.next) {
            answered += u64::from((ANSWERS..FRESH).contains(&read(&frame).2));
            bench.send(&frame, &mut |frame| seen.frame(frame));
        }
    }
    let report = Report {
        name: format!("{} {}", method.name(), scheduler.name()),
        syns_a_second: (forged.count as f64 / elapsed.as_secs_f64()) as u64,
        offered: offered + answered,
        forwarded: seen.forwarded - before.0 + seen.answers - before.1,
        opened: seen.fresh.len() as u64,
        through: seen.through,
        guard_was_up: bench.counters.guard_up.get() == 1,
        is_one_way: !method.is_two_way(),
        stateless: bench.counters.stateless.get(),
        evicted: bench.counters.evicted.get(),
    };
    bench.end();
    report
}

/// SYNs from anywhere.
struct Forged {
    frame: Vec<u8>,
    random: u64,
    count: u64,
}

impl Default for Forged {
    fn default() -> Self {
        let frame = tcp4("11.0.0.1:1", VIP).flags(SYN).numbers(FORGED, 0);
        Self {
            frame: frame.frame(),
            random: 0x2545_f491_4f6c_dd1d,
            count: 0,
        }
    }
}

impl Forged {
    fn next(&mut self) -> &[u8] {
        // xorshift64 (Marsaglia, 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let bytes = self.random.to_be_bytes();
        let frame = &mut self.frame;
        frame[27..30].copy_from_slice(&bytes[..3]);
        frame[34..36].copy_from_slice(&bytes[3..5]);
        frame[24..26].fill(0);
        let sum = Sum::default().bytes(&frame[14..34]).finish();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        self.count += 1;
        frame
    }
}
