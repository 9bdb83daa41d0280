//! Which service a packet is for: exact addresses first, then the most specific prefix and range.
//! Built by management, part of a snapshot; looked up by workers for a flow's first packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::addresses::AddressSet;
use super::route::Prefix;
use super::snapshot::{FastMap, ServiceId};

/// What a service listens on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listen {
    /// IP protocol number.
    pub protocol: u8,
    pub prefix: Prefix,
    pub first_port: u16,
    pub last_port: u16,
}

impl Listen {
    /// One address alone.
    fn is_vip(&self) -> bool {
        let full = if self.prefix.address.is_ipv4() {
            32
        } else {
            128
        };
        self.prefix.length == full
    }

    /// One address and port.
    pub fn is_exact(&self) -> bool {
        self.is_vip() && self.first_port == self.last_port
    }

    fn matches(&self, protocol: u8, address: IpAddr, port: u16) -> bool {
        self.protocol == protocol
            && (self.first_port..=self.last_port).contains(&port)
            && self.prefix.contains(address)
    }
}

/// A service that listens on an address and port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    pub id: ServiceId,
    /// The address is one of many that the service listens on, and so may be one of ours for
    /// another purpose.
    pub by_prefix: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceMap {
    /// By address, port and protocol, packed as [`exact_v4`] and [`exact_v6`] do.
    exact_v4: FastMap<u64, ServiceId>,
    exact_v6: FastMap<(u128, u32), ServiceId>,
    /// Most specific first: longest prefix, then narrowest range.
    wide: Vec<(Listen, ServiceId)>,
    vips: AddressSet,
}

#[inline(always)]
fn exact_v4(address: Ipv4Addr, port: u16, protocol: u8) -> u64 {
    u64::from(address.to_bits()) << 32 | u64::from(port) << 8 | u64::from(protocol)
}

#[inline(always)]
fn exact_v6(address: Ipv6Addr, port: u16, protocol: u8) -> (u128, u32) {
    let end = u32::from(port) << 8 | u32::from(protocol);
    (address.to_bits(), end)
}

impl ServiceMap {
    pub fn new(listens: impl IntoIterator<Item = (Listen, ServiceId)>) -> Self {
        let mut map = Self::default();
        let mut vips = Vec::new();
        for (listen, id) in listens {
            let (port, protocol) = (listen.first_port, listen.protocol);
            match listen.prefix.address {
                _ if !listen.is_exact() => map.wide.push((listen, id)),
                IpAddr::V4(a) => drop(map.exact_v4.insert(exact_v4(a, port, protocol), id)),
                IpAddr::V6(a) => drop(map.exact_v6.insert(exact_v6(a, port, protocol), id)),
            }
            if listen.is_vip() {
                vips.push(listen.prefix.address);
            }
        }
        map.vips = vips.into_iter().collect();
        map.wide.sort_by_key(|(l, _)| {
            (
                std::cmp::Reverse(l.prefix.length),
                l.last_port - l.first_port,
            )
        });
        map
    }

    /// The service for a packet to this address and port.
    #[inline(always)]
    pub fn find(&self, protocol: u8, address: IpAddr, port: u16) -> Option<Found> {
        let exact = match address {
            IpAddr::V4(a) => self.exact_v4.get(&exact_v4(a, port, protocol)),
            IpAddr::V6(a) => self.exact_v6.get(&exact_v6(a, port, protocol)),
        };
        match exact {
            Some(&id) => Some(Found {
                id,
                by_prefix: false,
            }),
            None => self.find_wide(protocol, address, port),
        }
    }

    #[cold]
    fn find_wide(&self, protocol: u8, address: IpAddr, port: u16) -> Option<Found> {
        let mut wide = self.wide.iter();
        let found = wide.find(|(l, _)| l.matches(protocol, address, port));
        found.map(|&(listen, id)| Found {
            id,
            by_prefix: !listen.is_vip(),
        })
    }

    /// Whether some service listens on exactly this address.
    pub fn is_vip(&self, address: IpAddr) -> bool {
        self.vips.contains(address)
    }

    /// Whether some service listens on a prefix or a range of ports that takes this address in.
    pub fn is_covered(&self, address: IpAddr) -> bool {
        self.wide.iter().any(|(l, _)| l.prefix.contains(address))
    }

    pub fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_service_wins() {
        let listen = |protocol, address: &str, length, first_port, last_port| Listen {
            protocol,
            prefix: Prefix::new(address.parse().expect("address"), length),
            first_port,
            last_port,
        };
        let map = ServiceMap::new([
            (listen(6, "0.0.0.0", 0, 80, 80), ServiceId(0)),
            (listen(6, "10.0.0.1", 32, 0, 65535), ServiceId(1)),
            (listen(6, "10.0.0.1", 32, 8000, 8999), ServiceId(2)),
            (listen(6, "10.0.0.1", 32, 443, 443), ServiceId(3)),
            (listen(17, "10.0.0.1", 32, 443, 443), ServiceId(4)),
        ]);
        let find = |protocol, address: &str, port| {
            map.find(protocol, address.parse().expect("address"), port)
                .map(|found| found.id.0)
        };
        assert_eq!(find(6, "10.0.0.1", 443), Some(3));
        assert_eq!(find(17, "10.0.0.1", 443), Some(4));
        assert_eq!(find(6, "10.0.0.1", 8080), Some(2));
        assert_eq!(find(6, "10.0.0.1", 22), Some(1));
        assert_eq!(find(6, "8.8.8.8", 80), Some(0));
        assert_eq!(find(17, "8.8.8.8", 80), None);
        let by_prefix = |address: &str, port| {
            let found = map.find(6, address.parse().expect("address"), port);
            found.map(|found| found.by_prefix)
        };
        assert_eq!(by_prefix("10.0.0.1", 443), Some(false));
        assert_eq!(by_prefix("10.0.0.1", 22), Some(false), "by its range");
        assert_eq!(by_prefix("8.8.8.8", 80), Some(true));
        assert!(map.is_vip("10.0.0.1".parse().expect("address")));
        assert!(!map.is_vip("8.8.8.8".parse().expect("address")));
    }
}
