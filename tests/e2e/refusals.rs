//! What `evenkeel run` refuses: one line on stderr that says what to do, an exit status that is not
//! 0, and nothing left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::lab::balancer::{Evenkeel, TAP, attach, configuration, run_to_the_end, start, web};
use crate::lab::process;
use crate::lab::{Arms, Lab};

/// A lab and a configuration file in it, changed by `change`.
fn lab_with(change: impl Fn(String) -> String) -> Option<(Lab, PathBuf)> {
    let lab = Lab::new(Arms::One)?;
    let text = change(configuration(&lab, 1, &[web("nat", "rr")]));
    let file = lab.folder().join("refused.toml");
    fs::write(&file, text).expect("the configuration");
    Some((lab, file))
}

fn replace(old: &'static str, new: &'static str) -> impl Fn(String) -> String {
    move |text| {
        assert!(text.contains(old), "{old} is not in {text}");
        text.replacen(old, new, 1)
    }
}

/// Runs it to its end, which must be a refusal whose line has each of `words`.
fn assert_refused(lab: &Lab, before: &[&str], file: &Path, words: &[&str]) {
    let (devices, dpdk) = (lab.balancer.ip("-o link show"), dpdk_files(lab));
    let output = run_to_the_end(lab, before, file);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    // Lines of the log begin with the time.
    let is_log = |line: &&str| line.starts_with(|first: char| first.is_ascii_digit());
    let lines: Vec<_> = said.lines().filter(|line| !is_log(line)).collect();
    // One for each fault of a configuration.
    let is_fault = |line: &&str| line.starts_with(&format!("{}:", file.display()));
    let one_each = lines.len() == 1 || !lines.is_empty() && lines.iter().all(is_fault);
    assert!(one_each, "not one line:\n{said}");
    for word in words {
        assert!(
            lines.iter().any(|line| line.contains(word)),
            "no '{word}' in:\n{said}"
        );
    }
    assert_eq!(
        lab.balancer.ip("-o link show"),
        devices,
        "a device was left behind"
    );
    let left: Vec<_> = dpdk_files(lab).difference(&dpdk).cloned().collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "files were left behind");
}

/// Run-time folders and huge-page files of this lab's evenkeels, whose names hold the path of the
/// socket and so the lab's folder: other labs run at the same time.
fn dpdk_files(lab: &Lab) -> BTreeSet<PathBuf> {
    let folders = ["/run/dpdk", "/var/run/dpdk", "/dev/hugepages"];
    let entries = folders
        .into_iter()
        .filter_map(|folder| fs::read_dir(folder).ok());
    let paths = entries.flatten().flatten().map(|entry| entry.path());
    let folder = lab.folder().file_name().expect("a lab's folder has a name");
    let own = format!("-{}-", folder.to_string_lossy());
    paths
        .filter(|path| path.to_string_lossy().contains(&own))
        .collect()
}

#[test]
fn a_file_that_is_no_toml() {
    let Some((lab, file)) = lab_with(replace("[workers]", "[workers")) else {
        return;
    };
    assert_refused(&lab, &[], &file, &["refused.toml:"]);
}

#[test]
fn an_unknown_key_with_its_place() {
    let change = replace("idle = \"sleep\"", "idel = \"sleep\"");
    let Some((lab, file)) = lab_with(change) else {
        return;
    };
    let text = fs::read_to_string(&file).expect("the configuration");
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("idel"))
        .expect("the key");
    assert_refused(
        &lab,
        &[],
        &file,
        &[&format!("refused.toml:{line}:1"), "idel"],
    );
}

#[test]
fn a_file_that_is_not_there() {
    let Some((lab, _)) = lab_with(|text| text) else {
        return;
    };
    assert_refused(
        &lab,
        &[],
        &lab.folder().join("absent.toml"),
        &["absent.toml"],
    );
}

#[test]
fn a_missing_device() {
    let change = replace("net_tap0,iface=ek0", "net_af_packet0,iface=absent0");
    let Some((lab, file)) = lab_with(change) else {
        return;
    };
    assert_refused(&lab, &[], &file, &["absent0"]);
}

#[test]
fn a_missing_pci_device() {
    let change = replace("net_tap0,iface=ek0", "0000:ff:1f.7");
    let Some((lab, file)) = lab_with(change) else {
        return;
    };
    assert_refused(&lab, &[], &file, &["0000:ff:1f.7"]);
}

#[test]
fn a_device_that_another_program_holds() {
    let services = [web("nat", "rr")];
    let Some((lab, file)) = lab_with(replace("evenkeel.sock", "other.sock")) else {
        return;
    };
    let mut first = Evenkeel::start(&lab, 1, &services);
    assert_refused(&lab, &[], &file, &[TAP]);
    first.process.assert_running();
}

#[test]
fn a_second_instance() {
    let services = [web("nat", "rr")];
    let Some((lab, file)) = lab_with(|text| text) else {
        return;
    };
    let mut first = Evenkeel::start(&lab, 1, &services);
    assert_refused(&lab, &[], &file, &["evenkeel.sock"]);
    first.process.assert_running();
    assert!(
        first.status(&lab).is_object(),
        "the first one still answers"
    );
}

#[test]
fn too_little_memory_for_the_connections() {
    let change = replace("connections = 10000", "connections = 100_000_000");
    let Some((lab, file)) = lab_with(change) else {
        return;
    };
    assert_refused(&lab, &[], &file, &["memory"]);
}

#[test]
fn more_memory_than_there_is() {
    let Some((lab, file)) = lab_with(|text| {
        let text = replace("memory = \"128MiB\"", "memory = \"900GiB\"")(text);
        replace("connections = 10000", "connections = 1000000000")(text)
    }) else {
        return;
    };
    assert_refused(&lab, &[], &file, &["memory", "connections"]);
}

#[test]
fn no_privileges() {
    let Some((lab, file)) = lab_with(|text| text) else {
        return;
    };
    let nobody = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    fs::set_permissions(lab.folder(), open_to_all()).expect("permissions");
    assert_refused(&lab, &nobody, &file, &["root"]);
}

fn open_to_all() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o777)
}

/// After a kill that it cannot handle, the next start finds its way clear.
#[test]
fn a_start_after_a_crash() {
    let services = [web("nat", "rr")];
    let Some((lab, file)) = lab_with(|text| text) else {
        return;
    };
    let mut first = Evenkeel::start(&lab, 1, &services);
    first.process.signal("KILL");
    process::wait_for("the end after SIGKILL", || first.process.exited());
    let mut second = start(&lab, &file, "second.log");
    attach(&lab, &mut second, TAP, Arms::One);
    second.assert_running();
}
