//! ICMP errors that we originate, built in the buffer of the packet they are about.
//! RFC 792 and 1812 4.3.2 (IPv4), RFC 1191 and 8201 (too big), RFC 4443 (IPv6). Pure; runs on
//! workers off the fast path. How often one may be sent is the caller's to decide.

use super::checksum::{Sum, pseudo_header};
use super::flow::{Address, protocol};
use super::forward::write_u16;
use super::frame::Frame;
use super::parse::{Extensions, read_u16, walk_extensions};

/// What went wrong with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpError {
    TimeExceeded,
    /// With the largest IP packet that would fit.
    TooBig {
        mtu: u16,
    },
    PortUnreachable,
}

/// The ICMP header; a quotation of the packet follows.
const ICMP_HEADER: usize = 8;
/// An error is at most 576 bytes long under IPv4 (RFC 1812 4.3.2.3) and 1280 under IPv6
/// (RFC 4443 2.4 c), all headers included.
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;
/// TTL and hop limit of packets that we originate.
pub const OUR_TTL: u8 = 64;

/// ICMP message types that are errors (or redirects, which RFC 1122 3.2.2 counts with them).
pub fn is_error(v6: bool, message: u8) -> bool {
    if v6 {
        message < 128 || message == 137
    } else {
        matches!(message, 3 | 4 | 5 | 11 | 12)
    }
}

/// Whether RFC 1812 4.3.2.7 and RFC 4443 2.4 e let anybody send an error about this packet: it is
/// no ICMP error itself, and comes from and went to one host each. Under IPv4 it is no fragment but the
/// first; under IPv6, where nobody on the way cuts what is too long, any may be, unless it could belong
/// to an error.
pub fn may_be_answered<A: Address>(ip: &[u8]) -> bool {
    let (source, destination) = (
        A::read(&ip[A::SOURCE_AT..]),
        A::read(&ip[A::DESTINATION_AT..]),
    );
    if source.is_invalid_source() || destination.is_invalid_source() {
        return false;
    }
    let v6 = A::HEADER == 40;
    let (number, at) = if v6 {
        match walk_extensions(ip, ip[6]) {
            Extensions::Upper { protocol, at } => (protocol, at),
            Extensions::Fragment { at } => match ip.get(at + 2..at + 4) {
                Some(offset) if read_u16(offset, 0) & 0xfff8 == 0 => (ip[at], at + 8),
                Some(_) => return ip[at] != protocol::ICMPV6,
                None => return false,
            },
            Extensions::Malformed => return false,
        }
    } else {
        if read_u16(ip, 6) & 0x1fff != 0 {
            return false;
        }
        (ip[9], usize::from(ip[0] & 0x0f) * 4)
    };
    let icmp = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
    number != icmp || ip.get(at).is_some_and(|&message| !is_error(v6, message))
}

/// Turns the frame, whose sound IP packet starts at `l3` and ends with it, into an ICMP error
/// from `source` to its sender, by the way it came. False, and nothing changed, where no error
/// may be sent about it or there is no room in front.
pub fn into_error<A: Address, F: Frame>(
    frame: &mut F,
    l3: usize,
    source: A,
    error: IcmpError,
) -> bool {
    let bytes = frame.bytes();
    // A frame to a group is a packet that several hosts got.
    if bytes[0] & 1 == 1 || !may_be_answered::<A>(&bytes[l3..]) {
        return false;
    }
    let to = A::read(&bytes[l3 + A::SOURCE_AT..]);
    let front = A::HEADER + ICMP_HEADER;
    if !frame.prepend(front) {
        return false;
    }
    let longest = if A::HEADER == 20 {
        LONGEST_V4
    } else {
        LONGEST_V6
    };
    frame.truncate(l3 + longest);
    let bytes = frame.bytes_mut();
    bytes.copy_within(front..front + l3, 0);
    swap_macs(bytes);
    let length = bytes.len() - l3;
    let (ip, message) = bytes[l3..].split_at_mut(A::HEADER);
    write_ip(ip, source, to, icmp_number::<A>(), length);
    let (kind, code, detail) = describe::<A>(error);
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..8].copy_from_slice(&u32::from(detail).to_be_bytes());
    let mut sum = Sum::default().bytes(message);
    if A::HEADER == 40 {
        let pseudo = pseudo_header(source, to, protocol::ICMPV6, message.len());
        sum = pseudo.bytes(message);
    }
    write_u16(message, 2, sum.finish());
    true
}

fn icmp_number<A: Address>() -> u8 {
    if A::HEADER == 20 {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    }
}

/// Type, code, and the second word of the header.
fn describe<A: Address>(error: IcmpError) -> (u8, u8, u16) {
    match (error, A::HEADER == 20) {
        (IcmpError::TimeExceeded, true) => (11, 0, 0),
        (IcmpError::TooBig { mtu }, true) => (3, 4, mtu),
        (IcmpError::PortUnreachable, true) => (3, 3, 0),
        (IcmpError::TimeExceeded, false) => (3, 0, 0),
        (IcmpError::TooBig { mtu }, false) => (2, 0, mtu),
        (IcmpError::PortUnreachable, false) => (1, 4, 0),
    }
}

/// TTL or hop limit.
pub fn ttl<A: Address>(ip: &[u8]) -> u8 {
    if A::HEADER == 20 { ip[8] } else { ip[7] }
}

/// Back to where the frame came from.
pub fn swap_macs(frame: &mut [u8]) {
    let (to, rest) = frame.split_at_mut(6);
    to.swap_with_slice(&mut rest[..6]);
}

/// The fixed IP header of a packet of ours, `length` bytes long with this header.
pub fn write_ip<A: Address>(ip: &mut [u8], source: A, to: A, number: u8, length: usize) {
    if A::HEADER == 20 {
        // A router's errors carry internetwork control precedence (RFC 1812 4.3.2.5).
        let tos = if number == protocol::ICMP { 0xc0 } else { 0 };
        ip[..4].copy_from_slice(&[0x45, tos, 0, 0]);
        write_u16(ip, 2, length as u16);
        // An atomic datagram needs no identification (RFC 6864 4.1).
        ip[4..12].copy_from_slice(&[0, 0, 0x40, 0, OUR_TTL, number, 0, 0]);
    } else {
        ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        write_u16(ip, 4, (length - A::HEADER) as u16);
        ip[6..8].copy_from_slice(&[number, OUR_TTL]);
    }
    source.write(&mut ip[A::SOURCE_AT..]);
    to.write(&mut ip[A::DESTINATION_AT..]);
    if A::HEADER == 20 {
        let checksum = Sum::default().bytes(&ip[..20]).finish();
        write_u16(ip, 10, checksum);
    }
}
