//! Linux beside the fast path: for a port that asks for it an interface, through which Linux gets
//! what is neither balanced nor ours and sends what it likes, so that ssh, ping and a routing daemon
//! work over a device that DPDK owns.
//!
//! Owned by the management thread, which alone touches the interfaces; workers know nothing of them
//! and meet only their usual rings. docs/kernel.md is the operator's page.

mod mirror;
mod netlink;
mod tap;
pub mod vips;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::config::Config;
use super::desired::PortFacts;
pub use mirror::{Learned, LearnedRoute, OfPort};
use netlink::Netlink;
use tap::Tap;

/// Frames taken from one interface at a time. Linux queues what is beyond, and drops what is beyond
/// that.
const AT_ONCE: usize = 256;
/// The longest frame that a port may have, tags included.
const LONGEST: usize = 9_600 + 64;

/// Frames since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub to_linux: u64,
    pub from_linux: u64,
    /// Linux had no room, or its interface was down.
    pub to_linux_dropped: u64,
    /// No buffer was free, or the ring to the worker was full.
    pub from_linux_dropped: u64,
    /// Sent to an address that evenkeel answers for and Linux does not have.
    pub withheld: u64,
}

/// The interface beside one port or VLAN.
pub struct Interface {
    pub name: String,
    /// The index of the port.
    pub port: u16,
    pub counters: Counters,
    mac: [u8; 6],
    tap: Tap,
}

/// All interfaces.
#[derive(Default)]
pub struct Kernel {
    interfaces: Vec<Interface>,
    buffer: Vec<u8>,
    netlink: Option<Netlink>,
    learned: Arc<Learned>,
}

impl Kernel {
    /// Makes the interfaces. Their addresses come with [`Kernel::start`].
    ///
    /// # Errors
    /// The name of the interface that could not be made, and why.
    pub fn new(config: &Config, facts: &[PortFacts]) -> Result<Self, (String, io::Error)> {
        let mut kernel = Self::default();
        for (index, (port, facts)) in (0..).zip(config.ports.iter().zip(facts)) {
            let Some(name) = &port.kernel_interface else {
                continue;
            };
            let tap = Tap::create(name, facts.mac, facts.mtu);
            kernel.interfaces.push(Interface {
                name: name.clone(),
                port: index,
                counters: Counters::default(),
                mac: facts.mac,
                tap: tap.map_err(|error| (name.clone(), error))?,
            });
            kernel.buffer.resize(LONGEST, 0);
        }
        Ok(kernel)
    }

    /// Gives the interfaces their addresses, and begins to follow what Linux does with them.
    pub fn start(&mut self, config: &Config) {
        let setup = |interface: &Interface| {
            let port = config.ports.get(usize::from(interface.port))?;
            let index = interface.tap.index().ok()?;
            let (name, number) = (&interface.name, interface.port);
            Some(netlink::Setup::new(name, index, number, port))
        };
        let setups: Vec<_> = self.interfaces.iter().filter_map(setup).collect();
        if setups.is_empty() {
            return;
        }
        match Netlink::start(setups, config.management.vip_table) {
            Ok(netlink) => self.netlink = Some(netlink),
            Err(error) => tracing::error!(
                "kernel interfaces have no addresses, for there is no thread for them: {error}"
            ),
        }
    }

    /// Whether Linux has changed something since the last look.
    pub fn look(&mut self) -> bool {
        let news = self.netlink.as_mut().and_then(Netlink::news);
        let is_news = news.is_some();
        self.learned = news.unwrap_or_else(|| Arc::clone(&self.learned));
        is_news
    }

    /// Has these VIPs, and no others, stand in the table for routing daemons.
    pub fn announce(&mut self, announced: vips::Announced) {
        if let Some(netlink) = &self.netlink {
            netlink.announce(announced);
        }
    }

    /// What Linux has, as of the last look.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Gives Linux a frame that came in by `port`, if it has an interface there. `is_ours`: whether an
    /// address is evenkeel's. Linux would route what is sent to one that it does not have itself,
    /// maybe back to where it came from.
    pub fn give(&mut self, port: u16, frame: &[u8], is_ours: impl FnOnce(IpAddr) -> bool) {
        let found = self.interfaces.iter_mut().find(|i| i.port == port);
        let Some(interface) = found else { return };
        let counters = &mut interface.counters;
        // A switch may return what we sent; Linux would take it for a twin.
        if frame.get(6..12) == Some(&interface.mac) {
            return;
        }
        let addresses = &self.learned.addresses;
        let is_withheld = |address| !addresses.contains(&address) && is_ours(address);
        if destination(frame).is_some_and(is_withheld) {
            counters.withheld += 1;
        } else if interface.tap.send(frame) {
            counters.to_linux += 1;
        } else {
            counters.to_linux_dropped += 1;
        }
    }

    /// Takes what Linux sends, and hands it to `send` with the index of the port; false from there
    /// says that it is lost, and that there is no room for more.
    pub fn take(&mut self, mut send: impl FnMut(u16, &[u8]) -> bool) {
        let Self {
            interfaces, buffer, ..
        } = self;
        for interface in interfaces {
            for _ in 0..AT_ONCE {
                let Some(length) = interface.tap.receive(buffer) else {
                    break;
                };
                if !send(interface.port, &buffer[..length]) {
                    interface.counters.from_linux_dropped += 1;
                    break;
                }
                interface.counters.from_linux += 1;
            }
        }
    }

    /// The port, of this index, has another MAC address since it was reset, and so has what stands
    /// beside it.
    pub fn set_mac(&mut self, port: u16, mac: [u8; 6]) {
        for interface in self.interfaces.iter_mut().filter(|i| i.port == port) {
            interface.mac = mac;
            if let Err(error) = interface.tap.set_mac(mac) {
                tracing::error!(
                    "{} keeps its old MAC address, so nothing reaches it: {error}; give it the port's with `ip link set`",
                    interface.name
                );
            }
        }
    }
}

/// Where an untagged IP packet goes.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let bytes: [u8; 4] = frame.get(30..34)?.try_into().ok()?;
            Some(IpAddr::from(bytes))
        }
        [0x86, 0xdd] => {
            let bytes: [u8; 16] = frame.get(38..54)?.try_into().ok()?;
            Some(IpAddr::from(bytes))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_found_in_ip_packets_alone() {
        let mut frame = vec![0; 60];
        assert_eq!(destination(&frame), None);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[30..34].copy_from_slice(&[192, 0, 2, 80]);
        assert_eq!(destination(&frame), Some([192, 0, 2, 80].into()));
        assert_eq!(destination(&frame[..33]), None, "cut off");
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[38] = 0x20;
        frame[53] = 9;
        assert_eq!(destination(&frame), "2000::9".parse().ok());
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        assert_eq!(destination(&frame), None, "ARP");
        assert_eq!(destination(&[]), None);
    }
}
