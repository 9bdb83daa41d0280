//! The path of nearly every packet: a plain one of a flow in whose connection nothing changes but
//! the time stamp. All else is left as it was, and goes through [`super::shard`] step by step.
//! Runs on workers; whatever is added here is paid for by every packet (`scripts/instructions`).

use super::answers::rewrite_for_client;
use super::backends::{FarEnd, Hop};
use super::conn::{Conn, State, flag};
use super::counters::BackendCounters;
use super::exits::Exits;
use super::flow::{Address, FlowKey};
use super::forward::{direct, nat, server_end, tunnel, write_macs};
use super::frame::Frame;
use super::fullnat::{is_local_reply, local_end};
use super::looks::{AHEAD, Kind, Look, Looks, Meets};
use super::meet::is_reply;
use super::parse::{ETHERNET, Packet, tcp};
use super::shard::Shard;
use super::snapshot::{BackendId, BackendState, ForwardMethod, Snapshot};
use super::table::{ConnTable, Slot};
use super::tracked::Tracked;
use super::{MAX_BURST, Now, Verdict};

/// A burst in its third pass: what is left of it begins at `at`.
pub(super) struct Rest<'b, F> {
    pub at: usize,
    pub frames: &'b mut [F],
    pub looks: &'b Looks,
    pub verdicts: &'b mut [Verdict; MAX_BURST],
}

/// What the first two passes found out about a packet.
#[derive(Clone, Copy)]
struct Seen {
    look: Look,
    hash: u64,
    slot: Slot,
}

/// What the packets of a run have in common, and the shard's parts that they need: apart from the
/// rest of it they stay in registers.
struct Run<'s, A: Address> {
    table: &'s mut ConnTable<A>,
    /// As many as there are counters: one look at a backend's id is enough.
    hops: &'s [Hop],
    far_ends: &'s [FarEnd],
    backends: &'s [BackendCounters],
    snapshot: &'s Snapshot,
    second: u32,
}

