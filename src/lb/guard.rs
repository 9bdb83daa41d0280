//! The flood guard: when new flows come faster than real clients open them, they cost no memory
//! that established flows need (DESIGN decision 8).
//!
//! While it is up, a flow of a one-way method that has no entry goes by the consistent hash. A SYN
//! gets no entry: the client's next packet finds the same backend by the same hash. That packet, and
//! any of UDP, where nothing tells a first packet from a later one, gets an entry as often as the
//! limit allows: so whoever keeps sending is tracked before long, whatever else arrives, and then
//! counts as new no more. Two-way methods cannot do without an entry: there the embryonic ones make
//! room, oldest first. Owned by one worker; asked for each new flow, never for an established one.

use super::Now;
use super::bucket::Bucket;

/// Nanoseconds that the guard stays up after the last new flow too many.
const CALM: u64 = 3_000_000_000;
/// Nanoseconds after a flood in which packets of flows without an entry are still forwarded by
/// the hash: as long as an established connection may be silent by default.
const GRACE: u64 = 900_000_000_000;
/// Seconds that an embryonic entry lives while the guard is up. A real client's handshake is
/// done by then, or it has sent its SYN again.
const EMBRYO: u32 = 5;

#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// New flows a second beyond which the guard goes up; 0 for never.
    limit: u32,
    /// New flows, with an entry or without.
    arrivals: Bucket,
    /// Entries made while the guard is up.
    entries: Bucket,
    up_until: u64,
    grace_until: u64,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            limit: 0,
            arrivals: Bucket::new(0),
            entries: Bucket::new(0),
            up_until: 0,
            grace_until: 0,
        }
    }
}

impl Guard {
    /// Counts a new flow. `limit` is the snapshot's; `nearly_full` says that the table has hardly
    /// any room. True while the guard is up.
    pub fn meet(&mut self, now: Now, limit: u32, nearly_full: bool) -> bool {
        if limit != self.limit {
            self.limit = limit;
            self.arrivals = Bucket::new(limit);
            self.entries = Bucket::new(limit);
        }
        let too_many = limit != 0 && !self.arrivals.take(now);
        if too_many || nearly_full {
            self.up_until = now.nanos + CALM;
            self.grace_until = now.nanos + GRACE;
        }
        self.is_up(now)
    }

    pub fn is_up(&self, now: Now) -> bool {
        now.nanos < self.up_until
    }

    /// Whether one more flow may have an entry, which is asked of those alone that can do without.
    pub fn grants_entry(&mut self, now: Now) -> bool {
        self.limit == 0 || self.entries.take(now)
    }

    /// Whether the guard is up or has been within the last `seconds`.
    pub fn was_up(&self, now: Now, seconds: u16) -> bool {
        let until = self.up_until + u64::from(seconds) * 1_000_000_000;
        self.up_until != 0 && now.nanos < until
    }

    /// Flows without an entry may be under way because of the guard.
    pub fn is_lenient(&self, now: Now) -> bool {
        now.nanos < self.grace_until
    }

    /// Seconds after which the sweep takes an embryonic entry.
    pub fn embryo_age(&self, now: Now) -> u32 {
        if self.is_up(now) { EMBRYO } else { u32::MAX }
    }
}

#[cfg(test)]
mod tests;
