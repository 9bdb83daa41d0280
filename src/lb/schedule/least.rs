//! lc, wlc, sed and nq: who has the least to do.
//!
//! Each worker compares its own counts. A tie goes to the first in the list, seen from this
//! worker's start: were that the same for all, each would give the first backends its odd flow.

use super::super::snapshot::Backend;
use super::{Field, Load};

/// The least `cost / weight`, compared without division.
fn least<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
    cost: impl Fn(Load) -> u64,
    weighted: bool,
) -> Option<&'s Backend> {
    let mut best: Option<(&Backend, u64, u64)> = None;
    for candidate in field.in_turn().filter(|c| c.weight > 0) {
        let cost = cost(field.load(candidate.id));
        let weight = if weighted {
            u64::from(candidate.weight)
        } else {
            1
        };
        let better = best.is_none_or(|(_, best_cost, best_weight)| {
            u128::from(cost) * u128::from(best_weight) < u128::from(best_cost) * u128::from(weight)
        });
        // Only who would win is looked at closely.
        if better && let Some(backend) = field.take(candidate) {
            best = Some((backend, cost, weight));
        }
    }
    best.map(|(backend, ..)| backend)
}

pub(super) fn lc<'s, U: Fn(&Backend) -> bool>(field: &Field<'s, '_, U>) -> Option<&'s Backend> {
    least(field, Load::overhead, false)
}

pub(super) fn wlc<'s, U: Fn(&Backend) -> bool>(field: &Field<'s, '_, U>) -> Option<&'s Backend> {
    least(field, Load::overhead, true)
}

/// The shortest expected delay: as if the connection were there already.
pub(super) fn sed<'s, U: Fn(&Backend) -> bool>(field: &Field<'s, '_, U>) -> Option<&'s Backend> {
    least(field, |load| load.active + 1, true)
}

/// The first that is idle; when all are busy, sed.
pub(super) fn nq<'s, U: Fn(&Backend) -> bool>(field: &Field<'s, '_, U>) -> Option<&'s Backend> {
    let idle = field
        .in_turn()
        .filter(|c| c.weight > 0 && field.load(c.id).active == 0)
        .find_map(|c| field.take(c));
    idle.or_else(|| sed(field))
}
