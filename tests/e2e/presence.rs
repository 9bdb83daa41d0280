//! `NetState` before a real kernel: it must find us by ARP and NDP, reach us by ping in every size,
//! notice our announcements, and be told off when it takes our address.

use crate::health::host::{Host, PORT, PORT6};
use crate::health::wire::Wire;
use evenkeel::mgmt::net::NetEvent;
use tokio::process::Command;

/// Runs a program in the host while the wire goes on; returns what it printed.
async fn run(host: &Host, program: &str, words: &str) -> (bool, String) {
    let mut command = host.command(program);
    command.args(words.split_whitespace());
    let output = Command::from(command).output().await.expect(program);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text)
}

#[tokio::test]
async fn a_kernel_finds_us_and_pings_us() {
    let Some(host) = Host::new() else { return };
    let _wire = Wire::new(&host);
    for (family, address) in [("-4", PORT), ("-6", PORT6)] {
        // 1,472 and 1,452 bytes just fit the MTU.
        let largest = if family == "-4" { 1472 } else { 1452 };
        for size in [0, 1, 56, 500, largest] {
            let words = format!("{family} -c 2 -i 0.01 -W 20 -s {size} {address}");
            let (good, text) = run(&host, "ping", &words).await;
            assert!(good && text.contains(" 0% packet loss"), "{text}");
        }
        let (_, known) = run(&host, "ip", &format!("{family} neigh show {address}")).await;
        assert!(known.contains("02:65:6b:00:00:01"), "{known}");
    }
}

#[tokio::test]
async fn a_kernel_heeds_announcements() {
    let Some(host) = Host::new() else { return };
    // An entry that is out of date, as after a failover.
    for address in [PORT, PORT6] {
        host.ip(&format!(
            "neigh add {address} lladdr 02:00:00:00:00:99 dev eth0 nud stale"
        ));
    }
    let _wire = Wire::new(&host);
    for (family, address) in [("-4", PORT), ("-6", PORT6)] {
        let deadline = std::time::Instant::now() + crate::lab::process::PATIENCE;
        loop {
            let (_, known) = run(&host, "ip", &format!("{family} neigh show {address}")).await;
            if known.contains("02:65:6b:00:00:01") {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{known}");
        }
    }
}

#[tokio::test]
async fn a_host_that_takes_our_address_is_reported() {
    let Some(host) = Host::new() else { return };
    let mut wire = Wire::new(&host);
    host.ip(&format!("address add {PORT}/24 dev eth0"));
    host.sysctl("net/ipv4/conf/eth0/arp_notify", "1");
    host.ip("link set eth0 down");
    host.ip("link set eth0 up");
    let event = wire
        .event(|e| matches!(e, NetEvent::AddressConflict { .. }))
        .await;
    let NetEvent::AddressConflict { ip, port, .. } = event else {
        panic!("{event:?}")
    };
    assert_eq!((ip.to_string().as_str(), port), (PORT, 0));
}
