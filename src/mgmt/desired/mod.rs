//! From the validated configuration, the neighbours and the backends' health to a [`Snapshot`].
//!
//! Owns the ids: a service or backend keeps its id through every reload, and a backend's id is
//! given to another only when no worker counts a connection of it. Every change is noted, so that
//! the next snapshot takes the rest from its predecessor. Runs on the management thread; pure but
//! for what it remembers.

mod addresses;
mod backend;
mod build;
mod changed;
mod ids;
mod places;
mod removed;
mod service;
mod standing;
mod tables;

#[cfg(test)]
mod tests;

pub(super) use addresses::is_two_way;
pub use build::FLOOD_GUARD;
pub use ids::{BackendKey, MAX_BACKENDS, MAX_SERVICES};
pub(super) use tables::table_size;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::config::{self, Config};
use super::drains::Drains;
use super::hash_tables::HashTables;
use crate::lb::owner::Ownership;
use crate::lb::queues::Queues;
use crate::lb::snapshot::{BackendId, ServiceId, Snapshot};
use addresses::Links;
use changed::Changed;
use ids::Ids;
use places::Places;
use removed::Removed;

/// What a sorry server is called.
pub const SORRY: &str = "sorry-server";

/// A port as it was started: what the configuration cannot know.
#[derive(Clone, Debug)]
pub struct PortFacts {
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u16,
    /// The index of the port that it is, or is a VLAN of.
    pub device: usize,
    /// The VLAN's id.
    pub vlan: Option<u16>,
}

/// Entries of the redirection table that owners go by where no device has a smaller one.
pub const RETA: u16 = 128;

/// What should be, as management knows it.
#[derive(Clone)]
pub struct Desired {
    pub config: Config,
    /// As in the configuration: first those with devices, then the VLANs.
    ports: Vec<PortFacts>,
    services: Ids<String>,
    backends: Ids<BackendKey>,
    /// Where in the configuration each id stands.
    places: Places,
    /// FullNAT's local addresses by index. Connections name them, so none is ever taken out.
    locals: Vec<IpAddr>,
    /// Backends that left the configuration and may still have connections.
    removed: HashMap<BackendId, Removed>,
    /// Backends whose checks fail.
    down: HashSet<BackendId>,
    /// Weights that checks set in place of the configured ones.
    checked_weights: HashMap<BackendId, u32>,
    weights: HashMap<BackendId, u32>,
    drains: Drains,
    /// Whether services have backends enough, of all whose quorum has been looked at.
    quorum_met: HashMap<ServiceId, bool>,
    tables: HashTables,
    ownership: Ownership,
    /// What the ports' receive queues say about owners.
    queues: Vec<Option<Queues>>,
    /// The last snapshot, the neighbours that it was built with, and what has changed since.
    last: Arc<Snapshot>,
    links: Links,
    /// Backends' next hops, as they were when the ways were last looked at.
    hops: HashMap<IpAddr, Option<(u16, IpAddr)>>,
    changed: Changed,
}

impl Desired {
    /// `reta`: see [`Ownership`].
    pub fn new(config: Config, ports: Vec<PortFacts>, reta: u16) -> Self {
        let workers = config.workers.cores.len() as u8;
        let mut desired = Self {
            ownership: Ownership {
                reta,
                workers,
                compute: workers > 1,
            },
            config,
            ports,
            services: Ids::default(),
            backends: Ids::default(),
            places: Places::default(),
            locals: Vec::new(),
            removed: HashMap::new(),
            down: HashSet::new(),
            checked_weights: HashMap::new(),
            weights: HashMap::new(),
            drains: Drains::default(),
            quorum_met: HashMap::new(),
            tables: HashTables::default(),
            queues: Vec::new(),
            last: Arc::default(),
            links: Links::default(),
            hops: HashMap::new(),
            changed: Changed::default(),
        };
        desired.name();
        desired.change_everything();
        desired
    }

    pub fn ports(&self) -> &[PortFacts] {
        &self.ports
    }

    /// The port has another MAC address since it was reset, and so have its VLANs.
    pub fn set_port_mac(&mut self, port: usize, mac: [u8; 6]) {
        for facts in self.ports.iter_mut().filter(|f| f.device == port) {
            facts.mac = mac;
        }
        self.changed.ports = true;
    }

    /// What the ports' receive queues say about owners, by port.
    pub fn set_queues(&mut self, queues: Vec<Option<Queues>>) {
        self.queues = queues;
        self.changed.ports = true;
    }

    /// The indexes of a port and its VLANs.
    pub fn interfaces_of(&self, port: usize) -> Vec<u16> {
        let all = (0..).zip(&self.ports);
        let of_port = all.filter(|(_, facts)| facts.device == port);
        of_port.map(|(index, _)| index).collect()
    }

    /// Takes a new configuration and returns the old one; backends that the new one no longer has
    /// become removed ones.
    pub fn replace(&mut self, config: Config) -> Config {
        let config = std::mem::replace(&mut self.config, config);
        let places = self.name();
        self.note_differences(&config, &places);
        self.remove_missing(&config, &places);
        let places = &self.places;
        self.quorum_met
            .retain(|&id, _| places.of_service(id).is_some());
        config
    }

    /// Gives every configured service, backend and local address its id. Returns the old places.
    fn name(&mut self) -> Places {
        for service in &self.config.services {
            for address in &service.local_addresses {
                if !self.locals.contains(address) {
                    self.locals.push(*address);
                }
            }
        }
        let places = Places::new(&self.config, &mut self.services, &mut self.backends);
        std::mem::replace(&mut self.places, places)
    }

    /// The id of a configured backend.
    pub fn find_backend(
        &self,
        service: &config::Service,
        backend: &config::Backend,
    ) -> Option<BackendId> {
        let key = BackendKey::of(service, backend);
        self.backends.find(&key).map(BackendId)
    }

    /// The name of a backend that is configured.
    pub fn backend_name(&self, id: BackendId) -> Option<String> {
        let place = self.places.of_backend(id)?;
        let index = self.places[place].backends.iter().position(|b| *b == id);
        Some(match index {
            Some(index) => self.config.services[place].backends[index].name.clone(),
            None => SORRY.to_owned(),
        })
    }

    pub fn find_service(&self, service: &config::Service) -> Option<ServiceId> {
        self.services.find(&service.name).map(ServiceId)
    }

    pub fn find_sorry_server(&self, service: &config::Service) -> Option<BackendId> {
        let key = BackendKey::sorry(service)?;
        self.backends.find(&key).map(BackendId)
    }

    /// Every address whose next hop must be resolved.
    pub fn destinations(&self) -> BTreeSet<IpAddr> {
        let services = || self.config.services.iter();
        let backends = services().flat_map(|s| s.backends.iter().map(|b| b.address));
        let sorry = services().flat_map(|s| &s.sorry_server);
        backends.chain(sorry.map(|s| s.address)).collect()
    }
}
