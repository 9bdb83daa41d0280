//! From the validated configuration, the neighbours and the backends' health to a [`Snapshot`].
//!
//! Owns the ids: a service or backend keeps its id through every reload, and a backend's id is
//! given to another only when no worker counts a connection of it. Runs on the management
//! thread; pure but for the ids it remembers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::lb::conn::{State, Timeouts};
use crate::lb::flow::protocol;
use crate::lb::forward::tunnel;
use crate::lb::maglev::{DEFAULT_SIZE, Maglev, Member, SMALL_SIZE};
use crate::lb::owner::{Ownership, Sides};
use crate::lb::persistence::Persistence;
use crate::lb::route::{Link, Prefix, Routes, Target};
use crate::lb::service_map::{Listen, ServiceMap};
use crate::lb::snapshot::*;
use crate::lb::weights::Weights;

use super::config::{self, SorryServer};
use super::drains::Drains;
use super::hash_tables::{HashTables, TableKey};
use super::net::NetState;
use super::quorum::{self, QuorumChange};

/// What a backend is known by across reloads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BackendKey {
    pub service: String,
    pub address: IpAddr,
    pub port: Option<u16>,
    /// The same server may be a backend and the sorry server.
    pub is_sorry: bool,
}

impl BackendKey {
    fn of(service: &config::Service, backend: &config::Backend) -> Self {
        Self {
            service: service.name.clone(),
            address: backend.address,
            port: backend.port,
            is_sorry: false,
        }
    }

    fn sorry(service: &config::Service) -> Option<Self> {
        let sorry = service.sorry_server.as_ref()?;
        Some(Self {
            service: service.name.clone(),
            address: sorry.address,
            port: sorry.port,
            is_sorry: true,
        })
    }

    /// Of everything that a service names.
    fn all(service: &config::Service) -> impl Iterator<Item = Self> {
        let backends = service.backends.iter().map(|b| Self::of(service, b));
        backends.chain(Self::sorry(service))
    }
}

/// What a sorry server is called.
pub const SORRY: &str = "sorry-server";

/// A port as it was started: what the configuration cannot know.
#[derive(Clone, Debug)]
pub struct PortFacts {
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u16,
}

/// Ids that are in use and what they name.
struct Ids<K> {
    by_key: HashMap<K, u32>,
    free: Vec<u32>,
    next: u32,
}

impl<K> Default for Ids<K> {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
            free: Vec::new(),
            next: 0,
        }
    }
}

