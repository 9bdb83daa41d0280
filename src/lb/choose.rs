//! At which backend a new flow begins: the one that its client stays with, or one that the scheduler
//! picks, or that the consistent hash finds again.

use super::counters::DropReason;
use super::flow::{FlowKey, protocol};
use super::forward::{backend_port, nat};
use super::parse::{Packet, tcp};
use super::persistence::{self, Key};
use super::schedule::{Candidates, Request, by_hash};
use super::shard::Shard;
use super::snapshot::{Backend, BackendState, ForwardMethod, Service, Snapshot, WhenNoBackend};
use super::table::{ConnTable, Slot};
use super::tracked::Tracked;
use super::{Now, admit::Flood, meet};

impl Shard {
    /// The backend that the client stays with: the one that `note` names, or that its template
    /// does, or from now on a new one.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn stay<'s, A: Tracked>(
        &mut self,
        snapshot: &'s Snapshot,
        service: &Service,
        packet: &Packet<A>,
        now: Now,
        hash: u64,
        key: Key,
        note: u32,
    ) -> Result<&'s Backend, DropReason> {
        let fits = |b: &Backend| !service.method.is_two_way() || A::from_ip(b.address).is_some();
        if let Some(backend) = persistence::named(note).and_then(|id| snapshot.backend(id))
            && backend.service == service.id
            && backend.state != BackendState::Removed
        {
            return match self.is_distinct(snapshot, service, packet, hash, backend) {
                true => Ok(backend),
                false => Err(DropReason::ReplyConflict),
            };
        }
        let candidates = Candidates {
            snapshot,
            ids: &service.backends,
        };
        let (scheduling, gauges) = (&self.scheduling, &self.counters.backends);
        let can_take = |b: &Backend| b.is_eligible() && fits(b) && !scheduling.is_full(b, gauges);
        if let Some(backend) = self.templates.find(&key, now, &candidates, can_take) {
            return match self.is_distinct(snapshot, service, packet, hash, backend) {
                true => Ok(backend),
                false => Err(DropReason::ReplyConflict),
            };
        }
        let backend = self.choose(snapshot, service, packet, now, hash, Flood::None)?;
        let timeout = service.persistence.map_or(0, |p| p.timeout);
        let spare = self.guard.is_up(now);
        self.templates.learn(key, timeout, backend, now, spare);
        Ok(backend)
    }

    /// Under NAT two flows of one client endpoint must not share a backend endpoint.
    fn is_distinct<A: Tracked>(
        &self,
        snapshot: &Snapshot,
        service: &Service,
        packet: &Packet<A>,
        hash: u64,
        backend: &Backend,
    ) -> bool {
        is_distinct(
            A::table(&self.tables),
            snapshot,
            service,
            packet,
            hash,
            backend,
        )
    }

    /// The backend for a new flow. Under NAT two flows of one client endpoint must not share a
    /// backend endpoint, or its replies could belong to either.
    pub(super) fn choose<'s, A: Tracked>(
        &mut self,
        snapshot: &'s Snapshot,
        service: &Service,
        packet: &Packet<A>,
        now: Now,
        hash: u64,
        flood: Flood,
    ) -> Result<&'s Backend, DropReason> {
        let key = &packet.key;
        let request = Request::new(
            service,
            key.source,
            key.source_port,
            key.destination,
            now.second,
        );
        // NAT does not change a packet's family.
        let two_way = service.method.is_two_way();
        let fits = |b: &Backend| !two_way || A::from_ip(b.address).is_some();
        let eligible = |b: &Backend| b.is_eligible() && fits(b);
        let tables = &self.tables;
        let distinct = |backend: &Backend| {
            is_distinct(A::table(tables), snapshot, service, packet, hash, backend)
        };
        let candidates = Candidates {
            snapshot,
            ids: &service.backends,
        };
        let is_normal = match two_way {
            true => candidates.iter().any(eligible),
            false => service.weights.heaviest() > 0,
        };
        let found = if is_normal && opens(packet) && flood == Flood::None {
            let gauges = &self.counters.backends;
            let can_take = |backend: &Backend| eligible(backend) && distinct(backend);
            self.scheduling
                .pick(snapshot, service, &request, gauges, can_take)
        } else {
            let any = |b: &Backend| b.state != BackendState::Removed && b.weight > 0 && fits(b);
            let usable: &dyn Fn(&Backend) -> bool = match service.when_no_backend {
                _ if is_normal => &eligible,
                WhenNoBackend::UseAll => &any,
                _ => return Err(DropReason::NoBackend),
            };
            let can_take = |backend: &Backend| usable(backend) && distinct(backend);
            // Whatever schedules new flows, one under way can be found again by hash alone; and
            // where nobody is well there is nothing to schedule by.
            by_hash(
                service,
                &candidates,
                request.hash(service.scheduler),
                can_take,
            )
        };
        found.ok_or_else(|| self.why_nobody(snapshot, service, packet, hash, is_normal))
    }

    /// Why no backend takes a new flow although some could be scheduled.
    #[cold]
    fn why_nobody<A: Tracked>(
        &self,
        snapshot: &Snapshot,
        service: &Service,
        packet: &Packet<A>,
        hash: u64,
        is_normal: bool,
    ) -> DropReason {
        let fits = |b: &Backend| !service.method.is_two_way() || A::from_ip(b.address).is_some();
        let usable = |b: &&Backend| match is_normal {
            true => b.is_eligible() && fits(b),
            false => b.state != BackendState::Removed && b.weight > 0 && fits(b),
        };
        let candidates = Candidates {
            snapshot,
            ids: &service.backends,
        };
        let usable = || candidates.iter().filter(usable);
        let distinct = |b: &Backend| self.is_distinct(snapshot, service, packet, hash, b);
        if !usable().all(distinct) {
            return DropReason::ReplyConflict;
        }
        let gauges = &self.counters.backends;
        match usable().any(|b| self.scheduling.is_full(b, gauges)) {
            true => DropReason::Limit,
            false => DropReason::NoBackend,
        }
    }
}

