//! Two VLANs on one net_pcap port, through the whole appliance: clients in one, backends in the other.
//! Needs no privileges and no huge pages.

mod pcap;

use std::path::Path;
use std::time::{Duration, Instant};

use evenkeel::lb::counters::DropReason;
use evenkeel::lb::fixture::{Build, backend_mac, tcp4, tcp6};
use evenkeel::lb::parse::tcp::{ACK, SYN};
use evenkeel::mgmt::appliance::{Appliance, Balance};
use evenkeel::mgmt::{config, start};

use pcap::{PORT_MAC, frames_of, pcap};

const OUTSIDE: u16 = 7;
const INSIDE: u16 = 8;
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn configuration(directory: &Path) -> config::Config {
    let directory = directory.display();
    let text = format!(
        r#"
[workers]
cores = "0"
connections = 10_000
memory = "256MiB"
idle = "sleep"
[management]
socket = "{directory}/evenkeel-vlans.sock"

[[port]]
name = "outside"
parent = "trunk"
vlan = {OUTSIDE}
addresses = ["192.0.2.2/24", "2001:db8::2/64"]
gateway = ["192.0.2.1", "2001:db8::1"]
neighbour = [
  {{ address = "192.0.2.1", mac = "02:00:00:00:00:09" }},
  {{ address = "2001:db8::1", mac = "02:00:00:00:00:09" }},
]

[[port]]
name = "inside"
parent = "trunk"
vlan = {INSIDE}
addresses = ["10.8.0.2/24", "2001:db8:8::2/64"]
neighbour = [
  {{ address = "10.8.0.11", mac = "02:00:00:00:01:01" }},
  {{ address = "2001:db8:8::11", mac = "02:00:00:00:01:01" }},
]

[[port]]
name = "trunk"
device = "net_pcap0,rx_pcap={directory}/in.pcap,tx_pcap={directory}/out.pcap"

[[service]]
name = "web"
listen = ["tcp:192.0.2.80:80"]
method = "nat"
scheduler = "rr"
[[service.backend]]
address = "10.8.0.11"
[[service.backend]]
address = "10.8.0.12"
weight = 0

[[service]]
name = "web6"
listen = ["tcp:[2001:db8::80]:80"]
method = "nat"
scheduler = "rr"
[[service.backend]]
address = "2001:db8:8::11"
"#
    );
    config::parse(&text).expect("a valid configuration")
}

/// Client, service and backend.
const FLOWS: [[&str; 3]; 2] = [
    ["198.51.100.9:4000", "192.0.2.80:80", "10.8.0.11:80"],
    [
        "[2001:db8:9::9]:4000",
        "[2001:db8::80]:80",
        "[2001:db8:8::11]:80",
    ],
];

fn tcp(from: &str, to: &str, flags: u8) -> Build {
    let build = if from.starts_with('[') { tcp6 } else { tcp4 };
    build(from, to).flags(flags)
}

/// An ARP packet: who asks (or answers) whom for what, in which VLAN.
fn arp(
    to: [u8; 6],
    kind: u8,
    from: ([u8; 6], [u8; 4]),
    about: ([u8; 6], [u8; 4]),
    vlan: u16,
) -> Vec<u8> {
    let mut frame = [&to[..], &from.0, &[0x81, 0], &vlan.to_be_bytes()].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, kind]);
    frame.extend([&from.0[..], &from.1, &about.0, &about.1].concat());
    frame.resize(64, 0);
    frame
}

