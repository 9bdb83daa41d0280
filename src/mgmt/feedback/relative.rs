//! The default policy: every backend gets connections in proportion to what it can do, and less
//! than that while more is piled up at it than elsewhere. Pure.
//!
//! Two parts, neither of which adds anything up, so nothing winds up. What a backend can do is
//! estimated (`capacity`), and weights follow the estimates once these differ by more than their
//! noise. What is piled up at a full backend is no estimate: that is known at once, and takes from
//! its share in proportion, as much as levels it out over `HORIZON` steps. A queue adds up what
//! comes in, so with half of the difference made good in a step there is no overshoot.
//!
//! Weights are relative: how loaded all are together changes none of them, so while everybody is
//! well below full, weights keep their ratios.

use super::capacity::{Capacity, Mean, notice_changes};
use super::input::View;

/// A factor's bounds: no backend gets less than a tenth or more than ten times its configured
/// share.
pub const MOST: f64 = 10.0;
/// Shares that differ from what is in force by less than this part of the room that the
/// busiest has left are not acted on, within these bounds: close to full, little matters much.
const DEAD_BAND: f64 = 0.4;
const NARROWEST: f64 = 0.04;
const WIDEST: f64 = 0.15;
/// Nor are estimates that differ by less than so many deviations of their own noise.
const SURE: f64 = 2.5;
/// A factor changes by at most this factor in one step.
pub const STEP: f64 = 2.0;
/// A backend that is busier than this is full: what waits there waits for it.
const FULL: f64 = 0.9;
/// Steps in which what is piled up is to be levelled out.
const HORIZON: f64 = 2.0;
/// What a full backend keeps of its share, however much is piled up.
const LEAST: f64 = 0.1;
/// Memory or disk in use above this share counts as load; below it is nobody's business.
const PRESSURE: f64 = 0.95;
/// An interval with fewer connections than this counts for less, and for nothing with none.
const ENOUGH: f64 = 20.0;

/// What the policy remembers of one backend.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Share of connections for each unit of configured weight, against the mean of all: what is
    /// in force, and what the backend's capacity asks for.
    pub factor: f64,
    due: f64,
    capacity: Capacity,
    /// Connections that lived at the last interval's end.
    live: Option<f64>,
    /// The shortest response time of late, in seconds.
    shortest: f64,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            factor: 1.0,
            due: 1.0,
            capacity: Capacity::default(),
            live: None,
            shortest: f64::INFINITY,
        }
    }
}

impl Memory {
    /// The backend was away: what it can do now is to be seen anew, from the share it had.
    pub fn begin_anew(&mut self) {
        *self = Self {
            factor: self.factor,
            due: self.due,
            ..Self::default()
        };
    }

    fn learn(&mut self, view: &View, load: f64, by_weight: f64, pass: Pass) {
        let grown = view
            .connections
            .zip(self.live)
            .map_or(0.0, |(now, then)| now - then);
        let part = (pass.took / pass.interval).min(1.0);
        if part <= 0.0 {
            return;
        }
        // Without a count the share in force stands for it.
        let (done, trust, count) = match view.rate {
            Some(rate) => {
                let done = (rate * pass.took - grown).max(0.0);
                (done / pass.took, (done / ENOUGH).min(part), done / part)
            }
            None => (by_weight, part, 0.0),
        };
        self.capacity.add(Mean { done, load }, trust, count);
    }

    /// Connections that wait at a full backend.
    fn piled_up(&self) -> f64 {
        let is_full = self.capacity.last_load() >= FULL;
        self.live.filter(|_| is_full).unwrap_or(0.0)
    }
}

/// The times of one pass, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Since the one before.
    pub took: f64,
    /// Until the next.
    pub ahead: f64,
    pub interval: f64,
    /// Too short for response times to say how busy a backend is.
    pub is_quick: bool,
}

/// One backend at one step.
pub struct Turn<'m> {
    pub memory: &'m mut Memory,
    pub configured: f64,
    pub view: View,
}

