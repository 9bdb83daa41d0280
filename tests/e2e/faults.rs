//! The faults of docs/troubleshooting.md, brought about one by one: `status` or `trace` names each.

use serde_json::{Value, json};

use crate::lab::balancer::{Evenkeel, Service, configuration, web};
use crate::lab::process::{self, wait_for};
use crate::lab::tool::{self, TUN};
use crate::lab::web::SECOND_PORT;
use crate::lab::{Arms, Family, Lab, METHODS, NAMES};
use crate::methods::start;

/// Down at the first bad check, up at the first good one.
fn checked(method: &'static str) -> Service {
    let health = json!({
        "type": "tcp", "interval": "300ms", "timeout": "250ms", "fall": 1, "rise": 1, "jitter": 0,
    });
    Service {
        options: json!({ "health": health }),
        ..web(method, "rr")
    }
}

/// State and reason of a backend, as `status` shows them.
fn shown(lab: &Lab, evenkeel: &Evenkeel, service: &Service, backend: &str) -> String {
    let status = evenkeel.status(lab);
    let named = |list: &Value, name: &str| {
        let mut all = list.as_array().expect("a list").iter();
        all.find(|one| one["name"] == name).cloned()
    };
    let service = named(&status["services"], &service.name()).expect("the service");
    let backend = named(&service["backends"], backend).expect("the backend");
    let word = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
    format!("{}: {}", word("state"), word("reason"))
}

fn wait_for_state(lab: &Lab, evenkeel: &Evenkeel, service: &Service, backend: &str, state: &str) {
    let what = format!("{}/{backend} to be {state}", service.name());
    wait_for(&what, || {
        let shown = shown(lab, evenkeel, service, backend);
        shown.starts_with(state).then_some(())
    });
}

/// What `trace` says of a client's SYN to the service.
fn trace(lab: &Lab, evenkeel: &Evenkeel, service: &Service) -> String {
    let client = Family::V4.client();
    evenkeel.say(lab, &["trace", client, &service.address()])
}

/// Waits until `status` counts this token among `list`.
fn wait_for_count(lab: &Lab, evenkeel: &Evenkeel, list: &str, token: &str) -> Value {
    wait_for(&format!("{token} among the {list} of status"), || {
        let status = evenkeel.status(lab);
        let mut reasons = status[list].as_array()?.iter();
        reasons.find(|reason| reason["reason"] == token).cloned()
    })
}

#[test]
fn a_backend_that_answers_another_way_or_not_at_all_is_named() {
    let [nat, tunnel, direct] = METHODS.map(checked);
    let mut refusing = checked("nat");
    refusing.port = SECOND_PORT;
    refusing.options["health"]["port"] = 9.into();
    let services = [nat, tunnel, direct, refusing];
    let Some((lab, evenkeel)) = start(Arms::Two, 1, &services) else {
        return;
    };
    let [nat, tunnel, direct, refusing] = &services;
    for service in [nat, tunnel, direct] {
        for name in NAMES {
            wait_for_state(&lab, &evenkeel, service, name, "up");
        }
    }

    // NAT: the answers do not come back by evenkeel.
    lab.backends[2].ip("route del default table 100");
    lab.backends[2].ip("route add unreachable default table 100");
    wait_for_state(&lab, &evenkeel, nat, "web-3", "down");
    let reason = shown(&lab, &evenkeel, nat, "web-3");
    assert_eq!(reason, "down: tcp check: no answer to SYN within 250ms");

    // Tunnel: the backend's reverse path filter.
    lab.backends[1].sysctl("net/ipv4/conf/all/rp_filter", "1");
    lab.backends[1].sysctl(&format!("net/ipv4/conf/{TUN}/rp_filter"), "1");
    wait_for_state(&lab, &evenkeel, tunnel, "web-2", "down");
    let reason = shown(&lab, &evenkeel, tunnel, "web-2");
    assert_eq!(reason, "down: tcp check: no answer to SYN within 250ms");
    assert_eq!(shown(&lab, &evenkeel, nat, "web-2"), "up: ");

    // All backends are down.
    for name in NAMES {
        wait_for_state(&lab, &evenkeel, refusing, name, "down");
    }
    let said = trace(&lab, &evenkeel, refusing);
    assert!(said.contains("verdict    answer (no_backend)"), "{said}");
    for (name, address) in NAMES.iter().zip(Arms::Two.backends(Family::V4)) {
        // The third is still without its way back.
        let answer = match *name {
            "web-3" => "no answer to SYN within 250ms",
            _ => "connection refused",
        };
        let note = format!("backend {name} {address} is down: tcp check: {answer}");
        assert!(said.contains(&note), "{said}");
    }

    // The next hop is wrong: nobody has that address.
    let path = format!("/v1/services/{}/backends/ghost", direct.name());
    let ghost = "[[service.backend]]\nname = \"ghost\"\naddress = \"10.0.0.99\"\n";
    evenkeel.api().change("PUT", &path, ghost);
    wait_for_state(&lab, &evenkeel, direct, "ghost", "unreachable");

    // FullNAT has no local port left, here because it never had one.
    let mut fullnat = web("nat", "rr");
    fullnat.port = 81;
    fullnat.options = json!({ "method": "fullnat", "local_addresses": ["10.0.0.200"] });
    let more: Vec<Service> = services.iter().chain([&fullnat]).cloned().collect();
    evenkeel.reload(&lab, 1, &more);
    wait_for("the reason in trace", || {
        let said = trace(&lab, &evenkeel, &fullnat);
        said.contains("verdict    drop (pool_exhausted)")
            .then_some(())
    });
    let url = format!("http://{}/", fullnat.address());
    let refused = lab
        .client
        .run("curl", &["-s", "--connect-timeout", "1", &url]);
    assert!(!refused.status.success());
    wait_for_count(&lab, &evenkeel, "drops", "pool_exhausted");
}

