//! What would become of a packet that nobody sent.
//!
//! The worker that owns the packet's flow copies what it knows of it into a [`Question`]; whoever
//! asks then runs the balancer itself on a shard made of that copy, so that an answer cannot differ
//! from what the worker would do. The worker's own state stays as it is. What the copy leaves out:
//! how full FullNAT's pools are, and which of their ports comes next.

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::conn::{Conn, State, flag};
use super::counters::WorkerCounters;
use super::flow::{Address, FlowKey, Seed, endpoint_hash};
use super::frame::{Frame as _, MemoryFrame};
use super::guard::Guard;
use super::owner::Side;
use super::persistence::{self, Template};
use super::schedule::{Memory, Request};
use super::shard::{Shard, ShardSize};
use super::snapshot::{BackendId, Service, ServiceId, Snapshot};
use super::tracked::Tracked;
use super::{Arrival, MAX_BURST, Now, Outbox, Pass, Verdict};

/// The flow of a TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    V4(FlowKey<Ipv4Addr>),
    V6(FlowKey<Ipv6Addr>),
}

/// What is asked of workers, with room for what they know; and that, once they have answered.
pub struct Question {
    /// The asker's own number for it.
    pub number: u64,
    flow: Flow,
    /// The service that a new flow would be for.
    service: Option<(ServiceId, Request)>,
    persistence: Option<persistence::Persistence>,
    workers: u8,
    owner: Part,
    /// Another worker, which has the client's template, or would choose the backend for it.
    keeper: Option<u8>,
    keeper_part: Part,
}

/// One worker's part of the answer.
struct Part {
    worker: u8,
    v4: Vec<Conn<Ipv4Addr>>,
    v6: Vec<Conn<Ipv6Addr>>,
    /// The service's backends that have limits, and whether each was found overloaded.
    overloaded: Vec<(BackendId, bool)>,
    known: Option<Known>,
}

/// What a worker knows beside its connections.
struct Known {
    now: Now,
    seed: Seed,
    guard: Guard,
    is_nearly_full: bool,
    local_addresses: usize,
    memory: Option<Memory>,
    template: Option<Template>,
}

/// Connections of the flow's two ends that a worker reports at most: one, but for clients that
/// speak to several services from one port.
const CONNECTIONS: usize = 32;

impl Question {
    /// `service` is the one that the snapshot has for the flow's destination.
    pub fn new(number: u64, flow: Flow, snapshot: &Snapshot, service: Option<&Service>) -> Self {
        let owner = match &flow {
            Flow::V4(key) => snapshot.side(key).owner(snapshot.ownership, key),
            Flow::V6(key) => snapshot.side(key).owner(snapshot.ownership, key),
        };
        let request = |service: &Service| match flow {
            Flow::V4(key) => request(service, &key),
            Flow::V6(key) => request(service, &key),
        };
        let part = || Part {
            worker: owner,
            v4: Vec::with_capacity(CONNECTIONS),
            v6: Vec::with_capacity(CONNECTIONS),
            overloaded: limited(snapshot, service),
            known: None,
        };
        Self {
            number,
            flow,
            service: service.map(|service| (service.id, request(service))),
            persistence: service.and_then(|service| service.persistence),
            workers: snapshot.ownership.workers,
            owner: part(),
            keeper: None,
            keeper_part: part(),
        }
    }

    /// The worker that owns the flow.
    pub fn owner(&self) -> u8 {
        self.owner.worker
    }

    /// The worker to ask next; `None` once everything is known.
    pub fn next(&self) -> Option<u8> {
        match (&self.owner.known, &self.keeper_part.known) {
            (None, _) => Some(self.owner.worker),
            (Some(_), None) => self.keeper,
            _ => None,
        }
    }

    /// Runs on the worker: copies, and neither changes anything nor allocates.
    pub fn fill(&mut self, shard: &Shard, snapshot: &Snapshot, now: Now) {
        let key = self.persistence.map(|persistence| match &self.flow {
            Flow::V4(key) => persistence::Key::new(&persistence, key.source, &shard.seed),
            Flow::V6(key) => persistence::Key::new(&persistence, key.source, &shard.seed),
        });
        let part = match self.owner.known {
            None => &mut self.owner,
            Some(_) => &mut self.keeper_part,
        };
        part.worker = shard.worker;
        let is_nearly_full = match &self.flow {
            Flow::V4(key) => {
                copy(shard, snapshot, key, &mut part.v4);
                shard.tables.v4.is_nearly_full()
            }
            Flow::V6(key) => {
                copy(shard, snapshot, key, &mut part.v6);
                shard.tables.v6.is_nearly_full()
            }
        };
        for (id, is_marked) in &mut part.overloaded {
            *is_marked = shard.scheduling.is_marked(*id);
        }
        let recall = |(id, request): (ServiceId, Request)| shard.scheduling.recall(id, &request);
        part.known = Some(Known {
            now,
            seed: shard.seed,
            guard: shard.guard,
            is_nearly_full,
            local_addresses: shard.local_ports.addresses(),
            memory: self.service.map(recall),
            template: key.and_then(|key| shard.templates.peek(&key, now)),
        });
        let keeper = key.map(|key| key.owner(self.workers));
        self.keeper = keeper.filter(|&keeper| keeper != self.owner.worker);
    }

