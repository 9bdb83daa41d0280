//! What an address is to the balancer.

use std::net::IpAddr;

use crate::world::{LOCALS, PORTS, VIPS};

pub fn is_service(address: IpAddr, port: u16) -> bool {
    VIPS.contains(&address) && PORTS.contains(&port)
}

pub fn is_ours(address: IpAddr) -> bool {
    VIPS.contains(&address) || LOCALS.contains(&address)
}

/// No host may send from it.
pub fn is_nobody(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => matches!(a.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(a) => a.is_unspecified() || a.is_loopback() || a.is_multicast(),
    }
}
