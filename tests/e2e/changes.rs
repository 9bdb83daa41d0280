//! Reloads and weight changes while downloads run and new clients come: nothing is lost.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use serde_json::Value;

use crate::lab::balancer::{Evenkeel, Service, configuration, web};
use crate::lab::downloads::Downloads;
use crate::lab::process::{Running, wait_for};
use crate::lab::{Arms, Lab, METHODS};

/// How much of it: a little in every run, all of it in `scripts/test --long`.
struct Size {
    /// In each method.
    downloads: usize,
    /// That each download takes: longer than the changes.
    seconds: u64,
    /// Reloads, and as many weight changes.
    changes: u64,
}

/// Programs that fetch small answers, each on a new connection, one after the other.
struct Clients {
    curls: Vec<Running>,
    began: Instant,
}

impl Clients {
    const EACH: usize = 200_000;

    fn begin(lab: &Lab, services: &[Service]) -> Clients {
        let begin = |service: &Service| {
            let url = format!("http://{}/healthz?[1-{}]", service.address(), Self::EACH);
            let words = [
                "-sS",
                "--fail",
                "-H",
                "Connection: close",
                "-o",
                "/dev/null",
                &url,
            ];
            let log = lab.folder().join(format!("clients-{}", service.name()));
            lab.client.start("curl", &words, log)
        };
        Clients {
            curls: services.iter().map(begin).collect(),
            began: Instant::now(),
        }
    }

    /// Ends them; none has met an error. curl says of each and goes on with the next.
    fn end(mut self) {
        for curl in &mut self.curls {
            let failed = curl.exited().is_some_and(|status| !status.success());
            assert!(!failed && curl.log().is_empty(), "{}", curl.log());
        }
        println!("clients came for {:?}", self.began.elapsed());
    }
}

fn count(status: &Value, list: &str) -> BTreeMap<String, u64> {
    let reasons = status[list].as_array().expect("a list").iter();
    let pair = |reason: &Value| {
        let word = reason["reason"].as_str().expect("a token").to_owned();
        (word, reason["count"].as_u64().expect("a count"))
    };
    reasons.map(pair).collect()
}

fn new_connections(status: &Value) -> u64 {
    let services = status["services"].as_array().expect("services").iter();
    let of = |service: &Value| service["connections"].as_u64().expect("a count");
    services.map(of).sum()
}

/// All backends can be sent to, with the weights that are configured.
fn are_up(status: &Value) -> bool {
    let services = status["services"].as_array().expect("services").iter();
    let mut backends = services.flat_map(|service| service["backends"].as_array().expect("a list"));
    backends
        .all(|backend| backend["state"] == "up" && backend["effective_weight"] == backend["weight"])
}

/// Resident memory in KiB.
fn memory(evenkeel: &Evenkeel) -> u64 {
    let path = format!("/proc/{}/status", evenkeel.process.id());
    let status = fs::read_to_string(path).expect("a running program");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a size")
}

fn changes(size: &Size) {
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    lab.start_unwrapping();
    let services = METHODS.map(|method| web(method, "wrr"));
    let other: Vec<Service> = services
        .iter()
        .map(|service| Service {
            weights: [3, 2, 1],
            ..service.clone()
        })
        .collect();
    let texts = [&services[..], &other].map(|services| configuration(&lab, 1, services));
    let mut evenkeel = Evenkeel::start_with(&lab, &texts[0]);
    let mut api = evenkeel.api();
    wait_for("every backend's next hop", || {
        are_up(&api.status()).then_some(())
    });
    let mut downloads = Downloads::begin(&lab, &services, size.downloads, size.seconds);
    let clients = Clients::begin(&lab, &services);
    let all = (size.downloads * METHODS.len()) as u64;
    wait_for("all downloads to run", || {
        (new_connections(&api.status()) > all).then_some(())
    });
    let before = api.status();
    // What the first changes need stays for the later ones.
    let mut at_first = 0;
    let begun = Instant::now();
    for round in 0..size.changes {
        let text = &texts[(round % 2) as usize];
        api.change("PUT", "/v1/config", text);
        let service = &services[(round % 3) as usize];
        let path = format!("/v1/services/{}/backends/web-1", service.name());
        let weight = format!("{{\"weight\": {}}}", 4 + round % 5);
        api.change("PATCH", &path, &weight);
        if round == size.changes / 10 {
            at_first = memory(&evenkeel);
        }
    }
    let took = begun.elapsed();
    let after = api.status();
    let rate = (new_connections(&after) - new_connections(&before)) as f64 / took.as_secs_f64();
    println!(
        "{0} reloads and {0} weight changes in {took:.2?}; {all} downloads; {rate:.0} new connections a second",
        size.changes
    );
    downloads.assert_running();
    clients.end();
    let grown = memory(&evenkeel).saturating_sub(at_first);
    println!("memory: {at_first} KiB after a tenth of them, {grown} KiB more at the end");
    assert!(grown < 16 * 1024, "{grown} KiB");

    wait_for("the last change to be in force", || {
        are_up(&api.status()).then_some(())
    });
    let generation = |status: &Value| status["generation"].as_u64().expect("a number");
    assert!(generation(&after) > generation(&before));
    wait_for("every old snapshot to be back", || {
        let status = api.status();
        let workers = status["workers"].as_array()?.iter();
        let mut each = workers.map(|w| w["snapshots_sent"] == w["snapshots_retired"]);
        each.all(|is_back| is_back).then_some(())
    });
    let (mut lost, was) = (count(&after, "drops"), count(&before, "drops"));
    for (reason, count) in &mut lost {
        *count -= was.get(reason).copied().unwrap_or(0);
    }
    lost.retain(|_, count| *count > 0);
    // The switch floods what it does not know; and the TAP's own losses are its own.
    let of_the_lab = lost.remove("foreign_mac");
    println!("foreign frames: {of_the_lab:?}; ports: {}", after["ports"]);
    assert!(lost.is_empty(), "{lost:?}");
    downloads.assert_whole();
    let (status, _) = evenkeel.process.terminate();
    assert!(status.success(), "{status}: the balance adds up");
}

#[test]
fn reloads_and_weight_changes_lose_nothing() {
    changes(&Size {
        downloads: 10,
        seconds: 8,
        changes: 100,
    });
}

#[test]
#[ignore = "long: scripts/test --long"]
fn a_thousand_reloads_and_weight_changes_lose_nothing() {
    changes(&Size {
        downloads: 67,
        seconds: 120,
        changes: 1000,
    });
}
