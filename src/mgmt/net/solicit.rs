//! The questions that find a neighbour's MAC: ARP requests and neighbour solicitations.
//!
//! Pure functions; which neighbour is asked when is decided in `neighbour`.

use super::frame::{self, Mac, Tags};
use super::links::Link;
use smoltcp::wire::{ArpOperation, Icmpv6Repr, NdiscRepr};
use std::net::{IpAddr, Ipv6Addr};

/// The question for a neighbour: to its MAC if given, else to all that may know. None if the
/// port has no address of the family to ask from.
pub(super) fn solicit(link: &Link, target: IpAddr, to: Option<Mac>) -> Option<Vec<u8>> {
    let mac = link.config.mac;
    let to_link = |dst| frame::Link {
        src: mac,
        dst,
        tags: Tags::default(),
    };
    match target {
        IpAddr::V4(target) => {
            let sender = frame::ArpParty {
                mac,
                ip: link.source_v4(target),
            };
            let asked = frame::ArpParty {
                mac: Mac::default(),
                ip: target,
            };
            let dst = to.unwrap_or(Mac::BROADCAST);
            Some(frame::arp(
                &to_link(dst),
                ArpOperation::Request,
                sender,
                asked,
            ))
        }
        IpAddr::V6(target) => {
            let group = solicited_node(target);
            let (dst, dst_ip) = match to {
                Some(mac) => (mac, target),
                None => (multicast_mac(group), group),
            };
            let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
                target_addr: target,
                lladdr: Some(mac.into()),
            });
            let src = link.source_v6(target)?;
            Some(frame::icmpv6(&to_link(dst), src, dst_ip, 255, &message))
        }
    }
}

/// RFC 4291 2.7.1: ff02::1:ff00:0/104 and the address's last three bytes.
pub(super) fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let group = 0xff02_0000_0000_0000_0000_0001_ff00_0000_u128;
    Ipv6Addr::from(group | (u128::from(ip) & 0x00ff_ffff))
}

/// RFC 2464 7: 33:33 and the group's last four bytes.
pub(super) fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac::from_bytes(&[0x33, 0x33, a, b, c, d])
}
