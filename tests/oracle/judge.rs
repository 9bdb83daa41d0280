//! The second opinion: what must become of a frame, by a model of the rules that is as plain as it
//! can be. It learns from the outcome only which backend a new flow got.

mod addresses;
mod icmp;
mod learn;
mod tcp;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use evenkeel::lb::counters::DropReason::{self, *};
use evenkeel::lb::fixture::{OUR_MAC, backend_mac};
use evenkeel::lb::snapshot::{BackendState, ForwardMethod, Untracked as Unknown, WhenNoBackend};
use evenkeel::lb::{Pass, Verdict};

use crate::fragments::{self, Datagram, Fragments, Known};
use crate::generate::Random;
use crate::look::{self, Packet, Piece, Ports, Seen, look};
use crate::world::{BACKENDS, LOCALS, NAT_PORT, Outcome, PORTS, Sent, VIPS, World};
use addresses::{is_nobody, is_ours, is_service};
use tcp::Tcp;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Expect {
    Forward,
    /// Dropped and answered.
    Answer(DropReason),
    Drop(DropReason),
    Pass,
    /// The answer to a health check: passed on to it.
    Check,
    /// A new flow: what becomes of its first packet depends on the backend it gets.
    New,
    /// A fragment that waits for its datagram's first one.
    Hold,
    /// In a table that is full nobody knows who is in it.
    Unjudged,
    /// Better not sent: of a FullNAT flow none of whose packets was seen to leave nobody knows the
    /// local port, and in a table that is full nobody knows which first fragment passes.
    Skip,
}

impl Expect {
    pub fn allows(self, verdict: Verdict) -> bool {
        match self {
            Expect::Forward => verdict == Verdict::Transmit(0),
            Expect::Answer(reason) => verdict == Verdict::Reply { port: 0, reason },
            Expect::Drop(reason) => verdict == Verdict::Drop(reason),
            Expect::Pass => verdict == Verdict::Pass(Pass::Local),
            Expect::Check => verdict == Verdict::Pass(Pass::Check),
            Expect::Hold => matches!(verdict, Verdict::Hold(_)),
            Expect::New | Expect::Unjudged | Expect::Skip => true,
        }
    }
}

/// Client, service, protocol.
type Key = (IpAddr, u16, IpAddr, u16, u8);

#[derive(Clone, Copy, Debug)]
struct Flow {
    backend: u32,
    tcp: Tcp,
    /// FullNAT: the local port, once a packet of the flow was seen to leave.
    local: Option<u16>,
}

struct Opened {
    key: Key,
    tcp: Tcp,
    packet: Packet,
    usable: Vec<u32>,
}

/// Whom a FullNAT backend answers: its number, IP version, protocol and the local port.
type Local = (u32, bool, u8, u16);

pub struct Judge {
    method: ForwardMethod,
    locals: Vec<IpAddr>,
    untracked: Unknown,
    when_no_backend: WhenNoBackend,
    tiny: bool,
    limit: usize,
    mtus: Vec<usize>,
    backends: Vec<(BackendState, bool)>,
    flows: HashMap<Key, Flow>,
    /// The flow that the frame just judged opens, and the backends it may get.
    opened: Option<Opened>,
    /// The backend that it must go to.
    bound: Option<u32>,
    /// FullNAT: the flow whose local port the frame just judged shows.
    shows: Option<Key>,
    by_local: HashMap<Local, Key>,
    shown: Vec<Local>,
    fragments: Fragments,
    /// The datagram that the frame just judged is the first fragment of.
    heads: Option<Datagram>,
    /// What the frame just judged must leave as, where it is a later fragment.
    rewritten: Option<Known>,
    /// No buffers for fragments.
    pub dry: bool,
}

impl Judge {
    pub fn new(world: &World) -> Self {
        Self {
            method: world.method,
            locals: world.locals.to_vec(),
            untracked: world.untracked,
            when_no_backend: world.when_no_backend,
            tiny: world.is_tiny(),
            limit: world.limit as usize,
            mtus: (0..BACKENDS).map(|n| world.mtu(n)).collect(),
            backends: vec![(BackendState::Up, true); BACKENDS as usize],
            flows: HashMap::new(),
            opened: None,
            bound: None,
            shows: None,
            by_local: HashMap::new(),
            shown: Vec::new(),
            fragments: Fragments::default(),
            heads: None,
            rewritten: None,
            dry: false,
        }
    }

    pub fn is_tiny(&self) -> bool {
        self.tiny
    }

    pub fn set_backend(&mut self, n: u32, state: BackendState, linked: bool) {
        self.backends[n as usize] = (state, linked);
    }

