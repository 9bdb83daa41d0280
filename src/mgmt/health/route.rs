//! The way a probe takes: its addresses, and how its packets are handed to the backend.
//!
//! Pure. The forwarding methods differ in two things only: whom the probe's packets are
//! addressed to, and what is put around them. A check through NAT or FullNAT is addressed to the
//! backend itself from the check address, which is byte for byte what translating a packet to
//! the VIP makes of it, both ways; so nothing has to be translated back.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetFrame, EthernetProtocol, IpProtocol, IpVersion, Ipv4Packet,
    Ipv4Repr, Ipv6Packet, Ipv6Repr,
};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use crate::lb::fullnat::FIRST_PORT;

/// IANA's number for an IPv4 packet inside another (RFC 2003); IPv6 inside is 41 (RFC 2473).
const IPV4_INSIDE: u8 = 4;
const IPV6_INSIDE: u8 = 41;
const OUTER_TTL: u8 = 64;

/// What is done to a probe's packets on their way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    /// They are routed by their own destination.
    Plain,
    /// They go to this backend's MAC whatever their destination says.
    To(IpAddr),
    /// They travel inside another IP packet.
    Inside { from: IpAddr, to: IpAddr },
}

/// The local ports that probes may use of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ports {
    /// Of an address that is the checks' alone.
    All,
    /// Of one that clients' connections have too: those that they leave to the checks.
    Spared,
}

impl Ports {
    pub(super) fn range(self) -> RangeInclusive<u16> {
        match self {
            Ports::All => 10_000..=u16::MAX,
            Ports::Spared => 1_024..=FIRST_PORT - 1,
        }
    }
}

/// See the module's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    source: IpAddr,
    ports: Ports,
    target: SocketAddr,
    delivery: Delivery,
}

/// An IP packet to send, and the address whose next hop's MAC it goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    pub towards: IpAddr,
    pub packet: Vec<u8>,
}

impl Route {
    /// To the VIP, handed to the backend's MAC; the backend answers `source` by its own routes.
    #[must_use]
    pub fn direct_routing(source: IpAddr, vip: SocketAddr, backend: IpAddr) -> Self {
        Self {
            source,
            ports: Ports::All,
            target: vip,
            delivery: Delivery::To(backend),
        }
    }

    /// To the VIP, inside a packet from `outer` to the backend.
    #[must_use]
    pub fn tunnel(source: IpAddr, vip: SocketAddr, outer: IpAddr, backend: IpAddr) -> Self {
        Self {
            source,
            ports: Ports::All,
            target: vip,
            delivery: Delivery::Inside {
                from: outer,
                to: backend,
            },
        }
    }

    /// As NAT delivers, from a check address outside the backend's subnets, so that the answer
    /// needs the route through us; and for checks of the backend's own address, from the port's.
    #[must_use]
    pub fn plain(source: IpAddr, backend: SocketAddr) -> Self {
        Self {
            source,
            ports: Ports::All,
            target: backend,
            delivery: Delivery::Plain,
        }
    }

    /// As FullNAT delivers, from one of the service's local addresses and a port of those that
    /// connections do not use.
    #[must_use]
    pub fn full_nat(local: IpAddr, backend: SocketAddr) -> Self {
        Self {
            ports: Ports::Spared,
            ..Self::plain(local, backend)
        }
    }

    #[must_use]
    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Whom the probe speaks to.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// The backend's own address, for scripts.
    #[must_use]
    pub fn backend(&self) -> IpAddr {
        match self.delivery {
            Delivery::Plain => self.target.ip(),
            Delivery::To(backend) | Delivery::Inside { to: backend, .. } => backend,
        }
    }

    /// Bytes that delivery puts in front of each packet.
    #[must_use]
    pub fn overhead(&self) -> usize {
        match self.delivery {
            Delivery::Plain | Delivery::To(_) => 0,
            Delivery::Inside {
                to: IpAddr::V4(_), ..
            } => 20,
            Delivery::Inside {
                to: IpAddr::V6(_), ..
            } => 40,
        }
    }

    /// Makes of the probe's IP packet what leaves the port.
    #[must_use]
    pub fn deliver(&self, packet: Vec<u8>) -> Outgoing {
        match self.delivery {
            Delivery::Plain => Outgoing {
                towards: self.target.ip(),
                packet,
            },
            Delivery::To(towards) => Outgoing { towards, packet },
            Delivery::Inside { from, to } => Outgoing {
                towards: to,
                packet: encapsulate(from, to, &packet),
            },
        }
    }
}

