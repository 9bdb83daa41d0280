//! Whether the ports' receive queues can be trusted to tell a packet's owner: what is asked of a
//! device, what it says is in force, and what packets prove.
//!
//! A port is on trial from a second after its start (what came in before its tables were filled has
//! been received by then). Workers note, for each kind of packet, the entries of the redirection table
//! whose packets came by their owner's queue. With three quarters of the entries seen, the kind is
//! proven, and its owners are computed no more. One packet by a wrong queue, at any time, ends that
//! until the port is reset: owners are computed again and packets handed over. Runs on the management
//! thread.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lb::counters::WorkerCounters;
use crate::lb::owner::PATTERN;
use crate::lb::queues::{By, Classes, Evidence, Queues};
use crate::port::{PortInfo, RssConfig, RssState, rss};

use super::config::{self, Config};
use super::desired::{RETA, is_two_way};

/// How long after its start a port's trial begins.
const SETTLE: Duration = Duration::from_secs(1);

/// What is done about one port's queues.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Owners are computed, and why.
    Compute(String),
    /// The device is told to hash by this.
    Ask { by: By, settings: RssConfig },
    /// Somebody else has told it.
    Assume { by: By },
}

impl Plan {
    /// For a port with a device of its own, of which this is known.
    pub fn of(config: &Config, port: &config::Port, info: &PortInfo, reta: u16) -> Self {
        let workers = config.workers.cores.len();
        let by = by(config, port);
        if workers < 2 {
            return Plan::Compute("there is one worker".into());
        }
        if usize::from(info.max_rx_queues) < workers {
            let queues = info.max_rx_queues;
            return Plan::Compute(format!(
                "it has {queues} receive queues for {workers} workers"
            ));
        }
        match port.rss {
            config::Rss::Off => return Plan::Compute("rss = \"off\"".into()),
            config::Rss::Assume => return Plan::Assume { by },
            config::Rss::Auto => {}
        }
        if info.rss_fields == 0 || info.reta_size == 0 {
            return Plan::Compute("the device has no RSS".into());
        }
        if usize::from(info.reta_size) < workers {
            let size = info.reta_size;
            return Plan::Compute(format!("its redirection table has {size} entries"));
        }
        let hash_fields = FIELDS | one_end(by);
        if one_end(by) & !info.rss_fields != 0 {
            let end = if by == By::Source {
                "source"
            } else {
                "destination"
            };
            return Plan::Compute(format!(
                "the device cannot hash the {end} alone, as NAT needs it"
            ));
        }
        let settings = RssConfig {
            key: PATTERN.to_be_bytes().to_vec(),
            hash_fields: hash_fields & info.rss_fields,
            reta_period: Some(reta),
        };
        Plan::Ask { by, settings }
    }

    pub fn settings(&self) -> Option<RssConfig> {
        match self {
            Plan::Ask { settings, .. } => Some(settings.clone()),
            _ => None,
        }
    }

    /// What is wrong with what the device says is in force.
    fn fault(&self, state: Option<&RssState>, workers: u16) -> Option<&'static str> {
        let Plan::Ask { settings, .. } = self else {
            return None;
        };
        let Some(state) = state else {
            return Some("the device does not say what is in force");
        };
        let key = settings.key.iter().cycle();
        if state.key.is_empty() || !state.key.iter().zip(key).all(|(is, asked)| is == asked) {
            return Some("the device has not taken the key");
        }
        if state.hash_fields & settings.hash_fields != settings.hash_fields {
            return Some("the device does not hash all that it was asked to");
        }
        let period = settings.reta_period.unwrap_or(RETA);
        let mut entries = (0..).zip(&state.reta);
        match entries.all(|(entry, &queue): (u16, _)| queue == entry % period % workers) {
            true => None,
            false => Some("the device has not taken the redirection table"),
        }
    }
}

/// Whole packets by both addresses and ports. Fragments and ICMP, which are handed over anyway, are
/// spread by their addresses.
const FIELDS: u64 = rss::IPV4
    | rss::FRAG_IPV4
    | rss::IPV4_TCP
    | rss::IPV4_UDP
    | rss::IPV6
    | rss::IPV6_TCP
    | rss::IPV6_UDP;

fn one_end(by: By) -> u64 {
    match by {
        By::Both => 0,
        By::Source => rss::L3_SRC_ONLY | rss::L4_SRC_ONLY,
        By::Destination => rss::L3_DST_ONLY | rss::L4_DST_ONLY,
    }
}

/// The size of the redirection table that owners go by: the smallest of any device's that may be asked.
pub fn reta<'a>(infos: impl Iterator<Item = &'a PortInfo>, workers: usize) -> u16 {
    let usable = infos
        .map(|info| info.reta_size)
        .filter(|&size| usize::from(size) >= workers.max(2));
    let smallest = usable.fold(RETA, u16::min);
    1 << smallest.ilog2()
}