    fn state(&self, n: u32) -> BackendState {
        self.backends[n as usize].0
    }

    fn is_nat(&self) -> bool {
        self.method == ForwardMethod::Nat
    }

    /// Replies pass here too.
    fn is_two_way(&self) -> bool {
        self.method.is_two_way()
    }

    /// Seconds have passed: datagrams are forgotten, and who still waits has waited too long.
    pub fn wait(&mut self) -> usize {
        self.fragments.known.clear();
        std::mem::take(&mut self.fragments.waiting).len()
    }

    /// The fragments that need not wait any longer, in the order they came.
    pub fn released(&mut self) -> Vec<Sent> {
        let Fragments { known, waiting } = &mut self.fragments;
        let (free, held) = std::mem::take(waiting)
            .into_iter()
            .partition(|(datagram, _)| known.contains_key(datagram));
        *waiting = held;
        let free: Vec<(Datagram, Sent)> = free;
        free.into_iter().map(|(_, sent)| sent).collect()
    }

    /// The ends of a FullNAT backend's reply, in a flow that is or was, if there has been one.
    pub fn reply_ends(&self, random: &mut Random) -> Option<(SocketAddr, SocketAddr)> {
        let count = self.shown.len() as u32;
        let &(backend, v6, _, port) = self.shown.get(random.below(count.max(1)) as usize)?;
        let local = LOCALS[usize::from(v6)];
        let from = SocketAddr::new(World::backend(backend), NAT_PORT);
        Some((from, SocketAddr::new(local, port)))
    }

    pub fn judge(&mut self, sent: &Sent) -> Expect {
        (self.opened, self.bound, self.shows) = (None, None, None);
        (self.heads, self.rewritten) = (None, None);
        let frame = &sent.bytes;
        let to = frame.get(..6);
        let seen = look(frame);
        if to.is_some_and(|to| to != OUR_MAC) {
            let group = frame[0] & 1 == 1;
            return match seen {
                _ if !group => Expect::Drop(ForeignMac),
                _ if !sent.whole => Expect::Drop(Segmented),
                _ if frame.len() < 14 => Expect::Drop(Truncated),
                Seen::Transport(p, ports) if is_service(p.destination, ports.destination) => {
                    Expect::Drop(BroadcastMac)
                }
                _ => Expect::Pass,
            };
        }
        match seen {
            _ if !sent.whole => Expect::Drop(Segmented),
            Seen::Bad(reason) => Expect::Drop(reason),
            Seen::Fragment(piece) => self.fragment(sent, &piece),
            Seen::Other => Expect::Pass,
            Seen::Icmp(packet) => self.icmp(sent, &packet),
            Seen::Transport(packet, ports) => self.transport(sent, &packet, &ports),
        }
    }

    fn fragment(&mut self, sent: &Sent, piece: &Piece) -> Expect {
        let packet = &piece.packet;
        if !matches!(packet.protocol, 6 | 17) {
            return Expect::Pass;
        }
        if let Some(reason) = fragments::fault(piece) {
            return Expect::Drop(reason);
        }
        if self.tiny {
            return Expect::Skip;
        }
        let datagram = fragments::datagram(piece);
        if piece.offset == 0 {
            let body = &sent.bytes[packet.l4..packet.end];
            let Some(ports) = look::ports(packet.protocol, body) else {
                return Expect::Drop(MalformedL4);
            };
            self.heads = piece.more.then_some(datagram);
            return self.transport(sent, packet, &ports);
        }
        match self.fragments.known.get(&datagram).copied() {
            None => {
                self.fragments.waiting.push((datagram, sent.clone()));
                Expect::Hold
            }
            Some(Known::Passed(Pass::Check)) => Expect::Check,
            Some(Known::Passed(_)) => Expect::Pass,
            Some(Known::Dropped) => Expect::Drop(Fragment),
            // Under IPv4 nobody is told of a later fragment's end.
            Some(Known::OneWay(backend)) => match self.onward(sent, packet, backend) {
                Expect::Answer(reason) if packet.source.is_ipv4() => Expect::Drop(reason),
                other => other,
            },
            Some(known @ Known::Rewritten { .. }) => {
                self.rewritten = Some(known);
                let is_long = packet.end - packet.l3 > 1500;
                let fault = match packet.ttl {
                    0 | 1 => Some(TtlExpired),
                    _ => is_long.then_some(TooBig),
                };
                match fault {
                    Some(reason) if packet.source.is_ipv4() => Expect::Drop(reason),
                    Some(reason) => Expect::Answer(reason),
                    None => Expect::Forward,
                }
            }
        }
    }

