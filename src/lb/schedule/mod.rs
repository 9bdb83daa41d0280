//! Choosing a backend for a new connection.
//!
//! Runs on workers. What lives here (cursors, overload marks, dice, the tables of lblc and lblcr)
//! belongs to one worker and is keyed by ids, so it survives a snapshot swap. Connections are
//! counted by each worker for itself and read from its own counters: nothing is shared, and every
//! worker balances the flows it owns. Never allocates after [`SchedulerState::new`].
//!
//! | file | schedulers |
//! |---|---|
//! | `turn` | rr, wrr |
//! | `least` | lc, wlc, sed, nq |
//! | `rank` | fo, ovf |
//! | `chance` | random, twos |
//! | `hash` | mh, sh, dh |
//! | `locality` | lblc, lblcr |

mod chance;
mod hash;
mod least;
mod limit;
mod locality;
mod locality_table;
mod memory;
mod rank;
mod turn;

pub use hash::{Candidates, by_hash};
pub use memory::Memory;

use super::Now;
use super::counters::BackendCounters;
use super::flow::Address;
use super::maglev::stable_hash;
use super::snapshot::{Backend, BackendId, Scheduler, Service, Snapshot};
use super::weights::Candidate;
use chance::Dice;
use limit::{Limits, Rates};
use locality_table::LocalityTable;
use turn::Cursor;

/// Which worker this is, of how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub worker: u32,
    pub workers: u32,
}

impl Place {
    /// Where this worker starts in a list of `count`: evenly spread, or all workers would begin
    /// with the same backend.
    fn start(self, count: usize) -> usize {
        if self.worker == 0 {
            return 0;
        }
        self.worker as usize * count / self.workers.max(1) as usize
    }

    /// This worker's part of a limit that holds for all workers together: the parts add up to
    /// `whole`, but each is at least one, so few are exceeded by as many as there are workers.
    fn share(self, whole: u32) -> u64 {
        let workers = u64::from(self.workers.max(1));
        ((u64::from(whole) + u64::from(self.worker)) / workers).max(1)
    }
}

/// What a scheduler may know of a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The client's address in two words (IPv4 leaves the first zero), and its port where the
    /// service says that it counts.
    client: (u64, u64),
    port: u16,
    /// The address the client wants.
    pub destination: (u64, u64),
    /// Second, as in [`super::Now`].
    pub second: u32,
}

impl Request {
    #[inline(always)]
    pub fn new<A: Address>(
        service: &Service,
        source: A,
        source_port: u16,
        destination: A,
        second: u32,
    ) -> Self {
        Self {
            client: source.words(),
            port: if service.hash_port { source_port } else { 0 },
            destination: destination.words(),
            second,
        }
    }

    /// What a hash scheduler hashes. Unseeded; computed for those that ask.
    pub fn hash(&self, scheduler: Scheduler) -> u64 {
        match scheduler {
            Scheduler::DestinationHash => stable_hash(self.destination, 0),
            _ => stable_hash(self.client, self.port),
        }
    }
}

/// Every service's scheduler state on one worker.
pub struct SchedulerState {
    cursors: Box<[Cursor]>,
    limits: Limits,
    rates: Rates,
    dice: Dice,
    localities: LocalityTable,
    place: Place,
}

impl SchedulerState {
    /// State for services with ids below `services` and backends with ids below `backends`.
    /// `seed` keys the dice and the tables that strangers' addresses are looked up in.
    pub fn new(services: usize, backends: usize, place: Place, seed: u64) -> Self {
        Self {
            cursors: vec![Cursor::default(); services].into(),
            limits: Limits::new(backends, place),
            rates: Rates::new(services, place),
            dice: Dice::new(seed, place),
            localities: LocalityTable::new(seed),
            place,
        }
    }

    /// Whether the service's own limits let a new connection in, which then counts.
    #[inline(always)]
    pub fn admit(&mut self, service: &Service, gauges: &[BackendCounters], now: Now) -> bool {
        service.limits == super::snapshot::Limits::default()
            || self.rates.admit(service, gauges, now)
    }

    /// Whether the backend has as many connections as it may have here.
    pub fn is_full(&self, backend: &Backend, gauges: &[BackendCounters]) -> bool {
        self.limits
            .is_overloaded(backend, load(gauges, backend.id).all())
    }

