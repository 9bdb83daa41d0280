//! Management stands still, panics, and takes nothing back from its workers, in the middle of
//! downloads: traffic does not notice.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::balancer::{Evenkeel, Service, web};
use crate::lab::downloads::Downloads;
use crate::lab::process::wait_for;
use crate::lab::web::curl;
use crate::lab::{Arms, Lab, METHODS};

/// How much of it: a little in every run, all of it in `scripts/test --long`.
struct Size {
    /// In each method.
    downloads: usize,
    stall: Duration,
    /// That each download takes: longer than everything that is done meanwhile.
    seconds: u64,
}

/// One bad answer would take a backend out.
fn service(method: &'static str) -> Service {
    let health = json!({
        "type": "http", "path": "/healthz", "interval": "500ms", "timeout": "400ms",
        "fall": 1, "rise": 1, "start": "down",
    });
    Service {
        options: json!({ "health": health }),
        ..web(method, "rr")
    }
}

struct Appliance<'a> {
    lab: &'a Lab,
    services: &'a [Service],
    evenkeel: Evenkeel,
}

impl Appliance<'_> {
    fn status(&self) -> Value {
        self.evenkeel.api().status()
    }

    fn fail(&self, fault: &Value) {
        let mut api = self.evenkeel.api();
        api.change("POST", "/v1/faults", &fault.to_string());
    }

    fn wait_for_log(&self, words: &str) {
        wait_for(&format!("'{words}' in the log"), || {
            self.evenkeel.process.log().contains(words).then_some(())
        });
    }

    /// New clients are served in every method.
    fn fetch(&self) {
        for service in self.services {
            let url = format!("http://{}/healthz", service.address());
            assert_eq!(curl(&self.lab.client, &[&url]), "ok\n");
        }
    }

    fn sum(&self, of: &str, key: &str) -> u64 {
        let status = self.status();
        let parts = status[of].as_array().expect(of).iter();
        parts.map(|part| part[key].as_u64().expect(key)).sum()
    }

    fn stands_still(&self, stall: Duration) {
        let before = self.sum("workers", "passed");
        let milliseconds = stall.as_millis();
        let begun = Instant::now();
        self.fail(&json!({ "stall": { "milliseconds": milliseconds as u64 } }));
        self.wait_for_log("the management loop stands still since");
        while begun.elapsed() < stall.mul_f64(0.8) {
            self.fetch();
            std::thread::sleep(Duration::from_millis(100));
        }
        self.wait_for_log("the management loop goes on, after");
        let status = self.status();
        let management = &status["management"];
        assert_eq!(management["stalls"], 1, "{management}");
        let longest = management["longest_stall_milliseconds"].as_u64();
        assert!(
            u128::from(longest.expect("a time")) >= milliseconds,
            "{management}"
        );
        println!("a stall of {milliseconds} ms: {management}");
        println!(
            "passed meanwhile: {}",
            self.sum("workers", "passed") - before
        );
    }

    fn panics(&self) {
        self.fail(&json!("panic"));
        self.wait_for_log("the management loop is begun again");
        self.fetch();
        let checks = || self.status()["management"]["checks"]["started"].as_u64();
        let before = checks();
        wait_for("checks after the panic", || {
            (checks() > before).then_some(())
        });
        let status = self.status();
        assert_eq!(status["management"]["panics"], 1);
        let last = status["management"]["last_panic"].as_str();
        assert!(
            last.is_some_and(|last| last.ends_with(": asked for")),
            "{last:?}"
        );
        println!("notes: {}", status["notes"]);
    }

    /// The rings are full both ways, so a change waits; then it is made.
    fn takes_nothing_back(&self, hold: Duration) {
        let before = self.status()["generation"].as_u64();
        self.fail(&json!({ "hold-rings": { "milliseconds": hold.as_millis() as u64 } }));
        let waiting = || self.sum("workers", "commands_waiting");
        let full = wait_for("full rings", || {
            Some(waiting()).filter(|&count| count > 128)
        });
        let name = self.services[0].name();
        let path = format!("/v1/services/{name}/backends/web-1");
        self.evenkeel
            .api()
            .change("PATCH", &path, r#"{"weight": 7}"#);
        self.fetch();
        let status = self.status();
        assert!(status["generation"].as_u64() > before);
        let notes = status["notes"].to_string();
        assert!(
            notes.contains("Between management and worker 0 there wait 1"),
            "{notes}"
        );
        println!("full rings: {full} commands wait; notes: {notes}");
        wait_for("empty rings", || (waiting() == 0).then_some(()));
    }
}

fn fails(size: &Size) {
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    lab.start_unwrapping();
    let services = METHODS.map(service);
    let evenkeel = Evenkeel::start_that_fails(&lab, 1, &services);
    let mut appliance = Appliance {
        lab: &lab,
        services: &services,
        evenkeel,
    };
    wait_for("all backends to be up", || {
        let log = appliance.evenkeel.process.log();
        (log.matches("down -> up").count() == 9).then_some(())
    });
    let in_use = || appliance.status()["management"]["buffers_in_use"].as_u64();
    let before = in_use();
    let begun = Instant::now();
    let mut downloads = Downloads::begin(&lab, &services, size.downloads, size.seconds);
    let all = (size.downloads * METHODS.len()) as u64;
    wait_for("all downloads to run", || {
        let status = appliance.status();
        let services = status["services"].as_array()?.iter();
        let backends = services.filter_map(|service| service["backends"].as_array());
        let active = backends
            .flatten()
            .filter_map(|backend| backend["active"].as_u64());
        (active.sum::<u64>() >= all).then_some(())
    });

    appliance.stands_still(size.stall);
    appliance.panics();
    appliance.takes_nothing_back(size.stall / 2);
    println!(
        "{all} downloads of {} s, of which {:?} are over",
        size.seconds,
        begun.elapsed()
    );
    downloads.assert_running();
    downloads.assert_whole();
    println!("they ended whole after {:?}", begun.elapsed());

    let log = appliance.evenkeel.process.log();
    assert!(
        !log.contains("up -> down"),
        "a check failed for management's fault: {log}"
    );
    wait_for("every buffer to be back", || {
        (in_use() <= before).then_some(())
    });
    println!("all buffers were back after {:?}", begun.elapsed());
    let (status, _) = appliance.evenkeel.process.terminate();
    assert!(
        status.success(),
        "{status}: the balance adds up and DPDK holds nothing"
    );
}

#[test]
fn downloads_go_on_while_management_fails() {
    fails(&Size {
        downloads: 10,
        stall: Duration::from_millis(2500),
        seconds: 8,
    });
}

#[test]
#[ignore = "long: scripts/test --long"]
fn two_hundred_downloads_go_on_while_management_fails() {
    fails(&Size {
        downloads: 67,
        stall: Duration::from_secs(30),
        seconds: 100,
    });
}

#[test]
fn nobody_may_ask_for_faults_unless_it_was_started_for_them() {
    let Some(lab) = Lab::new(Arms::One) else {
        return;
    };
    let evenkeel = Evenkeel::start(&lab, 1, &[web("nat", "rr")]);
    let (status, answer) = evenkeel.api().ask("POST", "/v1/faults", "\"panic\"");
    assert_eq!(status, 404, "{answer}");
}
