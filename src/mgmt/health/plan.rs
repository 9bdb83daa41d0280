//! From the configuration to checks: what each backend is asked, and the way the probe takes.
//!
//! Pure but for reading the system's certificates once. An error names the service and what to
//! change.

use super::checker::{Start, Thresholds};
use super::engine::CheckSpec;
use super::probe::{
    DnsProbe, HttpProbe, Probe, ScriptProbe, StatusSet, Tls, TlsError, TlsOptions, UdpProbe,
};
use super::route::Route;
use crate::lb::snapshot::BackendId;
use crate::mgmt::config::{
    Backend, Check, Config, Health, HttpCheck, Listen, Method, Port, Service, StartState, Via,
};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use hyper::http::uri::PathAndQuery;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// Why a service cannot be checked as configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("service {service}: health.{key} = `{value}` is no {kind}; correct it")]
    Value {
        service: String,
        key: &'static str,
        value: String,
        kind: &'static str,
    },
    #[error("service {service}: {why}; correct it, or set tls_verify = false")]
    Tls { service: String, why: TlsError },
    #[error("service {service}: nothing leads to backend {backend}; add a route or a gateway")]
    NoRoute { service: String, backend: String },
    #[error(
        "service {service}: port {port} has no {family} {what} to check backend {backend} from; \
         add one"
    )]
    NoSource {
        service: String,
        backend: String,
        port: String,
        family: &'static str,
        what: &'static str,
    },
}

/// The checks of all services that have any, one for each backend; `id` names a backend.
pub fn plan(
    config: &Config,
    mut id: impl FnMut(&Service, &Backend) -> BackendId,
) -> Result<Vec<CheckSpec>, PlanError> {
    let mut specs = Vec::new();
    for service in &config.services {
        specs.extend(plan_service(config, service, &mut id)?);
    }
    Ok(specs)
}

/// The checks of one service.
pub fn plan_service(
    config: &Config,
    service: &Service,
    mut id: impl FnMut(&Service, &Backend) -> BackendId,
) -> Result<Vec<CheckSpec>, PlanError> {
    let Some(health) = &service.health else {
        return Ok(Vec::new());
    };
    let name: Arc<str> = service.name.as_str().into();
    let probe = probe(service, &health.check)?;
    let spec = |backend: &Backend| {
        Ok(CheckSpec {
            id: id(service, backend),
            service: name.clone(),
            backend: backend.name.as_str().into(),
            probe: probe.clone(),
            route: route(config, service, health, backend)?,
            interval: health.interval,
            timeout: health.timeout,
            // The share of the interval to either side.
            jitter: health.interval * (2 * u32::from(health.jitter)) / 100,
            thresholds: Thresholds {
                rise: health.rise,
                fall: health.fall,
            },
            start: match health.start {
                StartState::Up => Start::Up,
                StartState::Down => Start::Down,
            },
            measure: service.feedback.is_some(),
        })
    };
    service.backends.iter().map(spec).collect()
}

fn probe(service: &Service, check: &Check) -> Result<Probe, PlanError> {
    let bad = |key, value: &str, kind| PlanError::Value {
        service: service.name.clone(),
        key,
        value: value.into(),
        kind,
    };
    Ok(match check {
        Check::Tcp => Probe::Tcp,
        Check::Ping => Probe::Ping,
        Check::Udp { payload, reply } => Probe::Udp(UdpProbe {
            payload: payload.clone().into_bytes(),
            expect: reply.clone().map(String::into_bytes),
        }),
        Check::Dns { query, record } => {
            let mut name = Name::from_ascii(query).map_err(|_| bad("query", query, "DNS name"))?;
            name.set_fqdn(true);
            let record_type = RecordType::from_str(&record.to_ascii_uppercase());
            Probe::Dns(DnsProbe {
                name,
                record: record_type.map_err(|_| bad("record", record, "DNS record type"))?,
                expect: ResponseCode::NoError,
                needs_answer: true,
            })
        }
        Check::Script { command } => {
            let program = command.first();
            Probe::Script(ScriptProbe {
                program: program
                    .cloned()
                    .ok_or_else(|| bad("command", "", "program"))?,
                arguments: command.get(1..).unwrap_or_default().to_vec(),
            })
        }
        Check::Http(check) => {
            let http = http(check, &bad)?;
            match &check.tls {
                None => Probe::Http(http),
                Some(tls) => {
                    let options = TlsOptions {
                        sni: tls.sni.clone(),
                        verify: tls.verify,
                        ca: None,
                    };
                    let failed = |why: TlsError| PlanError::Tls {
                        service: service.name.clone(),
                        why,
                    };
                    Probe::Https(http, Tls::new(options).map_err(failed)?)
                }
            }
        }
    })
}

