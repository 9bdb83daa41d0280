//! The running appliance as the management thread sees it: one event loop that reads what the
//! workers pass up, keeps neighbours, publishes snapshots, and answers requests.
//!
//! It never touches a packet that is forwarded, and forwarding does not wait for it.

mod answer;
mod balance;
mod capturing;
mod ending;
mod failing;
mod news;
mod packets;
mod vips;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::lb::snapshot::Snapshot;
use crate::port::Mempool;
use crate::worker::{Clock, Message};

use super::api::Request;
use super::capture::Capture;
use super::checks::{self, Checks};
use super::config::Config;
use super::desired::Desired;
use super::events::{EventKind, Events, Happening};
use super::faults::Fault;
use super::hash_tables::Ahead;
use super::hooks::Hooks;
use super::kernel::Kernel;
use super::load::Load;
use super::log::Gaps;
use super::net::{self, NetState, Output, net_ports};
use super::ports::{Change, Ports};
use super::retired::Retired;
use super::rss::Rss;
use super::signals::Signals;
use super::start::{Machine, has_persistence};
use super::status::Source;
use super::trace::Tracing;
use super::watch::Watch;
use super::watchdog::{self, Pulse};
use super::workers::WorkerLink;

use answer::Listing;
pub use balance::{Balance, drops};
pub use vips::Standing;

/// How often management looks at its rings.
const LOOK: Duration = Duration::from_millis(1);
/// How often the ports' links, and removed backends, are looked at.
const SLOW_LOOK: Duration = Duration::from_millis(250);

pub struct Appliance {
    pub desired: Desired,
    pub net: NetState,
    kernel: Kernel,
    standing: Standing,
    pub checks: Checks,
    pub load: Load,
    hooks: Hooks,
    events: Events,
    watch: Watch,
    /// Hash tables that the next snapshot waits for.
    ahead: Ahead,
    pub workers: Vec<WorkerLink>,
    pub current: Arc<Snapshot>,
    retired: Retired,
    pub clock: Clock,
    ports: Ports,
    rss: Rss,
    started: Instant,
    notes: Vec<String>,
    listings: VecDeque<Listing>,
    /// The capture that is under way.
    capture: Option<Capture>,
    /// Packets that are asked about.
    tracings: Vec<Tracing>,
    /// The number of the last question to workers.
    questions: u64,
    pool: Mempool,
    /// Something that snapshots are made of has changed.
    stale: bool,
    /// What to go back to, until a snapshot of a new configuration is out.
    before: Option<Box<Config>>,
    pulse: Arc<Pulse>,
    gaps: Gaps,
    /// A fault that was asked for, and when it is to happen.
    fault: Option<(Instant, Fault)>,
    /// Another: nothing is taken back from workers until then.
    rings_held: Option<Instant>,
    next_slow_look: Instant,
    eal: crate::port::Eal,
}

impl Appliance {
    pub fn new(
        machine: Machine,
        desired: Desired,
        net: NetState,
        kernel: Kernel,
        checks: Checks,
        load: Load,
        current: Arc<Snapshot>,
    ) -> Self {
        Self {
            desired,
            net,
            kernel,
            standing: Standing::default(),
            checks,
            load,
            hooks: Hooks::default(),
            events: Events::default(),
            watch: Watch::default(),
            ahead: Ahead::default(),
            workers: machine.workers,
            current,
            retired: Retired::new(),
            clock: machine.clock,
            rss: machine.rss,
            ports: Ports::new(machine.ports, machine.pool.clone()),
            pool: machine.pool,
            stale: true,
            before: None,
            pulse: Arc::default(),
            gaps: Gaps::new(Instant::now()),
            fault: None,
            rings_held: None,
            next_slow_look: Instant::now(),
            started: Instant::now(),
            listings: VecDeque::new(),
            capture: None,
            tracings: Vec::new(),
            questions: 0,
            notes: Vec::from_iter(
                machine
                    .eal
                    .no_huge_pages_reason()
                    .map(|reason| format!("No huge pages: {reason}.")),
            ),
            eal: machine.eal,
        }
    }

    /// Begins to check and to ask, on the current runtime.
    pub fn start_tasks(&mut self) {
        self.checks.start();
        self.load.start();
        self.kernel.start(&self.desired.config);
    }

