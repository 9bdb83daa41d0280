//! Our presence on the segments: ARP, NDP and ping answered for the VIPs and our own addresses,
//! announcements, address conflicts, and the next hops' MACs that a snapshot is built from.
//!
//! `NetState` owns all of it and lives on the management thread. It is pure: frames that workers
//! pass on go in with the time, frames to send and events come out in `Output`. It never does
//! I/O, reads no clock and logs nothing; whoever drives it turns events into log lines and
//! snapshots.

mod announce;
mod echo;
mod entry;
mod frame;
mod limit;
mod links;
mod neighbour;
mod next_hops;
mod reassembly;
mod responder;
mod solicit;
mod wanted;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use frame::Mac;
pub(super) use limit::RateLimit;
pub use links::{PortConfig, Prefix, Route, Vip, prefix};
pub use next_hops::Way;
pub use wanted::{net_ports, vips};

use announce::{Announcer, Conflicts};
use links::Links;
use neighbour::{Context, Key, Table};
use reassembly::Reassembly;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// ARP and NDP answers a second: more than any segment asks for, less than a flood.
const ANSWERS_PER_SECOND: u32 = 10_000;
const ANSWERS_BURST: u32 = 1000;
/// Ping answers a second, all addresses together.
const ECHOES_PER_SECOND: u32 = 1000;
const ECHOES_BURST: u32 = 200;

/// What `NetState` wants done.
#[derive(Debug, Default)]
pub struct Output {
    /// Complete Ethernet frames without checksum trailer, each with the port it leaves by.
    pub frames: Vec<(u16, Vec<u8>)>,
    pub events: Vec<NetEvent>,
}

/// What an operator would want to know, or a snapshot depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetEvent {
    /// A neighbour became usable.
    NeighbourResolved { ip: IpAddr, port: u16, mac: Mac },
    /// A usable neighbour has another MAC now.
    NeighbourChanged {
        ip: IpAddr,
        port: u16,
        old: Mac,
        new: Mac,
    },
    /// A neighbour is not usable any more: it did not answer, or the table needed its place.
    NeighbourLost { ip: IpAddr, port: u16 },
    /// A wanted neighbour that was never resolved does not answer; it is asked on.
    NeighbourSilent { ip: IpAddr, port: u16 },
    /// Another host uses an address of ours (RFC 5227); at most once in ten seconds for each.
    AddressConflict { ip: IpAddr, mac: Mac, port: u16 },
}

/// What becomes of a received frame where Linux shares the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Answered here, or refused by a rate limit: Linux must not see it.
    Consumed,
    /// Linux may want it too: an ARP reply, or nothing of ours at all.
    Shared,
}

/// Totals since the start; frames unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub received: u64,
    pub malformed: u64,
    pub not_for_us: u64,
    pub rate_limited: u64,
    pub arp_replies: u64,
    pub neighbour_adverts: u64,
    pub echo_replies: u64,
    pub solicitations: u64,
    pub announcements: u64,
    /// Conflicts reported.
    pub conflicts: u64,
    /// Packets for a neighbour that did not answer in time, or beyond what may wait.
    pub held_dropped: u64,
    /// Neighbours refused because every entry was wanted.
    pub table_full: u64,
}

/// See the module's header.
#[derive(Debug)]
pub struct NetState {
    links: Links,
    vips: Vec<Vip>,
    wanted: BTreeSet<IpAddr>,
    table: Table,
    announcer: Announcer,
    conflicts: Conflicts,
    answers: RateLimit,
    echoes: RateLimit,
    reassembly: Reassembly,
    counters: Counters,
    /// Counts changes of the ports' configuration, and with it of the ways to everywhere.
    ways_version: u64,
}

impl NetState {
    /// Begins to announce the ports' addresses and to resolve their gateways; what is not in
    /// `out` yet comes from [`poll`](Self::poll), which is due at once.
    #[must_use]
    pub fn new(ports: Vec<PortConfig>, now: Instant, out: &mut Output) -> Self {
        let mut state = Self {
            links: Links::new(Vec::new(), &[]),
            vips: Vec::new(),
            wanted: BTreeSet::new(),
            table: Table::new(),
            announcer: Announcer::new(),
            conflicts: Conflicts::default(),
            answers: RateLimit::new(ANSWERS_PER_SECOND, ANSWERS_BURST),
            echoes: RateLimit::new(ECHOES_PER_SECOND, ECHOES_BURST),
            reassembly: Reassembly::default(),
            counters: Counters::default(),
            ways_version: 0,
        };
        state.set_ports(ports, now, out);
        state
    }

    /// Replaces the ports' configuration. Neighbours learned on ports that stay are kept, and
    /// only addresses that are new are announced.
    pub fn set_ports(&mut self, ports: Vec<PortConfig>, now: Instant, out: &mut Output) {
        let before = self.links.announced();
        self.ways_version += u64::from(!self.links.are(&ports));
        self.links = Links::new(ports, &self.vips);
        self.with_table(now, out, |table, cx| {
            table.retain_learned(cx);
            for link in cx.links.iter() {
                for &(ip, mac) in &link.config.neighbours {
                    table.set_static((link.config.index, ip), mac, cx.now);
                }
            }
        });
        self.announce_since(&before, now);
        self.refresh_wanted(now, out);
    }

    /// Replaces the VIPs, single addresses or prefixes: each is answered for on the ports whose
    /// subnet holds it, or on all ports if none does. Those that are new are announced; of a
    /// prefix only one of up to 256 addresses.
    pub fn set_vips(&mut self, vips: Vec<Vip>, now: Instant) {
        if self.vips == vips {
            return;
        }
        let before = self.links.announced();
        self.vips = vips;
        let links = std::mem::replace(&mut self.links, Links::new(Vec::new(), &[]));
        self.links = Links::new(links.into_configs(), &self.vips);
        let links = &self.links;
        self.conflicts
            .keep(|(port, ip)| links.get(port).is_some_and(|link| link.owns(ip)));
        self.announce_since(&before, now);
    }

