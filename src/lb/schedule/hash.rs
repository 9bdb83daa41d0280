//! mh, sh and dh: the consistent hash, which also serves every scheduler under a flood.
//!
//! All three look into the service's Maglev table: any weights get their share, where a table of
//! 256 buckets would leave the last servers without.

use super::super::maglev::mix;
use super::super::snapshot::{Backend, BackendId, Scheduler, Service, Snapshot};
use super::{Field, Request};

/// The owner of the request's slot. When it cannot take the connection, mh turns to another; sh
/// and dh do so only where the service says `hash_fallback`.
pub(super) fn pick<'s, U: Fn(&Backend) -> bool>(
    field: &Field<'s, '_, U>,
    request: &Request,
) -> Option<&'s Backend> {
    let candidates = Candidates {
        snapshot: field.snapshot,
        ids: &field.service.backends,
    };
    let hash = request.hash(field.service.scheduler);
    let can = |backend: &Backend| field.can_take(backend) && backend.is_eligible();
    if field.service.scheduler == Scheduler::Maglev || field.service.hash_fallback {
        return by_hash(field.service, &candidates, hash, can);
    }
    let owner = field.service.maglev.get(hash)?;
    candidates.get(owner as usize).filter(|b| can(b))
}

/// The consistent hash; when the owner of the slot is not usable, a chain of other slots that
/// depends on the flow alone, so that its clients spread over all others and come back with it.
pub fn by_hash<'s>(
    service: &Service,
    candidates: &Candidates<'s, '_>,
    hash: u64,
    usable: impl Fn(&Backend) -> bool,
) -> Option<&'s Backend> {
    const TRIES: usize = 32;
    let mut slot = hash;
    for _ in 0..TRIES {
        let backend = service
            .maglev
            .get(slot)
            .and_then(|m| candidates.get(m as usize));
        if let Some(backend) = backend.filter(|b| usable(b)) {
            return Some(backend);
        }
        slot = mix(slot.wrapping_add(0x9e37_79b9_7f4a_7c15));
    }
    // Nearly all are out: the one that rendezvous hashing ranks highest.
    candidates
        .iter()
        .filter(|b| usable(b))
        .max_by_key(|b| mix(hash ^ u64::from(b.id.0)))
}

/// A service's backends in the configuration's order.
pub struct Candidates<'s, 'i> {
    pub snapshot: &'s Snapshot,
    pub ids: &'i [BackendId],
}

impl<'s> Candidates<'s, '_> {
    pub fn get(&self, at: usize) -> Option<&'s Backend> {
        self.snapshot.backend(*self.ids.get(at)?)
    }

    pub fn iter(&self) -> impl Iterator<Item = &'s Backend> {
        self.ids.iter().filter_map(|&id| self.snapshot.backend(id))
    }
}