fn http(
    check: &HttpCheck,
    bad: &impl Fn(&'static str, &str, &'static str) -> PlanError,
) -> Result<HttpProbe, PlanError> {
    let method = hyper::Method::from_str(&check.method);
    // An absolute form would name another server than the one that is checked.
    let path = PathAndQuery::from_str(&check.path).ok();
    let path = path.filter(|_| check.path.starts_with('/'));
    if let Some(host) = &check.host {
        hyper::header::HeaderValue::from_str(host).map_err(|_| bad("host", host, "host name"))?;
    }
    Ok(HttpProbe {
        method: method.map_err(|_| bad("method", &check.method, "HTTP method"))?,
        host: check.host.clone(),
        path: path.ok_or_else(|| bad("path", &check.path, "path on a web server"))?,
        expect: check
            .status
            .iter()
            .map(|&(a, b)| a..=b)
            .collect::<StatusSet>(),
        body: check.body.clone(),
    })
}

/// The way DESIGN's decision on checks prescribes: in the service's own method to the VIP, or
/// directly to the backend.
fn route(
    config: &Config,
    service: &Service,
    health: &Health,
    backend: &Backend,
) -> Result<Route, PlanError> {
    let port = config
        .egress(backend.address)
        .ok_or_else(|| PlanError::NoRoute {
            service: service.name.clone(),
            backend: backend.name.clone(),
        })?;
    let missing = |address: IpAddr, what| PlanError::NoSource {
        service: service.name.clone(),
        backend: backend.name.clone(),
        port: port.name.clone(),
        family: if address.is_ipv4() { "IPv4" } else { "IPv6" },
        what,
    };
    let own = |to: IpAddr| own_address(port, to).ok_or_else(|| missing(to, "address"));
    let check = |to: IpAddr| {
        let near = port.check_addresses.iter().copied();
        let found = near.clone().find(|a| a.is_ipv4() == to.is_ipv4());
        found.ok_or_else(|| missing(to, "check_address"))
    };
    let vip = vip(service, health, backend);
    let real = real(service, health, backend);
    Ok(match (health.via, service.method) {
        (Via::Direct, _) => Route::plain(own(real.ip())?, real),
        (Via::DataPath, Method::Nat) => {
            let source = match outside(config, port, real.ip()) {
                Some(source) => source,
                None => check(real.ip())?,
            };
            Route::plain(source, real)
        }
        (Via::DataPath, Method::FullNat) => {
            let mut locals = service.local_addresses.iter();
            let local = locals.find(|a| a.is_ipv4() == real.is_ipv4());
            let local = local.ok_or_else(|| missing(real.ip(), "local address"))?;
            Route::full_nat(*local, real)
        }
        (Via::DataPath, Method::Tunnel) => {
            let outer = own(backend.address)?;
            Route::tunnel(check(vip.ip())?, vip, outer, backend.address)
        }
        (Via::DataPath, Method::DirectRouting) => {
            Route::direct_routing(check(vip.ip())?, vip, backend.address)
        }
    })
}

/// The address and port that clients use. Validation has seen to it that there is one.
fn vip(service: &Service, health: &Health, backend: &Backend) -> SocketAddr {
    let listen = listen(service, backend);
    let address = health.address.or(listen.and_then(Listen::vip));
    let port = health.port.or(listen.and_then(|l| l.ports.single()));
    let address = address.unwrap_or(backend.address);
    SocketAddr::new(address, port.unwrap_or(0))
}