    /// Runs until a signal ends it.
    /// SIGHUP reads the configuration's file again.
    pub async fn run(
        &mut self,
        file: &Path,
        requests: &mut mpsc::Receiver<Request>,
        signals: &mut Signals,
    ) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (is_ending, end) = match self.standing {
                Standing::Ending(at) => (true, at.into()),
                _ => (false, tokio::time::Instant::now()),
            };
            tokio::select! {
                biased;
                _ = signals.terminate.recv() => if self.begin_to_end() { return },
                _ = signals.interrupt.recv() => if self.begin_to_end() { return },
                () = tokio::time::sleep_until(end), if is_ending => return,
                _ = signals.hang_up.recv() => watchdog::reloading(|| self.reload(file)),
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

    /// The loop's sign of life.
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
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
        self.pulse.beat(now);
        if let Some((_, fault)) = self.fault.take_if(|(at, _)| now >= *at) {
            self.fail(fault);
        }
        let mut out = Output::default();
        let takes_back = self.rings_held.is_none_or(|until| now >= until);
        for worker in 0..self.workers.len() {
            if takes_back {
                self.take_back(worker);
            }
            self.take_passed(worker, now, &mut out);
            self.take_checks(worker, now, &mut out);
        }
        self.take_from_kernel();
        if self.kernel.look() {
            self.follow_kernel(now, &mut out);
        }
        self.look_at_capture(now);
        self.net.poll(now, &mut out);
        let is_due = now >= self.next_slow_look;
        if is_due || self.ports.is_resetting() {
            self.look_at_ports(now, &mut out);
        }
        if is_due {
            self.next_slow_look = now + SLOW_LOOK;
            self.stale |= self.desired.look_at_drains(now);
            self.collect_removed();
            if self.rss.look(now, self.workers.iter().map(|w| &w.counters)) {
                self.desired.set_queues(self.rss.queues());
                self.stale = true;
            }
            self.gaps.look(now);
            self.watch(now);
            self.load.responded(self.checks.engine().measured(), now);
        }
        self.stale |= self.load.tick(&mut self.desired, &self.workers, now);
        self.carry_out(out);
        if self.stale {
            self.look_at_quorums();
        }
        if self.stale || self.ahead.is_going() {
            self.publish_when_built();
        }
    }

    /// Takes back the commands that a worker has done.
    fn take_back(&mut self, worker: usize) {
        let (mut lists, mut traced) = (Vec::new(), Vec::new());
        self.workers[worker].collect(|done| match done {
            Message::List(request) => lists.push(request),
            Message::Trace(question) => traced.push(question),
            Message::Queues { port, rx, tx } => self.ports.returned(port, rx, tx),
            Message::Swap(old) => self.retired.free(old),
            // It goes with its records.
            Message::Capture(_) | Message::Quiesce | Message::Stop => {}
        });
        lists.iter().for_each(|request| self.list(request));
        traced
            .into_iter()
            .for_each(|question| self.traced(question));
    }

    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    fn look_at_ports(&mut self, now: Instant, out: &mut Output) {
        for (index, change) in self.ports.look(now, &mut self.workers) {
            if let Change::Reset { mac } = change {
                self.desired.set_port_mac(index, mac);
                for interface in self.desired.interfaces_of(index) {
                    self.kernel.set_mac(interface, mac);
                }
                let ports = net_ports(
                    &self.desired.config,
                    self.desired.ports(),
                    self.kernel.learned(),
                );
                self.net.set_ports(ports, now, out);
                self.rss.begin(index, self.ports.rss(index).as_ref(), now);
                self.desired.set_queues(self.rss.queues());
                self.stale = true;
                let port = self.desired.config.ports[index].name.clone();
                let message = format!("port {port}: reset by its device, and works again");
                self.tell(Happening::new(EventKind::PortReset, message).of_port(port));
            }
            for interface in self.desired.interfaces_of(index) {
                self.net.link_up(interface, now, out);
            }
        }
    }

    /// Linux has other addresses, routes or neighbours than before.
    fn follow_kernel(&mut self, now: Instant, out: &mut Output) {
        let (config, facts) = (&self.desired.config, self.desired.ports());
        let ports = net_ports(config, facts, self.kernel.learned());
        self.net.set_ports(ports, now, out);
        self.net
            .set_vips(net::vips(config, self.kernel.learned()), now);
        self.stale = true;
    }

    fn collect_removed(&mut self) {
        let workers = &self.workers;
        let has_connections = |id| news::tracked(workers, id) > 0;
        let generations = workers.iter().map(|w| w.counters.generation.get());
        let in_use = generations.min().unwrap_or(0);
        self.stale |= self.desired.collect_removed(in_use, has_connections);
    }

    /// Publishes, after the hash tables that are new have been built by another thread.
    fn publish_when_built(&mut self) {
        if self.ahead.is_ready(&mut self.desired) {
            self.publish();
        }
    }

    /// Builds the next snapshot and sends it to every worker.
    pub fn publish(&mut self) {
        self.stale = false;
        let next = self.desired.build(&self.net);
        self.ahead.is_used();
        let last = std::mem::replace(&mut self.current, next);
        self.retired.free(last);
        for worker in &mut self.workers {
            worker.publish(&self.current);
        }
        self.announce_vips();
        self.before = None;
    }

    /// Takes a new, valid configuration.
    pub fn apply(&mut self, config: Config, now: Instant) {
        if has_persistence(&config) {
            self.workers.iter().for_each(|w| w.templates.now());
        }
        let before = self.desired.replace(config);
        self.retired.free(before);
        self.checks.configure(&mut self.desired);
        self.load.configure(&mut self.desired, now);
        self.hooks.configure(&self.desired.config);
        let mut out = Output::default();
        let ports = net_ports(
            &self.desired.config,
            self.desired.ports(),
            self.kernel.learned(),
        );
        self.net.set_ports(ports, now, &mut out);
        self.net
            .set_vips(net::vips(&self.desired.config, self.kernel.learned()), now);
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
            rss: &self.rss,
            net: self.net.counters(),
            kernel: &self.kernel,
            standing: self.standing,
            uptime: self.started.elapsed(),
            notes: &self.notes,
            pulse: &self.pulse,
            pool: &self.pool,
        }
    }
}
