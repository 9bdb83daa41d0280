//! Choosing a backend for a new connection.
//! Runs on workers. The state that lives (cursors) belongs to one worker and is keyed by service
//! id, so it survives a snapshot swap. Never allocates after [`SchedulerState::new`].

use super::maglev::mix;
use super::snapshot::{Backend, BackendId, Scheduler, Service, Snapshot};

/// Where a service's round robin stands.
#[derive(Clone, Copy, Default, Debug)]
struct Cursor {
    /// Position after the last pick.
    next: u32,
    /// wrr's current weight.
    weight: u32,
    started: bool,
}

/// Every service's scheduler state on one worker.
pub struct SchedulerState {
    cursors: Box<[Cursor]>,
    worker: u32,
    workers: u32,
}

impl SchedulerState {
    /// State for services with ids below `services`, on worker `worker` of `workers`: their
    /// cursors start evenly spread, or all workers would begin with the same backend.
    pub fn new(services: usize, worker: u32, workers: u32) -> Self {
        Self {
            cursors: vec![Cursor::default(); services].into(),
            worker,
            workers: workers.max(1),
        }
    }

    /// The backend for a new connection among those for which `usable` holds. `hash` is the
    /// unseeded hash of the client.
    pub fn pick<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        service: &Service,
        hash: u64,
        usable: impl Fn(&Backend) -> bool,
    ) -> Option<&'s Backend> {
        let candidates = Candidates {
            snapshot,
            ids: &service.backends,
        };
        match service.scheduler {
            Scheduler::RoundRobin => self.round_robin(service, &candidates, usable),
            Scheduler::WeightedRoundRobin => {
                self.weighted_round_robin(service, &candidates, usable)
            }
            Scheduler::Maglev => by_hash(service, &candidates, hash, usable),
        }
    }

    fn cursor(&mut self, service: &Service, backends: usize) -> Option<&mut Cursor> {
        let start = (self.worker as usize * backends / self.workers as usize) as u32;
        let cursor = self.cursors.get_mut(service.id.0 as usize)?;
        if !cursor.started {
            *cursor = Cursor {
                next: start,
                weight: 0,
                started: true,
            };
        }
        if cursor.next as usize > backends {
            cursor.next = 0;
        }
        Some(cursor)
    }

    /// The next usable one in list order.
    fn round_robin<'s>(
        &mut self,
        service: &Service,
        candidates: &Candidates<'s, '_>,
        usable: impl Fn(&Backend) -> bool,
    ) -> Option<&'s Backend> {
        let count = candidates.ids.len();
        let cursor = self.cursor(service, count)?;
        for step in 0..count {
            let at = (cursor.next as usize + step) % count;
            if let Some(backend) = candidates.get(at).filter(|b| usable(b)) {
                cursor.next = (at + 1) as u32;
                return Some(backend);
            }
        }
        None
    }

    /// IPVS's wrr: scan on for a weight of at least `cw`, which falls by the weights' gcd each
    /// time the list wraps. Weights 4,3,2 give A AB ABC ABC.
    fn weighted_round_robin<'s>(
        &mut self,
        service: &Service,
        candidates: &Candidates<'s, '_>,
        usable: impl Fn(&Backend) -> bool,
    ) -> Option<&'s Backend> {
        let count = candidates.ids.len();
        let (mut step, mut heaviest) = (0, 0);
        for backend in candidates.iter().filter(|b| usable(b)) {
            step = gcd(backend.weight, step);
            heaviest = heaviest.max(backend.weight);
        }
        if heaviest == 0 {
            return None;
        }
        let cursor = self.cursor(service, count)?;
        if cursor.weight == 0 || cursor.weight > heaviest {
            cursor.weight = heaviest;
        }
        // At the lowest `cw` every usable backend qualifies, so this ends.
        loop {
            while (cursor.next as usize) < count {
                let at = cursor.next as usize;
                cursor.next += 1;
                if let Some(backend) = candidates.get(at)
                    && backend.weight >= cursor.weight
                    && usable(backend)
                {
                    return Some(backend);
                }
            }
            cursor.next = 0;
            cursor.weight = if cursor.weight > step {
                cursor.weight - step
            } else {
                heaviest
            };
        }
    }
}

