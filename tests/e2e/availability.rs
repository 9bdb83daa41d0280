//! Quorum with hysteresis, the sorry server, hooks, inhibit and slow start, while a download goes on.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::checks::backends;
use crate::lab::balancer::{Evenkeel, Service, web};
use crate::lab::process::wait_for;
use crate::lab::web::{SECOND_PORT, curl, sha256};
use crate::lab::{Arms, Family, Lab, NAMES};

/// A service whose backends are well while a file of their name is there.
fn service(lab: &Lab) -> Service {
    let folder = lab.folder().display();
    let script = |text: String| json!(["/bin/sh", "-c", text]);
    let tell = "echo $EVENKEEL_EVENT $EVENKEEL_BACKEND $EVENKEEL_OLD $EVENKEEL_NEW";
    Service {
        options: json!({
            "health": {
                "type": "script",
                "command": script(format!("test -e {folder}/well-$EVENKEEL_BACKEND")),
                "interval": "200ms",
                "fall": 1,
                "rise": 1,
            },
            "quorum": 2,
            "quorum_hysteresis": 1,
            "sorry_server": {
                "address": Arms::Two.backends(Family::V4)[0],
                "port": SECOND_PORT,
            },
            "inhibit": true,
            "slow_start": "4s",
            "on_change": script(format!("{tell} >> {folder}/told")),
        }),
        weights: [10; 3],
        ..web("nat", "wrr")
    }
}

/// The ports of the backends that answer six fetches, each once.
fn ports(lab: &Lab, service: &Service) -> Vec<String> {
    let url = format!("http://{}/?[1-6]", service.address());
    let answers = curl(&lab.client, &["-H", "Connection: close", &url]);
    let port = |line: &str| line.rsplit(' ').next().unwrap_or_default().to_owned();
    let mut ports: Vec<String> = answers.lines().map(port).collect();
    ports.dedup();
    ports
}

fn file(lab: &Lab, name: &str) -> PathBuf {
    lab.folder().join(format!("well-{name}"))
}

fn set_well(lab: &Lab, name: &str, well: bool) {
    match well {
        true => fs::write(file(lab, name), "").expect("a file"),
        false => fs::remove_file(file(lab, name)).expect("a file less"),
    }
}

fn wait_for_states(lab: &Lab, evenkeel: &Evenkeel, service: &Service, states: [&str; 3]) {
    wait_for(&format!("{states:?}"), || {
        let all = backends(lab, evenkeel);
        let state = |name: &str| all[&format!("{}/{name}", service.name())]["state"].clone();
        (NAMES.map(state) == states.map(Value::from)).then_some(())
    });
}

fn quorum(lab: &Lab, evenkeel: &Evenkeel) -> Value {
    evenkeel.status(lab)["services"][0]["quorum"].clone()
}

#[test]
fn the_sorry_server_answers_from_the_loss_of_the_quorum_until_it_is_well_met() {
    let Some(mut lab) = Lab::new(Arms::Two) else {
        return;
    };
    lab.start_web();
    for name in NAMES {
        set_well(&lab, name, true);
    }
    let service = service(&lab);
    let evenkeel = Evenkeel::start(&lab, 1, std::slice::from_ref(&service));
    wait_for_states(&lab, &evenkeel, &service, ["up"; 3]);
    assert_eq!(ports(&lab, &service), ["80"]);

    // Begun before anything happens, it goes on through everything that follows.
    let copy = lab.folder().join("copy");
    let url = format!("http://{}/large", service.address());
    let limited = ["-sSf", "--limit-rate", "5M", "-o"];
    let to = [copy.to_str().expect("a path in UTF-8"), &url];
    let log = lab.folder().join("download.log");
    let mut download = lab.client.start("curl", &[&limited[..], &to].concat(), log);
    wait_for("the download to begin", || {
        fs::metadata(&copy).ok().filter(|copy| copy.len() > 0)
    });

    // Lost below 2 - 1, met again from 2 + 1 on.
    set_well(&lab, "web-2", false);
    wait_for_states(&lab, &evenkeel, &service, ["up", "down", "up"]);
    set_well(&lab, "web-3", false);
    wait_for_states(&lab, &evenkeel, &service, ["up", "down", "down"]);
    let met = json!({"backends": 2, "hysteresis": 1, "up": 1, "met": true});
    assert_eq!(quorum(&lab, &evenkeel), met);
    assert_eq!(ports(&lab, &service), ["80"]);
    set_well(&lab, "web-1", false);
    wait_for_states(&lab, &evenkeel, &service, ["down"; 3]);
    let lost = json!({"backends": 2, "hysteresis": 1, "up": 0, "met": false});
    assert_eq!(quorum(&lab, &evenkeel), lost);
    assert_eq!(ports(&lab, &service), [SECOND_PORT.to_string()]);
    set_well(&lab, "web-1", true);
    wait_for_states(&lab, &evenkeel, &service, ["up", "down", "down"]);
    set_well(&lab, "web-2", true);
    wait_for_states(&lab, &evenkeel, &service, ["up", "up", "down"]);
    assert_eq!(ports(&lab, &service), [SECOND_PORT.to_string()]);
    set_well(&lab, "web-3", true);
    // The last one to come back begins slowly, and then all are as configured.
    let reason = |name: &str| {
        let all = backends(&lab, &evenkeel);
        all[&format!("{}/{name}", service.name())]["reason"].clone()
    };
    wait_for("the slow start to show", || {
        let slow = reason("web-3");
        let why = slow.as_str()?;
        why.starts_with("slow start, at ").then_some(())
    });
    wait_for_states(&lab, &evenkeel, &service, ["up"; 3]);
    assert_eq!(ports(&lab, &service), ["80"]);

    wait_for("the end of the slow start", || {
        NAMES
            .iter()
            .all(|name| reason(name).is_null())
            .then_some(())
    });

    let told = wait_for("eight changes to be told", || {
        let told = fs::read_to_string(lab.folder().join("told")).ok()?;
        (told.lines().count() >= 8).then_some(told)
    });
    let expected = [
        "backend web-2 up down",
        "backend web-3 up down",
        "backend web-1 up down",
        "quorum met lost",
        "backend web-1 down up",
        "backend web-2 down up",
        "backend web-3 down up",
        "quorum lost met",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);

    let status = wait_for("the end of the download", || download.exited());
    assert!(status.success(), "{status}: {}", download.log());
    assert_eq!(sha256(&copy), sha256(&lab.folder().join("large")));
}