/// The backend's own address and port.
fn real(service: &Service, health: &Health, backend: &Backend) -> SocketAddr {
    let listened = listen(service, backend).and_then(|l| l.ports.single());
    let port = health.port.or(backend.port).or(listened);
    let direct = health.address.filter(|_| health.via == Via::Direct);
    SocketAddr::new(direct.unwrap_or(backend.address), port.unwrap_or(0))
}

/// What of the service this backend serves: the first entry of its address family.
fn listen<'a>(service: &'a Service, backend: &Backend) -> Option<&'a Listen> {
    let same = |l: &&Listen| l.addresses.address.is_ipv4() == backend.address.is_ipv4();
    let first = service.listen.first();
    service.listen.iter().find(same).or(first)
}

/// A check address that the backend can answer only by its route through us: none of its
/// own subnet.
fn outside(config: &Config, port: &Port, backend: IpAddr) -> Option<IpAddr> {
    let subnets = port.addresses.iter().filter(|p| p.contains(backend));
    let subnets: Vec<_> = subnets.collect();
    let all = config.ports.iter().flat_map(|p| &p.check_addresses);
    let mut all = all.copied().filter(|a| a.is_ipv4() == backend.is_ipv4());
    all.find(|a| !subnets.iter().any(|s| s.contains(*a)))
}

