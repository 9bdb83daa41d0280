//! SYNs from anywhere, ten times as many as the guard lets through, while real clients download and others
//! connect anew: the first must notice nothing, and 99 of 100 of the others get through.
//!
//! The forged SYNs come in by a port of their own, out of shared memory, so that no kernel's queue on
//! their way is what decides; real are the clients, the backends, which answer every SYN that is
//! forwarded to them, and all that lies between them and evenkeel's other port.

use serde_json::{Value, json};

use crate::lab::balancer::{Evenkeel, Service, TAP, configuration, web};
use crate::lab::downloads::Downloads;
use crate::lab::process::{Running, wait_for};
use crate::lab::web::curl;
use crate::lab::{Arms, Family, Lab, tool};

/// Forged flows for each that the guard lets through.
const TIMES: u64 = 10;
const DOWNLOADS: usize = 20;
/// Connections a second of the clients that come meanwhile.
const FRESH: u64 = 20;
/// FullNAT is a port of the NAT service's VIP.
const FULLNAT_PORT: u16 = 81;
const METHODS: [&str; 4] = ["nat", "fullnat", "tunnel", "direct-routing"];
/// Of the port that the flood comes in by.
const MAC: &str = "02:00:00:00:0f:02";

fn service(method: &'static str, scheduler: &'static str) -> Service {
    match method {
        "fullnat" => Service {
            port: FULLNAT_PORT,
            backend_port: Some(80),
            options: json!({
                "method": method,
                "local_addresses": [Arms::One.address(Family::V4, 200)],
            }),
            ..web("nat", scheduler)
        },
        _ => web(method, scheduler),
    }
}

fn count(status: &Value, word: &str) -> u64 {
    let rows = status["counts"].as_array().expect("a list").iter();
    let mut found = rows.filter(|row| row["reason"] == word);
    found
        .next()
        .and_then(|row| row["count"].as_u64())
        .unwrap_or(0)
}

/// Packets that evenkeel has taken from the port that the flood comes in by.
fn forged(status: &Value) -> u64 {
    let mut ports = status["ports"].as_array().expect("a list").iter();
    let port = ports.find(|port| port["name"] == "flood").expect("a port");
    port["rx_packets"].as_u64().expect("a count")
}

/// One service after the other is flooded by the same generator.
struct Site {
    lab: Lab,
    evenkeel: Evenkeel,
    generator: Running,
}

impl Site {
    fn new(services: &[Service], guard: u64) -> Option<Site> {
        let mut lab = Lab::new(Arms::One)?;
        lab.start_web();
        lab.start_unwrapping();
        // What backends answer to nobody ends at the router.
        lab.balancer.ip("route add blackhole 11.0.0.0/8");
        let path = |name: &str| lab.folder().join(name).display().to_string();
        let (socket, file) = (path("flood"), path("flood-this"));
        let log = lab.folder().join("syn-flood.log");
        let generator = tool::syn_flood(&lab.balancer, &[&socket, MAC, &file], log);
        let text = configuration(&lab, 1, services);
        // A table that the flood fills at once.
        let keys = format!("connections = {}\nflood_guard = {guard}", 2 * guard);
        let text = text.replace("connections = 10000", &keys);
        assert!(text.contains("flood_guard"), "{text}");
        let port = format!(
            "\n[[port]]\nname = \"flood\"\naddresses = [\"203.0.113.2/24\"]\n\
             device = \"net_memif0,role=client,socket={socket},socket-abstract=no,mac={MAC}\"\n\
             [[port.route]]\nto = \"11.0.0.0/8\"\nvia = \"203.0.113.1\"\n\
             [[port.neighbour]]\naddress = \"203.0.113.1\"\nmac = \"02:00:00:00:0f:01\"\n"
        );
        let evenkeel = Evenkeel::start_with(&lab, &(text + &port));
        // What the backends answer to the flood waits here for evenkeel, which has to be given a CPU.
        lab.balancer.ip(&format!("link set {TAP} txqueuelen 10000"));
        Some(Site {
            lab,
            evenkeel,
            generator,
        })
    }

    /// Frames that the kernel had for evenkeel and no room to put them.
    fn lost(&self) -> u64 {
        let text = self.lab.balancer.ip(&format!("-s -j link show dev {TAP}"));
        let links: Value = serde_json::from_str(&text).expect("ip's JSON");
        links[0]["stats64"]["tx"]["dropped"]
            .as_u64()
            .expect("a count")
    }

    /// Begins a flood, which ends when the file is removed.
    fn begin(&self, service: &Service, rate: u64) {
        let (file, half) = (self.file(), self.lab.folder().join("half"));
        std::fs::write(&half, format!("{} {rate}\n", service.address())).expect("a file");
        std::fs::rename(half, file).expect("the file");
    }

    fn file(&self) -> std::path::PathBuf {
        self.lab.folder().join("flood-this")
    }

