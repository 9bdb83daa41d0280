//! Which servers a destination address was last sent to, for lblc and lblcr.
//!
//! Fixed memory: chains of indexes over one array. One table serves all services of a worker.

use super::super::maglev::mix;
use super::super::snapshot::{BackendId, ServiceId};
use super::Request;

/// Destinations remembered at most.
pub(super) const CAPACITY: usize = 16_384;
/// Servers of one destination (lblcr); a set that is full takes no further one.
pub(super) const MEMBERS: usize = 16;
/// Seconds of silence after which a destination is forgotten, and after which it may be when the
/// table is full.
const IDLE: u32 = 24 * 3600;
const IDLE_WHEN_FULL: u32 = 6 * 60;
/// Entries looked at for each new flow, and for one that finds the table full.
const SWEEP: usize = 4;
const SWEEP_WHEN_FULL: usize = 256;

const END: u32 = u32::MAX;

#[derive(Clone, Copy)]
pub(super) struct Entry {
    destination: (u64, u64),
    service: ServiceId,
    /// In the chain of its bucket, or of free entries.
    next: u32,
    /// Seconds of the last use and of the last change of members.
    used: u32,
    changed: u32,
    live: bool,
    count: u8,
    members: [BackendId; MEMBERS],
}

impl Entry {
    pub(super) fn members(&self) -> &[BackendId] {
        &self.members[..usize::from(self.count)]
    }

    pub(super) fn changed(&self) -> u32 {
        self.changed
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    pub(super) fn add(&mut self, id: BackendId, second: u32) {
        if self.members().contains(&id) || usize::from(self.count) == MEMBERS {
            return;
        }
        self.members[usize::from(self.count)] = id;
        self.count += 1;
        self.changed = second;
    }

    pub(super) fn drop_member(&mut self, id: BackendId, second: u32) {
        if let Some(at) = self.members().iter().position(|&m| m == id) {
            self.members
                .copy_within(at + 1..usize::from(self.count), at);
            self.count -= 1;
            self.changed = second;
        }
    }
}

pub(super) struct LocalityTable {
    heads: Box<[u32]>,
    entries: Box<[Entry]>,
    free: u32,
    hand: usize,
    seed: u64,
}

impl LocalityTable {
    pub(super) fn new(seed: u64) -> Self {
        let empty = |n: usize| Entry {
            destination: (0, 0),
            service: ServiceId(0),
            next: if n + 1 < CAPACITY { n as u32 + 1 } else { END },
            used: 0,
            changed: 0,
            live: false,
            count: 0,
            members: [BackendId(0); MEMBERS],
        };
        Self {
            heads: vec![END; CAPACITY].into(),
            entries: (0..CAPACITY).map(empty).collect(),
            free: 0,
            hand: 0,
            seed: mix(seed),
        }
    }

    /// The request's entry, marked as used now; a new one has no members. `None` when the table
    /// is full of destinations in use.
    pub(super) fn entry(&mut self, service: ServiceId, request: &Request) -> Option<&mut Entry> {
        self.sweep(request.second, SWEEP, IDLE);
        let bucket = self.bucket(service, request.destination);
        let mut at = self.heads[bucket];
        while at != END {
            let entry = &self.entries[at as usize];
            if entry.destination == request.destination && entry.service == service {
                break;
            }
            at = entry.next;
        }
        if at == END {
            at = self.claim(request.second)?;
            let next = std::mem::replace(&mut self.heads[bucket], at);
            let entry = &mut self.entries[at as usize];
            (entry.destination, entry.service) = (request.destination, service);
            (entry.next, entry.live, entry.count) = (next, true, 0);
            entry.changed = request.second;
        }
        let entry = &mut self.entries[at as usize];
        entry.used = request.second;
        Some(entry)
    }

    /// The request's entry, if there is one; not marked as used.
    pub(super) fn peek(&self, service: ServiceId, request: &Request) -> Option<Entry> {
        let mut at = self.heads[self.bucket(service, request.destination)];
        while let Some(entry) = self.entries.get(at as usize) {
            if entry.destination == request.destination && entry.service == service {
                return Some(*entry);
            }
            at = entry.next;
        }
        None
    }

