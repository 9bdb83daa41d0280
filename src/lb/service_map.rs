//! Which service a packet is for: exact addresses first, then the most specific prefix and range.
//! Built by management, part of a snapshot; looked up by workers for a flow's first packet.

use std::net::IpAddr;

use super::route::Prefix;
use super::snapshot::{FastMap, FastSet, ServiceId};

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
    fn is_exact(&self) -> bool {
        let full = if self.prefix.address.is_ipv4() {
            32
        } else {
            128
        };
        self.prefix.length == full && self.first_port == self.last_port
    }

    fn matches(&self, protocol: u8, address: IpAddr, port: u16) -> bool {
        self.protocol == protocol
            && (self.first_port..=self.last_port).contains(&port)
            && self.prefix.contains(address)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceMap {
    exact: FastMap<(IpAddr, u16, u8), ServiceId>,
    /// Most specific first: longest prefix, then narrowest range.
    wide: Vec<(Listen, ServiceId)>,
    vips: FastSet<IpAddr>,
}

impl ServiceMap {
    pub fn new(listens: impl IntoIterator<Item = (Listen, ServiceId)>) -> Self {
        let mut map = Self::default();
        for (listen, id) in listens {
            if listen.is_exact() {
                map.exact.insert(
                    (listen.prefix.address, listen.first_port, listen.protocol),
                    id,
                );
            } else {
                map.wide.push((listen, id));
            }
            if listen.prefix.length
                == if listen.prefix.address.is_ipv4() {
                    32
                } else {
                    128
                }
            {
                map.vips.insert(listen.prefix.address);
            }
        }
        map.wide.sort_by_key(|(l, _)| {
            (
                std::cmp::Reverse(l.prefix.length),
                l.last_port - l.first_port,
            )
        });
        map
    }

    /// The service for a packet to this address and port.
    pub fn find(&self, protocol: u8, address: IpAddr, port: u16) -> Option<ServiceId> {
        let exact = self.exact.get(&(address, port, protocol));
        exact.copied().or_else(|| {
            let wide = self
                .wide
                .iter()
                .find(|(l, _)| l.matches(protocol, address, port));
            wide.map(|&(_, id)| id)
        })
    }

    /// Whether some service listens on exactly this address.
    pub fn is_vip(&self, address: IpAddr) -> bool {
        self.vips.contains(&address)
    }

    /// Whether some service listens on a prefix or a range of ports that takes this address in.
    pub fn is_covered(&self, address: IpAddr) -> bool {
        self.wide.iter().any(|(l, _)| l.prefix.contains(address))
    }

    pub fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.iter().copied()
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
                .map(|id| id.0)
        };
        assert_eq!(find(6, "10.0.0.1", 443), Some(3));
        assert_eq!(find(17, "10.0.0.1", 443), Some(4));
        assert_eq!(find(6, "10.0.0.1", 8080), Some(2));
        assert_eq!(find(6, "10.0.0.1", 22), Some(1));
        assert_eq!(find(6, "8.8.8.8", 80), Some(0));
        assert_eq!(find(17, "8.8.8.8", 80), None);
        assert!(map.is_vip("10.0.0.1".parse().expect("address")));
        assert!(!map.is_vip("8.8.8.8".parse().expect("address")));
    }
}
