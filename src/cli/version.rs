//! `evenkeel version`.

use serde::Serialize;

use super::{CliError, Shared, print, print_json};

#[derive(Serialize)]
struct Version {
    evenkeel: &'static str,
    /// The library that the program runs with, which may be newer than what it was built with.
    dpdk: String,
}

pub fn run(shared: &Shared) -> Result<(), CliError> {
    let dpdk = crate::port::version();
    let version = Version {
        evenkeel: env!("CARGO_PKG_VERSION"),
        dpdk: dpdk.trim_start_matches("DPDK ").to_owned(),
    };
    if shared.json {
        return print_json(&version);
    }
    print(&format!(
        "evenkeel {}\nDPDK {}\n",
        version.evenkeel, version.dpdk
    ))
}
