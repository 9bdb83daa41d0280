//! The path of nearly every packet: a plain one of a flow in whose connection nothing changes but
//! the time stamp. All else is left as it was, and goes through [`super::shard`] step by step.
//! Runs on workers; whatever is added here is paid for by every packet (`scripts/instructions`).

use super::answers::rewrite_for_client;
use super::conn::{Conn, State, flag};
use super::counters::BackendCounters;
use super::flow::{Address, FlowKey};
use super::forward::{Way, direct, translate, tunnel, write_macs};
use super::frame::Frame;
use super::fullnat::{is_local_reply, local_end};
use super::look::{Kind, Look, Meets};
use super::meet::is_reply;
use super::parse::{ETHERNET, Packet, tcp};
use super::route::Link;
use super::shard::Shard;
use super::snapshot::{Backend, BackendId, BackendState, ForwardMethod, Snapshot};
use super::table::ConnTable;
use super::tracked::Tracked;
use super::{Now, Verdict};

/// The ports that packets of a burst leave by, as far as they are transmitted.
#[derive(Clone, Copy)]
pub(super) struct Exits {
    all: u8,
    any: u8,
}

impl Exits {
    pub const NONE: Self = Self {
        all: u8::MAX,
        any: 0,
    };

    pub fn note(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Transmit(port) => self.add(port),
            _ => self.none(),
        }
    }

    /// Something is not transmitted: no port is the only one any more.
    fn none(&mut self) {
        (self.all, self.any) = (0, u8::MAX);
    }

    #[inline(always)]
    fn add(&mut self, port: u8) {
        self.all &= port;
        self.any |= port;
    }

    /// The port, where it is one for all.
    #[inline(always)]
    pub fn only(self) -> Option<u8> {
        (self.all == self.any).then_some(self.any)
    }
}

/// A burst in its third pass: what is left of it begins at `at`.
pub(super) struct Rest<'b, F> {
    pub at: usize,
    pub frames: &'b mut [F],
    pub looks: &'b [Look],
    pub verdicts: &'b mut [Verdict],
}

/// How far ahead the third pass asks for entries. The second pass has done so; where many lines have to
/// come from afar, not all are there by then: a CPU seems to forget some.
const AHEAD: usize = 5;

/// What the packets of a run have in common, and the shard's parts that they need: apart from the
/// rest of it they stay in registers.
struct Run<'s, A: Address> {
    table: &'s mut ConnTable<A>,
    backends: &'s [BackendCounters],
    snapshot: &'s Snapshot,
    second: u32,
}

/// Why a packet is not for a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It may be settled, and its backend has another method.
    Method,
    /// It is not settled.
    Unsettled,
}

