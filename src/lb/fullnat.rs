//! FullNAT's local ports: which are free, and which connection has which.
//!
//! Owned by one worker; nothing is allocated after [`LocalPorts::new`]. For every local address
//! and backend group there is a pool of those ports whose replies come to this worker: the owner
//! of a reply is a function of its destination alone (see [`super::owner`]). A group is a hash of
//! the backend's endpoint, so backends of different groups share a local port. A reply finds its
//! connection by its place in an array, without a hash table; the caller compares the whole
//! connection, so a forged packet finds nothing.
//!
//! A port costs 8 bytes: a cell, which holds the connection's slot or, while the port rests, when
//! it was freed; and its links in the list it is on. New ports are used before freed ones, and of
//! those the one freed longest ago first.

use crate::arch::{Region, prefetch};

use super::conn::{Conn, flag};
use super::counters::DropReason;
use super::flow::{Address, FlowKey};
use super::forward::nat::Endpoint;
use super::maglev::mix;
use super::owner::{Ownership, end_hash, local_port};
use super::parse::Packet;
use super::shard::{Shard, Tracked, backend_port};
use super::snapshot::{Backend, Service, Snapshot};
use super::table::Slot;
use super::{Now, Pass, Verdict};

/// Local ports that connections use. Those below are for health checks through a local address.
pub const FIRST_PORT: u16 = 2048;

/// Seconds that a backend which closed first keeps its side of the connection (Linux's TIME_WAIT):
/// it may refuse a new one from the same port until then.
pub const HOLD: u32 = 60;

/// How many groups of backends give twice as many ports as there may be connections.
pub fn group_count(connections: usize, addresses: usize) -> usize {
    let ports = 65536 - usize::from(FIRST_PORT);
    let wanted = (2 * connections).div_ceil(addresses.max(1) * ports);
    wanted.next_power_of_two().min(256)
}

/// The end of a list; the port of this index is never used.
const NONE: u16 = u16::MAX;
/// Cells: the connection's slot plus one, with a mark while it is on a list; or when it was freed.
const FREED: u32 = 1 << 31;
const WAITING: u32 = 1 << 30;
const YOUNG: u32 = 1 << 29;
const VALUE: u32 = YOUNG - 1;

/// A list of ports, linked by their indexes.
#[derive(Clone, Copy, Debug)]
struct List {
    first: u16,
    last: u16,
}

const EMPTY: List = List {
    first: NONE,
    last: NONE,
};

/// The ports of one local address for one backend group.
#[derive(Clone, Copy, Debug)]
struct Pool {
    /// Ports from here on have never been used.
    fresh: u32,
    used: u32,
    free: List,
    /// Freed, but the backend may still remember; oldest first.
    held: List,
    /// Of connections that are over but still tracked; oldest first.
    waiting: List,
    /// Of embryonic connections; oldest first.
    young: List,
}

/// A port taken for a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Index of the local address.
    pub address: u16,
    pub group: u8,
    /// The port's index in its pool.
    pub index: u16,
    pub port: u16,
}

impl Lease {
    /// Writes the port into a connection that is to be inserted.
    pub fn write<A: Address>(&self, conn: &mut Conn<A>) {
        conn.flags |= flag::FULL_NAT;
        conn.local_address = self.address;
        conn.local_port = self.port;
        conn.local_index = self.index;
        conn.group = self.group;
    }

    fn of<A: Address>(conn: &Conn<A>) -> Option<Self> {
        conn.has(flag::FULL_NAT).then_some(Self {
            address: conn.local_address,
            group: conn.group,
            index: conn.local_index,
            port: conn.local_port,
        })
    }
}

/// What becomes of the source of a FullNAT connection's packets; `None` for other connections.
#[inline(always)]
pub(super) fn local_end<A: Address>(snapshot: &Snapshot, conn: &Conn<A>) -> Option<Endpoint<A>> {
    if !conn.has(flag::FULL_NAT) {
        return None;
    }
    let address = snapshot.locals.get(usize::from(conn.local_address))?;
    Some(Endpoint {
        address: A::from_ip(*address)?,
        port: conn.local_port,
    })
}

