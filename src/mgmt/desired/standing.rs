//! How each backend stands: what checks, drains and feedback say of it, and whether the services
//! have enough of them. Plain state on the management thread; it reads no clock.

use std::time::Instant;

use super::Desired;
use super::config::{Backend, Service, SorryServer};
use crate::lb::snapshot::BackendId;
use crate::mgmt::quorum::{self, QuorumChange};

impl Desired {
    /// Backends of a service that take new connections, as far as checks and operators go.
    pub fn count_up(&self, service: &Service) -> u32 {
        let id = self.find_service(service);
        let place = id.and_then(|id| self.places.of_service(id));
        place.map_or(0, |place| self.count_up_at(place))
    }

    fn count_up_at(&self, place: usize) -> u32 {
        let backends = &self.config.services[place].backends;
        let is_up = |(id, backend): &(&BackendId, &Backend)| {
            !backend.drain && self.base_weight(**id, backend) > 0 && !self.is_down(**id)
        };
        let all = self.places[place].backends.iter().zip(backends);
        all.filter(is_up).count() as u32
    }

    /// Whether a service has backends enough, by the last [`Desired::look_at_quorums`].
    pub fn quorum_is_met(&self, service: &Service) -> bool {
        let id = self.find_service(service);
        let met = id.and_then(|id| self.quorum_met.get(&id));
        met.copied().unwrap_or(true)
    }

    /// Counts the backends of the services that have changed. What a service has at first is no
    /// change.
    pub fn look_at_quorums(&mut self) -> Vec<QuorumChange> {
        let mut changes = Vec::new();
        for &id in &self.changed.services {
            let Some(place) = self.places.of_service(id) else {
                continue;
            };
            let service = &self.config.services[place];
            let quorum = service.quorum.as_ref().unwrap_or(&quorum::LEAST);
            let before = self.quorum_met.get(&id).copied();
            let up = self.count_up_at(place);
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
            self.quorum_met.insert(id, met);
        }
        changes
    }

    /// The sorry server of the service at this place, while it is needed.
    pub(super) fn sorry_in_force(&self, place: usize) -> Option<&SorryServer> {
        let met = self.quorum_met.get(&self.places[place].id).copied();
        let sorry = self.config.services[place].sorry_server.as_ref();
        sorry.filter(|_| met == Some(false))
    }

    /// What checks say of a backend; true where that is news.
    pub fn set_down(&mut self, id: BackendId, down: bool) -> bool {
        let is_news = match down {
            true => self.down.insert(id),
            false => self.down.remove(&id),
        };
        self.change(id, is_news)
    }

    /// The backends that an operator drains.
    pub fn drained(&self) -> impl Iterator<Item = (BackendId, &Service, &Backend)> {
        self.places.drained().iter().map(|&(place, index)| {
            let (named, service) = (&self.places[place], &self.config.services[place]);
            (named.backends[index], service, &service.backends[index])
        })
    }

    /// Whether a drained backend's deadline has passed.
    pub fn drain_is_over(&self, id: BackendId) -> bool {
        self.drains.is_over(id)
    }

    pub fn is_down(&self, id: BackendId) -> bool {
        self.down.contains(&id)
    }

    /// Looks for drains whose deadline has passed; true where there is one.
    pub fn look_at_drains(&mut self, now: Instant) -> bool {
        let deadline = |&(place, index): &(usize, usize)| {
            let id = self.places[place].backends[index];
            (id, self.config.services[place].drain_timeout)
        };
        let drained = self.places.drained().iter().map(deadline);
        let news = self.drains.look(now, drained);
        for &id in &news {
            self.change(id, true);
        }
        !news.is_empty()
    }

    /// A weight that a check found, in place of the configured one until `None` is set.
    pub fn set_checked_weight(&mut self, id: BackendId, weight: Option<u16>) -> bool {
        let is_news = match weight.map(u32::from) {
            Some(weight) => self.checked_weights.insert(id, weight) != Some(weight),
            None => self.checked_weights.remove(&id).is_some(),
        };
        self.change(id, is_news)
    }

    /// The configured weight, or what a check found in its place.
    pub fn base_weight(&self, id: BackendId, backend: &Backend) -> u32 {
        let checked = self.checked_weights.get(&id).copied();
        checked.unwrap_or(u32::from(backend.weight))
    }

    /// A weight in force in place of the base weight, until `None` is set.
    pub fn set_weight(&mut self, id: BackendId, weight: Option<u32>) -> bool {
        let is_news = match weight {
            Some(weight) => self.weights.insert(id, weight) != Some(weight),
            None => self.weights.remove(&id).is_some(),
        };
        self.change(id, is_news)
    }

    /// The weight that the scheduler goes by.
    pub(super) fn weight_in_force(&self, id: BackendId, backend: &Backend) -> u32 {
        let led = self.weights.get(&id).copied();
        led.unwrap_or_else(|| self.base_weight(id, backend))
    }
}
