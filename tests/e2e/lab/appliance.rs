//! evenkeel on a machine of its own beside the lab's, so that Linux there can have interfaces next to
//! its ports: a namespace whose cable to the switch ends in evenkeel's TAP port.
//!
//! ```text
//!   lan ── eth0 ── bridge "wire" ── ek0 (port) ── evenkeel ── ek-lan (Linux's side)
//! ```

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};

use super::balancer::{KERNEL_END, PROGRAM, Service, TAP, configuration};
use super::namespace::Namespace;
use super::process::{self, Running, wait_for};
use super::{Arms, FAMILIES, Family, Lab, MTU};

/// Linux's interface beside the port.
pub const INTERFACE: &str = "ek-lan";

pub struct Appliance {
    pub process: Running,
    pub net: Namespace,
    name: String,
    /// Its own address, Linux's there.
    pub address: String,
    config: PathBuf,
    pub socket: PathBuf,
    text: String,
}

impl Appliance {
    /// The first one has the lab's usual addresses, and the backends' answers of NAT.
    pub fn start(lab: &Lab, number: usize, services: &[Service], more: &Value) -> Appliance {
        let name = format!("lb-{number}");
        let net = Namespace::create(lab.name(), &name);
        let address = Arms::One.address(Family::V4, 2 * number);
        connect(lab, &net, &name);
        let socket = lab.folder().join(format!("{name}.sock"));
        let config = lab.folder().join(format!("{name}.toml"));
        let own = |family: Family| {
            let last = 2 * number;
            format!("{}/{}", Arms::One.address(family, last), family.length())
        };
        let check = Arms::One.address(Family::V4, 2 * number + 1);
        let text = configuration(lab, 1, services);
        let mut whole: Value = toml::from_str(&text).expect("our own TOML");
        let port = &mut whole["port"][0];
        port["addresses"] = FAMILIES.map(own).to_vec().into();
        port["check_address"] = check.into();
        port["kernel_interface"] = INTERFACE.into();
        whole["management"] = json!({ "socket": socket, "metrics": "off" });
        merge(&mut whole, more);
        let text = toml::to_string(&whole).expect("TOML");
        let mut appliance = Appliance {
            process: run(lab, &net, &name, &config, &text),
            net,
            name,
            address,
            config,
            socket,
            text,
        };
        appliance.plug_in(lab);
        appliance
    }

    /// Runs it again after its end.
    pub fn start_again(&mut self, lab: &Lab) {
        self.process = run(lab, &self.net, &self.name, &self.config, &self.text);
        self.plug_in(lab);
    }

    /// Plugs the port into its cable; returns when Linux behind it answers the router.
    fn plug_in(&mut self, lab: &Lab) {
        wait_for("the port's device", || {
            self.process.assert_running();
            // It is there once the port is started, which sets the device's MAC address.
            self.net.try_ip(&format!("link show {INTERFACE}"))
        });
        // A bridge keeps what others send to an address of its own members.
        self.net.ip(&format!(
            "link set {TAP} address {KERNEL_END} master wire up"
        ));
        wait_for(&format!("an answer from {}", self.address), || {
            self.process.assert_running();
            let ping = ["-c1", "-W1", "-n", &self.address];
            let answer = lab.balancer.run("ping", &ping);
            answer.status.success().then_some(())
        });
    }

    /// `evenkeel run` that is expected to end by itself.
    pub fn run_to_the_end(&self) -> Output {
        let config = self.config.to_str().expect("a path in UTF-8");
        let seconds = process::PATIENCE.as_secs().to_string();
        let words = [&seconds, PROGRAM, "run", "--config", config];
        self.net.run("timeout", &words)
    }

    /// `evenkeel WORDS` on it.
    pub fn evenkeel(&self, words: &[&str]) -> Output {
        let socket = self.socket.to_str().expect("a path in UTF-8");
        let words = [words, &["--socket", socket]].concat();
        self.net.run(PROGRAM, &words)
    }

    /// What `evenkeel WORDS` prints, which must succeed.
    pub fn asked(&self, words: &[&str]) -> String {
        let output = self.evenkeel(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.asked(&["status", "--json"])).expect("JSON from status")
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.process.show_log();
        }
    }
}

fn run(lab: &Lab, net: &Namespace, name: &str, config: &PathBuf, text: &str) -> Running {
    fs::write(config, text).expect("the configuration");
    let words = ["run", "--config", config.to_str().expect("a path in UTF-8")];
    net.start(PROGRAM, &words, lab.folder().join(format!("{name}.log")))
}

fn connect(lab: &Lab, net: &Namespace, name: &str) {
    let port = format!("to-{name}");
    lab.balancer.cable(&port, net, "eth0");
    let switch = Arms::One.switch();
    lab.balancer
        .ip(&format!("link set {port} mtu {MTU} master {switch} up"));
    // A wire is no host: it speaks no IP.
    let options = "forward_delay 0 stp_state 0 mcast_snooping 0";
    net.ip(&format!(
        "link add wire address 02:00:00:00:00:fd type bridge {options}"
    ));
    for device in ["wire", "eth0"] {
        net.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1");
    }
    net.ip(&format!("link set wire mtu {MTU} up"));
    net.ip(&format!("link set eth0 mtu {MTU} master wire up"));
}

/// Adds tables and keys; lists of tables are merged one by one.
pub fn merge(whole: &mut Value, more: &Value) {
    match (whole, more) {
        (Value::Object(whole), Value::Object(more)) => {
            for (key, value) in more {
                match whole.get_mut(key) {
                    Some(known) => merge(known, value),
                    None => drop(whole.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(whole), Value::Array(more)) if more.iter().all(Value::is_object) => {
            for (one, more) in whole.iter_mut().zip(more) {
                merge(one, more);
            }
        }
        (whole, more) => *whole = more.clone(),
    }
}

/// The status of a command that must succeed.
pub fn assert_done(output: &Output, what: &str) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{what}: {out}{err}");
}
