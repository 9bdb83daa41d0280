//! ipvsadm's own listings, to the column, so that scripts that read them go on working. Pure.

use std::net::SocketAddr;

use super::status::{Columns, endpoint, split_listen};
use crate::mgmt::api::{BackendStatus, Connections, ServiceStatus, Status, Traffic};

/// What ipvsadm prints before anything else; scripts skip three lines.
const TITLE: &str = "IP Virtual Server version 1.2.1 (size=4096)\n";

/// `ipvsadm -Ln`, with `--stats` or `--rate`.
pub fn services(status: &Status, columns: Columns) -> String {
    let mut text = TITLE.to_owned();
    text += match columns {
        Columns::Weights => {
            "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        }
        Columns::Stats => {
            "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n  -> RemoteAddress:Port\n"
        }
        Columns::Rate => {
            "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS\n  -> RemoteAddress:Port\n"
        }
    };
    let mut entries: Vec<(&ServiceStatus, &str)> = status
        .services
        .iter()
        .flat_map(|service| {
            service
                .listen
                .iter()
                .map(move |listen| (service, listen.as_str()))
        })
        .collect();
    entries.sort_by_key(|(_, listen)| {
        let (protocol, address, _) = split_listen(listen);
        (protocol.to_owned(), sort_key(address))
    });
    for (service, listen) in entries {
        text += &service_lines(service, listen, columns);
    }
    text
}

/// ipvsadm lists by address and port, as numbers. What is no plain `address:port` comes last.
fn sort_key(endpoint: &str) -> (bool, Option<SocketAddr>, String) {
    let address: Option<SocketAddr> = endpoint.parse().ok();
    (address.is_none(), address, endpoint.to_owned())
}

fn service_lines(service: &ServiceStatus, listen: &str, columns: Columns) -> String {
    let (protocol, address, port) = split_listen(listen);
    let protocol = protocol.to_uppercase();
    let mut text = match columns {
        Columns::Weights => {
            let scheduler = &service.scheduler;
            let flags: String = service
                .flags
                .iter()
                .map(|flag| format!(" {flag}"))
                .collect();
            format!("{protocol}  {address} {scheduler}{flags}\n")
        }
        Columns::Stats | Columns::Rate => {
            format!("{protocol}  {address:<28}{}\n", traffic(&service.traffic))
        }
    };
    let mut backends: Vec<(String, &BackendStatus)> = service
        .backends
        .iter()
        .map(|backend| (endpoint(backend, port), backend))
        .collect();
    backends.sort_by_key(|(remote, _)| sort_key(remote));
    for (remote, backend) in backends {
        text += &match columns {
            Columns::Weights => format!(
                "  -> {remote:<28} {:<7} {:<6} {:<10} {:<10}\n",
                forward(backend),
                backend.effective_weight,
                backend.active,
                backend.inactive,
            ),
            Columns::Stats | Columns::Rate => {
                format!("  -> {remote:<28}{}\n", traffic(&backend.traffic))
            }
        };
    }
    text
}

fn forward(backend: &BackendStatus) -> &'static str {
    match backend.method.as_str() {
        "tunnel" => "Tunnel",
        "direct-routing" => "Route",
        "fullnat" => "FullNat",
        _ => "Masq",
    }
}

fn traffic(traffic: &Traffic) -> String {
    [
        traffic.connections,
        traffic.in_packets,
        traffic.out_packets,
        traffic.in_bytes,
        traffic.out_bytes,
    ]
    .map(large)
    .concat()
}

/// Nine characters: whole up to eight digits, then in thousands, millions and so on.
fn large(number: u64) -> String {
    match number {
        0..100_000_000 => format!("{number:>9}"),
        100_000_000..1_000_000_000 => format!("{:>8}K", number / 1_000),
        1_000_000_000..100_000_000_000 => format!("{:>8}M", number / 1_000_000),
        100_000_000_000..100_000_000_000_000 => format!("{:>8}G", number / 1_000_000_000),
        _ => format!("{:>8}T", number / 1_000_000_000_000),
    }
}

/// `ipvsadm -Lcn`.
pub fn connections(all: &Connections) -> String {
    let mut text = "IPVS connection entries\npro expire state       source             virtual            destination\n".to_owned();
    for connection in &all.connections {
        let expire = format!(
            "{:02}:{:02}",
            connection.expires / 60,
            connection.expires % 60
        );
        text += &format!(
            "{:<3} {expire:<6} {:<11} {:<18} {:<18} {}\n",
            connection.protocol.to_uppercase(),
            connection.state.to_uppercase(),
            connection.client,
            connection.virtual_address,
            connection.backend_address,
        );
    }
    text
}
