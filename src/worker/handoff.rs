//! Packets on their way to the workers that own them. They are gathered while bursts are decided
//! about and put on each ring at once: a packet at a time, the line of the ring's head would go
//! from core to core for each. Belongs to one worker.

use crate::lb::counters::{DropReason, WorkerCounters};
use crate::lb::exits::Decided;
use crate::lb::{MAX_BURST, Verdict};
use crate::port::ring::SharedProducer;
use crate::port::{Batch, Mbuf};

/// A ring to each worker, by index (one's own is not used), and what waits for it.
pub struct HandOffs {
    rings: Vec<(SharedProducer<Mbuf>, Batch)>,
    /// Anything waits.
    waiting: bool,
}

impl HandOffs {
    pub fn new(rings: Vec<SharedProducer<Mbuf>>) -> Self {
        let rings = rings.into_iter().map(|ring| (ring, Batch::new()));
        Self {
            rings: rings.collect(),
            waiting: false,
        }
    }

    /// There is no other worker.
    #[inline(always)]
    pub fn is_alone(&self) -> bool {
        self.rings.len() <= 1
    }

    /// Takes a packet for the worker `owner`.
    #[inline(always)]
    pub fn put(&mut self, mbuf: Mbuf, owner: u8, counters: &WorkerCounters) {
        let Some((ring, waiting)) = self.rings.get_mut(usize::from(owner)) else {
            return counters.count_drop(DropReason::HandoffFull);
        };
        self.waiting = true;
        if let Err(mbuf) = waiting.push(mbuf) {
            send(ring, waiting, counters);
            let pushed = waiting.push(mbuf);
            debug_assert!(pushed.is_ok(), "sending leaves the batch empty");
        }
    }

    /// Takes the packets of a burst that lie behind the worker's own; these stay in the batch.
    #[inline(always)]
    pub fn put_all(
        &mut self,
        batch: &mut Batch,
        decided: &Decided,
        verdicts: &[Verdict; MAX_BURST],
        counters: &WorkerCounters,
    ) {
        let Decided { own, owner, .. } = *decided;
        let ring = owner.and_then(|owner| self.rings.get_mut(usize::from(owner)));
        if let Some((ring, waiting)) = ring {
            self.waiting = true;
            if waiting.room() < batch.len() - own {
                send(ring, waiting, counters);
            }
            return batch.move_behind(own, waiting);
        }
        for (mbuf, verdict) in batch.drain_behind(own).zip(&verdicts[own..]) {
            match *verdict {
                Verdict::HandOff(owner) => self.put(mbuf, owner, counters),
                _ => counters.count_drop(DropReason::HandoffFull),
            }
        }
    }

    /// Sends what waits; what a ring has no room for is dropped.
    #[inline(always)]
    pub fn flush(&mut self, counters: &WorkerCounters) {
        if std::mem::take(&mut self.waiting) {
            for (ring, waiting) in &mut self.rings {
                send(ring, waiting, counters);
            }
        }
    }
}

fn send(ring: &SharedProducer<Mbuf>, waiting: &mut Batch, counters: &WorkerCounters) {
    if waiting.is_empty() {
        return;
    }
    counters.handed_off.add(ring.push_batch(waiting) as u64);
    counters.dropped[DropReason::HandoffFull as usize].add(waiting.len() as u64);
    waiting.clear();
}