/// Whether a packet is a FullNAT backend's answer in this connection.
#[inline(always)]
pub(super) fn is_local_reply<A: Address>(
    snapshot: &Snapshot,
    conn: &Conn<A>,
    key: &FlowKey<A>,
) -> bool {
    conn.has(flag::FULL_NAT)
        && conn.local_port == key.destination_port
        && conn.protocol == key.protocol
        && snapshot
            .locals
            .get(usize::from(conn.local_address))
            .is_some_and(|local| *local == key.destination.into())
        && snapshot.backend(conn.backend).is_some_and(|backend| {
            backend.address == key.source.into()
                && key.source_port == backend_port(backend, conn.vip_port)
        })
}

pub struct LocalPorts {
    cells: Region<u32>,
    /// Previous and next on the port's list: high and low half.
    links: Region<u32>,
    pools: Box<[Pool]>,
    /// By entry of the RETA: its place among this worker's entries, or [`NONE`].
    ranks: Box<[u16]>,
    /// This worker's entries of the RETA, by rank.
    entries: Box<[u16]>,
    groups: usize,
    /// The RETA's size is two to the power of this.
    reta_bits: u32,
    /// Indexes of a pool.
    ports: usize,
    /// Where each pool begins, so that instances do not all use the same ports first.
    start: u32,
    used: u64,
}

impl LocalPorts {
    /// Pools for local addresses with indexes below `addresses` and `groups` groups of backends
    /// (1 to 256, rounded down to a power of two), on worker `worker`.
    pub fn new(
        addresses: usize,
        groups: usize,
        ownership: Ownership,
        worker: u8,
    ) -> std::io::Result<Self> {
        let groups = 1 << groups.clamp(1, 256).ilog2();
        let reta = ownership.reta();
        let entries: Box<[u16]> = (0..reta)
            .filter(|&entry| ownership.worker(entry) == worker)
            .collect();
        let mut ranks = vec![NONE; usize::from(reta)];
        for (rank, &entry) in entries.iter().enumerate() {
            ranks[usize::from(entry)] = rank as u16;
        }
        let ports = entries.len() * (65536 / usize::from(reta));
        let pool = Pool {
            fresh: 0,
            used: 0,
            free: EMPTY,
            held: EMPTY,
            waiting: EMPTY,
            young: EMPTY,
        };
        Ok(Self {
            cells: Region::zeroed((addresses * groups * ports).max(1))?,
            links: Region::zeroed((addresses * groups * ports).max(1))?,
            pools: vec![pool; addresses * groups].into(),
            ranks: ranks.into(),
            entries,
            groups,
            reta_bits: reta.ilog2(),
            ports,
            start: (mix(std::process::id().into()) as u32) % ports.max(1) as u32,
            used: 0,
        })
    }

    /// Bytes of memory in all.
    pub fn memory(&self) -> usize {
        (self.cells.len() + self.links.len()) * size_of::<u32>()
    }

    /// Ports leased, and those there are.
    pub fn usage(&self) -> (u64, u64) {
        let unusable = self.ports * usize::from(FIRST_PORT) / 65536;
        let each = self.ports.saturating_sub(unusable) as u64;
        (self.used, self.pools.len() as u64 * each)
    }

    /// How full the fullest of the pools `range` is, in thousandths.
    pub fn fullest(&self, range: std::ops::Range<usize>) -> u64 {
        let pools = self.pools.get(range).unwrap_or(&[]);
        let used = pools.iter().map(|pool| pool.used).max().unwrap_or(0);
        let unusable = self.ports * usize::from(FIRST_PORT) / 65536;
        u64::from(used) * 1000 / self.ports.saturating_sub(unusable).max(1) as u64
    }

    pub fn pools(&self) -> usize {
        self.pools.len()
    }

