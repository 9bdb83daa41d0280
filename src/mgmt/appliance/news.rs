//! What has happened, told to whoever wants to know: the log, the stream of events and the services'
//! hooks.

use std::time::Instant;

use super::Appliance;
use crate::lb::snapshot::BackendId;
use crate::mgmt::checks::{self, News};
use crate::mgmt::config::{Backend, Service};
use crate::mgmt::desired::Desired;
use crate::mgmt::events::{EventKind, Happening};
use crate::mgmt::health::Transition;
use crate::mgmt::hooks;
use crate::mgmt::net::{NetEvent, Output};
use crate::mgmt::watch::{AtLimit, Drain, Seen};
use crate::mgmt::workers::WorkerLink;

impl Appliance {
    /// A check found a backend up, down, or with another weight.
    pub(super) fn checked(&mut self, changed: &Transition) {
        let was_up = !self.desired.is_down(changed.id);
        let news = self.checks.changed(changed, &mut self.desired);
        if news == News::None {
            return;
        }
        let kind = match (was_up == changed.up, changed.up) {
            (true, _) => EventKind::BackendWeight,
            (false, true) => EventKind::BackendUp,
            (false, false) => EventKind::BackendDown,
        };
        let what = Happening::new(kind, checks::describe(changed, was_up));
        let what = what.of_service(changed.service.as_ref());
        self.tell(what.of_backend(changed.backend.as_ref()));
        let now = Instant::now();
        if news == News::Weight {
            self.load.configure(&mut self.desired, now);
        }
        if was_up != changed.up {
            self.load.health(changed.id, changed.up, now);
            let word = |up| if up { "up" } else { "down" };
            let change = hooks::Change {
                event: "backend",
                service: changed.service.to_string(),
                backend: Some(changed.backend.to_string()),
                old: word(was_up),
                new: word(changed.up),
                check: Some(changed.check.to_owned()),
                answer: Some(changed.answer.clone()),
            };
            self.hooks.tell(&self.desired.config, change);
        }
        self.stale = true;
    }

    /// Says which services have lost their quorum or have it again; the next snapshot shows it.
    pub(super) fn look_at_quorums(&mut self) {
        for change in self.desired.look_at_quorums() {
            let kind = match change.met {
                true => EventKind::QuorumMet,
                false => EventKind::QuorumLost,
            };
            self.tell(Happening::new(kind, change.to_string()).of_service(&change.service));
            let word = |met| if met { "met" } else { "lost" };
            let change = hooks::Change {
                event: "quorum",
                service: change.service,
                backend: None,
                old: word(!change.met),
                new: word(change.met),
                check: None,
                answer: None,
            };
            self.hooks.tell(&self.desired.config, change);
        }
    }

    /// Sends frames and says what an operator would want to know.
    pub(super) fn carry_out(&mut self, out: Output) {
        for (port, frame) in out.frames {
            self.send(port, &frame);
        }
        for event in out.events {
            self.stale = true;
            let what = self.describe(&event);
            self.tell(what);
        }
    }

    fn describe(&self, event: &NetEvent) -> Happening {
        let name = |port: u16| {
            let facts = self.desired.ports().get(usize::from(port));
            facts.map_or("?", |port| port.name.as_str())
        };
        let (kind, port, message) = match event {
            NetEvent::NeighbourResolved { ip, port, mac } => {
                let message = format!("next hop {ip} is at {mac}");
                (EventKind::NeighbourUp, *port, message)
            }
            NetEvent::NeighbourChanged { ip, port, old, new } => {
                let message = format!("next hop {ip} moved from {old} to {new}");
                (EventKind::NeighbourMoved, *port, message)
            }
            NetEvent::NeighbourLost { ip, port } => {
                let message = format!("next hop {ip} does not answer any more");
                (EventKind::NeighbourDown, *port, message)
            }
            NetEvent::NeighbourSilent { ip, port } => {
                let message = format!(
                    "next hop {ip} does not answer on port {}: check that it is up and in the port's subnet",
                    name(*port)
                );
                (EventKind::NeighbourDown, *port, message)
            }
            NetEvent::AddressConflict { ip, port, mac } => {
                let message = format!(
                    "address conflict: {mac} uses {ip}, which is ours: look for another instance, or for a backend that answers ARP for the VIP"
                );
                (EventKind::AddressConflict, *port, message)
            }
        };
        Happening::new(kind, message).of_port(name(port))
    }

    /// Logs it and tells whoever follows the events.
    pub(super) fn tell(&mut self, what: Happening) {
        self.events.tell(what);
    }

    /// Looks for what nobody reports.
    pub(super) fn watch(&mut self, now: Instant) {
        let ports = self.ports.observe().zip(&self.desired.config.ports);
        let seen = Seen {
            drops: super::drops(&self.workers),
            guards: self
                .workers
                .iter()
                .map(|worker| worker.counters.guard_up.get() != 0)
                .collect(),
            links: ports
                .map(|((_, link, _), port)| (port.name.clone(), link.up))
                .collect(),
            drains: self.drains(),
        };
        let at_limits = || at_limits(&self.desired, &self.workers);
        for what in self.watch.look(now, seen, at_limits) {
            self.events.tell(what);
        }
    }

    fn drains(&self) -> Vec<Drain> {
        let drained = self.desired.drained();
        let drain = |(id, service, backend): (BackendId, &Service, &Backend)| Drain {
            id,
            service: service.name.clone(),
            backend: backend.name.clone(),
            connections: tracked(&self.workers, id),
            over: self.desired.drain_is_over(id),
        };
        drained.map(drain).collect()
    }
}

/// Connections of a backend, over all workers.
pub(super) fn tracked(workers: &[WorkerLink], id: BackendId) -> u64 {
    let of = |worker: &WorkerLink| {
        let counters = worker.counters.backends.get(id.0 as usize);
        counters.map_or(0, |c| c.active.get() + c.inactive.get())
    };
    workers.iter().map(of).sum()
}

/// The limits that are reached, and the rates that may be, for nobody counts which service's
/// packets a rate refused.
fn at_limits(desired: &Desired, workers: &[WorkerLink]) -> Vec<AtLimit> {
    let mut found = Vec::new();
    for service in &desired.config.services {
        let backends = service.backends.iter().map(|backend| {
            let id = desired.find_backend(service, backend);
            (backend, id.map_or(0, |id| tracked(workers, id)))
        });
        let mut all = 0;
        for (backend, connections) in backends {
            all += connections;
            // Overloaded until well below its limit.
            let lower = |upper: u32| backend.lower.unwrap_or(upper.div_ceil(4) * 3);
            if let Some(upper) = backend
                .upper
                .filter(|&u| connections >= u64::from(lower(u)))
            {
                found.push(AtLimit {
                    service: service.name.clone(),
                    backend: Some(backend.name.clone()),
                    what: format!("{connections} of {upper} connections"),
                });
            }
        }
        let mut own = |what: String| {
            found.push(AtLimit {
                service: service.name.clone(),
                backend: None,
                what,
            });
        };
        if let Some(most) = service.limits.connections.filter(|&m| all >= u64::from(m)) {
            own(format!("{all} of {most} connections"));
        }
        if let Some(rate) = service.limits.rate {
            own(format!("a rate of {rate} new connections a second is set"));
        }
    }
    found
}
