//! The default policy: every backend gets connections in proportion to what it can do. Pure.
//!
//! It does not add up corrections. From connections and load together it estimates what each
//! backend can do: one that is 80 % busy with ending 100 connections a second can end 125. (Those
//! that end, not those that begin: then it holds in an overload, too.) The estimate does not
//! depend on the weight that led there, so acting on it does not disturb it, and there is nothing
//! to oscillate. Weights are relative: how loaded all are together changes
//! none of them, so while everybody is well below full, weights keep their ratios.

use super::input::View;

/// A factor's bounds: no backend gets less than a tenth or more than ten times its configured
/// share.
pub const MOST: f64 = 10.0;
/// Estimates that differ from what is in force by less than this part of the room that the
/// busiest has left are not acted on, within these bounds: close to full, little matters much.
const DEAD_BAND: f64 = 0.4;
const NARROWEST: f64 = 0.04;
const WIDEST: f64 = 0.15;
/// Nor are those that differ by less than so many deviations of their own noise.
const SURE: f64 = 2.5;
/// A factor changes by at most this factor in one interval.
pub const STEP: f64 = 2.0;
/// Weight of the newest interval in the quick and in the steady mean.
const QUICK: f64 = 0.4;
const STEADY: f64 = 0.05;
/// The quick mean off the steady one by this much (as a logarithm) and by so many deviations of
/// its noise, for so many intervals, means that the backend itself has changed.
const CHANGED: f64 = 0.22;
const CHANGED_SURE: f64 = 3.0;
const CHANGED_FOR: u32 = 2;
/// Variance of a single interval's estimate (as a logarithm) to begin with, and the weight of the
/// newest one.
const NOISE: f64 = 0.09;
const NOISE_SHARE: f64 = 0.1;
/// More than this is taken for a change that has gone unnoticed.
const MOST_NOISE: f64 = 0.16;
/// Added to every load: loads near nought say little about what a backend can do.
const FLOOR: f64 = 0.02;
/// Memory or disk in use above this share counts as load; below it is nobody's business.
const PRESSURE: f64 = 0.95;
/// An interval with fewer connections than this counts for less, and for nothing with none.
const ENOUGH: f64 = 20.0;

/// Means of connections done, each second, and load.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    done: f64,
    load: f64,
}

impl Mean {
    fn add(&mut self, new: Mean, share: f64) {
        self.done += (new.done - self.done) * share;
        self.load += (new.load - self.load) * share;
    }

    /// Connections a second that would fill the backend, but for a constant.
    fn ability(&self) -> f64 {
        self.done / (self.load + FLOOR)
    }
}

/// What the policy remembers of one backend.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Share of connections for each unit of configured weight, against the mean of all.
    pub factor: f64,
    quick: Mean,
    steady: Mean,
    /// The last interval alone, with the one before, and the connections that lived at its end.
    last: Mean,
    recent: Mean,
    live: Option<f64>,
    /// Intervals in the means, and how many of late found them apart.
    seen: f64,
    apart: u32,
    /// How far the estimates of single intervals lie off the steady one: a variance of logarithms.
    noise: f64,
    /// The shortest response time of late, in seconds.
    shortest: f64,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            factor: 1.0,
            quick: Mean::default(),
            steady: Mean::default(),
            last: Mean::default(),
            recent: Mean::default(),
            live: None,
            seen: 0.0,
            apart: 0,
            noise: NOISE,
            shortest: f64::INFINITY,
        }
    }
}

/// One backend at one step.
pub struct Turn<'m> {
    pub memory: &'m mut Memory,
    pub configured: f64,
    pub view: View,
}

