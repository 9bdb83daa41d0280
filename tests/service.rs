//! evenkeel as a service of systemd: what it tells systemd, what systemd thinks of its units, and the
//! huge pages that are reserved before it starts. Starting it under a real systemd is for
//! tests/package.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const PROGRAM: &str = env!("CARGO_BIN_EXE_evenkeel");
const UNITS: [&str; 3] = [
    "evenkeel.service",
    "evenkeel-hugepages.service",
    "evenkeel-nic.service",
];

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let id = std::process::id();
        let path = std::env::temp_dir().join(format!("evenkeel-service-{name}-{id}"));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap()
    }

    /// A configuration that any machine can run.
    fn config(&self) -> PathBuf {
        let socket = self.0.join("socket");
        let text = format!(
            "[workers]\ncores = \"{}\"\nconnections = 10_000\nmemory = \"256MiB\"\nidle = \"sleep\"\n\
             [management]\nsocket = \"{}\"\nmetrics = \"off\"\n\
             [[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [\"192.0.2.2/24\"]\n",
            core(),
            socket.display()
        );
        self.write("evenkeel.toml", &text)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A CPU that this process may use.
fn core() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap();
    list.trim().split([',', '-']).next().unwrap().to_owned()
}

fn run(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// systemd's end of the notification socket, and the program at the other.
struct Notified {
    folder: Folder,
    socket: UnixDatagram,
    program: Child,
}

impl Notified {
    fn start(watchdog: Duration) -> Self {
        let folder = Folder::new("notify");
        let path = folder.0.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let program = Command::new(PROGRAM)
            .args(["run", "--allow-faults", "--config"])
            .arg(folder.config())
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", watchdog.as_micros().to_string())
            .stderr(std::fs::File::create(folder.0.join("log")).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Notified {
            folder,
            socket,
            program,
        }
    }

    /// What was told next, within a time.
    fn told(&self, within: Duration) -> Option<String> {
        let mut message = [0; 512];
        self.socket.set_read_timeout(Some(within)).unwrap();
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    /// The next message that is not of the watchdog.
    fn said(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            match self.told(Duration::from_secs(1)) {
                Some(message) if message.trim_end() != "WATCHDOG=1" => return message,
                _ => {}
            }
        }
        panic!("systemd was told nothing:\n{}", self.folder.read("log"));
    }

    fn signal(&self, name: &str) {
        let id = self.program.id().to_string();
        assert!(
            run(Command::new("kill").args(["-s", name, &id]))
                .status
                .success()
        );
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn systemd_is_told_of_start_reload_and_end_and_the_watchdog_is_fed() {
    let mut evenkeel = Notified::start(Duration::from_millis(300));
    assert_eq!(evenkeel.said(), "READY=1\n");
    let fed = evenkeel.told(Duration::from_secs(20));
    assert_eq!(fed.as_deref(), Some("WATCHDOG=1\n"));
    let log = evenkeel.folder.read("log");
    assert!(log.contains("bytes, kept by lf_stack"), "{log}");

    evenkeel.signal("HUP");
    let reloading = evenkeel.said();
    let now = reloading
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .unwrap_or_else(|| panic!("{reloading}"));
    assert!(now.trim_end().parse::<u64>().unwrap() > 0);
    assert_eq!(evenkeel.said(), "READY=1\n");

    evenkeel.signal("TERM");
    assert_eq!(evenkeel.said(), "STOPPING=1\n");
    assert!(evenkeel.program.wait().unwrap().success());
}

/// Everything that the units name, where the package puts it.
fn staged() -> Folder {
    let root = Folder::new("units");
    for program in [
        "usr/bin/evenkeel",
        "usr/sbin/evenkeel-nic",
        "usr/lib/evenkeel/huge-pages",
        "bin/sh",
    ] {
        let path = root.write(program, "#!/bin/sh\n");
        assert!(
            run(Command::new("chmod").arg("755").arg(path))
                .status
                .success()
        );
    }
    let units = root.0.join("usr/lib/systemd");
    std::fs::create_dir_all(&units).unwrap();
    let copied = run(Command::new("cp")
        .args(["-r", "/usr/lib/systemd/system"])
        .arg(&units));
    assert!(copied.status.success(), "{}", text(&copied));
    for unit in UNITS {
        let from = Path::new(REPOSITORY).join("packaging").join(unit);
        std::fs::copy(from, units.join("system").join(unit)).unwrap();
    }
    root
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let root = staged();
    let verify = || {
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no"]);
        command.arg(format!("--root={}", root.0.display()));
        run(command.args(UNITS))
    };
    let verified = verify();
    assert!(verified.status.success(), "{}", text(&verified));
    assert_eq!(text(&verified), "");

    std::fs::remove_file(root.0.join("usr/bin/evenkeel")).unwrap();
    let verified = verify();
    assert!(!verified.status.success(), "it looks at the commands");
    assert!(text(&verified).contains("/usr/bin/evenkeel is not executable"));
}

/// systemd's scale of exposure goes from 0 to 10.
#[test]
fn the_units_are_exposed_less_than_five() {
    for unit in UNITS {
        let path = Path::new(REPOSITORY).join("packaging").join(unit);
        let judged = run(Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--threshold=49"])
            .arg(path));
        let last = text(&judged);
        let last = last.trim_end().lines().last().unwrap_or_default();
        assert!(judged.status.success(), "{unit}: {last}");
        assert!(last.contains("Overall exposure level for"), "{last}");
    }
}

/// The script on a made-up sysfs, where so many huge pages of the kernel's usual size are reserved
/// and free.
struct HugePages {
    folder: Folder,
    pool: String,
    page_mib: u64,
}

impl HugePages {
    fn new(name: &str, reserved: u64, free: u64) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let kib: u64 = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("Hugepagesize:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap();
        let folder = Folder::new(name);
        let pool = format!("kernel/mm/hugepages/hugepages-{kib}kB");
        folder.write(&format!("{pool}/nr_hugepages"), &format!("{reserved}\n"));
        folder.write(&format!("{pool}/free_hugepages"), &format!("{free}\n"));
        HugePages {
            folder,
            pool,
            page_mib: kib / 1024,
        }
    }

    fn reserved(&self) -> u64 {
        let text = self.folder.read(&format!("{}/nr_hugepages", self.pool));
        text.trim().parse().unwrap()
    }

    fn script(&self, what: &str, huge_pages: &str) -> Output {
        run(
            Command::new(Path::new(REPOSITORY).join("packaging/huge-pages"))
                .arg(what)
                .env("HUGE_PAGES", huge_pages)
                .env("EVENKEEL_SYSFS", &self.folder.0)
                .env("EVENKEEL_PROGRAM", PROGRAM)
                .env("EVENKEEL_CONFIG", self.folder.0.join("evenkeel.toml"))
                .env("EVENKEEL_HUGE_PAGES_NOTE", self.folder.0.join("note")),
        )
    }
}

#[test]
fn huge_pages_are_reserved_as_the_configuration_needs_and_given_back() {
    let pages = HugePages::new("auto", 30, 10);
    let file = pages.folder.config();
    let checked = run(Command::new(PROGRAM)
        .args(["check", "--json", "--config"])
        .arg(file));
    let verdict: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    let needed = verdict["huge_pages_mib"].as_u64().unwrap();
    assert!((64..1024).contains(&needed), "{needed} MiB");

    let reserved = pages.script("reserve", "auto");
    assert!(reserved.status.success(), "{}", text(&reserved));
    let more = needed.div_ceil(pages.page_mib) - 10;
    assert_eq!(pages.reserved(), 30 + more);
    assert!(text(&reserved).contains(&format!("reserved {more} pages")));

    assert!(pages.script("release", "auto").status.success());
    assert_eq!(pages.reserved(), 30);
    assert!(pages.script("release", "auto").status.success());
    assert_eq!(pages.reserved(), 30, "nothing is given back twice");
}

#[test]
fn huge_pages_that_are_free_or_not_wanted_are_not_reserved() {
    let pages = HugePages::new("free", 2000, 2000);
    for huge_pages in ["100", "off"] {
        let reserved = pages.script("reserve", huge_pages);
        assert!(reserved.status.success(), "{}", text(&reserved));
        assert_eq!(pages.reserved(), 2000);
    }
    for (huge_pages, complaint) in [
        ("many", "auto, off, or a number of MiB"),
        ("auto", "evenkeel check says why"),
    ] {
        let refused = pages.script("reserve", huge_pages);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused).contains(complaint), "{}", text(&refused));
    }
}
