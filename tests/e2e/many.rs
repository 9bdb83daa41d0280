//! Many connections at once through real kernels on both sides. These take minutes:
//! `scripts/test --long` runs them.

use std::time::{Duration, Instant};

use crate::lab::balancer::{Evenkeel, Service, configuration, web};
use crate::lab::process::Running;
use crate::lab::{Arms, Family, Lab, NAMES, tool};

const PORT: u16 = 7777;

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

#[test]
#[ignore = "long: scripts/test --long"]
fn a_killed_balancer_that_comes_back_breaks_no_connection_under_mh() {
    for method in ["tunnel", "direct-routing", "nat"] {
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
}
