//! Ethernet frames in and out, with the 802.1Q tags they carry.
//!
//! Management thread; pure: bytes in, bytes out. smoltcp knows no VLAN tags, so the tags are
//! the one thing read and written here by hand; everything else is smoltcp's wire types.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame,
    EthernetProtocol, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet,
    Ipv4Repr, Ipv6FragmentHeader, Ipv6FragmentRepr, Ipv6Packet, Ipv6Repr,
};
use std::net::{Ipv4Addr, Ipv6Addr};

/// An Ethernet address; `.0` is its six bytes in the order they are sent.
pub type Mac = EthernetAddress;

/// Shortest frame without its checksum (IEEE 802.3); a tag makes it longer, so that the frame
/// is still long enough when a switch removes the tag.
const MIN_FRAME: usize = 60;
const TAG_LEN: usize = 4;
const MAX_TAGS: usize = 2;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
/// What every link takes (RFC 8200 5).
const IPV6_LEAST_MTU: u16 = 1280;
const TPID_8021Q: u16 = 0x8100;
const TPID_8021AD: u16 = 0x88a8;
/// What a new buffer holds. Tests fill it with a pattern, so that a byte which an emitter
/// forgets shows up in the exact bytes they compare.
const UNWRITTEN: u8 = if cfg!(test) { 0xa5 } else { 0 };

/// 802.1Q/802.1ad tags as they were received: up to two, four bytes each, outermost first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tags {
    bytes: [u8; TAG_LEN * MAX_TAGS],
    len: usize,
}

impl Tags {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether the frame belongs to another VLAN than the port's own. A tag with VLAN id 0
    /// carries a priority only (IEEE 802.1Q 9.6).
    #[must_use]
    pub fn other_vlan(&self) -> bool {
        self.as_bytes()
            .chunks_exact(TAG_LEN)
            .any(|tag| u16::from_be_bytes([tag[2], tag[3]]) & 0x0fff != 0)
    }
}

/// A received frame whose lengths have been checked.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub src: Mac,
    pub dst: Mac,
    pub tags: Tags,
    pub ethertype: EthernetProtocol,
    /// What follows the ethertype; it may end in padding.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// None if the frame is too short for its headers or has more than two tags.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let frame = EthernetFrame::new_checked(bytes).ok()?;
        let mut tags = Tags::default();
        let mut ethertype = u16::from(frame.ethertype());
        let mut payload = frame.payload();
        while ethertype == TPID_8021Q || ethertype == TPID_8021AD {
            let &[tci_high, tci_low, type_high, type_low, ref rest @ ..] = payload else {
                return None;
            };
            let tpid = ethertype.to_be_bytes();
            let tag = [tpid[0], tpid[1], tci_high, tci_low];
            tags.bytes
                .get_mut(tags.len..tags.len + TAG_LEN)?
                .copy_from_slice(&tag);
            tags.len += TAG_LEN;
            ethertype = u16::from_be_bytes([type_high, type_low]);
            payload = rest;
        }
        Some(Self {
            src: frame.src_addr(),
            dst: frame.dst_addr(),
            tags,
            ethertype: ethertype.into(),
            payload,
        })
    }
}

/// The link-layer part of a frame to send.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub src: Mac,
    pub dst: Mac,
    pub tags: Tags,
}

/// Builds a frame around `len` bytes that `fill` writes, padded to the shortest legal length.
fn build(
    link: &Link,
    ethertype: EthernetProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let header = ETHERNET_HEADER_LEN + link.tags.len;
    let mut bytes = vec![UNWRITTEN; header + len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(link.src);
    frame.set_dst_addr(link.dst);
    bytes[12..12 + link.tags.len].copy_from_slice(link.tags.as_bytes());
    bytes[header - 2..header].copy_from_slice(&u16::from(ethertype).to_be_bytes());
    fill(&mut bytes[header..]);
    let shortest = MIN_FRAME + link.tags.len;
    if bytes.len() < shortest {
        bytes.resize(shortest, 0);
    }
    bytes
}

/// One side of an ARP packet.
#[derive(Debug, Clone, Copy)]
pub struct ArpParty {
    pub mac: Mac,
    pub ip: Ipv4Addr,
}

/// An ARP packet (RFC 826).
#[must_use]
pub fn arp(link: &Link, operation: ArpOperation, sender: ArpParty, target: ArpParty) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: sender.mac,
        source_protocol_addr: sender.ip,
        target_hardware_addr: target.mac,
        target_protocol_addr: target.ip,
    };
    build(link, EthernetProtocol::Arp, repr.buffer_len(), |buffer| {
        repr.emit(&mut ArpPacket::new_unchecked(buffer));
    })
}

