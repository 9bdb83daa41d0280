//! What scripts/bench cannot see from outside: one worker between two rings of DPDK's ring driver,
//! with the other end of both in hand. Answers with one line of JSON.
//!
//! The worker, its shard, its rings to management and its snapshots are evenkeel's own; this program
//! takes management's place. It needs two CPUs to itself.

mod latency;
mod publish;
mod respond;

use std::error::Error;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel::lb::counters::WorkerCounters;
use evenkeel::lb::fixture::udp4;
use evenkeel::lb::flow::Seed;
use evenkeel::lb::shard::{Shard, ShardSize};
use evenkeel::lb::snapshot::Snapshot;
use evenkeel::mgmt::config;
use evenkeel::mgmt::desired::{Desired, MAX_BACKENDS, MAX_SERVICES, PortFacts, RETA};
use evenkeel::mgmt::kernel::Learned;
use evenkeel::mgmt::net::net_ports;
use evenkeel::mgmt::net::{NetState, Output};
use evenkeel::port::clock::Tsc;
use evenkeel::port::ring::{Consumer, Producer, mpsc, spsc};
use evenkeel::port::{
    Batch, Eal, EalOptions, LcoreHandle, Mbuf, Mempool, Port, PortConfig, RxQueue, Started,
    Stopped, TxBuffer, TxQueue,
};
use evenkeel::worker::{Clock, Idle, Message, Rings, Worker, WorkerPort};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const BURST: usize = 32;
/// Where the time stamp lies: the UDP payload of a frame without options.
const STAMP: std::ops::Range<usize> = 42..50;

const USAGE: &str = "usage: bench-probe respond SOCKET
       bench-probe latency SERVICES BACKENDS FLOWS SECONDS
       bench-probe publish SERVICES BACKENDS FLOWS SWAPS";

type Failure = Box<dyn Error>;

fn main() {
    if let Err(failure) = run() {
        eprintln!("bench-probe: {failure}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [what, socket] = &arguments[..]
        && what == "respond"
    {
        return respond::run(socket);
    }
    let [what, services, backends, flows, amount] = &arguments[..] else {
        return Err(USAGE.into());
    };
    let mut world = World::new(services.parse()?, backends.parse()?)?;
    let frames = frames(services.parse()?, flows.parse()?);
    let mut eal = Eal::init(&EalOptions {
        lcores: vec![(0, 0), (1, 1)],
        file_prefix: format!("ekprobe{}", std::process::id()),
        memory_mib: Some(128),
        ..EalOptions::default()
    })?;
    let answer = match what.as_str() {
        "latency" => latency::latency(&eal, &mut world, &frames, amount.parse()?)?,
        "publish" => publish::publish(&eal, &mut world, &frames, amount.parse()?)?,
        _ => return Err(USAGE.into()),
    };
    println!("{answer}");
    Ok(eal.cleanup()?)
}

// --- what is configured -----------------------------------------------------------------------

fn vip(service: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc613_0000 + service as u32)
}

/// The configuration, as management holds it, and the time that reading it took.
struct World {
    desired: Desired,
    net: NetState,
    read: Duration,
}

impl World {
    /// Tunnels, whose backends are all behind one router.
    fn new(services: usize, backends: usize) -> Result<Self, Failure> {
        let mut text =
            "[workers]\ncores = \"1\"\n[[port]]\nname = \"wan\"\ndevice = \"net_ring0\"\n\
             addresses = [\"192.0.2.2/24\"]\ngateway = \"192.0.2.1\"\n\
             [[port.neighbour]]\naddress = \"192.0.2.1\"\nmac = \"02:00:00:00:01:01\"\n"
                .to_owned();
        for service in 0..services {
            write!(
                text,
                "[[service]]\nname = \"s{service}\"\nlisten = [\"udp:{}:80\"]\n\
                 method = \"tunnel\"\nscheduler = \"wrr\"\n",
                vip(service)
            )?;
            for backend in 0..backends {
                let address =
                    Ipv4Addr::from_bits(0x0a40_0000 + (service * backends + backend) as u32);
                write!(text, "[[service.backend]]\naddress = \"{address}\"\n")?;
            }
        }
        let path = std::env::temp_dir().join(format!("bench-probe-{}.toml", std::process::id()));
        std::fs::write(&path, text)?;
        let begun = Instant::now();
        let config = config::load(&path);
        let read = begun.elapsed();
        std::fs::remove_file(&path)?;
        let config = config?;
        let facts = vec![PortFacts {
            device: 0,
            vlan: None,
            name: "wan".into(),
            mac: OUR_MAC,
            mtu: 1500,
        }];
        let (now, mut out) = (Instant::now(), Output::default());
        let mut net = NetState::new(
            net_ports(&config, &facts, &Learned::default()),
            now,
            &mut out,
        );
        let desired = Desired::new(config, facts, RETA);
        net.want(desired.destinations(), now, &mut out);
        Ok(Self { desired, net, read })
    }

    fn build(&mut self) -> Arc<Snapshot> {
        self.desired.build(&self.net)
    }
}

/// One frame of each flow; the flows are spread over the services.
fn frames(services: usize, flows: usize) -> Vec<Vec<u8>> {
    let frame = |flow: usize| {
        let client = Ipv4Addr::from_bits(0x0b00_0000 + flow as u32);
        let source = format!("{client}:{}", 1024 + flow % 60_000);
        let build = udp4(&source, &format!("{}:80", vip(flow % services)));
        build.macs(OUR_MAC, CLIENT_MAC).payload(&[0; 18]).frame()
    };
    (0..flows).map(frame).collect()
}

// --- the worker, and the two wires to it ------------------------------------------------------

/// The near end: what is sent here the worker receives, and the other way round.
struct Bench<'f> {
    frames: &'f [Vec<u8>],
    next: usize,
    pool: Mempool,
    tx: TxQueue,
    rx: RxQueue,
    batch: Batch,
    commands: Producer<Box<Message>>,
    events: Consumer<Box<Message>>,
    counters: Arc<WorkerCounters>,
    // Held while the worker lives: it sends to management through them.
    _passed: [Consumer<Mbuf>; 2],
    _inject: Producer<Mbuf>,
    _ports: [Port<Started>; 2],
}