impl<K: std::hash::Hash + Eq + Clone> Ids<K> {
    fn get(&mut self, key: &K) -> u32 {
        if let Some(&id) = self.by_key.get(key) {
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.by_key.insert(key.clone(), id);
        id
    }
}

/// The most ids of each kind that can be in use at once: workers' counters and scheduler state
/// are made for so many at start.
pub const MAX_BACKENDS: usize = 262_144;
pub const MAX_SERVICES: usize = 65_536;

/// Entries of the redirection table that stands for all ports' until their RSS is confirmed.
pub const RETA: u16 = 128;

/// New flows a second on one worker that are taken for a flood, unless configured.
const FLOOD_GUARD: u32 = 100_000;

/// What should be, as management knows it.
pub struct Desired {
    pub config: Config,
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
}

type Config = config::Config;

impl Desired {
    pub fn new(config: Config, ports: Vec<PortFacts>) -> Self {
        let workers = config.workers.cores.len() as u8;
        let ownership = Ownership {
            reta: RETA,
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

    /// The port has another MAC address since it was reset.
    pub fn set_port_mac(&mut self, port: usize, mac: [u8; 6]) {
        self.ports[port].mac = mac;
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

    pub fn backend_id(
        &mut self,
        service: &config::Service,
        backend: &config::Backend,
    ) -> BackendId {
        BackendId(self.backends.get(&BackendKey::of(service, backend)))
    }

    /// What checks say of a backend; true where that is news.
    pub fn set_down(&mut self, id: BackendId, down: bool) -> bool {
        match down {
            true => self.down.insert(id),
            false => self.down.remove(&id),
        }
    }

    /// Looks for drains whose deadline has passed; true where there is one.
    pub fn look_at_drains(&mut self, now: std::time::Instant) -> bool {
        let drained = self.each_backend().filter(|(_, backend)| backend.drain);
        let drained: Vec<_> = drained
            .filter_map(|(service, backend)| {
                Some((self.find_backend(service, backend)?, service.drain_timeout))
            })
            .collect();
        self.drains.look(now, drained)
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

    /// The consistent hash under a service, or the one that the sorry server needs.
    fn table_key(&self, service: &config::Service) -> TableKey {
        if let Some(sorry) = self.sorry_in_force(service) {
            let member = Member {
                address: sorry.address,
                port: sorry.port.unwrap_or(0),
                weight: 1,
            };
            return TableKey {
                members: vec![member],
                size: SMALL_SIZE,
            };
        }
        let follows = service.feedback.as_ref().is_some_and(|f| f.hash_too);
        let weight = |backend: &config::Backend| {
            let configured = u32::from(backend.weight);
            let id = self.find_backend(service, backend).filter(|_| follows);
            id.map_or(configured, |id| self.weight_in_force(id, backend))
        };
        let member = |backend: &config::Backend| Member {
            address: backend.address,
            port: backend.port.unwrap_or(0),
            weight: weight(backend),
        };
        TableKey {
            members: service.backends.iter().map(member).collect(),
            size: table_size(service),
        }
    }

    /// The tables that the next snapshot needs and none has yet, to be built elsewhere.
    pub fn missing_tables(&self) -> Vec<TableKey> {
        let keys = self.config.services.iter().map(|s| self.table_key(s));
        self.tables.missing(&keys.collect::<Vec<_>>())
    }

    /// Takes up tables that were built elsewhere; they are kept as long as a snapshot holds them,
    /// so the next one is to be built before `built` is dropped.
    pub fn take_tables(&mut self, built: &[(TableKey, Arc<Maglev>)]) {
        self.tables.take_up(built);
    }

    fn sorry_in_force<'a>(&self, service: &'a config::Service) -> Option<&'a SorryServer> {
        let sorry = service.sorry_server.as_ref();
        sorry.filter(|_| !self.quorum_is_met(service))
    }

    /// The weight that the scheduler goes by.
    fn weight_in_force(&self, id: BackendId, backend: &config::Backend) -> u32 {
        let led = self.weights.get(&id).copied();
        led.unwrap_or_else(|| self.base_weight(id, backend))
    }

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
                .map(|p| PortView {
                    mac: p.mac,
                    mtu: p.mtu,
                })
                .collect(),
            routes: Arc::new(self.routes(&links)),
            own: Arc::new(own),
            checks: Arc::new(self.check_addresses()),
            ownership: self.ownership,
            sides: Arc::new(sides),
            locals: self.locals.as_slice().into(),
            flood_guard: self.config.workers.flood_guard.unwrap_or(FLOOD_GUARD),
        }
    }

    /// Indexes of a service's local addresses.
    fn local_indexes(&mut self, service: &config::Service) -> Arc<[u16]> {
        let index = |address: &IpAddr| {
            let known = self.locals.iter().position(|known| known == address);
            known.unwrap_or_else(|| {
                self.locals.push(*address);
                self.locals.len() - 1
            }) as u16
        };
        service.local_addresses.iter().map(index).collect()
    }

    fn build_backend(
        &mut self,
        service: &config::Service,
        backend: &config::Backend,
        service_id: ServiceId,
        net: &NetState,
        links: &Links,
    ) -> Backend {
        let id = self.backend_id(service, backend);
        let state = match self.is_down(id) {
            _ if backend.drain => BackendState::Drained,
            true if service.inhibit => BackendState::Drained,
            true => BackendState::Down,
            false => BackendState::Up,
        };
        Backend {
            id,
            service: service_id,
            state: self.drains.state(id, state),
            weight: self.weight_in_force(id, backend),
            ..self.reach(service, backend, method(service.method), net, links)
        }
    }

