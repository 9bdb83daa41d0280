//! What neighbour discovery needs to know of the configuration.

use std::net::IpAddr;

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

/// What services listen on, and FullNAT's local addresses, which backends answer to: all to be
/// answered for.
pub fn vips(config: &Config) -> Vec<Prefix> {
    let listens = config.services.iter().flat_map(|service| &service.listen);
    let listens = listens.filter_map(|l| prefix(l.addresses.address, l.addresses.length));
    let locals = config.services.iter().flat_map(|s| &s.local_addresses);
    let host = |address: &IpAddr| prefix(*address, if address.is_ipv4() { 32 } else { 128 });
    listens.chain(locals.filter_map(host)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mgmt::config;

    #[test]
    fn local_addresses_are_answered_for_like_vips() {
        let config = config::parse(
            "[[port]]\nname = \"p\"\ndevice = \"net_null0\"\naddresses = \"10.0.0.2/24\"\n\
             [[service]]\nname = \"s\"\nlisten = \"tcp:192.0.2.80:80\"\nmethod = \"fullnat\"\n\
             scheduler = \"rr\"\nlocal_addresses = [\"10.0.0.200\"]\n\
             [[service.backend]]\naddress = \"10.0.0.11\"\n",
        );
        let answered = vips(&config.unwrap());
        let answered: Vec<String> = answered.iter().map(ToString::to_string).collect();
        assert_eq!(answered, ["192.0.2.80/32", "10.0.0.200/32"]);
    }
}
