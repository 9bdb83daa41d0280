//! DPDK's packet buffer as the balancer's frame, and the note in it of the VLAN that it came by.

use std::num::NonZeroU64;

use crate::lb::frame::{Frame, Note};
use crate::port::{Mbuf, RxChecksum};

/// Where the numbers of interfaces begin in a packet's port: above all ids that DPDK gives.
const INTERFACES: u16 = 0x4000;

/// The interface that a packet came in on, where there are VLANs.
pub fn interface_of(mbuf: &Mbuf) -> Option<u8> {
    interface_of_id(mbuf.port())
}

/// The interface that a packet's port names, where it names one.
pub fn interface_of_id(port: u16) -> Option<u8> {
    u8::try_from(port.checked_sub(INTERFACES)?).ok()
}

impl Frame for Mbuf {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        Mbuf::bytes(self)
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        Mbuf::bytes_mut(self)
    }

    #[inline(always)]
    fn prepend(&mut self, count: usize) -> bool {
        Mbuf::prepend(self, count)
    }

    #[inline(always)]
    fn trim_front(&mut self, count: usize) -> bool {
        Mbuf::trim_front(self, count)
    }

    #[inline(always)]
    fn append(&mut self, count: usize) -> bool {
        Mbuf::append(self, count)
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) {
        Mbuf::truncate(self, length);
    }

    #[inline(always)]
    fn ip_checksum_verified(&self) -> bool {
        self.ip_checksum() == RxChecksum::Good
    }

    #[inline(always)]
    fn note(&self) -> Note {
        let (look, hash) = Mbuf::note(self);
        match NonZeroU64::new(look) {
            Some(look) => Note::Sight { look, hash },
            None => Note::Word(hash as u32),
        }
    }

    #[inline(always)]
    fn set_note(&mut self, note: Note) {
        let words = match note {
            Note::Sight { look, hash } => (look.get(), hash),
            Note::Word(word) => (0, u64::from(word)),
        };
        Mbuf::set_note(self, words);
    }

    #[inline(always)]
    fn prefetch_note(&self) {
        self.prefetch();
    }

    #[inline(always)]
    fn prefetch_bytes(&self) {
        self.prefetch_received();
    }

    #[inline(always)]
    fn is_contiguous(&self) -> bool {
        self.segments() == 1
    }

    #[inline(always)]
    fn interface(&self) -> Option<u8> {
        interface_of(self)
    }

    #[inline(always)]
    fn set_interface(&mut self, interface: u8) {
        self.set_port(INTERFACES + u16::from(interface));
    }
}
