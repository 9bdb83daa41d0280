use super::*;
use crate::lb::Verdict;
use crate::lb::checksum::Sum;
use crate::lb::cluster::Cluster;
use crate::lb::conn::flag;
use crate::lb::counters::DropReason;
use crate::lb::fixture::{CLIENT_MAC, Lab, OUR_MAC, VIP, VIP6, tcp4, tcp6, udp4, udp6};
use crate::lb::owner::Ownership;
use crate::lb::parse::{Parsed, parse, tcp};
use crate::lb::snapshot::{ForwardMethod, Scheduler, Untracked};
use std::net::{Ipv6Addr, SocketAddr};

const SECOND: u64 = 1_000_000_000;

fn at(nanos: u64) -> Now {
    Now::from_nanos(nanos)
}

#[test]
fn goes_up_above_its_limit_and_comes_down_when_it_is_calm() {
    let mut guard = Guard::default();
    let second = |guard: &mut Guard, begin: u64, flows: u64| {
        let ups = (0..flows).filter(|n| guard.meet(at(begin + n * SECOND / flows), 1000, false));
        ups.count() > 0
    };
    assert!(!second(&mut guard, SECOND, 990), "below the limit");
    assert!(second(&mut guard, 2 * SECOND, 3000));
    let last = 3 * SECOND;
    assert!(guard.is_up(at(last + CALM - SECOND / 100)));
    assert!(!guard.is_up(at(last + CALM)));
    assert!(guard.is_lenient(at(last + GRACE - SECOND / 100)));
    assert!(!guard.is_lenient(at(last + GRACE)));
    assert!(!second(&mut guard, 3000 * SECOND, 990));
    assert_eq!(guard.embryo_age(at(3000 * SECOND)), u32::MAX);
}

#[test]
fn no_limit_means_no_guard_but_a_full_table_does() {
    let mut guard = Guard::default();
    assert!((0..100_000).all(|n| !guard.meet(at(SECOND + n), 0, false)));
    assert!(guard.meet(at(SECOND), 0, true));
    assert_eq!(guard.embryo_age(at(SECOND)), EMBRYO);
}

/// One client's connection in the simulation.
struct Client {
    endpoint: String,
    /// What the backend saw of its first packet.
    there: Option<Vec<u8>>,
    /// Everything so far went where it should.
    good: bool,
}

/// A worker under a flood.
struct Sim {
    lab: Lab,
    cluster: Cluster,
    v6: bool,
    random: u64,
    template: Vec<u8>,
    forged: u64,
}

const RUNNING: usize = 1000;
const FLOOD: u64 = 50_000;
const LIMIT: u32 = 5_000;
const MILLIS: u64 = 2_500;

