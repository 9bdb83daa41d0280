//! Pools of packet buffers.
//!
//! A pool's memory goes back to DPDK when its last handle is gone and all its
//! buffers are home. If buffers are still out, or lcores still run (they may
//! be in the middle of handing one back), it waits on a list for `Eal::cleanup`.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::batch::Batch;
use super::eal::{self, Alive};
use super::mbuf::{Mbuf, PRIVATE_BYTES};
use super::{lcore, sys};

/// How DPDK keeps the buffers of a pool that no core has aside: usually in a ring, where each comes
/// back when all others have been used. Where one core receives what another sends, buffers go that
/// way all the time: so they are kept on a stack, and those that come back are still in some cache.
/// This one needs no lock, so that a thread that loses its CPU stops nobody.
const USUAL: &CStr = c"ring_mp_mc";
const LAST_FIRST: &CStr = c"lf_stack";

/// Most buffers that DPDK lets a core keep aside.
const MAX_CACHE: u32 = 512;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MempoolError {
    #[error("DPDK is not started")]
    NotStarted,
    #[error(
        "no memory for {count} packet buffers ({mib} MiB): give DPDK more memory, or ask for fewer buffers"
    )]
    Memory { count: u32, mib: u64 },
    #[error("packet buffers: {0}")]
    Refused(String),
}

/// Pools without a handle whose buffers were not all home.
static ORPHANS: Mutex<Vec<Raw>> = Mutex::new(Vec::new());

#[derive(Clone, Copy)]
struct Raw(NonNull<sys::rte_mempool>);

// SAFETY: DPDK's pools may be used from any thread at once.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Raw {
    fn in_use(self) -> u32 {
        // SAFETY: the pool is alive until freed below, where its last copy ends.
        unsafe { sys::rte_mempool_in_use_count(self.0.as_ptr()) }
    }
}

struct Pool {
    raw: Raw,
    capacity: u32,
    data_room: u16,
    /// Dropped after the body of `drop`, so while the pool still exists.
    _alive: Alive,
}

impl Drop for Pool {
    fn drop(&mut self) {
        orphans().push(self.raw);
        reap();
    }
}

fn orphans() -> std::sync::MutexGuard<'static, Vec<Raw>> {
    ORPHANS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the orphans that can be freed; returns how many are left.
pub(super) fn reap() -> usize {
    let mut orphans = orphans();
    if !orphans.is_empty() && lcore::quiet() {
        orphans.retain(|raw| {
            let keep = raw.in_use() != 0;
            if !keep {
                // SAFETY: no handle is left, every buffer is home, and no other
                // lcore runs that could be half-way through returning one.
                // Threads without an lcore have no cache: once their buffer
                // counts as home they have finished.
                unsafe { sys::rte_mempool_free(raw.0.as_ptr()) };
            }
            keep
        });
    }
    orphans.len()
}

/// What DPDK adds to a buffer's data room: the headroom, its descriptor with our
/// part, a link to its pool, and a cache line to spread buffers over channels.
const BESIDE_DATA_BYTES: u64 = 384;

/// Bytes of DPDK's memory that a pool takes where pages have `page_bytes`: DPDK
/// lays no buffer across two pages, so that a device sees it in one piece.
pub fn pool_bytes(count: u32, data_room_bytes: u16, page_bytes: u64) -> u64 {
    let buffer = u64::from(data_room_bytes) + BESIDE_DATA_BYTES;
    let pages = match page_bytes / buffer {
        0 => u64::from(count) * buffer.div_ceil(page_bytes),
        per_page => u64::from(count).div_ceil(per_page),
    };
    pages * page_bytes
}

/// A pool of packet buffers; clones are handles on the same pool.
#[derive(Clone)]
pub struct Mempool(Arc<Pool>);

impl Mempool {
    /// `count` buffers, each for a frame of `data_room_bytes` behind a headroom
    /// of 128 bytes. Each core keeps up to `cache` aside (at most 512 and two
    /// thirds of `count`; it is lowered to that). `socket` is the NUMA node, or
    /// -1 for any.
    pub fn new(
        name: &str,
        count: u32,
        data_room_bytes: u16,
        cache: u32,
        socket: i32,
    ) -> Result<Self, MempoolError> {
        Self::with_ops(LAST_FIRST, name, count, data_room_bytes, cache, socket)
    }

