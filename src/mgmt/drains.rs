//! Drains and their deadlines: a drained backend keeps its connections until they end, or until
//! the service's `drain_timeout` has passed; then they are ended like those of a removed one.
//! Plain state on the management thread; it reads no clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::lb::snapshot::{BackendId, BackendState};

#[derive(Clone)]
struct Drain {
    since: Instant,
    over: bool,
}

/// The backends that are drained now.
#[derive(Clone, Default)]
pub struct Drains {
    drains: HashMap<BackendId, Drain>,
}

impl Drains {
    /// `drained`: every backend that is to be drained, with its service's deadline. Returns those
    /// whose deadline has passed since the last look, or does not count any more.
    pub fn look(
        &mut self,
        now: Instant,
        drained: impl IntoIterator<Item = (BackendId, Option<Duration>)>,
    ) -> Vec<BackendId> {
        let mut known = std::mem::take(&mut self.drains);
        let mut news = Vec::new();
        for (id, deadline) in drained {
            let mut drain = known.remove(&id).unwrap_or(Drain {
                since: now,
                over: false,
            });
            let over = deadline.is_some_and(|time| now.duration_since(drain.since) >= time);
            if over != drain.over {
                news.push(id);
            }
            drain.over = over;
            self.drains.insert(id, drain);
        }
        let ended = known.into_iter().filter(|(_, drain)| drain.over);
        news.extend(ended.map(|(id, _)| id));
        news
    }

    /// Whether the backend's deadline has passed.
    pub fn is_over(&self, id: BackendId) -> bool {
        self.drains.get(&id).is_some_and(|drain| drain.over)
    }

    /// The state of a backend that would be in `state` but for its drain's deadline.
    pub fn state(&self, id: BackendId, state: BackendState) -> BackendState {
        match state {
            BackendState::Drained if self.is_over(id) => BackendState::Removed,
            _ => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: BackendId = BackendId(7);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_drain_ends_at_its_deadline_and_not_before() {
        let (start, mut drains) = (Instant::now(), Drains::default());
        let drained = [(ID, Some(MINUTE))];
        assert_eq!(drains.look(start, drained), []);
        assert_eq!(
            drains.look(start + MINUTE - Duration::from_secs(1), drained),
            []
        );
        assert_eq!(
            drains.state(ID, BackendState::Drained),
            BackendState::Drained
        );
        assert_eq!(drains.look(start + MINUTE, drained), [ID]);
        assert_eq!(drains.look(start + MINUTE * 2, drained), [], "told once");
        assert_eq!(
            drains.state(ID, BackendState::Drained),
            BackendState::Removed
        );
        assert_eq!(drains.state(ID, BackendState::Up), BackendState::Up);
        let other = BackendId(8);
        assert_eq!(
            drains.state(other, BackendState::Drained),
            BackendState::Drained
        );
    }

    #[test]
    fn without_a_deadline_it_lasts() {
        let (start, mut drains) = (Instant::now(), Drains::default());
        assert_eq!(drains.look(start, [(ID, None)]), []);
        assert_eq!(drains.look(start + MINUTE * 10_000, [(ID, None)]), []);
        // One that is set later counts from the drain's start.
        assert_eq!(
            drains.look(start + MINUTE * 10_001, [(ID, Some(MINUTE))]),
            [ID]
        );
    }

    #[test]
    fn a_backend_that_comes_back_begins_anew() {
        let (start, mut drains) = (Instant::now(), Drains::default());
        let drained = [(ID, Some(MINUTE))];
        drains.look(start, drained);
        assert_eq!(drains.look(start + MINUTE, drained), [ID]);
        assert_eq!(drains.look(start + MINUTE, []), [ID], "over no more");
        assert_eq!(drains.look(start + MINUTE, []), []);
        assert_eq!(
            drains.state(ID, BackendState::Drained),
            BackendState::Drained
        );
        assert_eq!(drains.look(start + MINUTE * 5, drained), []);
        assert_eq!(drains.look(start + MINUTE * 6, drained), [ID]);
    }
}