/// What a port's packets should be hashed by: what most of those that need to be are.
fn by(config: &Config, port: &config::Port) -> By {
    let services = || config.services.iter().filter(|s| is_two_way(s));
    if services().next().is_none() {
        return By::Both;
    }
    let leads_to = |port: &config::Port, address: IpAddr| {
        let egress = config.egress(address);
        egress.is_some_and(|egress| match &egress.attachment {
            config::Attachment::Device(_) => egress.name == port.name,
            config::Attachment::Vlan { parent, .. } => *parent == port.name,
        })
    };
    let has_backends = |port: &config::Port| {
        let mut backends = services().flat_map(|service| &service.backends);
        backends.any(|backend| leads_to(port, backend.address))
    };
    let mut devices = config.devices().map(|(port, _)| port);
    match has_backends(port) && devices.any(|port| !has_backends(port)) {
        true => By::Destination,
        // With clients and backends on one port its replies are computed.
        false => By::Source,
    }
}

enum State {
    Compute(String),
    Settling(Instant),
    OnTrial,
}

struct Port {
    name: String,
    plan: Plan,
    state: State,
    proven: Classes,
}

/// The trials of all ports that have devices, in the configuration's order.
pub struct Rss {
    ports: Vec<Port>,
    workers: u16,
    reta: u16,
}

impl Rss {
    /// `ports`: name, plan, and what the device says is in force.
    pub fn new(
        ports: Vec<(String, Plan, Option<RssState>)>,
        workers: u16,
        reta: u16,
        now: Instant,
    ) -> Self {
        let mut all = Self {
            ports: Vec::new(),
            workers,
            reta,
        };
        for (name, plan, state) in ports {
            all.ports.push(Port {
                name,
                plan,
                state: State::Settling(now),
                proven: Classes::NONE,
            });
            let last = all.ports.len() - 1;
            all.begin(last, state.as_ref(), now);
        }
        all
    }

    /// A port has started, for the first time or after a reset.
    pub fn begin(&mut self, index: usize, state: Option<&RssState>, now: Instant) {
        let workers = self.workers;
        let Some(port) = self.ports.get_mut(index) else {
            return;
        };
        port.proven = Classes::NONE;
        port.state = match (&port.plan, port.plan.fault(state, workers)) {
            (Plan::Compute(why), _) => State::Compute(why.clone()),
            (_, Some(fault)) => {
                tracing::warn!("port {}: RSS is not used: {fault}", port.name);
                State::Compute(fault.into())
            }
            _ => State::Settling(now + SETTLE),
        };
    }

    /// Looks at what packets have proven; true where there is news for the workers.
    pub fn look<'a>(
        &mut self,
        now: Instant,
        workers: impl Iterator<Item = &'a Arc<WorkerCounters>> + Clone,
    ) -> bool {
        let needed = u32::from(self.reta) * 3 / 4;
        let mut news = false;
        for (index, port) in self.ports.iter_mut().enumerate() {
            let evidence = workers.clone().filter_map(|w| w.queues.get(index));
            news |= port.look(now, evidence, needed);
        }
        news
    }

    /// For the snapshot, by port.
    pub fn queues(&self) -> Vec<Option<Queues>> {
        self.ports.iter().map(Port::queues).collect()
    }

    /// A sentence about a port, for operators; none where there is one worker.
    pub fn describe(&self, index: usize) -> Option<String> {
        let port = self.ports.get(index)?;
        (self.workers > 1).then(|| port.describe())
    }
}

impl Port {
    fn by(&self) -> Option<By> {
        match self.plan {
            Plan::Compute(_) => None,
            Plan::Ask { by, .. } | Plan::Assume { by } => Some(by),
        }
    }

    fn queues(&self) -> Option<Queues> {
        let on_trial = matches!(self.state, State::OnTrial);
        let proven = self.proven;
        self.by()
            .filter(|_| on_trial)
            .map(|by| Queues { by, proven })
    }

    fn look<'a>(
        &mut self,
        now: Instant,
        evidence: impl Iterator<Item = &'a Evidence> + Clone,
        needed: u32,
    ) -> bool {
        match self.state {
            State::Compute(_) => return false,
            State::Settling(until) if now < until => return false,
            State::Settling(_) => {
                self.state = State::OnTrial;
                return true;
            }
            State::OnTrial => {}
        }
        let wrong: u64 = evidence.clone().map(|e| e.disagreed.get()).sum();
        if wrong > 0 {
            tracing::warn!(
                "port {}: packets came in on other queues than RSS was to choose; owners are computed and packets handed over until the port is reset",
                self.name
            );
            self.proven = Classes::NONE;
            self.state = State::Compute("packets came in on other queues than asked for".into());
            return true;
        }
        let before = self.proven;
        for class in 0..Classes::COUNT {
            let agreed = evidence.clone().fold(0, |all, e| all | e.agreed(class));
            if agreed.count_ones() >= needed {
                self.proven = self.proven.with(class);
            }
        }
        if self.proven != before {
            let names: Vec<_> = self.proven.names().collect();
            let names = names.join(", ");
            tracing::info!("port {}: RSS is proven by packets for {names}", self.name);
        }
        self.proven != before
    }

    fn describe(&self) -> String {
        if let State::Compute(why) = &self.state {
            return format!("computed: {why}");
        }
        let by = match self.by() {
            Some(By::Source) => "source",
            Some(By::Destination) => "destination",
            _ => "both ends",
        };
        let proven: Vec<_> = self.proven.names().collect();
        match proven.as_slice() {
            [] => format!("on trial, by {by}"),
            names => format!("proven for {}, by {by}", names.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests;
