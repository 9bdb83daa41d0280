//! What must hold within one service, and between it and the ports. Pure.

use std::net::IpAddr;

use super::check::{Claims, Seen};
use super::error::ConfigError;
use super::model::*;
use super::read::{BackendSpans, ServiceSpans};
use super::read_service::endpoint;
use super::reader::Sink;
use super::span::Span;
use crate::lb::snapshot::BackendId;
use crate::mgmt::health::plan_service;

/// The least MTU of an IPv4 path that RFC 791 lets a host count on, and of any IPv6 link (RFC 8200).
const LEAST_PACKET_V4: u16 = 576;
const LEAST_PACKET_V6: u16 = 1280;
/// An outer IPv4 or IPv6 header without options.
const OUTER_V4: u16 = 20;
const OUTER_V6: u16 = 40;

/// One service under check.
struct Checked<'a> {
    config: &'a Config,
    service: &'a Service,
    spans: &'a ServiceSpans,
    claims: &'a Claims,
    sink: &'a Sink<'a>,
}

pub(super) fn check_service(
    config: &Config,
    service: &Service,
    spans: &ServiceSpans,
    claims: &Claims,
    sink: &Sink<'_>,
) {
    let checked = Checked {
        config,
        service,
        spans,
        claims,
        sink,
    };
    checked.vips();
    checked.options();
    checked.quorum();
    let (mut names, mut endpoints) = (Seen::new(), Seen::new());
    for (backend, spans) in service.backends.iter().zip(&spans.backends) {
        checked.backend_is_unique(backend, spans, &mut names, &mut endpoints);
        checked.backend(backend, spans);
        checked.reachable(backend.address, spans.address, service.method);
    }
    if let Some(sorry) = &service.sorry_server {
        checked.sorry_server(sorry);
    }
    checked.health();
}

