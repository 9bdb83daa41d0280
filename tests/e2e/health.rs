//! Health checks against a real host: its kernel's TCP, nginx, dnsmasq and a TLS certificate.
//!
//! The engine and `NetState` are joined to the host by a TAP device, as rings join them to a port:
//! every frame is ARP, NDP or a probe's, and nothing but the tests' small loop is in between.

pub mod host;
pub mod wire;

use evenkeel::lb::snapshot::BackendId;
use evenkeel::mgmt::health::*;
use host::{BACKEND, BACKEND6, CHECK, CHECK6, Host, OUTSIDE, PORT, VIP};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use wire::Wire;

fn spec(name: &str, probe: Probe, route: Route) -> CheckSpec {
    CheckSpec {
        id: BackendId(name.bytes().map(u32::from).sum()),
        service: "web".into(),
        backend: name.into(),
        probe,
        route,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        jitter: Duration::ZERO,
        thresholds: Thresholds { rise: 1, fall: 2 },
        start: Start::Unknown,
        measure: false,
    }
}

fn path(text: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(text)
}

fn plain(port: u16) -> Route {
    Route::plain(CHECK.parse().unwrap(), (BACKEND, port).into_socket())
}

trait IntoSocket {
    fn into_socket(self) -> std::net::SocketAddr;
}

impl IntoSocket for (&str, u16) {
    fn into_socket(self) -> std::net::SocketAddr {
        (self.0.parse::<std::net::IpAddr>().unwrap(), self.1).into()
    }
}

/// The first verdict on each check, by its name.
async fn verdicts(wire: &mut Wire, checks: Vec<CheckSpec>) -> HashMap<String, (bool, String)> {
    let mut verdicts = HashMap::new();
    let expected = checks.len();
    wire.engine.apply(checks);
    while verdicts.len() < expected {
        let verdict = wire.next().await;
        let (name, answer) = (verdict.backend.to_string(), verdict.answer);
        verdicts.entry(name).or_insert((verdict.up, answer));
    }
    verdicts
}

#[tokio::test]
async fn each_kind_of_check_reads_real_servers_right() {
    let Some(mut host) = Host::new() else { return };
    host.start_servers();
    let mut wire = Wire::new(&host);
    let tls = |sni: &str, verify, ca| {
        let sni = Some(sni.to_owned());
        Tls::new(TlsOptions { sni, verify, ca }).unwrap()
    };
    let ours = || Some(host.folder().join("ca.pem"));
    let page = || HttpProbe::default();
    let get = |change: fn(&mut HttpProbe)| {
        let mut probe = page();
        change(&mut probe);
        spec("", Probe::Http(probe), plain(80))
    };
    let https = |tls| spec("", Probe::Https(page(), tls), plain(443));
    let dns = |name: &str| {
        let probe = DnsProbe {
            name: name.parse().unwrap(),
            record: RecordType::A,
            expect: ResponseCode::NoError,
            needs_answer: true,
        };
        spec("", Probe::Dns(probe), plain(53))
    };
    let udp = |port| {
        let probe = UdpProbe {
            payload: b"anyone?".to_vec(),
            expect: None,
        };
        spec("", Probe::Udp(probe), plain(port))
    };
    let tcp = |port| spec("", Probe::Tcp, plain(port));
    let six = Route::plain(CHECK6.parse().unwrap(), (BACKEND6, 80).into_socket());
    let nobody = Route::plain(CHECK.parse().unwrap(), ("10.77.0.99", 80).into_socket());
    let no_tls = Probe::Https(page(), tls("www.example", false, None));
    const OTHER_NAME: &str = "TLS: invalid peer certificate: certificate not valid for name \
        \"ftp.example\"; certificate is only valid for DnsName(\"www.example\")";
    const NO_TEXT: &str = "HTTP 200, but the expected text is not in the body";
    const NO_PORT: &str = "ICMP destination port unreachable from 10.77.0.11";
    const FOUND: &str = "HTTP 200, expected text found";
    #[rustfmt::skip]
    let table = [
        ("tcp", tcp(80), true, "connected"),
        ("refused", tcp(81), false, "connection refused"),
        ("silent", spec("", Probe::Tcp, nobody), false, "no answer to SYN within 1s"),
        ("http", get(|_| {}), true, "HTTP 200"),
        ("http6", spec("", Probe::Http(page()), six), true, "HTTP 200"),
        ("head", get(|p| p.method = Method::HEAD), true, "HTTP 200"),
        ("status", get(|p| p.path = path("/missing")), false, "HTTP 404, expected 200-399"),
        ("set", get(|p| {
            p.path = path("/missing");
            p.expect = StatusSet::from_iter([404..=404]);
        }), true, "HTTP 404"),
        ("host", get(|p| p.host = Some("other.example".into())), false, "HTTP 503, expected 200-399"),
        ("body", get(|p| p.body = Some("made of lab".into())), true, FOUND),
        ("no-body", get(|p| p.body = Some("gold".into())), false, NO_TEXT),
        ("large", get(|p| {
            p.path = path("/large");
            p.body = Some("the end".into());
        }), true, FOUND),
        ("not-http", spec("", Probe::Http(page()), plain(443)), false, "HTTP 400, expected 200-399"),
        ("https", https(tls("www.example", true, ours())), true, "HTTP 200"),
        ("any-cert", https(tls("www.example", false, None)), true, "HTTP 200"),
        ("stranger", https(tls("www.example", true, None)), false, "TLS: invalid peer certificate: UnknownIssuer"),
        ("other-name", https(tls("ftp.example", true, ours())), false, OTHER_NAME),
        ("no-tls", spec("", no_tls, plain(80)), false, "TLS: received corrupt message of type InvalidContentType"),
        ("dns", dns("www.example."), true, "DNS answered No Error, 1 records"),
        ("nxdomain", dns("nowhere.example."), false, "DNS answered Non-Existent Domain, expected No Error"),
        ("udp", udp(53), true, "no error"),
        ("no-udp", udp(54), false, NO_PORT),
        ("ping", spec("", Probe::Ping, plain(0)), true, "echo reply"),
    ];
    let named = table
        .iter()
        .zip(0..)
        .map(|((name, check, ..), id)| CheckSpec {
            id: BackendId(id),
            backend: (*name).into(),
            ..check.clone()
        });
    let verdicts = verdicts(&mut wire, named.collect()).await;
    for (name, _, up, answer) in table {
        let (was_up, was) = &verdicts[name];
        assert_eq!((*was_up, &**was), (up, answer), "{name}");
    }
    let packets = wire.engine.packets();
    assert_eq!(packets.not_sent, 0, "{packets:?}");
}

