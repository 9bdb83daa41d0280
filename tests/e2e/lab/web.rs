//! Real nginx in the backends, real curl in the client.

use std::fs;
use std::path::{Path, PathBuf};

use super::namespace::Namespace;
use super::process::{self, Running};

/// Where nginx listens, besides port 80.
pub const SECOND_PORT: u16 = 8080;
const LARGE: usize = 50_000_000;
/// Bytes a second of one answer from `/slow`, the server's own limit: the client takes all it gets.
pub const SLOW: usize = 20_000;

/// 50 MB that do not repeat, so that a lost or doubled piece shows in the checksum.
pub fn large_file(folder: &Path) -> PathBuf {
    let path = folder.join("large");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let bytes: Vec<u8> = words.take(LARGE / 8).flatten().collect();
    fs::write(&path, bytes).expect("the large file");
    path
}

pub fn start(host: &Namespace, name: &str, folder: &Path, large: &Path) -> Running {
    let own = folder.join(name);
    fs::create_dir_all(&own).expect("nginx's folder");
    let own = own.to_str().expect("a path in UTF-8");
    let config = format!("{own}/nginx.conf");
    fs::write(&config, configuration(name, own, large)).expect("nginx's configuration");
    let mut nginx = host.start("nginx", &["-c", &config, "-p", own], format!("{own}/log"));
    process::wait_for(&format!("nginx of {name}"), || {
        nginx.assert_running();
        let answer = host.run("curl", &["-sf", "http://127.0.0.1/healthz"]);
        answer.status.success().then_some(())
    });
    nginx
}

fn configuration(name: &str, own: &str, large: &Path) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {own}/{kind};\n"))
        .concat();
    let large = large.display();
    // One process: killing it leaves no worker behind.
    format!(
        "user root; daemon off; master_process off;
         pid {own}/pid; error_log stderr warn;
         events {{ worker_connections 1024; }}
         http {{
             {temporary}
             access_log off; default_type text/plain; keepalive_requests 100000;
             server {{
                 listen 80; listen [::]:80; listen {SECOND_PORT}; listen [::]:{SECOND_PORT};
                 location = / {{ return 200 \"{name} $remote_addr $server_port\\n\"; }}
                 location = /healthz {{ return 200 \"ok\\n\"; }}
                 location = /large {{ alias {large}; }}
                 location = /slow {{ alias {large}; limit_rate {SLOW}; }}
             }}
         }}\n"
    )
}

/// What curl printed for `arguments` in `host`; a failed fetch ends the test.
pub fn curl(host: &Namespace, arguments: &[&str]) -> String {
    // Slow is no failure, standing still is.
    let patience = process::PATIENCE.as_secs().to_string();
    let stalled = [
        "--connect-timeout",
        &patience,
        "--speed-time",
        &patience,
        "--speed-limit",
        "1",
    ];
    let common = [&["--silent", "--show-error", "--fail"], &stalled[..]].concat();
    process::check(host.command("curl").args(common).args(arguments))
}

/// SHA-256 in hexadecimal, by coreutils.
pub fn sha256(path: &Path) -> String {
    let line = process::check(std::process::Command::new("sha256sum").arg(path));
    line.split_whitespace()
        .next()
        .expect("a checksum")
        .to_owned()
}
