//! A small network made of namespaces: one client, a router, a switch and three backends.
//!
//! ```text
//!   client 198.51.100.10 ── 198.51.100.1 router 192.0.2.1
//!                                          │
//!                    ── switch 192.0.2.0/24 ──┬──────┬──────┬── evenkeel's TAP port
//!                                            .11    .12    .13    192.0.2.2, VIPs .81-.83
//! ```
//!
//! That is one arm. With two, the backends are on a second switch, 10.0.0.0/24, on which router and
//! evenkeel's second port have the addresses .1 and .2 too.
//!
//! Router and switches live in the namespace in which evenkeel runs, because a TAP device is born
//! there and must not move while its port is open. The backends hold the VIPs of tunnel and direct
//! routing on their loopback without answering ARP for them; what they send from one leaves by the
//! router, and what they send from their own address leaves by evenkeel. So one set of backends
//! serves direct routing, tunnel and NAT at once.
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
use tool::TUN;

pub const CLIENT: &str = "198.51.100.10";
pub const ROUTER: &str = "192.0.2.1";
pub const EVENKEEL: &str = "192.0.2.2";
pub const NAMES: [&str; 3] = ["web-1", "web-2", "web-3"];
pub const METHODS: [&str; 3] = ["nat", "tunnel", "direct-routing"];
/// The VIP of each of [`METHODS`]; all but the one for NAT are on the backends' loopback too.
pub const VIPS: [&str; 3] = ["192.0.2.81", "192.0.2.82", "192.0.2.83"];

/// On the switch: a packet of 1,500 bytes and the header that a tunnel puts in front of it.
pub const MTU: u32 = 1520;
const TABLE_BY_EVENKEEL: u32 = 100;

/// Where the backends are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arms {
    /// On the switch of the VIPs.
    One,
    /// On a switch of their own, behind evenkeel's second port.
    Two,
}

impl Arms {
    /// The backends' switch: its bridge, and the first three bytes of its addresses.
    fn backends(self) -> (&'static str, &'static str) {
        match self {
            Arms::One => ("lan", "192.0.2"),
            Arms::Two => ("back", "10.0.0"),
        }
    }
}

pub struct Lab {
    // In the order in which they must end: programs before the namespaces they run in.
    programs: Vec<Running>,
    pub client: Namespace,
    pub balancer: Namespace,
    pub backends: Vec<Namespace>,
    pub arms: Arms,
    folder: PathBuf,
}

impl Lab {
    /// The network and nothing running on it; `None`, said on stderr, without root.
    pub fn new(arms: Arms) -> Option<Lab> {
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
            arms,
            folder,
        };
        lab.connect();
        Some(lab)
    }

    fn connect(&self) {
        let net = &self.balancer;
        net.sysctl("net/ipv4/ip_forward", "1");
        net.sysctl("net/ipv6/conf/all/forwarding", "1");
        net.sysctl("net/ipv4/conf/all/send_redirects", "0");
        net.sysctl("net/ipv4/conf/default/send_redirects", "0");
        add_switch(net, "lan", &["192.0.2.1/24", "2001:db8::1/64"]);
        let (switch, prefix) = self.arms.backends();
        if self.arms == Arms::Two {
            add_switch(net, switch, &[&format!("{prefix}.1/24")]);
        }

        net.cable("to-client", &self.client, "eth0");
        net.up("to-client", &["198.51.100.1/24", "2001:db8:c::1/64"]);
        let addresses = [&format!("{CLIENT}/24"), "2001:db8:c::10/64"];
        self.client.up("eth0", &addresses);
        self.client.ip("route add default via 198.51.100.1");
        self.client.ip("-6 route add default via 2001:db8:c::1");

        for (backend, name) in self.backends.iter().zip(NAMES) {
            let port = format!("to-{name}");
            net.cable(&port, backend, "eth0");
            net.ip(&format!("link set {port} mtu {MTU} master {switch} up"));
        }
        for (backend, address) in self.backends.iter().zip(self.addresses()) {
            connect_backend(backend, prefix, &address);
        }
    }

    /// The backends' own addresses.
    pub fn addresses(&self) -> [String; 3] {
        let (_, prefix) = self.arms.backends();
        [11, 12, 13].map(|last| format!("{prefix}.{last}"))
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

    /// Each backend takes IPIP packets apart and handles what is inside: by the kernel's `ipip`
    /// where there is one.
    pub fn start_unwrapping(&mut self) {
        for ((backend, name), address) in self.backends.iter().zip(NAMES).zip(self.addresses()) {
            let device = format!("link add {TUN} type ipip local {address}");
            if backend.try_ip(&device).is_some() {
                backend.up(TUN, &[]);
                continue;
            }
            let log = self.folder.join(format!("{name}-unwrap.log"));
            self.programs
                .push(tool::start(backend, &["unwrap", TUN], log));
        }
    }

    /// Each backend answers UDP on `port` with its name, on its own address and on the VIPs it has.
    pub fn start_udp_echo(&mut self, port: u16) {
        for ((backend, name), address) in self.backends.iter().zip(NAMES).zip(self.addresses()) {
            let log = self.folder.join(format!("{name}-echo.log"));
            let at = [&*address, VIPS[1], VIPS[2]].map(|address| format!("{address}:{port}"));
            let arguments = ["udp-echo", name, &at[0], &at[1], &at[2]];
            self.programs.push(tool::start(backend, &arguments, log));
        }
    }
}

fn add_switch(net: &Namespace, name: &str, router: &[&str]) {
    // No multicast snooping: nobody here is a querier, and NDP must reach everyone.
    net.ip(&format!(
        "link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"
    ));
    net.ip(&format!("link set {name} mtu {MTU}"));
    net.up(name, router);
}

fn connect_backend(backend: &Namespace, prefix: &str, address: &str) {
    // Direct routing: the VIP is ours to accept, but the switch must not hear of it.
    backend.sysctl("net/ipv4/conf/all/arp_ignore", "1");
    backend.sysctl("net/ipv4/conf/all/arp_announce", "2");
    // What the tunnel's end hands up has a source that is routed elsewhere.
    backend.sysctl("net/ipv4/conf/all/rp_filter", "0");
    backend.sysctl("net/ipv4/conf/default/rp_filter", "0");
    backend.ip(&format!("link set eth0 mtu {MTU}"));
    backend.up("eth0", &[&format!("{address}/24")]);
    for vip in &VIPS[1..] {
        backend.ip(&format!("address add {vip}/32 dev lo"));
    }
    backend.ip(&format!("route add default via {prefix}.1"));
    // NAT: the answer must come back by evenkeel, whoever asked.
    let table = TABLE_BY_EVENKEEL;
    backend.ip(&format!("rule add from {address} table {table}"));
    backend.ip(&format!("route add {prefix}.0/24 dev eth0 table {table}"));
    backend.ip(&format!("route add default via {prefix}.2 table {table}"));
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