impl Sim {
    fn new(method: ForwardMethod, scheduler: Scheduler, v6: bool) -> Self {
        let mut lab = Lab::with_method(method, scheduler, &[1, 1, 1]);
        if v6 {
            for n in 0..3 {
                let address = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n + 1);
                lab.backend(u32::from(n)).address = address.into();
                lab.backend(u32::from(n)).outer_source = Ipv6Addr::LOCALHOST.into();
            }
        }
        lab.snapshot.flood_guard = LIMIT;
        lab.service().untracked = Untracked::Reset;
        let mut cluster = Cluster::new(1, 60_000);
        let lend = |shard: crate::lb::shard::Shard| {
            shard
                .with_local_ports(2, 4, Ownership::default())
                .expect("memory")
        };
        cluster.shards = cluster.shards.into_iter().map(lend).collect();
        let template = match v6 {
            false => tcp4("11.0.0.1:1", VIP).flags(tcp::SYN).frame(),
            true => tcp6("[2001:db8:f::1]:1", VIP6).flags(tcp::SYN).frame(),
        };
        Self {
            lab,
            cluster,
            v6,
            random: 0x2545_f491_4f6c_dd1d,
            template,
            forged: 0,
        }
    }

    fn client(&self, n: usize) -> Client {
        let endpoint = match self.v6 {
            false => format!(
                "10.9.{}.{}:{}",
                n / 200 % 200,
                n % 200 + 1,
                2000 + n % 50_000
            ),
            true => format!("[2001:db8:9::{:x}]:{}", n + 1, 2000 + n % 50_000),
        };
        Client {
            endpoint,
            there: None,
            good: true,
        }
    }

    /// A forged SYN from anywhere.
    fn flood(&mut self) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let bytes = self.random.to_be_bytes();
        let mut frame = self.template.clone();
        if self.v6 {
            frame[30..36].copy_from_slice(&bytes[..6]);
            frame[54..56].copy_from_slice(&bytes[6..]);
        } else {
            frame[27..30].copy_from_slice(&bytes[..3]);
            frame[34..36].copy_from_slice(&bytes[3..5]);
            frame[24..26].fill(0);
            let sum = Sum::default().bytes(&frame[14..34]).finish();
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        self.cluster.feed(&self.lab.snapshot, 0, &frame);
        self.forged += 1;
    }

    /// The client sends a packet: it must reach the backend that its first one reached.
    fn send(&mut self, client: &mut Client, flags: u8) {
        let frame = match self.v6 {
            false => tcp4(&client.endpoint, VIP).flags(flags).frame(),
            true => tcp6(&client.endpoint, VIP6).flags(flags).frame(),
        };
        let out = self.cluster.feed(&self.lab.snapshot, 0, &frame);
        let arrived = out.verdict == Verdict::Transmit(0);
        let there = client.there.get_or_insert_with(|| out.frame.clone());
        client.good &= arrived && out.frame[..12] == there[..12];
        if self.lab.snapshot.two_way {
            client.good &= ends(&out.frame) == ends(there);
        }
    }

    /// The backend answers what it got first: the answer must reach the client.
    fn answer(&mut self, client: &mut Client, flags: u8) {
        if !self.lab.snapshot.two_way {
            return;
        }
        let Some((to, from)) = client.there.as_deref().and_then(ends) else {
            client.good = false;
            return;
        };
        let (from, to) = (from.to_string(), to.to_string());
        let frame = match self.v6 {
            false => tcp4(&from, &to).flags(flags).frame(),
            true => tcp6(&from, &to).flags(flags).frame(),
        };
        let out = self.cluster.feed(&self.lab.snapshot, 0, &frame);
        let reached = ends(&out.frame).map(|(_, to)| to.to_string());
        client.good &= out.verdict == Verdict::Transmit(0)
            && out.frame[..12] == [CLIENT_MAC, OUR_MAC].concat()
            && reached.as_deref() == Some(&client.endpoint);
    }

    /// Shares of packets of running downloads, and of new connections, that went well.
    fn run(&mut self) -> (f64, f64) {
        let mut running: Vec<Client> = (0..RUNNING).map(|n| self.client(n)).collect();
        for client in &mut running {
            self.cluster.now = at(self.cluster.now.nanos + 2_000_000);
            self.send(client, tcp::SYN);
            self.answer(client, tcp::SYN | tcp::ACK);
            self.send(client, tcp::ACK);
        }
        let (mut fresh, mut lost, mut sent): (Vec<(u64, Client)>, u64, u64) = (Vec::new(), 0, 0);
        for milli in 0..MILLIS {
            self.cluster.now = at(self.cluster.now.nanos + 1_000_000);
            let (now, shard) = (self.cluster.now, &mut self.cluster.shards[0]);
            shard.sweep(now, shard.buckets().div_ceil(10_000));
            for _ in 0..FLOOD / 1000 {
                self.flood();
            }
            for n in 0..10 {
                let client = &mut running[(milli as usize * 10 + n) % RUNNING];
                self.send(client, tcp::ACK);
                self.answer(client, tcp::ACK);
                sent += 1;
                lost += u64::from(!std::mem::replace(&mut client.good, true));
            }
            if milli % 2 == 0 {
                fresh.push((milli, self.client(RUNNING + milli as usize)));
            }
            for (began, client) in &mut fresh {
                match milli - *began {
                    0 => self.send(client, tcp::SYN),
                    1 => self.answer(client, tcp::SYN | tcp::ACK),
                    40 => self.send(client, tcp::ACK),
                    41 | 300 => self.send(client, tcp::ACK | 8),
                    42 | 301 => self.answer(client, tcp::ACK),
                    _ => {}
                }
            }
        }
        fresh.retain(|(began, _)| MILLIS - began > 301);
        let good = fresh.iter().filter(|(_, client)| client.good).count();
        let through = good as f64 / fresh.len() as f64;
        ((sent - lost) as f64 / sent as f64, through)
    }
}

/// Source and destination of a frame's packet.
fn ends(frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    match parse(frame, false) {
        Parsed::V4(p) => Some((
            (p.key.source, p.key.source_port).into(),
            (p.key.destination, p.key.destination_port).into(),
        )),
        Parsed::V6(p) => Some((
            (p.key.source, p.key.source_port).into(),
            (p.key.destination, p.key.destination_port).into(),
        )),
        _ => None,
    }
}

