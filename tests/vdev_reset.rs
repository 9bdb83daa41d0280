//! A device that asks for a reset while packets flow. No virtual device does of its own, so the test
//! raises the event as a driver would, by DPDK's own call for drivers; from there on all is real.
//! Needs no privileges and no huge pages.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::time::{Duration, Instant};

use evenkeel::lb::fixture::{backend_mac, udp4};
use evenkeel::mgmt::appliance::{Appliance, Balance};
use evenkeel::mgmt::{config, start};

/// RTE_ETH_EVENT_INTR_RESET (rte_ethdev.h).
const RESET: u32 = 3;
/// What net_pcap calls its first port.
const IN_MAC: [u8; 6] = [0x02, 0x70, 0x63, 0x61, 0x70, 0x00];
/// Of an ARP frame.
const ARP: [u8; 2] = [8, 6];

// What DPDK offers to drivers (ethdev_driver.h).
unsafe extern "C" {
    fn rte_eth_dev_allocated(name: *const c_char) -> *mut c_void;
    fn rte_eth_dev_callback_process(
        device: *mut c_void,
        event: c_int,
        argument: *mut c_void,
    ) -> c_int;
}

/// What a driver does on its interrupt thread.
fn raise_reset(device: &str) {
    let name = CString::new(device).unwrap();
    // SAFETY: a C string; the device that is found stays open, and the event's callbacks take no
    // argument.
    let rc = unsafe {
        let found = rte_eth_dev_allocated(name.as_ptr());
        assert!(!found.is_null(), "no device {device}");
        rte_eth_dev_callback_process(found, RESET as c_int, std::ptr::null_mut())
    };
    assert_eq!(rc, 0);
}

fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65535, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        let length = frame.len() as u32;
        for word in [0, 0, length, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

/// Requests that port "in" brings each worker every time it is started.
const REQUESTS: u16 = 30_000;

/// Port "in" reads requests from a file, all over again at each start; port "out" writes what the
/// workers send to files, anew at each start. One file for each worker.
fn configuration(directory: &Path) -> config::Config {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let folder = directory.display();
    let mac = backend_mac(1).map(|b| format!("{b:02x}")).join(":");
    let (workers, rx, tx) = match cores {
        1 => ("0", 1, 1),
        _ => ("0-1", 2, 2),
    };
    let rx = format!(",rx_pcap={folder}/in.pcap").repeat(rx);
    let tx: String = (0..tx)
        .map(|n| format!(",tx_pcap={folder}/out{n}.pcap"))
        .collect();
    let text = format!(
        r#"
[workers]
cores = "{workers}"
connections = 10_000
memory = "256MiB"
idle = "yield"
[management]
socket = "{folder}/socket"
[[port]]
name = "in"
device = "net_pcap0{rx}"
rx_descriptors = 256
tx_descriptors = 256
addresses = ["203.0.113.254/24"]
[[port]]
name = "out"
device = "net_pcap1{tx}"
rx_descriptors = 256
tx_descriptors = 256
addresses = ["198.51.100.254/24"]
[[port.neighbour]]
address = "198.51.100.1"
mac = "{mac}"
[[service]]
name = "dns"
listen = ["udp:192.0.2.80:80"]
method = "direct-routing"
scheduler = "rr"
[[service.backend]]
address = "198.51.100.1"
"#
    );
    config::parse(&text).expect("a valid configuration")
}

fn state(appliance: &Appliance) -> String {
    let notes: Vec<_> = appliance.ports().notes().collect();
    let drops = evenkeel::mgmt::appliance::drops(&appliance.workers);
    let balance = Balance::of(&appliance.workers);
    format!("{notes:?} {:?} {balance:?}", &drops[..3])
}

/// Looks until it is so, for twenty seconds.
fn until(appliance: &mut Appliance, what: &str, is_so: impl Fn(&Appliance) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so(appliance) {
        assert!(Instant::now() < deadline, "no {what}: {}", state(appliance));
        appliance.look(Instant::now());
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// How many announcements (ARP requests for the sender's own address, RFC 5227 2.3) the files have.
fn announcements(directory: &Path) -> usize {
    let mut count = 0;
    for n in 0..2 {
        let bytes = std::fs::read(directory.join(format!("out{n}.pcap"))).unwrap_or_default();
        let mut rest = bytes.get(24..).unwrap_or_default();
        while rest.len() >= 16 {
            let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
            let Some(frame) = rest.get(16..16 + length) else {
                break;
            };
            count += usize::from(frame[12..14] == ARP && frame[28..32] == frame[38..42]);
            rest = &rest[16 + length..];
        }
    }
    count
}

#[test]
fn a_port_is_reset_under_traffic_and_nothing_is_lost() {
    let directory = std::env::temp_dir().join(format!("ekreset{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let request = |n: u16| {
        let mut frame = udp4(&format!("10.0.0.1:{}", 2000 + n % 64), "192.0.2.80:80").frame();
        frame[..6].copy_from_slice(&IN_MAC);
        frame
    };
    let requests: Vec<_> = (0..REQUESTS).map(request).collect();
    std::fs::write(directory.join("in.pcap"), pcap(&requests)).expect("the input");
    let mut appliance = start(&configuration(&directory)).expect("starts without privileges");

    let sent = |appliance: &Appliance| Balance::of(&appliance.workers).transmitted;
    until(&mut appliance, "traffic", |a| sent(a) > 1_000);
    for round in 0..3 {
        // While the requests of the last start still flow.
        raise_reset("net_pcap1");
        let odd = 2 * round + 1;
        until(&mut appliance, "reset", |a| a.ports().resets() == odd);
        let before = sent(&appliance);
        raise_reset("net_pcap0");
        until(&mut appliance, "reset", |a| a.ports().resets() == odd + 1);
        until(&mut appliance, "traffic after it", |a| {
            sent(a) > before + 1_000
        });
    }
    let announced = appliance.net.counters().announcements;
    until(&mut appliance, "announcement", |a| {
        a.net.counters().announcements > announced
    });
    let generated = Balance::of(&appliance.workers).generated;
    until(&mut appliance, "announcement sent", |a| {
        Balance::of(&a.workers).generated > generated
    });

    // A reset that is under way when all ends.
    raise_reset("net_pcap0");
    let under_way = |a: &Appliance| a.ports().is_resetting();
    until(&mut appliance, "reset under way", under_way);
    let balance = appliance
        .shut_down()
        .expect("nothing of DPDK is still held: no buffer, no queue");
    assert!(balance.adds_up(), "{balance:?}");
    // The files began anew when the port was last started, after its reset.
    assert!(announcements(&directory) > 0);
    std::fs::remove_dir_all(&directory).expect("cleaned up");
}
