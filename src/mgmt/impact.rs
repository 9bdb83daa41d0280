//! What a change of the configuration would do to clients: how many of the slots of a service's
//! consistent hash get another backend, and how many live flows lose theirs. Pure; it builds hash
//! tables, so it is to run beside the management loop.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::config::{Backend, Config, Service};
use super::desired::{BackendKey, table_size};
use crate::lb::maglev::{Maglev, Member};

/// What it would do to the clients of one service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Impact {
    pub service: String,
    /// Of the slots of the consistent hash under the service, those that get another backend or
    /// none. Under a scheduler that is not a hash only flows without an entry go by it.
    pub slots_moved_percent: f64,
    /// Connections that are tracked, and those of them whose backend goes: TCP is reset, UDP
    /// scheduled anew. All others stay where they are.
    pub flows: u64,
    pub flows_moved: u64,
}

/// The share of moved slots of every service that is in both configurations and differs, in percent;
/// all of those that go.
pub fn slots_moved(old: &Config, new: &Config) -> HashMap<String, f64> {
    let changed = old.services.iter().filter_map(|before| {
        let after = new.services.iter().find(|s| s.name == before.name);
        let share = match after {
            Some(after) if after == before => return None,
            Some(after) => moved(before, after),
            None => 100.0,
        };
        Some((before.name.clone(), share))
    });
    changed.collect()
}

fn moved(old: &Service, new: &Service) -> f64 {
    let (before, after) = (Slots::of(old), Slots::of(new));
    // Each slot of the larger table, by a hash that lies in it.
    let count = before.table.size().max(after.table.size()) as u128;
    let hash = |slot: u128| (slot << 64).div_ceil(count) as u64;
    let owned = (0..count).map(hash).filter_map(|hash| {
        let owner = before.owner(hash)?;
        Some(after.owner(hash) != Some(owner))
    });
    let (all, moved) = owned.fold((0u64, 0u64), |(all, moved), is_moved| {
        (all + 1, moved + u64::from(is_moved))
    });
    moved as f64 * 100.0 / all.max(1) as f64
}

/// A service's consistent hash as configured.
struct Slots<'a> {
    table: Maglev,
    backends: &'a [Backend],
}

impl<'a> Slots<'a> {
    fn of(service: &'a Service) -> Self {
        let member = |backend: &Backend| Member {
            address: backend.address,
            port: backend.port.unwrap_or(0),
            weight: u32::from(backend.weight),
        };
        let members: Vec<Member> = service.backends.iter().map(member).collect();
        Self {
            table: Maglev::build(&members, table_size(service)),
            backends: &service.backends,
        }
    }

    /// Who takes new flows of this hash: a drained backend keeps its slots, but takes none.
    fn owner(&self, hash: u64) -> Option<(IpAddr, Option<u16>, bool)> {
        let backend = self.backends.get(self.table.get(hash)? as usize)?;
        Some((backend.address, backend.port, backend.drain))
    }
}

/// What becomes of the flows of each service that `old` has and `new` has not alike. `flows` says
/// how many a backend has.
pub fn flows_moved(
    old: &Config,
    new: &Config,
    flows: impl Fn(&Service, &Backend) -> u64,
) -> Vec<Impact> {
    let changed = old.services.iter().filter_map(|service| {
        let after = new.services.iter().find(|s| s.name == service.name);
        if after == Some(service) {
            return None;
        }
        let stays = |backend: &Backend| {
            let key = BackendKey::of(service, backend);
            let after = after.into_iter().flat_map(|after| {
                let keys = after.backends.iter();
                keys.map(move |backend| BackendKey::of(after, backend))
            });
            after.into_iter().any(|other| other == key)
        };
        let mut impact = Impact {
            service: service.name.clone(),
            ..Impact::default()
        };
        for backend in &service.backends {
            let count = flows(service, backend);
            impact.flows += count;
            impact.flows_moved += if stays(backend) { 0 } else { count };
        }
        Some(impact)
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mgmt::config::parse;

    fn config(scheduler: &str, backends: &[(u8, &str)]) -> Config {
        let mut text = format!(
            "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [\"192.0.2.2/24\"]\n\
             [[service]]\nname = \"web\"\nlisten = \"tcp:198.51.100.80:80\"\nmethod = \"nat\"\n\
             scheduler = \"{scheduler}\"\n"
        );
        for (n, options) in backends {
            text += &format!(
                "[[service.backend]]\nname = \"b{n}\"\naddress = \"192.0.2.{n}\"\n{options}\n"
            );
        }
        parse(&text).unwrap()
    }

    fn share(old: &Config, new: &Config) -> f64 {
        slots_moved(old, new)["web"]
    }

    #[test]
    fn a_backend_that_goes_moves_its_own_slots_and_few_others() {
        let four = config("mh", &[(11, ""), (12, ""), (13, ""), (14, "")]);
        let three = config("mh", &[(11, ""), (12, ""), (13, "")]);
        let moved = share(&four, &three);
        assert!((25.0..32.0).contains(&moved), "{moved}");
        // Its slots are kept for it, and meanwhile others take new flows.
        let drained = config("mh", &[(11, ""), (12, ""), (13, ""), (14, "drain = true")]);
        let moved = share(&four, &drained);
        assert!((24.5..25.5).contains(&moved), "{moved}");
        assert!(slots_moved(&four, &four).is_empty());
        let renamed = config("rr", &[(11, ""), (12, ""), (13, ""), (14, "")]);
        assert!(share(&four, &renamed) < 100.0);
    }

    #[test]
    fn another_order_moves_nothing_and_another_size_most() {
        let one = config("mh", &[(11, ""), (12, ""), (13, "")]);
        let other = config("mh", &[(13, ""), (11, ""), (12, "")]);
        assert_eq!(share(&one, &other), 0.0);
        let mut large = one.clone();
        large.services[0].table_size = Some(655_373);
        let moved = share(&one, &large);
        assert!((55.0..75.0).contains(&moved), "two of three: {moved}");
    }

    #[test]
    fn flows_of_those_that_go_are_counted() {
        let old = config("rr", &[(11, ""), (12, ""), (13, "")]);
        let new = config("rr", &[(11, "weight = 7"), (13, "port = 8080")]);
        let flows = |_: &Service, backend: &Backend| match backend.name.as_str() {
            "b11" => 100,
            "b12" => 20,
            _ => 3,
        };
        let impact = flows_moved(&old, &new, flows);
        let expected = Impact {
            service: "web".into(),
            slots_moved_percent: 0.0,
            flows: 123,
            flows_moved: 23,
        };
        assert_eq!(impact, [expected]);
        let mut none = old.clone();
        none.services.clear();
        assert_eq!(flows_moved(&old, &none, flows)[0].flows_moved, 123);
        assert_eq!(share(&old, &none), 100.0);
        assert!(flows_moved(&old, &old, flows).is_empty());
    }
}
