//! The reasons to drop a packet that arise in a worker, not in the balancer it runs: rings and
//! queues that are full, and the end. Each is brought about, counted, and no buffer is lost. So is
//! what a worker does lest the ring to it fills. Needs no privileges and no huge pages.

use std::sync::{Arc, Mutex, MutexGuard};

use evenkeel::lb::capture::{Copied, Filter, Record};
use evenkeel::lb::counters::{DropReason, WorkerCounters};
use evenkeel::lb::fixture::{Lab, VIP, udp4};
use evenkeel::lb::flow::Seed;
use evenkeel::lb::owner::Ownership;
use evenkeel::lb::parse::{Parsed, parse};
use evenkeel::lb::shard::{Shard, ShardSize};
use evenkeel::lb::snapshot::{PortView, Scheduler, Snapshot};
use evenkeel::lb::vlan::{Vlan, Vlans};
use evenkeel::lb::{MAX_BURST, Pass, Verdict};
use evenkeel::port::ring::{self, Consumer, Producer, SharedProducer};
use evenkeel::port::{
    Batch, Eal, EalOptions, Huge, Mbuf, Mempool, Port, PortConfig, RxQueue, Started, TxBuffer,
};
use evenkeel::worker::capture::Tap;
use evenkeel::worker::{Clock, Idle, Message, Rings, Worker, WorkerPort};

/// DPDK starts once in a process, and one test at a time uses it.
fn dpdk() -> MutexGuard<'static, bool> {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut started = STARTED.lock().unwrap_or_else(|broken| broken.into_inner());
    if !std::mem::replace(&mut *started, true) {
        let options = EalOptions {
            lcores: vec![(0, 0)],
            file_prefix: format!("ek-drops-{}", std::process::id()),
            memory_mib: Some(128),
            huge: Huge::Never,
            ..EalOptions::default()
        };
        let eal = Eal::init(&options).expect("DPDK starts without huge pages");
        // It lasts as long as the process.
        std::mem::forget(eal);
    }
    started
}

/// Two ports, each a ring of 1,023 packets that hands out what it is sent.
struct Bench {
    pool: Mempool,
    handles: Vec<Port<Started>>,
    ports: Vec<WorkerPort>,
    /// The worker receives from both.
    reads_both: bool,
    /// How many workers there are, and the room in the ring to each.
    workers: usize,
    room: u32,
    /// What copies packets from the second round on.
    tap: Option<Box<Tap>>,
}

impl Bench {
    fn new(name: &str) -> Self {
        let pool = Mempool::new(name, 2047, 2048, 0, -1).expect("a pool");
        let (mut handles, mut ports) = (Vec::new(), Vec::new());
        for n in 0..2 {
            let port = Port::open(&format!("{name}{n}"), &format!("net_ring{n}")).expect("a port");
            let started = port.start(&PortConfig::default(), std::slice::from_ref(&pool));
            let (port, mut rx, mut tx) = started.expect("starts");
            handles.push(port);
            let tx = TxBuffer::new(tx.remove(0), 32);
            ports.push(WorkerPort::new(Some(rx.remove(0)), tx));
        }
        Self {
            pool,
            handles,
            ports,
            reads_both: false,
            workers: 2,
            room: SMALL,
            tap: None,
        }
    }

    /// Puts packets into a port's ring, where its receive queue finds them.
    fn fill(&mut self, port: usize, frames: impl IntoIterator<Item = Vec<u8>>) {
        for frame in frames {
            let mbuf = filled(&self.pool, &frame);
            self.ports[port].tx.push(mbuf);
        }
        self.ports[port].tx.flush();
        assert_eq!(self.ports[port].tx.stats().dropped, 0, "fewer than 1,024");
    }

