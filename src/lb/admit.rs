//! A packet without a connection: is it for a service, may it open one, and at which backend?
//! The slow path of [`super::shard`]; still no allocation and no lock.

use super::conn::{Conn, State, flag};
use super::counters::DropReason;
use super::flow::protocol;
use super::forward::nat;
use super::frame::Frame;
use super::maglev::stable_hash;
use super::parse::{Packet, tcp};
use super::shard::{Shard, Tracked, to_backend, uncount};
use super::snapshot::{Backend, BackendState, Service, Snapshot, Untracked, WhenNoBackend};
use super::table::{Full, Slot};
use super::{Now, Pass, Verdict};

impl Shard {
    #[cold]
    #[inline(never)]
    pub(super) fn admit<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        packet: &Packet<A>,
        hash: u64,
    ) -> Verdict {
        let key = &packet.key;
        if key.source.is_invalid_source() || snapshot.own.contains(&key.source.into()) {
            return Verdict::Drop(DropReason::BadSource);
        }
        let found =
            snapshot
                .service_map
                .find(key.protocol, key.destination.into(), key.destination_port);
        let Some(service) = found.and_then(|id| snapshot.service(id)) else {
            return Verdict::Pass(Pass::Local);
        };
        let opens =
            key.protocol == protocol::UDP || packet.tcp_flags & (tcp::SYN | tcp::RST) == tcp::SYN;
        if !opens && (packet.tcp_flags & tcp::RST != 0 || !takes_untracked(service)) {
            return Verdict::Drop(DropReason::Untracked);
        }
        let Some(backend) = self.choose(snapshot, service, packet, hash) else {
            return Verdict::Drop(DropReason::NoBackend);
        };
        let conn = new_conn(service, backend, packet, now);
        match A::table_mut(&mut self.tables).insert(hash, conn) {
            Ok(inserted) => {
                if let Some(evicted) = inserted.evicted {
                    self.counters.evicted.add(1);
                    uncount(&self.counters, &evicted);
                }
                self.count_new(&conn);
            }
            // Without an entry only a one-way flow under a hash still finds its backend.
            Err(Full) if !service.method.is_two_way() && service.scheduler.is_hash() => {
                self.counters.stateless.add(1);
            }
            Err(Full) => return Verdict::Drop(DropReason::TableFull),
        }
        let verdict = to_backend(frame, packet, backend);
        if let (Verdict::Transmit(_), Some(counters)) =
            (verdict, self.counters.backends.get(backend.id.0 as usize))
        {
            counters.in_packets.add(1);
            counters.in_bytes.add(u64::from(packet.length));
        }
        verdict
    }

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

    /// The backend for a new flow. Under NAT two flows of one client endpoint must not share a
    /// backend endpoint, or its replies could belong to either.
    fn choose<'s, A: Tracked>(
        &mut self,
        snapshot: &'s Snapshot,
        service: &Service,
        packet: &Packet<A>,
        hash: u64,
    ) -> Option<&'s Backend> {
        let key = &packet.key;
        let port = if service.hash_port {
            key.source_port
        } else {
            0
        };
        let client = stable_hash(key.source, port);
        let tables = &self.tables;
        let distinct = |backend: &Backend| {
            if !service.method.is_two_way() {
                return true;
            }
            let port = if backend.port == 0 {
                key.destination_port
            } else {
                backend.port
            };
            let Some(address) = A::from_ip(backend.address) else {
                return false;
            };
            let end = nat::Endpoint { address, port };
            reply_owner::<A>(A::table(tables), snapshot, packet, hash, end).is_none()
        };
        let found = self.scheduling.pick(snapshot, service, client, |backend| {
            backend.is_eligible() && distinct(backend)
        });
        if found.is_some() || service.when_no_backend != WhenNoBackend::UseAll {
            return found;
        }
        self.scheduling.pick(snapshot, service, client, |backend| {
            backend.state != BackendState::Removed && backend.weight > 0 && distinct(backend)
        })
    }
}

/// The entry whose replies from `end` would look like those of this packet's flow.
fn reply_owner<A: Tracked>(
    table: &super::table::ConnTable<A>,
    snapshot: &Snapshot,
    packet: &Packet<A>,
    hash: u64,
    end: nat::Endpoint<A>,
) -> Option<Slot> {
    let key = &packet.key;
    let reply = super::flow::FlowKey {
        source: end.address,
        destination: key.source,
        source_port: end.port,
        destination_port: key.source_port,
        protocol: key.protocol,
    };
    table.find(hash, |conn| super::shard::is_reply(snapshot, conn, &reply))
}

fn takes_untracked(service: &Service) -> bool {
    service.untracked == Untracked::Hash || service.scheduler.is_hash()
}

fn new_conn<A: Tracked>(
    service: &Service,
    backend: &Backend,
    packet: &Packet<A>,
    now: Now,
) -> Conn<A> {
    let state = match packet.key.protocol {
        protocol::UDP => State::Udp,
        _ if packet.tcp_flags & tcp::SYN != 0 => State::SynRecv,
        _ => State::Established,
    };
    let embryonic = if state == State::Established {
        0
    } else {
        flag::EMBRYONIC
    };
    let two_way = if service.method.is_two_way() {
        flag::TWO_WAY
    } else {
        0
    };
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
        flags: embryonic | two_way | active,
        group: 0,
        local_port: 0,
        local_address: 0,
        local_index: 0,
        pad: A::Pad::default(),
    }
}
