//! What happens to a packet that cannot go on, beside being dropped: an ICMP error or a reset to
//! its sender, a cut into fragments, the end of a flow whose backend is gone.
//! Part of a worker's [`Shard`], off the fast path; sends no more answers than its limits allow.

use super::bucket::Bucket;
use super::conn::{Conn, flag};
use super::counters::DropReason;
use super::flow::{Address, protocol};
use super::forward::nat;
use super::forward::{Way, to_backend};
use super::frame::Frame;
use super::fullnat::local_end;
use super::icmp::{self, IcmpError};
use super::parse::{Packet, tcp};
use super::shard::Shard;
use super::snapshot::{Backend, ForwardMethod, PortView, Service, Snapshot, WhenNoBackend};
use super::table::Slot;
use super::tracked::Tracked;
use super::{Arrival, Now, Outbox, Pass, Verdict, mtu, reset};

/// Answers a worker may send each second.
#[derive(Clone, Copy, Debug)]
pub struct AnswerRates {
    /// ICMP errors (RFC 1812 4.3.2.8, RFC 4443 2.4 f).
    pub icmp: u32,
    /// Resets, and keep-alives, for packets without a connection.
    pub resets: u32,
}

impl Default for AnswerRates {
    fn default() -> Self {
        Self {
            icmp: 1000,
            resets: 10_000,
        }
    }
}

/// What is left of the limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerLimits {
    pub icmp: Bucket,
    pub resets: Bucket,
}

impl AnswerLimits {
    pub fn new(rates: AnswerRates) -> Self {
        Self {
            icmp: Bucket::new(rates.icmp),
            resets: Bucket::new(rates.resets),
        }
    }
}

impl Shard {
    /// Sets how many answers may be sent each second.
    pub fn limit_answers(&mut self, rates: AnswerRates) {
        self.answers = AnswerLimits::new(rates);
    }

    /// The interface by which an answer goes back to the frame's sender. Where there are no VLANs, a
    /// frame that another worker handed over tells it by the address it was sent to.
    fn way_back<F: Frame>(&self, snapshot: &Snapshot, frame: &F) -> u8 {
        let by_address = || {
            let ours = |port: &PortView| frame.bytes().starts_with(&port.mac);
            snapshot.ports.iter().position(ours).unwrap_or(0) as u8
        };
        frame.interface().unwrap_or_else(|| match self.arrival {
            Arrival::Port(port) => port,
            Arrival::HandOff => by_address(),
        })
    }

