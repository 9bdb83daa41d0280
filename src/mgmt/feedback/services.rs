//! All services' controllers, and the seam to the management loop: per-backend counts and what
//! was heard go in, weights with reasons come out.
//!
//! The loop calls [`Feedback::heard`] for whatever the pollers and checks bring, and
//! [`Feedback::tick`] at least once a second; it publishes the changes that come back as one
//! snapshot. Pure; the clock is a parameter.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::controller::{Controller, Member, Spec, Status};
use super::poll::Heard;
use super::reason::Reason;
use super::sample::{Sample, Source};
use crate::lb::snapshot::{BackendId, ServiceId};

/// A service that has feedback or a slow start.
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceSpec {
    pub id: ServiceId,
    pub spec: Spec,
    pub members: Vec<Member>,
}

/// A backend's counts, all workers together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counted {
    /// New connections since the program began.
    pub connections: u64,
    /// Connections that live now.
    pub live: u64,
}

/// A weight to publish.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    pub service: ServiceId,
    pub backend: BackendId,
    pub weight: u32,
    pub reason: Reason,
}

#[derive(Debug)]
struct Held {
    controller: Controller,
    members: Vec<BackendId>,
    due: Duration,
    counted: HashMap<BackendId, (u64, Duration)>,
    /// Sources are asked quickly: nothing is known, and there are connections to learn from, or
    /// there may be until `quick_until`.
    is_quick: bool,
    quick_until: Duration,
}

#[derive(Debug, Default)]
pub struct Feedback {
    services: HashMap<ServiceId, Held>,
    service_of: HashMap<BackendId, ServiceId>,
    /// Who is asked quickly is not what it was.
    pace_changed: bool,
}

impl Feedback {
    /// Follows a reload. Services that are not named lose what was known of them.
    pub fn configure(&mut self, specs: Vec<ServiceSpec>, now: Duration) {
        let mut old = std::mem::take(&mut self.services);
        self.service_of.clear();
        self.pace_changed = true;
        for ServiceSpec { id, spec, members } in specs {
            let interval = spec.interval;
            let ids: Vec<BackendId> = members.iter().map(|m| m.id).collect();
            self.service_of.extend(ids.iter().map(|b| (*b, id)));
            let held = match old.remove(&id) {
                Some(mut held) => {
                    // Another weight is not kept waiting for the interval's end.
                    if held.controller.configure(spec, &members) {
                        held.due = now;
                    }
                    held.counted.retain(|backend, _| ids.contains(backend));
                    held
                }
                None => Held {
                    controller: Controller::new(spec, &members),
                    members: Vec::new(),
                    // The first step begins to count.
                    due: now,
                    counted: HashMap::new(),
                    quick_until: now + interval,
                    is_quick: true,
                },
            };
            let held = Held {
                members: ids,
                ..held
            };
            self.services.insert(id, held);
        }
    }

    /// What a poller heard.
    pub fn heard(&mut self, heard: Heard, now: Duration) {
        let Some(held) = self.of(heard.id) else {
            return;
        };
        match heard.answer {
            Ok(sample) => held.controller.observe(heard.id, sample, now),
            Err(why) => held.controller.fault(heard.id, heard.source, why),
        }
    }

    /// A health check measured a response time.
    pub fn responded(&mut self, id: BackendId, response: Duration, now: Duration) {
        let sample = Sample {
            source: Source::Checks,
            response: Some(response),
            ..Sample::default()
        };
        if let Some(held) = self.of(id) {
            held.controller.observe(id, sample, now);
        }
    }

    /// Checks found the backend up or down.
    pub fn health(&mut self, id: BackendId, up: bool, now: Duration) {
        if let Some(held) = self.of(id) {
            match up {
                // A slow start begins at once.
                true if held.controller.came_back(id, now) => held.due = now,
                true => {}
                false => held.controller.went_down(id),
            }
        }
    }

    /// Runs the services whose step is due, with what the workers counted; returns what is
    /// to be published.
    pub fn tick(&mut self, counted: impl Fn(BackendId) -> Counted, now: Duration) -> Vec<Change> {
        let mut changes = Vec::new();
        for (&service, held) in &mut self.services {
            if now < held.due {
                continue;
            }
            // A loop that was held up does not make up for steps.
            held.count(&counted, now);
            let stepped = held.controller.step(now).into_iter();
            held.due = (held.due + held.controller.wait()).max(now);
            let was_quick = held.is_quick;
            held.is_quick =
                held.controller.is_new() && (held.controller.is_busy() || now < held.quick_until);
            self.pace_changed |= held.is_quick != was_quick;
            changes.extend(stepped.map(|(backend, weight, reason)| Change {
                service,
                backend,
                weight,
                reason,
            }));
        }
        changes
    }

    /// The backends whose sources are to be asked quickly, where these have changed since the last
    /// call.
    pub fn quick(&mut self) -> Option<HashSet<BackendId>> {
        std::mem::take(&mut self.pace_changed).then(|| {
            let quick = self.services.values().filter(|held| held.is_quick);
            quick
                .flat_map(|held| held.members.iter().copied())
                .collect()
        })
    }

    /// When the next [`Self::tick`] will have something to do.
    pub fn due(&self) -> Option<Duration> {
        self.services.values().map(|held| held.due).min()
    }

    /// A service's weights and why; `None` when it has neither feedback nor slow start.
    pub fn status(&self, service: ServiceId) -> Option<Vec<Status>> {
        Some(self.services.get(&service)?.controller.status())
    }

    fn of(&mut self, id: BackendId) -> Option<&mut Held> {
        self.services.get_mut(self.service_of.get(&id)?)
    }
}

impl Held {
    fn count(&mut self, counted: &impl Fn(BackendId) -> Counted, now: Duration) {
        for &id in &self.members {
            let Counted { connections, live } = counted(id);
            let before = self.counted.insert(id, (connections, now));
            // The first count has nothing to be compared with.
            let rate = before.and_then(|(then, at)| {
                let seconds = now.saturating_sub(at).as_secs_f64();
                let new = connections.checked_sub(then)?;
                (seconds > 0.0).then(|| new as f64 / seconds)
            });
            let sample = Sample {
                source: Source::Workers,
                rate,
                connections: Some(live as f64),
                ..Sample::default()
            };
            self.controller.observe(id, sample, now);
        }
    }
}
