//! One worker's scheduler with a small service, and the counts it sees.
#![allow(dead_code)]

use std::net::Ipv4Addr;

use evenkeel::lb::counters::WorkerCounters;
use evenkeel::lb::fixture::Lab;
use evenkeel::lb::schedule::{Place, Request, SchedulerState};
use evenkeel::lb::snapshot::{Backend, Scheduler};

/// What a model knows of a server.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub weight: u32,
    pub down: bool,
    pub active: u64,
    pub inactive: u64,
}

impl Server {
    pub fn is_able(&self) -> bool {
        self.weight > 0 && !self.down
    }
}

pub struct Bench {
    pub lab: Lab,
    pub state: SchedulerState,
    pub counters: WorkerCounters,
    pub second: u32,
    flows: u32,
}

pub fn letter(n: usize) -> char {
    char::from(b'A' + n as u8)
}

impl Bench {
    pub fn new(scheduler: Scheduler, weights: &[u32]) -> Self {
        Self::on_worker(scheduler, weights, 0, 1)
    }

    pub fn on_worker(scheduler: Scheduler, weights: &[u32], worker: u32, workers: u32) -> Self {
        let backends = weights.len();
        Self {
            lab: Lab::new(scheduler, weights),
            state: SchedulerState::new(1, backends, Place { worker, workers }, 42),
            counters: WorkerCounters::new(backends),
            second: 0,
            flows: 0,
        }
    }

    /// A new flow of a new client.
    pub fn pick(&mut self) -> Option<usize> {
        self.flows += 1;
        let client = Ipv4Addr::from_bits(0x0a40_0000 + self.flows);
        self.pick_for(client, 1024, Ipv4Addr::new(192, 0, 2, 80))
    }

    pub fn pick_for(&mut self, client: Ipv4Addr, port: u16, wanted: Ipv4Addr) -> Option<usize> {
        let service = match self.lab.snapshot.services.get(0) {
            Some(Some(service)) => service.clone(),
            _ => panic!("the lab has a service"),
        };
        let request = Request::new(&service, client, port, wanted, self.second);
        let found = self.state.pick(
            &self.lab.snapshot,
            &service,
            &request,
            &self.counters.backends,
            Backend::is_eligible,
        );
        found.map(|backend| backend.id.0 as usize)
    }

    /// Picks without opening connections, as letters; `-` is none.
    pub fn sequence(&mut self, picks: usize) -> String {
        (0..picks)
            .map(|_| self.pick().map_or('-', letter))
            .collect()
    }

    /// An embryonic connection appears at a server.
    pub fn connect(&mut self, n: usize) {
        self.counters.backends[n].inactive.add(1);
    }

    /// One of a server's inactive connections becomes active, if it has one.
    pub fn establish(&mut self, n: usize) {
        let counters = &self.counters.backends[n];
        if counters.inactive.get() > 0 {
            counters.inactive.subtract(1);
            counters.active.add(1);
        }
    }

    /// One connection of a server ends, if it has one.
    pub fn disconnect(&mut self, n: usize) {
        let counters = &self.counters.backends[n];
        if counters.inactive.get() > 0 {
            counters.inactive.subtract(1);
        } else if counters.active.get() > 0 {
            counters.active.subtract(1);
        }
    }

    pub fn servers(&self) -> Vec<Server> {
        let backends = self.lab.snapshot.backends.iter();
        backends
            .zip(&self.counters.backends)
            .map(|(backend, counters)| Server {
                weight: backend.weight,
                down: !backend.is_eligible(),
                active: counters.active.get(),
                inactive: counters.inactive.get(),
            })
            .collect()
    }
}
