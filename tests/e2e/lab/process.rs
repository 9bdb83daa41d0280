//! Programs of the lab, and waiting for conditions with a deadline.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for the slowest machine that tests run on; nobody waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Asks `look` again and again until it has an answer; ends the test after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for {what}"
        );
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// Runs a command that must succeed; returns what it printed.
pub fn check(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}: {errors}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The first `count` cores that this process may use, as evenkeel's `cores`; the same ones again
/// where there are not so many.
pub fn cores(count: usize) -> String {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let ranges = list.expect("a list of cores").trim().split(',');
    let all = ranges.flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<u32>().expect("a core's number");
        number(first)..=number(last)
    });
    let all: Vec<u32> = all.collect();
    all.iter()
        .cycle()
        .take(count)
        .map(|core| core.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

/// Says that the running test is skipped and why; `scripts/test` counts the lines in the file that
/// `EVENKEEL_SKIPPED` names.
pub fn say_skipped(reason: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("skipped: {test}: {reason}");
    if let Some(list) = std::env::var_os("EVENKEEL_SKIPPED") {
        let list = OpenOptions::new().create(true).append(true).open(list);
        writeln!(list.expect("the list of skipped tests"), "{test}: {reason}").expect("one line");
    }
}

/// A program that is killed when this value goes.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    pub fn start(mut command: Command, log: &Path) -> Running {
        let out = File::create(log).expect("a log file");
        let err = out.try_clone().expect("a log file");
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Running {
            child,
            log: log.to_owned(),
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn show_log(&self) {
        eprintln!("--- {}\n{}", self.log.display(), self.log());
    }

    pub fn wait_for_line(&mut self, line: &str) {
        wait_for(&format!("'{line}' in {}", self.log.display()), || {
            if self.log().lines().any(|printed| printed == line) {
                return Some(());
            }
            self.assert_running();
            None
        });
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the state of a child")
    }

    /// Ends the test, with what the program printed, when the program has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.exited() {
            panic!(
                "{} ended with {status}:\n{}",
                self.log.display(),
                self.log()
            );
        }
    }

    /// Sends SIGTERM and returns the exit status and how long it took.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let since = Instant::now();
        self.signal("TERM");
        let status = wait_for("the end after SIGTERM", || self.exited());
        (status, since.elapsed())
    }

    pub fn signal(&self, signal: &str) {
        let script = format!("kill -{signal} {}", self.child.id());
        check(Command::new("sh").args(["-c", &script]));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
