//! Which probe a received IP packet belongs to.
//!
//! Pure: reads with smoltcp's wire types, checks checksums, never panics.

use super::Protocol;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable,
    Icmpv6Packet, Icmpv6Repr, IpProtocol, IpVersion, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
    TcpPacket, UdpPacket, UdpRepr,
};
use std::net::IpAddr;

/// A packet for a probe, as the probe sees it: `local` is the check address, also where the
/// packet is an ICMP error that quotes the probe's own packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Incoming<'a> {
    pub protocol: Protocol,
    pub local: IpAddr,
    pub local_port: u16,
    pub remote: IpAddr,
    pub remote_port: u16,
    pub body: Body<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// A TCP segment; smoltcp reads it from the packet.
    Segment,
    /// What a UDP datagram or an echo reply carries.
    Payload(&'a [u8]),
    /// Someone on the way says that the probe's packet cannot be delivered.
    Refused(String),
}

/// None for what no probe can be waiting for, and for anything malformed.
pub(super) fn parse(packet: &[u8]) -> Option<Incoming<'_>> {
    match IpVersion::of_packet(packet).ok()? {
        IpVersion::Ipv4 => parse_v4(packet),
        IpVersion::Ipv6 => parse_v6(packet),
    }
}

fn parse_v4(bytes: &[u8]) -> Option<Incoming<'_>> {
    let packet = Ipv4Packet::new_checked(bytes).ok()?;
    if packet.header_len() < 20 {
        return None;
    }
    let checksums = ChecksumCapabilities::default();
    let header = Ipv4Repr::parse(&packet, &checksums).ok()?;
    let (remote, local) = (header.src_addr.into(), header.dst_addr.into());
    if header.next_header != IpProtocol::Icmp {
        return transport(header.next_header, remote, local, packet.payload());
    }
    let icmp = Icmpv4Packet::new_checked(packet.payload()).ok()?;
    let why = match icmp.msg_type() {
        Icmpv4Message::DstUnreachable => {
            let reason = Icmpv4DstUnreachable::from(icmp.msg_code());
            if reason == Icmpv4DstUnreachable::FragRequired {
                return None;
            }
            format!("ICMP {reason} from {remote}")
        }
        Icmpv4Message::TimeExceeded => format!("ICMP time exceeded from {remote}"),
        _ => {
            return match Icmpv4Repr::parse(&icmp, &checksums).ok()? {
                Icmpv4Repr::EchoReply { ident, data, .. } => Some(echo(remote, local, ident, data)),
                _ => None,
            };
        }
    };
    // smoltcp wants the whole packet quoted, and a router owes only the first eight bytes.
    let quote = icmp.data();
    if !icmp.verify_checksum() || quote.len() < 20 {
        return None;
    }
    let header = Ipv4Packet::new_unchecked(quote);
    let data = quote.get(usize::from(header.header_len()).max(20)..)?;
    let (src, dst) = (header.src_addr().into(), header.dst_addr().into());
    quoted(header.next_header(), src, dst, data, why)
}

fn parse_v6(bytes: &[u8]) -> Option<Incoming<'_>> {
    let packet = Ipv6Packet::new_checked(bytes).ok()?;
    let header = Ipv6Repr::parse(&packet).ok()?;
    let (src, dst) = (header.src_addr, header.dst_addr);
    let (remote, local) = (src.into(), dst.into());
    if header.next_header != IpProtocol::Icmpv6 {
        return transport(header.next_header, remote, local, packet.payload());
    }
    let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    let checksums = ChecksumCapabilities::default();
    match Icmpv6Repr::parse(&src, &dst, &icmp, &checksums).ok()? {
        Icmpv6Repr::EchoReply { ident, data, .. } => Some(echo(remote, local, ident, data)),
        Icmpv6Repr::DstUnreachable {
            reason,
            header,
            data,
        } => {
            let why = format!("ICMPv6 {} from {remote}", reason_v6(reason));
            let (src, dst) = (header.src_addr.into(), header.dst_addr.into());
            quoted(header.next_header, src, dst, data, why)
        }
        Icmpv6Repr::TimeExceeded { header, data, .. } => {
            let why = format!("ICMPv6 time exceeded from {remote}");
            let (src, dst) = (header.src_addr.into(), header.dst_addr.into());
            quoted(header.next_header, src, dst, data, why)
        }
        _ => None,
    }
}

fn reason_v6(reason: Icmpv6DstUnreachable) -> String {
    match reason {
        Icmpv6DstUnreachable::Unknown(code) => format!("unreachable (code {code})"),
        known => known.to_string(),
    }
}

fn transport(
    next_header: IpProtocol,
    remote: IpAddr,
    local: IpAddr,
    payload: &[u8],
) -> Option<Incoming<'_>> {
    let (protocol, remote_port, local_port, body) = match next_header {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            (Protocol::Tcp, tcp.src_port(), tcp.dst_port(), Body::Segment)
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            let checksums = ChecksumCapabilities::default();
            let ports = UdpRepr::parse(&udp, &remote.into(), &local.into(), &checksums).ok()?;
            let data = Body::Payload(udp.payload());
            (Protocol::Udp, ports.src_port, ports.dst_port, data)
        }
        _ => return None,
    };
    Some(Incoming {
        protocol,
        local,
        local_port,
        remote,
        remote_port,
        body,
    })
}

fn echo(remote: IpAddr, local: IpAddr, ident: u16, data: &[u8]) -> Incoming<'_> {
    Incoming {
        protocol: Protocol::Ping,
        local,
        local_port: ident,
        remote,
        remote_port: 0,
        body: Body::Payload(data),
    }
}

/// The probe whose packet an ICMP error quotes. At least its first eight bytes are there
/// (RFC 792), which hold the ports, or an echo's identifier.
fn quoted(
    next_header: IpProtocol,
    local: IpAddr,
    remote: IpAddr,
    data: &[u8],
    why: String,
) -> Option<Incoming<'_>> {
    let half = |at: usize| Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let (protocol, local_port, remote_port) = match next_header {
        IpProtocol::Tcp => (Protocol::Tcp, half(0)?, half(2)?),
        IpProtocol::Udp => (Protocol::Udp, half(0)?, half(2)?),
        IpProtocol::Icmp | IpProtocol::Icmpv6 => (Protocol::Ping, half(4)?, 0),
        _ => return None,
    };
    Some(Incoming {
        protocol,
        local,
        local_port,
        remote,
        remote_port,
        body: Body::Refused(why),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_bytes_make_it_panic(
            version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
            protocol in prop_oneof![Just(1_u8), Just(6), Just(17), Just(58), any::<u8>()],
            mut bytes in proptest::collection::vec(any::<u8>(), 41..200),
        ) {
            bytes[0] = version;
            let len = bytes.len() as u16;
            if version == 0x60 {
                bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                bytes[6] = protocol;
            } else {
                bytes[2..4].copy_from_slice(&len.to_be_bytes());
                bytes[6..8].copy_from_slice(&[0, 0]);
                bytes[9] = protocol;
                if version == 0x45 {
                    Ipv4Packet::new_unchecked(&mut bytes[..]).fill_checksum();
                }
            }
            let found = parse(&bytes);
            if protocol == 6 && version == 0x45 && holds_tcp_header(&bytes) {
                prop_assert!(found.is_some());
            }
        }
    }

    /// Whether smoltcp takes the rest for a TCP header.
    fn holds_tcp_header(bytes: &[u8]) -> bool {
        TcpPacket::new_checked(&bytes[20..]).is_ok()
    }
}
