//! The whole appliance in one process, over net_pcap: packets in a file, a worker, management, and
//! packets out to a file. Needs no privileges and no huge pages.

mod pcap;

use std::path::Path;
use std::time::{Duration, Instant};

use evenkeel::lb::fixture::{backend_mac, checksums_are_right, tcp4, udp4};
use evenkeel::mgmt::appliance::Balance;
use evenkeel::mgmt::{config, start};

use pcap::{PORT_MAC, frames_of, pcap};

const FLOWS: u16 = 600;

/// Good requests, a broken header checksum every tenth, and one frame for somebody else.
fn input() -> (Vec<Vec<u8>>, u64) {
    let (mut frames, mut broken) = (Vec::new(), 0);
    for n in 0..FLOWS {
        let client = format!("10.0.0.1:{}", 2000 + n);
        let build = if n % 2 == 0 { udp4 } else { tcp4 };
        let mut frame = build(&client, "192.0.2.80:80").flags(2).frame();
        frame[..6].copy_from_slice(&PORT_MAC);
        if n % 10 == 9 {
            frame[24] ^= 1;
            broken += 1;
        }
        frames.push(frame);
    }
    let mut foreign = frames[0].clone();
    foreign[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    frames.push(foreign);
    (frames, broken)
}

fn configuration(directory: &Path) -> config::Config {
    let neighbours: String = (1..=3)
        .map(|n| {
            let mac = backend_mac(n).map(|b| format!("{b:02x}")).join(":");
            format!("[[port.neighbour]]\naddress = \"198.51.100.{n}\"\nmac = \"{mac}\"\n")
        })
        .collect();
    let backends: String = (1..=3)
        .map(|n| format!("[[service.backend]]\naddress = \"198.51.100.{n}\"\n"))
        .collect();
    let directory = directory.display();
    let text = format!(
        r#"
[workers]
cores = "0"
connections = 10_000
memory = "256MiB"
idle = "sleep"
[management]
socket = "{directory}/evenkeel-vdev.sock"
[[port]]
name = "wan"
device = "net_pcap0,rx_pcap={directory}/in.pcap,tx_pcap={directory}/out.pcap"
addresses = ["198.51.100.254/24"]
{neighbours}
[[service]]
name = "web"
listen = ["tcp:192.0.2.80:80", "udp:192.0.2.80:80"]
method = "direct-routing"
scheduler = "rr"
{backends}"#
    );
    config::parse(&text).expect("a valid configuration")
}

#[test]
fn every_packet_is_accounted_for_and_snapshots_come_back() {
    let directory = std::env::temp_dir().join(format!("ekvdev{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (frames, broken) = input();
    std::fs::write(directory.join("in.pcap"), pcap(&frames)).expect("the input");
    let mut appliance = start(&configuration(&directory)).expect("starts without privileges");

    let total = frames.len() as u64;
    let deadline = Instant::now() + Duration::from_secs(20);
    while Balance::of(&appliance.workers).received < total {
        assert!(
            Instant::now() < deadline,
            "{:?}",
            Balance::of(&appliance.workers)
        );
        appliance.look(Instant::now());
        std::thread::sleep(Duration::from_millis(1));
    }

    // Every change is one command to the worker, and every old snapshot comes back.
    let before = appliance.workers[0].totals;
    let swapped = appliance.workers[0].counters.swaps.get();
    for change in 0..200u32 {
        let id = evenkeel::lb::snapshot::BackendId(0);
        appliance.desired.set_weight(id, Some(1 + change % 5));
        appliance.publish();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !appliance.workers[0].is_quiet() {
            assert!(Instant::now() < deadline, "a command was not obeyed");
            appliance.look(Instant::now());
        }
    }
    let after = appliance.workers[0].totals;
    let sent = after.snapshots_sent - before.snapshots_sent;
    assert!(sent >= 200);
    assert_eq!(appliance.workers[0].counters.swaps.get() - swapped, sent);
    assert_eq!(after.snapshots_retired, after.snapshots_sent);
    assert_eq!(after.sent, after.done);
    let generation = appliance.workers[0].counters.generation.get();
    assert_eq!(generation, appliance.current.generation);

    let counters = std::sync::Arc::clone(&appliance.workers[0].counters);
    let balance = appliance
        .shut_down()
        .expect("nothing of DPDK is still held");
    assert!(balance.adds_up(), "{balance:?}");
    assert_eq!(balance.received, total);
    assert_eq!(balance.dropped, broken + 1);
    let good = u64::from(FLOWS) - broken;
    for backend in 0..3 {
        assert_eq!(counters.backends[backend].in_packets.get(), good / 3);
    }

    let sent = frames_of(&directory.join("out.pcap"));
    let forwarded: Vec<_> = sent.iter().filter(|f| f[12..14] == [8, 0]).collect();
    assert_eq!(forwarded.len() as u64, good);
    for (n, frame) in forwarded.iter().enumerate() {
        assert_eq!(frame[..6], backend_mac(1 + (n % 3) as u8), "rr in order");
        assert_eq!(frame[6..12], PORT_MAC);
        assert!(checksums_are_right(frame));
    }
    std::fs::remove_dir_all(&directory).expect("cleaned up");
}
