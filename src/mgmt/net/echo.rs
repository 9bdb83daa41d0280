//! Answers pings to our addresses, also those that come in fragments.
//!
//! Management thread. No answer is longer than what asked for it, and all together have a rate limit.

use super::announce::plausible_source;
use super::frame::{self, Frame};
use super::reassembly::{Fragment, Id};
use super::responder::{Done, Outcome, Refusal};
use super::{NetState, Output};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv6FragmentHeader,
    Ipv6Repr,
};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

const TTL: u8 = 64;
const IPV6_HEADER: usize = 40;
/// The part of an IPv6 fragment header that smoltcp's type leaves out: next header, and a reserved byte.
const FRAGMENT_BEGIN: usize = 2;
const FRAGMENT_HEADER: usize = 8;

impl NetState {
    pub(super) fn ipv4(
        &mut self,
        port: u16,
        frame: &Frame<'_>,
        now: Instant,
        out: &mut Output,
    ) -> Outcome {
        let packet = Ipv4Packet::new_checked(frame.payload).map_err(|_| Refusal::Malformed)?;
        if packet.version() != 4 || packet.header_len() < 20 || !packet.verify_checksum() {
            return Err(Refusal::Malformed);
        }
        let ends = (packet.src_addr(), packet.dst_addr());
        if packet.next_header() != IpProtocol::Icmp || !self.link(port)?.has(ends.1.into()) {
            return Err(Refusal::NotForUs);
        }
        let length = usize::from(packet.total_len());
        self.may_answer(port, frame, (ends.0.into(), ends.1.into()), length)?;
        if !packet.more_frags() && packet.frag_offset() == 0 {
            return self.answer_v4(port, frame, ends, packet.payload(), now, out);
        }
        let id = Id {
            port,
            source: ends.0.into(),
            destination: ends.1.into(),
            number: packet.ident().into(),
        };
        let fragment = Fragment {
            offset: packet.frag_offset().into(),
            more: packet.more_frags(),
            data: packet.payload(),
        };
        match self.reassembly.add(id, &fragment, now) {
            Some(message) => self.answer_v4(port, frame, ends, &message, now, out),
            None => Ok(Done::Kept),
        }
    }

    fn answer_v4(
        &mut self,
        port: u16,
        frame: &Frame<'_>,
        (them, us): (Ipv4Addr, Ipv4Addr),
        message: &[u8],
        now: Instant,
        out: &mut Output,
    ) -> Outcome {
        let icmp = Icmpv4Packet::new_checked(message).map_err(|_| Refusal::Malformed)?;
        let message = Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default());
        let Icmpv4Repr::EchoRequest {
            ident,
            seq_no,
            data,
        } = message.map_err(|_| Refusal::Malformed)?
        else {
            return Err(Refusal::NotForUs);
        };
        let number = self.next_echo(now)?;
        let reply = Icmpv4Repr::EchoReply {
            ident,
            seq_no,
            data,
        };
        let config = &self.link(port)?.config;
        let link = frame.answer_link(config.mac, frame.src);
        let frames = frame::icmpv4_pieces(&link, us, them, TTL, &reply, config.mtu, number as u16);
        out.frames.extend(frames.map(|frame| (port, frame)));
        Ok(Done::Answered)
    }

    /// A fragment of an IPv6 packet, from its fragment header on.
    pub(super) fn piece_v6(
        &mut self,
        port: u16,
        frame: &Frame<'_>,
        header: &Ipv6Repr,
        bytes: &[u8],
        now: Instant,
        out: &mut Output,
    ) -> Outcome {
        if bytes.len() <= FRAGMENT_HEADER {
            return Err(Refusal::Malformed);
        }
        if IpProtocol::from(bytes[0]) != IpProtocol::Icmpv6 {
            return Err(Refusal::NotForUs);
        }
        let (source, destination) = (header.src_addr.into(), header.dst_addr.into());
        let length = IPV6_HEADER + bytes.len();
        self.may_answer(port, frame, (source, destination), length)?;
        let head = Ipv6FragmentHeader::new_checked(&bytes[FRAGMENT_BEGIN..FRAGMENT_HEADER]);
        let head = head.map_err(|_| Refusal::Malformed)?;
        let id = Id {
            port,
            source,
            destination,
            number: head.ident(),
        };
        let fragment = Fragment {
            offset: usize::from(head.frag_offset()) * 8,
            more: head.more_frags(),
            data: &bytes[FRAGMENT_HEADER..],
        };
        // An only fragment (RFC 6946) has nothing to do with others.
        let is_only = fragment.offset == 0 && !fragment.more;
        let message = match is_only {
            true => Some(fragment.data.to_vec()),
            false => self.reassembly.add(id, &fragment, now),
        };
        match message {
            Some(message) => self.answer_v6(port, frame, header, &message, now, out),
            None => Ok(Done::Kept),
        }
    }

    pub(super) fn answer_v6(
        &mut self,
        port: u16,
        frame: &Frame<'_>,
        header: &Ipv6Repr,
        message: &[u8],
        now: Instant,
        out: &mut Output,
    ) -> Outcome {
        let (them, us) = (header.src_addr, header.dst_addr);
        let icmp = Icmpv6Packet::new_checked(message).map_err(|_| Refusal::Malformed)?;
        let message = Icmpv6Repr::parse(&them, &us, &icmp, &ChecksumCapabilities::default());
        // Neighbour discovery does not come in fragments (RFC 6980).
        let Icmpv6Repr::EchoRequest {
            ident,
            seq_no,
            data,
        } = message.map_err(|_| Refusal::Malformed)?
        else {
            return Err(Refusal::NotForUs);
        };
        let number = self.next_echo(now)?;
        let reply = Icmpv6Repr::EchoReply {
            ident,
            seq_no,
            data,
        };
        let config = &self.link(port)?.config;
        let link = frame.answer_link(config.mac, frame.src);
        let frames = frame::icmpv6_pieces(&link, us, them, TTL, &reply, config.mtu, number);
        out.frames.extend(frames.map(|frame| (port, frame)));
        Ok(Done::Answered)
    }

    /// Whether a packet from `them` to `us`, `length` bytes of it, may have an answer: it could be a
    /// broadcast's, or one that asks us to answer ourselves or nobody.
    pub(super) fn may_answer(
        &self,
        port: u16,
        frame: &Frame<'_>,
        (them, us): (IpAddr, IpAddr),
        length: usize,
    ) -> Result<(), Refusal> {
        let link = self.link(port)?;
        if !link.has(us) {
            return Err(Refusal::NotForUs);
        }
        let plausible = match them {
            IpAddr::V4(them) => plausible_source(them),
            IpAddr::V6(them) => !them.is_unspecified() && !them.is_multicast(),
        };
        let forged = !plausible || link.owns(them);
        match forged || frame.dst != link.config.mac || length > usize::from(link.config.mtu) {
            true => Err(Refusal::Malformed),
            false => Ok(()),
        }
    }

    /// The number of one more answer, within the rate limit.
    fn next_echo(&mut self, now: Instant) -> Result<u32, Refusal> {
        if !self.echoes.take(now) {
            return Err(Refusal::RateLimited);
        }
        self.counters.echo_replies += 1;
        Ok(self.counters.echo_replies as u32)
    }
}
