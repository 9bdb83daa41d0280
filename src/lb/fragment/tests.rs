use super::keep::{MEMORY, PATIENCE, WAITING};
use super::*;
use crate::lb::checksum::{Sum, pseudo_header};
use crate::lb::cluster::{Cluster, Outcome};
use crate::lb::fixture::{Lab, VIP, VIP6, backend_mac, checksums_are_right, tcp4, udp4, udp6};
use crate::lb::owner::Ownership;
use crate::lb::parse::{ETHERNET, parse, tcp};
use crate::lb::snapshot::{ForwardMethod, Scheduler};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Cuts a packet into fragments of these payload sizes (multiples of 8) and the rest.
pub(in crate::lb) fn cut(frame: &[u8], id: u32, sizes: &[usize]) -> Vec<Vec<u8>> {
    let v4 = frame[12] == 0x08;
    let at = ETHERNET + if v4 { 20 } else { 40 };
    let (head, payload) = frame.split_at(at);
    let mut ends: Vec<usize> = Vec::new();
    for size in sizes {
        let end = ends.last().unwrap_or(&0) + size;
        if end < payload.len() {
            ends.push(end);
        }
    }
    ends.push(payload.len());
    let mut start = 0;
    ends.iter()
        .map(|&end| {
            let piece = &payload[start..end];
            let more = u16::from(end < payload.len());
            let mut out = head.to_vec();
            if v4 {
                let word = (start / 8) as u16 | more << 13;
                out[16..18].copy_from_slice(&((20 + piece.len()) as u16).to_be_bytes());
                out[18..20].copy_from_slice(&(id as u16).to_be_bytes());
                out[20..22].copy_from_slice(&word.to_be_bytes());
                out[24..26].fill(0);
                let sum = Sum::default().bytes(&out[14..34]).finish();
                out[24..26].copy_from_slice(&sum.to_be_bytes());
            } else {
                let number = std::mem::replace(&mut out[20], 44);
                out[18..20].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
                out.extend([number, 0]);
                out.extend((start as u16 | more).to_be_bytes());
                out.extend(id.to_be_bytes());
            }
            out.extend(piece);
            start = end;
            out
        })
        .collect()
}

/// Puts fragments (in any order, tunnel headers taken off before) together again.
fn join(mut pieces: Vec<Vec<u8>>) -> Vec<u8> {
    let v4 = pieces[0][12] == 0x08;
    let offset = |f: &Vec<u8>| match v4 {
        true => usize::from(u16::from_be_bytes([f[20], f[21]]) & 0x1fff) * 8,
        false => usize::from(u16::from_be_bytes([f[56], f[57]]) & 0xfff8),
    };
    pieces.sort_by_key(offset);
    let header = if v4 { 34 } else { 62 };
    let mut whole = pieces[0][..if v4 { 34 } else { 54 }].to_vec();
    let mut length = 0;
    for piece in &pieces {
        assert_eq!(offset(piece), length, "no gap, no overlap");
        assert_eq!(piece[..12], pieces[0][..12], "one way out");
        whole.extend(&piece[header..]);
        length += piece.len() - header;
    }
    if v4 {
        whole[16..18].copy_from_slice(&((length + 20) as u16).to_be_bytes());
        whole[20..22].fill(0);
        whole[24..26].fill(0);
        let sum = Sum::default().bytes(&whole[14..34]).finish();
        whole[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        whole[18..20].copy_from_slice(&(length as u16).to_be_bytes());
        whole[20] = pieces[0][54];
    }
    whole
}

fn lab(method: ForwardMethod, v6: bool, workers: u8) -> Lab {
    let mut lab = Lab::with_method(method, Scheduler::RoundRobin, &[1, 1]);
    if v6 {
        for n in 0..2 {
            let address = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n + 1);
            let mut backend = lab.backend(u32::from(n));
            backend.address = address.into();
            backend.outer_source = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xfe).into();
            if method == ForwardMethod::Tunnel {
                backend.mtu = 1460;
            }
        }
    }
    lab.snapshot.ownership = Ownership {
        reta: 128,
        workers,
        compute: workers > 1,
    };
    lab
}

