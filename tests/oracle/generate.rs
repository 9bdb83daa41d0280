//! Frames of balanced flows, and structure-aware damage to them. Which mutations were made is not
//! told to the judge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use evenkeel::lb::fixture::{OUR_MAC, backend_mac, tcp4, udp4};
use smoltcp::wire::Ipv4Packet;

use crate::judge::Judge;
use crate::world::{BACKENDS, NAT_PORT, PORTS, Sent, VIPS, World};
use evenkeel::lb::snapshot::ForwardMethod;

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }

    pub fn one_in(&mut self, count: u32) -> bool {
        self.below(count) == 0
    }

    pub fn among<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }
}

pub fn frame(random: &mut Random, world: &World, judge: &Judge) -> Sent {
    let bytes = if random.one_in(12) {
        icmp(random, world, judge)
    } else {
        packet(random, world, judge)
    };
    sent(random, bytes, 3)
}

/// A frame as it is sent: one in `harm` is damaged.
fn sent(random: &mut Random, mut bytes: Vec<u8>, harm: u32) -> Sent {
    if random.one_in(16) {
        bytes.splice(12..12, [0x81, 0, 0, 7]);
    }
    if random.one_in(harm) {
        for _ in 0..=random.below(2) {
            mutate(random, &mut bytes);
        }
    }
    Sent {
        bytes,
        whole: !random.one_in(200),
        headroom: if random.one_in(100) { 0 } else { 128 },
    }
}

/// A datagram in pieces; at times one is lost, or they come in another order.
pub fn fragments(random: &mut Random, world: &World, judge: &Judge) -> Vec<Sent> {
    let whole = packet(random, world, judge);
    let v6 = whole[12] == 0x86;
    let header = if v6 { 40 } else { 20 };
    if v6 && !matches!(whole[20], 6 | 17) {
        return Vec::new();
    }
    let (ip, mut data) = whole[14..].split_at(header);
    let padded = [data, &vec![7; random.below(2000) as usize]].concat();
    data = &padded;
    let id = random.next() as u32;
    let (mut pieces, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let size = (8 + random.below(90) as usize * 8).min(data.len() - at);
        let more = at + size < data.len();
        pieces.push(piece(&whole[..14], ip, id, at, more, &data[at..at + size]));
        at += size;
    }
    if random.one_in(4) {
        pieces.remove(random.below(pieces.len() as u32) as usize);
    }
    for at in (1..pieces.len()).rev() {
        if random.one_in(4) {
            pieces.swap(at, random.below(at as u32 + 1) as usize);
        }
    }
    pieces.into_iter().map(|p| sent(random, p, 10)).collect()
}

/// One fragment (RFC 791 3.2, RFC 8200 4.5).
fn piece(ethernet: &[u8], ip: &[u8], id: u32, at: usize, more: bool, data: &[u8]) -> Vec<u8> {
    let mut frame = [ethernet, ip].concat();
    let (word, l3) = (at as u16 | u16::from(more), 14);
    if ip[0] >> 4 == 6 {
        let next = std::mem::replace(&mut frame[l3 + 6], 44);
        frame[l3 + 4..l3 + 6].copy_from_slice(&(8 + data.len() as u16).to_be_bytes());
        frame.extend([next, 0]);
        frame.extend(word.to_be_bytes());
        frame.extend(id.to_be_bytes());
        frame.extend(data);
        return frame;
    }
    let word = (at as u16 / 8) | (u16::from(more) << 13);
    frame[l3 + 2..l3 + 4].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
    frame[l3 + 4..l3 + 6].copy_from_slice(&(id as u16).to_be_bytes());
    frame[l3 + 6..l3 + 8].copy_from_slice(&word.to_be_bytes());
    frame.extend(data);
    mend(&mut frame);
    frame
}

fn client(random: &mut Random, world: &World, v6: bool) -> SocketAddr {
    let n = random.below(world.clients);
    let port = 1024 + random.below(3) as u16;
    let address: IpAddr = if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, n as u16).into()
    } else {
        Ipv4Addr::from_bits(0x0a0a_0000 + n).into()
    };
    SocketAddr::new(address, port)
}

/// The two ends of some flow's packet: source, destination.
fn ends(random: &mut Random, world: &World, judge: &Judge) -> (SocketAddr, SocketAddr) {
    let v6 = random.one_in(2);
    let client = client(random, world, v6);
    if world.method == ForwardMethod::Nat && random.one_in(3) {
        let n = random.below(BACKENDS / 2) * 2 + u32::from(v6);
        return (SocketAddr::new(World::backend(n), NAT_PORT), client);
    }
    if random.one_in(3)
        && let Some(ends) = judge.reply_ends(random)
    {
        return ends;
    }
    let port = if random.one_in(50) {
        22
    } else {
        random.among(&PORTS)
    };
    (client, SocketAddr::new(VIPS[usize::from(v6)], port))
}

fn packet(random: &mut Random, world: &World, judge: &Judge) -> Vec<u8> {
    const FLAGS: [u8; 10] = [0x02, 0x02, 0x10, 0x10, 0x18, 0x18, 0x11, 0x04, 0x12, 0x14];
    let (source, destination) = ends(random, world, judge);
    let (source_text, destination_text) = (source.to_string(), destination.to_string());
    let mut build = if random.one_in(2) {
        tcp4(&source_text, &destination_text).flags(random.among(&FLAGS))
    } else {
        udp4(&source_text, &destination_text)
    };
    let length = match random.below(20) {
        0 => 1400 + random.below(80),
        _ => random.below(40),
    };
    build = build
        .payload(&vec![random.next() as u8; length as usize])
        .tos(random.next() as u8)
        .dont_fragment(random.one_in(2));
    if random.one_in(25) {
        build = build.ttl(1 + random.below(2) as u8);
    }
    if source.ip() == VIPS[0] || BACKEND_SIDE.contains(&source.port()) {
        build = build.macs(OUR_MAC, backend_mac(0));
    }
    if destination.is_ipv6() && random.one_in(10) {
        for _ in 0..1 + random.below(10) {
            build = build.extension(random.among(&[0, 43, 60]), &[0; 6]);
        }
    }
    build.frame()
}

