//! How each backend stands: what checks, drains and feedback say of it, and whether the services
//! have enough of them. Plain state on the management thread; it reads no clock.

use std::time::Instant;

use super::*;
use crate::mgmt::quorum::{self, QuorumChange};

impl Desired {
    /// Backends of a service that take new connections, as far as checks and operators go.
    pub fn count_up(&self, service: &config::Service) -> u32 {
        let is_up = |backend: &&config::Backend| {
            let id = self.find_backend(service, backend);
            let weight = id.map_or(0, |id| self.base_weight(id, backend));
            weight > 0 && !backend.drain && id.is_some_and(|id| !self.is_down(id))
        };
        service.backends.iter().filter(is_up).count() as u32
    }

    /// Whether a service has backends enough, by the last [`Desired::look_at_quorums`].
    pub fn quorum_is_met(&self, service: &config::Service) -> bool {
        self.quorum_met.get(&service.name).copied().unwrap_or(true)
    }

    /// Counts the services' backends anew. What a service has at first is no change.
    pub fn look_at_quorums(&mut self) -> Vec<QuorumChange> {
        let mut changes = Vec::new();
        for service in &self.config.services {
            let quorum = service.quorum.as_ref().unwrap_or(&quorum::LEAST);
            let before = self.quorum_met.get(&service.name).copied();
            let up = self.count_up(service);
            let met = quorum::is_met(quorum, before, up);
            if before.is_some_and(|before| before != met) {
                changes.push(QuorumChange {
                    service: service.name.clone(),
                    met,
                    up,
                    needed: quorum.backends,
                    backends: service.backends.len(),
                    has_sorry_server: service.sorry_server.is_some(),
                });
            }
            self.quorum_met.insert(service.name.clone(), met);
        }
        changes
    }

    /// What checks say of a backend; true where that is news.
    pub fn set_down(&mut self, id: BackendId, down: bool) -> bool {
        match down {
            true => self.down.insert(id),
            false => self.down.remove(&id),
        }
    }

    /// Looks for drains whose deadline has passed; true where there is one.
    pub fn look_at_drains(&mut self, now: Instant) -> bool {
        let drained = self.drained();
        let drained: Vec<_> = drained
            .map(|(id, service, _)| (id, service.drain_timeout))
            .collect();
        self.drains.look(now, drained)
    }

    /// The backends that are drained.
    pub fn drained(&self) -> impl Iterator<Item = (BackendId, &config::Service, &config::Backend)> {
        let drained = self.each_backend().filter(|(_, backend)| backend.drain);
        drained.filter_map(|(service, backend)| {
            Some((self.find_backend(service, backend)?, service, backend))
        })
    }

    /// Whether a drained backend's deadline has passed.
    pub fn drain_is_over(&self, id: BackendId) -> bool {
        self.drains.is_over(id)
    }

    pub fn is_down(&self, id: BackendId) -> bool {
        self.down.contains(&id)
    }

    /// A weight that a check found, in place of the configured one until `None` is set.
    pub fn set_checked_weight(&mut self, id: BackendId, weight: Option<u16>) -> bool {
        match weight.map(u32::from) {
            Some(weight) => self.checked_weights.insert(id, weight) != Some(weight),
            None => self.checked_weights.remove(&id).is_some(),
        }
    }

    /// The configured weight, or what a check found in its place.
    pub fn base_weight(&self, id: BackendId, backend: &config::Backend) -> u32 {
        let checked = self.checked_weights.get(&id).copied();
        checked.unwrap_or(u32::from(backend.weight))
    }

    /// A weight in force in place of the base weight, until `None` is set.
    pub fn set_weight(&mut self, id: BackendId, weight: Option<u32>) -> bool {
        match weight {
            Some(weight) => self.weights.insert(id, weight) != Some(weight),
            None => self.weights.remove(&id).is_some(),
        }
    }

    pub(super) fn sorry_in_force<'a>(
        &self,
        service: &'a config::Service,
    ) -> Option<&'a config::SorryServer> {
        let sorry = service.sorry_server.as_ref();
        sorry.filter(|_| !self.quorum_is_met(service))
    }

    /// The weight that the scheduler goes by.
    pub(super) fn weight_in_force(&self, id: BackendId, backend: &config::Backend) -> u32 {
        let led = self.weights.get(&id).copied();
        led.unwrap_or_else(|| self.base_weight(id, backend))
    }
}
