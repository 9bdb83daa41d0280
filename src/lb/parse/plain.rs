//! Plain packets, which are nearly all: TCP or UDP, sound, whole, without options or extension
//! headers and without a VLAN tag, so that every offset is a constant.
//! Pure; runs on workers for every packet.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{ETHERNET, Packet, read_u16};
use crate::lb::conn::Conn;
use crate::lb::flow::{Address, FlowKey, protocol};

impl<A: Address> Packet<A> {
    pub const PLAIN_L4: usize = ETHERNET + A::HEADER;

    /// The plain packet in a frame in which one of this length was found. `None` only where the
    /// frame is too short to hold any.
    #[inline(always)]
    pub fn plain(frame: &[u8], length: u16) -> Option<Self> {
        let protocol = *frame.get(ETHERNET + A::PROTOCOL_AT)?;
        let tcp_flags = match protocol {
            protocol::TCP => *frame.get(Self::PLAIN_L4 + 13)?,
            _ => 0,
        };
        Self::with(frame, protocol, length, tcp_flags)
    }

    /// The plain packet of this length that a connection's client sent, without its TCP flags.
    #[inline(always)]
    pub fn of_client(conn: &Conn<A>, length: u16) -> Self {
        Self {
            key: FlowKey {
                source: conn.client,
                destination: conn.vip,
                source_port: conn.client_port,
                destination_port: conn.vip_port,
                protocol: conn.protocol,
            },
            l3: ETHERNET as u8,
            l4: Self::PLAIN_L4 as u16,
            length,
            tcp_flags: 0,
        }
    }

    #[inline(always)]
    fn with(frame: &[u8], protocol: u8, length: u16, tcp_flags: u8) -> Option<Self> {
        let head = frame.get(..Self::PLAIN_L4 + 4)?;
        Some(Self {
            key: FlowKey {
                source: A::read(&head[ETHERNET + A::SOURCE_AT..]),
                destination: A::read(&head[ETHERNET + A::DESTINATION_AT..]),
                source_port: read_u16(head, Self::PLAIN_L4),
                destination_port: read_u16(head, Self::PLAIN_L4 + 2),
                protocol,
            },
            l3: ETHERNET as u8,
            l4: Self::PLAIN_L4 as u16,
            length,
            tcp_flags,
        })
    }

    /// The plain packet in a frame whose fixed bits are those of `udp` or of `tcp`.
    #[inline(always)]
    fn claimed_as(
        (udp, tcp): (&Fixed, &Fixed),
        words: (u64, u32),
        frame: &[u8],
        length: usize,
    ) -> Option<Self> {
        // What both have is read once, behind this.
        let (head, protocol, flags) = if udp.matches(words) {
            (frame.get(..Self::PLAIN_L4 + 8)?, protocol::UDP, 0)
        } else if tcp.matches(words) {
            let head = frame.get(..Self::PLAIN_L4 + 20)?;
            (head, protocol::TCP, head[Self::PLAIN_L4 + 13])
        } else {
            return None;
        };
        Self::with(head, protocol, u16::try_from(length).ok()?, flags)
    }
}

/// A frame's begin: as much as the shortest plain packet has.
type Head = [u8; ETHERNET + 28];

/// From the ethertype on, as two words: which bits are the same in all plain packets of a protocol,
/// and what they are.
struct Fixed {
    mask: (u64, u32),
    bits: (u64, u32),
}

impl Fixed {
    const fn new(mask: [u8; 12], bits: [u8; 12]) -> Self {
        Self {
            mask: words(mask),
            bits: words(bits),
        }
    }

    #[inline(always)]
    fn matches(&self, (first, second): (u64, u32)) -> bool {
        (first & self.mask.0 ^ self.bits.0) | u64::from(second & self.mask.1 ^ self.bits.1) == 0
    }
}

const fn words([a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12]) -> (u64, u32) {
    let first = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    (first, u32::from_le_bytes([i, j, k, l]))
}

