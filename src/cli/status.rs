//! `evenkeel status`: services and backends in the columns that operators of Linux Virtual Server
//! know, then ports, workers and what was dropped.

use std::time::Duration;

use clap::Args;

use super::table::{Table, bytes, count, duration};
use super::{CliError, Shared, client, ipvsadm, print, print_json};
use crate::mgmt::api::{
    BackendState, BackendStatus, KernelStatus, PortStatus, QuorumStatus, Reason, ServiceStatus,
    Status, Traffic, WorkerStatus,
};

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Traffic since start instead of weights and connections
    #[arg(long, conflicts_with = "rate")]
    pub stats: bool,
    /// Traffic a second, over the next second
    #[arg(long)]
    pub rate: bool,
    /// ipvsadm's own format, for scripts that read it
    #[arg(long, conflicts_with = "json")]
    pub ipvsadm: bool,
    /// With --ipvsadm: the connections
    #[arg(short = 'c', requires = "ipvsadm", conflicts_with_all = ["stats", "rate"])]
    pub connections: bool,
}

/// Which numbers stand behind a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    Weights,
    Stats,
    Rate,
}

/// Rates are the difference of two answers this far apart.
const SAMPLE: Duration = Duration::from_secs(1);

pub fn run(args: &StatusArgs, shared: &Shared) -> Result<(), CliError> {
    if args.connections {
        let all = client::block_on(client::get(&shared.socket, "/v1/connections?limit=1000000"))?;
        return print(&ipvsadm::connections(&all));
    }
    let status = client::block_on(async {
        let before: Status = client::get(&shared.socket, "/v1/status").await?;
        if !args.rate {
            return Ok(before);
        }
        tokio::time::sleep(SAMPLE).await;
        let now = client::get(&shared.socket, "/v1/status").await?;
        Ok(rates(&before, now))
    })?;
    let columns = match (args.stats, args.rate) {
        (true, _) => Columns::Stats,
        (_, true) => Columns::Rate,
        _ => Columns::Weights,
    };
    if shared.json {
        print_json(&status)
    } else if args.ipvsadm {
        print(&ipvsadm::services(&status, columns))
    } else {
        print(&render(&status, columns))
    }
}

/// The later status with the traffic of services and backends replaced by what was added.
fn rates(before: &Status, mut now: Status) -> Status {
    for service in &mut now.services {
        let old = before.services.iter().find(|old| old.name == service.name);
        let old_traffic = old.map_or_else(Traffic::default, |old| old.traffic);
        service.traffic = service.traffic.since(old_traffic);
        for backend in &mut service.backends {
            let old = old.and_then(|old| old.backends.iter().find(|b| b.name == backend.name));
            let old_traffic = old.map_or_else(Traffic::default, |old| old.traffic);
            backend.traffic = backend.traffic.since(old_traffic);
        }
    }
    now
}

pub(super) fn render(status: &Status, columns: Columns) -> String {
    let mut text = format!(
        "evenkeel {}, up {}, configuration {}\n",
        status.version,
        duration(status.uptime_seconds),
        status.generation,
    );
    for note in &status.notes {
        text += &format!("note: {note}\n");
    }
    let sections = [
        services(&status.services, columns),
        ports(&status.ports),
        kernel(&status.kernel),
        queues(&status.ports),
        workers(&status.workers),
        reasons("Dropped", &status.drops),
        reasons("Passed", &status.passed),
        reasons("Handed over", &status.handed_over),
        reasons("Counted", &status.counts),
    ];
    for section in sections.into_iter().filter(|section| !section.is_empty()) {
        text.push('\n');
        text += &section;
    }
    text
}

/// A backend as `address:port`; the port is the service's where it has none of its own.
pub(super) fn endpoint(backend: &BackendStatus, service_port: &str) -> String {
    let port = backend
        .port
        .map_or_else(|| service_port.to_owned(), |port| port.to_string());
    if backend.address.contains(':') {
        format!("[{}]:{port}", backend.address)
    } else {
        format!("{}:{port}", backend.address)
    }
}

/// Protocol, `address:port` and port of one `listen` entry.
pub(super) fn split_listen(listen: &str) -> (&str, &str, &str) {
    let (protocol, address) = listen.split_once(':').unwrap_or(("", listen));
    let port = address.rsplit_once(':').map_or("", |(_, port)| port);
    (protocol, address, port)
}

fn services(services: &[ServiceStatus], columns: Columns) -> String {
    if services.is_empty() {
        return "No services\n".to_owned();
    }
    let numbers: &[&'static str] = match columns {
        Columns::Weights => &["Forward", " Weight", " ActiveConn", " InActConn", "Name"],
        Columns::Stats => &[
            " Conns",
            " InPkts",
            " OutPkts",
            " InBytes",
            " OutBytes",
            "Name",
        ],
        Columns::Rate => &[" CPS", " InPPS", " OutPPS", " InBPS", " OutBPS", "Name"],
    };
    let mut table = Table::new(&[&["  -> RemoteAddress:Port"], numbers].concat());
    for service in services {
        service_rows(&mut table, service, columns);
    }
    let title = ["Prot LocalAddress:Port", "Scheduler"];
    let second = if columns == Columns::Weights {
        title[1]
    } else {
        ""
    };
    let above = format!("{:<width$} {second}", title[0], width = table.width(0));
    format!("{}\n{}", above.trim_end(), table.render())
}

