//! evenkeel in the balancer's namespace, its configuration, and its TAP port on the switch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use super::address::with_port;
use super::api::Api;
use super::process::{self, Running};
use super::{Arms, FAMILIES, Family, Lab, MTU, NAMES};

/// The port's kernel end, as in `net_tap0,iface=ek0`.
pub const TAP: &str = "ek0";
const SECOND_TAP: &str = "ek1";
/// The MAC address of any port's kernel end; its link is a bridge's and needs no other.
pub const KERNEL_END: &str = "02:00:00:00:00:fe";
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_evenkeel");

/// One `[[service]]` over all three backends, on the VIP of its method.
#[derive(Clone)]
pub struct Service {
    pub family: Family,
    pub method: &'static str,
    pub protocol: &'static str,
    pub port: u16,
    pub scheduler: &'static str,
    pub weights: [u32; 3],
    /// `None`: the service's own.
    pub backend_port: Option<u16>,
    /// Further keys of the service, in TOML's words.
    pub options: Value,
}

/// A web service that others differ from by a field or two.
pub fn web(method: &'static str, scheduler: &'static str) -> Service {
    Service {
        family: Family::V4,
        method,
        protocol: "tcp",
        port: 80,
        scheduler,
        weights: [1; 3],
        backend_port: None,
        options: json!({}),
    }
}

impl Service {
    pub fn name(&self) -> String {
        format!(
            "{}-{:?}-{}-{}",
            self.method, self.family, self.protocol, self.port
        )
    }

    /// Where clients ask: the VIP and the port.
    pub fn address(&self) -> String {
        with_port(&self.family.vip(self.method), self.port)
    }

    fn described(&self, lab: &Lab) -> Value {
        let backend = |((name, address), weight): ((&str, String), u32)| {
            let mut backend = json!({ "name": name, "address": address, "weight": weight });
            if let Some(port) = self.backend_port {
                backend["port"] = port.into();
            }
            backend
        };
        let backends = NAMES
            .into_iter()
            .zip(lab.arms.backends(self.family))
            .zip(self.weights);
        let mut service = json!({
            "name": self.name(),
            "listen": [format!("{}:{}", self.protocol, self.address())],
            "method": self.method,
            "scheduler": self.scheduler,
            "backend": backends.map(backend).collect::<Vec<_>>(),
        });
        if let (Value::Object(service), Value::Object(options)) = (&mut service, &self.options) {
            service.extend(options.clone());
        }
        service
    }
}

/// A whole configuration file.
pub fn configuration(lab: &Lab, workers: usize, services: &[Service]) -> String {
    let port = |arms: Arms, device: usize, tap| {
        let own = |family: Family| format!("{}/{}", arms.evenkeel(family), family.length());
        json!({
            "name": arms.switch(),
            "device": format!("net_tap{device},iface={tap}"),
            "mtu": MTU,
            "addresses": FAMILIES.map(own),
            "check_address": arms.check_address(),
        })
    };
    let mut first = port(Arms::One, 0, TAP);
    first["gateway"] = FAMILIES
        .map(|family| Arms::One.router(family))
        .to_vec()
        .into();
    let ports = match lab.arms {
        Arms::One => vec![first],
        Arms::Two => vec![first, port(Arms::Two, 1, SECOND_TAP)],
    };
    let whole = json!({
        "workers": {
            "cores": process::cores(workers),
            "connections": 10_000,
            "memory": "128MiB",
            "idle": "sleep",
        },
        "management": { "socket": lab.folder().join("evenkeel.sock") },
        "port": ports,
        "service": services.iter().map(|one| one.described(lab)).collect::<Vec<_>>(),
    });
    toml::to_string(&whole).expect("TOML")
}

/// `evenkeel run` with its port on the switch.
pub struct Evenkeel {
    pub process: Running,
    socket: PathBuf,
}

impl Evenkeel {
    pub fn start(lab: &Lab, workers: usize, services: &[Service]) -> Evenkeel {
        Self::start_with(lab, &configuration(lab, workers, services))
    }

    /// With this text as its configuration.
    pub fn start_with(lab: &Lab, text: &str) -> Evenkeel {
        Self::start_that_may(lab, text, &[])
    }

    /// One that can be asked for faults of its management.
    pub fn start_that_fails(lab: &Lab, workers: usize, services: &[Service]) -> Evenkeel {
        let text = configuration(lab, workers, services);
        Self::start_that_may(lab, &text, &["--allow-faults"])
    }

    /// On a machine without huge pages; `None` where there is no taking them away.
    pub fn start_without_huge_pages(lab: &Lab, text: &str) -> Option<Evenkeel> {
        let file = lab.folder().join("evenkeel.toml");
        fs::write(&file, text).expect("the configuration");
        let without = "umount --all --types hugetlbfs && exec \"$@\"";
        let words = ["--mount", "sh", "-c", without, "sh"];
        if !lab
            .balancer
            .run("unshare", &[&words[..], &["true"]].concat())
            .status
            .success()
        {
            return None;
        }
        let config = file.to_str().expect("a path in UTF-8");
        let words = [&words[..], &[PROGRAM, "run", "--config", config]].concat();
        let log = lab.folder().join("evenkeel.log");
        let mut process = lab.balancer.start("unshare", &words, log);
        attach(lab, &mut process, TAP, Arms::One);
        Some(Evenkeel {
            process,
            socket: lab.folder().join("evenkeel.sock"),
        })
    }

