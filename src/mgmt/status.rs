//! What the interface shows, put together from the configuration, the snapshot in force and the
//! workers' counters. Runs on the management thread; reads only.

use std::net::SocketAddr;
use std::time::Duration;

use crate::lb::counters::{Counter, DropReason};
use crate::lb::flow::protocol;
use crate::lb::listing::Listed;
use crate::lb::snapshot::{self, BackendId};
use crate::port::{Port, PortInfo, Started};

use super::api::{
    BackendState, BackendStatus, ConnectionFilter, ConnectionStatus, PortStatus, Reason,
    ServiceStatus, Status, Traffic, WorkerStatus,
};
use super::appliance::drops;
use super::config;
use super::desired::Desired;
use super::workers::WorkerLink;

/// What a status is made of.
pub struct Source<'a> {
    pub desired: &'a Desired,
    pub snapshot: &'a snapshot::Snapshot,
    pub workers: &'a [WorkerLink],
    pub ports: &'a [(Port<Started>, PortInfo)],
    pub uptime: Duration,
    pub notes: &'a [String],
}

impl Source<'_> {
    pub fn status(&self) -> Status {
        let config = &self.desired.config;
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.uptime.as_secs(),
            generation: self.snapshot.generation,
            services: config.services.iter().map(|s| self.service(s)).collect(),
            ports: self.ports.iter().zip(&config.ports).map(port).collect(),
            workers: self.workers.iter().enumerate().map(worker).collect(),
            drops: drops(self.workers)
                .into_iter()
                .filter(|d| d.1 > 0)
                .map(reason)
                .collect(),
            passed: self.passed(),
            notes: self.notes.to_vec(),
        }
    }

    fn passed(&self) -> Vec<Reason> {
        let count = self.workers.iter().map(|w| w.counters.passed.get()).sum();
        let passed = Reason {
            reason: "local".into(),
            count,
            explanation: "Not balanced: ARP, NDP, ping, packets for the ports' own addresses."
                .into(),
        };
        Vec::from_iter((count > 0).then_some(passed))
    }

    fn service(&self, service: &config::Service) -> ServiceStatus {
        let removed = self.desired.removed_of(&service.name);
        let removed = removed.map(|backend| self.removed(service, backend));
        let backends = service.backends.iter().map(|b| self.backend(service, b));
        let backends: Vec<BackendStatus> = backends.chain(removed).collect();
        ServiceStatus {
            name: service.name.clone(),
            listen: service.listen.iter().map(ToString::to_string).collect(),
            method: service.method.name().into(),
            scheduler: service.scheduler.name().into(),
            flags: flags(service),
            traffic: Traffic::sum(backends.iter().map(|b| b.traffic)),
            backends,
        }
    }

    fn backend(&self, service: &config::Service, backend: &config::Backend) -> BackendStatus {
        let id = self.desired.find_backend(service, backend);
        let built = id.and_then(|id| self.snapshot.backend(id));
        let state = match built {
            Some(built) if built.link.is_none() => BackendState::Unreachable,
            Some(built) => match built.state {
                snapshot::BackendState::Up => BackendState::Up,
                snapshot::BackendState::Drained => BackendState::Draining,
                snapshot::BackendState::Down => BackendState::Down,
                snapshot::BackendState::Removed => BackendState::Removed,
            },
            None => BackendState::Down,
        };
        let weight = u32::from(backend.weight);
        let effective = match state {
            BackendState::Up | BackendState::Unreachable => built.map_or(weight, |b| b.weight),
            _ => 0,
        };
        let reason = (effective != weight).then(|| match state {
            BackendState::Draining => "draining".to_owned(),
            BackendState::Down => "its checks fail".to_owned(),
            _ => "feedback".to_owned(),
        });
        BackendStatus {
            name: backend.name.clone(),
            address: backend.address.to_string(),
            port: backend.port,
            method: service.method.name().into(),
            weight,
            effective_weight: effective,
            reason,
            state,
            ..self.counted(id)
        }
    }

    fn removed(&self, service: &config::Service, backend: &snapshot::Backend) -> BackendStatus {
        BackendStatus {
            name: backend.address.to_string(),
            address: backend.address.to_string(),
            port: (backend.port != 0).then_some(backend.port),
            method: service.method.name().into(),
            state: BackendState::Removed,
            ..self.counted(Some(backend.id))
        }
    }

    /// What the workers counted for a backend.
    fn counted(&self, id: Option<BackendId>) -> BackendStatus {
        let Some(BackendId(id)) = id else {
            return BackendStatus::default();
        };
        let counters = || {
            self.workers
                .iter()
                .filter_map(|w| w.counters.backends.get(id as usize))
        };
        let sum = |read: fn(&crate::lb::counters::BackendCounters) -> &Counter| -> u64 {
            counters().map(|c| read(c).get()).sum()
        };
        BackendStatus {
            active: sum(|c| &c.active),
            inactive: sum(|c| &c.inactive),
            traffic: Traffic {
                connections: sum(|c| &c.connections),
                in_packets: sum(|c| &c.in_packets),
                out_packets: sum(|c| &c.out_packets),
                in_bytes: sum(|c| &c.in_bytes),
                out_bytes: sum(|c| &c.out_bytes),
            },
            ..BackendStatus::default()
        }
    }

    /// A listed connection with names in place of ids, if `filter` lets it through.
    pub fn connection(
        &self,
        listed: &Listed,
        worker: u16,
        filter: &ConnectionFilter,
    ) -> Option<ConnectionStatus> {
        let backend = self.snapshot.backend(listed.backend)?;
        let service = self.snapshot.service(backend.service)?;
        let name = self
            .desired
            .backend_name(listed.backend)
            .unwrap_or_default();
        let state = state_name(listed.state);
        let wanted = |wish: &Option<String>, is: &str| wish.as_ref().is_none_or(|wish| wish == is);
        let matches = wanted(&filter.service, &service.name)
            && wanted(&filter.backend, &name)
            && wanted(&filter.state, state)
            && filter
                .client
                .is_none_or(|client| client == listed.client.ip());
        let port = if backend.port == 0 {
            listed.vip.port()
        } else {
            backend.port
        };
        matches.then(|| ConnectionStatus {
            protocol: if listed.protocol == protocol::TCP {
                "tcp"
            } else {
                "udp"
            }
            .into(),
            client: listed.client.to_string(),
            virtual_address: listed.vip.to_string(),
            backend_address: SocketAddr::new(backend.address, port).to_string(),
            service: service.name.to_string(),
            backend: name,
            method: service.method.name().into(),
            state: state.into(),
            expires: listed.expires,
            worker,
        })
    }
}