    /// An ICMP error about the packet, from `source`: the service's address, or a backend behind
    /// NAT would hear of addresses it never spoke to.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn complain<A: Address, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        packet: &Packet<A>,
        source: A,
        error: IcmpError,
        reason: DropReason,
    ) -> Verdict {
        if !self.answers.icmp.take(now) {
            self.counters.unanswered.add(1);
            return Verdict::Drop(reason);
        }
        let port = self.way_back(snapshot, frame);
        if !icmp::into_error(frame, usize::from(packet.l3), source, error) {
            return Verdict::Drop(reason);
        }
        Verdict::Reply { port, reason }
    }

    /// A reset for a TCP packet without a connection.
    pub(super) fn reset<A: Address, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        packet: &Packet<A>,
        reason: DropReason,
    ) -> Verdict {
        if packet.tcp_flags & tcp::RST != 0 {
            return Verdict::Drop(reason);
        }
        if !self.answers.resets.take(now) {
            self.counters.unanswered.add(1);
            return Verdict::Drop(reason);
        }
        let port = self.way_back(snapshot, frame);
        reset::into_answer(frame, packet);
        Verdict::Reply { port, reason }
    }

    /// A new flow that no backend can take.
    pub(super) fn no_backend<A: Address, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        packet: &Packet<A>,
        service: &Service,
        reason: DropReason,
    ) -> Verdict {
        if service.when_no_backend == WhenNoBackend::Drop || reason != DropReason::NoBackend {
            return Verdict::Drop(reason);
        }
        if packet.key.protocol == protocol::TCP {
            return self.reset(snapshot, now, frame, packet, reason);
        }
        let error = IcmpError::PortUnreachable;
        self.complain(
            snapshot,
            now,
            frame,
            packet,
            packet.key.destination,
            error,
            reason,
        )
    }

    /// A client's packet that [`to_backend`] refused, and left as it was, for `reason`.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn undelivered<A: Address, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        way: &Way<A>,
        reason: DropReason,
        outbox: &mut O,
    ) -> Verdict {
        let backend = way.backend;
        let ip = &frame.bytes()[usize::from(packet.l3)..];
        let vip = packet.key.destination;
        match reason {
            DropReason::TtlExpired | DropReason::TooBig if icmp::ttl::<A>(ip) <= 1 => {
                self.expired(snapshot, now, frame, packet, vip)
            }
            DropReason::TooBig if !mtu::may_be_cut::<A>(ip) => {
                let error = IcmpError::TooBig { mtu: backend.mtu };
                self.complain(snapshot, now, frame, packet, vip, error, reason)
            }
            DropReason::TooBig => match in_pieces(frame, packet, way, outbox) {
                Ok(port) => {
                    self.count_in(backend, packet);
                    Verdict::Transmit(port)
                }
                Err(reason) => Verdict::Drop(reason),
            },
            _ => Verdict::Drop(reason),
        }
    }

    /// Time exceeded, from `source`.
    #[cold]
    #[inline(never)]
    pub(super) fn expired<A: Address, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        packet: &Packet<A>,
        source: A,
    ) -> Verdict {
        let reason = DropReason::TtlExpired;
        self.complain(
            snapshot,
            now,
            frame,
            packet,
            source,
            IcmpError::TimeExceeded,
            reason,
        )
    }

    /// A NAT backend's packet that is longer than some port allows. Ends as [`to_client`] does.
    #[cold]
    #[inline(never)]
    pub(super) fn long_reply<A: Address, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        conn: &Conn<A>,
        outbox: &mut O,
    ) -> Verdict {
        let port = snapshot.routes.link(conn.client.into()).map(|l| l.port);
        let view = port.and_then(|port| snapshot.ports.get(usize::from(port)));
        let ip = &frame.bytes()[usize::from(packet.l3)..];
        let Some(mtu) = view.map(|v| v.mtu).filter(|&mtu| packet.length > mtu) else {
            return to_client(snapshot, frame, packet, conn);
        };
        if icmp::ttl::<A>(ip) > 1 && !mtu::may_be_cut::<A>(ip) {
            let (error, reason) = (IcmpError::TooBig { mtu }, DropReason::TooBig);
            return self.complain(snapshot, now, frame, packet, conn.vip, error, reason);
        }
        let verdict = to_client(snapshot, frame, packet, conn);
        let Verdict::Transmit(port) = verdict else {
            return verdict;
        };
        let cut = mtu::cut(
            frame,
            usize::from(packet.l3),
            mtu,
            outbox,
            |outbox, piece| {
                outbox.send(port, piece);
            },
        );
        cut.map_or_else(Verdict::Drop, |()| verdict)
    }

    /// A packet of a client whose backend is out of the configuration. TCP flows are reset
    /// toward both ends with the numbers of this packet; anything else opens a flow anew.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn orphaned<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        slot: Slot,
        hash: u64,
        outbox: &mut O,
    ) -> Verdict {
        let conn = *A::table(&self.tables).get(slot);
        let way = snapshot.backend(conn.backend).map(|backend| Way {
            backend,
            hash,
            local: local_end(snapshot, &conn),
        });
        self.forget::<A>(slot, now);
        let opening = packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN;
        if packet.key.protocol != protocol::TCP || opening {
            return self.admit(snapshot, now, frame, packet, hash, outbox);
        }
        let reason = DropReason::BackendGone;
        if packet.tcp_flags & tcp::RST != 0 {
            // Its further fragments follow it.
            self.scheduled = way.map(|way| way.backend.id);
            return way.map_or(Verdict::Drop(reason), |way| to_backend(frame, packet, &way));
        }
        if let Some(way) = way
            && let Some(mut other) = outbox.make()
            && let Some(packet) = reset::onward(&mut other, frame.bytes(), packet)
            && let Verdict::Transmit(port) = to_backend(&mut other, &packet, &way)
        {
            outbox.send(port, other);
        }
        let port = self.way_back(snapshot, frame);
        reset::into_answer(frame, packet);
        Verdict::Reply { port, reason }
    }

    /// A TCP packet of a removed NAT backend: the flow ends toward both ends. The backend's own
    /// reset goes on to the client.
    #[cold]
    #[inline(never)]
    pub(super) fn orphaned_reply<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        slot: Slot,
        outbox: &mut O,
    ) -> Verdict {
        let reason = DropReason::BackendGone;
        let conn = *A::table(&self.tables).get(slot);
        self.forget::<A>(slot, now);
        if packet.tcp_flags & tcp::RST != 0 {
            return to_client(snapshot, frame, packet, &conn);
        }
        if let Some(mut other) = outbox.make()
            && let Some(packet) = reset::onward(&mut other, frame.bytes(), packet)
            && let Verdict::Transmit(port) = to_client(snapshot, &mut other, &packet, &conn)
        {
            outbox.send(port, other);
        }
        let port = self.way_back(snapshot, frame);
        reset::into_answer(frame, packet);
        Verdict::Reply { port, reason }
    }
}

