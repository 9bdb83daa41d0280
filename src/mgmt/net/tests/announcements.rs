//! What is announced, when, and what happens when another host uses our address.

use super::super::testing::*;
use super::super::*;
use std::time::Duration;

fn lan() -> Vec<PortConfig> {
    vec![port(0, &["192.0.2.2/24"])]
}

#[test]
fn at_start_three_times_a_second_apart_in_both_forms() {
    let mut world = World::raw(lan());
    let start = world.now;
    let mut rounds = Vec::new();
    loop {
        let due = world.net.poll(world.now, &mut world.out);
        let frames = world.frames();
        if !frames.is_empty() {
            rounds.push((world.now - start, frames));
        }
        let Some(due) = due else { break };
        world.now = due;
    }
    let times: Vec<u128> = rounds.iter().map(|r| r.0.as_millis()).collect();
    assert_eq!(times, [0, 1000, 2000]);
    #[rustfmt::skip]
    let form = |operation: u8, target: [u8; 6]| [
        &[0xff; 6][..], &[2, 0, 0, 0, 0, 0], &[0x08, 0x06],
        &[0, 1, 8, 0, 6, 4, 0, operation],
        &[2, 0, 0, 0, 0, 0], &[192, 0, 2, 2],
        &target, &[192, 0, 2, 2],
        &[0; 18],
    ].concat();
    let both = [(0, form(1, [0; 6])), (0, form(2, [2, 0, 0, 0, 0, 0]))];
    for (_, frames) in &rounds {
        assert_eq!(frames[..], both);
    }
}

#[test]
fn an_unsolicited_advertisement_byte_for_byte() {
    let mut world = World::new(vec![port(0, &["2001:db8::2/64"])]);
    world.net.set_vips(vec![vip("2001:db8::80/128")], world.now);
    world.after(0);
    #[rustfmt::skip]
    let expected = [
        0x33, 0x33, 0, 0, 0, 1,  2, 0, 0, 0, 0, 0,  0x86, 0xdd,
        0x60, 0, 0, 0,  0, 32,  58,  255,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80,
        0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01,
        136, 0,  0xf8, 0x2d,  0x20, 0, 0, 0,
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80,
        2, 1,  2, 0, 0, 0, 0, 0,
    ];
    assert_eq!(world.frames(), [(0, expected.to_vec())]);
}

#[test]
fn only_new_addresses_are_announced_after_a_change_and_all_on_request() {
    let mut world = World::new(lan());
    let now = world.now;
    world.net.set_vips(vec![vip("192.0.2.80/32")], now);
    world.after(5000);
    assert_eq!(world.frames().len(), 3 * 2);
    let both = vec![vip("192.0.2.80/32"), vip("192.0.2.81/32")];
    world.net.set_vips(both, world.now);
    world.after(5000);
    assert_eq!(world.frames().len(), 3 * 2);
    world.net.announce(world.now);
    world.after(500);
    world.net.announce(world.now);
    world.after(5000);
    let sent = world.frames().len();
    assert_eq!(sent, 3 * 2 + 3 * 3 * 2, "the second call starts over");
    world.net.link_up(0, world.now, &mut world.out);
    world.after(5000);
    assert_eq!(world.frames().len(), 3 * 3 * 2);
}

#[test]
fn all_again_after_each_interval() {
    let mut world = World::new(lan());
    let start = world.now;
    world.net.announce_every(Duration::from_secs(60), start);
    let mut at = Vec::new();
    while let Some(due) = world.net.poll(world.now, &mut world.out) {
        for _ in world.frames() {
            at.push((world.now - start).as_secs());
        }
        if due - start > Duration::from_secs(180) {
            break;
        }
        world.now = due;
    }
    assert_eq!(at, [60, 60, 120, 120, 180, 180], "once each, in both forms");
}

#[test]
fn a_repetition_leaves_rounds_under_way_alone() {
    let mut world = World::new(lan());
    world.net.announce_every(Duration::from_secs(60), world.now);
    world.after(59_000);
    world.net.announce(world.now);
    world.after(10_000);
    assert_eq!(
        world.frames().len(),
        3 * 2,
        "the repetition at 60 s was spared"
    );
}

