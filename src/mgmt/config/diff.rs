//! What a reload would change, in words, and what of it takes a restart. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::model::*;
use super::save::{backend_to_toml, service_to_toml, to_toml};

/// The differences between the configuration in use and a new one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Diff {
    /// What a reload does at once.
    pub changes: Vec<Change>,
    /// Keys that are read at start alone: a reload refuses to change them.
    pub needs_restart: Vec<String>,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Change {
    pub kind: ChangeKind,
    pub service: String,
    /// `None`: it is about the service itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// `key: old -> new`, where something is changed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub keys: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    Added,
    Removed,
    Changed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.kind {
            ChangeKind::Added => '+',
            ChangeKind::Removed => '-',
            ChangeKind::Changed => '~',
        };
        write!(f, "{sign} service {}", self.service)?;
        if let Some(backend) = &self.backend {
            write!(f, " backend {backend}")?;
        }
        if !self.keys.is_empty() {
            write!(f, ": {}", self.keys.join(", "))?;
        }
        Ok(())
    }
}

impl Diff {
    /// What leads from `old` to `new`. Services are told apart by name, and backends by name within
    /// their service.
    pub fn between(old: &Config, new: &Config) -> Diff {
        Diff {
            changes: service_changes(old, new),
            needs_restart: fixed_changes(old, new),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.needs_restart.is_empty()
    }
}

fn service_changes(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    let change = |kind, service: &Service, keys| Change {
        kind,
        service: service.name.clone(),
        backend: None,
        keys,
    };
    for gone in old
        .services
        .iter()
        .filter(|s| find(&new.services, &s.name).is_none())
    {
        changes.push(change(ChangeKind::Removed, gone, Vec::new()));
    }
    for service in &new.services {
        let Some(before) = find(&old.services, &service.name) else {
            changes.push(change(ChangeKind::Added, service, Vec::new()));
            continue;
        };
        let without_backends = |service: &Service| {
            service_to_toml(&Service {
                backends: Vec::new(),
                ..service.clone()
            })
        };
        let keys = changed_keys(&without_backends(before), &without_backends(service));
        if !keys.is_empty() {
            changes.push(change(ChangeKind::Changed, service, keys));
        }
        backend_changes(before, service, &mut changes);
    }
    changes
}

fn find<'a>(services: &'a [Service], name: &str) -> Option<&'a Service> {
    services.iter().find(|service| service.name == name)
}

fn backend_changes(old: &Service, new: &Service, changes: &mut Vec<Change>) {
    let mut push = |kind, backend: &Backend, keys| {
        let (service, backend) = (new.name.clone(), Some(backend.name.clone()));
        changes.push(Change {
            kind,
            service,
            backend,
            keys,
        });
    };
    let has = |service: &Service, name: &str| service.backends.iter().any(|b| b.name == name);
    for gone in old
        .backends
        .iter()
        .filter(|backend| !has(new, &backend.name))
    {
        push(ChangeKind::Removed, gone, Vec::new());
    }
    for backend in &new.backends {
        match old
            .backends
            .iter()
            .find(|before| before.name == backend.name)
        {
            None => push(ChangeKind::Added, backend, Vec::new()),
            Some(before) => {
                let keys = changed_keys(&backend_to_toml(before), &backend_to_toml(backend));
                if !keys.is_empty() {
                    push(ChangeKind::Changed, backend, keys);
                }
            }
        }
    }
}

/// Everything but the services: devices, memory and threads are set up once.
fn fixed_changes(old: &Config, new: &Config) -> Vec<String> {
    let fixed = |config: &Config| {
        to_toml(&Config {
            services: Vec::new(),
            ..config.clone()
        })
    };
    changed_keys(&fixed(old), &fixed(new))
}

/// Compares two saved texts key by key; what is left out is at its default.
fn changed_keys(old: &str, new: &str) -> Vec<String> {
    let (old, new) = (keys(old), keys(new));
    let all: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let or_default = |value: Option<&String>| value.map_or("default", String::as_str).to_owned();
    all.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| {
            let (before, after) = (or_default(old.get(key)), or_default(new.get(key)));
            format!("{key}: {before} -> {after}")
        })
        .collect()
}

/// The keys of a saved text with the tables they stand in; tables of a list carry their number.
fn keys(toml: &str) -> BTreeMap<String, String> {
    let mut table = String::new();
    let mut lists: BTreeMap<String, usize> = BTreeMap::new();
    let mut keys = BTreeMap::new();
    for line in toml.lines() {
        if let Some(list) = line
            .strip_prefix("[[")
            .and_then(|rest| rest.strip_suffix("]]"))
        {
            let number = lists.entry(list.to_owned()).or_default();
            *number += 1;
            // The one service or backend that is compared needs no number.
            table = match list {
                "service" | "service.backend" => String::new(),
                list => format!("{list}[{number}]."),
            };
        } else if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            table = format!("{}.", name.strip_prefix("service.").unwrap_or(name));
        } else if let Some((key, value)) = line.split_once(" = ") {
            keys.insert(format!("{table}{key}"), value.to_owned());
        }
    }
    keys
}
