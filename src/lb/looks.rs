//! What the first two passes over a burst found out about its packets, for the third.
//! Pure; a worker's own.

use std::num::NonZeroU64;

use crate::arch::part;

use super::parse::ETHERNET;
use super::table::Slot;
use super::{MAX_BURST, Verdict};

/// What a frame holds, as far as the third pass needs to know. Of plain packets the lowest bit is the
/// family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A TCP or UDP packet from a client, with its headers where nearly every packet has them
    /// ([`super::parse::Packet::plain`]).
    V4,
    V6,
    /// The same from a backend.
    ReplyV4,
    ReplyV6,
    /// A TCP or UDP packet with options, extension headers or a VLAN tag.
    OddV4,
    OddV6,
    /// A TCP or UDP packet that another worker owns: the hash is that worker's index.
    Elsewhere,
    /// Anything else.
    Unusual,
}

/// What a packet is to meet in this shard, and so which end its table hash was taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Meets {
    Request,
    Reply,
    /// A FullNAT reply: the hash is the number of its local port's cell.
    LocalReply,
    /// Nothing: another worker owns its flow, and the hash is that worker's index.
    Elsewhere,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::V4,
        Kind::V6,
        Kind::ReplyV4,
        Kind::ReplyV6,
        Kind::OddV4,
        Kind::OddV6,
        Kind::Elsewhere,
        Kind::Unusual,
    ];
}

impl Meets {
    const ALL: [Meets; 4] = [
        Meets::Request,
        Meets::Reply,
        Meets::LocalReply,
        Meets::Elsewhere,
    ];
}

/// What the first two passes found out about a packet, beside its hash and slot: one word, which is
/// written and read at once. From the lowest bits on: the [`super::conn::settling`] of the packet, its
/// kind and what it meets in 8 bits each, 16 bits for another worker, and its length.
#[derive(Clone, Copy)]
pub(super) struct Look(u64);

impl Look {
    pub const UNUSUAL: Self = Self((Kind::Unusual as u64) << 16);
    pub const ELSEWHERE: Self =
        Self((Kind::Elsewhere as u64) << 16 | (Meets::Elsewhere as u64) << 24);

    #[inline(always)]
    pub fn new(kind: Kind, meets: Meets, length: u16, settling: u16) -> Self {
        let (kind, meets) = ((kind as u64) << 16, (meets as u64) << 24);
        Self(u64::from(length) << 48 | meets | kind | u64::from(settling))
    }

    /// For another worker, as of a snapshot's generation.
    #[inline(always)]
    pub fn told(self, generation: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(self.0 | u64::from(generation as u16) << 32)
    }

    /// What another worker told, if it looked with a snapshot of this generation: in another one, the
    /// same packet may be something else.
    #[inline(always)]
    pub fn heard(told: NonZeroU64, generation: u64) -> Option<Self> {
        let same = (told.get() >> 32) as u16 == generation as u16;
        same.then_some(Self(told.get()))
    }

    /// What was told of another packet, if it is of the same generation and family.
    #[inline(always)]
    pub fn heard_with(self, told: NonZeroU64) -> Option<Self> {
        const GENERATION: u64 = 0xffff << 32;
        const FAMILY: u64 = 1 << 16;
        let same = (self.0 ^ told.get()) & (GENERATION | FAMILY) == 0;
        same.then_some(Self(told.get()))
    }

    /// Of a plain packet.
    #[inline(always)]
    pub fn is_v4(self) -> bool {
        self.0 & 1 << 16 == 0
    }

    #[inline(always)]
    pub fn settling(self) -> u16 {
        self.0 as u16
    }

    /// The IP packet's length.
    #[inline(always)]
    pub fn length(self) -> u16 {
        (self.0 >> 48) as u16
    }

    #[inline(always)]
    pub fn is(self, kind: Kind) -> bool {
        self.0 as u32 & 0xff_0000 == (kind as u32) << 16
    }

    /// Of the same kind, and meets the same.
    #[inline(always)]
    pub fn is_like(self, other: Look) -> bool {
        (self.0 >> 16) as u16 == (other.0 >> 16) as u16
    }

    #[inline(always)]
    pub fn kind(self) -> Kind {
        Kind::ALL[(self.0 >> 16) as usize % Kind::ALL.len()]
    }

    #[inline(always)]
    pub fn meets(self) -> Meets {
        Meets::ALL[(self.0 >> 24) as usize % Meets::ALL.len()]
    }
}

/// How far ahead the third pass asks for entries of a table that is not near. The second pass has done
/// so; where many lines have to come from afar, not all are there by then: a CPU seems to forget some.
pub(super) const AHEAD: usize = 12;

/// The looks at one burst, kept from burst to burst. What is worked out for many packets at once has an
/// array of its own.
///
/// In this order: what is counted lies behind the three arrays that each packet's passes read.
#[repr(C)]
pub(super) struct Looks {
    pub of: [Look; MAX_BURST],
    /// Of the end of the flow that its entry is found by.
    pub hashes: [u64; MAX_BURST],
    /// Where the entries probably are.
    pub slots: [Slot; MAX_BURST],
    /// Looks so far: one for each frame that is this worker's, or whose owner is not known yet.
    pub count: usize,
    /// Packets that other workers own: a bit for each in the order of arrival.
    pub elsewhere: u64,
    /// How many these are, and by whom they are owned.
    pub others: usize,
    pub owners: [u8; MAX_BURST],
    /// Tables are small enough for a core's own cache.
    pub near: bool,
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            count: 0,
            elsewhere: 0,
            others: 0,
            owners: [0; MAX_BURST],
            of: [Look::UNUSUAL; MAX_BURST],
            hashes: [0; MAX_BURST],
            slots: [Slot::NONE; MAX_BURST],
            near: true,
        }
    }
}

