//! What neighbour discovery needs to know of the configuration.

use std::net::IpAddr;

use super::{Mac, PortConfig, Prefix, Route, Vip, prefix};
use crate::mgmt::config::{Advertise, Config};
use crate::mgmt::desired::PortFacts;
use crate::mgmt::kernel::Learned;

/// The ports' addresses and next hops, as neighbour discovery wants them, and what Linux adds.
pub fn net_ports(config: &Config, facts: &[PortFacts], learned: &Learned) -> Vec<PortConfig> {
    let mut ports = configured(config, facts);
    for port in &mut ports {
        let Some(of_port) = learned.ports.get(&port.index) else {
            continue;
        };
        for &(address, length) in &of_port.addresses {
            let known = |own: &Prefix| IpAddr::from(own.address()) == address;
            if !port.addresses.iter().any(known) {
                port.addresses.extend(prefix(address, length));
            }
        }
        port.learned = of_port.routes.clone();
        for &(address, mac) in &of_port.neighbours {
            if !port.neighbours.iter().any(|(known, _)| *known == address) {
                port.neighbours.push((address, mac));
            }
        }
    }
    ports
}

fn configured(config: &Config, facts: &[PortFacts]) -> Vec<PortConfig> {
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
            learned: Vec::new(),
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

/// What services listen on, and FullNAT's local addresses, which backends answer to: all ours, and
/// advertised unless that is left to Linux and Linux does not have the address.
pub fn vips(config: &Config, learned: &Learned) -> Vec<Vip> {
    let mut vips = Vec::new();
    for service in &config.services {
        for listen in &service.listen {
            let addresses = listen.addresses;
            let is_held = |address| learned.addresses.contains(&address);
            let by_linux = service.advertise == Advertise::Kernel;
            let advertised = !by_linux || (addresses.is_host() && is_held(addresses.address));
            let prefix = prefix(addresses.address, addresses.length);
            vips.extend(prefix.map(|prefix| Vip {
                prefix,
                advertised,
                by_linux,
            }));
            if by_linux && !addresses.is_host() {
                let held = learned.addresses.iter().copied();
                vips.extend(
                    held.filter(|a| addresses.contains(*a))
                        .filter_map(|a| host(a, true)),
                );
            }
        }
        let locals = service.local_addresses.iter();
        vips.extend(locals.filter_map(|address| host(*address, false)));
    }
    vips
}

fn host(address: IpAddr, by_linux: bool) -> Option<Vip> {
    Some(Vip {
        prefix: prefix(address, if address.is_ipv4() { 32 } else { 128 })?,
        advertised: true,
        by_linux,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mgmt::config;

    /// As text; in brackets what is not advertised.
    fn answered(services: &str, held: &[&str]) -> Vec<String> {
        let config = config::parse(&format!(
            "[[port]]\nname = \"p\"\ndevice = \"net_null0\"\naddresses = \"10.0.0.2/24\"\n\
             kernel_interface = \"ek-p\"\n{services}"
        ));
        let mut learned = Learned::default();
        learned
            .addresses
            .extend(held.iter().map(|text| text.parse::<IpAddr>().unwrap()));
        let text = |vip: &Vip| match vip.advertised {
            true => vip.prefix.to_string(),
            false => format!("({})", vip.prefix),
        };
        vips(&config.unwrap(), &learned).iter().map(text).collect()
    }

    #[test]
    fn local_addresses_are_answered_for_like_vips() {
        let service = "[[service]]\nname = \"s\"\nlisten = \"tcp:192.0.2.80:80\"\nmethod = \"fullnat\"\n\
             scheduler = \"rr\"\nlocal_addresses = [\"10.0.0.200\"]\n\
             [[service.backend]]\naddress = \"10.0.0.11\"\n";
        assert_eq!(answered(service, &[]), ["192.0.2.80/32", "10.0.0.200/32"]);
    }

    #[test]
    fn left_to_linux_only_what_it_has_is_advertised() {
        let service = "[[service]]\nname = \"s\"\nlisten = [\"tcp:192.0.2.80:80\", \"tcp:198.51.100.0/24:80\"]\n\
             method = \"nat\"\nscheduler = \"rr\"\nadvertise = \"kernel\"\n";
        assert_eq!(
            answered(service, &[]),
            ["(192.0.2.80/32)", "(198.51.100.0/24)"]
        );
        assert_eq!(
            answered(service, &["192.0.2.80", "198.51.100.7", "203.0.113.1"]),
            ["192.0.2.80/32", "(198.51.100.0/24)", "198.51.100.7/32"]
        );
    }
}
