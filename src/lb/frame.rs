//! What the balancer asks of a packet buffer. DPDK's mbuf is one; tests bring another.

use std::num::NonZeroU64;

/// What a worker has to say about a frame that it hands over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    /// A question, an answer, or nothing: 0.
    Word(u32),
    /// What its first pass found out, which the owner need not find out again, in the words of
    /// `lb::looks`.
    Sight { look: NonZeroU64, hash: u64 },
}

impl Note {
    pub const NONE: Self = Self::Word(0);
}

/// One Ethernet frame with room in front of it, owned by the caller.
pub trait Frame {
    /// The frame from its Ethernet header to its end, without FCS.
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Grows the frame by `count` bytes at the front; their content is unspecified. False, and
    /// nothing changed, where the headroom is too small.
    fn prepend(&mut self, count: usize) -> bool;
    /// Cuts `count` bytes off the front; false, and nothing changed, where there are fewer.
    fn trim_front(&mut self, count: usize) -> bool;
    /// Grows the frame by `count` bytes at the end; their content is unspecified. False, and
    /// nothing changed, where the tailroom is too small.
    fn append(&mut self, count: usize) -> bool;
    /// Cuts the frame down to `length` bytes; longer than the frame changes nothing.
    fn truncate(&mut self, length: usize);
    /// True where the NIC has already found the IPv4 header checksum right.
    fn ip_checksum_verified(&self) -> bool;
    /// What the worker that handed the frame over had to say. Means something in such frames, and in
    /// those that were held, alone.
    fn note(&self) -> Note;
    fn set_note(&mut self, note: Note);
    /// Asks the cache for the note, where that makes sense.
    fn prefetch_note(&self) {}
    /// Asks the cache for the first bytes of a frame that was handed over, likewise; reads nothing.
    fn prefetch_bytes(&self) {}
    /// True where the frame lies in one piece: `bytes` is all of it, and else its first buffer.
    fn is_contiguous(&self) -> bool;
    /// The interface that the frame came in on, where there are VLANs ([`super::vlan`]).
    fn interface(&self) -> Option<u8>;
    fn set_interface(&mut self, interface: u8);
}

/// A frame in ordinary memory, for tests, probes and tools.
#[derive(Clone, Debug)]
pub struct MemoryFrame {
    buffer: Vec<u8>,
    start: usize,
    note: Note,
    interface: Option<u8>,
    is_contiguous: bool,
}

/// Headroom of a [`MemoryFrame`]; DPDK's default.
pub const HEADROOM: usize = 128;

/// The largest frame a [`MemoryFrame`] grows to, headroom not counted; DPDK's default.
pub const ROOM: usize = 2048;

impl MemoryFrame {
    /// A frame with these bytes. The room in front holds 0xa5, so that a byte a rewrite forgot
    /// shows.
    pub fn new(bytes: &[u8]) -> Self {
        let mut buffer = vec![0xa5; HEADROOM];
        buffer.extend_from_slice(bytes);
        Self {
            buffer,
            start: HEADROOM,
            note: Note::NONE,
            interface: None,
            is_contiguous: true,
        }
    }

    /// The same as the first of several buffers in which a frame lies.
    pub fn in_pieces(self) -> Self {
        Self {
            is_contiguous: false,
            ..self
        }
    }
}

impl Frame for MemoryFrame {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..]
    }

    fn prepend(&mut self, count: usize) -> bool {
        if count > self.start {
            return false;
        }
        self.start -= count;
        true
    }

    fn trim_front(&mut self, count: usize) -> bool {
        if count > self.buffer.len() - self.start {
            return false;
        }
        self.start += count;
        true
    }

    fn append(&mut self, count: usize) -> bool {
        if self.buffer.len() + count > HEADROOM + ROOM.max(self.buffer.len() - HEADROOM) {
            return false;
        }
        self.buffer.resize(self.buffer.len() + count, 0xa5);
        true
    }

    fn truncate(&mut self, length: usize) {
        self.buffer.truncate(self.start + length);
    }

    fn ip_checksum_verified(&self) -> bool {
        false
    }

    fn note(&self) -> Note {
        self.note
    }

    fn set_note(&mut self, note: Note) {
        self.note = note;
    }

    fn is_contiguous(&self) -> bool {
        self.is_contiguous
    }

    fn interface(&self) -> Option<u8> {
        self.interface
    }

    fn set_interface(&mut self, interface: u8) {
        self.interface = Some(interface);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_shrinks_at_both_ends_within_its_room() {
        let mut frame = MemoryFrame::new(b"abc");
        assert!(frame.prepend(1) && frame.append(2));
        assert_eq!(frame.bytes(), b"\xa5abc\xa5\xa5");
        assert!(frame.trim_front(2));
        frame.truncate(2);
        assert_eq!(frame.bytes(), b"bc");
        assert!(!frame.prepend(HEADROOM + 2) && !frame.append(ROOM) && !frame.trim_front(3));
        assert_eq!(frame.bytes(), b"bc");
    }
}