impl Shard {
    /// Forwards settled requests of a family from the first frame on, up to the first that is
    /// anything else, which is left as it was.
    #[inline(always)]
    pub(super) fn forward_settled<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        exits: &mut Exits,
    ) {
        // A burst's packets mostly have one method and leave by one port: there is a loop for each
        // method, and one that comes by another or leaves by another port begins a loop anew.
        let mut last = None;
        while let Some((method, port)) = self.next_way::<A, F>(snapshot, now, rest)
            && last != Some((method, port))
        {
            let begin = rest.at;
            match method {
                ForwardMethod::DirectRouting => {
                    self.forward_directly::<A, F>(snapshot, now, rest, port)
                }
                ForwardMethod::Tunnel => self.forward_wrapped::<A, F>(snapshot, now, rest, port),
                ForwardMethod::Nat => {
                    self.forward_translated::<A, F, false>(snapshot, now, rest, port)
                }
                ForwardMethod::FullNat => {
                    self.forward_translated::<A, F, true>(snapshot, now, rest, port)
                }
            }
            rest.transmit(begin, port, exits);
            exits.is_odd |= method == ForwardMethod::Tunnel;
            last = Some((method, port));
        }
    }

    /// The method of the next request and its port, if it looks settled.
    #[inline(always)]
    fn next_way<A: Tracked, F>(
        &self,
        snapshot: &Snapshot,
        now: Now,
        rest: &Rest<F>,
    ) -> Option<(ForwardMethod, u8)> {
        let (at, looks) = (rest.at, rest.looks);
        if at >= rest.frames.len() || !looks.of[at].is(A::REQUEST) {
            return None;
        }
        let (look, slot) = (looks.of[at], looks.slots[at]);
        let conn = A::table(&self.tables).try_get(slot)?;
        if !conn.is_settled_for(look.settling()) || conn.is_expired(now.second) {
            return None;
        }
        let hop = snapshot.backends.hop(conn.backend)?;
        Some((hop.method()?, hop.link.port))
    }

    /// Those by direct routing.
    #[inline(never)]
    fn forward_directly<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        port: u8,
    ) {
        let run = self.run::<A>(snapshot, now);
        rest.run(A::REQUEST, run, |run, frame, seen| {
            let bytes = plain::<A>(frame.bytes_mut())?;
            let (conn, hop) = run.request(bytes, seen)?;
            let id = conn.backend;
            if !hop.is_by(ForwardMethod::DirectRouting, port) {
                return None;
            }
            // A packet that lives too short is refused before anything is written.
            direct::forward_plain::<A>(bytes, &hop.link).ok()?;
            run.count_in(id, seen.look);
            Some(())
        })
    }

    /// Those by tunnel.
    #[inline(never)]
    fn forward_wrapped<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        port: u8,
    ) {
        let run = self.run::<A>(snapshot, now);
        rest.run(A::REQUEST, run, |run, frame, seen| {
            let bytes = plain::<A>(frame.bytes_mut())?;
            let (conn, hop) = run.request(bytes, seen)?;
            let (id, packet) = (conn.backend, Packet::of_client(conn, seen.look.length()));
            if !hop.is_by(ForwardMethod::Tunnel, port) {
                return None;
            }
            // A packet that lives too short is refused before anything is written.
            let (link, hash) = (&hop.link, seen.hash);
            match far_end(run.far_ends, id) {
                Some(end) => tunnel::forward_v4(frame, &packet, link, end, hash),
                None => tunnel::forward_v6(frame, &packet, link, run.snapshot.backend(id)?, hash),
            }
            .ok()?;
            run.count_in(id, seen.look);
            Some(())
        })
    }

    /// Those by NAT, or by FullNAT.
    #[inline(never)]
    fn forward_translated<A: Tracked, F: Frame, const FULL: bool>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        port: u8,
    ) {
        let method = match FULL {
            true => ForwardMethod::FullNat,
            false => ForwardMethod::Nat,
        };
        let run = self.run::<A>(snapshot, now);
        rest.run(A::REQUEST, run, |run, frame, seen| {
            let bytes = plain::<A>(frame.bytes_mut())?;
            let (snapshot, far_ends) = (run.snapshot, run.far_ends);
            let (conn, hop) = run.request(bytes, seen)?;
            let (id, packet) = (conn.backend, Packet::of_client(conn, seen.look.length()));
            if !hop.is_by(method, port) {
                return None;
            }
            let end = far_end(far_ends, id);
            let server = end.and_then(|end| end.server(conn.vip_port));
            let server = match server {
                Some(server) => server,
                None => {
                    let backend = snapshot.backend(id)?;
                    server_end(backend.address, backend.port, conn.vip_port)?
                }
            };
            // A packet that lives too short is refused before anything is written.
            let rewritten = match FULL {
                true => nat::rewrite_both(bytes, &packet, local_end(snapshot, conn)?, server),
                false => nat::rewrite_destination(bytes, &packet, server),
            };
            rewritten.ok()?;
            write_macs(bytes, &hop.link);
            run.count_in(id, seen.look);
            Some(())
        })
    }

    /// Sends backends' settled replies of a family to their clients, likewise.
    #[inline(always)]
    pub(super) fn return_settled<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        exits: &mut Exits,
    ) {
        loop {
            let (begin, mut port) = (rest.at, None);
            self.return_by_one::<A, F>(snapshot, now, rest, &mut port);
            match port {
                Some(port) if rest.at > begin => rest.transmit(begin, port, exits),
                _ => break,
            }
        }
    }

    /// Those that leave by one port: the first one's, where `port` names none.
    #[inline(never)]
    fn return_by_one<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        port: &mut Option<u8>,
    ) {
        let smallest_mtu = self.smallest_mtu;
        let run = self.run::<A>(snapshot, now);
        rest.run(A::REPLY, run, |run, frame, seen| {
            run.reply(frame, seen, smallest_mtu, port)
        })
    }

    #[inline(always)]
    fn run<'s, A: Tracked>(&'s mut self, snapshot: &'s Snapshot, now: Now) -> Run<'s, A> {
        let (hops, far_ends) = (snapshot.backends.hops(), snapshot.backends.far_ends());
        let backends = &self.counters.backends;
        let count = hops.len().min(far_ends.len()).min(backends.len());
        Run {
            table: A::table_mut(&mut self.tables),
            hops: &hops[..count],
            far_ends: &far_ends[..count],
            backends: &backends[..count],
            snapshot,
            second: now.second,
        }
    }
}

impl<F: Frame> Rest<'_, F> {
    /// Does `step` with each packet of a kind, up to the first that is of another or that it does not
    /// take.
    #[inline(always)]
    fn run<'s, A: Tracked>(
        &mut self,
        kind: Kind,
        mut run: Run<'s, A>,
        mut step: impl FnMut(&mut Run<'s, A>, &mut F, Seen) -> Option<()>,
    ) {
        let (looks, count) = (self.looks, self.frames.len().min(MAX_BURST));
        let (mut at, mut end) = (self.at, self.at);
        while at == end && end < count {
            end = count;
            if !looks.near {
                end = count.min(at + AHEAD);
                let next = &looks.slots[end..count.min(end + AHEAD)];
                next.iter().for_each(|&slot| run.table.prefetch_slot(slot));
            }
            let frames = &mut self.frames[..end];
            while let Some(frame) = frames.get_mut(at) {
                let (look, slot, hash) = (looks.of[at], looks.slots[at], looks.hashes[at]);
                let seen = Seen { look, hash, slot };
                if !look.is(kind) || step(&mut run, frame, seen).is_none() {
                    break;
                }
                at += 1;
            }
        }
        self.at = at;
    }

    /// Gives the verdict on those from `begin` on that are done with.
    #[inline(always)]
    fn transmit(&mut self, begin: usize, port: u8, exits: &mut Exits) {
        if begin < self.at {
            // Those behind get theirs later, and a fill of a known length is no loop.
            match begin == 0 {
                true => self.verdicts.fill(Verdict::Transmit(port)),
                false => self.verdicts[begin..self.at].fill(Verdict::Transmit(port)),
            }
            exits.add(port);
        }
    }
}