/// A state as the configuration's timeouts spell it.
fn state_name(state: crate::lb::conn::State) -> &'static str {
    use crate::lb::conn::State;
    match state {
        State::None => "none",
        State::SynSent => "syn_sent",
        State::SynRecv => "syn_recv",
        State::Established => "established",
        State::FinWait => "fin_wait",
        State::TimeWait => "time_wait",
        State::Close => "close",
        State::CloseWait => "close_wait",
        State::LastAck => "last_ack",
        State::Udp => "udp",
    }
}

fn flags(service: &config::Service) -> Vec<String> {
    let mut flags = Vec::new();
    if let Some(persistence) = &service.persistence {
        flags.push(format!("persistent {}", persistence.timeout.as_secs()));
    }
    let scheduler = service.scheduler.name();
    if service.hash_port {
        flags.push(format!("{scheduler}-port"));
    }
    if service.hash_fallback {
        flags.push(format!("{scheduler}-fallback"));
    }
    if service.one_packet {
        flags.push("ops".into());
    }
    flags
}

fn port(((port, info), config): (&(Port<Started>, PortInfo), &config::Port)) -> PortStatus {
    let (link, stats) = (port.link(), port.stats());
    PortStatus {
        name: config.name.clone(),
        device: config.device.clone(),
        driver: info.driver.clone(),
        mac: config::Mac(port.mac()).to_string(),
        link_up: link.up,
        speed: (link.speed_mbps != 0).then_some(link.speed_mbps),
        mtu: config.mtu,
        rx_packets: stats.rx_packets,
        rx_bytes: stats.rx_bytes,
        tx_packets: stats.tx_packets,
        tx_bytes: stats.tx_bytes,
        rx_missed: stats.rx_missed + stats.rx_no_buffer,
        rx_errors: stats.rx_errors,
        tx_errors: stats.tx_errors,
    }
}

fn worker((index, worker): (usize, &WorkerLink)) -> WorkerStatus {
    let counters = &worker.counters;
    let (busy, total) = (counters.busy_ticks.get(), counters.total_ticks.get());
    WorkerStatus {
        worker: index as u16,
        core: worker.core,
        received: counters.received.get(),
        generated: counters.generated.get(),
        transmitted: counters.transmitted.get(),
        dropped: counters.dropped_total(),
        passed: counters.passed.get(),
        handed_over: counters.handed_off.get(),
        held: 0,
        busy: (total > 0).then(|| (busy * 100 / total) as u8),
        connections: counters.table_v4.get() + counters.table_v6.get(),
        capacity: worker.capacity,
        commands_waiting: (worker.outstanding + worker.backlog.len()) as u64,
    }
}

fn reason((reason, count): (DropReason, u64)) -> Reason {
    Reason {
        reason: reason.token().into(),
        count,
        explanation: reason.explanation().into(),
    }
}
