//! Compares the parts of a [`Draft`] with each other: workers, ports, and names and addresses that
//! must be unique. Services' own rules are in `check_service`. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use super::check_service::check_service;
use super::error::ConfigError;
use super::model::*;
use super::read::{Draft, PortSpans};
use super::reader::Sink;
use super::span::Span;
use super::values::format_size;

/// The most that a connection takes, its share of free lists and indexes included.
pub const BYTES_PER_CONNECTION: u64 = 128;
/// What a port's packet buffers need at the least, in bytes.
const SMALLEST_PACKET_POOL: u64 = 64 << 20;

pub(super) fn check(draft: &Draft, sink: &Sink<'_>) {
    check_workers(draft, sink);
    check_ports(draft, sink);
    check_interfaces(draft, sink);
    check_advertising(draft, sink);
    check_service_names(draft, sink);
    check_listens(draft, sink);
    let claims = Claims::of(draft);
    check_own_addresses(draft, &claims, sink);
    for (service, spans) in draft.config.services.iter().zip(&draft.spans.services) {
        check_service(&draft.config, service, spans, &claims, sink);
    }
}

fn check_workers(draft: &Draft, sink: &Sink<'_>) {
    let Config {
        workers,
        management,
        ..
    } = &draft.config;
    if workers.idle == Idle::Poll && workers.cores.contains(&management.core) {
        sink.push(draft.spans.cores, ConfigError::CoreShared(management.core));
    }
    let again = |(at, core): (usize, &u16)| workers.cores[..at].contains(core).then_some(*core);
    if workers.idle == Idle::Poll
        && let Some(core) = workers.cores.iter().enumerate().find_map(again)
    {
        sink.push(draft.spans.cores, ConfigError::CoreTwice(core));
    }
    let table = u64::from(workers.connections) * BYTES_PER_CONNECTION;
    let least = table + SMALLEST_PACKET_POOL;
    if least > workers.memory {
        let error = ConfigError::MemoryTooSmall {
            connections: workers.connections,
            needed: in_mib(table),
            memory: format_size(workers.memory),
            fix: in_mib(least),
        };
        sink.push(draft.spans.memory, error);
    }
}

fn in_mib(bytes: u64) -> String {
    format!("{}MiB", bytes.div_ceil(1 << 20))
}

/// Finds what was seen before.
pub(super) struct Seen<K>(HashMap<K, Span>);

impl<K: Hash + Eq> Seen<K> {
    pub fn new() -> Self {
        Seen(HashMap::new())
    }

    /// Where `key` stood first, when this is not the first.
    pub fn before(&mut self, key: K, span: Span) -> Option<Span> {
        match self.0.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => Some(*entry.get()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(span);
                None
            }
        }
    }
}

/// `first` is where the same device, or VLAN, stood before.
fn check_attachment(
    draft: &Draft,
    port: &Port,
    spans: &PortSpans,
    first: Option<Span>,
    sink: &Sink<'_>,
) {
    let line = first.map(|first| sink.line(first));
    let error = match (&port.attachment, line) {
        (Attachment::Vlan { parent, .. }, _) if draft.config.parent(parent).is_none() => {
            ConfigError::NoParent(parent.clone())
        }
        (_, None) => return,
        (Attachment::Device(device), Some(line)) => ConfigError::DuplicateDevice {
            device: device.clone(),
            line,
        },
        (Attachment::Vlan { parent, id }, Some(line)) => ConfigError::DuplicateVlan {
            id: *id,
            parent: parent.clone(),
            line,
        },
    };
    sink.push(spans.attachment, error);
}

fn check_ports(draft: &Draft, sink: &Sink<'_>) {
    let count = draft.config.ports.len();
    if count > usize::from(u8::MAX) {
        let span = draft.spans.ports.last().map(|port| port.name);
        sink.push(span.unwrap_or_default(), ConfigError::TooManyPorts(count));
    }
    let (mut names, mut devices, mut addresses) = (Seen::new(), Seen::new(), Seen::new());
    for (port, spans) in draft.config.ports.iter().zip(&draft.spans.ports) {
        if let Some(first) = names.before(&port.name, spans.name) {
            let (name, line) = (port.name.clone(), sink.line(first));
            sink.push(
                spans.name,
                ConfigError::DuplicateName {
                    kind: "port",
                    name,
                    line,
                },
            );
        }
        let first = devices.before(&port.attachment, spans.attachment);
        check_attachment(draft, port, spans, first, sink);
        for (own, span) in port.addresses.iter().zip(&spans.addresses) {
            if let Some(first) = addresses.before(own.address, *span) {
                let (address, line) = (own.address, sink.line(first));
                sink.push(*span, ConfigError::DuplicateAddress { address, line });
            }
        }
        check_next_hops(port, spans, sink);
    }
}