/// An ICMPv6 message in an IPv6 packet, with its checksum.
#[must_use]
pub fn icmpv6(
    link: &Link,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop_limit: u8,
    message: &Icmpv6Repr<'_>,
) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let header = Ipv6Repr {
        src_addr: src,
        dst_addr: dst,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit,
    };
    let len = header.buffer_len() + message.buffer_len();
    build(link, EthernetProtocol::Ipv6, len, |buffer| {
        let (ip, icmp) = buffer.split_at_mut(header.buffer_len());
        header.emit(&mut Ipv6Packet::new_unchecked(ip));
        let mut packet = Icmpv6Packet::new_unchecked(icmp);
        message.emit(&src, &dst, &mut packet, &checksums);
    })
}

/// An ICMP message in an IPv4 packet without options, or where that is longer than `mtu` in fragments
/// with this identification, which other hosts may cut again.
pub fn icmpv4_pieces(
    link: &Link,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    ttl: u8,
    message: &Icmpv4Repr<'_>,
    mtu: u16,
    identification: u16,
) -> impl Iterator<Item = Vec<u8>> {
    let checksums = ChecksumCapabilities::default();
    let mut data = vec![UNWRITTEN; message.buffer_len()];
    message.emit(&mut Icmpv4Packet::new_unchecked(&mut data), &checksums);
    cut(data, mtu, IPV4_HEADER, IPV4_HEADER).map(move |piece| {
        let header = Ipv4Repr {
            src_addr: src,
            dst_addr: dst,
            next_header: IpProtocol::Icmp,
            payload_len: piece.data.len(),
            hop_limit: ttl,
        };
        let len = IPV4_HEADER + piece.data.len();
        build(link, EthernetProtocol::Ipv4, len, |buffer| {
            let mut ip = Ipv4Packet::new_unchecked(buffer);
            header.emit(&mut ip, &ChecksumCapabilities::default());
            if !piece.is_only() {
                ip.set_ident(identification);
                ip.set_dont_frag(false);
                ip.set_more_frags(piece.more);
                ip.set_frag_offset(piece.offset as u16);
                ip.fill_checksum();
            }
            ip.payload_mut().copy_from_slice(&piece.data);
        })
    })
}

/// An ICMPv6 message in an IPv6 packet, or where that is longer than `mtu` in fragments with this
/// identification. They take every link (RFC 8200 5): nobody on the way can cut them again, and the
/// way's MTU is not known.
pub fn icmpv6_pieces(
    link: &Link,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop_limit: u8,
    message: &Icmpv6Repr<'_>,
    mtu: u16,
    identification: u32,
) -> impl Iterator<Item = Vec<u8>> {
    let checksums = ChecksumCapabilities::default();
    let mut data = vec![UNWRITTEN; message.buffer_len()];
    let mut packet = Icmpv6Packet::new_unchecked(&mut data[..]);
    message.emit(&src, &dst, &mut packet, &checksums);
    let fits = IPV6_HEADER + data.len() <= usize::from(mtu);
    let mtu = if fits { mtu } else { mtu.min(IPV6_LEAST_MTU) };
    cut(data, mtu, IPV6_HEADER, IPV6_HEADER + FRAGMENT_HEADER).map(move |piece| {
        let before = if piece.is_only() { 0 } else { FRAGMENT_HEADER };
        let mut header = Ipv6Repr {
            src_addr: src,
            dst_addr: dst,
            next_header: IpProtocol::Icmpv6,
            payload_len: before + piece.data.len(),
            hop_limit,
        };
        if !piece.is_only() {
            header.next_header = IpProtocol::Ipv6Frag;
        }
        let len = IPV6_HEADER + header.payload_len;
        build(link, EthernetProtocol::Ipv6, len, |buffer| {
            let mut ip = Ipv6Packet::new_unchecked(buffer);
            header.emit(&mut ip);
            let (fragment, data) = ip.payload_mut().split_at_mut(before);
            if let [next, reserved, rest @ ..] = fragment {
                (*next, *reserved) = (IpProtocol::Icmpv6.into(), 0);
                let repr = Ipv6FragmentRepr {
                    frag_offset: (piece.offset / 8) as u16,
                    more_frags: piece.more,
                    ident: identification,
                };
                repr.emit(&mut Ipv6FragmentHeader::new_unchecked(rest));
            }
            data.copy_from_slice(&piece.data);
        })
    })
}

