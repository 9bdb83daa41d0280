//! The connection table: one per worker and address family, of fixed size, never shared.
//!
//! A bucket is one cache line of 32 tags of 16 bits; the 32 entries that belong to it lie beside
//! the tags, so that a look-up touches two lines. Every key has two buckets; the second is
//! computed from the first and the tag alone, so an entry can move between them without its key.
//! An insert takes the first where it has room, then the second, then makes room by moving one
//! entry to its other bucket: 95 % load is reached. Tags only sort out; what matches is decided
//! by the caller on the full key. Runs on workers; never allocates after [`ConnTable::new`].

use crate::arch::{Region, match_tags, prefetch};

use super::conn::{Conn, State, flag};
use super::flow::Address;

/// Entries of a bucket.
pub const WAYS: usize = 32;

/// Where an entry lies. Good until the next insert or removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(u32);

impl Slot {
    /// The slot of this index, as [`Slot::index`] gave it.
    #[inline(always)]
    pub(super) fn at(index: u32) -> Self {
        Self(index)
    }

    pub fn index(self) -> usize {
        self.0 as usize
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
    /// An entry that moved to its other bucket: from, to.
    pub moved: Option<(Slot, Slot)>,
}

pub struct ConnTable<A: Address> {
    tags: Region<[u16; WAYS]>,
    conns: Region<Conn<A>>,
    length: usize,
    sweep: usize,
}

impl<A: Address> ConnTable<A> {
    /// A table with room for at least `connections` at 95 % load.
    pub fn new(connections: usize) -> std::io::Result<Self> {
        let buckets = (connections + connections / 19).div_ceil(WAYS).max(2);
        Ok(Self {
            tags: Region::zeroed(buckets)?,
            conns: Region::zeroed(buckets * WAYS)?,
            length: 0,
            sweep: 0,
        })
    }

    /// Slots in all; an insert can fail a little before they are used up.
    pub fn capacity(&self) -> usize {
        self.conns.len()
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
        self.tags.len() * size_of::<[u16; WAYS]>() + self.conns.len() * size_of::<Conn<A>>()
    }

    #[inline(always)]
    fn tag(hash: u64) -> u16 {
        (hash as u16).max(1)
    }

    #[inline(always)]
    fn bucket(&self, hash: u64) -> usize {
        (((hash >> 32) * self.tags.len() as u64) >> 32) as usize
    }

    /// The other bucket of an entry with this tag: an involution.
    #[inline(always)]
    fn other(&self, bucket: usize, tag: u16) -> usize {
        let buckets = self.tags.len();
        let mixed = u32::from(tag).wrapping_mul(0x9e37_79b1);
        let shift = ((u64::from(mixed) * buckets as u64) >> 32) as usize;
        if shift >= bucket {
            shift - bucket
        } else {
            shift + buckets - bucket
        }
    }

    /// First of three passes: asks for the line of tags.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) {
        prefetch(&self.tags[self.bucket(hash)]);
    }

    /// Second pass: asks for the entry that most likely matches, or the second bucket.
    #[inline(always)]
    pub fn prefetch_entry(&self, hash: u64) {
        let (bucket, tag) = (self.bucket(hash), Self::tag(hash));
        let found = match_tags(&self.tags[bucket], tag);
        if found != 0 {
            prefetch(&self.conns[bucket * WAYS + found.trailing_zeros() as usize]);
        } else {
            prefetch(&self.tags[self.other(bucket, tag)]);
        }
    }

    /// Asks for an entry whose slot is known.
    #[inline(always)]
    pub fn prefetch_slot(&self, slot: Slot) {
        if let Some(conn) = self.conns.get(slot.index()) {
            prefetch(conn);
        }
    }

    /// Third pass: the entry with this hash for which `matches` holds.
    #[inline(always)]
    pub fn find(&self, hash: u64, matches: impl Fn(&Conn<A>) -> bool) -> Option<Slot> {
        let (bucket, tag) = (self.bucket(hash), Self::tag(hash));
        let first = self.find_in(bucket, tag, &matches);
        if first.is_some() {
            return first;
        }
        self.find_in(self.other(bucket, tag), tag, &matches)
    }

    #[inline(always)]
    fn find_in(
        &self,
        bucket: usize,
        tag: u16,
        matches: &impl Fn(&Conn<A>) -> bool,
    ) -> Option<Slot> {
        let mut found = match_tags(&self.tags[bucket], tag);
        while found != 0 {
            let index = bucket * WAYS + found.trailing_zeros() as usize;
            if matches(&self.conns[index]) {
                return Some(Slot(index as u32));
            }
            found &= found - 1;
        }
        None
    }

