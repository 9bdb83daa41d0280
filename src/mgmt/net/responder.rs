//! Reads the frames that workers pass on: answers ARP and NDP for our addresses (`echo` answers
//! pings), and learns from what neighbours say.
//!
//! Management thread; it sends only what `Output` carries away. Anything malformed, forged or
//! not for us is counted and left; no input makes it panic.

use super::announce::plausible_source;
use super::entry::Evidence;
use super::frame::{self, ArpParty, Frame, Mac};
use super::links::Link;
use super::solicit::{multicast_mac, solicited_node};
use super::{Fate, NetEvent, NetState, Output};
use smoltcp::phy::{ChecksumCapabilities, Medium};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetProtocol, HardwareAddress, IPV6_LINK_LOCAL_ALL_NODES,
    Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags,
    NdiscRepr, RawHardwareAddress,
};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

/// Every NDP message has it, which proves that no router forwarded it (RFC 4861 7.1).
const NDP_HOP_LIMIT: u8 = 255;

/// Why a frame was left alone.
pub(super) enum Refusal {
    Malformed,
    /// Well-formed and of no concern to us.
    NotForUs,
    RateLimited,
}

/// What was done: Linux, where it shares the port, must see what was learned and not what was
/// answered.
pub(super) enum Done {
    Answered,
    /// Kept until the rest of it has come.
    Kept,
    Learned,
}

pub(super) type Outcome = Result<Done, Refusal>;

impl NetState {
    /// Takes a frame that a worker did not forward, as it came from the wire (Ethernet header
    /// first, no checksum trailer).
    pub fn receive(&mut self, port: u16, frame: &[u8], now: Instant, out: &mut Output) -> Fate {
        self.counters.received += 1;
        let outcome = match Frame::parse(frame) {
            Some(frame) if frame.src.is_unicast() => self.dispatch(port, &frame, now, out),
            _ => Err(Refusal::Malformed),
        };
        match outcome {
            Ok(Done::Answered | Done::Kept) => Fate::Consumed,
            Ok(Done::Learned) => Fate::Shared,
            Err(Refusal::Malformed) => {
                self.counters.malformed += 1;
                Fate::Shared
            }
            Err(Refusal::NotForUs) => {
                self.counters.not_for_us += 1;
                Fate::Shared
            }
            Err(Refusal::RateLimited) => {
                self.counters.rate_limited += 1;
                Fate::Consumed
            }
        }
    }

    fn dispatch(
        &mut self,
        port: u16,
        frame: &Frame<'_>,
        now: Instant,
        out: &mut Output,
    ) -> Outcome {
        let mac = self.links.get(port).ok_or(Refusal::NotForUs)?.config.mac;
        if self.links.is_ours(frame.src) || !(frame.dst == mac || frame.dst.is_multicast()) {
            return Err(Refusal::NotForUs);
        }
        match frame.ethertype {
            EthernetProtocol::Arp => self.arp(port, frame, now, out),
            EthernetProtocol::Ipv4 => self.ipv4(port, frame, now, out),
            EthernetProtocol::Ipv6 => self.icmp_v6(port, frame, now, out),
            EthernetProtocol::Unknown(_) => Err(Refusal::NotForUs),
        }
    }

    pub(super) fn link(&self, port: u16) -> Result<&Link, Refusal> {
        self.links.get(port).ok_or(Refusal::NotForUs)
    }