    /// Ends the flood: how many SYNs it were, and microseconds.
    fn end(&mut self) -> (u64, u64) {
        let before = self.generator.log().lines().count();
        std::fs::remove_file(self.file()).expect("the file");
        let line = wait_for("the flood's end", || {
            self.generator.assert_running();
            let log = self.generator.log();
            let whole = log.ends_with('\n') && log.lines().count() > before;
            whole.then(|| log.lines().last().unwrap_or_default().to_owned())
        });
        let numbers: Vec<u64> = line
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        let [sent, micros] = numbers[..] else {
            panic!("{line}");
        };
        (sent, micros)
    }

    fn flood(&mut self, name: &str, service: &Service, rate: u64, seconds: u64) {
        // Afterwards all next hops are known.
        for _ in 0..6 {
            curl(
                &self.lab.client,
                &[&format!("http://{}/", service.address())],
            );
        }
        let mut downloads = self.download(service, 2 * seconds + 3);
        let (before, lost) = (self.evenkeel.status(&self.lab), self.lost());
        self.begin(service, rate);
        let fresh = connect_anew(&self.lab, service, FRESH * seconds);
        downloads.assert_running();
        let (sent, micros) = self.end();
        downloads.assert_whole();
        let after = self.evenkeel.status(&self.lab);
        let (lost, arrived) = (self.lost() - lost, forged(&after) - forged(&before));
        let grown = |word| count(&after, word) - count(&before, word);
        let (stateless, evicted) = (grown("stateless"), grown("evicted"));
        let through = fresh.iter().filter(|took| took.is_some()).count();
        let slow = fresh.iter().flatten().filter(|took| **took >= 1.0).count();
        println!(
            "{name}: {} SYN/s met the worker for {} ms; {DOWNLOADS} of {DOWNLOADS} downloads whole; new connections: {through} of {} through, {slow} of them after a second or more; {stateless} packets without an entry, {evicted} entries evicted; the TAP's queue lost {lost}",
            arrived * 1_000_000 / micros,
            micros / 1000,
            fresh.len(),
        );
        assert!(
            arrived >= sent && arrived * 1_000_000 >= rate * micros,
            "{after}"
        );
        assert!(through * 100 >= fresh.len() * 99, "{fresh:?}");
        // Methods that need an entry for each flow make room, and the others do without.
        let is_two_way = name.contains("nat");
        assert!(
            if is_two_way { evicted } else { stateless } > sent / 4,
            "{after}"
        );
    }

    /// Downloads that are under way, with their handshakes done.
    fn download(&self, service: &Service, seconds: u64) -> Downloads {
        let made = || count(&self.evenkeel.status(&self.lab), "new_connections");
        let wanted = made() + DOWNLOADS as u64;
        let services = std::slice::from_ref(service);
        let downloads = Downloads::begin(&self.lab, services, DOWNLOADS, seconds);
        wait_for("the downloads' connections", || {
            (made() >= wanted).then_some(())
        });
        downloads
    }
}

/// Floods one service after the other, each for so many seconds, behind a guard of `guard` new flows a
/// second on the worker.
fn flood(methods: &[&'static str], scheduler: &'static str, guard: u64, seconds: u64) {
    let services: Vec<_> = methods.iter().map(|one| service(one, scheduler)).collect();
    let Some(mut site) = Site::new(&services, guard) else {
        return;
    };
    for (method, service) in methods.iter().zip(&services) {
        let name = format!("{method} {scheduler}");
        site.flood(&name, service, TIMES * guard, seconds);
    }
}

/// Fetches so often, each time on a new connection; the seconds that each took, if it got through.
fn connect_anew(lab: &Lab, service: &Service, times: u64) -> Vec<Option<f64>> {
    let url = format!("http://{}/?[1-{times}]", service.address());
    let rate = format!("{FRESH}/s");
    let words = ["-s", "-o", "/dev/null", "-H", "Connection: close"];
    let limits = ["--connect-timeout", "5", "-m", "8", "--rate", &rate];
    let write = ["-w", "%{http_code} %{time_total}\\n", &url];
    let output = lab
        .client
        .run("curl", &[&words[..], &limits, &write].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let took = |line: &str| {
        let (code, seconds) = line.split_once(' ')?;
        (code == "200").then(|| seconds.parse().expect("seconds"))
    };
    let all: Vec<_> = said.lines().map(took).collect();
    assert_eq!(all.len() as u64, times, "{said}");
    all
}

#[test]
fn clients_get_through_a_flood_of_syns() {
    flood(&["nat"], "wlc", 500, 2);
}

#[test]
#[ignore = "long: scripts/test --long"]
fn clients_get_through_a_flood_of_syns_in_every_method() {
    for scheduler in ["wlc", "mh"] {
        flood(&METHODS, scheduler, 5_000, 5);
    }
}
