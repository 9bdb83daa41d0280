//! One service's weights: what was observed goes in, weights with reasons come out.
//! Pure; the clock is a parameter, the time since any fixed moment.

use std::time::Duration;

use super::agent::{Advice, Order};
use super::input::{Inputs, View};
use super::reason::Reason;
use super::sample::{Sample, Source};
use super::{lvs, relative, whole};
use crate::lb::snapshot::BackendId;

/// Which loads change weights, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    #[default]
    Relative,
    /// The LVS project's formula.
    Lvs,
    /// Loads change nothing; agents' words and slow start do.
    Fixed,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Spec {
    pub policy: Policy,
    /// Between two steps.
    pub interval: Duration,
    /// How long a backend that comes back takes to its full share; nought: no time.
    pub slow_start: Duration,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            interval: Duration::from_secs(5),
            slow_start: Duration::ZERO,
        }
    }
}

/// A backend as configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    pub id: BackendId,
    /// 0: never chosen.
    pub weight: u32,
}

/// A backend's weights, for people.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    pub id: BackendId,
    pub configured: u32,
    /// The weight in force. Weights in force are proportions among the service's backends; only
    /// when all are as configured are the numbers the configured ones.
    pub weight: u32,
    pub reason: Reason,
    /// Sources that cannot be used at the moment, and why.
    pub faults: Vec<String>,
}

/// Intervals of silence after which an input no longer counts.
const STALE_AFTER: u32 = 3;
/// What a backend that comes back begins with.
const SLOWEST: f64 = 0.1;
/// Steps in the first interval in which there are connections.
pub(super) const QUICK: u32 = 10;

#[derive(Debug)]
struct Backend {
    id: BackendId,
    configured: u32,
    inputs: Inputs,
    heard: Option<Duration>,
    percent: u32,
    order: Order,
    is_up: bool,
    why_down: Option<String>,
    faults: Vec<(Source, String)>,
    is_away: bool,
    back_since: Option<Duration>,
    memory: relative::Memory,
    lvs_weight: f64,
    weight: u32,
    reason: Reason,
}

impl Backend {
    fn new(member: Member) -> Self {
        Self {
            id: member.id,
            configured: member.weight,
            inputs: Inputs::default(),
            heard: None,
            percent: 100,
            order: Order::Ready,
            is_up: true,
            why_down: None,
            faults: Vec::new(),
            is_away: false,
            back_since: None,
            memory: relative::Memory::default(),
            lvs_weight: f64::from(member.weight),
            weight: member.weight,
            reason: Reason::Configured,
        }
    }

    fn take_advice(&mut self, advice: Advice) {
        if let Some(percent) = advice.percent {
            self.percent = percent;
        }
        if let Some(order) = advice.order {
            self.order = order;
        }
        if let Some(up) = advice.up {
            self.is_up = up;
        }
        if self.is_up {
            self.why_down = None;
        } else if advice.reason.is_some() {
            self.why_down = advice.reason;
        }
    }

    /// Why it gets nothing at all, if so.
    fn shut(&self) -> Option<Reason> {
        match self.order {
            _ if self.configured == 0 => Some(Reason::Configured),
            Order::Drain => Some(Reason::Drain),
            Order::Maintenance => Some(Reason::Maintenance),
            Order::Ready if !self.is_up => Some(Reason::Down(self.why_down.clone())),
            Order::Ready if self.percent == 0 => Some(Reason::Percent(0)),
            Order::Ready => None,
        }
    }

    /// The part of its share that slow start allows.
    fn ramp(&mut self, slow_start: Duration, now: Duration) -> f64 {
        let Some(since) = self.back_since else {
            return 1.0;
        };
        let done = now.saturating_sub(since).as_secs_f64() / slow_start.as_secs_f64();
        // Not less than one also when there is no slow start and the quotient no number.
        if done.is_nan() || done >= 1.0 {
            self.back_since = None;
            return 1.0;
        }
        done.max(SLOWEST)
    }
}

/// The weights of one service.
#[derive(Debug)]
pub struct Controller {
    spec: Spec,
    backends: Vec<Backend>,
    /// When the last step was made.
    stepped: Option<Duration>,
    /// There were new connections before it.
    is_busy: bool,
    /// Quick steps with connections.
    quick_steps: u32,
}

impl Controller {
    /// All backends begin at their configured weights.
    pub fn new(spec: Spec, members: &[Member]) -> Self {
        Self {
            spec,
            backends: members.iter().copied().map(Backend::new).collect(),
            stepped: None,
            is_busy: false,
            quick_steps: 0,
        }
    }

