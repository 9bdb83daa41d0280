//! What Linux says of its interfaces beside our ports: addresses, routes and permanent neighbours,
//! message by message, and what of it concerns us.
//!
//! Pure, and on the netlink thread; a message costs the same however many routes there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkHeader};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType, RouteVia,
};

use super::netlink::PROTOCOL;
use crate::lb::route::Prefix;
use crate::mgmt::net::Mac;

/// What Linux has that concerns us, by port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    pub ports: BTreeMap<u16, OfPort>,
    /// Every address of Linux's, on whatever interface.
    pub addresses: BTreeSet<IpAddr>,
    /// VIPs that stand as routes in the table for routing daemons.
    pub announced: BTreeSet<Prefix>,
}

/// What Linux has on the interface beside a port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfPort {
    pub addresses: Vec<(IpAddr, u8)>,
    /// In the order of their metrics.
    pub routes: Vec<LearnedRoute>,
    pub neighbours: Vec<(IpAddr, Mac)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LearnedRoute {
    /// The lower one is taken.
    pub metric: u32,
    pub prefix: Prefix,
    /// `None`: the prefix is on the link.
    pub via: Option<IpAddr>,
}

/// Linux knows a route by these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct RouteKey {
    prefix: Prefix,
    metric: u32,
    tos: u8,
}

/// By the index of an interface.
type Hop = (u32, Option<IpAddr>);

pub struct Mirror {
    /// Ports by the index of the interface beside them.
    ports: HashMap<u32, u16>,
    /// The table for routing daemons.
    table: Option<u32>,
    addresses: BTreeSet<(u32, IpAddr, u8)>,
    routes: HashMap<RouteKey, Vec<Hop>>,
    announced: BTreeSet<Prefix>,
    neighbours: BTreeMap<(u32, IpAddr), Mac>,
    has_changed: bool,
}

impl Mirror {
    pub fn new(ports: HashMap<u32, u16>, table: Option<u32>) -> Self {
        Self {
            ports,
            table,
            addresses: BTreeSet::new(),
            routes: HashMap::new(),
            announced: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            has_changed: true,
        }
    }

    /// Whether anything has changed since this was last asked.
    pub fn has_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// Forgets everything, before Linux says it all again.
    pub fn forget(&mut self) {
        *self = Self::new(std::mem::take(&mut self.ports), self.table);
    }

