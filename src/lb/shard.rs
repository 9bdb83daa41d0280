//! What happens to a burst of packets on one worker, from bytes to verdicts.
//!
//! Three short passes, each asking the cache for what the next one needs: headers and hashes;
//! the tags of the buckets; the entries. A packet that finds its entry is rewritten at once; all
//! others go through [`super::admit`]. A shard belongs to one worker, and nothing in it is shared
//! but the counters, which management reads.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::arch::{Cpu, Populate};

use super::answers::{AnswerLimits, AnswerRates, to_client};
use super::conn::{Conn, From, State, flag, next_state};
use super::counters::{DropReason, WorkerCounters};
use super::flow::{Address, FlowKey, Seed, endpoint_hash, protocol};
use super::forward::{direct, nat, tunnel};
use super::fragment::Fragments;
use super::frame::Frame;
use super::fullnat::{LocalPorts, local_end};
use super::guard::Guard;
use super::look::{Burst, Kind, Look, Looks, Meets, looks};
use super::owner::Ownership;
use super::parse::{Packet, Parsed, tcp};
use super::persistence::Templates;
use super::route::Link;
use super::schedule::{Place, SchedulerState};
use super::settled::{Exits, Rest, is_settled};
use super::snapshot::{Backend, BackendId, BackendState, ForwardMethod, Snapshot};
use super::table::{ConnTable, Slot};
use super::{Arrival, MAX_BURST, Now, Outbox, Pass, Verdict, mtu};

/// How large a shard is.
#[derive(Clone, Copy, Debug)]
pub struct ShardSize {
    /// Connections this worker can track, of each family.
    pub connections_v4: usize,
    pub connections_v6: usize,
    /// Service ids are below this.
    pub services: usize,
}

/// The connection tables of both families.
pub struct Tables {
    pub v4: ConnTable<Ipv4Addr>,
    pub v6: ConnTable<Ipv6Addr>,
}

/// The table that holds a family's connections.
pub trait Tracked: Address {
    /// What plain packets of the family are.
    const REQUEST: Kind;
    const REPLY: Kind;
    /// The plain packet in a frame; `None` says nothing about it.
    fn find_plain(frame: &[u8], checksum_verified: bool) -> Option<Packet<Self>>;
    fn table(tables: &Tables) -> &ConnTable<Self>;
    fn table_mut(tables: &mut Tables) -> &mut ConnTable<Self>;
}

impl Tracked for Ipv4Addr {
    const REQUEST: Kind = Kind::V4;
    const REPLY: Kind = Kind::ReplyV4;

    #[inline(always)]
    fn find_plain(frame: &[u8], checksum_verified: bool) -> Option<Packet<Self>> {
        Packet::find_plain_v4(frame, checksum_verified)
    }
    #[inline(always)]
    fn table(tables: &Tables) -> &ConnTable<Self> {
        &tables.v4
    }
    #[inline(always)]
    fn table_mut(tables: &mut Tables) -> &mut ConnTable<Self> {
        &mut tables.v4
    }
}

impl Tracked for Ipv6Addr {
    const REQUEST: Kind = Kind::V6;
    const REPLY: Kind = Kind::ReplyV6;

    #[inline(always)]
    fn find_plain(frame: &[u8], _: bool) -> Option<Packet<Self>> {
        Packet::find_plain_v6(frame)
    }
    #[inline(always)]
    fn table(tables: &Tables) -> &ConnTable<Self> {
        &tables.v6
    }
    #[inline(always)]
    fn table_mut(tables: &mut Tables) -> &mut ConnTable<Self> {
        &mut tables.v6
    }
}

