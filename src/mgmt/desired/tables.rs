//! Which consistent hash lies under which service. Runs on the management thread; large tables are
//! built by another ([`crate::mgmt::hash_tables`]).

use std::sync::Arc;

use super::*;
use crate::lb::maglev::{DEFAULT_SIZE, Maglev, Member, SMALL_SIZE};
use crate::mgmt::hash_tables::TableKey;

impl Desired {
    /// The consistent hash under a service, or the one that the sorry server needs.
    pub(super) fn table_key(&self, service: &config::Service) -> TableKey {
        if let Some(sorry) = self.sorry_in_force(service) {
            let member = Member {
                address: sorry.address,
                port: sorry.port.unwrap_or(0),
                weight: 1,
            };
            return TableKey {
                members: vec![member],
                size: SMALL_SIZE,
            };
        }
        let follows = service.feedback.as_ref().is_some_and(|f| f.hash_too);
        let weight = |backend: &config::Backend| {
            let configured = u32::from(backend.weight);
            let id = self.find_backend(service, backend).filter(|_| follows);
            id.map_or(configured, |id| self.weight_in_force(id, backend))
        };
        let member = |backend: &config::Backend| Member {
            address: backend.address,
            port: backend.port.unwrap_or(0),
            weight: weight(backend),
        };
        TableKey {
            members: service.backends.iter().map(member).collect(),
            size: table_size(service),
        }
    }

    /// The tables that the next snapshot needs and none has yet, to be built elsewhere.
    pub fn missing_tables(&self) -> Vec<TableKey> {
        let keys = self.config.services.iter().map(|s| self.table_key(s));
        self.tables.missing(&keys.collect::<Vec<_>>())
    }

    /// Takes up tables that were built elsewhere; they are kept as long as a snapshot holds them,
    /// so the next one is to be built before `built` is dropped.
    pub fn take_tables(&mut self, built: &[(TableKey, Arc<Maglev>)]) {
        self.tables.take_up(built);
    }
}

/// Slots of the consistent hash under a service.
pub(in crate::mgmt) fn table_size(service: &config::Service) -> u32 {
    service
        .table_size
        .unwrap_or(match service.scheduler.is_hash() {
            true => DEFAULT_SIZE,
            false => SMALL_SIZE,
        })
}