/// Linux has one interface of a name, and the devices of some ports are interfaces too.
fn check_interfaces(draft: &Draft, sink: &Sink<'_>) {
    let mut names = Seen::new();
    for (port, spans) in draft.config.ports.iter().zip(&draft.spans.ports) {
        let Some(name) = &port.kernel_interface else {
            continue;
        };
        if let Some(first) = names.before(name, spans.kernel_interface) {
            let (name, line) = (name.clone(), sink.line(first));
            let error = ConfigError::DuplicateInterface { name, line };
            sink.push(spans.kernel_interface, error);
        }
        let is_it = |(_, device): (&Port, &str)| {
            let mut arguments = device.split(',').skip(1);
            arguments.any(|one| one.strip_prefix("iface=") == Some(name))
        };
        if draft.config.devices().any(is_it) {
            let error = ConfigError::InterfaceIsDevice(name.clone());
            sink.push(spans.kernel_interface, error);
        }
    }
}

/// What needs an interface has one, and the services of a VIP agree on who answers for it.
fn check_advertising(draft: &Draft, sink: &Sink<'_>) {
    let Config {
        ports,
        services,
        management,
        ..
    } = &draft.config;
    let has_interface = ports.iter().any(|port| port.kernel_interface.is_some());
    if let Some(table) = management.vip_table {
        let span = draft.spans.vip_table;
        // The default, main and local tables.
        if (253..=255).contains(&table) {
            sink.push(span, ConfigError::TableInUse(table));
        }
        if !has_interface {
            sink.push(span, ConfigError::NeedsInterface("vip_table"));
        }
    }
    let mut known: HashMap<IpAddr, (Advertise, Span)> = HashMap::new();
    for (service, spans) in services.iter().zip(&draft.spans.services) {
        let advertise = service.advertise;
        if advertise == Advertise::Kernel && !has_interface {
            let error = ConfigError::NeedsInterface("advertise = \"kernel\"");
            sink.push(spans.advertise, error);
        }
        for (listen, span) in service.listen.iter().zip(&spans.listen) {
            let Some(vip) = listen.vip() else { continue };
            let (first, at) = *known.entry(vip).or_insert((advertise, *span));
            if first != advertise {
                let line = sink.line(at);
                sink.push(*span, ConfigError::AdvertisedOtherwise { vip, line });
            }
        }
    }
}

fn check_next_hops(port: &Port, spans: &PortSpans, sink: &Sink<'_>) {
    let mut neighbours = Seen::new();
    for (neighbour, span) in port.neighbours.iter().zip(&spans.neighbours) {
        if let Some(first) = neighbours.before(neighbour.address, *span) {
            let (address, line) = (neighbour.address, sink.line(first));
            sink.push(*span, ConfigError::DuplicateAddress { address, line });
        }
    }
    if !sink.is_empty() {
        // An address that could not be read would make its whole subnet unknown.
        return;
    }
    let off_link = |what, address, span: &Span| {
        if !port.on_link(address) {
            let port = port.name.clone();
            sink.push(
                *span,
                ConfigError::NotOnLink {
                    what,
                    address,
                    port,
                },
            );
        }
    };
    for (gateway, span) in port.gateways.iter().zip(&spans.gateways) {
        off_link("the gateway", *gateway, span);
    }
    for (route, span) in port.routes.iter().zip(&spans.routes) {
        off_link("the route's next hop", route.via, span);
    }
}

fn check_service_names(draft: &Draft, sink: &Sink<'_>) {
    let mut names = Seen::new();
    for (service, spans) in draft.config.services.iter().zip(&draft.spans.services) {
        if let Some(first) = names.before(&service.name, spans.name) {
            let (name, line) = (service.name.clone(), sink.line(first));
            sink.push(
                spans.name,
                ConfigError::DuplicateName {
                    kind: "service",
                    name,
                    line,
                },
            );
        }
    }
}