fn wire(pool: &Mempool, device: &str) -> Result<(Port<Started>, RxQueue, TxQueue), Failure> {
    let port = Port::<Stopped>::open(device, device)?;
    let (port, rx, tx) = port.start(&PortConfig::default(), std::slice::from_ref(pool))?;
    let (rx, tx) = (rx.into_iter().next(), tx.into_iter().next());
    let (Some(rx), Some(tx)) = (rx, tx) else {
        return Err("the ring driver gave no queues".into());
    };
    Ok((port, rx, tx))
}

/// Starts a worker on the second lcore.
fn start<'f>(
    eal: &Eal,
    snapshot: &Arc<Snapshot>,
    frames: &'f [Vec<u8>],
    devices: [&str; 2],
) -> Result<(Bench<'f>, LcoreHandle), Failure> {
    let pool = Mempool::new("packets", 16_383, 2048, 256, -1)?;
    let (there, worker_rx, tx) = wire(&pool, devices[0])?;
    let (back, rx, worker_tx) = wire(&pool, devices[1])?;
    let size = ShardSize {
        connections_v4: 2 * frames.len().max(100_000),
        connections_v6: 1,
        services: MAX_SERVICES,
    };
    let counters = Arc::new(WorkerCounters::new(MAX_BACKENDS));
    let shard = Shard::new(size, Seed::random(), 0, 1, Arc::clone(&counters))?;
    let (commands, commands_in) = spsc("commands", 64)?;
    let (events_out, events) = spsc("events", 64)?;
    let (passed_out, passed) = spsc("passed", 1024)?;
    let (checks_out, checks) = spsc("checks", 1024)?;
    let (inject, inject_in) = spsc("inject", 1024)?;
    let (handoff, taken) = mpsc("handoff", 1024)?;
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
        Arc::clone(snapshot),
        pool.clone(),
        vec![port],
        rings,
        Clock::start(),
        Idle::Poll,
    );
    let handle = eal.launch(1, Box::new(move || drop(worker.run())))?;
    let bench = Bench {
        frames,
        next: 0,
        pool,
        tx,
        rx,
        batch: Batch::new(),
        commands,
        events,
        counters,
        _passed: [passed, checks],
        _inject: inject,
        _ports: [there, back],
    };
    Ok((bench, handle))
}

impl Bench<'_> {
    /// Sends the next `count` frames, stamped with a time of the TSC; returns how many went.
    fn send(&mut self, count: usize, stamp: u64) -> usize {
        self.batch.clear();
        if !self.pool.alloc_bulk(&mut self.batch, count) {
            return 0;
        }
        for mbuf in self.batch.as_mut_slice() {
            let frame = &self.frames[self.next];
            self.next = (self.next + 1) % self.frames.len();
            mbuf.fill(frame);
            mbuf.bytes_mut()[STAMP].copy_from_slice(&stamp.to_le_bytes());
        }
        self.tx.send(&mut self.batch)
    }

    /// Takes what came back; gives each frame's stamp to `seen`.
    fn take(&mut self, at: std::ops::Range<usize>, mut seen: impl FnMut(u64)) -> usize {
        self.batch.clear();
        let count = self.rx.receive(&mut self.batch);
        for mbuf in self.batch.as_slice() {
            let mut stamp = [0; 8];
            stamp.copy_from_slice(&mbuf.bytes()[at.clone()]);
            seen(u64::from_le_bytes(stamp));
        }
        self.batch.clear();
        count
    }

    /// Every flow gets its entry, and is seen again.
    fn establish(&mut self) -> Result<(), Failure> {
        for _ in 0..2 * self.frames.len().div_ceil(BURST) {
            self.round_trip()?;
        }
        Ok(())
    }

    /// One burst there and back, and the ticks it took.
    fn round_trip(&mut self) -> Result<u64, Failure> {
        let begun = Tsc::now();
        let deadline = begun + Tsc::hz();
        let (sent, mut back) = (self.send(BURST, begun), 0);
        while back < sent {
            back += self.take(STAMP, |_| {});
            if Tsc::now() > deadline {
                let lost = self.counters.dropped_total();
                return Err(format!("{back} of {sent} frames came back; {lost} dropped").into());
            }
        }
        match sent {
            BURST => Ok(Tsc::now() - begun),
            _ => Err("the ring did not take a burst".into()),
        }
    }

    fn stop(mut self, handle: LcoreHandle) -> Result<(), Failure> {
        if self.commands.push(Box::new(Message::Stop)).is_err() {
            return Err("no room for a command".into());
        }
        Ok(handle.join()?)
    }
}

fn nanos(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(Tsc::hz().max(1))) as u64
}

/// The value below which `part` of the sorted values lie.
fn quantile(sorted: &[u64], part: f64) -> u64 {
    let index = (sorted.len() as f64 * part) as usize;
    sorted
        .get(index.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}
