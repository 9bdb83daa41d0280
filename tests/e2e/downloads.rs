//! Large answers arrive whole: one, several on a kept connection, and many at once.

use std::path::Path;

use crate::lab::balancer::{Evenkeel, web};
use crate::lab::downloads::Downloads;
use crate::lab::process::wait_for;
use crate::lab::web::{SLOW, curl, sha256};
use crate::lab::{Arms, Lab, METHODS};
use crate::methods::start;

const AT_ONCE: usize = 50;

/// Fetches `url` with `options` into `count` files and compares each with the original.
fn download(lab: &Lab, options: &[&str], url: &str, count: usize) -> String {
    let copies = lab.folder().join("copies");
    std::fs::create_dir_all(&copies).expect("a folder for the copies");
    let pattern = format!("{}/#1", copies.display());
    let url = format!("{url}?[1-{count}]");
    let said = curl(
        &lab.client,
        &[options, &["--output", &pattern, &url]].concat(),
    );
    let expected = sha256(&lab.folder().join("large"));
    for number in 1..=count {
        let copy = copies.join(number.to_string());
        assert_eq!(sha256(Path::new(&copy)), expected, "copy {number} of {url}");
    }
    std::fs::remove_dir_all(&copies).expect("the copies");
    said
}

fn in_each_method(check: impl Fn(&Lab, &str)) {
    let services = METHODS.map(|method| web(method, "rr"));
    let Some((lab, _evenkeel)) = start(Arms::One, 1, &services) else {
        return;
    };
    for service in &services {
        check(&lab, &format!("http://{}/large", service.address()));
    }
}

#[test]
fn a_large_answer_arrives_whole() {
    in_each_method(|lab, url| {
        download(lab, &[], url, 1);
    });
}

#[test]
fn large_answers_arrive_whole_on_a_kept_connection() {
    in_each_method(|lab, url| {
        let connects = download(lab, &["--write-out", "%{num_connects}\n"], url, 3);
        assert_eq!(connects, "1\n0\n0\n", "one connection for all three");
    });
}

#[test]
fn large_answers_arrive_whole_fifty_at_once() {
    in_each_method(|lab, url| {
        let fifty = AT_ONCE.to_string();
        let options = [
            "--parallel",
            "--parallel-immediate",
            "--parallel-max",
            &fifty,
        ];
        download(lab, &options, url, AT_ONCE);
    });
}

/// A client that only receives has nothing to say to an evenkeel that has lost its table: all that this
/// sees of the flow is what the backend sends.
#[test]
fn downloads_by_nat_go_on_after_kill_9_and_a_restart_under_mh() {
    let service = web("nat", "mh");
    let services = std::slice::from_ref(&service);
    let Some((lab, mut evenkeel)) = start(Arms::One, 1, services) else {
        return;
    };
    let mut downloads = Downloads::begin(&lab, services, 20, 4);
    // For a second: no client has a request to send again.
    wait_for("downloads to be under way", || {
        let status = evenkeel.status(&lab);
        let sent = status["services"][0]["out_bytes"].as_u64().expect("bytes");
        (sent > 20 * SLOW as u64).then_some(())
    });
    evenkeel.process.signal("KILL");
    wait_for("its end", || evenkeel.process.exited());
    let again = Evenkeel::start(&lab, 1, services);
    downloads.assert_running();
    downloads.assert_whole();
    let status = again.status(&lab);
    let mut counts = status["counts"].as_array().expect("a list").iter();
    assert!(counts.any(|row| row["reason"] == "keepalives"), "{status}");
}
