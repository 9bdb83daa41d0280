//! What must hold of every frame that leaves, whatever came in: lengths, checksums, and that no
//! byte changed which the forwarding method has no business with. Shares no code with the balancer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::lb::fixture::{CLIENT_MAC, LOCAL, LOCAL6, OUR_MAC, VIP, VIP6};
use crate::lb::snapshot::ForwardMethod;
use crate::world::{BACKENDS, Choice, backend};

/// An IP packet in a frame.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub l3: usize,
    /// Where the transport header, or a fragment's payload, starts.
    pub l4: usize,
    pub end: usize,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// A fragment but the first.
    pub later: bool,
    ports: Option<(u16, u16)>,
}

impl Seen {
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (source, destination) = self.ports?;
        Some((
            SocketAddr::new(self.source, source),
            SocketAddr::new(self.destination, destination),
        ))
    }

    fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes([
        *bytes.get(at)?,
        *bytes.get(at + 1)?,
    ])))
}

/// The IP packet of a frame, as far as it makes sense.
pub fn read(frame: &[u8]) -> Option<Seen> {
    let l3 = if frame.get(12..14)? == [0x81, 0] {
        18
    } else {
        14
    };
    match word(frame, l3 - 2)? {
        0x0800 | 0x86dd => read_ip(frame, l3),
        _ => None,
    }
}

fn read_ip(frame: &[u8], l3: usize) -> Option<Seen> {
    let ip = frame.get(l3..)?;
    let mut seen = match ip.first()? >> 4 {
        4 => {
            let address = |at: usize| Some(Ipv4Addr::from(*ip.get(at..)?.first_chunk::<4>()?));
            let offset = word(ip, 6)?;
            Seen {
                l3,
                l4: l3 + usize::from(ip[0] & 15) * 4,
                end: l3 + word(ip, 2)?,
                source: address(12)?.into(),
                destination: address(16)?.into(),
                protocol: *ip.get(9)?,
                later: offset & 0x1fff != 0,
                ports: None,
            }
        }
        6 => read_v6(ip, l3)?,
        _ => return None,
    };
    if matches!(seen.protocol, 6 | 17) && !seen.later {
        let l4 = seen.l4;
        seen.ports = word(frame, l4)
            .zip(word(frame, l4 + 2))
            .map(|(s, d)| (s as u16, d as u16));
    }
    (seen.l4 <= seen.end && seen.end <= frame.len()).then_some(seen)
}

fn read_v6(ip: &[u8], l3: usize) -> Option<Seen> {
    let address = |at: usize| Some(Ipv6Addr::from(*ip.get(at..)?.first_chunk::<16>()?));
    let (mut next, mut at, mut offset, mut is_fragment) = (*ip.get(6)?, 40, 0, false);
    while matches!(next, 0 | 43 | 44 | 51 | 60) && offset & 0xfff8 == 0 {
        let size = usize::from(*ip.get(at + 1)?);
        let length = match next {
            44 => {
                (offset, is_fragment) = (word(ip, at + 2)?, true);
                8
            }
            51 => (size + 2) * 4,
            _ => (size + 1) * 8,
        };
        (next, at) = (ip[at], at + length);
        if is_fragment {
            break;
        }
    }
    Some(Seen {
        l3,
        l4: l3 + at,
        end: l3 + 40 + word(ip, 4)?,
        source: address(8)?.into(),
        destination: address(24)?.into(),
        protocol: next,
        later: offset & 0xfff8 != 0,
        ports: None,
    })
}

fn add(sum: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(2).fold(sum, |sum, pair| {
        sum + (u64::from(pair[0]) << 8) + u64::from(*pair.get(1).unwrap_or(&0))
    })
}

/// What a checksum is off by, in ones' complement arithmetic: 0 where it is right.
fn fault(frame: &[u8], seen: &Seen) -> u64 {
    let body = &frame[seen.l4..seen.end];
    let mut sum = 0;
    if seen.protocol != 1 {
        for address in [seen.source, seen.destination] {
            sum = match address {
                IpAddr::V4(a) => add(sum, &a.octets()),
                IpAddr::V6(a) => add(sum, &a.octets()),
            };
        }
        sum += u64::from(seen.protocol) + body.len() as u64;
    }
    add(sum, body) % 0xffff
}

fn has_no_checksum(frame: &[u8], seen: &Seen) -> bool {
    seen.protocol == 17 && word(frame, seen.l4 + 6) == Some(0)
}

/// A frame that leaves ends with its IP packet, whose header checksum is right.
#[track_caller]
pub fn sound(frame: &[u8]) -> Seen {
    let Some(seen) = read(frame) else {
        panic!("not an IP packet: {frame:02x?}");
    };
    assert_eq!(seen.end, frame.len(), "{frame:02x?}");
    header_is_right(frame, &seen);
    seen
}

