//! What is known about the ports, from the configuration and from Linux: their addresses, the
//! addresses we answer for, and routes.
//!
//! Management thread; plain look-ups without a clock. It sends nothing and knows no neighbour's
//! state.

use super::frame::Mac;
use super::neighbour::Key;
use super::next_hops::NextHops;
use crate::mgmt::kernel::LearnedRoute;
use smoltcp::wire::{IpAddress, IpCidr};
use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A VIP prefix with more addresses than this is answered for but not announced.
const MAX_LISTED: u32 = 256;

/// An address with its prefix length; the host part is kept.
pub type Prefix = IpCidr;

/// Checks the length, which `IpCidr::new` would panic on. None if it exceeds 32 or 128.
#[must_use]
pub fn prefix(address: IpAddr, length: u8) -> Option<Prefix> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (length <= longest).then(|| Prefix::new(address.into(), length))
}

/// A static route: packets for `prefix` go to `via`, which is on one of the port's subnets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub prefix: Prefix,
    pub via: IpAddr,
}

/// A VIP, or a prefix of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vip {
    pub prefix: Prefix,
    /// Whether we answer ARP and neighbour discovery for it. If not, others decide who does, and it
    /// is ours all the same where its packets come to us.
    pub advertised: bool,
    /// Whether Linux decides that, and with it VRRP or the like: another machine may have it too for a
    /// moment, while it moves.
    pub by_linux: bool,
}

/// One DPDK port as the configuration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// DPDK's port number, which punted frames carry.
    pub index: u16,
    pub name: String,
    pub mac: Mac,
    /// The port's own addresses, each with the length of the subnet it is in.
    pub addresses: Vec<Prefix>,
    /// Addresses that health checks come from and pool addresses: answered for, not routed by.
    pub check_addresses: Vec<IpAddr>,
    /// Default gateways, at most one per address family is of use.
    pub gateways: Vec<IpAddr>,
    pub routes: Vec<Route>,
    /// What Linux routes by the interface beside this port. It goes before the routes and gateways
    /// above where prefixes are the same.
    pub learned: Vec<LearnedRoute>,
    /// Neighbours that are never asked for and never change.
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// Largest IP packet the port sends, bytes.
    pub mtu: u16,
    /// Linux has an interface beside this port and answers for `addresses` itself.
    pub kernel_interface: bool,
}

/// A port with the addresses we answer for on it.
#[derive(Debug)]
pub struct Link {
    pub config: PortConfig,
    /// Formed from the MAC (RFC 4291 appendix A); the source of solicitations when no other
    /// address fits. Only where the port has an IPv6 address at all.
    pub link_local: Option<Ipv6Addr>,
    own: HashSet<IpAddr>,
    own_prefixes: Vec<Prefix>,
    /// VIPs of ours that Linux has.
    by_linux: HashSet<IpAddr>,
    /// VIPs that are not advertised.
    quiet: HashSet<IpAddr>,
    quiet_prefixes: Vec<Prefix>,
}

impl Link {
    fn new(config: PortConfig, vips: &[Vip], homeless_vips: &[bool]) -> Self {
        let is_ipv6 = |p: &Prefix| matches!(p.address(), IpAddress::Ipv6(_));
        let link_local = config.addresses.iter().any(is_ipv6).then(|| {
            let address = config.addresses.iter().map(|p| IpAddr::from(p.address()));
            let configured = address.into_iter().find_map(|a| match a {
                IpAddr::V6(a) if a.is_unicast_link_local() => Some(a),
                _ => None,
            });
            configured.unwrap_or_else(|| eui64_link_local(config.mac))
        });
        let mut own: HashSet<IpAddr> = config.check_addresses.iter().copied().collect();
        if !config.kernel_interface {
            own.extend(config.addresses.iter().map(|p| IpAddr::from(p.address())));
            own.extend(link_local.map(IpAddr::V6));
        }
        let (mut own_prefixes, mut quiet, mut quiet_prefixes) =
            (Vec::new(), HashSet::new(), Vec::new());
        let mut by_linux = HashSet::new();
        for (vip, &homeless) in vips.iter().zip(homeless_vips) {
            let prefix = vip.prefix;
            if !homeless && !connected_to(&config, prefix.address()) {
                continue;
            }
            let (singles, prefixes) = match vip.advertised {
                true => (&mut own, &mut own_prefixes),
                false => (&mut quiet, &mut quiet_prefixes),
            };
            if is_single(&prefix) {
                singles.insert(prefix.address().into());
                if vip.advertised && vip.by_linux {
                    by_linux.insert(prefix.address().into());
                }
            } else {
                prefixes.push(prefix);
            }
        }
        Self {
            config,
            link_local,
            own,
            own_prefixes,
            by_linux,
            quiet,
            quiet_prefixes,
        }
    }

