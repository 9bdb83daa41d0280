//! From frame bytes to what the balancer needs to know of them, in one look.
//! Pure; runs on workers for every packet. Everything after it trusts the offsets found here.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::conn::Conn;
use super::counters::DropReason;
use super::flow::{Address, FlowKey, protocol};

pub const ETHERNET: usize = 14;
pub const VLAN_TAG: usize = 4;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
pub const ETHERTYPE_VLAN: u16 = 0x8100;

/// The TCP flags byte (RFC 9293 3.1).
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// A whole (not fragmented) TCP or UDP packet, with checked offsets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<A> {
    pub key: FlowKey<A>,
    /// Where the IP header starts.
    pub l3: u8,
    /// Where the TCP or UDP header starts: at least 8 bytes (UDP) or 20 (TCP) follow.
    pub l4: u16,
    /// The IP packet's length with its header, at most what the frame holds.
    pub length: u16,
    /// TCP's flags; 0 for UDP.
    pub tcp_flags: u8,
}

/// What a frame turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    V4(Packet<Ipv4Addr>),
    V6(Packet<Ipv6Addr>),
    /// An ICMP or ICMPv6 message: it may speak of a flow in its quotation.
    IcmpV4 {
        l3: u8,
        l4: u16,
        length: u16,
    },
    IcmpV6 {
        l3: u8,
        l4: u16,
        length: u16,
    },
    /// A fragment of an IPv4 or IPv6 datagram, the first one included.
    FragmentV4 {
        l3: u8,
    },
    FragmentV6 {
        l3: u8,
        header: u16,
    },
    /// Sound, but nothing that is ever balanced: ARP, other protocols, other ethertypes.
    Other,
    Bad(DropReason),
}

#[inline(always)]
pub fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Parses a frame. `checksum_verified` spares the IPv4 header checksum where the NIC did it.
#[inline(always)]
pub fn parse(frame: &[u8], checksum_verified: bool) -> Parsed {
    let Some(ethernet) = frame.first_chunk::<ETHERNET>() else {
        return Parsed::Bad(DropReason::Truncated);
    };
    match u16::from_be_bytes([ethernet[12], ethernet[13]]) {
        ETHERTYPE_IPV4 => parse_v4(frame, ETHERNET, checksum_verified),
        ETHERTYPE_IPV6 => parse_v6(frame, ETHERNET),
        ETHERTYPE_VLAN => parse_tagged(frame, checksum_verified),
        _ => Parsed::Other,
    }
}

