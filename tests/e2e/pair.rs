//! Two evenkeels for the same VIPs: by VRRP one at a time, by BGP both at once. keepalived, BIRD and
//! the kernels are real, and so are the configurations in examples/.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::appliance::{Appliance, INTERFACE, merge};
use crate::lab::balancer::{PROGRAM, Service, web};
use crate::lab::process::{PATIENCE, Running, wait_for};
use crate::lab::{Arms, Family, Lab, NAMES, tool};

const KEEPALIVED: &str = include_str!("../../examples/keepalived.conf");
const BIRD: &str = include_str!("../../examples/bird.conf");
/// As in the examples.
const TABLE: u32 = 179;
const PORT: u16 = 7777;
const ONE_WAY: [&str; 2] = ["tunnel", "direct-routing"];

/// Which of the two appliances the router sends packets to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ways {
    /// Both, by the flow's hash (ECMP).
    Both,
    /// The first while it announces, else the second.
    First,
}

fn left_to_linux(service: Service) -> Service {
    Service {
        options: json!({ "advertise": "kernel" }),
        ..service
    }
}

/// keepalived on an appliance, as in the example but for names and addresses.
fn start_keepalived(lab: &Lab, appliance: &Appliance, priority: u32, vips: &[String]) -> Running {
    let held = |vip: &String| format!("{vip}/32 dev {INTERFACE}\n");
    let held: String = vips.iter().map(held).collect();
    let ready = format!("{PROGRAM} ready --socket {}", appliance.socket.display());
    let replaced = [
        ("ek-wan", INTERFACE),
        // A folder of whoever runs the tests is not root's.
        ("    enable_script_security\n", ""),
        ("/usr/bin/evenkeel ready", &ready),
        ("priority 150", &format!("priority {priority}")),
        (&format!("192.0.2.80/32 dev {INTERFACE}\n"), &held),
    ];
    let text = replace(KEEPALIVED, &replaced);
    let file = |end: &str| {
        let name = format!("keepalived-{priority}.{end}");
        lab.folder().join(name).display().to_string()
    };
    fs::write(file("conf"), text).expect("keepalived's configuration");
    let (conf, pid, vrrp) = (file("conf"), file("pid"), file("vrrp"));
    let words = ["-n", "-l", "-D", "-P", "-f", &conf, "-p", &pid, "-r", &vrrp];
    appliance.net.start("keepalived", &words, file("log"))
}

/// What is to be replaced must be there.
fn replace(text: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(text.to_owned(), |text, (old, new)| {
        assert!(text.contains(old), "no {old} in {text}");
        text.replace(old, new)
    })
}

fn has_vip(appliance: &Appliance, vip: &str) -> bool {
    let addresses = appliance.net.ip(&format!("address show dev {INTERFACE}"));
    addresses.contains(&format!("inet {vip}/32 "))
}

fn fetches(lab: &Lab, service: &Service) -> bool {
    let url = format!("http://{}/", service.address());
    let words = ["-sf", "-o", "/dev/null", "-m", "1", &url];
    lab.client.run("curl", &words).status.success()
}

fn conflicts(appliance: &Appliance) -> usize {
    appliance.process.log().matches("address conflict").count()
}

/// The VIPs that are answered for, as `evenkeel vips` has them.
fn answered(appliance: &Appliance) -> Vec<bool> {
    let vips: Value = serde_json::from_str(&appliance.asked(&["vips", "--json"])).expect("JSON");
    let vips = vips.as_array().expect("a list").iter();
    vips.map(|vip| vip["answered"] == true).collect()
}

