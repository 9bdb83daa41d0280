//! Health checks of the running appliance: a backend that lost what its forwarding method needs,
//! and whose web server answers all the same, is taken out and comes back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::balancer::{Evenkeel, Service, configuration, web};
use crate::lab::process::wait_for;
use crate::lab::tool::TUN;
use crate::lab::web::{SECOND_PORT, curl};
use crate::lab::{Arms, Family, Lab, METHODS, NAMES};
use crate::methods::start;

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(500);
const FALL: u32 = 2;

fn checked(method: &'static str, port: u16, via: &str) -> Service {
    Service {
        port,
        options: json!({
            "health": {
                "type": "http",
                "path": "/healthz",
                "via": via,
                "interval": format!("{}ms", INTERVAL.as_millis()),
                "timeout": format!("{}ms", TIMEOUT.as_millis()),
                "fall": FALL,
                "rise": 2,
                "jitter": 0,
            },
        }),
        ..web(method, "rr")
    }
}

/// Every service's backends as `status` shows them, by `service/backend`.
pub fn backends(lab: &Lab, evenkeel: &Evenkeel) -> BTreeMap<String, Value> {
    let status = evenkeel.status(lab);
    let services = status["services"].as_array().expect("services").iter();
    let all = services.flat_map(|service| {
        let backends = service["backends"].as_array().expect("backends").iter();
        backends.map(move |backend| {
            let word = |value: &Value| value.as_str().expect("a name").to_owned();
            let name = format!("{}/{}", word(&service["name"]), word(&backend["name"]));
            (name, backend.clone())
        })
    });
    all.collect()
}

/// The names of those that are not up.
fn not_up(lab: &Lab, evenkeel: &Evenkeel) -> Vec<String> {
    let all = backends(lab, evenkeel).into_iter();
    let down = all.filter(|(_, backend)| backend["state"] != "up");
    down.map(|(name, _)| name).collect()
}

