//! `evenkeel check`: reads a configuration and starts nothing; with `--ports` it opens the ports too.

use clap::Args;
use serde::Serialize;

use super::{CliError, ConfigFile, Shared, check_ports, print, print_json};
use crate::mgmt::config::{self, FileError, Invalid};
use crate::mgmt::start::huge_pages_mib;

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Open the ports, which no other program may use meanwhile, and show what their devices can do
    #[arg(long)]
    ports: bool,
}

/// What `check --json` prints.
#[derive(Serialize)]
struct Verdict {
    file: String,
    valid: bool,
    /// What evenkeel wants of huge pages by a valid file.
    #[serde(skip_serializing_if = "Option::is_none")]
    huge_pages_mib: Option<u32>,
    faults: Vec<Fault>,
}

#[derive(Serialize)]
struct Fault {
    line: usize,
    column: usize,
    /// `reason; fix`
    text: String,
}

pub(super) fn run(args: &CheckArgs, shared: &Shared) -> Result<(), CliError> {
    let file = &args.file.config;
    let name = file.display();
    match config::load(file) {
        Ok(config) if args.ports => check_ports::run(&config, shared),
        Ok(config) if shared.json => {
            let huge_pages_mib = Some(huge_pages_mib(&config));
            print_json(&Verdict {
                huge_pages_mib,
                ..verdict(name.to_string(), None)
            })
        }
        Ok(config) => {
            let (ports, services) = (config.ports.len(), config.services.len());
            let backends: usize = config.services.iter().map(|s| s.backends.len()).sum();
            print(&format!(
                "{name}: valid; ports: {ports}, services: {services}, backends: {backends}\n"
            ))
        }
        Err(FileError::Invalid { invalid, .. }) if shared.json => {
            print_json(&verdict(name.to_string(), Some(&invalid)))?;
            Err(CliError::Said)
        }
        Err(error) => Err(error.into()),
    }
}

fn verdict(file: String, invalid: Option<&Invalid>) -> Verdict {
    let faults = invalid
        .map_or(&[][..], |invalid| &invalid.faults)
        .iter()
        .map(|fault| Fault {
            line: fault.line,
            column: fault.column,
            text: fault.error.to_string(),
        });
    Verdict {
        file,
        valid: invalid.is_none(),
        huge_pages_mib: None,
        faults: faults.collect(),
    }
}