    /// A worker's first `rounds` rounds, then its end.
    fn run(mut self, snapshot: Snapshot, rounds: usize, taken: Vec<Mbuf>) -> Report {
        let before: Vec<u64> = self.ports.iter().map(|p| p.tx.stats().packets).collect();
        let unread = match self.reads_both {
            true => None,
            false => self.ports[1].rx.take(),
        };
        let snapshot = Arc::new(snapshot);
        let counters = Arc::new(WorkerCounters::new(8));
        let size = ShardSize {
            connections_v4: 1000,
            connections_v6: 1000,
            services: 1,
        };
        let workers = self.workers as u32;
        let shard = Shard::new(size, Seed([1, 3, 5]), 0, workers, Arc::clone(&counters));
        let (mut commands, commands_in) = ring::spsc("commands", 64).expect("a ring");
        let (events_out, events) = ring::spsc("events", 64).expect("a ring");
        let (passed_out, passed) = ring::spsc("passed", SMALL).expect("a ring");
        let (checks_out, _checks) = ring::spsc("checks", 8).expect("a ring");
        let (inject, inject_in): (Producer<Mbuf>, _) = ring::spsc("inject", 8).expect("a ring");
        let (give, taken_in): (SharedProducer<Mbuf>, _) = ring::mpsc("taken", 512).expect("a ring");
        let ring = |_| ring::mpsc("handed", self.room).expect("a ring");
        let (handoff, handed) = (0..workers).map(ring).unzip();
        for mbuf in taken {
            assert!(give.push(mbuf).is_ok());
        }
        // A worker obeys one command a round.
        if let Some(tap) = self.tap.take() {
            assert!(commands.push(Box::new(Message::Capture(Some(tap)))).is_ok());
        }
        for _ in commands.len() + 1..rounds {
            let again = Box::new(Message::Swap(Arc::clone(&snapshot)));
            assert!(commands.push(again).is_ok());
        }
        assert!(commands.push(Box::new(Message::Stop)).is_ok());
        let rings = Rings {
            commands: commands_in,
            events: events_out,
            passed: passed_out,
            checks: checks_out,
            inject: inject_in,
            taken: taken_in,
            handoff,
        };
        let worker = Worker::new(
            0,
            shard.expect("memory"),
            snapshot,
            self.pool.clone(),
            std::mem::take(&mut self.ports),
            rings,
            Clock::start(),
            Idle::Yield,
        );
        let remains = worker.run();
        drop((inject, events));
        Report {
            counters,
            filled: before.iter().sum(),
            passed,
            handed,
            pool: self.pool,
            handles: self.handles,
            unread,
            remains,
        }
    }
}

/// What came of it. Lets go of everything in [`Report::end`].
struct Report {
    counters: Arc<WorkerCounters>,
    /// Packets that the test itself sent.
    filled: u64,
    passed: Consumer<Mbuf>,
    /// To each worker, by index.
    handed: Vec<Consumer<Mbuf>>,
    pool: Mempool,
    handles: Vec<Port<Started>>,
    /// The receive queue that the worker was not given.
    unread: Option<RxQueue>,
    remains: evenkeel::worker::Remains,
}

/// Room in the rings to management and to the other worker.
const SMALL: u32 = 16;

impl Report {
    fn dropped(&self, reason: DropReason) -> u64 {
        self.counters.dropped[reason as usize].get()
    }

    /// Every packet is accounted for, and every buffer comes back.
    fn end(mut self) {
        let c = &self.counters;
        let came = c.received.get() + c.taken_over.get() + c.generated.get();
        let sent = c.transmitted.get() - self.filled;
        let went = sent + c.dropped_total() + c.passed.get() + c.handed_off.get();
        assert_eq!(came, went, "{c:?}");
        drop((self.passed, self.handed));
        let mut batch = Batch::new();
        for rx in self.remains.ports.into_iter().map(|(rx, _)| rx) {
            let mut rx = rx.or_else(|| self.unread.take());
            while rx.as_mut().is_some_and(|rx| rx.receive(&mut batch) > 0) {
                batch.clear();
            }
        }
        drop(self.handles);
        assert_eq!(self.pool.in_use(), 0, "buffers are missing");
    }
}

fn filled(pool: &Mempool, frame: &[u8]) -> Mbuf {
    let mut mbuf = pool.alloc().expect("a buffer");
    assert!(mbuf.fill(frame));
    mbuf
}

/// The first packets of this many flows.
fn flows(count: u16) -> impl Iterator<Item = Vec<u8>> + Clone {
    (0..count).map(|n| udp4(&format!("10.0.0.1:{}", 2000 + n), VIP).frame())
}