/// The method, the backend that loses something, and how it is lost and regained.
fn faults() -> [(&'static str, usize, [String; 2], [String; 2]); 3] {
    let vip = Family::V4.vip("direct-routing");
    let evenkeel = Arms::Two.evenkeel(Family::V4);
    [
        (
            "direct-routing",
            0,
            [
                format!("address del {vip}/32 dev lo"),
                "link show lo".into(),
            ],
            [
                format!("address add {vip}/32 dev lo"),
                "link show lo".into(),
            ],
        ),
        (
            "tunnel",
            1,
            [format!("link set {TUN} down"), "link show lo".into()],
            [format!("link set {TUN} up"), "link show lo".into()],
        ),
        (
            "nat",
            2,
            [
                // What it sends from its own address goes by this table alone.
                "route del default table 100".into(),
                "route add unreachable default table 100".into(),
            ],
            [
                "route del unreachable default table 100".into(),
                format!("route add default via {evenkeel} dev eth0 table 100"),
            ],
        ),
    ]
}

#[test]
fn what_only_the_path_of_the_traffic_shows_is_found_in_each_method() {
    let services: Vec<Service> = METHODS
        .iter()
        .flat_map(|method| {
            let indirect = checked(method, 80, "data-path");
            [indirect, checked(method, SECOND_PORT, "direct")]
        })
        .collect();
    let Some((lab, evenkeel)) = start(Arms::Two, 1, &services) else {
        return;
    };
    let good_checks = || {
        let all = backends(&lab, &evenkeel);
        let good = |b: &Value| b["check"]["answer"] == "HTTP 200";
        all.values().all(good).then_some(())
    };
    wait_for("a good check of every backend", good_checks);
    assert_eq!(not_up(&lab, &evenkeel), [""; 0]);

    let before = backends(&lab, &evenkeel);
    let allowed = INTERVAL * FALL + TIMEOUT;
    // A check may start late by a tenth of its interval.
    let late = INTERVAL / 10;
    let mut expected = Vec::new();
    let mut lost_at = BTreeMap::new();
    for (method, index, lose, _) in faults() {
        for words in &lose {
            lab.backends[index].ip(words);
        }
        let name = format!("{method}-V4-tcp-80");
        lost_at.insert(name.clone(), Instant::now());
        expected.push(format!("{name}/{}", NAMES[index]));
    }
    expected.sort();
    let mut found = BTreeMap::new();
    wait_for("a line in the log for every fault", || {
        let log = evenkeel.process.log();
        for (service, since) in &lost_at {
            let line = log.lines().find(|line| {
                line.contains(&format!("service {service}: ")) && line.contains("up -> down")
            });
            if let Some(line) = line {
                let told = (since.elapsed(), line.to_owned());
                found.entry(service.clone()).or_insert(told);
            }
        }
        (found.len() == lost_at.len()).then_some(())
    });
    for (service, (took, line)) in &found {
        println!("{took:.2?} of {allowed:?}: {line}");
        assert!(*took <= allowed + late, "{service}: {took:?}");
        assert!(
            line.contains("http check: no answer to SYN within 500ms"),
            "{line}"
        );
    }
    wait_for("just these to be down", || {
        (not_up(&lab, &evenkeel) == expected).then_some(())
    });
    for (name, backend) in backends(&lab, &evenkeel) {
        let is_direct = name.contains(&SECOND_PORT.to_string());
        let check = &backend["check"];
        if is_direct {
            println!("direct: {name} {}: {check}", backend["state"]);
            // A check can have failed before the port was on the switch.
            let failures = &before[&name]["check"]["failures"];
            assert_eq!(&check["failures"], failures, "{name}");
        }
        if backend["state"] == "down" {
            assert_eq!(backend["effective_weight"], 0);
            assert_eq!(
                backend["reason"],
                "http check: no answer to SYN within 500ms"
            );
        }
    }
    for (method, index, ..) in faults() {
        let url = format!("http://{}/?[1-6]", checked(method, 80, "").address());
        let answers = curl(&lab.client, &["-H", "Connection: close", &url]);
        assert!(!answers.contains(NAMES[index]), "{method}: {answers}");
    }

    for (_, index, _, regain) in faults() {
        for words in &regain {
            lab.backends[index].ip(words);
        }
    }
    wait_for("all to be back", || {
        not_up(&lab, &evenkeel).is_empty().then_some(())
    });
    for (method, index, ..) in faults() {
        let url = format!("http://{}/?[1-6]", checked(method, 80, "").address());
        let answers = curl(&lab.client, &["-H", "Connection: close", &url]);
        assert!(answers.contains(NAMES[index]), "{method}: {answers}");
    }
    let log = evenkeel.process.log();
    let changes = log.lines().filter(|line| line.contains(" -> "));
    assert_eq!(changes.count(), 6, "{log}");
}

#[test]
fn a_reload_adds_keeps_and_removes_checks() {
    let refused = |port: u16| {
        let mut service = checked("nat", port, "data-path");
        service.options["health"]["port"] = 9.into();
        service
    };
    let Some((lab, evenkeel)) = start(Arms::Two, 1, &[refused(80)]) else {
        return;
    };
    wait_for("all to be down", || {
        let all = backends(&lab, &evenkeel);
        all.values().all(|b| b["state"] == "down").then_some(())
    });
    let checks = |name: &str| {
        let all = backends(&lab, &evenkeel);
        let count = &all[&format!("{name}/web-1")]["check"]["checks"];
        count.as_u64()
    };
    let before = checks("nat-V4-tcp-80").expect("checked");
    let down_lines = || evenkeel.process.log().matches("up -> down").count();
    assert_eq!(down_lines(), 3);

    // Another service comes; what is known of the first one's backends stays.
    evenkeel.reload(
        &lab,
        1,
        &[refused(80), checked("nat", SECOND_PORT, "data-path")],
    );
    assert_eq!(not_up(&lab, &evenkeel).len(), 3);
    assert!(checks("nat-V4-tcp-80").expect("checked") >= before);
    wait_for("a check of the new service", || {
        (checks("nat-V4-tcp-8080")? > 0).then_some(())
    });

    // The first one is checked no more: its backends count as well.
    evenkeel.reload(
        &lab,
        1,
        &[web("nat", "rr"), checked("nat", SECOND_PORT, "data-path")],
    );
    assert_eq!(not_up(&lab, &evenkeel), [""; 0]);
    assert_eq!(checks("nat-V4-tcp-80"), None);
    assert_eq!(down_lines(), 3);
}

/// FullNAT's checks come from its local addresses, as its packets do.
#[test]
fn a_fullnat_backend_that_does_not_reach_the_local_addresses_is_found() {
    const LOCAL: &str = "10.0.0.200";
    let fullnat = |port, via| {
        let mut service = checked("nat", port, via);
        service.options["method"] = "fullnat".into();
        service.options["local_addresses"] = json!([LOCAL]);
        service
    };
    let services = [fullnat(80, "data-path"), fullnat(SECOND_PORT, "direct")];
    let Some((lab, evenkeel)) = start(Arms::Two, 1, &services) else {
        return;
    };
    wait_for("a good check of every backend", || {
        let all = backends(&lab, &evenkeel);
        let mut checks = all.values().map(|backend| &backend["check"]["answer"]);
        checks.all(|answer| answer == "HTTP 200").then_some(())
    });
    let lost = Instant::now();
    lab.backends[1].ip(&format!("route add unreachable {LOCAL}/32 table 100"));
    let name = services[0].name();
    wait_for("the backend to be taken out", || {
        (not_up(&lab, &evenkeel) == [format!("{name}/web-2")]).then_some(())
    });
    let (took, allowed) = (lost.elapsed(), INTERVAL * FALL + TIMEOUT);
    println!("fullnat: {took:.2?} of {allowed:?}");
    let direct = &backends(&lab, &evenkeel)[&format!("{}/web-2", services[1].name())];
    println!("direct: {}: {}", direct["state"], direct["check"]);
    assert_eq!(direct["state"], "up", "{direct}");
    // Looking takes a moment too.
    assert!(took <= allowed + INTERVAL, "{took:?}");
    let url = format!("http://{}/?[1-6]", services[0].address());
    let answers = curl(&lab.client, &["-H", "Connection: close", &url]);
    assert!(!answers.contains("web-2"), "{answers}");
    lab.backends[1].ip(&format!("route del unreachable {LOCAL}/32 table 100"));
    wait_for("it to be back", || {
        not_up(&lab, &evenkeel).is_empty().then_some(())
    });
    let answers = curl(&lab.client, &["-H", "Connection: close", &url]);
    assert!(answers.contains("web-2"), "{answers}");
}

/// Backends of the long test: addresses of one host.
const FIVE_THOUSAND: usize = 5000;

fn address(number: usize) -> String {
    format!("10.9.{}.{}", 1 + number / 250, 1 + number % 250)
}

/// Evenkeel's configuration with a service of so many backends, each checked every 2 s.
fn with_many(lab: &Lab, count: usize) -> String {
    let text = configuration(lab, 1, &[web("nat", "wlc")]);
    let mut whole: Value = toml::from_str(&text).expect("our own TOML");
    let backend = |number| json!({ "name": format!("b{number}"), "address": address(number) });
    whole["service"] = json!([{
        "name": "many",
        "listen": [format!("tcp:{}:81", Family::V4.vip("nat"))],
        "method": "nat",
        "scheduler": "wlc",
        "health": { "type": "tcp", "port": 80, "interval": "2s", "timeout": "1s", "fall": 3 },
        "backend": (0..count).map(backend).collect::<Vec<_>>(),
    }]);
    let addresses = whole["port"][0]["addresses"].as_array_mut();
    addresses.expect("addresses").push("10.9.0.2/16".into());
    toml::to_string(&whole).expect("TOML")
}

#[test]
#[ignore = "long: scripts/test --long"]
fn five_thousand_backends_are_checked_in_time() {
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    let add = |number| format!("address add {}/16 dev eth0\n", address(number));
    let batch: String = (0..FIVE_THOUSAND).map(add).collect();
    let file = lab.folder().join("addresses");
    std::fs::write(&file, batch).expect("a file");
    let file = file.to_str().expect("a path in UTF-8");
    let added = lab.backends[0].run("ip", &["-batch", file]);
    assert!(added.status.success(), "{added:?}");
    let evenkeel = Evenkeel::start_with(&lab, &with_many(&lab, FIVE_THOUSAND));
    let checks = || evenkeel.api().status()["management"]["checks"].clone();
    let count = |checks: &Value, key: &str| checks[key].as_u64().expect("a count");
    wait_for("every backend to be up", || {
        let status = evenkeel.api().status();
        let backends = status["services"][0]["backends"].as_array()?;
        let up = |backend: &&Value| {
            backend["state"] == "up" && backend["check"]["checks"].as_u64() > Some(0)
        };
        (backends.iter().filter(up).count() == FIVE_THOUSAND).then_some(())
    });
    let (before, begun) = (checks(), Instant::now());
    let wanted = count(&before, "started") + 10 * FIVE_THOUSAND as u64;
    wait_for("ten checks of each", || {
        (count(&checks(), "started") >= wanted).then_some(())
    });
    let (after, took) = (checks(), begun.elapsed());
    let more = |key: &str| count(&after, key) - count(&before, key);
    println!(
        "{} checks in {took:.2?}: {} late, {} left out, {} unjudged, {} packets lost; the latest {} ms after its time",
        more("started"),
        more("late"),
        more("skipped"),
        more("unjudged"),
        more("packets_lost"),
        after["latest_milliseconds"]
    );
    assert!(took < Duration::from_secs(22), "{took:?}");
    assert_eq!((more("late"), more("skipped")), (0, 0), "{after}");
    let worker = &evenkeel.api().status()["workers"][0];
    println!("worker 0: {worker}");
}
