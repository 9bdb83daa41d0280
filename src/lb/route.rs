//! Next hops: which port and which MAC addresses lead to an IP address.
//! Built by management, part of a snapshot; workers only look up.

use std::net::IpAddr;

use super::snapshot::FastMap;

/// How to put a frame on the wire: the Ethernet addresses and the port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Destination, then source MAC: the first 12 bytes of the frame.
    pub macs: [u8; 12],
    pub port: u8,
}

/// An address prefix. Host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
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

/// The routing table and the neighbours, read-only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// Longest prefix first.
    routes: Vec<(Prefix, Target)>,
    neighbours: FastMap<IpAddr, Link>,
}

impl Routes {
    pub fn new(mut routes: Vec<(Prefix, Target)>, neighbours: FastMap<IpAddr, Link>) -> Self {
        routes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.length));
        Self { routes, neighbours }
    }

    /// The link toward `destination`, `None` while its next hop is not resolved or there is no
    /// route.
    pub fn link(&self, destination: IpAddr) -> Option<Link> {
        let (_, target) = self
            .routes
            .iter()
            .find(|(prefix, _)| prefix.contains(destination))?;
        match target {
            Target::Via(link) => *link,
            Target::OnLink => self.neighbours.get(&destination).copied(),
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
