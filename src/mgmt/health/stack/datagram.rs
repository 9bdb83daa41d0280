//! A probe that sends single packets: UDP datagrams and echo requests.
//!
//! Management thread. It never sends twice by itself; a probe that wants to repeats its call.

use super::incoming::{Body, Incoming};
use super::{NoPort, Protocol, Reservation, Slot, Stack, version};
use crate::mgmt::health::route::Route;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr, IpVersion, UdpPacket,
    UdpRepr,
};
use std::net::IpAddr;
use std::time::Instant;
use tokio::sync::mpsc;

/// Answers kept for a probe that has not looked yet; more are dropped.
const WAITING: usize = 8;
const TTL: u8 = 64;

/// An answer, or the report of one on the way that there can be none.
#[derive(Debug)]
pub(in crate::mgmt::health) struct Received {
    pub payload: Result<Vec<u8>, String>,
    /// When the worker had it.
    pub stamp: Instant,
}

/// The stack's end of a probe's answers.
pub(super) struct Queue {
    route: Route,
    answers: mpsc::Sender<Received>,
}

impl Queue {
    /// False if it is not from whom the probe asked.
    pub fn push(&self, incoming: &Incoming<'_>, stamp: Instant) -> bool {
        if !incoming.is_about(&self.route) {
            return false;
        }
        let payload = match &incoming.body {
            Body::Payload(data) => Ok(data.to_vec()),
            Body::Refused(why) => Err(why.clone()),
            Body::Segment => return false,
        };
        let _ = self.answers.try_send(Received { payload, stamp });
        true
    }
}

/// The probe's end.
pub(in crate::mgmt::health) struct Datagram {
    route: Route,
    answers: mpsc::Receiver<Received>,
    reservation: Reservation,
}

impl Datagram {
    /// `protocol` is UDP or ping.
    pub fn open(stack: &Stack, protocol: Protocol, route: Route) -> Result<Self, NoPort> {
        let reservation = stack.reserve(protocol, &route)?;
        let (sender, answers) = mpsc::channel(WAITING);
        reservation.fill(Slot::Datagram(Queue {
            route,
            answers: sender,
        }));
        Ok(Self {
            route,
            answers,
            reservation,
        })
    }

    /// Sends one datagram or echo request.
    pub fn send(&self, payload: &[u8]) {
        let port = self.reservation.key.port;
        let packet = match self.reservation.key.protocol {
            Protocol::Ping => ping(&self.route, port, payload),
            Protocol::Tcp | Protocol::Udp => udp(&self.route, port, payload),
        };
        self.reservation.stack.send(&self.route, packet);
    }

    /// The next answer; the caller limits how long it waits.
    pub async fn receive(&mut self) -> Received {
        match self.answers.recv().await {
            Some(answer) => answer,
            // The other end lives as long as the reservation, which is ours.
            None => std::future::pending().await,
        }
    }
}

fn udp(route: &Route, src_port: u16, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr {
        src_port,
        dst_port: route.target().port(),
    };
    let checksums = ChecksumCapabilities::default();
    let (src, dst) = (route.source().into(), route.target().ip().into());
    let len = repr.header_len() + payload.len();
    ip_packet(route, IpProtocol::Udp, len, |buffer| {
        let mut packet = UdpPacket::new_unchecked(buffer);
        let fill = |b: &mut [u8]| b.copy_from_slice(payload);
        repr.emit(&mut packet, &src, &dst, payload.len(), fill, &checksums);
    })
}

fn ping(route: &Route, ident: u16, data: &[u8]) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    match (route.source(), route.target().ip()) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let seq_no = 0;
            let message = Icmpv6Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            let len = message.buffer_len();
            ip_packet(route, IpProtocol::Icmpv6, len, |buffer| {
                let mut packet = Icmpv6Packet::new_unchecked(buffer);
                message.emit(&src, &dst, &mut packet, &checksums);
            })
        }
        _ => {
            let seq_no = 0;
            let message = Icmpv4Repr::EchoRequest {
                ident,
                seq_no,
                data,
            };
            let len = message.buffer_len();
            ip_packet(route, IpProtocol::Icmp, len, |buffer| {
                message.emit(&mut Icmpv4Packet::new_unchecked(buffer), &checksums);
            })
        }
    }
}

/// An IP packet of the route's addresses around `len` bytes that `fill` writes.
fn ip_packet(
    route: &Route,
    next_header: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let (src, dst) = (route.source(), route.target().ip());
    debug_assert_eq!(version(src), version(dst));
    let header = IpRepr::new(src.into(), dst.into(), next_header, len, TTL);
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut bytes[..], &ChecksumCapabilities::default());
    let at = match header.version() {
        IpVersion::Ipv4 => 20,
        IpVersion::Ipv6 => 40,
    };
    fill(&mut bytes[at..]);
    bytes
}
