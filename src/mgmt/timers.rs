//! Deadlines by key, soonest first, and the jitter that keeps them from meeting.
//!
//! Neighbours and health checks both wait this way. Plain state on the management thread; it
//! reads no clock.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Deadlines of keys; whoever owns it remembers what each key was given, to cancel it.
#[derive(Debug)]
pub struct Timers<K> {
    queue: BTreeSet<(Instant, K)>,
    random: u64,
}

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Copy> Timers<K> {
    #[must_use]
    pub fn new() -> Self {
        Self {
            queue: BTreeSet::new(),
            random: RandomState::new().hash_one(0) | 1,
        }
    }

    pub fn set(&mut self, key: K, at: Instant) {
        self.queue.insert((at, key));
    }

    /// Forgets the deadline that `key` was given.
    pub fn cancel(&mut self, key: K, at: Option<Instant>) {
        if let Some(at) = at {
            self.queue.remove(&(at, key));
        }
    }

    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(at, _)| at)
    }

    /// Takes out the soonest key if it is due at `now`.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let due = self.queue.first().is_some_and(|&(at, _)| at <= now);
        let first = if due { self.queue.pop_first() } else { None };
        first.map(|(_, key)| key)
    }

    /// Between half and one and a half times `base` (RFC 4861 6.3.2), so that what began
    /// together does not stay together.
    pub fn jitter(&mut self, base: Duration) -> Duration {
        base / 2 + self.part(base)
    }

    /// Between nothing and `whole`.
    pub fn part(&mut self, whole: Duration) -> Duration {
        // xorshift64: spread is all that is asked of it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        whole * (self.random % 1024) as u32 / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_ones_come_in_order_and_once() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut timers = Timers::new();
        timers.set('c', at(3));
        timers.set('a', at(1));
        timers.set('b', at(2));
        timers.cancel('b', Some(at(2)));
        timers.cancel('a', None);
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.pop_due(at(2)), Some('a'));
        assert_eq!(timers.pop_due(at(2)), None);
        assert_eq!(timers.pop_due(at(9)), Some('c'));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn jitter_stays_within_half_and_one_and_a_half() {
        let mut timers = Timers::<u8>::new();
        let base = Duration::from_secs(30);
        let drawn: Vec<Duration> = (0..1000).map(|_| timers.jitter(base)).collect();
        assert!(drawn.iter().all(|d| *d >= base / 2 && *d < base * 3 / 2));
        let (low, high) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
        assert!(*high - *low > base * 9 / 10, "{low:?} {high:?}");
    }
}