    fn start_that_may(lab: &Lab, text: &str, options: &[&str]) -> Evenkeel {
        let file = lab.folder().join("evenkeel.toml");
        fs::write(&file, text).expect("the configuration");
        let mut process = start_with(lab, &file, "evenkeel.log", options);
        attach(lab, &mut process, TAP, Arms::One);
        // Whatever device the second port is by, its TAP has this name. Some tests leave the port away.
        if lab.arms == Arms::Two && text.matches("[[port]]").count() > 1 {
            attach(lab, &mut process, SECOND_TAP, Arms::Two);
        }
        let link = lab.balancer.ip(&format!("-o link show dev {TAP}"));
        let line = text.lines().find(|line| line.starts_with("mtu = "));
        let mtu = line.map_or(MTU.to_string(), |line| line.replace("mtu = ", ""));
        assert!(link.contains(&format!("mtu {mtu} ")), "{link}");
        Evenkeel {
            process,
            socket: lab.folder().join("evenkeel.sock"),
        }
    }

    /// Writes another configuration and has it taken.
    pub fn reload(&self, lab: &Lab, workers: usize, services: &[Service]) {
        let file = lab.folder().join("evenkeel.toml");
        fs::write(&file, configuration(lab, workers, services)).expect("the configuration");
        let (file, socket) = (
            file.to_str().expect("a path in UTF-8"),
            self.socket.to_str().expect("a path in UTF-8"),
        );
        let arguments = ["reload", "--config", file, "--socket", socket];
        process::check(lab.balancer.command(PROGRAM).args(arguments));
    }

    /// Its socket, spoken to directly.
    pub fn api(&self) -> Api {
        Api::connect(&self.socket)
    }

    /// What `evenkeel WORDS` prints, which must succeed.
    pub fn say(&self, lab: &Lab, words: &[&str]) -> String {
        let socket = self.socket.to_str().expect("a path in UTF-8");
        let words = [words, &["--socket", socket]].concat();
        process::check(lab.balancer.command(PROGRAM).args(words))
    }

    /// `evenkeel WORDS`, which goes on.
    pub fn begin(&self, lab: &Lab, words: &[&str], log: &str) -> Running {
        let socket = self.socket.to_str().expect("a path in UTF-8");
        let words = [words, &["--socket", socket]].concat();
        lab.balancer.start(PROGRAM, &words, lab.folder().join(log))
    }

    /// `evenkeel status --json`.
    pub fn status(&self, lab: &Lab) -> Value {
        let socket = self.socket.to_str().expect("a path in UTF-8");
        let arguments = ["status", "--json", "--socket", socket];
        let text = process::check(lab.balancer.command(PROGRAM).args(arguments));
        serde_json::from_str(&text).expect("JSON from status")
    }
}

/// What a test that fails wants to know first.
impl Drop for Evenkeel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.process.show_log();
        }
    }
}

pub fn start(lab: &Lab, config: &Path, log: &str) -> Running {
    start_with(lab, config, log, &[])
}

fn start_with(lab: &Lab, config: &Path, log: &str, options: &[&str]) -> Running {
    let config = config.to_str().expect("a path in UTF-8");
    let log = lab.folder().join(log);
    let words = [&["run", "--config", config], options].concat();
    lab.balancer.start(PROGRAM, &words, log)
}

/// `evenkeel run` that is expected to end by itself, after the words in `before` (as `setpriv`'s).
pub fn run_to_the_end(lab: &Lab, before: &[&str], config: &Path) -> Output {
    let config = config.to_str().expect("a path in UTF-8");
    let seconds = process::PATIENCE.as_secs().to_string();
    let words = [before, &[PROGRAM, "run", "--config", config]].concat();
    lab.balancer
        .run("timeout", &[&[seconds.as_str()], &words[..]].concat())
}

/// Plugs the kernel end of the TAP port of `program` into a switch; returns when evenkeel's address
/// there answers a ping.
pub fn attach(lab: &Lab, program: &mut Running, tap: &str, arms: Arms) {
    let (switch, address) = (arms.switch(), arms.evenkeel(Family::V4));
    process::wait_for(&format!("an answer from {address}"), || {
        program.assert_running();
        lab.balancer
            .try_ip(&format!("link set {tap} master {switch} up"))?;
        let ping = ["-c1", "-W1", "-n", &address];
        lab.balancer
            .run("ping", &ping)
            .status
            .success()
            .then_some(())
    });
    // The DPDK driver gives the port's MAC address to the kernel's end too, and a bridge keeps what
    // other members send to an address of its own. Not before the port is started, which sets it.
    lab.balancer
        .ip(&format!("link set {tap} address {KERNEL_END}"));
}
