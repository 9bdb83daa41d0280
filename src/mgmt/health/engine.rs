//! Which check is due when, and what its results change.
//!
//! `HealthEngine` is the handle that the rest of the management thread holds; `Runner` is the
//! one task that owns the checks, starts their probes and counts their results. It takes what is
//! desired as a whole and keeps what has not changed. What it never does: touch a snapshot, send
//! a frame, or decide about anything but up, down and weight of one backend.

use super::checker::{Checker, Start, Thresholds};
use super::probe::{self, Answer, Failure, Probe, Subject};
use super::route::{Outgoing, Route};
use super::stack::{self, Stack, StackCounters};
use crate::lb::snapshot::BackendId;
use crate::mgmt::timers::Timers;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};

/// A check of one backend of one service.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckSpec {
    /// Whom it is about, whatever the names: one check for each. A service's backend has an id of
    /// its own.
    pub id: BackendId,
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub probe: Probe,
    pub route: Route,
    /// From the start of one check to the start of the next.
    pub interval: Duration,
    /// A check without an answer by then has failed. Not longer than `interval`.
    pub timeout: Duration,
    /// Each interval is lengthened or shortened by up to half of this.
    pub jitter: Duration,
    pub thresholds: Thresholds,
    pub start: Start,
    /// Whether good answers' times are kept for [`HealthEngine::measured`].
    pub measure: bool,
}

/// A backend's state or weight is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    pub id: BackendId,
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub up: bool,
    /// A weight the check sets, where it does.
    pub weight: Option<u16>,
    /// The kind of check.
    pub check: &'static str,
    /// The answer that decided.
    pub answer: String,
    pub took: Duration,
}

/// What status and metrics show of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub id: BackendId,
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub check: &'static str,
    pub up: bool,
    pub weight: Option<u16>,
    /// The last answer; empty before the first.
    pub answer: String,
    /// The last answer that was not good; empty where there was none.
    pub failure: String,
    /// Of the last good answer.
    pub took: Duration,
    pub checks: u64,
    pub failures: u64,
}

impl std::fmt::Display for Report {
    /// The check, and the answer that speaks for the state it is in.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.up, self.checks, &*self.failure) {
            (_, 0, _) => write!(f, "{} check: no answer yet", self.check),
            (false, _, failure) if !failure.is_empty() => {
                write!(f, "{} check: {failure}", self.check)
            }
            _ => write!(f, "{} check: {}", self.check, self.answer),
        }
    }
}

/// How well the engine keeps up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// Probes started.
    pub started: u64,
    /// Started more than a tenth of their interval after they were due.
    pub late: u64,
    /// Not started, because the one before had not ended.
    pub skipped: u64,
    /// Ended without a verdict, because management was late itself.
    pub unjudged: u64,
    /// The longest that one started after it was due.
    pub worst: Duration,
}

#[derive(Default)]
struct Shown {
    reports: HashMap<BackendId, Report>,
    pace: Pace,
    measured: Vec<(BackendId, Duration)>,
}

/// Response times that wait for [`HealthEngine::measured`]; beyond that the newest are lost.
const MEASURED: usize = 65_536;

/// A handle; clones share the engine.
#[derive(Clone)]
pub struct HealthEngine {
    stack: Stack,
    desired: mpsc::UnboundedSender<Vec<CheckSpec>>,
    shown: Arc<Mutex<Shown>>,
}

/// The engine's task.
pub struct Runner {
    stack: Stack,
    desired: mpsc::UnboundedReceiver<Vec<CheckSpec>>,
    transitions: mpsc::UnboundedSender<Transition>,
    shown: Arc<Mutex<Shown>>,
    checks: HashMap<u64, Check>,
    ids: HashMap<BackendId, u64>,
    last_id: u64,
    timers: Timers<u64>,
    probes: JoinSet<(u64, Result<Answer, Failure>)>,
}

struct Check {
    spec: Arc<CheckSpec>,
    checker: Checker,
    weight: Option<u16>,
    due: Instant,
    running: Option<AbortHandle>,
    /// It was due while the one before had not ended, which it will any moment: it is started then.
    follows: Option<Instant>,
}

impl HealthEngine {
    /// Probes' packets leave by `out` (when it is full, the packet is lost and counted), changes
    /// by `transitions`. `mtu` is the smallest of the ports' MTUs, bytes. Nothing happens until
    /// the `Runner` runs.
    #[must_use]
    pub fn new(
        mtu: u16,
        out: mpsc::Sender<Outgoing>,
        transitions: mpsc::UnboundedSender<Transition>,
    ) -> (Self, Runner) {
        let stack = Stack::new(out, mtu.into());
        let (sender, desired) = mpsc::unbounded_channel();
        let shown = Arc::new(Mutex::new(Shown::default()));
        let runner = Runner {
            stack: stack.clone(),
            desired,
            transitions,
            shown: shown.clone(),
            checks: HashMap::new(),
            ids: HashMap::new(),
            last_id: 0,
            timers: Timers::new(),
            probes: JoinSet::new(),
        };
        let engine = Self {
            stack,
            desired: sender,
            shown,
        };
        (engine, runner)
    }