fn cluster(lab: &Lab) -> Cluster {
    let mut cluster = Cluster::new(usize::from(lab.snapshot.ownership.workers), 1000);
    cluster.shards = cluster
        .shards
        .into_iter()
        .map(|shard| {
            let ownership = lab.snapshot.ownership;
            shard.with_local_ports(2, 4, ownership).expect("memory")
        })
        .collect();
    cluster
}

fn datagram(v6: bool, port: u16) -> Vec<u8> {
    let payload: Vec<u8> = (0..3000u32).map(|n| (n * 7) as u8).collect();
    match v6 {
        false => udp4(&format!("10.9.9.9:{port}"), VIP).dont_fragment(false),
        true => udp6(&format!("[2001:db8::9]:{port}"), VIP6),
    }
    .payload(&payload)
    .frame()
}

const METHODS: [ForwardMethod; 4] = [
    ForwardMethod::Nat,
    ForwardMethod::FullNat,
    ForwardMethod::Tunnel,
    ForwardMethod::DirectRouting,
];

/// The packet inside a tunnel, with an Ethernet header in front; others as they are.
fn unwrapped(method: ForwardMethod, v6: bool, frame: Vec<u8>) -> Vec<u8> {
    if method != ForwardMethod::Tunnel {
        return frame;
    }
    let header = if v6 { 40 } else { 20 };
    [&frame[..ETHERNET], &frame[ETHERNET + header..]].concat()
}

/// In every order, family and method, and wherever the fragments come in: all leave, to one
/// backend, and make up a datagram whose checksum is right.
#[test]
fn all_fragments_follow_the_first_in_every_order() {
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for (method, v6) in METHODS.into_iter().flat_map(|m| [(m, false), (m, true)]) {
        for workers in [1, 4] {
            let lab = lab(method, v6, workers);
            let mut cluster = cluster(&lab);
            for (n, order) in orders.iter().cycle().take(48).enumerate() {
                let pieces = cut(&datagram(v6, 3000 + n as u16), n as u32, &[1400, 1000]);
                cluster.released.clear();
                let mut out: Vec<Outcome> = Vec::new();
                for (k, &piece) in order.iter().enumerate() {
                    let at = (n + k) % usize::from(workers);
                    out.push(cluster.feed(&lab.snapshot, at, &pieces[piece]));
                }
                out.retain(|o| !matches!(o.verdict, Verdict::Hold(_)));
                out.append(&mut cluster.released);
                assert_eq!(out.len(), 3);
                assert!(out.iter().all(|o| o.worker == out[0].worker));
                let frames = out
                    .into_iter()
                    .map(|o| unwrapped(method, v6, o.transmitted()))
                    .collect();
                let whole = join(frames);
                let to = [0, 1]
                    .map(backend_mac)
                    .iter()
                    .position(|mac| whole[..6] == *mac);
                assert!(workers > 1 || to == Some(n % 2), "by turns");
                assert!(checksums_are_right(&whole), "{method:?} {v6}");
            }
            assert_eq!(cluster.total(|c| c.new_connections.get()), 48);
            let sent = cluster.total(|c| c.backends.iter().map(|b| b.in_packets.get()).sum());
            assert_eq!(sent, 48 * 3, "{method:?}");
            assert_eq!(cluster.total(|c| c.held.get()), 0);
        }
    }
}

/// A backend's fragmented answers find the client too.
#[test]
fn fragmented_replies_are_translated() {
    for (method, v6) in [
        (ForwardMethod::Nat, false),
        (ForwardMethod::Nat, true),
        (ForwardMethod::FullNat, false),
        (ForwardMethod::FullNat, true),
    ] {
        let lab = lab(method, v6, 4);
        let mut cluster = cluster(&lab);
        let request = match v6 {
            false => udp4("10.9.9.9:4000", VIP).frame(),
            true => udp6("[2001:db8::9]:4000", VIP6).frame(),
        };
        let there = cluster.feed(&lab.snapshot, 3, &request).transmitted();
        let (from, to) = match parse(&there, false) {
            Parsed::V4(p) => (
                format!("{}:8080", p.key.destination),
                format!("{}:{}", p.key.source, p.key.source_port),
            ),
            Parsed::V6(p) => (
                format!("[{}]:8080", p.key.destination),
                format!("[{}]:{}", p.key.source, p.key.source_port),
            ),
            other => panic!("{other:?}"),
        };
        let reply = match v6 {
            false => udp4(&from, &to).dont_fragment(false),
            true => udp6(&from, &to),
        };
        let pieces = cut(&reply.payload(&[7; 2000]).frame(), 9, &[1000]);
        let held = cluster.feed(&lab.snapshot, 0, &pieces[1]);
        assert!(matches!(held.verdict, Verdict::Hold(_)));
        let first = cluster.feed(&lab.snapshot, 1, &pieces[0]).transmitted();
        let last = cluster.released.pop().expect("released").transmitted();
        let whole = join(vec![last, first]);
        assert!(checksums_are_right(&whole));
        let ends = match parse(&whole, false) {
            Parsed::V4(p) => (p.key.source_port, p.key.destination_port),
            Parsed::V6(p) => (p.key.source_port, p.key.destination_port),
            other => panic!("{other:?}"),
        };
        assert_eq!(ends, (80, 4000));
        let out = cluster.total(|c| c.backends.iter().map(|b| b.out_packets.get()).sum());
        assert_eq!(out, 2);
    }
}