/// A part of a packet's payload.
struct Piece {
    offset: usize,
    more: bool,
    data: Vec<u8>,
}

impl Piece {
    fn is_only(&self) -> bool {
        self.offset == 0 && !self.more
    }
}

/// `data` as it is where a packet of `mtu` bytes holds it behind a header of `header` bytes, or else
/// in pieces that each have `each` bytes of headers.
fn cut(data: Vec<u8>, mtu: u16, header: usize, each: usize) -> impl Iterator<Item = Piece> {
    let mtu = usize::from(mtu);
    let room = match header + data.len() <= mtu {
        true => data.len(),
        // Offsets count eight bytes.
        false => mtu.saturating_sub(each) & !7,
    };
    let (room, mut offset) = (room.max(8), 0);
    std::iter::from_fn(move || {
        let rest = data.get(offset..).filter(|rest| !rest.is_empty())?;
        let piece = Piece {
            offset,
            more: rest.len() > room,
            data: rest[..room.min(rest.len())].to_vec(),
        };
        offset += room;
        Some(piece)
    })
}

/// Writes the link-layer addresses of a complete frame whose neighbour was still unknown when
/// it was built. False (and nothing written) if the frame is too short to have any.
pub fn address_frame(frame: &mut [u8], src: Mac, dst: Mac) -> bool {
    match EthernetFrame::new_checked(frame) {
        Ok(mut frame) => {
            frame.set_src_addr(src);
            frame.set_dst_addr(dst);
            true
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(tags: &[[u8; 4]]) -> Vec<u8> {
        let mut bytes = vec![1, 2, 3, 4, 5, 6, 2, 2, 2, 2, 2, 2];
        bytes.extend(tags.iter().flatten());
        bytes.extend([0x08, 0x06, 0xaa, 0xbb]);
        bytes
    }

    #[test]
    fn tags_are_kept_and_three_are_too_many() {
        let dot1q = [0x81, 0x00, 0x20, 0x64];
        let service = [0x88, 0xa8, 0x00, 0x00];
        let bytes = tagged(&[service, dot1q]);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.ethertype, EthernetProtocol::Arp);
        assert_eq!(frame.payload, [0xaa, 0xbb]);
        assert_eq!(frame.tags.as_bytes(), [service, dot1q].concat());
        assert!(frame.tags.other_vlan());
        assert!(Frame::parse(&tagged(&[dot1q; 3])).is_none());
        assert!(Frame::parse(&bytes[..17]).is_none());
        let priority = tagged(&[[0x81, 0x00, 0xe0, 0x00]]);
        assert!(!Frame::parse(&priority).unwrap().tags.other_vlan());
    }

    #[test]
    fn a_built_frame_has_its_tags_and_zero_padding() {
        let parsed = tagged(&[[0x81, 0x00, 0x20, 0x64]]);
        let link = Link {
            src: Mac::from_bytes(&[2; 6]),
            dst: Mac::from_bytes(&[1, 2, 3, 4, 5, 6]),
            tags: Frame::parse(&parsed).unwrap().tags,
        };
        let built = build(&link, EthernetProtocol::Arp, 2, |b| {
            b.copy_from_slice(&[0xaa, 0xbb]);
        });
        assert_eq!(built[..20], parsed[..]);
        assert_eq!(built[20..], [0; 44]);
    }
}
