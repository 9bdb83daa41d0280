//! The connection table: one per worker and address family, of fixed size, never shared.
//!
//! A bucket is one cache line of 32 tags of 16 bits and the 32 entries that belong to it right
//! behind, so that a look-up touches two lines and mostly one page. The table grows and shrinks
//! inside its memory by linear hashing (W. Litwin, 1980), one row of buckets at a time, so that a
//! few connections lie close together: they then cost few cache lines and few TLB entries,
//! however many there is room for.
//!
//! Every key has two buckets. An insert takes the first where it has room, then the second, then
//! makes room by moving one entry to its other bucket: 95 % load is reached. Tags only sort out;
//! what matches is decided by the caller on the full key. Runs on workers; never allocates after
//! [`ConnTable::new`].

use crate::arch::{Region, TagLine, Tags, match_tags, prefetch, prefetch_index};

use super::conn::{Conn, State, flag};
use super::flow::{Address, Seed, endpoint_hash};

/// Entries of a bucket.
pub const WAYS: usize = 32;

/// Where an entry lies. Good until the next insert or removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(u32);

impl Slot {
    /// No slot of any table.
    pub const NONE: Slot = Slot(u32::MAX);

    /// The slot of this index, as [`Slot::index`] gave it.
    #[inline(always)]
    pub(super) fn at(index: u32) -> Self {
        Self(index)
    }

    pub fn index(self) -> usize {
        self.0 as usize
    }

    #[inline(always)]
    fn bucket(self) -> usize {
        self.index() / WAYS
    }

    #[inline(always)]
    fn way(self) -> usize {
        self.index() % WAYS
    }
}

/// The table had no room for a new entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// What an insert did beside inserting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inserted<A: Address> {
    pub slot: Slot,
    /// An embryonic connection that had to make room.
    pub evicted: Option<Conn<A>>,
}

/// The tags of 32 entries, 0 for a free one, and the entries.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Bucket<A: Address> {
    tags: TagLine,
    conns: [Conn<A>; WAYS],
}

pub struct ConnTable<A: Address> {
    seed: Seed,
    /// Row after row, `lanes` to a row; those beyond `rows` are empty and not in use.
    buckets: Region<Bucket<A>>,
    /// A key's lane is the same in both its rows, and however many rows there are.
    lanes: usize,
    /// Rows in use, at least one, the bits that tell them apart, and the highest of those.
    rows: usize,
    mask: usize,
    half: usize,
    length: usize,
    sweep: usize,
}

impl<A: Address> ConnTable<A> {
    /// A table with room for at least `connections` at 95 % load.
    pub fn new(connections: usize, seed: Seed) -> std::io::Result<Self> {
        let wanted = (connections + connections / 19).div_ceil(WAYS).max(2);
        // A power of two of rows, and so few lanes that little is rounded up and rows are short.
        let rows = 1 << (wanted.ilog2().saturating_sub(2));
        let lanes = wanted.div_ceil(rows);
        Ok(Self {
            seed,
            buckets: Region::zeroed(rows * lanes)?,
            lanes,
            rows: 1,
            mask: 1,
            half: 1,
            length: 0,
            sweep: 0,
        })
    }

