//! A burst as its passes see it: where it came in, whom it may be for, and what all its packets are.
//! Pure; made by workers once a burst.

use std::net::IpAddr;

use super::Arrival;
use super::counters::DropReason;
use super::frame::Frame;
use super::owner::{Deal, Side};
use super::parse::{ETHERNET, Packet, Parsed, parse};
use super::queues::Queues;
use super::snapshot::Snapshot;

/// What all frames of a burst have in common.
pub(super) struct Burst<'s> {
    pub snapshot: &'s Snapshot,
    pub arrival: Arrival,
    /// The MAC address of the port that they came in on, and the bits of it that count: none
    /// where whoever handed them over has judged it. As a frame's first eight bytes.
    station: u64,
    station_mask: u64,
    /// The port that they came in on, where owners are computed.
    pub port: Option<usize>,
    /// How flows are dealt to workers.
    pub deal: Deal,
    /// What its queues say about owners.
    pub queues: Option<Queues>,
    /// Every plain packet, or every other, is a request that belongs to this worker: there are no
    /// replies and no choice.
    pub requests_alone: bool,
    pub odd_requests_alone: bool,
    /// Every packet is a request of a flow that is owned by its four ends, and whose owner has to
    /// be computed; the queues prove nothing and never will.
    pub one_way_alone: bool,
}

impl<'s> Burst<'s> {
    pub fn new(snapshot: &'s Snapshot, arrival: Arrival) -> Self {
        let port = match arrival {
            Arrival::Port(ingress) => snapshot.ports.get(usize::from(ingress)),
            Arrival::HandOff => None,
        };
        let computed = match arrival {
            Arrival::Port(ingress) if snapshot.ownership.compute => Some(usize::from(ingress)),
            _ => None,
        };
        let queues = computed.and(port).and_then(|port| port.queues);
        let is_proven = queues.is_some_and(|queues| queues.is_proven_for(Side::OneWay));
        Self {
            snapshot,
            arrival,
            station: port.map_or(0, |port| station(port.mac)),
            station_mask: port.map_or(0, |_| station([0xff; 6])),
            port: computed,
            deal: snapshot.ownership.deal(),
            queues,
            requests_alone: !snapshot.two_way && (computed.is_none() || is_proven),
            odd_requests_alone: !snapshot.two_way && computed.is_none(),
            one_way_alone: !snapshot.two_way && computed.is_some() && queues.is_none(),
        }
    }

    #[inline(always)]
    fn is_for_us(&self, frame: &[u8]) -> bool {
        let first = match (frame.first_chunk::<8>(), frame.first_chunk::<6>()) {
            (Some(first), _) => u64::from_le_bytes(*first),
            (None, Some(to)) => station(*to),
            // Too short for anything, whoever it is for.
            (None, None) => return true,
        };
        (first ^ self.station) & self.station_mask == 0
    }

    /// Whether a frame is long enough, in one piece and for us.
    #[inline(always)]
    pub fn may_be_plain<F: Frame>(&self, frame: &F, bytes: &[u8]) -> bool {
        bytes.len() >= ETHERNET + 28 && frame.is_contiguous() && self.is_for_us(bytes)
    }

    /// Parses a frame as the balancer means it: whole TCP and UDP packets only where they are for
    /// us and not for a group, and nothing that lies in several buffers, of which only the first is
    /// looked at.
    pub fn parse<F: Frame>(&self, frame: &F) -> Parsed {
        let bytes = frame.bytes();
        let for_us = self.is_for_us(bytes);
        match bytes.first() {
            Some(first) if !for_us && first & 1 == 0 => Parsed::Bad(DropReason::ForeignMac),
            _ if !frame.is_contiguous() => Parsed::Bad(DropReason::Segmented),
            _ if for_us => parse(bytes, frame.ip_checksum_verified()),
            _ => for_a_group(bytes, self.snapshot),
        }
    }
}

/// A destination as a frame's first eight bytes, the two behind it zero.
#[inline(always)]
fn station([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// Broadcast and multicast frames carry ARP, NDP and routing protocols, which management and the
/// kernel want; balanced traffic never comes that way.
#[cold]
fn for_a_group(bytes: &[u8], snapshot: &Snapshot) -> Parsed {
    let balanced =
        |number, address: IpAddr, port| snapshot.service_map.find(number, address, port).is_some();
    let is_balanced = match parse(bytes, false) {
        Parsed::V4(Packet { key, .. }) => {
            balanced(key.protocol, key.destination.into(), key.destination_port)
        }
        Parsed::V6(Packet { key, .. }) => {
            balanced(key.protocol, key.destination.into(), key.destination_port)
        }
        Parsed::Bad(reason) if bytes.len() < ETHERNET => return Parsed::Bad(reason),
        _ => false,
    };
    match is_balanced {
        true => Parsed::Bad(DropReason::BroadcastMac),
        false => Parsed::Other,
    }
}
