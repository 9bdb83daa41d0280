//! One core's loop: receive, decide, send, and between bursts whatever management asks for.
//!
//! A worker owns its queues, its shard and its counters and shares nothing but rings. While
//! packets flow it never allocates, locks, logs, makes a system call or frees a large value;
//! it reads the clock once per burst.

pub mod capture;
mod clock;
mod frame;
mod handoff;
mod port;
mod way_out;

use std::sync::Arc;

use crate::lb::counters::{DropReason, WorkerCounters};
use crate::lb::fragment::FragmentStore;
use crate::lb::shard::Shard;
use crate::lb::snapshot::Snapshot;
use crate::lb::{Arrival, MAX_BURST, Now, Outbox, Pass, Verdict};
use crate::port::clock::Tsc;
use crate::port::ring::{Consumer, Producer, SharedProducer};
use crate::port::{Batch, Mbuf, Mempool, RxQueue, TxQueue};
use capture::Tap;
pub use clock::Clock;
pub use frame::{interface_of, interface_of_id};
use handoff::HandOffs;
pub use port::WorkerPort;
use port::burst;
use way_out::{WayOut, pass_up};

/// What management asks of a worker. Every message comes back up the event ring when it is
/// done, carrying what it replaced: the worker frees nothing.
pub enum Message {
    /// Use this snapshot from the next burst on; comes back with the old one.
    Swap(Arc<Snapshot>),
    /// Receive no more from the ports, but keep taking packets from other workers.
    Quiesce,
    /// Come to an end; comes back first.
    Stop,
    /// Use these queues of the port from now on, or none: it is to be reset. Comes back with those
    /// that were in use.
    Queues {
        port: usize,
        rx: Option<RxQueue>,
        tx: Option<TxQueue>,
    },
    /// Copy connections into the vector, as far as its capacity goes.
    List(Box<crate::lb::listing::Request>),
    /// Copy packets to management from now on, or no longer. Comes back with the tap that was in use.
    Capture(Option<Box<Tap>>),
    /// Copy what is known of a flow into the question.
    Trace(Box<crate::lb::trace::Question>),
}

/// The bit of a passed packet's stamp that says [`Pass::Resolve`]; the rest is the TSC when it
/// was received.
pub const RESOLVE: u64 = 1 << 63;

/// What a worker does when nothing arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    Poll,
    Yield,
    Sleep,
}

/// The rings that tie a worker to management and to the other workers.
pub struct Rings {
    pub commands: Consumer<Box<Message>>,
    pub events: Producer<Box<Message>>,
    /// To management: packets that are not forwarded here.
    pub passed: Producer<Mbuf>,
    /// To management: what was sent to a check address, which a flood of other packets must not
    /// crowd out.
    pub checks: Producer<Mbuf>,
    /// From management: frames to send; the stamp is the index of the port.
    pub inject: Consumer<Mbuf>,
    /// From the other workers: packets that this one owns.
    pub taken: Consumer<Mbuf>,
    /// To each worker, by index; one's own is not used. [`Worker::new`] takes them out.
    pub handoff: Vec<SharedProducer<Mbuf>>,
}

pub struct Worker {
    index: usize,
    shard: Shard,
    counters: Arc<WorkerCounters>,
    snapshot: Arc<Snapshot>,
    pool: Mempool,
    ports: Vec<WorkerPort>,
    rings: Rings,
    handoffs: HandOffs,
    clock: Clock,
    idle: Idle,
    /// Packets that are asked for at once.
    burst: u16,
    /// A message that is done but found the event ring full.
    unsent: Option<Box<Message>>,
    batch: Batch,
    /// Handed over by others, and on its way into this core's cache.
    taken: Batch,
    verdicts: [Verdict; MAX_BURST],
    /// Fragments that wait for their first one.
    held: FragmentStore<Mbuf>,
    capture: Option<Box<Tap>>,
    swept: u64,
    loops: u32,
    idle_loops: u32,
    receiving: bool,
    running: bool,
}