    fn arp(&mut self, port: u16, frame: &Frame<'_>, now: Instant, out: &mut Output) -> Outcome {
        let packet = ArpPacket::new_checked(frame.payload).map_err(|_| Refusal::Malformed)?;
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: sender_mac,
            source_protocol_addr: sender_ip,
            target_hardware_addr: target_mac,
            target_protocol_addr: target_ip,
        } = ArpRepr::parse(&packet).map_err(|_| Refusal::Malformed)?
        else {
            return Err(Refusal::Malformed);
        };
        let probe = sender_ip.is_unspecified() && operation == ArpOperation::Request;
        if !sender_mac.is_unicast() || !(probe || plausible_source(sender_ip)) {
            return Err(Refusal::Malformed);
        }
        let link = self.link(port)?;
        let mac = link.config.mac;
        let asked = operation == ArpOperation::Request && link.owns(target_ip.into());
        let speaker = Speaker {
            port,
            ip: sender_ip.into(),
            mac: sender_mac,
            other_vlan: frame.tags.other_vlan(),
        };
        if !probe && self.conflict(&speaker, now, out) {
            return Ok(Done::Learned);
        }
        let answer = operation == ArpOperation::Reply && frame.dst == mac && target_mac == mac;
        let evidence = if answer {
            Evidence::Answer
        } else {
            Evidence::Claim
        };
        if !probe {
            self.heard(&speaker, evidence, asked, now, out);
        }
        if !asked {
            return Ok(Done::Learned);
        }
        if !self.answers.take(now) {
            return Err(Refusal::RateLimited);
        }
        let us = ArpParty { mac, ip: target_ip };
        let them = ArpParty {
            mac: sender_mac,
            ip: sender_ip,
        };
        let link = frame.answer_link(mac, sender_mac);
        let reply = frame::arp(&link, ArpOperation::Reply, us, them);
        out.frames.push((port, reply));
        self.counters.arp_replies += 1;
        Ok(Done::Answered)
    }

    fn icmp_v6(&mut self, port: u16, frame: &Frame<'_>, now: Instant, out: &mut Output) -> Outcome {
        let packet = Ipv6Packet::new_checked(frame.payload).map_err(|_| Refusal::Malformed)?;
        let header = Ipv6Repr::parse(&packet).map_err(|_| Refusal::Malformed)?;
        if header.next_header == IpProtocol::Ipv6Frag {
            return self.piece_v6(port, frame, &header, packet.payload(), now, out);
        }
        if header.next_header != IpProtocol::Icmpv6 {
            return Err(Refusal::NotForUs);
        }
        let icmp = Icmpv6Packet::new_checked(packet.payload()).map_err(|_| Refusal::NotForUs)?;
        let ours = matches!(
            icmp.msg_type(),
            Icmpv6Message::NeighborSolicit
                | Icmpv6Message::NeighborAdvert
                | Icmpv6Message::EchoRequest
        );
        if !ours {
            return Err(Refusal::NotForUs);
        }
        let checksums = ChecksumCapabilities::default();
        let (src, dst) = (header.src_addr, header.dst_addr);
        let message = Icmpv6Repr::parse(&src, &dst, &icmp, &checksums);
        match message.map_err(|_| Refusal::Malformed)? {
            Icmpv6Repr::EchoRequest { .. } => {
                self.may_answer(port, frame, (src.into(), dst.into()), packet.total_len())?;
                self.answer_v6(port, frame, &header, packet.payload(), now, out)
            }
            Icmpv6Repr::Ndisc(_) if header.hop_limit != NDP_HOP_LIMIT => Err(Refusal::Malformed),
            Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
                target_addr,
                lladdr,
            }) => {
                let asker = option_mac(lladdr);
                self.solicited(port, frame, &header, (target_addr, asker), now, out)
            }
            Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                flags,
                target_addr,
                lladdr,
            }) => {
                let mac = option_mac(lladdr);
                self.advertised(port, frame, dst, (flags, target_addr, mac), now, out)
            }
            _ => Err(Refusal::NotForUs),
        }
    }

    /// RFC 4861 7.1.1 and 7.2.3-7.2.4.
    fn solicited(
        &mut self,
        port: u16,
        frame: &Frame<'_>,
        header: &Ipv6Repr,
        (target, asker): (Ipv6Addr, Option<Mac>),
        now: Instant,
        out: &mut Output,
    ) -> Outcome {
        let (src, dst) = (header.src_addr, header.dst_addr);
        // Someone who wants to use the address asks from :: whether it is free (RFC 4862 5.4).
        let probe = src.is_unspecified();
        let bad_probe = probe && (dst != solicited_node(target) || asker.is_some());
        if target.is_multicast() || src.is_multicast() || bad_probe {
            return Err(Refusal::Malformed);
        }
        let link = self.link(port)?;
        let mac = link.config.mac;
        let asked = link.owns(target.into());
        let speaker = Speaker {
            port,
            ip: src.into(),
            mac: asker.unwrap_or(frame.src),
            other_vlan: frame.tags.other_vlan(),
        };
        if !probe {
            if self.conflict(&speaker, now, out) {
                return Ok(Done::Learned);
            }
            if asker.is_some() {
                self.heard(&speaker, Evidence::Claim, asked, now, out);
            }
        }
        if !asked {
            return Ok(Done::Learned);
        }
        if !self.answers.take(now) {
            return Err(Refusal::RateLimited);
        }
        let (flags, to_ip, to_mac) = if probe {
            let all = IPV6_LINK_LOCAL_ALL_NODES;
            (NdiscNeighborFlags::OVERRIDE, all, multicast_mac(all))
        } else {
            let both = NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE;
            (both, src, speaker.mac)
        };
        let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags,
            target_addr: target,
            lladdr: Some(mac.into()),
        });
        let link = frame.answer_link(mac, to_mac);
        let reply = frame::icmpv6(&link, target, to_ip, NDP_HOP_LIMIT, &message);
        out.frames.push((port, reply));
        self.counters.neighbour_adverts += 1;
        Ok(Done::Answered)
    }

    /// RFC 4861 7.1.2 and 7.2.5.
    fn advertised(
        &mut self,
        port: u16,
        frame: &Frame<'_>,
        dst: Ipv6Addr,
        (flags, target, mac): (NdiscNeighborFlags, Ipv6Addr, Option<Mac>),
        now: Instant,
        out: &mut Output,
    ) -> Outcome {
        let solicited = flags.contains(NdiscNeighborFlags::SOLICITED);
        if target.is_multicast() || target.is_unspecified() || (solicited && dst.is_multicast()) {
            return Err(Refusal::Malformed);
        }
        let speaker = Speaker {
            port,
            ip: target.into(),
            // An answer to a unicast question may leave its MAC out (RFC 4861 4.4).
            mac: mac.unwrap_or(frame.src),
            other_vlan: frame.tags.other_vlan(),
        };
        if self.conflict(&speaker, now, out) {
            return Ok(Done::Learned);
        }
        let evidence = match (solicited, flags.contains(NdiscNeighborFlags::OVERRIDE)) {
            (_, true) if mac.is_none() => Evidence::Weak { solicited },
            (true, true) => Evidence::Answer,
            (false, true) => Evidence::Claim,
            (solicited, false) => Evidence::Weak { solicited },
        };
        self.heard(&speaker, evidence, false, now, out);
        Ok(Done::Learned)
    }

    /// Whether the speaker uses an address of ours. It is then reported and defended, and
    /// nothing is learned from it. In another VLAN the address may be someone else's by right.
    fn conflict(&mut self, speaker: &Speaker, now: Instant, out: &mut Output) -> bool {
        let &Speaker { port, ip, mac, .. } = speaker;
        let Some(link) = self.links.get(port).filter(|link| link.owns(ip)) else {
            return false;
        };
        if self.links.is_ours(mac) {
            return false;
        }
        // Whoever gave it to Linux decides whose it is: it is not fought for, and while it moves two
        // have it.
        let moves = link.has_by_linux(ip);
        let counts = !moves || self.conflicts.lasts((port, ip), now);
        if !speaker.other_vlan && counts && self.conflicts.report((port, ip), now) {
            self.counters.conflicts += 1;
            out.events.push(NetEvent::AddressConflict { ip, mac, port });
            if !moves {
                self.announcer.defend((port, ip), now);
            }
        }
        true
    }

    /// Learns from a speaker on the port's own VLAN and subnets.
    fn heard(
        &mut self,
        speaker: &Speaker,
        evidence: Evidence,
        create: bool,
        now: Instant,
        out: &mut Output,
    ) {
        let key = (speaker.port, speaker.ip);
        let on_link = self.links.get(key.0).is_some_and(|l| l.is_on_link(key.1));
        let plain = !speaker.other_vlan && speaker.mac.is_unicast();
        if plain && !self.links.is_ours(speaker.mac) {
            let mac = speaker.mac;
            self.with_table(now, out, |table, cx| {
                table.learn(key, mac, evidence, create && on_link, cx);
            });
        }
    }
}

/// Who a packet says it is from.
struct Speaker {
    port: u16,
    ip: IpAddr,
    mac: Mac,
    other_vlan: bool,
}

impl Frame<'_> {
    /// Back the way it came, in the same VLAN.
    pub(super) fn answer_link(&self, src: Mac, dst: Mac) -> frame::Link {
        let tags = self.tags;
        frame::Link { src, dst, tags }
    }
}

/// The Ethernet address in an NDP option, unless it is a group's.
fn option_mac(option: Option<RawHardwareAddress>) -> Option<Mac> {
    match option?.parse(Medium::Ethernet) {
        Ok(HardwareAddress::Ethernet(mac)) if mac.is_unicast() => Some(mac),
        _ => None,
    }
}
