//! Which consistent hash lies under which service. Runs on the management thread; large tables are
//! built by another ([`crate::mgmt::hash_tables`]).

use std::sync::Arc;

use super::Desired;
use super::config::{Backend, Service};
use crate::lb::maglev::{DEFAULT_SIZE, Maglev, Member, SMALL_SIZE};
use crate::lb::snapshot::BackendId;
use crate::mgmt::hash_tables::TableKey;

impl Desired {
    /// The consistent hash under a service, or the one that the sorry server needs.
    pub(super) fn table_key(&self, place: usize) -> TableKey {
        if let Some(sorry) = self.sorry_in_force(place) {
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
        let service = &self.config.services[place];
        let follows = service.feedback.as_ref().is_some_and(|f| f.hash_too);
        let member = |(&id, backend): (&BackendId, &Backend)| Member {
            address: backend.address,
            port: backend.port.unwrap_or(0),
            weight: match follows {
                true => self.weight_in_force(id, backend),
                false => u32::from(backend.weight),
            },
        };
        let ids = self.places[place].backends.iter();
        TableKey {
            members: ids.zip(&service.backends).map(member).collect(),
            size: table_size(service),
        }
    }

    /// The tables that the next snapshot needs and none has yet, to be built elsewhere.
    pub fn missing_tables(&self) -> Vec<TableKey> {
        let changed = self.changed.services.iter();
        let places = changed.filter_map(|&id| self.places.of_service(id));
        let keys: Vec<TableKey> = places.map(|place| self.table_key(place)).collect();
        self.tables.missing(&keys)
    }

    /// Takes up tables that were built elsewhere; they are kept as long as a snapshot holds them,
    /// so the next one is to be built before `built` is dropped.
    pub fn take_tables(&mut self, built: &[(TableKey, Arc<Maglev>)]) {
        self.tables.take_up(built);
    }
}

/// Slots of the consistent hash under a service.
pub(in crate::mgmt) fn table_size(service: &Service) -> u32 {
    service
        .table_size
        .unwrap_or(match service.scheduler.is_hash() {
            true => DEFAULT_SIZE,
            false => SMALL_SIZE,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mgmt::config::parse;

    /// A service by hash, with `options`, whose first backend has `options` of its own.
    fn desired(service: &str, backend: &str) -> Desired {
        let text = format!(
            "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [\"192.0.2.2/24\"]\n\
             [[service]]\nname = \"web\"\nlisten = \"tcp:198.51.100.80:80\"\nmethod = \"nat\"\n\
             scheduler = \"mh\"\n{service}\n\
             [[service.backend]]\nname = \"a\"\naddress = \"192.0.2.11\"\nweight = 4\n{backend}\n\
             [[service.backend]]\nname = \"b\"\naddress = \"192.0.2.12\"\nweight = 4\n"
        );
        Desired::new(parse(&text).unwrap(), Vec::new(), 128)
    }

    fn key(desired: &Desired) -> TableKey {
        desired.table_key(0)
    }

    fn first(desired: &Desired) -> BackendId {
        let service = &desired.config.services[0];
        let id = desired.find_backend(service, &service.backends[0]);
        id.expect("it has an id")
    }

    #[test]
    fn weights_in_force_health_and_drain_leave_the_table_as_configured() {
        let configured = key(&desired("", ""));
        assert_eq!(configured.size, DEFAULT_SIZE);
        assert!(configured.members.iter().all(|m| m.weight == 4));
        let mut led = desired("feedback = { agent_port = 9000 }\nslow_start = \"30s\"", "");
        let id = first(&led);
        assert!(led.set_weight(id, Some(1)));
        assert!(led.set_down(id, true));
        assert_eq!(key(&led), configured);
        assert_eq!(key(&desired("", "drain = true")), configured);
    }

    #[test]
    fn the_table_follows_the_weights_where_the_service_says_so() {
        let mut led = desired("feedback = \"hash-too\"", "");
        let configured = key(&led);
        let id = first(&led);
        led.set_weight(id, Some(1));
        let weights = key(&led)
            .members
            .iter()
            .map(|m| m.weight)
            .collect::<Vec<_>>();
        assert_eq!(weights, [1, 4]);
        led.set_weight(id, None);
        assert_eq!(key(&led), configured);
    }
}
