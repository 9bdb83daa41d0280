//! IP in IP: the packet travels whole inside another IP header to the backend, which unwraps it
//! and answers the client itself. RFC 2003 (4in4), RFC 2473 (over IPv6), RFC 4213 (6in4).
//! DSCP and ECN are copied outside (RFC 2983; RFC 6040 4.1, normal mode), and so is what is left
//! of TTL or hop limit, as IPVS does: a packet that is routed in a circle dies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::backends::FarEnd;
use super::super::checksum::Sum;
use super::super::counters::DropReason;
use super::super::flow::{Address, protocol};
use super::super::frame::Frame;
use super::super::icmp::ttl;
use super::super::parse::{ETHERNET, Packet, read_u16};
use super::super::route::Link;
use super::super::snapshot::Backend;
use super::{decrement_ttl, write_macs, write_u16};

/// Bytes the outer header takes.
pub fn overhead(backend: IpAddr) -> usize {
    if backend.is_ipv4() {
        Ipv4Addr::HEADER
    } else {
        Ipv6Addr::HEADER
    }
}

/// What the outer header takes from the inner one.
struct Inner {
    protocol: u8,
    traffic_class: u8,
    ttl: u8,
    dont_fragment: bool,
    /// Needed only where routers may cut the outer packet (RFC 6864); the inner one's serves.
    identification: u16,
    length: u16,
}

impl Inner {
    #[inline(always)]
    fn of<A: Address>(ip: &[u8], length: u16) -> Self {
        if A::HEADER == 20 {
            let dont_fragment = ip[6] & 0x40 != 0;
            return Self {
                protocol: protocol::IPIP,
                traffic_class: ip[1],
                ttl: ip[8],
                dont_fragment,
                identification: if dont_fragment { 0 } else { read_u16(ip, 4) },
                length,
            };
        }
        Self {
            protocol: protocol::IPV6,
            traffic_class: ip[0] << 4 | ip[1] >> 4,
            ttl: ip[7],
            dont_fragment: true,
            identification: 0,
            length,
        }
    }
}

/// The packet in an IP packet of its own. One that is refused stays as it was.
#[inline(always)]
pub fn forward<A: Address, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    link: &Link,
    backend: &Backend,
    hash: u64,
) -> Result<(), DropReason> {
    match FarEnd::of(backend) {
        Some(end) => forward_v4(frame, packet, link, &end, hash),
        None => forward_v6(frame, packet, link, backend, hash),
    }
}

/// The same over IPv6.
#[inline(always)]
pub fn forward_v6<A: Address, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    link: &Link,
    backend: &Backend,
    hash: u64,
) -> Result<(), DropReason> {
    let l3 = usize::from(packet.l3);
    let (IpAddr::V6(source), IpAddr::V6(to)) = (backend.outer_source, backend.address) else {
        return Err(DropReason::MalformedIp);
    };
    let (outer, inner) = wrap::<A, Ipv6Addr, F>(frame, l3, link, 0x86dd)?;
    let source = source.to_bits() | u128::from(spread(hash, backend.outer_spread));
    let inner = Inner::of::<A>(inner, packet.length);
    outer_v6(outer, &inner, hash, source.into(), to);
    Ok(())
}

/// The same over IPv4.
#[inline(always)]
pub fn forward_v4<A: Address, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    link: &Link,
    end: &FarEnd,
    hash: u64,
) -> Result<(), DropReason> {
    let l3 = usize::from(packet.l3);
    let (outer, inner) = wrap::<A, Ipv4Addr, F>(frame, l3, link, 0x0800)?;
    let source = end.source.to_bits() | spread(hash, end.spread);
    let inner = Inner::of::<A>(inner, packet.length);
    outer_v4(outer, &inner, source.into(), end.address);
    Ok(())
}

/// A source per flow, or a backend's RSS would see one flow.
#[inline(always)]
fn spread(hash: u64, bits: u32) -> u32 {
    (hash >> 16) as u32 & bits
}

/// Takes the Ethernet header (and tag) in front of `l3` away, and puts a new one there and room for an
/// outer IP header of family `B`. Returns that room and the inner header, which has come one hop
/// further. A packet that lives too short stays as it was.
#[inline(always)]
fn wrap<'f, A: Address, B: Address, F: Frame>(
    frame: &'f mut F,
    l3: usize,
    link: &Link,
    ethertype: u16,
) -> Result<(&'f mut [u8], &'f [u8]), DropReason> {
    if ttl::<A>(&frame.bytes()[l3..]) <= 1 {
        return Err(DropReason::TtlExpired);
    }
    if !frame.prepend(ETHERNET + B::HEADER - l3) {
        return Err(DropReason::NoHeadroom);
    }
    let headers = &mut frame.bytes_mut()[..ETHERNET + B::HEADER + A::HEADER];
    write_macs(headers, link);
    write_u16(headers, 12, ethertype);
    let (outer, inner) = headers[ETHERNET..].split_at_mut(B::HEADER);
    decrement_ttl::<A>(inner)?;
    Ok((outer, inner))
}

#[inline(always)]
fn outer_v4(ip: &mut [u8], inner: &Inner, source: Ipv4Addr, backend: Ipv4Addr) {
    let [high, low] = inner.length.wrapping_add(20).to_be_bytes();
    let [id_high, id_low] = inner.identification.to_be_bytes();
    let flags = if inner.dont_fragment { 0x40 } else { 0 };
    let mut words = [
        [0x45, inner.traffic_class, high, low],
        [id_high, id_low, flags, 0],
        [inner.ttl, inner.protocol, 0, 0],
        source.octets(),
        backend.octets(),
    ];
    // In the order of memory, which the sum does not mind.
    let sum = words
        .iter()
        .map(|&word| u64::from(u32::from_ne_bytes(word)));
    let checksum = Sum(sum.sum()).finish().to_ne_bytes();
    words[2][2..].copy_from_slice(&checksum);
    ip[..20].copy_from_slice(words.as_flattened());
}

#[inline(always)]
fn outer_v6(ip: &mut [u8], inner: &Inner, hash: u64, source: Ipv6Addr, backend: Ipv6Addr) {
    let header = &mut ip[..40];
    let class = inner.traffic_class;
    header[0] = 0x60 | class >> 4;
    // The flow label (RFC 6438) is the low 20 bits of the first word.
    header[1] = class << 4 | (hash >> 32) as u8 & 0x0f;
    write_u16(header, 2, (hash >> 16) as u16);
    write_u16(header, 4, inner.length);
    header[6] = inner.protocol;
    header[7] = inner.ttl;
    source.write(&mut header[8..]);
    backend.write(&mut header[24..]);
}
