//! The running appliance as the management thread sees it: one event loop that reads what the
//! workers pass up, keeps neighbours, publishes snapshots, and answers requests.
//!
//! It never touches a packet that is forwarded, and forwarding does not wait for it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::lb::counters::{Counter, DropReason};
use crate::lb::listing;
use crate::lb::parse::{Parsed, parse};
use crate::lb::snapshot::Snapshot;
use crate::port::clock::Tsc;
use crate::port::{EalError, Mbuf, Mempool};
use crate::worker::{Clock, Message, RESOLVE};

use super::api::{self, ConnectionFilter, Connections, Request};
use super::checks::{self, Checks, News};
use super::config::{self, Config};
use super::desired::Desired;
use super::hash_tables::{Building, Progress};
use super::health::{Outgoing, Transition};
use super::hooks::{self, Hooks};
use super::load::Load;
use super::metrics;
use super::net::{self, NetEvent, NetState, Output};
use super::ports::{Change, Ports};
use super::start::Machine;
use super::status::Source;
use super::workers::WorkerLink;

/// How often management looks at its rings.
const LOOK: Duration = Duration::from_millis(1);
/// Frames taken from one worker at a time, so that a flood of them starves nobody else.
const PASSED_AT_ONCE: usize = 256;
/// The same for packets to check addresses, which cost more each. With [`LOOK`] this is their rate
/// limit: what comes faster fills its ring, and is dropped and counted there.
const CHECKS_AT_ONCE: usize = 128;
/// Probes' packets sent before anything else gets its turn.
const PROBES_AT_ONCE: usize = 64;
/// How often the ports' links, and removed backends, are looked at.
const SLOW_LOOK: Duration = Duration::from_millis(250);

pub struct Appliance {
    pub desired: Desired,
    pub net: NetState,
    pub checks: Checks,
    pub load: Load,
    hooks: Hooks,
    /// Hash tables that the next snapshot waits for.
    building: Option<Building>,
    pub workers: Vec<WorkerLink>,
    pub current: Arc<Snapshot>,
    pub clock: Clock,
    ports: Ports,
    started: Instant,
    notes: Vec<String>,
    listings: VecDeque<Listing>,
    pool: Mempool,
    /// Something that snapshots are made of has changed.
    stale: bool,
    next_slow_look: Instant,
    eal: crate::port::Eal,
}

/// A question for connections that is being answered, bucket by bucket, worker by worker.
struct Listing {
    worker: usize,
    filter: ConnectionFilter,
    found: Connections,
    reply: tokio::sync::oneshot::Sender<Connections>,
}

/// The balance of packets over all workers, at one moment.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Balance {
    pub received: u64,
    pub generated: u64,
    pub transmitted: u64,
    pub dropped: u64,
    pub passed: u64,
    pub handed_off: u64,
    pub taken_over: u64,
}

impl Balance {
    pub fn of(workers: &[WorkerLink]) -> Self {
        let sum = |read: fn(&WorkerLink) -> u64| workers.iter().map(read).sum();
        Self {
            received: sum(|w| w.counters.received.get()),
            generated: sum(|w| w.counters.generated.get()),
            transmitted: sum(|w| w.counters.transmitted.get()),
            dropped: sum(|w| w.counters.dropped_total()),
            passed: sum(|w| w.counters.passed.get()),
            handed_off: sum(|w| w.counters.handed_off.get()),
            taken_over: sum(|w| w.counters.taken_over.get()),
        }
    }

    /// What came in or was made went somewhere, to the last packet.
    pub fn adds_up(&self) -> bool {
        self.received + self.generated + self.taken_over
            == self.transmitted + self.dropped + self.passed + self.handed_off
            && self.handed_off == self.taken_over
    }
}

