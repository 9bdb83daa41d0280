//! From the validated configuration, the neighbours and the backends' health to a [`Snapshot`].
//!
//! Owns the ids: a service or backend keeps its id through every reload, and a backend's id is
//! given to another only when no worker counts a connection of it. Runs on the management
//! thread; pure but for the ids it remembers.

use std::collections::{BTreeSet, HashMap};
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

use super::config;
use super::drains::Drains;
use super::net::NetState;

/// What a backend is known by across reloads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BackendKey {
    pub service: String,
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl BackendKey {
    fn of(service: &config::Service, backend: &config::Backend) -> Self {
        Self {
            service: service.name.clone(),
            address: backend.address,
            port: backend.port,
        }
    }
}

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

type MaglevKey = (Vec<Member>, u32);

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
    states: HashMap<BackendId, BackendState>,
    weights: HashMap<BackendId, u32>,
    drains: Drains,
    maglevs: HashMap<MaglevKey, Arc<Maglev>>,
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
            states: HashMap::new(),
            weights: HashMap::new(),
            drains: Drains::default(),
            maglevs: HashMap::new(),
            generation: 0,
        }
    }

    pub fn ports(&self) -> &[PortFacts] {
        &self.ports
    }

    /// Takes a new configuration; backends that it no longer has become removed ones.
    pub fn replace(&mut self, config: Config, current: &Snapshot) {
        self.config = config;
        let kept: BTreeSet<u32> = self
            .each_backend()
            .map(|(service, backend)| BackendKey::of(service, backend))
            .collect::<Vec<_>>()
            .iter()
            .map(|key| self.backends.get(key))
            .collect();
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
            self.states.remove(id);
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
        found.map(|(_, backend)| backend.name.clone())
    }

    pub fn backend_id(
        &mut self,
        service: &config::Service,
        backend: &config::Backend,
    ) -> BackendId {
        BackendId(self.backends.get(&BackendKey::of(service, backend)))
    }

    /// What checks and operators say of a backend; true where that is news.
    pub fn set_state(&mut self, id: BackendId, state: BackendState) -> bool {
        self.states.insert(id, state) != Some(state)
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

    /// A weight in place of the configured one, until `None` is set.
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
        self.each_backend().map(|(_, b)| b.address).collect()
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
            listens.extend(service.listen.iter().map(|l| (listen(l), id)));
            put(&mut services, id.0, self.build_service(service, id, ids));
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
            two_way: self
                .config
                .services
                .iter()
                .any(|s| method(s.method).is_two_way()),
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
        let hop = net.next_hop(backend.address);
        let link = hop.and_then(|(port, ip)| links.get(port, ip));
        let port = hop.map_or(0, |(port, _)| usize::from(port));
        let mtu = self.ports.get(port).map_or(1500, |p| p.mtu);
        let method = method(service.method);
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
        let configured_weight = u32::from(backend.weight);
        let state = match self.states.get(&id) {
            Some(&state) => state,
            None if backend.drain => BackendState::Drained,
            None => BackendState::Up,
        };
        Backend {
            link,
            method,
            state: self.drains.state(id, state),
            port: match method.is_two_way() {
                true => backend.port.unwrap_or(0),
                false => 0,
            },
            mtu: mtu.saturating_sub(overhead),
            service: service_id,
            id,
            address: backend.address,
            outer_source,
            outer_spread,
            weight: self.weights.get(&id).copied().unwrap_or(configured_weight),
            configured_weight,
            upper: backend.upper.unwrap_or(0),
            lower: backend.lower.unwrap_or(0),
        }
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
    ) -> Service {
        let scheduler = scheduler(service.scheduler);
        let members: Vec<Member> = service
            .backends
            .iter()
            .map(|b| Member {
                address: b.address,
                port: b.port.unwrap_or(0),
                weight: u32::from(b.weight),
            })
            .collect();
        let default = if scheduler.is_hash() {
            DEFAULT_SIZE
        } else {
            SMALL_SIZE
        };
        let size = service.table_size.unwrap_or(default);
        let maglev = match self.maglevs.get(&(members.clone(), size)) {
            Some(table) => Arc::clone(table),
            None => {
                let table = Arc::new(Maglev::build(&members, size));
                self.maglevs.insert((members, size), Arc::clone(&table));
                table
            }
        };
        Service {
            id,
            name: service.name.as_str().into(),
            method: method(service.method),
            scheduler,
            backends,
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
            let two_way = method(s.method).is_two_way();
            s.listen.iter().map(move |l| (listen(l).prefix, two_way))
        });
        let nat = services().filter(|s| method(s.method).is_two_way());
        let backends = nat.flat_map(|s| s.backends.iter().map(|b| b.address));
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