/// Every packet must have one service: equal entries and ranges that cross are refused; a narrower
/// range or prefix within a wider one is not, and wins.
fn check_listens(draft: &Draft, sink: &Sink<'_>) {
    let mut same_address: HashMap<_, Vec<(Listen, Span)>> = HashMap::new();
    for (service, spans) in draft.config.services.iter().zip(&draft.spans.services) {
        for (listen, span) in service.listen.iter().zip(&spans.listen) {
            let others = same_address
                .entry((listen.protocol, listen.addresses))
                .or_default();
            let clash = others.iter().find_map(|(other, first)| {
                let line = sink.line(*first);
                if other.ports == listen.ports {
                    Some(ConfigError::DuplicateListen {
                        listen: *listen,
                        line,
                    })
                } else if other.ports.crosses(listen.ports) {
                    Some(ConfigError::CrossingListen {
                        listen: *listen,
                        line,
                    })
                } else {
                    None
                }
            });
            match clash {
                Some(error) => sink.push(*span, error),
                None => others.push((*listen, *span)),
            }
        }
    }
}

/// Who uses which address, so that nobody uses another's.
pub(super) struct Claims {
    /// Port addresses, gateways and next hops of routes.
    pub ours_or_routers: HashMap<IpAddr, Span>,
    /// Port addresses and check addresses.
    pub ours: HashMap<IpAddr, Span>,
    pub backends: HashMap<IpAddr, Span>,
    pub vips: HashMap<IpAddr, Span>,
}

impl Claims {
    fn of(draft: &Draft) -> Self {
        let mut claims = Claims {
            ours_or_routers: HashMap::new(),
            ours: HashMap::new(),
            backends: HashMap::new(),
            vips: HashMap::new(),
        };
        for (port, spans) in draft.config.ports.iter().zip(&draft.spans.ports) {
            let own = port
                .addresses
                .iter()
                .map(|own| own.address)
                .zip(&spans.addresses);
            for (address, span) in own {
                claims.ours.entry(address).or_insert(*span);
                claims.ours_or_routers.entry(address).or_insert(*span);
            }
            let checks = port
                .check_addresses
                .iter()
                .copied()
                .zip(&spans.check_addresses);
            for (address, span) in checks {
                claims.ours.entry(address).or_insert(*span);
                claims.ours_or_routers.entry(address).or_insert(*span);
            }
            let routers = port.gateways.iter().copied().zip(&spans.gateways);
            let next_hops = port.routes.iter().map(|route| route.via).zip(&spans.routes);
            for (address, span) in routers.chain(next_hops) {
                claims.ours_or_routers.entry(address).or_insert(*span);
            }
        }
        for (service, spans) in draft.config.services.iter().zip(&draft.spans.services) {
            for (listen, span) in service.listen.iter().zip(&spans.listen) {
                if let Some(vip) = listen.vip() {
                    claims.vips.entry(vip).or_insert(*span);
                }
            }
            for (backend, span) in service.backends.iter().zip(&spans.backends) {
                claims
                    .backends
                    .entry(backend.address)
                    .or_insert(span.address);
            }
        }
        claims
    }
}

/// A check address belongs to the checks alone: replies to it are taken before any other look-up.
fn check_own_addresses(draft: &Draft, claims: &Claims, sink: &Sink<'_>) {
    let mut checks = Seen::new();
    for (port, spans) in draft.config.ports.iter().zip(&draft.spans.ports) {
        for (address, span) in port.check_addresses.iter().zip(&spans.check_addresses) {
            let taken = checks
                .before(*address, *span)
                .or_else(|| {
                    claims
                        .ours_or_routers
                        .get(address)
                        .copied()
                        .filter(|first| first != span)
                })
                .or_else(|| claims.backends.get(address).copied())
                .or_else(|| claims.vips.get(address).copied());
            if let Some(first) = taken {
                let (address, line) = (*address, sink.line(first));
                sink.push(*span, ConfigError::CheckAddressTaken { address, line });
            }
        }
    }
}