    /// Decides about `frame`, which came in at the interface `port`, as the workers would have
    /// decided when they were asked. `counters` are those of each worker. `None` before all were.
    ///
    /// # Errors
    /// When there is no memory for the copy.
    pub fn foresee<'c>(
        &self,
        snapshot: &Snapshot,
        counters: impl Fn(u8) -> Option<&'c WorkerCounters>,
        frame: &[u8],
        port: u8,
    ) -> std::io::Result<Option<Foreseen>> {
        let (None, Some(known)) = (self.next(), &self.owner.known) else {
            return Ok(None);
        };
        let mut shards = Vec::new();
        for part in [&self.owner, &self.keeper_part] {
            if let (Some(known), Some(gauges)) = (&part.known, counters(part.worker)) {
                shards.push(self.shard(part, known, snapshot, gauges)?);
            }
        }
        let Some(owner) = shards.first() else {
            return Ok(None);
        };
        let tracked = match &self.flow {
            Flow::V4(key) => tracked(owner, snapshot, key, known.now),
            Flow::V6(key) => tracked(owner, snapshot, key, known.now),
        };
        let mut frame = MemoryFrame::new(frame);
        if !snapshot.vlans.is_empty() {
            frame.set_interface(port);
        }
        let mut aside = Aside::default();
        let verdict = follow(
            &mut shards,
            snapshot,
            known.now,
            port,
            &mut frame,
            &mut aside,
        );
        let scheduled = shards[0].scheduled;
        let parts = [&self.owner, &self.keeper_part].map(|part| part.known.as_ref());
        let templates = parts.iter().filter_map(|known| (*known)?.template);
        let mut kept = templates.map(|template| template.backend());
        let (backend, why) = match (scheduled, tracked) {
            (Some(id), _) if kept.any(|kept| kept == id) => (Some(id), Why::Persistent),
            (Some(id), _) if shards[0].guard.is_up(known.now) => (Some(id), Why::Flood),
            (Some(id), _) => (Some(id), Why::Scheduled),
            (None, Some((id, why))) => (Some(id), why),
            (None, None) => (None, Why::Nobody),
        };
        Ok(Some(Foreseen {
            verdict,
            frame: frame.bytes().to_vec(),
            backend,
            why,
            beside: aside.0,
        }))
    }

    /// A shard that knows what a worker knew of this flow.
    fn shard(
        &self,
        part: &Part,
        known: &Known,
        snapshot: &Snapshot,
        gauges: &WorkerCounters,
    ) -> std::io::Result<Shard> {
        let counters = WorkerCounters::new(snapshot.backends.len());
        for (copy, original) in counters.backends.iter().zip(&gauges.backends) {
            copy.active.set(original.active.get());
            copy.inactive.set(original.inactive.get());
        }
        let size = ShardSize {
            connections_v4: 2 * CONNECTIONS,
            connections_v6: 2 * CONNECTIONS,
            services: snapshot.services.len(),
        };
        let (worker, workers) = (u32::from(part.worker), u32::from(self.workers));
        let shard = Shard::new(size, known.seed, worker, workers, Arc::new(counters))?;
        let addresses = known.local_addresses;
        let mut shard = shard.with_local_ports(addresses, 1, snapshot.ownership)?;
        adopt(&mut shard, &part.v4);
        adopt(&mut shard, &part.v6);
        shard.guard = known.guard;
        if known.is_nearly_full {
            shard.guard.meet(known.now, snapshot.flood_guard, true);
        }
        if let (Some((id, request)), Some(memory)) = (self.service, known.memory.clone()) {
            shard.scheduling.remember(id, &request, memory);
        }
        for (id, _) in part.overloaded.iter().filter(|(_, is_marked)| *is_marked) {
            shard.scheduling.mark(*id);
        }
        if let Some(template) = known.template {
            shard.templates.put(template);
        }
        Ok(shard)
    }
}

/// A service's backends that have limits.
fn limited(snapshot: &Snapshot, service: Option<&Service>) -> Vec<(BackendId, bool)> {
    let backends = service.into_iter().flat_map(|service| &service.backends);
    let limited = backends.filter(|&&id| snapshot.backend(id).is_some_and(|b| b.upper != 0));
    limited.map(|&id| (id, false)).collect()
}

