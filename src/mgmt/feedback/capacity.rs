//! What a backend can do, estimated from what it did and how busy it was meanwhile. Pure.
//!
//! One that is 80 % busy with ending 100 connections a second can end 125. (Those that end, not
//! those that begin: then it holds in an overload, too.) The estimate does not depend on the weight
//! that led there, so acting on it does not disturb it, and there is nothing to oscillate.

/// Weight of the newest interval in the quick and in the steady mean.
const QUICK: f64 = 0.4;
const STEADY: f64 = 0.05;
/// The quick mean off the steady one by this much (as a logarithm) and by so many deviations of
/// its noise, for so many intervals, means that the backend itself has changed.
const CHANGED: f64 = 0.22;
const CHANGED_SURE: f64 = 3.0;
const CHANGED_FOR: u32 = 2;
/// Variance of a single interval's estimate (as a logarithm) until it is measured: that of the mean
/// of so many service times with this squared coefficient of variation, which is heavy-tailed.
const VARIATION: f64 = 10.0;
const LEAST_NOISE: f64 = 0.01;
/// More than this is taken for a change that has gone unnoticed.
const MOST_NOISE: f64 = 0.16;
/// For how many intervals that counts beside what is measured, and the weight of the newest one.
const NOISE_PRIOR: f64 = 2.0;
const NOISE_SHARE: f64 = 0.1;
/// Added to every load: loads near nought say little about what a backend can do.
const FLOOR: f64 = 0.02;

/// Means of connections done, each second, and load.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean {
    pub(super) done: f64,
    pub(super) load: f64,
}

impl Mean {
    fn add(&mut self, new: Mean, share: f64) {
        self.done += (new.done - self.done) * share;
        self.load += (new.load - self.load) * share;
    }

    /// Connections a second that would fill the backend, but for a constant.
    fn capacity(&self) -> f64 {
        self.done / (self.load + FLOOR)
    }
}

/// What is known of one backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    quick: Mean,
    steady: Mean,
    /// The last interval alone, and with the one before.
    last: Mean,
    recent: Mean,
    /// Intervals in the means, and how many of late found them apart.
    seen: f64,
    apart: u32,
    /// How far the estimates of single intervals lie off the steady one: a variance of logarithms.
    noise: f64,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            quick: Mean::default(),
            steady: Mean::default(),
            last: Mean::default(),
            recent: Mean::default(),
            seen: 0.0,
            apart: 0,
            noise: MOST_NOISE,
        }
    }
}

impl Capacity {
    /// `trust` from 0 to 1 is how much the pass counts: the part of an interval that it looks at,
    /// and less where little was done. `count` is how many connections an interval like it ends.
    pub(super) fn add(&mut self, new: Mean, trust: f64, count: f64) {
        if trust <= 0.0 {
            return;
        }
        if self.seen == 0.0 {
            self.noise = (VARIATION / count).clamp(LEAST_NOISE, MOST_NOISE);
        }
        self.hear_noise(new, trust);
        self.recent = new;
        self.recent
            .add(self.last, if self.seen > 0.0 { 0.5 } else { 0.0 });
        self.last = new;
        self.seen += trust;
        // At first the mean of all there is.
        let all = trust / self.seen;
        self.quick.add(new, all.max(trust * QUICK));
        self.steady.add(new, all.max(trust * STEADY));
    }

    /// One interval's estimate against the steady one. What lies far off is a change, no noise.
    fn hear_noise(&mut self, new: Mean, trust: f64) {
        const FAR: f64 = 4.0;
        let off = (new.capacity() / self.steady.capacity()).ln().powi(2);
        if self.seen > 0.0 && !off.is_nan() {
            let off = (off * trust).min(FAR * self.noise);
            let share = NOISE_SHARE.max(1.0 / (self.seen + NOISE_PRIOR));
            self.noise += (off - self.noise) * share * trust;
            self.noise = self.noise.min(MOST_NOISE);
        }
    }

    /// Connections a second that would fill it.
    pub(super) fn get(&self) -> f64 {
        self.steady.capacity()
    }

    /// The estimate's standard deviation, as a logarithm.
    pub(super) fn deviation(&self) -> f64 {
        let intervals = self.seen.min((2.0 - STEADY) / STEADY);
        (self.noise / intervals).sqrt()
    }

    /// How busy it was of late, and in the last pass.
    pub(super) fn load(&self) -> f64 {
        self.steady.load
    }

    pub(super) fn last_load(&self) -> f64 {
        self.last.load
    }
}

/// Where the quick mean has left the steady one, the steady one starts anew from it. All are
/// compared as shares: more work for everybody is no change of anybody.
pub(super) fn notice_changes(all: &mut [&mut Capacity]) {
    let quick: f64 = all.iter().map(|c| c.quick.capacity()).sum();
    let steady: f64 = all.iter().map(|c| c.steady.capacity()).sum();
    for capacity in all {
        let ratio = (capacity.quick.capacity() / quick) / (capacity.steady.capacity() / steady);
        let quick_noise = (capacity.noise * QUICK / (2.0 - QUICK)).sqrt();
        let is_apart = ratio.ln().abs() > CHANGED.max(CHANGED_SURE * quick_noise);
        capacity.apart = if is_apart { capacity.apart + 1 } else { 0 };
        if capacity.apart >= CHANGED_FOR {
            capacity.steady = capacity.recent;
            capacity.quick = capacity.recent;
            (capacity.apart, capacity.seen) = (0, 2.0);
        }
    }
}
