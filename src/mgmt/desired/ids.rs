//! The ids of services and backends, which survive reloads. Plain state on the management thread.

use std::collections::HashMap;
use std::hash::Hash;
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
}

/// Ids that are in use and what they name.
#[derive(Clone, Debug)]
pub struct Ids<K> {
    by_key: HashMap<K, u32>,
    free: Vec<u32>,
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

impl<K: Hash + Eq> Ids<K> {
    /// The id of `key`, which gets one if it has none.
    pub fn get(&mut self, key: K) -> u32 {
        let (free, next) = (&mut self.free, &mut self.next);
        *self.by_key.entry(key).or_insert_with(|| {
            free.pop().unwrap_or_else(|| {
                *next += 1;
                *next - 1
            })
        })
    }

    pub fn find(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Lets another have the id of `key`.
    pub fn free(&mut self, key: &K) {
        self.free.extend(self.by_key.remove(key));
    }

    /// All ids ever given are below this.
    pub fn end(&self) -> u32 {
        self.next
    }
}

/// The most ids of each kind that can be in use at once: workers' counters and scheduler state
/// are made for so many at start.
pub const MAX_BACKENDS: usize = 262_144;
pub const MAX_SERVICES: usize = 65_536;