    /// Whether the address is ours on this port, advertised or not.
    #[must_use]
    pub fn has(&self, ip: IpAddr) -> bool {
        let mut prefixes = self.quiet_prefixes.iter();
        self.owns(ip) || self.quiet.contains(&ip) || prefixes.any(|p| p.contains_addr(&ip.into()))
    }

    /// Whether we answer for this address on this port.
    #[must_use]
    pub fn owns(&self, ip: IpAddr) -> bool {
        self.own.contains(&ip)
            || self
                .own_prefixes
                .iter()
                .any(|p| p.contains_addr(&ip.into()))
    }

    /// Whether it is ours for as long as Linux has it.
    #[must_use]
    pub fn has_by_linux(&self, ip: IpAddr) -> bool {
        self.by_linux.contains(&ip)
    }

    /// Every address to announce on this port, in order. Of a VIP prefix the addresses are
    /// listed while they are at most `limit`; a wider one is left out.
    #[must_use]
    pub fn announced(&self, limit: u32) -> BTreeSet<IpAddr> {
        let listed = self.own_prefixes.iter().flat_map(|p| addresses(p, limit));
        self.own.iter().copied().chain(listed).collect()
    }

    /// Whether `ip` is on one of the port's subnets.
    #[must_use]
    pub fn is_on_link(&self, ip: IpAddr) -> bool {
        let learned = self.config.learned.iter();
        let mut learned = learned.filter(|route| route.via.is_none());
        connected_to(&self.config, ip.into())
            || learned.any(|route| route.prefix.contains(ip))
            || (self.link_local.is_some() && is_link_local(ip))
    }