fn service_rows(table: &mut Table, service: &ServiceStatus, columns: Columns) {
    for (i, listen) in service.listen.iter().enumerate() {
        let (protocol, address, _) = split_listen(listen);
        let mut cells = vec![format!("{:<4} {address}", protocol.to_uppercase())];
        match (columns, i) {
            (Columns::Weights, 0) => {
                let quorum = service.quorum.as_ref().map(quorum);
                let words = std::iter::once(&service.scheduler).chain(&service.flags);
                let words = words.chain(&quorum);
                cells.extend([
                    words.cloned().collect::<Vec<_>>().join(" "),
                    String::new(),
                    count(service.backends.iter().map(|backend| backend.active).sum()),
                    count(
                        service
                            .backends
                            .iter()
                            .map(|backend| backend.inactive)
                            .sum(),
                    ),
                    service.name.clone(),
                ]);
            }
            (_, 0) => {
                cells.extend(traffic(&service.traffic));
                cells.push(service.name.clone());
            }
            // Further addresses of the same service.
            (_, _) => {}
        }
        table.row(cells);
    }
    let port = service
        .listen
        .first()
        .map_or("", |listen| split_listen(listen).2);
    for backend in &service.backends {
        let mut cells = vec![format!("  -> {}", endpoint(backend, port))];
        match columns {
            Columns::Weights => cells.extend([
                backend.method.clone(),
                weight(backend),
                count(backend.active),
                count(backend.inactive),
            ]),
            Columns::Stats | Columns::Rate => cells.extend(traffic(&backend.traffic)),
        }
        cells.push(name_and_state(backend));
        table.row(cells);
    }
}

/// How many backends are up, of how many that are needed.
fn quorum(quorum: &QuorumStatus) -> String {
    let word = if quorum.met { "met" } else { "lost" };
    format!("quorum {word} {}/{}", quorum.up, quorum.backends)
}

fn traffic(traffic: &Traffic) -> [String; 5] {
    [
        count(traffic.connections),
        count(traffic.in_packets),
        count(traffic.out_packets),
        bytes(traffic.in_bytes),
        bytes(traffic.out_bytes),
    ]
}

/// The weight in use, and the configured one where it is another.
fn weight(backend: &BackendStatus) -> String {
    if backend.weight == backend.effective_weight {
        backend.weight.to_string()
    } else {
        format!("{} of {}", backend.effective_weight, backend.weight)
    }
}

/// The name, and what is not as usual.
fn name_and_state(backend: &BackendStatus) -> String {
    let name = &backend.name;
    let mut text = match (backend.state, &backend.reason) {
        (BackendState::Up, None) => name.clone(),
        (state, None) => format!("{name} {}", state.name()),
        (state, Some(reason)) => format!("{name} {}: {reason}", state.name()),
    };
    for fault in &backend.faults {
        text += &format!("; {fault}");
    }
    text
}

fn ports(ports: &[PortStatus]) -> String {
    let mut table = Table::new(&[
        "Port", "Device", "Link", " RxPkts", " RxBytes", " TxPkts", " TxBytes", " Missed",
        " Errors",
    ]);
    for port in ports {
        let link = match (port.link_up, port.speed) {
            (false, _) => "down".to_owned(),
            (true, None) => "up".to_owned(),
            (true, Some(speed)) if speed >= 1000 => format!("{}G", speed / 1000),
            (true, Some(speed)) => format!("{speed}M"),
        };
        // The arguments of a device are in the configuration; here they would fill the line.
        let device = port.device.split(',').next().unwrap_or_default().to_owned();
        table.row(vec![
            port.name.clone(),
            device,
            link,
            count(port.rx_packets),
            bytes(port.rx_bytes),
            count(port.tx_packets),
            bytes(port.tx_bytes),
            count(port.rx_missed),
            count(port.rx_errors + port.tx_errors),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}

/// What Linux has beside the ports, and what passed.
fn kernel(interfaces: &[KernelStatus]) -> String {
    let mut table = Table::new(&[
        "Interface",
        "Port",
        " ToLinux",
        " Dropped",
        " Withheld",
        " FromLinux",
        " Dropped",
        " Routes",
    ]);
    for interface in interfaces {
        table.row(vec![
            interface.interface.clone(),
            interface.port.clone(),
            count(interface.to_linux),
            count(interface.to_linux_dropped),
            count(interface.withheld),
            count(interface.from_linux),
            count(interface.from_linux_dropped),
            count(interface.routes),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}

/// Whether the ports' receive queues tell a packet's owner; nothing where there is one worker.
fn queues(ports: &[PortStatus]) -> String {
    let mut table = Table::new(&["Queues", ""]);
    for port in ports.iter().filter(|port| !port.queues.is_empty()) {
        table.row(vec![port.name.clone(), port.queues.clone()]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}

fn workers(workers: &[WorkerStatus]) -> String {
    let mut table = Table::new(&[
        "Worker",
        "Core",
        " Busy",
        " Received",
        " Sent",
        " Dropped",
        " Passed",
        " Handed",
        " Conns",
        " of",
    ]);
    for worker in workers {
        table.row(vec![
            worker.worker.to_string(),
            worker.core.to_string(),
            worker
                .busy
                .map_or_else(|| "-".to_owned(), |busy| format!("{busy} %")),
            count(worker.received),
            count(worker.transmitted),
            count(worker.dropped),
            count(worker.passed),
            count(worker.handed_over),
            count(worker.connections),
            count(worker.capacity),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}

fn reasons(title: &'static str, reasons: &[Reason]) -> String {
    let mut table = Table::new(&[title, " Packets", ""]);
    for reason in reasons {
        table.row(vec![
            reason.reason.clone(),
            count(reason.count),
            reason.explanation.clone(),
        ]);
    }
    if table.is_empty() {
        String::new()
    } else {
        table.render()
    }
}