impl Shard {
    /// Forwards settled requests of a family from the first frame on, up to the first that is
    /// anything else. That one may have lost its padding and nothing else.
    #[inline(always)]
    pub(super) fn forward_settled<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        exits: &mut Exits,
    ) {
        // A burst's packets mostly have one method: each has a loop of its own.
        while let Some(method) = self.next_method::<A, F>(snapshot, now, rest) {
            let stop = match method {
                ForwardMethod::DirectRouting => {
                    self.forward_directly::<A, F>(snapshot, now, rest, exits)
                }
                ForwardMethod::Tunnel => self.forward_wrapped::<A, F>(snapshot, now, rest, exits),
                ForwardMethod::Nat | ForwardMethod::FullNat => {
                    self.forward_translated::<A, F>(snapshot, now, rest, exits)
                }
            };
            if stop == Stop::Unsettled {
                break;
            }
        }
    }

    /// The method of the next request, if it looks settled.
    #[inline(always)]
    fn next_method<A: Tracked, F>(
        &self,
        snapshot: &Snapshot,
        now: Now,
        rest: &Rest<F>,
    ) -> Option<ForwardMethod> {
        let look = rest.looks.get(rest.at)?;
        if look.kind != A::REQUEST {
            return None;
        }
        let conn = A::table(&self.tables).try_get(look.slot)?;
        let may_be = conn.is_settled_for(look.settling) && !conn.is_expired(now.second);
        may_be.then_some(snapshot.backend(conn.backend)?.method)
    }

    /// Those by direct routing.
    #[inline(never)]
    fn forward_directly<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        exits: &mut Exits,
    ) -> Stop {
        let mut run = self.run::<A>(snapshot, now);
        rest.run(A::REQUEST, exits, |frame, look, ahead| {
            run.expect(ahead);
            let bytes = plain::<A>(frame.bytes_mut()).ok_or(Stop::Unsettled)?;
            let (conn, backend, link) = run.request(bytes, look).ok_or(Stop::Unsettled)?;
            let id = conn.backend;
            if backend.method != ForwardMethod::DirectRouting {
                return Err(Stop::Method);
            }
            // A packet that lives too short is refused before anything is written.
            direct::forward_plain::<A>(bytes, link).map_err(|_| Stop::Unsettled)?;
            frame.truncate(ETHERNET + usize::from(look.length));
            run.count_in(id, look);
            Ok(link.port)
        })
    }

    /// Those by tunnel.
    #[inline(never)]
    fn forward_wrapped<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        exits: &mut Exits,
    ) -> Stop {
        let mut run = self.run::<A>(snapshot, now);
        rest.run(A::REQUEST, exits, |frame, look, ahead| {
            run.expect(ahead);
            let bytes = plain::<A>(frame.bytes_mut()).ok_or(Stop::Unsettled)?;
            let (conn, backend, link) = run.request(bytes, look).ok_or(Stop::Unsettled)?;
            let (id, packet) = (conn.backend, Packet::of_client(conn, look.length));
            if backend.method != ForwardMethod::Tunnel {
                return Err(Stop::Method);
            }
            frame.truncate(ETHERNET + usize::from(look.length));
            // A packet that lives too short is refused before anything is written.
            tunnel::forward(frame, &packet, link, backend, look.hash)
                .map_err(|_| Stop::Unsettled)?;
            run.count_in(id, look);
            Ok(link.port)
        })
    }

    /// Those by NAT and FullNAT.
    #[inline(never)]
    fn forward_translated<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        exits: &mut Exits,
    ) -> Stop {
        let mut run = self.run::<A>(snapshot, now);
        rest.run(A::REQUEST, exits, |frame, look, ahead| {
            run.expect(ahead);
            let bytes = plain::<A>(frame.bytes_mut()).ok_or(Stop::Unsettled)?;
            let (conn, backend, link) = run.request(bytes, look).ok_or(Stop::Unsettled)?;
            let (id, packet) = (conn.backend, Packet::of_client(conn, look.length));
            if !backend.method.is_two_way() {
                return Err(Stop::Method);
            }
            let way = Way {
                backend,
                hash: look.hash,
                local: local_end(snapshot, conn),
            };
            // A packet that lives too short is refused before anything is written.
            translate(bytes, &packet, &way, link).map_err(|_| Stop::Unsettled)?;
            frame.truncate(ETHERNET + usize::from(look.length));
            run.count_in(id, look);
            Ok(link.port)
        })
    }

    /// Sends backends' settled replies of a family to their clients, likewise.
    #[inline(never)]
    pub(super) fn return_settled<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        rest: &mut Rest<F>,
        exits: &mut Exits,
    ) {
        let smallest_mtu = self.smallest_mtu;
        let mut run = self.run::<A>(snapshot, now);
        rest.run(A::REPLY, exits, |frame, look, ahead| {
            run.expect(ahead);
            let reply = run.reply(frame, look, smallest_mtu);
            reply.ok_or(Stop::Unsettled)
        });
    }

    #[inline(always)]
    fn run<'s, A: Tracked>(&'s mut self, snapshot: &'s Snapshot, now: Now) -> Run<'s, A> {
        Run {
            table: A::table_mut(&mut self.tables),
            backends: &self.counters.backends,
            snapshot,
            second: now.second,
        }
    }
}

impl<F> Rest<'_, F> {
    /// The look whose entry is to be asked for while the packet in hand is worked at.
    pub fn ahead(&self) -> Option<&Look> {
        self.looks.get(self.at + AHEAD)
    }

    /// Hands packets over to the workers that own them, up to the first that is this one's.
    pub fn hand_over(&mut self, exits: &mut Exits) {
        let looks = self.looks[self.at..].iter();
        let elsewhere = looks.take_while(|look| look.kind == Kind::Elsewhere);
        for (look, verdict) in elsewhere.zip(&mut self.verdicts[self.at..]) {
            *verdict = Verdict::HandOff(look.hash as u8);
            self.at += 1;
        }
        exits.none();
    }
}