/// 50,000 SYN/s from random sources against a limit of 5,000/s and a table for 60,000: running
/// flows lose nothing, 99 % of new clients get through.
#[test]
fn a_syn_flood_costs_neither_running_flows_nor_new_clients() {
    let methods = [
        ForwardMethod::DirectRouting,
        ForwardMethod::Tunnel,
        ForwardMethod::Nat,
        ForwardMethod::FullNat,
    ];
    println!("method scheduler family | forged/s running new | stateless evicted entries");
    for method in methods {
        for (scheduler, v6) in [
            (Scheduler::RoundRobin, false),
            (Scheduler::Maglev, false),
            (Scheduler::RoundRobin, true),
        ] {
            let mut sim = Sim::new(method, scheduler, v6);
            let (running, fresh) = sim.run();
            let counters = sim.cluster.counters(0);
            println!(
                "{} {} {} | {} {:.2} % {:.2} % | {} {} {}",
                method.name(),
                scheduler.name(),
                if v6 { "IPv6" } else { "IPv4" },
                sim.forged * 1000 / MILLIS,
                running * 100.0,
                fresh * 100.0,
                counters.stateless.get(),
                counters.evicted.get(),
                sim.cluster.shards[0].tables.v4.len() + sim.cluster.shards[0].tables.v6.len(),
            );
            assert_eq!(running, 1.0);
            assert!(fresh >= 0.99);
            if !method.is_two_way() {
                let kept = counters.new_connections.get();
                assert!(kept < 3000, "the flood left {kept} entries");
            }
        }
    }
}

/// Without the guard a client whose first packet had no entry would be reset; after a flood it is
/// not, and gets its entry then.
#[test]
fn flows_begun_in_a_flood_outlive_it() {
    let mut sim = Sim::new(ForwardMethod::DirectRouting, Scheduler::RoundRobin, false);
    for _ in 0..2 * LIMIT {
        sim.flood();
    }
    assert!(sim.cluster.shards[0].guard.is_up(sim.cluster.now));
    let mut client = sim.client(7);
    sim.send(&mut client, tcp::SYN);
    let before = sim.cluster.counters(0).new_connections.get();
    sim.cluster.pass_seconds(CALM / SECOND + 1);
    assert!(!sim.cluster.shards[0].guard.is_up(sim.cluster.now));
    sim.send(&mut client, tcp::ACK);
    assert!(client.good);
    assert_eq!(sim.cluster.counters(0).new_connections.get(), before + 1);
    // Long after, a stray packet is a stray packet again.
    sim.cluster.pass_seconds(GRACE / SECOND + 1);
    let stray = tcp4("10.1.1.1:1", VIP).flags(tcp::ACK).frame();
    let out = sim.cluster.feed(&sim.lab.snapshot, 0, &stray);
    let reason = DropReason::Untracked;
    assert_eq!(out.verdict, Verdict::Reply { port: 0, reason });
}

#[test]
fn a_flood_of_udp_leaves_no_entries_where_none_is_needed() {
    let mut sim = Sim::new(ForwardMethod::Tunnel, Scheduler::RoundRobin, false);
    for n in 0..20_000u32 {
        let client = format!("11.{}.{}.1:{}", n >> 8 & 255, n & 255, 1000 + n / 65536);
        let frame = udp4(&client, VIP).frame();
        let out = sim.cluster.feed(&sim.lab.snapshot, 0, &frame);
        assert_eq!(out.verdict, Verdict::Transmit(0));
    }
    assert!(sim.cluster.counters(0).new_connections.get() <= u64::from(LIMIT));
    let first = udp4("10.9.9.9:1", VIP).frame();
    let one = sim.cluster.feed(&sim.lab.snapshot, 0, &first).transmitted();
    let two = sim.cluster.feed(&sim.lab.snapshot, 0, &first).transmitted();
    assert_eq!(one[..12], two[..12], "the same backend each time");
}

/// UDP flows on the way to being tracked in spite of a guard that is up.
struct Flows {
    sim: Sim,
    clients: Vec<Client>,
}

impl Flows {
    fn new(v6: bool, clients: usize) -> Self {
        let sim = Sim::new(ForwardMethod::Tunnel, Scheduler::RoundRobin, v6);
        let clients = (0..clients).map(|n| sim.client(n)).collect();
        Self { sim, clients }
    }

    /// One packet of each flow, spread over `millis`; all must stay at their backends.
    fn round(&mut self, millis: u64) {
        let step = millis * 1_000_000 / self.clients.len() as u64;
        for client in &mut self.clients {
            self.sim.cluster.now = at(self.sim.cluster.now.nanos + step);
            let frame = match self.sim.v6 {
                false => udp4(&client.endpoint, VIP).frame(),
                true => udp6(&client.endpoint, VIP6).frame(),
            };
            let out = self.sim.cluster.feed(&self.sim.lab.snapshot, 0, &frame);
            let there = client.there.get_or_insert_with(|| out.frame.clone());
            assert_eq!(out.verdict, Verdict::Transmit(0));
            assert_eq!(out.frame[..12], there[..12], "{} moved", client.endpoint);
        }
        let (now, shard) = (self.sim.cluster.now, &mut self.sim.cluster.shards[0]);
        let buckets = shard.buckets() * millis as usize / 10_000;
        shard.sweep(now, buckets.max(1));
    }