    /// The group of a backend's endpoint.
    #[inline(always)]
    pub fn group<A: Address>(&self, number: u8, address: A, port: u16) -> u8 {
        let (high, low) = address.words();
        let end = u64::from(port) << 8 | u64::from(number);
        let mixed = (high ^ low ^ end << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 56) as usize & (self.groups - 1)) as u8
    }

    #[inline(always)]
    fn pool(&self, address: u16, group: u8) -> usize {
        usize::from(address) * self.groups + usize::from(group)
    }

    #[inline(always)]
    fn place(&self, lease: &Lease) -> usize {
        self.pool(lease.address, lease.group) * self.ports + usize::from(lease.index)
    }

    /// The cell for a reply to the local address of index `address`; `None` where such a port
    /// cannot be this worker's.
    #[inline(always)]
    pub fn cell<A: Address>(&self, address: u16, group: u8, local: A, port: u16) -> Option<usize> {
        let hash = end_hash(local, port);
        let rank = self.ranks[usize::from(hash) & (self.ranks.len() - 1)];
        let pool = self.pool(address, group);
        if rank == NONE || pool >= self.pools.len() {
            return None;
        }
        let index = usize::from(hash >> self.reta_bits) * self.entries.len() + usize::from(rank);
        Some(pool * self.ports + index)
    }

    /// First of two steps of a reply's look-up.
    #[inline(always)]
    pub fn prefetch(&self, cell: usize) {
        if let Some(cell) = self.cells.get(cell) {
            prefetch(cell);
        }
    }

    /// The connection that a cell names. Its slot lies in the table of the local address's family;
    /// whether the packet belongs to it is for the caller to compare.
    #[inline(always)]
    pub fn slot(&self, cell: usize) -> Option<Slot> {
        let cell = *self.cells.get(cell)?;
        let slot = (cell & VALUE).wrapping_sub(1);
        (cell & FREED == 0 && cell & VALUE != 0).then_some(Slot::at(slot))
    }

    /// Takes a port that nothing speaks against: a new one, or the one freed longest ago.
    pub fn take<A: Address>(
        &mut self,
        address: u16,
        group: u8,
        local: A,
        second: u32,
    ) -> Option<Lease> {
        let pool = self.pool(address, group);
        if self.entries.is_empty() || pool >= self.pools.len() {
            return None;
        }
        while (self.pools[pool].fresh as usize) < self.ports {
            let fresh = self.pools[pool].fresh;
            self.pools[pool].fresh += 1;
            let index = ((fresh as usize + self.start as usize) % self.ports) as u16;
            let lease = self.lease(address, group, local, index);
            if lease.port >= FIRST_PORT && index != NONE {
                return Some(self.taken(lease));
            }
        }
        self.end_holds(pool, second);
        let index = self.pop(pool, |pool| &mut pool.free)?;
        Some(self.taken(self.lease(address, group, local, index)))
    }

    /// Takes the port held longest although its hold is not over.
    pub fn take_held<A: Address>(&mut self, address: u16, group: u8, local: A) -> Option<Lease> {
        let pool = self.pool(address, group);
        if pool >= self.pools.len() {
            return None;
        }
        let index = self.pop(pool, |pool| &mut pool.held)?;
        Some(self.taken(self.lease(address, group, local, index)))
    }

    /// The connection to be forgotten when ports run out: the one that has been over for the
    /// longest, or else the oldest embryonic one.
    pub fn yields(&self, address: u16, group: u8) -> Option<Slot> {
        let pool = self.pool(address, group);
        let lists = self.pools.get(pool)?;
        let index = match (lists.waiting.first, lists.young.first) {
            (NONE, NONE) => return None,
            (NONE, young) => young,
            (over, _) => over,
        };
        self.slot(pool * self.ports + usize::from(index))
    }

    fn lease<A: Address>(&self, address: u16, group: u8, local: A, index: u16) -> Lease {
        let own = self.entries.len();
        let entry = self.entries[usize::from(index) % own];
        let high = (usize::from(index) / own) << self.reta_bits;
        Lease {
            address,
            group,
            index,
            port: local_port(local, high as u16 | entry),
        }
    }

    fn taken(&mut self, lease: Lease) -> Lease {
        let (pool, place) = (self.pool(lease.address, lease.group), self.place(&lease));
        self.cells[place] = 0;
        self.pools[pool].used += 1;
        self.used += 1;
        lease
    }

    /// Ends the holds that are over, a few at a time.
    fn end_holds(&mut self, pool: usize, second: u32) {
        for _ in 0..2 {
            let first = self.pools[pool].held.first;
            if first == NONE {
                return;
            }
            let freed = self.cells[pool * self.ports + usize::from(first)] & VALUE;
            if (second & VALUE).wrapping_sub(freed) & VALUE < HOLD {
                return;
            }
            self.pop(pool, |pool| &mut pool.held);
            self.push(pool, first, |pool| &mut pool.free);
        }
    }

    /// The connection lies in `slot` now: it was inserted, or moved.
    pub fn settled<A: Address>(&mut self, conn: &Conn<A>, slot: Slot) {
        let Some(lease) = Lease::of(conn) else { return };
        let (pool, place) = (self.pool(lease.address, lease.group), self.place(&lease));
        let new = self.cells[place] & VALUE == 0;
        self.cells[place] = self.cells[place] & (WAITING | YOUNG) | (slot.index() as u32 + 1);
        if new && conn.has(flag::EMBRYONIC) {
            self.cells[place] |= YOUNG;
            self.push(pool, lease.index, |pool| &mut pool.young);
        }
    }

    /// The connection is no longer embryonic.
    pub fn confirmed<A: Address>(&mut self, conn: &Conn<A>) {
        if let Some(lease) = Lease::of(conn) {
            self.delist(&lease);
        }
    }

    /// The connection is over, but for what may be under way: its port may be taken from it if
    /// need be.
    pub fn over<A: Address>(&mut self, conn: &Conn<A>) {
        let Some(lease) = Lease::of(conn) else { return };
        let (pool, place) = (self.pool(lease.address, lease.group), self.place(&lease));
        if self.cells[place] & WAITING == 0 {
            self.delist(&lease);
            self.cells[place] |= WAITING;
            self.push(pool, lease.index, |pool| &mut pool.waiting);
        }
    }

    /// Takes the port of a live connection off whichever list it is on.
    fn delist(&mut self, lease: &Lease) {
        let (pool, place) = (self.pool(lease.address, lease.group), self.place(lease));
        if self.cells[place] & WAITING != 0 {
            self.unlink(pool, lease.index, |pool| &mut pool.waiting);
        } else if self.cells[place] & YOUNG != 0 {
            self.unlink(pool, lease.index, |pool| &mut pool.young);
        }
        self.cells[place] &= VALUE;
    }

    /// The connection is no longer tracked: its port is free, or held where the backend closed
    /// first and not long ago.
    pub fn release<A: Address>(&mut self, conn: &Conn<A>, second: u32) {
        let Some(lease) = Lease::of(conn) else { return };
        let (pool, place) = (self.pool(lease.address, lease.group), self.place(&lease));
        self.delist(&lease);
        self.cells[place] = FREED | conn.last_seen & VALUE;
        let held = conn.has(flag::BACKEND_CLOSED) && second.wrapping_sub(conn.last_seen) < HOLD;
        if held {
            self.push(pool, lease.index, |pool| &mut pool.held);
        } else {
            self.push(pool, lease.index, |pool| &mut pool.free);
        }
        self.pools[pool].used -= 1;
        self.used -= 1;
    }

    /// Gives back a port that no connection got.
    pub fn give_back(&mut self, lease: Lease) {
        let (pool, place) = (self.pool(lease.address, lease.group), self.place(&lease));
        self.cells[place] = FREED;
        self.push(pool, lease.index, |pool| &mut pool.free);
        self.pools[pool].used -= 1;
        self.used -= 1;
    }

    fn link(&mut self, pool: usize, index: u16) -> &mut u32 {
        &mut self.links[pool * self.ports + usize::from(index)]
    }

    fn push(&mut self, pool: usize, index: u16, list: impl Fn(&mut Pool) -> &mut List) {
        let last = list(&mut self.pools[pool]).last;
        *self.link(pool, index) = u32::from(last) << 16 | u32::from(NONE);
        if last == NONE {
            list(&mut self.pools[pool]).first = index;
        } else {
            let link = self.link(pool, last);
            *link = *link & 0xffff_0000 | u32::from(index);
        }
        list(&mut self.pools[pool]).last = index;
    }

    fn pop(&mut self, pool: usize, list: impl Fn(&mut Pool) -> &mut List) -> Option<u16> {
        let first = list(&mut self.pools[pool]).first;
        if first == NONE {
            return None;
        }
        self.unlink(pool, first, list);
        Some(first)
    }

    fn unlink(&mut self, pool: usize, index: u16, list: impl Fn(&mut Pool) -> &mut List) {
        let link = *self.link(pool, index);
        let (previous, next) = ((link >> 16) as u16, link as u16);
        if previous == NONE {
            list(&mut self.pools[pool]).first = next;
        } else {
            let link = self.link(pool, previous);
            *link = *link & 0xffff_0000 | u32::from(next);
        }
        if next == NONE {
            list(&mut self.pools[pool]).last = previous;
        } else {
            let link = self.link(pool, next);
            *link = *link & 0xffff | u32::from(previous) << 16;
        }
    }
}

