//! What management does in a simulation: it reads exporters, checks health, and lets the production
//! controllers act, all on the simulation's clock.

use std::time::Duration;

use evenkeel::lb::snapshot::{BackendId, ServiceId};
use evenkeel::mgmt::feedback::poll::{Heard, pause};
use evenkeel::mgmt::feedback::{
    Counted, Feedback, Member, Policy, Sample, ServiceSpec, Source, Spec,
};

use super::bench::Bench;
use super::{Dice, INTERVAL, See, Server, finish};

/// Seconds between two health checks of a server.
const CHECK: f64 = 0.5;

pub struct Control {
    feedback: Feedback,
    see: See,
    /// For the moments at which exporters are read.
    dice: Dice,
    next_check: f64,
    /// Exporters are read quickly.
    quick: bool,
}

impl Control {
    pub fn new(
        policy: Policy,
        see: See,
        weights: &[u32; 10],
        seed: u64,
        servers: &mut [Server; 10],
    ) -> Self {
        let spec = Spec {
            policy,
            interval: Duration::from_secs_f64(INTERVAL),
            slow_start: Duration::ZERO,
        };
        let member = |(n, &weight): (usize, &u32)| Member {
            id: BackendId(n as u32),
            weight,
        };
        let service = ServiceSpec {
            id: ServiceId(0),
            spec,
            members: weights.iter().enumerate().map(member).collect(),
        };
        let mut feedback = Feedback::default();
        feedback.configure(vec![service], Duration::ZERO);
        let mut dice = Dice::new(!seed);
        for server in servers {
            server.next_read = match see.cpu {
                true => first_pause(&mut dice),
                false => f64::INFINITY,
            };
        }
        Self {
            feedback,
            see,
            dice,
            next_check: CHECK,
            quick: true,
        }
    }

    /// Catches up with what is due by `now`, in order; says how many steps pushed.
    pub fn run(&mut self, now: f64, servers: &mut [Server; 10], bench: &mut Bench) -> usize {
        let mut pushes = 0;
        loop {
            let read = servers
                .iter()
                .map(|s| s.next_read)
                .fold(f64::INFINITY, f64::min);
            let step = self
                .feedback
                .due()
                .map_or(f64::INFINITY, |due| due.as_secs_f64());
            let next = read.min(step).min(self.next_check);
            if next > now {
                return pushes;
            }
            if next == step {
                pushes += usize::from(self.step(next, servers, bench));
            } else if next == read {
                self.read(next, servers);
            } else {
                self.check(next, servers);
            }
        }
    }

    fn read(&mut self, now: f64, servers: &mut [Server; 10]) {
        let interval = Duration::from_secs_f64(INTERVAL);
        for (n, server) in servers
            .iter_mut()
            .enumerate()
            .filter(|(_, s)| s.next_read <= now)
        {
            let cpu = server.cpu(now);
            server.next_read = now + pause(interval, self.quick, self.dice.next()).as_secs_f64();
            let sample = Sample {
                source: Source::Exporter,
                cpu,
                ..Sample::default()
            };
            let heard = Heard {
                id: BackendId(n as u32),
                source: Source::Exporter,
                answer: Ok(sample),
            };
            self.feedback.heard(heard, Duration::from_secs_f64(now));
        }
    }

    fn check(&mut self, now: f64, servers: &[Server; 10]) {
        let time = Duration::from_secs_f64(now);
        for (n, server) in servers.iter().enumerate().filter(|_| self.see.response) {
            let response = Duration::from_secs_f64(server.response(now));
            self.feedback.responded(BackendId(n as u32), response, time);
        }
        self.next_check += CHECK;
    }

    /// One control step; says whether it pushed.
    fn step(&mut self, now: f64, servers: &mut [Server; 10], bench: &mut Bench) -> bool {
        finish(servers, bench, now);
        let counted = |id: BackendId| {
            let server = &servers[id.0 as usize];
            Counted {
                connections: server.arrivals,
                live: server.ends.len() as u64,
            }
        };
        let changes = self.feedback.tick(counted, Duration::from_secs_f64(now));
        for change in &changes {
            bench.lab.backend(change.backend.0).weight = change.weight;
        }
        if let Some(quick) = self.feedback.quick() {
            let begins = !quick.is_empty() && !self.quick;
            for server in servers.iter_mut().filter(|_| begins) {
                (server.read, server.next_read) = (None, server.next_read.min(now));
            }
            self.quick = !quick.is_empty();
        }
        !changes.is_empty()
    }
}

fn first_pause(dice: &mut Dice) -> f64 {
    pause(Duration::from_secs_f64(INTERVAL), true, dice.next()).as_secs_f64() * dice.next()
}
