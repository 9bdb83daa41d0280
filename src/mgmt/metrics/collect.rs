//! From the state of the appliance to metric families. Label values are names from the
//! configuration, worker numbers and fixed tokens, never anything that a client sends. Reads only.

use prometheus_client::registry::Unit;

use super::family::{Families, Family, Labels, Value};
use crate::lb::counters::{Counter, DropReason, WorkerCounters};
use crate::mgmt::api::{BackendState, BackendStatus, KernelStatus, PortStatus, Status};
use crate::mgmt::status::Source;
use crate::mgmt::workers::WorkerLink;
use crate::port::clock::Tsc;

pub fn collect(source: &Source<'_>) -> Families {
    let status = source.status();
    let resets = source.ports.resets_of();
    let mut all = program(&status);
    all.extend(backends(&status));
    all.extend(checks(&status));
    all.extend(ports(&status.ports, resets));
    all.extend(kernel(&status.kernel));
    all.extend(workers(source.workers));
    Families(all)
}

fn program(status: &Status) -> Vec<Family> {
    let build: Labels = vec![
        ("version", status.version.clone()),
        (
            "dpdk",
            crate::port::version()
                .trim_start_matches("DPDK ")
                .to_owned(),
        ),
    ];
    let one = |value: u64| [(Labels::new(), Value::Count(value))];
    vec![
        Family::gauge("build_info", "Always 1; the versions are labels")
            .samples([(build, Value::Count(1))]),
        Family::gauge("uptime", "Time since the start")
            .unit(Unit::Seconds)
            .samples(one(status.uptime_seconds)),
        Family::gauge(
            "snapshot_generation",
            "Number of the configuration that management sent last",
        )
        .samples(one(status.generation)),
        Family::gauge("drained", "1 while the whole appliance is drained")
            .samples(one(status.drained.into())),
    ]
}

/// One of the samples that a backend has in a family: its label's value, and where it is read.
type Part = (&'static str, fn(&BackendStatus) -> u64);

/// Services are the sums of their backends. Removed backends are left out: another one may get
/// their name, and a counter must not go back.
fn backends(status: &Status) -> Vec<Family> {
    let backends = || {
        status.services.iter().flat_map(|service| {
            let kept = service.backends.iter();
            kept.filter(|backend| backend.state != BackendState::Removed)
                .map(move |backend| (service.name.as_str(), backend))
        })
    };
    let labels = |service: &str, backend: &BackendStatus| -> Labels {
        vec![
            ("service", service.to_owned()),
            ("backend", backend.name.clone()),
        ]
    };
    let each = |read: fn(&BackendStatus) -> u64| {
        backends()
            .map(move |(service, backend)| (labels(service, backend), Value::Count(read(backend))))
    };
    let split = |name: &'static str, parts: [Part; 2]| {
        backends().flat_map(move |(service, backend)| {
            parts.map(|(part, read)| {
                let mut labels = labels(service, backend);
                labels.push((name, part.to_owned()));
                (labels, Value::Count(read(backend)))
            })
        })
    };
    vec![
        Family::counter(
            "backend_new_connections",
            "Connections scheduled to the backend",
        )
        .samples(each(|b| b.traffic.connections)),
        Family::gauge(
            "backend_connections",
            "Tracked connections; active are established TCP connections and live UDP flows",
        )
        .samples(split(
            "state",
            [("active", |b| b.active), ("inactive", |b| b.inactive)],
        )),
        Family::counter(
            "backend_packets",
            "Packets forwarded; in is from clients, out to them where replies pass here",
        )
        .samples(split(
            "direction",
            [
                ("in", |b| b.traffic.in_packets),
                ("out", |b| b.traffic.out_packets),
            ],
        )),
        Family::counter("backend", "Bytes forwarded, from the IP header on")
            .unit(Unit::Bytes)
            .samples(split(
                "direction",
                [
                    ("in", |b| b.traffic.in_bytes),
                    ("out", |b| b.traffic.out_bytes),
                ],
            )),
        Family::gauge("backend_weight", "The configured weight").samples(each(|b| b.weight.into())),
        Family::gauge(
            "backend_effective_weight",
            "The weight that the scheduler uses",
        )
        .samples(each(|b| b.effective_weight.into())),
        Family::gauge(
            "backend_up",
            "1 if the backend takes new connections, 0 if it is down, unreachable or drained",
        )
        .samples(each(|b| u64::from(b.state == BackendState::Up))),
    ]
}

