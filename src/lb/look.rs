//! The first two passes over a burst: whom each frame is for, whether it is a plain packet, who
//! owns its flow and where the flow's entry should be; with the cache asked for what the next pass
//! needs. Pure; runs on workers for every packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::arch::{Any, Hot, Tags};

use super::conn::settling;
use super::counters::DropReason;
use super::flow::{Address, FlowKey, endpoint_hash};
use super::frame::Frame;
use super::owner::{Deal, Side};
use super::parse::{ETHERNET, Packet, Parsed, parse};
use super::queues::Queues;
use super::shard::Shard;
use super::snapshot::Snapshot;
use super::table::Slot;
use super::tracked::Tracked;
use super::{Arrival, MAX_BURST};

/// What a frame holds, as far as the third pass needs to know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TCP or UDP packet with its headers where nearly every packet has them ([`Packet::plain`]),
    /// from a client.
    V4,
    V6,
    /// The same from a backend.
    ReplyV4,
    ReplyV6,
    /// A TCP or UDP packet with options, extension headers or a VLAN tag.
    OddV4,
    OddV6,
    /// A TCP or UDP packet that another worker owns: the hash is that worker's index.
    Elsewhere,
    /// Anything else.
    Unusual,
}

/// What a packet is to meet in this shard, and so which end its table hash was taken from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Meets {
    Request,
    Reply,
    /// A FullNAT reply: the hash is the number of its local port's cell.
    LocalReply,
    /// Nothing: another worker owns its flow, and the hash is that worker's index.
    Elsewhere,
}

/// What the first two passes found out about a packet. Each field is written and read by itself:
/// a parsed packet kept here whole would be written in pieces and read in larger ones, which
/// stalls a CPU for longer than everything else takes.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub hash: u64,
    /// Where the entry probably is.
    pub slot: Slot,
    pub length: u16,
    /// The [`settling`] of the packet.
    pub settling: u16,
    pub kind: Kind,
    pub meets: Meets,
}

/// Room for the looks at one burst, kept from burst to burst.
pub(super) type Looks = Box<[Look]>;

pub(super) fn looks() -> Looks {
    let nothing = Look {
        hash: 0,
        slot: Slot::NONE,
        length: 0,
        settling: u16::MAX,
        kind: Kind::Unusual,
        meets: Meets::Request,
    };
    vec![nothing; MAX_BURST].into()
}

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
    deal: Deal,
    /// What its queues say about owners.
    pub queues: Option<Queues>,
    /// Every plain packet, or every other, is a request that belongs to this worker: there are no
    /// replies and no choice.
    requests_alone: bool,
    odd_requests_alone: bool,
    /// Every packet is a request of a flow that is owned by its four ends, and whose owner has to
    /// be computed; the queues prove nothing and never will.
    one_way_alone: bool,
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
    fn may_be_plain<F: Frame>(&self, frame: &F, bytes: &[u8]) -> bool {
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

struct SecondPass<'a> {
    shard: &'a Shard,
    looks: &'a mut [Look],
}

impl Hot for SecondPass<'_> {
    type Output = ();

    #[inline(always)]
    fn run<T: Tags>(self) {
        for look in self.looks {
            self.shard.reach::<T>(look);
        }
    }
}

impl Shard {
    /// First and second pass. Of a table that no core's cache holds, lines come from afar, and there are
    /// only so many under way at once: so the second pass follows the first at a distance, and its
    /// requests are spread over the time that both take.
    #[inline(always)]
    pub(super) fn look_at_all<F: Frame>(&self, burst: &Burst, frames: &[F], looks: &mut [Look]) {
        /// Buckets that a core's own cache holds: about a megabyte.
        const NEAR: usize = 1024;
        const DISTANCE: usize = 16;
        let part = match self.buckets() > NEAR {
            true => DISTANCE,
            false => MAX_BURST,
        };
        let mut begin = 0;
        for (n, frames) in frames.chunks(part).enumerate() {
            let at = n * part;
            self.first_pass(burst, frames, &mut looks[at..at + frames.len()]);
            self.second_pass(&mut looks[begin..at]);
            begin = at;
        }
        self.second_pass(&mut looks[begin..frames.len()]);
    }