fn encapsulate(from: IpAddr, to: IpAddr, inner: &[u8]) -> Vec<u8> {
    let protocol = match inner.first().map(|byte| byte >> 4) {
        Some(6) => IPV6_INSIDE,
        _ => IPV4_INSIDE,
    };
    let next_header = IpProtocol::from(protocol);
    let payload_len = inner.len();
    let mut packet = match (from, to) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let outer = Ipv4Repr {
                src_addr,
                dst_addr,
                next_header,
                payload_len,
                hop_limit: OUTER_TTL,
            };
            let mut bytes = vec![0; outer.buffer_len()];
            let checksums = ChecksumCapabilities::default();
            outer.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &checksums);
            bytes
        }
        (from, to) => {
            let outer = Ipv6Repr {
                src_addr: as_v6(from),
                dst_addr: as_v6(to),
                next_header,
                payload_len,
                hop_limit: OUTER_TTL,
            };
            let mut bytes = vec![0; outer.buffer_len()];
            outer.emit(&mut Ipv6Packet::new_unchecked(&mut bytes));
            bytes
        }
    };
    packet.extend_from_slice(inner);
    packet
}

fn as_v6(ip: IpAddr) -> std::net::Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

impl Outgoing {
    /// The packet behind an Ethernet header whose two addresses are still to be written.
    #[must_use]
    pub fn into_frame(self) -> Vec<u8> {
        let ethertype = match IpVersion::of_packet(&self.packet) {
            Ok(IpVersion::Ipv6) => EthernetProtocol::Ipv6,
            _ => EthernetProtocol::Ipv4,
        };
        let mut bytes = vec![0; ETHERNET_HEADER_LEN];
        EthernetFrame::new_unchecked(&mut bytes).set_ethertype(ethertype);
        bytes.extend_from_slice(&self.packet);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const INNER: [u8; 20] = [
        0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 3, 192, 0, 2, 80,
    ];

    #[test]
    fn direct_routing_changes_the_way_and_not_the_packet() {
        let vip = "192.0.2.80:80".parse().unwrap();
        let route = Route::direct_routing(ip("192.0.2.3"), vip, ip("192.0.2.11"));
        let sent = route.deliver(INNER.to_vec());
        assert_eq!(
            (sent.towards, &sent.packet[..]),
            (ip("192.0.2.11"), &INNER[..])
        );
        let frame = sent.into_frame();
        assert_eq!(frame[12..14], [0x08, 0x00]);
        assert_eq!(frame[14..], INNER);
        assert_eq!((route.backend(), route.overhead()), (ip("192.0.2.11"), 0));
    }

    #[test]
    fn a_tunnel_puts_a_header_around_it() {
        let vip = "192.0.2.80:80".parse().unwrap();
        let route = Route::tunnel(ip("192.0.2.3"), vip, ip("10.0.0.1"), ip("10.9.0.11"));
        let sent = route.deliver(INNER.to_vec());
        assert_eq!(sent.towards, ip("10.9.0.11"));
        let outer = Ipv4Packet::new_checked(&sent.packet[..]).unwrap();
        assert!(outer.verify_checksum());
        assert_eq!(u8::from(outer.next_header()), 4);
        assert_eq!(
            (IpAddr::V4(outer.src_addr()), IpAddr::V4(outer.dst_addr())),
            (ip("10.0.0.1"), ip("10.9.0.11"))
        );
        assert_eq!(outer.payload(), INNER);
        assert_eq!(route.overhead(), 20);
    }

    #[test]
    fn a_tunnel_over_ipv6_too() {
        let vip = "[2001:db8::80]:80".parse().unwrap();
        let route = Route::tunnel(
            ip("2001:db8::3"),
            vip,
            ip("2001:db8:1::1"),
            ip("2001:db8:2::9"),
        );
        let inner = [&[0x60][..], &[0; 39]].concat();
        let sent = route.deliver(inner.clone());
        let outer = Ipv6Packet::new_checked(&sent.packet[..]).unwrap();
        assert_eq!(
            (u8::from(outer.next_header()), outer.payload()),
            (41, &inner[..])
        );
        assert_eq!(sent.clone().into_frame()[12..14], [0x86, 0xdd]);
        assert_eq!(route.overhead(), 40);
    }
}
