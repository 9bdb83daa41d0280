//! Persistence on several workers: whatever worker a packet comes in at.

use super::*;
use crate::lb::cluster::Cluster;
use crate::lb::fixture::{Lab, VIP, VIP6, backend_mac, tcp4, udp4};
use crate::lb::owner::{Ownership, Sides};
use crate::lb::parse::tcp;
use crate::lb::service_map::{Listen, ServiceMap};
use crate::lb::snapshot::{BackendState, ForwardMethod, Scheduler, ServiceId};
use std::collections::HashSet;
use std::sync::Arc;

const WORKERS: usize = 4;
const BACKENDS: u32 = 5;

fn lab(method: ForwardMethod) -> Lab {
    let mut lab = Lab::with_method(method, Scheduler::RoundRobin, &[1; BACKENDS as usize]);
    lab.service().persistence = Some(Persistence {
        timeout: 300,
        prefix_v4: 32,
        prefix_v6: 128,
        group: 99,
    });
    lab.snapshot.ownership = Ownership {
        reta: 128,
        workers: WORKERS as u8,
        compute: true,
    };
    lab
}

/// The backend that a frame went to.
fn reached(frame: &[u8]) -> u8 {
    let reached = (0..=254).find(|&n| frame[..6] == backend_mac(n));
    reached.expect("a backend's station")
}

fn syn(client: &str, port: u16, vip: &str) -> Vec<u8> {
    tcp4(&format!("{client}:{port}"), vip)
        .flags(tcp::SYN)
        .frame()
}

/// 200 clients with 12 connections each, which different workers own and receive.
#[test]
fn a_clients_flows_stay_together_whoever_owns_them() {
    for method in [ForwardMethod::DirectRouting, ForwardMethod::Nat] {
        let lab = lab(method);
        let mut cluster = Cluster::new(WORKERS, 4000);
        let mut used = [0; BACKENDS as usize];
        let mut owners = HashSet::new();
        for n in 0..200usize {
            let client = format!("10.9.{}.{}", n / 50, n % 50);
            let mut homes = HashSet::new();
            for port in 0..12u16 {
                let frame = syn(&client, 2000 + port * 7, VIP);
                let out = cluster.feed(&lab.snapshot, (n + usize::from(port)) % WORKERS, &frame);
                owners.insert(out.worker);
                homes.insert(reached(&out.transmitted()));
            }
            assert_eq!(homes.len(), 1, "{client} was sent to {homes:?}");
            homes.iter().for_each(|&home| used[usize::from(home)] += 1);
        }
        assert_eq!(owners.len(), WORKERS);
        // Each worker goes round by itself, so that they may differ by one each.
        assert!(used.iter().all(|n| (36..=44).contains(n)), "{used:?}");
        assert_eq!(cluster.total(|c| c.new_connections.get()), 2400);
        assert_eq!(cluster.total(|c| c.dropped_total()), 0);
    }
}

#[test]
fn later_packets_of_a_flow_are_not_referred() {
    let lab = lab(ForwardMethod::DirectRouting);
    let mut cluster = Cluster::new(WORKERS, 1000);
    for port in 3000..3100 {
        let home = cluster.feed(&lab.snapshot, 0, &syn("10.9.0.1", port, VIP));
        let (owner, home) = (home.worker, reached(&home.transmitted()));
        let ack = tcp4(&format!("10.9.0.1:{port}"), VIP)
            .flags(tcp::ACK)
            .frame();
        let out = cluster.feed(&lab.snapshot, owner, &ack);
        assert_eq!(out.worker, owner);
        assert_eq!(reached(&out.transmitted()), home);
    }
}