    /// Makes exactly these the checks, one for each id. A check that stays
    /// keeps its state, also where its options change; a new one starts as its `start` says
    /// and reports no transition for that.
    pub fn apply(&self, specs: Vec<CheckSpec>) {
        // The runner has ended only when the program ends.
        let _ = self.desired.send(specs);
    }

    /// Takes a punted IP packet (no Ethernet header) that is addressed to a check address.
    /// `stamp` is when the worker had it. False if no probe is waiting for it.
    pub fn receive(&self, packet: &[u8], stamp: Instant) -> bool {
        self.stack.receive(packet, stamp)
    }

    /// Every check, in no order.
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        let shown = stack::lock(&self.shown);
        shown.reports.values().cloned().collect()
    }

    /// The report on one backend.
    #[must_use]
    pub fn report(&self, id: BackendId) -> Option<Report> {
        stack::lock(&self.shown).reports.get(&id).cloned()
    }

    /// The times that good answers took since the last call, of checks that are to be measured.
    #[must_use]
    pub fn measured(&self) -> Vec<(BackendId, Duration)> {
        std::mem::take(&mut stack::lock(&self.shown).measured)
    }

    #[must_use]
    pub fn pace(&self) -> Pace {
        stack::lock(&self.shown).pace
    }

    #[must_use]
    pub fn packets(&self) -> StackCounters {
        self.stack.counters()
    }

    /// Probes that wait for an answer now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.stack.in_flight()
    }
}

