//! One number of one backend over time: the mean of each interval, good until it is stale. Pure.

use std::time::Duration;

/// What was observed of one quantity.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Input {
    sum: f64,
    count: u32,
    mean: f64,
    at: Option<Duration>,
}

impl Input {
    pub(super) fn add(&mut self, value: f64, now: Duration) {
        self.sum += value;
        self.count += 1;
        self.at = Some(now);
    }

    /// The mean since the last call, or the one before when nothing came; `None` when nothing has
    /// come for longer than `stale`.
    fn take(&mut self, now: Duration, stale: Duration) -> Option<f64> {
        if self.count > 0 {
            self.mean = self.sum / f64::from(self.count);
            (self.sum, self.count) = (0.0, 0);
        }
        let at = self.at?;
        (now.saturating_sub(at) <= stale).then_some(self.mean)
    }
}

/// All quantities of one backend.
#[derive(Clone, Debug, Default)]
pub(super) struct Inputs {
    pub(super) connections: Input,
    pub(super) rate: Input,
    pub(super) response: Input,
    pub(super) cpu: Input,
    pub(super) memory: Input,
    pub(super) disk: Input,
    pub(super) load: Input,
}

/// What a policy sees of one backend in one interval; absent is not known, or stale.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct View {
    pub connections: Option<f64>,
    /// New connections a second.
    pub rate: Option<f64>,
    /// Seconds.
    pub response: Option<f64>,
    pub cpu: Option<f64>,
    pub memory: Option<f64>,
    pub disk: Option<f64>,
    pub load: Option<f64>,
}

impl Inputs {
    pub(super) fn take(&mut self, now: Duration, stale: Duration) -> View {
        View {
            connections: self.connections.take(now, stale),
            rate: self.rate.take(now, stale),
            response: self.response.take(now, stale),
            cpu: self.cpu.take(now, stale),
            memory: self.memory.take(now, stale),
            disk: self.disk.take(now, stale),
            load: self.load.take(now, stale),
        }
    }
}