#[test]
fn keepalived_moves_the_vips_when_one_is_drained_or_killed_and_no_address_is_there_twice() {
    const WITHIN: Duration = Duration::from_secs(5);
    let services = ONE_WAY.map(|method| left_to_linux(web(method, "mh")));
    let Some(mut lab) = Lab::new(Arms::One) else {
        return;
    };
    lab.start_web();
    lab.start_unwrapping();
    let vips = ONE_WAY.map(|method| Family::V4.vip(method));
    let more = json!({});
    let (mut first, second) = (
        Appliance::start(&lab, 1, &services, &more),
        Appliance::start(&lab, 2, &services, &more),
    );
    assert_eq!(answered(&first), [false; 2], "nobody has the VIPs");
    assert!(!fetches(&lab, &services[0]));

    let mut keepalived = start_keepalived(&lab, &first, 150, &vips);
    let mut other = start_keepalived(&lab, &second, 100, &vips);
    let is_master = |appliance: &Appliance| vips.iter().all(|vip| has_vip(appliance, vip));
    let wait_for_master = |master: &Appliance, backup: Option<&Appliance>| {
        wait_for("the VIPs to be where they belong", || {
            let backup = backup.is_none_or(|b| !has_vip(b, &vips[0]) && answered(b) == [false; 2]);
            (is_master(master) && backup && answered(master) == [true; 2]).then_some(())
        });
        wait_for("answers to fetches", || {
            services.iter().all(|s| fetches(&lab, s)).then_some(())
        });
    };
    wait_for_master(&first, Some(&second));

    first.asked(&["drain"]);
    assert!(!first.evenkeel(&["ready"]).status.success());
    wait_for_master(&second, Some(&first));
    first.asked(&["undrain"]);
    wait_for_master(&first, Some(&second));

    // The master's machine dies.
    first.process.signal("KILL");
    keepalived.signal("KILL");
    let killed = Instant::now();
    wait_for("answers from the other one", || {
        fetches(&lab, &services[1]).then_some(())
    });
    let took = killed.elapsed();
    println!("the master was killed, and fetches were answered again after {took:.2?}");
    assert!(took < WITHIN, "{took:?}");
    wait_for("the end of the killed ones", || {
        first.process.exited().and(keepalived.exited())
    });
    wait_for_master(&second, None);
    other.assert_running();
    assert_eq!(conflicts(&first) + conflicts(&second), 0);
}

/// A router and two appliances that speak BGP, and backends that echo.
struct Site {
    pair: [Appliance; 2],
    birds: Vec<Running>,
    services: Vec<Service>,
    ways: Ways,
    lab: Lab,
}

