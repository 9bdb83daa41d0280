//! The next snapshot, from everything that [`Desired`] knows. Runs on the management thread.

use std::sync::Arc;

use super::addresses::{Links, is_two_way, listen};
use super::*;
use crate::lb::service_map::ServiceMap;
use crate::lb::snapshot::*;
use crate::lb::weights::Weights;
use crate::mgmt::net::NetState;

/// New flows a second on one worker that are taken for a flood, unless configured.
const FLOOD_GUARD: u32 = 100_000;

impl Desired {
    /// The next generation, complete.
    pub fn build(&mut self, net: &NetState) -> Snapshot {
        self.generation += 1;
        let links = Links::new(net, &self.ports);
        let config = std::mem::take(&mut self.config.services);
        let mut services: Vec<Option<Service>> = Vec::new();
        let mut backends: Vec<Option<Backend>> = Vec::new();
        let mut listens = Vec::new();
        for service in &config {
            let id = ServiceId(self.services.get(&service.name));
            let ids: Vec<BackendId> = service
                .backends
                .iter()
                .map(|backend| {
                    let built = self.build_backend(service, backend, id, net, &links);
                    let id = built.id;
                    put(&mut backends, id.0, built);
                    id
                })
                .collect();
            let sorry = self.build_sorry_server(service, id, net, &links);
            listens.extend(service.listen.iter().map(|l| (listen(l), id)));
            put(
                &mut services,
                id.0,
                self.build_service(service, id, ids, sorry.as_ref()),
            );
            if let Some(sorry) = sorry {
                put(&mut backends, sorry.id.0, sorry);
            }
        }
        for gone in self.removed.values() {
            put(&mut backends, gone.id.0, gone.clone());
        }
        let backends: Chunked<Option<Backend>> = backends.into_iter().collect();
        for service in services.iter_mut().flatten() {
            service.weights = Arc::new(Weights::of(&service.backends, &backends));
        }
        self.config.services = config;
        let service_map = ServiceMap::new(listens);
        let own = self.own_addresses(&service_map);
        let sides = self.sides();
        Snapshot {
            generation: self.generation,
            two_way: self.config.services.iter().any(is_two_way),
            services: services.into_iter().map(|s| s.map(Arc::new)).collect(),
            backends,
            service_map: Arc::new(service_map),
            ports: self
                .ports
                .iter()
                .enumerate()
                .map(|(index, p)| PortView {
                    mac: p.mac,
                    mtu: p.mtu,
                    queues: self.queues.get(index).copied().flatten(),
                })
                .collect(),
            vlans: Arc::new(self.vlans()),
            routes: Arc::new(self.routes(&links)),
            own: Arc::new(own),
            checks: Arc::new(self.check_addresses()),
            ownership: self.ownership,
            sides: Arc::new(sides),
            locals: self.locals.as_slice().into(),
            flood_guard: self.config.workers.flood_guard.unwrap_or(FLOOD_GUARD),
        }
    }
}

fn put<T>(values: &mut Vec<Option<T>>, id: u32, value: T) {
    let index = id as usize;
    if values.len() <= index {
        values.resize_with(index + 1, || None);
    }
    values[index] = Some(value);
}