impl Appliance {
    pub fn new(
        machine: Machine,
        desired: Desired,
        net: NetState,
        checks: Checks,
        load: Load,
        current: Arc<Snapshot>,
    ) -> Self {
        Self {
            desired,
            net,
            checks,
            load,
            hooks: Hooks::default(),
            building: None,
            workers: machine.workers,
            current,
            clock: machine.clock,
            ports: Ports::new(machine.ports, machine.pool.clone()),
            pool: machine.pool,
            stale: true,
            next_slow_look: Instant::now(),
            started: Instant::now(),
            listings: VecDeque::new(),
            notes: Vec::from_iter(
                machine
                    .eal
                    .no_huge_pages_reason()
                    .map(|reason| format!("No huge pages: {reason}.")),
            ),
            eal: machine.eal,
        }
    }

    /// Runs until a signal ends it.
    /// SIGHUP reads the configuration's file again.
    pub async fn run(
        &mut self,
        file: &Path,
        mut requests: mpsc::Receiver<Request>,
    ) -> std::io::Result<()> {
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.checks.start();
        self.load.start();
        loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hang_up.recv() => self.reload(file),
                Some(request) = requests.recv() => self.answer(request),
                _ = look.tick() => self.look(Instant::now()),
                event = self.checks.next() => match event {
                    checks::Event::Send(packet) => self.send_probes(packet),
                    checks::Event::Changed(changed) => self.checked(&changed),
                },
                heard = self.load.next() => self.load.heard(heard, Instant::now()),
            }
        }
    }

    /// Keeps a sentence for operators, shown with the status from now on.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Sends what start-up has to say: announcements and questions for next hops.
    pub fn begin(&mut self, out: Output) {
        self.carry_out(out);
    }

    /// One look at everything that can have changed.
    pub fn look(&mut self, now: Instant) {
        let mut out = Output::default();
        for worker in 0..self.workers.len() {
            let mut lists = Vec::new();
            self.workers[worker].collect(|done| match done {
                Message::List(request) => lists.push(request),
                Message::Queues { port, rx, tx } => self.ports.returned(port, rx, tx),
                Message::Swap(_) | Message::Quiesce | Message::Stop => {}
            });
            lists.iter().for_each(|request| self.list(request));
            self.take_passed(worker, now, &mut out);
            self.take_checks(worker, now, &mut out);
        }
        self.net.poll(now, &mut out);
        let is_due = now >= self.next_slow_look;
        if is_due || self.ports.is_resetting() {
            self.look_at_ports(now, &mut out);
        }
        if is_due {
            self.next_slow_look = now + SLOW_LOOK;
            self.stale |= self.desired.look_at_drains(now);
            self.collect_removed();
            self.load.responded(self.checks.engine().measured(), now);
        }
        self.stale |= self.load.tick(&mut self.desired, &self.workers, now);
        self.carry_out(out);
        if self.stale {
            self.look_at_quorums();
        }
        if self.stale || self.building.is_some() {
            self.publish_when_built();
        }
    }

    fn take_passed(&mut self, worker: usize, now: Instant, out: &mut Output) {
        for _ in 0..PASSED_AT_ONCE {
            let Some(mbuf) = self.workers[worker].passed.pop() else {
                return;
            };
            let port = self.port_index(mbuf.port());
            if mbuf.stamp() & RESOLVE == 0 {
                // Direct checks come from the port's own address.
                if !self.checks.receive(mbuf.bytes(), self.received_at(&mbuf)) {
                    self.net.receive(port, mbuf.bytes(), now, out);
                }
                continue;
            }
            let Some(destination) = destination(mbuf.bytes()) else {
                continue;
            };
            self.send_to(destination, mbuf.bytes().to_vec(), now, out);
        }
    }

    /// Sends a frame whose addresses are still to be written to the next hop toward
    /// `destination`, as soon as that is known.
    fn send_to(&mut self, destination: IpAddr, mut frame: Vec<u8>, now: Instant, out: &mut Output) {
        let Some((port, mac)) = self.net.resolve(destination, None, now, out) else {
            self.net.resolve(destination, Some(frame), now, out);
            return;
        };
        frame[..6].copy_from_slice(mac.as_bytes());
        if let Some(facts) = self.desired.ports().get(usize::from(port)) {
            frame[6..12].copy_from_slice(&facts.mac);
        }
        out.frames.push((port, frame));
    }

    /// Answers to probes, and whatever else was sent to a check address.
    fn take_checks(&mut self, worker: usize, now: Instant, out: &mut Output) {
        for _ in 0..CHECKS_AT_ONCE {
            let Some(mbuf) = self.workers[worker].checks.pop() else {
                return;
            };
            if !self.checks.receive(mbuf.bytes(), self.received_at(&mbuf)) {
                let port = self.port_index(mbuf.port());
                self.net.receive(port, mbuf.bytes(), now, out);
            }
        }
    }

    /// When a worker received a packet, by its stamp.
    fn received_at(&self, mbuf: &Mbuf) -> Instant {
        let age = self.clock.nanos(Tsc::now().wrapping_sub(mbuf.stamp()));
        let now = Instant::now();
        now.checked_sub(Duration::from_nanos(age)).unwrap_or(now)
    }

    /// Sends a probe's packet, and some of those behind it.
    fn send_probes(&mut self, first: Outgoing) {
        let (now, mut out) = (Instant::now(), Output::default());
        let mut next = Some(first);
        let mut count = 0;
        while let Some(packet) = next {
            let towards = packet.towards;
            self.send_to(towards, packet.into_frame(), now, &mut out);
            count += 1;
            next = match count < PROBES_AT_ONCE {
                true => self.checks.next_packet(),
                false => None,
            };
        }
        self.carry_out(out);
    }

    /// A check found a backend up, down, or with another weight.
    fn checked(&mut self, changed: &Transition) {
        let was_up = !self.desired.is_down(changed.id);
        let news = self.checks.changed(changed, &mut self.desired);
        if news == News::None {
            return;
        }
        tracing::info!("{}", checks::describe(changed, was_up));
        let now = Instant::now();
        if news == News::Weight {
            self.load.configure(&mut self.desired, now);
        }
        if was_up != changed.up {
            self.load.health(changed.id, changed.up, now);
            let word = |up| if up { "up" } else { "down" };
            let change = hooks::Change {
                event: "backend",
                service: changed.service.to_string(),
                backend: Some(changed.backend.to_string()),
                old: word(was_up),
                new: word(changed.up),
                check: Some(changed.check.to_owned()),
                answer: Some(changed.answer.clone()),
            };
            self.hooks.tell(&self.desired.config, change);
        }
        self.stale = true;
    }

    /// Says which services have lost their quorum or have it again; the next snapshot shows it.
    fn look_at_quorums(&mut self) {
        for change in self.desired.look_at_quorums() {
            match change.met {
                true => tracing::info!("{change}"),
                false => tracing::warn!("{change}"),
            }
            let word = |met| if met { "met" } else { "lost" };
            let change = hooks::Change {
                event: "quorum",
                service: change.service,
                backend: None,
                old: word(!change.met),
                new: word(change.met),
                check: None,
                answer: None,
            };
            self.hooks.tell(&self.desired.config, change);
        }
    }

    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    fn port_index(&self, id: u16) -> u16 {
        self.ports.index_of(id).unwrap_or(0) as u16
    }

    fn look_at_ports(&mut self, now: Instant, out: &mut Output) {
        for (index, change) in self.ports.look(now, &mut self.workers) {
            if let Change::Reset { mac } = change {
                self.desired.set_port_mac(index, mac);
                let ports = net_ports(&self.desired.config, self.desired.ports());
                self.net.set_ports(ports, now, out);
                self.stale = true;
            }
            self.net.link_up(index as u16, now, out);
        }
    }

    fn collect_removed(&mut self) {
        let workers = &self.workers;
        let has_connections = |id: crate::lb::snapshot::BackendId| {
            workers.iter().any(|worker| {
                let counters = worker.counters.backends.get(id.0 as usize);
                counters.is_some_and(|c| c.active.get() + c.inactive.get() > 0)
            })
        };
        self.stale |= self.desired.collect_removed(has_connections);
    }

    /// Sends frames and says what an operator would want to know.
    fn carry_out(&mut self, out: Output) {
        for (port, frame) in out.frames {
            self.send(port, &frame);
        }
        for event in out.events {
            self.stale = true;
            match event {
                NetEvent::NeighbourResolved { ip, mac, .. } => {
                    tracing::info!("next hop {ip} is at {mac}");
                }
                NetEvent::NeighbourChanged { ip, old, new, .. } => {
                    tracing::warn!("next hop {ip} moved from {old} to {new}");
                }
                NetEvent::NeighbourLost { ip, .. } => {
                    tracing::warn!("next hop {ip} does not answer any more");
                }
                NetEvent::NeighbourSilent { ip, port } => {
                    let name = self.desired.ports().get(usize::from(port));
                    let name = name.map_or("?", |p| p.name.as_str());
                    tracing::warn!(
                        "next hop {ip} does not answer on port {name}: check that it is up and in the port's subnet"
                    );
                }
                NetEvent::AddressConflict { ip, mac, .. } => {
                    tracing::error!(
                        "address conflict: {mac} uses {ip}, which is ours: look for another instance, or for a backend that answers ARP for the VIP"
                    );
                }
            }
        }
    }

    /// Hands a frame to a worker to send; lost, as on a full wire, when nothing is free.
    fn send(&mut self, port: u16, frame: &[u8]) {
        let Some(mut mbuf) = self.pool.alloc() else {
            return;
        };
        if mbuf.fill(frame) {
            mbuf.set_stamp(u64::from(port));
            let _ = self.workers[0].inject.push(mbuf);
        }
    }

    /// Publishes, after the hash tables that are new have been built by another thread.
    fn publish_when_built(&mut self) {
        let mut built = Vec::new();
        if let Some(building) = &self.building {
            match building.progress() {
                Progress::Going => return,
                Progress::Done(tables) => built = tables,
                Progress::Failed => tracing::error!("hash tables could not be built aside"),
            }
            self.building = None;
            self.desired.take_tables(&built);
        }
        // What changed meanwhile may need others.
        let missing = self.desired.missing_tables();
        if !missing.is_empty() {
            self.building = Building::begin(missing).ok();
        }
        if self.building.is_none() {
            self.publish();
        }
    }

    /// Builds the next snapshot and sends it to every worker.
    pub fn publish(&mut self) {
        self.stale = false;
        self.current = Arc::new(self.desired.build(&self.net));
        for worker in &mut self.workers {
            worker.publish(&self.current);
        }
    }

    /// Takes a new, valid configuration.
    pub fn apply(&mut self, config: Config, now: Instant) {
        self.desired.replace(config, &self.current);
        self.checks.configure(&mut self.desired);
        self.load.configure(&mut self.desired, now);
        self.hooks.configure(&self.desired.config);
        let mut out = Output::default();
        let ports = net_ports(&self.desired.config, self.desired.ports());
        self.net.set_ports(ports, now, &mut out);
        self.net.set_vips(vips(&self.desired.config), now);
        self.net.want(self.desired.destinations(), now, &mut out);
        self.carry_out(out);
        self.stale = true;
    }

    fn source(&self) -> Source<'_> {
        Source {
            desired: &self.desired,
            checks: &self.checks,
            load: &self.load,
            snapshot: &self.current,
            workers: &self.workers,
            ports: &self.ports,
            uptime: self.started.elapsed(),
            notes: &self.notes,
        }
    }

    /// Takes another configuration, if it may take the place of the one in use, and says so.
    fn replace(
        &mut self,
        config: Config,
        if_match: Option<&str>,
        dry_run: bool,
    ) -> Result<api::Applied, api::Problem> {
        let applied = api::decide(&self.desired.config, &config, if_match, dry_run)?;
        if !dry_run && !applied.diff.is_empty() {
            for change in &applied.diff.changes {
                tracing::info!("configuration: {change}");
            }
            for warning in &applied.warnings {
                tracing::warn!("configuration: {warning}");
            }
            self.apply(config, Instant::now());
        }
        Ok(applied)
    }

    /// Reads the configuration's file again. A faulty one changes nothing.
    fn reload(&mut self, path: &Path) {
        let config = match config::load(path) {
            Ok(config) => config,
            Err(error) => {
                for line in error.to_string().lines() {
                    tracing::error!("reload: {line}");
                }
                return;
            }
        };
        match self.replace(config, None, false) {
            Ok(applied) if applied.diff.is_empty() => tracing::info!("reload: nothing changes"),
            Ok(applied) => tracing::info!("reload: {} changes", applied.diff.changes.len()),
            Err(problem) => tracing::error!("reload: {}", problem.detail),
        }
    }

    /// Whoever asked may have gone; then the answer is for nobody.
    fn answer(&mut self, request: Request) {
        match request {
            Request::Status(reply) => drop(reply.send(self.source().status())),
            Request::Metrics(reply) => drop(reply.send(metrics::collect(&self.source()))),
            Request::Config(reply) => {
                drop(reply.send(Arc::new(self.desired.config.clone())));
            }
            Request::Replace(replace) => {
                let decided = self.replace(
                    *replace.config,
                    replace.if_match.as_deref(),
                    replace.dry_run,
                );
                drop(replace.reply.send(decided));
            }
            Request::Connections { filter, reply } => {
                self.listings.push_back(Listing {
                    worker: 0,
                    filter,
                    found: Connections::default(),
                    reply,
                });
                if self.listings.len() == 1 {
                    self.ask_for_connections(0);
                }
            }
        }
    }

    /// Asks the worker whose turn it is for its connections from a bucket on.
    fn ask_for_connections(&mut self, from: usize) {
        if let Some(listing) = self.listings.front() {
            let request = Box::new(listing::Request::new(from));
            self.workers[listing.worker].send(Message::List(request));
        }
    }

    /// A worker's connections came back: on to its next buckets, the next worker, or the answer.
    fn list(&mut self, request: &listing::Request) {
        let Some(mut listing) = self.listings.pop_front() else {
            return;
        };
        let source = self.source();
        for listed in &request.connections {
            let worker = listing.worker as u16;
            let shown = source.connection(listed, worker, &listing.filter);
            if listing.found.connections.len() < listing.filter.limit {
                listing.found.connections.extend(shown);
            } else {
                listing.found.more |= shown.is_some();
            }
        }
        let next = match request.next {
            _ if listing.found.more => None,
            Some(bucket) => Some(bucket),
            None => {
                listing.worker += 1;
                (listing.worker < self.workers.len()).then_some(0)
            }
        };
        match next {
            Some(bucket) => {
                self.listings.push_front(listing);
                self.ask_for_connections(bucket);
            }
            None => {
                drop(listing.reply.send(listing.found));
                self.ask_for_connections(0);
            }
        }
    }

    /// Stops the workers, then the ports, and returns the last balance of packets. An error where
    /// DPDK could not be stopped, because a packet or a queue is still held somewhere.
    pub fn shut_down(mut self) -> Result<Balance, EalError> {
        /// All of it takes less than a second.
        const PATIENCE: Duration = Duration::from_millis(400);
        let mut queues: Vec<(Vec<_>, Vec<_>)> = Vec::new();
        queues.resize_with(self.desired.ports().len(), Default::default);
        for message in [|| Message::Quiesce, || Message::Stop] {
            self.workers
                .iter_mut()
                .for_each(|worker| worker.send(message()));
            let deadline = Instant::now() + PATIENCE;
            while !self.workers.iter().all(WorkerLink::is_quiet) && Instant::now() < deadline {
                for worker in &mut self.workers {
                    worker.collect(|done| {
                        if let Message::Queues { port, rx, tx } = done {
                            queues[port].0.extend(rx);
                            queues[port].1.extend(tx);
                        }
                    });
                    while worker.passed.pop().is_some() {}
                    while worker.checks.pop().is_some() {}
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let mut balance_of = Vec::new();
        for worker in self.workers {
            if let Ok(remains) = worker.remains.recv_timeout(PATIENCE) {
                for ((rx, tx), queues) in remains.ports.into_iter().zip(&mut queues) {
                    queues.0.extend(rx);
                    queues.1.extend(tx);
                }
            }
            balance_of.push(Arc::clone(&worker.counters));
            if let Err(error) = worker.handle.join() {
                tracing::error!("worker on core {}: {error}", worker.core);
            }
        }
        self.ports.stop(queues);
        let balance = sum(&balance_of);
        drop(self.pool);
        self.eal.cleanup()?;
        Ok(balance)
    }
}

fn sum(workers: &[Arc<crate::lb::counters::WorkerCounters>]) -> Balance {
    let sum = |read: fn(&crate::lb::counters::WorkerCounters) -> &Counter| {
        workers.iter().map(|w| read(w).get()).sum()
    };
    Balance {
        received: sum(|w| &w.received),
        generated: sum(|w| &w.generated),
        transmitted: sum(|w| &w.transmitted),
        dropped: workers.iter().map(|w| w.dropped_total()).sum(),
        passed: sum(|w| &w.passed),
        handed_off: sum(|w| &w.handed_off),
        taken_over: sum(|w| &w.taken_over),
    }
}

/// Drops by reason over all workers, the largest first.
pub fn drops(workers: &[WorkerLink]) -> Vec<(DropReason, u64)> {
    let total = |reason: DropReason| {
        let of = |w: &WorkerLink| w.counters.dropped[reason as usize].get();
        workers.iter().map(of).sum::<u64>()
    };
    let mut drops: Vec<_> = DropReason::ALL.iter().map(|&r| (r, total(r))).collect();
    drops.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    drops
}

/// Where a rewritten packet is going.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    match parse(frame, true) {
        Parsed::V4(packet) => Some(packet.key.destination.into()),
        Parsed::V6(packet) => Some(packet.key.destination.into()),
        _ => None,
    }
}