impl Site {
    fn new(scheduler: &'static str, methods: &[&'static str], ways: Ways) -> Option<Site> {
        let mut lab = Lab::new(Arms::One)?;
        lab.start_unwrapping();
        for (at, name) in NAMES.iter().enumerate() {
            let log = lab.folder().join(format!("{name}-tcp-echo.log"));
            let echo = tool::start(&lab.backends[at], &["tcp-echo", &PORT.to_string()], log);
            lab.keep(echo);
        }
        let service = |method: &&'static str| {
            // The lab's VIPs are by three methods; the fourth takes NAT's.
            let (method, options) = match *method {
                "fullnat" => ("nat", json!({ "method": "fullnat" })),
                method => (method, json!({})),
            };
            let mut service = left_to_linux(Service {
                port: PORT,
                ..web(method, scheduler)
            });
            merge(&mut service.options, &options);
            service
        };
        let services: Vec<Service> = methods.iter().map(service).collect();
        // What goes to a VIP is shared by addresses and ports.
        let router = &lab.balancer;
        router.sysctl("net/ipv4/fib_multipath_hash_policy", "1");
        // Each has local addresses of its own, or answers of FullNAT would go to the wrong one.
        let locals = |number: usize, method: &&str| match *method {
            "fullnat" => {
                json!({ "local_addresses": [Arms::One.address(Family::V4, 200 + number)] })
            }
            _ => json!({}),
        };
        let more = |number| {
            let services = methods.iter().map(|method| locals(number, method));
            json!({
                "management": { "vip_table": TABLE, "linger": "1s" },
                "service": services.collect::<Vec<_>>(),
            })
        };
        let pair = [1, 2].map(|number| Appliance::start(&lab, number, &services, &more(number)));
        let mut birds = vec![start_bird(
            &lab,
            router,
            "router",
            &router_text(&pair, ways),
        )];
        for appliance in &pair {
            let replaced = [
                ("192.0.2.2", &*appliance.address),
                ("ek-wan", INTERFACE),
                ("error wait time 2, 10", "error wait time 1, 2"),
            ];
            let text = replace(BIRD, &replaced);
            let name = format!("bird-{}", appliance.address);
            birds.push(start_bird(&lab, &appliance.net, &name, &text));
        }
        let site = Site {
            pair,
            birds,
            services,
            ways,
            lab,
        };
        site.wait_for_all();
        Some(site)
    }

    /// Every VIP is reached by both, or by the preferred one.
    fn wait_for_all(&self) {
        match self.ways {
            Ways::Both => self.wait_for_ways(&[0, 1]),
            Ways::First => self.wait_for_ways(&[0]),
        }
    }

    /// Every VIP is reached by just these appliances, to the first of which backends answer.
    fn wait_for_ways(&self, by: &[usize]) {
        wait_for(&format!("ways to each VIP by {by:?}"), || {
            let has = |service: &Service| {
                let vip = Family::V4.vip(service.method);
                let route = self.lab.balancer.ip(&format!("route show {vip}"));
                let via = |at: &usize| route.contains(&format!("via {} ", self.pair[*at].address));
                route.matches("via ").count() == by.len() && by.iter().all(via)
            };
            self.services.iter().all(has).then_some(())
        });
        // As VRRP on the backends' side would.
        self.lab.answer_by(&self.pair[by[0]].address);
    }

    /// So many live connections to each VIP, which end with [`Site::broken`].
    fn keep(&self, count: usize) -> Vec<Running> {
        let file = self.end();
        let _ = fs::remove_file(&file);
        let keep = |service: &Service| {
            let words = ["tcp-keep", &service.address(), &count.to_string(), &file];
            let log = self.lab.folder().join(format!("keep-{}", service.name()));
            tool::start(&self.lab.client, &words, log)
        };
        self.services.iter().map(keep).collect()
    }

    fn end(&self) -> String {
        self.lab.folder().join("end").display().to_string()
    }

    /// How many of each service's connections broke.
    fn broken(&self, kept: Vec<Running>) -> Vec<usize> {
        fs::write(self.end(), "").expect("a file");
        let count = |mut keep: Running| {
            let deadline = Instant::now() + 3 * PATIENCE;
            while keep.exited().is_none() {
                assert!(Instant::now() < deadline, "{}", keep.log());
                std::thread::sleep(Duration::from_millis(20));
            }
            let log = keep.log();
            let line = log.lines().find(|line| line.ends_with(" broke"));
            let line = line.unwrap_or_else(|| panic!("no count in {log}"));
            let count = line.split(' ').next().and_then(|word| word.parse().ok());
            count.expect("a count")
        };
        kept.into_iter().map(count).collect()
    }

    /// Connections that an appliance tracks.
    fn tracked(&self, appliance: usize) -> u64 {
        let status = self.pair[appliance].status();
        let services = status["services"].as_array().expect("a list").iter();
        let backends = services.flat_map(|s| s["backends"].as_array().expect("a list"));
        backends.filter_map(|b| b["active"].as_u64()).sum()
    }

    /// One that has connections.
    fn killed(&self) -> usize {
        match self.ways {
            Ways::Both => 1,
            Ways::First => 0,
        }
    }

    /// Drains one, and kills the other or the preferred one; how many of `count` live connections to each VIP broke, each
    /// time.
    fn drain_and_kill(&mut self, count: usize) -> [Vec<usize>; 2] {
        let kept = self.keep(count);
        let (ways, killed, left) = (self.ways, self.killed(), 1 - self.killed());
        wait_for("those that should to have connections", || {
            let second = ways == Ways::First || self.tracked(1) > 0;
            (self.tracked(0) > 0 && second).then_some(())
        });
        self.pair[0].asked(&["drain"]);
        self.wait_for_ways(&[1]);
        let by_drain = self.broken(kept);
        self.pair[0].asked(&["undrain"]);
        self.wait_for_all();

        let kept = self.keep(count);
        self.pair[killed].process.signal("KILL");
        self.wait_for_ways(&[left]);
        let by_kill = self.broken(kept);
        for bird in &mut self.birds {
            bird.assert_running();
        }
        [by_drain, by_kill]
    }
}

