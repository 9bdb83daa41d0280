//! No input makes it panic, and nothing malformed or forged is answered or believed.

use super::super::testing::*;
use super::super::*;
use proptest::prelude::*;
use smoltcp::wire::Ipv4Packet;

fn world() -> World {
    let mut world = World::new(vec![port(0, &["192.0.2.2/24", "2001:db8::2/64"])]);
    world.want(&["192.0.2.9", "2001:db8::9"]);
    world.after(0);
    world.out = Output::default();
    world
}

fn valid() -> Vec<Vec<u8>> {
    let flags = smoltcp::wire::NdiscNeighborFlags::SOLICITED;
    let request = arp_request(9, "192.0.2.9", "192.0.2.2");
    vec![
        tagged(&tagged(&request, 3), 4),
        request,
        arp_reply(9, "192.0.2.9", 0, "192.0.2.2"),
        solicitation(9, "2001:db8::9", "2001:db8::2", true, 255),
        advertisement(9, "2001:db8::9", "2001:db8::2", flags),
        ping_v4(9, "192.0.2.9", "192.0.2.2", b"abcdefgh"),
        ping_v6(9, "2001:db8::9", "2001:db8::2", b"abcdefgh"),
    ]
}

/// Nothing came of it: no answer, no event, no neighbour.
fn assert_ignored(frame: &[u8], why: &str) {
    let mut world = world();
    world.receive(0, frame);
    assert_eq!(world.frames(), [], "{why}");
    assert_eq!(world.events(), [], "{why}");
    assert_eq!(world.net.counters().malformed, 1, "{why}");
}

#[test]
fn every_truncation_is_ignored() {
    for frame in valid() {
        let ethernet = frame.len().min(14);
        for len in 0..frame.len() {
            let mut world = world();
            world.receive(0, &frame[..len]);
            // Padding may go; it is the only part that may.
            let padding = frame.len() == 60 || frame.len() == 68;
            if !padding || len < ethernet + 28 {
                assert_eq!(world.frames(), [], "{len} of {}", frame.len());
                assert_eq!(
                    world.net.neighbours().count(),
                    0,
                    "{len} of {}",
                    frame.len()
                );
            }
        }
    }
}

#[test]
fn bad_checksums_are_ignored() {
    for frame in valid().split_off(3) {
        let mut bad = frame;
        let last = bad.len().min(14 + 20 + 8 + 8) - 1;
        bad[last] ^= 1;
        assert_ignored(&bad, "payload against checksum");
    }
    let mut bad = ping_v4(9, "192.0.2.9", "192.0.2.2", b"");
    bad[22] ^= 1;
    assert_ignored(&bad, "IPv4 header against its checksum");
}

#[test]
fn ndp_from_beyond_a_router_is_ignored() {
    let frame = solicitation(9, "2001:db8::9", "2001:db8::2", true, 254);
    assert_ignored(&frame, "hop limit 254");
}

#[test]
fn impossible_sources_are_ignored() {
    for src in [
        "255.255.255.255",
        "224.0.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "192.0.2.2",
    ] {
        let ping = ping_v4(9, src, "192.0.2.2", b"smurf");
        assert_ignored(&ping, src);
    }
    for sender in ["255.255.255.255", "224.0.0.1", "127.0.0.1"] {
        assert_ignored(&arp_request(9, sender, "192.0.2.2"), sender);
    }
    for src in ["ff02::1", "::", "2001:db8::2"] {
        assert_ignored(&ping_v6(9, src, "2001:db8::2", b"smurf"), src);
    }
    let mut group = arp_request(9, "192.0.2.9", "192.0.2.2");
    group[22] |= 1;
    assert_ignored(&group, "a group's MAC as the sender's");
    let mut group = ping_v4(9, "192.0.2.9", "192.0.2.2", b"");
    group[6] |= 1;
    assert_ignored(&group, "a frame from a group's MAC");
    let mut broadcast = ping_v4(9, "192.0.2.9", "192.0.2.2", b"");
    broadcast[..6].copy_from_slice(&[0xff; 6]);
    assert_ignored(&broadcast, "ping by link-layer broadcast");
}

#[test]
fn fragments_and_pings_longer_than_the_mtu_are_not_answered() {
    let mut fragment = ping_v4(9, "192.0.2.9", "192.0.2.2", b"12345678");
    let mut ip = Ipv4Packet::new_unchecked(&mut fragment[14..]);
    ip.set_more_frags(true);
    ip.fill_checksum();
    let mut world = world();
    world.receive(0, &fragment);
    assert_eq!(world.frames(), []);
    assert_ignored(
        &ping_v4(9, "192.0.2.9", "192.0.2.2", &[0; 1473]),
        "1501 bytes",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut world = world();
        world.receive(0, &bytes);
        prop_assert_eq!(world.net.neighbours().count(), 0);
    }

    /// Random bytes behind a header that gets them past the first checks.
    #[test]
    fn random_payloads_never_panic(
        kind in 0..3_usize,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let ethertype = [[0x08, 0x06], [0x08, 0x00], [0x86, 0xdd]][kind];
        let frame = [&our_mac(0).0[..], &host(9).0, &ethertype, &payload].concat();
        let mut world = world();
        world.receive(0, &frame);
        world.after(10_000);
    }

    #[test]
    fn mutated_frames_never_panic(
        which in 0..7_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        extra in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut frame = valid().swap_remove(which);
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        let mut world = world();
        world.receive(0, &frame);
        frame.extend(&extra);
        world.receive(0, &frame);
        world.receive(0, &frame[..cut.index(frame.len())]);
        world.after(100);
        for (_, frame) in world.frames() {
            prop_assert!(frame.len() >= 60);
        }
    }

    /// NDP options of any kind and length, with a checksum that is right.
    #[test]
    fn random_ndp_options_never_panic(
        advert in any::<bool>(),
        options in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let flags = smoltcp::wire::NdiscNeighborFlags::SOLICITED;
        let mut frame = if advert {
            advertisement(9, "2001:db8::9", "2001:db8::2", flags)
        } else {
            solicitation(9, "2001:db8::9", "2001:db8::2", true, 255)
        };
        frame.truncate(14 + 40 + 24);
        frame.extend(&options);
        let mut ip = smoltcp::wire::Ipv6Packet::new_unchecked(&mut frame[14..]);
        ip.set_payload_len((24 + options.len()) as u16);
        let (src, dst) = (ip.src_addr(), ip.dst_addr());
        smoltcp::wire::Icmpv6Packet::new_unchecked(ip.payload_mut()).fill_checksum(&src, &dst);
        let mut world = world();
        world.receive(0, &frame);
    }
}
