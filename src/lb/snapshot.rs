//! What a worker knows of the configuration at one moment: services, backends, ports, routes.
//!
//! Immutable once built. Management builds it, sharing unchanged parts with its predecessor,
//! and alone counts references; workers hold one whole snapshot and swap it between bursts.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::addresses::AddressSet;
use super::backends::Backends;
use super::conn::Timeouts;
use super::flow::{Address, FlowKey};
use super::keepalive::Fronts;
use super::maglev::Maglev;
use super::owner::{Ownership, Side, Sides};
use super::persistence::Persistence;
use super::queues::Queues;
use super::route::{Link, Routes};
use super::service_map::ServiceMap;
use super::vlan::Vlans;
use super::weights::Weights;

/// Hash maps of a snapshot: keys come from the configuration or are looked up by strangers'
/// packets, so the hash is keyed at random.
pub type FastMap<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
pub type FastSet<K> = HashSet<K, foldhash::fast::RandomState>;

/// Names a backend in connections and counters. Never reused while a connection names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Default)]
pub struct BackendId(pub u32);

/// Names a service in scheduler state and counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Default)]
pub struct ServiceId(pub u32);

/// How a packet reaches its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ForwardMethod {
    /// The destination is rewritten; replies come back through us.
    Nat,
    /// Source and destination are rewritten.
    FullNat,
    /// The packet is wrapped in another IP header (RFC 2003, RFC 2473).
    Tunnel,
    /// Only the MAC addresses change.
    DirectRouting,
}

impl ForwardMethod {
    /// In the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Nat, Self::FullNat, Self::Tunnel, Self::DirectRouting];

    /// The backend's replies pass here too.
    pub fn is_two_way(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// The word for it in config, metrics and bench.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::FullNat => "fullnat",
            Self::Tunnel => "tunnel",
            Self::DirectRouting => "direct-routing",
        }
    }
}

/// Whether a backend takes new connections, and what becomes of those it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BackendState {
    Up,
    /// No new connections; existing ones stay.
    Drained,
    /// Its checks fail: no new connections, and existing flows stay in hope.
    Down,
    /// Out of the configuration: its TCP flows are reset, its UDP flows rescheduled.
    Removed,
}

/// A real server of one service. The first cache line is all that an established flow needs beside its
/// [`super::backends::Hop`].
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Backend {
    /// Next hop on the wire, once it is resolved.
    pub link: Option<Link>,
    pub method: ForwardMethod,
    pub state: BackendState,
    /// 0 leaves the destination port as it is.
    pub port: u16,
    /// Largest IP packet (before encapsulation) that still fits.
    pub mtu: u16,
    pub id: BackendId,
    /// Bits of `outer_source` that each flow sets from its hash; 0 keeps one source for all.
    pub outer_spread: u32,
    pub address: IpAddr,
    /// Source of the outer header (tunnel); the bits under `outer_spread` are zero.
    pub outer_source: IpAddr,
    pub service: ServiceId,
    /// Weight in force; 0 takes no new connections.
    pub weight: u32,
    pub configured_weight: u32,
    /// Connections beyond which the backend is overloaded, and below which it no longer is;
    /// 0 sets no limit.
    pub upper: u32,
    pub lower: u32,
}

const _: () = assert!(std::mem::offset_of!(Backend, service) <= 64);

impl Backend {
    /// Takes new connections as far as configuration and health go (limits are the worker's).
    pub fn is_eligible(&self) -> bool {
        self.state == BackendState::Up && self.weight > 0
    }
}

/// The schedulers, named as ipvsadm names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Scheduler {
    RoundRobin,
    WeightedRoundRobin,
    /// Weighted draws.
    Random,
    LeastConnection,
    #[default]
    WeightedLeastConnection,
    ShortestExpectedDelay,
    NeverQueue,
    /// By destination: one server each.
    Locality,
    /// By destination: a set of servers each.
    LocalityReplicated,
    DestinationHash,
    SourceHash,
    Maglev,
    Failover,
    Overflow,
    /// The better of two weighted draws.
    TwoChoices,
}

