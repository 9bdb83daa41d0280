//! TCP resets: back to a sender (RFC 9293 3.10.7.1), and onward in a sender's name when its flow
//! ends because the backend was removed. Pure; runs on workers off the fast path.

use super::checksum::{Sum, pseudo_header};
use super::flow::{Address, FlowKey, protocol};
use super::forward::write_u16;
use super::frame::Frame;
use super::icmp::{swap_macs, write_ip};
use super::parse::{Packet, tcp};

const TCP_HEADER: usize = 20;

/// What a reset is made from: the segment's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Segment {
    sequence: u32,
    acknowledgment: u32,
    flags: u8,
    /// Octets of sequence space: data, SYN and FIN.
    length: u32,
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn segment<A: Address>(frame: &[u8], packet: &Packet<A>) -> Segment {
    let end = usize::from(packet.l3) + usize::from(packet.length);
    let l4 = &frame[usize::from(packet.l4)..end];
    let flags = packet.tcp_flags;
    let data = l4.len().saturating_sub(usize::from(l4[12] >> 4) * 4);
    let counted = u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
    Segment {
        sequence: read_u32(l4, 4),
        acknowledgment: read_u32(l4, 8),
        flags,
        length: data as u32 + counted,
    }
}

/// Turns a TCP packet, which is no reset itself, into the reset that a host without the
/// connection would answer, on the way back.
pub fn into_answer<A: Address, F: Frame>(frame: &mut F, packet: &Packet<A>) {
    let segment = segment(frame.bytes(), packet);
    let (sequence, acknowledgment) = if segment.flags & tcp::ACK != 0 {
        (segment.acknowledgment, None)
    } else {
        let next = segment.sequence.wrapping_add(segment.length);
        (0, Some(next))
    };
    let l3 = usize::from(packet.l3);
    frame.truncate(l3 + A::HEADER + TCP_HEADER);
    let bytes = frame.bytes_mut();
    swap_macs(bytes);
    write(
        &mut bytes[l3..],
        &packet.key.reversed(),
        sequence,
        acknowledgment,
    );
}

/// Fills the empty frame `reset` with a reset that the packet's sender could have sent in its
/// place, Ethernet header and tag included. `None` where there is no room.
pub fn onward<A: Address, F: Frame>(
    reset: &mut F,
    frame: &[u8],
    packet: &Packet<A>,
) -> Option<Packet<A>> {
    let segment = segment(frame, packet);
    let acknowledgment = (segment.flags & tcp::ACK != 0).then_some(segment.acknowledgment);
    let l3 = usize::from(packet.l3);
    if !reset.append(l3 + A::HEADER + TCP_HEADER) {
        return None;
    }
    let bytes = reset.bytes_mut();
    bytes[..l3].copy_from_slice(&frame[..l3]);
    write(
        &mut bytes[l3..],
        &packet.key,
        segment.sequence,
        acknowledgment,
    );
    Some(Packet {
        key: packet.key,
        l3: packet.l3,
        l4: (l3 + A::HEADER) as u16,
        length: (A::HEADER + TCP_HEADER) as u16,
        tcp_flags: bytes[l3 + A::HEADER + 13],
    })
}

fn write<A: Address>(ip: &mut [u8], key: &FlowKey<A>, sequence: u32, acknowledgment: Option<u32>) {
    let (header, l4) = ip.split_at_mut(A::HEADER);
    write_ip(
        header,
        key.source,
        key.destination,
        protocol::TCP,
        A::HEADER + TCP_HEADER,
    );
    write_u16(l4, 0, key.source_port);
    write_u16(l4, 2, key.destination_port);
    l4[4..8].copy_from_slice(&sequence.to_be_bytes());
    l4[8..12].copy_from_slice(&acknowledgment.unwrap_or(0).to_be_bytes());
    let ack = if acknowledgment.is_some() {
        tcp::ACK
    } else {
        0
    };
    l4[12..20].copy_from_slice(&[0x50, tcp::RST | ack, 0, 0, 0, 0, 0, 0]);
    let sum = pseudo_header(key.source, key.destination, protocol::TCP, TCP_HEADER);
    let checksum = Sum::bytes(sum, &l4[..TCP_HEADER]).finish();
    write_u16(l4, 16, checksum);
}
