//! TCP, UDP and ping for probes, in user space: IP packets in from the punt rings, IP packets out.
//!
//! Every probe in flight has a local port of its own, and everything of that probe hangs off it:
//! for TCP a small smoltcp interface with one socket, for UDP and ping a queue of answers. A
//! received packet finds its probe by one look-up, so 5,000 probes cost what one costs.
//! Management thread (`Send`, so any tokio runtime can drive it); ARP and routes are not its
//! business.

mod datagram;
mod incoming;
mod tcp;

pub(super) use datagram::Datagram;
pub(super) use tcp::TcpStream;

use super::route::{Outgoing, Route};
use incoming::{Body, Incoming};
use smoltcp::wire::IpVersion;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::mpsc;

/// What a probe's packets have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    /// The "port" is the identifier of the echo request.
    Ping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    protocol: Protocol,
    address: IpAddr,
    port: u16,
}

enum Slot {
    /// Reserved, and its probe is being set up.
    Reserved,
    Tcp(Arc<Mutex<tcp::Link>>),
    Datagram(datagram::Queue),
}

#[derive(Default)]
struct Slots {
    map: HashMap<Key, Slot>,
    /// How many ports were taken of each kind. They are taken in turn, so that one is not used
    /// again while the other end may still remember it.
    taken: [usize; 2],
}

/// Totals since the start, packets.
#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    not_sent: AtomicU64,
    received: AtomicU64,
}

struct Shared {
    slots: Mutex<Slots>,
    out: mpsc::Sender<Outgoing>,
    mtu: usize,
    random: RandomState,
    counters: Counters,
    start: tokio::time::Instant,
}

/// A handle to the stack; clones share it.
#[derive(Clone)]
pub(super) struct Stack {
    shared: Arc<Shared>,
}

/// Totals of the stack, packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackCounters {
    pub sent: u64,
    /// Not sent because the queue out was full; the probe sends again or fails.
    pub not_sent: u64,
    /// Received for a probe in flight.
    pub received: u64,
}

/// Every local port of the check address is in use.
#[derive(Debug, thiserror::Error)]
#[error(
    "all ports of {0} that checks may use are in use; check less often, or give it more addresses"
)]
pub(super) struct NoPort(pub IpAddr);

impl Stack {
    /// `mtu` is the largest IP packet that the ports send, bytes.
    pub fn new(out: mpsc::Sender<Outgoing>, mtu: usize) -> Self {
        let random = RandomState::new();
        let slots = Slots {
            taken: [random.hash_one(0) as usize % 50_000; 2],
            ..Slots::default()
        };
        Self {
            shared: Arc::new(Shared {
                slots: Mutex::new(slots),
                out,
                mtu,
                random,
                counters: Counters::default(),
                start: tokio::time::Instant::now(),
            }),
        }
    }

    /// Takes an IP packet that is addressed to a check address. False if no probe is waiting
    /// for it, or it is malformed. `stamp` is when the worker had it.
    pub fn receive(&self, packet: &[u8], stamp: Instant) -> bool {
        let Some(incoming) = incoming::parse(packet) else {
            return false;
        };
        let key = Key {
            protocol: incoming.protocol,
            address: incoming.local,
            port: incoming.local_port,
        };
        // The link is driven with the map unlocked: it may end its probe, which locks the map.
        let link = {
            let slots = self.slots();
            match slots.map.get(&key) {
                None | Some(Slot::Reserved) => return false,
                Some(Slot::Datagram(queue)) => {
                    let taken = queue.push(&incoming, stamp);
                    self.shared.count_received(taken);
                    return taken;
                }
                Some(Slot::Tcp(link)) => link.clone(),
            }
        };
        let taken = tcp::push(&link, self, &incoming, packet, stamp);
        self.shared.count_received(taken);
        taken
    }

    /// Probes in flight.
    pub fn in_flight(&self) -> usize {
        self.slots().map.len()
    }

    pub fn counters(&self) -> StackCounters {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StackCounters {
            sent: read(&counters.sent),
            not_sent: read(&counters.not_sent),
            received: read(&counters.received),
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        lock(&self.shared.slots)
    }

    /// Sends the probe's packet the way its route says.
    fn send(&self, route: &Route, packet: Vec<u8>) {
        let counters = &self.shared.counters;
        let counter = match self.shared.out.try_send(route.deliver(packet)) {
            Ok(()) => &counters.sent,
            Err(_) => &counters.not_sent,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn reserve(&self, protocol: Protocol, route: &Route) -> Result<Reservation, NoPort> {
        let (address, ports) = (route.source(), route.ports());
        let range = ports.range();
        let mut slots = self.slots();
        for _ in range.clone() {
            let taken = &mut slots.taken[ports as usize];
            *taken = taken.wrapping_add(1);
            let key = Key {
                protocol,
                address,
                port: range.start() + (*taken % range.len()) as u16,
            };
            if let std::collections::hash_map::Entry::Vacant(free) = slots.map.entry(key) {
                free.insert(Slot::Reserved);
                let stack = self.clone();
                return Ok(Reservation { stack, key });
            }
        }
        Err(NoPort(address))
    }

    fn now(&self) -> smoltcp::time::Instant {
        let since = tokio::time::Instant::now() - self.shared.start;
        smoltcp::time::Instant::from_micros(since.as_micros() as i64)
    }

    fn at(&self, time: smoltcp::time::Instant) -> tokio::time::Instant {
        let micros = u64::try_from(time.total_micros()).unwrap_or(0);
        self.shared.start + std::time::Duration::from_micros(micros)
    }
}

impl Shared {
    fn count_received(&self, taken: bool) {
        self.counters
            .received
            .fetch_add(u64::from(taken), Ordering::Relaxed);
    }
}

/// A local port that is a probe's until this is dropped.
struct Reservation {
    stack: Stack,
    key: Key,
}

impl Reservation {
    fn fill(&self, slot: Slot) {
        self.stack.slots().map.insert(self.key, slot);
    }

    /// A number that nobody outside can guess (RFC 6528), another one for each probe.
    fn random(&self) -> u64 {
        let time = Instant::now();
        self.stack.shared.random.hash_one((self.key, time))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.stack.slots().map.remove(&self.key);
    }
}

/// Another probe's panic leaves nothing half done here, so its poison is not passed on.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn version(ip: IpAddr) -> IpVersion {
    match ip {
        IpAddr::V4(_) => IpVersion::Ipv4,
        IpAddr::V6(_) => IpVersion::Ipv6,
    }
}

impl Incoming<'_> {
    /// Whether it comes from, or is about, the address and port the probe speaks to.
    fn is_about(&self, route: &Route) -> bool {
        let target = route.target();
        let port = match self.protocol {
            Protocol::Tcp | Protocol::Udp => self.remote_port == target.port(),
            Protocol::Ping => true,
        };
        self.remote == target.ip() && port
    }

    fn refusal(&self) -> Option<&str> {
        match &self.body {
            Body::Refused(why) => Some(why),
            Body::Segment | Body::Payload(_) => None,
        }
    }
}
