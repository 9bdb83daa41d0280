//! A burst of packets: up to 64 mbufs in a plain array.
//!
//! Owned by one thread at a time; frees what is left in it when dropped.

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::mbuf::{Mbuf, RawMbuf};
use super::sys;

/// A fixed-capacity owned array of [`Mbuf`]. Derefs to `[Mbuf]`.
pub struct Batch {
    /// The first `len` are initialised.
    items: [MaybeUninit<Mbuf>; Batch::CAPACITY],
    len: usize,
}

impl Batch {
    /// Packets that a batch can hold.
    pub const CAPACITY: usize = 64;

    pub const fn new() -> Self {
        Self {
            items: [const { MaybeUninit::uninit() }; Self::CAPACITY],
            len: 0,
        }
    }

    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.len == Self::CAPACITY
    }

    /// How many more it takes.
    #[inline(always)]
    pub fn room(&self) -> usize {
        Self::CAPACITY - self.len
    }

    /// Adds one; hands it back if the batch is full.
    #[inline(always)]
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        if self.is_full() {
            return Err(mbuf);
        }
        self.items[self.len].write(mbuf);
        self.len += 1;
        Ok(())
    }

    /// Takes the last one.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<Mbuf> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: below the old length, so initialised; the new length disowns it.
        Some(unsafe { self.items[self.len].assume_init_read() })
    }

    /// Keeps those, in their order, for which `keep` says so; frees the others.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut Mbuf) -> bool) {
        let mut kept = 0;
        for at in 0..self.len {
            if keep(&mut self[at]) {
                self.swap(kept, at);
                kept += 1;
            }
        }
        while self.len > kept {
            drop(self.pop());
        }
    }

    /// Takes all, first to last. What the iterator is not asked for is freed.
    #[inline]
    pub fn drain(&mut self) -> Drain<'_> {
        self.drain_behind(0)
    }

    /// Takes all behind the first `count`, likewise.
    #[inline]
    pub fn drain_behind(&mut self, count: usize) -> Drain<'_> {
        let end = self.len;
        self.len = count.min(end);
        Drain {
            next: self.len,
            end,
            batch: self,
        }
    }

    /// Moves all behind the first `count` to the end of another batch, which must have room for them;
    /// what it has no room for is freed.
    #[inline(always)]
    pub fn move_behind(&mut self, count: usize, to: &mut Batch) {
        let end = self.len;
        self.len = count.min(end);
        let moved = (end - self.len).min(to.room());
        // SAFETY: so many are initialised behind `count`, and so many places are free behind `to`'s; they
        // are disowned here and owned there.
        unsafe {
            let from = self.items.as_ptr().add(self.len);
            let free = to.items.as_mut_ptr().add(to.len);
            free.copy_from_nonoverlapping(from, moved);
        }
        to.len += moved;
        free(&mut self.items[self.len + moved..end]);
    }

    /// Asks the cache for all headers.
    #[inline(always)]
    pub fn prefetch(&self) {
        self.iter().for_each(Mbuf::prefetch);
    }

    #[inline(always)]
    pub fn as_slice(&self) -> &[Mbuf] {
        self
    }

    #[inline(always)]
    pub fn as_mut_slice(&mut self) -> &mut [Mbuf] {
        self
    }

    /// Frees all.
    pub fn clear(&mut self) {
        let count = std::mem::take(&mut self.len);
        free(&mut self.items[..count]);
    }

    /// Where C may read the mbufs or write up to [`Batch::room`] new ones
    /// after [`Batch::len`].
    #[inline(always)]
    pub(super) fn raw(&mut self) -> *mut *mut RawMbuf {
        self.items.as_mut_ptr().cast()
    }

    /// # Safety
    /// Every slot below `len` must hold a live mbuf that nobody else owns, and
    /// slots given up must have been given away.
    #[inline(always)]
    pub(super) unsafe fn set_len(&mut self, len: usize) {
        debug_assert!(len <= Self::CAPACITY);
        self.len = len;
    }

    /// Removes the first `count`, which C has taken, and moves the rest up.
    ///
    /// # Safety
    /// `count` <= length, and the first `count` now belong to somebody else.
    #[inline(always)]
    pub(super) unsafe fn forget_front(&mut self, count: usize) {
        debug_assert!(count <= self.len);
        let left = self.len - count;
        if count != 0 && left != 0 {
            let items = self.items.as_mut_ptr();
            // SAFETY: both ranges lie in the array; the overwritten slots were given away.
            unsafe { std::ptr::copy(items.add(count), items, left) };
        }
        self.len = left;
    }
}

/// Frees initialised slots by one call into C.
fn free(slots: &mut [MaybeUninit<Mbuf>]) {
    if slots.is_empty() {
        return;
    }
    // SAFETY: the caller disowned the slots, which hold live mbufs, each a
    // transparent non-null pointer.
    unsafe { sys::rte_pktmbuf_free_bulk(slots.as_mut_ptr().cast(), slots.len() as u32) }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Batch {
    type Target = [Mbuf];
    #[inline(always)]
    fn deref(&self) -> &[Mbuf] {
        // SAFETY: the first `len` slots are initialised.
        unsafe { std::slice::from_raw_parts(self.items.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Batch {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [Mbuf] {
        // SAFETY: the first `len` slots are initialised.
        unsafe { std::slice::from_raw_parts_mut(self.items.as_mut_ptr().cast(), self.len) }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.clear();
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Takes the mbufs out of a [`Batch`], first to last.
pub struct Drain<'a> {
    batch: &'a mut Batch,
    next: usize,
    end: usize,
}

impl Iterator for Drain<'_> {
    type Item = Mbuf;

    #[inline(always)]
    fn next(&mut self) -> Option<Mbuf> {
        if self.next == self.end {
            return None;
        }
        // SAFETY: between `next` and `end` the slots are initialised and
        // disowned by the batch; each is read once.
        let mbuf = unsafe { self.batch.items[self.next].assume_init_read() };
        self.next += 1;
        Some(mbuf)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl ExactSizeIterator for Drain<'_> {}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        free(&mut self.batch.items[self.next..self.end]);
    }
}

/// A mbuf pointer and an `Mbuf` are the same bits; `raw` relies on it.
const _: () = assert!(size_of::<Mbuf>() == size_of::<NonNull<RawMbuf>>());
