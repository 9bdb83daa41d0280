//! Overload: a backend at its upper limit takes nothing until it is below its lower one.
//!
//! A limit holds for all workers together, and each keeps to its part (see
//! [`Place::share`]), so the sum never exceeds a limit of at least as many connections as there
//! are workers.

use std::cell::Cell;

use super::super::snapshot::Backend;
use super::Place;

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
}
