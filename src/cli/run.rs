//! `evenkeel run`: the appliance itself, in the foreground.

use crate::mgmt;

use super::{CliError, ConfigFile, log};

pub(super) fn run(file: &ConfigFile) -> Result<(), CliError> {
    let config = mgmt::config::load(&file.config)?;
    log::init(config.management.log);
    Ok(mgmt::run(config, &file.config)?)
}