/// Whether the backend's replies to this flow would look like no other flow's.
#[inline(always)]
fn is_distinct<A: Tracked>(
    table: &ConnTable<A>,
    snapshot: &Snapshot,
    service: &Service,
    packet: &Packet<A>,
    hash: u64,
    backend: &Backend,
) -> bool {
    // Under FullNAT no two flows share a local port toward one backend.
    service.method != ForwardMethod::Nat || has_no_twin(table, snapshot, packet, hash, backend)
}

#[inline(never)]
fn has_no_twin<A: Tracked>(
    table: &ConnTable<A>,
    snapshot: &Snapshot,
    packet: &Packet<A>,
    hash: u64,
    backend: &Backend,
) -> bool {
    let port = backend_port(backend, packet.key.destination_port);
    let Some(address) = A::from_ip(backend.address) else {
        return false;
    };
    let end = nat::Endpoint { address, port };
    reply_owner::<A>(table, snapshot, packet, hash, end).is_none()
}

/// The entry whose replies from `end` would look like those of this packet's flow.
fn reply_owner<A: Tracked>(
    table: &ConnTable<A>,
    snapshot: &Snapshot,
    packet: &Packet<A>,
    hash: u64,
    end: nat::Endpoint<A>,
) -> Option<Slot> {
    let key = &packet.key;
    let reply = FlowKey {
        source: end.address,
        destination: key.source,
        source_port: end.port,
        destination_port: key.source_port,
        protocol: key.protocol,
    };
    table.find(hash, |conn| meet::is_reply(snapshot, conn, &reply))
}

/// UDP, or a SYN (with or without ACK, as IPVS has it).
pub(super) fn opens<A: Tracked>(packet: &Packet<A>) -> bool {
    packet.key.protocol == protocol::UDP || packet.tcp_flags & (tcp::SYN | tcp::RST) == tcp::SYN
}
