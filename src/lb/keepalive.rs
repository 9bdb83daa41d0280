//! A NAT flow whose entry is gone, as after a restart or a takeover, and of which only the backend
//! speaks. A client's packet would bring the entry back by the consistent hash. A backend's proves
//! nothing: it may belong to a connection past the VIP, which Linux forwards. So it goes its way, and the
//! client whose flow it would be is asked by a keep-alive in the service's name (RFC 9293 3.8.4): whoever
//! has the connection acknowledges, and that packet brings the entry back before the backend has sent
//! its own again; whoever has not resets it, which is dropped. Pure; runs on workers off the fast path.

use std::net::IpAddr;

use super::admit::Flood;
use super::checksum::{Sum, pseudo_header};
use super::flow::{Address, FlowKey, protocol};
use super::forward::{backend_port, write_macs, write_u16};
use super::frame::Frame;
use super::icmp::write_ip;
use super::parse::{Packet, tcp};
use super::shard::Shard;
use super::snapshot::{FastMap, ServiceId, Snapshot, Untracked};
use super::tracked::Tracked;
use super::{Now, Outbox};

const TCP_HEADER: usize = 20;

/// Where clients speak to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Front {
    pub service: ServiceId,
    pub vip: IpAddr,
    pub port: u16,
}

/// By TCP endpoints of backends, what their answers are from. Part of a snapshot; built by management.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fronts(FastMap<(IpAddr, u16), Front>);

impl Fronts {
    /// Of all NAT services that find flows again by the hash, the backends' endpoints and where each
    /// service listens. An endpoint that answers in more than one place is left out.
    pub fn new(all: impl IntoIterator<Item = ((IpAddr, u16), Front)>) -> Self {
        let mut fronts: FastMap<_, Option<Front>> = FastMap::default();
        for (backend, front) in all {
            let known = fronts.entry(backend);
            known
                .and_modify(|known| *known = None)
                .or_insert(Some(front));
        }
        let sole = fronts.into_iter();
        Self(
            sole.filter_map(|(backend, front)| Some((backend, front?)))
                .collect(),
        )
    }

    fn get(&self, backend: IpAddr, port: u16) -> Option<Front> {
        self.0.get(&(backend, port)).copied()
    }
}

impl Shard {
    /// Asks the client to which this packet without an entry goes, if it is one that a NAT backend
    /// sends in the middle of a connection. `None` where there is nobody to ask, or no room.
    #[cold]
    pub(super) fn ask_client<A: Tracked, O: Outbox>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &O::Frame,
        packet: &Packet<A>,
        outbox: &mut O,
    ) -> Option<()> {
        let key = &packet.key;
        let flags = packet.tcp_flags & (tcp::SYN | tcp::RST | tcp::ACK);
        if key.protocol != protocol::TCP || flags != tcp::ACK {
            return None;
        }
        let front = snapshot.fronts.get(key.source.into(), key.source_port)?;
        let service = snapshot.service(front.service)?;
        if service.untracked != Untracked::Hash || key.destination.is_invalid_source() {
            return None;
        }
        // What the client would send, and where that would go.
        let request = Packet {
            key: FlowKey {
                source: key.destination,
                destination: A::from_ip(front.vip)?,
                source_port: key.destination_port,
                destination_port: front.port,
                protocol: protocol::TCP,
            },
            tcp_flags: tcp::ACK,
            ..*packet
        };
        let hash = self.client_hash(&request.key);
        let chosen = self.choose(snapshot, service, &request, now, hash, Flood::Hashed);
        let backend = chosen.ok()?;
        let end = (key.source.into(), key.source_port);
        if end != (backend.address, backend_port(backend, front.port)) {
            return None;
        }
        let link = snapshot.routes.link(key.destination.into())?;
        if !self.answers.resets.take(now) {
            self.counters.unanswered.add(1);
            return None;
        }
        let mut keepalive = outbox.make()?;
        write(
            &mut keepalive,
            frame.bytes(),
            packet,
            &request.key.reversed(),
        )?;
        write_macs(keepalive.bytes_mut(), &link);
        self.counters.keepalives.add(1);
        outbox.send(link.port, keepalive);
        Some(())
    }
}

/// Fills the empty frame with a segment like the packet's, but from `key`'s ends, without data, and with
/// the number before its first: an octet that the client has had, so that it acknowledges at once.
/// With the packet's options, for some drop what comes without a time stamp (RFC 7323 3.2).
fn write<A: Address, F: Frame>(
    keepalive: &mut F,
    frame: &[u8],
    packet: &Packet<A>,
    key: &FlowKey<A>,
) -> Option<()> {
    let l3 = usize::from(packet.l3);
    let segment = frame.get(usize::from(packet.l4)..l3 + usize::from(packet.length))?;
    let length = usize::from(*segment.get(12)? >> 4) * 4;
    let header = segment.get(..length).filter(|h| h.len() >= TCP_HEADER)?;
    if !keepalive.append(l3 + A::HEADER + length) {
        return None;
    }
    let bytes = keepalive.bytes_mut();
    bytes[..l3].copy_from_slice(&frame[..l3]);
    let (ip, l4) = bytes[l3..].split_at_mut(A::HEADER);
    let number = protocol::TCP;
    write_ip(ip, key.source, key.destination, number, A::HEADER + length);
    l4.copy_from_slice(header);
    write_u16(l4, 0, key.source_port);
    write_u16(l4, 2, key.destination_port);
    let sequence = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
    l4[4..8].copy_from_slice(&sequence.wrapping_sub(1).to_be_bytes());
    l4[13] = tcp::ACK;
    // Checksum and urgent pointer.
    l4[16..20].fill(0);
    let sum = pseudo_header(key.source, key.destination, number, length);
    let checksum = Sum::bytes(sum, l4).finish();
    write_u16(l4, 16, checksum);
    Some(())
}