/// What a worker leaves behind: the queues, to stop the ports with.
pub struct Remains {
    pub ports: Vec<(Option<RxQueue>, Option<TxQueue>)>,
}

impl Worker {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        index: usize,
        shard: Shard,
        snapshot: Arc<Snapshot>,
        pool: Mempool,
        mut ports: Vec<WorkerPort>,
        mut rings: Rings,
        clock: Clock,
        idle: Idle,
    ) -> Self {
        let handoffs = HandOffs::new(std::mem::take(&mut rings.handoff));
        let burst = burst(&handoffs);
        ports.iter_mut().for_each(|port| port.set_burst(burst));
        Self {
            index,
            counters: Arc::clone(&shard.counters),
            shard,
            snapshot,
            pool,
            ports,
            handoffs,
            rings,
            clock,
            idle,
            burst,
            unsent: None,
            batch: Batch::new(),
            taken: Batch::new(),
            verdicts: [Verdict::Pass(Pass::Local); MAX_BURST],
            held: FragmentStore::default(),
            capture: None,
            swept: 0,
            loops: 0,
            idle_loops: 0,
            receiving: true,
            running: true,
        }
    }

    /// Runs until management says stop.
    pub fn run(mut self) -> Remains {
        self.counters.generation.set(self.snapshot.generation);
        let mut begun = Tsc::now();
        while self.running {
            let now = self.clock.at(begun);
            self.loops = self.loops.wrapping_add(1);
            let packets = match self.expect_taken() {
                true => 0,
                false => self.receive(now),
            };
            let packets = packets + self.take_over(now);
            let packets = packets + self.inject(packets > 0);
            if !self.shard.fragments.is_idle() {
                self.release(now);
            }
            self.flush();
            self.housekeeping(now);
            let ended = Tsc::now();
            self.counters.total_ticks.add(ended.wrapping_sub(begun));
            if packets > 0 {
                self.counters.busy_ticks.add(ended.wrapping_sub(begun));
                self.idle_loops = 0;
            } else {
                self.rest();
            }
            begun = ended;
        }
        self.finish()
    }

    /// One burst from every port. A look at one costs a call: while packets flow, a port that had none
    /// the last time is asked one loop in four, which is some microseconds later.
    #[inline(always)]
    fn receive(&mut self, now: Now) -> usize {
        // An odd loop: an even one may be for what was handed over alone.
        let ask_all = self.idle_loops > 0 || self.loops % 4 == 1;
        let mut packets = 0;
        for port in 0..self.ports.len() {
            let WorkerPort { rx, silent, .. } = &mut self.ports[port];
            let is_asked = self.receiving && (ask_all || !*silent);
            let Some(rx) = rx.as_mut().filter(|_| is_asked) else {
                continue;
            };
            let count = rx.receive(&mut self.batch);
            *silent = count == 0;
            if count > 0 {
                packets += count;
                self.counters.received.add(count as u64);
                if !self.snapshot.vlans.is_empty() {
                    self.sort_by_vlan(port as u8);
                }
                self.burst(Arrival::Port(port as u8), now);
            }
        }
        packets
    }

    /// Takes the tags off what `port` received and notes the interfaces that they name.
    #[cold]
    fn sort_by_vlan(&mut self, port: u8) {
        let Self {
            batch,
            snapshot,
            counters,
            ..
        } = self;
        batch.retain(|mbuf| {
            let stripped = mbuf.vlan_tci();
            let received = snapshot.vlans.receive(port, mbuf, stripped);
            received.map_err(|r| counters.count_drop(r)).is_ok()
        });
    }

    /// Decides about the batch and carries the decisions out.
    #[inline(always)]
    fn burst(&mut self, arrival: Arrival, now: Now) {
        let Self {
            batch,
            verdicts,
            ports,
            counters,
            rings,
            handoffs,
            held,
            capture,
            ..
        } = self;
        let mut way_out = WayOut {
            pool: &self.pool,
            snapshot: &self.snapshot,
            ports,
            counters,
        };
        if let Some(tap) = capture {
            tap.before(batch);
        }
        let frames = batch.as_mut_slice();
        let decided =
            self.shard
                .process(&self.snapshot, now, arrival, frames, verdicts, &mut way_out);
        if let Some(tap) = capture {
            tap.after(&self.snapshot, now, batch, verdicts, &decided);
        }
        // First, because a way out is that of what is left.
        if decided.own < batch.len() {
            handoffs.put_all(batch, &decided, verdicts, counters);
        }
        if let Some(exit) = decided.exit
            && let Some(port) = way_out.ports.get_mut(usize::from(exit.port))
        {
            // Where there is one port, it is visited next, and sending takes about as long as the line.
            if let Some(rx) = &port.rx {
                rx.prefetch();
            }
            port.tx.send_all(batch, exit.bytes);
            return;
        }
        for (mbuf, verdict) in batch.drain().zip(&*verdicts) {
            match *verdict {
                Verdict::Transmit(port) => way_out.transmit(port, mbuf),
                Verdict::Reply { port, reason } => {
                    counters.count_drop(reason);
                    way_out.send(port, mbuf);
                }
                Verdict::Drop(reason) => counters.count_drop(reason),
                Verdict::Pass(pass) => pass_up(rings, counters, mbuf, pass),
                Verdict::HandOff(owner) => handoffs.put(mbuf, owner, counters),
                Verdict::Hold(ticket) => {
                    if held.put(ticket, mbuf).is_some() {
                        counters.count_drop(DropReason::Fragment);
                    }
                }
            }
        }
    }

    /// Fragments whose first one came, and those that waited for it too long.
    #[cold]
    fn release(&mut self, now: Now) {
        while let Some(released) = self.shard.release_fragment(now) {
            let Some(mbuf) = self.held.take(released.ticket) else {
                continue;
            };
            if !released.goes_on {
                self.counters.count_drop(DropReason::Fragment);
                continue;
            }
            if self.batch.is_full() {
                self.burst(Arrival::HandOff, now);
            }
            if self.batch.push(mbuf).is_err() {
                self.counters.count_drop(DropReason::Fragment);
            }
        }
        self.burst(Arrival::HandOff, now);
    }

    /// Asks the cache for packets that other workers received and this one owns: they lie in the
    /// others' caches, and come while this worker has its own to do. True where more are waiting than
    /// workers at the same pace leave, every other time: those have been paid for, and what finds
    /// their ring full is lost. Every other time, because a port's queue must not be forgotten for them.
    #[inline(always)]
    fn expect_taken(&mut self) -> bool {
        const MANY: usize = 2 * MAX_BURST;
        if self.handoffs.is_alone() {
            return false;
        }
        let left = self.rings.taken.pop_batch(&mut self.taken);
        self.taken.prefetch();
        left >= MANY && self.loops.is_multiple_of(2)
    }

    /// Decides about them.
    #[inline(always)]
    fn take_over(&mut self, now: Now) -> usize {
        let count = self.taken.len();
        if count > 0 {
            self.counters.taken_over.add(count as u64);
            std::mem::swap(&mut self.batch, &mut self.taken);
            self.burst(Arrival::HandOff, now);
        }
        count
    }

    /// Frames that management made. They are few, and a look costs a call: while packets flow, one
    /// loop in eight does.
    #[inline(always)]
    fn inject(&mut self, busy: bool) -> usize {
        if busy && !self.loops.is_multiple_of(8) {
            return 0;
        }
        let mut count = 0;
        while count < MAX_BURST
            && let Some(mbuf) = self.rings.inject.pop()
        {
            count += 1;
            let mut way_out = WayOut {
                pool: &self.pool,
                snapshot: &self.snapshot,
                ports: &mut self.ports,
                counters: &self.counters,
            };
            way_out.send(mbuf.stamp() as u8, mbuf);
        }
        count
    }

    #[inline(always)]
    fn flush(&mut self) {
        let (mut packets, mut bytes, mut dropped) = (0, 0, 0);
        for port in &mut self.ports {
            port.tx.flush();
            let stats = port.tx.stats();
            packets += stats.packets;
            bytes += stats.bytes;
            dropped += stats.dropped;
        }
        self.handoffs.flush(&self.counters);
        self.counters.transmitted.set(packets);
        self.counters.transmitted_bytes.set(bytes);
        self.counters.dropped[DropReason::TxFull as usize].set(dropped);
    }

    /// One command, and a little of the sweep.
    #[inline(always)]
    fn housekeeping(&mut self, now: Now) {
        /// The whole table is swept in this time, a slice every millisecond.
        const SWEEP_MILLIS: usize = 10_000;
        if self.unsent.is_some() || !self.rings.commands.is_empty() {
            self.obey();
        }
        if now.nanos.wrapping_sub(self.swept) >= 1_000_000 {
            self.swept = now.nanos;
            let buckets = self.shard.buckets().div_ceil(SWEEP_MILLIS);
            self.shard.sweep(now, buckets);
        }
    }

    #[cold]
    fn obey(&mut self) {
        if let Some(message) = self.unsent.take() {
            self.unsent = self.rings.events.push(message).err();
        }
        // What is done must be reported before anything else is begun.
        if self.unsent.is_some() {
            return;
        }
        let Some(mut message) = self.rings.commands.pop() else {
            return;
        };
        match &mut *message {
            Message::Swap(snapshot) => {
                std::mem::swap(snapshot, &mut self.snapshot);
                self.counters.swaps.add(1);
                self.counters.generation.set(self.snapshot.generation);
            }
            Message::Queues { port, rx, tx } => {
                if let Some(evidence) = self.counters.queues.get(*port) {
                    evidence.forget();
                }
                if let Some(port) = self.ports.get_mut(*port) {
                    std::mem::swap(rx, &mut port.rx);
                    port.tx.swap_queue(tx);
                    port.set_burst(self.burst);
                }
            }
            Message::Quiesce => self.receiving = false,
            Message::Stop => self.running = false,
            Message::List(request) => request.fill(&self.shard, self.clock.now()),
            Message::Capture(tap) => std::mem::swap(tap, &mut self.capture),
            Message::Trace(question) => {
                question.fill(&self.shard, &self.snapshot, self.clock.now());
            }
        }
        self.unsent = self.rings.events.push(message).err();
    }

    /// Nothing arrived.
    #[cold]
    fn rest(&mut self) {
        /// Loops without a packet before a worker lets go of its CPU.
        const PATIENCE: u32 = 64;
        self.idle_loops = self.idle_loops.saturating_add(1);
        if self.idle_loops < PATIENCE {
            std::hint::spin_loop();
            return;
        }
        match self.idle {
            Idle::Poll => std::hint::spin_loop(),
            Idle::Yield => std::thread::yield_now(),
            Idle::Sleep => std::thread::sleep(std::time::Duration::from_micros(50)),
        }
    }

    /// Counts what is left in the rings and gives the queues back.
    fn finish(mut self) -> Remains {
        while self
            .taken
            .pop()
            .or_else(|| self.rings.taken.pop())
            .is_some()
        {
            self.counters.taken_over.add(1);
            self.counters.count_drop(DropReason::Shutdown);
        }
        while let Some(_mbuf) = self.rings.inject.pop() {
            self.counters.generated.add(1);
            self.counters.count_drop(DropReason::Shutdown);
        }
        for _ in 0..self.shard.fragments.held() {
            self.counters.count_drop(DropReason::Shutdown);
        }
        self.counters.held.set(0);
        self.flush();
        tracing::debug!("worker {} ended", self.index);
        let queues = |port: WorkerPort| (port.rx, port.tx.into_queue().0);
        Remains {
            ports: self.ports.into_iter().map(queues).collect(),
        }
    }
}
