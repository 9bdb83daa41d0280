//! Where in the configuration the ids stand, so that a change finds its service at once among ten
//! thousand. Made anew for each configuration; plain data on the management thread.

use std::net::IpAddr;
use std::ops::Index;

use super::config::{Config, Service};
use super::ids::{BackendKey, Ids};
use crate::lb::snapshot::{BackendId, ServiceId};

/// The ids of a service and of what it names.
#[derive(Clone, Debug)]
pub struct Named {
    pub id: ServiceId,
    /// In the configuration's order.
    pub backends: Vec<BackendId>,
    pub sorry: Option<BackendId>,
}

impl Named {
    fn new(service: &Service, id: ServiceId, ids: &mut Ids<BackendKey>) -> Self {
        let backends = service.backends.iter();
        Self {
            id,
            backends: backends
                .map(|b| BackendId(ids.get(BackendKey::of(service, b))))
                .collect(),
            sorry: BackendKey::sorry(service).map(|key| BackendId(ids.get(key))),
        }
    }

    pub fn all(&self) -> impl Iterator<Item = BackendId> {
        self.backends.iter().copied().chain(self.sorry)
    }
}

/// A place is the index of a service in the configuration; `places[place]` has its ids.
#[derive(Clone, Debug, Default)]
pub struct Places {
    named: Vec<Named>,
    /// Places by service and by backend id.
    services: Vec<Option<u32>>,
    backends: Vec<Option<u32>>,
    /// Every address of a backend or sorry server with its place, sorted.
    addresses: Vec<(IpAddr, u32)>,
    /// Backends that an operator drains: the place, and the index there.
    drained: Vec<(usize, usize)>,
}

impl Index<usize> for Places {
    type Output = Named;

    fn index(&self, place: usize) -> &Named {
        &self.named[place]
    }
}

impl Places {
    pub fn new(
        config: &Config,
        services: &mut Ids<String>,
        backends: &mut Ids<BackendKey>,
    ) -> Self {
        let mut places = Self::default();
        for service in &config.services {
            let id = ServiceId(services.get(service.name.clone()));
            places.named.push(Named::new(service, id, backends));
        }
        places.services = vec![None; services.end() as usize];
        places.backends = vec![None; backends.end() as usize];
        for (place, (named, service)) in (0..).zip(places.named.iter().zip(&config.services)) {
            places.services[named.id.0 as usize] = Some(place);
            for id in named.all() {
                places.backends[id.0 as usize] = Some(place);
            }
            let sorry = service.sorry_server.iter().map(|sorry| sorry.address);
            let addresses = service.backends.iter().map(|b| b.address).chain(sorry);
            places.addresses.extend(addresses.map(|a| (a, place)));
            let drained = service.backends.iter().enumerate();
            let drained = drained.filter(|(_, backend)| backend.drain);
            let drained = drained.map(|(index, _)| (place as usize, index));
            places.drained.extend(drained);
        }
        places.addresses.sort_unstable();
        places
    }

    pub fn of_service(&self, id: ServiceId) -> Option<usize> {
        place(&self.services, id.0)
    }

    pub fn of_backend(&self, id: BackendId) -> Option<usize> {
        place(&self.backends, id.0)
    }

    /// Services that have a backend at this address.
    pub fn of_address(&self, address: IpAddr) -> impl Iterator<Item = &Named> {
        let from = self.addresses.partition_point(|(a, _)| *a < address);
        let all = self.addresses[from..].iter();
        all.take_while(move |(a, _)| *a == address)
            .map(|&(_, place)| &self.named[place as usize])
    }

    /// Every address of a backend or sorry server, with each service that has it.
    pub fn by_address(&self) -> impl Iterator<Item = (IpAddr, &Named)> {
        let named = |place: u32| &self.named[place as usize];
        self.addresses
            .iter()
            .map(move |&(a, place)| (a, named(place)))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Named> {
        self.named.iter()
    }

    /// Backends that an operator drains: the place, and the index there.
    pub fn drained(&self) -> &[(usize, usize)] {
        &self.drained
    }
}

fn place(places: &[Option<u32>], id: u32) -> Option<usize> {
    places.get(id as usize)?.map(|place| place as usize)
}