    fn transport(&mut self, sent: &Sent, packet: &Packet, ports: &Ports) -> Expect {
        if self.tiny {
            return Expect::Unjudged;
        }
        if self.method == ForwardMethod::FullNat && LOCALS.contains(&packet.destination) {
            return self.local_reply(sent, packet, ports);
        }
        if self.is_nat()
            && !VIPS.contains(&packet.destination)
            && let Some(expected) = self.reply(sent, packet, ports)
        {
            return expected;
        }
        let (client, port) = (packet.source, ports.source);
        let key = (
            client,
            port,
            packet.destination,
            ports.destination,
            packet.protocol,
        );
        let Some(flow) = self.flows.get(&key).copied() else {
            return self.open(sent, packet, ports, key);
        };
        let pure_syn = ports.syn && !ports.ack && !ports.rst;
        if self.state(flow.backend) == BackendState::Removed {
            self.forget(&key);
            if packet.protocol == 17 || pure_syn {
                return self.open(sent, packet, ports, key);
            }
            if ports.rst {
                return self.unanswered(sent, packet, flow.backend);
            }
            return Expect::Answer(BackendGone);
        }
        if packet.protocol == 6 {
            if pure_syn && self.is_over(flow.tcp) {
                self.forget(&key);
                return self.open(sent, packet, ports, key);
            }
            let next = self.next(flow.tcp, true, ports);
            self.flows.insert(key, Flow { tcp: next, ..flow });
        }
        self.shows = Some(key);
        self.onward(sent, packet, flow.backend)
    }

    fn forget(&mut self, key: &Key) {
        let Some(flow) = self.flows.remove(key) else {
            return;
        };
        if let Some(local) = flow.local {
            let local = (flow.backend, key.0.is_ipv6(), key.4, local);
            self.by_local.remove(&local);
        }
    }

    /// To a backend that is there.
    fn onward(&mut self, sent: &Sent, packet: &Packet, backend: u32) -> Expect {
        self.bound = Some(backend);
        let mtu = self.mtus[backend as usize];
        let over_v4 = World::backend(backend).is_ipv4();
        let outer = match self.method {
            ForwardMethod::Tunnel => 14 + if over_v4 { 20 } else { 40 } - packet.l3,
            _ => 0,
        };
        let long = packet.end - packet.l3 > mtu;
        if !self.backends[backend as usize].1 {
            Expect::Drop(NoNeighbour)
        } else if packet.ttl <= 1 {
            answer(sent, packet, TtlExpired)
        } else if long && !packet.may_cut {
            answer(sent, packet, TooBig)
        } else if long && self.dry {
            Expect::Drop(NoBuffer)
        } else if outer > sent.headroom {
            Expect::Drop(NoHeadroom)
        } else {
            Expect::Forward
        }
    }

    /// The same for what nobody is told about: resets of a flow that is gone, ICMP errors.
    fn unanswered(&mut self, sent: &Sent, packet: &Packet, backend: u32) -> Expect {
        if self.backends[backend as usize].1 && packet.end - packet.l3 > self.mtus[backend as usize]
        {
            return Expect::Drop(TooBig);
        }
        match self.onward(sent, packet, backend) {
            Expect::Answer(reason) => Expect::Drop(reason),
            other => other,
        }
    }

    /// A NAT backend's packet, where it belongs to a flow.
    fn reply(&mut self, sent: &Sent, packet: &Packet, ports: &Ports) -> Option<Expect> {
        let backend = (0..BACKENDS).find(|&n| World::backend(n) == packet.source)?;
        let from_service = ports.source == NAT_PORT;
        let (client, port) = (packet.destination, ports.destination);
        let (key, flow) = PORTS.iter().find_map(|&service| {
            let vip = VIPS[usize::from(client.is_ipv6())];
            let key = (client, port, vip, service, packet.protocol);
            let flow = *self.flows.get(&key)?;
            (from_service && flow.backend == backend).then_some((key, flow))
        })?;
        Some(self.answered(sent, packet, ports, key, flow))
    }

    /// A packet to one of FullNAT's local addresses.
    fn local_reply(&mut self, sent: &Sent, packet: &Packet, ports: &Ports) -> Expect {
        let backend = (0..BACKENDS).find(|&n| World::backend(n) == packet.source);
        let found = backend.filter(|_| ports.source == NAT_PORT).and_then(|n| {
            let v6 = packet.source.is_ipv6();
            let key = *self
                .by_local
                .get(&(n, v6, packet.protocol, ports.destination))?;
            Some((key, *self.flows.get(&key)?))
        });
        match found {
            Some((key, flow)) => self.answered(sent, packet, ports, key, flow),
            // Below stand the ports of health checks.
            None if ports.destination < 2048 => Expect::Check,
            None if self.hides(packet.source.is_ipv6(), packet.protocol) => Expect::Skip,
            None => Expect::Drop(Untracked),
        }
    }