    /// Takes what Linux says. Whether everything must be asked for again, because Linux does not say
    /// what goes with a link or an address.
    pub fn take(&mut self, header: NetlinkHeader, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewAddress(address) => self.address(address, true),
            RouteNetlinkMessage::DelAddress(address) => {
                self.address(address, false);
                return self.ports.contains_key(&address.header.index);
            }
            RouteNetlinkMessage::NewRoute(route) => {
                self.route(route, true, header.flags & NLM_F_REPLACE != 0);
            }
            RouteNetlinkMessage::DelRoute(route) => self.route(route, false, false),
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.neighbour(neighbour, true),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.neighbour(neighbour, false),
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                return self.ports.contains_key(&link.header.index);
            }
            _ => {}
        }
        false
    }

    fn address(&mut self, message: &AddressMessage, is_there: bool) {
        let attributes = || message.attributes.iter();
        // Of a point-to-point link the other one is the peer's.
        let local = attributes().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = local.or_else(|| {
            attributes().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        });
        if let Some(address) = address {
            let held = (message.header.index, address, message.header.prefix_len);
            self.has_changed |= match is_there {
                true => self.addresses.insert(held),
                false => self.addresses.remove(&held),
            };
        }
    }

    fn neighbour(&mut self, message: &NeighbourMessage, is_there: bool) {
        let index = message.header.ifindex;
        if !self.ports.contains_key(&index) {
            return;
        }
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    address = Some(IpAddr::V4(*ip));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    address = Some(IpAddr::V6(*ip));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
                }
                _ => {}
            }
        }
        let is_permanent = message.header.state == NeighbourState::Permanent;
        match (address, mac) {
            (Some(address), Some(mac)) if is_there && is_permanent => {
                let mac = Mac::from_bytes(&mac);
                let before = self.neighbours.insert((index, address), mac);
                self.has_changed |= before != Some(mac);
            }
            (Some(address), _) => {
                let before = self.neighbours.remove(&(index, address));
                self.has_changed |= before.is_some();
            }
            _ => {}
        }
    }

    fn route(&mut self, message: &RouteMessage, is_there: bool, replaces: bool) {
        let Some(route) = Read::of(message) else {
            return;
        };
        if Some(route.table) == self.table && message.header.protocol == PROTOCOL {
            self.set_announced(route.key.prefix, is_there);
        }
        let is_ours = message.header.protocol == PROTOCOL;
        if route.table != u32::from(RouteHeader::RT_TABLE_MAIN) || is_ours {
            return;
        }
        self.has_changed = true;
        let known = self.routes.entry(route.key).or_default();
        if replaces {
            known.clear();
        }
        match is_there {
            true => {
                for hop in route.hops {
                    if !known.contains(&hop) {
                        known.push(hop);
                    }
                }
            }
            false => known.retain(|hop| !route.hops.contains(hop)),
        }
        // A route by other interfaces alone is none of ours; it is kept, for it may be replaced.
        if known.is_empty() {
            self.routes.remove(&route.key);
        }
    }

    /// Everything that concerns us.
    pub fn learned(&self) -> Learned {
        let mut ports: BTreeMap<u16, OfPort> = self
            .ports
            .values()
            .map(|&port| (port, OfPort::default()))
            .collect();
        let mut at = |index: &u32, add: &mut dyn FnMut(&mut OfPort)| {
            let port = self.ports.get(index);
            port.and_then(|port| ports.get_mut(port)).map(add)
        };
        for (index, address, length) in &self.addresses {
            at(index, &mut |port| port.addresses.push((*address, *length)));
        }
        for (key, hops) in &self.routes {
            for (index, via) in hops {
                let route = LearnedRoute {
                    metric: key.metric,
                    prefix: key.prefix,
                    via: *via,
                };
                at(index, &mut |port| port.routes.push(route));
            }
        }
        for ((index, address), mac) in &self.neighbours {
            at(index, &mut |port| port.neighbours.push((*address, *mac)));
        }
        for port in ports.values_mut() {
            port.routes.sort_unstable();
            port.routes.dedup();
        }
        Learned {
            ports,
            addresses: self
                .addresses
                .iter()
                .map(|(_, address, _)| *address)
                .collect(),
            announced: self.announced.clone(),
        }
    }

    pub fn set_announced(&mut self, vip: Prefix, is_there: bool) {
        self.has_changed |= match is_there {
            true => self.announced.insert(vip),
            false => self.announced.remove(&vip),
        };
    }

    pub fn announced(&self) -> &BTreeSet<Prefix> {
        &self.announced
    }
}

/// A route as a message has it.
struct Read {
    table: u32,
    key: RouteKey,
    hops: Vec<Hop>,
}

impl Read {
    /// `None` for what leads nowhere, and for what only concerns a link.
    fn of(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let is_cached = header.flags.contains(RouteFlags::Cloned);
        if header.kind != RouteType::Unicast || is_cached {
            return None;
        }
        let mut table = u32::from(header.table);
        let (mut to, mut metric, mut index, mut via) = (None, 0, None, None);
        let mut hops = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Destination(address) => to = Some(ip(address)?),
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(oif) => index = Some(*oif),
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => via = gateway(attribute),
                RouteAttribute::MultiPath(paths) => {
                    hops.extend(paths.iter().map(|path| {
                        let via = path.attributes.iter().find_map(gateway);
                        (path.interface_index, via)
                    }));
                }
                _ => {}
            }
        }
        hops.extend(index.map(|index| (index, via)));
        let any: IpAddr = match header.address_family {
            rtnetlink::packet_route::AddressFamily::Inet => [0; 4].into(),
            rtnetlink::packet_route::AddressFamily::Inet6 => [0; 16].into(),
            _ => return None,
        };
        let prefix = Prefix::new(to.unwrap_or(any), header.destination_prefix_length);
        let is_link_local = match prefix.address {
            IpAddr::V4(address) => address.is_multicast(),
            IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
        };
        let key = RouteKey {
            prefix,
            metric,
            tos: header.tos,
        };
        (!is_link_local).then_some(Self { table, key, hops })
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
