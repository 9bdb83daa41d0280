//! `evenkeel capture` and `trace` beside real traffic, read by tshark.

use serde_json::{Value, json};

use crate::checks::backends;
use crate::lab::balancer::{Evenkeel, Service, web};
use crate::lab::process::{Running, wait_for};
use crate::lab::web::curl;
use crate::lab::{Arms, Family, Lab, METHODS};
use crate::methods::start;

/// What tshark makes of a capture: the named fields of each frame.
fn read(lab: &Lab, file: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let named: Vec<&str> = fields.iter().flat_map(|field| ["-e", field]).collect();
    let words = [
        &["-r", file, "-n", "-T", "fields", "-E", "separator=|"][..],
        &named,
    ];
    let output = lab.client.run("tshark", &words.concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tshark: {errors}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = |line: &str| line.split('|').map(str::to_owned).collect();
    text.lines().map(line).collect()
}

/// `evenkeel capture OPTIONS` that has begun.
fn capture(lab: &Lab, evenkeel: &mut Evenkeel, options: &[&str]) -> Running {
    let begun = |log: &str| log.matches("a capture begins").count();
    let before = begun(&evenkeel.process.log());
    let running = evenkeel.begin(lab, &[&["capture"], options].concat(), "capture.log");
    wait_for("the capture's begin", || {
        (begun(&evenkeel.process.log()) > before).then_some(())
    });
    running
}

fn ended(mut capture: Running) -> String {
    let status = wait_for("the capture's end", || capture.exited());
    assert!(status.success(), "{status}: {}", capture.log());
    capture.log()
}

/// Every backend's next hop is known.
fn wait_for_next_hops(lab: &Lab, evenkeel: &Evenkeel) {
    wait_for("next hops", || {
        let all = backends(lab, evenkeel);
        all.values().all(|b| b["state"] == "up").then_some(())
    });
}

#[test]
fn tshark_reads_both_sides_of_what_was_captured_and_its_verdict() {
    let services = METHODS.map(|method| web(method, "rr"));
    let Some((lab, mut evenkeel)) = start(Arms::One, 1, &services) else {
        return;
    };
    wait_for_next_hops(&lab, &evenkeel);
    for service in &services {
        let file = lab.folder().join(format!("{}.pcapng", service.method));
        let file = file.to_str().expect("a path in UTF-8").to_owned();
        let name = service.name();
        let options = [
            "--write",
            &file,
            "--service",
            &name,
            "-n",
            "2",
            "--snap",
            "96",
        ];
        let capture = capture(&lab, &mut evenkeel, &options);
        let url = format!("http://{}/", service.address());
        curl(&lab.client, &[&url]);
        let said = ended(capture);
        assert!(said.starts_with("2 packets captured of "), "{said}");
        assert!(
            said.ends_with("; 0 left out above the rate, 0 lost\n"),
            "{said}"
        );

        let fields = [
            "frame.comment",
            "frame.packet_flags_direction",
            "ip.src",
            "ip.dst",
        ];
        let frames = read(&lab, &file, &[&fields[..], &["_ws.malformed"]].concat());
        let (client, vip) = (
            Family::V4.client().to_owned(),
            Family::V4.vip(service.method),
        );
        let came = &frames[0];
        let words = format!("packet 1 in: tcp {client}:");
        assert!(came[0].starts_with(&words), "{frames:?}");
        let words = format!(" -> {vip}:80; service {name}; transmit");
        assert!(came[0].ends_with(&words), "{frames:?}");
        assert_eq!((&came[2], &came[3]), (&client, &vip), "{frames:?}");
        let left = &frames[1];
        assert_eq!(left[0], "packet 1 out", "{frames:?}");
        let backend = &lab.arms.backends(Family::V4)[0];
        match service.method {
            "nat" => assert_eq!((&left[2], &left[3]), (&client, backend)),
            "tunnel" => assert!(left[3].contains(&format!("{backend},{vip}")), "{left:?}"),
            _ => assert_eq!((&left[2], &left[3]), (&client, &vip)),
        }
        assert_eq!(
            frames.len(),
            4,
            "two packets, each as it came and as it left: {frames:?}"
        );
        assert!(frames.iter().all(|frame| frame[4].is_empty()), "{frames:?}");
    }
}

#[test]
fn what_is_dropped_is_told_as_it_happens() {
    let mut service = web("nat", "rr");
    service.weights = [0; 3];
    service.options = json!({ "when_no_backend": "drop" });
    let services = [service.clone()];
    let Some((lab, mut evenkeel)) = start(Arms::One, 1, &services) else {
        return;
    };
    let client = Family::V4.client();
    let options = [
        "--dropped",
        "--protocol",
        "tcp",
        "--client",
        client,
        "-n",
        "1",
    ];
    let capture = capture(&lab, &mut evenkeel, &options);
    let (status, refused) = evenkeel.api().ask("GET", "/v1/capture", "");
    assert_eq!(status, 409, "{refused}");
    let url = format!("http://{}/", service.address());
    let given_up = lab
        .client
        .run("curl", &["-s", "--connect-timeout", "1", &url]);
    assert!(!given_up.status.success());
    let said = ended(capture);
    let line = said.lines().next().unwrap_or_default();
    assert!(line.contains(&format!("in: tcp {client}:")), "{said}");
    assert!(
        line.ends_with(&format!("service {}; drop no_backend", service.name())),
        "{said}"
    );
    // The next one begins, and ends with its reader.
    let options = ["--server", &service.address(), "--seconds", "3600"];
    drop(self::capture(&lab, &mut evenkeel, &options));
    wait_for("the end of an abandoned capture", || {
        let log = evenkeel.process.log();
        (log.matches("the capture has ended").count() == 2).then_some(())
    });
    let (status, _) = evenkeel.process.terminate();
    assert!(status.success(), "{status}: every buffer came back");
}

/// The trace of a packet and what becomes of one agree.
#[test]
fn a_trace_agrees_with_the_next_connection() {
    let services: Vec<Service> = METHODS.map(|method| web(method, "rr")).into();
    let Some((lab, evenkeel)) = start(Arms::One, 2, &services) else {
        return;
    };
    wait_for_next_hops(&lab, &evenkeel);
    let client = Family::V4.client();
    for (round, service) in services.iter().cycle().take(9).enumerate() {
        let port = 30_000 + round;
        let from = format!("{client}:{port}");
        let trace = |flags: &str| -> Value {
            let words = [
                "trace",
                &from,
                &service.address(),
                "--flags",
                flags,
                "--json",
            ];
            serde_json::from_str(&evenkeel.say(&lab, &words)).expect("JSON from trace")
        };
        let foreseen = trace("syn");
        assert_eq!(foreseen["verdict"], "transmit", "{foreseen}");
        let url = format!("http://{}/", service.address());
        let answer = curl(&lab.client, &["--local-port", &port.to_string(), &url]);
        let backend = foreseen["backend"].as_str().expect("a backend");
        assert!(
            answer.starts_with(&format!("{backend} ")),
            "{foreseen}: {answer}"
        );
        // Now it is tracked there.
        let tracked = trace("ack");
        assert_eq!(tracked["backend"], foreseen["backend"], "{tracked}");
        assert_eq!(tracked["worker"], foreseen["worker"], "{tracked}");
        assert!(tracked["connection"].is_string(), "{tracked}");
    }
}