    /// Some flow's local port is not known.
    fn hides(&self, v6: bool, protocol: u8) -> bool {
        let hidden = |(key, flow): (&Key, &Flow)| {
            key.0.is_ipv6() == v6 && key.4 == protocol && flow.local.is_none()
        };
        self.flows.iter().any(hidden)
    }

    /// A backend's packet of a flow.
    fn answered(
        &mut self,
        sent: &Sent,
        packet: &Packet,
        ports: &Ports,
        key: Key,
        flow: Flow,
    ) -> Expect {
        if packet.protocol == 6 {
            if self.state(flow.backend) == BackendState::Removed {
                self.forget(&key);
                return match (ports.rst, packet.ttl <= 1) {
                    (false, _) => Expect::Answer(BackendGone),
                    (true, true) => Expect::Drop(TtlExpired),
                    (true, false) => Expect::Forward,
                };
            }
            let next = self.next(flow.tcp, false, ports);
            self.flows.insert(key, Flow { tcp: next, ..flow });
        }
        let long = packet.end - packet.l3 > 1500;
        if packet.ttl <= 1 {
            answer(sent, packet, TtlExpired)
        } else if long && !packet.may_cut {
            answer(sent, packet, TooBig)
        } else if long && self.dry {
            Expect::Drop(NoBuffer)
        } else {
            Expect::Forward
        }
    }

    /// A packet without a flow.
    fn open(&mut self, sent: &Sent, packet: &Packet, ports: &Ports, key: Key) -> Expect {
        if is_nobody(packet.source) || is_ours(packet.source) {
            return Expect::Drop(BadSource);
        }
        if !is_service(packet.destination, ports.destination) {
            return Expect::Pass;
        }
        if packet.ttl <= 1 {
            return answer(sent, packet, TtlExpired);
        }
        let tcp = packet.protocol == 6;
        let opens = !tcp || ports.syn && !ports.rst;
        if !opens {
            match self.untracked {
                _ if ports.rst => return Expect::Drop(Untracked),
                Unknown::Reset => return Expect::Answer(Untracked),
                Unknown::Drop => return Expect::Drop(Untracked),
                Unknown::Hash => {}
            }
        }
        if opens && self.limit != 0 && self.flows.len() >= self.limit {
            return Expect::Drop(Limit);
        }
        let fits = |n: u32| !self.is_two_way() || World::backend(n).is_ipv4() == key.0.is_ipv4();
        let up = |n: &u32| fits(*n) && self.state(*n) == BackendState::Up;
        let there = |n: &u32| fits(*n) && self.state(*n) != BackendState::Removed;
        let mut usable: Vec<u32> = (0..BACKENDS).filter(up).collect();
        if usable.is_empty() && self.when_no_backend == WhenNoBackend::UseAll {
            usable = (0..BACKENDS).filter(there).collect();
        }
        if usable.is_empty() {
            return match self.when_no_backend {
                WhenNoBackend::Drop => Expect::Drop(NoBackend),
                _ if tcp => Expect::Answer(NoBackend),
                _ => answer(sent, packet, NoBackend),
            };
        }
        if self.is_nat() {
            // The client's other flow of the same protocol, to the other port.
            let other = PORTS.iter().filter_map(|&port| {
                let key = (key.0, key.1, key.2, port, key.4);
                self.flows.get(&key).map(|flow| flow.backend)
            });
            let taken: Vec<u32> = other.collect();
            usable.retain(|n| !taken.contains(n));
            if usable.is_empty() {
                return Expect::Drop(ReplyConflict);
            }
        }
        let same_family = |local: &IpAddr| local.is_ipv4() == key.0.is_ipv4();
        if self.method == ForwardMethod::FullNat && !self.locals.iter().any(same_family) {
            return Expect::Drop(PoolExhausted);
        }
        let first = match (ports.rst, ports.syn, ports.fin) {
            _ if !tcp => Tcp::Established,
            (false, true, _) => Tcp::SynReceived,
            (_, _, true) => Tcp::Close,
            _ => Tcp::Established,
        };
        self.opened = Some(Opened {
            key,
            tcp: first,
            packet: *packet,
            usable,
        });
        Expect::New
    }
}

/// An ICMP error, where there is room in front to build it.
fn answer(sent: &Sent, packet: &Packet, reason: DropReason) -> Expect {
    let needed = if packet.source.is_ipv4() { 28 } else { 48 };
    if sent.headroom < needed {
        Expect::Drop(reason)
    } else {
        Expect::Answer(reason)
    }
}