#[test]
fn a_fragment_without_its_first_waits_for_a_time_and_is_dropped() {
    let lab = lab(ForwardMethod::DirectRouting, false, 1);
    let mut cluster = cluster(&lab);
    let pieces = cut(&datagram(false, 3000), 5, &[1400]);
    let out = cluster.feed(&lab.snapshot, 0, &pieces[1]);
    assert!(matches!(out.verdict, Verdict::Hold(_)));
    assert_eq!(cluster.counters(0).held.get(), 1);
    cluster.now = Now::from_nanos(cluster.now.nanos + PATIENCE);
    cluster.release(&lab.snapshot);
    assert!(cluster.released.is_empty(), "not yet");
    cluster.now = Now::from_nanos(cluster.now.nanos + 1);
    cluster.release(&lab.snapshot);
    let dropped = Verdict::Drop(DropReason::Fragment);
    assert_eq!(cluster.released.pop().map(|o| o.verdict), Some(dropped));
    assert_eq!(cluster.counters(0).held.get(), 0);
    // The datagram is remembered as long as fragments come, and no longer.
    cluster.feed(&lab.snapshot, 0, &pieces[0]).transmitted();
    cluster.feed(&lab.snapshot, 0, &pieces[1]).transmitted();
    cluster.now = Now::from_nanos(cluster.now.nanos + MEMORY + 1);
    let out = cluster.feed(&lab.snapshot, 0, &pieces[1]);
    assert!(matches!(out.verdict, Verdict::Hold(_)));
}

#[test]
fn more_early_fragments_than_there_is_room_for_displace_the_oldest() {
    let lab = lab(ForwardMethod::DirectRouting, false, 1);
    let mut cluster = cluster(&lab);
    let early = |n: u32| cut(&datagram(false, 3000), n, &[1400]).remove(1);
    for n in 0..WAITING as u32 + 10 {
        let out = cluster.feed(&lab.snapshot, 0, &early(n));
        assert!(matches!(out.verdict, Verdict::Hold(_)));
    }
    assert_eq!(cluster.released.len(), 10);
    assert_eq!(cluster.counters(0).held.get(), WAITING as u64);
    assert_eq!(cluster.released[3].frame, early(3));
    // Those that still wait go on with their first.
    cluster.released.clear();
    let first = cut(&datagram(false, 3000), 100, &[1400]).remove(0);
    cluster.feed(&lab.snapshot, 0, &first).transmitted();
    assert_eq!(
        cluster.released.pop().map(|o| o.verdict),
        Some(Verdict::Transmit(0))
    );
}

