//! FullNAT's local ports: which are free, and which connection has which.
//!
//! Owned by one worker; nothing is allocated after [`LocalPorts::new`]. For every local address
//! and backend group there is a pool of those ports whose replies come to this worker: the owner
//! of a reply is a function of its destination alone (see [`crate::lb::owner`]). A group is a hash
//! of the backend's endpoint, so backends of different groups share a local port.
//!
//! A port costs 4.5 bytes: a cell, which holds the connection's slot or, while the port rests, the
//! second of its last packet; and a bit in each of four sets. Ports are lent in a circle, so what
//! comes next in it was lent longest ago: that is where the next port is looked for, and the
//! connection that gives way when there is none.

use super::super::conn::{Conn, flag};
use super::super::flow::Address;
use super::super::maglev::mix;
use super::super::owner::{Ownership, end_hash, local_port};
use super::super::table::Slot;
use super::port_sets::PortSets;
use crate::arch::{Region, prefetch};

/// Local ports that connections use. Those below are for health checks through a local address.
pub const FIRST_PORT: u16 = 2048;

/// Seconds that a backend which closed first keeps its side of the connection (Linux's TIME_WAIT):
/// it may refuse a new one from the same port until then.
pub const HOLD: u32 = 60;

/// A port whose last packet was seen so many seconds ago is as good as a new one.
const RESTED: u32 = 4;
/// Free ports among which the one that has rested longest is taken.
const CHOICE: usize = 8;
/// Held ports that are looked at, at most, before a connection is refused.
const LAST_LOOKS: u32 = 1024;

/// How many groups of backends give twice as many ports as there may be connections.
pub fn group_count(connections: usize, addresses: usize) -> usize {
    let ports = 65536 - usize::from(FIRST_PORT);
    let wanted = (2 * connections).div_ceil(addresses.max(1) * ports);
    wanted.next_power_of_two().min(256)
}

/// Cells: the connection's slot plus one; or, with this bit, the second of the last packet.
const FREED: u32 = 1 << 31;
const SECOND: u32 = FREED - 1;

/// The ports of one local address for one backend group.
#[derive(Clone, Copy, Debug)]
struct Pool {
    /// Where in the circle the next port is looked for.
    next: u32,
    /// The word of the set of held ports in which the next hold may be over.
    holds: u32,
    /// Ports in the set of held ones: mostly none, and then nothing is looked for.
    held: u32,
    used: u32,
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

pub struct LocalPorts {
    cells: Region<u32>,
    free: PortSets,
    /// Freed, but the backend may still remember.
    held: PortSets,
    /// Of embryonic connections.
    young: PortSets,
    /// Of connections that are over but still tracked.
    over: PortSets,
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
    used: u64,
    survey: Survey,
}

/// A look at all pools, a few at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Survey {
    next: usize,
    /// How full the fullest was that this turn has come by, and of all in the turn before.
    rising: u64,
    last: u64,
}

/// Pools that are looked at at a time.
const SURVEYED: usize = 64;

