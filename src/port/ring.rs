//! Bounded queues between threads, over `rte_ring`, that move ownership.
//!
//! Each end has one owner: a [`Consumer`] cannot be cloned or shared, and of
//! producers only [`SharedProducer`] can be cloned. What is left in a ring is
//! dropped with the last end of it.

use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::batch::Batch;
use super::eal::{self, Alive};
use super::mbuf::{Mbuf, RawMbuf};
use super::sys;

/// Something that fits in a pointer and owns what it points at.
///
/// # Safety
/// `from_pointer(into_pointer(x))` must be `x`, on any thread.
pub unsafe trait RingItem: Send + Sized {
    fn into_pointer(self) -> NonNull<c_void>;
    /// # Safety
    /// `pointer` comes from `into_pointer` and is used once.
    unsafe fn from_pointer(pointer: NonNull<c_void>) -> Self;
}

// SAFETY: an Mbuf is its pointer.
unsafe impl RingItem for Mbuf {
    #[inline(always)]
    fn into_pointer(self) -> NonNull<c_void> {
        self.into_raw().cast()
    }
    #[inline(always)]
    unsafe fn from_pointer(pointer: NonNull<c_void>) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Mbuf::from_raw(pointer.cast::<RawMbuf>()) }
    }
}

// SAFETY: a box is its pointer, and what it owns is Send.
unsafe impl<T: Send> RingItem for Box<T> {
    #[inline(always)]
    fn into_pointer(self) -> NonNull<c_void> {
        NonNull::from(Box::leak(self)).cast()
    }
    #[inline(always)]
    unsafe fn from_pointer(pointer: NonNull<c_void>) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Box::from_raw(pointer.cast::<T>().as_ptr()) }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RingError {
    #[error("DPDK is not started")]
    NotStarted,
    #[error("no ring of {capacity} entries: {reason}; give DPDK more memory, or ask for fewer")]
    Refused { capacity: u32, reason: String },
}

struct Raw<T: RingItem> {
    ring: NonNull<sys::rte_ring>,
    capacity: u32,
    _items: PhantomData<T>,
    _alive: Alive,
}

// SAFETY: the types of the ends see to it that a single-producer or
// single-consumer side is used by one thread at a time; T is Send.
unsafe impl<T: RingItem> Send for Raw<T> {}
// SAFETY: as above.
unsafe impl<T: RingItem> Sync for Raw<T> {}

impl<T: RingItem> Raw<T> {
    #[inline(always)]
    fn push(&self, item: T) -> Result<(), T> {
        let pointer = item.into_pointer();
        // SAFETY: the ring is alive while an end is.
        if unsafe { sys::rte_ring_enqueue(self.ring.as_ptr(), pointer.as_ptr()) } == 0 {
            return Ok(());
        }
        // SAFETY: the ring did not take it, so it is still ours.
        Err(unsafe { T::from_pointer(pointer) })
    }

    #[inline(always)]
    fn pop(&self) -> Option<T> {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the ring is alive; `pointer` takes one entry.
        if unsafe { sys::rte_ring_dequeue(self.ring.as_ptr(), &mut pointer) } != 0 {
            return None;
        }
        // SAFETY: only `push` and `push_batch` put entries in; this one left with us.
        NonNull::new(pointer).map(|pointer| unsafe { T::from_pointer(pointer) })
    }

    fn len(&self) -> usize {
        // SAFETY: the ring is alive.
        unsafe { sys::rte_ring_count(self.ring.as_ptr()) as usize }
    }
}

impl<T: RingItem> Drop for Raw<T> {
    fn drop(&mut self) {
        while let Some(item) = self.pop() {
            drop(item);
        }
        // SAFETY: the last end is gone and the ring is empty.
        unsafe { sys::rte_ring_free(self.ring.as_ptr()) }
    }
}

fn create<T: RingItem>(name: &str, capacity: u32, flags: u32) -> Result<Arc<Raw<T>>, RingError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let alive = Alive::new().ok_or(RingError::NotStarted)?;
    let refused = |reason: String| RingError::Refused { capacity, reason };
    let plain: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(12)
        .collect();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let full_name =
        CString::new(format!("ekr{number}{plain}")).map_err(|e| refused(e.to_string()))?;
    const ANY_SOCKET: i32 = -1;
    // SAFETY: a NUL-terminated name; the rest are numbers.
    let ring = unsafe {
        let flags = flags | sys::EK_RING_EXACT;
        sys::rte_ring_create(full_name.as_ptr(), capacity, ANY_SOCKET, flags)
    };
    match NonNull::new(ring) {
        Some(ring) => Ok(Arc::new(Raw {
            ring,
            capacity,
            _items: PhantomData,
            _alive: alive,
        })),
        None => Err(refused(eal::errno_text(eal::errno()))),
    }
}

