//! What the interface shows, put together from the configuration, the snapshot in force and the
//! workers' counters. Runs on the management thread; reads only.

mod counts;

use std::net::SocketAddr;
use std::time::Duration;

use crate::lb::counters::{Counter, DropReason};
use crate::lb::flow::protocol;
use crate::lb::listing::Listed;
use crate::lb::snapshot::{self, BackendId};
use crate::port::clock::Tsc;
use crate::port::{Link, Mempool, PortInfo, PortStats};

use super::api::{
    BackendState, BackendStatus, CheckStatus, ChecksStatus, ConnectionFilter, ConnectionStatus,
    KernelStatus, ManagementStatus, PortStatus, QuorumStatus, Reason, ServiceStatus, Status,
    Traffic, WorkerStatus,
};
use super::appliance::{Standing, drops};
use super::checks::Checks;
use super::config;
use super::desired::{Desired, SORRY};
use super::feedback;
use super::health::Report;
use super::kernel::{self, Kernel};
use super::load::Load;
use super::net;
use super::ports::Ports;
use super::rss::Rss;
use super::start::PASSED;
use super::supervise::{self, Panics};
use super::watchdog::{Pulse, Stalls};
use super::workers::{COMMANDS, WorkerLink};

/// What a status is made of.
pub struct Source<'a> {
    pub desired: &'a Desired,
    pub checks: &'a Checks,
    pub load: &'a Load,
    pub snapshot: &'a snapshot::Snapshot,
    pub workers: &'a [WorkerLink],
    pub ports: &'a Ports,
    pub rss: &'a Rss,
    pub net: net::Counters,
    pub kernel: &'a Kernel,
    pub standing: Standing,
    pub uptime: Duration,
    pub notes: &'a [String],
    pub pulse: &'a Pulse,
    pub pool: &'a Mempool,
}