/// Eight and four bytes of a frame's head at an offset, which is one load each.
#[inline(always)]
fn word(head: &Head, at: usize) -> u64 {
    let bytes = head[at..].first_chunk().copied();
    u64::from_le_bytes(bytes.unwrap_or_default())
}

#[inline(always)]
fn half_word(head: &Head, at: usize) -> u32 {
    let bytes = head[at..].first_chunk().copied();
    u32::from_le_bytes(bytes.unwrap_or_default())
}

const fn fixed_v4(protocol: u8) -> Fixed {
    // Ethertype, version with header length, neither offset nor more fragments, protocol.
    Fixed::new(
        [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0x3f, 0xff, 0, 0xff],
        [0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 0, protocol],
    )
}

const fn fixed_v6(protocol: u8) -> Fixed {
    // Ethertype, version, next header.
    Fixed::new(
        [0xff, 0xff, 0xf0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0],
        [0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol, 0, 0, 0],
    )
}

const UDP_V4: Fixed = fixed_v4(protocol::UDP);
const TCP_V4: Fixed = fixed_v4(protocol::TCP);
const UDP_V6: Fixed = fixed_v6(protocol::UDP);
const TCP_V6: Fixed = fixed_v6(protocol::TCP);

impl<A: Address> Packet<A> {
    /// Whether a frame in which it was found is as long as it says, and it is long enough for its headers.
    /// It is where it is as long as the frame.
    #[inline(always)]
    pub fn fits(&self, frame: &[u8]) -> bool {
        let l4 = match self.key.protocol {
            protocol::UDP => 8,
            _ => 20,
        };
        let (l3, length) = (usize::from(self.l3), usize::from(self.length));
        length >= A::HEADER + l4 && l3 + length <= frame.len()
    }
}

impl Packet<Ipv4Addr> {
    /// The plain IPv4 packet in a frame. `None` says nothing about a frame: ask
    /// [`parse`](super::parse), which always agrees with what is found here.
    #[inline(always)]
    pub fn find_plain_v4(frame: &[u8], checksum_verified: bool) -> Option<Self> {
        Self::claimed_v4(frame, checksum_verified).filter(|packet| packet.fits(frame))
    }

    /// What [`Packet::find_plain_v4`] finds if it [fits](Packet::fits).
    #[inline(always)]
    pub fn claimed_v4(frame: &[u8], checksum_verified: bool) -> Option<Self> {
        let head = frame.first_chunk()?;
        let words = (word(head, 12), half_word(head, 20));
        let length = usize::from(read_u16(head, 16));
        if !checksum_verified && !has_sound_checksum(head) {
            return None;
        }
        Self::claimed_as((&UDP_V4, &TCP_V4), words, frame, length)
    }
}

impl Packet<Ipv6Addr> {
    /// The plain IPv6 packet in a frame; `None` as for IPv4.
    #[inline(always)]
    pub fn find_plain_v6(frame: &[u8]) -> Option<Self> {
        Self::claimed_v6(frame).filter(|packet| packet.fits(frame))
    }

    /// What [`Packet::find_plain_v6`] finds if it fits, likewise.
    #[inline(always)]
    pub fn claimed_v6(frame: &[u8]) -> Option<Self> {
        let head = frame.first_chunk()?;
        let words = (word(head, 12), half_word(head, 20));
        let length = Ipv6Addr::HEADER + usize::from(read_u16(head, 18));
        Self::claimed_as((&UDP_V6, &TCP_V6), words, frame, length)
    }
}

/// Verifies the checksum of an IPv4 header without options behind an Ethernet header. The one's
/// complement sum is a sum modulo 2^16 - 1 that does not depend on the byte order (RFC 1071 2 B), and
/// that of a sound header is zero. As 2^64 is one in it, the carry of wider words goes in below.
#[inline(always)]
fn has_sound_checksum(head: &Head) -> bool {
    let (sum, carry) = word(head, 14).overflowing_add(word(head, 22));
    let last = u64::from(half_word(head, 30)) + u64::from(carry);
    let (sum, carry) = sum.overflowing_add(last);
    (sum + u64::from(carry)).is_multiple_of(0xffff)
}
