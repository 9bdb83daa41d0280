//! A worker's end of a capture: copies of packets, before and after the balancer has had them, for
//! management. Without one a burst costs a branch. It never waits: what finds no room is counted.

use std::sync::Arc;

use crate::lb::bucket::Bucket;
use crate::lb::capture::{Copied, Ends, Filter, Record};
use crate::lb::counters::Counter;
use crate::lb::exits::Decided;
use crate::lb::snapshot::Snapshot;
use crate::lb::{MAX_BURST, Now, Verdict};
use crate::port::Mbuf;
use crate::port::ring::{Consumer, Producer};

/// What a worker counts of a capture.
#[derive(Debug, Default)]
pub struct Totals {
    /// Packets that were wanted.
    pub wanted: Counter,
    /// Those of them that were not copied, because their rate was too high.
    pub skipped: Counter,
    /// Those that found no free record.
    pub lost: Counter,
}

/// Copies what a filter wants.
pub struct Tap {
    filter: Filter,
    /// Empty records from management, and full ones to it.
    free: Consumer<Box<Record>>,
    full: Producer<Box<Record>>,
    rate: Bucket,
    totals: Arc<Totals>,
    /// The burst's frames as they came.
    before: Box<[(Option<Ends>, Copied)]>,
}

impl Tap {
    /// `bytes` of each frame are copied, and `rate` packets a second.
    pub fn new(
        filter: Filter,
        bytes: usize,
        rate: u32,
        free: Consumer<Box<Record>>,
        full: Producer<Box<Record>>,
        totals: Arc<Totals>,
    ) -> Self {
        let room = || (None, Copied::with_room(bytes));
        Self {
            filter,
            free,
            full,
            rate: Bucket::new(rate),
            totals,
            before: std::iter::repeat_with(room).take(MAX_BURST).collect(),
        }
    }

    /// Keeps the frames as they came.
    #[cold]
    #[inline(never)]
    pub fn before(&mut self, frames: &[Mbuf]) {
        for ((ends, copied), frame) in self.before.iter_mut().zip(frames) {
            *ends = Ends::of(frame.bytes());
            copied.copy(frame.bytes());
        }
    }

    /// Sends copies of those that are wanted, now that it is known what becomes of them.
    #[cold]
    #[inline(never)]
    pub fn after(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frames: &[Mbuf],
        verdicts: &[Verdict],
        decided: &Decided,
    ) {
        // Whoever decides about it captures it, so those for other workers are left out.
        let own = (0..MAX_BURST).filter(|index| decided.elsewhere >> index & 1 == 0);
        for (index, (frame, &verdict)) in own.zip(frames.iter().zip(verdicts)) {
            if matches!(verdict, Verdict::HandOff(_) | Verdict::Hold(_)) {
                continue;
            }
            let before = self.before[index].0;
            let after = Ends::of(frame.bytes());
            if self.filter.wants(snapshot, before, after, verdict) {
                self.send(index, now, frame, verdict);
            }
        }
    }

    fn send(&mut self, index: usize, now: Now, frame: &Mbuf, verdict: Verdict) {
        self.totals.wanted.add(1);
        if !self.rate.take(now) {
            return self.totals.skipped.add(1);
        }
        let Some(mut record) = self.free.pop() else {
            return self.totals.lost.add(1);
        };
        record.nanos = now.nanos;
        record.arrival = frame.port();
        record.verdict = verdict;
        std::mem::swap(&mut record.before, &mut self.before[index].1);
        record.after.copy(frame.bytes());
        // There are no more records than the ring has room for.
        let _ = self.full.push(record);
    }
}