/// The ports' addresses and next hops, as neighbour discovery wants them.
pub fn net_ports(config: &Config, facts: &[super::desired::PortFacts]) -> Vec<net::PortConfig> {
    let ports = config.ports.iter().zip(facts).enumerate();
    ports
        .map(|(index, (port, facts))| net::PortConfig {
            index: index as u16,
            name: port.name.clone(),
            mac: net::Mac::from_bytes(&facts.mac),
            addresses: port
                .addresses
                .iter()
                .filter_map(|a| net::prefix(a.address, a.length))
                .collect(),
            check_addresses: port.check_addresses.clone(),
            gateways: port.gateways.clone(),
            routes: port
                .routes
                .iter()
                .filter_map(|route| {
                    let prefix = net::prefix(route.to.address, route.to.length)?;
                    Some(net::Route {
                        prefix,
                        via: route.via,
                    })
                })
                .collect(),
            neighbours: port
                .neighbours
                .iter()
                .map(|n| (n.address, net::Mac::from_bytes(&n.mac.0)))
                .collect(),
            mtu: port.mtu,
            kernel_interface: port.kernel_interface.is_some(),
        })
        .collect()
}

/// What services listen on, to be answered for.
pub fn vips(config: &Config) -> Vec<net::Prefix> {
    let listens = config.services.iter().flat_map(|service| &service.listen);
    listens
        .filter_map(|l| net::prefix(l.addresses.address, l.addresses.length))
        .collect()
}
