//! Weights that follow what the backends' agents say.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::checks::backends;
use crate::lab::balancer::{Service, web};
use crate::lab::process::wait_for;
use crate::lab::web::{curl, sha256};
use crate::lab::{Arms, Family, Lab, NAMES, address, tool};
use crate::methods::start;

const AGENT: u16 = 9000;

fn service() -> Service {
    Service {
        weights: [4; 3],
        options: json!({ "feedback": { "interval": "1s", "agent_port": AGENT } }),
        ..web("nat", "wrr")
    }
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
    let url = format!("http://{}/?[1-{count}]", service().address());
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
    let Some((mut lab, evenkeel)) = start(Arms::Two, 1, &[service()]) else {
        return;
    };
    for (index, name) in NAMES.iter().enumerate() {
        say(&lab, name, "up 100%\n");
        let at = &Arms::Two.backends(Family::V4)[index];
        let at = address::with_port(at, AGENT);
        let file = lab.folder().join(format!("agent-{name}"));
        let words = ["agent", &at, file.to_str().expect("a path in UTF-8")];
        let log = lab.folder().join(format!("{name}-agent.log"));
        let agent = tool::start(&lab.backends[index], &words, log);
        lab.keep(agent);
    }
    let seen = |name: &str| -> Value {
        let all = backends(&lab, &evenkeel);
        all[&format!("{}/{name}", service().name())].clone()
    };
    let usual = || {
        let as_usual = |name: &str| {
            let backend = seen(name);
            backend["effective_weight"] == 4 && backend["faults"].is_null()
        };
        NAMES.iter().all(|name| as_usual(name)).then_some(())
    };
    wait_for("every agent to be heard", usual);
    let equal = shares(&lab, 90);
    assert!(equal.values().all(|share| *share == 30), "{equal:?}");

    // One download from each backend goes on all the time.
    let url = format!("http://{}/large", service().address());
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
    println!("before {equal:?}, slowed {slowed:?}; {fault}");
    assert!((9..=11).contains(&slowed["web-1"]), "{slowed:?}");
    assert!(slowed["web-2"].abs_diff(slowed["web-3"]) <= 1, "{slowed:?}");
    assert_eq!(live(), [1; 3], "nobody has moved");

    say(&lab, "web-1", "100%\n");
    say(&lab, "web-2", "100%\n");
    wait_for("the weights to come back", usual);
    let again = shares(&lab, 90);
    assert!(again.values().all(|share| *share == 30), "{again:?}");

    for (copy, download) in copies.iter().zip(&mut downloads) {
        let status = wait_for("the end of a download", || download.exited());
        assert!(status.success(), "{status}: {}", download.log());
        assert_eq!(sha256(copy), sha256(&lab.folder().join("large")));
    }
}