    #[inline(always)]
    pub fn get(&self, slot: Slot) -> &Conn<A> {
        &self.conns[slot.index()]
    }

    /// The entry of a slot that may be another table's, where there is one.
    #[inline(always)]
    pub fn try_get(&self, slot: Slot) -> Option<&Conn<A>> {
        self.conns.get(slot.index())
    }

    #[inline(always)]
    pub fn get_mut(&mut self, slot: Slot) -> &mut Conn<A> {
        &mut self.conns[slot.index()]
    }

    /// Adds an entry; the caller has made sure that there is none with its key. When both its
    /// buckets are full and nothing can move, the embryonic entry among them that was seen
    /// longest ago makes room; established flows never do.
    pub fn insert(&mut self, hash: u64, conn: Conn<A>) -> Result<Inserted<A>, Full> {
        let (first, tag) = (self.bucket(hash), Self::tag(hash));
        let second = self.other(first, tag);
        for bucket in [first, second] {
            if let Some(slot) = self.free_slot(bucket) {
                self.put(slot, tag, conn);
                return Ok(Inserted {
                    slot,
                    evicted: None,
                    moved: None,
                });
            }
        }
        for bucket in [first, second] {
            if let Some((from, to)) = self.make_room(bucket) {
                self.put(from, tag, conn);
                return Ok(Inserted {
                    slot: from,
                    evicted: None,
                    moved: Some((from, to)),
                });
            }
        }
        let slot = self
            .oldest_embryonic([first, second], conn.last_seen)
            .ok_or(Full)?;
        let evicted = Some(self.remove(slot));
        self.put(slot, tag, conn);
        Ok(Inserted {
            slot,
            evicted,
            moved: None,
        })
    }

    fn free_slot(&self, bucket: usize) -> Option<Slot> {
        let free = match_tags(&self.tags[bucket], 0);
        (free != 0).then(|| Slot((bucket * WAYS) as u32 + free.trailing_zeros()))
    }

    fn put(&mut self, slot: Slot, tag: u16, conn: Conn<A>) {
        self.tags[slot.index() / WAYS][slot.index() % WAYS] = tag;
        self.conns[slot.index()] = conn;
        self.length += 1;
    }

    /// Moves one entry of a full bucket to its other bucket.
    fn make_room(&mut self, bucket: usize) -> Option<(Slot, Slot)> {
        for way in 0..WAYS {
            let tag = self.tags[bucket][way];
            let other = self.other(bucket, tag);
            if other == bucket {
                continue;
            }
            if let Some(to) = self.free_slot(other) {
                let from = Slot((bucket * WAYS + way) as u32);
                let conn = self.remove(from);
                self.put(to, tag, conn);
                return Some((from, to));
            }
        }
        None
    }

    fn oldest_embryonic(&self, buckets: [usize; 2], second: u32) -> Option<Slot> {
        buckets
            .into_iter()
            .flat_map(|bucket| bucket * WAYS..(bucket + 1) * WAYS)
            .filter(|&index| self.conns[index].has(flag::EMBRYONIC))
            .max_by_key(|&index| second.wrapping_sub(self.conns[index].last_seen))
            .map(|index| Slot(index as u32))
    }

    /// Takes an entry out and returns it.
    pub fn remove(&mut self, slot: Slot) -> Conn<A> {
        self.tags[slot.index() / WAYS][slot.index() % WAYS] = 0;
        self.length -= 1;
        let conn = self.conns[slot.index()];
        self.conns[slot.index()].state = State::None;
        self.conns[slot.index()].flags = 0;
        conn
    }

    /// Looks at the next `buckets` buckets and removes what has expired by `second`, and embryonic
    /// entries not seen for more than `embryo_age` seconds, handing each to `removed`. Called a little at a time, it walks the whole table.
    pub fn sweep(
        &mut self,
        second: u32,
        embryo_age: u32,
        buckets: usize,
        mut removed: impl FnMut(Conn<A>),
    ) {
        for _ in 0..buckets.min(self.tags.len()) {
            let mut used = !match_tags(&self.tags[self.sweep], 0);
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
            self.sweep = (self.sweep + 1) % self.tags.len();
        }
    }

    /// Buckets in all; the sweep's unit.
    pub fn buckets(&self) -> usize {
        self.tags.len()
    }