impl Scheduler {
    pub const ALL: [Scheduler; 15] = [
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::Random,
        Self::LeastConnection,
        Self::WeightedLeastConnection,
        Self::ShortestExpectedDelay,
        Self::NeverQueue,
        Self::Locality,
        Self::LocalityReplicated,
        Self::DestinationHash,
        Self::SourceHash,
        Self::Maglev,
        Self::Failover,
        Self::Overflow,
        Self::TwoChoices,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::Random => "random",
            Self::LeastConnection => "lc",
            Self::WeightedLeastConnection => "wlc",
            Self::ShortestExpectedDelay => "sed",
            Self::NeverQueue => "nq",
            Self::Locality => "lblc",
            Self::LocalityReplicated => "lblcr",
            Self::DestinationHash => "dh",
            Self::SourceHash => "sh",
            Self::Maglev => "mh",
            Self::Failover => "fo",
            Self::Overflow => "ovf",
            Self::TwoChoices => "twos",
        }
    }

    /// A pure function of the packet: the same flow gets the same backend without an entry.
    pub fn is_hash(self) -> bool {
        matches!(
            self,
            Self::Maglev | Self::SourceHash | Self::DestinationHash
        )
    }
}

/// What becomes of a new connection when no backend can take it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum WhenNoBackend {
    Reset,
    Drop,
    /// Schedule among all backends, healthy or not.
    UseAll,
}

/// What becomes of a TCP packet without SYN that belongs to no tracked connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Untracked {
    Hash,
    Reset,
    Drop,
}

/// One service: what is scheduled and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub id: ServiceId,
    pub name: Arc<str>,
    pub method: ForwardMethod,
    pub scheduler: Scheduler,
    /// FullNAT: the local addresses to use, as indexes of [`Snapshot::locals`].
    pub locals: Arc<[u16]>,
    /// In the configuration's order; schedulers that go by order go by this one.
    pub backends: Vec<BackendId>,
    /// The same backends with the weights in force: [`Weights::of`] what the snapshot holds, built
    /// anew whenever a weight or a state changes.
    pub weights: Arc<Weights>,
    /// The consistent hash under every scheduler; its values index `backends`.
    pub maglev: Arc<Maglev>,
    /// Hash the client's port beside its address.
    pub hash_port: bool,
    /// sh and dh: another backend answers when the chosen one cannot (mh always does so).
    pub hash_fallback: bool,
    pub when_no_backend: WhenNoBackend,
    pub untracked: Untracked,
    pub timeouts: Timeouts,
    /// Every UDP packet is scheduled by itself, and no entry is made.
    pub one_packet: bool,
    /// The largest TCP segment size that a SYN may announce; 0 leaves it alone.
    pub mss_clamp: u16,
    pub limits: Limits,
    pub persistence: Option<Persistence>,
}

/// What a service takes, all workers together; each keeps to its share. 0 sets no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Connections at once.
    pub connections: u32,
    /// New connections a second.
    pub rate: u32,
}

/// A port, or a VLAN of one, as workers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct PortView {
    pub mac: [u8; 6],
    pub mtu: u16,
    /// What its receive queues are chosen by; `None` where that is anybody's guess.
    pub queues: Option<Queues>,
}

/// Values in chunks behind `Arc`s, so that a successor copies only the chunks it changes. All chunks
/// are of one size, so that a worker finds a value with one look at their list; places of the last
/// that nothing was put in hold the default.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunked<T> {
    chunks: Vec<Arc<[T; CHUNK]>>,
    length: usize,
}

const CHUNK: usize = 64;

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            length: 0,
        }
    }
}

impl<T: Clone + Default> Chunked<T> {
    /// The value of this index; behind the last it may be the default.
    #[inline(always)]
    pub fn get(&self, index: u32) -> Option<&T> {
        let chunk = self.chunks.get(index as usize / CHUNK)?;
        Some(&chunk[index as usize % CHUNK])
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let all = self.chunks.iter().flat_map(|chunk| chunk.iter());
        all.take(self.length)
    }

    /// Access for change: copies the chunk where a predecessor still shares it.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        if index as usize >= self.length {
            return None;
        }
        let chunk = Arc::make_mut(self.chunks.get_mut(index as usize / CHUNK)?);
        Some(&mut chunk[index as usize % CHUNK])
    }

    /// Puts a value in its place, if it has one. Equal ones leave the chunk shared.
    pub fn set(&mut self, index: u32, value: T)
    where
        T: PartialEq,
    {
        if self.get(index).is_some_and(|present| *present != value)
            && let Some(place) = self.get_mut(index)
        {
            *place = value;
        }
    }

    /// Makes places of all indexes below `length`, with the default in those that are new.
    pub fn grow(&mut self, length: usize) {
        self.length = self.length.max(length);
        while self.chunks.len() * CHUNK < self.length {
            let empty = std::array::from_fn(|_| T::default());
            self.chunks.push(Arc::new(empty));
        }
    }

    /// Chunks that two have in common, and all of this one.
    #[cfg(test)]
    pub fn shared(&self, other: &Self) -> (usize, usize) {
        let pairs = self.chunks.iter().zip(&other.chunks);
        let shared = pairs.filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        (shared, self.chunks.len())
    }
}

