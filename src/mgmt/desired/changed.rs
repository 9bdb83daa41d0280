//! What is different since the last snapshot. Whatever is not noted here the next one shares with
//! its predecessor, so everything that [`Desired`] is told must come by here. Management thread.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::config::Config;
use super::places::Places;
use super::{Desired, Links};
use crate::lb::snapshot::{BackendId, ServiceId};
use crate::mgmt::net::NetState;

#[derive(Clone, Debug, Default)]
pub struct Changed {
    /// Services to build anew, with all their backends; also those that are gone.
    pub services: BTreeSet<ServiceId>,
    /// Backends that left the configuration, or that nothing names any more.
    pub backends: BTreeSet<BackendId>,
    /// The configuration: what is made of all services and ports together.
    pub config: bool,
    /// A port's address.
    pub ports: bool,
    /// Which neighbours can be sent to, and where they are.
    pub links: bool,
}

impl Desired {
    /// Notes a change of one backend's state or weight; passes on whether it is one.
    pub(super) fn change(&mut self, id: BackendId, is_news: bool) -> bool {
        if let Some(place) = self.places.of_backend(id).filter(|_| is_news) {
            self.changed.services.insert(self.places[place].id);
        }
        is_news
    }

    /// The next snapshot shares nothing: what has changed may have been forgotten.
    pub fn change_everything(&mut self) {
        let services = self.places.iter().map(|named| named.id);
        self.changed.services.extend(services);
        self.changed.config = true;
        self.changed.ports = true;
        self.changed.links = true;
    }

    /// Notes what a configuration has otherwise than `before`, whose places are `places`.
    pub(super) fn note_differences(&mut self, before: &Config, places: &Places) {
        self.changed.config = true;
        self.changed.links = true;
        let same_ports = before.ports == self.config.ports;
        for (named, service) in self.places.iter().zip(&self.config.services) {
            let old = places.of_service(named.id).filter(|_| same_ports);
            if old.is_none_or(|place| before.services[place] != *service) {
                self.changed.services.insert(named.id);
            }
        }
        let gone = places.iter().map(|named| named.id);
        let gone = gone.filter(|&id| self.places.of_service(id).is_none());
        self.changed.services.extend(gone);
    }

    /// Takes up the neighbours and the routes, and notes the services whose backends are reached
    /// otherwise.
    pub(super) fn follow(&mut self, net: &NetState) {
        let same_ways = self.links.ways_version == net.ways_version();
        if !self.changed.ports && self.links.version == net.version() && same_ways {
            return;
        }
        let links = Links::new(net, &self.ports);
        let moved: BTreeSet<(u16, IpAddr)> = links.differences(&self.links).collect();
        self.links = links;
        self.changed.links |= !moved.is_empty() || !same_ways;
        // Which of several routers is taken depends on which of them can be sent to.
        let router_moved = moved.iter().any(|&(port, hop)| net.is_router(port, hop));
        if !same_ways || router_moved {
            self.follow_ways(net, router_moved);
        }
        for (_, address) in moved {
            let services = self.places.of_address(address).map(|named| named.id);
            self.changed.services.extend(services);
        }
    }

    /// Notes the services of which a backend has another next hop than it had, and if a router has
    /// moved those that have one before them.
    fn follow_ways(&mut self, net: &NetState, router_moved: bool) {
        let before = std::mem::take(&mut self.hops);
        for (address, named) in self.places.by_address() {
            let hop = net.next_hop(address);
            let is_behind = hop.is_some_and(|(_, hop)| hop != address);
            if (router_moved && is_behind) || before.get(&address) != Some(&hop) {
                self.changed.services.insert(named.id);
            }
            self.hops.insert(address, hop);
        }
    }
}