/// One worker's share of the balancer.
pub struct Shard {
    pub tables: Tables,
    pub(super) seed: Seed,
    pub(super) scheduling: SchedulerState,
    /// This worker's index.
    pub(super) worker: u8,
    pub(super) answers: AnswerLimits,
    pub counters: Arc<WorkerCounters>,
    pub fragments: Fragments,
    pub(super) local_ports: LocalPorts,
    pub(super) guard: Guard,
    pub(super) templates: Templates,
    /// The backend that [`super::admit`] chose last.
    pub(super) scheduled: Option<BackendId>,
    /// Of the burst in hand: where it came in, and the smallest MTU of all ports.
    pub(super) arrival: Arrival,
    pub(super) smallest_mtu: u16,
    /// Those that came by queues that are proven.
    pub(super) bursts: u32,
    looks: Looks,
    /// What the passes are compiled for.
    pub cpu: Cpu,
}

/// Where a packet's entry should be.
#[derive(Clone, Copy)]
struct Aim {
    hash: u64,
    meets: Meets,
}

impl Look {
    #[inline(always)]
    fn aim(&self) -> Aim {
        Aim {
            hash: self.hash,
            meets: self.meets,
        }
    }
}

impl Shard {
    /// The shard of worker `worker` of `workers`. All shards of a process share `seed`.
    pub fn new(
        size: ShardSize,
        seed: Seed,
        worker: u32,
        workers: u32,
        counters: Arc<WorkerCounters>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            tables: Tables {
                v4: ConnTable::new(size.connections_v4, seed)?,
                v6: ConnTable::new(size.connections_v6, seed)?,
            },
            seed,
            worker: worker as u8,
            answers: AnswerLimits::new(AnswerRates::default()),
            scheduling: SchedulerState::new(
                size.services,
                counters.backends.len(),
                Place { worker, workers },
                seed.0[2],
            ),
            counters,
            fragments: Fragments::new(seed),
            local_ports: LocalPorts::new(0, 1, Ownership::default(), 0)?,
            guard: Guard::default(),
            templates: Templates::new((size.connections_v4 / 4).clamp(1024, 1 << 18))?,
            scheduled: None,
            arrival: Arrival::HandOff,
            smallest_mtu: 0,
            bursts: 0,
            looks: looks(),
            cpu: Cpu::this(),
        })
    }

    /// Decides about up to [`MAX_BURST`] frames that arrived together, and rewrites those that go
    /// on. `verdicts[i]` is frame i's; what else is to be sent goes to `outbox`. Returns the port
    /// where all of them are to be transmitted by one, as they nearly always are.
    pub fn process<O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        arrival: Arrival,
        frames: &mut [O::Frame],
        verdicts: &mut [Verdict; MAX_BURST],
        outbox: &mut O,
    ) -> Option<u8> {
        self.arrival = arrival;
        self.smallest_mtu = snapshot.ports.iter().map(|p| p.mtu).min().unwrap_or(0);
        let burst = Burst::new(snapshot, arrival);
        // Out of `self` while its methods are called; no memory moves.
        let mut looks = std::mem::take(&mut self.looks);
        self.first_pass(&burst, frames, &mut looks);
        if burst.queues.is_some() && self.is_audit_due() {
            match (looks[0].kind, frames.first()) {
                (Kind::V4 | Kind::ReplyV4, Some(frame)) => {
                    self.audit::<Ipv4Addr>(&burst, frame.bytes(), &looks[0])
                }
                (Kind::V6 | Kind::ReplyV6, Some(frame)) => {
                    self.audit::<Ipv6Addr>(&burst, frame.bytes(), &looks[0])
                }
                _ => {}
            }
        }
        self.second_pass(&mut looks[..frames.len()]);
        let exits = self.third_pass(&burst, now, frames, &looks, verdicts, outbox);
        self.looks = looks;
        exits.only()
    }

    /// Third pass: runs of settled packets, and between them whatever else there is.
    #[inline(always)]
    fn third_pass<O: Outbox>(
        &mut self,
        burst: &Burst,
        now: Now,
        frames: &mut [O::Frame],
        looks: &[Look],
        verdicts: &mut [Verdict; MAX_BURST],
        outbox: &mut O,
    ) -> Exits {
        let (snapshot, count, mut exits) = (burst.snapshot, frames.len(), Exits::NONE);
        let mut rest = Rest {
            at: 0,
            frames,
            looks: &looks[..count],
            verdicts,
        };
        while rest.at < count {
            let kind = looks[rest.at].kind;
            let exits = &mut exits;
            match kind {
                Kind::V4 => self.forward_settled::<Ipv4Addr, _>(snapshot, now, &mut rest, exits),
                Kind::V6 => self.forward_settled::<Ipv6Addr, _>(snapshot, now, &mut rest, exits),
                Kind::ReplyV4 => {
                    self.return_settled::<Ipv4Addr, _>(snapshot, now, &mut rest, exits)
                }
                Kind::ReplyV6 => {
                    self.return_settled::<Ipv6Addr, _>(snapshot, now, &mut rest, exits)
                }
                _ => {}
            }
            // A packet of another kind may be settled; one of the same is not.
            let at = rest.at;
            if at < count && looks[at].kind == kind {
                let (frame, look) = (&mut rest.frames[at], &looks[at]);
                let verdict = match kind {
                    Kind::Elsewhere => Verdict::HandOff(look.hash as u8),
                    _ => self.look_up(burst, now, frame, look, outbox),
                };
                rest.verdicts[at] = verdict;
                exits.note(verdict);
                rest.at += 1;
            }
        }
        exits
    }

    /// Third pass over whatever [`Shard::forward_settled`] did not forward.
    #[inline(never)]
    fn look_up<O: Outbox>(
        &mut self,
        burst: &Burst,
        now: Now,
        frame: &mut O::Frame,
        look: &Look,
        outbox: &mut O,
    ) -> Verdict {
        match look.kind {
            Kind::V4 | Kind::ReplyV4 => {
                self.plain::<Ipv4Addr, O>(burst.snapshot, now, frame, look, outbox)
            }
            Kind::V6 | Kind::ReplyV6 => {
                self.plain::<Ipv6Addr, O>(burst.snapshot, now, frame, look, outbox)
            }
            _ => self.unusual(burst, now, frame, look, outbox),
        }
    }

    fn plain<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        look: &Look,
        outbox: &mut O,
    ) -> Verdict {
        match Packet::<A>::plain(frame.bytes(), look.length) {
            Some(packet) => self.meet(snapshot, now, frame, &packet, look.aim(), outbox),
            None => Verdict::Drop(DropReason::Truncated),
        }
    }

    /// Any frame that is not a plain packet.
    fn unusual<O: Outbox>(
        &mut self,
        burst: &Burst,
        now: Now,
        frame: &mut O::Frame,
        look: &Look,
        outbox: &mut O,
    ) -> Verdict {
        let (snapshot, arrival) = (burst.snapshot, burst.arrival);
        let parsed = burst.parse(frame);
        match parsed {
            Parsed::V4(packet) => self.meet(snapshot, now, frame, &packet, look.aim(), outbox),
            Parsed::V6(packet) => self.meet(snapshot, now, frame, &packet, look.aim(), outbox),
            Parsed::Bad(reason) => Verdict::Drop(reason),
            Parsed::FragmentV4 { .. } | Parsed::FragmentV6 { .. } => {
                self.fragment(snapshot, now, arrival, frame, &parsed, outbox)
            }
            Parsed::IcmpV4 { .. } | Parsed::IcmpV6 { .. } => {
                match self.error_elsewhere(snapshot, arrival, &parsed, frame.bytes()) {
                    Some(owner) => {
                        self.counters.handed_errors.add(1);
                        Verdict::HandOff(owner)
                    }
                    None => self.icmp(snapshot, now, frame, &parsed),
                }
            }
            Parsed::Other => Verdict::Pass(Pass::Local),
        }
    }

    /// The worker that owns a packet's flow.
    pub(super) fn flow_owner<A: Address>(&self, snapshot: &Snapshot, key: &FlowKey<A>) -> u8 {
        snapshot.side(key).owner(snapshot.ownership, key)
    }

    /// The entry that a packet belongs to, and whether it is the backend's reply.
    pub(super) fn find<A: Tracked>(
        &self,
        snapshot: &Snapshot,
        key: &FlowKey<A>,
    ) -> Option<(Slot, bool)> {
        let (hash, meets) = self.meets(snapshot.side(key), key);
        let table = A::table(&self.tables);
        match meets {
            Meets::LocalReply => self.local_reply(snapshot, hash, key).map(|s| (s, true)),
            Meets::Reply => {
                let reply = table.find(hash, |conn| is_reply(snapshot, conn, key));
                reply.map(|slot| (slot, true)).or_else(|| {
                    let hash = self.client_hash(key);
                    let slot = table.find(hash, |conn| is_request(conn, key));
                    slot.map(|slot| (slot, false))
                })
            }
            _ => {
                let slot = table.find(hash, |conn| is_request(conn, key));
                slot.map(|slot| (slot, false))
            }
        }
    }

    /// The backend of a packet's flow and whether the packet is its reply, where the flow has an
    /// entry; and the table hash of a packet from a client.
    pub(super) fn flow_of<A: Tracked>(
        &self,
        snapshot: &Snapshot,
        key: &FlowKey<A>,
    ) -> (Option<(BackendId, bool)>, u64) {
        let found = self.find(snapshot, key);
        let backend = |(slot, reply)| (A::table(&self.tables).get(slot).backend, reply);
        (found.map(backend), self.client_hash(key))
    }

    pub(super) fn client_hash<A: Address>(&self, key: &FlowKey<A>) -> u64 {
        endpoint_hash(&self.seed, key.protocol, key.source, key.source_port)
    }

    /// A packet that met no other pass: the first fragment of a datagram.
    #[inline(never)]
    pub(super) fn whole<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        outbox: &mut O,
    ) -> Verdict {
        let (hash, meets) = self.meets(snapshot.side(&packet.key), &packet.key);
        let aim = Aim { hash, meets };
        self.meet(snapshot, now, frame, packet, aim, outbox)
    }

    /// The worker to hand an ICMP error to, where it speaks of a flow of another one.
    #[cold]
    fn error_elsewhere(
        &self,
        snapshot: &Snapshot,
        arrival: Arrival,
        parsed: &Parsed,
        frame: &[u8],
    ) -> Option<u8> {
        if snapshot.ownership.workers < 2 || arrival == Arrival::HandOff {
            return None;
        }
        let owner = snapshot
            .sides
            .owner_of_error(snapshot.ownership, parsed, frame);
        owner.filter(|&owner| owner != self.worker)
    }

    /// A TCP or UDP packet meets its connection.
    fn meet<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        aim: Aim,
        outbox: &mut O,
    ) -> Verdict {
        frame.truncate(usize::from(packet.l3) + usize::from(packet.length));
        match aim.meets {
            Meets::Request => self.request(snapshot, now, frame, packet, aim.hash, outbox),
            _ => self.reply(snapshot, now, frame, packet, aim, outbox),
        }
    }

    /// A packet of a client, whatever the state of its flow.
    fn request<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        hash: u64,
        outbox: &mut O,
    ) -> Verdict {
        let found = A::table(&self.tables).find(hash, |conn| is_request(conn, &packet.key));
        match found {
            Some(slot) => self.client_packet(snapshot, now, frame, packet, slot, hash, outbox),
            None => self.admit(snapshot, now, frame, packet, hash, outbox),
        }
    }

    /// A client's packet of a tracked flow.
    #[allow(clippy::too_many_arguments)]
    fn client_packet<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        slot: Slot,
        hash: u64,
        outbox: &mut O,
    ) -> Verdict {
        let conn = A::table_mut(&mut self.tables).get_mut(slot);
        let Some(backend) = snapshot.backend(conn.backend) else {
            return self.orphaned(snapshot, now, frame, packet, slot, hash, outbox);
        };
        if conn.is_expired(now.second) || backend.state == BackendState::Removed {
            return self.stale(snapshot, now, frame, packet, slot, hash, outbox);
        }
        if !is_settled(conn, packet.tcp_flags) {
            let half = !conn.has(flag::TWO_WAY);
            if packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
                && conn.state.is_over(half)
            {
                return self.renew(snapshot, now, frame, packet, slot, hash, outbox);
            }
            self.step(snapshot, slot, From::Client, packet);
            self.clamp(snapshot, backend, frame.bytes_mut(), packet);
        }
        let conn = A::table_mut(&mut self.tables).get_mut(slot);
        conn.last_seen = now.second;
        let way = Way {
            backend,
            hash,
            local: local_end(snapshot, conn),
        };
        self.send_to_backend(snapshot, now, frame, packet, way, outbox)
    }

    fn send_to_backend<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        way: Way<A>,
        outbox: &mut O,
    ) -> Verdict {
        let verdict = to_backend(frame, packet, &way);
        if let Verdict::Drop(reason) = verdict {
            return self.undelivered(snapshot, now, frame, packet, &way, reason, outbox);
        }
        self.count_in(way.backend, packet);
        verdict
    }

    #[inline(always)]
    pub(super) fn count_in<A: Address>(&self, backend: &Backend, packet: &Packet<A>) {
        if let Some(counters) = self.counters.backends.get(backend.id.0 as usize) {
            counters.in_packets.add(1);
            counters.in_bytes.add(u64::from(packet.length));
        }
    }

    /// A packet that is not from a client to an address of ours.
    fn reply<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        aim: Aim,
        outbox: &mut O,
    ) -> Verdict {
        let key = &packet.key;
        if aim.meets == Meets::LocalReply {
            return match self.local_reply(snapshot, aim.hash, key) {
                Some(slot) => self.backend_packet(snapshot, now, frame, packet, slot, outbox),
                None => self.unknown_reply(packet),
            };
        }
        let table = A::table(&self.tables);
        if let Some(slot) = table.find(aim.hash, |conn| is_reply(snapshot, conn, key)) {
            return self.backend_packet(snapshot, now, frame, packet, slot, outbox);
        }
        // A prefix service may balance addresses that are not ours.
        self.request(snapshot, now, frame, packet, self.client_hash(key), outbox)
    }

    /// A backend's packet of a NAT flow, on its way to the client.
    fn backend_packet<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        slot: Slot,
        outbox: &mut O,
    ) -> Verdict {
        let conn = *A::table(&self.tables).get(slot);
        if conn.is_expired(now.second) {
            self.forget::<A>(slot, now);
            self.counters.expired.add(1);
            return Verdict::Drop(DropReason::Untracked);
        }
        // That the backend exists is part of the match.
        if let Some(backend) = snapshot.backend(conn.backend) {
            if backend.state == BackendState::Removed && packet.key.protocol == protocol::TCP {
                return self.orphaned_reply(snapshot, now, frame, packet, slot, outbox);
            }
            if !is_settled(&conn, packet.tcp_flags) {
                self.step(snapshot, slot, From::Backend, packet);
                self.clamp(snapshot, backend, frame.bytes_mut(), packet);
            }
        }
        A::table_mut(&mut self.tables).get_mut(slot).last_seen = now.second;
        self.send_to_client(snapshot, now, frame, packet, conn, outbox)
    }

    fn send_to_client<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        conn: Conn<A>,
        outbox: &mut O,
    ) -> Verdict {
        let verdict = if packet.length > self.smallest_mtu {
            self.long_reply(snapshot, now, frame, packet, &conn, outbox)
        } else {
            to_client(snapshot, frame, packet, &conn)
        };
        match verdict {
            Verdict::Drop(DropReason::TtlExpired) => {
                return self.expired(snapshot, now, frame, packet, conn.vip);
            }
            Verdict::Transmit(_) | Verdict::Pass(_) => {}
            _ => return verdict,
        }
        self.count_out(conn.backend, packet.length);
        verdict
    }

    #[inline(always)]
    pub(super) fn count_out(&self, backend: BackendId, length: u16) {
        if let Some(counters) = self.counters.backends.get(backend.0 as usize) {
            counters.out_packets.add(1);
            counters.out_bytes.add(u64::from(length));
        }
    }

    /// Lowers the segment size a SYN announces, where the service asks for it.
    #[cold]
    #[inline(never)]
    pub(super) fn clamp<A: Address>(
        &self,
        snapshot: &Snapshot,
        backend: &Backend,
        frame: &mut [u8],
        packet: &Packet<A>,
    ) {
        if !mtu::opens(packet) {
            return;
        }
        if let Some(service) = snapshot.service(backend.service)
            && service.mss_clamp != 0
        {
            mtu::clamp_mss(frame, packet, service.mss_clamp);
        }
    }

    /// Moves a connection's state on, and its timeout and counts with it.
    fn step<A: Tracked>(
        &mut self,
        snapshot: &Snapshot,
        slot: Slot,
        from: From,
        packet: &Packet<A>,
    ) {
        let conn = A::table_mut(&mut self.tables).get_mut(slot);
        let half = !conn.has(flag::TWO_WAY);
        let state = match packet.key.protocol {
            protocol::TCP => next_state(conn.state, from, half, packet.tcp_flags),
            _ => State::Udp,
        };
        let confirms = packet.key.protocol == protocol::UDP || state != State::SynRecv;
        if confirms && conn.has(flag::EMBRYONIC) {
            conn.flags &= !flag::EMBRYONIC;
            self.local_ports.confirmed(conn);
        }
        if state == conn.state {
            return;
        }
        if state == State::FinWait && from == From::Backend {
            conn.flags |= flag::BACKEND_CLOSED;
        }
        if state.is_over(half) {
            self.local_ports.over(conn);
        }
        conn.state = state;
        let service = snapshot
            .backend(conn.backend)
            .and_then(|b| snapshot.service(b.service));
        if let Some(service) = service {
            conn.timeout = service.timeouts.of(state);
        }
        let was_active = conn.has(flag::ACTIVE);
        if state.is_active() != was_active {
            conn.flags ^= flag::ACTIVE;
            if let Some(counters) = self.counters.backends.get(conn.backend.0 as usize) {
                let (more, less) = if was_active {
                    (&counters.inactive, &counters.active)
                } else {
                    (&counters.active, &counters.inactive)
                };
                more.add(1);
                less.subtract(1);
            }
        }
    }

    /// Removes a connection and takes it off its backend's count.
    pub(super) fn forget<A: Tracked>(&mut self, slot: Slot, now: Now) {
        let conn = A::table_mut(&mut self.tables).remove(slot);
        self.let_go(&conn, now);
    }

    /// What else a connection held goes free with its entry.
    pub(super) fn let_go<A: Address>(&mut self, conn: &Conn<A>, now: Now) {
        uncount(&self.counters, conn);
        self.local_ports.release(conn, now.second);
    }

    /// A connection that has expired or lost its backend meets a client's packet.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn stale<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        slot: Slot,
        hash: u64,
        outbox: &mut O,
    ) -> Verdict {
        if !A::table(&self.tables).get(slot).is_expired(now.second) {
            return self.orphaned(snapshot, now, frame, packet, slot, hash, outbox);
        }
        self.counters.expired.add(1);
        self.renew(snapshot, now, frame, packet, slot, hash, outbox)
    }

    /// A connection is over: the packet is judged as if there were none.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn renew<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        slot: Slot,
        hash: u64,
        outbox: &mut O,
    ) -> Verdict {
        self.forget::<A>(slot, now);
        self.admit(snapshot, now, frame, packet, hash, outbox)
    }

    /// The memory for persistence, which is needed once a service has it.
    pub fn template_memory(&self) -> Populate {
        self.templates.populate()
    }

    /// Buckets in use of the larger table.
    pub fn buckets(&self) -> usize {
        self.tables.v4.buckets().max(self.tables.v6.buckets())
    }

    /// Looks for expired entries in the next `buckets` buckets of each table.
    pub fn sweep(&mut self, now: Now, buckets: usize) {
        let (counters, ports) = (&self.counters, &mut self.local_ports);
        let age = self.guard.embryo_age(now);
        counters.guard_up.set(self.guard.is_up(now).into());
        let buckets = match self.guard.is_up(now) {
            true => buckets * 4,
            false => buckets,
        };
        self.tables.v4.sweep(now.second, age, buckets, |conn| {
            counters.expired.add(1);
            uncount(counters, &conn);
            ports.release(&conn, now.second);
        });
        self.tables.v6.sweep(now.second, age, buckets, |conn| {
            counters.expired.add(1);
            uncount(counters, &conn);
            ports.release(&conn, now.second);
        });
        self.tables
            .v4
            .shrink(|conn, slot| ports.settled(conn, slot));
        self.tables
            .v6
            .shrink(|conn, slot| ports.settled(conn, slot));
        counters.table_v4.set(self.tables.v4.len() as u64);
        counters.table_v6.set(self.tables.v6.len() as u64);
        counters.local_ports.set(ports.usage().0);
        counters.local_ports_fullest.set(ports.survey());
    }
}