    /// The backend for a new connection among those that are eligible, not overloaded and for
    /// which `usable` holds. `gauges` are this worker's counters by backend id.
    pub fn pick<'s>(
        &mut self,
        snapshot: &'s Snapshot,
        service: &Service,
        request: &Request,
        gauges: &[BackendCounters],
        usable: impl Fn(&Backend) -> bool,
    ) -> Option<&'s Backend> {
        let field = Field {
            snapshot,
            service,
            gauges,
            limits: &self.limits,
            place: self.place,
            usable,
        };
        let cursor = self.cursors.get_mut(service.id.0 as usize);
        let dice = &mut self.dice;
        let found = match service.scheduler {
            Scheduler::RoundRobin => turn::round_robin(&field, cursor?),
            Scheduler::WeightedRoundRobin => turn::weighted_round_robin(&field, cursor?),
            Scheduler::Random => chance::random(&field, dice),
            Scheduler::TwoChoices => chance::two_choices(&field, dice),
            Scheduler::LeastConnection => least::lc(&field),
            Scheduler::WeightedLeastConnection => least::wlc(&field),
            Scheduler::ShortestExpectedDelay => least::sed(&field),
            Scheduler::NeverQueue => least::nq(&field),
            Scheduler::Failover => rank::failover(&field),
            Scheduler::Overflow => rank::overflow(&field),
            Scheduler::Locality => locality::lblc(&field, &mut self.localities, request),
            Scheduler::LocalityReplicated => locality::lblcr(&field, &mut self.localities, request),
            Scheduler::Maglev | Scheduler::SourceHash | Scheduler::DestinationHash => {
                hash::pick(&field, request)
            }
        }?;
        if found.upper != 0 {
            let load = load(gauges, found.id);
            self.limits.is_overloaded(found, load.all() + 1);
        }
        Some(found)
    }
}

/// Connections of one backend on this worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Load {
    active: u64,
    inactive: u64,
}

impl Load {
    fn all(self) -> u64 {
        self.active + self.inactive
    }

    /// IPVS's measure: an active connection is worth 256 others.
    fn overhead(self) -> u64 {
        self.active * 256 + self.inactive
    }
}

#[inline(always)]
fn load(gauges: &[BackendCounters], id: BackendId) -> Load {
    gauges
        .get(id.0 as usize)
        .map_or(Load::default(), |counters| Load {
            active: counters.active.get(),
            inactive: counters.inactive.get(),
        })
}

/// All that one choice is made from.
struct Field<'s, 'f, U> {
    snapshot: &'s Snapshot,
    service: &'f Service,
    gauges: &'f [BackendCounters],
    limits: &'f Limits,
    place: Place,
    usable: U,
}

impl<'s, 'f, U: Fn(&Backend) -> bool> Field<'s, 'f, U> {
    #[inline(always)]
    fn candidates(&self) -> &'f [Candidate] {
        self.service.weights.candidates()
    }

    /// The candidates in order, from this worker's start.
    fn in_turn(&self) -> impl Iterator<Item = &'f Candidate> {
        let (before, after) = self
            .candidates()
            .split_at(self.place.start(self.candidates().len()));
        after.iter().chain(before)
    }

    /// The candidate's backend, if it can take the connection.
    #[inline(always)]
    fn take(&self, candidate: &Candidate) -> Option<&'s Backend> {
        if candidate.weight == 0 {
            return None;
        }
        let backend = self.snapshot.backend(candidate.id)?;
        self.can_take(backend).then_some(backend)
    }

    /// The service's backend with this id, if it can take the connection.
    fn by_id(&self, id: BackendId) -> Option<&'s Backend> {
        let backend = self.snapshot.backend(id)?;
        let ours = backend.service == self.service.id && backend.is_eligible();
        (ours && self.can_take(backend)).then_some(backend)
    }

    /// Limits first: `usable` may look into the connection table.
    #[inline(always)]
    fn can_take(&self, backend: &Backend) -> bool {
        !self.is_overloaded(backend) && (self.usable)(backend)
    }

    fn is_overloaded(&self, backend: &Backend) -> bool {
        backend.upper != 0
            && self
                .limits
                .is_overloaded(backend, self.load(backend.id).all())
    }

    #[inline(always)]
    fn load(&self, id: BackendId) -> Load {
        load(self.gauges, id)
    }
}