    /// How packets get to a backend: all that does not depend on its service and state.
    fn reach(
        &self,
        service: &config::Service,
        backend: &config::Backend,
        method: ForwardMethod,
        net: &NetState,
        links: &Links,
    ) -> Backend {
        let hop = net.next_hop(backend.address);
        let link = hop.and_then(|(port, ip)| links.get(port, ip));
        let port = hop.map_or(0, |(port, _)| usize::from(port));
        let mtu = self.ports.get(port).map_or(1500, |p| p.mtu);
        let overhead = match method {
            ForwardMethod::Tunnel => tunnel::overhead(backend.address) as u16,
            _ => 0,
        };
        let (outer_source, outer_spread) = match service.tunnel_source {
            Some(prefix) if prefix.address.is_ipv4() == backend.address.is_ipv4() => {
                (prefix.address, spread(prefix))
            }
            _ => (self.own_address(port, backend.address), 0),
        };
        let weight = u32::from(backend.weight);
        Backend {
            link,
            method,
            state: BackendState::Up,
            port: match method.is_two_way() {
                true => backend.port.unwrap_or(0),
                false => 0,
            },
            mtu: mtu.saturating_sub(overhead),
            service: ServiceId::default(),
            id: BackendId::default(),
            address: backend.address,
            outer_source,
            outer_spread,
            weight,
            configured_weight: weight,
            upper: backend.upper.unwrap_or(0),
            lower: backend.lower.unwrap_or(0),
        }
    }

    /// The sorry server, as a backend that only gets new connections while it is the service's only
    /// one. It is always there, for the connections it has.
    fn build_sorry_server(
        &mut self,
        service: &config::Service,
        id: ServiceId,
        net: &NetState,
        links: &Links,
    ) -> Option<Backend> {
        let sorry = service.sorry_server.as_ref()?;
        let own = BackendId(self.backends.get(&BackendKey::sorry(service)?));
        let backend = config::Backend {
            name: SORRY.into(),
            address: sorry.address,
            port: sorry.port,
            weight: 1,
            upper: None,
            lower: None,
            drain: false,
        };
        let method = method(sorry.method.unwrap_or(service.method));
        Some(Backend {
            id: own,
            service: id,
            ..self.reach(service, &backend, method, net, links)
        })
    }