    /// First pass: what each frame is, and a request for its bucket.
    #[inline(always)]
    fn first_pass<F: Frame>(&self, burst: &Burst, frames: &[F], looks: &mut [Look]) {
        let (mut at, count) = (0, frames.len());
        while at < count {
            let (rest, aims) = (&frames[at..], &mut looks[at..]);
            at += if burst.requests_alone {
                self.aim_both(burst, rest, aims, Self::aim_request, Self::aim_request)
            } else if burst.one_way_alone {
                self.aim_both(burst, rest, aims, Self::aim_owned, Self::aim_owned)
            } else if burst.port.is_none() {
                self.aim_both(burst, rest, aims, Self::aim_sided, Self::aim_sided)
            } else {
                0
            };
            if let Some(frame) = frames.get(at) {
                self.look(burst, frame, &mut looks[at]);
                at += 1;
            }
        }
    }

    /// Where no packet needs a closer look than one of these functions takes: plain packets of IPv4
    /// from the first frame on, and of IPv6 behind them. Returns how many.
    #[inline(always)]
    fn aim_both<F: Frame>(
        &self,
        burst: &Burst,
        frames: &[F],
        looks: &mut [Look],
        aim_v4: impl Fn(&Self, &Burst, &FlowKey<Ipv4Addr>, &mut Look),
        aim_v6: impl Fn(&Self, &Burst, &FlowKey<Ipv6Addr>, &mut Look),
    ) -> usize {
        // A port's NIC verifies checksums or it does not.
        let done = match frames.first().is_some_and(F::ip_checksum_verified) {
            true => self.aim_run::<_, _, true>(burst, frames, looks, aim_v4),
            false => self.aim_run::<_, _, false>(burst, frames, looks, aim_v4),
        };
        done + self.aim_run::<_, _, false>(burst, &frames[done..], &mut looks[done..], aim_v6)
    }

    /// Plain packets of a family from the first frame on, up to the first that is anything else. With
    /// `VERIFIED`, that is also one whose checksum no NIC has verified.
    #[inline(never)]
    fn aim_run<A: Tracked, F: Frame, const VERIFIED: bool>(
        &self,
        burst: &Burst,
        frames: &[F],
        looks: &mut [Look],
        aim: impl Fn(&Self, &Burst, &FlowKey<A>, &mut Look),
    ) -> usize {
        let mut done = 0;
        for (frame, look) in frames.iter().zip(looks) {
            let bytes = frame.bytes();
            if !burst.may_be_plain(frame, bytes) || VERIFIED && !frame.ip_checksum_verified() {
                break;
            }
            let Some(packet) = A::find_plain(bytes, VERIFIED) else {
                break;
            };
            let key = packet.key;
            look.kind = A::REQUEST;
            look.length = packet.length;
            look.settling = settling(key.protocol, packet.tcp_flags);
            aim(self, burst, &key, look);
            done += 1;
        }
        done
    }

    /// A request that belongs to this worker.
    #[inline(always)]
    fn aim_request<A: Tracked>(&self, _: &Burst, key: &FlowKey<A>, look: &mut Look) {
        look.hash = endpoint_hash(&self.seed, key.protocol, key.source, key.source_port);
        look.meets = Meets::Request;
        look.slot = A::table(&self.tables).prefetch_bucket(look.hash);
    }

    /// A request that may belong to another worker.
    #[inline(always)]
    fn aim_owned<A: Tracked>(&self, burst: &Burst, key: &FlowKey<A>, look: &mut Look) {
        let owner = burst.deal.worker(Side::OneWay.hash(key));
        if owner == self.worker {
            return self.aim_request(burst, key, look);
        }
        (look.kind, look.meets) = (Kind::Elsewhere, Meets::Elsewhere);
        look.hash = u64::from(owner);
    }

    /// A request or a reply that belongs to this worker.
    #[inline(always)]
    fn aim_sided<A: Tracked>(&self, burst: &Burst, key: &FlowKey<A>, look: &mut Look) {
        self.aim_at(burst.snapshot.side(key), key, look);
    }

    /// Second pass: a request for each packet's entry.
    #[inline(never)]
    fn second_pass(&self, looks: &mut [Look]) {
        self.cpu.run(SecondPass { shard: self, looks });
    }

    /// First pass over any frame.
    #[inline(never)]
    fn look<F: Frame>(&self, burst: &Burst, frame: &F, look: &mut Look) {
        let bytes = frame.bytes();
        if burst.may_be_plain(frame, bytes) {
            if let Some(packet) = Packet::find_plain_v4(bytes, frame.ip_checksum_verified()) {
                return self.aim(burst, &packet, Kind::V4, look);
            }
            if let Some(packet) = Packet::find_plain_v6(bytes) {
                return self.aim(burst, &packet, Kind::V6, look);
            }
        }
        self.look_closely(burst, frame, look);
    }