/// Where a packet's entry should be.
#[derive(Clone, Copy)]
pub(super) struct Aim {
    pub hash: u64,
    /// Where the second pass saw it, or one like it.
    pub slot: Slot,
    pub meets: Meets,
}

impl Looks {
    /// For another burst.
    pub fn clear(&mut self) {
        (self.count, self.elsewhere, self.others) = (0, 0, 0);
    }

    /// Of so many looks behind those that are counted, takes out the `others`, which say
    /// [`Kind::Elsewhere`]. Returns how many are left.
    #[inline(always)]
    pub fn take_out(&mut self, more: usize, others: usize) -> usize {
        let looks = || self.of[self.count..self.count + more].iter();
        debug_assert_eq!(others, looks().filter(|l| l.is(Kind::Elsewhere)).count());
        match others {
            0 => more,
            all if all == more => self.set_all_aside(more),
            _ => self.set_aside(more),
        }
    }

    fn set_all_aside(&mut self, more: usize) -> usize {
        let hashes = &self.hashes[self.count..self.count + more];
        let owners = &mut self.owners[self.others..self.others + more];
        for (owner, hash) in owners.iter_mut().zip(hashes) {
            *owner = *hash as u8;
        }
        let ones = u64::MAX >> (MAX_BURST - more);
        self.elsewhere |= ones << (self.count + self.others);
        self.others += more;
        0
    }

    /// Without a branch on whose a packet is: where owners are mixed, nobody could guess it.
    #[inline(never)]
    fn set_aside(&mut self, more: usize) -> usize {
        let (mut own, mut others, mut elsewhere) = (self.count, self.others, self.elsewhere);
        for at in self.count..self.count + more {
            let (look, hash) = (self.of[at % MAX_BURST], self.hashes[at % MAX_BURST]);
            self.of[own % MAX_BURST] = look;
            self.hashes[own % MAX_BURST] = hash;
            self.owners[others % MAX_BURST] = hash as u8;
            let is_elsewhere = look.is(Kind::Elsewhere);
            elsewhere |= u64::from(is_elsewhere) << ((own + others) % MAX_BURST);
            others += usize::from(is_elsewhere);
            own += usize::from(!is_elsewhere);
        }
        (self.others, self.elsewhere) = (others, elsewhere);
        own - self.count
    }

    /// Moves the packets that others own behind the worker's own frames; returns how many the latter are.
    #[inline(never)]
    pub fn part<F>(&self, frames: &mut [F]) -> usize {
        match self.count {
            0 => 0,
            _ => part(frames, self.elsewhere),
        }
    }

    /// Gives the verdicts on those that others own. Returns the worker that owns them all, where it is
    /// one.
    #[inline(never)]
    pub fn hand_over(&self, verdicts: &mut [Verdict]) -> Option<u8> {
        let owners = &self.owners[..self.others];
        for (verdict, &owner) in verdicts.iter_mut().zip(owners) {
            *verdict = Verdict::HandOff(owner);
        }
        let first = *owners.first()?;
        let differ = owners
            .iter()
            .fold(0, |differ, owner| differ | owner ^ first);
        (differ == 0).then_some(first)
    }

    /// What a burst of so many plain packets holds, whose padding is cut off: looks lie side by side, as
    /// frames do not.
    #[inline(always)]
    pub fn bytes(&self, count: usize) -> u64 {
        let lengths = self.of[..count].iter().map(|look| u64::from(look.length()));
        (ETHERNET * count) as u64 + lengths.sum::<u64>()
    }

    #[inline(always)]
    pub fn aim(&self, at: usize) -> Aim {
        Aim {
            hash: self.hashes[at],
            slot: self.slots[at],
            meets: self.of[at].meets(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_gives_back_what_was_put_in() {
        for kind in Kind::ALL {
            for meets in Meets::ALL {
                let look = Look::new(kind, meets, 0xfedc, 0x0911);
                assert_eq!((look.kind(), look.meets()), (kind, meets));
                assert_eq!((look.length(), look.settling()), (0xfedc, 0x0911));
                let same = Kind::ALL.into_iter().filter(|&k| look.is(k));
                assert_eq!(same.collect::<Vec<_>>(), [kind]);
            }
        }
        assert_eq!(Look::UNUSUAL.kind(), Kind::Unusual);
        assert!(Look::ELSEWHERE.is(Kind::Elsewhere));
    }

    #[test]
    fn a_look_is_believed_in_its_own_generation_alone() {
        let look = Look::new(Kind::ReplyV6, Meets::Reply, 1500, 0x0306);
        let told = look.told(0x7_0003).expect("a packet has a length");
        let heard = |generation| Look::heard(told, generation);
        assert!(heard(0x7_0004).is_none() && heard(0x7_8003).is_none());
        let heard = heard(0x7_0003).expect("the same generation");
        for kind in [Kind::V4, Kind::V6, Kind::ReplyV4, Kind::ReplyV6] {
            let other = Look::new(kind, Meets::Request, 60, 0x0911);
            let is_v4 = matches!(kind, Kind::V4 | Kind::ReplyV4);
            assert_eq!(other.is_v4(), is_v4, "{kind:?}");
            let with = |generation| heard.heard_with(other.told(generation).expect("a length"));
            assert_eq!(with(0x7_0003).map(Look::kind), (!is_v4).then_some(kind));
            assert!(with(0x7_0004).is_none(), "{kind:?}");
        }
        assert_eq!((heard.kind(), heard.meets()), (Kind::ReplyV6, Meets::Reply));
        assert_eq!((heard.length(), heard.settling()), (1500, 0x0306));
    }
}