    fn is_up(&self) -> bool {
        self.sim.cluster.shards[0].guard.is_up(self.sim.cluster.now)
    }

    fn tracked(&self) -> usize {
        let tables = &self.sim.cluster.shards[0].tables;
        tables.v4.len() + tables.v6.len()
    }
}

/// A thousand flows, a hundred packets a second each, meet a limit of 500 new flows a second: the
/// guard goes up, each gets its entry in its turn, and then there is nothing new any more.
#[test]
fn many_udp_flows_that_last_are_all_tracked_and_the_guard_comes_down() {
    for v6 in [false, true] {
        let mut flows = Flows::new(v6, 1_000);
        flows.sim.lab.snapshot.flood_guard = 500;
        flows.round(10);
        assert!(flows.is_up());
        assert!(flows.tracked() <= 110);
        for _ in 0..100 {
            flows.round(10);
        }
        let entries = flows.tracked();
        assert!(entries <= 650, "{entries} in a second");
        for _ in 0..150 {
            flows.round(10);
        }
        assert_eq!(flows.tracked(), 1_000);
        let before = flows.sim.cluster.counters(0).stateless.get();
        for _ in 0..CALM / 10_000_000 {
            flows.round(10);
        }
        assert!(!flows.is_up());
        assert_eq!(flows.sim.cluster.counters(0).stateless.get(), before);
    }
}

/// A flow that begins in a flood of forged UDP packets is tracked before long, with the backend
/// that it had from the first; and one that sends too seldom for that keeps its backend all the
/// same when the flood is over.
#[test]
fn udp_flows_that_begin_in_a_flood_are_tracked_and_never_move() {
    let mut flows = Flows::new(false, 50);
    let forge = |sim: &mut Sim, n: u32| {
        let from = format!("11.{}.{}.1:{}", n >> 8 & 255, n & 255, 1000 + n / 65536);
        let frame = udp4(&from, VIP).frame();
        sim.cluster.feed(&sim.lab.snapshot, 0, &frame);
    };
    let mut forged = 0;
    // Five times the limit, for four seconds; each flow sends fifty packets.
    for round in 0..200 {
        for _ in 0..LIMIT / 10 {
            forge(&mut flows.sim, forged);
            forged += 1;
        }
        if round >= 100 && round % 2 == 0 {
            flows.round(20);
        } else {
            flows.sim.cluster.now = at(flows.sim.cluster.now.nanos + 20_000_000);
        }
    }
    assert!(flows.is_up());
    let established = |flows: &Flows| {
        let listed = |client: &Client| {
            let packet = udp4(&client.endpoint, VIP).frame();
            let Parsed::V4(packet) = parse(&packet, false) else {
                panic!("IPv4");
            };
            let shard = &flows.sim.cluster.shards[0];
            let found = shard.find(&flows.sim.lab.snapshot, &packet.key);
            found.is_some_and(|(slot, _)| !shard.tables.v4.get(slot).has(flag::EMBRYONIC))
        };
        flows.clients.iter().filter(|c| listed(c)).count()
    };
    let share = established(&flows);
    println!("{share} of 50 flows tracked amid {forged} forged packets");
    assert!(share >= 45, "only {share} of 50");
    let late: Vec<Client> = (500..600).map(|n| flows.sim.client(n)).collect();
    flows.clients.extend(late);
    flows.round(1);
    flows.sim.cluster.pass_seconds(CALM / SECOND + 1);
    assert!(!flows.is_up());
    flows.round(1);
    flows.round(1);
    assert_eq!(established(&flows), 150, "all are tracked now");
}

/// What never makes an entry cannot fill the table: the guard has no business with it.
#[test]
fn one_packet_services_do_not_raise_the_guard() {
    let mut sim = Sim::new(ForwardMethod::Tunnel, Scheduler::RoundRobin, false);
    sim.lab.service().one_packet = true;
    let frame = udp4("10.9.9.9:1", VIP).frame();
    for _ in 0..4 * LIMIT {
        let out = sim.cluster.feed(&sim.lab.snapshot, 0, &frame);
        assert_eq!(out.verdict, Verdict::Transmit(0));
    }
    assert!(!sim.cluster.shards[0].guard.is_up(sim.cluster.now));
    assert_eq!(sim.cluster.shards[0].tables.v4.len(), 0);
}
