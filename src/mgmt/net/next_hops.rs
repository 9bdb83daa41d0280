//! Which way leads to an address: the longest match of what the configuration and Linux know.
//!
//! Made anew when either changes, and then asked for every backend, so a look-up does not search.
//! Management thread; plain data.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::links::{PortConfig, Prefix, is_link_local};
use crate::lb::prefix_map::PrefixMap;
use crate::lb::route;

/// A way toward the addresses of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub port: u16,
    /// `None`: the prefix is on the port's link.
    pub via: Option<IpAddr>,
}

/// Every way, by prefix: of Linux in the order of metrics, then of the configuration in its order.
#[derive(Debug, Default)]
pub struct NextHops {
    ways: PrefixMap<Vec<Way>>,
    /// Routers, each once.
    routers: BTreeSet<(u16, IpAddr)>,
}

impl NextHops {
    pub fn new(ports: &[PortConfig]) -> Self {
        let mut all: Vec<(Option<u32>, route::Prefix, Way)> = Vec::new();
        for port in ports {
            let way = |via| Way {
                port: port.index,
                via,
            };
            let learned = port.learned.iter();
            all.extend(learned.map(|r| (Some(r.metric), r.prefix, way(r.via))));
            let configured = configured(port);
            all.extend(configured.map(|(prefix, via)| (None, prefix, way(via))));
        }
        all.sort_by_key(|(metric, ..)| metric.map_or(u64::MAX, u64::from));
        let mut next_hops = Self::default();
        for (_, prefix, way) in all {
            let ways = next_hops.ways.entry(prefix, Vec::new);
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        for port in ports {
            let routes = port.routes.iter().map(|route| route.via);
            let learned = port.learned.iter().filter_map(|route| route.via);
            let routers = port.gateways.iter().copied().chain(routes).chain(learned);
            next_hops
                .routers
                .extend(routers.map(|via| (port.index, via)));
        }
        next_hops
    }

    /// The port, and the address to resolve on it. Among equal ones the first that `usable` says can
    /// be sent to, else the first.
    pub fn find(
        &self,
        address: IpAddr,
        usable: impl Fn(u16, IpAddr) -> bool,
    ) -> Option<(u16, IpAddr)> {
        if is_link_local(address) {
            // The subnet is on every port; only a router's address says which is meant.
            let known = self.routers.iter().filter(|(_, via)| *via == address);
            let mut known = known.copied().peekable();
            let first = known.peek().copied();
            return known.find(|&(port, via)| usable(port, via)).or(first);
        }
        let ways = self.ways.longest(address)?.iter();
        let mut hops = ways.map(|way| (way.port, way.via.unwrap_or(address)));
        let first = hops.clone().next();
        hops.find(|&(port, hop)| usable(port, hop)).or(first)
    }

    /// Every prefix with the way that is taken where any address of it is asked for.
    pub fn iter(
        &self,
        usable: impl Fn(u16, IpAddr) -> bool,
    ) -> impl Iterator<Item = (route::Prefix, Way)> {
        self.ways.iter().filter_map(move |(prefix, ways)| {
            let can_go = |way: &&Way| way.via.is_none_or(|via| usable(way.port, via));
            let way = ways.iter().find(can_go).or(ways.first())?;
            Some((prefix, *way))
        })
    }

    /// Gateways and the routes' next hops, with their ports.
    pub fn routers(&self) -> &BTreeSet<(u16, IpAddr)> {
        &self.routers
    }
}

/// Subnets, routes, gateways and single neighbours, which need not be in a subnet.
fn configured(port: &PortConfig) -> impl Iterator<Item = (route::Prefix, Option<IpAddr>)> {
    let prefix = |p: &Prefix| route::Prefix::new(p.address().into(), p.prefix_len());
    let subnets = port.addresses.iter().map(move |own| (prefix(own), None));
    let routes = port.routes.iter();
    let routes = routes.map(move |route| (prefix(&route.prefix), Some(route.via)));
    let gateways = port.gateways.iter().map(|&gateway| {
        let any: IpAddr = match gateway {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        (route::Prefix::new(any, 0), Some(gateway))
    });
    let neighbours = port.neighbours.iter().map(|&(address, _)| {
        let full = if address.is_ipv4() { 32 } else { 128 };
        (route::Prefix::new(address, full), Some(address))
    });
    subnets.chain(routes).chain(gateways).chain(neighbours)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ip, port};
    use super::*;
    use crate::mgmt::kernel::LearnedRoute;
    use crate::mgmt::net::{Route, prefix};

    fn learned(prefix: &str, length: u8, via: Option<&str>, metric: u32) -> LearnedRoute {
        LearnedRoute {
            metric,
            prefix: route::Prefix::new(ip(prefix), length),
            via: via.map(ip),
        }
    }

    fn ports() -> Vec<PortConfig> {
        let mut wan = port(0, &["192.0.2.2/24"]);
        wan.gateways = vec![ip("192.0.2.1")];
        wan.routes = vec![Route {
            prefix: prefix(ip("10.9.0.0"), 16).unwrap(),
            via: ip("192.0.2.9"),
        }];
        vec![wan, port(1, &["10.0.0.2/24"])]
    }

    #[test]
    fn what_linux_knows_goes_before_the_configuration_and_a_longer_prefix_before_both() {
        let mut ports = ports();
        let hop = |ports: &[PortConfig], dst: &str| {
            NextHops::new(ports).find(ip(dst), |_, _| true).unwrap()
        };
        assert_eq!(hop(&ports, "10.9.0.5"), (0, ip("192.0.2.9")));
        ports[1].learned = vec![learned("10.9.0.0", 16, Some("10.0.0.9"), 5000)];
        assert_eq!(hop(&ports, "10.9.0.5"), (1, ip("10.0.0.9")));
        ports[0].learned = vec![
            learned("10.9.0.0", 16, Some("192.0.2.7"), 20),
            learned("10.9.0.4", 30, None, 0),
        ];
        assert_eq!(hop(&ports, "10.9.0.5"), (0, ip("10.9.0.5")), "on the link");
        assert_eq!(hop(&ports, "10.9.1.5"), (0, ip("192.0.2.7")), "metric");
        assert_eq!(hop(&ports, "8.8.8.8"), (0, ip("192.0.2.1")));
    }

    #[test]
    fn of_several_ways_a_usable_one_is_taken_for_an_address_and_for_all() {
        let mut ports = ports();
        ports[1].learned = vec![learned("10.9.0.0", 16, Some("10.0.0.9"), 0)];
        let hops = NextHops::new(&ports);
        let dead = |_, via: IpAddr| via != ip("10.0.0.9");
        assert_eq!(hops.find(ip("10.9.0.5"), dead), Some((0, ip("192.0.2.9"))));
        let all: Vec<_> = hops.iter(dead).collect();
        let of = |prefix: route::Prefix| all.iter().find(|(p, _)| *p == prefix).unwrap().1;
        assert_eq!(
            of(route::Prefix::new(ip("10.9.0.0"), 16)).via,
            Some(ip("192.0.2.9"))
        );
        assert_eq!(of(route::Prefix::new(ip("10.0.0.0"), 24)).via, None);
        assert_eq!(
            hops.find(ip("10.9.0.5"), |_, _| false),
            Some((1, ip("10.0.0.9")))
        );
    }

    #[test]
    fn a_link_local_router_is_reached_by_its_port_and_other_link_local_addresses_are_not() {
        let mut ports = ports();
        ports[1].learned = vec![learned("2001:db8:9::", 48, Some("fe80::1"), 0)];
        let hops = NextHops::new(&ports);
        let find = |dst| hops.find(ip(dst), |_, _| true);
        assert_eq!(find("2001:db8:9::5"), Some((1, ip("fe80::1"))));
        assert_eq!(find("fe80::1"), Some((1, ip("fe80::1"))));
        assert_eq!(find("fe80::2"), None);
        assert_eq!(hops.routers().len(), 3);
    }

    #[test]
    fn a_neighbour_outside_of_every_subnet_is_on_the_link() {
        let mut ports = ports();
        let mac = crate::mgmt::net::Mac::from_bytes(&[2, 0, 0, 0, 0, 7]);
        ports[1].neighbours = vec![(ip("203.0.113.7"), mac)];
        let hops = NextHops::new(&ports);
        assert_eq!(
            hops.find(ip("203.0.113.7"), |_, _| true),
            Some((1, ip("203.0.113.7")))
        );
    }
}