/// Brings all factors up to date. Returns each backend's load, where it is known; whose is not
/// goes back to its configured share.
pub fn step(turns: &mut [Turn<'_>], pass: Pass) -> Vec<Option<f64>> {
    let loads = loads(turns, pass);
    for (turn, load) in turns.iter_mut().zip(&loads) {
        if let Some(load) = *load {
            let by_weight = turn.configured * turn.memory.factor;
            turn.memory.learn(&turn.view, load, by_weight, pass);
        }
        turn.memory.live = turn.view.connections;
    }
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for (turn, load) in turns.iter_mut().zip(&loads) {
        match load {
            Some(_) => known.push(turn),
            None => unknown.push(turn),
        }
    }
    let capacities = known.iter_mut().map(|turn| &mut turn.memory.capacity);
    notice_changes(&mut capacities.collect::<Vec<_>>());
    let band = dead_band(&known);
    follow_capacities(&mut known, band);
    let wanted = relieved(&known, pass.ahead);
    let off =
        |(turn, wanted): (&&mut Turn<'_>, &f64)| (wanted / turn.memory.factor).ln().abs() > band;
    // Who is not heard goes all the way back to its configured share.
    let mut matters = known.iter().zip(&wanted).any(off);
    for turn in &mut unknown {
        turn.memory.due = 1.0;
        matters |= turn.memory.factor.ln().abs() > 1e-6;
    }
    if matters {
        let unknown = unknown.into_iter().map(|turn| (turn, 1.0));
        for (turn, wanted) in known.into_iter().zip(wanted).chain(unknown) {
            let factor = turn.memory.factor;
            turn.memory.factor = wanted.clamp(factor / STEP, factor * STEP);
        }
    }
    loads
}

fn dead_band(known: &[&mut Turn<'_>]) -> f64 {
    let loads = known.iter().map(|turn| turn.memory.capacity.load());
    let busiest = loads.fold(0.0, f64::max);
    (DEAD_BAND * (1.0 - busiest)).clamp(NARROWEST, WIDEST)
}

/// Takes over what the estimates ask for, once one of them is surely another than before: factors
/// with a mean of one.
fn follow_capacities(known: &mut [&mut Turn<'_>], band: f64) {
    let capacity: f64 = known.iter().map(|t| t.memory.capacity.get()).sum();
    let configured: f64 = known.iter().map(|t| t.configured).sum();
    // Without traffic there is nothing to learn.
    if capacity <= 0.0 {
        return;
    }
    let due = |turn: &Turn<'_>| {
        let share = turn.memory.capacity.get() / capacity;
        match turn.configured > 0.0 {
            true => (share / (turn.configured / configured)).clamp(1.0 / MOST, MOST),
            false => 1.0,
        }
    };
    let is_sure = |turn: &&mut Turn<'_>| {
        let memory = &*turn.memory;
        let off = (due(turn) / memory.due).ln().abs();
        off > band.max(SURE * memory.capacity.deviation())
    };
    if known.iter().any(is_sure) {
        for turn in known.iter_mut() {
            turn.memory.due = due(turn);
        }
    }
}

/// The factors that are due, less where more is piled up than elsewhere and more where less is:
/// what is taken from one is given to the others. What is piled up is counted in seconds of the
/// backend's own work, by Little's law.
fn relieved(known: &[&mut Turn<'_>], ahead: f64) -> Vec<f64> {
    let capacity: f64 = known.iter().map(|t| t.memory.capacity.get()).sum();
    let piled_up: f64 = known.iter().map(|t| t.memory.piled_up()).sum();
    let mean = if capacity > 0.0 {
        piled_up / capacity
    } else {
        0.0
    };
    let factor = |turn: &&mut Turn<'_>| {
        let (memory, own) = (&*turn.memory, turn.memory.capacity.get());
        if own <= 0.0 {
            return memory.due;
        }
        let excess = memory.piled_up() / own - mean;
        let part = (1.0 - excess / (HORIZON * ahead)).clamp(LEAST, 1.0 / LEAST);
        (memory.due * part).clamp(1.0 / MOST, MOST)
    };
    known.iter().map(factor).collect()
}

/// Loads that can be compared: from the processors where all have them, else from response times
/// where all have those, else from what each has.
fn loads(turns: &mut [Turn<'_>], pass: Pass) -> Vec<Option<f64>> {
    let each: Vec<(Option<f64>, Option<f64>)> = turns
        .iter_mut()
        .map(|turn| {
            let processor = processor_load(&turn.view);
            let response = (!pass.is_quick).then(|| response_load(turn, pass.took));
            (processor, response.flatten())
        })
        .collect();
    let known = || each.iter().filter(|(p, r)| p.is_some() || r.is_some());
    let by_response = known().any(|(p, _)| p.is_none()) && known().all(|(_, r)| r.is_some());
    let load = |(turn, (processor, response)): (&Turn<'_>, &(Option<f64>, Option<f64>))| {
        let load = match by_response {
            true => *response,
            false => processor.or(*response),
        }?;
        let pressed = [turn.view.memory, turn.view.disk];
        let pressure = pressed.into_iter().flatten().filter(|p| *p > PRESSURE);
        Some(pressure.fold(load, f64::max))
    };
    turns.iter().zip(&each).map(load).collect()
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
fn response_load(turn: &mut Turn<'_>, took: f64) -> Option<f64> {
    // The shortest is forgotten slowly, for a backend may have become slower for good.
    const FORGET: f64 = 1.002;
    let view = &turn.view;
    let stay = || {
        let rate = view.rate.filter(|rate| rate * took >= ENOUGH)?;
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