impl Shard {
    /// Gives the shard its local ports: `addresses` is one more than the highest index in
    /// [`Snapshot::locals`], now and later; `groups` is how many groups backends form, each of
    /// which can use every port anew. Takes 8 bytes for each of their products with this worker's
    /// share of 65,536 ports.
    pub fn with_local_ports(
        mut self,
        addresses: usize,
        groups: usize,
        ownership: Ownership,
    ) -> std::io::Result<Self> {
        self.local_ports = LocalPorts::new(addresses, groups, ownership, self.worker)?;
        self.counters
            .local_ports_all
            .set(self.local_ports.usage().1);
        Ok(self)
    }

    /// The cell of a reply to the local address of this index; beyond all where there is none.
    #[inline(always)]
    pub(super) fn local_cell<A: Address>(&self, address: u16, key: &FlowKey<A>) -> u64 {
        let group = self
            .local_ports
            .group(key.protocol, key.source, key.source_port);
        let (local, port) = (key.destination, key.destination_port);
        let cell = self.local_ports.cell(address, group, local, port);
        cell.map_or(u64::MAX, |cell| cell as u64)
    }

    /// The connection that a FullNAT backend's packet belongs to.
    pub(super) fn local_reply<A: Tracked>(
        &self,
        snapshot: &Snapshot,
        cell: u64,
        key: &FlowKey<A>,
    ) -> Option<Slot> {
        let slot = self.local_ports.slot(cell as usize)?;
        let conn = A::table(&self.tables).try_get(slot)?;
        is_local_reply(snapshot, conn, key).then_some(slot)
    }

