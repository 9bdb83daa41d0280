//! IP in IP: the packet travels whole inside another IP header to the backend, which unwraps it
//! and answers the client itself. RFC 2003 (4in4), RFC 2473 (over IPv6), ECN as RFC 6040.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::checksum::Sum;
use super::super::counters::DropReason;
use super::super::flow::{Address, protocol};
use super::super::frame::Frame;
use super::super::parse::{ETHERNET, Packet, read_u16};
use super::super::route::Link;
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
    length: usize,
}

#[inline(always)]
pub fn forward<A: Address, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    link: &Link,
    source: IpAddr,
    backend: IpAddr,
) -> Result<(), DropReason> {
    let l3 = usize::from(packet.l3);
    let ip = &mut frame.bytes_mut()[l3..];
    decrement_ttl::<A>(ip)?;
    let inner = if A::HEADER == 20 {
        Inner {
            protocol: protocol::IPIP,
            traffic_class: ip[1],
            ttl: ip[8],
            dont_fragment: ip[6] & 0x40 != 0,
            length: usize::from(packet.length),
        }
    } else {
        Inner {
            protocol: protocol::IPV6,
            traffic_class: ip[0] << 4 | ip[1] >> 4,
            ttl: ip[7],
            dont_fragment: true,
            length: usize::from(packet.length),
        }
    };
    // The old Ethernet header (and tag) goes, the new one and the outer IP header come in front.
    let grow = ETHERNET + overhead(backend) - l3;
    if !frame.prepend(grow) {
        return Err(DropReason::NoHeadroom);
    }
    let frame = frame.bytes_mut();
    write_macs(frame, link);
    match (source, backend) {
        (IpAddr::V4(source), IpAddr::V4(backend)) => {
            write_u16(frame, 12, 0x0800);
            outer_v4(&mut frame[ETHERNET..], &inner, source, backend);
        }
        (IpAddr::V6(source), IpAddr::V6(backend)) => {
            write_u16(frame, 12, 0x86dd);
            outer_v6(&mut frame[ETHERNET..], &inner, source, backend);
        }
        _ => return Err(DropReason::MalformedIp),
    }
    Ok(())
}

/// DSCP as it is; congestion experienced inside becomes ECT(0) outside (RFC 6040 4.1, and IPVS).
#[inline(always)]
fn outer_class(inner: u8) -> u8 {
    if inner & 0b11 == 0b11 {
        inner & !0b01
    } else {
        inner
    }
}

#[inline(always)]
fn outer_v4(ip: &mut [u8], inner: &Inner, source: Ipv4Addr, backend: Ipv4Addr) {
    let header = &mut ip[..20];
    header[0] = 0x45;
    header[1] = outer_class(inner.traffic_class);
    write_u16(header, 2, (inner.length + 20) as u16);
    // An identification is needed only where the outer packet may be fragmented (RFC 6864).
    write_u16(header, 4, 0);
    write_u16(header, 6, if inner.dont_fragment { 0x4000 } else { 0 });
    header[8] = inner.ttl;
    header[9] = inner.protocol;
    write_u16(header, 10, 0);
    source.write(&mut header[12..]);
    backend.write(&mut header[16..]);
    let checksum = Sum::default().bytes(header).finish();
    write_u16(header, 10, checksum);
}

#[inline(always)]
fn outer_v6(ip: &mut [u8], inner: &Inner, source: Ipv6Addr, backend: Ipv6Addr) {
    let header = &mut ip[..40];
    let class = outer_class(inner.traffic_class);
    header[0] = 0x60 | class >> 4;
    header[1] = class << 4;
    write_u16(header, 2, 0);
    write_u16(header, 4, inner.length as u16);
    header[6] = inner.protocol;
    header[7] = inner.ttl;
    source.write(&mut header[8..]);
    backend.write(&mut header[24..]);
}

/// Whether an IPv4 packet forbids fragmentation; IPv6 always does.
pub fn dont_fragment<A: Address>(ip: &[u8]) -> bool {
    A::HEADER == 40 || read_u16(ip, 6) & 0x4000 != 0
}
