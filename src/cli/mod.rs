//! The command line: what may be written, and one module per thing that is done. Everything but
//! `run` ends at once: it reads a file, or asks a running evenkeel over its socket.
//!
//! Exit status: 0 done, 1 it could not be done (one line on standard error says why and what to do),
//! 2 the command line itself is wrong.

mod capture;
mod change;
mod check;
mod check_ports;
mod client;
mod connections;
mod events;
mod import;
mod ipvsadm;
mod query;
mod run;
mod status;
mod table;
mod top;
mod trace;
mod version;
mod vips;

#[cfg(test)]
mod tests;

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use thiserror::Error;

use crate::mgmt::api::SocketError;
use crate::mgmt::config::FileError;
use crate::mgmt::survey::SurveyError;

pub use client::ClientError;

/// Why a command could not be done: one line that says what to do.
#[derive(Debug, Error)]
pub enum CliError {
    #[error(transparent)]
    Config(#[from] FileError),
    #[error(transparent)]
    Run(#[from] crate::mgmt::RunError),
    #[error(transparent)]
    Survey(#[from] SurveyError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Import(#[from] import::ImportError),
    #[error("there is no service \"{0}\"; `evenkeel status` lists them")]
    NoService(String),
    #[error("cannot write the output: {0}; check where it goes")]
    Output(io::Error),
    #[error("cannot start: {0}; check the limits on processes and open files")]
    Runtime(io::Error),
    #[error("cannot show this as JSON: {0}; leave out --json")]
    Json(serde_json::Error),
    #[error("evenkeel has ended, and the stream with it; look into its log")]
    Ended,
    /// Everything has been said on standard output.
    #[error("")]
    Said,
}

/// A layer-4 load balancer on DPDK.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, max_term_width = 80)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub shared: Shared,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Shared {
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Socket of the running evenkeel
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/run/evenkeel/evenkeel.sock"
    )]
    pub socket: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the load balancer in the foreground until a signal ends it
    Run(run::RunArgs),
    /// Check a configuration and say what is wrong with it
    Check(check::CheckArgs),
    /// Show services and backends, ports, workers and drops
    Status(status::StatusArgs),
    /// Watch services, backends and workers at work
    Top(top::TopArgs),
    /// List tracked connections
    Connections(connections::ConnectionsArgs),
    /// Say what would become of a packet, and why; nothing is sent
    Trace(trace::TraceArgs),
    /// Copy packets from the data path, as they come and as they leave
    Capture(capture::CaptureArgs),
    /// Follow what happens: backends up and down, reloads, drains, limits, ...
    Events(events::EventsArgs),
    /// Make a running evenkeel use a configuration file
    Reload(change::ReloadArgs),
    /// Write the configuration in use to a file
    Save(ConfigFile),
    /// Add, change or remove a service
    #[command(subcommand)]
    Service(change::ServiceCommand),
    /// Add, change, drain or remove a backend
    #[command(subcommand)]
    Backend(change::BackendCommand),
    /// Show who answers for the VIPs
    Vips,
    /// Withdraw all VIPs, so that other instances get what is new; connections go on
    Drain,
    /// End the drain
    Undrain,
    /// Exit with 0 if this evenkeel wants traffic, and with 1 if not
    Ready(vips::ReadyArgs),
    /// Turn what ipvsadm or keepalived have into a configuration
    Import(import::ImportArgs),
    /// Print the versions of evenkeel and DPDK
    Version,
}

#[derive(Debug, Args)]
pub struct ConfigFile {
    /// Configuration file
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "/etc/evenkeel/evenkeel.toml"
    )]
    pub config: PathBuf,
}

/// Does what the command line says.
pub fn run(cli: Cli) -> Result<(), CliError> {
    let shared = cli.shared;
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args, &shared),
        Command::Status(args) => status::run(&args, &shared),
        Command::Top(args) => top::run(&args, &shared),
        Command::Connections(args) => connections::run(&args, &shared),
        Command::Trace(args) => trace::run(&args, &shared),
        Command::Capture(args) => capture::run(&args, &shared),
        Command::Events(args) => events::run(&args, &shared),
        Command::Reload(args) => change::reload(&args, &shared),
        Command::Save(file) => change::save(&file, &shared),
        Command::Service(command) => change::service(&command, &shared),
        Command::Backend(command) => change::backend(&command, &shared),
        Command::Vips => vips::vips(&shared),
        Command::Drain => vips::drain(true, &shared),
        Command::Undrain => vips::drain(false, &shared),
        Command::Ready(args) => vips::ready(&args, &shared),
        Command::Import(args) => import::run(&args, &shared),
        Command::Version => version::run(&shared),
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no fault.
fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(CliError::Output),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(CliError::Json)?;
    print(&format!("{text}\n"))
}
