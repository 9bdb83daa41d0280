//! A configuration that is saved and read again is the same configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;

/// Every key there is, none at its default.
const EVERYTHING: &str = r#"
[workers]
cores = "2-3,5"
connections = 2_000_000
memory = "2GiB"
idle = "yield"
flood_guard = 500_000
buffers = 20_000
buffer_size = 4096

[management]
socket = "/tmp/a \"quoted\" path.sock"
core = 1
metrics = "off"
log = "json"
announce_every = "60s"
vip_table = 179
linger = "3s"

[[port]]
name = "wan"
device = "net_tap0,iface=ek0"
addresses = ["192.0.2.2/24", "2001:db8::2/64"]
check_address = ["192.0.2.3", "2001:db8::3"]
gateway = ["192.0.2.1", "2001:db8::1"]
mtu = 9000
rss = "assume"
kernel_interface = "wan0"
rx_descriptors = 512
tx_descriptors = 256
route = [{ to = "10.0.0.0/8", via = "192.0.2.9" }, { to = "2001:db8:5::/48", via = "2001:db8::9" }]
neighbour = [{ address = "192.0.2.11", mac = "02:00:00:00:00:11" }]

[[port]]
name = "inside"
parent = "wan"
vlan = 7
addresses = "10.7.0.2/24"
check_address = "10.7.0.3"
gateway = "10.7.0.1"

[[service]]
name = "web"
listen = ["tcp:203.0.113.80:80", "tcp:203.0.113.81:80"]
method = "fullnat"
scheduler = "mh"
table_size = 655373
hash_port = true
hash_fallback = true
when_no_backend = "use-all"
untracked = "drop"
mss_clamp = 1400
advertise = "kernel"
local_addresses = ["192.0.2.200", "192.0.2.201"]
quorum = 2
quorum_hysteresis = 1
inhibit = true
on_change = ["/usr/bin/notify", "two words"]
slow_start = "30s"
drain_timeout = "10m"
persistence = { timeout = "10m", prefix_v4 = 24, prefix_v6 = 64, group = "shop" }
limits = { connections = 1000, rate = 50 }
health = { type = "https", via = "direct", interval = "5s", timeout = "1500ms", fall = 4, rise = 5, start = "down", jitter = 0, address = "192.0.2.50", port = 443, method = "HEAD", host = "example.org", path = "/h", status = ["200", "300-302"], body = "line\nbreak", tls_verify = false, sni = "x" }
sorry_server = { address = "192.0.2.99", port = 81, method = "nat" }
feedback = { policy = "lvs", interval = "7s", agent_port = 9000, exporter_port = 9100, hash_too = true }

[service.timeouts]
established = "1s"
syn_sent = "2s"
syn_recv = "3s"
fin_wait = "4s"
time_wait = "5s"
close = "6s"
close_wait = "7s"
last_ack = "8s"
udp = "9s"

[[service.backend]]
name = "web-1"
address = "192.0.2.11"
port = 8080
weight = 65535
upper = 100
lower = 50
drain = true

[[service.backend]]
address = "192.0.2.12"

[[service.backend]]
address = "192.0.2.13"

[[service]]
name = "dns"
listen = ["udp:[2001:db8:9::/64]:53", "udp:203.0.113.53:5000-5100"]
method = "tunnel"
scheduler = "wlc"
one_packet = true
tunnel_source = "192.0.2.128/25"
health = { type = "dns", query = "example.org", record = "AAAA", address = "203.0.113.53", port = 53 }

[[service]]
name = "echo"
listen = "udp:203.0.113.54:7"
method = "direct-routing"
scheduler = "sed"
health = { type = "udp", payload = "hello", reply = "hello" }

[[service]]
name = "all"
listen = "tcp:203.0.113.55:*"
method = "nat"
scheduler = "lc"
health = { type = "script", command = ["/bin/check", "-v"] }
"#;

#[test]
fn everything_survives() {
    let config = parse(EVERYTHING).unwrap();
    let text = to_toml(&config);
    assert_eq!(parse(&text).unwrap(), config, "saved as:\n{text}");
    assert_eq!(to_toml(&parse(&text).unwrap()), text, "saving is stable");
}

#[test]
fn every_key_that_is_read_is_in_the_sample() {
    let readers = [
        include_str!("../read.rs"),
        include_str!("../read_service.rs"),
        include_str!("../read_health.rs"),
    ];
    for source in readers {
        for call in [
            "r.string(\"",
            "r.parsed(\"",
            "r.list(\"",
            "r.boolean(\"",
            "r.integer(\"",
            "r.time(\"",
            "r.choice(\"",
            "r.table(\"",
            "r.tables(\"",
            "time(\"",
        ] {
            for found in source.split(call).skip(1) {
                let key = found.split('"').next().unwrap();
                let is_there = EVERYTHING.contains(&format!("{key} ="))
                    || EVERYTHING.contains(&format!(".{key}]"));
                assert!(is_there, "{key} is not in the sample");
            }
        }
    }
}

#[test]
fn defaults_are_left_out() {
    let text = "[[port]]\nname = \"p\"\ndevice = \"net_null0\"\n";
    let saved = to_toml(&parse(text).unwrap());
    assert!(
        saved.contains("cores = \"1\"") && !saved.contains("idle") && !saved.contains("mtu"),
        "{saved}"
    );
}

/// A directory of its own that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evenkeel-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_is_replaced_whole_and_keeps_its_permissions() {
    let scratch = Scratch::new("save");
    let path = scratch.0.join("evenkeel.toml");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let config = parse("[[port]]\nname = \"p\"\ndevice = \"net_null0\"\n").unwrap();
    save(&config, &path).unwrap();
    assert_eq!(load(&path).unwrap(), config);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert_eq!(
        fs::read_dir(&scratch.0).unwrap().count(),
        1,
        "nothing is left beside it"
    );
}

#[test]
fn a_link_stays_a_link() {
    let scratch = Scratch::new("link");
    let (file, link) = (scratch.0.join("real.toml"), scratch.0.join("link.toml"));
    fs::write(&file, "old").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let config = parse("[[port]]\nname = \"p\"\ndevice = \"net_null0\"\n").unwrap();
    save(&config, &link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(load(&file).unwrap(), config);
}

#[test]
fn a_file_that_cannot_be_written_says_so_and_leaves_nothing() {
    let config = parse("[[port]]\nname = \"p\"\ndevice = \"net_null0\"\n").unwrap();
    let scratch = Scratch::new("nodir");
    let fault = save(&config, &scratch.0.join("missing/evenkeel.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        fault.starts_with("cannot write ") && !fault.contains('\n'),
        "{fault}"
    );
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
}