    /// The address to ask from for an IPv4 neighbour: one in its subnet, else any of ours;
    /// unspecified if the port has none (RFC 5227 2.1.1 allows that as a probe).
    #[must_use]
    pub fn source_v4(&self, target: Ipv4Addr) -> Ipv4Addr {
        let own = self.config.addresses.iter();
        let mut own = own.filter_map(|p| match p.address() {
            IpAddress::Ipv4(a) => Some((p, a)),
            IpAddress::Ipv6(_) => None,
        });
        let first = own.clone().next();
        let near = own.find(|(p, _)| p.contains_addr(&target.into()));
        let best = near.or(first).map(|(_, a)| a);
        let check = self.config.check_addresses.iter().find_map(|a| match *a {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        });
        best.or(check).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The address to ask from for an IPv6 neighbour: one in its subnet, else the link-local
    /// one. None if the port has no IPv6.
    #[must_use]
    pub fn source_v6(&self, target: Ipv6Addr) -> Option<Ipv6Addr> {
        let near = |p: &Prefix| match p.address() {
            IpAddress::Ipv6(a) if p.contains_addr(&target.into()) => Some(a),
            _ => None,
        };
        let near = self.config.addresses.iter().find_map(near);
        near.or(self.link_local)
    }
}

/// All ports, the VIPs on them, and the routes between.
#[derive(Debug)]
pub struct Links {
    links: Vec<Link>,
    next_hops: NextHops,
}

impl Links {
    #[must_use]
    pub fn new(configs: Vec<PortConfig>, vips: &[Vip]) -> Self {
        let homeless: Vec<bool> = vips
            .iter()
            .map(|vip| {
                !configs
                    .iter()
                    .any(|c| connected_to(c, vip.prefix.address()))
            })
            .collect();
        let next_hops = NextHops::new(&configs);
        let links = configs.into_iter();
        Self {
            links: links.map(|c| Link::new(c, vips, &homeless)).collect(),
            next_hops,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    /// Every address to announce, on each port that it is announced on.
    #[must_use]
    pub fn announced(&self) -> BTreeSet<Key> {
        let of_link = |link: &Link| {
            let port = link.config.index;
            let all = link.announced(MAX_LISTED).into_iter();
            all.map(move |ip| (port, ip))
        };
        self.links.iter().flat_map(of_link).collect()
    }

    #[must_use]
    pub fn get(&self, port: u16) -> Option<&Link> {
        self.links.iter().find(|l| l.config.index == port)
    }

    /// Whether one of our own ports sends with this MAC: two ports on one segment hear each
    /// other, and a switch may return our own frames.
    #[must_use]
    pub fn is_ours(&self, mac: Mac) -> bool {
        self.links.iter().any(|l| l.config.mac == mac)
    }

    /// Whether these are the ports as they are.
    pub fn are(&self, configs: &[PortConfig]) -> bool {
        let same = |(link, config): (&Link, &PortConfig)| link.config == *config;
        self.links.len() == configs.len() && self.links.iter().zip(configs).all(same)
    }

    /// The configuration again, to rebuild from when the VIPs change.
    pub fn into_configs(self) -> Vec<PortConfig> {
        self.links.into_iter().map(|l| l.config).collect()
    }

    /// The port, and the address to resolve on it: see [`NextHops`]. Among equal ones those that
    /// `usable` says can be sent to win.
    pub fn next_hop(
        &self,
        dst: IpAddr,
        usable: impl Fn(u16, IpAddr) -> bool,
    ) -> Option<(u16, IpAddr)> {
        self.next_hops.find(dst, usable)
    }

    pub fn next_hops(&self) -> &NextHops {
        &self.next_hops
    }
}

fn is_single(prefix: &Prefix) -> bool {
    match prefix.address() {
        IpAddress::Ipv4(_) => prefix.prefix_len() == 32,
        IpAddress::Ipv6(_) => prefix.prefix_len() == 128,
    }
}

pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(a) if a.is_unicast_link_local())
}

fn connected_to(config: &PortConfig, ip: IpAddress) -> bool {
    config.addresses.iter().any(|p| p.contains_addr(&ip))
}

/// The addresses of a prefix, or none if there are more than `limit`.
fn addresses(prefix: &Prefix, limit: u32) -> Vec<IpAddr> {
    let (bits, base) = match prefix.address() {
        IpAddress::Ipv4(a) => (32, u128::from(u32::from(a))),
        IpAddress::Ipv6(a) => (128, u128::from(a)),
    };
    let free = bits - u32::from(prefix.prefix_len());
    let Some(count) = 1_u32.checked_shl(free).filter(|&count| count <= limit) else {
        return Vec::new();
    };
    let first = base & !(u128::from(count) - 1);
    let nth = |n| match prefix.address() {
        IpAddress::Ipv4(_) => IpAddr::V4(Ipv4Addr::from((first + n) as u32)),
        IpAddress::Ipv6(_) => IpAddr::V6(Ipv6Addr::from(first + n)),
    };
    (0..u128::from(count)).map(nth).collect()
}

/// RFC 4291 appendix A: the MAC with its universal/local bit turned and ff:fe in the middle.
fn eui64_link_local(mac: Mac) -> Ipv6Addr {
    let m = mac.0;
    let id = [m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]];
    Ipv6Addr::from((0xfe80_u128 << 112) | u128::from(u64::from_be_bytes(id)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ip, port, subnet, vip};
    use super::*;

    fn two_ports() -> Vec<PortConfig> {
        let mut wan = port(0, &["192.0.2.2/24", "2001:db8::2/64"]);
        wan.gateways = vec![ip("192.0.2.1"), ip("fe80::1")];
        let mut lan = port(1, &["10.0.0.1/16"]);
        lan.routes = vec![Route {
            prefix: subnet("10.9.0.0/16"),
            via: ip("10.0.0.9"),
        }];
        vec![wan, lan]
    }

    #[test]
    fn the_longest_prefix_wins() {
        let links = Links::new(two_ports(), &[]);
        let hop = |dst: &str| links.next_hop(ip(dst), |_, _| true);
        assert_eq!(hop("192.0.2.77"), Some((0, ip("192.0.2.77"))));
        assert_eq!(hop("10.0.5.5"), Some((1, ip("10.0.5.5"))));
        assert_eq!(hop("10.9.1.1"), Some((1, ip("10.0.0.9"))));
        assert_eq!(hop("8.8.8.8"), Some((0, ip("192.0.2.1"))));
        assert_eq!(hop("2001:db8::9"), Some((0, ip("2001:db8::9"))));
        assert_eq!(hop("2001:db8:1::9"), Some((0, ip("fe80::1"))));
        assert_eq!(hop("fe80::1"), Some((0, ip("fe80::1"))));
        assert_eq!(hop("fe80::2"), None);
        assert_eq!(
            Links::new(vec![port(0, &[])], &[]).next_hop(ip("1.2.3.4"), |_, _| true),
            None
        );
    }

    #[test]
    fn of_two_gateways_the_usable_one_is_taken_else_the_first() {
        let mut ports = two_ports();
        ports[1].gateways = vec![ip("10.0.0.254")];
        let links = Links::new(ports, &[]);
        let second = |_, hop: IpAddr| hop == ip("10.0.0.254");
        assert_eq!(
            links.next_hop(ip("8.8.8.8"), second),
            Some((1, ip("10.0.0.254")))
        );
        assert_eq!(
            links.next_hop(ip("8.8.8.8"), |_, _| false),
            Some((0, ip("192.0.2.1")))
        );
    }

    #[test]
    fn a_vip_is_answered_where_its_subnet_is_or_everywhere() {
        let vips = ["192.0.2.80/32", "203.0.113.0/30", "10.0.0.80/32"].map(vip);
        let links = Links::new(two_ports(), &vips);
        let owns = |p: u16, a: &str| links.get(p).unwrap().owns(ip(a));
        assert!(owns(0, "192.0.2.80") && !owns(1, "192.0.2.80"));
        assert!(owns(1, "10.0.0.80") && !owns(0, "10.0.0.80"));
        assert!(owns(0, "203.0.113.2") && owns(1, "203.0.113.2"));
        assert!(owns(0, "192.0.2.2") && !owns(1, "192.0.2.2"));
        let announced = links.get(1).unwrap().announced(256);
        assert_eq!(announced.len(), 2 + 4, "{announced:?}");
        assert_eq!(links.get(1).unwrap().announced(2).len(), 2);
    }

    #[test]
    fn with_a_kernel_interface_the_ports_own_addresses_are_left_to_linux() {
        let mut ports = two_ports();
        ports[0].kernel_interface = true;
        ports[0].check_addresses = vec![ip("192.0.2.3")];
        let links = Links::new(ports, &[vip("192.0.2.80/32")]);
        let wan = links.get(0).unwrap();
        assert!(!wan.owns(ip("192.0.2.2")) && wan.owns(ip("192.0.2.3")));
        assert!(wan.owns(ip("192.0.2.80")));
        assert_eq!(
            wan.source_v4("192.0.2.9".parse().unwrap()).to_string(),
            "192.0.2.2"
        );
    }

    #[test]
    fn a_vip_that_is_not_advertised_is_ours_and_not_answered_for() {
        let quiet = |text| Vip {
            advertised: false,
            ..vip(text)
        };
        let vips = [
            quiet("192.0.2.80/32"),
            quiet("203.0.113.0/24"),
            vip("203.0.113.7/32"),
        ];
        let links = Links::new(two_ports(), &vips);
        let (wan, lan) = (links.get(0).unwrap(), links.get(1).unwrap());
        assert!(wan.has(ip("192.0.2.80")) && !wan.owns(ip("192.0.2.80")));
        assert!(!lan.has(ip("192.0.2.80")), "of another subnet");
        assert!(lan.has(ip("203.0.113.9")) && !lan.owns(ip("203.0.113.9")));
        assert!(lan.owns(ip("203.0.113.7")), "one address of a prefix");
        assert!(!wan.announced(256).contains(&ip("192.0.2.80")));
    }

    #[test]
    fn sources_are_near_the_target() {
        let links = Links::new(
            vec![port(0, &["10.0.0.1/8", "192.0.2.2/24", "2001:db8::2/64"])],
            &[],
        );
        let link = links.get(0).unwrap();
        assert_eq!(
            link.source_v4("192.0.2.9".parse().unwrap()).to_string(),
            "192.0.2.2"
        );
        assert_eq!(
            link.source_v6("2001:db8::9".parse().unwrap())
                .unwrap()
                .to_string(),
            "2001:db8::2"
        );
        assert_eq!(
            link.source_v6("fe80::9".parse().unwrap())
                .unwrap()
                .to_string(),
            "fe80::ff:fe00:0"
        );
        let none = Links::new(vec![port(0, &[])], &[]);
        assert!(
            none.get(0)
                .unwrap()
                .source_v4(Ipv4Addr::LOCALHOST)
                .is_unspecified()
        );
        assert_eq!(none.get(0).unwrap().source_v6(Ipv6Addr::LOCALHOST), None);
    }
}