    /// Gives the request's entry the members of another table's.
    pub(super) fn put(&mut self, service: ServiceId, request: &Request, from: &Entry) {
        if let Some(entry) = self.entry(service, request) {
            (entry.count, entry.members, entry.changed) = (from.count, from.members, from.changed);
        }
    }

    /// A free entry, taken off the free chain.
    fn claim(&mut self, second: u32) -> Option<u32> {
        if self.free == END {
            self.sweep(second, SWEEP_WHEN_FULL, IDLE_WHEN_FULL);
        }
        let at = self.free;
        self.free = self.entries.get(at as usize)?.next;
        Some(at)
    }

    /// Frees what has been idle for longer than `idle` among the next `count` entries.
    fn sweep(&mut self, second: u32, count: usize, idle: u32) {
        for _ in 0..count {
            let at = self.hand;
            self.hand = (self.hand + 1) % CAPACITY;
            let entry = &self.entries[at];
            if entry.live && second.wrapping_sub(entry.used) > idle {
                self.release(at as u32);
            }
        }
    }

    fn release(&mut self, at: u32) {
        let Entry {
            destination,
            service,
            next,
            ..
        } = self.entries[at as usize];
        let bucket = self.bucket(service, destination);
        if self.heads[bucket] == at {
            self.heads[bucket] = next;
        } else {
            let mut before = self.heads[bucket];
            while before != END && self.entries[before as usize].next != at {
                before = self.entries[before as usize].next;
            }
            if before != END {
                self.entries[before as usize].next = next;
            }
        }
        let entry = &mut self.entries[at as usize];
        (entry.live, entry.next) = (false, self.free);
        self.free = at;
    }

    fn bucket(&self, service: ServiceId, (high, low): (u64, u64)) -> usize {
        let hash = mix(mix(mix(high ^ self.seed) ^ low) ^ u64::from(service.0));
        hash as usize % CAPACITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(destination: u64, second: u32) -> Request {
        Request {
            client: (0, 0),
            port: 0,
            destination: (0, destination),
            second,
        }
    }

    fn knows(table: &mut LocalityTable, destination: u64, second: u32) -> bool {
        let entry = table.entry(ServiceId(0), &request(destination, second));
        entry.is_some_and(|e| !e.members().is_empty())
    }

    fn remember(table: &mut LocalityTable, destination: u64, second: u32) -> bool {
        let entry = table.entry(ServiceId(0), &request(destination, second));
        entry.is_some_and(|e| {
            e.add(BackendId(1), second);
            true
        })
    }

    #[test]
    fn holds_its_capacity_and_makes_room_of_what_is_idle() {
        let mut table = LocalityTable::new(7);
        for n in 0..CAPACITY as u64 {
            assert!(remember(&mut table, n, 100));
        }
        assert!(!remember(&mut table, 1 << 40, 100 + IDLE_WHEN_FULL));
        assert!(remember(&mut table, 1 << 40, 101 + IDLE_WHEN_FULL));
        let live = table.entries.iter().filter(|e| e.live).count();
        assert_eq!(live, CAPACITY - SWEEP_WHEN_FULL + 1);
    }

    #[test]
    fn forgets_after_a_day_of_silence() {
        let mut table = LocalityTable::new(7);
        for n in 0..1000 {
            remember(&mut table, n, 5);
        }
        for _ in 0..CAPACITY / SWEEP {
            remember(&mut table, 0, 6 + IDLE);
        }
        let chained: usize = table.entries.iter().filter(|e| e.live).count();
        assert_eq!(chained, 1);
        assert!(knows(&mut table, 0, 6 + IDLE) && !knows(&mut table, 1, 6 + IDLE));
    }

    #[test]
    fn services_do_not_share_entries() {
        let mut table = LocalityTable::new(7);
        remember(&mut table, 3, 0);
        let other = table.entry(ServiceId(1), &request(3, 0)).expect("room");
        assert!(other.members().is_empty());
    }
}