impl Checked<'_> {
    fn push(&self, span: Span, error: ConfigError) {
        self.sink.push(span, error);
    }

    fn vips(&self) {
        for (listen, span) in self.service.listen.iter().zip(&self.spans.listen) {
            let Some(vip) = listen.vip() else { continue };
            if let Some(first) = self.claims.backends.get(&vip) {
                let line = self.sink.line(*first);
                self.push(*span, ConfigError::VipIsBackend { vip, line });
            }
            if let Some(first) = self.claims.ours_or_routers.get(&vip) {
                let line = self.sink.line(*first);
                self.push(*span, ConfigError::VipIsOurs { vip, line });
            }
        }
    }

    fn options(&self) {
        let Checked { service, spans, .. } = self;
        if service.untracked == Untracked::Hash && !service.scheduler.is_hash() {
            let name = service.scheduler.name();
            self.push(spans.untracked, ConfigError::UntrackedNeedsHash(name));
        }
        if let Some(size) = service
            .table_size
            .map(u64::from)
            .filter(|size| !is_prime(*size))
        {
            let better = (size..).find(|n| is_prime(*n)).unwrap_or(size);
            self.push(
                spans.table_size,
                ConfigError::TableSizeNotPrime(size, better),
            );
        }
        let listens_on_tcp = service
            .listen
            .iter()
            .any(|listen| listen.protocol == Protocol::Tcp);
        if service.one_packet && listens_on_tcp {
            self.push(spans.one_packet, ConfigError::OnePacketNeedsUdp);
        } else if service.one_packet && matches!(service.method, Method::Nat | Method::FullNat) {
            let error = ConfigError::OnePacketNeedsOneWay(service.method.name());
            self.push(spans.one_packet, error);
        }
        if service.method == Method::FullNat {
            self.local_addresses();
        } else if let Some(span) = spans.local_addresses.first() {
            let error = ConfigError::NotForMethod {
                key: "local_addresses",
                method: "fullnat",
            };
            self.push(*span, error);
        }
        if service.tunnel_source.is_some() && service.method != Method::Tunnel {
            let error = ConfigError::NotForMethod {
                key: "tunnel_source",
                method: "tunnel",
            };
            self.push(spans.tunnel_source, error);
        }
    }

    fn local_addresses(&self) {
        for (v4, family) in [(true, "IPv4"), (false, "IPv6")] {
            let needed = self
                .service
                .backends
                .iter()
                .any(|b| b.address.is_ipv4() == v4);
            let given = self
                .service
                .local_addresses
                .iter()
                .any(|a| a.is_ipv4() == v4);
            if needed && !given {
                self.push(self.spans.method, ConfigError::NoLocalAddresses(family));
            }
        }
        let mut seen = Seen::new();
        for (address, span) in self
            .service
            .local_addresses
            .iter()
            .zip(&self.spans.local_addresses)
        {
            let other = seen
                .before(*address, *span)
                .or_else(|| self.claims.vips.get(address).copied());
            if let Some(first) = other {
                let (address, line) = (*address, self.sink.line(first));
                self.push(*span, ConfigError::DuplicateAddress { address, line });
            }
        }
    }

    fn health(&self) {
        let Some(health) = &self.service.health else {
            return;
        };
        if health.timeout > health.interval {
            let format = super::values::format_time;
            let (timeout, interval) = (format(health.timeout), format(health.interval));
            let error = ConfigError::TimeoutAboveInterval { timeout, interval };
            self.push(self.spans.health_timeout, error);
        }
        let needs_port = !matches!(health.check, Check::Ping | Check::Script { .. });
        let listen = &self.service.listen;
        if needs_port && health.port.is_none() && listen.iter().any(|l| l.ports.single().is_none())
        {
            self.push(self.spans.health, ConfigError::HealthNeedsPort);
        }
        let prefix = listen.iter().any(|l| l.vip().is_none());
        if prefix && health.via == Via::DataPath && health.address.is_none() {
            self.push(self.spans.health, ConfigError::HealthNeedsAddress);
        }
        // What is wrong elsewhere would be told here once more.
        if self.sink.is_empty()
            && let Err(why) = plan_service(self.config, self.service, |_, _| BackendId(0))
        {
            let why = why.to_string();
            self.push(self.spans.health, ConfigError::HealthImpossible(why));
        }
    }

    fn quorum(&self) {
        let Some(Quorum {
            backends: quorum,
            hysteresis,
        }) = self.service.quorum
        else {
            return;
        };
        let backends = self.service.backends.len();
        let most = u64::from(quorum) + u64::from(hysteresis);
        // With no backends yet the quorum is not met, which is the truth.
        if hysteresis >= quorum || (backends > 0 && most > backends as u64) {
            let error = ConfigError::QuorumImpossible {
                quorum,
                hysteresis,
                backends,
            };
            self.push(self.spans.quorum, error);
        }
    }

    fn backend_is_unique<'k>(
        &self,
        backend: &'k Backend,
        spans: &BackendSpans,
        names: &mut Seen<&'k str>,
        endpoints: &mut Seen<(IpAddr, Option<u16>)>,
    ) {
        let port = backend.port.or_else(|| self.only_port());
        if let Some(first) = endpoints.before((backend.address, port), spans.address) {
            let endpoint = endpoint(backend.address, port);
            let line = self.sink.line(first);
            self.push(
                spans.address,
                ConfigError::DuplicateBackend { endpoint, line },
            );
        } else if let Some(first) = names.before(&backend.name, spans.name) {
            let (name, line) = (backend.name.clone(), self.sink.line(first));
            self.push(
                spans.name,
                ConfigError::DuplicateName {
                    kind: "backend",
                    name,
                    line,
                },
            );
        }
    }

    /// The port of every entry of `listen`, when they agree on one.
    fn only_port(&self) -> Option<u16> {
        let first = self.service.listen.first()?.ports;
        let agree = self
            .service
            .listen
            .iter()
            .all(|listen| listen.ports == first);
        first.single().filter(|_| agree)
    }

    fn backend(&self, backend: &Backend, spans: &BackendSpans) {
        if let (Some(upper), Some(lower)) = (backend.upper, backend.lower)
            && lower > upper
        {
            self.push(spans.lower, ConfigError::LowerAboveUpper { lower, upper });
        }
        let Some(port) = backend.port else { return };
        let method = self.service.method;
        let translates = matches!(method, Method::Nat | Method::FullNat);
        if !translates && self.only_port() != Some(port) {
            let error = ConfigError::PortCannotChange {
                method: method.name(),
                port,
            };
            self.push(spans.port, error);
        } else if translates
            && self
                .service
                .listen
                .iter()
                .any(|l| l.ports.single().is_none())
        {
            self.push(spans.port, ConfigError::PortOfRange);
        }
    }

    /// Whether packets to `address` can leave in `method`.
    fn reachable(&self, address: IpAddr, span: Span, method: Method) {
        if let Some(first) = self.claims.ours.get(&address) {
            let line = self.sink.line(*first);
            self.push(
                span,
                ConfigError::BackendIsOurs {
                    backend: address,
                    line,
                },
            );
            return;
        }
        let vips = self
            .service
            .listen
            .iter()
            .map(|listen| listen.addresses.address);
        // A tunnel carries either family in either; direct routing changes the MAC address alone.
        let other = vips
            .into_iter()
            .find(|vip| vip.is_ipv4() != address.is_ipv4());
        if let (Some(vip), Method::Nat | Method::FullNat) = (other, method) {
            let method = method.name();
            self.push(
                span,
                ConfigError::FamilyMismatch {
                    method,
                    vip,
                    address,
                },
            );
        }
        if !self.sink.is_empty() {
            // A port that could not be read would make everything behind it unreachable.
            return;
        }
        let Some(port) = self.config.egress(address) else {
            self.push(span, ConfigError::NoRoute(address));
            return;
        };
        if method == Method::DirectRouting && !port.on_link(address) {
            self.push(span, ConfigError::DirectRoutingOffLink(address));
        }
        if method == Method::Tunnel {
            self.tunnel_fits(address, span, port);
        }
    }

    fn tunnel_fits(&self, backend: IpAddr, span: Span, port: &Port) {
        let outer = if backend.is_ipv4() {
            OUTER_V4
        } else {
            OUTER_V6
        };
        let has_v6 = self
            .service
            .listen
            .iter()
            .any(|l| l.addresses.address.is_ipv6());
        let inner = if has_v6 {
            LEAST_PACKET_V6
        } else {
            LEAST_PACKET_V4
        };
        let needed = inner + outer;
        if port.mtu < needed {
            let (port, mtu) = (port.name.clone(), port.mtu);
            self.push(
                span,
                ConfigError::TunnelMtu {
                    backend,
                    port,
                    mtu,
                    needed,
                },
            );
        }
    }

    fn sorry_server(&self, sorry: &SorryServer) {
        let method = sorry.method.unwrap_or(self.service.method);
        if method == Method::FullNat && self.service.method != Method::FullNat {
            let error = ConfigError::NotForMethod {
                key: "sorry_server.method = \"fullnat\"",
                method: "fullnat",
            };
            self.push(self.spans.sorry_server, error);
        }
        self.reachable(sorry.address, self.spans.sorry_server, method);
        if let (Some(port), Method::Tunnel | Method::DirectRouting) = (sorry.port, method)
            && self.only_port() != Some(port)
        {
            let error = ConfigError::PortCannotChange {
                method: method.name(),
                port,
            };
            self.push(self.spans.sorry_server, error);
        }
    }
}

/// Trial division is enough below a million.
fn is_prime(n: u64) -> bool {
    n > 1
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}
