//! The small values: what is printed reads back, and nothing else is taken.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::mgmt::config::values::{digits, parse_interface, parse_name, parse_unicast};

#[test]
fn times_need_a_number_and_a_unit() {
    assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(parse_time("15m"), Ok(Duration::from_secs(900)));
    assert_eq!(parse_time("2d"), Ok(Duration::from_secs(172_800)));
    for bad in [
        "",
        "5",
        "s",
        "-1s",
        "+1s",
        "1.5s",
        "1 s",
        "1w",
        "99999999999999999999s",
        "999999999999999999d",
        "１s",
    ] {
        assert_eq!(parse_time(bad), Err(ValueError::Time), "{bad}");
    }
    assert_eq!(format_time(Duration::from_secs(90)), "90s");
    assert_eq!(format_time(Duration::ZERO), "0ms");
}

#[test]
fn core_lists_keep_their_order() {
    assert_eq!(parse_cores("4,1-3"), Ok(vec![4, 1, 2, 3]));
    assert_eq!(parse_cores("0,0,1"), Ok(vec![0, 0, 1]), "workers may share");
    assert_eq!(format_cores(&[4, 1, 2, 3, 7]), "4,1-3,7");
    assert_eq!(format_cores(&[0, 0, 1]), "0,0-1");
    for bad in ["", ",", "1,", "a", "1-", "-1", "2-1", "70000", "1024"] {
        assert_eq!(parse_cores(bad), Err(ValueError::Cores), "{bad}");
    }
}

#[test]
fn prefixes_know_what_they_contain() {
    let prefix: Prefix = "10.1.2.3/8".parse().unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(prefix.contains(ip("10.255.0.1")) && !prefix.contains(ip("11.0.0.1")));
    assert!(!prefix.contains(ip("::a00:1")));
    assert_eq!(prefix.network().to_string(), "10.0.0.0/8");
    let all: Prefix = "0.0.0.0/0".parse().unwrap();
    assert!(all.contains(ip("255.255.255.255")) && all.network() == all);
    let all: Prefix = "::/0".parse().unwrap();
    assert!(all.contains(ip("ffff::")));
    for bad in [
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/+8",
        "::/129",
        "/8",
        "10.0.0.0",
    ] {
        assert_eq!(bad.parse::<Prefix>(), Err(ValueError::Prefix), "{bad}");
    }
}

#[test]
fn names_and_addresses_are_bounded() {
    assert!(parse_name(&"n".repeat(63)).is_ok() && parse_name(&"n".repeat(64)).is_err());
    assert!(parse_name("a b").is_err() && parse_name("a\"").is_err());
    assert!(parse_interface("eth0.5").is_ok() && parse_interface("..").is_err());
    for bad in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
    ] {
        assert_eq!(parse_unicast(bad), Err(ValueError::NotUnicast), "{bad}");
    }
    assert_eq!(digits::<u16>("+5"), None);
}

#[test]
fn listens_are_read_as_they_are_printed() {
    for good in [
        "tcp:192.0.2.80:80",
        "udp:[2001:db8::80]:53",
        "tcp:192.0.2.80:*",
        "tcp:192.0.2.80:80-90",
        "tcp:198.51.100.0/24:80",
        "tcp:[2001:db8::/64]:*",
        "udp:0.0.0.0/0:53",
    ] {
        assert_eq!(good.parse::<Listen>().unwrap().to_string(), good);
    }
    for bad in [
        "",
        "tcp",
        "tcp:",
        "tcp:192.0.2.80",
        "tcp:2001:db8::80:80",
        "tcp:[::80:80",
        "tcp:192.0.2.80/33:80",
    ] {
        assert!(bad.parse::<Listen>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn printed_values_read_back(millis in 0u64..u64::MAX / 2, kib in 0u64..1 << 40, mac: [u8; 6], v6: u128, length in 0u8..=128) {
        let time = Duration::from_millis(millis);
        prop_assert_eq!(parse_time(&format_time(time)), Ok(time));
        prop_assert_eq!(parse_size(&format_size(kib << 10)), Ok(kib << 10));
        let mac = Mac([mac[0] & !1 | 2, mac[1], mac[2], mac[3], mac[4], mac[5]]);
        prop_assert_eq!(mac.to_string().parse(), Ok(mac));
        let prefix = Prefix { address: IpAddr::V6(v6.into()), length };
        prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC{0,24}") {
        let _ = (parse_time(&text), parse_size(&text), parse_cores(&text));
        let _ = (text.parse::<Prefix>(), text.parse::<Mac>(), text.parse::<Listen>());
        prop_assert!(parse(&text).is_err());
    }
}
