//! From a parsed TOML document to a [`Draft`]: every value has its type and bounds, and nothing has
//! been compared with anything else yet. Pure.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::model::*;
use super::read_service::read_service;
use super::reader::Reader;
use super::span::{At, Span};
use super::values::*;

/// A configuration whose values are known to be good one by one, with their places.
pub(super) struct Draft {
    pub config: Config,
    pub spans: Spans,
}

/// Where the things stand that checks compare. Lists run parallel to those in the [`Config`].
#[derive(Default)]
pub(super) struct Spans {
    pub cores: Span,
    pub memory: Span,
    pub vip_table: Span,
    pub ports: Vec<PortSpans>,
    pub services: Vec<ServiceSpans>,
}

#[derive(Default)]
pub(super) struct PortSpans {
    pub name: Span,
    /// Of the device, or of the VLAN's parent.
    pub attachment: Span,
    pub addresses: Vec<Span>,
    pub check_addresses: Vec<Span>,
    pub gateways: Vec<Span>,
    pub routes: Vec<Span>,
    pub neighbours: Vec<Span>,
    pub kernel_interface: Span,
}

#[derive(Default)]
pub(super) struct ServiceSpans {
    pub name: Span,
    pub listen: Vec<Span>,
    pub method: Span,
    pub table_size: Span,
    pub untracked: Span,
    pub advertise: Span,
    pub one_packet: Span,
    pub local_addresses: Vec<Span>,
    pub tunnel_source: Span,
    pub health: Span,
    pub health_timeout: Span,
    pub quorum: Span,
    pub sorry_server: Span,
    pub backends: Vec<BackendSpans>,
}

#[derive(Default)]
pub(super) struct BackendSpans {
    pub name: Span,
    pub address: Span,
    pub port: Span,
    pub lower: Span,
}

/// Splits values from their places.
pub(super) fn unzip<T>(items: Vec<At<T>>) -> (Vec<T>, Vec<Span>) {
    items.into_iter().map(|at| (at.value, at.span)).unzip()
}

/// The place of a value, or that of its table when it has none.
pub(super) fn span_or<T>(at: &Option<At<T>>, otherwise: Span) -> Span {
    at.as_ref().map_or(otherwise, |at| at.span)
}

pub(super) fn read(mut root: Reader<'_>) -> Draft {
    let mut spans = Spans::default();
    let workers = root
        .table("workers")
        .map_or_else(Workers::default, |r| read_workers(r, &mut spans));
    let management = root
        .table("management")
        .map_or_else(Management::default, |r| read_management(r, &mut spans));
    let mut ports = Vec::new();
    let port_readers = root.tables("port");
    if port_readers.is_empty() && root.sink.is_empty() {
        root.sink.push(root.span, ConfigError::NoPort);
    }
    for reader in port_readers {
        ports.extend(read_port(reader));
    }
    ports.sort_by_key(|(port, _)| port.device().is_none());
    let (mut ports, port_spans): (Vec<Port>, _) = ports.into_iter().unzip();
    spans.ports = port_spans;
    inherit(&mut ports);
    let mut services = Vec::new();
    for reader in root.tables("service") {
        if let Some((service, span)) = read_service(reader) {
            services.push(service);
            spans.services.push(span);
        }
    }
    root.finish();
    Draft {
        config: Config {
            workers,
            management,
            ports,
            services,
        },
        spans,
    }
}

fn read_workers(mut r: Reader<'_>, spans: &mut Spans) -> Workers {
    let default = Workers::default();
    let cores = r.parsed("cores", parse_cores);
    spans.cores = span_or(&cores, r.span);
    let memory = r.parsed("memory", parse_size);
    spans.memory = span_or(&memory, r.span);
    let workers = Workers {
        cores: cores.map_or(default.cores, |at| at.value),
        connections: r
            .integer("connections", 1_000..=1_000_000_000)
            .map_or(default.connections, |at| at.value),
        memory: memory.map_or(default.memory, |at| at.value),
        idle: r
            .choice("idle", Idle::NAMES)
            .map_or(default.idle, |at| at.value),
        flood_guard: r.integer("flood_guard", 100..=u32::MAX).map(|at| at.value),
        buffers: r.integer("buffers", 1_024..=100_000_000).map(|at| at.value),
        buffer_size: r
            .integer("buffer_size", 128..=16_384)
            .map_or(default.buffer_size, |at| at.value),
    };
    r.finish();
    workers
}

fn read_management(mut r: Reader<'_>, spans: &mut Spans) -> Management {
    let default = Management::default();
    let metrics = |text: &str| match text {
        "off" => Ok(None),
        _ => text
            .parse::<SocketAddr>()
            .map(Some)
            .map_err(|_| ValueError::SocketAddress),
    };
    let vip_table = r.integer("vip_table", 1..=u32::MAX);
    spans.vip_table = span_or(&vip_table, r.span);
    let vip_table = vip_table.map(|at| at.value);
    let linger = r.time("linger", Duration::ZERO..=MINUTE, MILLISECOND);
    let announce_every = r.time("announce_every", SECOND..=DAY, SECOND);
    let management = Management {
        socket: r
            .string("socket")
            .map_or(default.socket, |at| PathBuf::from(at.value)),
        core: r
            .integer("core", 0..=1023)
            .map_or(default.core, |at| at.value),
        metrics: r
            .parsed("metrics", metrics)
            .map_or(default.metrics, |at| at.value),
        log: r
            .choice("log", LogFormat::NAMES)
            .map_or(default.log, |at| at.value),
        announce_every: announce_every.map(|at| at.value),
        vip_table,
        linger: linger.map_or(Management::default_linger(vip_table), |at| at.value),
    };
    r.finish();
    management
}

