//! A packet without a connection: is it for a service, may it open one, and at which backend?
//! The slow path of [`super::shard`]; still no allocation and no lock.

use super::choose::opens;
use super::conn::{Conn, From, State, flag, next_state};
use super::counters::DropReason;
use super::flow::{FlowKey, protocol};
use super::forward::nat;
use super::forward::{Way, to_backend};
use super::frame::{Frame, Note};
use super::fullnat::local_end;
use super::parse::{Packet, tcp};
use super::persistence::{self, ASK, Key};
use super::service_map::Found;
use super::shard::Shard;
use super::snapshot::{Backend, ForwardMethod, Service, Snapshot, Untracked};
use super::table::{Full, Inserted};
use super::tracked::Tracked;
use super::{Arrival, Now, Outbox, Pass, Verdict, icmp};

impl Shard {
    #[inline(never)]
    pub(super) fn admit<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        packet: &Packet<A>,
        hash: u64,
        outbox: &mut O,
    ) -> Verdict {
        let key = &packet.key;
        if snapshot.is_check(key.destination) {
            return Verdict::Pass(Pass::Check);
        }
        if key.source.is_invalid_source() || snapshot.own.contains(key.source.into()) {
            return Verdict::Drop(DropReason::BadSource);
        }
        let found = self.find_service(snapshot, key);
        let Some((found, service)) = found.and_then(|f| Some((f, snapshot.service(f.id)?))) else {
            self.ask_client(snapshot, now, frame, packet, outbox);
            return Verdict::Pass(Pass::Local);
        };
        // A prefix may take in addresses of ours that are nobody's VIP: probes get answers there.
        let destination = key.destination.into();
        let is_ours = || snapshot.own.contains(destination);
        if found.by_prefix && is_ours() && !snapshot.service_map.is_vip(destination) {
            return Verdict::Pass(Pass::Local);
        }
        if icmp::ttl::<A>(&frame.bytes()[usize::from(packet.l3)..]) <= 1 {
            return self.expired(snapshot, now, frame, packet, key.destination);
        }
        let one_way = !service.method.is_two_way();
        let note = match self.arrival {
            Arrival::HandOff => match frame.note() {
                Note::Word(word) => word,
                Note::Sight { .. } => 0,
            },
            Arrival::Port(_) => 0,
        };
        // Under a flood a flow goes by the hash alone.
        let hashed = note == 0 && one_way && self.guard.is_up(now);
        let client = match &service.persistence {
            Some(persistence) if !hashed => Some(Key::new(persistence, key.source, &self.seed)),
            // The service has lost its persistence while the packet was on its way.
            None if note == ASK => {
                self.counters.handed_persistent.add(1);
                frame.set_note(Note::NONE);
                return Verdict::HandOff(self.flow_owner(snapshot, key));
            }
            _ => None,
        };
        // What is asked for was let in by the worker that asks.
        if !opens(packet) && note != ASK {
            let reason = DropReason::Untracked;
            match service.untracked {
                _ if packet.tcp_flags & tcp::RST != 0 => return Verdict::Drop(reason),
                Untracked::Hash => {}
                _ if one_way && self.guard.is_lenient(now) => {}
                Untracked::Reset => return self.reset(snapshot, now, frame, packet, reason),
                Untracked::Drop => return Verdict::Drop(reason),
            }
        }
        if let Some(client) = client
            && let Some(verdict) =
                self.refer(snapshot, service, packet, now, hash, client, note, frame)
        {
            return verdict;
        }
        let gauges = &self.counters.backends;
        if opens(packet) && !self.scheduling.admit(service, gauges, now) {
            return Verdict::Drop(DropReason::Limit);
        }
        let flood = self.flood(snapshot, service, packet, now);
        let found = match client.filter(|_| flood == Flood::None) {
            Some(client) => self.stay(snapshot, service, packet, now, hash, client, note),
            None => self.choose(snapshot, service, packet, now, hash, flood),
        };
        let backend = match found {
            Ok(backend) => backend,
            Err(reason) => return self.no_backend(snapshot, now, frame, packet, service, reason),
        };
        let tracked = match flood {
            Flood::Stateless => {
                self.counters.stateless.add(1);
                Ok(None)
            }
            _ => self.track(snapshot, service, backend, packet, now, hash),
        };
        let local = match tracked {
            Ok(local) => local,
            Err(reason) => return Verdict::Drop(reason),
        };
        self.scheduled = Some(backend.id);
        self.clamp(snapshot, backend, frame.bytes_mut(), packet);
        let way = Way {
            backend,
            hash,
            local,
        };
        let verdict = to_backend(frame, packet, &way);
        if let Verdict::Drop(reason) = verdict {
            return self.undelivered(snapshot, now, frame, packet, &way, reason, outbox);
        }
        self.count_in(backend, packet);
        verdict
    }

    /// The service that a packet without an entry is for: mostly the same as that of the one before.
    #[inline(always)]
    fn find_service<A: Tracked>(&mut self, snapshot: &Snapshot, key: &FlowKey<A>) -> Option<Found> {
        let asked = Asked::of(key);
        if let Some((last, found)) = self.asked
            && last == asked
        {
            return Some(found);
        }
        let map = &snapshot.service_map;
        let found = map.find(key.protocol, key.destination.into(), key.destination_port);
        self.asked = found.map(|found| (asked, found));
        found
    }

    /// What the guard makes of a packet without an entry.
    #[inline(always)]
    fn flood<A: Tracked>(
        &mut self,
        snapshot: &Snapshot,
        service: &Service,
        packet: &Packet<A>,
        now: Now,
    ) -> Flood {
        // It never makes an entry: however many come, the table is in no danger.
        if is_one_packet(service, packet) {
            return Flood::None;
        }
        let is_full = A::table(&self.tables).is_nearly_full();
        let is_up = self.guard.meet(now, snapshot.flood_guard, is_full);
        let is_udp = packet.key.protocol == protocol::UDP;
        if service.method.is_two_way() {
            return Flood::None;
        }
        if !is_up {
            // A UDP flow may have begun without an entry, and must not move now; where clients
            // persist, that goes first.
            let timeout = service.timeouts.of(State::Udp);
            let may_be_old = is_udp && service.persistence.is_none();
            return match may_be_old && self.guard.was_up(now, timeout) {
                true => Flood::Hashed,
                false => Flood::None,
            };
        }
        let may_wait = match is_udp {
            true => is_full,
            false => opens(packet),
        };
        match !may_wait && self.guard.grants_entry(now) {
            true => Flood::Hashed,
            false => Flood::Stateless,
        }
    }

    /// Persistence among several workers: the packet goes to the worker that has the client's
    /// template, or with what that one chose to the flow's owner. `None` where it stays here.
    #[allow(clippy::too_many_arguments)]
    fn refer<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        service: &Service,
        packet: &Packet<A>,
        now: Now,
        hash: u64,
        key: Key,
        note: u32,
        frame: &mut F,
    ) -> Option<Verdict> {
        let owner = key.owner(snapshot.ownership.workers);
        if note == ASK {
            let found = self.stay(snapshot, service, packet, now, hash, key, 0);
            return Some(match found {
                Ok(backend) => {
                    self.counters.handed_persistent.add(1);
                    frame.set_note(Note::Word(persistence::chosen(backend.id)));
                    Verdict::HandOff(self.flow_owner(snapshot, &packet.key))
                }
                Err(reason) => self.no_backend(snapshot, now, frame, packet, service, reason),
            });
        }
        if note != 0 || owner == self.worker || snapshot.ownership.workers < 2 {
            return None;
        }
        self.counters.handed_persistent.add(1);
        frame.set_note(Note::Word(ASK));
        Some(Verdict::HandOff(owner))
    }

    /// Makes the entry of a new flow, and gives it a local port under FullNAT.
    #[inline(always)]
    fn track<A: Tracked>(
        &mut self,
        snapshot: &Snapshot,
        service: &Service,
        backend: &Backend,
        packet: &Packet<A>,
        now: Now,
        hash: u64,
    ) -> Result<Option<nat::Endpoint<A>>, DropReason> {
        let fullnat = backend.method == ForwardMethod::FullNat;
        if is_one_packet(service, packet) {
            self.counters.stateless.add(1);
            return Ok(None);
        }
        let mut conn = new_conn(service, backend, packet, now);
        if conn.state == State::Established && self.guard.is_up(now) {
            // Somebody floods us, maybe with these: not established before its next packet.
            conn.state = State::SynRecv;
            conn.flags = conn.flags & !flag::ACTIVE | flag::EMBRYONIC;
        }
        let mut leased = None;
        if fullnat {
            let lease = self.lease(snapshot, service, backend, packet, hash, now)?;
            lease.write(&mut conn);
            leased = Some(lease);
        }
        let ports = &mut self.local_ports;
        let moved = |conn: &Conn<A>, slot| ports.settled(conn, slot);
        match A::table_mut(&mut self.tables).insert(hash, conn, moved) {
            Ok(inserted) => {
                self.opened.add(hash);
                self.settle(&conn, &inserted, now);
                self.count_new(&conn);
            }
            Err(Full) => {
                if let Some(lease) = leased {
                    self.local_ports.give_back(lease);
                }
                // Without an entry only a one-way flow that goes by the hash finds its backend.
                let flood = self.guard.is_up(now);
                let hashed = flood || service.scheduler.is_hash() || !opens(packet);
                if service.method.is_two_way() || !hashed {
                    return Err(DropReason::TableFull);
                }
                self.counters.stateless.add(1);
            }
        }
        Ok(local_end(snapshot, &conn))
    }

    /// What an insert evicted is made good.
    #[inline(always)]
    fn settle<A: Tracked>(&mut self, conn: &Conn<A>, inserted: &Inserted<A>, now: Now) {
        if let Some(evicted) = inserted.evicted {
            self.counters.evicted.add(1);
            self.let_go(&evicted, now);
        }
        self.local_ports.settled(conn, inserted.slot);
    }

    #[inline(always)]
    fn count_new<A: Tracked>(&self, conn: &Conn<A>) {
        self.counters.new_connections.add(1);
        if let Some(backend) = self.counters.backends.get(conn.backend.0 as usize) {
            backend.connections.add(1);
            let gauge = if conn.has(flag::ACTIVE) {
                &backend.active
            } else {
                &backend.inactive
            };
            gauge.add(1);
        }
    }
}

