//! The next snapshot, from everything that [`Desired`] knows: what has changed is built anew, and
//! the rest shared with the snapshot before. Runs on the management thread.

use std::sync::Arc;

use super::addresses::{is_two_way, listen};
use super::changed::Changed;
use super::{Desired, PortFacts};
use crate::lb::service_map::ServiceMap;
use crate::lb::snapshot::{PortView, Snapshot};
use crate::lb::weights::Weights;
use crate::mgmt::net::NetState;

/// New flows a second on one worker that are taken for a flood, unless configured.
pub const FLOOD_GUARD: u32 = 100_000;

impl Desired {
    /// The next generation, complete.
    pub fn build(&mut self, net: &NetState) -> Arc<Snapshot> {
        self.follow(net);
        let changed = std::mem::take(&mut self.changed);
        let mut next = Snapshot::clone(&self.last);
        next.generation += 1;
        next.ownership = self.ownership;
        next.backends.grow(self.backends.end() as usize);
        next.services.grow(self.services.end() as usize);
        for &id in &changed.backends {
            let removed = self.build_removed(id, next.generation);
            next.backends.set(id, removed);
        }
        for &id in &changed.services {
            match self.places.of_service(id) {
                Some(place) => self.build_service_with_backends(place, net, &mut next),
                None => next.services.set(id.0, None),
            }
        }
        self.build_common(&changed, net, &mut next);
        self.last = Arc::new(next);
        Arc::clone(&self.last)
    }

    /// The service at this place, its backends and its sorry server.
    fn build_service_with_backends(&mut self, place: usize, net: &NetState, next: &mut Snapshot) {
        let key = self.table_key(place);
        let maglev = self.tables.table_now(&key);
        let named = &self.places[place];
        for (index, &id) in named.backends.iter().enumerate() {
            let backend = self.build_backend(place, index, net);
            next.backends.set(id, Some(backend));
        }
        let sorry = self.build_sorry_server(place, net);
        let mut service = self.build_service(place, maglev, sorry.as_ref());
        if let Some(sorry) = sorry {
            next.backends.set(sorry.id, Some(sorry));
        }
        service.weights = Arc::new(Weights::of(&service.backends, &next.backends));
        next.services.set(service.id.0, Some(Arc::new(service)));
    }

    /// What is made of all services, ports or neighbours together.
    fn build_common(&self, changed: &Changed, net: &NetState, next: &mut Snapshot) {
        if changed.config {
            let services = self.places.iter().zip(&self.config.services);
            let listens = services.flat_map(|(named, service)| {
                let of_service = service.listen.iter();
                of_service.map(|l| (listen(l), named.id))
            });
            let map = ServiceMap::new(listens);
            next.own = Arc::new(self.own_addresses(&map));
            next.service_map = Arc::new(map);
            next.checks = Arc::new(self.check_addresses());
            next.sides = Arc::new(self.sides());
            next.fronts = Arc::new(self.fronts());
            next.two_way = self.config.services.iter().any(is_two_way);
            next.locals = self.locals.as_slice().into();
            next.flood_guard = self.config.workers.flood_guard.unwrap_or(FLOOD_GUARD);
        }
        if changed.ports {
            let view = |(index, port): (usize, &PortFacts)| PortView {
                mac: port.mac,
                mtu: port.mtu,
                queues: self.queues.get(index).copied().flatten(),
            };
            next.ports = self.ports.iter().enumerate().map(view).collect();
            next.vlans = Arc::new(self.vlans());
        }
        if changed.links {
            next.routes = Arc::new(self.routes(net));
        }
    }
}
