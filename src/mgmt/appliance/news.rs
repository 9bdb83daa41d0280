//! What has happened, told to whoever wants to know: the log and the services' hooks.

use std::time::Instant;

use super::Appliance;
use crate::mgmt::checks::{self, News};
use crate::mgmt::health::Transition;
use crate::mgmt::hooks;
use crate::mgmt::net::{NetEvent, Output};

impl Appliance {
    /// A check found a backend up, down, or with another weight.
    pub(super) fn checked(&mut self, changed: &Transition) {
        let was_up = !self.desired.is_down(changed.id);
        let news = self.checks.changed(changed, &mut self.desired);
        if news == News::None {
            return;
        }
        tracing::info!("{}", checks::describe(changed, was_up));
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
            match change.met {
                true => tracing::info!("{change}"),
                false => tracing::warn!("{change}"),
            }
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
            match event {
                NetEvent::NeighbourResolved { ip, mac, .. } => {
                    tracing::info!("next hop {ip} is at {mac}");
                }
                NetEvent::NeighbourChanged { ip, old, new, .. } => {
                    tracing::warn!("next hop {ip} moved from {old} to {new}");
                }
                NetEvent::NeighbourLost { ip, .. } => {
                    tracing::warn!("next hop {ip} does not answer any more");
                }
                NetEvent::NeighbourSilent { ip, port } => {
                    let name = self.desired.ports().get(usize::from(port));
                    let name = name.map_or("?", |p| p.name.as_str());
                    tracing::warn!(
                        "next hop {ip} does not answer on port {name}: check that it is up and in the port's subnet"
                    );
                }
                NetEvent::AddressConflict { ip, mac, .. } => {
                    tracing::error!(
                        "address conflict: {mac} uses {ip}, which is ours: look for another instance, or for a backend that answers ARP for the VIP"
                    );
                }
            }
        }
    }
}