    /// The entries of `buckets`, for listings.
    pub fn entries(
        &self,
        buckets: std::ops::Range<usize>,
    ) -> impl Iterator<Item = (Slot, &Conn<A>)> {
        buckets
            .filter(|&b| b < self.tags.len())
            .flat_map(move |bucket| {
                (0..WAYS)
                    .filter(move |&way| self.tags[bucket][way] != 0)
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

    #[test]
    fn the_other_bucket_of_the_other_bucket_is_the_first() {
        for connections in [1, 100, 1000, 12_345] {
            let table = ConnTable::<Ipv4Addr>::new(connections).expect("memory");
            for bucket in 0..table.buckets() {
                for tag in [1, 2, 77, 0x8000, 0xffff] {
                    let other = table.other(bucket, tag);
                    assert!(other < table.buckets());
                    assert_eq!(table.other(other, tag), bucket);
                }
            }
        }
    }

    #[test]
    fn reaches_its_promised_load_and_finds_everything() {
        let mut table = ConnTable::new(100_000).expect("memory");
        for n in 0..100_000 {
            let conn = conn(n);
            table.insert(hash(&conn), conn).expect("room up to 95 %");
        }
        assert!(table.len() as f64 / table.capacity() as f64 > 0.949);
        for n in 0..100_000 {
            let wanted = conn(n);
            let slot = table.find(hash(&wanted), |c| c.client == wanted.client);
            assert_eq!(slot.map(|s| *table.get(s)), Some(wanted));
        }
    }

    #[test]
    fn memory_per_ipv4_connection_at_ninety_percent_load_is_under_64_bytes() {
        let table = ConnTable::<Ipv4Addr>::new(1_000_000).expect("memory");
        let per_connection = table.memory() as f64 / (table.capacity() as f64 * 0.9);
        assert!(per_connection <= 64.0, "{per_connection:.1} bytes");
        let table = ConnTable::<std::net::Ipv6Addr>::new(1_000_000).expect("memory");
        let per_connection = table.memory() as f64 / (table.capacity() as f64 * 0.9);
        assert!(per_connection <= 112.0, "{per_connection:.1} bytes");
    }

    #[test]
    fn a_full_table_evicts_embryonic_entries_alone_oldest_first() {
        let mut table = ConnTable::new(1).expect("memory");
        let total = table.capacity() as u32;
        let mut kept = 0;
        for n in 0..total {
            let mut conn = conn(n);
            conn.last_seen = 1000 + n;
            conn.flags = if n % 2 == 0 { flag::EMBRYONIC } else { 0 };
            if table.insert(hash(&conn), conn).is_ok() {
                kept += 1;
            }
        }
        assert_eq!(kept, total);
        // A key that may use both buckets, and so sees every entry.
        let sees_all = |n: &u32| {
            let hash = hash(&conn(*n));
            let first = table.bucket(hash);
            table.other(first, ConnTable::<Ipv4Addr>::tag(hash)) != first
        };
        let mut next = conn((total..).find(sees_all).expect("there are many"));
        next.last_seen = 5000;
        let done = table
            .insert(hash(&next), next)
            .expect("an embryonic entry makes room");
        assert_eq!(done.evicted.map(|c| c.last_seen), Some(1000));
        let mut refused = 0;
        for n in total * 10..total * 12 {
            let mut conn = conn(n);
            conn.last_seen = 5000;
            match table.insert(hash(&conn), conn) {
                Ok(done) => assert!(done.evicted.is_some_and(|c| c.has(flag::EMBRYONIC))),
                Err(Full) => refused += 1,
            }
        }
        assert!(refused > 0);
        assert_eq!(table.len() as u32, total);
    }

    #[test]
    fn a_sweep_removes_what_expired_and_nothing_else() {
        let mut table = ConnTable::new(1000).expect("memory");
        for n in 0..1000 {
            let mut conn = conn(n);
            (conn.last_seen, conn.timeout) = (100, if n % 4 == 0 { 5 } else { 50 });
            table.insert(hash(&conn), conn).expect("room");
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
            let mut table = ConnTable::new(150).expect("memory");
            let mut model: HashMap<u32, Conn<Ipv4Addr>> = HashMap::new();
            for step in steps {
                let (Step::Insert(n) | Step::Remove(n) | Step::Find(n)) = step;
                let wanted = conn(n);
                let found = table.find(hash(&wanted), |c| c.client == wanted.client);
                prop_assert_eq!(found.map(|s| *table.get(s)), model.get(&n).copied());
                match (step, found) {
                    (Step::Insert(n), None) if table.insert(hash(&wanted), wanted).is_ok() => {
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
            }
        }
    }
}