/// Brings all factors up to date. Returns each backend's load, where it is known; whose is not
/// goes back to its configured share.
/// `interval` is in seconds.
pub fn step(turns: &mut [Turn<'_>], interval: f64) -> Vec<Option<f64>> {
    let loads = loads(turns, interval);
    for (turn, load) in turns.iter_mut().zip(&loads) {
        let live = std::mem::replace(&mut turn.memory.live, turn.view.connections);
        if let Some(load) = *load {
            let grown = turn
                .view
                .connections
                .zip(live)
                .map_or(0.0, |(now, then)| now - then);
            // Without a count the share in force stands for it.
            let by_weight = turn.configured * turn.memory.factor;
            let (done, trust) = match turn.view.rate {
                Some(rate) => {
                    let done = (rate * interval - grown).max(0.0);
                    (done / interval, (done / ENOUGH).min(1.0))
                }
                None => (by_weight, 1.0),
            };
            turn.memory.add(Mean { done, load }, trust);
        }
    }
    let known: Vec<bool> = loads.iter().map(Option::is_some).collect();
    notice_changes(turns, &known);
    let wanted = wanted(turns, &known);
    let band = dead_band(turns, &known);
    let matters = |((turn, wanted), known): ((&Turn<'_>, &f64), &bool)| {
        let off = (wanted / turn.memory.factor).ln().abs();
        // Who is not heard goes all the way back to its configured share.
        off > match known {
            true => band.max(SURE * turn.memory.deviation()),
            false => 1e-6,
        }
    };
    if turns.iter().zip(&wanted).zip(&known).any(matters) {
        for (turn, wanted) in turns.iter_mut().zip(&wanted) {
            let change = (wanted / turn.memory.factor).clamp(1.0 / STEP, STEP);
            turn.memory.factor *= change;
        }
    }
    loads
}

fn dead_band(turns: &[Turn<'_>], known: &[bool]) -> f64 {
    let loads = turns.iter().zip(known).filter(|(_, known)| **known);
    let busiest = loads
        .map(|(turn, _)| turn.memory.steady.load)
        .fold(0.0, f64::max);
    (DEAD_BAND * (1.0 - busiest)).clamp(NARROWEST, WIDEST)
}

/// The factors that the estimates ask for: a mean of one over those that are known, and one for
/// the others.
fn wanted(turns: &[Turn<'_>], known: &[bool]) -> Vec<f64> {
    let of_known = |of: &dyn Fn(&Turn<'_>) -> f64| -> f64 {
        let known = turns.iter().zip(known).filter(|(_, known)| **known);
        known.map(|(turn, _)| of(turn)).sum()
    };
    let ability = of_known(&|t| t.memory.steady.ability());
    let configured = of_known(&|t| t.configured);
    let factor = |(turn, known): (&Turn<'_>, &bool)| {
        if !known || turn.configured <= 0.0 {
            return 1.0;
        }
        // Without traffic there is nothing to learn.
        if ability <= 0.0 {
            return turn.memory.factor;
        }
        let share = turn.memory.steady.ability() / ability;
        (share / (turn.configured / configured)).clamp(1.0 / MOST, MOST)
    };
    turns.iter().zip(known).map(factor).collect()
}

/// Where the quick mean has left the steady one, the steady one starts anew from it. All are
/// compared as shares: more work for everybody is no change of anybody.
fn notice_changes(turns: &mut [Turn<'_>], known: &[bool]) {
    let sum = |of: &dyn Fn(&Memory) -> f64| -> f64 {
        let known = turns.iter().zip(known).filter(|(_, known)| **known);
        known.map(|(turn, _)| of(turn.memory)).sum()
    };
    let quick = sum(&|m| m.quick.ability());
    let steady = sum(&|m| m.steady.ability());
    for (turn, _) in turns.iter_mut().zip(known).filter(|(_, known)| **known) {
        let memory = &mut *turn.memory;
        let ratio = (memory.quick.ability() / quick) / (memory.steady.ability() / steady);
        let quick_noise = (memory.noise * QUICK / (2.0 - QUICK)).sqrt();
        let is_apart = ratio.ln().abs() > CHANGED.max(CHANGED_SURE * quick_noise);
        memory.apart = if is_apart { memory.apart + 1 } else { 0 };
        if memory.apart >= CHANGED_FOR {
            memory.steady = memory.recent;
            memory.quick = memory.recent;
            (memory.apart, memory.seen) = (0, 2.0);
        }
    }
}

impl Memory {
    /// `trust` from 0 to 1 is how much the interval counts.
    fn add(&mut self, new: Mean, trust: f64) {
        if trust <= 0.0 {
            return;
        }
        self.hear_noise(new, trust);
        self.recent = new;
        self.recent
            .add(self.last, if self.seen > 0.0 { 0.5 } else { 0.0 });
        self.last = new;
        self.seen += trust;
        // At first the mean of all there is.
        let all = 1.0 / self.seen.max(1.0);
        self.quick.add(new, trust * QUICK.max(all));
        self.steady.add(new, trust * STEADY.max(all));
    }

    /// One interval's estimate against the steady one. What lies far off is a change, no noise.
    fn hear_noise(&mut self, new: Mean, trust: f64) {
        const FAR: f64 = 4.0;
        let off = (new.ability() / self.steady.ability()).ln().powi(2);
        if self.seen > 0.0 && !off.is_nan() {
            let off = off.min(FAR * self.noise);
            self.noise += (off - self.noise) * NOISE_SHARE * trust;
            self.noise = self.noise.min(MOST_NOISE);
        }
    }

    /// The standard deviation of the steady estimate, as a logarithm.
    fn deviation(&self) -> f64 {
        let intervals = self.seen.clamp(1.0, (2.0 - STEADY) / STEADY);
        (self.noise / intervals).sqrt()
    }

    /// The backend was away: what it can do now is to be seen anew, from the share it had.
    pub fn begin_anew(&mut self) {
        *self = Self {
            factor: self.factor,
            ..Self::default()
        };
    }
}

/// Loads that can be compared: from the processors where all have them, from response times
/// where all have those, from both where both; else from what each has.
fn loads(turns: &mut [Turn<'_>], interval: f64) -> Vec<Option<f64>> {
    let each: Vec<(Option<f64>, Option<f64>)> = turns
        .iter_mut()
        .map(|turn| (processor_load(&turn.view), response_load(turn, interval)))
        .collect();
    let known = || each.iter().filter(|(p, r)| p.is_some() || r.is_some());
    let all_processors = known().all(|(p, _)| p.is_some());
    let all_responses = known().all(|(_, r)| r.is_some());
    let load = |(turn, (processor, response)): (&Turn<'_>, &(Option<f64>, Option<f64>))| {
        let load = match (all_processors, all_responses) {
            (true, false) => processor.or(*response)?,
            (false, true) => response.or(*processor)?,
            _ => mean_of(*processor, *response)?,
        };
        let pressed = [turn.view.memory, turn.view.disk];
        let pressure = pressed.into_iter().flatten().filter(|p| *p > PRESSURE);
        Some(pressure.fold(load, f64::max))
    };
    turns.iter().zip(&each).map(load).collect()
}

fn mean_of(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some((a + b) / 2.0),
        (a, b) => a.or(b),
    }
}

/// The processors' share in use; when they are full, the queue for them says how much too full.
fn processor_load(view: &View) -> Option<f64> {
    const FULL: f64 = 0.9;
    const MOST_LOAD: f64 = 4.0;
    match (view.cpu, view.load) {
        (Some(cpu), Some(load)) if cpu > FULL => Some(load.clamp(cpu, MOST_LOAD)),
        (Some(cpu), _) => Some(cpu),
        (None, load) => load.map(|load| load.min(MOST_LOAD)),
    }
}

/// What share of the time a request waits, by its response time against the shortest of late:
/// in a queue with one server that share is the load. Where nothing else is known, the time that
/// a connection lasts stands for the response time (Little's law).
fn response_load(turn: &mut Turn<'_>, interval: f64) -> Option<f64> {
    // The shortest is forgotten slowly, for a backend may have become slower for good.
    const FORGET: f64 = 1.002;
    let view = &turn.view;
    let stay = || {
        let rate = view.rate.filter(|rate| rate * interval >= ENOUGH)?;
        Some(view.connections? / rate)
    };
    let response = view
        .response
        .or_else(|| view.cpu.or(view.load).map_or_else(stay, |_| None));
    let response = response.filter(|r| *r > 0.0)?;
    let memory = &mut *turn.memory;
    memory.shortest = (memory.shortest * FORGET).min(response);
    Some(1.0 - memory.shortest / response)
}
