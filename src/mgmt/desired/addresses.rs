//! Whose address is whose: the ports' own, the VIPs, the next hops and who owns a flow by its ends.
//! Runs on the management thread.

use std::collections::HashMap;
use std::net::IpAddr;

use super::service::method;
use super::{Desired, PortFacts, config};
use crate::lb::addresses::AddressSet;
use crate::lb::flow::protocol;
use crate::lb::keepalive::{Front, Fronts};
use crate::lb::owner::Sides;
use crate::lb::route::{Link, Prefix, Routes, Target};
use crate::lb::service_map::{Listen, ServiceMap};
use crate::lb::snapshot::{FastMap, ForwardMethod};
use crate::lb::vlan::{Vlan, Vlans};
use crate::mgmt::net::{NetState, Way};

impl Desired {
    /// Which end of a flow names its owner, by the addresses of a packet.
    pub(super) fn sides(&self) -> Sides {
        let services = || self.config.services.iter();
        let listens = services().flat_map(|s| {
            let two_way = is_two_way(s);
            s.listen.iter().map(move |l| (listen(l).prefix, two_way))
        });
        let nat = services().filter(|s| is_two_way(s));
        let backends = nat.flat_map(|s| {
            let sorry = s.sorry_server.iter().map(|sorry| sorry.address);
            s.backends.iter().map(|b| b.address).chain(sorry)
        });
        Sides::new(listens, (0..).zip(self.locals.iter().copied()), backends)
    }

    /// Where the answers of NAT flows that the hash finds again are from. Services that listen on a prefix
    /// or on a range of ports cannot be told from a backend's port.
    pub(super) fn fronts(&self) -> Fronts {
        let services = self.places.iter().zip(&self.config.services);
        let found_again = services.filter(|(_, service)| {
            let is_nat = method(service.method) == ForwardMethod::Nat;
            is_nat && service.untracked == config::Untracked::Hash
        });
        Fronts::new(found_again.flat_map(|(named, service)| {
            let listens = service.listen.iter().map(listen);
            let places = listens.filter(|l| l.protocol == protocol::TCP && l.is_exact());
            places.flat_map(|place| {
                let (vip, port) = (place.prefix.address, place.first_port);
                let front = Front {
                    service: named.id,
                    vip,
                    port,
                };
                let backends = service.backends.iter();
                let same = backends.filter(move |b| b.address.is_ipv4() == vip.is_ipv4());
                same.map(move |b| ((b.address, b.port.unwrap_or(port)), front))
            })
        }))
    }

    pub(super) fn own_addresses(&self, map: &ServiceMap) -> AddressSet {
        let ports = self.config.ports.iter();
        let own = ports.flat_map(|port| {
            let addresses = port.addresses.iter().map(|a| a.address);
            addresses.chain(port.check_addresses.iter().copied())
        });
        let pools = self.config.services.iter().flat_map(|s| &s.local_addresses);
        own.chain(pools.copied()).chain(map.vips()).collect()
    }

    pub(super) fn check_addresses(&self) -> AddressSet {
        let ports = self.config.ports.iter();
        ports
            .flat_map(|p| p.check_addresses.iter().copied())
            .collect()
    }

    /// The VLANs, which come behind the ports that have devices.
    pub(super) fn vlans(&self) -> Vlans {
        let devices = self.ports.iter().filter(|port| port.vlan.is_none());
        let vlan = |facts: &PortFacts| {
            let port = facts.device as u8;
            facts.vlan.map(|id| Vlan { port, id })
        };
        let vlans = self.ports.iter().filter_map(vlan).collect();
        Vlans::new(devices.count() as u8, vlans)
    }

    /// The way to everywhere, as workers look it up for what goes to clients.
    pub(super) fn routes(&self, net: &NetState) -> Routes {
        let target = |way: Way| match way.via {
            Some(via) => Target::Via(self.links.get(way.port, via)),
            None => Target::OnLink,
        };
        let ways = net.ways().map(|(prefix, way)| (prefix, target(way)));
        Routes::new(ways.collect(), self.links.neighbours())
    }
}

/// The neighbours that can be sent to, as links.
#[derive(Clone, Debug, Default)]
pub(super) struct Links {
    links: HashMap<(u16, IpAddr), Link>,
    /// [`NetState::version`] of what they were made from.
    pub version: u64,
    /// [`NetState::ways_version`] of the same.
    pub ways_version: u64,
}

