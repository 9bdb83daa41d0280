//! Changes to a running evenkeel on a DPDK device that needs no hardware: by command, by file and by
//! signal. Whether packets are lost meanwhile is for the tests with traffic.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A running evenkeel with files of its own; both go away with the test.
struct Running {
    directory: PathBuf,
    program: Child,
}

const CONFIG: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["192.0.2.2/24"]
gateway = "192.0.2.1"
[[port.neighbour]]
address = "192.0.2.1"
mac = "02:00:00:00:00:01"
[[port.neighbour]]
address = "192.0.2.11"
mac = "02:00:00:00:00:11"

[[service]]
name = "web"
listen = "tcp:192.0.2.80:80"
method = "nat"
scheduler = "wrr"
[[service.backend]]
name = "a"
address = "192.0.2.11"
"#;

impl Running {
    fn start(name: &str) -> Self {
        let id = std::process::id();
        let directory = std::env::temp_dir().join(format!("evenkeel-live-{name}-{id}"));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("evenkeel.toml"), config(&directory, CONFIG)).unwrap();
        let program = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(["run", "--config"])
            .arg(directory.join("evenkeel.toml"))
            .stderr(std::fs::File::create(directory.join("log")).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut running = Running { directory, program };
        running.wait_for("an answer", |running| {
            running.ask(&["status"]).status.success()
        });
        running
    }

