//! A token bucket: how often something may happen, with a burst. Pure; owned by one worker.

use super::Now;

const TOKEN: u64 = 1_000_000_000;

/// Lets `rate` events a second through, and a tenth of a second's worth at once.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: u64,
    /// In billionths of a token, so that a nanosecond adds exactly `rate`.
    level: u64,
    last: u64,
}

impl Bucket {
    /// A full bucket; `rate` is in events a second, and 0 lets nothing through.
    pub fn new(rate: u32) -> Self {
        let rate = u64::from(rate);
        Self {
            rate,
            level: Self::depth(rate),
            last: 0,
        }
    }

    fn depth(rate: u64) -> u64 {
        if rate == 0 {
            0
        } else {
            (rate / 10).max(1) * TOKEN
        }
    }

    /// Takes a token; false where none is left.
    pub fn take(&mut self, now: Now) -> bool {
        let elapsed = now.nanos.saturating_sub(self.last);
        self.last = now.nanos;
        self.level = elapsed
            .saturating_mul(self.rate)
            .saturating_add(self.level)
            .min(Self::depth(self.rate));
        if self.level < TOKEN {
            return false;
        }
        self.level -= TOKEN;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(bucket: &mut Bucket, from: u64, tries: u64, step: u64) -> usize {
        (0..tries)
            .filter(|n| bucket.take(Now::from_nanos(from + n * step)))
            .count()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = Bucket::new(1000);
        assert_eq!(passed(&mut bucket, 1, 5000, 0), 100);
        // Ten seconds at ten times the rate.
        let through = passed(&mut bucket, 1, 100_000, 100_000);
        assert!((9_990..=10_001).contains(&through), "{through}");
    }

    #[test]
    fn rate_zero_is_never_and_a_slow_rate_is_not() {
        assert_eq!(passed(&mut Bucket::new(0), 1, 100, u64::from(u32::MAX)), 0);
        assert_eq!(passed(&mut Bucket::new(1), 0, 50, 100_000_000), 5);
    }

    #[test]
    fn a_clock_that_stands_still_or_jumps_is_survived() {
        let mut bucket = Bucket::new(u32::MAX);
        assert!(bucket.take(Now::from_nanos(u64::MAX)));
        assert!(bucket.take(Now::from_nanos(5)));
    }
}
