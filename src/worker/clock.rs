//! The time as workers know it: ticks of the TSC, which all cores share, as [`Now`].

use crate::lb::Now;
use crate::port::clock::Tsc;

/// Turns TSC ticks into [`Now`].
#[derive(Clone, Copy)]
pub struct Clock {
    start: u64,
    /// Nanoseconds per tick, as a fraction of 2^32.
    scale: u64,
}

impl Clock {
    /// A clock that starts now. Copies of it agree.
    pub fn start() -> Self {
        let scale = (1_000_000_000u128 << 32) / u128::from(Tsc::hz().max(1));
        Self {
            start: Tsc::now(),
            scale: scale as u64,
        }
    }

    #[inline(always)]
    pub fn at(&self, tsc: u64) -> Now {
        let ticks = tsc.wrapping_sub(self.start);
        Now::from_nanos(((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64)
    }

    pub fn now(&self) -> Now {
        self.at(Tsc::now())
    }

    /// Nanoseconds that `ticks` of the TSC take.
    pub fn nanos(&self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64
    }
}