/// Where a packet goes: address, port, protocol, and the length of its family's header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked(u64, u64, u64);

impl Asked {
    #[inline(always)]
    fn of<A: Tracked>(key: &FlowKey<A>) -> Self {
        let (high, low) = key.destination.words();
        let port = u64::from(key.destination_port) << 16 | u64::from(key.protocol) << 8;
        Self(high, low, port | A::HEADER as u64)
    }
}

/// Which keys got an entry since the second pass looked: a bit for each, and perhaps for others.
#[derive(Clone, Copy, Default)]
pub(super) struct Opened([u64; 4]);

impl Opened {
    #[inline(always)]
    fn add(&mut self, hash: u64) {
        self.0[(hash >> 62) as usize] |= Self::bit(hash);
    }

    #[inline(always)]
    pub fn may_have(&self, hash: u64) -> bool {
        self.0[(hash >> 62) as usize] & Self::bit(hash) != 0
    }

    #[inline(always)]
    fn bit(hash: u64) -> u64 {
        1 << (hash >> 56 & 63)
    }
}

/// How a packet without an entry is treated for the sake of the flood guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flood {
    /// As ever.
    None,
    /// By the consistent hash, as the flow's earlier packets may have gone.
    Hashed,
    /// By the consistent hash, and without an entry.
    Stateless,
}

