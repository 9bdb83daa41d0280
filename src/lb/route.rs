//! Next hops: which port and which MAC addresses lead to an IP address.
//! Built by management, part of a snapshot; workers only look up.

use std::net::IpAddr;

use super::prefix_map::PrefixMap;
use super::snapshot::FastMap;

/// How to put a frame on the wire: the Ethernet addresses and the port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Link {
    /// Destination, then source MAC: the first 12 bytes of the frame.
    pub macs: [u8; 12],
    pub port: u8,
}

/// An address prefix. Host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Prefix {
    pub address: IpAddr,
    pub length: u8,
}

impl Prefix {
    /// The prefix of `length` bits that holds `address`.
    pub fn new(address: IpAddr, length: u8) -> Self {
        let address = match address {
            IpAddr::V4(a) => IpAddr::V4((a.to_bits() & mask32(length)).into()),
            IpAddr::V6(a) => IpAddr::V6((a.to_bits() & mask128(length)).into()),
        };
        Self { address, length }
    }

    #[inline(always)]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(p), IpAddr::V4(a)) => a.to_bits() & mask32(self.length) == p.to_bits(),
            (IpAddr::V6(p), IpAddr::V6(a)) => a.to_bits() & mask128(self.length) == p.to_bits(),
            _ => false,
        }
    }
}

fn mask32(length: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(length.min(32)))
        .unwrap_or(0)
}

fn mask128(length: u8) -> u128 {
    u128::MAX
        .checked_shl(128 - u32::from(length.min(128)))
        .unwrap_or(0)
}

/// Where a prefix leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Hosts of the prefix are neighbours on a port.
    OnLink,
    /// Through a router, and how to reach it once that is known.
    Via(Option<Link>),
}

/// Up to here a search through all is faster than hashing.
const FEW: usize = 16;

/// The routing table and the neighbours, read-only.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    table: Table,
    neighbours: FastMap<IpAddr, Link>,
}

#[derive(Clone, Debug, PartialEq)]
enum Table {
    /// Longest prefix first.
    Few(Vec<(Prefix, Target)>),
    Many(PrefixMap<Target>),
}

impl Default for Routes {
    fn default() -> Self {
        Self::new(Vec::new(), FastMap::default())
    }
}

impl Routes {
    /// Of several targets of a prefix the first one counts.
    pub fn new(mut routes: Vec<(Prefix, Target)>, neighbours: FastMap<IpAddr, Link>) -> Self {
        if routes.len() <= FEW {
            routes.sort_by_key(|&(prefix, _)| (std::cmp::Reverse(prefix.length), prefix));
            let table = Table::Few(routes);
            return Self { table, neighbours };
        }
        let mut map = PrefixMap::default();
        for (prefix, target) in routes {
            map.entry(prefix, || target);
        }
        let table = Table::Many(map);
        Self { table, neighbours }
    }

    /// The link toward `destination`, `None` while its next hop is not resolved or there is no
    /// route.
    pub fn link(&self, destination: IpAddr) -> Option<Link> {
        match self.target(destination)? {
            Target::Via(link) => link,
            Target::OnLink => self.neighbours.get(&destination).copied(),
        }
    }

    fn target(&self, destination: IpAddr) -> Option<Target> {
        match &self.table {
            Table::Few(routes) => {
                let mut routes = routes.iter();
                let found = routes.find(|(prefix, _)| prefix.contains(destination));
                found.map(|(_, target)| *target)
            }
            Table::Many(map) => map.longest(destination).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn many_routes_lead_where_few_do() {
        let link = |n: u16| Link {
            macs: [n as u8; 12],
            port: (n >> 8) as u8,
        };
        let route = |n: u16| {
            let [high, low] = n.to_be_bytes();
            let prefix = Prefix::new([10, high, low, 0].into(), 24);
            (prefix, Target::Via(Some(link(n))))
        };
        let default = (Prefix::new(ip("0.0.0.0"), 0), Target::OnLink);
        let again = (Prefix::new(ip("10.0.7.0"), 24), Target::Via(None));
        let all: Vec<_> = (0..5000).map(route).chain([default, again]).collect();
        let neighbours = [(ip("192.0.2.1"), link(9))].into_iter().collect();
        let many = Routes::new(all, neighbours);
        for n in [0, 7, 255, 256, 4999] {
            let [high, low] = u16::to_be_bytes(n);
            assert_eq!(many.link([10, high, low, 77].into()), Some(link(n)));
        }
        assert_eq!(many.link(ip("192.0.2.1")), Some(link(9)));
        assert_eq!(many.link(ip("192.0.2.2")), None);
        assert_eq!(many.link(ip("10.19.136.1")), None, "beyond the last");
    }

    #[test]
    fn the_longest_prefix_wins() {
        let link = |n| Link {
            macs: [n; 12],
            port: n,
        };
        let routes = Routes::new(
            vec![
                (Prefix::new(ip("0.0.0.0"), 0), Target::Via(Some(link(1)))),
                (Prefix::new(ip("10.1.2.3"), 24), Target::OnLink),
                (
                    Prefix::new(ip("10.1.2.128"), 25),
                    Target::Via(Some(link(3))),
                ),
                (Prefix::new(ip("2001:db8::"), 32), Target::Via(None)),
            ],
            [(ip("10.1.2.7"), link(7))].into_iter().collect(),
        );
        assert_eq!(routes.link(ip("8.8.8.8")), Some(link(1)));
        assert_eq!(routes.link(ip("10.1.2.7")), Some(link(7)));
        assert_eq!(routes.link(ip("10.1.2.8")), None);
        assert_eq!(routes.link(ip("10.1.2.200")), Some(link(3)));
        assert_eq!(routes.link(ip("2001:db8::1")), None);
        assert_eq!(routes.link(ip("2001:db9::1")), None);
    }
}