/// Takes away what a forwarding method needs on the backend: the check along the traffic's path
/// must find out, and the direct one cannot.
async fn lost_and_regained(
    method: &str,
    route: Route,
    host: &mut Host,
    lose: fn(&mut Host),
    regain: fn(&mut Host),
) {
    host.start_servers();
    regain(host);
    let mut wire = Wire::new(host);
    let page = Probe::Http(HttpProbe::default());
    let in_path = spec(method, page.clone(), route);
    let direct = spec("direct", page, plain(80));
    wire.engine.apply(vec![in_path.clone(), direct]);
    for _ in 0..2 {
        let first = wire.next().await;
        assert!(first.up, "{first:?}");
    }
    lose(host);
    let since = Instant::now();
    let down = wire.next().await;
    assert_eq!((&*down.backend, down.up), (method, false), "{down:?}");
    let allowed = in_path.interval * in_path.thresholds.fall + in_path.timeout;
    let (took, answer) = (since.elapsed(), &down.answer);
    println!("{method}: down after {took:.2?} of {allowed:?} ({answer}); direct: still up");
    regain(host);
    let up = wire.next().await;
    assert_eq!((&*up.backend, up.up), (method, true), "{up:?}");
    let reports = wire.engine.reports();
    let direct = reports.iter().find(|r| &*r.backend == "direct").unwrap();
    assert_eq!((direct.up, direct.failures), (true, 0), "{direct:?}");
}

#[tokio::test]
async fn a_backend_that_lost_its_vip_is_taken_out_under_direct_routing() {
    let Some(mut host) = Host::new() else { return };
    let vip = (VIP, 80).into_socket();
    let route = Route::direct_routing(CHECK.parse().unwrap(), vip, BACKEND.parse().unwrap());
    lost_and_regained(
        "direct-routing",
        route,
        &mut host,
        |host| drop(host.ip(&format!("address del {VIP}/32 dev lo"))),
        |host| drop(host.ip(&format!("address replace {VIP}/32 dev lo"))),
    )
    .await;
}

#[tokio::test]
async fn a_backend_that_lost_its_tunnel_is_taken_out() {
    let Some(mut host) = Host::new() else { return };
    let vip = (VIP, 80).into_socket();
    let (check, outer) = (CHECK.parse().unwrap(), PORT.parse().unwrap());
    let route = Route::tunnel(check, vip, outer, BACKEND.parse().unwrap());
    host.ip(&format!("address add {VIP}/32 dev lo"));
    lost_and_regained(
        "tunnel",
        route,
        &mut host,
        Host::stop_unwrapping,
        Host::start_unwrapping,
    )
    .await;
}

#[tokio::test]
async fn a_backend_that_lost_its_default_route_is_taken_out_under_nat() {
    let Some(mut host) = Host::new() else { return };
    let route = Route::plain(OUTSIDE.parse().unwrap(), (BACKEND, 80).into_socket());
    lost_and_regained(
        "nat",
        route,
        &mut host,
        |host| drop(host.ip("route del default")),
        |host| drop(host.ip(&format!("route replace default via {PORT}"))),
    )
    .await;
}
