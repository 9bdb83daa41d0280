//! From two statuses and the time between them to what happens in a second. Pure.

use std::time::Instant;

use super::Sort;
use crate::mgmt::api::{BackendState, Status, Traffic, WorkerStatus};

/// The last status and what happened since the one before.
#[derive(Debug, Default)]
pub struct Rates {
    now: Status,
    before: Option<Status>,
    at: Option<Instant>,
    seconds: f64,
    stale: bool,
}

/// A service, or a backend of the service above it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub service: String,
    /// `None` in the service's own row.
    pub backend: Option<String>,
    /// Of a service: the scheduler.
    pub what: String,
    pub state: Option<BackendState>,
    pub weight: Option<u32>,
    pub active: u64,
    pub inactive: u64,
    /// In a second.
    pub rate: Rate,
}

/// Things in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    pub connections: f64,
    pub in_packets: f64,
    pub out_packets: f64,
    pub bits: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerRow {
    pub worker: u16,
    pub core: u16,
    /// Percent of the time since the status before.
    pub busy: Option<f64>,
    pub received: f64,
    pub transmitted: f64,
    pub dropped: f64,
    pub connections: u64,
    pub capacity: u64,
}

impl Rates {
    pub fn take(&mut self, status: Status, at: Instant) {
        let since = self.at.map(|before| at.duration_since(before));
        self.seconds = since.map_or(0.0, |since| since.as_secs_f64());
        // Another program: its counts began anew.
        let is_same = status.uptime_seconds >= self.now.uptime_seconds;
        let before = std::mem::replace(&mut self.now, status);
        self.before = (self.at.is_some() && is_same).then_some(before);
        self.at = Some(at);
        self.stale = false;
    }

    /// The last look got no answer.
    pub fn set_stale(&mut self) {
        self.stale = true;
    }

    pub fn is_stale(&self) -> bool {
        self.stale
    }

    pub fn status(&self) -> &Status {
        &self.now
    }

    fn per_second(&self, count: u64) -> f64 {
        match self.seconds > 0.0 {
            true => count as f64 / self.seconds,
            false => 0.0,
        }
    }

    fn rate(&self, traffic: Traffic) -> Rate {
        Rate {
            connections: self.per_second(traffic.connections),
            in_packets: self.per_second(traffic.in_packets),
            out_packets: self.per_second(traffic.out_packets),
            bits: self.per_second(8 * (traffic.in_bytes + traffic.out_bytes)),
        }
    }

    /// What a backend did since the status before; of one that was not there nothing is known.
    fn traffic(&self, service: &str, backend: &str, now: Traffic) -> Rate {
        let before = self.before.iter().flat_map(|status| &status.services);
        let mut before = before.filter(|s| s.name == service);
        let before = before.find_map(|s| s.backends.iter().find(|b| b.name == backend));
        before.map_or_else(Rate::default, |before| self.rate(now.since(before.traffic)))
    }

    /// Services, each with its backends behind it.
    pub fn rows(&self, sort: Sort) -> Vec<Row> {
        let mut groups: Vec<Vec<Row>> = self.now.services.iter().map(|s| self.group(s)).collect();
        let key = |row: &Row| match sort {
            Sort::Connections => row.active as f64,
            _ => row.rate.in_packets + row.rate.out_packets,
        };
        match sort {
            Sort::Configured => {}
            Sort::Name => {
                groups.sort_by(|a, b| a[0].service.cmp(&b[0].service));
                for group in &mut groups {
                    group[1..].sort_by(|a, b| a.backend.cmp(&b.backend));
                }
            }
            Sort::Connections | Sort::Packets => {
                groups.sort_by(|a, b| key(&b[0]).total_cmp(&key(&a[0])));
                for group in &mut groups {
                    group[1..].sort_by(|a, b| key(b).total_cmp(&key(a)));
                }
            }
        }
        groups.concat()
    }

    fn group(&self, service: &crate::mgmt::api::ServiceStatus) -> Vec<Row> {
        let backends = service.backends.iter().map(|backend| Row {
            service: service.name.clone(),
            backend: Some(backend.name.clone()),
            what: String::new(),
            state: Some(backend.state),
            weight: Some(backend.effective_weight),
            active: backend.active,
            inactive: backend.inactive,
            rate: self.traffic(&service.name, &backend.name, backend.traffic),
        });
        let backends: Vec<Row> = backends.collect();
        let sum = |of: fn(&Rate) -> f64| backends.iter().map(|row| of(&row.rate)).sum();
        let own = Row {
            service: service.name.clone(),
            backend: None,
            what: service.scheduler.clone(),
            state: None,
            weight: None,
            active: backends.iter().map(|row| row.active).sum(),
            inactive: backends.iter().map(|row| row.inactive).sum(),
            rate: Rate {
                connections: sum(|rate| rate.connections),
                in_packets: sum(|rate| rate.in_packets),
                out_packets: sum(|rate| rate.out_packets),
                bits: sum(|rate| rate.bits),
            },
        };
        std::iter::once(own).chain(backends).collect()
    }

    pub fn workers(&self) -> Vec<WorkerRow> {
        let before = |worker: u16| {
            let workers = self.before.iter().flat_map(|status| &status.workers);
            workers.into_iter().find(move |w| w.worker == worker)
        };
        let row = |now: &WorkerStatus| {
            let before = before(now.worker);
            let since = |of: fn(&WorkerStatus) -> u64| {
                before.map_or(0.0, |before| {
                    self.per_second(of(now).saturating_sub(of(before)))
                })
            };
            let share = before.map(|before| {
                let all = now.seconds - before.seconds;
                100.0 * (now.busy_seconds - before.busy_seconds) / all.max(f64::MIN_POSITIVE)
            });
            WorkerRow {
                worker: now.worker,
                core: now.core,
                busy: share.filter(|share| share.is_finite()),
                received: since(|worker| worker.received),
                transmitted: since(|worker| worker.transmitted),
                dropped: since(|worker| worker.dropped),
                connections: now.connections,
                capacity: now.capacity,
            }
        };
        self.now.workers.iter().map(row).collect()
    }

    /// Drop reasons and how often in a second, most first; those that do not happen left out.
    pub fn drops(&self) -> Vec<(String, f64)> {
        let before = |reason: &str| {
            let drops = self.before.iter().flat_map(|status| &status.drops);
            let mut same = drops.filter(|drop| drop.reason == reason);
            same.next().map_or(0, |drop| drop.count)
        };
        let happened = self.now.drops.iter().map(|drop| {
            let count = drop.count.saturating_sub(before(&drop.reason));
            (drop.reason.clone(), self.per_second(count))
        });
        let mut drops: Vec<(String, f64)> = match self.before {
            Some(_) => happened.filter(|(_, rate)| *rate > 0.0).collect(),
            None => Vec::new(),
        };
        drops.sort_by(|a, b| b.1.total_cmp(&a.1));
        drops
    }
}