/// Plain packets, which are nearly all: TCP or UDP, sound, whole, without options or extension
/// headers and without a VLAN tag, so that every offset is a constant.
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

    #[inline(always)]
    fn udp(frame: &[u8], length: usize) -> Option<Self> {
        let frame = frame.get(..Self::PLAIN_L4 + 8)?;
        Self::with(frame, protocol::UDP, u16::try_from(length).ok()?, 0)
    }

    #[inline(always)]
    fn tcp(frame: &[u8], length: usize) -> Option<Self> {
        let frame = frame.get(..Self::PLAIN_L4 + 20)?;
        let flags = frame[Self::PLAIN_L4 + 13];
        Self::with(frame, protocol::TCP, u16::try_from(length).ok()?, flags)
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
    /// The plain IPv4 packet in a frame. `None` says nothing about a frame: ask [`parse`], which
    /// always agrees with what is found here.
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
        if UDP_V4.matches(words) {
            return Self::udp(frame, length);
        }
        match TCP_V4.matches(words) {
            true => Self::tcp(frame, length),
            false => None,
        }
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
        if UDP_V6.matches(words) {
            return Self::udp(frame, length);
        }
        match TCP_V6.matches(words) {
            true => Self::tcp(frame, length),
            false => None,
        }
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

fn parse_tagged(frame: &[u8], checksum_verified: bool) -> Parsed {
    let l3 = ETHERNET + VLAN_TAG;
    if frame.len() < l3 {
        return Parsed::Bad(DropReason::Truncated);
    }
    match read_u16(frame, l3 - 2) {
        ETHERTYPE_IPV4 => parse_v4(frame, l3, checksum_verified),
        ETHERTYPE_IPV6 => parse_v6(frame, l3),
        _ => Parsed::Other,
    }
}

#[inline(always)]
fn parse_v4(frame: &[u8], l3: usize, checksum_verified: bool) -> Parsed {
    let ip = &frame[l3..];
    let Some(header) = ip.first_chunk::<20>() else {
        return Parsed::Bad(DropReason::Truncated);
    };
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_length < 20 || length < header_length {
        return Parsed::Bad(DropReason::MalformedIp);
    }
    if length > ip.len() {
        return Parsed::Bad(DropReason::Truncated);
    }
    if !checksum_verified {
        let sum = if header_length == 20 {
            Sum::default().bytes(header)
        } else {
            Sum::default().bytes(&ip[..header_length])
        };
        if sum.fold() != 0xffff {
            return Parsed::Bad(DropReason::BadIpChecksum);
        }
    }
    // More fragments, or an offset.
    if header[6] & 0x3f != 0 || header[7] != 0 {
        return Parsed::FragmentV4 { l3: l3 as u8 };
    }
    let l4 = l3 + header_length;
    let source = Ipv4Addr::from([header[12], header[13], header[14], header[15]]);
    let destination = Ipv4Addr::from([header[16], header[17], header[18], header[19]]);
    match transport(&frame[l4..l3 + length], header[9]) {
        Transport::Ports {
            source_port,
            destination_port,
            tcp_flags,
        } => Parsed::V4(Packet {
            key: FlowKey {
                source,
                destination,
                source_port,
                destination_port,
                protocol: header[9],
            },
            l3: l3 as u8,
            l4: l4 as u16,
            length: length as u16,
            tcp_flags,
        }),
        Transport::Bad(reason) => Parsed::Bad(reason),
        Transport::Other if header[9] == protocol::ICMP => Parsed::IcmpV4 {
            l3: l3 as u8,
            l4: l4 as u16,
            length: length as u16,
        },
        Transport::Other => Parsed::Other,
    }
}

/// Extension headers walked before a packet is called malformed: more than any real one has.
const MAX_EXTENSIONS: usize = 8;

#[inline(always)]
fn parse_v6(frame: &[u8], l3: usize) -> Parsed {
    let ip = &frame[l3..];
    let Some(header) = ip.first_chunk::<40>() else {
        return Parsed::Bad(DropReason::Truncated);
    };
    if header[0] >> 4 != 6 {
        return Parsed::Bad(DropReason::MalformedIp);
    }
    let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if length > ip.len() || length > usize::from(u16::MAX) {
        return Parsed::Bad(DropReason::Truncated);
    }
    let ip = &ip[..length];
    let (next, l4) = match header[6] {
        next @ (protocol::TCP | protocol::UDP) => (next, 40),
        next => match walk_extensions(ip, next) {
            Extensions::Upper { protocol, at } => (protocol, at),
            Extensions::Fragment { at } => {
                return Parsed::FragmentV6 {
                    l3: l3 as u8,
                    header: (l3 + at) as u16,
                };
            }
            Extensions::Malformed => return Parsed::Bad(DropReason::MalformedIp),
        },
    };
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    match transport(&ip[l4..], next) {
        Transport::Ports {
            source_port,
            destination_port,
            tcp_flags,
        } => Parsed::V6(Packet {
            key: FlowKey {
                source: address(8),
                destination: address(24),
                source_port,
                destination_port,
                protocol: next,
            },
            l3: l3 as u8,
            l4: (l3 + l4) as u16,
            length: length as u16,
            tcp_flags,
        }),
        Transport::Bad(reason) => Parsed::Bad(reason),
        Transport::Other if next == protocol::ICMPV6 => Parsed::IcmpV6 {
            l3: l3 as u8,
            l4: (l3 + l4) as u16,
            length: length as u16,
        },
        Transport::Other => Parsed::Other,
    }
}

/// Where the chain of extension headers (RFC 8200 section 4) leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Extensions {
    Upper { protocol: u8, at: usize },
    Fragment { at: usize },
    Malformed,
}

/// Walks the chain that starts behind the fixed header with `next`; offsets count from the
/// start of `ip`.
pub fn walk_extensions(ip: &[u8], mut next: u8) -> Extensions {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let mut at = 40;
    for _ in 0..=MAX_EXTENSIONS {
        if !matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
        ) {
            return Extensions::Upper { protocol: next, at };
        }
        let Some(extension) = ip.get(at..).and_then(|rest| rest.first_chunk::<8>()) else {
            return Extensions::Malformed;
        };
        if next == FRAGMENT {
            return Extensions::Fragment { at };
        }
        // The authentication header counts 4-byte words less two, the others 8-byte words less one.
        let size = match next {
            AUTHENTICATION => (usize::from(extension[1]) + 2) * 4,
            _ => (usize::from(extension[1]) + 1) * 8,
        };
        next = extension[0];
        at += size;
        if at > ip.len() {
            return Extensions::Malformed;
        }
    }
    Extensions::Malformed
}

pub(super) enum Transport {
    Ports {
        source_port: u16,
        destination_port: u16,
        tcp_flags: u8,
    },
    Other,
    Bad(DropReason),
}

#[inline(always)]
pub(super) fn transport(l4: &[u8], number: u8) -> Transport {
    let ports = |header: &[u8; 8], tcp_flags| Transport::Ports {
        source_port: u16::from_be_bytes([header[0], header[1]]),
        destination_port: u16::from_be_bytes([header[2], header[3]]),
        tcp_flags,
    };
    match number {
        protocol::TCP => match (l4.first_chunk::<8>(), l4.first_chunk::<20>()) {
            (Some(header), Some(whole)) => ports(header, whole[13]),
            _ => Transport::Bad(DropReason::MalformedL4),
        },
        protocol::UDP => match l4.first_chunk::<8>() {
            Some(header) => ports(header, 0),
            None => Transport::Bad(DropReason::MalformedL4),
        },
        _ => Transport::Other,
    }
}

#[cfg(test)]
mod tests;
