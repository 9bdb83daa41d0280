//! Fixtures that this module's tests share.

use super::frame::{self, ArpParty};
use super::solicit;
use super::*;
use smoltcp::wire::{ArpOperation, Icmpv4Repr, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn subnet(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    prefix(ip(address), length.parse().unwrap()).unwrap()
}

pub fn vip(text: &str) -> Vip {
    Vip {
        prefix: subnet(text),
        advertised: true,
        by_linux: false,
    }
}

/// The MAC of our port `index`.
pub fn our_mac(index: u16) -> Mac {
    let [high, low] = index.to_be_bytes();
    Mac::from_bytes(&[0x02, 0x00, 0x00, 0x00, high, low])
}

/// The MAC of another host.
pub fn host(n: u8) -> Mac {
    Mac::from_bytes(&[0x52, 0x54, 0x00, 0x00, 0x00, n])
}

pub fn port(index: u16, addresses: &[&str]) -> PortConfig {
    PortConfig {
        index,
        name: format!("port{index}"),
        mac: our_mac(index),
        addresses: addresses.iter().map(|a| subnet(a)).collect(),
        check_addresses: Vec::new(),
        gateways: Vec::new(),
        routes: Vec::new(),
        learned: Vec::new(),
        neighbours: Vec::new(),
        mtu: 1500,
        kernel_interface: false,
    }
}

/// A `NetState` with a clock that moves only when told to.
pub struct World {
    pub net: NetState,
    pub now: Instant,
    pub out: Output,
}

impl World {
    /// As started, with what `new` and the first round of announcements sent taken away.
    pub fn new(ports: Vec<PortConfig>) -> Self {
        let mut world = Self::raw(ports);
        world.after(10_000);
        world.out = Output::default();
        world
    }

    pub fn raw(ports: Vec<PortConfig>) -> Self {
        let now = Instant::now();
        let mut out = Output::default();
        let net = NetState::new(ports, now, &mut out);
        Self { net, now, out }
    }

    /// Lets `millis` pass, waking `NetState` exactly when it asked for it.
    pub fn after(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        while let Some(due) = self.net.poll(self.now, &mut self.out) {
            if due > end {
                break;
            }
            assert!(
                due > self.now,
                "a deadline that has passed makes a busy loop"
            );
            self.now = due;
        }
        self.now = end;
        self.net.poll(end, &mut self.out);
    }

    /// One jump of the clock, as after a suspend: nothing ran in between.
    pub fn jump(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.net.poll(self.now, &mut self.out);
    }

    pub fn receive(&mut self, port: u16, frame: &[u8]) -> Fate {
        self.net.receive(port, frame, self.now, &mut self.out)
    }

    pub fn want(&mut self, destinations: &[&str]) {
        let set = destinations.iter().map(|d| ip(d)).collect();
        self.net.want(set, self.now, &mut self.out);
    }

    pub fn resolve(&mut self, dst: &str, packet: Option<Vec<u8>>) -> Option<(u16, Mac)> {
        self.net.resolve(ip(dst), packet, self.now, &mut self.out)
    }

    pub fn frames(&mut self) -> Vec<(u16, Vec<u8>)> {
        std::mem::take(&mut self.out.frames)
    }

    pub fn events(&mut self) -> Vec<NetEvent> {
        std::mem::take(&mut self.out.events)
    }

    /// The MAC that `neighbours` gives for an address.
    pub fn mac_of(&self, address: &str) -> Option<Mac> {
        let mut all = self.net.neighbours();
        all.find(|n| n.0 == ip(address)).map(|n| n.2)
    }
}

fn to(dst: Mac, src: Mac) -> frame::Link {
    frame::Link {
        src,
        dst,
        tags: frame::Tags::default(),
    }
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// An ARP request from host `n`, by broadcast.
pub fn arp_request(n: u8, sender: &str, target: &str) -> Vec<u8> {
    let us = ArpParty {
        mac: host(n),
        ip: v4(sender),
    };
    let them = ArpParty {
        mac: Mac::default(),
        ip: v4(target),
    };
    frame::arp(
        &to(Mac::BROADCAST, host(n)),
        ArpOperation::Request,
        us,
        them,
    )
}

/// Host `n`'s ARP reply to our port `index`.
pub fn arp_reply(n: u8, sender: &str, index: u16, target: &str) -> Vec<u8> {
    let us = ArpParty {
        mac: host(n),
        ip: v4(sender),
    };
    let them = ArpParty {
        mac: our_mac(index),
        ip: v4(target),
    };
    frame::arp(&to(our_mac(index), host(n)), ArpOperation::Reply, us, them)
}

/// A neighbour solicitation from host `n` to the target's solicited-node group.
pub fn solicitation(n: u8, src: &str, target: &str, option: bool, hop_limit: u8) -> Vec<u8> {
    let group = solicit::solicited_node(v6(target));
    let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit {
        target_addr: v6(target),
        lladdr: option.then(|| host(n).into()),
    });
    let link = to(solicit::multicast_mac(group), host(n));
    frame::icmpv6(&link, v6(src), group, hop_limit, &message)
}

/// Host `n`'s neighbour advertisement for `target` to our port 0.
pub fn advertisement(n: u8, target: &str, dst: &str, flags: NdiscNeighborFlags) -> Vec<u8> {
    let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: v6(target),
        lladdr: Some(host(n).into()),
    });
    let link = to(our_mac(0), host(n));
    frame::icmpv6(&link, v6(target), v6(dst), 255, &message)
}

pub fn ping_v4(n: u8, src: &str, dst: &str, data: &[u8]) -> Vec<u8> {
    ping_pieces_v4(n, src, dst, data, u16::MAX).remove(0)
}

/// A ping in packets of at most `mtu` bytes.
pub fn ping_pieces_v4(n: u8, src: &str, dst: &str, data: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    let message = Icmpv4Repr::EchoRequest {
        ident: 0x1234,
        seq_no: 7,
        data,
    };
    let link = to(our_mac(0), host(n));
    frame::icmpv4_pieces(&link, v4(src), v4(dst), 3, &message, mtu, 99).collect()
}

pub fn ping_v6(n: u8, src: &str, dst: &str, data: &[u8]) -> Vec<u8> {
    ping_pieces_v6(n, src, dst, data, u16::MAX).remove(0)
}

/// The same over IPv6, where pieces are of 1,280 bytes.
pub fn ping_pieces_v6(n: u8, src: &str, dst: &str, data: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    let message = Icmpv6Repr::EchoRequest {
        ident: 0x1234,
        seq_no: 7,
        data,
    };
    let link = to(our_mac(0), host(n));
    frame::icmpv6_pieces(&link, v6(src), v6(dst), 3, &message, mtu, 99).collect()
}

/// The same frame with an 802.1Q tag.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    let mut bytes = frame.to_vec();
    bytes.splice(12..12, [0x81, 0x00, high, low]);
    bytes
}