#[track_caller]
fn header_is_right(frame: &[u8], seen: &Seen) {
    if !seen.is_v6() {
        let header = usize::from(frame[seen.l3] & 15) * 4;
        let sum = add(0, &frame[seen.l3..seen.l3 + header]);
        assert!(
            sum != 0 && sum % 0xffff == 0,
            "header checksum: {frame:02x?}"
        );
    }
}

/// An answer of ours is right in everything, and goes back where the packet came from.
#[track_caller]
pub fn answered(sent: &[u8], out: &[u8]) {
    let seen = sound(out);
    assert!(matches!(seen.protocol, 1 | 6 | 58), "{seen:?}");
    assert_eq!(fault(out, &seen), 0, "checksum: {out:02x?}");
    assert_eq!(out[6..12], OUR_MAC);
    let before = read(sent).expect("what was answered was a packet");
    if matches!(before.protocol, 6 | 17) {
        assert_eq!(out[..6], sent[6..12], "to another station");
        assert_eq!(seen.destination, before.source);
    }
}

/// What a client is asked because of a backend's packet: in the service's name, and right in everything.
#[track_caller]
pub fn asked(sent: &[u8], out: &[u8]) {
    let (seen, before) = (sound(out), read(sent).expect("a backend's packet"));
    assert_eq!(fault(out, &seen), 0, "checksum: {out:02x?}");
    assert_eq!(out[6..12], OUR_MAC);
    assert_eq!((seen.protocol, before.protocol), (6, 6));
    let ((from, to), (_, client)) = (seen.ends().unwrap(), before.ends().unwrap());
    assert_eq!(to, client);
    let vip = if seen.is_v6() { VIP6 } else { VIP };
    assert_eq!(from.to_string(), vip);
    // No data.
    let header = usize::from(out[seen.l4 + 12] >> 4) * 4;
    assert_eq!((out[seen.l4 + 13], out.len() - seen.l4), (0x10, header));
}

/// A packet that was forwarded. `cut`: further pieces of it left beside it.
#[track_caller]
pub fn forwarded(choice: Choice, sent: &[u8], out: &[u8], cut: bool) {
    let after = sound(out);
    let before = read(sent).expect("what was forwarded was a packet");
    // What goes into a tunnel leaves its VLAN.
    if choice.method() != ForwardMethod::Tunnel {
        assert_eq!(after.l3, before.l3, "the VLAN tag stays");
        assert_eq!(out[12..after.l3 - 2], sent[12..before.l3 - 2]);
    }
    assert_eq!(out[6..12], OUR_MAC);
    assert!(
        out[..6] == CLIENT_MAC || out[..5] == [2, 0, 0, 0, 1],
        "to nobody"
    );
    let syn = before.protocol == 6 && sent.get(before.l4 + 13).is_some_and(|f| f & 2 != 0);
    let clamped = choice.clamps() && syn && !before.later;
    match choice.method() {
        ForwardMethod::Tunnel => {
            assert!((0..BACKENDS).any(|n| backend(n) == after.destination));
            let kind = if before.is_v6() { 41 } else { 4 };
            assert_eq!(after.protocol, kind);
            let inner = read_ip(out, after.l4).expect("a packet inside");
            assert_eq!(inner.end, out.len());
            header_is_right(out, &inner);
            if !cut {
                unchanged(sent, &before, out, &inner, clamped);
            }
        }
        ForwardMethod::DirectRouting if !cut => unchanged(sent, &before, out, &after, clamped),
        ForwardMethod::Nat | ForwardMethod::FullNat if !cut => {
            translated(choice, sent, &before, out, &after, clamped);
        }
        _ => {}
    }
}

/// Everything but TTL and header checksum, and but the addresses where `but_ends`, with the TTL
/// one lower.
#[track_caller]
fn header_stays(sent: &[u8], before: &Seen, out: &[u8], after: &Seen, but_ends: bool) {
    let plain = |frame: &[u8], seen: &Seen| {
        let mut header = frame[seen.l3..seen.l4].to_vec();
        let v6 = seen.is_v6();
        let ttl = std::mem::take(&mut header[if v6 { 7 } else { 8 }]);
        if !v6 {
            header[10..12].fill(0);
        }
        if but_ends {
            header[if v6 { 8..40 } else { 12..20 }].fill(0);
        }
        (header, ttl)
    };
    let ((a, ttl_before), (b, ttl_after)) = (plain(sent, before), plain(out, after));
    assert_eq!(a, b, "{sent:02x?}\n{out:02x?}");
    assert_eq!(ttl_before, ttl_after + 1, "TTL");
}

