//! SYNs from anywhere, ten times as many as the guard lets through, while real clients download and others
//! connect anew: the first must notice nothing, and 99 of 100 of the others get through.

use serde_json::{Value, json};

use crate::lab::balancer::{Evenkeel, Service, configuration, web};
use crate::lab::downloads::Downloads;
use crate::lab::process::wait_for;
use crate::lab::web::curl;
use crate::lab::{Arms, Family, Lab, tool};

/// Forged flows for each that the guard lets through.
const TIMES: u64 = 10;
const DOWNLOADS: usize = 20;
/// Connections a second of the clients that come meanwhile.
const FRESH: u64 = 20;
/// FullNAT is a port of the NAT service's VIP.
const FULLNAT_PORT: u16 = 81;
const METHODS: [&str; 4] = ["nat", "fullnat", "tunnel", "direct-routing"];

fn service(method: &'static str, scheduler: &'static str) -> Service {
    match method {
        "fullnat" => Service {
            port: FULLNAT_PORT,
            backend_port: Some(80),
            options: json!({
                "method": method,
                "local_addresses": [Arms::One.address(Family::V4, 200)],
            }),
            ..web("nat", scheduler)
        },
        _ => web(method, scheduler),
    }
}

fn count(status: &Value, word: &str) -> u64 {
    let rows = status["counts"].as_array().expect("a list").iter();
    let mut found = rows.filter(|row| row["reason"] == word);
    found
        .next()
        .and_then(|row| row["count"].as_u64())
        .unwrap_or(0)
}

/// Floods one service after the other, each for so many seconds, behind a guard of `guard` new flows a
/// second on the worker.
fn flood(methods: &[&'static str], scheduler: &'static str, guard: u64, seconds: u64) {
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    lab.start_unwrapping();
    // What backends answer to nobody ends at the router.
    lab.balancer.ip("route add blackhole 11.0.0.0/8");
    for device in ["all", "default", "to-client"] {
        let key = format!("net/ipv4/conf/{device}/rp_filter");
        lab.balancer.sysctl(&key, "0");
    }
    let services: Vec<_> = methods.iter().map(|one| service(one, scheduler)).collect();
    let text = configuration(&lab, 1, &services);
    // A table that the flood fills at once.
    let keys = format!("connections = {}\nflood_guard = {guard}", 2 * guard);
    let text = text.replace("connections = 10000", &keys);
    assert!(text.contains("flood_guard"), "{text}");
    let evenkeel = Evenkeel::start_with(&lab, &text);
    for (method, service) in methods.iter().zip(&services) {
        let name = format!("{method} {scheduler}");
        flood_one(&lab, &evenkeel, &name, service, TIMES * guard, seconds);
    }
}

fn flood_one(
    lab: &Lab,
    evenkeel: &Evenkeel,
    name: &str,
    service: &Service,
    rate: u64,
    seconds: u64,
) {
    // Afterwards all next hops are known.
    for _ in 0..6 {
        curl(&lab.client, &[&format!("http://{}/", service.address())]);
    }
    let before = evenkeel.status(lab);
    let log = |what: &str| lab.folder().join(format!("{what}-{}.log", service.name()));
    let mut downloads = Downloads::begin(
        lab,
        std::slice::from_ref(service),
        DOWNLOADS,
        2 * seconds + 3,
    );
    wait_for_connections(lab, evenkeel, &before);
    let (asked, end) = (rate.to_string(), lab.folder().join("flood-ends"));
    let file = end.to_str().expect("a path in UTF-8");
    let words = ["syn-flood", &service.address(), &asked, file];
    let mut forged = tool::start(&lab.client, &words, log("syn-flood"));
    let fresh = connect_anew(lab, service, FRESH * seconds);
    downloads.assert_running();
    forged.assert_running();
    std::fs::write(&end, "").expect("a file");
    wait_for("the flood's end", || forged.exited());
    std::fs::remove_file(&end).expect("the file");
    downloads.assert_whole();
    let said = forged.log();
    let line = said.lines().last().unwrap_or_default();
    let numbers: Vec<u64> = line
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [sent, millis] = numbers[..] else {
        panic!("{said}");
    };
    let after = evenkeel.status(lab);
    let grown = |word| count(&after, word) - count(&before, word);
    let (stateless, evicted) = (grown("stateless"), grown("evicted"));
    let through = fresh.iter().filter(|took| took.is_some()).count();
    let slow = fresh.iter().flatten().filter(|took| **took >= 1.0).count();
    println!(
        "{name}: {} SYN/s forged for {millis} ms; {DOWNLOADS} of {DOWNLOADS} downloads whole; new connections: {through} of {} through, {slow} of them after a second or more; {stateless} packets without an entry, {evicted} entries evicted",
        sent * 1000 / millis,
        fresh.len(),
    );
    assert!(sent * 1000 >= rate * millis * 9 / 10, "{line}");
    assert!(through * 100 >= fresh.len() * 99, "{fresh:?}");
    // Methods that need an entry for each flow make room, and the others do without.
    let is_two_way = name.contains("nat");
    assert!(
        if is_two_way { evicted } else { stateless } > sent / 4,
        "{after}"
    );
}

/// The downloads are under way, and their handshakes done.
fn wait_for_connections(lab: &Lab, evenkeel: &Evenkeel, before: &Value) {
    let made = |status: &Value| count(status, "new_connections");
    let wanted = made(before) + DOWNLOADS as u64;
    wait_for("the downloads' connections", || {
        (made(&evenkeel.status(lab)) >= wanted).then_some(())
    });
}

/// Fetches so often, each time on a new connection; the seconds that each took, if it got through.
fn connect_anew(lab: &Lab, service: &Service, times: u64) -> Vec<Option<f64>> {
    let url = format!("http://{}/?[1-{times}]", service.address());
    let rate = format!("{FRESH}/s");
    let words = ["-s", "-o", "/dev/null", "-H", "Connection: close"];
    let limits = ["--connect-timeout", "5", "-m", "8", "--rate", &rate];
    let write = ["-w", "%{http_code} %{time_total}\\n", &url];
    let output = lab
        .client
        .run("curl", &[&words[..], &limits, &write].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let took = |line: &str| {
        let (code, seconds) = line.split_once(' ')?;
        (code == "200").then(|| seconds.parse().expect("seconds"))
    };
    let all: Vec<_> = said.lines().map(took).collect();
    assert_eq!(all.len() as u64, times, "{said}");
    all
}

#[test]
fn clients_get_through_a_flood_of_syns() {
    flood(&["nat"], "wlc", 500, 2);
}

#[test]
#[ignore = "long: scripts/test --long"]
fn clients_get_through_a_flood_of_syns_in_every_method() {
    for scheduler in ["wlc", "mh"] {
        flood(&METHODS, scheduler, 5_000, 5);
    }
}