    /// Replaces the set of destinations (backends, say) whose next hops are kept resolved. The
    /// configured gateways and routes' next hops always are.
    pub fn want(&mut self, destinations: BTreeSet<IpAddr>, now: Instant, out: &mut Output) {
        self.wanted = destinations;
        self.refresh_wanted(now, out);
    }

    /// The MAC to send packets for `dst` to, if known, and its port. If it is not, its next hop
    /// is asked for; `packet` (a complete Ethernet frame whose two addresses are still to be
    /// written) waits for the answer and then comes out in an `Output`, or is counted in
    /// `held_dropped`.
    pub fn resolve(
        &mut self,
        dst: IpAddr,
        packet: Option<Vec<u8>>,
        now: Instant,
        out: &mut Output,
    ) -> Option<(u16, Mac)> {
        let Some(key) = self.next_hop(dst) else {
            self.counters.held_dropped += u64::from(packet.is_some());
            return None;
        };
        let mac = self.with_table(now, out, |table, cx| table.resolve(key, packet, cx));
        mac.map(|mac| (key.0, mac))
    }

    /// The port and the on-link address that packets for `dst` go to: the longest match of the
    /// ports' subnets, routes and gateways, and of what Linux knows. None if nothing matches.
    #[must_use]
    pub fn next_hop(&self, dst: IpAddr) -> Option<(u16, IpAddr)> {
        let usable = |port, ip| self.table.mac((port, ip)).is_some();
        self.links.next_hop(dst, usable)
    }

    /// Every prefix and the way that leads to it.
    pub fn ways(&self) -> impl Iterator<Item = (crate::lb::route::Prefix, Way)> {
        let usable = |port, ip| self.table.mac((port, ip)).is_some();
        self.links.next_hops().iter(usable)
    }

    /// Another number whenever [`set_ports`](Self::set_ports) changed something.
    #[must_use]
    pub fn ways_version(&self) -> u64 {
        self.ways_version
    }

    /// Whether this neighbour is the next hop of a route.
    #[must_use]
    pub fn is_router(&self, port: u16, ip: IpAddr) -> bool {
        self.links.next_hops().routers().contains(&(port, ip))
    }

    /// The neighbours that can be sent to now, in no order.
    pub fn neighbours(&self) -> impl Iterator<Item = (IpAddr, u16, Mac)> {
        let usable = self.table.usable();
        usable.map(|((port, ip), mac)| (ip, port, mac))
    }

    /// Another number whenever [`neighbours`](Self::neighbours) gives others, and with them maybe
    /// [`next_hop`](Self::next_hop).
    #[must_use]
    pub fn version(&self) -> u64 {
        self.table.version()
    }

    /// Whether this address is ours on this port, be it that others answer ARP for it.
    #[must_use]
    pub fn is_ours(&self, port: u16, address: IpAddr) -> bool {
        self.links.get(port).is_some_and(|link| link.has(address))
    }

    /// Whether we answer ARP or neighbour discovery for this address on some port.
    #[must_use]
    pub fn answers_for(&self, address: IpAddr) -> bool {
        self.links.iter().any(|link| link.owns(address))
    }

    /// Announces all our addresses again, for instance when this instance takes over.
    pub fn announce(&mut self, now: Instant) {
        let all = self.links.announced();
        self.announcer.start(&all, now);
    }

    /// Announces all our addresses again after each `interval`, from now on.
    pub fn announce_every(&mut self, interval: Duration, now: Instant) {
        self.announcer.repeat_every(interval, now);
    }

    /// The port's link came up, or the port was reset: others may have forgotten us, and we
    /// may have missed what they said.
    pub fn link_up(&mut self, port: u16, now: Instant, out: &mut Output) {
        let of_port = self
            .links
            .announced()
            .into_iter()
            .filter(|key| key.0 == port);
        self.announcer.start(&of_port.collect(), now);
        self.with_table(now, out, |table, cx| table.doubt_port(port, cx));
    }

    /// Does what is due and says when it wants to be called next.
    pub fn poll(&mut self, now: Instant, out: &mut Output) -> Option<Instant> {
        self.with_table(now, out, |table, cx| table.poll(cx));
        let counters = &mut self.counters;
        let announce = self.announcer.poll(&self.links, counters, now, out);
        [announce, self.table.next_deadline(now)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Entries of the neighbour table, usable or not.
    #[must_use]
    pub fn table_len(&self) -> usize {
        self.table.len()
    }

    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn announce_since(&mut self, before: &BTreeSet<Key>, now: Instant) {
        let new = self.links.announced().difference(before).copied().collect();
        self.announcer.start(&new, now);
    }

    fn refresh_wanted(&mut self, now: Instant, out: &mut Output) {
        let hops = self.wanted.iter().filter_map(|&dst| self.next_hop(dst));
        let routers = self.links.next_hops().routers().iter().copied();
        let wanted: Vec<Key> = hops.chain(routers).collect();
        self.with_table(now, out, |table, cx| table.want(wanted.into_iter(), cx));
    }

    fn with_table<R>(
        &mut self,
        now: Instant,
        out: &mut Output,
        work: impl FnOnce(&mut Table, &mut Context<'_>) -> R,
    ) -> R {
        let mut context = Context {
            links: &self.links,
            counters: &mut self.counters,
            out,
            now,
        };
        work(&mut self.table, &mut context)
    }
}
