use super::*;
use crate::lb::fixture::{tcp4, tcp6, udp4};
use crate::lb::parse::parse;
use proptest::prelude::*;

/// The Toeplitz hash as Microsoft's RSS documents define it, bit by bit.
fn reference(key: &[u8], input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    let mut hash = 0;
    for at in (0..input.len() * 8).filter(|&at| bit(input, at) == 1) {
        let window = (at..at + 32).fold(0u32, |w, i| w << 1 | u32::from(bit(key, i)));
        hash ^= window;
    }
    hash
}

fn our_key() -> Vec<u8> {
    PATTERN.to_be_bytes().repeat(20)
}

fn input<A: Address>(key: &FlowKey<A>) -> Vec<u8> {
    let octets = |a: A| match a.into() {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let mut bytes = octets(key.source);
    bytes.extend(octets(key.destination));
    bytes.extend(key.source_port.to_be_bytes());
    bytes.extend(key.destination_port.to_be_bytes());
    bytes
}

fn key4(source: &str, destination: &str) -> FlowKey<Ipv4Addr> {
    match parse(&tcp4(source, destination).frame(), false) {
        Parsed::V4(packet) => packet.key,
        other => panic!("{other:?}"),
    }
}

fn key6(source: &str, destination: &str) -> FlowKey<Ipv6Addr> {
    match parse(&tcp6(source, destination).frame(), false) {
        Parsed::V6(packet) => packet.key,
        other => panic!("{other:?}"),
    }
}

/// The values of Microsoft's "Verifying the RSS Hash Calculation", which vouch for the reference.
#[test]
fn the_reference_gives_the_published_values() {
    let key: Vec<u8> = [
        0x6d5a56da255b0ec2u64,
        0x4167253d43a38fb0,
        0xd0ca2bcbae7b30b4,
        0x77cb2da38030f20c,
        0x6a42b73bbeac01fa,
    ]
    .iter()
    .flat_map(|word| word.to_be_bytes())
    .collect();
    let v4 = [
        ("66.9.149.187:2794", "161.142.100.80:1766", 0x51cc_c178u32),
        ("199.92.111.2:14230", "65.69.140.83:4739", 0xc626_b0ea),
        ("24.19.198.95:12898", "12.22.207.184:38024", 0x5c2b_394a),
        ("38.27.205.30:48228", "209.142.163.6:2217", 0xafc7_327f),
        ("153.39.163.191:44251", "202.188.127.2:1303", 0x10e8_28a2),
    ];
    for (source, destination, want) in v4 {
        let hash = reference(&key, &input(&key4(source, destination)));
        assert_eq!(hash, want, "{source}");
    }
    let v6 = key6("[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766");
    assert_eq!(reference(&key, &input(&v6)), 0x4020_7d3d);
}

proptest! {
    #[test]
    fn one_word_is_enough_under_a_repeating_key(
        source: u128, destination: u128, source_port: u16, destination_port: u16,
        reta in prop::sample::select(vec![1u16, 2, 16, 64, 128, 512, 2048]), workers in 1u8..,
    ) {
        let ownership = Ownership { reta, workers, compute: true };
        let nic = |hash: u32| (hash % u32::from(reta) % u32::from(workers)) as u8;
        let v6 = FlowKey {
            source: Ipv6Addr::from_bits(source),
            destination: Ipv6Addr::from_bits(destination),
            source_port, destination_port, protocol: 6,
        };
        let v4 = FlowKey {
            source: Ipv4Addr::from_bits(source as u32),
            destination: Ipv4Addr::from_bits(destination as u32),
            source_port, destination_port, protocol: 17,
        };
        prop_assert_eq!(ownership.one_way(&v6), nic(reference(&our_key(), &input(&v6))));
        prop_assert_eq!(ownership.one_way(&v4), nic(reference(&our_key(), &input(&v4))));
        prop_assert_eq!(ownership.one_way(&v4), ownership.one_way(&v4.reversed()));
        let deal = ownership.deal();
        for side in [Side::OneWay, Side::TwoWay, Side::Reply, Side::LocalReply(0)] {
            prop_assert_eq!(deal.owner(side, &v6), deal.worker(side.hash(&v6)));
            prop_assert_eq!(deal.owner(side, &v4), deal.worker(side.hash(&v4)));
        }
        // A NIC told to hash one end alone hashes that end's fields in a row, or all with the
        // others zero, at whichever position.
        let mut end = v4.source.octets().to_vec();
        end.extend(source_port.to_be_bytes());
        let mut zeroed = vec![0; 4];
        zeroed.extend(v4.source.octets());
        zeroed.extend([0, 0]);
        zeroed.extend(source_port.to_be_bytes());
        let want = ownership.two_way(v4.source, source_port);
        prop_assert_eq!(want, nic(reference(&our_key(), &end)));
        prop_assert_eq!(want, nic(reference(&our_key(), &zeroed)));
        prop_assert!(want < workers);
    }
}

fn ownership(workers: u8) -> Ownership {
    Ownership {
        reta: 128,
        workers,
        compute: true,
    }
}

#[test]
fn flows_of_one_client_spread_evenly() {
    for workers in [2, 3, 4, 7] {
        let mut owned = vec![0u32; usize::from(workers)];
        for port in 1024..=u16::MAX {
            let client = Ipv4Addr::new(10, 0, 0, 1);
            owned[usize::from(ownership(workers).two_way(client, port))] += 1;
        }
        let fair = 64512 / u32::from(workers);
        // A table of 128 entries cannot be dealt evenly to 3 or 7.
        assert!(
            owned.iter().all(|&n| n.abs_diff(fair) < fair / 12),
            "{owned:?}"
        );
    }
}

#[test]
fn fragments_spread_and_depend_on_every_field() {
    let seed = Seed([11, 0x9e37_79b9_7f4a_7c15, 0x8cb9_2ba7_2f3d_8dd7]);
    let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 80));
    let mut kept = [0u32; 4];
    for id in 0..4096 {
        kept[usize::from(ownership(4).fragments(&seed, a, b, id, 17))] += 1;
    }
    assert!(kept.iter().all(|&n| (900..1150).contains(&n)), "{kept:?}");
    let of = |id| ownership(64).fragments(&seed, a, b, id, 17);
    assert!((1..64).any(|n| of(n << 16) != of(0)));
    assert!((1..64).any(|n| of(n) != of(0)));
}