impl<'s, A: Address> Run<'s, A> {
    /// The connection of a client's packet and where it goes, where the packet is settled and fits, if
    /// the way there is. The time stamp is set.
    #[inline(always)]
    fn request(&mut self, frame: &[u8], seen: Seen) -> Option<(&Conn<A>, &'s Hop)> {
        let look = seen.look;
        let conn = self.table.try_get_mut(seen.slot)?;
        if !is_from_client(frame, conn) || !conn.is_settled_for(look.settling()) {
            return None;
        }
        if conn.last_seen != self.second {
            renew(conn, self.second)?;
        }
        let hop = self.hops.get(conn.backend.0 as usize)?;
        (look.length() <= hop.mtu).then_some((conn, hop))
    }

    #[inline(always)]
    fn count_in(&self, id: BackendId, look: Look) {
        if let Some(counters) = self.backends.get(id.0 as usize) {
            counters.in_packets.add(1);
            counters.in_bytes.add(u64::from(look.length()));
        }
    }

    /// A backend's packet, on its way to a client by `port`, which is set where it is none.
    #[inline(always)]
    fn reply<F: Frame>(
        &mut self,
        frame: &mut F,
        Seen { look, slot, .. }: Seen,
        smallest_mtu: u16,
        port: &mut Option<u8>,
    ) -> Option<()> {
        let packet = Packet::<A>::plain(frame.bytes(), look.length())?;
        let conn = self.table.try_get_mut(slot)?;
        if !is_its_reply(self.snapshot, conn, &packet.key, look.meets())
            || !is_settled(conn, packet.tcp_flags)
            || conn.is_expired(self.second)
        {
            return None;
        }
        let backend = self.snapshot.backend(conn.backend);
        if backend.is_none_or(|backend| backend.state == BackendState::Removed) {
            return None;
        }
        let link = self.snapshot.routes.link(conn.client.into());
        let link = link?;
        if look.length() > smallest_mtu {
            return None;
        }
        if *port.get_or_insert(link.port) != link.port {
            return None;
        }
        if conn.last_seen != self.second {
            conn.last_seen = self.second;
        }
        rewrite_for_client(frame.bytes_mut(), &packet, conn).ok()?;
        write_macs(frame.bytes_mut(), &link);
        if let Some(counters) = self.backends.get(conn.backend.0 as usize) {
            counters.out_packets.add(1);
            counters.out_bytes.add(u64::from(look.length()));
        }
        Some(())
    }
}

/// Of a backend with IPv4 addresses.
#[inline(always)]
fn far_end(far_ends: &[FarEnd], id: BackendId) -> Option<&FarEnd> {
    let end = far_ends.get(id.0 as usize)?;
    end.is_there().then_some(end)
}

/// Once a second: the entry's time stamp, if it has not expired.
#[cold]
#[inline(never)]
fn renew<A: Address>(conn: &mut Conn<A>, second: u32) -> Option<()> {
    if conn.is_expired(second) {
        return None;
    }
    conn.last_seen = second;
    Some(())
}

/// A frame that is long enough for a plain packet's headers, as all are in which one was found: the
/// length is checked here alone.
#[inline(always)]
fn plain<A: Address>(frame: &mut [u8]) -> Option<&mut [u8]> {
    (frame.len() >= Packet::<A>::PLAIN_L4 + 8).then_some(frame)
}

/// Whether a plain packet comes from the connection's client and goes to its service; the protocol
/// is not looked at.
#[inline(always)]
fn is_from_client<A: Address>(frame: &[u8], conn: &Conn<A>) -> bool {
    let l4 = Packet::<A>::PLAIN_L4;
    let ports = [frame[l4], frame[l4 + 1], frame[l4 + 2], frame[l4 + 3]];
    A::are_at(&frame[ETHERNET + A::SOURCE_AT..], conn.client, conn.vip)
        && u32::from_be_bytes(ports) == u32::from(conn.client_port) << 16 | u32::from(conn.vip_port)
}

#[inline(always)]
fn is_its_reply<A: Address>(
    snapshot: &Snapshot,
    conn: &Conn<A>,
    key: &FlowKey<A>,
    meets: Meets,
) -> bool {
    match meets == Meets::LocalReply {
        true => is_local_reply(snapshot, conn, key),
        false => is_reply(snapshot, conn, key),
    }
}

/// Nothing about the connection can change by this packet but its time stamp.
#[inline(always)]
pub(super) fn is_settled<A: Address>(conn: &Conn<A>, tcp_flags: u8) -> bool {
    match conn.state {
        State::Established => tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0,
        State::Udp => !conn.has(flag::EMBRYONIC),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
