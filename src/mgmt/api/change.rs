//! Changes to the running configuration. Every one of them, from one weight to a whole new file, is
//! the same: a whole configuration, validated as a file is, that replaces the one it was made from
//! or is refused. So nothing is ever half changed.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::place::invalid_part;
use super::problem::Problem;
use crate::mgmt::config::{
    Backend, Config, Diff, Invalid, Located, Service, parse, service_to_toml, to_toml,
};
use crate::mgmt::desired::table_size;
use crate::mgmt::impact::Impact;

/// A configuration that is to take the place of the one in use.
#[derive(Debug)]
pub struct Replace {
    pub config: Box<Config>,
    /// Only if the one in use still has this tag.
    pub if_match: Option<String>,
    /// Say what would change, and change nothing.
    pub dry_run: bool,
    pub reply: oneshot::Sender<Result<Applied, Problem>>,
}

/// What a change did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Applied {
    /// Tag of the configuration that is in use now.
    pub etag: String,
    pub dry_run: bool,
    #[serde(flatten)]
    pub diff: Diff,
    /// What an operator may not have meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Of a dry run: what it would do to clients, by service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub impact: Vec<Impact>,
}

/// A tag that equal configurations share, however they are written. It is no secret and guards
/// against accidents alone.
pub fn etag(config: &Config) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(to_toml(config).as_bytes());
    format!("\"{:016x}\"", hasher.finish())
}

/// Whether `new` may replace `current`, and what that changes. The caller does it.
pub fn decide(
    current: &Config,
    new: &Config,
    if_match: Option<&str>,
    dry_run: bool,
) -> Result<Applied, Problem> {
    let tag = etag(current);
    if if_match.is_some_and(|wanted| wanted != "*" && wanted != tag) {
        return Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "changed-meanwhile",
            "Changed meanwhile",
            "the configuration was changed by somebody else; look at it and ask again",
        ));
    }
    let diff = Diff::between(current, new);
    if !diff.needs_restart.is_empty() && !dry_run {
        let keys = diff.needs_restart.join(", ");
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "needs-restart",
            "Needs a restart",
            format!(
                "nothing was changed, because some keys are read at start alone ({keys}); restart evenkeel or leave them as they are"
            ),
        ));
    }
    let etag = if dry_run { tag } else { etag(new) };
    Ok(Applied {
        etag,
        dry_run,
        diff,
        warnings: warnings(current, new),
        impact: Vec::new(),
    })
}

/// Hash tables of another size move most clients to another backend.
fn warnings(current: &Config, new: &Config) -> Vec<String> {
    let resized = |service: &Service| {
        let before = current.services.iter().find(|s| s.name == service.name)?;
        let (old, size) = (table_size(before), table_size(service));
        (before.scheduler == service.scheduler && old != size).then(|| {
            format!(
                "service {}: table_size {old} -> {size} moves most clients that go by the hash to \
                 another backend, and other instances must change alike",
                service.name
            )
        })
    };
    new.services.iter().filter_map(resized).collect()
}

/// A change to a part of the configuration, as the interface takes it.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// A `[[service]]` table in TOML, its backends included; replaces one of the same name.
    PutService {
        name: String,
        toml: String,
    },
    RemoveService {
        name: String,
    },
    /// A `[[service.backend]]` table in TOML; replaces one of the same name.
    PutBackend {
        service: String,
        name: String,
        toml: String,
    },
    SetBackend {
        service: String,
        name: String,
        set: BackendSettings,
    },
    RemoveBackend {
        service: String,
        name: String,
    },
}

/// What may be set in a backend; what is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lower: Option<u32>,
}

impl Edit {
    /// The configuration with this change, validated as a whole.
    pub fn apply(&self, current: &Config) -> Result<Config, Problem> {
        let mut config = current.clone();
        // What stands behind the rest, for it to be validated as a whole, and the caller's own part.
        let (mut extra, mut part) = (String::new(), "");
        match self {
            Edit::PutService { name, toml } => {
                config.services.retain(|service| service.name != *name);
                part = toml;
            }
            Edit::RemoveService { name } => {
                service_mut(&mut config, name)?;
                config.services.retain(|service| service.name != *name);
            }
            Edit::PutBackend {
                service,
                name,
                toml,
            } => {
                let mut changed = service_mut(&mut config, service)?.clone();
                changed.backends.retain(|backend| backend.name != *name);
                config.services.retain(|other| other.name != *service);
                extra = service_to_toml(&changed) + "\n";
                part = toml;
            }
            Edit::SetBackend { service, name, set } => {
                let backend = backend_mut(&mut config, service, name)?;
                backend.weight = set.weight.unwrap_or(backend.weight);
                backend.drain = set.drain.unwrap_or(backend.drain);
                backend.upper = set.upper.or(backend.upper);
                backend.lower = set.lower.or(backend.lower);
            }
            Edit::RemoveBackend { service, name } => {
                backend_mut(&mut config, service, name)?;
                let service = service_mut(&mut config, service)?;
                service.backends.retain(|backend| backend.name != *name);
            }
        }
        let rest = to_toml(&config) + "\n" + &extra;
        let before = rest.lines().count();
        let text = rest + part;
        let mut edited = parse(&text).map_err(|invalid| invalid_part(&text, before, &invalid))?;
        keep_order(current, &mut edited);
        self.check_name(&edited)?;
        Ok(edited)
    }

    /// The table must be about what the path names.
    fn check_name(&self, edited: &Config) -> Result<(), Problem> {
        let find = |name: &str| edited.services.iter().find(|service| service.name == name);
        let is_there = match self {
            Edit::PutService { name, .. } => find(name).is_some(),
            Edit::PutBackend { service, name, .. } => find(service)
                .is_some_and(|service| service.backends.iter().any(|b| b.name == *name)),
            _ => true,
        };
        if is_there {
            return Ok(());
        }
        let detail = "the table has another name than the path; make them the same";
        Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "other-name",
            "Another name",
            detail,
        ))
    }
}

/// What was replaced stays where it was: rr walks the list, and an operator expects it there.
fn keep_order(current: &Config, edited: &mut Config) {
    let old = |name: &str| {
        current
            .services
            .iter()
            .position(|service| service.name == name)
    };
    for service in &mut edited.services {
        let Some(before) = old(&service.name).map(|index| &current.services[index]) else {
            continue;
        };
        let position = |name: &str| before.backends.iter().position(|b| b.name == name);
        service
            .backends
            .sort_by_key(|backend| position(&backend.name).unwrap_or(usize::MAX));
    }
    edited
        .services
        .sort_by_key(|service| old(&service.name).unwrap_or(usize::MAX));
}

fn service_mut<'a>(config: &'a mut Config, name: &str) -> Result<&'a mut Service, Problem> {
    let found = config
        .services
        .iter_mut()
        .find(|service| service.name == name);
    found.ok_or_else(|| Problem::no_service(name))
}

fn backend_mut<'a>(
    config: &'a mut Config,
    service: &str,
    name: &str,
) -> Result<&'a mut Backend, Problem> {
    let found = service_mut(config, service)?
        .backends
        .iter_mut()
        .find(|b| b.name == name);
    found.ok_or_else(|| Problem::no_backend(service, name))
}

/// A whole file that is not valid, with every fault's place.
pub fn invalid_file(invalid: &Invalid) -> Problem {
    let faults: Vec<String> = invalid.faults.iter().map(Located::to_string).collect();
    Problem::invalid(faults[0].clone(), faults)
}