impl<T: Clone + Default> FromIterator<T> for Chunked<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values = values.into_iter().peekable();
        let mut chunked = Self::default();
        while values.peek().is_some() {
            chunked.chunks.push(Arc::new(std::array::from_fn(|_| {
                let value = values.next();
                chunked.length += usize::from(value.is_some());
                value.unwrap_or_default()
            })));
        }
        chunked
    }
}

/// Everything, at one generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub generation: u64,
    /// By [`ServiceId`]; a hole is a service that is gone.
    pub services: Chunked<Option<Arc<Service>>>,
    /// By [`BackendId`].
    pub backends: Backends,
    pub service_map: Arc<ServiceMap>,
    /// By interface: the ports, then the VLANs, which have their port's address and MTU.
    pub ports: Arc<[PortView]>,
    pub vlans: Arc<Vlans>,
    pub routes: Arc<Routes>,
    /// Addresses no packet may come from: VIPs, pools, check addresses, the ports' own.
    pub own: Arc<AddressSet>,
    /// Addresses that health checks come from: what is sent to one goes to management, before any
    /// service is looked for, also from a VIP, as backends answer in one-way methods.
    pub checks: Arc<AddressSet>,
    /// Some service's replies pass here.
    pub two_way: bool,
    /// Which worker owns which flow.
    pub ownership: Ownership,
    /// Needed where `two_way` holds or there are several workers.
    pub sides: Arc<Sides>,
    /// What the answers of NAT flows are from that have lost their entry.
    pub fronts: Arc<Fronts>,
    /// FullNAT's local addresses. Connections name them by index, so one keeps its index, and is
    /// not taken out, while a connection may name it.
    pub locals: Arc<[IpAddr]>,
    /// New flows a second, on one worker, beyond which the flood guard goes up; 0 for never.
    pub flood_guard: u32,
}

impl Snapshot {
    #[inline(always)]
    pub fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.backends.get(id)
    }

    /// What a packet is, by its addresses.
    #[inline(always)]
    pub fn side<A: Address>(&self, key: &FlowKey<A>) -> Side {
        match self.two_way {
            true => self.sides.side(key.source, key.destination),
            false => Side::OneWay,
        }
    }

    /// Whether health checks come from this address.
    #[inline(always)]
    pub fn is_check(&self, address: impl Into<IpAddr>) -> bool {
        !self.checks.is_empty() && self.checks.contains(address.into())
    }

    #[inline(always)]
    pub fn service(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id.0)?.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_shares_the_chunks_it_does_not_change() {
        let first: Chunked<u32> = (0..1000).collect();
        let mut second = first.clone();
        *second.get_mut(70).expect("there") = 7;
        assert_eq!(first.shared(&second), (15, 16));
        assert_eq!((first.get(70), second.get(70)), (Some(&70), Some(&7)));
        assert_eq!((second.len(), second.get(1024)), (1000, None));
        assert_eq!((second.iter().count(), second.get_mut(1000)), (1000, None));
    }

    #[test]
    fn places_are_made_and_equal_values_leave_chunks_shared() {
        let mut first: Chunked<u32> = Chunked::default();
        first.grow(70);
        first.set(69, 7);
        let mut second = first.clone();
        second.set(69, 7);
        second.set(3, 0);
        second.set(70, 9);
        assert_eq!((first.shared(&second), second.get_mut(70)), ((2, 2), None));
        second.grow(200);
        assert_eq!(first.shared(&second), (2, 2));
        assert_eq!((second.len(), second.iter().count()), (200, 200));
        second.set(199, 8);
        let set: Vec<_> = second.iter().filter(|value| **value != 0).collect();
        assert_eq!(set, [&7, &8]);
        second.grow(1);
        assert_eq!(second.len(), 200);
    }
}
