//! The evenkeel program: reads the command line, does it, and says in one line what went wrong.

use std::process::ExitCode;

use clap::Parser as _;
use evenkeel::cli::{self, Cli, CliError};
use evenkeel::mgmt::config::FileError;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

/// Several faults of a configuration take a line each; they begin with the file's name.
fn say(error: &CliError) {
    match error {
        CliError::Said => {}
        CliError::Config(FileError::Invalid { .. }) => eprintln!("{error}"),
        _ => eprintln!("evenkeel: {error}"),
    }
}
