//! The receive and transmit queues of a started port, one owner each.
//!
//! A queue belongs to one worker: it can be moved to its thread, not cloned
//! nor shared. It keeps its device open until it is dropped.
//!
//! ```compile_fail
//! fn cloned<T: Clone>() {}
//! cloned::<evenkeel::port::RxQueue>();
//! ```
//! ```compile_fail
//! fn cloned<T: Clone>() {}
//! cloned::<evenkeel::port::TxQueue>();
//! ```
//! ```compile_fail
//! fn shared<T: Sync>() {}
//! shared::<evenkeel::port::RxQueue>();
//! ```
//! ```compile_fail
//! fn shared<T: Sync>() {}
//! shared::<evenkeel::port::TxQueue>();
//! ```
//! ```
//! fn moved<T: Send>() {}
//! moved::<evenkeel::port::RxQueue>();
//! moved::<evenkeel::port::TxQueue>();
//! ```

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use super::batch::Batch;
use super::device::Device;
use super::mbuf::Mbuf;
use super::sys;

/// Times that a full transmit ring is asked again before packets are dropped.
const TRIES: usize = 4;

/// A port's receive queue.
pub struct RxQueue {
    device: Arc<Device>,
    queue: u16,
    burst: u16,
    /// The address of what the driver keeps of the queue.
    state: usize,
    _not_sync: PhantomData<Cell<()>>,
}

impl RxQueue {
    /// Of a started port.
    pub(super) fn new(device: Arc<Device>, queue: u16) -> Self {
        // SAFETY: the port is started and has this queue.
        let state = unsafe { sys::ek_rx_queue_state(device.id(), queue) };
        Self {
            device,
            queue,
            burst: Batch::CAPACITY as u16,
            state: state as usize,
            _not_sync: PhantomData,
        }
    }

    /// Sets how many packets [`RxQueue::receive`] takes at most, 1 to 64; 64 at first.
    pub fn set_burst(&mut self, burst: u16) {
        self.burst = burst.clamp(1, Batch::CAPACITY as u16);
    }

    /// Adds what has arrived to the batch, up to the burst size and its room;
    /// returns how many. Never waits.
    #[inline(always)]
    pub fn receive(&mut self, batch: &mut Batch) -> usize {
        let len = batch.len();
        let most = batch.room().min(self.burst as usize) as u16;
        // SAFETY: the port is started while its queues exist, and this queue has
        // one owner; `most` free slots follow the first `len`, of which the
        // driver writes as many as it returns, each an mbuf that is now ours.
        unsafe {
            let slots = batch.raw().add(len);
            let got = sys::rte_eth_rx_burst(self.device.id(), self.queue, slots, most) as usize;
            batch.set_len(len + got);
            got
        }
    }

    /// Asks the cache for the line in which begins what the driver keeps of the queue, for this core
    /// alone: the driver will write there. Some keep it beside another queue's, whose worker takes
    /// the line away at each of its visits. A CPU without such a request (Intel's before Broadwell)
    /// does nothing.
    #[inline(always)]
    pub fn prefetch(&self) {
        // SAFETY: a prefetch never faults and changes nothing but the cache.
        unsafe {
            std::arch::asm!(
                "prefetchw [{}]",
                in(reg) self.state,
                options(nostack, preserves_flags, nomem)
            )
        }
    }

    /// DPDK's id of the port.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        self.device.id()
    }

    pub fn index(&self) -> u16 {
        self.queue
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

/// A port's transmit queue.
pub struct TxQueue {
    device: Arc<Device>,
    queue: u16,
    _not_sync: PhantomData<Cell<()>>,
}

impl TxQueue {
    pub(super) fn new(device: Arc<Device>, queue: u16) -> Self {
        Self {
            device,
            queue,
            _not_sync: PhantomData,
        }
    }

    /// Gives the driver as many as it takes, first to last; the rest stay in
    /// the batch. Returns how many it took.
    #[inline(always)]
    pub fn send(&mut self, batch: &mut Batch) -> usize {
        if batch.is_empty() {
            return 0;
        }
        // SAFETY: the port is started while its queues exist, and this queue has
        // one owner; the driver owns the first `sent`, which are forgotten at once.
        unsafe {
            let (port, len) = (self.device.id(), batch.len() as u16);
            let sent = sys::rte_eth_tx_burst(port, self.queue, batch.raw(), len) as usize;
            batch.forget_front(sent);
            sent
        }
    }

    /// DPDK's id of the port.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        self.device.id()
    }

    pub fn index(&self) -> u16 {
        self.queue
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl std::fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RxQueue({:?}, {})", self.device.name(), self.queue)
    }
}

