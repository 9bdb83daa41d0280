//! Health checks of the running appliance: which there are, the way of their packets to and from
//! the workers' rings, and what they say of each backend.
//!
//! Lives on the management thread, and so do the probes. It decides nothing about traffic: what
//! checks find is told to [`Desired`], which the next snapshot is made from.

use std::collections::HashMap;
use std::time::Instant;

use tokio::sync::mpsc;

use super::config::{Backend, Config, Service};
use super::desired::Desired;
use super::health::{self, HealthEngine, Outgoing, Report, Runner, Transition};
use super::supervise::{Restarts, caught};
use crate::lb::parse::ETHERNET;
use crate::lb::snapshot::BackendId;

/// Probes' packets that may wait for the management loop.
const OUTGOING: usize = 8192;

/// The checks, and what they found.
pub struct Checks {
    engine: HealthEngine,
    /// Until [`Checks::start`] sends it off.
    runner: Option<Runner>,
    outgoing: mpsc::Receiver<Outgoing>,
    transitions: mpsc::UnboundedReceiver<Transition>,
    /// Backends that are checked, and whether they are well.
    checked: HashMap<BackendId, bool>,
}

/// What a probe or a result wants done.
#[derive(Debug)]
pub enum Event {
    Send(Outgoing),
    Changed(Transition),
}

/// What is news in a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing: the backend is not checked any more.
    None,
    /// The state alone.
    State,
    /// The weight, and maybe the state.
    Weight,
}

impl Checks {
    pub fn new(config: &Config) -> Self {
        let mtu = config.ports.iter().map(|port| port.mtu).min();
        let (out, outgoing) = mpsc::channel(OUTGOING);
        let (sender, transitions) = mpsc::unbounded_channel();
        let (engine, runner) = HealthEngine::new(mtu.unwrap_or(1500), out, sender);
        Self {
            engine,
            runner: Some(runner),
            outgoing,
            transitions,
            checked: HashMap::new(),
        }
    }

    /// Begins to check, on the current runtime.
    pub fn start(&mut self) {
        if let Some(mut runner) = self.runner.take() {
            tokio::spawn(async move {
                let mut restarts = Restarts::of("health checking");
                while caught(runner.run()).await.is_err() {
                    restarts.after_panic().await;
                    runner.put_in_order();
                }
            });
        }
    }

    /// Follows the configuration. A backend that is checked already keeps its state, a new one has
    /// the one that the check starts with, and one that is checked no more counts as well.
    pub fn configure(&mut self, desired: &mut Desired) {
        let id = |service: &Service, backend: &Backend| {
            let known = desired.find_backend(service, backend);
            known.unwrap_or_default()
        };
        let specs = match health::plan(&desired.config, id) {
            Ok(specs) => specs,
            // Validation makes the same plan, so only files it needs can have changed since.
            Err(why) => {
                tracing::error!("the checks stay as they were: {why}");
                return;
            }
        };
        let before = std::mem::take(&mut self.checked);
        for spec in &specs {
            let up = before.get(&spec.id).copied();
            let up = up.unwrap_or(spec.start != health::Start::Down);
            self.checked.insert(spec.id, up);
            desired.set_down(spec.id, !up);
        }
        for id in before.keys().filter(|id| !self.checked.contains_key(id)) {
            desired.set_down(*id, false);
            desired.set_checked_weight(*id, None);
        }
        self.engine.apply(specs);
    }

    /// The next thing that a probe or a result wants done. Nothing is lost when it is cancelled.
    pub async fn next(&mut self) -> Event {
        // Neither channel ends: the engine that this holds has a sender of each.
        tokio::select! {
            Some(changed) = self.transitions.recv() => Event::Changed(changed),
            Some(packet) = self.outgoing.recv() => Event::Send(packet),
            else => std::future::pending().await,
        }
    }

    /// A further packet, if one waits.
    pub fn next_packet(&mut self) -> Option<Outgoing> {
        self.outgoing.try_recv().ok()
    }

    /// Takes a received frame, if a probe waits for it.
    pub fn receive(&self, frame: &[u8], stamp: Instant) -> bool {
        let is_ip = matches!(frame.get(12..ETHERNET), Some([0x08, 0x00] | [0x86, 0xdd]));
        is_ip && self.engine.receive(&frame[ETHERNET..], stamp)
    }

    /// Remembers what a check found.
    pub fn changed(&mut self, changed: &Transition, desired: &mut Desired) -> News {
        let Some(up) = self.checked.get_mut(&changed.id) else {
            return News::None;
        };
        *up = changed.up;
        desired.set_down(changed.id, !changed.up);
        match desired.set_checked_weight(changed.id, changed.weight) {
            true => News::Weight,
            false => News::State,
        }
    }

    /// What status shows of a backend's check.
    pub fn report(&self, id: BackendId) -> Option<Report> {
        self.engine.report(id)
    }

    pub fn engine(&self) -> &HealthEngine {
        &self.engine
    }
}

/// One line about a change, for the log.
pub fn describe(changed: &Transition, was_up: bool) -> String {
    let word = |up| if up { "up" } else { "down" };
    let Transition {
        service,
        backend,
        up,
        weight,
        check,
        answer,
        ..
    } = changed;
    let weight = weight.map_or_else(String::new, |weight| format!(" with weight {weight}"));
    format!(
        "service {service}: backend {backend}: {} -> {}{weight}; {check} check: {answer}",
        word(was_up),
        word(*up),
    )
}