/// Direct routing by two ports to one backend behind the second.
fn snapshot() -> Snapshot {
    let mut lab = Lab::new(Scheduler::RoundRobin, &[1]);
    if let Some(link) = &mut lab.backend(0).link {
        link.port = 1;
    }
    let port = lab.snapshot.ports[0].clone();
    let other = PortView {
        mac: [2; 6],
        ..port
    };
    lab.snapshot.ports = [lab.snapshot.ports[0].clone(), other].into();
    lab.snapshot
}

#[test]
fn a_full_ring_between_workers_drops() {
    let _dpdk = dpdk();
    let mut bench = Bench::new("handoff");
    bench.fill(0, flows(100));
    let mut snapshot = snapshot();
    snapshot.ownership = Ownership {
        reta: 128,
        workers: 2,
        compute: true,
    };
    let report = bench.run(snapshot, 8, Vec::new());
    let handed = report.counters.handed_off.get();
    assert_eq!(handed, u64::from(SMALL));
    let dropped = report.dropped(DropReason::HandoffFull);
    let kept = report.counters.new_connections.get();
    assert_eq!(handed + dropped + kept, 100);
    assert!(dropped > 0 && kept > 0, "{dropped} dropped, {kept} kept");
    report.end();
}

/// Each worker gets what it owns in the order of arrival, and a capture shows of each packet of this
/// worker how it came and how it leaves.
#[test]
fn a_burst_of_several_owners_packets_is_dealt_out_in_order() {
    const COUNT: u16 = 300;
    let _dpdk = dpdk();
    let mut bench = Bench::new("dealt");
    (bench.workers, bench.room) = (3, 512);
    bench.fill(0, flows(COUNT));
    let (mut free, free_in) = ring::spsc("free", 512).expect("a ring");
    let (full_out, mut full) = ring::spsc::<Box<Record>>("full", 512).expect("a ring");
    for _ in 0..COUNT {
        let record = Record {
            nanos: 0,
            arrival: 0,
            verdict: Verdict::Pass(Pass::Local),
            before: Copied::with_room(64),
            after: Copied::with_room(64),
        };
        assert!(free.push(Box::new(record)).is_ok());
    }
    let totals = Arc::default();
    let tap = Tap::new(Filter::default(), 64, 1 << 20, free_in, full_out, totals);
    bench.tap = Some(Box::new(tap));
    let mut snapshot = snapshot();
    snapshot.ownership = Ownership {
        reta: 128,
        workers: 3,
        compute: true,
    };
    let owner = |frame: &[u8]| match parse(frame, false) {
        Parsed::V4(packet) => usize::from(snapshot.ownership.one_way(&packet.key)),
        other => panic!("{other:?}"),
    };
    let mut wanted = [const { Vec::new() }; 3];
    for frame in flows(COUNT) {
        wanted[owner(&frame)].push(client_port(&frame));
    }
    let mut report = bench.run(snapshot, 16, Vec::new());
    for (owner, wanted) in wanted.iter().enumerate().skip(1) {
        let handed = std::iter::from_fn(|| report.handed[owner].pop());
        let handed: Vec<_> = handed.map(|mbuf| client_port(mbuf.bytes())).collect();
        assert_eq!(
            (handed.len() > 50, &handed),
            (true, wanted),
            "worker {owner}"
        );
    }
    // The capture begins with the second round.
    let copies: Vec<_> = std::iter::from_fn(|| full.pop()).collect();
    let ports = |copied: fn(&Record) -> &Copied| -> Vec<_> {
        let ports = copies.iter().map(|copy| client_port(&copied(copy).bytes));
        ports.collect()
    };
    let (before, after) = (ports(|copy| &copy.before), ports(|copy| &copy.after));
    assert_eq!(before, after);
    assert!(
        before.len() > 50 && wanted[0].ends_with(&before),
        "{before:?}"
    );
    report.end();
}

fn client_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

/// While packets flow, a port that had none the last time is asked in one round of four.
#[test]
fn a_silent_port_is_still_asked_while_another_floods() {
    let _dpdk = dpdk();
    // Two bursts that go nowhere, and then what goes out of the second port, whose ring hands it back.
    let nowhere = vec![vec![0; 60]; 2 * MAX_BURST];
    for (rounds, received) in [(4, 4), (5, 5 + 1), (6, 6 + 2)] {
        let mut bench = Bench::new("silent");
        bench.reads_both = true;
        bench.fill(
            0,
            nowhere.iter().cloned().chain(flows(6 * MAX_BURST as u16)),
        );
        let report = bench.run(snapshot(), rounds, Vec::new());
        let bursts = report.counters.received.get() / MAX_BURST as u64;
        assert_eq!(bursts, received, "{rounds} rounds");
        report.end();
    }
}

