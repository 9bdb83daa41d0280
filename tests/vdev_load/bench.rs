//! A worker on an lcore of its own, and the near ends of its two rings.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel::lb::counters::WorkerCounters;
use evenkeel::lb::flow::Seed;
use evenkeel::lb::owner::Ownership;
use evenkeel::lb::parse::{Parsed, parse};
use evenkeel::lb::shard::{Shard, ShardSize};
use evenkeel::lb::snapshot::Snapshot;
use evenkeel::port::ring::{Consumer, Producer, mpsc, spsc};
use evenkeel::port::{
    Batch, Eal, LcoreHandle, Mbuf, Mempool, Port, PortConfig, RxQueue, Started, TxBuffer, TxQueue,
};
use evenkeel::worker::{Clock, Idle, Message, Rings, Worker, WorkerPort};

const BURST: usize = 32;
/// Packets under way at most: fewer than a ring has room for, so that no ring drops any.
const UNDER_WAY: u64 = 512;
/// Long enough for the slowest machine; nobody waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Bench {
    pool: Mempool,
    tx: TxQueue,
    rx: RxQueue,
    out: Batch,
    back: Batch,
    pub counters: Arc<WorkerCounters>,
    /// Slots of the worker's table.
    pub capacity: usize,
    sent: u64,
    returned: u64,
    commands: Producer<Box<Message>>,
    worker: LcoreHandle,
    // The other ends of what the worker has.
    _events: Consumer<Box<Message>>,
    _passed: [Consumer<Mbuf>; 2],
    _inject: Producer<Mbuf>,
    ports: [Port<Started>; 2],
}

fn wire(pool: &Mempool, number: usize) -> (Port<Started>, RxQueue, TxQueue) {
    let device = format!("net_ring{number}");
    let port = Port::open(&device, &device).expect("a ring");
    let started = port.start(&PortConfig::default(), std::slice::from_ref(pool));
    let (port, mut rx, mut tx) = started.expect("starts");
    (port, rx.remove(0), tx.remove(0))
}

impl Bench {
    pub fn start(eal: &Eal, snapshot: Snapshot, connections: usize) -> Self {
        let pool = Mempool::new("load", 8191, 2048, 256, -1).expect("a pool");
        let (there, worker_rx, tx) = wire(&pool, 0);
        let (back, rx, worker_tx) = wire(&pool, 1);
        let size = ShardSize {
            connections_v4: connections,
            connections_v6: 1,
            services: 4,
        };
        let counters = Arc::new(WorkerCounters::new(8));
        let shard = Shard::new(size, Seed::random(), 0, 1, Arc::clone(&counters));
        let shard = shard.and_then(|shard| shard.with_local_ports(2, 4, Ownership::default()));
        let shard = shard.expect("memory");
        let capacity = shard.tables.v4.capacity();
        let (commands, commands_in) = spsc("commands", 8).expect("a ring");
        let (events_out, events) = spsc("events", 8).expect("a ring");
        let (passed_out, passed) = spsc("passed", 8).expect("a ring");
        let (checks_out, checks) = spsc("checks", 8).expect("a ring");
        let (inject, inject_in) = spsc("inject", 8).expect("a ring");
        let (handoff, taken) = mpsc("handoff", 8).expect("a ring");
        let rings = Rings {
            commands: commands_in,
            events: events_out,
            passed: passed_out,
            checks: checks_out,
            inject: inject_in,
            taken,
            handoff: vec![handoff],
        };
        let port = WorkerPort::new(Some(worker_rx), TxBuffer::new(worker_tx, BURST));
        let worker = Worker::new(
            0,
            shard,
            Arc::new(snapshot),
            pool.clone(),
            vec![port],
            rings,
            Clock::start(),
            Idle::Yield,
        );
        let worker = eal.launch(1, Box::new(move || drop(worker.run())));
        Self {
            pool,
            tx,
            rx,
            out: Batch::new(),
            back: Batch::new(),
            counters,
            capacity,
            sent: 0,
            returned: 0,
            commands,
            worker: worker.expect("an lcore"),
            _events: events,
            _passed: [passed, checks],
            _inject: inject,
            ports: [there, back],
        }
    }

    /// Sends a frame, when there is a burst of them; `seen` is given what comes back meanwhile.
    pub fn send(&mut self, frame: &[u8], seen: &mut impl FnMut(&[u8])) {
        let mut mbuf = self
            .pool
            .alloc()
            .expect("more buffers than may be under way");
        assert!(mbuf.fill(frame));
        assert!(self.out.push(mbuf).is_ok());
        if self.out.len() >= BURST {
            self.flush(seen);
        }
    }

    fn flush(&mut self, seen: &mut impl FnMut(&[u8])) {
        let deadline = Instant::now() + PATIENCE;
        while !self.out.is_empty() {
            self.take(seen);
            if self.under_way() < UNDER_WAY {
                self.sent += self.tx.send(&mut self.out) as u64;
            } else {
                assert!(Instant::now() < deadline, "{:?}", self.counters);
                std::thread::yield_now();
            }
        }
    }

    fn under_way(&self) -> u64 {
        let ended = self.returned + self.counters.dropped_total();
        // An answer is a drop and comes back too.
        (self.sent + self.counters.generated.get()).saturating_sub(ended)
    }

    /// What came back.
    fn take(&mut self, seen: &mut impl FnMut(&[u8])) {
        self.rx.receive(&mut self.back);
        self.returned += self.back.len() as u64;
        for mbuf in self.back.as_slice() {
            seen(mbuf.bytes());
        }
        self.back.clear();
    }

    /// Sends what waits for its burst and takes all that comes back.
    pub fn settle(&mut self, seen: &mut impl FnMut(&[u8])) {
        self.flush(seen);
        let deadline = Instant::now() + PATIENCE;
        while self.under_way() > 0 {
            self.take(seen);
            assert!(Instant::now() < deadline, "{:?}", self.counters);
            std::thread::yield_now();
        }
    }

    /// Waits for something that the worker does by itself.
    pub fn wait_for(&mut self, what: &str, is: impl Fn(&WorkerCounters) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(&self.counters) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.counters);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the worker; every buffer must be back.
    pub fn end(mut self) {
        self.settle(&mut |_| {});
        assert!(self.commands.push(Box::new(Message::Stop)).is_ok());
        self.worker.join().expect("the worker ends well");
        drop((self.tx, self.rx, self.ports));
        assert_eq!(self.pool.in_use(), 0, "buffers are missing");
    }
}

/// Source and destination of a frame's TCP packet, and its sequence number, behind the outer header
/// where there is one.
pub fn read(frame: &[u8]) -> (SocketAddr, SocketAddr, u32) {
    let is_tunnelled = frame[23] == 4;
    let inner = match is_tunnelled {
        true => [&frame[..14], &frame[34..]].concat(),
        false => frame.to_vec(),
    };
    let Parsed::V4(packet) = parse(&inner, false) else {
        panic!("not a TCP packet: {frame:02x?}");
    };
    let end = |address: IpAddr, port| SocketAddr::new(address, port);
    let at = usize::from(packet.l4) + 4;
    let sequence = inner[at..at + 4].try_into().expect("four bytes");
    (
        end(packet.key.source.into(), packet.key.source_port),
        end(packet.key.destination.into(), packet.key.destination_port),
        u32::from_be_bytes(sequence),
    )
}
