//! Weights that follow what the backends' agents say.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::checks::backends;
use crate::lab::balancer::{Evenkeel, Service, web};
use crate::lab::process::wait_for;
use crate::lab::web::{curl, sha256};
use crate::lab::{Arms, Family, Lab, NAMES, address, tool};
use crate::methods::start;

const AGENT: u16 = 9000;

fn service(interval: &str) -> Service {
    Service {
        weights: [4; 3],
        options: json!({ "feedback": { "interval": interval, "agent_port": AGENT } }),
        ..web("nat", "wrr")
    }
}

/// An agent on each backend, which says that all is well.
fn start_agents(lab: &mut Lab) {
    for (index, name) in NAMES.iter().enumerate() {
        say(lab, name, "up 100%\n");
        let at = &Arms::Two.backends(Family::V4)[index];
        let at = address::with_port(at, AGENT);
        let file = lab.folder().join(format!("agent-{name}"));
        let words = ["agent", &at, file.to_str().expect("a path in UTF-8")];
        let log = lab.folder().join(format!("{name}-agent.log"));
        let agent = tool::start(&lab.backends[index], &words, log);
        lab.keep(agent);
    }
}

/// What status says of the backend.
fn seen(lab: &Lab, evenkeel: &Evenkeel, name: &str) -> Value {
    let all = backends(lab, evenkeel);
    all[&format!("{}/{name}", service("1s").name())].clone()
}

fn say(lab: &Lab, name: &str, answer: &str) {
    // At once, so that no asker meets half an answer.
    let file = lab.folder().join(format!("agent-{name}"));
    let new = file.with_extension("new");
    fs::write(&new, answer).expect("the agent's answer");
    fs::rename(new, file).expect("the agent's answer");
}

/// Who answers so many fetches, each on a new connection.
fn shares(lab: &Lab, count: usize) -> BTreeMap<String, usize> {
    let url = format!("http://{}/?[1-{count}]", service("1s").address());
    let answers = curl(&lab.client, &["-H", "Connection: close", &url]);
    let mut shares = BTreeMap::new();
    for line in answers.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        *shares.entry(name.to_owned()).or_default() += 1;
    }
    shares
}

#[test]
fn new_connections_leave_a_slowed_backend_and_come_back_and_no_other_moves() {
    let Some((mut lab, evenkeel)) = start(Arms::Two, 1, &[service("1s")]) else {
        return;
    };
    start_agents(&mut lab);
    let seen = |name: &str| seen(&lab, &evenkeel, name);
    let usual = || {
        let as_usual = |name: &str| {
            let backend = seen(name);
            backend["effective_weight"] == 4 && backend["faults"].is_null()
        };
        NAMES.iter().all(|name| as_usual(name)).then_some(())
    };
    // Response times may differ for a while, and shares with them, where the machine is busy.
    let equal = || {
        wait_for("the weights to be as usual", usual);
        let shares = shares(&lab, 90);
        shares.values().all(|share| *share == 30).then_some(shares)
    };
    let before = wait_for("equal shares", equal);

    // One download from each backend goes on all the time.
    let url = format!("http://{}/large", service("1s").address());
    let copies: Vec<_> = NAMES
        .iter()
        .map(|n| lab.folder().join(format!("copy-{n}")))
        .collect();
    let mut downloads = Vec::new();
    for copy in &copies {
        let to = copy.to_str().expect("a path in UTF-8");
        let words = ["-sSf", "--limit-rate", "3M", "-o", to, &url];
        let log = copy.with_extension("log");
        downloads.push(lab.client.start("curl", &words, log));
        wait_for("the download to begin", || {
            fs::metadata(copy).ok().filter(|copy| copy.len() > 0)
        });
    }
    let live = || NAMES.map(|name| seen(name)["active"].as_u64().expect("a count"));
    assert_eq!(live(), [1; 3]);

    say(&lab, "web-1", "25% # busy\n");
    say(&lab, "web-2", "nan%\n");
    wait_for("the weight to follow", || {
        (seen("web-1")["reason"] == "the agent said 25%").then_some(())
    });
    let fault = wait_for("the bad agent to be named", || {
        seen("web-2")["faults"][0].as_str().map(str::to_owned)
    });
    assert!(fault.contains("`nan%`"), "{fault}");
    let slowed = shares(&lab, 90);
    println!("before {before:?}, slowed {slowed:?}; {fault}");
    assert!((9..=11).contains(&slowed["web-1"]), "{slowed:?}");
    assert!(slowed["web-2"].abs_diff(slowed["web-3"]) <= 1, "{slowed:?}");
    // A slow machine may be done with some by now.
    wait_for("each download to live where it began", || {
        let mut running = downloads.iter_mut();
        let at_home = |live: u64| {
            let download = running.next().expect("one for each backend");
            live == u64::from(download.exited().is_none())
        };
        live().into_iter().all(at_home).then_some(())
    });

    say(&lab, "web-1", "100%\n");
    say(&lab, "web-2", "100%\n");
    wait_for("equal shares to come back", equal);

    for (copy, download) in copies.iter().zip(&mut downloads) {
        let status = wait_for("the end of a download", || download.exited());
        assert!(status.success(), "{status}: {}", download.log());
        assert_eq!(sha256(copy), sha256(&lab.folder().join("large")));
    }
}

/// What is waited for comes long before the first interval is over.
#[test]
fn the_first_questions_and_steps_do_not_wait_for_an_interval() {
    let Some((mut lab, evenkeel)) = start(Arms::Two, 1, &[service("60s")]) else {
        return;
    };
    start_agents(&mut lab);
    say(&lab, "web-1", "25% # busy\n");
    wait_for("the weight to follow", || {
        let reason = &seen(&lab, &evenkeel, "web-1")["reason"];
        (*reason == "the agent said 25%").then_some(())
    });
    let slowed = shares(&lab, 90);
    assert!((9..=11).contains(&slowed["web-1"]), "{slowed:?}");
}
