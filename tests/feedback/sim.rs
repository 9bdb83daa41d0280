//! Servers, arrivals and a control loop around the production controller and schedulers.
//!
//! A server works off its queue first come, first served, at its own speed. Arrivals are Poisson;
//! what each asks for is Pareto with index 1.5, cut at a thousand times the least (squared
//! coefficient of variation 10). All policies see the same arrivals.
#![allow(dead_code)]

#[path = "../sched/bench.rs"]
pub mod bench;
mod control;

use std::collections::VecDeque;
use std::ops::Range;

use bench::Bench;
use control::Control;
use evenkeel::lb::maglev::mix;
use evenkeel::lb::snapshot::Scheduler;
use evenkeel::mgmt::feedback::Policy;

/// Four servers of capacity 1, three of 2, three of 4.
const CAPACITIES: [f64; 10] = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0];
const RIGHT: [u32; 10] = [1, 1, 1, 1, 2, 2, 2, 4, 4, 4];
/// Seconds between two control steps.
pub const INTERVAL: f64 = 5.0;
/// For how long a p99 is taken. A start that is wrong for some seconds counts in full; a shorter
/// time would mostly measure which run met the few requests that are hundreds of times the mean.
pub const MEASURED: f64 = 600.0;

/// The servers of a simulation.
#[derive(Clone, Copy)]
pub struct Site {
    pub capacities: [f64; 10],
    /// The weights in proportion to them.
    pub right: [u32; 10],
    /// Requests a second that fill a server of capacity 1.
    pub full: f64,
}

/// What the promises are about.
pub const SITE: Site = Site {
    capacities: CAPACITIES,
    right: RIGHT,
    full: 50.0,
};

/// Uniform numbers from a counter, so that a run can be repeated.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// In (0, 1).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((mix(self.0) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn exponential(&mut self, rate: f64) -> f64 {
        -self.next().ln() / rate
    }

    /// Bounded Pareto with mean 1.
    fn size(&mut self) -> f64 {
        const INDEX: f64 = 1.5;
        const LONGEST: f64 = 1000.0;
        let tail = LONGEST.powf(-INDEX);
        let mean = INDEX / (INDEX - 1.0) * (1.0 - LONGEST.powf(1.0 - INDEX)) / (1.0 - tail);
        (1.0 - self.next() * (1.0 - tail)).powf(-1.0 / INDEX) / mean
    }
}

#[derive(Clone)]
struct Server {
    capacity: f64,
    /// Seconds that a mean request takes a server of capacity 1.
    mean: f64,
    /// When the queue will be worked off, and when each request in it will be done.
    free_at: f64,
    ends: VecDeque<f64>,
    /// Seconds of work given, and requests.
    given: f64,
    arrivals: u64,
    /// When the exporter was read last, and the seconds of work then done; when it is read next.
    read: Option<(f64, f64)>,
    next_read: f64,
}

impl Server {
    fn new(capacity: f64, full: f64) -> Self {
        Self {
            capacity,
            mean: 1.0 / full,
            free_at: 0.0,
            ends: VecDeque::new(),
            given: 0.0,
            arrivals: 0,
            read: None,
            next_read: f64::INFINITY,
        }
    }

    /// Takes a request; returns its response time.
    fn take(&mut self, now: f64, size: f64) -> f64 {
        let work = size * self.mean / self.capacity;
        self.free_at = self.free_at.max(now) + work;
        self.given += work;
        self.arrivals += 1;
        self.ends.push_back(self.free_at);
        self.free_at - now
    }

    /// What a health check would measure.
    fn response(&self, now: f64) -> f64 {
        (self.free_at - now).max(0.0) + 0.2 * self.mean / self.capacity
    }

    /// What an exporter's counters say of the time since they were read last, if they were.
    fn cpu(&mut self, now: f64) -> Option<f64> {
        let busy = self.given - (self.free_at - now).max(0.0);
        let before = self.read.replace((now, busy));
        before.map(|(at, then)| ((busy - then) / (now - at)).clamp(0.0, 1.0))
    }
}

/// Which sources are there beside the workers' counters.
#[derive(Clone, Copy)]
pub struct See {
    pub cpu: bool,
    pub response: bool,
}

/// Configured weights.
#[derive(Clone, Copy)]
pub enum Weights {
    Equal,
    Right,
}

impl Weights {
    fn of(self, site: &Site) -> [u32; 10] {
        match self {
            Self::Equal => [1; 10],
            Self::Right => site.right,
        }
    }
}

#[derive(Clone, Copy)]
pub struct Setup {
    pub name: &'static str,
    pub scheduler: Scheduler,
    pub weights: Weights,
    pub feedback: Option<(Policy, See)>,
}

pub const CPU: See = See {
    cpu: true,
    response: false,
};
pub const RESPONSE: See = See {
    cpu: false,
    response: true,
};
pub const BOTH: See = See {
    cpu: true,
    response: true,
};

const WRR: Scheduler = Scheduler::WeightedRoundRobin;
const WLC: Scheduler = Scheduler::WeightedLeastConnection;
const RELATIVE: Policy = Policy::Relative;

/// Baselines first: wrr with equal weights, and with the right ones.
pub const SETUPS: [Setup; 7] = [
    setup("wrr, equal weights", WRR, Weights::Equal, None),
    setup("wrr, right weights", WRR, Weights::Right, None),
    setup(
        "wrr, equal weights, relative",
        WRR,
        Weights::Equal,
        Some((RELATIVE, CPU)),
    ),
    setup(
        "wrr, right weights, relative",
        WRR,
        Weights::Right,
        Some((RELATIVE, CPU)),
    ),
    setup("wlc, equal weights", WLC, Weights::Equal, None),
    setup(
        "wlc, equal weights, relative",
        WLC,
        Weights::Equal,
        Some((RELATIVE, CPU)),
    ),
    setup(
        "wrr, equal weights, lvs",
        WRR,
        Weights::Equal,
        Some((Policy::Lvs, BOTH)),
    ),
];

