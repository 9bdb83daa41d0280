//! Fragments: every one of a datagram goes where its first one went.
//!
//! Nothing is reassembled. The worker that [`super::owner::Ownership::fragments`] names keeps a
//! datagram together: fragments that come before the first wait there, bounded in number and time.
//! The first names the flow; if that is another worker's, this and all others are handed over to
//! it in order. The flow's owner forwards the first like any packet, remembers how
//! (`recipe::Recipe`) and does the same to the others. Runs on workers; never allocates after
//! start.

pub mod keep;
mod recipe;

use super::counters::DropReason;
use super::flow::{FlowKey, protocol};
use super::forward::{Way, to_backend};
use super::frame::{Frame, Note};
use super::icmp::{self, IcmpError};
use super::parse::{Packet, Parsed, Transport, read_u16, transport};
use super::persistence::ASK;
use super::shard::Shard;
use super::snapshot::Snapshot;
use super::tracked::Tracked;
use super::{Arrival, Now, Outbox, Pass, Verdict, mtu};
use keep::{Datagram, Known};
use recipe::{Action, Recipe};

pub use keep::{FragmentStore, Fragments, Released};

/// A fragment of a TCP or UDP datagram, with checked offsets.
#[derive(Clone, Copy, Debug)]
struct Piece<A> {
    source: A,
    destination: A,
    id: u32,
    protocol: u8,
    /// Where its payload stands in the datagram, in bytes.
    offset: usize,
    more: bool,
    l3: u8,
    /// Where its payload starts in the frame.
    payload: u16,
    /// The IP packet's length, its header included.
    length: u16,
}

/// Reads a fragment whose IP header the parser has checked. `Ok(None)`: neither TCP nor UDP.
fn piece<A: Tracked>(
    frame: &[u8],
    l3: u8,
    fragment_header: usize,
) -> Result<Option<Piece<A>>, DropReason> {
    let ip = &frame[usize::from(l3)..];
    let v4 = A::HEADER == 20;
    let (id, number, word, payload, length) = if v4 {
        let header = usize::from(ip[0] & 0x0f) * 4;
        let id = u32::from(read_u16(ip, 4));
        // The offset counts 8 bytes from bit 0 here, from bit 3 in IPv6.
        let word = read_u16(ip, 6) << 3;
        let more = u16::from(ip[6] & 0x20 != 0);
        (id, ip[9], word | more, header, read_u16(ip, 2))
    } else {
        let at = fragment_header - usize::from(l3);
        let header = ip[at..].first_chunk::<8>().ok_or(DropReason::MalformedIp)?;
        let id = u32::from(read_u16(header, 4)) << 16 | u32::from(read_u16(header, 6));
        let length = read_u16(ip, 4).saturating_add(40);
        (id, header[0], read_u16(header, 2), at + 8, length)
    };
    if !matches!(number, protocol::TCP | protocol::UDP) {
        return Ok(None);
    }
    let (offset, more) = (usize::from(word & 0xfff8), word & 1 == 1);
    let size = usize::from(length)
        .checked_sub(payload)
        .ok_or(DropReason::MalformedIp)?;
    // RFC 791 3.2, RFC 8200 4.5; and nothing reaches beyond the largest datagram.
    if size == 0 || (more && size % 8 != 0) || offset + size > usize::from(u16::MAX) {
        return Err(DropReason::MalformedIp);
    }
    // A fragment that rewrites a TCP header seen before it (RFC 3128).
    if number == protocol::TCP && (1..20).contains(&offset) {
        return Err(DropReason::MalformedL4);
    }
    let address = |at: usize| A::read(&ip[at..]);
    Ok(Some(Piece {
        source: address(A::SOURCE_AT),
        destination: address(A::DESTINATION_AT),
        id,
        protocol: number,
        offset,
        more,
        l3,
        payload: u16::from(l3) + payload as u16,
        length,
    }))
}

impl<A: Tracked> Piece<A> {
    fn datagram(&self) -> Datagram {
        Datagram::new(self.source, self.destination, self.id, self.protocol)
    }

    /// The packet that a first fragment is the head of. A head too short to hold the ports and
    /// TCP's flags hides the flow (RFC 1858).
    fn head(&self, frame: &[u8]) -> Result<Packet<A>, DropReason> {
        let end = usize::from(self.l3) + usize::from(self.length);
        let Transport::Ports {
            source_port,
            destination_port,
            tcp_flags,
        } = transport(&frame[usize::from(self.payload)..end], self.protocol)
        else {
            return Err(DropReason::MalformedL4);
        };
        let key = FlowKey {
            source: self.source,
            destination: self.destination,
            source_port,
            destination_port,
            protocol: self.protocol,
        };
        Ok(self.packet(key, tcp_flags))
    }

