//! Packets that do not fit: cutting an IPv4 packet (RFC 791 3.2) and lowering the segment size
//! that TCP peers announce. Pure; runs on workers off the fast path.

use super::Outbox;
use super::checksum::{Sum, adjust};
use super::counters::DropReason;
use super::flow::{Address, protocol};
use super::forward::write_u16;
use super::frame::Frame;
use super::parse::{Packet, read_u16};

const MORE_FRAGMENTS: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;

/// Whether a packet may be cut on its way: IPv4 without DF. IPv6 is cut by its sender alone.
pub fn may_be_cut<A: Address>(ip: &[u8]) -> bool {
    A::HEADER == 20 && read_u16(ip, 6) & DONT_FRAGMENT == 0
}

/// Cuts the IPv4 packet at `l3`, which ends with the frame and may be a fragment itself, into
/// pieces of at most `mtu` bytes. The frame becomes the first piece; each further one, with the
/// same Ethernet header, is given to `finish`, which sends it.
pub fn cut<O: Outbox>(
    frame: &mut O::Frame,
    l3: usize,
    mtu: u16,
    outbox: &mut O,
    mut finish: impl FnMut(&mut O, O::Frame),
) -> Result<(), DropReason> {
    let bytes = frame.bytes();
    let header = usize::from(bytes[l3] & 0x0f) * 4;
    let room = usize::from(mtu).saturating_sub(header) & !7;
    if room == 0 {
        return Err(DropReason::TooBig);
    }
    let data = bytes.len() - l3 - header;
    let flags = read_u16(bytes, l3 + 6);
    let (options, length) = later_options(&bytes[l3 + 20..l3 + header]);
    let later = 20 + length;
    let mut at = room;
    while at < data {
        let size = room.min(data - at);
        let mut piece = outbox.make().ok_or(DropReason::NoBuffer)?;
        if !piece.append(l3 + later + size) {
            return Err(DropReason::NoBuffer);
        }
        let out = piece.bytes_mut();
        out[..l3 + 20].copy_from_slice(&bytes[..l3 + 20]);
        out[l3 + 20..l3 + later].copy_from_slice(&options[..length]);
        out[l3 + later..].copy_from_slice(&bytes[l3 + header + at..][..size]);
        out[l3] = 0x40 | (later / 4) as u8;
        let last = at + size == data;
        let more = if last {
            flags & MORE_FRAGMENTS
        } else {
            MORE_FRAGMENTS
        };
        seal(
            &mut out[l3..],
            later + size,
            more | ((flags & 0x1fff) + (at / 8) as u16),
        );
        finish(outbox, piece);
        at += size;
    }
    frame.truncate(l3 + header + room);
    let out = &mut frame.bytes_mut()[l3..];
    seal(out, header + room, MORE_FRAGMENTS | (flags & 0x1fff));
    Ok(())
}

/// Writes length, flags with offset, and the header checksum that goes with them.
fn seal(ip: &mut [u8], length: usize, flags: u16) {
    let header = usize::from(ip[0] & 0x0f) * 4;
    write_u16(ip, 2, length as u16);
    write_u16(ip, 6, flags);
    write_u16(ip, 10, 0);
    let checksum = Sum::default().bytes(&ip[..header]).finish();
    write_u16(ip, 10, checksum);
}

/// The options that every fragment carries, those with the copied bit (RFC 791 3.1), padded to
/// whole words.
fn later_options(options: &[u8]) -> ([u8; 40], usize) {
    let (mut kept, mut length, mut at) = ([0; 40], 0, 0);
    while let Some(&kind) = options.get(at) {
        let size = match kind {
            0 => break,
            1 => 1,
            _ => match options.get(at + 1) {
                Some(&size) if size >= 2 && at + usize::from(size) <= options.len() => {
                    usize::from(size)
                }
                _ => break,
            },
        };
        if kind & 0x80 != 0 {
            kept[length..length + size].copy_from_slice(&options[at..at + size]);
            length += size;
        }
        at += size;
    }
    (kept, length.next_multiple_of(4))
}

/// Lowers the maximum segment size that a SYN announces (RFC 9293 3.7.1) to `limit`; one that is
/// already lower, or not announced, stays. The checksum is adjusted, not recomputed.
pub fn clamp_mss<A: Address>(frame: &mut [u8], packet: &Packet<A>, limit: u16) {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const MSS: u8 = 2;
    let (l4, end) = (
        usize::from(packet.l4),
        usize::from(packet.l3) + usize::from(packet.length),
    );
    let l4 = &mut frame[l4..end];
    let header = (usize::from(l4[12] >> 4) * 4).min(l4.len());
    let mut at = 20;
    while at < header {
        match l4[at] {
            END => return,
            NOTHING => at += 1,
            MSS if at + 4 <= header && l4[at + 1] == 4 => {
                let announced = read_u16(l4, at + 2);
                if announced > limit {
                    write_u16(l4, at + 2, limit);
                    // The option may start at an odd offset: its bytes then lie swapped in the sum.
                    let word = |value: u16| {
                        let value = if at % 2 == 0 {
                            value
                        } else {
                            value.swap_bytes()
                        };
                        Sum::default().word(value)
                    };
                    let checksum = adjust(read_u16(l4, 16), word(announced), word(limit));
                    write_u16(l4, 16, checksum);
                }
                return;
            }
            _ => match l4.get(at + 1) {
                Some(&size) if size >= 2 => at += usize::from(size),
                _ => return,
            },
        }
    }
}

/// Whether a packet is a TCP segment that announces options of its connection.
#[inline(always)]
pub fn opens<A: Address>(packet: &Packet<A>) -> bool {
    packet.key.protocol == protocol::TCP && packet.tcp_flags & super::parse::tcp::SYN != 0
}
