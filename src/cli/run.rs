//! `evenkeel run`: the appliance itself, in the foreground.

use clap::Args;

use super::{CliError, ConfigFile};
use crate::mgmt::{self, Faults, log};

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Let the socket ask for faults of management, for tests
    #[arg(long, hide = true)]
    allow_faults: bool,
}

pub(super) fn run(args: &RunArgs) -> Result<(), CliError> {
    let file = &args.file.config;
    let config = mgmt::config::load(file)?;
    log::init(config.management.log);
    let faults = match args.allow_faults {
        true => Faults::Allowed,
        false => Faults::Refused,
    };
    Ok(mgmt::run(config, file, faults)?)
}
