//! `evenkeel version`.

use serde::Serialize;

use super::{CliError, Shared, print, print_json};

#[derive(Serialize)]
struct Version {
    evenkeel: &'static str,
}

pub fn run(shared: &Shared) -> Result<(), CliError> {
    let version = Version {
        evenkeel: env!("CARGO_PKG_VERSION"),
    };
    if shared.json {
        return print_json(&version);
    }
    print(&format!("evenkeel {}\n", version.evenkeel))
}
