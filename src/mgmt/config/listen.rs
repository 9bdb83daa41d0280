//! What a service listens on: protocol, address or prefix, port or ports. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::values::{Prefix, ValueError, check_unicast, digits};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// An inclusive range of ports within 1..=65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    pub const ALL: Ports = Ports {
        first: 1,
        last: u16::MAX,
    };

    /// The port, when it is one.
    pub fn single(self) -> Option<u16> {
        (self.first == self.last).then_some(self.first)
    }

    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether both share ports and neither lies within the other, so that none is more specific.
    pub fn crosses(self, other: Ports) -> bool {
        let (low, high) = if self.first <= other.first {
            (self, other)
        } else {
            (other, self)
        };
        low.first < high.first && high.first <= low.last && low.last < high.last
    }
}

/// One entry of a service's `listen`, such as `tcp:192.0.2.80:80`, `udp:[2001:db8::53]:53`,
/// `tcp:192.0.2.80:8000-8099`, `tcp:192.0.2.80:*` or `tcp:198.51.100.0/24:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listen {
    pub protocol: Protocol,
    /// One address ([`Prefix::is_host`]) or a prefix without host bits.
    pub addresses: Prefix,
    pub ports: Ports,
}

impl Listen {
    /// The VIP, when it is one address.
    pub fn vip(&self) -> Option<IpAddr> {
        self.addresses.is_host().then_some(self.addresses.address)
    }
}

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (protocol, rest) = text.split_once(':').ok_or(ValueError::Listen)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(ValueError::Listen),
        };
        let (address, ports) = rest.rsplit_once(':').ok_or(ValueError::Listen)?;
        let address = match address.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or(ValueError::Listen)?,
            // Without brackets the last group of an IPv6 address would be taken for the port.
            None if address.contains(':') => return Err(ValueError::Listen),
            None => address,
        };
        let addresses = if address.contains('/') {
            let prefix: Prefix = address.parse().map_err(|_| ValueError::Listen)?;
            if prefix != prefix.network() {
                return Err(ValueError::HostBits(prefix.network()));
            }
            prefix
        } else {
            Prefix::host(address.parse().map_err(|_| ValueError::Listen)?)
        };
        if addresses.length > 0 {
            check_unicast(addresses.address)?;
        }
        Ok(Listen {
            protocol,
            addresses,
            ports: parse_ports(ports)?,
        })
    }
}

fn parse_ports(text: &str) -> Result<Ports, ValueError> {
    if text == "*" {
        return Ok(Ports::ALL);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |t: &str| {
        digits::<u16>(t)
            .filter(|p| *p != 0)
            .ok_or(ValueError::Ports)
    };
    let ports = Ports {
        first: number(first)?,
        last: number(last)?,
    };
    if ports.first > ports.last {
        return Err(ValueError::Ports);
    }
    Ok(ports)
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(port) => write!(f, "{port}"),
            None if *self == Ports::ALL => write!(f, "*"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = match self.vip() {
            Some(vip) => vip.to_string(),
            None => self.addresses.to_string(),
        };
        let protocol = self.protocol.name();
        if self.addresses.address.is_ipv4() {
            write!(f, "{protocol}:{address}:{}", self.ports)
        } else {
            write!(f, "{protocol}:[{address}]:{}", self.ports)
        }
    }
}