    /// A later fragment as a packet, for methods that never look behind the IP header.
    fn portless(&self) -> Packet<A> {
        let key = FlowKey {
            source: self.source,
            destination: self.destination,
            source_port: 0,
            destination_port: 0,
            protocol: self.protocol,
        };
        self.packet(key, 0)
    }

    fn packet(&self, key: FlowKey<A>, tcp_flags: u8) -> Packet<A> {
        Packet {
            key,
            l3: self.l3,
            l4: self.payload,
            length: self.length,
            tcp_flags,
        }
    }
}

impl Shard {
    /// The next fragment whose wait is over; see [`Fragments::release`].
    pub fn release_fragment(&mut self, now: Now) -> Option<Released> {
        let released = self.fragments.release(now);
        self.counters.held.set(self.fragments.held() as u64);
        released
    }

    /// The verdict on a fragment that arrived in the burst in hand.
    #[cold]
    #[inline(never)]
    pub(super) fn fragment<O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        arrival: Arrival,
        frame: &mut O::Frame,
        parsed: &Parsed,
        outbox: &mut O,
    ) -> Verdict {
        let done = match *parsed {
            Parsed::FragmentV4 { l3 } => piece(frame.bytes(), l3, 0).map(|p| {
                p.map(|p| {
                    self.sorted::<std::net::Ipv4Addr, O>(snapshot, now, arrival, frame, &p, outbox)
                })
            }),
            Parsed::FragmentV6 { l3, header } => piece(frame.bytes(), l3, header.into()).map(|p| {
                p.map(|p| {
                    self.sorted::<std::net::Ipv6Addr, O>(snapshot, now, arrival, frame, &p, outbox)
                })
            }),
            _ => Ok(None),
        };
        match done {
            Ok(Some(verdict)) => verdict,
            Ok(None) => Verdict::Pass(Pass::Local),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// A fragment either starts its datagram, or follows its first one, or waits for that.
    fn sorted<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        arrival: Arrival,
        frame: &mut O::Frame,
        piece: &Piece<A>,
        outbox: &mut O,
    ) -> Verdict {
        let ownership = snapshot.ownership;
        let (source, destination) = (piece.source, piece.destination);
        let counted = if A::HEADER == 20 { piece.protocol } else { 0 };
        let keeper = ownership.fragments(&self.seed, source, destination, piece.id, counted);
        let keeps = keeper == self.worker || ownership.workers < 2;
        if !keeps && arrival != Arrival::HandOff {
            return self.hand_fragment(frame, keeper);
        }
        frame.truncate(usize::from(piece.l3) + usize::from(piece.length));
        if piece.offset == 0 {
            return match piece.head(frame.bytes()) {
                Ok(packet) => {
                    self.head(snapshot, now, arrival, frame, piece, &packet, keeps, outbox)
                }
                Err(reason) => Verdict::Drop(reason),
            };
        }
        match self.fragments.known(&piece.datagram(), now) {
            Some(Known::Elsewhere(owner)) if keeps => self.hand_fragment(frame, owner),
            Some(Known::Here(recipe)) => self.follow(snapshot, now, frame, piece, &recipe, outbox),
            // Its first one may be on its way to the worker that chooses the backend, and back.
            _ => match self.fragments.wait(piece.datagram(), now) {
                Some(ticket) => {
                    self.counters.held.set(self.fragments.held() as u64);
                    frame.set_note(Note::NONE);
                    Verdict::Hold(ticket)
                }
                None => Verdict::Drop(DropReason::Fragment),
            },
        }
    }

    fn hand_fragment<F: Frame>(&self, frame: &mut F, to: u8) -> Verdict {
        self.counters.handed_fragments.add(1);
        frame.set_note(Note::NONE);
        Verdict::HandOff(to)
    }

    /// A datagram's first fragment: it goes the way of any packet of its flow.
    #[allow(clippy::too_many_arguments)]
    fn head<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        arrival: Arrival,
        frame: &mut O::Frame,
        piece: &Piece<A>,
        packet: &Packet<A>,
        keeps: bool,
        outbox: &mut O,
    ) -> Verdict {
        let owner = self.flow_owner(snapshot, &packet.key);
        let asked = arrival == Arrival::HandOff && frame.note() == Note::Word(ASK);
        if keeps && owner != self.worker && !asked {
            let known = Known::Elsewhere(owner);
            self.fragments.learn(piece.datagram(), known, now);
            return self.hand_fragment(frame, owner);
        }
        self.scheduled = None;
        let verdict = self.whole(snapshot, now, frame, packet, outbox);
        // An only fragment (RFC 6946) has no others. One that was handed on comes back.
        if piece.more && !matches!(verdict, Verdict::HandOff(_)) {
            let recipe = self.recipe(snapshot, packet, verdict, frame.bytes());
            let known = Known::Here(recipe);
            self.fragments.learn(piece.datagram(), known, now);
        }
        verdict
    }

    /// What to do with the others, after the first one got `verdict`.
    fn recipe<A: Tracked>(
        &self,
        snapshot: &Snapshot,
        packet: &Packet<A>,
        verdict: Verdict,
        frame: &[u8],
    ) -> Recipe {
        let (flow, hash) = self.flow_of(snapshot, &packet.key);
        // A flow without an entry has just been scheduled.
        let backend = flow.or(self.scheduled.map(|id| (id, false)));
        let one_way =
            backend.filter(|&(id, _)| snapshot.backend(id).is_some_and(|b| !b.method.is_two_way()));
        let action = match (verdict, one_way) {
            (Verdict::Transmit(_), Some((backend, _))) => Action::OneWay { backend, hash },
            _ => Action::read(verdict, frame),
        };
        Recipe { action, backend }
    }

    /// A later fragment goes as the first did.
    #[allow(clippy::too_many_arguments)]
    fn follow<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        piece: &Piece<A>,
        recipe: &Recipe,
        outbox: &mut O,
    ) -> Verdict {
        let verdict = match recipe.action {
            Action::OneWay { backend, hash } => {
                let Some(backend) = snapshot.backend(backend) else {
                    return Verdict::Drop(DropReason::BackendGone);
                };
                let packet = piece.portless();
                let way = Way {
                    backend,
                    hash,
                    local: None,
                };
                let verdict = to_backend(frame, &packet, &way);
                if let Verdict::Drop(reason) = verdict {
                    return self.undelivered(snapshot, now, frame, &packet, &way, reason, outbox);
                }
                verdict
            }
            Action::Rewrite {
                link,
                source,
                destination,
            } => {
                let l3 = usize::from(piece.l3);
                let view = link.and_then(|l| snapshot.ports.get(usize::from(l.port)));
                let narrow = view.map(|v| v.mtu).filter(|&mtu| piece.length > mtu);
                let packet = piece.portless();
                // Who complains is whom the sender spoke to: the service's address in either direction.
                let speaker = match recipe.backend {
                    Some((_, true)) => A::from_ip(source).unwrap_or(piece.destination),
                    _ => piece.destination,
                };
                if icmp::ttl::<A>(&frame.bytes()[l3..]) <= 1 {
                    return self.expired(snapshot, now, frame, &packet, speaker);
                }
                if let Some(mtu) = narrow
                    && !mtu::may_be_cut::<A>(&frame.bytes()[l3..])
                {
                    let (error, reason) = (IcmpError::TooBig { mtu }, DropReason::TooBig);
                    return self.complain(snapshot, now, frame, &packet, speaker, error, reason);
                }
                let done = recipe::rewrite::<A, _>(frame, l3, link.as_ref(), source, destination);
                if let Err(reason) = done {
                    return Verdict::Drop(reason);
                }
                let send = |outbox: &mut O, part| {
                    if let Some(link) = link {
                        outbox.send(link.port, part);
                    }
                };
                if let Some(mtu) = narrow
                    && let Err(reason) = mtu::cut(frame, l3, mtu, outbox, send)
                {
                    return Verdict::Drop(reason);
                }
                match link {
                    Some(link) => Verdict::Transmit(link.port),
                    None => Verdict::Pass(Pass::Resolve),
                }
            }
            Action::Pass(pass) => return Verdict::Pass(pass),
            Action::Drop => return Verdict::Drop(DropReason::Fragment),
        };
        self.count_fragment(recipe, piece.length);
        verdict
    }

    fn count_fragment(&self, recipe: &Recipe, length: u16) {
        let Some((backend, reply)) = recipe.backend else {
            return;
        };
        let Some(counters) = self.counters.backends.get(backend.0 as usize) else {
            return;
        };
        let (packets, bytes) = match reply {
            true => (&counters.out_packets, &counters.out_bytes),
            false => (&counters.in_packets, &counters.in_bytes),
        };
        packets.add(1);
        bytes.add(u64::from(length));
    }
}

#[cfg(test)]
pub(super) mod tests;
