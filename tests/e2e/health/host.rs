//! The host that is checked: a namespace behind a TAP device, with real servers.

use crate::lab::namespace::{self, Namespace};
use crate::lab::process::{self, Running};
use crate::lab::tool;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

pub const BACKEND: &str = "10.77.0.11";
pub const BACKEND6: &str = "2001:db8:77::11";
pub const VIP: &str = "10.77.0.80";
/// evenkeel's side: the port's own addresses and its check addresses.
pub const PORT: &str = "10.77.0.2";
pub const PORT6: &str = "2001:db8:77::2";
pub const CHECK: &str = "10.77.0.3";
pub const CHECK6: &str = "2001:db8:77::3";
/// A check address outside the host's subnets, which it answers by its default route.
pub const OUTSIDE: &str = "198.51.100.3";

pub struct Host {
    // In the order in which they must end.
    programs: Vec<Running>,
    unwrapping: Option<Running>,
    namespace: Namespace,
    folder: PathBuf,
    pub tap: Arc<SyncDevice>,
}

impl Host {
    /// None, said on stderr, without root.
    pub fn new() -> Option<Self> {
        if !namespace::may_create() {
            process::say_skipped("needs root");
            return None;
        }
        namespace::sweep();
        static HOSTS: AtomicU32 = AtomicU32::new(0);
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{}-h{number}", namespace::PREFIX, std::process::id());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(&folder).expect("the host's folder");
        let namespace = Namespace::create(&name, "host");
        for (key, value) in [
            ("arp_ignore", "1"),
            ("arp_announce", "2"),
            ("rp_filter", "0"),
        ] {
            for scope in ["all", "default"] {
                namespace.sysctl(&format!("net/ipv4/conf/{scope}/{key}"), value);
            }
        }
        // The device stays open here while the host has its other end.
        let device = format!("ekh{}n{number}", std::process::id());
        let tap = DeviceBuilder::new().name(&device).layer(Layer::L2);
        let tap = Arc::new(tap.build_sync().expect("a TAP device"));
        let within = format!("{name}-host");
        process::check(Command::new("ip").args(["link", "set", &device, "netns", &within]));
        namespace.ip(&format!("link set {device} name eth0"));
        namespace.up("eth0", &["10.77.0.11/24", "2001:db8:77::11/64"]);
        namespace.ip(&format!("route add default via {PORT}"));
        Some(Self {
            programs: Vec::new(),
            unwrapping: None,
            namespace,
            folder,
            tap,
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn ip(&self, words: &str) -> String {
        self.namespace.ip(words)
    }

    /// `program` in the host, not yet started.
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    /// Sets one of the kernel's settings, `key` as under `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) {
        self.namespace.sysctl(key, value);
    }

    pub fn start_unwrapping(&mut self) {
        let log = self.folder.join("unwrap.log");
        self.unwrapping = Some(tool::start(&self.namespace, &["unwrap", "tun0"], log));
        process::wait_for("tun0", || self.namespace.try_ip("link set tun0 up"));
    }

    pub fn stop_unwrapping(&mut self) {
        self.unwrapping = None;
    }

    /// nginx with and without TLS on 443 and 80, dnsmasq on 53.
    pub fn start_servers(&mut self) {
        self.make_certificates();
        let own = self.folder.to_str().expect("a path in UTF-8").to_owned();
        let mut large = "x".repeat(60_000);
        large.push_str("the end");
        fs::write(format!("{own}/large"), large).expect("a page");
        let config = format!("{own}/nginx.conf");
        fs::write(&config, nginx_configuration(&own)).expect("nginx's configuration");
        let log = format!("{own}/nginx.log");
        let arguments = ["-c", &config, "-p", &own];
        let mut nginx = self.namespace.start("nginx", &arguments, log);
        process::wait_for("nginx", || {
            nginx.assert_running();
            let answer = self.namespace.run("curl", &["-sf", "http://127.0.0.1/"]);
            answer.status.success().then_some(())
        });
        let words = "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root \
                     --pid-file= --bind-interfaces --address=/www.example/192.0.2.1 --local=/example/ \
                     --log-facility=-";
        let arguments: Vec<&str> = words.split_whitespace().collect();
        let log = format!("{own}/dnsmasq.log");
        let mut dnsmasq = self.namespace.start("dnsmasq", &arguments, log);
        process::wait_for("dnsmasq", || {
            dnsmasq.assert_running();
            // 53 in hexadecimal, in the kernel's list of UDP sockets.
            let sockets = self.namespace.run("cat", &["/proc/net/udp"]);
            let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
            sockets.contains(":0035 ").then_some(())
        });
        self.programs.extend([nginx, dnsmasq]);
    }

    fn make_certificates(&self) {
        let script = "
            key='-nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1'
            openssl req -x509 $key -keyout ca.key -out ca.pem -subj /CN=lab -days 2
            openssl req $key -keyout leaf.key -out leaf.csr -subj /CN=www.example
            echo subjectAltName=DNS:www.example >leaf.ext
            openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
                -days 2 -extfile leaf.ext -out leaf.pem";
        let mut openssl = Command::new("sh");
        openssl.args(["-ec", script]).current_dir(&self.folder);
        process::check(&mut openssl);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.programs.iter().for_each(Running::show_log);
        }
        self.programs.clear();
        self.unwrapping = None;
        // A folder that stays is removed by the next lab's sweep.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn nginx_configuration(own: &str) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {own}/{kind};\n"))
        .concat();
    format!(
        "user root; daemon off; master_process off;
         pid {own}/pid; error_log stderr warn;
         events {{ worker_connections 1024; }}
         http {{
             {temporary}
             access_log off; default_type text/plain;
             server {{
                 listen 80 default_server; listen [::]:80; listen 443 ssl default_server;
                 ssl_certificate {own}/leaf.pem; ssl_certificate_key {own}/leaf.key;
                 location = / {{ return 200 \"a page made of lab\\n\"; }}
                 location = /large {{ alias {own}/large; }}
             }}
             server {{ listen 80; server_name other.example; return 503; }}
         }}\n"
    )
}
