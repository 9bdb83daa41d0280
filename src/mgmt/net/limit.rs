//! A rate limit for what the outside can make us send (RFC 4861 7.2.8, RFC 1812 4.3.2.8).
//!
//! Plain state on the management thread; it reads no clock, `now` is a parameter.

use std::time::{Duration, Instant};

/// So many events a second, with a burst, kept as the time at which the bucket is full again:
/// one instant, no fractions, and a clock that jumps ahead does no harm.
#[derive(Debug, Clone)]
pub struct RateLimit {
    interval: Duration,
    tolerance: Duration,
    full_at: Option<Instant>,
}

impl RateLimit {
    /// `per_second` and `burst` are events; both must be at least 1 (0 is taken as 1).
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            interval,
            tolerance: interval * (burst.max(1) - 1),
            full_at: None,
        }
    }

    /// Takes one event's worth; false if the limit is reached.
    pub fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at - now > self.tolerance {
            return false;
        }
        self.full_at = Some(full_at + self.interval);
        true
    }

    /// The first moment, not before `now`, at which [`take`](Self::take) succeeds.
    #[must_use]
    pub fn ready_at(&self, now: Instant) -> Instant {
        match self.full_at {
            Some(at) if at > now + self.tolerance => at - self.tolerance,
            _ => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate() {
        let start = Instant::now();
        let mut limit = RateLimit::new(10, 5);
        assert_eq!((0..20).filter(|_| limit.take(start)).count(), 5);
        assert_eq!(limit.ready_at(start), start + Duration::from_millis(100));
        assert!(!limit.take(start + Duration::from_millis(99)));
        assert!(limit.take(start + Duration::from_millis(100)));
        assert!(!limit.take(start + Duration::from_millis(100)));
    }

    #[test]
    fn an_hour_later_it_is_the_burst_again_and_not_more() {
        let start = Instant::now();
        let mut limit = RateLimit::new(10, 5);
        while limit.take(start) {}
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..20).filter(|_| limit.take(later)).count(), 5);
    }
}
