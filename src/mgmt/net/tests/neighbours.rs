//! The life of a neighbour entry.

use super::super::testing::*;
use super::super::*;
use smoltcp::wire::NdiscNeighborFlags as Flags;

const PEER: &str = "192.0.2.9";

fn world() -> World {
    World::new(vec![port(0, &["192.0.2.2/24", "2001:db8::2/64"])])
}

fn resolved(world: &mut World) {
    world.want(&[PEER]);
    world.after(0);
    world.receive(0, &arp_reply(9, PEER, 0, "192.0.2.2"));
    assert_eq!(world.mac_of(PEER), Some(host(9)));
    world.out = Output::default();
}

/// Lets time pass with a peer that answers every question for its address.
fn live(world: &mut World, seconds: u64) -> usize {
    let mut questions = 0;
    for _ in 0..seconds * 10 {
        world.after(100);
        for (_, frame) in world.frames() {
            if frame[12..14] == [0x08, 0x06] && frame[21] == 1 && frame[38..42] == [192, 0, 2, 9] {
                questions += 1;
                world.receive(0, &arp_reply(9, PEER, 0, "192.0.2.2"));
            }
        }
    }
    questions
}

#[test]
fn a_wanted_neighbour_is_asked_for_by_broadcast_byte_for_byte() {
    let mut world = world();
    world.want(&[PEER, "2001:db8::9"]);
    world.after(0);
    #[rustfmt::skip]
    let arp = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff,  2, 0, 0, 0, 0, 0,  0x08, 0x06,
        0, 1,  8, 0,  6,  4,  0, 1,
        2, 0, 0, 0, 0, 0,  192, 0, 2, 2,
        0, 0, 0, 0, 0, 0,  192, 0, 2, 9,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    #[rustfmt::skip]
    let ndp = [
        0x33, 0x33, 0xff, 0, 0, 9,  2, 0, 0, 0, 0, 0,  0x86, 0xdd,
        0x60, 0, 0, 0,  0, 32,  58,  255,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02,
        0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 9,
        135, 0,  0x1c, 0x19,  0, 0, 0, 0,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x09,
        1, 1,  2, 0, 0, 0, 0, 0,
    ];
    let mut frames = world.frames();
    frames.sort_by_key(|f| f.1.len());
    assert_eq!(frames, [(0, arp.to_vec()), (0, ndp.to_vec())]);
}

#[test]
fn three_questions_then_silence_is_reported_and_asking_goes_on_more_slowly() {
    let mut world = world();
    world.want(&[PEER]);
    world.after(2999);
    assert_eq!((world.frames().len(), world.events().len()), (3, 0));
    world.after(2);
    let silent = NetEvent::NeighbourSilent {
        ip: ip(PEER),
        port: 0,
    };
    assert_eq!(world.events(), [silent]);
    world.after(60_000);
    let slow = world.frames().len();
    assert!((3..=12).contains(&slow), "{slow} questions in a minute");
    assert_eq!(world.events(), [], "it is reported once");
    world.receive(0, &arp_reply(9, PEER, 0, "192.0.2.2"));
    let (ip, mac) = (ip(PEER), host(9));
    let resolved = NetEvent::NeighbourResolved { ip, port: 0, mac };
    assert_eq!(world.events(), [resolved]);
}

#[test]
fn a_wanted_neighbour_that_answers_stays_usable_for_ever() {
    let mut world = world();
    resolved(&mut world);
    let questions = live(&mut world, 600);
    assert_eq!(world.events(), []);
    assert_eq!(world.mac_of(PEER), Some(host(9)));
    // Every 15 to 45 s.
    assert!((10..=45).contains(&questions), "{questions} in ten minutes");
}

#[test]
fn the_old_mac_stays_in_use_until_every_probe_went_unanswered() {
    let mut world = world();
    resolved(&mut world);
    world.jump(46);
    let probe = world.frames();
    assert_eq!(probe.len(), 1);
    assert_eq!(probe[0].1[..6], host(9).0, "by unicast first");
    world.after(4999);
    assert_eq!(world.mac_of(PEER), Some(host(9)));
    let last = world.frames().pop().unwrap();
    assert_eq!(last.1[..6], [0xff; 6], "then by broadcast");
    // The last question is answered: nothing happened at all.
    world.receive(0, &arp_reply(9, PEER, 0, "192.0.2.2"));
    world.after(2000);
    assert_eq!(
        (world.events(), world.mac_of(PEER)),
        (vec![], Some(host(9)))
    );
    // None is answered: it is lost once, and asked for on.
    world.jump(46);
    world.after(7000);
    let lost = NetEvent::NeighbourLost {
        ip: ip(PEER),
        port: 0,
    };
    assert_eq!((world.events(), world.mac_of(PEER)), (vec![lost], None));
    world.frames();
    world.after(20_000);
    assert!(!world.frames().is_empty());
}