    /// The first pass over a frame that is not plain.
    #[inline(never)]
    fn look_closely<F: Frame>(&self, burst: &Burst, frame: &F, look: &mut Look) {
        match burst.parse(frame) {
            Parsed::V4(packet) => self.aim(burst, &packet, Kind::OddV4, look),
            Parsed::V6(packet) => self.aim(burst, &packet, Kind::OddV6, look),
            _ => look.kind = Kind::Unusual,
        }
    }

    /// Who owns a packet's flow, and where its entry should be.
    #[inline(always)]
    fn aim<A: Tracked>(&self, burst: &Burst, packet: &Packet<A>, kind: Kind, look: &mut Look) {
        let key = packet.key;
        look.kind = kind;
        look.length = packet.length;
        look.settling = settling(key.protocol, packet.tcp_flags);
        let requests_alone = match kind {
            Kind::V4 | Kind::V6 => burst.requests_alone,
            _ => burst.odd_requests_alone,
        };
        match (requests_alone, burst.one_way_alone) {
            (true, _) => self.aim_request(burst, &key, look),
            (false, true) => self.aim_owned(burst, &key, look),
            // A copy, so that the key stays in registers otherwise.
            (false, false) => self.aim_by_side(burst, &{ key }, look),
        }
    }

    /// As [`Shard::aim`], where there are replies and other workers.
    #[inline(never)]
    fn aim_by_side<A: Tracked>(&self, burst: &Burst, key: &FlowKey<A>, look: &mut Look) {
        let side = burst.snapshot.side(key);
        if burst.port.is_some()
            && let Some(owner) = self.other_owner(burst, side, key, look.kind)
        {
            look.hash = u64::from(owner);
            look.meets = Meets::Elsewhere;
            look.kind = Kind::Elsewhere;
            return;
        }
        self.aim_at(side, key, look);
    }

    /// Where the entry of a packet of this worker's should be.
    #[inline(always)]
    fn aim_at<A: Tracked>(&self, side: Side, key: &FlowKey<A>, look: &mut Look) {
        let (hash, meets) = self.meets(side, key);
        (look.hash, look.meets) = (hash, meets);
        if meets != Meets::Request && look.kind == A::REQUEST {
            look.kind = A::REPLY;
        }
        match meets {
            Meets::Request | Meets::Reply => {
                look.slot = A::table(&self.tables).prefetch_bucket(hash);
            }
            Meets::LocalReply => self.local_ports.prefetch(hash as usize),
            Meets::Elsewhere => {}
        }
    }

    /// Second pass over a frame: a request for the entry.
    #[inline(always)]
    fn reach<T: Tags>(&self, look: &mut Look) {
        match look.kind {
            Kind::V4 => self
                .tables
                .v4
                .prefetch_entry::<T>(&mut look.slot, look.hash),
            Kind::V6 => self
                .tables
                .v6
                .prefetch_entry::<T>(&mut look.slot, look.hash),
            Kind::Elsewhere => {}
            _ => self.reach_other(look),
        }
    }

    #[inline(never)]
    fn reach_other(&self, look: &mut Look) {
        if look.meets == Meets::LocalReply {
            return self.reach_local(look);
        }
        match look.kind {
            Kind::V4 | Kind::ReplyV4 | Kind::OddV4 => {
                self.tables
                    .v4
                    .prefetch_entry::<Any>(&mut look.slot, look.hash);
            }
            Kind::V6 | Kind::ReplyV6 | Kind::OddV6 => {
                self.tables
                    .v6
                    .prefetch_entry::<Any>(&mut look.slot, look.hash);
            }
            Kind::Elsewhere | Kind::Unusual => {}
        }
    }

    fn reach_local(&self, look: &mut Look) {
        let slot = self.local_ports.slot(look.hash as usize);
        look.slot = slot.unwrap_or(Slot::NONE);
        self.tables.prefetch(look);
    }

    /// What a packet of this worker's is to meet, and the hash of the client's end of its flow: the
    /// source, but for replies.
    #[inline(always)]
    pub(super) fn meets<A: Address>(&self, side: Side, key: &FlowKey<A>) -> (u64, Meets) {
        let hash = |address, port| endpoint_hash(&self.seed, key.protocol, address, port);
        match side {
            Side::OneWay | Side::TwoWay => (hash(key.source, key.source_port), Meets::Request),
            Side::Reply => (hash(key.destination, key.destination_port), Meets::Reply),
            Side::LocalReply(address) => (self.local_cell(address, key), Meets::LocalReply),
        }
    }
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
