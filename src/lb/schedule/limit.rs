//! Limits: a backend at its upper one takes nothing until it is below its lower one; a service
//! takes so many connections at once, and so many new ones a second.
//!
//! A limit holds for all workers together, and each keeps to its part (see
//! [`Place::share`]), so the sum never exceeds a limit of at least as many connections as there
//! are workers. A worker that has used its part up refuses although another may have some left.

use std::cell::Cell;

use super::super::Now;
use super::super::bucket::Bucket;
use super::super::counters::BackendCounters;
use super::super::snapshot::{Backend, BackendId, Service};
use super::{Place, load};

/// Which backends this worker has found overloaded, by id.
pub(super) struct Limits {
    overloaded: Box<[Cell<bool>]>,
    place: Place,
}

impl Limits {
    pub(super) fn new(backends: usize, place: Place) -> Self {
        Self {
            overloaded: vec![Cell::new(false); backends].into(),
            place,
        }
    }

    /// Whether the backend is overloaded, now that this worker has `connections` there. Asked for
    /// every pick, before and after: counts rise by picks alone, so no crossing is missed.
    pub(super) fn is_overloaded(&self, backend: &Backend, connections: u64) -> bool {
        if backend.upper == 0 {
            return false;
        }
        let upper = self.place.share(backend.upper);
        let Some(mark) = self.overloaded.get(backend.id.0 as usize) else {
            return connections >= upper;
        };
        let cleared = match backend.lower {
            0 => connections * 4 < upper * 3,
            lower => connections < self.place.share(lower).min(upper),
        };
        mark.set(connections >= upper || (mark.get() && !cleared));
        mark.get()
    }

    pub(super) fn is_marked(&self, id: BackendId) -> bool {
        self.overloaded.get(id.0 as usize).is_some_and(Cell::get)
    }

    pub(super) fn mark(&self, id: BackendId) {
        if let Some(mark) = self.overloaded.get(id.0 as usize) {
            mark.set(true);
        }
    }
}

/// What is left of the services' rates on this worker, by service id.
pub(super) struct Rates {
    buckets: Box<[(u32, Bucket)]>,
    place: Place,
}

impl Rates {
    pub(super) fn new(services: usize, place: Place) -> Self {
        Self {
            buckets: vec![(0, Bucket::new(0)); services].into(),
            place,
        }
    }

    /// Whether the service's limits let a new connection in, which then counts toward the rate.
    pub(super) fn admit(
        &mut self,
        service: &Service,
        gauges: &[BackendCounters],
        now: Now,
    ) -> bool {
        let limits = service.limits;
        if limits.connections != 0 {
            let counts = service.backends.iter().map(|&id| load(gauges, id).all());
            if counts.sum::<u64>() >= self.place.share(limits.connections) {
                return false;
            }
        }
        if limits.rate == 0 {
            return true;
        }
        let Some((rate, bucket)) = self.buckets.get_mut(service.id.0 as usize) else {
            return true;
        };
        if *rate != limits.rate {
            (*rate, *bucket) = (
                limits.rate,
                Bucket::new(self.place.share(limits.rate) as u32),
            );
        }
        bucket.take(now)
    }

    /// What is left of the rate of the service at this index.
    pub(super) fn bucket(&self, at: usize) -> Option<(u32, Bucket)> {
        self.buckets.get(at).copied()
    }

    pub(super) fn set_bucket(&mut self, at: usize, bucket: (u32, Bucket)) {
        if let Some(place) = self.buckets.get_mut(at) {
            *place = bucket;
        }
    }
}