    /// Slots in all; an insert can fail a little before they are used up.
    pub fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }

    /// Entries in use, expired ones that no sweep has met included.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// So full that inserts will soon fail.
    pub fn is_nearly_full(&self) -> bool {
        self.length * 16 >= self.capacity() * 15
    }

    /// Bytes of memory the table takes, tags and entries.
    pub fn memory(&self) -> usize {
        self.buckets.len() * size_of::<Bucket<A>>()
    }

    #[inline(always)]
    fn tag(hash: u64) -> u16 {
        // 0 is a free entry's.
        hash as u16 | 1
    }

    /// The row that a number belongs to: its low bits, one less where that row is not yet split.
    #[inline(always)]
    fn row(&self, bits: usize) -> usize {
        let row = bits & self.mask;
        let unsplit = row.wrapping_sub(self.half);
        match row < self.rows {
            true => row,
            false => unsplit,
        }
    }

    fn set_rows(&mut self, rows: usize) {
        self.rows = rows;
        self.mask = usize::MAX >> rows.leading_zeros();
        self.half = self.mask / 2 + 1;
    }

    #[inline(always)]
    fn lane(&self, hash: u64) -> usize {
        (((hash >> 32) * self.lanes as u64) >> 32) as usize
    }

    /// What a key's first and second row are told from.
    #[inline(always)]
    fn bits(hash: u64) -> (usize, usize) {
        let shift = u32::from(Self::tag(hash)).wrapping_mul(0x9e37_79b1) | 1;
        (
            (hash >> 16) as usize,
            ((hash >> 16) as u32 ^ shift) as usize,
        )
    }

    /// The first of the two buckets of a key with this hash.
    #[inline(always)]
    fn first(&self, hash: u64) -> usize {
        self.row(Self::bits(hash).0) * self.lanes + self.lane(hash)
    }

    /// The second of the two buckets; in a small table it may be the first.
    #[inline(always)]
    fn second(&self, hash: u64) -> usize {
        self.row(Self::bits(hash).1) * self.lanes + self.lane(hash)
    }

    fn hash(&self, conn: &Conn<A>) -> u64 {
        endpoint_hash(&self.seed, conn.protocol, conn.client, conn.client_port)
    }

    /// First of three passes: asks for the line of tags, and says where the bucket begins.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) -> Slot {
        let bucket = self.first(hash);
        prefetch_index(&self.buckets, bucket);
        Slot((bucket * WAYS) as u32)
    }

    /// Second pass: asks for the entry that most likely matches and sets `slot`, the begin of the
    /// bucket so far, to it; or asks for the second bucket.
    #[inline(always)]
    pub fn prefetch_entry<T: Tags>(&self, slot: &mut Slot, hash: u64) {
        let Some(Bucket { tags, conns }) = self.buckets.get(slot.bucket()) else {
            return;
        };
        let found = T::matching(tags, Self::tag(hash));
        if found != 0 {
            let way = found.trailing_zeros();
            prefetch(&conns[way as usize % WAYS]);
            *slot = Slot(slot.0 | way);
        } else if let Some(other) = self.buckets.get(self.second(hash)) {
            prefetch(other);
        }
    }

    /// Asks for an entry whose slot is known.
    #[inline(always)]
    pub fn prefetch_slot(&self, slot: Slot) {
        if let Some(conn) = self.try_get(slot) {
            prefetch(conn);
        }
    }

    /// Third pass, in the hope that [`ConnTable::prefetch_entry`] found the right one: the entry
    /// there, which may have changed since or be gone, so that its state, too, must be looked at.
    #[inline(always)]
    pub fn try_get_mut(&mut self, slot: Slot) -> Option<&mut Conn<A>> {
        let bucket = self.buckets.get_mut(slot.bucket())?;
        Some(&mut bucket.conns[slot.way()])
    }

    /// The entry with this hash for which `matches` holds.
    #[inline(always)]
    pub fn find(&self, hash: u64, matches: impl Fn(&Conn<A>) -> bool) -> Option<Slot> {
        let tag = Self::tag(hash);
        let first = self.find_in(self.first(hash), tag, &matches);
        first.or_else(|| self.find_in(self.second(hash), tag, &matches))
    }

    #[inline(always)]
    fn find_in(
        &self,
        bucket: usize,
        tag: u16,
        matches: &impl Fn(&Conn<A>) -> bool,
    ) -> Option<Slot> {
        let Bucket { tags, conns } = &self.buckets[bucket];
        let mut found = match_tags(tags, tag);
        while found != 0 {
            let way = found.trailing_zeros() as usize;
            if matches(&conns[way % WAYS]) {
                return Some(Slot((bucket * WAYS + way) as u32));
            }
            found &= found - 1;
        }
        None
    }

    #[inline(always)]
    pub fn get(&self, slot: Slot) -> &Conn<A> {
        &self.buckets[slot.bucket()].conns[slot.way()]
    }

    /// The entry of a slot that may be another table's, where there is one.
    #[inline(always)]
    pub fn try_get(&self, slot: Slot) -> Option<&Conn<A>> {
        let bucket = self.buckets.get(slot.bucket())?;
        Some(&bucket.conns[slot.way()])
    }

    #[inline(always)]
    pub fn get_mut(&mut self, slot: Slot) -> &mut Conn<A> {
        &mut self.buckets[slot.bucket()].conns[slot.way()]
    }

    /// Adds an entry under the hash of its client's endpoint; the caller has made sure that there
    /// is none with its key. When both its buckets are full and nothing can move, the embryonic
    /// entry among them that was seen longest ago makes room; established flows never do. Entries
    /// that had to move are handed to `moved`, with where they are now.
    pub fn insert(
        &mut self,
        hash: u64,
        conn: Conn<A>,
        mut moved: impl FnMut(&Conn<A>, Slot),
    ) -> Result<Inserted<A>, Full> {
        /// Rows to split, at most, for one connection: nearly always the first is enough.
        const SPLITS: usize = 4;
        debug_assert_eq!(hash, self.hash(&conn), "found again only under this hash");
        if self.length * 2 >= self.buckets() * WAYS {
            self.grow(&mut moved);
        }
        let mut evicted = None;
        let mut slot = self.room(hash, &mut moved);
        for _ in 0..SPLITS {
            if slot.is_some() || !self.grow(&mut moved) {
                break;
            }
            slot = self.room(hash, &mut moved);
        }
        if slot.is_none() {
            slot = self.oldest_embryonic(hash, &conn);
            evicted = slot.map(|slot| self.remove(slot));
        }
        let slot = slot.ok_or(Full)?;
        self.put(slot, Self::tag(hash), conn);
        Ok(Inserted { slot, evicted })
    }

    /// A free slot for a key with this hash, made if need be.
    #[inline(always)]
    fn room(&mut self, hash: u64, moved: &mut impl FnMut(&Conn<A>, Slot)) -> Option<Slot> {
        let first = self.first(hash);
        if let Some(slot) = self.free_slot(first) {
            return Some(slot);
        }
        let second = self.second(hash);
        self.free_slot(second)
            .or_else(|| self.make_room(first, moved))
            .or_else(|| self.make_room(second, moved))
    }

    /// Splits a row in two; false where all the memory is in use.
    #[inline(never)]
    fn grow(&mut self, moved: &mut impl FnMut(&Conn<A>, Slot)) -> bool {
        if self.buckets() == self.buckets.len() {
            return false;
        }
        let (old, new) = (self.rows - (1 << self.rows.ilog2()), self.rows);
        for lane in 0..self.lanes {
            let (from, to) = (old * self.lanes + lane, new * self.lanes + lane);
            for way in 0..WAYS {
                let slot = Slot((from * WAYS + way) as u32);
                let tag = self.buckets[from].tags.0[way];
                if tag == 0 {
                    continue;
                }
                let hash = self.hash(self.get(slot));
                let (first, second) = Self::bits(hash);
                let bits = if self.first(hash) == from {
                    first
                } else {
                    second
                };
                if bits & usize::MAX >> new.leading_zeros() == new {
                    let conn = self.remove(slot);
                    let slot = Slot((to * WAYS + way) as u32);
                    self.put(slot, tag, conn);
                    moved(&conn, slot);
                }
            }
        }
        self.set_rows(new + 1);
        true
    }

    /// Puts the last row back into the one it was split off, if the table is nearly empty and
    /// there is room. Entries that moved are handed to `moved`. To be called now and then.
    pub fn shrink(&mut self, mut moved: impl FnMut(&Conn<A>, Slot)) {
        if self.rows == 1 || self.length * 8 > self.buckets() * WAYS {
            return;
        }
        let last = self.rows - 1;
        let into = last - (1 << last.ilog2());
        let used = |bucket: usize| WAYS - self.free_ways(bucket).count_ones() as usize;
        let fits = |lane| used(last * self.lanes + lane) + used(into * self.lanes + lane) <= WAYS;
        if !(0..self.lanes).all(fits) {
            return;
        }
        for lane in 0..self.lanes {
            let (from, to) = (last * self.lanes + lane, into * self.lanes + lane);
            for way in 0..WAYS {
                let tag = self.buckets[from].tags.0[way];
                if tag != 0
                    && let Some(slot) = self.free_slot(to)
                {
                    let conn = self.remove(Slot((from * WAYS + way) as u32));
                    self.put(slot, tag, conn);
                    moved(&conn, slot);
                }
            }
        }
        self.set_rows(last);
        self.sweep %= self.buckets();
    }

    /// A bit for each free way of a bucket.
    #[inline(always)]
    fn free_ways(&self, bucket: usize) -> u32 {
        match_tags(&self.buckets[bucket].tags, 0)
    }

    #[inline(always)]
    fn free_slot(&self, bucket: usize) -> Option<Slot> {
        let free = self.free_ways(bucket);
        (free != 0).then(|| Slot((bucket * WAYS) as u32 + free.trailing_zeros()))
    }

    #[inline(always)]
    fn put(&mut self, slot: Slot, tag: u16, conn: Conn<A>) {
        let bucket = &mut self.buckets[slot.bucket()];
        bucket.tags.0[slot.way()] = tag;
        bucket.conns[slot.way()] = conn;
        self.length += 1;
    }

    /// Moves one entry of a full bucket to its other bucket.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self, bucket: usize, moved: &mut impl FnMut(&Conn<A>, Slot)) -> Option<Slot> {
        for way in 0..WAYS {
            let from = Slot((bucket * WAYS + way) as u32);
            let hash = self.hash(self.get(from));
            let (first, second) = (self.first(hash), self.second(hash));
            let other = if first == bucket { second } else { first };
            if let Some(to) = self.free_slot(other) {
                let conn = self.remove(from);
                self.put(to, Self::tag(hash), conn);
                moved(&conn, to);
                return Some(from);
            }
        }
        None
    }

    /// The oldest embryonic entry of a key's buckets, as seen from when `new` is made. Of those that
    /// are equally old any, but not always the same: what came last must not be the next to go.
    fn oldest_embryonic(&self, hash: u64, new: &Conn<A>) -> Option<Slot> {
        let eighths = |conn: &Conn<A>| {
            let eighth = u32::from((conn.flags & flag::EIGHTH) / 32);
            conn.last_seen.wrapping_mul(8).wrapping_add(eighth)
        };
        let buckets = [self.first(hash), self.second(hash)];
        let first = (hash >> 48) as usize;
        (0..2 * WAYS)
            .map(|n| (first + n) % (2 * WAYS))
            .map(|n| Slot((buckets[n / WAYS] * WAYS + n % WAYS) as u32))
            .filter(|&slot| self.get(slot).has(flag::EMBRYONIC))
            // One whose SYN came again may look younger than what is made now.
            .max_by_key(|&slot| eighths(new).wrapping_sub(eighths(self.get(slot))) as i32)
    }

    /// Takes an entry out and returns it.
    pub fn remove(&mut self, slot: Slot) -> Conn<A> {
        let Bucket { tags, conns } = &mut self.buckets[slot.bucket()];
        tags.0[slot.way()] = 0;
        self.length -= 1;
        let conn = conns[slot.way()];
        conns[slot.way()].state = State::None;
        conns[slot.way()].flags = 0;
        conn
    }

    /// Looks at the next `buckets` buckets and removes what has expired by `second`, and embryonic
    /// entries not seen for more than `embryo_age` seconds, handing each to `removed`. Called a
    /// little at a time, it walks the whole table.
    pub fn sweep(
        &mut self,
        second: u32,
        embryo_age: u32,
        buckets: usize,
        mut removed: impl FnMut(Conn<A>),
    ) {
        for _ in 0..buckets.min(self.buckets()) {
            let mut used = !self.free_ways(self.sweep);
            while used != 0 {
                let slot = Slot((self.sweep * WAYS) as u32 + used.trailing_zeros());
                let conn = self.get(slot);
                let young = conn.has(flag::EMBRYONIC);
                if conn.is_expired(second)
                    || young && second.wrapping_sub(conn.last_seen) > embryo_age
                {
                    removed(self.remove(slot));
                }
                used &= used - 1;
            }
            self.sweep = (self.sweep + 1) % self.buckets();
        }
    }

    /// Buckets in use; the sweep's unit.
    pub fn buckets(&self) -> usize {
        self.rows * self.lanes
    }

    /// The entries of `buckets`, for listings.
    pub fn entries(
        &self,
        buckets: std::ops::Range<usize>,
    ) -> impl Iterator<Item = (Slot, &Conn<A>)> {
        buckets
            .filter(|&b| b < self.buckets())
            .flat_map(move |bucket| {
                (0..WAYS)
                    .filter(move |&way| self.buckets[bucket].tags.0[way] != 0)
                    .map(move |way| {
                        let slot = Slot((bucket * WAYS + way) as u32);
                        (slot, self.get(slot))
                    })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::fixture;
    use crate::lb::flow::{Seed, endpoint_hash};
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    const SEED: Seed = Seed([
        0x9e37_79b9_7f4a_7c15,
        0xd1b5_4a32_d192_ed03,
        0x8cb9_2ba7_2f3d_8dd7,
    ]);

    fn conn(n: u32) -> Conn<Ipv4Addr> {
        let mut conn = fixture::conn("10.0.0.1:1000", "192.0.2.80:80");
        conn.client = Ipv4Addr::from_bits(0x0a00_0000 + n);
        conn
    }

    fn hash(conn: &Conn<Ipv4Addr>) -> u64 {
        endpoint_hash(&SEED, conn.protocol, conn.client, conn.client_port)
    }

    fn table(connections: usize) -> ConnTable<Ipv4Addr> {
        ConnTable::new(connections, SEED).expect("memory")
    }

    fn insert(table: &mut ConnTable<Ipv4Addr>, conn: Conn<Ipv4Addr>) -> Result<(), Full> {
        table.insert(hash(&conn), conn, |_, _| {}).map(|_| ())
    }

    /// Every entry is where a look-up goes, and what moved was said to be where it is.
    #[test]
    fn growing_and_shrinking_lose_nothing_and_tell_every_move() {
        for connections in [1, 40, 100, 1000, 12_345] {
            let mut table = table(connections);
            let mut places: HashMap<Ipv4Addr, Slot> = HashMap::new();
            let count = connections as u32;
            let mut most = 0;
            for n in 0..count {
                let conn = conn(n);
                let mut moves = Vec::new();
                let done = table.insert(hash(&conn), conn, |c, slot| moves.push((c.client, slot)));
                places.extend(moves);
                places.insert(conn.client, done.expect("room up to 95 %").slot);
                most = most.max(table.buckets());
                assert!(
                    table.buckets() * WAYS
                        <= (table.len() * 2).max(table.lanes * WAYS) + table.lanes * WAYS
                );
            }
            assert_eq!(places.len(), table.len());
            for n in 0..count {
                let wanted = conn(n);
                let slot = table.find(hash(&wanted), |c| c.client == wanted.client);
                assert_eq!(
                    slot,
                    places.get(&wanted.client).copied(),
                    "{connections}: {n}"
                );
                let reachable = [table.first(hash(&wanted)), table.second(hash(&wanted))];
                assert!(slot.is_some_and(|s| reachable.contains(&s.bucket())));
            }
            for n in 0..count {
                let slot = places[&conn(n).client];
                assert_eq!(table.remove(slot).client, conn(n).client);
                table.shrink(|c, slot| {
                    places.insert(c.client, slot);
                });
            }
            while table.buckets() > table.lanes {
                let before = table.buckets();
                table.shrink(|_, _| panic!("an empty table has nothing to move"));
                assert!(table.buckets() < before);
            }
        }
    }

    #[test]
    fn few_connections_lie_close_together() {
        let mut table = table(1_000_000);
        for n in 0..1000 {
            insert(&mut table, conn(n)).expect("room");
        }
        let bytes = table.buckets() * size_of::<Bucket<Ipv4Addr>>();
        assert!(bytes <= 100_000, "{bytes}");
    }

    #[test]
    fn reaches_its_promised_load_and_finds_everything() {
        let mut table = table(100_000);
        for n in 0..100_000 {
            let conn = conn(n);
            insert(&mut table, conn).expect("room up to 95 %");
        }
        let more = 100_000..(table.capacity() as f64 * 0.95) as u32;
        for n in more.clone() {
            insert(&mut table, conn(n)).expect("room up to 95 %");
        }
        assert!(table.len() as f64 / table.capacity() as f64 > 0.949);
        for n in 0..more.end {
            let wanted = conn(n);
            let slot = table.find(hash(&wanted), |c| c.client == wanted.client);
            assert_eq!(slot.map(|s| *table.get(s)), Some(wanted));
        }
    }

    #[test]
    fn memory_per_ipv4_connection_at_ninety_percent_load_is_under_64_bytes() {
        let v4 = table(1_000_000);
        let per_connection = v4.memory() as f64 / (v4.capacity() as f64 * 0.9);
        assert!(per_connection <= 64.0, "{per_connection:.1} bytes");
        let table = ConnTable::<std::net::Ipv6Addr>::new(1_000_000, SEED).expect("memory");
        let per_connection = table.memory() as f64 / (table.capacity() as f64 * 0.9);
        assert!(per_connection <= 112.0, "{per_connection:.1} bytes");
    }
    /// A flood fills a table within a second: what came first in it must go first all the same, and never
    /// what has just come.
    #[test]
    fn within_a_second_the_oldest_makes_room_too() {
        let mut table = ConnTable::<Ipv4Addr>::new(60, SEED).expect("memory");
        let young = |n: u32, eighth: u8| {
            let mut conn = conn(n);
            (conn.last_seen, conn.flags) = (1000, flag::EMBRYONIC | (eighth * 32));
            conn
        };
        let mut insert = |conn: Conn<Ipv4Addr>| {
            let inserted = table.insert(hash(&conn), conn, |_, _| {});
            inserted.expect("embryonic ones make room").evicted
        };
        let (mut next, mut ages) = (0, Vec::new());
        while ages.len() < 64 {
            let eighth = (next / 16).min(7) as u8;
            ages.extend(insert(young(next, eighth)).map(|old| old.flags / 32));
            next += 1;
        }
        // Two lanes fill unevenly, so only nearly in order.
        let early = ages[..16].iter().filter(|&&age| age <= 1).count();
        assert!(early >= 14, "{ages:?}");
        // All are equally old from here on.
        let just_came = (0..1000).filter(|_| {
            next += 1;
            let evicted = insert(young(next, 7));
            evicted == Some(young(next - 1, 7))
        });
        let just_came = just_came.count();
        assert!(just_came < 100, "{just_came} of 1000");
        // A SYN that comes again late in a second is no reason to go.
        let mut again = young(next + 1, 7);
        again.last_seen = 1001;
        insert(again);
        for n in 2..30 {
            let mut conn = young(next + n, 1);
            conn.last_seen = 1001;
            assert_ne!(insert(conn), Some(again));
        }
    }

    #[test]
    fn a_full_table_evicts_embryonic_entries_alone_oldest_first() {
        let mut table = table(1000);
        let embryonic = |n: u32| n.is_multiple_of(2);
        let mut next = 0;
        // Among the first ones every second may be evicted, later none, until none gets in.
        let mut refused = 0;
        while refused < 2000 {
            let mut conn = conn(next);
            conn.last_seen = 1000 + next;
            conn.flags = if table.len() < 400 && embryonic(next) {
                flag::EMBRYONIC
            } else {
                0
            };
            let reachable = |table: &ConnTable<Ipv4Addr>, conn: &Conn<Ipv4Addr>| {
                let (first, second) = (table.first(hash(conn)), table.second(hash(conn)));
                let mut all: Vec<_> = table.entries(first..first + 1).map(|(_, c)| *c).collect();
                all.extend(table.entries(second..second + 1).map(|(_, c)| *c));
                all.into_iter()
                    .filter(|c| c.has(flag::EMBRYONIC))
                    .min_by_key(|c| c.last_seen)
            };
            match table.insert(hash(&conn), conn, |_, _| {}) {
                Ok(Inserted {
                    slot,
                    evicted: None,
                }) => assert_eq!(*table.get(slot), conn),
                Ok(Inserted {
                    slot,
                    evicted: Some(evicted),
                }) => {
                    assert!(evicted.has(flag::EMBRYONIC));
                    assert_eq!(*table.get(slot), conn);
                    assert!(table.is_nearly_full());
                    let left = reachable(&table, &conn);
                    assert!(left.is_none_or(|c| c.last_seen > evicted.last_seen));
                }
                Err(Full) => {
                    assert_eq!(reachable(&table, &conn), None);
                    refused += 1;
                }
            }
            next += 1;
        }
        assert!(
            table.len() * 100 >= table.capacity() * 95,
            "{}",
            table.len()
        );
    }

    #[test]
    fn a_sweep_removes_what_expired_and_nothing_else() {
        let mut table = table(1000);
        for n in 0..1000 {
            let mut conn = conn(n);
            (conn.last_seen, conn.timeout) = (100, if n % 4 == 0 { 5 } else { 50 });
            insert(&mut table, conn).expect("room");
        }
        let mut gone = 0;
        table.sweep(110, u32::MAX, table.buckets(), |conn| {
            assert_eq!(conn.timeout, 5);
            gone += 1;
        });
        assert_eq!((gone, table.len()), (250, 750));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32),
        Remove(u32),
        Find(u32),
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(steps in prop::collection::vec(
            (0..3u8, 0..200u32).prop_map(|(kind, n)| match kind {
                0 => Step::Insert(n),
                1 => Step::Remove(n),
                _ => Step::Find(n),
            }), 1..600))
        {
            let mut table = table(150);
            let mut model: HashMap<u32, Conn<Ipv4Addr>> = HashMap::new();
            for step in steps {
                let (Step::Insert(n) | Step::Remove(n) | Step::Find(n)) = step;
                let wanted = conn(n);
                let found = table.find(hash(&wanted), |c| c.client == wanted.client);
                prop_assert_eq!(found.map(|s| *table.get(s)), model.get(&n).copied());
                match (step, found) {
                    (Step::Insert(n), None) if insert(&mut table, wanted).is_ok() => {
                        model.insert(n, wanted);
                    }
                    (Step::Remove(n), Some(slot)) => {
                        table.remove(slot);
                        model.remove(&n);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
                let all = table.entries(0..table.buckets()).count();
                prop_assert_eq!(all, model.len());
                table.shrink(|_, _| {});
            }
        }
    }
}
