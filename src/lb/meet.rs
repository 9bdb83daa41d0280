//! A TCP or UDP packet meets its connection, one step after the other: whatever the state of the flow,
//! and whatever changes in it. Packets in whose flow nothing changes go by [`super::settled`]. Runs on
//! workers.

use super::answers::to_client;
use super::conn::{Conn, From, State, flag, next_state};
use super::counters::{DropReason, WorkerCounters};
use super::flow::{Address, FlowKey, protocol};
use super::forward::{Way, backend_port, to_backend};
use super::frame::Frame;
use super::fullnat::local_end;
use super::looks::{Aim, Meets};
use super::parse::{Packet, tcp};
use super::settled::is_settled;
use super::shard::Shard;
use super::snapshot::{Backend, BackendId, BackendState, Snapshot};
use super::table::Slot;
use super::tracked::Tracked;
use super::{Now, Outbox, Verdict, mtu};

impl Shard {
    /// A TCP or UDP packet meets its connection.
    #[inline(always)]
    pub(super) fn meet<A: Tracked, O: Outbox>(
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
            Meets::Request => self.request(snapshot, now, frame, packet, aim, outbox),
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
        Aim { hash, slot, .. }: Aim,
        outbox: &mut O,
    ) -> Verdict {
        let table = A::table(&self.tables);
        let is_it = |conn: &Conn<A>| is_request(conn, &packet.key);
        // It may be gone since, or another's.
        let seen = table.try_get(slot).filter(|conn| conn.state != State::None);
        let found = match seen.is_some_and(is_it) {
            true => Some(slot),
            false if slot == Slot::ABSENT && !self.opened.may_have(hash) => None,
            false => table.find(hash, is_it),
        };
        if let Some(slot) = found
            && let Some(verdict) =
                self.client_packet(snapshot, now, frame, packet, slot, hash, outbox)
        {
            return verdict;
        }
        self.admit(snapshot, now, frame, packet, hash, outbox)
    }

    /// A client's packet of a tracked flow; `None` where the connection was over and is forgotten now,
    /// so that the packet is judged as if there had been none.
    #[inline(always)]
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
    ) -> Option<Verdict> {
        let conn = A::table_mut(&mut self.tables).get_mut(slot);
        let Some(backend) = snapshot.backend(conn.backend) else {
            return Some(self.orphaned(snapshot, now, frame, packet, slot, hash, outbox));
        };
        if conn.is_expired(now.second) {
            self.counters.expired.add(1);
            self.forget::<A>(slot, now);
            return None;
        }
        if backend.state == BackendState::Removed {
            return Some(self.orphaned(snapshot, now, frame, packet, slot, hash, outbox));
        }
        if !is_settled(conn, packet.tcp_flags) {
            let half = !conn.has(flag::TWO_WAY);
            if packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
                && conn.state.is_over(half)
            {
                self.forget::<A>(slot, now);
                return None;
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
        Some(self.send_to_backend(snapshot, now, frame, packet, way, outbox))
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
        let aim = Aim {
            hash: self.client_hash(key),
            slot: Slot::NONE,
            meets: Meets::Request,
        };
        self.request(snapshot, now, frame, packet, aim, outbox)
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
    #[inline(always)]
    pub(super) fn clamp<A: Address>(
        &self,
        snapshot: &Snapshot,
        backend: &Backend,
        frame: &mut [u8],
        packet: &Packet<A>,
    ) {
        if mtu::opens(packet)
            && let Some(service) = snapshot.service(backend.service)
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
    #[inline(always)]
    pub(super) fn forget<A: Tracked>(&mut self, slot: Slot, now: Now) {
        let conn = A::table_mut(&mut self.tables).remove(slot);
        self.let_go(&conn, now);
    }

    /// What else a connection held goes free with its entry.
    pub(super) fn let_go<A: Address>(&mut self, conn: &Conn<A>, now: Now) {
        uncount(&self.counters, conn);
        self.local_ports.release(conn, now.second);
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