fn sides() -> Sides {
    let host = |text: &str| Prefix::new(text.parse().expect("address"), 32);
    let local: IpAddr = "198.51.100.1".parse().expect("address");
    Sides::new(
        [
            (host("192.0.2.80"), false),
            (host("192.0.2.81"), true),
            (host("192.0.2.81"), false),
            (Prefix::new(local, 24), false),
        ],
        [(5, local)],
        ["10.0.1.1".parse().expect("address")],
    )
}

#[test]
fn an_address_with_any_two_way_service_is_two_way() {
    let side = |source: &str, destination: &str| {
        let parse = |text: &str| text.parse::<Ipv4Addr>().expect("address");
        sides().side(parse(source), parse(destination))
    };
    assert_eq!(side("10.9.9.9", "192.0.2.80"), Side::OneWay);
    assert_eq!(side("10.9.9.9", "192.0.2.81"), Side::TwoWay);
    assert_eq!(side("10.0.1.1", "10.9.9.9"), Side::Reply);
    assert_eq!(side("10.0.1.1", "198.51.100.1"), Side::LocalReply(5));
    assert_eq!(side("10.0.1.1", "198.51.100.7"), Side::Reply);
    assert_eq!(side("10.9.9.9", "198.51.100.7"), Side::OneWay);
}

#[test]
fn both_directions_of_a_flow_have_one_owner() {
    let (sides, ownership) = (sides(), ownership(4));
    for port in 1024..1200 {
        let client = format!("10.9.9.9:{port}");
        let request = key4(&client, "192.0.2.81:80");
        let reply = key4("10.0.1.1:8080", &client);
        assert_eq!(
            sides.owner(ownership, &request),
            sides.owner(ownership, &reply)
        );
    }
}

/// An ICMPv4 error from a router at 10.0.0.254 to `to`, quoting the start of `frame`'s packet.
pub(in crate::lb) fn error(to: Ipv4Addr, frame: &[u8]) -> Vec<u8> {
    let mut error = udp4("10.0.0.254:1", &format!("{to}:1"))
        .payload(&frame[14..14 + 28])
        .frame();
    error[14 + 9] = protocol::ICMP;
    error[24..26].fill(0);
    let checksum = crate::lb::checksum::Sum::default().bytes(&error[14..34]);
    error[24..26].copy_from_slice(&checksum.finish().to_be_bytes());
    error[14 + 20] = 3;
    error
}