impl<F: Frame> Rest<'_, F> {
    /// Does `step` with each packet of a kind, and the one ahead, up to the first that is of another or
    /// for which it has no port; all before that are transmitted.
    #[inline(always)]
    fn run(
        &mut self,
        kind: Kind,
        exits: &mut Exits,
        mut step: impl FnMut(&mut F, &Look, Option<&Look>) -> Result<u8, Stop>,
    ) -> Stop {
        let (mut at, mut stop) = (self.at, Stop::Unsettled);
        // Mostly all leave by one port, and their verdicts are written at once.
        let mut leaving = Leaving {
            begin: at,
            port: Leaving::NOWHERE,
        };
        let looks = self.looks;
        let ahead = |at| looks.get(at + AHEAD);
        let frames = self.frames[at..].iter_mut().zip(&looks[at..]);
        for (frame, look) in frames {
            if look.kind != kind {
                break;
            }
            match step(frame, look, ahead(at)) {
                Ok(port) => {
                    if u16::from(port) != leaving.port {
                        leaving.end(at, self.verdicts, exits);
                        leaving.port = port.into();
                    }
                    at += 1;
                }
                Err(reason) => {
                    stop = reason;
                    break;
                }
            }
        }
        leaving.end(at, self.verdicts, exits);
        self.at = at;
        stop
    }
}

/// Packets that leave by one port, from one on.
struct Leaving {
    begin: usize,
    port: u16,
}

impl Leaving {
    const NOWHERE: u16 = u16::MAX;

    /// Writes the verdicts of those before `end`.
    #[inline(never)]
    fn end(&mut self, end: usize, verdicts: &mut [Verdict], exits: &mut Exits) {
        if self.port != Self::NOWHERE {
            let port = self.port as u8;
            verdicts[self.begin..end].fill(Verdict::Transmit(port));
            exits.add(port);
        }
        self.begin = end;
    }
}

impl<'s, A: Address> Run<'s, A> {
    #[inline(always)]
    fn expect(&self, ahead: Option<&Look>) {
        if let Some(look) = ahead {
            self.table.prefetch_slot(look.slot);
        }
    }

    /// The connection of a client's packet, and where it goes, where both are settled and the
    /// packet fits. The time stamp is set.
    #[inline(always)]
    fn request(&mut self, frame: &[u8], look: &Look) -> Option<(&Conn<A>, &'s Backend, &'s Link)> {
        let conn = self.table.try_get_mut(look.slot)?;
        if !is_from_client(frame, conn) || !conn.is_settled_for(look.settling) {
            return None;
        }
        let silence = self.second.wrapping_sub(conn.last_seen);
        if silence != 0 {
            if silence > u32::from(conn.timeout) {
                return None;
            }
            conn.last_seen = self.second;
        }
        let backend = self.snapshot.backend(conn.backend)?;
        let link = backend.link.as_ref()?;
        if backend.state == BackendState::Removed || look.length > backend.mtu {
            return None;
        }
        Some((conn, backend, link))
    }

    #[inline(always)]
    fn count_in(&self, id: BackendId, look: &Look) {
        if let Some(counters) = self.backends.get(id.0 as usize) {
            counters.in_packets.add(1);
            counters.in_bytes.add(u64::from(look.length));
        }
    }

    /// A backend's packet, on its way to a client.
    #[inline(always)]
    fn reply<F: Frame>(&mut self, frame: &mut F, look: &Look, smallest_mtu: u16) -> Option<u8> {
        let packet = Packet::<A>::plain(frame.bytes(), look.length)?;
        let conn = self.table.try_get_mut(look.slot)?;
        if !is_its_reply(self.snapshot, conn, &packet.key, look.meets)
            || !is_settled(conn, packet.tcp_flags)
            || conn.is_expired(self.second)
        {
            return None;
        }
        let backend = self.snapshot.backend(conn.backend)?;
        if backend.state == BackendState::Removed {
            return None;
        }
        if conn.last_seen != self.second {
            conn.last_seen = self.second;
        }
        frame.truncate(ETHERNET + usize::from(look.length));
        let link = self.snapshot.routes.link(conn.client.into())?;
        if look.length > smallest_mtu {
            return None;
        }
        rewrite_for_client(frame.bytes_mut(), &packet, conn).ok()?;
        write_macs(frame.bytes_mut(), &link);
        if let Some(counters) = self.backends.get(conn.backend.0 as usize) {
            counters.out_packets.add(1);
            counters.out_bytes.add(u64::from(look.length));
        }
        Some(link.port)
    }
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