#[test]
fn a_taken_address_a_short_mtu_and_a_full_table_are_named() {
    let services = METHODS.map(|method| web(method, "rr"));
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    lab.start_unwrapping();
    let text = configuration(&lab, 1, &services);
    let small = text.replace("connections = 10000", "connections = 1000");
    assert_ne!(small, text);
    let evenkeel = Evenkeel::start_with(&lab, &small);

    // Direct routing: a backend speaks for the VIP.
    let vip = Family::V4.vip("direct-routing");
    lab.backends[0].sysctl("net/ipv4/conf/all/arp_ignore", "0");
    lab.backends[0].sysctl("net/ipv4/conf/all/arp_announce", "0");
    wait_for("a conflict in status", || {
        lab.backends[0].ip("neigh flush dev eth0");
        let router = Arms::One.router(Family::V4);
        lab.backends[0].run("ping", &["-c1", "-W1", "-I", &vip, &router]);
        let status = evenkeel.status(&lab);
        let mut counts = status["counts"].as_array()?.iter();
        counts
            .find(|count| count["reason"] == "address_conflicts")
            .map(|_| ())
    });
    let told = evenkeel.say(&lab, &["events", "--past"]);
    assert!(
        told.contains(&format!("uses {vip}, which is ours")),
        "{told}"
    );
    lab.backends[0].sysctl("net/ipv4/conf/all/arp_ignore", "1");
    lab.backends[0].sysctl("net/ipv4/conf/all/arp_announce", "2");

    // Tunnel: what fills the client's MTU does not fit with another header.
    lab.client.ip("link set eth0 mtu 1520");
    lab.balancer.ip("link set to-client mtu 1520");
    // No larger than nginx takes: refused at once, curl might not send any of it.
    let file = lab.folder().join("upload");
    std::fs::write(&file, vec![b'x'; 900_000]).expect("a file");
    let file = format!("@{}", file.to_str().expect("a path in UTF-8"));
    let url = format!("http://{}/", services[1].address());
    lab.client.run(
        "curl",
        // Without it curl would wait to be asked for the rest.
        &[
            "-s",
            "--max-time",
            "3",
            "-H",
            "Expect:",
            "--data-binary",
            &file,
            &url,
        ],
    );
    let reason = wait_for_count(&lab, &evenkeel, "drops", "too_big");
    let explanation = reason["explanation"].as_str().expect("an explanation");
    assert!(explanation.contains("MTU"), "{reason}");

    // The table is full of connections that live.
    let log = lab.folder().join("hold.log");
    let address = services[0].address();
    let _holding = tool::begin(&lab.client, &["tcp-hold", &address, "2000", "60"], log);
    wait_for_count(&lab, &evenkeel, "drops", "table_full");
    let status = evenkeel.status(&lab);
    let worker = &status["workers"][0];
    let (connections, capacity) = (worker["connections"].as_u64(), worker["capacity"].as_u64());
    let (connections, capacity) = (connections.expect("a count"), capacity.expect("a count"));
    // Of the tables of both families.
    assert!(connections * 100 > capacity * 75, "{worker}");
}

/// A buffer takes a whole ordinary page, and many workers take many buffers.
#[test]
fn four_workers_start_without_huge_pages() {
    let services = [web("nat", "rr")];
    let Some(lab) = Lab::new(Arms::One) else {
        return;
    };
    let text = configuration(&lab, 4, &services);
    let descriptors = text.replace("mtu = 1520", "mtu = 1520\nrx_descriptors = 4096");
    assert_ne!(descriptors, text);
    let Some(mut evenkeel) = Evenkeel::start_without_huge_pages(&lab, &descriptors) else {
        return process::say_skipped("needs mount namespaces");
    };
    assert_eq!(
        evenkeel.status(&lab)["workers"].as_array().map(Vec::len),
        Some(4)
    );
    assert!(evenkeel.process.terminate().0.success());
}

#[test]
fn a_dead_gateway_and_missing_huge_pages_are_named() {
    let services = [web("nat", "rr")];
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    let text = configuration(&lab, 1, &services);
    let router = Arms::One.router(Family::V4);
    let wrong = text.replace(&format!("\"{router}\""), "\"192.0.2.77\"");
    assert_ne!(wrong, text);
    let Some(evenkeel) = Evenkeel::start_without_huge_pages(&lab, &wrong) else {
        return process::say_skipped("needs mount namespaces");
    };
    let status = evenkeel.status(&lab);
    let notes = status["notes"].as_array().expect("notes").iter();
    let mut notes = notes.filter_map(Value::as_str);
    assert!(
        notes.any(|note| note.starts_with("No huge pages: ")),
        "{status}"
    );

    let said = trace(&lab, &evenkeel, &services[0]);
    let client = Family::V4.client();
    let note = format!("the next hop back to {client} is not known: check gateway and routes");
    assert!(said.contains(&note), "{said}");
    let url = format!("http://{}/", services[0].address());
    let failed = lab
        .client
        .run("curl", &["-s", "--connect-timeout", "1", &url]);
    assert!(!failed.status.success());
    wait_for("the gateway among the events", || {
        let told = evenkeel.say(&lab, &["events", "--past"]);
        told.contains("next hop 192.0.2.77 does not answer")
            .then_some(())
    });
}
