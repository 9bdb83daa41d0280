//! `kill -TERM` ends evenkeel soon, with nothing left behind and a last balance that adds up.

use std::time::Duration;

use crate::lab::Arms;
use crate::lab::balancer::{TAP, web};
use crate::lab::web::curl;
use crate::methods::start;

const WITHIN: Duration = Duration::from_secs(1);

#[test]
fn sigterm_ends_it_within_a_second() {
    let service = web("nat", "rr");
    let url = format!("http://{}/?[1-30]", service.address());
    let Some((lab, mut evenkeel)) = start(Arms::One, 1, &[service]) else {
        return;
    };
    curl(&lab.client, &[&url]);
    let (status, took) = evenkeel.process.terminate();
    assert!(status.success(), "{status}");
    assert!(took < WITHIN, "it took {took:?}");
    let log = evenkeel.process.log();
    let balance = log.lines().rfind(|line| line.contains(" received + "));
    let balance = balance.unwrap_or_else(|| panic!("no last balance in:\n{log}"));
    let (came, went) = balance.split_once(" = ").expect("two sides");
    // Thirty requests and their answers, both ways through NAT.
    assert!(sum(came) >= 30 * 2, "{balance}");
    assert_eq!(sum(came), sum(went), "{balance}");
    let device = lab.balancer.try_ip(&format!("link show {TAP}"));
    assert_eq!(device, None, "the port's device is still there");
    assert!(
        !lab.folder().join("evenkeel.sock").exists(),
        "the socket is still there"
    );
}

/// The sum of the counts in one side of a balance such as `7 received + 2 generated`.
fn sum(side: &str) -> u64 {
    let side = side.rsplit(": ").next().unwrap_or(side);
    let counts = side
        .split(" + ")
        .map(|part| part.split(' ').next().expect("a count"));
    counts
        .map(|count| count.parse::<u64>().expect("a count"))
        .sum()
}