#[test]
fn what_hides_or_overwrites_the_header_is_dropped() {
    let lab = lab(ForwardMethod::DirectRouting, false, 1);
    let mut cluster = cluster(&lab);
    let syn = tcp4("10.9.9.9:1", VIP).flags(tcp::SYN).payload(&[1; 64]);
    let tiny = cut(&syn.clone().dont_fragment(false).frame(), 1, &[16, 8]);
    let verdict = |c: &mut Cluster, f: &[u8]| c.feed(&lab.snapshot, 0, f).verdict;
    let malformed = Verdict::Drop(DropReason::MalformedL4);
    assert_eq!(verdict(&mut cluster, &tiny[0]), malformed, "no flags");
    assert_eq!(verdict(&mut cluster, &tiny[1]), malformed, "the flags");
    // Beyond the largest datagram.
    let mut beyond = cut(&datagram(false, 1), 2, &[1400]).remove(1);
    beyond[20..22].copy_from_slice(&0x1fffu16.to_be_bytes());
    beyond[24..26].fill(0);
    let sum = Sum::default().bytes(&beyond[14..34]).finish();
    beyond[24..26].copy_from_slice(&sum.to_be_bytes());
    let malformed = Verdict::Drop(DropReason::MalformedIp);
    assert_eq!(verdict(&mut cluster, &beyond), malformed);
    // Not balanced: for the kernel, at once.
    let mut ping = cut(&datagram(false, 1), 3, &[1400]).remove(1);
    ping[23] = protocol::ICMP;
    ping[24..26].fill(0);
    let sum = Sum::default().bytes(&ping[14..34]).finish();
    ping[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(verdict(&mut cluster, &ping), Verdict::Pass(Pass::Local));
    let ssh = udp4("10.9.9.9:1", "192.0.2.2:22")
        .dont_fragment(false)
        .payload(&[1; 64]);
    for piece in cut(&ssh.frame(), 4, &[32]) {
        assert_eq!(verdict(&mut cluster, &piece), Verdict::Pass(Pass::Local));
    }
    assert_eq!(cluster.counters(0).new_connections.get(), 0);
}

/// An IPv6 packet whose only fragment is whole (RFC 6946) leaves nothing behind.
#[test]
fn an_only_fragment_is_a_packet() {
    let lab = lab(ForwardMethod::DirectRouting, true, 1);
    let mut cluster = cluster(&lab);
    let atomic = cut(
        &udp6("[2001:db8::9]:1", VIP6).payload(&[1; 40]).frame(),
        7,
        &[],
    );
    cluster.feed(&lab.snapshot, 0, &atomic[0]).transmitted();
    let later = cut(
        &udp6("[2001:db8::9]:1", VIP6).payload(&[1; 40]).frame(),
        7,
        &[16],
    );
    let out = cluster.feed(&lab.snapshot, 0, &later[1]);
    assert!(matches!(out.verdict, Verdict::Hold(_)));
}

#[test]
fn pseudo_headers_of_the_helpers_agree() {
    // `join` is what the tests above rest on.
    let frame = datagram(false, 77);
    let pieces = cut(&frame, 1, &[800, 800]);
    let l4 = &frame[34..];
    let (a, b) = (Ipv4Addr::new(10, 9, 9, 9), Ipv4Addr::new(192, 0, 2, 80));
    assert_eq!(pseudo_header(a, b, 17, l4.len()).bytes(l4).fold(), 0xffff);
    assert_eq!(join(pieces)[34..], frame[34..]);
}

proptest! {
    /// Whatever fragments come in whatever order, with overlaps, repeats, other ids and pauses:
    /// every one is sent, passed, dropped or held, and in the end nothing is held.
    #[test]
    fn nothing_leaks(steps in prop::collection::vec(
        (0..6u32, 0..4usize, any::<u8>(), 0..3u64, any::<bool>()), 1..200))
    {
        let lab = lab(ForwardMethod::FullNat, false, 4);
        let mut cluster = cluster(&lab);
        let (mut held, count) = (0, steps.len());
        let mut ended = 0;
        for (id, piece, size, pause, other) in steps {
            cluster.now = Now::from_nanos(cluster.now.nanos + pause * PATIENCE / 2);
            let frame = datagram(false, if other { 80 } else { 3000 + id as u16 });
            let sizes = [usize::from(size % 64) * 8 + 8, 800, 800];
            let pieces = cut(&frame, id, &sizes);
            let out = cluster.feed(&lab.snapshot, usize::from(size) % 4, &pieces[piece % pieces.len()]);
            match out.verdict {
                Verdict::Hold(_) => held += 1,
                Verdict::HandOff(_) => prop_assert!(false, "on its way for ever"),
                _ => ended += 1,
            }
        }
        cluster.now = Now::from_nanos(cluster.now.nanos + 2 * PATIENCE);
        cluster.release(&lab.snapshot);
        prop_assert_eq!(cluster.released.len(), held);
        prop_assert_eq!(ended + held, count);
        prop_assert_eq!(cluster.total(|c| c.held.get()), 0);
        prop_assert!(cluster.shards.iter().all(|s| s.fragments.is_idle()));
    }
}
