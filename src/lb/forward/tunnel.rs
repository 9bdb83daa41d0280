//! IP in IP: the packet travels whole inside another IP header to the backend, which unwraps it
//! and answers the client itself. RFC 2003 (4in4), RFC 2473 (over IPv6), RFC 4213 (6in4).
//! DSCP and ECN are copied outside (RFC 2983; RFC 6040 4.1, normal mode), and so is what is left
//! of TTL or hop limit, as IPVS does: a packet that is routed in a circle dies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
    length: usize,
}

#[inline(always)]
pub fn forward<A: Address, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    link: &Link,
    backend: &Backend,
    hash: u64,
) -> Result<(), DropReason> {
    let l3 = usize::from(packet.l3);
    // A packet that is refused stays as it was.
    if ttl::<A>(&frame.bytes()[l3..]) <= 1 {
        return Err(DropReason::TtlExpired);
    }
    // The old Ethernet header (and tag) goes, the new one and the outer IP header come in front.
    let overhead = overhead(backend.address);
    if !frame.prepend(ETHERNET + overhead - l3) {
        return Err(DropReason::NoHeadroom);
    }
    let frame = frame.bytes_mut();
    let ip = &mut frame[ETHERNET + overhead..];
    decrement_ttl::<A>(ip)?;
    let inner = if A::HEADER == 20 {
        Inner {
            protocol: protocol::IPIP,
            traffic_class: ip[1],
            ttl: ip[8],
            dont_fragment: ip[6] & 0x40 != 0,
            identification: if ip[6] & 0x40 != 0 {
                0
            } else {
                read_u16(ip, 4)
            },
            length: usize::from(packet.length),
        }
    } else {
        Inner {
            protocol: protocol::IPV6,
            traffic_class: ip[0] << 4 | ip[1] >> 4,
            ttl: ip[7],
            dont_fragment: true,
            identification: 0,
            length: usize::from(packet.length),
        }
    };
    let spread = hash as u32 & backend.outer_spread;
    write_macs(frame, link);
    match (backend.outer_source, backend.address) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            // A source per flow, or a backend's RSS would see one flow.
            let source = source.to_bits() | spread;
            write_u16(frame, 12, 0x0800);
            outer_v4(&mut frame[ETHERNET..], &inner, source.into(), to);
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            let source = source.to_bits() | u128::from(spread);
            write_u16(frame, 12, 0x86dd);
            outer_v6(&mut frame[ETHERNET..], &inner, hash, source.into(), to);
        }
        _ => return Err(DropReason::MalformedIp),
    }
    Ok(())
}

#[inline(always)]
fn outer_v4(ip: &mut [u8], inner: &Inner, source: Ipv4Addr, backend: Ipv4Addr) {
    let [high, low] = ((inner.length + 20) as u16).to_be_bytes();
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
    header[1] = class << 4 | (hash >> 16) as u8 & 0x0f;
    write_u16(header, 2, hash as u16);
    write_u16(header, 4, inner.length as u16);
    header[6] = inner.protocol;
    header[7] = inner.ttl;
    source.write(&mut header[8..]);
    backend.write(&mut header[24..]);
}
