//! The configuration as the rest of the program sees it: every value parsed, bounded and checked
//! against the others. Only `config::parse` and `config::load` make a [`Config`] from text, so
//! whoever holds one need not check it again. Plain data; lives on the management thread.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::values::{Mac, Prefix};
pub use super::{health::*, listen::*, service::*};

/// The whole file.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub workers: Workers,
    pub management: Management,
    /// At least one. Those with a device of their own come first, then the VLANs.
    pub ports: Vec<Port>,
    pub services: Vec<Service>,
}

/// `[workers]`
#[derive(Debug, Clone, PartialEq)]
pub struct Workers {
    /// CPU numbers, one worker each, at least one; all different where workers poll.
    pub cores: Vec<u16>,
    /// Connections of all workers together.
    pub connections: u32,
    /// Bytes for the connection tables and packet buffers.
    pub memory: u64,
    pub idle: Idle,
    /// New flows a second and worker above which the flood guard acts.
    pub flood_guard: Option<u32>,
    /// Packet buffers of all ports together; `None`: what queues and rings can hold.
    pub buffers: Option<u32>,
    /// Largest frame that one packet buffer holds, bytes; headroom comes on top.
    pub buffer_size: u16,
}

impl Workers {
    /// DPDK's own default: holds a full Ethernet frame.
    pub const DEFAULT_BUFFER_SIZE: u16 = 2048;
}

impl Default for Workers {
    fn default() -> Self {
        Workers {
            cores: vec![1],
            connections: 1_000_000,
            memory: 1 << 30,
            idle: Idle::Poll,
            flood_guard: None,
            buffers: None,
            buffer_size: Workers::DEFAULT_BUFFER_SIZE,
        }
    }
}

/// What a worker does when nothing arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    Poll,
    Yield,
    Sleep,
}

impl Idle {
    pub const NAMES: &[(&str, Idle)] = &[
        ("poll", Idle::Poll),
        ("yield", Idle::Yield),
        ("sleep", Idle::Sleep),
    ];
}

/// `[management]`
#[derive(Debug, Clone, PartialEq)]
pub struct Management {
    pub socket: PathBuf,
    /// CPU of the management thread.
    pub core: u16,
    /// Read-only OpenMetrics; `None` when switched off.
    pub metrics: Option<SocketAddr>,
    pub log: LogFormat,
    /// How often our addresses are announced again, beside the announcements at start and link-up.
    pub announce_every: Option<Duration>,
    /// The kernel's routing table in which VIPs of services that have their quorum stand as routes,
    /// for a routing daemon to announce.
    pub vip_table: Option<u32>,
    /// How long packets are still forwarded at the end, after the VIPs were withdrawn.
    pub linger: Duration,
}

impl Management {
    /// A routing daemon and its neighbours need a while to hear of it.
    pub fn default_linger(vip_table: Option<u32>) -> Duration {
        match vip_table {
            Some(_) => Duration::from_secs(2),
            None => Duration::ZERO,
        }
    }
}

impl Default for Management {
    fn default() -> Self {
        Management {
            socket: PathBuf::from("/run/evenkeel/evenkeel.sock"),
            core: 0,
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9718))),
            log: LogFormat::Text,
            announce_every: None,
            vip_table: None,
            linger: Management::default_linger(None),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    pub const NAMES: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
}

/// What a port's packets go through.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Attachment {
    /// Any DPDK device: a PCI address or a vdev with its arguments.
    Device(String),
    /// 802.1Q: the VLAN `id`, 1 to 4094, of the port named `parent`, which has a device.
    Vlan { parent: String, id: u16 },
}

/// `[[port]]`: one DPDK port, or a VLAN of one, which differs in nothing but the tag.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    pub name: String,
    pub attachment: Attachment,
    /// The port's own addresses with the length of their subnet.
    pub addresses: Vec<Prefix>,
    /// Sources of in-path health checks, at most one per family.
    pub check_addresses: Vec<IpAddr>,
    /// Default routes, at most one per family.
    pub gateways: Vec<IpAddr>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
    /// Largest IP packet in bytes. A VLAN's is its parent's.
    pub mtu: u16,
    pub rss: Rss,
    /// Name of the Linux interface that stands beside this port.
    pub kernel_interface: Option<String>,
    pub rx_descriptors: u16,
    pub tx_descriptors: u16,
}

/// Whether a port's receive queues may tell a packet's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rss {
    /// Where the device can hash as needed and packets prove it.
    #[default]
    Auto,
    Off,
    /// Whoever fills the queues hashes as needed; packets still have to prove it.
    Assume,
}

impl Rss {
    pub const NAMES: &[(&str, Rss)] = &[
        ("auto", Rss::Auto),
        ("off", Rss::Off),
        ("assume", Rss::Assume),
    ];
}

impl Port {
    pub const DEFAULT_MTU: u16 = 1500;
    pub const DEFAULT_DESCRIPTORS: u16 = 1024;

    pub fn device(&self) -> Option<&str> {
        match &self.attachment {
            Attachment::Device(device) => Some(device),
            Attachment::Vlan { .. } => None,
        }
    }

    /// The gateway for the family of `address`.
    pub fn gateway_for(&self, address: IpAddr) -> Option<IpAddr> {
        self.gateways
            .iter()
            .copied()
            .find(|gateway| gateway.is_ipv4() == address.is_ipv4())
    }

    /// Whether `address` is reached without a router: it is in a subnet of the port, or its MAC
    /// address is configured.
    pub fn on_link(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.contains(address))
            || self
                .neighbours
                .iter()
                .any(|neighbour| neighbour.address == address)
    }
}

/// `[[port.route]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Without host bits.
    pub to: Prefix,
    /// Of the same family as `to`, on the port's link.
    pub via: IpAddr,
}

/// `[[port.neighbour]]`: a next hop that is not resolved by ARP or NDP.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbour {
    pub address: IpAddr,
    pub mac: Mac,
}

impl Config {
    /// The ports that have a device of their own.
    pub fn devices(&self) -> impl Iterator<Item = (&Port, &str)> {
        let with_device = |port| Some((port, Port::device(port)?));
        self.ports.iter().filter_map(with_device)
    }

    /// The index of the port of this name that has a device.
    pub fn parent(&self, name: &str) -> Option<usize> {
        self.devices().position(|(port, _)| port.name == name)
    }

    /// The port by which packets to `address` leave: the one with the longest matching subnet or
    /// route, else the first with a gateway of that family.
    pub fn egress(&self, address: IpAddr) -> Option<&Port> {
        let specific = self.ports.iter().filter_map(|port| {
            let host = port
                .neighbours
                .iter()
                .any(|n| n.address == address)
                .then_some(128);
            let own = port
                .addresses
                .iter()
                .filter(|p| p.contains(address))
                .map(|p| p.length);
            let routed = port
                .routes
                .iter()
                .filter(|r| r.to.contains(address))
                .map(|r| r.to.length);
            own.chain(routed)
                .chain(host)
                .max()
                .map(|length| (length, port))
        });
        // `max_by_key` keeps the last of equals; the first port in the file is to win.
        let best = specific.fold(None, |best: Option<(u8, &Port)>, next| match best {
            Some((length, _)) if length >= next.0 => best,
            _ => Some(next),
        });
        best.map(|(_, port)| port).or_else(|| {
            self.ports
                .iter()
                .find(|port| port.gateway_for(address).is_some())
        })
    }
}
