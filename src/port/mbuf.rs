//! One packet buffer and the view of its bytes.
//!
//! Owned by whoever holds the [`Mbuf`]; runs on any thread; never calls into C
//! per access. Only the first segment's bytes are shown: ports are started
//! without scattered receive, so a chain is a driver's exception that the
//! worker can see with [`Mbuf::segments`] and drop.

use std::mem::offset_of;
use std::ptr::NonNull;

use super::sys;

/// `struct rte_mbuf`, as far as it is used here. Declared by hand because its
/// anonymous unions are named differently by every DPDK release; the asserts
/// below hold it against the C compiler's offsets.
#[repr(C, align(64))]
pub struct RawMbuf {
    buf_addr: *mut u8,
    buf_iova: u64,
    data_off: u16,
    refcnt: u16,
    nb_segs: u16,
    port: u16,
    ol_flags: u64,
    packet_type: u32,
    pkt_len: u32,
    data_len: u16,
    vlan_tci: u16,
    rss: u32,
    /// The driver's, and ours once a packet is received: see [`Mbuf::note`].
    hash_high: u32,
    vlan_tci_outer: u16,
    buf_len: u16,
    pool: *mut sys::rte_mempool,
    second_line: [u64; 8],
}

const _: () = {
    assert!(size_of::<RawMbuf>() as u64 == sys::EK_MBUF_SIZE);
    assert!(offset_of!(RawMbuf, buf_addr) as u64 == sys::EK_MBUF_OFFSET_BUF_ADDR);
    assert!(offset_of!(RawMbuf, data_off) as u64 == sys::EK_MBUF_OFFSET_DATA_OFF);
    assert!(offset_of!(RawMbuf, refcnt) as u64 == sys::EK_MBUF_OFFSET_REFCNT);
    assert!(offset_of!(RawMbuf, nb_segs) as u64 == sys::EK_MBUF_OFFSET_NB_SEGS);
    assert!(offset_of!(RawMbuf, port) as u64 == sys::EK_MBUF_OFFSET_PORT);
    assert!(offset_of!(RawMbuf, ol_flags) as u64 == sys::EK_MBUF_OFFSET_OL_FLAGS);
    assert!(offset_of!(RawMbuf, pkt_len) as u64 == sys::EK_MBUF_OFFSET_PKT_LEN);
    assert!(offset_of!(RawMbuf, data_len) as u64 == sys::EK_MBUF_OFFSET_DATA_LEN);
    assert!(offset_of!(RawMbuf, vlan_tci) as u64 == sys::EK_MBUF_OFFSET_VLAN_TCI);
    assert!(offset_of!(RawMbuf, rss) as u64 == sys::EK_MBUF_OFFSET_RSS);
    assert!(offset_of!(RawMbuf, buf_len) as u64 == sys::EK_MBUF_OFFSET_BUF_LEN);
    assert!(offset_of!(RawMbuf, pool) as u64 == sys::EK_MBUF_OFFSET_POOL);
};

/// Bytes that every pool reserves right behind the C struct, before the
/// headroom: one cache line, so that packet data stays line-aligned. The first
/// eight hold the stamp.
pub(super) const PRIVATE_BYTES: u16 = 64;

/// What the NIC says about a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RxChecksum {
    /// It did not look; verify in software.
    Unknown,
    Good,
    Bad,
}

/// An owned packet buffer. Dropping it returns it to its pool.
#[repr(transparent)]
pub struct Mbuf(NonNull<RawMbuf>);

