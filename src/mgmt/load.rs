//! Feedback and slow start of the running appliance: what was observed goes to the services'
//! controllers, and the weights that they find go to [`Desired`].
//!
//! Lives on the management thread; asking agents and exporters is left to its pollers' tasks.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::config::{self, FeedbackPolicy};
use super::desired::Desired;
use super::feedback::poll::{Heard, Pollers, Target};
use super::feedback::{Counted, Feedback, Member, Policy, ServiceSpec, Source, Spec, Status};
use super::workers::WorkerLink;
use crate::lb::counters::BackendCounters;
use crate::lb::snapshot::BackendId;

/// How often a service that has slow start and no feedback is looked at: the steps of its ramp.
const RAMP: Duration = Duration::from_secs(1);

/// The controllers and what they hear.
pub struct Load {
    feedback: Feedback,
    /// From [`Load::start`] on.
    pollers: Option<(Pollers, mpsc::Receiver<Heard>)>,
    targets: Vec<Target>,
    /// Backends whose weights are the controllers' business.
    members: HashSet<BackendId>,
    since: Instant,
}

impl Load {
    pub fn new(now: Instant) -> Self {
        Self {
            feedback: Feedback::default(),
            pollers: None,
            targets: Vec::new(),
            members: HashSet::new(),
            since: now,
        }
    }

    /// Begins to ask agents and exporters, on the current runtime.
    pub fn start(&mut self) {
        let (mut pollers, heard) = Pollers::new();
        pollers.set(&self.targets);
        self.pollers = Some((pollers, heard));
    }

    /// Follows the configuration, and weights that checks set. Who stays keeps what is known.
    pub fn configure(&mut self, desired: &mut Desired, now: Instant) {
        let known: &Desired = desired;
        let is_led = |s: &&config::Service| s.feedback.is_some() || s.slow_start.is_some();
        let services = || known.config.services.iter().filter(is_led);
        let specs: Vec<ServiceSpec> = services().filter_map(|s| spec(known, s)).collect();
        self.targets = services().flat_map(|s| targets(known, s)).collect();
        let members = specs.iter().flat_map(|spec| &spec.members).map(|m| m.id);
        let members: HashSet<BackendId> = members.collect();
        for id in self.members.difference(&members) {
            desired.set_weight(*id, None);
        }
        self.members = members;
        let now = self.elapsed(now);
        self.feedback.configure(specs, now);
        if let Some((pollers, _)) = &mut self.pollers {
            pollers.set(&self.targets);
        }
    }

    /// What an agent or exporter said next. Nothing is lost when it is cancelled.
    pub async fn next(&mut self) -> Heard {
        let heard = match &mut self.pollers {
            Some((_, heard)) => heard.recv().await,
            None => None,
        };
        match heard {
            Some(heard) => heard,
            None => std::future::pending().await,
        }
    }

    pub fn heard(&mut self, heard: Heard, now: Instant) {
        let now = self.elapsed(now);
        self.feedback.heard(heard, now);
    }

    /// Health checks measured these response times.
    pub fn responded(&mut self, measured: Vec<(BackendId, Duration)>, now: Instant) {
        let now = self.elapsed(now);
        for (id, took) in measured {
            self.feedback.responded(id, took, now);
        }
    }

    /// Checks found a backend up or down.
    pub fn health(&mut self, id: BackendId, up: bool, now: Instant) {
        let now = self.elapsed(now);
        self.feedback.health(id, up, now);
    }

    /// Lets those controllers act whose interval is over; true where a weight has changed.
    pub fn tick(&mut self, desired: &mut Desired, workers: &[WorkerLink], now: Instant) -> bool {
        let now = self.elapsed(now);
        if self.feedback.due().is_none_or(|due| now < due) {
            return false;
        }
        let counted = |id: BackendId| {
            let counters = || {
                let all = workers.iter();
                all.filter_map(move |w| w.counters.backends.get(id.0 as usize))
            };
            let sum = |read: fn(&BackendCounters) -> u64| counters().map(read).sum();
            Counted {
                connections: sum(|c| c.connections.get()),
                live: sum(|c| c.active.get()),
            }
        };
        let mut stale = false;
        for change in self.feedback.tick(counted, now) {
            tracing::debug!(
                "backend {}: weight {}: {}",
                change.backend.0,
                change.weight,
                change.reason
            );
            stale |= desired.set_weight(change.backend, Some(change.weight));
        }
        if let (Some((pollers, _)), Some(quick)) = (&self.pollers, self.feedback.quick()) {
            pollers.hurry(&quick);
        }
        stale
    }

    /// Why the service's weights are what they are; empty where nothing leads them.
    pub fn status(&self, desired: &Desired, service: &config::Service) -> Vec<Status> {
        let id = desired.find_service(service);
        let status = id.and_then(|id| self.feedback.status(id));
        status.unwrap_or_default()
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

fn spec(desired: &Desired, service: &config::Service) -> Option<ServiceSpec> {
    let policy = match service.feedback.as_ref().map(|f| f.policy) {
        None => Policy::Fixed,
        Some(FeedbackPolicy::Relative) => Policy::Relative,
        Some(FeedbackPolicy::Lvs) => Policy::Lvs,
    };
    let member = |backend: &config::Backend| {
        let id = desired.find_backend(service, backend)?;
        let weight = match backend.drain {
            true => 0,
            false => desired.base_weight(id, backend),
        };
        Some(Member { id, weight })
    };
    Some(ServiceSpec {
        id: desired.find_service(service)?,
        spec: Spec {
            policy,
            interval: service.feedback.as_ref().map_or(RAMP, |f| f.interval),
            slow_start: service.slow_start.unwrap_or_default(),
        },
        members: service.backends.iter().filter_map(member).collect(),
    })
}

/// Whom to ask about the service's backends.
fn targets<'a>(
    desired: &'a Desired,
    service: &'a config::Service,
) -> impl Iterator<Item = Target> + 'a {
    let feedback = service.feedback.iter();
    feedback.flat_map(move |feedback| {
        let sources = [
            (Source::Agent, feedback.agent_port),
            (Source::Exporter, feedback.exporter_port),
        ];
        let of_backend = move |backend: &config::Backend| {
            let id = desired.find_backend(service, backend);
            let address = backend.address;
            sources.into_iter().filter_map(move |(source, port)| {
                Some(Target {
                    id: id?,
                    source,
                    address: SocketAddr::new(address, port?),
                    interval: feedback.interval,
                })
            })
        };
        service.backends.iter().flat_map(of_backend)
    })
}
