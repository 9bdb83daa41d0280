//! The connection table: one per worker and address family, of fixed size, never shared.
//!
//! A bucket is one cache line of 32 tags of 16 bits, and the 32 entries of the same numbers in another
//! array: a look-up touches two lines, and no place has to be multiplied out. The table grows and
//! shrinks inside its memory by linear hashing (W. Litwin, 1980), one row of buckets at a time, so that a
//! few connections lie close together: they then cost few cache lines and few TLB entries,
//! however many there is room for.
//!
//! Every key has two buckets. An insert takes the first where it has room, then the second, then
//! makes room by moving one entry to its other bucket: 95 % load is reached. Tags only sort out;
//! what matches is decided by the caller on the full key. Runs on workers; never allocates after
//! [`ConnTable::new`].

mod change;
mod places;

use crate::arch::{Any, Cpu, Region, TagLine, match_tags, prefetch_index};

use super::conn::{Conn, flag};
use super::flow::{Address, Seed, endpoint_hash};
pub use places::Places;
use places::{FirstPass, Grid, tag};

/// Entries of a bucket.
pub const WAYS: usize = 32;

/// Where an entry lies. Good until the next insert or removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot(u32);

impl Slot {
    /// No slot of any table.
    pub const NONE: Slot = Slot(u32::MAX);
    /// Nor is there one: when the second pass looked, neither bucket held the key's tag.
    pub const ABSENT: Slot = Slot(u32::MAX - 1);

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

pub struct ConnTable<A: Address> {
    seed: Seed,
    /// The buckets' tags, 0 for a free entry; those beyond the grid are empty and not in use.
    tags: Region<TagLine>,
    /// The entries, [`WAYS`] to a bucket.
    conns: Region<Conn<A>>,
    grid: Grid,
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
            tags: Region::zeroed(rows * lanes)?,
            conns: Region::zeroed(rows * lanes * WAYS)?,
            grid: Grid::new(lanes as u32, 1),
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
        self.tags.len() * size_of::<TagLine>() + self.conns.len() * size_of::<Conn<A>>()
    }

    fn hash(&self, conn: &Conn<A>) -> u64 {
        endpoint_hash(&self.seed, conn.protocol, conn.client, conn.client_port)
    }

    /// First of three passes: asks for the line of tags, and says where the bucket begins.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) -> Slot {
        let bucket = self.grid.first(hash);
        prefetch_index(&self.tags, bucket);
        Slot((bucket * WAYS) as u32)
    }

    /// The same for many.
    #[inline(always)]
    pub fn prefetch_buckets(&self, cpu: Cpu, hashes: &[u64], slots: &mut [Slot]) {
        cpu.run(FirstPass {
            grid: self.grid,
            tags: &self.tags,
            hashes,
            slots,
        });
    }

    /// What the second pass looks at.
    #[inline(always)]
    pub fn places(&self) -> Places<'_, A> {
        Places {
            tags: &self.tags,
            conns: &self.conns,
        }
    }

    /// Second pass, for a hash of which the first bucket, which begins at `first`, has no tag: asks for
    /// the entry in the second one that most likely matches, and says which. One entry in a hundred is
    /// there, and its line has to be waited for. Where there is none, an insert is about to come: it asks
    /// for the place that it will take.
    #[inline(never)]
    pub fn prefetch_other(&self, first: Slot, hash: u64) -> Slot {
        let mut slot = Slot((self.grid.second(hash) * WAYS) as u32);
        if self.places().prefetch_entry::<Any>(&mut slot, hash) {
            return slot;
        }
        if let Some(free) = self.free_slot(first.bucket()) {
            prefetch_index(&self.conns, free.index());
        }
        Slot::ABSENT
    }

    /// Asks for an entry whose slot is known.
    #[inline(always)]
    pub fn prefetch_slot(&self, slot: Slot) {
        prefetch_index(&self.conns, slot.index());
    }

    /// Third pass, in the hope that the second found the right one: the entry
    /// there, which may have changed since or be gone, so that its state, too, must be looked at.
    #[inline(always)]
    pub fn try_get_mut(&mut self, slot: Slot) -> Option<&mut Conn<A>> {
        self.conns.get_mut(slot.index())
    }

    /// The entry with this hash for which `matches` holds.
    #[inline(always)]
    pub fn find(&self, hash: u64, matches: impl Fn(&Conn<A>) -> bool) -> Option<Slot> {
        let tag = tag(hash);
        let first = self.find_in(self.grid.first(hash), tag, &matches);
        first.or_else(|| self.find_in(self.grid.second(hash), tag, &matches))
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
            let slot = Slot((bucket * WAYS) as u32 + found.trailing_zeros());
            if matches(self.get(slot)) {
                return Some(slot);
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
        self.grid.buckets()
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
                    .filter(move |&way| self.tags[bucket].of(way) != 0)
                    .map(move |way| {
                        let slot = Slot((bucket * WAYS + way) as u32);
                        (slot, self.get(slot))
                    })
            })
    }
}

#[cfg(test)]
mod tests;
