//! The ids of services and backends, which survive reloads. Plain state on the management thread.

use std::collections::HashMap;
use std::net::IpAddr;

use super::config;

/// What a backend is known by across reloads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct BackendKey {
    pub service: String,
    pub address: IpAddr,
    pub port: Option<u16>,
    /// The same server may be a backend and the sorry server.
    pub is_sorry: bool,
}

impl BackendKey {
    pub fn of(service: &config::Service, backend: &config::Backend) -> Self {
        Self {
            service: service.name.clone(),
            address: backend.address,
            port: backend.port,
            is_sorry: false,
        }
    }

    pub fn sorry(service: &config::Service) -> Option<Self> {
        let sorry = service.sorry_server.as_ref()?;
        Some(Self {
            service: service.name.clone(),
            address: sorry.address,
            port: sorry.port,
            is_sorry: true,
        })
    }

    /// Of everything that a service names.
    pub fn all(service: &config::Service) -> impl Iterator<Item = Self> {
        let backends = service.backends.iter().map(|b| Self::of(service, b));
        backends.chain(Self::sorry(service))
    }
}

/// Ids that are in use and what they name.
pub struct Ids<K> {
    pub by_key: HashMap<K, u32>,
    pub free: Vec<u32>,
    next: u32,
}

impl<K> Default for Ids<K> {
    fn default() -> Self {
        Self {
            by_key: HashMap::new(),
            free: Vec::new(),
            next: 0,
        }
    }
}

impl<K: std::hash::Hash + Eq + Clone> Ids<K> {
    pub fn get(&mut self, key: &K) -> u32 {
        if let Some(&id) = self.by_key.get(key) {
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.by_key.insert(key.clone(), id);
        id
    }
}

/// The most ids of each kind that can be in use at once: workers' counters and scheduler state
/// are made for so many at start.
pub const MAX_BACKENDS: usize = 262_144;
pub const MAX_SERVICES: usize = 65_536;