pub(super) fn uncount<A: Address>(counters: &WorkerCounters, conn: &Conn<A>) {
    if let Some(backend) = counters.backends.get(conn.backend.0 as usize) {
        let gauge = if conn.has(flag::ACTIVE) {
            &backend.active
        } else {
            &backend.inactive
        };
        gauge.subtract(1);
    }
}

#[inline(always)]
pub(super) fn is_request<A: Address>(conn: &Conn<A>, key: &FlowKey<A>) -> bool {
    conn.client == key.source
        && conn.vip == key.destination
        && conn.client_port == key.source_port
        && conn.vip_port == key.destination_port
        && conn.protocol == key.protocol
}

/// Whether a packet is a NAT backend's answer in this connection.
#[inline(always)]
pub(super) fn is_reply<A: Address>(snapshot: &Snapshot, conn: &Conn<A>, key: &FlowKey<A>) -> bool {
    conn.client == key.destination
        && conn.client_port == key.destination_port
        && conn.protocol == key.protocol
        && conn.flags & (flag::TWO_WAY | flag::FULL_NAT) == flag::TWO_WAY
        && snapshot.backend(conn.backend).is_some_and(|backend| {
            backend.address == key.source.into()
                && key.source_port == backend_port(backend, conn.vip_port)
        })
}