    /// The address of a port that a tunnel's outer header carries toward `peer`.
    fn own_address(&self, port: usize, peer: IpAddr) -> IpAddr {
        let unspecified = match peer {
            IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        let Some(port) = self.config.ports.get(port) else {
            return unspecified;
        };
        let family = || {
            let own = port.addresses.iter();
            own.filter(|own| own.address.is_ipv4() == peer.is_ipv4())
        };
        let near = family().find(|own| own.contains(peer));
        near.or_else(|| family().next())
            .map_or(unspecified, |own| own.address)
    }

    fn build_service(
        &mut self,
        service: &config::Service,
        id: ServiceId,
        backends: Vec<BackendId>,
        sorry: Option<&Backend>,
    ) -> Service {
        let sorry = sorry.filter(|_| self.sorry_in_force(service).is_some());
        let maglev = self.tables.table_now(&self.table_key(service));
        Service {
            id,
            name: service.name.as_str().into(),
            method: sorry.map_or(method(service.method), |sorry| sorry.method),
            scheduler: scheduler(service.scheduler),
            backends: sorry.map_or(backends, |sorry| vec![sorry.id]),
            weights: Arc::default(),
            maglev,
            hash_port: service.hash_port,
            hash_fallback: service.hash_fallback,
            when_no_backend: match service.when_no_backend {
                config::WhenNoBackend::Reset => WhenNoBackend::Reset,
                config::WhenNoBackend::Drop => WhenNoBackend::Drop,
                config::WhenNoBackend::UseAll => WhenNoBackend::UseAll,
            },
            untracked: match service.untracked {
                config::Untracked::Hash => Untracked::Hash,
                config::Untracked::Reset => Untracked::Reset,
                config::Untracked::Drop => Untracked::Drop,
            },
            timeouts: timeouts(&service.timeouts),
            locals: self.local_indexes(service),
            one_packet: service.one_packet,
            mss_clamp: service.mss_clamp.unwrap_or(0),
            limits: Limits {
                connections: service.limits.connections.unwrap_or(0),
                rate: service.limits.rate.unwrap_or(0),
            },
            persistence: service.persistence.as_ref().map(|p| Persistence {
                timeout: p.timeout.as_secs() as u32,
                prefix_v4: p.prefix_v4,
                prefix_v6: p.prefix_v6,
                group: group(p.group.as_deref(), &service.name),
            }),
        }
    }

    /// Which end of a flow names its owner, by the addresses of a packet.
    fn sides(&self) -> Sides {
        let services = || self.config.services.iter();
        let listens = services().flat_map(|s| {
            let two_way = is_two_way(s);
            s.listen.iter().map(move |l| (listen(l).prefix, two_way))
        });
        let nat = services().filter(|s| is_two_way(s));
        let backends = nat.flat_map(|s| {
            let sorry = s.sorry_server.iter().map(|sorry| sorry.address);
            s.backends.iter().map(|b| b.address).chain(sorry)
        });
        Sides::new(listens, (0..).zip(self.locals.iter().copied()), backends)
    }

    fn own_addresses(&self, map: &ServiceMap) -> FastSet<IpAddr> {
        let ports = self.config.ports.iter();
        let own = ports.flat_map(|port| {
            let addresses = port.addresses.iter().map(|a| a.address);
            addresses.chain(port.check_addresses.iter().copied())
        });
        let pools = self.config.services.iter().flat_map(|s| &s.local_addresses);
        own.chain(pools.copied()).chain(map.vips()).collect()
    }

    fn check_addresses(&self) -> FastSet<IpAddr> {
        let ports = self.config.ports.iter();
        ports
            .flat_map(|p| p.check_addresses.iter().copied())
            .collect()
    }

    fn routes(&self, links: &Links) -> Routes {
        let mut routes = Vec::new();
        for (index, port) in self.config.ports.iter().enumerate() {
            let via = |ip| Target::Via(links.get(index as u16, ip));
            for own in &port.addresses {
                routes.push((Prefix::new(own.address, own.length), Target::OnLink));
            }
            for route in &port.routes {
                routes.push((
                    Prefix::new(route.to.address, route.to.length),
                    via(route.via),
                ));
            }
            for &gateway in &port.gateways {
                let any: IpAddr = match gateway {
                    IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
                };
                routes.push((Prefix::new(any, 0), via(gateway)));
            }
            for neighbour in &port.neighbours {
                let full = if neighbour.address.is_ipv4() { 32 } else { 128 };
                let target = via(neighbour.address);
                routes.push((Prefix::new(neighbour.address, full), target));
            }
        }
        Routes::new(routes, links.neighbours())
    }
}

/// The neighbours that can be sent to, as links.
struct Links(HashMap<(u16, IpAddr), Link>);

impl Links {
    fn new(net: &NetState, ports: &[PortFacts]) -> Self {
        let links = net.neighbours().filter_map(|(ip, port, mac)| {
            let own = ports.get(usize::from(port))?;
            let mut macs = [0; 12];
            macs[..6].copy_from_slice(mac.as_bytes());
            macs[6..].copy_from_slice(&own.mac);
            let port_index = u8::try_from(port).ok()?;
            Some((
                (port, ip),
                Link {
                    macs,
                    port: port_index,
                },
            ))
        });
        Self(links.collect())
    }

    fn get(&self, port: u16, ip: IpAddr) -> Option<Link> {
        self.0.get(&(port, ip)).copied()
    }

