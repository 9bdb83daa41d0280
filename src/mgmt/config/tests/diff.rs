//! What a reload would say.

use super::*;
use crate::mgmt::config::diff::Diff;

const OLD: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["192.0.2.2/24"]

[[service]]
name = "web"
listen = "tcp:198.51.100.80:80"
method = "nat"
scheduler = "wrr"
timeouts = { udp = "10s" }
[[service.backend]]
name = "a"
address = "192.0.2.11"
[[service.backend]]
name = "b"
address = "192.0.2.12"
weight = 2

[[service]]
name = "old"
listen = "tcp:198.51.100.81:80"
method = "nat"
scheduler = "rr"
"#;

fn diff(new: &str) -> Diff {
    Diff::between(&parse(OLD).unwrap(), &parse(new).unwrap())
}

fn lines(new: &str) -> Vec<String> {
    let diff = diff(new);
    assert_eq!(diff.needs_restart, Vec::<String>::new());
    diff.changes
        .iter()
        .map(|change| change.to_string())
        .collect()
}

#[test]
fn the_same_is_no_difference() {
    assert!(diff(OLD).is_empty());
    // Order, spelling and comments do not count.
    assert!(diff(&format!("# hello\n{}", OLD.replace("\"wrr\"", "'wrr'"))).is_empty());
}

#[test]
fn changes_are_told_by_service_and_backend() {
    let new = OLD
        .replace(
            "scheduler = \"wrr\"",
            "scheduler = \"mh\"\nmss_clamp = 1400",
        )
        .replace("udp = \"10s\"", "close = \"5s\"")
        .replace("weight = 2", "weight = 5")
        .replace("name = \"a\"", "name = \"c\"")
        .replace("name = \"old\"", "name = \"new\"");
    let expected = [
        "- service old",
        "~ service web: mss_clamp: default -> 1400, scheduler: \"wrr\" -> \"mh\", timeouts.close: default -> \"5s\", timeouts.udp: \"10s\" -> default",
        "- service web backend a",
        "+ service web backend c",
        "~ service web backend b: weight: 2 -> 5",
        "+ service new",
    ];
    assert_eq!(lines(&new), expected);
}

#[test]
fn what_is_set_up_at_start_takes_a_restart() {
    let new = OLD.replace("net_null0", "net_null1") + "[workers]\ncores = \"2\"\n";
    let diff = diff(&new);
    let expected = [
        "port[1].device: \"net_null0\" -> \"net_null1\"",
        "workers.cores: \"1\" -> \"2\"",
    ];
    assert_eq!(diff.needs_restart, expected);
    assert!(diff.changes.is_empty());
}