// SAFETY: an Mbuf is the only handle to its buffer, and a pool takes buffers
// back from any thread.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// # Safety
    /// `raw` must be a live mbuf with reference count 1 out of a [`super::Mempool`],
    /// and the caller must give up every other use of it.
    #[inline(always)]
    pub(super) unsafe fn from_raw(raw: NonNull<RawMbuf>) -> Self {
        Self(raw)
    }

    /// Gives the buffer up without freeing it.
    #[inline(always)]
    pub(super) fn into_raw(self) -> NonNull<RawMbuf> {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }

    #[inline(always)]
    fn raw(&self) -> &RawMbuf {
        // SAFETY: the invariant of `from_raw`: live, and ours alone.
        unsafe { self.0.as_ref() }
    }

    #[inline(always)]
    fn raw_mut(&mut self) -> &mut RawMbuf {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { self.0.as_mut() }
    }

    /// The packet, from the Ethernet header, without the frame check sequence.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        let raw = self.raw();
        // SAFETY: drivers and the methods below keep data_off + data_len <= buf_len,
        // the size of the allocation at buf_addr, which lives as long as the mbuf.
        unsafe {
            std::slice::from_raw_parts(
                raw.buf_addr.add(raw.data_off as usize),
                raw.data_len as usize,
            )
        }
    }

    /// As [`Mbuf::bytes`], to write.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let raw = self.raw();
        // SAFETY: as in `bytes`; `&mut self` makes it exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(
                raw.buf_addr.add(raw.data_off as usize),
                raw.data_len as usize,
            )
        }
    }

    /// Bytes in the first segment, which is the whole packet unless
    /// [`Mbuf::segments`] says otherwise.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.raw().data_len as usize
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the whole packet, over all segments.
    #[inline(always)]
    pub fn packet_len(&self) -> usize {
        self.raw().pkt_len as usize
    }

    /// Bytes that [`Mbuf::prepend`] can still take.
    #[inline(always)]
    pub fn headroom(&self) -> usize {
        self.raw().data_off as usize
    }

    /// Bytes that [`Mbuf::append`] can still take.
    #[inline(always)]
    pub fn tailroom(&self) -> usize {
        let raw = self.raw();
        raw.buf_len as usize - raw.data_off as usize - raw.data_len as usize
    }

    /// Grows the packet by `count` bytes at the front, whose content is
    /// whatever was there; false, and no change, if the headroom is too small.
    #[inline(always)]
    pub fn prepend(&mut self, count: usize) -> bool {
        if count > self.headroom() {
            return false;
        }
        let raw = self.raw_mut();
        raw.data_off -= count as u16;
        raw.data_len += count as u16;
        raw.pkt_len += count as u32;
        true
    }

    /// Removes `count` bytes at the front; false, and no change, if the packet
    /// is shorter.
    #[inline(always)]
    pub fn trim_front(&mut self, count: usize) -> bool {
        if count > self.len() {
            return false;
        }
        let raw = self.raw_mut();
        raw.data_off += count as u16;
        raw.data_len -= count as u16;
        raw.pkt_len -= count as u32;
        true
    }

    /// Cuts the packet to `len` bytes; does nothing if it is not longer.
    #[inline(always)]
    pub fn truncate(&mut self, len: usize) {
        let raw = self.raw_mut();
        let length = raw.data_len as usize;
        if length <= len {
            return;
        }
        let cut = length - len;
        raw.data_len -= cut as u16;
        raw.pkt_len -= cut as u32;
    }

    /// Grows the packet by `count` bytes at the end, whose content is whatever
    /// was there; false, and no change, if the tailroom is too small.
    #[inline(always)]
    pub fn append(&mut self, count: usize) -> bool {
        if count > self.tailroom() {
            return false;
        }
        let raw = self.raw_mut();
        raw.data_len += count as u16;
        raw.pkt_len += count as u32;
        true
    }

    /// Replaces the packet by a copy of `bytes`; false, and no change, if they
    /// do not fit behind the headroom.
    pub fn fill(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.len() + self.tailroom() {
            return false;
        }
        self.truncate(bytes.len());
        let more = bytes.len() - self.len();
        self.append(more);
        self.bytes_mut().copy_from_slice(bytes);
        true
    }

    /// Buffers in the chain; 1 for an ordinary packet.
    #[inline(always)]
    pub fn segments(&self) -> u16 {
        self.raw().nb_segs
    }

    /// DPDK's id of the port that received it.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        self.raw().port
    }

    /// Notes another number in place of that id, until the buffer is received into again.
    #[inline(always)]
    pub fn set_port(&mut self, port: u16) {
        self.raw_mut().port = port;
    }

    /// The raw `RTE_MBUF_F_*` flags.
    #[inline(always)]
    pub fn ol_flags(&self) -> u64 {
        self.raw().ol_flags
    }

    /// Forgets what reception left in the flags, so that no driver takes it
    /// for a request when the packet is sent.
    #[inline(always)]
    pub fn clear_flags(&mut self) {
        self.raw_mut().ol_flags = 0;
    }

    /// What the NIC found about the (outer) IPv4 header checksum.
    #[inline(always)]
    pub fn ip_checksum(&self) -> RxChecksum {
        match self.raw().ol_flags & sys::EK_MBUF_RX_IP_CKSUM_MASK {
            sys::EK_MBUF_RX_IP_CKSUM_GOOD => RxChecksum::Good,
            sys::EK_MBUF_RX_IP_CKSUM_BAD => RxChecksum::Bad,
            _ => RxChecksum::Unknown,
        }
    }

    /// What the NIC found about the TCP or UDP checksum. A virtual device's
    /// "not filled in, but the data is sound" counts as unknown.
    #[inline(always)]
    pub fn l4_checksum(&self) -> RxChecksum {
        match self.raw().ol_flags & sys::EK_MBUF_RX_L4_CKSUM_MASK {
            sys::EK_MBUF_RX_L4_CKSUM_GOOD => RxChecksum::Good,
            sys::EK_MBUF_RX_L4_CKSUM_BAD => RxChecksum::Bad,
            _ => RxChecksum::Unknown,
        }
    }

    /// The RSS hash, if the NIC delivered one.
    #[inline(always)]
    pub fn rss_hash(&self) -> Option<u32> {
        let raw = self.raw();
        (raw.ol_flags & sys::EK_MBUF_RX_RSS_HASH != 0).then_some(raw.rss)
    }

    /// The VLAN tag control information (host order) of a tag that the NIC
    /// stripped.
    #[inline(always)]
    pub fn vlan_tci(&self) -> Option<u16> {
        let raw = self.raw();
        (raw.ol_flags & sys::EK_MBUF_RX_VLAN_STRIPPED != 0).then_some(raw.vlan_tci)
    }

    /// The eight bytes that travel with the buffer for our own use. Left over
    /// from an earlier packet until set.
    #[inline(always)]
    pub fn stamp(&self) -> u64 {
        // SAFETY: every pool reserves PRIVATE_BYTES behind the struct, 8-aligned.
        unsafe { self.0.add(1).cast::<u64>().read() }
    }

    /// Sets what [`Mbuf::stamp`] returns.
    #[inline(always)]
    pub fn set_stamp(&mut self, stamp: u64) {
        // SAFETY: as in `stamp`; `&mut self` makes it exclusive.
        unsafe { self.0.add(1).cast::<u64>().write(stamp) }
    }

    /// Sixteen bytes that travel with a received packet for our own use, in the line that the driver
    /// wrote them into: unlike [`Mbuf::stamp`], they cost no line of their own when the packet
    /// goes to another core. The driver's, or an earlier packet's, until set.
    #[inline(always)]
    pub fn note(&self) -> (u64, u64) {
        let raw = self.raw();
        let tags = u64::from(raw.vlan_tci_outer) | u64::from(raw.vlan_tci) << 16;
        let first = u64::from(raw.packet_type) | tags << 32;
        (first, u64::from(raw.rss) | u64::from(raw.hash_high) << 32)
    }

    /// Sets what [`Mbuf::note`] returns, in place of what the driver found out: packet type, VLAN tags
    /// and RSS hash.
    #[inline(always)]
    pub fn set_note(&mut self, (first, second): (u64, u64)) {
        let raw = self.raw_mut();
        raw.packet_type = first as u32;
        raw.vlan_tci_outer = (first >> 32) as u16;
        raw.vlan_tci = (first >> 48) as u16;
        raw.rss = second as u32;
        raw.hash_high = (second >> 32) as u32;
    }

    /// Fetches the line in which a packet that was received and not changed most likely begins. Does
    /// not read the header.
    #[inline(always)]
    pub fn prefetch_received(&self) {
        const BEGIN: usize =
            size_of::<RawMbuf>() + PRIVATE_BYTES as usize + sys::RTE_PKTMBUF_HEADROOM as usize;
        prefetch(self.0.as_ptr().cast::<u8>().wrapping_add(BEGIN));
    }

    /// Fetches the header (not the packet) into the cache.
    #[inline(always)]
    pub fn prefetch(&self) {
        prefetch(self.0.as_ptr().cast());
    }

    /// Fetches the packet's first cache line. Reads the header to find it, so
    /// call [`Mbuf::prefetch`] a few packets earlier.
    #[inline(always)]
    pub fn prefetch_data(&self) {
        let raw = self.raw();
        prefetch(raw.buf_addr.wrapping_add(raw.data_off as usize));
    }
}

#[inline(always)]
fn prefetch(address: *const u8) {
    // SAFETY: a prefetch never faults and changes nothing but the cache.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast())
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the invariant of `from_raw`; nothing uses it afterwards.
        unsafe { sys::rte_pktmbuf_free(self.0.as_ptr()) }
    }
}

impl std::fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mbuf({} bytes from port {})", self.len(), self.port())
    }
}