/// The consistent hash; when the owner of the slot is not usable, a chain of other slots that
/// depends on the flow alone, so that its clients spread over all others and come back with it.
pub fn by_hash<'s>(
    service: &Service,
    candidates: &Candidates<'s, '_>,
    hash: u64,
    usable: impl Fn(&Backend) -> bool,
) -> Option<&'s Backend> {
    const TRIES: usize = 32;
    let mut slot = hash;
    for _ in 0..TRIES {
        let backend = service
            .maglev
            .get(slot)
            .and_then(|m| candidates.get(m as usize));
        if let Some(backend) = backend.filter(|b| usable(b)) {
            return Some(backend);
        }
        slot = mix(slot.wrapping_add(0x9e37_79b9_7f4a_7c15));
    }
    // Nearly all are out: the one that rendezvous hashing ranks highest.
    candidates
        .iter()
        .filter(|b| usable(b))
        .max_by_key(|b| mix(hash ^ u64::from(b.id.0)))
}

/// A service's backends in the configuration's order.
pub struct Candidates<'s, 'i> {
    pub snapshot: &'s Snapshot,
    pub ids: &'i [BackendId],
}

impl<'s> Candidates<'s, '_> {
    pub fn get(&self, at: usize) -> Option<&'s Backend> {
        self.snapshot.backend(*self.ids.get(at)?)
    }

    pub fn iter(&self) -> impl Iterator<Item = &'s Backend> {
        self.ids.iter().filter_map(|&id| self.snapshot.backend(id))
    }
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::fixture::Lab;

    fn sequence(lab: &Lab, picks: usize) -> String {
        let mut state = SchedulerState::new(4, 0, 1);
        run(lab, &mut state, picks)
    }

    fn run(lab: &Lab, state: &mut SchedulerState, picks: usize) -> String {
        let service = lab
            .snapshot
            .services
            .get(0)
            .and_then(Option::as_ref)
            .expect("a service");
        (0..picks)
            .map(|n| {
                let hash = mix(n as u64);
                match state.pick(&lab.snapshot, service, hash, Backend::is_eligible) {
                    Some(backend) => char::from(b'A' + backend.id.0 as u8),
                    None => '-',
                }
            })
            .collect()
    }

    #[test]
    fn rr_goes_in_list_order_and_skips_who_cannot() {
        let mut lab = Lab::new(Scheduler::RoundRobin, &[1, 1, 1]);
        assert_eq!(sequence(&lab, 7), "ABCABCA");
        lab.backend(1).weight = 0;
        assert_eq!(sequence(&lab, 5), "ACACA");
    }

    #[test]
    fn wrr_is_the_textbook_cycle() {
        let mut lab = Lab::new(Scheduler::WeightedRoundRobin, &[4, 3, 2]);
        assert_eq!(sequence(&lab, 18), "AABABCABCAABABCABC");
        lab.backend(0).weight = 0;
        assert_eq!(sequence(&lab, 5), "BBCBC");
    }

    #[test]
    fn a_cursor_survives_a_swap_and_workers_start_apart() {
        let lab = Lab::new(Scheduler::RoundRobin, &[1, 1, 1, 1]);
        let mut state = SchedulerState::new(4, 0, 2);
        assert_eq!(run(&lab, &mut state, 3), "ABC");
        let swapped = Lab::new(Scheduler::RoundRobin, &[1, 1, 1, 1]);
        assert_eq!(run(&swapped, &mut state, 2), "DA");
        assert_eq!(run(&lab, &mut SchedulerState::new(4, 1, 2), 2), "CD");
    }

    #[test]
    fn mh_moves_only_the_clients_of_the_one_that_went() {
        let mut lab = Lab::new(Scheduler::Maglev, &[1, 1, 1, 1]);
        let before = sequence(&lab, 2000);
        lab.backend(2).weight = 0;
        let after = sequence(&lab, 2000);
        for (b, a) in before.chars().zip(after.chars()) {
            assert!(if b == 'C' { a != 'C' } else { a == b });
        }
        lab.backend(2).weight = 1;
        assert_eq!(sequence(&lab, 2000), before);
    }

    #[test]
    fn nobody_eligible_means_none() {
        for scheduler in [
            Scheduler::RoundRobin,
            Scheduler::WeightedRoundRobin,
            Scheduler::Maglev,
        ] {
            assert_eq!(sequence(&Lab::new(scheduler, &[]), 2), "--");
            assert_eq!(sequence(&Lab::new(scheduler, &[0, 0]), 2), "--");
        }
    }
}