/// What checks found, of the backends that are checked, and how the checks keep up.
fn checks(status: &Status) -> Vec<Family> {
    let checked = || {
        status.services.iter().flat_map(|service| {
            let kept = service.backends.iter();
            let kept = kept.filter(|backend| backend.state != BackendState::Removed);
            kept.filter_map(|backend| {
                let labels: Labels = vec![
                    ("service", service.name.clone()),
                    ("backend", backend.name.clone()),
                ];
                Some((labels, backend.check.as_ref()?))
            })
        })
    };
    let results = checked().flat_map(|(labels, check)| {
        let good = check.checks - check.failures;
        [("good", good), ("failed", check.failures)].map(|(result, count)| {
            let mut labels = labels.clone();
            labels.push(("result", result.to_owned()));
            (labels, Value::Count(count))
        })
    });
    let times = checked().filter_map(|(labels, check)| {
        let seconds = check.milliseconds? / 1000.0;
        Some((labels, Value::Number(seconds)))
    });
    let pace = &status.management.checks;
    let one = |count: u64| [(Labels::new(), Value::Count(count))];
    vec![
        Family::counter("backend_checks", "Health checks that had a result").samples(results),
        Family::gauge(
            "backend_check_response",
            "Time that the last good answer to a health check took",
        )
        .unit(Unit::Seconds)
        .samples(times),
        Family::counter("checks_started", "Health checks begun").samples(one(pace.started)),
        Family::counter(
            "checks_late",
            "Health checks begun later than a tenth of their interval after their time",
        )
        .samples(one(pace.late)),
        Family::counter(
            "checks_skipped",
            "Health checks not begun because the one before had not ended",
        )
        .samples(one(pace.skipped)),
    ]
}

fn ports(ports: &[PortStatus], resets: Vec<u64>) -> Vec<Family> {
    let labels = |port: &PortStatus| -> Labels { vec![("port", port.name.clone())] };
    let each = |read: fn(&PortStatus) -> u64| {
        ports
            .iter()
            .map(move |port| (labels(port), Value::Count(read(port))))
    };
    let errors = |direction: &str, read: fn(&PortStatus) -> u64| {
        let direction = direction.to_owned();
        let sample = move |port: &PortStatus| {
            let mut labels = labels(port);
            labels.push(("direction", direction.clone()));
            (labels, Value::Count(read(port)))
        };
        ports.iter().map(sample).collect::<Vec<_>>()
    };
    vec![
        Family::gauge("port_up", "1 if the link is up").samples(each(|p| p.link_up.into())),
        Family::counter("port_received_packets", "Frames that the device received")
            .samples(each(|p| p.rx_packets)),
        Family::counter("port_received", "Bytes that the device received")
            .unit(Unit::Bytes)
            .samples(each(|p| p.rx_bytes)),
        Family::counter("port_transmitted_packets", "Frames that the device sent")
            .samples(each(|p| p.tx_packets)),
        Family::counter("port_transmitted", "Bytes that the device sent")
            .unit(Unit::Bytes)
            .samples(each(|p| p.tx_bytes)),
        Family::counter(
            "port_missed_packets",
            "Frames that the device had no room for: the workers were too slow",
        )
        .samples(each(|p| p.rx_missed)),
        Family::counter(
            "port_errors",
            "Frames that the device found faulty or could not send",
        )
        .samples(errors("receive", |p| p.rx_errors))
        .samples(errors("transmit", |p| p.tx_errors)),
        Family::counter("port_resets", "Resets that the device asked for and got").samples(
            ports
                .iter()
                .zip(resets)
                .map(|(port, resets)| (labels(port), Value::Count(resets))),
        ),
    ]
}

