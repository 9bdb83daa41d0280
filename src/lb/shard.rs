//! What happens to a burst of packets on one worker, from bytes to verdicts.
//!
//! Three short passes, each asking the cache for what the next one needs: headers and hashes;
//! the tags of the buckets; the entries. A packet that finds its entry is rewritten at once; all
//! others go through [`super::admit`]. A shard belongs to one worker, and nothing in it is shared
//! but the counters, which management reads.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::arch::{Cpu, Populate};

use super::admit::{Asked, Opened};
use super::answers::{AnswerLimits, AnswerRates};
use super::burst::Burst;
use super::counters::{DropReason, WorkerCounters};
use super::exits::{Decided, Exits};
use super::flow::{Address, FlowKey, Seed, endpoint_hash};
use super::fragment::Fragments;
use super::frame::{Frame, Note};
use super::fullnat::LocalPorts;
use super::guard::Guard;
use super::looks::{AHEAD, Aim, Kind, Look, Looks, Meets};
use super::meet::{is_reply, is_request, uncount};
use super::owner::Ownership;
use super::parse::{Packet, Parsed};
use super::persistence::Templates;
use super::schedule::{Place, SchedulerState};
use super::service_map::Found;
use super::settled::Rest;
use super::snapshot::{BackendId, Snapshot};
use super::table::{ConnTable, Slot};
use super::tracked::{Tables, Tracked};
use super::{Arrival, MAX_BURST, Now, Outbox, Pass, Verdict};

