//! What texts mean: defaults, aliases, and combinations that are allowed.

use std::net::IpAddr;
use std::time::Duration;

use super::*;

const EXAMPLE: &str = include_str!("../../../../examples/evenkeel.toml");

#[test]
fn the_example_is_valid_today() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.ports[0].name, "wan");
    assert_eq!(config.services[0].backends.len(), 3);
    assert_eq!(config.services[0].backends[1].port, None);
}

#[test]
fn every_key_of_the_example_that_is_commented_out_is_known() {
    // A comment that starts with "#: " is a key that comes with its feature.
    let text: String = EXAMPLE
        .lines()
        .map(|line| line.replacen("#: ", "", 1) + "\n")
        .collect();
    let config = parse(&text).unwrap();
    assert!(config.services[0].health.is_some());
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = parse("[[port]]\nname = \"p\"\ndevice = \"net_null0\"\n").unwrap();
    assert_eq!(config.workers, Workers::default());
    assert_eq!(config.management, Management::default());
    assert_eq!(config.ports[0].mtu, 1500);
    assert!(config.services.is_empty());
}

fn with_service(service: &str) -> Config {
    let port = "[[port]]\nname = \"p\"\ndevice = \"d\"\nmtu = 9000\naddresses = [\"192.0.2.2/24\", \"2001:db8::2/64\"]\n";
    parse(&format!("{port}[[service]]\nname = \"s\"\n{service}\n")).unwrap()
}

#[test]
fn aliases_mean_the_names_proper() {
    let method = |name: &str| {
        let text = format!(
            "listen = \"tcp:198.51.100.1:80\"\nmethod = \"{name}\"\nscheduler = \"maglev\""
        );
        let config = with_service(&text);
        assert_eq!(config.services[0].scheduler, Scheduler::Mh);
        config.services[0].method
    };
    assert_eq!(method("dr"), Method::DirectRouting);
    assert_eq!(method("direct-routing"), Method::DirectRouting);
    assert_eq!(method("ipip"), Method::Tunnel);
    assert_eq!(method("tun"), Method::Tunnel);
    assert_eq!(Method::Tunnel.name(), "tunnel");
    assert_eq!(Scheduler::Mh.name(), "mh");
}

#[test]
fn untracked_follows_the_scheduler() {
    let service = |scheduler: &str| {
        with_service(&format!(
            "listen = \"tcp:198.51.100.1:80\"\nmethod = \"dr\"\nscheduler = \"{scheduler}\""
        ))
    };
    assert_eq!(service("mh").services[0].untracked, Untracked::Hash);
    assert_eq!(service("wlc").services[0].untracked, Untracked::Reset);
}

#[test]
fn direct_routing_and_tunnels_cross_families() {
    for method in ["dr", "tunnel"] {
        let text = format!(
            "listen = [\"tcp:198.51.100.1:80\", \"tcp:[2001:db8:1::1]:80\"]\nmethod = \"{method}\"\nscheduler = \"rr\"\n[[service.backend]]\naddress = \"192.0.2.11\""
        );
        assert_eq!(
            with_service(&text).services[0].backends[0].name,
            "192.0.2.11"
        );
    }
}

#[test]
fn a_service_may_have_no_backends_and_a_backend_weight_zero() {
    let text = "listen = \"udp:198.51.100.1:53\"\nmethod = \"nat\"\nscheduler = \"rr\"";
    assert!(with_service(text).services[0].backends.is_empty());
    let text =
        format!("{text}\n[[service.backend]]\naddress = \"192.0.2.11\"\nport = 5353\nweight = 0");
    let config = with_service(&text);
    let backend = &config.services[0].backends[0];
    assert_eq!(
        (backend.name.as_str(), backend.weight),
        ("192.0.2.11:5353", 0)
    );
}

#[test]
fn a_narrower_listen_may_lie_within_a_wider_one() {
    let text = "listen = [\"tcp:198.51.100.1:*\", \"tcp:198.51.100.1:80-90\", \"tcp:198.51.100.1:85\", \"tcp:198.51.100.0/24:85\", \"udp:198.51.100.1:85\"]\nmethod = \"dr\"\nscheduler = \"rr\"";
    assert_eq!(with_service(text).services[0].listen.len(), 5);
}

#[test]
fn timeouts_and_health_are_read() {
    let config = with_service(
        "listen = \"tcp:198.51.100.1:80\"\nmethod = \"dr\"\nscheduler = \"wlc\"\ntimeouts = { established = \"15m\", udp = \"65535s\" }\nhealth = { type = \"https\", path = \"/ok\", status = [\"200-204\", \"301\"], via = \"direct\", tls_verify = false }\nfeedback = \"hash-too\"",
    );
    let service = &config.services[0];
    assert_eq!(service.timeouts.established, Duration::from_secs(900));
    assert_eq!(service.timeouts.udp, Timeouts::LONGEST);
    assert_eq!(service.timeouts.close, Duration::from_secs(10));
    let health = service.health.as_ref().unwrap();
    let Check::Http(http) = &health.check else {
        panic!("{health:?}")
    };
    assert_eq!(http.status, [(200, 204), (301, 301)]);
    assert_eq!(
        http.tls,
        Some(Tls {
            verify: false,
            sni: None
        })
    );
    assert!(service.feedback.as_ref().unwrap().hash_too);
}

#[test]
fn vlans_come_behind_the_ports_and_have_their_mtu() {
    let text = "[[port]]\nname = \"in\"\nparent = \"lan\"\nvlan = 7\naddresses = \"10.7.0.2/24\"\n\
                [[port]]\nname = \"wan\"\ndevice = \"net_null0\"\n\
                [[port]]\nname = \"lan\"\ndevice = \"net_null1\"\nmtu = 9000\n";
    let config = parse(text).unwrap();
    let ports: Vec<_> = config.ports.iter().map(|p| (&*p.name, p.mtu)).collect();
    assert_eq!(ports, [("wan", 1500), ("lan", 9000), ("in", 9000)]);
    assert_eq!(config.parent("lan"), Some(1));
    assert_eq!(config.parent("in"), None);
    let by = config.egress("10.7.0.9".parse().unwrap());
    assert_eq!(by.map(|port| &*port.name), Some("in"));
    assert_eq!(parse(&to_toml(&config)).unwrap(), config);
}

#[test]
fn packets_leave_by_the_most_specific_port() {
    let port = |name: &str, rest: &str| {
        format!("[[port]]\nname = \"{name}\"\ndevice = \"{name}\"\n{rest}\n")
    };
    let text = port(
        "a",
        "addresses = [\"192.0.2.2/24\"]\ngateway = \"192.0.2.1\"",
    ) + &port(
        "b",
        "addresses = [\"198.51.100.2/24\"]\nroute = [{ to = \"10.0.0.0/8\", via = \"198.51.100.1\" }]",
    ) + &port(
        "c",
        "addresses = [\"203.0.113.2/24\"]\nneighbour = [{ address = \"10.1.1.1\", mac = \"02:00:00:00:00:01\" }]",
    );
    let config = parse(&text).unwrap();
    let by = |address: &str| {
        config
            .egress(address.parse::<IpAddr>().unwrap())
            .map(|port| port.name.as_str())
    };
    assert_eq!(by("192.0.2.77"), Some("a"));
    assert_eq!(by("10.2.3.4"), Some("b"));
    assert_eq!(by("10.1.1.1"), Some("c"));
    assert_eq!(by("8.8.8.8"), Some("a"));
    assert_eq!(by("2001:db8::1"), None);
}