impl std::fmt::Debug for TxQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TxQueue({:?}, {})", self.device.name(), self.queue)
    }
}

/// What a [`TxBuffer`] has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxStats {
    /// Packets that the driver took, and their bytes.
    pub packets: u64,
    pub bytes: u64,
    /// Packets that did not fit and were freed, and their bytes.
    pub dropped: u64,
    pub dropped_bytes: u64,
}

/// A transmit queue with a batch in front. Sends when the batch is as long as
/// the burst size, and whatever there is on [`TxBuffer::flush`]. Dropping it
/// frees what was not flushed, uncounted.
pub struct TxBuffer {
    /// None while the port is being reset: then everything is dropped.
    queue: Option<TxQueue>,
    waiting: Batch,
    burst: usize,
    stats: TxStats,
}

impl TxBuffer {
    /// `burst` is 1 to 64.
    pub fn new(queue: TxQueue, burst: usize) -> Self {
        let burst = burst.clamp(1, Batch::CAPACITY);
        Self {
            queue: Some(queue),
            waiting: Batch::new(),
            burst,
            stats: TxStats::default(),
        }
    }

    /// Takes the packet; sends if that makes a burst.
    #[inline(always)]
    pub fn push(&mut self, mbuf: Mbuf) {
        let pushed = self.waiting.push(mbuf);
        debug_assert!(pushed.is_ok(), "flush leaves the batch empty");
        if self.waiting.len() >= self.burst {
            self.flush();
        }
    }

    /// Sends what waits. A full ring is asked a few times and no more; what it
    /// does not take is freed and counted. Returns how many were sent.
    #[inline(always)]
    pub fn flush(&mut self) -> usize {
        if self.waiting.is_empty() {
            return 0;
        }
        let bytes = total(&self.waiting);
        send(&mut self.queue, &mut self.waiting, bytes, &mut self.stats)
    }

    /// Sends a whole batch at once, which holds so many bytes, behind what waits, and leaves it empty;
    /// as [`TxBuffer::flush`].
    #[inline(always)]
    pub fn send_all(&mut self, batch: &mut Batch, bytes: u64) -> usize {
        debug_assert_eq!(bytes, total(batch));
        self.flush();
        send(&mut self.queue, batch, bytes, &mut self.stats)
    }

    /// Packets that wait for the next flush.
    #[inline(always)]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    #[inline(always)]
    pub fn stats(&self) -> TxStats {
        self.stats
    }

    /// Flushes, and changes the queue for another one, or for none. The counts go on.
    pub fn swap_queue(&mut self, queue: &mut Option<TxQueue>) {
        self.flush();
        std::mem::swap(&mut self.queue, queue);
    }

    /// Flushes, and gives the queue back, if there is one, to stop the port.
    pub fn into_queue(mut self) -> (Option<TxQueue>, TxStats) {
        self.flush();
        (self.queue, self.stats)
    }
}

/// Gives the driver a batch, and frees and counts what it does not take.
#[inline(always)]
fn send(queue: &mut Option<TxQueue>, batch: &mut Batch, bytes: u64, stats: &mut TxStats) -> usize {
    let sent = queue.as_mut().map_or(0, |queue| queue.send(batch));
    stats.packets += sent as u64;
    stats.bytes += bytes;
    match batch.is_empty() {
        true => sent,
        false => sent + send_rest(queue, batch, stats),
    }
}

/// Asks a full ring again.
#[cold]
#[inline(never)]
fn send_rest(queue: &mut Option<TxQueue>, batch: &mut Batch, stats: &mut TxStats) -> usize {
    let mut sent = 0;
    if let Some(queue) = queue {
        for _ in 1..TRIES {
            sent += queue.send(batch);
            if batch.is_empty() {
                break;
            }
        }
    }
    let dropped_bytes = total(batch);
    stats.packets += sent as u64;
    stats.bytes -= dropped_bytes;
    stats.dropped += batch.len() as u64;
    stats.dropped_bytes += dropped_bytes;
    batch.clear();
    sent
}

#[inline(always)]
fn total(batch: &Batch) -> u64 {
    batch.iter().map(|mbuf| mbuf.packet_len() as u64).sum()
}