pub(super) const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// A VLAN's packets are as long as its parent's.
fn inherit(ports: &mut [Port]) {
    let mtus: Vec<(String, u16)> = ports.iter().map(|p| (p.name.clone(), p.mtu)).collect();
    for port in ports {
        if let Attachment::Vlan { parent, .. } = &port.attachment
            && let Some((_, mtu)) = mtus.iter().find(|(name, _)| name == parent)
        {
            port.mtu = *mtu;
        }
    }
}

/// The device, or the VLAN and its parent. What belongs to the device is the parent's to say.
fn read_attachment(r: &mut Reader<'_>) -> Option<At<Attachment>> {
    let is_vlan = r.has("vlan") || r.has("parent");
    if !is_vlan {
        let device = r.string("device");
        r.require("device", "\"0000:01:00.0\"");
        return device.map(|at| At {
            value: Attachment::Device(at.value.to_owned()),
            span: at.span,
        });
    }
    let parent = r.parsed("parent", parse_name);
    r.require("parent", "\"wan\"");
    let vlan = r.integer("vlan", 1..=4094);
    r.require("vlan", "7");
    for key in ["device", "mtu", "rss", "rx_descriptors", "tx_descriptors"] {
        r.refuse(key, |key| ConfigError::ParentsKey { key });
    }
    let (parent, vlan) = (parent?, vlan?);
    Some(At {
        value: Attachment::Vlan {
            parent: parent.value,
            id: vlan.value,
        },
        span: parent.span,
    })
}

fn read_port(mut r: Reader<'_>) -> Option<(Port, PortSpans)> {
    let name = r.parsed("name", parse_name);
    r.require("name", "\"wan\"");
    let attachment = read_attachment(&mut r);
    let own = |text: &str| {
        let prefix: Prefix = text.parse()?;
        check_unicast(prefix.address).map(|_| prefix)
    };
    let (addresses, address_spans) = unzip(r.list("addresses", own));
    let checks = r.list("check_address", parse_unicast);
    let (check_addresses, check_spans) = unzip(one_per_family(&r, "check_address", checks));
    let gateways = r.list("gateway", parse_unicast);
    let (gateways, gateway_spans) = unzip(one_per_family(&r, "gateway", gateways));
    let (routes, route_spans) = unzip(
        r.tables("route")
            .into_iter()
            .filter_map(read_route)
            .collect(),
    );
    let (neighbours, neighbour_spans) = unzip(
        r.tables("neighbour")
            .into_iter()
            .filter_map(read_neighbour)
            .collect(),
    );
    // From what every IPv4 link carries (RFC 791) to what cards call jumbo frames.
    let mtu = r
        .integer("mtu", 68..=9600)
        .map_or(Port::DEFAULT_MTU, |at| at.value);
    let rss = r.choice("rss", Rss::NAMES);
    let kernel_interface = r.parsed("kernel_interface", parse_interface);
    let rx = r.integer("rx_descriptors", 32..=32_768);
    let tx = r.integer("tx_descriptors", 32..=32_768);
    r.finish();
    let (name, attachment) = (name?, attachment?);
    let spans = PortSpans {
        name: name.span,
        attachment: attachment.span,
        addresses: address_spans,
        check_addresses: check_spans,
        gateways: gateway_spans,
        routes: route_spans,
        neighbours: neighbour_spans,
        kernel_interface: span_or(&kernel_interface, name.span),
    };
    let port = Port {
        name: name.value,
        attachment: attachment.value,
        addresses,
        check_addresses,
        gateways,
        routes,
        neighbours,
        mtu,
        rss: rss.map_or(Rss::Auto, |at| at.value),
        kernel_interface: kernel_interface.map(|at| at.value),
        rx_descriptors: rx.map_or(Port::DEFAULT_DESCRIPTORS, |at| at.value),
        tx_descriptors: tx.map_or(Port::DEFAULT_DESCRIPTORS, |at| at.value),
    };
    Some((port, spans))
}

fn one_per_family(
    r: &Reader<'_>,
    key: &str,
    items: Vec<At<std::net::IpAddr>>,
) -> Vec<At<std::net::IpAddr>> {
    for (i, item) in items.iter().enumerate() {
        let same = |other: &&At<std::net::IpAddr>| other.value.is_ipv4() == item.value.is_ipv4();
        let count = items[..=i].iter().filter(same).count();
        if count > 1 {
            let allowed = "at most one for IPv4 and one for IPv6";
            let error = ConfigError::WrongCount {
                key: r.name(key),
                count,
                allowed,
            };
            r.sink.push(item.span, error);
        }
    }
    items
}

/// The place is that of `via`, the part that checks complain about.
fn read_route(mut r: Reader<'_>) -> Option<At<Route>> {
    let network = |text: &str| {
        let prefix: Prefix = text.parse()?;
        if prefix == prefix.network() {
            Ok(prefix)
        } else {
            Err(ValueError::HostBits(prefix.network()))
        }
    };
    let to = r.parsed("to", network);
    r.require("to", "\"198.51.100.0/24\"");
    let via = r.parsed("via", parse_unicast);
    r.require("via", "\"192.0.2.1\"");
    r.finish();
    let (to, via) = (to?.value, via?);
    Some(At {
        value: Route { to, via: via.value },
        span: via.span,
    })
}

fn read_neighbour(mut r: Reader<'_>) -> Option<At<Neighbour>> {
    let address = r.parsed("address", parse_unicast);
    r.require("address", "\"192.0.2.11\"");
    let mac = r.parsed("mac", str::parse);
    r.require("mac", "\"02:00:00:00:00:11\"");
    r.finish();
    let (address, mac) = (address?, mac?.value);
    Some(At {
        value: Neighbour {
            address: address.value,
            mac,
        },
        span: address.span,
    })
}