/// The port at which a NAT backend serves what clients send to `port`.
#[inline(always)]
pub(super) fn backend_port(backend: &Backend, port: u16) -> u16 {
    if backend.port == 0 {
        port
    } else {
        backend.port
    }
}

/// How a client's packet reaches its backend.
#[derive(Clone, Copy)]
pub(super) struct Way<'s, A> {
    pub backend: &'s Backend,
    /// Of the client's endpoint; tunnels spread their flows by it.
    pub hash: u64,
    /// FullNAT: what becomes of the source.
    pub local: Option<nat::Endpoint<A>>,
}

/// Rewrites a packet for its backend and says where it leaves.
#[inline(always)]
pub(super) fn to_backend<A: Address, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    way: &Way<A>,
) -> Verdict {
    let backend = way.backend;
    let Some(link) = &backend.link else {
        return Verdict::Drop(DropReason::NoNeighbour);
    };
    if packet.length > backend.mtu {
        return Verdict::Drop(DropReason::TooBig);
    }
    match rewrite(frame, packet, way, link) {
        Ok(()) => Verdict::Transmit(link.port),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Rewrites a packet that fits for its backend.
#[inline(always)]
pub(super) fn rewrite<A: Address, F: Frame>(
    frame: &mut F,
    packet: &Packet<A>,
    way: &Way<A>,
    link: &Link,
) -> Result<(), DropReason> {
    let backend = way.backend;
    match backend.method {
        ForwardMethod::DirectRouting => direct::forward(frame.bytes_mut(), packet, link),
        ForwardMethod::Tunnel => tunnel::forward(frame, packet, link, backend, way.hash),
        ForwardMethod::Nat | ForwardMethod::FullNat => to_nat(frame.bytes_mut(), packet, way, link),
    }
}

#[inline(always)]
fn to_nat<A: Address>(
    frame: &mut [u8],
    packet: &Packet<A>,
    way: &Way<A>,
    link: &Link,
) -> Result<(), DropReason> {
    let backend = way.backend;
    let Some(address) = A::from_ip(backend.address) else {
        return Err(DropReason::MalformedIp);
    };
    let port = backend_port(backend, packet.key.destination_port);
    let destination = nat::Endpoint { address, port };
    match (backend.method, way.local) {
        (ForwardMethod::FullNat, Some(local)) => {
            nat::rewrite_both(frame, packet, local, destination)?;
        }
        (ForwardMethod::FullNat, None) => return Err(DropReason::PoolExhausted),
        _ => nat::rewrite_destination(frame, packet, destination)?,
    }
    super::forward::write_macs(frame, link);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::fixture::{Lab, TestOutbox, VIP, backend_mac, tcp4};
    use crate::lb::frame::MemoryFrame;
    use crate::lb::snapshot::Scheduler;

    #[test]
    fn a_burst_gets_a_verdict_for_every_frame_in_order() {
        let lab = Lab::new(Scheduler::RoundRobin, &[1, 1]);
        let counters = Arc::new(WorkerCounters::new(2));
        let size = ShardSize {
            connections_v4: 100,
            connections_v6: 100,
            services: 1,
        };
        let mut shard = Shard::new(size, Seed([1, 3, 5]), 0, 1, counters.clone()).expect("memory");
        let syn = |port: u16| tcp4(&format!("10.0.0.1:{port}"), VIP).flags(tcp::SYN);
        let mut frames = [
            MemoryFrame::new(&syn(1).frame()),
            MemoryFrame::new(&syn(2).ttl(1).frame()),
            MemoryFrame::new(&syn(3).frame()),
            MemoryFrame::new(&[0; 60]),
        ];
        let mut verdicts = [Verdict::Pass(Pass::Resolve); MAX_BURST];
        let mut outbox = TestOutbox::default();
        let now = Now::from_nanos(1_000_000_000);
        shard.process(
            &lab.snapshot,
            now,
            Arrival::Port(0),
            &mut frames,
            &mut verdicts,
            &mut outbox,
        );
        assert_eq!(verdicts[0], Verdict::Transmit(0));
        assert_eq!(frames[0].bytes()[..6], backend_mac(0));
        assert_eq!(
            verdicts[1],
            Verdict::Reply {
                port: 0,
                reason: DropReason::TtlExpired
            }
        );
        assert_eq!(verdicts[2], Verdict::Transmit(0));
        assert_eq!(verdicts[3], Verdict::Drop(DropReason::ForeignMac));
        assert_eq!(
            verdicts[4],
            Verdict::Pass(Pass::Resolve),
            "beyond the burst"
        );
        assert!(outbox.sent.is_empty());
    }
}
