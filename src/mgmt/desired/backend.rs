//! A backend as workers see it: how packets get to it, and whether it takes new ones.
//! Runs on the management thread.

use std::net::IpAddr;

use super::service::method;
use super::{Desired, SORRY, config};
use crate::lb::forward::tunnel;
use crate::lb::snapshot::{Backend, BackendId, BackendState, ForwardMethod, ServiceId};
use crate::mgmt::net::NetState;

impl Desired {
    /// The backend of this index of the service at this place.
    pub(super) fn build_backend(&self, place: usize, index: usize, net: &NetState) -> Backend {
        let service = &self.config.services[place];
        let (named, backend) = (&self.places[place], &service.backends[index]);
        let id = named.backends[index];
        let state = match self.is_down(id) {
            _ if backend.drain => BackendState::Drained,
            true if service.inhibit => BackendState::Drained,
            true => BackendState::Down,
            false => BackendState::Up,
        };
        Backend {
            id,
            service: named.id,
            state: self.drains.state(id, state),
            weight: self.weight_in_force(id, backend),
            ..self.reach(service, backend, method(service.method), net)
        }
    }

    /// How packets get to a backend: all that does not depend on its service and state.
    fn reach(
        &self,
        service: &config::Service,
        backend: &config::Backend,
        method: ForwardMethod,
        net: &NetState,
    ) -> Backend {
        let hop = net.next_hop(backend.address);
        let link = hop.and_then(|(port, ip)| self.links.get(port, ip));
        let port = hop.map_or(0, |(port, _)| usize::from(port));
        let mtu = self.ports.get(port).map_or(1500, |p| p.mtu);
        let overhead = match method {
            ForwardMethod::Tunnel => tunnel::overhead(backend.address) as u16,
            _ => 0,
        };
        let (outer_source, outer_spread) = match service.tunnel_source {
            Some(prefix) if prefix.address.is_ipv4() == backend.address.is_ipv4() => {
                (prefix.address, spread(prefix))
            }
            _ => (self.own_address(port, backend.address), 0),
        };
        let weight = u32::from(backend.weight);
        Backend {
            link,
            method,
            state: BackendState::Up,
            port: match method.is_two_way() {
                true => backend.port.unwrap_or(0),
                false => 0,
            },
            mtu: mtu.saturating_sub(overhead),
            service: ServiceId::default(),
            id: BackendId::default(),
            address: backend.address,
            outer_source,
            outer_spread,
            weight,
            configured_weight: weight,
            upper: backend.upper.unwrap_or(0),
            lower: backend.lower.unwrap_or(0),
        }
    }

    /// The sorry server, as a backend that only gets new connections while it is the service's only
    /// one. It is always there, for the connections it has.
    pub(super) fn build_sorry_server(&self, place: usize, net: &NetState) -> Option<Backend> {
        let (service, named) = (&self.config.services[place], &self.places[place]);
        let (sorry, own) = (service.sorry_server.as_ref()?, named.sorry?);
        let backend = config::Backend {
            name: SORRY.into(),
            address: sorry.address,
            port: sorry.port,
            weight: 1,
            upper: None,
            lower: None,
            drain: false,
        };
        let method = method(sorry.method.unwrap_or(service.method));
        Some(Backend {
            id: own,
            service: named.id,
            ..self.reach(service, &backend, method, net)
        })
    }

    /// The address of a port that a tunnel's outer header carries toward `peer`.
    fn own_address(&self, port: usize, peer: IpAddr) -> IpAddr {
        let unspecified = match peer {
            IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        let Some(port) = self.config.ports.get(port) else {
            return unspecified;
        };
        let family = || {
            let own = port.addresses.iter();
            own.filter(|own| own.address.is_ipv4() == peer.is_ipv4())
        };
        let near = family().find(|own| own.contains(peer));
        near.or_else(|| family().next())
            .map_or(unspecified, |own| own.address)
    }
}

/// The bits below a prefix, at most 32 of them, which each flow of a tunnel sets by its hash.
fn spread(prefix: config::Prefix) -> u32 {
    let full = if prefix.address.is_ipv4() { 32 } else { 128 };
    let bits = u32::from(full - prefix.length.min(full));
    u32::MAX.checked_shr(32 - bits.min(32)).unwrap_or(0)
}
