//! What a frame says, read with smoltcp's wire types.

use std::net::IpAddr;

use evenkeel::lb::counters::DropReason;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket,
};

/// An IP packet that is sound as far as it was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    /// IPv4 that a router may cut.
    pub may_cut: bool,
    /// Where the IP header starts, where the transport header does, and where the packet ends.
    pub l3: usize,
    pub l4: usize,
    pub end: usize,
}

#[derive(Clone, Copy, Debug)]
pub enum Seen {
    Bad(DropReason),
    Fragment(Piece),
    /// Not IP, or with a transport that is never balanced.
    Other,
    Icmp(Packet),
    Transport(Packet, Ports),
}

/// A fragment; in `packet`, `l4` is where its payload starts.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub packet: Packet,
    pub id: u32,
    /// In bytes.
    pub offset: usize,
    pub more: bool,
}

impl Piece {
    fn shift(mut self, by: usize) -> Self {
        self.packet = self.packet.shift(by);
        self
    }
}

impl Packet {
    fn shift(mut self, by: usize) -> Self {
        self.l3 += by;
        self.l4 += by;
        self.end += by;
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
    pub syn: bool,
    pub ack: bool,
    pub fin: bool,
    pub rst: bool,
}

/// Reads a frame.
pub fn look(frame: &[u8]) -> Seen {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else {
        return Seen::Bad(DropReason::Truncated);
    };
    match u16::from(ethernet.ethertype()) {
        0x8100 if frame.len() < 18 => Seen::Bad(DropReason::Truncated),
        0x8100 => ip(frame, 18, u16::from_be_bytes([frame[16], frame[17]])),
        kind => ip(frame, 14, kind),
    }
}

fn ip(frame: &[u8], l3: usize, kind: u16) -> Seen {
    let found = match EthernetProtocol::from(kind) {
        EthernetProtocol::Ipv4 => ipv4(&frame[l3..], true),
        EthernetProtocol::Ipv6 => ipv6(&frame[l3..], true),
        _ => return Seen::Other,
    };
    match found {
        Err(Seen::Fragment(piece)) => Seen::Fragment(piece.shift(l3)),
        Err(seen) => seen,
        Ok(packet) => {
            let packet = packet.shift(l3);
            let body = &frame[packet.l4..packet.end];
            let icmp = if packet.source.is_ipv4() { 1 } else { 58 };
            match packet.protocol {
                6 | 17 => match ports(packet.protocol, body) {
                    Some(ports) => Seen::Transport(packet, ports),
                    None => Seen::Bad(DropReason::MalformedL4),
                },
                number if number == icmp => Seen::Icmp(packet),
                _ => Seen::Other,
            }
        }
    }
}

/// `whole` is false for the start of a packet that an error quotes: no length is judged then.
pub fn ipv4(bytes: &[u8], whole: bool) -> Result<Packet, Seen> {
    if bytes.len() < 20 {
        return Err(Seen::Bad(DropReason::Truncated));
    }
    let ip = Ipv4Packet::new_unchecked(bytes);
    let (header, total) = (usize::from(ip.header_len()), usize::from(ip.total_len()));
    if ip.version() != 4 || header < 20 || whole && total < header {
        return Err(Seen::Bad(DropReason::MalformedIp));
    }
    if whole {
        if total > bytes.len() {
            return Err(Seen::Bad(DropReason::Truncated));
        }
        if !ip.verify_checksum() {
            return Err(Seen::Bad(DropReason::BadIpChecksum));
        }
    }
    let packet = Packet {
        source: ip.src_addr().into(),
        destination: ip.dst_addr().into(),
        protocol: ip.next_header().into(),
        ttl: ip.hop_limit(),
        may_cut: !ip.dont_frag(),
        l3: 0,
        l4: header,
        end: if whole { total } else { bytes.len() },
    };
    if ip.frag_offset() != 0 || whole && ip.more_frags() {
        return Err(Seen::Fragment(Piece {
            packet,
            id: ip.ident().into(),
            offset: ip.frag_offset().into(),
            more: ip.more_frags(),
        }));
    }
    Ok(packet)
}

pub fn ipv6(bytes: &[u8], whole: bool) -> Result<Packet, Seen> {
    if bytes.len() < 40 {
        return Err(Seen::Bad(DropReason::Truncated));
    }
    let ip = Ipv6Packet::new_unchecked(bytes);
    if ip.version() != 6 {
        return Err(Seen::Bad(DropReason::MalformedIp));
    }
    let total = if whole {
        40 + usize::from(ip.payload_len())
    } else {
        bytes.len()
    };
    if total > bytes.len() {
        return Err(Seen::Bad(DropReason::Truncated));
    }
    let packet = |protocol, l4| Packet {
        source: ip.src_addr().into(),
        destination: ip.dst_addr().into(),
        protocol,
        ttl: ip.hop_limit(),
        may_cut: false,
        l3: 0,
        l4,
        end: total,
    };
    let (number, at) = upper_layer(&bytes[..total], ip.next_header())?;
    if number != FRAGMENT {
        return Ok(packet(number, at));
    }
    let header = &bytes[at..at + 8];
    let word = u16::from_be_bytes([header[2], header[3]]);
    let piece = Piece {
        packet: packet(header[0], at + 8),
        id: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        offset: usize::from(word & 0xfff8),
        more: word & 1 == 1,
    };
    match whole || piece.offset != 0 {
        true => Err(Seen::Fragment(piece)),
        false => Ok(piece.packet),
    }
}

const FRAGMENT: u8 = 44;

/// Past at most eight extension headers, up to a fragment header.
fn upper_layer(packet: &[u8], first: IpProtocol) -> Result<(u8, usize), Seen> {
    let malformed = Seen::Bad(DropReason::MalformedIp);
    let (mut next, mut at) = (u8::from(first), 40);
    for passed in 0.. {
        if !matches!(next, 0 | 43 | FRAGMENT | 51 | 60) {
            break;
        }
        if passed == 9 || packet.len() < at + 8 {
            return Err(malformed);
        }
        if next == FRAGMENT {
            break;
        }
        let size = usize::from(packet[at + 1]);
        let length = if next == 51 {
            (size + 2) * 4
        } else {
            (size + 1) * 8
        };
        next = packet[at];
        at += length;
        if at > packet.len() || passed == 8 {
            return Err(malformed);
        }
    }
    Ok((next, at))
}

/// The first 8 bytes of UDP, or TCP's first 20.
pub fn ports(protocol: u8, body: &[u8]) -> Option<Ports> {
    if protocol == 6 {
        let tcp = (body.len() >= 20).then(|| TcpPacket::new_unchecked(body))?;
        return Some(Ports {
            source: tcp.src_port(),
            destination: tcp.dst_port(),
            syn: tcp.syn(),
            ack: tcp.ack(),
            fin: tcp.fin(),
            rst: tcp.rst(),
        });
    }
    let udp = (body.len() >= 8).then(|| UdpPacket::new_unchecked(body))?;
    Some(Ports {
        source: udp.src_port(),
        destination: udp.dst_port(),
        syn: false,
        ack: false,
        fin: false,
        rst: false,
    })
}

/// A frame that leaves has no byte beyond its IP packet, and its IP checksum is right.
pub fn assert_sound(frame: &[u8]) {
    let l3 = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let packet = match frame[l3] >> 4 {
        4 => ipv4(&frame[l3..], true),
        _ => ipv6(&frame[l3..], true),
    };
    match packet {
        Ok(packet) => assert_eq!(l3 + packet.end, frame.len(), "{frame:02x?}"),
        Err(Seen::Fragment(piece)) => {
            assert_eq!(l3 + piece.packet.end, frame.len(), "{frame:02x?}");
        }
        Err(seen) => panic!("{seen:?}: {frame:02x?}"),
    }
}

/// Whether the TCP or UDP checksum of the packet, or of the one it wraps, is right. `None` where
/// UDP has none, or it is no whole packet.
pub fn transport_checksum_is_right(frame: &[u8]) -> Option<bool> {
    let l3 = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let mut ip = &frame[l3..];
    let read = |ip: &[u8]| match ip[0] >> 4 {
        4 => ipv4(ip, true),
        _ => ipv6(ip, true),
    };
    let mut packet = read(ip).ok()?;
    if matches!(packet.protocol, 4 | 41) {
        ip = &ip[packet.l4..];
        packet = read(ip).ok()?;
    }
    let body = &ip[packet.l4..packet.end];
    // Summed here, since smoltcp believes UDP's own length field and we do not.
    let mut sum: u32 = u32::from(packet.protocol) + body.len() as u32;
    let mut add = |bytes: &[u8]| {
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    };
    for address in [packet.source, packet.destination] {
        match address {
            IpAddr::V4(a) => add(&a.octets()),
            IpAddr::V6(a) => add(&a.octets()),
        }
    }
    add(body);
    if packet.protocol == 17 && body[6..8] == [0, 0] {
        return None;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Some(sum == 0xffff)
}