/// Whether this packet is scheduled for itself alone. FullNAT needs its entry for the answer.
#[inline(always)]
fn is_one_packet<A: Tracked>(service: &Service, packet: &Packet<A>) -> bool {
    service.one_packet
        && packet.key.protocol == protocol::UDP
        && service.method != ForwardMethod::FullNat
}

#[inline(always)]
fn new_conn<A: Tracked>(
    service: &Service,
    backend: &Backend,
    packet: &Packet<A>,
    now: Now,
) -> Conn<A> {
    let half = !service.method.is_two_way();
    let state = match packet.key.protocol {
        protocol::UDP => State::Udp,
        _ => match next_state(State::None, From::Client, half, packet.tcp_flags) {
            State::None => State::Established,
            state => state,
        },
    };
    let embryonic = match state {
        State::SynRecv | State::Udp => flag::EMBRYONIC,
        _ => 0,
    };
    let two_way = if half { 0 } else { flag::TWO_WAY };
    let active = if state.is_active() { flag::ACTIVE } else { 0 };
    Conn {
        client: packet.key.source,
        vip: packet.key.destination,
        client_port: packet.key.source_port,
        vip_port: packet.key.destination_port,
        backend: backend.id,
        last_seen: now.second,
        timeout: service.timeouts.of(state),
        protocol: packet.key.protocol,
        state,
        flags: embryonic | two_way | active | flag::eighth(now),
        group: 0,
        local_port: 0,
        local_address: 0,
        local_index: 0,
        pad: A::Pad::default(),
    }
}
