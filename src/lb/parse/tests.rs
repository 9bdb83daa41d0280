//! What a frame is taken for, whole and cut short.

use super::*;
use crate::lb::fixture::{tcp4, tcp6, udp4, udp6};
use proptest::prelude::*;

#[test]
fn a_plain_udp_packet() {
    let frame = udp4("10.0.0.1:1000", "10.0.0.2:53")
        .payload(b"hello")
        .frame();
    let Parsed::V4(packet) = parse(&frame, false) else {
        panic!("not IPv4")
    };
    assert_eq!(packet.key.source_port, 1000);
    assert_eq!(packet.key.destination, Ipv4Addr::new(10, 0, 0, 2));
    assert_eq!((packet.l3, packet.l4, packet.length), (14, 34, 33));
}

#[test]
fn a_wrong_header_checksum_is_bad_unless_the_nic_vouches() {
    let mut frame = udp4("10.0.0.1:1000", "10.0.0.2:53").frame();
    frame[24] ^= 1;
    assert_eq!(parse(&frame, false), Parsed::Bad(DropReason::BadIpChecksum));
    assert!(matches!(parse(&frame, true), Parsed::V4(_)));
}

#[test]
fn extension_headers_are_walked_and_bounded() {
    let frame = udp6("[2001:db8::1]:1000", "[2001:db8::2]:53");
    let one = frame.clone().extension(60, &[0; 6]).frame();
    assert!(matches!(parse(&one, false), Parsed::V6(p) if p.l4 == 62 && p.key.protocol == 17));
    let mut many = frame;
    for _ in 0..=MAX_EXTENSIONS {
        many = many.extension(60, &[0; 8]);
    }
    assert_eq!(
        parse(&many.frame(), false),
        Parsed::Bad(DropReason::MalformedIp)
    );
}

#[test]
fn a_vlan_tag_moves_everything_by_four() {
    let frame = udp4("10.0.0.1:1000", "10.0.0.2:53").vlan(7).frame();
    assert!(matches!(parse(&frame, false), Parsed::V4(p) if p.l3 == 18 && p.l4 == 38));
}

proptest! {
    /// What the short way finds, the long way finds too.
    #[test]
    fn plain_packets_are_what_parse_says(
        v6: bool,
        tcp: bool,
        payload in prop::collection::vec(any::<u8>(), 0..24),
        damage in prop::option::of((0usize..80, any::<u8>())),
        cut in prop::option::of(0usize..80),
        verified: bool,
    ) {
        let mut frame = match (v6, tcp) {
            (false, false) => udp4("10.0.0.1:1000", "10.0.0.2:53").payload(&payload).frame(),
            (false, true) => tcp4("10.0.0.1:1000", "10.0.0.2:53").payload(&payload).frame(),
            (true, false) => udp6("[2001:db8::1]:1000", "[2001:db8::2]:53").payload(&payload).frame(),
            (true, true) => tcp6("[2001:db8::1]:1000", "[2001:db8::2]:53").payload(&payload).frame(),
        };
        if let Some((at, bits)) = damage && at < frame.len() {
            frame[at] ^= bits;
        }
        let undamaged = damage.is_none_or(|(_, bits)| bits == 0);
        let whole = undamaged && cut.is_none_or(|length| length >= frame.len());
        if let Some(length) = cut {
            frame.truncate(length);
        }
        let parsed = parse(&frame, verified);
        // Whoever sees that one is as long as its frame does not ask whether it fits.
        if let Some(packet) = Packet::claimed_v4(&frame, verified)
            && ETHERNET + usize::from(packet.length) == frame.len()
        {
            prop_assert_eq!(parsed, Parsed::V4(packet));
        }
        if let Some(packet) = Packet::claimed_v6(&frame)
            && ETHERNET + usize::from(packet.length) == frame.len()
        {
            prop_assert_eq!(parsed, Parsed::V6(packet));
        }
        match (Packet::find_plain_v4(&frame, verified), Packet::find_plain_v6(&frame)) {
            (Some(packet), None) => prop_assert_eq!(parsed, Parsed::V4(packet)),
            (None, Some(packet)) => prop_assert_eq!(parsed, Parsed::V6(packet)),
            (None, None) => prop_assert!(!whole, "a plain packet was not seen as one"),
            both => prop_assert!(false, "{both:?}"),
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), v6: bool, tagged: bool) {
        let mut bytes = bytes;
        let ethertype = if v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        if bytes.len() > 24 {
            let l3 = if tagged { bytes[12..14].copy_from_slice(&[0x81, 0]); 18 } else { 14 };
            bytes[l3 - 2..l3].copy_from_slice(&ethertype);
            bytes[l3] = if v6 { 0x60 } else { 0x45 };
        }
        if let Parsed::V4(packet) = parse(&bytes, true) {
            prop_assert!(usize::from(packet.l3) + usize::from(packet.length) <= bytes.len());
            prop_assert!(usize::from(packet.l4) + 8 <= bytes.len());
        }
    }
}