#[test]
fn a_neighbour_that_answers_with_another_mac_is_followed() {
    let mut world = world();
    resolved(&mut world);
    world.jump(46);
    world.after(3500);
    world.receive(0, &arp_reply(8, PEER, 0, "192.0.2.2"));
    let changed = |old, new| NetEvent::NeighbourChanged {
        ip: ip(PEER),
        port: 0,
        old: host(old),
        new: host(new),
    };
    assert_eq!(world.events(), [changed(9, 8)]);
    // Gratuitous ARP moves it too, but not within a second of the last change.
    world.receive(0, &arp_request(7, PEER, PEER));
    assert_eq!(world.events(), []);
    world.after(1000);
    world.frames();
    world.receive(0, &arp_request(7, PEER, PEER));
    assert_eq!(world.events(), [changed(8, 7)]);
    world.after(0);
    let probe = world.frames();
    assert_eq!(probe[0].1[..6], host(7).0, "a claim is verified at once");
}

#[test]
fn advertisements_follow_rfc_4861() {
    const PEER6: &str = "2001:db8::9";
    let mut world = world();
    world.want(&[PEER6]);
    world.after(0);
    let us = "2001:db8::2";
    world.receive(0, &advertisement(9, PEER6, us, Flags::SOLICITED));
    assert_eq!(world.mac_of(PEER6), Some(host(9)));
    world.after(2000);
    world.frames();
    // Without the override flag another MAC only casts doubt.
    world.receive(0, &advertisement(8, PEER6, us, Flags::SOLICITED));
    assert_eq!(world.mac_of(PEER6), Some(host(9)));
    world.after(0);
    let probe = world.frames();
    assert_eq!(probe.len(), 1);
    assert_eq!(probe[0].1[..6], host(9).0);
    world.receive(
        0,
        &advertisement(8, PEER6, us, Flags::SOLICITED | Flags::OVERRIDE),
    );
    assert_eq!(world.mac_of(PEER6), Some(host(8)));
    // Solicited to a group is a contradiction.
    world.after(2000);
    let bad = advertisement(7, PEER6, "ff02::1", Flags::SOLICITED | Flags::OVERRIDE);
    world.receive(0, &bad);
    assert_eq!(world.mac_of(PEER6), Some(host(8)));
    world.receive(0, &advertisement(7, PEER6, "ff02::1", Flags::OVERRIDE));
    assert_eq!(world.mac_of(PEER6), Some(host(7)));
}

#[test]
fn packets_wait_for_the_answer_the_oldest_giving_way() {
    let mut world = world();
    let packet = |n: u8| [&[0xee; 12][..], &[0x08, 0x00, n]].concat();
    for n in 0..5 {
        assert_eq!(world.resolve(PEER, Some(packet(n))), None);
    }
    assert_eq!(world.frames().len(), 1, "one question for all of them");
    assert_eq!(world.net.counters().held_dropped, 2);
    world.receive(0, &arp_reply(9, PEER, 0, "192.0.2.2"));
    let sent = world.frames();
    let addressed = |n: u8| [&host(9).0[..], &our_mac(0).0, &[0x08, 0x00, n]].concat();
    assert_eq!(sent, [2, 3, 4].map(|n| (0, addressed(n))));
    assert_eq!(world.resolve(PEER, Some(packet(9))), Some((0, host(9))));
    assert_eq!(world.frames(), [(0, addressed(9))]);
}

#[test]
fn packets_for_a_silent_neighbour_are_counted_and_the_next_ones_dropped_at_once() {
    let mut world = world();
    world.resolve(PEER, Some(vec![0; 60]));
    world.after(3500);
    assert_eq!(world.frames().len(), 3);
    assert_eq!(world.net.counters().held_dropped, 1);
    world.resolve(PEER, Some(vec![0; 60]));
    assert_eq!(
        (world.frames().len(), world.net.counters().held_dropped),
        (0, 2)
    );
    assert_eq!(world.events(), [], "nobody wanted it kept");
    world.after(4000);
    world.resolve(PEER, Some(vec![0; 60]));
    assert_eq!(world.frames().len(), 1, "forgotten, so asked again");
    world.resolve("203.0.113.1", Some(vec![0; 60]));
    assert_eq!(world.net.counters().held_dropped, 3, "no route");
}

#[test]
fn held_packets_are_bounded_in_all() {
    let mut world = world();
    for n in 0..400_u32 {
        let dst = format!("192.0.2.{}", 10 + n % 200);
        for _ in 0..2 {
            world.resolve(&dst, Some(vec![0; 60]));
        }
    }
    assert_eq!(world.net.counters().held_dropped, 800 - 512);
    world.after(10_000);
    assert_eq!(world.net.counters().held_dropped, 800);
}

#[test]
fn a_client_that_asks_for_us_is_known_and_probed_before_it_is_forgotten() {
    let mut world = world();
    world.receive(0, &arp_request(9, PEER, "192.0.2.2"));
    assert_eq!(world.mac_of(PEER), Some(host(9)));
    world.frames();
    assert!(live(&mut world, 600) >= 4);
    assert_eq!(world.mac_of(PEER), Some(host(9)));
    world.after(200_000);
    assert_eq!(world.mac_of(PEER), None);
    assert!(matches!(
        world.events()[..],
        [.., NetEvent::NeighbourLost { .. }]
    ));
    assert_eq!(world.net.table_len(), 0);
}