#[test]
fn an_icmp_error_belongs_to_the_owner_of_the_flow_it_quotes() {
    let (sides, ownership) = (sides(), ownership(4));
    let mut owners = std::collections::HashSet::new();
    for port in 1024..1100 {
        let client = format!("10.9.9.9:{port}");
        let ip = Ipv4Addr::new(10, 9, 9, 9);
        let vip: Ipv4Addr = "192.0.2.81".parse().expect("address");
        let one_way = key4(&client, "192.0.2.80:80");
        let two_way = key4(&client, "192.0.2.81:80");
        let cases = [
            // Direct routing: a router behind us quotes the client's packet.
            (one_way, error(ip, &tcp4(&client, "192.0.2.80:80").frame())),
            // NAT: one behind us quotes what we sent to the backend, one before us our reply.
            (two_way, error(ip, &tcp4(&client, "10.0.1.1:8080").frame())),
            (two_way, error(vip, &tcp4("192.0.2.81:80", &client).frame())),
        ];
        for (flow, frame) in cases {
            let found = sides.owner_of_error(ownership, &parse(&frame, true), &frame);
            assert_eq!(found, Some(sides.owner(ownership, &flow)), "{client}");
            owners.extend(found);
        }
    }
    assert_eq!(owners.len(), 4);
    // Not an error, and cut short.
    let mut ping = error(
        Ipv4Addr::new(192, 0, 2, 80),
        &tcp4("1.1.1.1:1", "2.2.2.2:2").frame(),
    );
    ping[34] = 8;
    assert_eq!(
        sides.owner_of_error(ownership, &parse(&ping, true), &ping),
        None
    );
}

proptest! {
    #[test]
    fn no_quotation_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), v4: bool) {
        let parsed = if v4 {
            Parsed::IcmpV4 { l3: 0, l4: 0, length: 120 }
        } else {
            Parsed::IcmpV6 { l3: 0, l4: 0, length: 120 }
        };
        let mut bytes = bytes;
        bytes.insert(0, if v4 { 3 } else { 1 });
        let mut padded = vec![0; 121];
        padded[..bytes.len()].copy_from_slice(&bytes);
        if bytes.len() > 8 {
            padded[8] = if v4 { 0x45 } else { 0x60 };
        }
        let owner = sides().owner_of_error(ownership(4), &parsed, &padded);
        prop_assert!(owner.is_none_or(|owner| owner < 4));
    }
}

mod between_workers {
    use super::*;
    use crate::lb::cluster::Cluster;
    use crate::lb::fixture::{Lab, VIP, VIP6};
    use crate::lb::frame::{Frame, MemoryFrame, Note};
    use crate::lb::parse::tcp;
    use crate::lb::snapshot::{ForwardMethod, Scheduler};
    use crate::lb::{Arrival, Pass, Verdict};

    fn lab(method: ForwardMethod) -> Lab {
        let mut lab = Lab::with_method(method, Scheduler::RoundRobin, &[1, 1]);
        lab.snapshot.ownership = ownership(4);
        lab
    }

    /// Every packet of 200 flows comes in at another worker; each flow stays whole at one.
    #[test]
    fn flows_stay_whole_wherever_their_packets_come_in() {
        for method in [ForwardMethod::Nat, ForwardMethod::DirectRouting] {
            let (lab, mut cluster) = (lab(method), Cluster::new(4, 1000));
            let mut at = 0;
            for port in 2000..2200 {
                let client = format!("10.9.9.9:{port}");
                let mut owners = std::collections::HashSet::new();
                for flags in [tcp::SYN, tcp::ACK, tcp::ACK] {
                    at = (at + 1) % 4;
                    let frame = tcp4(&client, VIP).flags(flags).frame();
                    let out = cluster.feed(&lab.snapshot, at, &frame);
                    owners.insert(out.worker);
                    let there = out.transmitted();
                    if method != ForwardMethod::Nat {
                        continue;
                    }
                    let Parsed::V4(packet) = parse(&there, false) else {
                        panic!("not IPv4")
                    };
                    let end = format!("{}:8080", packet.key.destination);
                    let reply = tcp4(&end, &client).flags(tcp::SYN | tcp::ACK).frame();
                    let out = cluster.feed(&lab.snapshot, at, &reply);
                    owners.insert(out.worker);
                    let back = key4(VIP, &client);
                    assert!(
                        matches!(parse(&out.transmitted(), false), Parsed::V4(p) if p.key == back)
                    );
                }
                assert_eq!(owners.len(), 1, "{client}");
            }
            assert_eq!(cluster.total(|c| c.new_connections.get()), 200);
            assert!(cluster.shards.iter().all(|s| s.tables.v4.len() > 25));
        }
    }

