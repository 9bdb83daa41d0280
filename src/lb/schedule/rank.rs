//! fo and ovf: by rank. The order is the same on every worker, or a spare would serve while the
//! first choice is well.

use super::super::snapshot::Backend;
use super::super::weights::Candidate;
use super::Field;

/// The heaviest of those that pass and can take it; the first in the list wins a tie.
fn heaviest<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
    pass: impl Fn(&Candidate) -> bool,
) -> Option<&'s Backend> {
    let mut best: Option<(&Backend, u32)> = None;
    for candidate in field.candidates() {
        if candidate.weight > best.map_or(0, |(_, weight)| weight)
            && pass(candidate)
            && let Some(backend) = field.take(candidate)
        {
            best = Some((backend, candidate.weight));
        }
    }
    best.map(|(backend, _)| backend)
}

/// The heaviest that is well.
pub(super) fn failover<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
) -> Option<&'s Backend> {
    heaviest(field, |_| true)
}

/// The heaviest with fewer active connections than its weight, of which each worker has its part.
pub(super) fn overflow<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
) -> Option<&'s Backend> {
    heaviest(field, |candidate| {
        field.load(candidate.id).active < field.place.share(candidate.weight)
    })
}