fn kernel(interfaces: &[KernelStatus]) -> Vec<Family> {
    type Part = (&'static str, fn(&KernelStatus) -> u64);
    let split = |parts: [Part; 2]| {
        interfaces.iter().flat_map(move |interface| {
            parts.map(|(direction, read)| {
                let labels: Labels = vec![
                    ("port", interface.port.clone()),
                    ("direction", direction.to_owned()),
                ];
                (labels, Value::Count(read(interface)))
            })
        })
    };
    let withheld = interfaces.iter().map(|interface| {
        let labels: Labels = vec![("port", interface.port.clone())];
        (labels, Value::Count(interface.withheld))
    });
    vec![
        Family::counter(
            "kernel_packets",
            "Frames that passed the Linux interface beside the port",
        )
        .samples(split([
            ("to_linux", |i| i.to_linux),
            ("from_linux", |i| i.from_linux),
        ])),
        Family::counter(
            "kernel_dropped_packets",
            "Frames that found no room on their way to Linux or from it",
        )
        .samples(split([
            ("to_linux", |i| i.to_linux_dropped),
            ("from_linux", |i| i.from_linux_dropped),
        ])),
        Family::counter(
            "kernel_withheld_packets",
            "Frames to addresses that evenkeel answers for and Linux does not have",
        )
        .samples(withheld),
    ]
}

fn workers(workers: &[WorkerLink]) -> Vec<Family> {
    let labels = |index: usize| -> Labels { vec![("worker", index.to_string())] };
    let each = |read: fn(&WorkerLink) -> Value| {
        let sample = move |(index, worker)| (labels(index), read(worker));
        workers.iter().enumerate().map(sample).collect::<Vec<_>>()
    };
    let count = |read: fn(&WorkerCounters) -> &Counter| {
        let sample = move |(index, worker): (usize, &WorkerLink)| {
            (labels(index), Value::Count(read(&worker.counters).get()))
        };
        workers.iter().enumerate().map(sample).collect::<Vec<_>>()
    };
    let drops = workers.iter().enumerate().flat_map(|(index, worker)| {
        DropReason::ALL.iter().map(move |&reason| {
            let mut labels = labels(index);
            labels.push(("reason", reason.token().to_owned()));
            let dropped = &worker.counters.dropped[reason as usize];
            (labels, Value::Count(dropped.get()))
        })
    });
    let family = |family: &str, read: fn(&WorkerCounters) -> &Counter| {
        let family = family.to_owned();
        count(read).into_iter().map(move |(mut labels, value)| {
            labels.push(("family", family.clone()));
            (labels, value)
        })
    };
    vec![
        Family::counter("worker_received_packets", "Packets received from ports")
            .samples(count(|c| &c.received)),
        Family::counter(
            "worker_generated_packets",
            "Packets made here: resets, ICMP, ARP and NDP, health checks",
        )
        .samples(count(|c| &c.generated)),
        Family::counter("worker_transmitted_packets", "Packets that ports took")
            .samples(count(|c| &c.transmitted)),
        Family::counter("worker_transmitted", "Bytes that ports took")
            .unit(Unit::Bytes)
            .samples(count(|c| &c.transmitted_bytes)),
        Family::counter(
            "worker_dropped_packets",
            "Packets dropped; docs/drop-reasons.md says what each reason means",
        )
        .samples(drops),
        Family::counter("worker_passed_packets", "Packets given to management")
            .samples(count(|c| &c.passed)),
        Family::counter(
            "worker_handed_over_packets",
            "Packets given to the worker that owns their flow",
        )
        .samples(count(|c| &c.handed_off)),
        Family::counter(
            "worker_taken_over_packets",
            "Packets taken from other workers",
        )
        .samples(count(|c| &c.taken_over)),
        Family::counter(
            "worker_stateless_packets",
            "Packets forwarded by the consistent hash without an entry in the table",
        )
        .samples(count(|c| &c.stateless)),
        Family::counter("worker_busy", "Time spent with packets in hand")
            .unit(Unit::Seconds)
            .samples(each(|w| seconds(&w.counters.busy_ticks))),
        Family::counter("worker", "Time spent in all; busy time by this is the load")
            .unit(Unit::Seconds)
            .samples(each(|w| seconds(&w.counters.total_ticks))),
        Family::gauge(
            "worker_connections",
            "Entries of the connection table in use",
        )
        .samples(family("ipv4", |c| &c.table_v4))
        .samples(family("ipv6", |c| &c.table_v6)),
        Family::gauge(
            "worker_connections_capacity",
            "Entries that the connection table has, both families together",
        )
        .samples(each(|w| Value::Count(w.capacity))),
        Family::counter("worker_new_connections", "Connections that got an entry")
            .samples(count(|c| &c.new_connections)),
        Family::counter("worker_expired_connections", "Entries that timed out")
            .samples(count(|c| &c.expired)),
        Family::counter(
            "worker_evicted_connections",
            "Half-open entries that made room for newer ones",
        )
        .samples(count(|c| &c.evicted)),
        Family::gauge(
            "worker_held_packets",
            "Fragments that wait for their first one",
        )
        .samples(count(|c| &c.held)),
        Family::gauge("worker_local_ports", "Local ports that FullNAT uses")
            .samples(count(|c| &c.local_ports)),
        Family::gauge(
            "worker_local_ports_capacity",
            "Local ports that FullNAT has",
        )
        .samples(count(|c| &c.local_ports_all)),
        Family::gauge(
            "worker_local_ports_fullest_ratio",
            "Share of the local ports in use where FullNAT has fewest left",
        )
        .samples(each(|w| {
            Value::Number(w.counters.local_ports_fullest.get() as f64 / 1000.0)
        })),
        Family::gauge(
            "worker_commands_waiting",
            "Commands that the worker has not done yet",
        )
        .samples(each(|w| {
            Value::Count((w.outstanding + w.backlog.len()) as u64)
        })),
        Family::gauge(
            "worker_snapshot_generation",
            "Number of the configuration that the worker uses",
        )
        .samples(count(|c| &c.generation)),
    ]
}

fn seconds(ticks: &Counter) -> Value {
    Value::Number(ticks.get() as f64 / Tsc::hz().max(1) as f64)
}
