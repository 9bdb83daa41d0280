//! Servers, arrivals and a control loop around the production controller and schedulers.
//!
//! A server works off its queue first come, first served, at its own speed. Arrivals are Poisson;
//! what each asks for is Pareto with index 1.5, cut at a thousand times the least (squared
//! coefficient of variation 10). All policies see the same arrivals.
#![allow(dead_code)]

#[path = "../sched/bench.rs"]
pub mod bench;

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bench::Bench;
use evenkeel::lb::maglev::mix;
use evenkeel::lb::snapshot::{BackendId, Scheduler};
use evenkeel::mgmt::feedback::{Controller, Member, Policy, Sample, Source, Spec};

/// Four servers of capacity 1, three of 2, three of 4.
const CAPACITIES: [f64; 10] = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0];
const RIGHT: [u32; 10] = [1, 1, 1, 1, 2, 2, 2, 4, 4, 4];
/// Seconds between two control steps.
pub const INTERVAL: f64 = 5.0;
/// How long a run warms up before its p99 is taken, the same for all policies: the ten intervals in
/// which weights that begin wrong have to settle.
pub const WARM_UP: f64 = 10.0 * INTERVAL;

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
    /// Seconds of work given, in all and by the last step.
    given: f64,
    busy_before: f64,
    arrivals: u32,
    /// Sums over the interval, of what probes would see.
    probes: f64,
    probed: u32,
}

impl Server {
    fn new(capacity: f64, full: f64) -> Self {
        Self {
            capacity,
            mean: 1.0 / full,
            free_at: 0.0,
            ends: VecDeque::new(),
            given: 0.0,
            busy_before: 0.0,
            arrivals: 0,
            probes: 0.0,
            probed: 0,
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

    fn probe(&mut self, now: f64) {
        self.probes += (self.free_at - now).max(0.0) + 0.2 * self.mean / self.capacity;
        self.probed += 1;
    }

    /// What the sources would say of the interval that ends now.
    fn sample(&mut self, now: f64, see: See) -> Sample {
        let busy = self.given - (self.free_at - now).max(0.0);
        let cpu = ((busy - self.busy_before) / INTERVAL).clamp(0.0, 1.0);
        let response = self.probes / f64::from(self.probed.max(1));
        let sample = Sample {
            source: Source::Exporter,
            rate: Some(f64::from(self.arrivals) / INTERVAL),
            connections: Some(self.ends.len() as f64),
            cpu: see.cpu.then_some(cpu),
            response: see.response.then(|| Duration::from_secs_f64(response)),
            ..Sample::default()
        };
        self.busy_before = busy;
        (self.arrivals, self.probes, self.probed) = (0, 0.0, 0);
        sample
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
    /// Response times in seconds, of requests that came after the warm-up.
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

/// Runs for `warm_up` and then `measured` seconds at `load` times the capacity of all.
pub fn run(
    setup: &Setup,
    site: &Site,
    load: f64,
    seed: u64,
    (warm_up, measured): (f64, f64),
    changes: &[Change],
) -> Run {
    let mut dice = Dice::new(seed);
    let mut servers = site.capacities.map(|c| Server::new(c, site.full));
    let weights = setup.weights.of(site);
    let mut bench = Bench::new(setup.scheduler, &weights);
    let mut controller = setup
        .feedback
        .map(|(policy, _)| controller(policy, weights));
    let rate = load * site.full * site.capacities.iter().sum::<f64>();
    let mut run = Run {
        responses: Vec::with_capacity((rate * measured * 1.1) as usize),
        shares: Vec::new(),
        pushes: 0,
    };
    let (mut now, mut next_step, mut next_probe) = (0.0, INTERVAL, 0.5);
    let mut changes = changes.iter().peekable();
    while now < warm_up + measured {
        now += dice.exponential(rate);
        let size = dice.size();
        while let Some(change) = changes.next_if(|c| c.at <= now) {
            change_speed(&mut servers[change.server], now, change.capacity);
        }
        while next_probe <= now {
            servers.iter_mut().for_each(|s| s.probe(next_probe));
            next_probe += 0.5;
        }
        while next_step <= now {
            if let (Some(controller), Some((_, see))) = (&mut controller, setup.feedback) {
                run.pushes +=
                    usize::from(step(controller, &mut servers, &mut bench, next_step, see));
            }
            run.shares.push(shares(&bench));
            next_step += INTERVAL;
        }
        finish(&mut servers, &bench, now);
        let Some(n) = bench.pick() else {
            continue;
        };
        bench.counters.backends[n].active.add(1);
        let response = servers[n].take(now, size);
        if now >= warm_up {
            run.responses.push(response as f32);
        }
    }
    run
}

fn controller(policy: Policy, weights: [u32; 10]) -> Controller {
    let spec = Spec {
        policy,
        interval: Duration::from_secs_f64(INTERVAL),
        slow_start: Duration::ZERO,
    };
    let member = |(n, &weight): (usize, &u32)| Member {
        id: BackendId(n as u32),
        weight,
    };
    let members: Vec<Member> = weights.iter().enumerate().map(member).collect();
    Controller::new(spec, &members)
}

/// One control step; says whether it pushed.
fn step(
    controller: &mut Controller,
    servers: &mut [Server; 10],
    bench: &mut Bench,
    now: f64,
    see: See,
) -> bool {
    let time = Duration::from_secs_f64(now);
    for (n, server) in servers.iter_mut().enumerate() {
        controller.observe(BackendId(n as u32), server.sample(now, see), time);
    }
    let pushed = controller.step(time);
    for (id, weight, _) in &pushed {
        bench.lab.backend(id.0).weight = *weight;
    }
    !pushed.is_empty()
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
    measured: f64,
) -> Vec<Vec<f64>> {
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    let times = (WARM_UP, measured);
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