#[test]
fn vlans_are_ports_of_their_own() {
    let directory = std::env::temp_dir().join(format!("ekvlans{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (mut input, mut expected) = (Vec::new(), Vec::new());
    for [client, service, backend] in FLOWS {
        for (from, to, flags, vlan) in [
            (client, service, SYN, OUTSIDE),
            (backend, client, SYN | ACK, INSIDE),
            (client, service, ACK, OUTSIDE),
            // Of a VLAN that is not ours.
            (client, service, ACK, 9),
        ] {
            let packet = tcp(from, to, flags).vlan(vlan);
            let from = if vlan == INSIDE {
                backend_mac(1)
            } else {
                ROUTER_MAC
            };
            input.push(packet.macs(PORT_MAC, from).frame());
        }
        for (from, to, flags, mac, vlan) in [
            (client, backend, SYN, backend_mac(1), INSIDE),
            (service, client, SYN | ACK, ROUTER_MAC, OUTSIDE),
            (client, backend, ACK, backend_mac(1), INSIDE),
        ] {
            let packet = tcp(from, to, flags).vlan(vlan).ttl(63);
            expected.push(packet.macs(mac, PORT_MAC).frame());
        }
    }
    // The VIP is asked for where it is, and where it is not.
    let (asker, vip) = ((ROUTER_MAC, [192, 0, 2, 1]), [192, 0, 2, 80]);
    for vlan in [OUTSIDE, INSIDE, 9] {
        input.push(arp([0xff; 6], 1, asker, ([0; 6], vip), vlan));
    }
    std::fs::write(directory.join("in.pcap"), pcap(&input)).expect("the input");
    let mut appliance = start(&configuration(&directory)).expect("starts without privileges");

    let out = directory.join("out.pcap");
    let reply = arp(ROUTER_MAC, 2, (PORT_MAC, vip), asker, OUTSIDE);
    let total = input.len() as u64;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut wait_until = |done: &dyn Fn(&Appliance) -> bool| {
        while !done(&appliance) {
            let balance = Balance::of(&appliance.workers);
            assert!(Instant::now() < deadline, "{balance:?}");
            appliance.look(Instant::now());
            std::thread::sleep(Duration::from_millis(1));
        }
        appliance.publish();
    };
    wait_until(&|appliance| {
        let all = Balance::of(&appliance.workers).received == total;
        all && appliance.net.counters().arp_replies == 1
    });
    // A command that is obeyed comes after what was given to the worker before: twice, since it may
    // have been about to look when the first came.
    for _ in 0..2 {
        wait_until(&|appliance| appliance.workers[0].is_quiet());
    }
    let unknown = appliance.workers[0].counters.dropped[DropReason::UnknownVlan as usize].get();
    let balance = appliance
        .shut_down()
        .expect("nothing of DPDK is still held");
    assert!(balance.adds_up(), "{balance:?}");
    assert_eq!((unknown, balance.dropped), (3, 3));

    let sent = frames_of(&out);
    let is_tcp = |frame: &&Vec<u8>| {
        let next = if frame[16..18] == [8, 0] { 27 } else { 24 };
        frame[12..14] == [0x81, 0] && frame.get(next) == Some(&6)
    };
    let forwarded: Vec<&Vec<u8>> = sent.iter().filter(is_tcp).collect();
    assert_eq!(forwarded.len(), expected.len());
    for (frame, expected) in forwarded.iter().zip(&expected) {
        assert_eq!(**frame, *expected);
    }
    let replies: Vec<_> = sent
        .iter()
        .filter(|f| f[16..18] == [8, 6] && f[25] == 2 && f[..6] == ROUTER_MAC)
        .collect();
    assert_eq!(replies, [&reply], "answered in its own VLAN alone");
    let question = |ip: [u8; 4], vlan: u16| {
        let of = |f: &&Vec<u8>| {
            f[14..16] == vlan.to_be_bytes() && f[16..18] == [8, 6] && f[42..46] == ip
        };
        sent.iter().filter(of).count()
    };
    assert!(
        question([10, 8, 0, 12], INSIDE) > 0,
        "a backend is asked for in its VLAN"
    );
    assert!(question(vip, OUTSIDE) > 0, "a VIP is announced in its VLAN");
    assert_eq!(question([10, 8, 0, 12], OUTSIDE) + question(vip, INSIDE), 0);
    assert!(
        sent.iter().all(|f| f[12..14] == [0x81, 0]),
        "nothing leaves without a tag"
    );
    std::fs::remove_dir_all(&directory).expect("cleaned up");
}