/// The port's own address in the subnet of `to`, else its first of the family.
fn own_address(port: &Port, to: IpAddr) -> Option<IpAddr> {
    let own = port.addresses.iter();
    let mut own = own.filter(|p| p.address.is_ipv4() == to.is_ipv4());
    let first = own.clone().next();
    let near = own.find(|p| p.contains(to));
    near.or(first).map(|p| p.address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mgmt::config::parse;
    use std::time::Duration;

    const FILE: &str = r#"
        [workers]
        cores = "1"
        memory = "1GiB"

        [[port]]
        name = "wan"
        device = "net_null0"
        addresses = ["192.0.2.2/24"]
        gateway = "192.0.2.1"

        [[port]]
        name = "lan"
        device = "net_null1"
        addresses = ["10.0.0.1/16"]

        [[service]]
        name = "web"
        listen = ["tcp:192.0.2.80:80"]
        method = "METHOD"
        scheduler = "rr"

        [[service.backend]]
        name = "b1"
        address = "10.0.0.11"
    "#;

    fn health(check: Check, via: Via) -> Health {
        Health {
            check,
            via,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            fall: 3,
            rise: 2,
            start: StartState::Down,
            jitter: 10,
            address: None,
            port: None,
        }
    }

    fn config(method: &str, check: Check, via: Via) -> Config {
        let mut config = parse(&FILE.replace("METHOD", method)).unwrap();
        config.ports[0].check_addresses = vec!["192.0.2.3".parse().unwrap()];
        config.ports[1].check_addresses = vec!["10.0.0.3".parse().unwrap()];
        config.services[0].health = Some(health(check, via));
        config
    }

    fn only(config: &Config) -> CheckSpec {
        let specs = plan(config, |_, _| BackendId(7)).unwrap();
        assert_eq!(specs.len(), 1);
        specs[0].clone()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_method_takes_its_own_way() {
        let vip = socket("192.0.2.80:80");
        let backend = ip("10.0.0.11");
        let routed = |method, via| only(&config(method, Check::Tcp, via)).route;
        let near = ip("10.0.0.3");
        let dr = Route::direct_routing(near, vip, backend);
        assert_eq!(routed("direct-routing", Via::DataPath), dr);
        let tunnel = Route::tunnel(near, vip, ip("10.0.0.1"), backend);
        assert_eq!(routed("tunnel", Via::DataPath), tunnel);
        // From outside the backend's subnet, or its default route would not be tried.
        let nat = Route::plain(ip("192.0.2.3"), socket("10.0.0.11:80"));
        assert_eq!(routed("nat", Via::DataPath), nat);
        let direct = Route::plain(ip("10.0.0.1"), socket("10.0.0.11:80"));
        for method in ["nat", "tunnel", "direct-routing"] {
            assert_eq!(routed(method, Via::Direct), direct);
        }
        // As connections come: from a local address of the family.
        let mut config = config("nat", Check::Tcp, Via::DataPath);
        config.services[0].method = Method::FullNat;
        config.services[0].local_addresses = vec![ip("2001:db8::7"), ip("10.9.0.7")];
        let full_nat = Route::full_nat(ip("10.9.0.7"), socket("10.0.0.11:80"));
        assert_eq!(only(&config).route, full_nat);
    }

    #[test]
    fn nat_without_an_address_outside_takes_the_one_there_is() {
        let mut config = config("nat", Check::Tcp, Via::DataPath);
        config.ports[0].check_addresses.clear();
        config.services[0].backends[0].port = Some(8080);
        let route = Route::plain(ip("10.0.0.3"), socket("10.0.0.11:8080"));
        assert_eq!(only(&config).route, route);
    }

    #[test]
    fn numbers_and_named_targets_are_taken_over() {
        let mut config = config("direct-routing", Check::Tcp, Via::DataPath);
        let health = config.services[0].health.as_mut().unwrap();
        (health.address, health.port) = (Some(ip("192.0.2.81")), Some(81));
        let spec = only(&config);
        assert_eq!(spec.route.target(), socket("192.0.2.81:81"));
        assert_eq!((&*spec.service, &*spec.backend), ("web", "b1"));
        assert_eq!((spec.thresholds.rise, spec.thresholds.fall), (2, 3));
        assert_eq!(
            (spec.start, spec.jitter),
            (Start::Down, Duration::from_millis(400))
        );
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut config = config("direct-routing", Check::Tcp, Via::DataPath);
        config.ports[1].check_addresses.clear();
        let error = plan(&config, |_, _| BackendId(7)).unwrap_err().to_string();
        assert_eq!(
            error,
            "service web: port lan has no IPv4 check_address to check backend b1 from; add one"
        );
        config.services[0].backends[0].address = ip("2001:db8::9");
        let error = plan(&config, |_, _| BackendId(7)).unwrap_err().to_string();
        assert!(error.contains("nothing leads to backend b1"), "{error}");
    }

    #[test]
    fn options_become_probes_or_a_reason() {
        let http = |change: fn(&mut HttpCheck)| {
            let mut check = HttpCheck {
                tls: None,
                method: "HEAD".into(),
                host: Some("www.example".into()),
                path: "/healthz?deep=1".into(),
                status: vec![(200, 204), (301, 301)],
                body: None,
            };
            change(&mut check);
            plan(&config("nat", Check::Http(check), Via::Direct), |_, _| {
                BackendId(7)
            })
        };
        let Probe::Http(probe) = &http(|_| {}).unwrap()[0].probe else {
            panic!("not HTTP");
        };
        assert_eq!(probe.method, hyper::Method::HEAD);
        assert_eq!(
            (probe.path.as_str(), probe.expect.to_string()),
            ("/healthz?deep=1", "200-204,301".into())
        );
        let bad = |change| http(change).unwrap_err().to_string();
        assert_eq!(
            bad(|c| c.method = "G T".into()),
            "service web: health.method = `G T` is no HTTP method; correct it"
        );
        assert!(bad(|c| c.path = "http://other/".into()).contains("health.path"));
        assert!(bad(|c| c.host = Some("a\nb".into())).contains("health.host"));
        let dns = |query: &str, record: &str| {
            let (query, record) = (query.into(), record.into());
            plan(
                &config("nat", Check::Dns { query, record }, Via::Direct),
                |_, _| BackendId(7),
            )
        };
        let Probe::Dns(probe) = &dns("www.example", "aaaa").unwrap()[0].probe else {
            panic!("not DNS");
        };
        assert_eq!(
            (probe.name.to_string(), probe.record),
            ("www.example.".into(), RecordType::AAAA)
        );
        assert!(
            dns("www.example", "BOGUS")
                .unwrap_err()
                .to_string()
                .contains("health.record")
        );
    }
}
