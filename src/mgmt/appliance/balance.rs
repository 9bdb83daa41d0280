//! Every packet accounted for, over all workers. Reads counters only.

use std::sync::Arc;

use crate::lb::counters::{Counter, DropReason, WorkerCounters};
use crate::mgmt::workers::WorkerLink;

/// The balance of packets over all workers, at one moment.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Balance {
    pub received: u64,
    pub generated: u64,
    pub transmitted: u64,
    pub dropped: u64,
    pub passed: u64,
    pub handed_off: u64,
    pub taken_over: u64,
}

impl Balance {
    pub fn of(workers: &[WorkerLink]) -> Self {
        let sum = |read: fn(&WorkerLink) -> u64| workers.iter().map(read).sum();
        Self {
            received: sum(|w| w.counters.received.get()),
            generated: sum(|w| w.counters.generated.get()),
            transmitted: sum(|w| w.counters.transmitted.get()),
            dropped: sum(|w| w.counters.dropped_total()),
            passed: sum(|w| w.counters.passed.get()),
            handed_off: sum(|w| w.counters.handed_off.get()),
            taken_over: sum(|w| w.counters.taken_over.get()),
        }
    }

    /// What came in or was made went somewhere, to the last packet.
    pub fn adds_up(&self) -> bool {
        self.received + self.generated + self.taken_over
            == self.transmitted + self.dropped + self.passed + self.handed_off
            && self.handed_off == self.taken_over
    }
}

/// The balance of workers that have ended.
pub(super) fn sum(workers: &[Arc<WorkerCounters>]) -> Balance {
    let sum = |read: fn(&WorkerCounters) -> &Counter| workers.iter().map(|w| read(w).get()).sum();
    Balance {
        received: sum(|w| &w.received),
        generated: sum(|w| &w.generated),
        transmitted: sum(|w| &w.transmitted),
        dropped: workers.iter().map(|w| w.dropped_total()).sum(),
        passed: sum(|w| &w.passed),
        handed_off: sum(|w| &w.handed_off),
        taken_over: sum(|w| &w.taken_over),
    }
}

/// Drops by reason over all workers, the largest first.
pub fn drops(workers: &[WorkerLink]) -> Vec<(DropReason, u64)> {
    let total = |reason: DropReason| {
        let of = |w: &WorkerLink| w.counters.dropped[reason as usize].get();
        workers.iter().map(of).sum::<u64>()
    };
    let mut drops: Vec<_> = DropReason::ALL.iter().map(|&r| (r, total(r))).collect();
    drops.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    drops
}