pub const fn setup(
    name: &'static str,
    scheduler: Scheduler,
    weights: Weights,
    feedback: Option<(Policy, See)>,
) -> Setup {
    Setup {
        name,
        scheduler,
        weights,
        feedback,
    }
}

/// At this time one server's capacity becomes another.
#[derive(Clone, Copy)]
pub struct Change {
    pub at: f64,
    pub server: usize,
    pub capacity: f64,
}

/// What a run leaves.
pub struct Run {
    /// Response times in seconds, of requests that came after the idle time and the warm-up.
    pub responses: Vec<f32>,
    /// The share that each server's weight is of all, after each step.
    pub shares: Vec<[f64; 10]>,
    /// Steps that pushed a weight.
    pub pushes: usize,
}

impl Run {
    pub fn p99(&mut self) -> f64 {
        let at = self.responses.len() * 99 / 100;
        f64::from(*self.responses.select_nth_unstable_by(at, f32::total_cmp).1)
    }
}

/// The phases of a run, in seconds.
#[derive(Clone, Copy)]
pub struct Times {
    /// Nobody asks for anything.
    pub idle: f64,
    /// Requests are not measured.
    pub warm_up: f64,
    pub measured: f64,
}

/// Measures from the first request on.
pub const fn from_cold(measured: f64) -> Times {
    Times {
        idle: 0.0,
        warm_up: 0.0,
        measured,
    }
}

/// Runs at `load` times the capacity of all. Changes come so long after the idle time.
pub fn run(
    setup: &Setup,
    site: &Site,
    load: f64,
    seed: u64,
    times: Times,
    changes: &[Change],
) -> Run {
    let mut dice = Dice::new(seed);
    let mut servers = site.capacities.map(|c| Server::new(c, site.full));
    let weights = setup.weights.of(site);
    let mut bench = Bench::new(setup.scheduler, &weights);
    let mut control = setup
        .feedback
        .map(|(policy, see)| Control::new(policy, see, &weights, seed, &mut servers));
    let rate = load * site.full * site.capacities.iter().sum::<f64>();
    let mut run = Run {
        responses: Vec::with_capacity((rate * times.measured * 1.1) as usize),
        shares: Vec::new(),
        pushes: 0,
    };
    let (mut now, mut next_share) = (times.idle, times.idle + INTERVAL);
    let measure_from = times.idle + times.warm_up;
    let mut changes = changes.iter().peekable();
    while now < measure_from + times.measured {
        now += dice.exponential(rate);
        let size = dice.size();
        while let Some(change) = changes.next_if(|c| times.idle + c.at <= now) {
            change_speed(&mut servers[change.server], now, change.capacity);
        }
        if let Some(control) = &mut control {
            run.pushes += control.run(now, &mut servers, &mut bench);
        }
        while next_share <= now {
            run.shares.push(shares(&bench));
            next_share += INTERVAL;
        }
        finish(&mut servers, &bench, now);
        let Some(n) = bench.pick() else {
            continue;
        };
        bench.counters.backends[n].active.add(1);
        let response = servers[n].take(now, size);
        if now >= measure_from {
            run.responses.push(response as f32);
        }
    }
    run
}

fn shares(bench: &Bench) -> [f64; 10] {
    let weights = bench.servers();
    let sum: u32 = weights.iter().map(|s| s.weight).sum();
    std::array::from_fn(|n| f64::from(weights[n].weight) / f64::from(sum))
}

fn finish(servers: &mut [Server; 10], bench: &Bench, now: f64) {
    for (server, counters) in servers.iter_mut().zip(&bench.counters.backends) {
        while server.ends.front().is_some_and(|end| *end <= now) {
            server.ends.pop_front();
            counters.active.subtract(1);
        }
    }
}

/// What is in the queue takes longer, or less long, from now on.
fn change_speed(server: &mut Server, now: f64, capacity: f64) {
    let stretch = server.capacity / capacity;
    let left = (server.free_at - now).max(0.0);
    server.given += left * (stretch - 1.0);
    server.free_at = now + left * stretch;
    for end in server.ends.iter_mut().filter(|end| **end > now) {
        *end = now + (*end - now) * stretch;
    }
    server.capacity = capacity;
}

/// Mean and standard deviation.
pub fn spread(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let square = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (mean, (square / (values.len() as f64 - 1.0)).sqrt())
}

/// The p99 of each of these setups, in seconds: one for each seed. Seeds are spread over the
/// processors.
pub fn p99s(
    setups: &[Setup],
    site: &Site,
    load: f64,
    seeds: Range<u64>,
    times: Times,
) -> Vec<Vec<f64>> {
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    let one = |seed: u64| -> Vec<f64> {
        let p99 = |setup| run(setup, site, load, seed, times, &[]).p99();
        setups.iter().map(p99).collect()
    };
    let mut all = vec![Vec::new(); setups.len()];
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|w| {
                let mine = seeds.clone().skip(w).step_by(workers);
                scope.spawn(move || mine.map(one).collect::<Vec<_>>())
            })
            .collect();
        for thread in threads {
            for p99s in thread.join().expect("a simulation ended badly") {
                all.iter_mut()
                    .zip(p99s)
                    .for_each(|(all, p99)| all.push(p99));
            }
        }
    });
    all
}