#[test]
fn ten_thousand_vips_are_paced() {
    let mut world = World::new(lan());
    let vips = (0..10_000_u32).map(|n| vip(&format!("10.0.{}.{}/32", n >> 8, n & 255)));
    world.net.set_vips(vips.collect(), world.now);
    let mut worst = 0;
    for _ in 0..100 {
        world.after(100);
        worst = worst.max(world.frames().len());
    }
    // 5,000 addresses a second, two frames each, and the burst.
    assert!(worst <= (500 + 101) * 2, "{worst} frames in 100 ms");
    assert_eq!(world.net.counters().announcements, 2 * 3 + 3 * 2 * 10_000);
}

#[test]
fn an_address_taken_away_is_not_announced_any_more() {
    let mut world = World::new(lan());
    world.net.set_vips(vec![vip("192.0.2.80/32")], world.now);
    world.after(0);
    assert_eq!(world.frames().len(), 2);
    world.net.set_vips(Vec::new(), world.now);
    world.after(5000);
    assert_eq!(world.frames(), []);
}

#[test]
fn a_conflict_is_reported_and_defended_once_in_ten_seconds() {
    let mut world = World::new(lan());
    let claim = arp_request(9, "192.0.2.2", "192.0.2.50");
    for _ in 0..20 {
        world.receive(0, &claim);
        world.after(100);
    }
    let (ip, mac) = (ip("192.0.2.2"), host(9));
    let conflict = NetEvent::AddressConflict { ip, mac, port: 0 };
    assert_eq!(world.events(), std::slice::from_ref(&conflict));
    assert_eq!(world.frames().len(), 2, "one announcement in both forms");
    world.now += Duration::from_secs(9);
    world.receive(0, &claim);
    assert_eq!(world.events(), [conflict]);
    assert_eq!(
        world.mac_of("192.0.2.2"),
        None,
        "nothing is learned from it"
    );
}

#[test]
fn an_address_that_linux_gave_may_be_there_twice_while_it_moves_and_is_not_fought_for() {
    let mut world = World::new(lan());
    let given = Vip {
        by_linux: true,
        ..vip("192.0.2.80/32")
    };
    world.net.set_vips(vec![given], world.now);
    world.after(5000);
    world.frames();
    let claim = arp_request(9, "192.0.2.80", "192.0.2.50");
    let hear = |world: &mut World| {
        world.receive(0, &claim);
        world.events().len()
    };
    assert_eq!((hear(&mut world), hear(&mut world)), (0, 0));
    // Much later, for another moment.
    world.now += Duration::from_secs(60);
    assert_eq!(hear(&mut world), 0);
    world.now += Duration::from_secs(1);
    assert_eq!(hear(&mut world), 0);
    // It was taken away and given again meanwhile.
    world.net.set_vips(Vec::new(), world.now);
    world.net.set_vips(vec![given], world.now);
    world.after(5000);
    world.frames();
    assert_eq!(hear(&mut world), 0);
    // Both have it and keep it.
    world.now += Duration::from_secs(2);
    assert_eq!(hear(&mut world), 1);
    world.after(5000);
    assert_eq!(world.frames(), [], "VRRP decides, not who shouts last");
}

#[test]
fn a_conflict_over_ipv6_is_seen_in_advertisements_and_questions() {
    let mut world = World::new(vec![port(0, &["2001:db8::2/64"])]);
    let flags = smoltcp::wire::NdiscNeighborFlags::OVERRIDE;
    world.receive(0, &advertisement(9, "2001:db8::2", "ff02::1", flags));
    let conflict = NetEvent::AddressConflict {
        ip: ip("2001:db8::2"),
        mac: host(9),
        port: 0,
    };
    assert_eq!(world.events(), std::slice::from_ref(&conflict));
    world.jump(11);
    let question = solicitation(9, "2001:db8::2", "2001:db8::7", true, 255);
    world.receive(0, &question);
    assert_eq!(world.events(), [conflict]);
}

#[test]
fn our_own_frames_coming_back_are_no_conflict() {
    let mut world = World::raw(vec![port(0, &["192.0.2.2/24"]), port(1, &["192.0.2.3/24"])]);
    world.after(5000);
    for (port, frame) in world.frames() {
        world.receive(1 - port, &frame);
        world.receive(port, &frame);
    }
    assert_eq!(world.events(), []);
    assert_eq!(world.frames(), []);
}
