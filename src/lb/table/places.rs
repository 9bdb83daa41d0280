//! Where a key's entry may lie, and the first two passes' requests for it.

use super::{Slot, WAYS};
use crate::arch::{Hot, TagLine, Tags, prefetch_index, prefetch_tag};
use crate::lb::conn::Conn;
use crate::lb::flow::Address;

/// What sorts out the entries of a bucket. An endpoint's is never 0, which is a free entry's.
#[inline(always)]
pub(super) fn tag(hash: u64) -> u16 {
    hash as u16
}

/// What a key's first and second row are told from.
#[inline(always)]
pub(super) fn bits(hash: u64) -> (u32, u32) {
    let shift = u32::from(tag(hash)).wrapping_mul(0x9e37_79b9) | 1;
    ((hash >> 16) as u32, (hash >> 16) as u32 ^ shift)
}

/// The buckets in use: row after row, `lanes` to a row.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    /// A key's lane is the same in both its rows, and however many rows there are.
    pub lanes: u32,
    /// Rows, at least one, the bits that tell them apart, and the highest of those.
    pub rows: u32,
    mask: u32,
    half: u32,
}

impl Grid {
    pub fn new(lanes: u32, rows: u32) -> Self {
        let mask = u32::MAX >> rows.leading_zeros();
        Self {
            lanes,
            rows,
            mask,
            half: mask / 2 + 1,
        }
    }

    pub fn buckets(&self) -> usize {
        (self.rows * self.lanes) as usize
    }

    /// The row that a number belongs to: its low bits, one less where that row is not yet split.
    #[inline(always)]
    fn row(&self, bits: u32) -> u32 {
        let row = bits & self.mask;
        let unsplit = row.wrapping_sub(self.half);
        std::hint::select_unpredictable(row < self.rows, row, unsplit)
    }

    #[inline(always)]
    fn bucket(&self, bits: u32, hash: u64) -> u32 {
        let lane = ((hash >> 32) * u64::from(self.lanes)) >> 32;
        self.row(bits) * self.lanes + lane as u32
    }

    /// The first of the two buckets of a key with this hash.
    #[inline(always)]
    pub fn first(&self, hash: u64) -> usize {
        self.bucket(bits(hash).0, hash) as usize
    }

    /// The second of the two buckets; in a small table it may be the first.
    #[inline(always)]
    pub fn second(&self, hash: u64) -> usize {
        self.bucket(bits(hash).1, hash) as usize
    }
}

/// The first pass over many keys: where their first buckets begin, and requests for their tags. The
/// places are worked out several at a time.
pub(super) struct FirstPass<'t> {
    pub grid: Grid,
    pub tags: &'t [TagLine],
    pub hashes: &'t [u64],
    pub slots: &'t mut [Slot],
}

impl Hot for FirstPass<'_> {
    type Output = ();

    #[inline(always)]
    fn run<T: Tags>(self) {
        let grid = self.grid;
        for (slot, &hash) in self.slots.iter_mut().zip(self.hashes) {
            *slot = Slot(grid.bucket(bits(hash).0, hash) * WAYS as u32);
        }
        for slot in self.slots {
            prefetch_tag(self.tags, slot.index());
        }
    }
}

/// A table's buckets and entries, for the second pass.
#[derive(Clone, Copy)]
pub struct Places<'t, A: Address> {
    pub(super) tags: &'t [TagLine],
    pub(super) conns: &'t [Conn<A>],
}

impl<A: Address> Places<'_, A> {
    /// Asks for the first entry with this hash's tag in the bucket that begins at `slot`, and sets
    /// `slot` to it; false where there is none.
    #[inline(always)]
    pub fn prefetch_entry<T: Tags>(&self, slot: &mut Slot, hash: u64) -> bool {
        let Some(tags) = self.tags.get(slot.bucket()) else {
            return true;
        };
        let found = T::matching(tags, tag(hash));
        if found != 0 {
            *slot = Slot(slot.0 | found.trailing_zeros());
            prefetch_index(self.conns, slot.index());
        }
        found != 0
    }
}