#[test]
fn frames_of_other_vlans_are_dropped() {
    let _dpdk = dpdk();
    let mut bench = Bench::new("vlans");
    let with_tag = |n: u16| {
        udp4(&format!("10.0.0.1:{}", 2000 + n), VIP)
            .vlan(6 + n % 3)
            .frame()
    };
    bench.fill(0, (0..300).map(with_tag));
    let mut snapshot = snapshot();
    snapshot.vlans = {
        let vlans = [7, 8].map(|id| Vlan { port: 0, id });
        Arc::new(Vlans::new(2, vlans.to_vec()))
    };
    let report = bench.run(snapshot, 16, Vec::new());
    assert_eq!(report.dropped(DropReason::UnknownVlan), 100);
    assert_eq!(report.counters.new_connections.get(), 200);
    report.end();
}

#[test]
fn a_full_ring_to_management_drops() {
    let _dpdk = dpdk();
    let mut bench = Bench::new("punt");
    let mut arp = vec![0xff; 60];
    arp[12..14].copy_from_slice(&[8, 6]);
    bench.fill(0, vec![arp; 100]);
    let report = bench.run(snapshot(), 8, Vec::new());
    assert_eq!(report.counters.passed.get(), u64::from(SMALL));
    let dropped = report.dropped(DropReason::PuntFull);
    assert_eq!(dropped, 100 - u64::from(SMALL));
    report.end();
}

#[test]
fn a_full_transmit_queue_drops() {
    let _dpdk = dpdk();
    let mut bench = Bench::new("tx");
    bench.fill(1, flows(1000));
    bench.fill(0, flows(100));
    let report = bench.run(snapshot(), 8, Vec::new());
    assert_eq!(report.counters.received.get(), 100);
    assert_eq!(report.dropped(DropReason::TxFull), 100 - 23);
    report.end();
}

/// A backlog has to be short, and no port may be forgotten for it: while two bursts or more are left
/// on the ring, every other round receives nothing.
#[test]
fn a_backlog_of_handed_over_packets_goes_before_the_ports_every_other_round() {
    const BURST: u64 = MAX_BURST as u64;
    let _dpdk = dpdk();
    for (waiting, rounds, received) in [
        // All that wait are taken, a burst a round; what is left then is 448, 384, ... and 0.
        (8 * BURST, 8, 5 * BURST),
        // Before it has got shorter than two bursts, the port has its turns all the same.
        (8 * BURST, 6, 3 * BURST),
        // Two bursts are left after the second round, or one packet less.
        (4 * BURST, 2, BURST),
        (4 * BURST - 1, 2, 2 * BURST),
        (0, 8, 8 * BURST),
    ] {
        let mut bench = Bench::new("backlog");
        bench.fill(0, flows(8 * BURST as u16));
        let handed = flows(100).cycle().take(waiting as usize);
        let handed = handed.map(|frame| filled(&bench.pool, &frame)).collect();
        let report = bench.run(snapshot(), rounds, handed);
        let case = format!("{waiting} waiting, {rounds} rounds");
        assert_eq!(report.counters.received.get(), received, "{case}");
        let taken = waiting.min(rounds as u64 * BURST);
        let left = report.dropped(DropReason::Shutdown);
        assert_eq!(report.counters.taken_over.get() - left, taken, "{case}");
        assert_eq!(left, waiting - taken, "{case}");
        report.end();
    }
}

#[test]
fn what_is_left_at_the_end_is_counted() {
    let _dpdk = dpdk();
    let bench = Bench::new("end");
    let handed: Vec<Mbuf> = flows(100)
        .map(|frame| filled(&bench.pool, &frame))
        .collect();
    let report = bench.run(snapshot(), 1, handed);
    assert_eq!(report.counters.new_connections.get(), 64, "one burst");
    assert_eq!(report.dropped(DropReason::Shutdown), 36);
    report.end();
}
