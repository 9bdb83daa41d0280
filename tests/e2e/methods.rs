//! Who answers: real fetches in each forwarding method, under each scheduler.

use std::collections::BTreeMap;

use crate::lab::balancer::{Evenkeel, Service, web};
use crate::lab::web::{SECOND_PORT, curl};
use crate::lab::{Arms, Lab, METHODS, NAMES, tool};

const FETCHES: usize = 300;
/// Each fetch on a connection of its own.
const FRESH: [&str; 2] = ["-H", "Connection: close"];
const ONE_WAY: [&str; 2] = ["tunnel", "direct-routing"];

/// Who answered each of `count` fetches, each on a new connection, in order.
fn fetch(lab: &Lab, service: &Service, count: usize) -> Vec<String> {
    let url = format!("http://{}/?[1-{count}]", service.address());
    let answers = curl(&lab.client, &[&FRESH[..], &[&url]].concat());
    let expected_port = service.backend_port.unwrap_or(service.port).to_string();
    let name = |line: &str| {
        let [name, client, port] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not three words: {line}");
        };
        assert_eq!(
            (client, port),
            (service.family.client(), &*expected_port),
            "as the backend sees it"
        );
        name.to_owned()
    };
    let names: Vec<_> = answers.lines().map(name).collect();
    assert_eq!(names.len(), count);
    names
}

fn shares(names: &[String]) -> [usize; 3] {
    NAMES.map(|name| names.iter().filter(|answer| *answer == name).count())
}

/// A lab in which everything runs.
pub fn start(arms: Arms, workers: usize, services: &[Service]) -> Option<(Lab, Evenkeel)> {
    let mut lab = Lab::new(arms)?;
    lab.start_web();
    lab.start_unwrapping();
    let evenkeel = Evenkeel::start(&lab, workers, services);
    Some((lab, evenkeel))
}

#[test]
fn round_robin_gives_each_backend_the_same_and_never_two_in_a_row() {
    let services = METHODS.map(|method| web(method, "rr"));
    let Some((lab, _evenkeel)) = start(Arms::One, 1, &services) else {
        return;
    };
    for service in &services {
        let names = fetch(&lab, service, FETCHES);
        assert_eq!(shares(&names), [100; 3], "{}", service.method);
        let repeated = names.windows(2).position(|pair| pair[0] == pair[1]);
        assert_eq!(repeated, None, "{}", service.method);
    }
    let packets: Vec<_> = lab.backends.iter().map(tool::unwrapped).collect();
    let handshakes = |count: &u64| *count >= 200;
    assert!(
        packets.iter().all(handshakes),
        "tunnelled packets: {packets:?}"
    );
}

#[test]
fn weighted_round_robin_follows_the_weights_exactly() {
    let services = METHODS.map(|method| Service {
        weights: [3, 2, 1],
        ..web(method, "wrr")
    });
    let Some((lab, _evenkeel)) = start(Arms::One, 1, &services) else {
        return;
    };
    for service in &services {
        let names = fetch(&lab, service, FETCHES);
        assert_eq!(shares(&names), [150, 100, 50], "{}", service.method);
    }
}

#[test]
fn two_workers_share_alike_within_two() {
    let services = ONE_WAY.map(|method| web(method, "rr"));
    let Some((lab, _evenkeel)) = start(Arms::One, 2, &services) else {
        return;
    };
    for service in &services {
        let shares = shares(&fetch(&lab, service, FETCHES));
        let fair = |share: &usize| share.abs_diff(100) <= 2;
        assert!(shares.iter().all(fair), "{}: {shares:?}", service.method);
    }
}

#[test]
fn maglev_keeps_a_client_port_on_its_backend_also_across_a_restart() {
    let services = METHODS.map(|method| web(method, "mh"));
    let Some((lab, mut evenkeel)) = start(Arms::One, 1, &services) else {
        return;
    };
    for client in maglev_clients() {
        lab.client.ip(&format!("address add {client}/24 dev eth0"));
    }
    let first = by_client_port(&lab, &services);
    assert_eq!(by_client_port(&lab, &services), first);
    let (status, _) = evenkeel.process.terminate();
    assert!(status.success(), "{status}");
    let _evenkeel = Evenkeel::start(&lab, 1, &services);
    assert_eq!(by_client_port(&lab, &services), first);

    let backends: Vec<_> = first.values().collect();
    let used = |name: &str| backends.iter().any(|backend| *backend == name);
    assert!(NAMES.iter().all(|name| used(name)), "{first:?}");
}

/// More than one address: whether the port counts too is up to the service.
fn maglev_clients() -> impl Iterator<Item = String> {
    (100..120).map(|last| format!("198.51.100.{last}"))
}

/// The backend that answers each client, twice in succession the same, by method and address.
fn by_client_port(lab: &Lab, services: &[Service]) -> BTreeMap<(&'static str, String), String> {
    let mut backends = BTreeMap::new();
    for service in services {
        let url = format!("http://{}/", service.address());
        for client in maglev_clients() {
            let from = ["--interface", &client, "--local-port", "20000", &url];
            let ask = || {
                let answer = curl(&lab.client, &[&FRESH, &from[..]].concat());
                answer.split(' ').next().unwrap_or_default().to_owned()
            };
            let name = ask();
            assert_eq!(ask(), name, "{} from {client}", service.method);
            backends.insert((service.method, client), name);
        }
    }
    backends
}

#[test]
fn nat_reaches_another_port_of_the_backend() {
    let services = [Service {
        backend_port: Some(SECOND_PORT),
        ..web("nat", "rr")
    }];
    let Some((lab, _evenkeel)) = start(Arms::One, 1, &services) else {
        return;
    };
    assert_eq!(shares(&fetch(&lab, &services[0], 30)), [10; 3]);
}

#[test]
fn backends_behind_a_second_port_are_reached_in_each_method() {
    let services = METHODS.map(|method| web(method, "rr"));
    let Some((lab, _evenkeel)) = start(Arms::Two, 1, &services) else {
        return;
    };
    for service in &services {
        assert_eq!(
            shares(&fetch(&lab, service, 30)),
            [10; 3],
            "{}",
            service.method
        );
    }
}

#[test]
fn udp_questions_are_shared_and_answered() {
    let services = METHODS.map(|method| Service {
        protocol: "udp",
        port: 53,
        ..web(method, "rr")
    });
    let Some((mut lab, _evenkeel)) = start(Arms::One, 1, &services) else {
        return;
    };
    lab.start_udp_echo(53);
    for service in &services {
        let answers = tool::run(&lab.client, &["udp-ask", &service.address(), "30"]);
        let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let names: Vec<_> = answers.lines().map(name).collect();
        assert_eq!(shares(&names), [10; 3], "{}", service.method);
    }
}
