//! rr and wrr: backends take turns. Workers' cursors start evenly spread.

use super::super::snapshot::Backend;
use super::{Field, Place};

/// Where a service's round robin stands on this worker.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Cursor {
    /// Position after the last pick.
    next: u32,
    /// wrr's current weight; 0 before the first pick.
    weight: u32,
    started: bool,
}

impl Cursor {
    /// Makes the cursor fit a list of `count`, which may have changed since the last pick.
    fn settle(&mut self, place: Place, count: usize) {
        if !self.started {
            (self.started, self.next) = (true, place.start(count) as u32);
        }
        if self.next as usize > count {
            self.next = 0;
        }
    }
}

/// The next in list order that can take it.
pub(super) fn round_robin<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
    cursor: &mut Cursor,
) -> Option<&'s Backend> {
    let candidates = field.candidates();
    let count = candidates.len();
    cursor.settle(field.place, count);
    let from = cursor.next as usize;
    for at in (from..count).chain(0..from) {
        if let Some(backend) = field.take(&candidates[at]) {
            cursor.next = (at + 1) as u32;
            return Some(backend);
        }
    }
    None
}

/// IPVS's wrr: scan on for a weight of at least `cw`, which falls by the weights' gcd each time
/// the list wraps. Weights 4,3,2 give A AB ABC ABC.
pub(super) fn weighted_round_robin<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
    cursor: &mut Cursor,
) -> Option<&'s Backend> {
    let weights = &field.service.weights;
    let candidates = field.candidates();
    let (step, heaviest) = (weights.gcd(), weights.heaviest());
    if heaviest == 0 {
        return None;
    }
    cursor.settle(field.place, candidates.len());
    if cursor.weight == 0 || cursor.weight > heaviest {
        cursor.weight = heaviest;
    }
    // Among multiples of `step` the same weights qualify, and after a change of weights the
    // cycle is in step again.
    if step > 1 {
        cursor.weight = cursor.weight.next_multiple_of(step);
    }
    let mut is_full_pass = cursor.next == 0;
    loop {
        while let Some(candidate) = candidates.get(cursor.next as usize) {
            cursor.next += 1;
            if candidate.weight >= cursor.weight
                && let Some(backend) = field.take(candidate)
            {
                return Some(backend);
            }
        }
        cursor.next = 0;
        cursor.weight = if cursor.weight > step {
            cursor.weight - step
        } else {
            heaviest
        };
        if is_full_pass {
            // Passes down to the heaviest that can take it would find nobody, and might be many.
            let able = candidates.iter().filter(|c| field.take(c).is_some());
            cursor.weight = cursor.weight.min(able.map(|c| c.weight).max()?);
        }
        is_full_pass = true;
    }
}
