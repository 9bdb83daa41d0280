//! The second opinion on fragments: which datagrams are known, and which fragments wait.

use std::collections::HashMap;
use std::net::IpAddr;

use evenkeel::lb::Pass;
use evenkeel::lb::counters::DropReason;

use crate::look::{self, Packet, Piece};
use crate::world::Sent;

/// Source, destination, identification, and under IPv4 the protocol.
pub type Datagram = (IpAddr, IpAddr, u32, u8);

/// What became of a datagram's first fragment, and becomes of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known {
    /// To this backend, in a tunnel or by direct routing.
    OneWay(u32),
    /// Out to this station with these addresses.
    Rewritten {
        mac: [u8; 6],
        source: IpAddr,
        destination: IpAddr,
    },
    Passed(Pass),
    Dropped,
}

#[derive(Default)]
pub struct Fragments {
    pub known: HashMap<Datagram, Known>,
    /// In the order they came.
    pub waiting: Vec<(Datagram, Sent)>,
}

/// RFC 791 3.2 and RFC 8200 4.5; RFC 3128 for the last.
pub fn fault(piece: &Piece) -> Option<DropReason> {
    let size = piece.packet.end - piece.packet.l4;
    if size == 0 || piece.more && !size.is_multiple_of(8) || piece.offset + size > 65535 {
        return Some(DropReason::MalformedIp);
    }
    (piece.packet.protocol == 6 && (1..20).contains(&piece.offset))
        .then_some(DropReason::MalformedL4)
}

pub fn datagram(piece: &Piece) -> Datagram {
    let packet = &piece.packet;
    let number = if packet.source.is_ipv4() {
        packet.protocol
    } else {
        0
    };
    (packet.source, packet.destination, piece.id, number)
}

/// The first packet's addresses and station, as they left.
pub fn rewritten(frame: &[u8]) -> Option<Known> {
    let packet = outcome(frame)?;
    Some(Known::Rewritten {
        mac: *frame.first_chunk()?,
        source: packet.source,
        destination: packet.destination,
    })
}

/// The IP packet of a frame that left, whole or a fragment.
pub fn outcome(frame: &[u8]) -> Option<Packet> {
    match look::look(frame) {
        look::Seen::Fragment(piece) => Some(piece.packet),
        look::Seen::Transport(packet, _) | look::Seen::Icmp(packet) => Some(packet),
        _ => None,
    }
}