    fn neighbours(&self) -> FastMap<IpAddr, Link> {
        self.0.iter().map(|(&(_, ip), &link)| (ip, link)).collect()
    }
}

fn put<T>(values: &mut Vec<Option<T>>, id: u32, value: T) {
    let index = id as usize;
    if values.len() <= index {
        values.resize_with(index + 1, || None);
    }
    values[index] = Some(value);
}

/// The number of a persistence group, or of a service that is one by itself.
fn group(name: Option<&str>, service: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (name.is_some(), name.unwrap_or(service)).hash(&mut hasher);
    hasher.finish()
}

/// The bits below a prefix, at most 32 of them, which each flow of a tunnel sets by its hash.
fn spread(prefix: config::Prefix) -> u32 {
    let full = if prefix.address.is_ipv4() { 32 } else { 128 };
    let bits = u32::from(full - prefix.length.min(full));
    u32::MAX.checked_shr(32 - bits.min(32)).unwrap_or(0)
}

/// Whether any of the service's replies pass here. The sorry server's method counts also while it
/// is not needed, so that the owners of flows do not change when it is.
fn is_two_way(service: &config::Service) -> bool {
    let sorry = service.sorry_server.as_ref().and_then(|s| s.method);
    let methods = [Some(service.method), sorry];
    methods
        .into_iter()
        .flatten()
        .any(|m| method(m).is_two_way())
}

/// Slots of the consistent hash under a service.
pub(super) fn table_size(service: &config::Service) -> u32 {
    service
        .table_size
        .unwrap_or(match service.scheduler.is_hash() {
            true => DEFAULT_SIZE,
            false => SMALL_SIZE,
        })
}

pub(super) fn method(method: config::Method) -> ForwardMethod {
    match method {
        config::Method::Nat => ForwardMethod::Nat,
        config::Method::FullNat => ForwardMethod::FullNat,
        config::Method::Tunnel => ForwardMethod::Tunnel,
        config::Method::DirectRouting => ForwardMethod::DirectRouting,
    }
}

fn scheduler(scheduler: config::Scheduler) -> Scheduler {
    match scheduler {
        config::Scheduler::Rr => Scheduler::RoundRobin,
        config::Scheduler::Wrr => Scheduler::WeightedRoundRobin,
        config::Scheduler::Random => Scheduler::Random,
        config::Scheduler::Lc => Scheduler::LeastConnection,
        config::Scheduler::Wlc => Scheduler::WeightedLeastConnection,
        config::Scheduler::Sed => Scheduler::ShortestExpectedDelay,
        config::Scheduler::Nq => Scheduler::NeverQueue,
        config::Scheduler::Lblc => Scheduler::Locality,
        config::Scheduler::Lblcr => Scheduler::LocalityReplicated,
        config::Scheduler::Dh => Scheduler::DestinationHash,
        config::Scheduler::Sh => Scheduler::SourceHash,
        config::Scheduler::Mh => Scheduler::Maglev,
        config::Scheduler::Fo => Scheduler::Failover,
        config::Scheduler::Ovf => Scheduler::Overflow,
        config::Scheduler::Twos => Scheduler::TwoChoices,
    }
}

fn listen(listen: &config::Listen) -> Listen {
    Listen {
        protocol: match listen.protocol {
            config::Protocol::Tcp => protocol::TCP,
            config::Protocol::Udp => protocol::UDP,
        },
        prefix: Prefix::new(listen.addresses.address, listen.addresses.length),
        first_port: listen.ports.first,
        last_port: listen.ports.last,
    }
}

fn timeouts(config: &config::Timeouts) -> Timeouts {
    let mut timeouts = Timeouts::default();
    for (state, time) in [
        (State::Established, config.established),
        (State::SynSent, config.syn_sent),
        (State::SynRecv, config.syn_recv),
        (State::FinWait, config.fin_wait),
        (State::TimeWait, config.time_wait),
        (State::Close, config.close),
        (State::CloseWait, config.close_wait),
        (State::LastAck, config.last_ack),
        (State::Udp, config.udp),
    ] {
        timeouts.set(state, time.as_secs().min(65_535) as u16);
    }
    timeouts
}