/// A second service with backends of its own on the same servers.
#[test]
fn services_of_a_group_send_a_client_to_one_server() {
    let mut lab = lab(ForwardMethod::DirectRouting);
    let mut second = lab.service().clone();
    second.id = ServiceId(1);
    second.backends = (BACKENDS..2 * BACKENDS).map(BackendId).collect();
    let mut added = Vec::new();
    for n in 0..BACKENDS {
        // In the other order, so that rr alone would not agree.
        let mut backend = lab.backend(BACKENDS - 1 - n).clone();
        (backend.id, backend.service) = (BackendId(BACKENDS + n), ServiceId(1));
        added.push(backend);
    }
    let known = lab.snapshot.backends.iter().cloned();
    lab.snapshot.backends = known.chain(added).collect();
    second.weights = Arc::new(crate::lb::weights::Weights::of(
        &second.backends,
        &lab.snapshot.backends,
    ));
    let first = lab.snapshot.services.iter().cloned();
    lab.snapshot.services = first.chain([Some(Arc::new(second))]).collect();
    let vip: IpAddr = "192.0.2.80".parse().expect("address");
    let listen = |port, id| {
        let prefix = Prefix::new(vip, 32);
        let listen = Listen {
            protocol: 6,
            prefix,
            first_port: port,
            last_port: port,
        };
        (listen, ServiceId(id))
    };
    lab.snapshot.service_map = Arc::new(ServiceMap::new([listen(80, 0), listen(443, 1)]));
    let prefix = Prefix::new(vip, 32);
    lab.snapshot.sides = Arc::new(Sides::new([(prefix, false)], [], []));
    let mut cluster = Cluster::new(WORKERS, 4000);
    for n in 0..100usize {
        let client = format!("10.9.9.{n}");
        let first = cluster.feed(&lab.snapshot, n % WORKERS, &syn(&client, 5000, VIP));
        let first = reached(&first.transmitted());
        let frame = syn(&client, 6000, "192.0.2.80:443");
        let out = cluster.feed(&lab.snapshot, (n + 1) % WORKERS, &frame);
        assert_eq!(reached(&out.transmitted()), first);
    }
    // A group of its own goes its own way.
    if let Some(Some(service)) = lab.snapshot.services.get_mut(1)
        && let Some(persistence) = &mut Arc::make_mut(service).persistence
    {
        persistence.group = 100;
    }
    let apart = (0..100usize).filter(|n| {
        let client = format!("10.9.9.{n}");
        let out = cluster.feed(&lab.snapshot, 0, &syn(&client, 6001, "192.0.2.80:443"));
        let again = cluster.feed(&lab.snapshot, 0, &syn(&client, 5001, VIP));
        reached(&out.transmitted()) != reached(&again.transmitted())
    });
    assert!(apart.count() > 20);
}

/// The first fragment travels by the worker that chooses; the others wait for it to come back.
#[test]
fn fragments_of_a_first_packet_follow_it() {
    for vip in [VIP, VIP6] {
        let lab = lab(ForwardMethod::DirectRouting);
        let mut cluster = Cluster::new(WORKERS, 4000);
        for n in 0..60u16 {
            let client = match vip == VIP {
                true => format!("10.9.9.9:{}", 4000 + n),
                false => format!("[2001:db8:c::9]:{}", 4000 + n),
            };
            let whole = udp4(&client, vip)
                .identification(n)
                .payload(&[7; 64])
                .frame();
            let pieces = crate::lb::fragment::tests::cut(&whole, u32::from(n), &[24, 24]);
            let mut homes = HashSet::new();
            for (k, piece) in pieces.iter().enumerate() {
                let out = cluster.feed(&lab.snapshot, (usize::from(n) + k) % WORKERS, piece);
                homes.insert(reached(&out.transmitted()));
            }
            assert_eq!(homes.len(), 1);
        }
        assert_eq!(cluster.total(|c| c.new_connections.get()), 60);
    }
}

/// What the template's worker says is refused is refused, and answered there.
#[test]
fn with_no_backend_left_the_template_goes_nowhere() {
    let mut lab = lab(ForwardMethod::DirectRouting);
    for n in 0..BACKENDS {
        lab.backend(n).state = BackendState::Down;
    }
    let mut cluster = Cluster::new(WORKERS, 1000);
    for port in 3000..3040 {
        let out = cluster.feed(&lab.snapshot, 1, &syn("10.9.0.1", port, VIP));
        let reason = crate::lb::counters::DropReason::NoBackend;
        assert_eq!(out.verdict, crate::lb::Verdict::Drop(reason));
    }
}

#[test]
fn the_table_forgets_whoever_would_be_forgotten_first_but_nobody_in_a_flood() {
    let lab = lab(ForwardMethod::DirectRouting);
    let backend = lab.snapshot.backend(BackendId(0)).expect("there");
    let candidates = Candidates {
        snapshot: &lab.snapshot,
        ids: &[BackendId(0)],
    };
    let persistence = lab
        .snapshot
        .service(ServiceId(0))
        .expect("there")
        .persistence;
    let persistence = persistence.expect("set");
    let key = |n: u32| {
        let client = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n);
        Key::new(&persistence, client, &Seed([1, 3, 5]))
    };
    let at = |second: u32| Now::from_nanos(u64::from(second) * 1_000_000_000);
    let mut templates = Templates::new(8).expect("memory");
    for n in 0..8 {
        templates.learn(key(n), 300, backend, at(100 + n), false);
    }
    let knows = |templates: &mut Templates, n| {
        templates
            .find(&key(n), at(110), &candidates, |_| true)
            .is_some()
    };
    templates.learn(key(8), 300, backend, at(110), true);
    assert!(
        !knows(&mut templates, 8),
        "in a flood newcomers make nobody go"
    );
    templates.learn(key(8), 300, backend, at(110), false);
    assert!(knows(&mut templates, 8) && !knows(&mut templates, 0));
    assert!((1..8).all(|n| knows(&mut templates, n)));
    let later = templates.find(&key(1), at(411), &candidates, |_| true);
    assert!(later.is_none(), "its time is over");
}
