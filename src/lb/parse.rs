//! From frame bytes to what the balancer needs to know of them, in one look.
//! Pure; runs on workers for every packet. Everything after it trusts the offsets found here.

mod plain;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::counters::DropReason;
use super::flow::{FlowKey, protocol};

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