impl Source<'_> {
    pub fn status(&self) -> Status {
        let config = &self.desired.config;
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.uptime.as_secs(),
            generation: self.snapshot.generation,
            services: config.services.iter().map(|s| self.service(s)).collect(),
            ports: self.ports(),
            drained: self.standing == Standing::Drained,
            kernel: self.kernel(),
            workers: self.workers.iter().enumerate().map(worker).collect(),
            management: self.management(),
            drops: drops(self.workers)
                .into_iter()
                .filter(|d| d.1 > 0)
                .map(reason)
                .collect(),
            passed: counts::passed(self.workers),
            handed_over: counts::handed_over(self.workers),
            counts: counts::others(self.workers, self.net),
            notes: self
                .notes
                .iter()
                .cloned()
                .chain(self.ports.notes())
                .chain(self.troubles())
                .collect(),
        }
    }

    fn management(&self) -> ManagementStatus {
        let (stalls, panics) = (self.pulse.stalls(), supervise::panics());
        let engine = self.checks.engine();
        let pace = engine.pace();
        ManagementStatus {
            stalls: stalls.count,
            longest_stall_milliseconds: stalls.longest.as_millis() as u64,
            panics: panics.count,
            last_panic: panics.last,
            checks: ChecksStatus {
                started: pace.started,
                late: pace.late,
                skipped: pace.skipped,
                unjudged: pace.unjudged,
                latest_milliseconds: pace.worst.as_secs_f64() * 1000.0,
                in_flight: engine.in_flight() as u64,
                packets_lost: engine.packets().not_sent,
            },
            buffers: self.pool.capacity().into(),
            buffers_in_use: self.pool.in_use().into(),
        }
    }

    /// What management itself has to say of how it does.
    fn troubles(&self) -> impl Iterator<Item = String> {
        let drained = (self.standing == Standing::Drained).then(|| {
            "Drained as a whole: VIPs are withdrawn; `evenkeel undrain` ends that.".to_owned()
        });
        let Stalls { count, longest } = self.pulse.stalls();
        let stalled = (count > 0).then(|| {
            format!(
                "Management stood still {count} times, at most {:.1} s; packets were forwarded meanwhile.",
                longest.as_secs_f64()
            )
        });
        let Panics { count, last } = supervise::panics();
        let panicked = last.map(|last| {
            format!(
                "Management was begun again after {count} faults of its own, the last at {last}; please report it."
            )
        });
        let backlogs = self.workers.iter().enumerate().filter_map(backlog);
        drained
            .into_iter()
            .chain(stalled)
            .chain(panicked)
            .chain(backlogs)
    }

    fn ports(&self) -> Vec<PortStatus> {
        let seen = self.ports.observe().zip(&self.desired.config.ports);
        let ports = seen.enumerate().map(|(index, seen)| PortStatus {
            queues: self.rss.describe(index).unwrap_or_default(),
            ..port(seen)
        });
        ports.collect()
    }

    fn kernel(&self) -> Vec<KernelStatus> {
        let ports = &self.desired.config.ports;
        let of = |interface: &kernel::Interface| {
            let counters = interface.counters;
            let port = ports.get(usize::from(interface.port));
            let learned = self.kernel.learned().ports.get(&interface.port);
            KernelStatus {
                interface: interface.name.clone(),
                port: port.map(|port| port.name.clone()).unwrap_or_default(),
                to_linux: counters.to_linux,
                from_linux: counters.from_linux,
                to_linux_dropped: counters.to_linux_dropped,
                from_linux_dropped: counters.from_linux_dropped,
                routes: learned.map_or(0, |learned| learned.routes.len() as u64),
                withheld: counters.withheld,
            }
        };
        self.kernel.interfaces().iter().map(of).collect()
    }

    fn service(&self, service: &config::Service) -> ServiceStatus {
        let removed = self.desired.removed_of(service);
        let removed = removed.map(|backend| self.removed(service, backend));
        let led = self.load.status(self.desired, service);
        let of = |backend| self.backend(service, backend, &led);
        let backends = service.backends.iter().map(of);
        let sorry = self.sorry_server(service).into_iter();
        let backends: Vec<BackendStatus> = backends.chain(sorry).chain(removed).collect();
        ServiceStatus {
            name: service.name.clone(),
            listen: service.listen.iter().map(ToString::to_string).collect(),
            method: service.method.name().into(),
            scheduler: service.scheduler.name().into(),
            flags: flags(service),
            quorum: service.quorum.as_ref().map(|quorum| QuorumStatus {
                backends: quorum.backends,
                hysteresis: quorum.hysteresis,
                up: self.desired.count_up(service),
                met: self.desired.quorum_is_met(service),
            }),
            traffic: Traffic::sum(backends.iter().map(|b| b.traffic)),
            backends,
        }
    }

    fn backend(
        &self,
        service: &config::Service,
        backend: &config::Backend,
        led: &[feedback::Status],
    ) -> BackendStatus {
        let id = self.desired.find_backend(service, backend);
        let built = id.and_then(|id| self.snapshot.backend(id));
        let state = match built {
            Some(built) if built.link.is_none() => BackendState::Unreachable,
            // An inhibited one is only drained, for the workers.
            Some(built) if self.desired.is_down(built.id) => BackendState::Down,
            Some(built) => match built.state {
                snapshot::BackendState::Up => BackendState::Up,
                snapshot::BackendState::Drained => BackendState::Draining,
                snapshot::BackendState::Down => BackendState::Down,
                snapshot::BackendState::Removed => BackendState::Removed,
            },
            None => BackendState::Down,
        };
        let weight = u32::from(backend.weight);
        let check = id.and_then(|id| self.checks.report(id));
        let led = led.iter().find(|status| Some(status.id) == id);
        let effective = match state {
            BackendState::Up | BackendState::Unreachable => built.map_or(weight, |b| b.weight),
            _ => 0,
        };
        let reason = (effective != weight).then(|| match state {
            BackendState::Draining => "draining".to_owned(),
            BackendState::Down => check
                .as_ref()
                .map_or_else(|| "its check fails".to_owned(), |check| check.to_string()),
            _ if built.is_some_and(|b| b.weight == self.desired.base_weight(b.id, backend)) => {
                "set by its check".to_owned()
            }
            _ => led.map_or_else(String::new, why),
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
            check: check.map(check_status),
            faults: led.map_or_else(Vec::new, |led| led.faults.clone()),
            ..self.counted(id)
        }
    }

    fn sorry_server(&self, service: &config::Service) -> Option<BackendStatus> {
        let sorry = service.sorry_server.as_ref()?;
        let id = self.desired.find_sorry_server(service);
        let built = id.and_then(|id| self.snapshot.backend(id));
        let stands_by = self.desired.quorum_is_met(service);
        Some(BackendStatus {
            name: SORRY.into(),
            address: sorry.address.to_string(),
            port: sorry.port,
            method: sorry.method.unwrap_or(service.method).name().into(),
            weight: 1,
            effective_weight: u32::from(!stands_by),
            reason: stands_by.then(|| "stands by".to_owned()),
            state: match built {
                Some(built) if built.link.is_none() => BackendState::Unreachable,
                _ => BackendState::Up,
            },
            ..self.counted(id)
        })
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
                .is_none_or(|clients| clients.contains(listed.client.ip()));
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

fn why(led: &feedback::Status) -> String {
    match led.reason {
        feedback::Reason::Configured => "the others' shares are not as configured".into(),
        _ => led.reason.to_string(),
    }
}

fn check_status(report: Report) -> CheckStatus {
    CheckStatus {
        kind: report.check.into(),
        up: report.up,
        answer: report.answer,
        last_failure: (!report.failure.is_empty()).then_some(report.failure),
        milliseconds: (report.checks > report.failures)
            .then_some(report.took.as_secs_f64() * 1000.0),
        checks: report.checks,
        failures: report.failures,
    }
}

/// A state as the configuration's timeouts spell it.
pub fn state_name(state: crate::lb::conn::State) -> &'static str {
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

fn port(
    ((info, link, stats), config): ((&PortInfo, Link, PortStats), &config::Port),
) -> PortStatus {
    PortStatus {
        name: config.name.clone(),
        device: config.device().unwrap_or_default().to_owned(),
        driver: info.driver.clone(),
        mac: config::Mac(info.mac).to_string(),
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
        queues: String::new(),
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
        busy_seconds: seconds(busy),
        seconds: seconds(total),
        connections: counters.table_v4.get() + counters.table_v6.get(),
        capacity: worker.capacity,
        commands_waiting: (worker.outstanding + worker.backlog.len()) as u64,
        snapshots_sent: worker.totals.snapshots_sent,
        snapshots_retired: worker.totals.snapshots_retired,
        passed_waiting: worker.passed.len() as u64,
        checks_waiting: worker.checks.len() as u64,
    }
}

/// What so many ticks of the TSC take.
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / Tsc::hz().max(1) as f64
}

/// Said where a worker has commands to do for longer than a moment, or management packets to take.
fn backlog((index, worker): (usize, &WorkerLink)) -> Option<String> {
    let commands = worker.outstanding + worker.backlog.len();
    let (passed, checks) = (worker.passed.len(), worker.checks.len());
    let is_long = commands >= COMMANDS || passed.max(checks) >= PASSED as usize / 2;
    is_long.then(|| {
        format!(
            "Between management and worker {index} there wait {commands} commands, {passed} passed packets and {checks} packets for checks."
        )
    })
}

fn reason((reason, count): (DropReason, u64)) -> Reason {
    Reason {
        reason: reason.token().into(),
        count,
        explanation: reason.explanation().into(),
    }
}
