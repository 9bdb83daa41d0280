//! Services on ranges of ports and over address prefixes, and clients that stay with a backend.

use std::collections::BTreeSet;

use crate::lab::balancer::{Evenkeel, configuration, web};
use crate::lab::web::{SECOND_PORT, curl};
use crate::lab::{Arms, Lab, METHODS, NAMES};

/// A lab in which everything runs, with the services changed by `change`: method, and its table.
fn start(workers: usize, change: impl Fn(&str, &mut toml::Table)) -> Option<(Lab, Evenkeel)> {
    let mut lab = Lab::new(Arms::One)?;
    lab.start_web();
    lab.start_unwrapping();
    let services = METHODS.map(|method| web(method, "rr"));
    let text = configuration(&lab, workers, &services);
    let mut whole: toml::Table = text.parse().expect("TOML");
    let tables = whole["service"].as_array_mut().expect("services");
    for (table, method) in tables.iter_mut().zip(METHODS) {
        change(method, table.as_table_mut().expect("a table"));
    }
    let evenkeel = Evenkeel::start_with(&lab, &toml::to_string(&whole).expect("TOML"));
    Some((lab, evenkeel))
}

/// The backends that answered, and the port each was asked at.
fn fetch(lab: &Lab, address: &str, count: usize) -> Vec<(String, String)> {
    let url = format!("http://{address}/?[1-{count}]");
    let answers = curl(&lab.client, &["-H", "Connection: close", &url]);
    let words = |line: &str| {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        (words[0].clone(), words[2].clone())
    };
    let answers: Vec<_> = answers.lines().map(words).collect();
    assert_eq!(answers.len(), count, "{address}");
    answers
}

fn vip(method: &str) -> String {
    crate::lab::Family::V4.vip(method)
}

#[test]
fn a_range_of_ports_and_a_prefix_reach_backends_by_every_method() {
    let listens = |method: &str, service: &mut toml::Table| {
        let mut listen = vec![format!("tcp:{}:80-{SECOND_PORT}", vip(method))];
        if method == "nat" {
            listen.push("tcp:203.0.113.0/24:80".to_owned());
        }
        service["listen"] = listen.into();
    };
    let Some((lab, _evenkeel)) = start(1, listens) else {
        return;
    };
    for method in METHODS {
        for port in [80, SECOND_PORT] {
            let answers = fetch(&lab, &format!("{}:{port}", vip(method)), 6);
            let names: BTreeSet<_> = answers.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, NAMES.into(), "{method}");
            let kept = |(_, at): &(String, String)| *at == port.to_string();
            assert!(answers.iter().all(kept), "{method}: {answers:?}");
        }
    }
    // Nobody has these addresses; they are routed to evenkeel.
    let route = format!(
        "route add 203.0.113.0/24 via {}",
        Arms::One.evenkeel(crate::lab::Family::V4)
    );
    lab.balancer.ip(&route);
    for address in ["203.0.113.1", "203.0.113.99", "203.0.113.254"] {
        assert_eq!(fetch(&lab, &format!("{address}:80"), 6).len(), 6);
    }
}

/// With two workers, so that most connections are not the template's worker's own.
#[test]
fn a_client_stays_with_its_backend_in_all_services_of_a_group() {
    let sticky = |_: &str, service: &mut toml::Table| {
        let persistence: toml::Table = "timeout = \"60s\"\ngroup = \"shop\"".parse().expect("TOML");
        service.insert("persistence".into(), persistence.into());
    };
    let Some((lab, _evenkeel)) = start(2, sticky) else {
        return;
    };
    let mut names = BTreeSet::new();
    for method in METHODS {
        let answers = fetch(&lab, &format!("{}:80", vip(method)), 20);
        names.extend(answers.into_iter().map(|(name, _)| name));
    }
    assert_eq!(names.len(), 1, "one client was sent to {names:?}");
}