#[track_caller]
fn unchanged(sent: &[u8], before: &Seen, out: &[u8], after: &Seen, clamped: bool) {
    header_stays(sent, before, out, after, false);
    let (a, b) = (&sent[before.l4..before.end], &out[after.l4..after.end]);
    if clamped {
        assert_eq!(a.len(), b.len());
        assert_eq!(fault(sent, before), fault(out, after), "checksum");
    } else {
        assert_eq!(a, b);
    }
}

#[track_caller]
fn translated(choice: Choice, sent: &[u8], before: &Seen, out: &[u8], after: &Seen, clamped: bool) {
    header_stays(sent, before, out, after, true);
    assert_eq!(before.end - before.l4, after.end - after.l4);
    let ours = |ip: IpAddr| (0..BACKENDS).any(|n| backend(n) == ip);
    let local = |ip: IpAddr| ip == IpAddr::from(LOCAL) || ip == IpAddr::from(LOCAL6);
    if matches!(before.protocol, 6 | 17) {
        let fullnat = choice.method() == ForwardMethod::FullNat;
        if out[..6] == CLIENT_MAC {
            assert!(ours(before.source));
            assert!(!local(after.destination) && !ours(after.source));
        } else {
            assert!(ours(after.destination));
            assert_eq!(local(after.source), fullnat);
        }
    }
    let (a, b) = (&sent[before.l4..before.end], &out[after.l4..after.end]);
    if before.later {
        assert_eq!(a, b, "a later fragment");
        return;
    }
    if has_no_checksum(sent, before) {
        assert!(has_no_checksum(out, after) || fault(out, after) == 0);
    } else {
        assert!(!has_no_checksum(out, after), "the checksum was lost");
        assert_eq!(
            fault(sent, before),
            fault(out, after),
            "checksum: {sent:02x?}\n{out:02x?}"
        );
    }
    let checksum = match before.protocol {
        6 => 16..18,
        17 => 6..8,
        _ => return,
    };
    for at in (4..a.len()).filter(|at| !checksum.contains(at)) {
        assert!(
            clamped || a[at] == b[at],
            "byte {at} of the transport header or data"
        );
    }
}

/// Makes the IPv4 header checksum right, where there is such a header.
pub fn mend(frame: &mut [u8]) {
    let l3 = if frame.get(12..14) == Some(&[0x81, 0]) {
        18
    } else {
        14
    };
    if word(frame, l3 - 2) != Some(0x0800) || frame.len() < l3 + 20 {
        return;
    }
    let header = usize::from(frame[l3] & 15) * 4;
    if header < 20 || frame.len() < l3 + header {
        return;
    }
    frame[l3 + 10..l3 + 12].fill(0);
    seal(&mut frame[l3..l3 + header], 10, 0);
}

/// Writes the checksum over `bytes` to `at`.
fn seal(bytes: &mut [u8], at: usize, pseudo: u64) {
    let mut sum = add(pseudo, bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// A frame with this ICMP message.
pub fn icmp(from: IpAddr, to: IpAddr, mut body: Vec<u8>) -> Vec<u8> {
    let mut frame = [OUR_MAC, CLIENT_MAC].concat();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            seal(&mut body, 2, 0);
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + body.len() as u16).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, 1, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            frame.extend(body);
            mend(&mut frame);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let pseudo = add(add(58 + body.len() as u64, &from.octets()), &to.octets());
            seal(&mut body, 2, pseudo);
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((body.len() as u16).to_be_bytes());
            frame.extend([58, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            frame.extend(body);
        }
        _ => {}
    }
    frame
}

/// One fragment of a whole packet.
pub fn fragment(whole: &[u8], seen: &Seen, offset: usize, more: bool, data: &[u8]) -> Vec<u8> {
    let mut frame = whole[..seen.l4].to_vec();
    let l3 = seen.l3;
    if seen.is_v6() {
        // The fragment header comes first of all; what other extension headers there were is gone.
        frame.truncate(l3 + 40);
        frame[l3 + 6] = 44;
        frame[l3 + 4..l3 + 6].copy_from_slice(&(8 + data.len() as u16).to_be_bytes());
        frame.extend([seen.protocol, 0]);
        frame.extend((offset as u16 | u16::from(more)).to_be_bytes());
        frame.extend([0, 0, whole[l3 + 1], whole[l3 + 40]]);
    } else {
        let length = (seen.l4 - l3 + data.len()) as u16;
        frame[l3 + 2..l3 + 4].copy_from_slice(&length.to_be_bytes());
        let word = (offset / 8) as u16 | u16::from(more) << 13;
        frame[l3 + 6..l3 + 8].copy_from_slice(&word.to_be_bytes());
    }
    frame.extend(data);
    mend(&mut frame);
    frame
}
