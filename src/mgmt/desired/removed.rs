//! Backends that left the configuration: their ids stay theirs while a connection may name them.
//! Management thread.

use super::config::{Config, Service};
use super::places::Places;
use super::{BackendKey, Desired};
use crate::lb::snapshot::{Backend, BackendId, BackendState};

/// A backend that is out of the configuration.
#[derive(Clone, Debug)]
pub struct Removed {
    /// As it was, but for its state.
    backend: Backend,
    key: BackendKey,
    /// The first snapshot that has it as removed; before that is built, and while a worker uses an
    /// older one, it gets new connections.
    since: Option<u64>,
}

impl Desired {
    /// Everything of `before`, whose places are `places`, that is not configured any more.
    pub(super) fn remove_missing(&mut self, before: &Config, places: &Places) {
        for (named, service) in places.iter().zip(&before.services) {
            for (id, key) in named.all().zip(keys(service)) {
                if self.places.of_backend(id).is_none() {
                    self.remove(id, key);
                }
            }
        }
        let places = &self.places;
        self.removed
            .retain(|&id, _| places.of_backend(id).is_none());
    }

    fn remove(&mut self, id: BackendId, key: BackendKey) {
        self.changed.backends.insert(id);
        // What no snapshot has had no worker knows.
        let Some(backend) = self.last.backend(id) else {
            return self.forget(id, &key);
        };
        let backend = Backend {
            state: BackendState::Removed,
            ..backend.clone()
        };
        let since = None;
        let removed = Removed {
            backend,
            key,
            since,
        };
        self.removed.insert(id, removed);
    }

    fn forget(&mut self, id: BackendId, key: &BackendKey) {
        self.down.remove(&id);
        self.checked_weights.remove(&id);
        self.weights.remove(&id);
        self.backends.free(key);
        self.changed.backends.insert(id);
    }

    /// What a snapshot of this generation has under the id of a removed backend.
    pub(super) fn build_removed(&mut self, id: BackendId, generation: u64) -> Option<Backend> {
        let removed = self.removed.get_mut(&id)?;
        removed.since.get_or_insert(generation);
        Some(removed.backend.clone())
    }

    /// Forgets removed backends for which `has_connections` no longer holds, and frees their ids.
    /// True where there are any. `in_use`: the oldest generation that a worker still goes by.
    pub fn collect_removed(
        &mut self,
        in_use: u64,
        has_connections: impl Fn(BackendId) -> bool,
    ) -> bool {
        let is_done = |(id, removed): &(&BackendId, &Removed)| {
            removed.since.is_some_and(|since| since <= in_use) && !has_connections(**id)
        };
        let done: Vec<BackendId> = self.removed.iter().filter(is_done).map(|r| *r.0).collect();
        for &id in &done {
            if let Some(removed) = self.removed.remove(&id) {
                self.forget(id, &removed.key);
            }
        }
        !done.is_empty()
    }

    /// Removed backends that still have connections.
    pub fn removed(&self) -> impl Iterator<Item = &Backend> {
        self.removed.values().map(|removed| &removed.backend)
    }

    /// Those of one service.
    pub fn removed_of(&self, service: &Service) -> impl Iterator<Item = &Backend> {
        let id = self.find_service(service);
        self.removed().filter(move |b| Some(b.service) == id)
    }
}

/// The keys of all that a service names, in the order of [`super::places::Named::all`].
fn keys(service: &Service) -> impl Iterator<Item = BackendKey> {
    let backends = service.backends.iter();
    let keys = backends.map(|b| BackendKey::of(service, b));
    keys.chain(BackendKey::sorry(service))
}
