//! A small network made of namespaces: one client, a router, a switch and three backends.
//!
//! ```text
//!   client 198.51.100.10 ── 198.51.100.1 router 192.0.2.1
//!                                          │
//!                      ── switch 192.0.2.0/24 ──┬──────┬──────┬── evenkeel's TAP ports
//!                                              .11    .12    .13    192.0.2.2, VIPs from .80 up
//! ```
//!
//! Router and switch live in the namespace in which evenkeel runs, because a TAP device is born
//! there and must not move while its port is open. The backends hold [`VIP_ON_BACKENDS`] on their
//! loopback without answering ARP for it; what they send from it leaves by the router, and what
//! they send from their own address leaves by evenkeel. So one set of backends serves direct
//! routing, tunnel and NAT at once.
//!
//! Everything ends with the [`Lab`]: its programs, its namespaces, its folder. A test process that
//! is killed takes its programs with it, and the next lab removes what it left.

pub mod balancer;
pub mod namespace;
pub mod process;
pub mod tool;
pub mod web;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use namespace::Namespace;
use process::Running;

pub const CLIENT: &str = "198.51.100.10";
pub const ROUTER: &str = "192.0.2.1";
pub const EVENKEEL: &str = "192.0.2.2";
pub const BACKENDS: [&str; 3] = ["192.0.2.11", "192.0.2.12", "192.0.2.13"];
pub const NAMES: [&str; 3] = ["web-1", "web-2", "web-3"];
/// For tunnel and direct routing; a VIP for NAT is on no backend.
pub const VIP_ON_BACKENDS: &str = "192.0.2.80";

/// The MSS that a backend announces to clients whose packets reach it through a tunnel: two IPv4
/// headers and a TCP header fit into 1,500 bytes beside it.
const MSS_BEHIND_A_TUNNEL: u32 = 1440;
const TABLE_BY_EVENKEEL: u32 = 100;

pub struct Lab {
    // In the order in which they must end: programs before the namespaces they run in.
    programs: Vec<Running>,
    pub client: Namespace,
    pub balancer: Namespace,
    pub backends: Vec<Namespace>,
    folder: PathBuf,
}

impl Lab {
    /// The network and nothing running on it; `None`, said on stderr, without root.
    pub fn new() -> Option<Lab> {
        if !namespace::may_create() {
            process::say_skipped("needs root");
            return None;
        }
        namespace::sweep();
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = format!("{}{}-{number}", namespace::PREFIX, std::process::id());
        let folder = std::env::temp_dir().join(&lab);
        fs::create_dir_all(&folder).expect("the lab's folder");

        let client = Namespace::create(&lab, "client");
        let balancer = Namespace::create(&lab, "balancer");
        let backends: Vec<_> = NAMES
            .iter()
            .map(|name| Namespace::create(&lab, name))
            .collect();
        let lab = Lab {
            programs: Vec::new(),
            client,
            balancer,
            backends,
            folder,
        };
        lab.connect();
        Some(lab)
    }

    fn connect(&self) {
        let net = &self.balancer;
        // No multicast snooping: nobody here is a querier, and NDP must reach everyone.
        net.ip("link add lan type bridge forward_delay 0 stp_state 0 mcast_snooping 0");
        net.sysctl("net/ipv4/ip_forward", "1");
        net.sysctl("net/ipv6/conf/all/forwarding", "1");
        net.sysctl("net/ipv4/conf/all/send_redirects", "0");
        net.sysctl("net/ipv4/conf/lan/send_redirects", "0");
        net.up("lan", &["192.0.2.1/24", "2001:db8::1/64"]);

        net.cable("to-client", &self.client, "eth0");
        net.up("to-client", &["198.51.100.1/24", "2001:db8:c::1/64"]);
        self.client
            .up("eth0", &["198.51.100.10/24", "2001:db8:c::10/64"]);
        self.client.ip("route add default via 198.51.100.1");
        self.client.ip("-6 route add default via 2001:db8:c::1");

        for (index, backend) in self.backends.iter().enumerate() {
            let port = format!("to-{}", NAMES[index]);
            net.cable(&port, backend, "eth0");
            net.ip(&format!("link set {port} master lan up"));
            connect_backend(
                backend,
                BACKENDS[index],
                &format!("2001:db8::{}", 11 + index),
            );
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps `program` running until the lab ends.
    pub fn keep(&mut self, program: Running) {
        self.programs.push(program);
    }

    /// Real nginx in each backend, which answers with its name, and a large file.
    pub fn start_web(&mut self) {
        let file = web::large_file(&self.folder);
        for (backend, name) in self.backends.iter().zip(NAMES) {
            let nginx = web::start(backend, name, &self.folder, &file);
            self.programs.push(nginx);
        }
    }

    /// Each backend takes IPIP packets apart and handles what is inside.
    pub fn start_unwrapping(&mut self) {
        for (backend, name) in self.backends.iter().zip(NAMES) {
            let log = self.folder.join(format!("{name}-unwrap.log"));
            let unwrap = tool::start(backend, &["unwrap", "tun0"], log);
            self.programs.push(unwrap);
        }
    }
}

fn connect_backend(backend: &Namespace, address: &str, address6: &str) {
    // Direct routing: the VIP is ours to accept, but the switch must not hear of it.
    backend.sysctl("net/ipv4/conf/all/arp_ignore", "1");
    backend.sysctl("net/ipv4/conf/all/arp_announce", "2");
    // What the tunnel's end hands up has a source that is routed elsewhere.
    backend.sysctl("net/ipv4/conf/all/rp_filter", "0");
    backend.sysctl("net/ipv4/conf/default/rp_filter", "0");
    backend.up(
        "eth0",
        &[&format!("{address}/24"), &format!("{address6}/64")],
    );
    backend.ip(&format!("address add {VIP_ON_BACKENDS}/32 dev lo"));
    backend.ip(&format!(
        "route add default via {ROUTER} advmss {MSS_BEHIND_A_TUNNEL}"
    ));
    backend.ip("-6 route add default via 2001:db8::1");
    // NAT: the answer must come back by evenkeel, whoever asked.
    backend.ip(&format!(
        "rule add from {address} table {TABLE_BY_EVENKEEL}"
    ));
    backend.ip(&format!(
        "route add 192.0.2.0/24 dev eth0 table {TABLE_BY_EVENKEEL}"
    ));
    backend.ip(&format!(
        "route add default via {EVENKEEL} table {TABLE_BY_EVENKEEL}"
    ));
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for program in &self.programs {
                program.show_log();
            }
        }
        self.programs.clear();
        // A folder that stays is removed by the next lab's sweep.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