    #[test]
    fn a_packet_is_handed_on_unchanged_and_once() {
        let (lab, mut cluster) = (lab(ForwardMethod::DirectRouting), Cluster::new(4, 1000));
        for bytes in [
            tcp4("10.9.9.9:77", VIP).flags(tcp::SYN).frame(),
            tcp6("[2001:db8::9]:77", VIP6).flags(tcp::SYN).frame(),
        ] {
            let mut handed = 0;
            for worker in 0..4 {
                let mut frame = MemoryFrame::new(&bytes);
                let verdict = cluster.step(&lab.snapshot, worker, Arrival::Port(0), &mut frame);
                if let Verdict::HandOff(owner) = verdict {
                    handed += 1;
                    assert_ne!(usize::from(owner), worker);
                    assert_eq!(frame.bytes(), bytes);
                }
                let mut frame = MemoryFrame::new(&bytes);
                let verdict = cluster.step(&lab.snapshot, worker, Arrival::HandOff, &mut frame);
                assert_eq!(verdict, Verdict::Transmit(0));
            }
            assert_eq!(handed, 3);
        }
    }

    /// What is found out about a plain packet goes with it, and the owner comes to the same by itself where
    /// it works with another snapshot.
    #[test]
    fn a_plain_packet_takes_along_what_was_found_out_about_it() {
        for method in [ForwardMethod::DirectRouting, ForwardMethod::Nat] {
            let (mut lab, mut cluster) = (lab(method), Cluster::new(4, 1000));
            let client = "10.9.9.9:77";
            let syn = tcp4(client, VIP).flags(tcp::SYN).frame();
            let owner = cluster.feed(&lab.snapshot, 0, &syn).worker;
            let plain = tcp4(client, VIP).flags(tcp::ACK);
            let odd = plain.clone().vlan(7);
            for (packet, is_told) in [(plain, true), (odd, false)] {
                for worker in (0..4).filter(|&worker| worker != owner) {
                    for generation in [0, 1] {
                        let mut frame = MemoryFrame::new(&packet.frame());
                        let there = Arrival::Port(0);
                        let verdict = cluster.step(&lab.snapshot, worker, there, &mut frame);
                        assert_eq!(verdict, Verdict::HandOff(owner as u8));
                        assert_eq!(matches!(frame.note(), Note::Sight { .. }), is_told);
                        assert!(is_told || frame.note() == Note::NONE);
                        lab.snapshot.generation = generation;
                        let here = Arrival::HandOff;
                        let verdict = cluster.step(&lab.snapshot, owner, here, &mut frame);
                        assert_eq!(verdict, Verdict::Transmit(0));
                        lab.snapshot.generation = 0;
                    }
                }
            }
            assert_eq!(cluster.total(|c| c.new_connections.get()), 1);
        }
    }

    #[test]
    fn where_rss_is_trusted_only_icmp_errors_are_handed_over() {
        let mut lab = lab(ForwardMethod::Nat);
        lab.snapshot.ownership.compute = false;
        let mut cluster = Cluster::new(4, 1000);
        let client = "10.9.9.9:77";
        let syn = tcp4(client, VIP).flags(tcp::SYN).frame();
        let quoting = error(
            VIP.parse::<std::net::SocketAddrV4>()
                .map(|a| *a.ip())
                .expect("address"),
            &tcp4(VIP, client).frame(),
        );
        let mut owners = Vec::new();
        for worker in 0..4 {
            let out = cluster.feed(&lab.snapshot, worker, &syn);
            assert_eq!((out.worker, out.verdict), (worker, Verdict::Transmit(0)));
            owners.push(cluster.feed(&lab.snapshot, worker, &quoting).worker);
        }
        let owner = ownership(4).two_way(Ipv4Addr::new(10, 9, 9, 9), 77);
        assert_eq!(owners, [usize::from(owner); 4]);
        let arp = [&syn[..12], &[0x08, 0x06], &[0; 28]].concat();
        let out = cluster.feed(&lab.snapshot, 1, &arp);
        assert_eq!((out.worker, out.verdict), (1, Verdict::Pass(Pass::Local)));
    }
}