const BACKEND_SIDE: [u16; 1] = [NAT_PORT];

/// A ping, or an error that quotes a packet which some flow may have sent.
fn icmp(random: &mut Random, world: &World, judge: &Judge) -> Vec<u8> {
    let (source, destination) = ends(random, world, judge);
    // The quoted packet came from the VIP (or, under NAT, went to the backend): the other way round.
    let quoted = match random.one_in(2) {
        true => tcp4(&destination.to_string(), &source.to_string()),
        false => udp4(&destination.to_string(), &source.to_string()),
    };
    let quoted = quoted.payload(&[1; 30]).frame();
    let v6 = source.is_ipv6();
    let shortest = if v6 { 48 } else { 28 };
    let keep = shortest + random.below((quoted.len() - 14 - shortest) as u32) as usize;
    let kind = match (v6, random.below(8)) {
        (false, 0) => 8,
        (true, 0) => 128,
        (false, 1) => 5,
        (true, 1) => 137,
        (false, _) => random.among(&[3, 11, 12]),
        (true, _) => random.among(&[1, 2, 3, 4]),
    };
    let mut body = vec![kind, 0, 0, 0, 0, 0, 5, 0x78];
    body.extend(&quoted[14..14 + keep]);
    // The carrier is a UDP packet whose header is replaced.
    let carrier = udp4(&source.to_string(), &destination.to_string()).payload(&body);
    let mut frame = carrier.frame();
    let l3 = 14;
    let header = if v6 { 40 } else { 20 };
    frame.drain(l3 + header..l3 + header + 8);
    if v6 {
        frame[l3 + 6] = 58;
        let length = (body.len() as u16).to_be_bytes();
        frame[l3 + 4..l3 + 6].copy_from_slice(&length);
    } else {
        frame[l3 + 9] = 1;
        let length = (20 + body.len() as u16).to_be_bytes();
        frame[l3 + 2..l3 + 4].copy_from_slice(&length);
        mend(&mut frame);
    }
    frame
}

/// Makes the IPv4 header checksum right again, where there is a header.
fn mend(frame: &mut [u8]) {
    let l3 = if frame.get(12..14) == Some(&[0x81, 0]) {
        18
    } else {
        14
    };
    if frame.len() < l3 + 20 || frame[l3 - 2..l3] != [8, 0] {
        return;
    }
    let header = usize::from(frame[l3] & 0x0f) * 4;
    if header >= 20 && frame.len() >= l3 + header {
        Ipv4Packet::new_unchecked(&mut frame[l3..]).fill_checksum();
    }
}

fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
    let l3 = if frame.get(12..14) == Some(&[0x81, 0]) {
        18
    } else {
        14
    };
    if frame.len() < l3 + 20 {
        return;
    }
    let v6 = frame[l3 - 2..l3] == [0x86, 0xdd];
    let value = random.next() as u8;
    match random.below(18) {
        0 => frame.truncate(random.below(frame.len() as u32 + 1) as usize),
        1 => frame.extend(vec![0; random.below(40) as usize]),
        2 => frame[random.below(6) as usize] ^= value,
        3 => frame[..6].fill(0xff),
        4 => frame[l3] ^= value,
        5 if !v6 => frame[l3 + 10] ^= 1 | value,
        6 if !v6 => frame[l3 + 2 + random.below(2) as usize] ^= value,
        6 => frame[l3 + 4 + random.below(2) as usize] ^= value,
        7 if !v6 => frame[l3 + 6] ^= random.among(&[0x20, 0x01, 0x40]),
        7 => frame[l3 + 6] = 44,
        8 => frame[l3 + if v6 { 6 } else { 9 }] = random.among(&[1, 4, 6, 17, 41, 47, 50, 58, 59]),
        9 => frame[l3 + if v6 { 7 } else { 8 }] = random.below(3) as u8,
        10 | 11 => {
            let source: [u8; 4] = random.among(&[
                [127, 0, 0, 1],
                [0, 0, 0, 0],
                [224, 0, 0, 1],
                [192, 0, 2, 80],
                [255; 4],
                [240, 0, 0, 1],
            ]);
            if v6 {
                if frame.len() >= l3 + 40 {
                    let vip: Ipv6Addr = "2001:db8::80".parse().expect("IPv6");
                    let bad = [
                        Ipv6Addr::UNSPECIFIED,
                        Ipv6Addr::LOCALHOST,
                        vip,
                        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
                    ];
                    frame[l3 + 8..l3 + 24].copy_from_slice(&random.among(&bad).octets());
                }
            } else {
                frame[l3 + 12..l3 + 16].copy_from_slice(&source);
            }
        }
        12 | 13 => {
            // The transport header: flags, lengths, checksums.
            let l4 = l3 + if v6 { 40 } else { 20 };
            let at = l4 + random.below(20) as usize;
            if let Some(byte) = frame.get_mut(at) {
                *byte ^= value;
            }
        }
        14 => frame[12..14].copy_from_slice(&random.among(&[
            [8, 6],
            [0x86, 0xdd],
            [8, 0],
            [0x88, 0xcc],
        ])),
        _ => {
            let at = random.below(frame.len() as u32) as usize;
            frame[at] ^= 1 << random.below(8);
        }
    }
    // Or most damage would be one and the same: a wrong checksum.
    if !random.one_in(8) {
        mend(frame);
    }
}
