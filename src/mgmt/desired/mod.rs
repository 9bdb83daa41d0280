//! From the validated configuration, the neighbours and the backends' health to a [`Snapshot`].
//!
//! Owns the ids: a service or backend keeps its id through every reload, and a backend's id is
//! given to another only when no worker counts a connection of it. Runs on the management
//! thread; pure but for the ids it remembers.

mod addresses;
mod backend;
mod build;
mod ids;
mod service;
mod standing;
mod tables;

pub(super) use addresses::is_two_way;
pub use ids::{BackendKey, MAX_BACKENDS, MAX_SERVICES};
pub(super) use tables::table_size;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::config;
use super::drains::Drains;
use super::hash_tables::HashTables;
use crate::lb::owner::Ownership;
use crate::lb::queues::Queues;
use crate::lb::snapshot::{Backend, BackendId, BackendState, ServiceId, Snapshot};
use ids::Ids;

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
pub struct Desired {
    pub config: Config,
    /// As in the configuration: first those with devices, then the VLANs.
    ports: Vec<PortFacts>,
    services: Ids<String>,
    backends: Ids<BackendKey>,
    /// FullNAT's local addresses by index. Connections name them, so none is ever taken out.
    locals: Vec<IpAddr>,
    /// Backends that left the configuration and still have connections.
    removed: HashMap<BackendId, Backend>,
    /// Backends whose checks fail.
    down: HashSet<BackendId>,
    /// Weights that checks set in place of the configured ones.
    checked_weights: HashMap<BackendId, u32>,
    weights: HashMap<BackendId, u32>,
    drains: Drains,
    /// Services that have too few backends, and all whose quorum has been looked at.
    quorum_met: HashMap<String, bool>,
    tables: HashTables,
    generation: u64,
    ownership: Ownership,
    /// What the ports' receive queues say about owners.
    queues: Vec<Option<Queues>>,
}

type Config = config::Config;

impl Desired {
    /// `reta`: see [`Ownership`].
    pub fn new(config: Config, ports: Vec<PortFacts>, reta: u16) -> Self {
        let workers = config.workers.cores.len() as u8;
        let ownership = Ownership {
            reta,
            workers,
            compute: workers > 1,
        };
        Self {
            ownership,
            config,
            ports,
            services: Ids::default(),
            backends: Ids::default(),
            locals: Vec::new(),
            removed: HashMap::new(),
            down: HashSet::new(),
            checked_weights: HashMap::new(),
            weights: HashMap::new(),
            drains: Drains::default(),
            quorum_met: HashMap::new(),
            tables: HashTables::default(),
            generation: 0,
            queues: Vec::new(),
        }
    }

    pub fn ports(&self) -> &[PortFacts] {
        &self.ports
    }

    /// Gives every configured service and backend its id.
    pub fn name_backends(&mut self) {
        for service in &self.config.services {
            self.services.get(&service.name);
            for key in BackendKey::all(service) {
                self.backends.get(&key);
            }
        }
    }

    /// The port has another MAC address since it was reset, and so have its VLANs.
    pub fn set_port_mac(&mut self, port: usize, mac: [u8; 6]) {
        for facts in self.ports.iter_mut().filter(|f| f.device == port) {
            facts.mac = mac;
        }
    }

    /// What the ports' receive queues say about owners, by port.
    pub fn set_queues(&mut self, queues: Vec<Option<Queues>>) {
        self.queues = queues;
    }

    /// The indexes of a port and its VLANs.
    pub fn interfaces_of(&self, port: usize) -> Vec<u16> {
        let all = (0..).zip(&self.ports);
        let of_port = all.filter(|(_, facts)| facts.device == port);
        of_port.map(|(index, _)| index).collect()
    }

    /// Takes a new configuration; backends that it no longer has become removed ones.
    pub fn replace(&mut self, config: Config, current: &Snapshot) {
        self.config = config;
        self.name_backends();
        let keys = self.config.services.iter().flat_map(BackendKey::all);
        let kept: BTreeSet<u32> = keys
            .filter_map(|key| self.backends.by_key.get(&key).copied())
            .collect();
        let has = |name: &String| self.config.services.iter().any(|s| s.name == *name);
        self.quorum_met.retain(|name, _| has(name));
        for backend in current.backends.iter().flatten() {
            if kept.contains(&backend.id.0) {
                self.removed.remove(&backend.id);
            } else {
                let gone = Backend {
                    state: BackendState::Removed,
                    ..backend.clone()
                };
                self.removed.insert(backend.id, gone);
            }
        }
    }

    /// Forgets removed backends for which `has_connections` no longer holds, and frees their ids.
    pub fn collect_removed(&mut self, has_connections: impl Fn(BackendId) -> bool) -> bool {
        let done: Vec<BackendId> = self
            .removed
            .keys()
            .copied()
            .filter(|&id| !has_connections(id))
            .collect();
        for id in &done {
            self.removed.remove(id);
            self.down.remove(id);
            self.checked_weights.remove(id);
            self.weights.remove(id);
            self.backends.by_key.retain(|_, &mut named| named != id.0);
            self.backends.free.push(id.0);
        }
        !done.is_empty()
    }

    /// Removed backends that still have connections.
    pub fn removed(&self) -> impl Iterator<Item = &Backend> {
        self.removed.values()
    }

    /// Those of one service.
    pub fn removed_of(&self, service: &str) -> impl Iterator<Item = &Backend> {
        let id = self.services.by_key.get(service).copied();
        let removed = self.removed.values();
        removed.filter(move |b| Some(b.service.0) == id)
    }

    pub fn find_backend(
        &self,
        service: &config::Service,
        backend: &config::Backend,
    ) -> Option<BackendId> {
        let key = BackendKey::of(service, backend);
        self.backends.by_key.get(&key).copied().map(BackendId)
    }

    /// The name of a backend that is configured.
    pub fn backend_name(&self, id: BackendId) -> Option<String> {
        let mut all = self.each_backend();
        let found = all.find(|(service, backend)| self.find_backend(service, backend) == Some(id));
        let is_sorry = |s: &config::Service| self.find_sorry_server(s) == Some(id);
        let sorry = || self.config.services.iter().any(is_sorry);
        match found {
            Some((_, backend)) => Some(backend.name.clone()),
            None => sorry().then(|| SORRY.to_owned()),
        }
    }

    pub fn find_service(&self, service: &config::Service) -> Option<ServiceId> {
        self.services
            .by_key
            .get(&service.name)
            .copied()
            .map(ServiceId)
    }

    pub fn find_sorry_server(&self, service: &config::Service) -> Option<BackendId> {
        let key = BackendKey::sorry(service)?;
        self.backends.by_key.get(&key).copied().map(BackendId)
    }

    pub fn backend_id(
        &mut self,
        service: &config::Service,
        backend: &config::Backend,
    ) -> BackendId {
        BackendId(self.backends.get(&BackendKey::of(service, backend)))
    }

    fn each_backend(&self) -> impl Iterator<Item = (&config::Service, &config::Backend)> {
        let services = self.config.services.iter();
        services.flat_map(|service| service.backends.iter().map(move |b| (service, b)))
    }

    /// Every address whose next hop must be resolved.
    pub fn destinations(&self) -> BTreeSet<IpAddr> {
        let sorry = self.config.services.iter().flat_map(|s| &s.sorry_server);
        let backends = self.each_backend().map(|(_, b)| b.address);
        backends.chain(sorry.map(|s| s.address)).collect()
    }
}