/// How large a shard is.
#[derive(Clone, Copy, Debug)]
pub struct ShardSize {
    /// Connections this worker can track, of each family.
    pub connections_v4: usize,
    pub connections_v6: usize,
    /// Service ids are below this.
    pub services: usize,
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
    /// What the last packet of the burst in hand that had no entry asked for, and the service.
    pub(super) asked: Option<(Asked, Found)>,
    /// The flows that this burst has opened so far.
    pub(super) opened: Opened,
    /// Of the burst in hand: where it came in, and the smallest MTU of all ports.
    pub(super) arrival: Arrival,
    pub(super) smallest_mtu: u16,
    /// Those that came by queues that are proven.
    pub(super) bursts: u32,
    /// None while a burst is in hand.
    looks: Option<Box<Looks>>,
    /// What the passes are compiled for.
    pub cpu: Cpu,
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
            asked: None,
            opened: Opened::default(),
            arrival: Arrival::HandOff,
            smallest_mtu: 0,
            bursts: 0,
            looks: Some(Box::default()),
            cpu: Cpu::this(),
        })
    }

    /// Decides about up to [`MAX_BURST`] frames that arrived together, and rewrites those that go
    /// on. Packets that other workers own may have been moved behind ([`Decided`]). Afterwards,
    /// `verdicts[i]` is that on the frame at i; what else is to be sent goes to `outbox`.
    pub fn process<O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        arrival: Arrival,
        frames: &mut [O::Frame],
        verdicts: &mut [Verdict; MAX_BURST],
        outbox: &mut O,
    ) -> Decided {
        (self.asked, self.opened) = (None, Opened::default());
        self.arrival = arrival;
        self.smallest_mtu = snapshot.ports.iter().map(|p| p.mtu).min().unwrap_or(0);
        let burst = Burst::new(snapshot, arrival);
        // Out of `self` while its methods are called; no memory moves.
        let mut looks = self.looks.take().unwrap_or_default();
        self.look_at_all(&burst, frames, &mut looks);
        let own = match looks.others {
            0 => frames.len(),
            _ => looks.part(frames),
        };
        if burst.queues.is_some() && self.is_audit_due() {
            let (kind, length) = (looks.of[0].kind(), looks.of[0].length());
            match (kind, frames[..own].first()) {
                (Kind::V4 | Kind::ReplyV4, Some(frame)) => {
                    self.audit::<Ipv4Addr>(&burst, frame.bytes(), length)
                }
                (Kind::V6 | Kind::ReplyV6, Some(frame)) => {
                    self.audit::<Ipv6Addr>(&burst, frame.bytes(), length)
                }
                _ => {}
            }
        }
        let own_frames = &mut frames[..own];
        let exits = self.third_pass(&burst, now, own_frames, &looks, verdicts, outbox);
        let mut decided = Decided {
            elsewhere: looks.elsewhere,
            own,
            owner: None,
            exit: exits.only(&frames[..own], &looks),
        };
        if looks.others > 0 {
            decided.owner = looks.hand_over(&mut verdicts[own..]);
            if exits.hands_over {
                decided = decided.as_it_came(frames, verdicts);
            }
        }
        self.looks = Some(looks);
        decided
    }

    /// Third pass: runs of settled packets, and between them whatever else there is.
    #[inline(always)]
    fn third_pass<O: Outbox>(
        &mut self,
        burst: &Burst,
        now: Now,
        frames: &mut [O::Frame],
        looks: &Looks,
        verdicts: &mut [Verdict; MAX_BURST],
        outbox: &mut O,
    ) -> Exits {
        let (snapshot, count, mut exits) = (burst.snapshot, frames.len(), Exits::NONE);
        let mut rest = Rest {
            at: 0,
            frames,
            looks,
            verdicts,
        };
        while rest.at < count {
            let kind = looks.of[rest.at].kind();
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
            if at < count && looks.of[at].is(kind) {
                if at + AHEAD < count {
                    self.tables.prefetch(kind, looks.slots[at + AHEAD]);
                }
                let frame = &mut rest.frames[at];
                let verdict = self.look_up(burst, now, frame, looks, at, outbox);
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
        looks: &Looks,
        at: usize,
        outbox: &mut O,
    ) -> Verdict {
        let (look, aim) = (looks.of[at], looks.aim(at));
        match look.kind() {
            Kind::V4 | Kind::ReplyV4 => {
                self.plain::<Ipv4Addr, O>(burst.snapshot, now, frame, look, aim, outbox)
            }
            Kind::V6 | Kind::ReplyV6 => {
                self.plain::<Ipv6Addr, O>(burst.snapshot, now, frame, look, aim, outbox)
            }
            _ => self.unusual(burst, now, frame, aim, outbox),
        }
    }

    #[inline(always)]
    fn plain<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut O::Frame,
        look: Look,
        aim: Aim,
        outbox: &mut O,
    ) -> Verdict {
        match Packet::<A>::plain(frame.bytes(), look.length()) {
            Some(packet) => self.meet(snapshot, now, frame, &packet, aim, outbox),
            None => Verdict::Drop(DropReason::Truncated),
        }
    }

    /// Any frame that is not a plain packet.
    fn unusual<O: Outbox>(
        &mut self,
        burst: &Burst,
        now: Now,
        frame: &mut O::Frame,
        aim: Aim,
        outbox: &mut O,
    ) -> Verdict {
        let (snapshot, arrival) = (burst.snapshot, burst.arrival);
        let parsed = burst.parse(frame);
        match parsed {
            Parsed::V4(packet) => self.meet(snapshot, now, frame, &packet, aim, outbox),
            Parsed::V6(packet) => self.meet(snapshot, now, frame, &packet, aim, outbox),
            Parsed::Bad(reason) => Verdict::Drop(reason),
            Parsed::FragmentV4 { .. } | Parsed::FragmentV6 { .. } => {
                self.fragment(snapshot, now, arrival, frame, &parsed, outbox)
            }
            Parsed::IcmpV4 { .. } | Parsed::IcmpV6 { .. } => {
                match self.error_elsewhere(snapshot, arrival, &parsed, frame.bytes()) {
                    Some(owner) => {
                        self.counters.handed_errors.add(1);
                        frame.set_note(Note::NONE);
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
        let slot = Slot::NONE;
        let aim = Aim { hash, slot, meets };
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
#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::fixture::{Lab, TestOutbox, VIP, backend_mac, tcp4};
    use crate::lb::frame::MemoryFrame;
    use crate::lb::parse::tcp;
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
