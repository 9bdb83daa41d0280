//! Many connections at once through real kernels on both sides. These take minutes:
//! `scripts/test --long` runs them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::balancer::{Evenkeel, Service, configuration, web};
use crate::lab::process::Running;
use crate::lab::{Arms, Family, Lab, NAMES, tool};

const PORT: u16 = 7777;

/// Four workers whose receive queues a card in software fills by `hash`; `count` connections through
/// `method` all carry data both ways.
fn through_four_workers(method: &'static str, hash: &str, count: usize, seconds: u64) {
    let Some(mut lab) = Lab::new(Arms::Two) else {
        return;
    };
    for (at, name) in NAMES.iter().enumerate() {
        let log = lab.folder().join(format!("{name}-tcp-echo.log"));
        let echo = tool::start(&lab.backends[at], &["tcp-echo", &PORT.to_string()], log);
        lab.keep(echo);
    }
    let folder = lab.folder().to_str().expect("a path in UTF-8").to_owned();
    let log = lab.folder().join("feeder.log");
    let feeder = tool::feeder(&lab.balancer, &["4", hash, &folder, "ek0", "ek1"], log);
    lab.keep(feeder);
    let options = match method {
        "fullnat" => json!({ "method": method, "local_addresses": ["10.0.0.200", "10.0.0.201"] }),
        _ => json!({}),
    };
    let service = Service {
        port: PORT,
        options,
        ..web("nat", "rr")
    };
    let mut text = configuration(&lab, 4, &[service]).replace("mtu = 1520", "rss = \"assume\"");
    for n in 0..2 {
        let tap = format!("net_tap{n},iface=ek{n}");
        let memif = format!("net_memif{n},role=client,socket={folder}/memif{n},socket-abstract=no");
        assert!(text.contains(&tap), "{text}");
        text = text.replace(&tap, &memif);
    }
    let evenkeel = Evenkeel::start_with(&lab, &text);
    ends_well(hold(&lab, "nat", count, seconds), count);
    let status = evenkeel.status(&lab);
    let sum = |rows: &Value| -> u64 {
        let rows = rows.as_array().expect("a list").iter();
        rows.filter_map(|row| row["count"].as_u64()).sum()
    };
    let workers = status["workers"].as_array().expect("a list");
    let received = workers.iter().map(|worker| worker["received"].as_u64());
    let received: u64 = received.flatten().sum();
    let handed = sum(&status["handed_over"]);
    println!(
        "{method}, queues by {hash}: {count} of {count} connections; {received} packets received, {handed} handed over ({} %)",
        handed * 100 / received.max(1)
    );
    for port in status["ports"].as_array().expect("a list") {
        let queues = port["queues"].as_str().unwrap_or_default();
        println!("  port {}: {queues}", port["name"]);
        match hash {
            "random" => assert!(queues.contains("other queues"), "{queues}"),
            _ => assert!(queues.starts_with("proven for IPv4 TCP"), "{queues}"),
        }
    }
    for worker in workers {
        let connections = worker["connections"].as_u64().unwrap_or_default();
        let share = count as u64 / 4;
        assert!(
            connections > share / 2,
            "worker with {connections}: {workers:?}"
        );
    }
    match hash {
        "random" => assert!(handed > received / 2, "{handed} of {received}"),
        _ => assert_eq!(handed, 0, "{status}"),
    }
}

#[test]
fn a_card_that_hashes_as_asked_is_found_out_and_nothing_is_handed_over() {
    through_four_workers("nat", "source", 400, 3);
}

#[test]
#[ignore = "long: scripts/test --long"]
fn two_thousand_connections_through_four_workers_with_rss_and_without() {
    for method in ["nat", "fullnat"] {
        for hash in ["source", "random"] {
            through_four_workers(method, hash, 2000, 5);
        }
    }
}

/// A lab whose backends echo TCP, and the configuration of one service on that port.
fn lab(method: &'static str, scheduler: &'static str, workers: usize) -> Option<(Lab, String)> {
    let mut lab = Lab::new(Arms::One)?;
    lab.start_unwrapping();
    for (at, name) in NAMES.iter().enumerate() {
        let log = lab.folder().join(format!("{name}-tcp-echo.log"));
        let echo = tool::start(&lab.backends[at], &["tcp-echo", &PORT.to_string()], log);
        lab.keep(echo);
    }
    let service = Service {
        port: PORT,
        ..web(method, scheduler)
    };
    let text = configuration(&lab, workers, &[service]);
    Some((lab, text))
}

fn hold(lab: &Lab, method: &str, count: usize, seconds: u64) -> Running {
    let address = format!("{}:{PORT}", Family::V4.vip(method));
    let (count, seconds) = (count.to_string(), seconds.to_string());
    let arguments = ["tcp-hold", &address, &count, &seconds];
    tool::start(&lab.client, &arguments, lab.folder().join("hold.log"))
}

fn ends_well(mut client: Running, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(180);
    let status = loop {
        if let Some(status) = client.exited() {
            break status;
        }
        assert!(Instant::now() < deadline, "{}", client.log());
        std::thread::sleep(Duration::from_millis(100));
    };
    let log = client.log();
    assert!(status.success(), "{log}");
    let line = log.lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with(&format!("held {count} ")), "{line}");
    println!("{line}");
}

/// The TAP's queues are chosen by the kernel, which knows nothing of owners.
#[test]
#[ignore = "long: scripts/test --long"]
fn two_thousand_connections_carry_data_both_ways_on_many_workers() {
    let Some((lab, text)) = lab("nat", "rr", 4) else {
        return;
    };
    let evenkeel = Evenkeel::start_with(&lab, &text);
    let client = hold(&lab, "nat", 2000, 5);
    ends_well(client, 2000);
    let workers = evenkeel.status(&lab)["workers"].clone();
    println!("nat: 2000 of 2000 connections; workers: {workers}");
}

/// 1,000 connections under mh live through kill -9 and a restart.
fn killed(method: &'static str) {
    let Some((lab, text)) = lab(method, "mh", 1) else {
        return;
    };
    let mut evenkeel = Evenkeel::start_with(&lab, &text);
    let client = hold(&lab, method, 1000, 20);
    evenkeel.process.signal("KILL");
    let deadline = Instant::now() + Duration::from_secs(10);
    while evenkeel.process.exited().is_none() {
        assert!(Instant::now() < deadline, "it does not die");
        std::thread::sleep(Duration::from_millis(10));
    }
    let _again = Evenkeel::start_with(&lab, &text);
    ends_well(client, 1000);
    println!("{method}: 1000 of 1000 live connections survived kill -9");
}

#[test]
#[ignore = "long: scripts/test --long"]
fn a_killed_balancer_that_comes_back_breaks_no_connection_by_tunnel() {
    killed("tunnel");
}

#[test]
#[ignore = "long: scripts/test --long"]
fn a_killed_balancer_that_comes_back_breaks_no_connection_by_direct_routing() {
    killed("direct-routing");
}

#[test]
#[ignore = "long: scripts/test --long"]
fn a_killed_balancer_that_comes_back_breaks_no_connection_by_nat() {
    killed("nat");
}