/// The frame comes in at the owner, the first shard, and goes to the keeper and back where need be.
fn follow(
    shards: &mut [Shard],
    snapshot: &Snapshot,
    now: Now,
    port: u8,
    frame: &mut MemoryFrame,
    aside: &mut Aside,
) -> Verdict {
    const HOPS: usize = 4;
    let mut verdicts = [Verdict::Pass(Pass::Local); MAX_BURST];
    let (mut at, mut arrival) = (0, Arrival::Port(port));
    for _ in 0..HOPS {
        let frames = std::slice::from_mut(&mut *frame);
        shards[at].process(snapshot, now, arrival, frames, &mut verdicts, aside);
        let Verdict::HandOff(next) = verdicts[0] else {
            break;
        };
        let Some(to) = shards.iter().position(|shard| shard.worker == next) else {
            break;
        };
        (at, arrival) = (to, Arrival::HandOff);
    }
    verdicts[0]
}

/// The end of a packet that nobody sent.
#[derive(Debug)]
pub struct Foreseen {
    pub verdict: Verdict,
    /// As it would leave.
    pub frame: Vec<u8>,
    pub backend: Option<BackendId>,
    pub why: Why,
    /// What else would be sent: resets, further fragments.
    pub beside: Vec<(u8, MemoryFrame)>,
}

/// Why a packet goes to its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its connection is tracked there.
    Tracked {
        state: State,
        /// Seconds until it is forgotten.
        expires: u32,
        /// The packet is the backend's.
        reply: bool,
    },
    /// Its client stays there.
    Persistent,
    /// The flood guard is up: the consistent hash says so.
    Flood,
    /// The scheduler says so.
    Scheduled,
    /// It goes to none.
    Nobody,
}

fn request<A: Address>(service: &Service, key: &FlowKey<A>) -> Request {
    Request::new(service, key.source, key.source_port, key.destination, 0)
}

/// All connections of either end of the flow, as clients; and the one whose local end FullNAT's
/// reply came to.
fn copy<A: Tracked>(shard: &Shard, snapshot: &Snapshot, key: &FlowKey<A>, into: &mut Vec<Conn<A>>) {
    let table = A::table(&shard.tables);
    let into = RefCell::new(into);
    let keep = |conn: &Conn<A>| {
        let mut into = into.borrow_mut();
        if into.len() < CONNECTIONS && !into.contains(conn) {
            into.push(*conn);
        }
    };
    for key in [*key, key.reversed()] {
        let (client, port) = (key.source, key.source_port);
        table.find(shard.client_hash(&key), |conn| {
            if (conn.client, conn.client_port, conn.protocol) == (client, port, key.protocol) {
                keep(conn);
            }
            false
        });
    }
    if let Side::LocalReply(index) = snapshot.side(key) {
        let cell = shard.local_cell(index, key);
        if let Some(slot) = shard.local_reply(snapshot, cell, key) {
            keep(table.get(slot));
        }
    }
}

/// Puts another worker's connections into the table.
fn adopt<A: Tracked>(shard: &mut Shard, conns: &[Conn<A>]) {
    for conn in conns {
        // There is one group here.
        let conn = Conn { group: 0, ..*conn };
        let hash = endpoint_hash(&shard.seed, conn.protocol, conn.client, conn.client_port);
        let ports = &mut shard.local_ports;
        let moved = |conn: &Conn<A>, slot| ports.settled(conn, slot);
        if let Ok(inserted) = A::table_mut(&mut shard.tables).insert(hash, conn, moved)
            && conn.has(flag::FULL_NAT)
        {
            shard.local_ports.adopt(&conn, inserted.slot);
        }
    }
}

fn tracked<A: Tracked>(
    shard: &Shard,
    snapshot: &Snapshot,
    key: &FlowKey<A>,
    now: Now,
) -> Option<(BackendId, Why)> {
    let (slot, reply) = shard.find(snapshot, key)?;
    let conn = A::table(&shard.tables).get(slot);
    if conn.is_expired(now.second) {
        return None;
    }
    let age = now.second.wrapping_sub(conn.last_seen);
    let why = Why::Tracked {
        state: conn.state,
        expires: u32::from(conn.timeout).saturating_sub(age),
        reply,
    };
    Some((conn.backend, why))
}

/// Keeps what would be sent beside the packet.
#[derive(Default)]
struct Aside(Vec<(u8, MemoryFrame)>);

impl Outbox for Aside {
    type Frame = MemoryFrame;

    fn make(&mut self) -> Option<MemoryFrame> {
        Some(MemoryFrame::new(&[]))
    }

    fn send(&mut self, port: u8, frame: MemoryFrame) {
        self.0.push((port, frame));
    }
}

#[cfg(test)]
mod tests;