    /// Follows a reload: who stays keeps what is known of it. True where a weight is another one.
    pub fn configure(&mut self, spec: Spec, members: &[Member]) -> bool {
        self.spec = spec;
        let mut changed = false;
        let mut old = std::mem::take(&mut self.backends);
        let keep = |member: &Member| {
            let at = old.iter().position(|b| b.id == member.id);
            let mut backend = at.map_or_else(|| Backend::new(*member), |at| old.swap_remove(at));
            if backend.configured != member.weight {
                changed = true;
                backend.configured = member.weight;
                backend.lvs_weight = f64::from(member.weight);
            }
            backend
        };
        self.backends = members.iter().map(keep).collect();
        changed
    }

    /// Takes in an observation. What cannot be believed is left out and named in the status.
    pub fn observe(&mut self, id: BackendId, sample: Sample, now: Duration) {
        let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) else {
            return;
        };
        let source = sample.source;
        let (sample, absurd) = sample.believe();
        backend.faults.retain(|(from, _)| *from != source);
        if let Some(absurd) = absurd {
            backend.faults.push((source, absurd.to_string()));
        }
        let inputs = &mut backend.inputs;
        let response = sample.response.map(|r| r.as_secs_f64());
        let loads = [
            (&mut inputs.response, response),
            (&mut inputs.cpu, sample.cpu),
            (&mut inputs.memory, sample.memory),
            (&mut inputs.disk, sample.disk),
            (&mut inputs.load, sample.load),
        ];
        for (input, value) in loads {
            if let Some(value) = value {
                input.add(value, now);
                backend.heard = Some(now);
            }
        }
        for (input, value) in [
            (&mut inputs.rate, sample.rate),
            (&mut inputs.connections, sample.connections),
        ] {
            if let Some(value) = value {
                input.add(value, now);
            }
        }
        if let Some(advice) = sample.advice {
            backend.take_advice(advice);
        }
    }

    /// A source failed: its fault is named until it is heard again. Weights do not change for it.
    pub fn fault(&mut self, id: BackendId, source: Source, why: String) {
        if let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) {
            backend.faults.retain(|(from, _)| *from != source);
            backend.faults.push((source, why));
        }
    }

    /// The checks found the backend down: until it comes back nothing is learned from it.
    pub fn went_down(&mut self, id: BackendId) {
        if let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) {
            backend.is_away = true;
        }
    }

    /// The checks found the backend well again. True where its slow start begins.
    pub fn came_back(&mut self, id: BackendId, now: Duration) -> bool {
        let is_slow = self.spec.slow_start > Duration::ZERO;
        if let Some(backend) = self.backends.iter_mut().find(|b| b.id == id) {
            backend.is_away = false;
            backend.memory.begin_anew();
            backend.back_since = is_slow.then_some(now);
        }
        is_slow
    }

    /// Not an interval's worth of connections has been seen, so that steps come quickly.
    pub fn is_new(&self) -> bool {
        self.spec.policy == Policy::Relative && self.quick_steps < QUICK
    }

    /// There were new connections before the last step.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// How long after a step the next one is due.
    pub fn wait(&self) -> Duration {
        match self.is_new() {
            true => self.spec.interval / QUICK,
            false => self.spec.interval,
        }
    }

    /// Called every [`Self::wait`]. The first step marks the beginning of what is seen. Returns the
    /// weights that changed.
    pub fn step(&mut self, now: Duration) -> Vec<(BackendId, u32, Reason)> {
        let stale = self.spec.interval * STALE_AFTER;
        let took = now.saturating_sub(self.stepped.replace(now).unwrap_or(now));
        let views: Vec<View> = self
            .backends
            .iter_mut()
            .map(|b| b.inputs.take(now, stale))
            .collect();
        self.is_busy = views.iter().any(|v| v.rate.is_some_and(|rate| rate > 0.0));
        let is_quick = self.is_new();
        self.quick_steps += u32::from(is_quick && self.is_busy);
        let wanted = match self.spec.policy {
            Policy::Relative => self.relative(&views, took, is_quick, now),
            Policy::Lvs => self.lvs(&views),
            Policy::Fixed => self.backends.iter().map(fixed).collect(),
        };
        let weights = self.compose(wanted, now);
        let mut changed = Vec::new();
        for (backend, (weight, reason)) in self.backends.iter_mut().zip(weights) {
            backend.reason = reason;
            if backend.weight != weight {
                backend.weight = weight;
                changed.push((backend.id, weight, backend.reason.clone()));
            }
        }
        changed
    }

    pub fn status(&self) -> Vec<Status> {
        let fault = |(source, why): &(Source, String)| format!("{}: {why}", source.name());
        let status = |backend: &Backend| Status {
            id: backend.id,
            configured: backend.configured,
            weight: backend.weight,
            reason: backend.reason.clone(),
            faults: backend.faults.iter().map(fault).collect(),
        };
        self.backends.iter().map(status).collect()
    }

    /// Each backend's weight by the default policy, with the reason.
    fn relative(
        &mut self,
        views: &[View],
        took: Duration,
        is_quick: bool,
        now: Duration,
    ) -> Vec<(f64, Reason)> {
        let pass = relative::Pass {
            took: took.as_secs_f64(),
            ahead: self.wait().as_secs_f64(),
            interval: self.spec.interval.as_secs_f64(),
            is_quick,
        };
        let mut turns: Vec<relative::Turn<'_>> = Vec::with_capacity(views.len());
        for (backend, view) in self.backends.iter_mut().zip(views) {
            // Who gets nothing has no share for others to be compared with.
            let is_out = backend.is_away || backend.shut().is_some();
            turns.push(relative::Turn {
                memory: &mut backend.memory,
                configured: f64::from(backend.configured),
                view: if is_out { View::default() } else { *view },
            });
        }
        let loads = relative::step(&mut turns, pass);
        let known = || loads.iter().flatten();
        let mean = known().sum::<f64>() / known().count().max(1) as f64;
        let weight = |(backend, load): (&Backend, &Option<f64>)| {
            let share = backend.memory.factor;
            let reason = match (*load, backend.heard) {
                (Some(own), _) => Reason::Load { own, mean, share },
                (None, Some(heard)) => Reason::Stale(now.saturating_sub(heard)),
                (None, None) => Reason::Configured,
            };
            (f64::from(backend.configured) * share, reason)
        };
        self.backends.iter().zip(&loads).map(weight).collect()
    }

    /// Each backend's weight by the LVS formula. Were nobody reachable, all would be at nought
    /// for a fault of the monitoring: then everybody keeps the configured weight.
    fn lvs(&mut self, views: &[View]) -> Vec<(f64, Reason)> {
        let loads = lvs::aggregate_loads(views);
        let known = || loads.iter().flatten();
        if known().count() == 0 {
            return self.backends.iter().map(fixed).collect();
        }
        let mean = known().sum::<f64>() / known().count() as f64;
        let weight = |(backend, load): (&mut Backend, &Option<f64>)| {
            let next = lvs::next_weight(backend.lvs_weight, backend.configured, *load);
            backend.lvs_weight = next;
            let in_force = f64::from(backend.weight);
            let is_near = (next - in_force).abs() <= lvs::THRESHOLD * in_force && next > 0.0;
            let reason = load.map_or(Reason::Unreachable, |own| Reason::Load {
                own,
                mean,
                share: next / f64::from(backend.configured.max(1)),
            });
            (if is_near { in_force } else { next }, reason)
        };
        self.backends.iter_mut().zip(&loads).map(weight).collect()
    }

    /// What agents and slow start leave of the policy's weights, in whole numbers.
    fn compose(&mut self, wanted: Vec<(f64, Reason)>, now: Duration) -> Vec<(u32, Reason)> {
        let slow_start = self.spec.slow_start;
        let mut composed: Vec<(f64, Reason)> = Vec::with_capacity(wanted.len());
        for (backend, (weight, mut reason)) in self.backends.iter_mut().zip(wanted) {
            let ramp = backend.ramp(slow_start, now);
            if let Some(shut) = backend.shut() {
                composed.push((0.0, shut));
                continue;
            }
            if backend.percent != 100 {
                reason = Reason::Percent(backend.percent);
            }
            if ramp < 1.0 {
                let percent = (ramp * 100.0) as u32;
                reason = Reason::SlowStart { percent };
            }
            let configured = f64::from(backend.configured);
            let bounded = (weight * f64::from(backend.percent) / 100.0 * ramp)
                .clamp(configured / relative::MOST, configured * relative::MOST);
            composed.push((if weight > 0.0 { bounded } else { 0.0 }, reason));
        }
        let weights: Vec<f64> = composed.iter().map(|(weight, _)| *weight).collect();
        let whole = self.whole(&weights);
        let parts = composed.into_iter().zip(whole);
        parts
            .map(|((_, reason), weight)| (weight, reason))
            .collect()
    }

    /// The configured numbers wherever the proportions are theirs.
    fn whole(&self, weights: &[f64]) -> Vec<u32> {
        if self.spec.policy == Policy::Lvs {
            let round = |w: &f64| {
                if *w > 0.0 {
                    w.round().max(1.0) as u32
                } else {
                    0
                }
            };
            return weights.iter().map(round).collect();
        }
        let live = || {
            let pairs = self.backends.iter().zip(weights);
            pairs
                .filter(|(_, w)| **w > 0.0)
                .map(|(b, w)| w / f64::from(b.configured))
        };
        let most = live().fold(0.0, f64::max);
        let least = live().fold(f64::INFINITY, f64::min);
        if most > least * whole::TOLERANCE {
            return whole::simplest(weights);
        }
        let configured = |(b, w): (&Backend, &f64)| if *w > 0.0 { b.configured } else { 0 };
        self.backends.iter().zip(weights).map(configured).collect()
    }
}

/// As configured; agents and slow start may still take from it.
fn fixed(backend: &Backend) -> (f64, Reason) {
    (f64::from(backend.configured), Reason::Configured)
}
