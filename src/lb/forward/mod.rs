//! Rewriting a packet for its way to a backend or back to a client.
//! One file per method; pure; runs on workers for every forwarded packet. Offsets were checked
//! by the parser.

pub mod direct;
pub mod nat;
pub mod tunnel;

use std::net::IpAddr;

use super::Verdict;
use super::checksum::Change;
use super::counters::DropReason;
use super::flow::Address;
use super::frame::Frame;
use super::parse::Packet;
use super::route::Link;
use super::snapshot::{Backend, ForwardMethod};

/// The port at which a NAT backend serves what clients send to `port`.
#[inline(always)]
pub(in crate::lb) fn backend_port(backend: &Backend, port: u16) -> u16 {
    served_at(backend.port, port)
}

/// The same by [`Backend::port`].
#[inline(always)]
fn served_at(own: u16, port: u16) -> u16 {
    if own == 0 { port } else { own }
}

/// The end of a NAT backend with this address and [`Backend::port`] that serves what clients send to
/// `port`; `None` where it is of another family.
#[inline(always)]
pub(in crate::lb) fn server_end<A: Address>(
    address: IpAddr,
    own: u16,
    port: u16,
) -> Option<nat::Endpoint<A>> {
    let (address, port) = (A::from_ip(address)?, served_at(own, port));
    Some(nat::Endpoint { address, port })
}

/// How a client's packet reaches its backend.
#[derive(Clone, Copy)]
pub(in crate::lb) struct Way<'s, A> {
    pub backend: &'s Backend,
    /// Of the client's endpoint; tunnels spread their flows by it.
    pub hash: u64,
    /// FullNAT: what becomes of the source.
    pub local: Option<nat::Endpoint<A>>,
}

/// Rewrites a packet for its backend and says where it leaves.
#[inline(always)]
pub(in crate::lb) fn to_backend<A: Address, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    way: &Way<A>,
) -> Verdict {
    let backend = way.backend;
    let Some(link) = &backend.link else {
        return Verdict::Drop(DropReason::NoNeighbour);
    };
    if packet.length > backend.mtu {
        return Verdict::Drop(DropReason::TooBig);
    }
    match rewrite(frame, packet, way, link) {
        Ok(()) => Verdict::Transmit(link.port),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Rewrites a packet that fits for its backend.
#[inline(always)]
fn rewrite<A: Address, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    way: &Way<A>,
    link: &Link,
) -> Result<(), DropReason> {
    let backend = way.backend;
    match backend.method {
        ForwardMethod::DirectRouting => direct::forward(frame.bytes_mut(), packet, link),
        ForwardMethod::Tunnel => tunnel::forward(frame, packet, link, backend, way.hash),
        ForwardMethod::Nat | ForwardMethod::FullNat => {
            translate(frame.bytes_mut(), packet, way, link)
        }
    }
}

/// Rewrites a packet by NAT or FullNAT.
#[inline(always)]
fn translate<A: Address>(
    frame: &mut [u8],
    packet: &Packet<A>,
    way: &Way<A>,
    link: &Link,
) -> Result<(), DropReason> {
    let backend = way.backend;
    let port = packet.key.destination_port;
    let server = server_end(backend.address, backend.port, port);
    let destination = server.ok_or(DropReason::MalformedIp)?;
    match (backend.method, way.local) {
        (ForwardMethod::FullNat, Some(local)) => {
            nat::rewrite_both(frame, packet, local, destination)?;
        }
        (ForwardMethod::FullNat, None) => return Err(DropReason::PoolExhausted),
        _ => nat::rewrite_destination(frame, packet, destination)?,
    }
    write_macs(frame, link);
    Ok(())
}

/// Puts the next hop's and our own MAC address in front.
#[inline(always)]
pub fn write_macs(frame: &mut [u8], link: &Link) {
    frame[..12].copy_from_slice(&link.macs);
}

#[inline(always)]
pub fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Takes one off TTL or hop limit, with IPv4's header checksum following.
#[inline(always)]
pub fn decrement_ttl<A: Address>(ip: &mut [u8]) -> Result<(), DropReason> {
    if A::HEADER != 20 {
        return lower_ttl::<A>(ip);
    }
    let Some(word) = ip[8..].first_chunk_mut::<4>() else {
        return Err(DropReason::Truncated);
    };
    // A load of the TTL alone would be one more.
    if u32::from_le_bytes(*word) as u8 <= 1 {
        return Err(DropReason::TtlExpired);
    }
    // TTL, protocol and checksum as one number. As the TTL is a high byte, the sum of the words falls
    // by 0x0100 and the checksum rises by it (RFC 1141), in whatever byte order (RFC 1071 2 B).
    *word = match u32::from_le_bytes(*word).checked_add(0x1_0000 - 1) {
        Some(sum) => sum.to_le_bytes(),
        None => around_the_end(*word),
    };
    Ok(())
}

/// The same where a checksum of 0xffff rises, as which nobody but who means zero sends it.
#[cold]
fn around_the_end(word: [u8; 4]) -> [u8; 4] {
    (u32::from_le_bytes(word).wrapping_add(0x1_0000 - 1) + 0x1_0000).to_le_bytes()
}

/// Takes one off TTL or hop limit. A packet that would leave with zero is not forwarded (RFC 1812
/// 5.3.1, RFC 8200 3).
#[inline(always)]
fn lower_ttl<A: Address>(ip: &mut [u8]) -> Result<(), DropReason> {
    let at = if A::HEADER == 20 { 8 } else { 7 };
    if ip[at] <= 1 {
        return Err(DropReason::TtlExpired);
    }
    ip[at] -= 1;
    Ok(())
}

/// What [`lower_ttl`] and a change of addresses mean for IPv4's header checksum, at once.
#[inline(always)]
fn adjust_header<A: Address>(ip: &mut [u8], addresses: Change) {
    if A::HEADER == 20 {
        addresses.word(0x0100, 0).apply(ip, 10);
    }
}

/// Writes an address at `at` of the IP header, with IPv4's header checksum following. Returns the
/// change, for the checksums of what the packet carries.
#[inline(always)]
pub fn write_address<A: Address>(ip: &mut [u8], at: usize, old: A, new: A) -> Change {
    new.write(&mut ip[at..]);
    let change = Change::default().address(old, new);
    if A::HEADER == 20 {
        change.apply(ip, 10);
    }
    change
}

/// The same of both addresses.
#[inline(always)]
pub fn rewrite_addresses<A: Address>(ip: &mut [u8], source: A, destination: A) -> Change {
    let old = (
        A::read(&ip[A::SOURCE_AT..]),
        A::read(&ip[A::DESTINATION_AT..]),
    );
    source.write(&mut ip[A::SOURCE_AT..]);
    destination.write(&mut ip[A::DESTINATION_AT..]);
    let change = Change::default()
        .address(old.0, source)
        .address(old.1, destination);
    if A::HEADER == 20 {
        change.apply(ip, 10);
    }
    change
}
