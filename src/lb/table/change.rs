//! What changes where entries lie: inserting, removing, and growing and shrinking by a row.

use super::places::{Grid, bits, tag};
use super::{ConnTable, Full, Inserted, Slot, WAYS};
use crate::arch::match_tags;
use crate::lb::conn::{Conn, State, flag};
use crate::lb::flow::Address;

impl<A: Address> ConnTable<A> {
    /// Adds an entry under the hash of its client's endpoint; the caller has made sure that there
    /// is none with its key. When both its buckets are full and nothing can move, the embryonic
    /// entry among them that was seen longest ago makes room; established flows never do. Entries
    /// that had to move are handed to `moved`, with where they are now.
    #[inline(always)]
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
        let mut slot = self.free(hash);
        if slot.is_none() && self.is_crowded() {
            slot = self.evict(hash, &conn, &mut evicted);
        }
        if slot.is_none() {
            slot = self.room(hash, &mut moved);
        }
        for _ in 0..SPLITS {
            if slot.is_some() || !self.grow(&mut moved) {
                break;
            }
            slot = self.room(hash, &mut moved);
        }
        let slot = slot.or_else(|| self.evict(hash, &conn, &mut evicted));
        let slot = slot.ok_or(Full)?;
        self.put(slot, tag(hash), conn);
        Ok(Inserted { slot, evicted })
    }

    /// So full that hardly an entry can be moved aside. Trying costs a look at 64 other buckets, which a
    /// flood that fills the table would pay for each of its packets.
    fn is_crowded(&self) -> bool {
        self.length * 32 >= self.capacity() * 31
    }

    /// A free slot for a key with this hash.
    #[inline(always)]
    fn free(&self, hash: u64) -> Option<Slot> {
        let first = self.free_slot(self.grid.first(hash));
        first.or_else(|| self.free_slot(self.grid.second(hash)))
    }

    /// A free slot for a key with this hash, made if need be.
    #[inline(always)]
    fn room(&mut self, hash: u64, moved: &mut impl FnMut(&Conn<A>, Slot)) -> Option<Slot> {
        let (first, second) = (self.grid.first(hash), self.grid.second(hash));
        self.free(hash)
            .or_else(|| self.make_room(first, moved))
            .or_else(|| self.make_room(second, moved))
    }

    /// Splits a row in two; false where all the memory is in use.
    #[inline(never)]
    fn grow(&mut self, moved: &mut impl FnMut(&Conn<A>, Slot)) -> bool {
        if self.buckets() == self.tags.len() {
            return false;
        }
        let Grid { lanes, rows, .. } = self.grid;
        let (old, new) = (rows - (1 << rows.ilog2()), rows);
        for lane in 0..lanes {
            let (from, to) = (old * lanes + lane, new * lanes + lane);
            let (from, to) = (from as usize, to as usize);
            for way in 0..WAYS {
                let slot = Slot((from * WAYS + way) as u32);
                let tag = self.tags[from].of(way);
                if tag == 0 {
                    continue;
                }
                let hash = self.hash(self.get(slot));
                let (first, second) = bits(hash);
                let bits = if self.grid.first(hash) == from {
                    first
                } else {
                    second
                };
                if bits & u32::MAX >> new.leading_zeros() == new {
                    let conn = self.remove(slot);
                    let slot = Slot((to * WAYS + way) as u32);
                    self.put(slot, tag, conn);
                    moved(&conn, slot);
                }
            }
        }
        self.grid = Grid::new(lanes, new + 1);
        true
    }

    /// Puts the last row back into the one it was split off, if the table is nearly empty and
    /// there is room. Entries that moved are handed to `moved`. To be called now and then.
    pub fn shrink(&mut self, mut moved: impl FnMut(&Conn<A>, Slot)) {
        let Grid { lanes, rows, .. } = self.grid;
        if rows == 1 || self.length * 8 > self.buckets() * WAYS {
            return;
        }
        let last = rows - 1;
        let into = last - (1 << last.ilog2());
        let places = |lane| {
            (
                (last * lanes + lane) as usize,
                (into * lanes + lane) as usize,
            )
        };
        let used = |bucket: usize| WAYS - self.free_ways(bucket).count_ones() as usize;
        let fits = |(from, to)| used(from) + used(to) <= WAYS;
        if !(0..lanes).map(places).all(fits) {
            return;
        }
        for (from, to) in (0..lanes).map(places) {
            for way in 0..WAYS {
                let tag = self.tags[from].of(way);
                if tag != 0
                    && let Some(slot) = self.free_slot(to)
                {
                    let conn = self.remove(Slot((from * WAYS + way) as u32));
                    self.put(slot, tag, conn);
                    moved(&conn, slot);
                }
            }
        }
        self.grid = Grid::new(lanes, last);
        self.sweep %= self.buckets();
    }

    /// A bit for each free way of a bucket.
    #[inline(always)]
    pub(super) fn free_ways(&self, bucket: usize) -> u32 {
        match_tags(&self.tags[bucket], 0)
    }

    #[inline(always)]
    pub(super) fn free_slot(&self, bucket: usize) -> Option<Slot> {
        let free = self.free_ways(bucket);
        (free != 0).then(|| Slot((bucket * WAYS) as u32 + free.trailing_zeros()))
    }

    #[inline(always)]
    fn put(&mut self, slot: Slot, tag: u16, conn: Conn<A>) {
        self.tags[slot.bucket()].set(slot.way(), tag);
        self.conns[slot.index()] = conn;
        self.length += 1;
    }

    /// Moves one entry of a full bucket to its other bucket.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self, bucket: usize, moved: &mut impl FnMut(&Conn<A>, Slot)) -> Option<Slot> {
        for way in 0..WAYS {
            let from = Slot((bucket * WAYS + way) as u32);
            let hash = self.hash(self.get(from));
            let (first, second) = (self.grid.first(hash), self.grid.second(hash));
            let other = if first == bucket { second } else { first };
            if let Some(to) = self.free_slot(other) {
                let conn = self.remove(from);
                self.put(to, tag(hash), conn);
                moved(&conn, to);
                return Some(from);
            }
        }
        None
    }

    /// The slot of the oldest embryonic entry of a key's buckets, which goes.
    #[cold]
    #[inline(never)]
    fn evict(&mut self, hash: u64, new: &Conn<A>, evicted: &mut Option<Conn<A>>) -> Option<Slot> {
        let slot = self.oldest_embryonic(hash, new)?;
        *evicted = Some(self.remove(slot));
        Some(slot)
    }

    /// The oldest embryonic entry of a key's buckets, as seen from when `new` is made. Of those that
    /// are equally old any, but not always the same: what came last must not be the next to go.
    fn oldest_embryonic(&self, hash: u64, new: &Conn<A>) -> Option<Slot> {
        let eighths = |conn: &Conn<A>| {
            let eighth = u32::from((conn.flags & flag::EIGHTH) / 32);
            conn.last_seen.wrapping_mul(8).wrapping_add(eighth)
        };
        let buckets = [self.grid.first(hash), self.grid.second(hash)];
        let first = (hash >> 48) as usize;
        (0..2 * WAYS)
            .map(|n| (first + n) % (2 * WAYS))
            .map(|n| Slot((buckets[n / WAYS] * WAYS + n % WAYS) as u32))
            .filter(|&slot| self.get(slot).has(flag::EMBRYONIC))
            // One whose SYN came again may look younger than what is made now.
            .max_by_key(|&slot| eighths(new).wrapping_sub(eighths(self.get(slot))) as i32)
    }

    /// Takes an entry out and returns it.
    #[inline(always)]
    pub fn remove(&mut self, slot: Slot) -> Conn<A> {
        self.tags[slot.bucket()].set(slot.way(), 0);
        self.length -= 1;
        let conn = *self.get(slot);
        let left = self.get_mut(slot);
        (left.state, left.flags) = (State::None, 0);
        conn
    }
}