#[test]
fn strangers_are_not_learned() {
    let mut world = world();
    world.receive(0, &arp_request(9, PEER, "192.0.2.10"));
    world.receive(0, &arp_reply(9, PEER, 0, "192.0.2.2"));
    world.receive(0, &arp_request(9, "198.51.100.1", "192.0.2.2"));
    assert_eq!(world.net.neighbours().count(), 0);
}

#[test]
fn static_neighbours_are_never_asked_for_and_never_change() {
    let mut config = port(0, &["192.0.2.2/24"]);
    config.neighbours = vec![(ip(PEER), host(9))];
    let mut world = World::new(vec![config.clone()]);
    world.want(&[PEER]);
    world.after(100_000);
    world.receive(0, &arp_reply(8, PEER, 0, "192.0.2.2"));
    world.receive(0, &arp_request(8, PEER, PEER));
    assert_eq!(world.mac_of(PEER), Some(host(9)));
    assert_eq!((world.frames(), world.events()), (vec![], vec![]));
    config.neighbours.clear();
    world.net.set_ports(vec![config], world.now, &mut world.out);
    assert_eq!(world.mac_of(PEER), None);
    world.after(0);
    assert_eq!(world.frames().len(), 1, "still wanted, so asked for now");
}

#[test]
fn gateways_are_always_wanted_and_backends_are_reached_through_them() {
    let mut config = port(0, &["192.0.2.2/24"]);
    config.gateways = vec![ip("192.0.2.1")];
    let mut world = World::raw(vec![config]);
    world.net.poll(world.now, &mut world.out);
    world.want(&["198.51.100.1", "198.51.100.2"]);
    world.receive(0, &arp_reply(1, "192.0.2.1", 0, "192.0.2.2"));
    assert_eq!(world.net.counters().solicitations, 1);
    assert_eq!(world.resolve("198.51.100.1", None), Some((0, host(1))));
    assert_eq!(
        world.net.next_hop(ip("198.51.100.2")),
        Some((0, ip("192.0.2.1")))
    );
    world.want(&[]);
    world.jump(46);
    assert!(world.net.counters().solicitations >= 2);
}

#[test]
fn after_link_up_what_was_reachable_is_probed() {
    let mut world = world();
    resolved(&mut world);
    world.net.link_up(0, world.now, &mut world.out);
    world.after(0);
    let probes = world.frames();
    assert!(probes.iter().any(|f| f.1[..6] == host(9).0));
    assert_eq!(world.mac_of(PEER), Some(host(9)));
}

#[test]
fn questions_are_rate_limited_and_none_is_lost() {
    let mut world = World::new(vec![port(0, &["10.0.0.1/8"])]);
    let all: Vec<String> = (0..4000)
        .map(|n| format!("10.1.{}.{}", n >> 8, n & 255))
        .collect();
    let refs: Vec<&str> = all.iter().map(String::as_str).collect();
    world.want(&refs);
    world.after(0);
    assert!(world.frames().len() <= 256);
    world.after(1000);
    let second = world.frames().len();
    assert!((900..=1010).contains(&second), "{second}");
    world.after(4000);
    let mut asked: Vec<Vec<u8>> = world
        .frames()
        .iter()
        .map(|f| f.1[38..42].to_vec())
        .collect();
    asked.sort();
    asked.dedup();
    assert!(asked.len() >= 2900, "{}", asked.len());
    world.after(60_000);
    assert_eq!(world.events().len(), 4000, "each is reported silent");
}

#[test]
fn the_table_is_bounded_and_gives_up_the_oldest_that_is_not_wanted() {
    let mut world = World::new(vec![port(0, &["10.0.0.1/8"])]);
    let address = |n: u32| format!("10.1.{}.{}", n >> 8, n & 255);
    world.want(&[&address(0)]);
    world.after(0);
    world.receive(0, &arp_reply(9, &address(0), 0, "10.0.0.1"));
    for n in 1..9000 {
        world.receive(0, &arp_request(9, &address(n), "10.0.0.1"));
    }
    assert_eq!(world.net.table_len(), 8192);
    assert!(world.mac_of(&address(0)).is_some(), "wanted");
    assert_eq!(world.mac_of(&address(1)), None);
    assert!(world.mac_of(&address(8999)).is_some());
}

#[test]
fn a_clock_that_jumps_a_day_makes_no_burst_of_questions() {
    let mut world = world();
    resolved(&mut world);
    world.jump(86_400);
    assert_eq!(world.frames().len(), 1);
    assert_eq!(world.mac_of(PEER), Some(host(9)));
    // An earlier `now` than the last (another thread's reading) changes nothing either.
    let back = world.now - std::time::Duration::from_secs(3600);
    world.net.poll(back, &mut world.out);
    let reply = arp_reply(9, PEER, 0, "192.0.2.2");
    world.net.receive(0, &reply, back, &mut world.out);
    assert_eq!((world.frames(), world.events()), (vec![], vec![]));
}
