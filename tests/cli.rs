//! The program as a script sees it: exit status, and what goes to which output.

use std::path::PathBuf;
use std::process::{Command, Output};

fn evenkeel(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A file that goes away with the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evenkeel-cli-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        TempFile(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn check_accepts_the_example() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/evenkeel.toml");
    let output = evenkeel(&["check", "--config", example]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains(": valid; ports: 1, services: 1, backends: 3"));
    assert!(output.stderr.is_empty());
}

#[test]
fn check_says_file_line_column_reason_and_fix() {
    let file = TempFile::new("bad.toml", "[[port]]\nname = \"p\"\ndevise = \"x\"\n");
    let output = evenkeel(&["check", "--config", file.name()]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "{0}:1:1: [port] has no device; add device = \"0000:01:00.0\"\n{0}:3:1: unknown key \"devise\" in [port]; did you mean \"device\"?\n",
        file.name()
    );
    assert_eq!(text(&output.stderr), expected);
    assert!(output.stdout.is_empty());

    let output = evenkeel(&["check", "--json", "--config", file.name()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["valid"], false);
    assert_eq!(
        (
            &verdict["faults"][1]["line"],
            &verdict["faults"][1]["column"]
        ),
        (&3.into(), &1.into())
    );
}

#[test]
fn what_cannot_be_done_is_one_line_and_status_one() {
    for arguments in [
        &["check", "--config", "/nonexistent/evenkeel.toml"][..],
        &["status", "--socket", "/nonexistent/evenkeel.sock"],
        &[
            "connections",
            "--socket",
            "/nonexistent/evenkeel.sock",
            "--json",
        ],
    ] {
        let output = evenkeel(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let error = text(&output.stderr);
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains("; "), "it says what to do: {error}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_command_line_is_status_two() {
    for arguments in [&[][..], &["fly"], &["check", "--colour"], &["status", "-c"]] {
        assert_eq!(evenkeel(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn version_is_the_packages() {
    let output = evenkeel(&["version"]);
    assert!(text(&output.stdout).starts_with(concat!(
        "evenkeel ",
        env!("CARGO_PKG_VERSION"),
        "\n"
    )));
    let output = evenkeel(&["version", "--json"]);
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(version["evenkeel"], env!("CARGO_PKG_VERSION"));
    let dpdk = version["dpdk"].as_str().unwrap();
    let year: u32 = dpdk.split('.').next().unwrap().parse().unwrap();
    assert!(year >= 22, "{dpdk}");
    assert!(text(&evenkeel(&["version"]).stdout).ends_with(&format!("DPDK {dpdk}\n")));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault_of_the_program_call() {
    let output = evenkeel(&["check", "--config", "/nowhere/evenkeel.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).starts_with("evenkeel: cannot read /nowhere/evenkeel.toml: "),
        "{}",
        text(&output.stderr)
    );
}
