//! Network namespaces, named after the process that made them so that leftovers can be told apart.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::process::{self, Running};

/// Namespaces and folders are `ekt<pid>-<lab>...`.
pub const PREFIX: &str = "ekt";

/// A namespace that ends with this value, and all programs in it too.
pub struct Namespace {
    name: String,
}

/// True as root with the right to make namespaces.
pub fn may_create() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return false;
    };
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// Removes what the labs of test processes that no longer run have left behind.
pub fn sweep() {
    let abandoned = |name: &str| {
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else {
            return false;
        };
        !Path::new(&format!("/proc/{pid}")).exists()
    };
    for folder in ["/run/netns".into(), std::env::temp_dir()] {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if !abandoned(&name) {
                continue;
            }
            if folder == Path::new("/run/netns") {
                drop(Namespace { name });
            } else {
                // Another lab may be sweeping the same folder.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

impl Namespace {
    pub fn create(lab: &str, role: &str) -> Namespace {
        let namespace = Namespace {
            name: format!("{lab}-{role}"),
        };
        process::check(Command::new("ip").args(["netns", "add", &namespace.name]));
        // Addresses are usable at once, and nobody speaks unasked.
        for family in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{family}/accept_dad"), "0");
            namespace.sysctl(&format!("net/ipv6/conf/{family}/accept_ra"), "0");
        }
        namespace.ip("link set lo up");
        namespace
    }

    /// `ip WORDS` inside; a failure ends the test.
    pub fn ip(&self, words: &str) -> String {
        let mut command = Command::new("ip");
        command
            .args(["-n", &self.name])
            .args(words.split_whitespace());
        process::check(&mut command)
    }

    /// Like [`Namespace::ip`], where failing is one of the expected answers.
    pub fn try_ip(&self, words: &str) -> Option<String> {
        let mut command = Command::new("ip");
        let output = command
            .args(["-n", &self.name])
            .args(words.split_whitespace())
            .output();
        let output = output.expect("ip from iproute2");
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A virtual cable from `device` here to `their_device` in `other`.
    pub fn cable(&self, device: &str, other: &Namespace, their_device: &str) {
        process::check(Command::new("ip").args([
            "link",
            "add",
            device,
            "netns",
            &self.name,
            "type",
            "veth",
            "peer",
            "name",
            their_device,
            "netns",
            &other.name,
        ]));
    }

    pub fn up(&self, device: &str, addresses: &[&str]) {
        for address in addresses {
            self.ip(&format!("address add {address} dev {device}"));
        }
        self.ip(&format!("link set {device} up"));
    }

    /// Sets one of the kernel's per-namespace settings, `key` as under `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) {
        let script = format!("echo {value} > /proc/sys/{key}");
        process::check(self.command("sh").args(["-c", &script]));
    }

    /// `program` inside, not yet started. It dies with the thread that starts it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &self.name,
            "setpriv",
            "--pdeathsig",
            "KILL",
            program,
        ]);
        command
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let output = self.command(program).args(arguments).output();
        output.expect("ip from iproute2, setpriv from util-linux")
    }

    /// Starts `program` inside; what it prints goes to `log`.
    pub fn start(&self, program: &str, arguments: &[&str], log: impl AsRef<Path>) -> Running {
        let mut command = self.command(program);
        command.args(arguments);
        Running::start(command, log.as_ref())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Best effort: a drop during a panic must not panic again.
        let script = "ip netns pids \"$0\" | xargs -r kill -KILL; ip netns del \"$0\"";
        let _ = Command::new("sh").args(["-c", script, &self.name]).output();
    }
}