    fn wait_for(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so(self) {
            let log = || std::fs::read_to_string(self.directory.join("log")).unwrap();
            assert!(
                self.program.try_wait().unwrap().is_none(),
                "it ended:\n{}",
                log()
            );
            assert!(Instant::now() < deadline, "no {what}:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(arguments)
            .arg("--socket")
            .arg(self.directory.join("socket"))
            .output()
            .unwrap()
    }

    /// What a command that must succeed prints.
    fn say(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The line with which a command is refused.
    fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    fn file(&self) -> String {
        self.directory.join("evenkeel.toml").display().to_string()
    }

    fn write(&self, text: &str) {
        std::fs::write(self.file(), config(&self.directory, text)).unwrap();
    }

    fn signal(&self, name: &str) {
        let id = self.program.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// The tag of the running configuration, which another one does not have.
    fn tag(&self) -> String {
        let mut stream = UnixStream::connect(self.directory.join("socket")).unwrap();
        let request = "GET /v1/config HTTP/1.1\r\nhost: evenkeel\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let mut lines = answer.lines().map(str::to_ascii_lowercase);
        let tag = lines.find_map(|line| line.strip_prefix("etag: ").map(str::to_owned));
        tag.unwrap_or_else(|| panic!("no tag in {answer}"))
    }

    fn listing(&self) -> String {
        self.say(&["status", "--ipvsadm"])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The first core that this process may use, for tests on machines that lend only some.
fn core() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let cores = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))
        .unwrap();
    cores.split([',', '-']).next().unwrap().to_owned()
}

fn config(directory: &std::path::Path, text: &str) -> String {
    format!(
        "[workers]\ncores = \"{}\"\nconnections = 10_000\nmemory = \"256MiB\"\nidle = \"sleep\"\n[management]\nsocket = \"{}\"\n{text}",
        core(),
        directory.join("socket").display()
    )
}

#[test]
fn a_running_evenkeel_is_changed_saved_and_reloaded() {
    let mut running = Running::start("change");
    let changed = running.say(&["backend", "set", "web", "a", "--weight", "5"]);
    assert_eq!(changed, "~ service web backend a: weight: default -> 5\n");
    running.say(&["backend", "add", "web", "b", "--address", "192.0.2.12"]);
    running.say(&[
        "service",
        "add",
        "dns",
        "--listen",
        "udp:192.0.2.53:53",
        "--method",
        "nat",
        "--scheduler",
        "rr",
    ]);
    running.wait_for("change", |running| {
        let listing = running.listing();
        listing.contains("192.0.2.11:80                Masq    5")
            && listing.contains("192.0.2.12:80")
    });
    assert!(running.listing().contains("UDP  192.0.2.53:53 rr\n"));

    let saved = running.directory.join("saved.toml").display().to_string();
    running.say(&["save", "--config", &saved]);
    assert_eq!(
        running.say(&["reload", "--config", &saved]),
        "nothing changes\n"
    );

    let file = running.file();
    let dry = running.say(&["reload", "--dry-run", "--config", &file]);
    assert!(dry.ends_with("nothing was changed (--dry-run)\n"), "{dry}");
    let impact =
        "service web: 16.7 % of hash slots get another backend; 0 of 0 live flows lose theirs\n";
    assert!(dry.contains(impact), "{dry}");
    let gone =
        "service dns: 100.0 % of hash slots get another backend; 0 of 0 live flows lose theirs\n";
    assert!(dry.contains(gone), "{dry}");
    assert!(running.listing().contains("192.0.2.12:80"));
    let expected =
        "- service dns\n- service web backend b\n~ service web backend a: weight: 5 -> default\n";
    assert_eq!(running.say(&["reload", "--config", &file]), expected);
    running.wait_for("reload", |running| {
        !running.listing().contains("192.0.2.12:80")
    });

    running.write(&CONFIG.replace("wrr", "mh"));
    running.signal("HUP");
    running.wait_for("reload by signal", |running| {
        running.listing().contains("192.0.2.80:80 mh\n")
    });

    running.signal("TERM");
    let ended = running.program.wait().unwrap();
    assert_eq!(ended.code(), Some(0));
    assert!(
        !running.directory.join("socket").exists(),
        "nothing is left behind"
    );
    assert!(!running.directory.join("socket.lock").exists());
}

#[test]
fn what_cannot_be_changed_is_refused_and_changes_nothing() {
    let running = Running::start("refuse");
    let before = running.say(&["status", "--ipvsadm"]);
    let file = running.file();

    running.write(&CONFIG.replace("net_null0", "net_null1"));
    let refusal = running.refusal(&["reload", "--config", &file]);
    assert!(
        refusal.contains("port[1].device: \"net_null0\" -> \"net_null1\""),
        "{refusal}"
    );
    running.write(&CONFIG.replace("\"nat\"", "\"natt\""));
    let refusal = running.refusal(&["reload", "--config", &file]);
    assert!(
        refusal.starts_with(&format!(
            "{file}:24:10: service.method = \"natt\" is not known"
        )),
        "{refusal}"
    );
    let refusal = running.refusal(&["backend", "set", "web", "none", "--weight", "1"]);
    assert!(
        refusal.contains("service \"web\" has no backend \"none\""),
        "{refusal}"
    );
    let refusal = running.refusal(&["backend", "add", "web", "b", "--address", "192.0.2.11"]);
    assert!(
        refusal.contains("192.0.2.11:80 is already used in backend \"a\" of service \"web\""),
        "{refusal}"
    );
    let refusal = running.refusal(&["service", "remove", "none"]);
    assert!(
        refusal.contains("there is no service \"none\""),
        "{refusal}"
    );
    let refusal = running.refusal(&[
        "run",
        "--config",
        &file.replace("evenkeel.toml", "none.toml"),
    ]);
    assert!(refusal.contains("cannot read "), "{refusal}");
    running.write(CONFIG);
    let refusal = running.refusal(&["run", "--config", &file]);
    assert!(
        refusal.contains(&format!(
            "another evenkeel (process {})",
            running.program.id()
        )),
        "{refusal}"
    );

    assert_eq!(running.say(&["status", "--ipvsadm"]), before);
}

#[test]
fn what_is_imported_changes_nothing_unless_it_is_whole() {
    let running = Running::start("import");
    let (tag, saved) = (running.tag(), running.directory.join("saved"));
    let import = |from: &str, text: &str| {
        std::fs::write(&saved, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(["import", from])
            .arg(&saved)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (String::from_utf8(output.stdout).unwrap(), error)
    };
    let path = saved.display();
    let broken = [
        (
            "ipvsadm",
            "-A -t 192.0.2.80:http -s rr\n",
            "1:7: \"http\" is not",
        ),
        (
            "keepalived",
            "virtual_server 192.0.2.80 80 {\n",
            "1:30: a { is never",
        ),
    ];
    for (from, text, fault) in broken {
        let (toml, error) = import(from, text);
        assert_eq!(toml, "", "half an import of {from}");
        assert!(error.contains(&format!("{path}:{fault}")), "{error}");
        assert_eq!(running.tag(), tag);
    }

    let rules = "-A -t 192.0.2.81:80 -s wlc\n-a -t 192.0.2.81:80 -r 192.0.2.11:80 -m -w 1\n";
    let (toml, _) = import("ipvsadm", rules);
    let service = &toml[toml.find("[[service]]").expect("a service")..];
    // What the operator has to complete is not complete.
    running.write(&toml);
    let refusal = running.refusal(&["reload", "--config", &running.file()]);
    assert!(
        refusal.contains("no port has a subnet, route or gateway to 192.0.2.11; add"),
        "{refusal}"
    );
    assert_eq!(running.tag(), tag);

    running.write(&format!("{CONFIG}{service}"));
    running.say(&["reload", "--config", &running.file()]);
    assert_ne!(running.tag(), tag);
    assert!(
        running.listing().contains("192.0.2.81:80"),
        "{}",
        running.listing()
    );
}

/// The kinds of the events so far, in their order.
fn kinds(running: &Running) -> Vec<String> {
    let past = running.say(&["events", "--past"]);
    let kind = |line: &str| line.split_whitespace().nth(1).unwrap().to_owned();
    past.lines().map(kind).collect()
}

#[test]
fn what_happens_is_told_as_events() {
    let mut running = Running::start("events");
    running.say(&["backend", "add", "web", "b", "--address", "192.0.2.12"]);
    running.say(&["backend", "drain", "web", "a"]);
    running.wait_for("drain", |running| {
        kinds(running).contains(&"drain-ended".to_owned())
    });
    running.say(&["backend", "drain", "web", "a", "--undo"]);
    running.write("[[port]]\nname = 5\n");
    running.signal("HUP");
    running.wait_for("refusal", |running| {
        kinds(running).contains(&"reload-refused".to_owned())
    });
    let told = kinds(&running).into_iter();
    let of_us = told.filter(|kind| kind.starts_with("reload") || kind.starts_with("drain"));
    assert_eq!(
        of_us.collect::<Vec<_>>(),
        [
            "reload",
            "reload",
            "drain-begun",
            "drain-ended",
            "reload",
            "reload-refused"
        ]
    );
    let past = running.say(&["events", "--past"]);
    assert!(past.contains("configuration changed: + service web backend b\n"));
    assert!(past.contains("drain ended: it has no connections any more\n"));
    let refused = past.lines().find(|line| line.contains("reload-refused"));
    assert!(
        refused.unwrap().contains("port.name is a whole number"),
        "{past}"
    );
}

#[test]
fn events_are_followed_until_evenkeel_ends() {
    use std::io::{BufRead as _, BufReader};
    let running = Running::start("follow");
    let mut follower = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["events", "--json", "--after", "0", "--socket"])
        .arg(running.directory.join("socket"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    running.say(&["backend", "set", "web", "a", "--weight", "7"]);
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let told = lines.find_map(|line| {
        let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        (event["kind"] == "reload").then_some(event)
    });
    let message = told.unwrap()["message"].as_str().unwrap().to_owned();
    assert_eq!(
        message,
        "configuration changed: ~ service web backend a: weight: default -> 7"
    );
    running.signal("TERM");
    let ended = follower.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let error = String::from_utf8(ended.stderr).unwrap();
    assert!(error.contains("evenkeel has ended"), "{error}");
}

#[test]
fn a_trace_says_what_would_become_of_a_packet() {
    let mut running = Running::start("trace");
    let trace = |arguments: &[&str]| running.say(&[&["trace"], arguments].concat());
    let said = trace(&["198.51.100.7", "192.0.2.80:80"]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[0],
        "packet     tcp syn 198.51.100.7:40000 -> 192.0.2.80:80, in on wan"
    );
    assert_eq!(lines[1], format!("worker     0 on core {}", core()));
    assert_eq!(lines[2], "service    web: nat, wrr");
    assert_eq!(lines[3], "backend    a 192.0.2.11:80");
    assert_eq!(
        lines[4],
        "why        wrr chooses it now, of 1 that take new connections"
    );
    assert_eq!(
        lines[5],
        "verdict    transmit, out of wan to 02-00-00-00-00-11"
    );
    assert!(
        said.contains("IPv4 src=198.51.100.7 dst=192.0.2.11 proto=TCP"),
        "{said}"
    );
    assert!(
        lines.iter().all(|line| line.chars().count() <= 120),
        "{said}"
    );

    let said = trace(&["198.51.100.7:1234", "192.0.2.80:81"]);
    assert!(said.contains("verdict    pass (local)"), "{said}");
    assert!(
        said.contains("note       service web listens on tcp:192.0.2.80:80\n"),
        "{said}"
    );
    let said = trace(&["192.0.2.80", "192.0.2.80:80"]);
    assert!(said.contains("verdict    drop (bad_source)"), "{said}");
    let said = trace(&["198.51.100.7", "192.0.2.80:80", "--flags", "ack"]);
    assert!(
        said.contains("verdict    answer (untracked), out of wan"),
        "{said}"
    );
    let refused = running.refusal(&["trace", "2001:db8::1", "192.0.2.80:80"]);
    assert!(refused.contains("different families"), "{refused}");

    // Another backend, whose next hop nobody knows; then none takes new connections.
    running.say(&["backend", "add", "web", "b", "--address", "192.0.2.12"]);
    running.say(&["backend", "set", "web", "a", "--weight", "0"]);
    running.wait_for("change", |running| {
        let said = running.say(&["trace", "198.51.100.7", "192.0.2.80:80"]);
        said.contains("backend    b 192.0.2.12:80") && said.contains("b 192.0.2.12 is unreachable")
    });
    running.say(&["backend", "drain", "web", "b"]);
    running.wait_for("drain", |running| {
        let said = running.say(&["trace", "198.51.100.7", "192.0.2.80:80"]);
        said.contains("verdict    answer (no_backend), out of wan")
            && said.contains("note       backend a 192.0.2.11 has weight 0")
            && said.contains("note       backend b 192.0.2.12 is unreachable")
    });
    // Nothing of this was counted.
    let status = running.say(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let drops = status["drops"].as_array().unwrap().iter();
    // What the device brings is for nobody here.
    let reasons: Vec<_> = drops.map(|drop| &drop["reason"]).collect();
    assert!(
        reasons.iter().all(|reason| **reason == "foreign_mac"),
        "{status}"
    );
    assert_eq!(status["services"][0]["connections"], 0);
}