/// Another worker's entry of the RETA.
const NONE: u16 = u16::MAX;

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
        let pools = addresses * groups;
        let sets = || PortSets::new(pools, ports);
        let mut free = sets()?;
        free.fill(pools, ports);
        // Instances do not all use the same ports first.
        let start = mix(std::process::id().into()) as u32 % ports.max(1) as u32;
        let pool = Pool {
            next: start,
            holds: start / 64,
            held: 0,
            used: 0,
        };
        Ok(Self {
            cells: Region::zeroed((pools * ports).max(1))?,
            free,
            held: sets()?,
            young: sets()?,
            over: sets()?,
            pools: vec![pool; pools].into(),
            ranks: ranks.into(),
            entries,
            groups,
            reta_bits: reta.ilog2(),
            ports,
            used: 0,
            survey: Survey::default(),
        })
    }

    /// Bytes of memory in all.
    pub fn memory(&self) -> usize {
        let sets = [&self.free, &self.held, &self.young, &self.over];
        let sets: usize = sets.iter().map(|set| set.memory()).sum();
        self.cells.len() * size_of::<u32>() + sets
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

    /// Looks at the next few pools. Returns how full the fullest of all is, in thousandths, as it was
    /// when they were looked at last.
    pub fn survey(&mut self) -> u64 {
        let from = self.survey.next;
        let to = (from + SURVEYED).min(self.pools.len());
        let fullest = self.fullest(from..to).max(self.survey.rising);
        self.survey = match to == self.pools.len() {
            true => Survey {
                last: fullest,
                ..Survey::default()
            },
            false => Survey {
                next: to,
                rising: fullest,
                ..self.survey
            },
        };
        fullest.max(self.survey.last)
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

    /// A lease's pool, and the place of its cell.
    #[inline(always)]
    pub(super) fn place(&self, lease: &Lease) -> (usize, usize) {
        let pool = self.pool(lease.address, lease.group);
        (pool, pool * self.ports + usize::from(lease.index))
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
        (cell & FREED == 0 && cell != 0).then(|| Slot::at(cell - 1))
    }

    /// Takes a port that nothing speaks against: of the next free ones in the circle the first
    /// that has rested, or else the one that has for the longest.
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
        self.end_holds(pool, second, 1);
        let mut index = self.rested(pool, local, second);
        if index.is_none() {
            self.end_holds(pool, second, self.held.each());
            index = self.rested(pool, local, second);
        }
        let index = index?;
        self.free.remove(pool, index);
        Some(self.taken(self.lease(address, group, local, index)))
    }

    fn rested<A: Address>(&mut self, pool: usize, local: A, second: u32) -> Option<u16> {
        let (mut from, mut looks) = (self.pools[pool].next, 0);
        let mut best: Option<(u32, u16)> = None;
        while looks < CHOICE {
            let Some(index) = self.free.next(pool, from) else {
                break;
            };
            from = u32::from(index) + 1;
            if self.port(local, index) < FIRST_PORT {
                // Never lent; a local address keeps its index.
                self.free.remove(pool, index);
                continue;
            }
            let age = self.age(pool, index, second);
            if best.is_none_or(|(rested, _)| age > rested) {
                best = Some((age, index));
            }
            if age >= RESTED {
                break;
            }
            looks += 1;
        }
        best.map(|(_, index)| index)
    }

    /// Seconds since the last packet from or to a port that is not lent.
    fn age(&self, pool: usize, index: u16, second: u32) -> u32 {
        match self.cells[pool * self.ports + usize::from(index)] {
            0 => RESTED,
            cell => second.wrapping_sub(cell) & SECOND,
        }
    }

    /// Takes a port although its hold is not over: of the next ones the one held longest.
    pub fn take_held<A: Address>(
        &mut self,
        address: u16,
        group: u8,
        local: A,
        second: u32,
    ) -> Option<Lease> {
        let pool = self.pool(address, group);
        let Pool { holds, held, .. } = *self.pools.get(pool)?;
        if held == 0 {
            return None;
        }
        let mut from = holds * 64;
        let mut best: Option<(u32, u16)> = None;
        for _ in 0..CHOICE {
            let index = self.held.next(pool, from)?;
            from = u32::from(index) + 1;
            let age = self.age(pool, index, second);
            if best.is_none_or(|(held, _)| age > held) {
                best = Some((age, index));
            }
        }
        let (_, index) = best?;
        self.no_longer_held(pool, index);
        Some(self.taken(self.lease(address, group, local, index)))
    }

    /// The connection to be forgotten when ports run out: of those that are over, or else of the
    /// embryonic ones, the one that has had its port for the longest.
    pub fn yields(&self, address: u16, group: u8) -> Option<Slot> {
        let pool = self.pool(address, group);
        let from = self.pools.get(pool)?.next;
        let over = self.over.next(pool, from);
        let index = over.or_else(|| self.young.next(pool, from))?;
        self.slot(pool * self.ports + usize::from(index))
    }

    fn port<A: Address>(&self, local: A, index: u16) -> u16 {
        let own = self.entries.len();
        let entry = self.entries[usize::from(index) % own];
        let high = (usize::from(index) / own) << self.reta_bits;
        local_port(local, high as u16 | entry)
    }

    fn lease<A: Address>(&self, address: u16, group: u8, local: A, index: u16) -> Lease {
        Lease {
            address,
            group,
            index,
            port: self.port(local, index),
        }
    }

    fn taken(&mut self, lease: Lease) -> Lease {
        let (pool, place) = self.place(&lease);
        self.cells[place] = 0;
        self.pools[pool].next = u32::from(lease.index) + 1;
        self.pools[pool].used += 1;
        self.used += 1;
        lease
    }

    /// Ends the holds that are over, in the next words of the set and until `words` of it are behind.
    fn end_holds(&mut self, pool: usize, second: u32, words: usize) {
        let (each, mut looks, mut behind) = (self.held.each(), 0, 0);
        while self.pools[pool].held > 0 && behind < words && looks < LAST_LOOKS {
            let from = self.pools[pool].holds as usize;
            let Some(word) = self.held.next_word(pool, from) else {
                return;
            };
            behind += (word + each - from) % each + 1;
            self.pools[pool].holds = ((word + 1) % each) as u32;
            let mut bits = self.held.word(pool, word);
            looks += bits.count_ones();
            while bits != 0 {
                let index = (word * 64) as u16 + bits.trailing_zeros() as u16;
                bits &= bits - 1;
                if self.age(pool, index, second) >= HOLD {
                    self.no_longer_held(pool, index);
                    self.free.insert(pool, index);
                }
            }
        }
    }

    fn no_longer_held(&mut self, pool: usize, index: u16) {
        self.held.remove(pool, index);
        self.pools[pool].held -= 1;
    }

    /// The connection lies in `slot` now: it was inserted, or moved.
    pub fn settled<A: Address>(&mut self, conn: &Conn<A>, slot: Slot) {
        let Some(lease) = Lease::of(conn) else { return };
        let (pool, place) = self.place(&lease);
        let is_new = self.cells[place] == 0;
        self.cells[place] = slot.index() as u32 + 1;
        if is_new && conn.has(flag::EMBRYONIC) {
            self.young.insert(pool, lease.index);
        }
    }

    /// Takes the port that a connection has which comes from another worker's table.
    pub fn adopt<A: Address>(&mut self, conn: &Conn<A>, slot: Slot) {
        if let Some(lease) = Lease::of(conn) {
            let (pool, _) = self.place(&lease);
            self.free.remove(pool, lease.index);
            self.taken(lease);
            self.settled(conn, slot);
        }
    }

    /// Local addresses that there is room for.
    pub fn addresses(&self) -> usize {
        self.pools.len() / self.groups
    }

    /// The connection is no longer embryonic.
    pub fn confirmed<A: Address>(&mut self, conn: &Conn<A>) {
        if let Some(lease) = Lease::of(conn) {
            let (pool, _) = self.place(&lease);
            self.young.remove(pool, lease.index);
        }
    }

    /// The connection is over, but for what may be under way: its port may be taken from it if
    /// need be.
    pub fn over<A: Address>(&mut self, conn: &Conn<A>) {
        if let Some(lease) = Lease::of(conn) {
            let (pool, _) = self.place(&lease);
            self.young.remove(pool, lease.index);
            self.over.insert(pool, lease.index);
        }
    }

    /// The connection is no longer tracked: its port is free, or held where the backend closed
    /// first and not long ago.
    pub fn release<A: Address>(&mut self, conn: &Conn<A>, second: u32) {
        let Some(lease) = Lease::of(conn) else { return };
        let held = conn.has(flag::BACKEND_CLOSED) && second.wrapping_sub(conn.last_seen) < HOLD;
        self.freed(&lease, FREED | conn.last_seen & SECOND, held);
    }

    /// Gives back a port that no connection got.
    pub fn give_back(&mut self, lease: Lease) {
        self.freed(&lease, 0, false);
    }

    fn freed(&mut self, lease: &Lease, cell: u32, held: bool) {
        let (pool, place) = self.place(lease);
        self.young.remove(pool, lease.index);
        self.over.remove(pool, lease.index);
        match held {
            true => {
                self.held.insert(pool, lease.index);
                self.pools[pool].held += 1;
            }
            false => self.free.insert(pool, lease.index),
        }
        self.cells[place] = cell;
        self.pools[pool].used -= 1;
        self.used -= 1;
    }
}