impl Runner {
    /// Runs until every `HealthEngine` handle is gone.
    pub async fn run(&mut self) {
        loop {
            let next = self.timers.next();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                desired = self.desired.recv() => match desired {
                    Some(specs) => self.replace(specs),
                    None => return,
                },
                Some(done) = self.probes.join_next() => self.ended(done),
                () = due => self.start_due(),
            }
        }
    }

    /// After a panic: no probe is under way, and every check is due within its interval. What is
    /// known of the backends stays.
    pub fn put_in_order(&mut self) {
        self.probes = JoinSet::new();
        self.timers = Timers::new();
        for (id, check) in &mut self.checks {
            (check.running, check.follows) = (None, None);
            check.due = now() + self.timers.part(check.spec.interval);
            self.timers.set(*id, check.due);
        }
    }

    fn ended(&mut self, done: Result<(u64, Result<Answer, Failure>), JoinError>) {
        match done {
            Ok((id, result)) => self.finished(id, result),
            // It belongs to a check that is gone or was changed.
            Err(error) if error.is_cancelled() => {}
            Err(panicked) => {
                let is_it = |check: &Check| {
                    let probe = check.running.as_ref();
                    probe.is_some_and(|probe| probe.id() == panicked.id())
                };
                let mut checks = self.checks.iter();
                if let Some(id) = checks.find(|(_, check)| is_it(check)).map(|(id, _)| *id) {
                    let why = "a fault in evenkeel, which its log describes";
                    self.finished(id, Err(Failure::NotChecked(why.into())));
                }
            }
        }
    }

    fn replace(&mut self, specs: Vec<CheckSpec>) {
        let desired: HashSet<BackendId> = specs.iter().map(|spec| spec.id).collect();
        let all = self.ids.keys().copied();
        let gone: Vec<BackendId> = all.filter(|id| !desired.contains(id)).collect();
        for backend in gone {
            self.remove(backend);
        }
        for spec in specs {
            match self.ids.get(&spec.id).copied() {
                Some(id) => self.change(id, spec),
                None => self.add(spec),
            }
        }
    }

    fn remove(&mut self, backend: BackendId) {
        let Some(id) = self.ids.remove(&backend) else {
            return;
        };
        if let Some(check) = self.checks.remove(&id) {
            self.timers.cancel(id, Some(check.due));
            check.stop();
        }
        stack::lock(&self.shown).reports.remove(&backend);
    }

    fn add(&mut self, spec: CheckSpec) {
        // Spread over the first interval, and so for ever.
        let due = now() + self.timers.part(spec.interval);
        let check = Check {
            checker: Checker::new(spec.start, spec.thresholds),
            spec: Arc::new(spec),
            weight: None,
            due,
            running: None,
            follows: None,
        };
        self.show(&check, None);
        self.insert(check);
    }

    /// Under an id of its own, so that no earlier probe's result can be taken for its.
    fn insert(&mut self, check: Check) {
        self.last_id += 1;
        let id = self.last_id;
        self.ids.insert(check.spec.id, id);
        self.timers.set(id, check.due);
        self.checks.insert(id, check);
    }

    fn change(&mut self, id: u64, spec: CheckSpec) {
        if self.checks.get(&id).is_none_or(|check| *check.spec == spec) {
            return;
        }
        let Some(mut check) = self.checks.remove(&id) else {
            return;
        };
        self.timers.cancel(id, Some(check.due));
        // What is still being asked was asked in the old way.
        check.stop();
        (check.running, check.follows) = (None, None);
        check.checker.set_thresholds(spec.thresholds);
        let soon = now() + self.timers.part(spec.interval);
        check.due = soon.min(check.due);
        check.spec = Arc::new(spec);
        self.show(&check, None);
        self.insert(check);
    }

    fn start_due(&mut self) {
        let now = now();
        while let Some(id) = self.timers.pop_due(now) {
            let Some(check) = self.checks.get_mut(&id) else {
                continue;
            };
            let spec = check.spec.clone();
            let was_due = check.due;
            let late = now.saturating_duration_since(was_due);
            // By the plan and not by the clock, so that lateness does not add up; after a long
            // stall the plan starts anew.
            let wobble = self.timers.part(spec.jitter);
            let pause = spec.interval.saturating_sub(spec.jitter / 2) + wobble;
            let planned = check.due + pause;
            check.due = if planned > now { planned } else { now + pause };
            self.timers.set(id, check.due);
            if check.running.is_none() {
                self.begin(id, late);
            } else if spec.timeout <= spec.interval {
                // The one before has used up all its time, and ends now.
                check.follows = Some(was_due);
            } else {
                stack::lock(&self.shown).pace.skipped += 1;
            }
        }
    }

    fn begin(&mut self, id: u64, late: Duration) {
        let Some(check) = self.checks.get_mut(&id) else {
            return;
        };
        let spec = check.spec.clone();
        let mut shown = stack::lock(&self.shown);
        shown.pace.started += 1;
        shown.pace.late += u64::from(late > spec.interval / 10);
        shown.pace.worst = shown.pace.worst.max(late);
        drop(shown);
        let stack = self.stack.clone();
        let probe = self
            .probes
            .spawn(async move { (id, ask(&stack, &spec).await) });
        check.running = Some(probe);
    }

    fn finished(&mut self, id: u64, result: Result<Answer, Failure>) {
        let Some(check) = self.checks.get_mut(&id) else {
            return;
        };
        check.running = None;
        let follows = check.follows.take();
        if matches!(result, Err(Failure::Unjudged)) {
            stack::lock(&self.shown).pace.unjudged += 1;
            if let Some(due) = follows {
                self.begin(id, now().saturating_duration_since(due));
            }
            return;
        }
        let good = result.is_ok();
        let changed = check.checker.record(good).is_some();
        let (answer, took, weight) = match result {
            Ok(answer) => (answer.text, answer.took, answer.weight),
            Err(why) => (why.to_string(), Duration::ZERO, None),
        };
        let other_weight = good && weight != check.weight;
        if other_weight {
            check.weight = weight;
        }
        let Some(check) = self.checks.get(&id) else {
            return;
        };
        let up = check.checker.is_up();
        if changed || (other_weight && up) {
            // Nobody may listen any more while the program ends.
            let _ = self.transitions.send(Transition {
                id: check.spec.id,
                service: check.spec.service.clone(),
                backend: check.spec.backend.clone(),
                up,
                weight: check.weight,
                check: check.spec.probe.name(),
                answer: answer.clone(),
                took,
            });
        }
        self.show(check, Some((answer, took, good)));
        if let Some(due) = follows {
            self.begin(id, now().saturating_duration_since(due));
        }
    }

    fn show(&self, check: &Check, result: Option<(String, Duration, bool)>) {
        let spec = &check.spec;
        let mut shown = stack::lock(&self.shown);
        if let Some((_, took, true)) = result
            && spec.measure
            && shown.measured.len() < MEASURED
        {
            shown.measured.push((spec.id, took));
        }
        let report = shown.reports.entry(spec.id).or_insert_with(|| Report {
            id: spec.id,
            service: spec.service.clone(),
            backend: spec.backend.clone(),
            check: spec.probe.name(),
            up: false,
            weight: None,
            answer: String::new(),
            failure: String::new(),
            took: Duration::ZERO,
            checks: 0,
            failures: 0,
        });
        report.backend = spec.backend.clone();
        report.check = spec.probe.name();
        report.up = check.checker.is_up();
        report.weight = check.weight;
        if let Some((answer, took, good)) = result {
            if good {
                report.took = took;
            } else {
                report.failure.clone_from(&answer);
            }
            report.answer = answer;
            report.checks += 1;
            report.failures += u64::from(!good);
        }
    }
}

impl Check {
    fn stop(&self) {
        if let Some(probe) = &self.running {
            probe.abort();
        }
    }
}

async fn ask(stack: &Stack, spec: &CheckSpec) -> Result<Answer, Failure> {
    let subject = Subject {
        service: &spec.service,
        backend: &spec.backend,
    };
    probe::run(stack, &spec.probe, spec.route, subject, spec.timeout).await
}

/// tokio's clock, which tests can stop and move.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
