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

pub mod address;
pub mod api;
pub mod appliance;
pub mod balancer;
pub mod downloads;
pub mod namespace;
pub mod process;
pub mod tool;
pub mod web;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub use address::{Arms, FAMILIES, Family, METHODS, NAMES};
use namespace::Namespace;
use process::Running;
use tool::{TUN, TUN6};

/// On the switch: a packet of 1,500 bytes and the header that a tunnel puts in front of it.
pub const MTU: u32 = 1520;
const TABLE_BY_EVENKEEL: u32 = 100;

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
        add_switch(net, Arms::One);
        if self.arms == Arms::Two {
            add_switch(net, Arms::Two);
        }

        net.cable("to-client", &self.client, "eth0");
        net.ip("link set to-client up");
        self.client.ip("link set eth0 up");
        // A test may use a port again at once.
        self.client.sysctl("net/ipv4/tcp_max_tw_buckets", "0");
        for family in FAMILIES {
            let (client, router, length) =
                (family.client(), family.clients_router(), family.length());
            net.ip(&format!("address add {router}/{length} dev to-client"));
            self.client
                .ip(&format!("address add {client}/{length} dev eth0"));
            self.client.ip(&format!("route add default via {router}"));
        }

        for (index, backend) in self.backends.iter().enumerate() {
            let port = format!("to-{}", NAMES[index]);
            net.cable(&port, backend, "eth0");
            let switch = self.arms.switch();
            net.ip(&format!("link set {port} mtu {MTU} master {switch} up"));
            connect_backend(backend, self.arms, index);
        }
    }

    /// What its namespaces' names begin with.
    pub fn name(&self) -> &str {
        let name = self.folder.file_name().and_then(|name| name.to_str());
        name.expect("a name in UTF-8")
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the backends send the answers of NAT: that is one appliance at a time.
    pub fn answer_by(&self, gateway: &str) {
        let route = format!("route replace default via {gateway} table {TABLE_BY_EVENKEEL}");
        for backend in &self.backends {
            backend.ip(&route);
        }
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

    /// Each backend takes tunnelled packets apart and handles what is inside: by the kernel's
    /// tunnels where there are both.
    pub fn start_unwrapping(&mut self) {
        for (index, (backend, name)) in self.backends.iter().zip(NAMES).enumerate() {
            let [v4, v6] = FAMILIES.map(|family| self.arms.backends(family)[index].clone());
            let ipip = backend.try_ip(&format!("link add {TUN} type ipip local {v4}"));
            let any = backend.try_ip(&format!("link add {TUN6} type ip6tnl mode any local {v6}"));
            if ipip.is_some() && any.is_some() {
                backend.ip(&format!("link set {TUN} up"));
                backend.ip(&format!("link set {TUN6} up"));
                continue;
            }
            if ipip.is_some() {
                backend.ip(&format!("link delete {TUN}"));
            }
            let log = self.folder.join(format!("{name}-unwrap.log"));
            self.programs
                .push(tool::start(backend, &["unwrap", TUN], log));
        }
    }

    /// Each backend answers UDP on `port` with its name, on its own addresses and on its VIPs.
    pub fn start_udp_echo(&mut self, port: u16) {
        for (index, (backend, name)) in self.backends.iter().zip(NAMES).enumerate() {
            let mut arguments = vec!["udp-echo".to_owned(), name.to_owned()];
            for family in FAMILIES {
                let own = &self.arms.backends(family)[index];
                let vips = METHODS[1..].iter().map(|method| family.vip(method));
                let at = vips.chain([own.clone()]);
                arguments.extend(at.map(|address| address::with_port(&address, port)));
            }
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            let log = self.folder.join(format!("{name}-echo.log"));
            self.programs.push(tool::start(backend, &arguments, log));
        }
    }
}

fn add_switch(net: &Namespace, arms: Arms) {
    let name = arms.switch();
    // An address of its own, or it would change whenever a member with a lower one joins. No
    // multicast snooping: nobody here is a querier, and NDP must reach everyone.
    let router = "address 02:00:00:00:00:01";
    let options = "forward_delay 0 stp_state 0 mcast_snooping 0";
    net.ip(&format!("link add {name} {router} type bridge {options}"));
    net.ip(&format!("link set {name} mtu {MTU} up"));
    for family in FAMILIES {
        let (router, length) = (arms.router(family), family.length());
        net.ip(&format!("address add {router}/{length} dev {name}"));
    }
}

fn connect_backend(backend: &Namespace, arms: Arms, index: usize) {
    // Direct routing: the VIP is ours to accept, but the switch must not hear of it.
    backend.sysctl("net/ipv4/conf/all/arp_ignore", "1");
    backend.sysctl("net/ipv4/conf/all/arp_announce", "2");
    // What the tunnel's end hands up has a source that is routed elsewhere.
    backend.sysctl("net/ipv4/conf/all/rp_filter", "0");
    backend.sysctl("net/ipv4/conf/default/rp_filter", "0");
    backend.ip(&format!("link set eth0 mtu {MTU} up"));
    for family in FAMILIES {
        let (address, length) = (&arms.backends(family)[index], family.length());
        backend.ip(&format!("address add {address}/{length} dev eth0"));
        for method in &METHODS[1..] {
            let (vip, length) = (family.vip(method), family.host_length());
            backend.ip(&format!("address add {vip}/{length} dev lo"));
        }
        backend.ip(&format!("route add default via {}", arms.router(family)));
        // NAT: the answer must come back by evenkeel, whoever asked.
        let (ip, table) = (family.option(), TABLE_BY_EVENKEEL);
        backend.ip(&format!("{ip} rule add from {address} table {table}"));
        backend.ip(&format!(
            "route add {} dev eth0 table {table}",
            arms.subnet(family)
        ));
        backend.ip(&format!(
            "route add default via {} table {table}",
            arms.evenkeel(family)
        ));
    }
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