    /// A packet to a local address that belongs to no connection: a probe's answer, which
    /// management waits for, or nothing.
    #[cold]
    pub(super) fn unknown_reply<A: Address>(&self, packet: &Packet<A>) -> Verdict {
        if packet.key.destination_port < FIRST_PORT {
            return Verdict::Pass(Pass::Local);
        }
        Verdict::Drop(DropReason::Untracked)
    }

    /// A local port for a new connection to `backend`: at one of the service's local addresses, in
    /// turn from one that depends on the client.
    pub(super) fn lease<A: Tracked>(
        &mut self,
        snapshot: &Snapshot,
        service: &Service,
        backend: &Backend,
        packet: &Packet<A>,
        hash: u64,
        now: Now,
    ) -> Result<Lease, DropReason> {
        let address = A::from_ip(backend.address).ok_or(DropReason::PoolExhausted)?;
        let port = backend_port(backend, packet.key.destination_port);
        let group = self.local_ports.group(packet.key.protocol, address, port);
        let candidates = || candidates::<A>(snapshot, service, hash);
        for (index, local) in candidates() {
            if let Some(lease) = self.local_ports.take(index, group, local, now.second) {
                return Ok(lease);
            }
        }
        // Before a connection is refused, one that is over or embryonic gives way, or a hold ends
        // early.
        for (index, local) in candidates() {
            let yields = self.local_ports.yields(index, group);
            let young = yields.is_some_and(|slot| {
                let conn = A::table(&self.tables).get(slot);
                conn.has(flag::EMBRYONIC)
            });
            if let Some(slot) = yields {
                self.forget::<A>(slot, now);
            }
            let lease = match self.local_ports.take(index, group, local, now.second) {
                Some(lease) => Some(lease),
                None => self.local_ports.take_held(index, group, local),
            };
            if let Some(lease) = lease {
                match young {
                    true => self.counters.evicted.add(1),
                    false => self.counters.holds_cut_short.add(1),
                }
                return Ok(lease);
            }
        }
        Err(DropReason::PoolExhausted)
    }
}

/// The service's local addresses of this family, with their indexes, from one that `hash` picks.
fn candidates<'s, A: Address>(
    snapshot: &'s Snapshot,
    service: &'s Service,
    hash: u64,
) -> impl Iterator<Item = (u16, A)> + 's {
    let count = service.locals.len();
    let start = (hash >> 32) as usize % count.max(1);
    (0..count).filter_map(move |n| {
        let index = service.locals[(start + n) % count];
        let address = snapshot.locals.get(usize::from(index))?;
        Some((index, A::from_ip(*address)?))
    })
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod flows;
