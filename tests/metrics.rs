//! The metrics of a running evenkeel as Prometheus sees them, and the alerts and the dashboard that
//! are made of them. `promtool` (Debian's package prometheus) judges.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RULES: &str = "packaging/prometheus/evenkeel.rules.yml";
const DASHBOARD: &str = "packaging/grafana/evenkeel.json";

/// A running evenkeel; it and its files go away with the test.
struct Running {
    folder: PathBuf,
    program: Child,
    metrics: SocketAddr,
}

impl Running {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("ekmetrics{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!(
            r#"
[workers]
cores = "{}"
connections = 10_000
memory = "256MiB"
idle = "sleep"
[management]
socket = "{}/socket"
metrics = "127.0.0.1:0"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["192.0.2.2/24"]
[[service]]
name = "web"
listen = "tcp:192.0.2.80:80"
method = "nat"
scheduler = "wrr"
[[service.backend]]
name = "a"
address = "192.0.2.11"
weight = 3
[[service.backend]]
name = "b"
address = "192.0.2.12"
"#,
            core(),
            folder.display()
        );
        std::fs::write(folder.join("evenkeel.toml"), text).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(["run", "--config"])
            .arg(folder.join("evenkeel.toml"))
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Port 0 means any; the log tells which it is.
        let deadline = Instant::now() + Duration::from_secs(60);
        let metrics = loop {
            let log = std::fs::read_to_string(folder.join("log")).unwrap();
            let told = log.split("metrics at http://").nth(1);
            if let Some((address, _)) = told.and_then(|rest| rest.split_once("/metrics")) {
                break address.parse().unwrap();
            }
            assert!(program.try_wait().unwrap().is_none(), "it ended:\n{log}");
            assert!(Instant::now() < deadline, "no metrics:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        };
        Self {
            folder,
            program,
            metrics,
        }
    }

    /// The head and the body of the answer to `method` on /metrics.
    fn ask(&self, method: &str, accept: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        write!(
            stream,
            "{method} /metrics HTTP/1.1\r\nHost: evenkeel\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The first core that this process may use.
fn core() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let cores = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))
        .unwrap();
    cores.split([',', '-']).next().unwrap().to_owned()
}

/// What promtool says; it must be content.
fn promtool(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

/// The names that start with evenkeel_ in a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("evenkeel_"))
        .collect()
}

/// Every expression of the dashboard.
fn expressions(dashboard: &serde_json::Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let all: Vec<_> = targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    assert!(all.len() >= panels.len(), "a panel without a query");
    all
}

#[test]
fn prometheus_reads_the_metrics_and_knows_what_alerts_and_panels_ask_for() {
    let running = Running::start();

    let (head, open) = running.ask("GET", "application/openmetrics-text;version=1.0.0");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"));
    assert!(open.ends_with("# EOF\n"), "{open}");
    for sample in [
        "evenkeel_backend_weight{service=\"web\",backend=\"a\"} 3\n",
        "evenkeel_backend_connections{service=\"web\",backend=\"b\",state=\"active\"} 0\n",
        "evenkeel_backend_packets_total{service=\"web\",backend=\"b\",direction=\"in\"} 0\n",
        "evenkeel_backend_bytes_total{service=\"web\",backend=\"b\",direction=\"out\"} 0\n",
        "evenkeel_port_up{port=\"wan\"} 1\n",
        "evenkeel_port_resets_total{port=\"wan\"} 0\n",
        "evenkeel_worker_dropped_packets_total{worker=\"0\",reason=\"table_full\"} 0\n",
        "evenkeel_worker_connections{worker=\"0\",family=\"ipv4\"} 0\n",
    ] {
        assert!(open.contains(sample), "no {sample} in\n{open}");
    }

    // The older format is the one that promtool judges. net_null brings packets without end.
    let (head, plain) = running.ask("GET", "text/plain;version=0.0.4");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert_eq!(promtool(&["check", "metrics"], &plain), "");
    let received = |text: &str| -> u64 {
        let line = "evenkeel_worker_received_packets_total{worker=\"0\"} ";
        let value = text.lines().find_map(|l| l.strip_prefix(line)).unwrap();
        value.parse().unwrap()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while received(&running.ask("GET", "*/*").1) <= received(&plain) {
        assert!(Instant::now() < deadline, "the numbers stand still");
    }

    let exported: BTreeSet<&str> = names(&plain);
    let page = std::fs::read_to_string("docs/metrics.md").unwrap();
    let undocumented: Vec<_> = exported.difference(&names(&page)).copied().collect();
    assert_eq!(undocumented, Vec::<&str>::new(), "not in docs/metrics.md");
    let rules = std::fs::read_to_string(RULES).unwrap();
    let dashboard = std::fs::read_to_string(DASHBOARD).unwrap();
    for (file, text) in [(RULES, &rules), (DASHBOARD, &dashboard), ("docs", &page)] {
        let unknown: Vec<_> = names(text).difference(&exported).copied().collect();
        assert_eq!(unknown, Vec::<&str>::new(), "in {file} and not exported");
    }

    // Nothing can be changed by this way in.
    let (head, _) = running.ask("POST", "*/*");
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
}

#[test]
fn the_alerts_rise_when_they_should() {
    promtool(&["check", "rules", RULES], "");
    let tests = RULES.replace(".yml", ".test.yml");
    assert!(promtool(&["test", "rules", &tests], "").contains("SUCCESS"));
    let (rules, tests) = (
        std::fs::read_to_string(RULES).unwrap(),
        std::fs::read_to_string(&tests).unwrap(),
    );
    let alerts = rules
        .lines()
        .filter_map(|l| l.trim().strip_prefix("- alert: "));
    for alert in alerts {
        assert!(
            tests.contains(&format!("alertname: {alert}\n")),
            "{alert} has no test"
        );
    }
}

#[test]
fn the_dashboards_queries_are_valid() {
    let text = std::fs::read_to_string(DASHBOARD).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    // As rules, with what Grafana fills in filled in.
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (index, expression) in expressions(&dashboard).into_iter().enumerate() {
        let filled = expression
            .replace("$__rate_interval", "1m")
            .replace("$instance", ".*")
            .replace("$service", ".*");
        assert!(!filled.contains('$'), "{filled}");
        rules += &format!("      - record: panel:{index}\n        expr: '{filled}'\n");
    }
    let file: &Path = &std::env::temp_dir().join(format!("ekpanels{}.yml", std::process::id()));
    std::fs::write(file, rules).unwrap();
    promtool(&["check", "rules", &file.display().to_string()], "");
    std::fs::remove_file(file).unwrap();
}