    /// As [`Mempool::new`], with the mempool ops that are wished for; without them where DPDK has
    /// none of that name, or a way of its own for this machine.
    pub fn with_ops(
        wished: &CStr,
        name: &str,
        count: u32,
        data_room_bytes: u16,
        cache: u32,
        socket: i32,
    ) -> Result<Self, MempoolError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let alive = Alive::new().ok_or(MempoolError::NotStarted)?;
        let plain: String = name
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(12)
            .collect();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let full_name = CString::new(format!("ek{number}{plain}"))
            .map_err(|_| MempoolError::Refused("name has a NUL".into()))?;
        let cache = cache.min(MAX_CACHE).min(count * 2 / 3);
        let room = data_room_bytes
            .checked_add(sys::RTE_PKTMBUF_HEADROOM as u16)
            .ok_or_else(|| MempoolError::Refused("data room over 65407 bytes".into()))?;
        // SAFETY: a text of DPDK's that nothing changes once it is started; a NUL-terminated name.
        let (best, is_there) = unsafe {
            let best = CStr::from_ptr(sys::rte_mbuf_best_mempool_ops());
            (best, sys::ek_has_pool_ops(wished.as_ptr()) != 0)
        };
        // A machine that has a way of its own keeps it.
        let ops = match best == USUAL && is_there {
            true => wished,
            false => best,
        };
        // SAFETY: NUL-terminated texts; the rest are numbers.
        let raw = unsafe {
            sys::rte_pktmbuf_pool_create_by_ops(
                full_name.as_ptr(),
                count,
                cache,
                PRIVATE_BYTES,
                room,
                socket,
                ops.as_ptr(),
            )
        };
        let Some(raw) = NonNull::new(raw) else {
            return Err(refusal(count, room));
        };
        let pool = Pool {
            raw: Raw(raw),
            capacity: count,
            data_room: data_room_bytes,
            _alive: alive,
        };
        Ok(Self(Arc::new(pool)))
    }

    /// Buffers in the pool, in use or not.
    pub fn capacity(&self) -> u32 {
        self.0.capacity
    }

    /// The largest frame that a buffer holds, in bytes.
    pub fn data_room(&self) -> u16 {
        self.0.data_room
    }

    /// DPDK's name for how it keeps the buffers that no core has aside.
    pub fn ops(&self) -> &'static str {
        // SAFETY: the pool is alive; the name stands in a table that only grows, NUL-terminated.
        let name = unsafe { CStr::from_ptr(sys::ek_pool_ops(self.raw())) };
        name.to_str().unwrap_or("?")
    }

    /// Buffers that are free, those in the cores' caches included. Only exact
    /// while nothing moves.
    pub fn available(&self) -> u32 {
        self.0.capacity - self.in_use()
    }

    /// Buffers that somebody holds.
    pub fn in_use(&self) -> u32 {
        self.0.raw.in_use()
    }

    /// An empty buffer; None if there is none left.
    #[inline]
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool is alive while a handle is.
        let raw = unsafe { sys::rte_pktmbuf_alloc(self.raw()) };
        // SAFETY: fresh from the pool, with one reference, ours.
        NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })
    }

    /// Adds `count` empty buffers to the batch, or none if it has no room or
    /// the pool too few; true if it did.
    #[inline]
    pub fn alloc_bulk(&self, batch: &mut Batch, count: usize) -> bool {
        let len = batch.len();
        if count > batch.room() {
            return false;
        }
        // SAFETY: `count` free slots follow the first `len`; all are written on success.
        unsafe {
            let slots = batch.raw().add(len);
            if sys::rte_pktmbuf_alloc_bulk(self.raw(), slots, count as u32) != 0 {
                return false;
            }
            batch.set_len(len + count);
        }
        true
    }

    #[inline(always)]
    pub(super) fn raw(&self) -> *mut sys::rte_mempool {
        self.0.raw.0.as_ptr()
    }
}

fn refusal(count: u32, room: u16) -> MempoolError {
    const ENOMEM: i32 = 12;
    match eal::errno() {
        ENOMEM => {
            let bytes = size_of::<super::mbuf::RawMbuf>() as u64 + u64::from(PRIVATE_BYTES);
            MempoolError::Memory {
                count,
                mib: u64::from(count) * (bytes + u64::from(room)) / (1 << 20),
            }
        }
        number => MempoolError::Refused(eal::errno_text(number)),
    }
}

impl std::fmt::Debug for Mempool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Mempool({} of {} in use)",
            self.in_use(),
            self.capacity()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_buffer_lies_across_two_pages() {
        // 2,560 bytes each: one in an ordinary page, 819 in a huge one.
        assert_eq!(pool_bytes(1000, 2176, 4 << 10), 1000 * (4 << 10));
        assert_eq!(pool_bytes(1000, 2176, 2 << 20), 2 * (2 << 20));
        assert_eq!(pool_bytes(1000, 256, 4 << 10), 167 * (4 << 10));
        // A jumbo frame's buffer has pages of its own.
        assert_eq!(pool_bytes(1000, 9600, 4 << 10), 3000 * (4 << 10));
    }
}