/// Rewrites a NAT backend's packet for the client and says where it leaves.
pub(super) fn to_client<A: Address, F: Frame>(
    snapshot: &Snapshot,
    frame: &mut F,
    packet: &Packet<A>,
    conn: &Conn<A>,
) -> Verdict {
    if let Err(reason) = rewrite_for_client(frame.bytes_mut(), packet, conn) {
        return Verdict::Drop(reason);
    }
    match snapshot.routes.link(conn.client.into()) {
        Some(link) => {
            super::forward::write_macs(frame.bytes_mut(), &link);
            Verdict::Transmit(link.port)
        }
        None => Verdict::Pass(Pass::Resolve),
    }
}

/// Makes a NAT backend's packet one of the service's. A packet that lives too short stays as it was.
#[inline(always)]
pub(super) fn rewrite_for_client<A: Address>(
    frame: &mut [u8],
    packet: &Packet<A>,
    conn: &Conn<A>,
) -> Result<(), DropReason> {
    let service = nat::Endpoint {
        address: conn.vip,
        port: conn.vip_port,
    };
    if !conn.has(flag::FULL_NAT) {
        return nat::rewrite_source(frame, packet, service);
    }
    let client = nat::Endpoint {
        address: conn.client,
        port: conn.client_port,
    };
    nat::rewrite_both(frame, packet, service, client)
}

/// Cuts a packet that is too long for its backend. What goes into a tunnel is cut before it is
/// wrapped, so that the backend need not reassemble what it unwraps.
fn in_pieces<A: Address, O: Outbox>(
    frame: &mut O::Frame,
    packet: &Packet<A>,
    way: &Way<A>,
    outbox: &mut O,
) -> Result<u8, DropReason> {
    let backend = way.backend;
    let l3 = usize::from(packet.l3);
    if backend.method != ForwardMethod::Tunnel {
        let whole = Backend {
            mtu: u16::MAX,
            ..backend.clone()
        };
        let whole = Way {
            backend: &whole,
            ..*way
        };
        let port = sent(to_backend(frame, packet, &whole))?;
        mtu::cut(frame, l3, backend.mtu, outbox, |outbox, piece| {
            outbox.send(port, piece);
        })?;
        return Ok(port);
    }
    let wrap = |piece: &mut O::Frame| {
        let packet = Packet {
            length: (piece.bytes().len() - l3) as u16,
            ..*packet
        };
        sent(to_backend(piece, &packet, way))
    };
    let mut lost = Ok(());
    mtu::cut(
        frame,
        l3,
        backend.mtu,
        outbox,
        |outbox, mut piece| match wrap(&mut piece) {
            Ok(port) => outbox.send(port, piece),
            Err(reason) => lost = Err(reason),
        },
    )?;
    lost?;
    wrap(frame)
}

fn sent(verdict: Verdict) -> Result<u8, DropReason> {
    match verdict {
        Verdict::Transmit(port) => Ok(port),
        Verdict::Drop(reason) | Verdict::Reply { reason, .. } => Err(reason),
        _ => Err(DropReason::NoNeighbour),
    }
}
