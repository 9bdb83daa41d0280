//! `tests/tools/lab_tool.rs` in the lab's hosts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::namespace::Namespace;
use super::process::{self, Running};

/// The devices through which unwrapped packets reach the kernel: one for IPIP, or for all tunnels
/// where `unwrap` does it; one for the kernel's tunnels over IPv6.
pub const TUN: &str = "tun0";
pub const TUN6: &str = "tun6";

/// The folder of the programs, built once per test process: `cargo test --test e2e` alone does not
/// build them.
fn folder() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let arguments = [
            "build",
            "--quiet",
            "--profile",
            "test",
            "--example",
            "lab_tool",
            "--example",
            "feeder",
            "--example",
            "syn_flood",
        ];
        process::check(Command::new(env!("CARGO")).args(arguments));
        // The test itself is `deps/e2e-<hash>` beside `examples`.
        let test = std::env::current_exe().expect("the path of the test");
        let profile = test
            .parent()
            .and_then(Path::parent)
            .expect("the profile's folder");
        profile.join("examples")
    })
}

fn path() -> PathBuf {
    folder().join("lab_tool")
}

/// A network card in software before evenkeel's ports: `tests/tools/feeder.rs`.
pub fn feeder(host: &Namespace, arguments: &[&str], log: PathBuf) -> Running {
    start_program("feeder", host, arguments, log)
}

/// Forged SYNs at another port of evenkeel's: `tests/tools/syn_flood.rs`.
pub fn syn_flood(host: &Namespace, arguments: &[&str], log: PathBuf) -> Running {
    start_program("syn_flood", host, arguments, log)
}

fn start_program(name: &str, host: &Namespace, arguments: &[&str], log: PathBuf) -> Running {
    let path = folder().join(name);
    let mut program = host.start(path.to_str().expect("a path in UTF-8"), arguments, log);
    program.wait_for_line("ready");
    program
}

/// Starts it in `host` and waits until it is ready.
pub fn start(host: &Namespace, arguments: &[&str], log: PathBuf) -> Running {
    let mut tool = begin(host, arguments, log);
    tool.wait_for_line("ready");
    tool
}

/// Starts it in `host`, with room for many sockets.
pub fn begin(host: &Namespace, arguments: &[&str], log: PathBuf) -> Running {
    let tool = path();
    let tool = tool.to_str().expect("a path in UTF-8");
    let script = format!("ulimit -n \"$(ulimit -H -n)\" && exec {tool} \"$@\"");
    let words = [&["-c", &script, "sh"], arguments].concat();
    host.start("sh", &words, log)
}

/// Runs it in `host` to its end; returns what it printed.
pub fn run(host: &Namespace, arguments: &[&str]) -> String {
    process::check(
        host.command(path().to_str().expect("a path in UTF-8"))
            .args(arguments),
    )
}

/// How many tunnelled packets `host` has taken apart.
pub fn unwrapped(host: &Namespace) -> u64 {
    let text = host.ip("-s -j link show");
    let links: serde_json::Value = serde_json::from_str(&text).expect("ip's JSON");
    let links = links.as_array().expect("a list of devices").iter();
    let ends = links.filter(|link| link["ifname"] == TUN || link["ifname"] == TUN6);
    let packets = |link: &serde_json::Value| link["stats64"]["rx"]["packets"].as_u64();
    ends.map(|link| packets(link).expect("a count")).sum()
}