impl Links {
    pub fn new(net: &NetState, ports: &[PortFacts]) -> Self {
        let links = net.neighbours().filter_map(|(ip, port, mac)| {
            let own = ports.get(usize::from(port))?;
            let mut macs = [0; 12];
            macs[..6].copy_from_slice(mac.as_bytes());
            macs[6..].copy_from_slice(&own.mac);
            let port_index = u8::try_from(port).ok()?;
            Some((
                (port, ip),
                Link {
                    macs,
                    port: port_index,
                },
            ))
        });
        Self {
            links: links.collect(),
            version: net.version(),
            ways_version: net.ways_version(),
        }
    }

    pub fn get(&self, port: u16, ip: IpAddr) -> Option<Link> {
        self.links.get(&(port, ip)).copied()
    }

    pub fn neighbours(&self) -> FastMap<IpAddr, Link> {
        let links = self.links.iter();
        links.map(|(&(_, ip), &link)| (ip, link)).collect()
    }

    /// Neighbours, with their ports, that are reached otherwise than `before`, or only then or now.
    pub fn differences<'a>(
        &'a self,
        before: &'a Links,
    ) -> impl Iterator<Item = (u16, IpAddr)> + 'a {
        let missing = |of: &'a Links, from: &'a Links| {
            let keys = of.links.iter();
            keys.filter(|(key, link)| from.links.get(key) != Some(*link))
                .map(|(key, _)| *key)
        };
        missing(self, before).chain(missing(before, self))
    }
}

/// Whether any of the service's replies pass here. The sorry server's method counts also while it
/// is not needed, so that the owners of flows do not change when it is.
pub(in crate::mgmt) fn is_two_way(service: &config::Service) -> bool {
    let sorry = service.sorry_server.as_ref().and_then(|s| s.method);
    let methods = [Some(service.method), sorry];
    methods
        .into_iter()
        .flatten()
        .any(|m| method(m).is_two_way())
}

pub(super) fn listen(listen: &config::Listen) -> Listen {
    Listen {
        protocol: match listen.protocol {
            config::Protocol::Tcp => protocol::TCP,
            config::Protocol::Udp => protocol::UDP,
        },
        prefix: Prefix::new(listen.addresses.address, listen.addresses.length),
        first_port: listen.ports.first,
        last_port: listen.ports.last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mgmt::config::parse;

    fn service(name: &str, listen: &str, more: &str, backend: &str) -> String {
        format!(
            "[[service]]\nname = \"{name}\"\nlisten = [{listen}]\n{more}\n\
             [[service.backend]]\nname = \"b\"\naddress = \"{backend}\"\n"
        )
    }

    #[test]
    fn answers_are_known_by_the_backends_port_where_it_means_one_place() {
        let by_hash = "method = \"nat\"\nscheduler = \"mh\"";
        let both = "\"tcp:192.0.2.80:80\", \"udp:192.0.2.80:80\"";
        let (least, tunnel) = (
            by_hash.replace("mh", "wlc"),
            by_hash.replace("nat", "tunnel"),
        );
        let addresses = "\"10.0.0.254/24\", \"2001:db8:1::fe/64\"";
        let text = [
            format!(
                "[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\naddresses = [{addresses}]\n"
            ),
            service("both", both, by_hash, "10.0.0.1"),
            service("wide", "\"tcp:192.0.2.81:80-90\"", by_hash, "10.0.0.2"),
            service("least", "\"tcp:192.0.2.82:80\"", &least, "10.0.0.3"),
            service("tunnel", "\"tcp:192.0.2.83:80\"", &tunnel, "10.0.0.4"),
            service(
                "two",
                "\"tcp:192.0.2.84:80\", \"tcp:192.0.2.85:80\"",
                by_hash,
                "10.0.0.5",
            ),
            service("one-of-two", "\"tcp:192.0.2.86:443\"", by_hash, "10.0.0.5"),
            service("six", "\"tcp:[2001:db8::80]:80\"", by_hash, "2001:db8:1::1"),
        ];
        let config = parse(&text.concat()).expect("a configuration");
        let desired = Desired::new(config, Vec::new(), 128);
        let front = |n: usize, vip: &str, port| Front {
            service: desired.places[n].id,
            vip: vip.parse().expect("an address"),
            port,
        };
        let end = |address: &str, port| (address.parse().expect("an address"), port);
        let expected = Fronts::new([
            (end("10.0.0.1", 80), front(0, "192.0.2.80", 80)),
            (end("10.0.0.5", 443), front(5, "192.0.2.86", 443)),
            (end("2001:db8:1::1", 80), front(6, "2001:db8::80", 80)),
        ]);
        assert_eq!(desired.fronts(), expected);
    }
}
