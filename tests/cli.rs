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

/// Virtual devices that need neither hardware nor privileges, and one that is not there.
#[test]
fn check_ports_asks_the_devices() {
    let config = |device: &str| {
        format!(
            "[workers]\ncores = \"0,0\"\nidle = \"sleep\"\n[[port]]\nname = \"wan\"\ndevice = \"{device}\"\naddresses = [\"192.0.2.2/24\"]\n\
             [[port]]\nname = \"tagged\"\nparent = \"wan\"\nvlan = 7\naddresses = [\"198.51.100.2/24\"]\n"
        )
    };
    let file = TempFile::new("ports.toml", &config("net_null0"));
    let output = evenkeel(&["check", "--ports", "--config", file.name()]);
    let said = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{said}{}",
        text(&output.stderr)
    );
    assert!(
        said.lines().all(|line| line.chars().count() <= 80),
        "{said}"
    );
    let row = |what: &str| {
        let line = said
            .lines()
            .find(|line| line.trim_start().starts_with(what));
        let words: Vec<_> = line.expect(what).split_whitespace().collect();
        words.join(" ")
    };
    assert!(said.starts_with("port wan: net_null0\n  What "), "{said}");
    assert!(row("driver").starts_with("driver net_null "));
    assert!(row("queues rx, tx").ends_with(" 2, 2"));
    assert!(row("MTU").ends_with(" 1500"));
    assert!(row("checksums rx").ends_with("none ipv4 by software"));
    assert!(row("VLANs").ends_with("none 1, filter by software"));
    assert!(said.lines().last().unwrap().starts_with("huge pages: "));

    let output = evenkeel(&["check", "--ports", "--json", "--config", file.name()]);
    let survey: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let port = &survey["ports"][0];
    assert_eq!(port["can"]["driver"], "net_null");
    assert_eq!(port["will"]["tx_queues"], 2);
    assert_eq!(port["will"]["vlans"], serde_json::json!([7]));
    assert_eq!(survey["workers"].as_array().unwrap().len(), 2);

    let file = TempFile::new("absent.toml", &config("0000:ff:1f.7"));
    let output = evenkeel(&["check", "--ports", "--config", file.name()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("error: port wan: cannot open device"));
}

/// The traffic of `scripts/lab` for other generators: parsed, it is what it says.
#[test]
fn the_lab_writes_its_traffic_as_a_pcap() {
    use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpAddress, Ipv4Packet, UdpPacket};
    let folder = std::env::temp_dir().join(format!("evenkeel-cli-{}-pktgen", std::process::id()));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lab");
    let output = Command::new(script)
        .arg("pktgen")
        .arg(&folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let pcap = std::fs::read(folder.join("evenkeel.pcap")).unwrap();
    let commands = std::fs::read_to_string(folder.join("evenkeel.pkt")).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();

    let (header, mut rest) = pcap.split_at(24);
    assert_eq!(header[..4], 0xa1b2_c3d4_u32.to_le_bytes());
    let mut clients = std::collections::BTreeSet::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        let frame = EthernetFrame::new_checked(&rest[16..16 + length]).unwrap();
        rest = &rest[16 + length..];
        assert_eq!((length, frame.ethertype()), (60, EthernetProtocol::Ipv4));
        let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
        assert!(packet.verify_checksum());
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
        assert!(datagram.verify_checksum(&IpAddress::Ipv4(from), &IpAddress::Ipv4(to)));
        assert!(commands.contains(&format!("set 0 dst ip {to}\n")));
        assert!(commands.contains(&format!("set 0 dport {}\n", datagram.dst_port())));
        clients.insert((from, datagram.src_port()));
    }
    assert_eq!(clients.len(), 200);
}
