//! `evenkeel reload`, `save`, `service` and `backend`: changes to a running evenkeel, all through its
//! socket, each whole or not at all.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use hyper::Method as Http;

use super::query::encode;
use super::{CliError, ConfigFile, Shared, client, print, print_json};
use crate::mgmt::api::{Applied, BackendSettings};
use crate::mgmt::config::{
    self, Backend, Config, FileError, Listen, Method, Scheduler, Service, backend_to_toml,
    service_to_toml,
};

#[derive(Debug, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    #[command(flatten)]
    pub how: How,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct How {
    /// Say what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Add a service without backends
    Add {
        name: String,
        /// What it listens on, such as tcp:192.0.2.80:80; may be repeated
        #[arg(long, required = true)]
        listen: Vec<Listen>,
        /// nat, fullnat, tunnel or direct-routing
        #[arg(long, value_parser = method)]
        method: Method,
        /// rr, wrr, wlc, mh, ...
        #[arg(long, default_value = "wlc", value_parser = scheduler)]
        scheduler: Scheduler,
        #[command(flatten)]
        how: How,
    },
    /// Change a service's scheduler
    Set {
        name: String,
        #[arg(long, value_parser = scheduler)]
        scheduler: Scheduler,
        #[command(flatten)]
        how: How,
    },
    /// Remove a service; its connections end
    Remove {
        name: String,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Add a backend to a service
    Add {
        service: String,
        name: String,
        #[arg(long)]
        address: IpAddr,
        /// The service's port if left out
        #[arg(long)]
        port: Option<u16>,
        #[arg(long, default_value_t = 1)]
        weight: u16,
        #[command(flatten)]
        how: How,
    },
    /// Change a backend
    Set {
        service: String,
        name: String,
        #[command(flatten)]
        set: Settings,
        #[command(flatten)]
        how: How,
    },
    /// Give a backend no new connections; the others go on
    Drain {
        service: String,
        name: String,
        /// End the drain
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        how: How,
    },
    /// Remove a backend; its connections end
    Remove {
        service: String,
        name: String,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Settings {
    /// 0 to 65535; 0 takes no new connections
    #[arg(long)]
    pub weight: Option<u16>,
    /// Connections above which it is overloaded
    #[arg(long)]
    pub upper: Option<u32>,
    /// Connections below which it no longer is
    #[arg(long)]
    pub lower: Option<u32>,
}

fn method(text: &str) -> Result<Method, String> {
    named(Method::NAMES, text)
}

fn scheduler(text: &str) -> Result<Scheduler, String> {
    named(Scheduler::NAMES, text)
}

fn named<T: Copy>(names: &[(&str, T)], text: &str) -> Result<T, String> {
    let found = names
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value);
    let all = || {
        names
            .iter()
            .map(|(name, _)| *name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    found.ok_or_else(|| format!("use one of {}", all()))
}

/// Validated here first, where faults have the file's name.
pub fn reload(args: &ReloadArgs, shared: &Shared) -> Result<(), CliError> {
    let new = config::load(&args.file.config)?;
    send(
        shared,
        Http::PUT,
        "/v1/config",
        config::to_toml(&new),
        args.how,
    )
}

/// Writes the configuration in use to a file.
pub fn save(file: &ConfigFile, shared: &Shared) -> Result<(), CliError> {
    config::save(&running(shared)?, &file.config)?;
    print(&format!("saved to {}\n", file.config.display()))
}

fn running(shared: &Shared) -> Result<Config, CliError> {
    let text = client::block_on(client::get_text(&shared.socket, "/v1/config"))?;
    config::parse(&text).map_err(|invalid| {
        let path = shared.socket.clone();
        FileError::Invalid { path, invalid }.into()
    })
}

pub fn service(command: &ServiceCommand, shared: &Shared) -> Result<(), CliError> {
    let path = |name: &str| format!("/v1/services/{}", encode(name));
    match command {
        ServiceCommand::Add {
            name,
            listen,
            method,
            scheduler,
            how,
        } => {
            let service = Service::new(name.clone(), listen.clone(), *method, *scheduler);
            send(
                shared,
                Http::PUT,
                &path(name),
                service_to_toml(&service),
                *how,
            )
        }
        ServiceCommand::Set {
            name,
            scheduler,
            how,
        } => {
            let mut config = running(shared)?;
            let found = config
                .services
                .iter_mut()
                .find(|service| service.name == *name);
            let service = found.ok_or_else(|| CliError::NoService(name.clone()))?;
            service.scheduler = *scheduler;
            service.untracked = config::Untracked::default_for(*scheduler);
            send(
                shared,
                Http::PUT,
                &path(name),
                service_to_toml(service),
                *how,
            )
        }
        ServiceCommand::Remove { name, how } => {
            send(shared, Http::DELETE, &path(name), String::new(), *how)
        }
    }
}

pub fn backend(command: &BackendCommand, shared: &Shared) -> Result<(), CliError> {
    let path = |service: &str, name: &str| {
        format!("/v1/services/{}/backends/{}", encode(service), encode(name))
    };
    let patch = |service: &str, name: &str, set: &BackendSettings, how: How| {
        let body = serde_json::to_string(set).map_err(CliError::Json)?;
        send(shared, Http::PATCH, &path(service, name), body, how)
    };
    match command {
        BackendCommand::Add {
            service,
            name,
            address,
            port,
            weight,
            how,
        } => {
            let backend = Backend {
                name: name.clone(),
                address: *address,
                port: *port,
                weight: *weight,
                upper: None,
                lower: None,
                drain: false,
            };
            send(
                shared,
                Http::PUT,
                &path(service, name),
                backend_to_toml(&backend),
                *how,
            )
        }
        BackendCommand::Set {
            service,
            name,
            set,
            how,
        } => {
            let Settings {
                weight,
                upper,
                lower,
            } = *set;
            patch(
                service,
                name,
                &BackendSettings {
                    weight,
                    drain: None,
                    upper,
                    lower,
                },
                *how,
            )
        }
        BackendCommand::Drain {
            service,
            name,
            undo,
            how,
        } => {
            let set = BackendSettings {
                drain: Some(!undo),
                ..BackendSettings::default()
            };
            patch(service, name, &set, *how)
        }
        BackendCommand::Remove { service, name, how } => send(
            shared,
            Http::DELETE,
            &path(service, name),
            String::new(),
            *how,
        ),
    }
}

fn send(shared: &Shared, http: Http, path: &str, body: String, how: How) -> Result<(), CliError> {
    let path = if how.dry_run {
        format!("{path}?dry_run=true")
    } else {
        path.to_owned()
    };
    let applied: Applied = client::block_on(client::change(&shared.socket, http, &path, body))?;
    if shared.json {
        print_json(&applied)
    } else {
        print(&render(&applied))
    }
}

/// One line per change.
pub(super) fn render(applied: &Applied) -> String {
    if applied.diff.is_empty() {
        return "nothing changes\n".to_owned();
    }
    let mut text = String::new();
    for change in &applied.diff.changes {
        text += &format!("{change}\n");
    }
    for warning in &applied.warnings {
        text += &format!("warning: {warning}\n");
    }
    for key in &applied.diff.needs_restart {
        text += &format!("! takes a restart: {key}\n");
    }
    for impact in &applied.impact {
        text += &format!(
            "service {}: {:.1} % of hash slots get another backend; {} of {} live flows lose theirs\n",
            impact.service, impact.slots_moved_percent, impact.flows_moved, impact.flows
        );
    }
    if applied.dry_run {
        text += "nothing was changed (--dry-run)\n";
    }
    text
}
