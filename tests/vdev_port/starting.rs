//! Starting DPDK, well and badly. It starts once per process, so each case is
//! this program again, told by its environment what to try.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use evenkeel::port::{Eal, EalError, EalOptions, Huge, Mempool};

use crate::cpu;

/// "case prefix".
const CHILD: &str = "EVENKEEL_TEST_CHILD";

/// True if this process was told to be such a case, and was.
pub fn child() -> bool {
    let Ok(what) = std::env::var(CHILD) else {
        return false;
    };
    let (case, prefix) = what.split_once(' ').unwrap();
    let options = EalOptions {
        file_prefix: prefix.to_owned(),
        memory_mib: Some(if case == "memory" { 1 << 30 } else { 64 }),
        huge: if case == "second" {
            Huge::Never
        } else {
            Huge::Auto
        },
        lcores: vec![(0, cpu(0))],
        ..EalOptions::default()
    };
    match Eal::init(&options) {
        Err(error) => println!("{error}"),
        Ok(eal) => {
            let pool = Mempool::new("child", 1023, 2048, 0, -1).unwrap();
            assert_eq!(pool.available(), 1023);
            println!("{}", eal.no_huge_pages_reason().unwrap_or("huge pages"));
            if case == "crash" {
                std::process::abort();
            }
        }
    }
    true
}

fn run(case: &str, prefix: &str) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .env(CHILD, format!("{case} {prefix}"))
        .output()
        .unwrap()
}

/// What a child printed, which is one line and all there is.
fn said(child: &Output) -> String {
    let stderr = String::from_utf8_lossy(&child.stderr);
    assert!(stderr.is_empty(), "{stderr}");
    let text = String::from_utf8_lossy(&child.stdout).trim_end().to_owned();
    assert!(!text.contains('\n'), "{text}");
    text
}

/// The cases before DPDK runs in this process.
pub fn children() {
    let prefix = format!("ek-port-child-{}", std::process::id());
    let memory = said(&run("memory", &prefix));
    assert!(memory.contains("MiB of memory are needed"), "{memory}");
    assert!(!runtime_dir(&prefix).exists());
    println!("ok: too little memory is a one-line error");

    let started = said(&run("start", &prefix));
    assert!(
        started == "huge pages" || started.contains("huge"),
        "{started}"
    );
    assert!(!runtime_dir(&prefix).exists());
    println!("ok: starts and leaves nothing behind ({started})");

    let crash = run("crash", &prefix);
    assert!(!crash.status.success());
    let started = String::from_utf8_lossy(&crash.stdout).into_owned();
    let left = huge_page_files(&prefix);
    assert!(
        left.is_empty(),
        "a crash leaves huge pages behind: {left:?}"
    );
    println!(
        "ok: a crash leaves no huge page behind ({})",
        started.trim_end()
    );
    let _ = std::fs::remove_dir_all(runtime_dir(&prefix));
}

/// Another instance under the prefix that this process runs under.
pub fn second_instance(prefix: &str) {
    let expected = EalError::SecondInstance(prefix.to_owned()).to_string();
    assert_eq!(said(&run("second", prefix)), expected);
    assert!(
        runtime_dir(prefix).exists(),
        "the first instance keeps its files"
    );
    println!("ok: a second instance is refused");
}

fn huge_page_files(prefix: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let huge = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().filter(|_| fields.next() == Some("hugetlbfs"))
    });
    let files = huge
        .filter_map(|mount| std::fs::read_dir(mount).ok())
        .flatten();
    let paths = files.filter_map(|file| Some(file.ok()?.path()));
    paths
        .filter(|path| path.to_string_lossy().contains(prefix))
        .collect()
}

/// DPDK's directory for an instance (its guide, "EAL runtime directory").
pub fn runtime_dir(prefix: &str) -> PathBuf {
    if crate::is_root() {
        return Path::new("/var/run/dpdk").join(prefix);
    }
    let user = std::env::var("XDG_RUNTIME_DIR").unwrap_or_else(|_| "/tmp".into());
    Path::new(&user).join("dpdk").join(prefix)
}
