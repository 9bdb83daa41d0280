//! ARP, NDP and ping: what is answered, byte for byte, and what is not.

use super::super::testing::*;
use super::super::*;
use smoltcp::wire::{EthernetFrame, Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet};

fn world() -> World {
    let mut world = World::new(vec![port(0, &["192.0.2.2/24", "2001:db8::2/64"])]);
    let vips = vec![vip("192.0.2.80/32"), vip("2001:db8::80/128")];
    world.net.set_vips(vips, world.now);
    world.after(10_000);
    world.out = Output::default();
    world
}

#[test]
fn an_arp_reply_byte_for_byte() {
    let mut world = world();
    let request = arp_request(9, "192.0.2.9", "192.0.2.80");
    assert_eq!(world.receive(0, &request), Fate::Consumed);
    #[rustfmt::skip]
    let expected = [
        0x52, 0x54, 0, 0, 0, 9,  2, 0, 0, 0, 0, 0,  0x08, 0x06,
        0, 1,  8, 0,  6,  4,  0, 2,
        2, 0, 0, 0, 0, 0,        192, 0, 2, 80,
        0x52, 0x54, 0, 0, 0, 9,  192, 0, 2, 9,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(world.frames(), [(0, expected.to_vec())]);
    assert_eq!(world.net.counters().arp_replies, 1);
}

#[test]
fn an_advertisement_byte_for_byte() {
    let mut world = world();
    let question = solicitation(9, "2001:db8::9", "2001:db8::80", true, 255);
    assert_eq!(world.receive(0, &question), Fate::Consumed);
    #[rustfmt::skip]
    let expected = [
        0x52, 0x54, 0, 0, 0, 9,  2, 0, 0, 0, 0, 0,  0x86, 0xdd,
        0x60, 0, 0, 0,  0, 32,  58,  255,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x09,
        136, 0,  0x89, 0x6f,  0x60, 0, 0, 0,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80,
        2, 1,  2, 0, 0, 0, 0, 0,
    ];
    assert_eq!(world.frames(), [(0, expected.to_vec())]);
    assert_eq!(world.net.counters().neighbour_adverts, 1);
}

#[test]
fn a_probe_for_our_address_is_answered_to_all() {
    let mut world = world();
    // RFC 5227: the asker has no address yet.
    world.receive(0, &arp_request(9, "0.0.0.0", "192.0.2.80"));
    assert_eq!(world.frames().len(), 1);
    // RFC 4862 5.4: neither has this one, so only all nodes can hear the answer.
    world.receive(0, &solicitation(9, "::", "2001:db8::80", false, 255));
    let frames = world.frames();
    let [(0, answer)] = &frames[..] else {
        panic!("{frames:?}")
    };
    assert_eq!(answer[..6], [0x33, 0x33, 0, 0, 0, 1]);
    let ip = Ipv6Packet::new_checked(&answer[14..]).unwrap();
    assert_eq!(ip.dst_addr().to_string(), "ff02::1");
    let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
    assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
    assert_eq!(
        icmp.neighbor_flags().bits(),
        0x20,
        "not solicited, override"
    );
    assert_eq!(world.events(), [], "neither taught us a neighbour");
    // A probe that names a MAC breaks RFC 4861 7.1.1.
    world.receive(0, &solicitation(9, "::", "2001:db8::80", true, 255));
    assert_eq!(world.frames(), []);
}

#[test]
fn ping_is_answered_from_the_address_asked() {
    let mut world = world();
    let data: Vec<u8> = (0..1472_u32).map(|n| n as u8).collect();
    for len in [0, 1, 56, 1472] {
        let ping = ping_v4(9, "198.51.100.7", "192.0.2.80", &data[..len]);
        assert_eq!(world.receive(0, &ping), Fate::Consumed);
        let frames = world.frames();
        let [(0, answer)] = &frames[..] else {
            panic!("{frames:?}")
        };
        assert_eq!(
            EthernetFrame::new_checked(&answer[..]).unwrap().dst_addr(),
            host(9)
        );
        let ip = Ipv4Packet::new_checked(&answer[14..]).unwrap();
        assert_eq!(ip.src_addr().to_string(), "192.0.2.80");
        assert_eq!(ip.dst_addr().to_string(), "198.51.100.7");
        assert_eq!((ip.hop_limit(), ip.verify_checksum()), (64, true));
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!(
            (
                icmp.msg_type().into(),
                icmp.echo_ident(),
                icmp.echo_seq_no()
            ),
            (0_u8, 0x1234, 7)
        );
        assert_eq!(icmp.data(), &data[..len]);
    }
}

#[test]
fn ping_over_ipv6_too() {
    let mut world = world();
    for dst in ["2001:db8::80", "2001:db8::2", "fe80::ff:fe00:0"] {
        let ping = ping_v6(9, "2001:db8:f::7", dst, b"hello");
        assert_eq!(world.receive(0, &ping), Fate::Consumed);
        let frames = world.frames();
        let [(0, answer)] = &frames[..] else {
            panic!("{frames:?}")
        };
        let ip = Ipv6Packet::new_checked(&answer[14..]).unwrap();
        assert_eq!(
            (ip.src_addr().to_string(), ip.hop_limit()),
            (dst.to_string(), 64)
        );
        let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
        assert_eq!(
            (icmp.msg_type().into(), icmp.payload()),
            (129_u8, &b"hello"[..])
        );
    }
}

#[test]
fn a_ping_in_fragments_is_answered_in_fragments() {
    let data: Vec<u8> = (0..4000_u32).map(|n| (n * 7 + n / 256) as u8).collect();
    let v4 = ping_pieces_v4(9, "198.51.100.7", "192.0.2.80", &data, 1500);
    let v6 = ping_pieces_v6(9, "2001:db8:f::7", "2001:db8::80", &data, 1500);
    for (pieces, ethernet_and_ip, count) in [(v4, 34, 3), (v6, 62, 4)] {
        let mut world = world();
        let [rest @ .., last] = &pieces[..] else {
            panic!("no pieces")
        };
        for piece in rest.iter().rev() {
            assert_eq!(world.receive(0, piece), Fate::Consumed);
            assert_eq!(world.frames(), [], "before all have come");
        }
        assert_eq!(world.receive(0, last), Fate::Consumed);
        let frames = world.frames();
        assert_eq!(frames.len(), count);
        let mut message = Vec::new();
        for (n, (port, frame)) in frames.iter().enumerate() {
            assert!(*port == 0 && frame.len() <= 14 + 1500, "{}", frame.len());
            let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            // Offset and flags: in units of eight behind three bits, or before them.
            let (offset, more) = match ethernet_and_ip {
                34 => (
                    usize::from(word(20) & 0x1fff) * 8,
                    word(20) & 0xe000 == 0x2000,
                ),
                _ => (usize::from(word(56) & 0xfff8), word(56) & 7 == 1),
            };
            assert_eq!((offset, more), (message.len(), n + 1 < count));
            if ethernet_and_ip == 34 {
                let ip = Ipv4Packet::new_checked(&frame[14..]).unwrap();
                assert!(ip.verify_checksum() && ip.ident() == 1);
            } else {
                assert_eq!(frame[54..56], [58, 0]);
                assert_eq!(frame[58..62], [0, 0, 0, 1]);
            }
            message.extend_from_slice(&frame[ethernet_and_ip..]);
        }
        let is_right = match ethernet_and_ip {
            34 => Icmpv4Packet::new_checked(&message[..])
                .unwrap()
                .verify_checksum(),
            _ => {
                let (us, them) = (
                    "2001:db8::80".parse().unwrap(),
                    "2001:db8:f::7".parse().unwrap(),
                );
                let icmp = Icmpv6Packet::new_checked(&message[..]).unwrap();
                icmp.verify_checksum(&us, &them)
            }
        };
        assert!(is_right, "the message's checksum");
        assert!(message[8..] == data);
        assert_eq!(world.net.counters().echo_replies, 1);
    }
}

/// Nothing is kept of what would have no answer.
#[test]
fn fragments_of_no_ping_to_us_are_left_to_linux() {
    let mut world = world();
    for piece in ping_pieces_v4(9, "192.0.2.9", "192.0.2.10", &[0; 4000], 1500) {
        assert_eq!(world.receive(0, &piece), Fate::Shared);
    }
    for piece in ping_pieces_v6(9, "ff02::1", "2001:db8::80", &[0; 4000], 1500) {
        assert_eq!(world.receive(0, &piece), Fate::Shared);
    }
    let counters = world.net.counters();
    assert_eq!((counters.not_for_us, counters.malformed), (3, 4));
    assert_eq!(world.frames(), []);
}

#[test]
fn ip_options_in_a_ping_are_tolerated() {
    let mut world = world();
    let mut ping = ping_v4(9, "192.0.2.9", "192.0.2.80", b"options");
    ping.splice(34..34, [7, 7, 4, 0, 0, 0, 0, 0]);
    let mut ip = Ipv4Packet::new_unchecked(&mut ping[14..]);
    ip.set_header_len(28);
    ip.set_total_len(28 + 8 + 7);
    ip.fill_checksum();
    assert_eq!(world.receive(0, &ping), Fate::Consumed);
    let answer = &world.frames()[0].1;
    let ip = Ipv4Packet::new_checked(&answer[14..]).unwrap();
    assert_eq!((ip.header_len(), ip.total_len()), (20, 20 + 8 + 7));
    assert_eq!(&answer[42..49], b"options");
}

#[test]
fn the_vlan_tag_comes_back_and_teaches_nothing() {
    let mut world = world();
    let request = arp_request(9, "192.0.2.9", "192.0.2.80");
    world.receive(0, &tagged(&request, 100));
    let answer = &world.frames()[0].1;
    assert_eq!(answer[12..18], [0x81, 0, 0, 100, 0x08, 0x06]);
    assert_eq!(answer.len(), 64);
    assert_eq!(world.mac_of("192.0.2.9"), None);
    // Another VLAN may use our address by right.
    let claim = arp_request(9, "192.0.2.80", "192.0.2.80");
    world.receive(0, &tagged(&claim, 100));
    assert_eq!(world.events(), []);
    // VLAN 0 is only a priority.
    world.receive(0, &tagged(&request, 0));
    assert_eq!(world.mac_of("192.0.2.9"), Some(host(9)));
}

#[test]
fn what_is_not_ours_is_left_to_others() {
    let mut world = world();
    let others = [
        arp_request(9, "192.0.2.9", "192.0.2.10"),
        solicitation(9, "2001:db8::9", "2001:db8::10", true, 255),
        ping_v4(9, "192.0.2.9", "192.0.2.10", b""),
        ping_v6(9, "2001:db8::9", "2001:db8::10", b""),
        tagged(&[0; 60], 5),
    ];
    for frame in others {
        assert_eq!(world.receive(0, &frame), Fate::Shared);
        assert_eq!(world.frames(), []);
    }
    let ours = arp_request(9, "192.0.2.9", "192.0.2.80");
    assert_eq!(world.receive(7, &ours), Fate::Shared, "no such port");
    let mut elsewhere = ping_v4(9, "192.0.2.9", "192.0.2.80", b"");
    elsewhere[5] = 0x77;
    world.receive(0, &elsewhere);
    assert_eq!(world.frames(), [], "another host's MAC");
    assert_eq!(world.mac_of("192.0.2.9"), None);
}

#[test]
fn a_port_that_linux_shares_leaves_its_own_addresses_to_linux() {
    let mut shared = port(0, &["192.0.2.2/24"]);
    shared.kernel_interface = true;
    let mut world = World::new(vec![shared]);
    world.net.set_vips(vec![vip("192.0.2.80/32")], world.now);
    let own = arp_request(9, "192.0.2.9", "192.0.2.2");
    assert_eq!(world.receive(0, &own), Fate::Shared);
    assert_eq!(world.frames(), []);
    let vip = arp_request(9, "192.0.2.9", "192.0.2.80");
    assert_eq!(world.receive(0, &vip), Fate::Consumed);
    assert_eq!(world.frames().len(), 1);
    let reply = arp_reply(9, "192.0.2.9", 0, "192.0.2.2");
    assert_eq!(world.receive(0, &reply), Fate::Shared, "replies go to both");
}

#[test]
fn pings_and_questions_are_answered_up_to_a_limit() {
    let mut world = world();
    let ping = ping_v4(9, "192.0.2.9", "192.0.2.80", b"");
    for _ in 0..ECHOES_BURST + 50 {
        assert_eq!(world.receive(0, &ping), Fate::Consumed);
    }
    assert_eq!(world.frames().len(), ECHOES_BURST as usize);
    let request = arp_request(9, "192.0.2.9", "192.0.2.80");
    for _ in 0..ANSWERS_BURST + 50 {
        world.receive(0, &request);
    }
    assert_eq!(world.frames().len(), ANSWERS_BURST as usize);
    assert_eq!(world.net.counters().rate_limited, 100);
    world.jump(1);
    world.receive(0, &ping);
    assert_eq!(world.frames().len(), 1);
}
