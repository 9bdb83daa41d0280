//! What neighbour discovery needs to know of the configuration.

use super::{Mac, PortConfig, Prefix, Route, prefix};
use crate::mgmt::config::Config;
use crate::mgmt::desired::PortFacts;

/// The ports' addresses and next hops, as neighbour discovery wants them.
pub fn net_ports(config: &Config, facts: &[PortFacts]) -> Vec<PortConfig> {
    let ports = config.ports.iter().zip(facts).enumerate();
    ports
        .map(|(index, (port, facts))| PortConfig {
            index: index as u16,
            name: port.name.clone(),
            mac: Mac::from_bytes(&facts.mac),
            addresses: port
                .addresses
                .iter()
                .filter_map(|a| prefix(a.address, a.length))
                .collect(),
            check_addresses: port.check_addresses.clone(),
            gateways: port.gateways.clone(),
            routes: port
                .routes
                .iter()
                .filter_map(|route| {
                    let prefix = prefix(route.to.address, route.to.length)?;
                    Some(Route {
                        prefix,
                        via: route.via,
                    })
                })
                .collect(),
            neighbours: port
                .neighbours
                .iter()
                .map(|n| (n.address, Mac::from_bytes(&n.mac.0)))
                .collect(),
            mtu: port.mtu,
            kernel_interface: port.kernel_interface.is_some(),
        })
        .collect()
}

/// What services listen on, to be answered for.
pub fn vips(config: &Config) -> Vec<Prefix> {
    let listens = config.services.iter().flat_map(|service| &service.listen);
    listens
        .filter_map(|l| prefix(l.addresses.address, l.addresses.length))
        .collect()
}
