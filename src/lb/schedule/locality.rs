//! lblc and lblcr: one destination stays with one server, or a few, for the sake of their caches.

use super::super::snapshot::Backend;
use super::locality_table::{LocalityTable, MEMBERS};
use super::{Field, Request, least};

/// Seconds without a change after which a set of several servers loses one.
const SHRINK_AFTER: u32 = 24 * 3600;

/// Destination to server: kept while it can take connections and is not crowded, else the wlc
/// pick takes its place.
pub(super) fn lblc<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
    table: &mut LocalityTable,
    request: &Request,
) -> Option<&'s Backend> {
    let entry = table.entry(field.service.id, request);
    let known = entry
        .as_ref()
        .and_then(|e| field.by_id(*e.members().first()?));
    if let Some(backend) = known.filter(|b| !is_crowded(field, b)) {
        return Some(backend);
    }
    let backend = least::wlc(field)?;
    if let Some(entry) = entry {
        entry.clear();
        entry.add(backend.id, request.second);
    }
    Some(backend)
}

/// Destination to a set of servers: the least loaded of them; a crowded set grows by the wlc
/// pick, and one that has not changed for long loses its most loaded.
pub(super) fn lblcr<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
    table: &mut LocalityTable,
    request: &Request,
) -> Option<&'s Backend> {
    let Some(entry) = table.entry(field.service.id, request) else {
        return least::wlc(field);
    };
    let mut members = [(None, 0); MEMBERS];
    let count = entry.members().len();
    for (member, &id) in members.iter_mut().zip(entry.members()) {
        *member = (field.by_id(id), id.0);
    }
    let able = members[..count].iter().filter_map(|(backend, _)| *backend);
    let lightest = able
        .clone()
        .reduce(|a, b| if is_lighter(field, b, a) { b } else { a });
    if count > 1 && request.second.wrapping_sub(entry.changed()) > SHRINK_AFTER {
        // A member that is out goes before the most loaded.
        let out = members[..count]
            .iter()
            .find(|(backend, _)| backend.is_none());
        let heaviest = able.reduce(|a, b| if is_lighter(field, a, b) { b } else { a });
        let goes = out.map(|(_, id)| *id).or(heaviest.map(|b| b.id.0));
        if let Some(id) = goes {
            entry.drop_member(super::BackendId(id), request.second);
        }
    }
    if let Some(backend) = lightest.filter(|b| !is_crowded(field, b)) {
        return Some(backend);
    }
    let backend = least::wlc(field)?;
    entry.add(backend.id, request.second);
    Some(backend)
}

fn is_lighter<U: Fn(&Backend) -> bool>(field: &Field<'_, '_, U>, a: &Backend, b: &Backend) -> bool {
    let cost = |backend: &Backend| u128::from(field.load(backend.id).overhead());
    cost(a) * u128::from(b.weight) < cost(b) * u128::from(a.weight)
}

/// More active connections than its weight while some server has fewer than half of its own.
/// Each worker has its part of both.
fn is_crowded<U: Fn(&Backend) -> bool>(field: &Field<'_, '_, U>, backend: &Backend) -> bool {
    let workers = u64::from(field.place.workers);
    let active = |id| field.load(id).active * workers;
    active(backend.id) > u64::from(backend.weight)
        && field
            .candidates()
            .iter()
            .any(|c| 2 * active(c.id) < u64::from(c.weight))
}