fn start_bird(
    lab: &Lab,
    net: &crate::lab::namespace::Namespace,
    name: &str,
    text: &str,
) -> Running {
    let file = |end: &str| {
        let path = lab.folder().join(format!("{name}.{end}"));
        path.display().to_string()
    };
    fs::write(file("conf"), format!("log stderr all;\n{text}")).expect("BIRD's configuration");
    let (conf, control, pid) = (file("conf"), file("ctl"), file("pid"));
    let words = ["-f", "-c", &conf, "-s", &control, "-P", &pid];
    net.start("bird", &words, file("log"))
}

fn router_text(pair: &[Appliance; 2], ways: Ways) -> String {
    let session = |(at, appliance): (usize, &Appliance)| {
        let import = match (ways, at) {
            (Ways::First, 1) => "filter { bgp_local_pref = 50; accept; }",
            _ => "all",
        };
        format!(
            "protocol bgp {{ local 192.0.2.1 as 65000; neighbor {} as 65001; bfd on; passive on; error wait time 1, 2;\n\
             ipv4 {{ import {import}; export none; }}; }}\n",
            appliance.address
        )
    };
    let sessions: String = pair.iter().enumerate().map(session).collect();
    format!(
        "router id 192.0.2.1;\nprotocol device {{ }}\n\
         protocol kernel {{ merge paths yes; ipv4 {{ import none; export where source = RTS_BGP; }}; }}\n\
         protocol bfd {{ interface \"lan\" {{ interval 300 ms; multiplier 4; }}; }}\n{sessions}"
    )
}

/// The two events and what broke, a line for each service.
fn report(scheduler: &str, services: &[Service], broken: &[Vec<usize>; 2], count: usize) {
    for (at, service) in services.iter().enumerate() {
        let [drain, kill] = [broken[0][at], broken[1][at]];
        println!(
            "{scheduler}, {}: of {count} live connections {drain} broke on drain, {kill} on kill -9",
            service.options["method"].as_str().unwrap_or(service.method)
        );
    }
}

fn under_mh(count: usize) {
    let Some(mut site) = Site::new("mh", &ONE_WAY, Ways::Both) else {
        return;
    };
    let broken = site.drain_and_kill(count);
    report("mh", &site.services, &broken, count);
    assert_eq!(broken, [vec![0; 2], vec![0; 2]]);

    // The end announces itself: no connection meets an appliance that has gone.
    let kept = site.keep(count);
    site.pair[1].start_again(&site.lab);
    site.wait_for_all();
    let (status, _) = site.pair[0].process.terminate();
    assert!(status.success(), "{status}");
    site.wait_for_ways(&[1]);
    assert_eq!(site.broken(kept), [0; 2], "at the end of one");
}

#[test]
fn bgp_and_ecmp_break_no_connection_under_mh() {
    under_mh(100);
}

#[test]
#[ignore = "long: scripts/test --long"]
fn bgp_and_ecmp_break_none_of_a_thousand_connections_under_mh_and_some_otherwise() {
    under_mh(1000);
    for scheduler in ["wrr", "wlc", "sh"] {
        others(scheduler, &ONE_WAY, Ways::Both);
    }
}

/// Answers of NAT have to come back to the appliance that forwarded the request, so one stands by for
/// the other, and finds the flows again, whoever speaks first.
#[test]
#[ignore = "long: scripts/test --long"]
fn nat_breaks_none_of_a_thousand_connections_under_mh_and_all_otherwise() {
    if let Some(broken) = others("mh", &["nat"], Ways::First) {
        assert_eq!(broken, [vec![0], vec![0]]);
    }
    others("wrr", &["nat"], Ways::First);
}

/// With FullNAT answers come to the appliance that has the local address, and both forward.
#[test]
#[ignore = "long: scripts/test --long"]
fn half_of_a_thousand_connections_break_with_fullnat() {
    for scheduler in ["mh", "wrr"] {
        others(scheduler, &["fullnat"], Ways::Both);
    }
}

fn others(
    scheduler: &'static str,
    methods: &[&'static str],
    ways: Ways,
) -> Option<[Vec<usize>; 2]> {
    let mut site = Site::new(scheduler, methods, ways)?;
    let broken = site.drain_and_kill(1000);
    report(scheduler, &site.services, &broken, 1000);
    Some(broken)
}