/// A ring of `capacity` entries with one producer and one consumer. The name
/// is for DPDK's own tools and need not be unique.
pub fn spsc<T: RingItem>(
    name: &str,
    capacity: u32,
) -> Result<(Producer<T>, Consumer<T>), RingError> {
    let raw = create(name, capacity, sys::EK_RING_SP | sys::EK_RING_SC)?;
    Ok((
        Producer {
            raw: raw.clone(),
            _not_sync: PhantomData,
        },
        Consumer {
            raw,
            _not_sync: PhantomData,
        },
    ))
}

/// As [`spsc`], with a producer that can be cloned.
pub fn mpsc<T: RingItem>(
    name: &str,
    capacity: u32,
) -> Result<(SharedProducer<T>, Consumer<T>), RingError> {
    let raw = create(name, capacity, sys::EK_RING_SC)?;
    Ok((
        SharedProducer { raw: raw.clone() },
        Consumer {
            raw,
            _not_sync: PhantomData,
        },
    ))
}

/// The one sending end of a [`spsc`] ring.
pub struct Producer<T: RingItem> {
    raw: Arc<Raw<T>>,
    _not_sync: PhantomData<Cell<()>>,
}

/// A sending end of an [`mpsc`] ring.
pub struct SharedProducer<T: RingItem> {
    raw: Arc<Raw<T>>,
}

/// The receiving end.
pub struct Consumer<T: RingItem> {
    raw: Arc<Raw<T>>,
    _not_sync: PhantomData<Cell<()>>,
}

impl<T: RingItem> Clone for SharedProducer<T> {
    fn clone(&self) -> Self {
        Self {
            raw: self.raw.clone(),
        }
    }
}

impl<T: RingItem> Producer<T> {
    /// Sends one; hands it back if the ring is full.
    #[inline(always)]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        self.raw.push(item)
    }
    /// Entries in it.
    pub fn len(&self) -> usize {
        self.raw.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn capacity(&self) -> usize {
        self.raw.capacity as usize
    }
}

impl<T: RingItem> SharedProducer<T> {
    /// Sends one; hands it back if the ring is full.
    #[inline(always)]
    pub fn push(&self, item: T) -> Result<(), T> {
        self.raw.push(item)
    }
    /// Entries in it.
    pub fn len(&self) -> usize {
        self.raw.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn capacity(&self) -> usize {
        self.raw.capacity as usize
    }
}

impl<T: RingItem> Consumer<T> {
    /// Takes the oldest.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<T> {
        self.raw.pop()
    }
    /// Entries in it.
    pub fn len(&self) -> usize {
        self.raw.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn capacity(&self) -> usize {
        self.raw.capacity as usize
    }
}

impl Raw<Mbuf> {
    #[inline]
    fn push_batch(&self, batch: &mut Batch) -> usize {
        // SAFETY: the ring is alive and copies that many initialised pointers;
        // those it took are forgotten at once.
        unsafe {
            let (ring, len) = (self.ring.as_ptr(), batch.len() as u32);
            let none = std::ptr::null_mut();
            let sent = sys::rte_ring_enqueue_burst(ring, batch.raw().cast(), len, none) as usize;
            batch.forget_front(sent);
            sent
        }
    }
}

impl Producer<Mbuf> {
    /// Sends as many as fit, first to last, in one go; the rest stay in the
    /// batch. Returns how many were sent.
    #[inline]
    pub fn push_batch(&mut self, batch: &mut Batch) -> usize {
        self.raw.push_batch(batch)
    }
}

impl SharedProducer<Mbuf> {
    /// As [`Producer::push_batch`].
    #[inline]
    pub fn push_batch(&self, batch: &mut Batch) -> usize {
        self.raw.push_batch(batch)
    }
}

impl Consumer<Mbuf> {
    /// Adds to the batch as many as there are and as it has room for; returns
    /// how many are left.
    #[inline]
    pub fn pop_batch(&mut self, batch: &mut Batch) -> usize {
        let (len, room) = (batch.len(), batch.room() as u32);
        let mut left = 0;
        // SAFETY: `room` free slots follow the first `len`; the ring writes as
        // many of them as it returns, each an mbuf that is now ours.
        unsafe {
            let slots = batch.raw().add(len).cast();
            let ring = self.raw.ring.as_ptr();
            let got = sys::rte_ring_dequeue_burst(ring, slots, room, &mut left) as usize;
            batch.set_len(len + got);
            left as usize
        }
    }
}
