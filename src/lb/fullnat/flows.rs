//! Whole FullNAT flows through several workers.

use super::*;
use crate::lb::cluster::Cluster;
use crate::lb::fixture::{
    LOCAL, LOCAL6, Lab, VIP, VIP6, backend_mac, checksums_are_right, tcp4, tcp6, udp4,
};
use crate::lb::parse::{Parsed, parse, tcp};
use crate::lb::snapshot::{BackendState, ForwardMethod, Scheduler};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};

fn lab(workers: u8, weights: &[u32]) -> Lab {
    let mut lab = Lab::with_method(ForwardMethod::FullNat, Scheduler::RoundRobin, weights);
    lab.snapshot.ownership = Ownership {
        reta: 128,
        workers,
        compute: true,
    };
    lab
}

fn cluster(lab: &Lab, connections: usize) -> Cluster {
    let ownership = lab.snapshot.ownership;
    of_ownership(usize::from(ownership.workers), connections, ownership)
}

fn of_ownership(workers: usize, connections: usize, ownership: Ownership) -> Cluster {
    let mut cluster = Cluster::new(workers, connections);
    let lend = |shard: Shard| shard.with_local_ports(2, 4, ownership).expect("memory");
    cluster.shards = cluster.shards.into_iter().map(lend).collect();
    cluster
}

/// Both ends of a packet, as text, and its bytes from TCP's sequence number to its flags.
fn ends(frame: &[u8]) -> (String, String, Vec<u8>) {
    assert!(checksums_are_right(frame));
    let text = |ip: IpAddr, port| std::net::SocketAddr::new(ip, port).to_string();
    let (source, destination, l4) = match parse(frame, false) {
        Parsed::V4(p) => (
            text(p.key.source.into(), p.key.source_port),
            text(p.key.destination.into(), p.key.destination_port),
            p.l4,
        ),
        Parsed::V6(p) => (
            text(p.key.source.into(), p.key.source_port),
            text(p.key.destination.into(), p.key.destination_port),
            p.l4,
        ),
        other => panic!("{other:?}"),
    };
    let l4 = usize::from(l4);
    (
        source,
        destination,
        frame.get(l4 + 4..l4 + 14).unwrap_or_default().to_vec(),
    )
}

fn answer(request: &[u8], flags: u8) -> Vec<u8> {
    let (from, to, _) = ends(request);
    match from.starts_with('[') {
        false => tcp4(&to, &from).flags(flags).frame(),
        true => tcp6(&to, &from).flags(flags).frame(),
    }
}

#[test]
fn both_ends_are_rewritten_and_nothing_else() {
    for v6 in [false, true] {
        let mut lab = lab(1, &[1]);
        let (client, vip, local, backend) = match v6 {
            false => ("10.9.9.9:777", VIP, IpAddr::from(LOCAL), "10.0.1.1:8080"),
            true => (
                "[2001:db8::9]:777",
                VIP6,
                LOCAL6.into(),
                "[2001:db8:1::1]:8080",
            ),
        };
        if v6 {
            let address = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
            lab.backend(0).address = address.into();
        }
        let mut cluster = cluster(&lab, 1000);
        let build = if v6 {
            tcp6(client, vip)
        } else {
            tcp4(client, vip)
        };
        let syn = build.flags(tcp::SYN).payload(b"data").frame();
        let there = cluster.feed(&lab.snapshot, 0, &syn).transmitted();
        let (from, to, numbers) = ends(&there);
        let from: std::net::SocketAddr = from.parse().expect("endpoint");
        assert_eq!((from.ip(), to.as_str()), (local, backend));
        assert!(from.port() >= FIRST_PORT);
        assert_eq!(numbers, ends(&syn).2, "sequence numbers stay");
        assert_eq!(there[..6], backend_mac(0));
        assert_eq!(there.len(), syn.len());
        let ttl = if v6 { 14 + 7 } else { 14 + 8 };
        assert_eq!(there[ttl], 63);
        let reply = answer(&there, tcp::SYN | tcp::ACK);
        let back = cluster.feed(&lab.snapshot, 0, &reply).transmitted();
        let (from, to, numbers) = ends(&back);
        assert_eq!((from.as_str(), to.as_str()), (vip, client));
        assert_eq!(numbers, ends(&reply).2);
        let counters = &cluster.counters(0).backends[0];
        assert_eq!(
            (counters.in_packets.get(), counters.out_packets.get()),
            (1, 1)
        );
        assert_eq!(cluster.shards[0].local_ports.usage().0, 1);
    }
}

/// 2,000 flows whose packets come in at any worker, each way three times.
#[test]
fn replies_come_to_the_worker_that_lent_the_port() {
    let lab = lab(4, &[1, 1, 1]);
    let mut cluster = cluster(&lab, 2000);
    let mut locals: HashMap<String, HashSet<String>> = HashMap::new();
    for n in 0..2000usize {
        let client = format!("10.9.{}.9:{}", n % 7, 1024 + n);
        let mut owners = HashSet::new();
        for (k, flags) in [tcp::SYN, tcp::ACK, tcp::ACK].into_iter().enumerate() {
            let request = tcp4(&client, VIP).flags(flags).frame();
            let out = cluster.feed(&lab.snapshot, (n + k) % 4, &request);
            owners.insert(out.worker);
            let there = out.transmitted();
            let (from, to, _) = ends(&there);
            locals.entry(from).or_default().insert(to);
            let reply = answer(&there, tcp::ACK);
            let out = cluster.feed(&lab.snapshot, (n * 3 + k) % 4, &reply);
            owners.insert(out.worker);
            assert_eq!(ends(&out.transmitted()).1, client);
        }
        assert_eq!(owners.len(), 1);
    }
    assert_eq!(cluster.total(|c| c.new_connections.get()), 2000);
    let ends: usize = locals.values().map(HashSet::len).sum();
    assert_eq!(ends, 2000, "no two flows look alike to a backend");
    assert!(locals.len() < 2000, "backends share local ports");
    let owned: Vec<_> = cluster.shards.iter().map(|s| s.tables.v4.len()).collect();
    assert!(owned.iter().all(|&n| n > 400), "{owned:?}");
}

/// At 95 % load the table moves entries about; replies find them all the same, and nothing else.
#[test]
fn entries_are_found_wherever_the_table_moves_them() {
    let lab = lab(1, &[1, 1, 1]);
    let mut cluster = cluster(&lab, 30_000);
    let mut flows = Vec::new();
    let full = cluster.shards[0].tables.v4.capacity() as u32 / 100 * 95;
    for n in 0..full {
        let client = format!("10.{}.9.9:{}", n % 3, 1024 + n);
        let syn = tcp4(&client, VIP).flags(tcp::SYN).frame();
        let there = cluster.feed(&lab.snapshot, 0, &syn).transmitted();
        flows.push((client, there));
    }
    let load =
        |c: &Cluster| c.shards[0].tables.v4.len() as f64 / c.shards[0].tables.v4.capacity() as f64;
    assert!(load(&cluster) > 0.945, "{}", load(&cluster));
    for (client, there) in &flows {
        let reply = answer(there, tcp::SYN | tcp::ACK);
        let back = cluster.feed(&lab.snapshot, 0, &reply).transmitted();
        assert_eq!(&ends(&back).1, client);
    }
    // Somebody else answers; or a port is meant that nobody has.
    let (from, _, _) = ends(&flows[0].1);
    for forged in [tcp4("10.0.1.99:8080", &from), tcp4("10.0.1.1:8081", &from)] {
        let out = cluster.feed(&lab.snapshot, 0, &forged.flags(tcp::ACK).frame());
        assert_eq!(out.verdict, Verdict::Drop(DropReason::Untracked));
    }
    let probe = tcp4("10.0.1.1:8080", &format!("{LOCAL}:{}", FIRST_PORT - 1));
    let out = cluster.feed(&lab.snapshot, 0, &probe.flags(tcp::SYN | tcp::ACK).frame());
    assert_eq!(out.verdict, Verdict::Pass(Pass::Check), "a probe's answer");
    // When all have expired, all ports are back.
    cluster.pass_seconds(1000);
    let (now, shard) = (cluster.now, &mut cluster.shards[0]);
    shard.sweep(now, shard.tables.v4.buckets());
    assert_eq!(shard.local_ports.usage().0, 0);
    assert_eq!(shard.counters.local_ports.get(), 0);
    assert_eq!(shard.tables.v4.len(), 0);
}

/// One worker of 255 has 256 ports, of which all but the reserved are used up.
fn narrow() -> (Lab, Cluster) {
    let mut lab = lab(1, &[1]);
    lab.snapshot.ownership = Ownership::default();
    let few = Ownership {
        reta: 256,
        workers: 255,
        compute: false,
    };
    (lab, of_ownership(1, 4000, few))
}

/// Opens flows from client ports `from` and up until one is refused; none stays embryonic.
fn fill(lab: &Lab, cluster: &mut Cluster, from: u16) -> Vec<(u16, Vec<u8>)> {
    let mut flows = Vec::new();
    for port in from..from + 600 {
        let client = |flags| tcp4(&format!("10.9.9.9:{port}"), VIP).flags(flags).frame();
        let out = cluster.feed(&lab.snapshot, 0, &client(tcp::SYN));
        if out.verdict != Verdict::Transmit(0) {
            assert_eq!(out.verdict, Verdict::Drop(DropReason::PoolExhausted));
            return flows;
        }
        flows.push((port, out.frame));
        let ack = cluster.feed(&lab.snapshot, 0, &client(tcp::ACK));
        assert_eq!(ack.verdict, Verdict::Transmit(0));
    }
    panic!("a pool without end");
}

#[test]
fn a_pool_that_runs_dry_refuses_and_recovers() {
    let (lab, mut cluster) = narrow();
    let flows = fill(&lab, &mut cluster, 1000);
    assert!((400..512).contains(&flows.len()), "{} flows", flows.len());
    let (used, all) = cluster.shards[0].local_ports.usage();
    assert_eq!(used as usize, flows.len());
    assert!(all >= used);
    assert_eq!(cluster.shards[0].local_ports.fullest(0..8), 1000);
    // A reset ends a flow, and its port serves the next one at once.
    let (port, there) = &flows[7];
    let reset = answer(there, tcp::RST | tcp::ACK);
    cluster.feed(&lab.snapshot, 0, &reset).transmitted();
    assert_eq!(fill(&lab, &mut cluster, 20_000).len(), 1);
    assert_eq!(cluster.counters(0).holds_cut_short.get(), 1);
    let again = tcp4(&format!("10.9.9.9:{port}"), VIP).flags(tcp::ACK);
    let out = cluster.feed(&lab.snapshot, 0, &again.frame());
    assert_eq!(out.verdict, Verdict::Drop(DropReason::Untracked));
}

/// The client opens a new connection from the same port while the backend, which closed first,
/// still remembers the last one: it must see another port.
#[test]
fn a_reopened_flow_gets_another_port_while_the_backend_remembers() {
    let (lab, mut cluster) = narrow();
    let client = |flags| tcp4("10.9.9.9:1000", VIP).flags(flags).frame();
    let first = cluster
        .feed(&lab.snapshot, 0, &client(tcp::SYN))
        .transmitted();
    let backend = |flags| answer(&first, flags);
    for packet in [
        backend(tcp::SYN | tcp::ACK),
        client(tcp::ACK),
        backend(tcp::FIN | tcp::ACK),
        client(tcp::FIN | tcp::ACK),
    ] {
        cluster.feed(&lab.snapshot, 0, &packet).transmitted();
    }
    let second = cluster
        .feed(&lab.snapshot, 0, &client(tcp::SYN))
        .transmitted();
    assert_ne!(ends(&first).0, ends(&second).0);
    assert_eq!(cluster.counters(0).new_connections.get(), 2);
    // All others first; the held one only when nothing else is left, and that is counted.
    let flows = fill(&lab, &mut cluster, 2000);
    let last = flows.last().map(|(_, there)| ends(there).0);
    assert_eq!(last, Some(ends(&first).0));
    assert_eq!(cluster.counters(0).holds_cut_short.get(), 1);
}

#[test]
fn evicted_and_refused_flows_give_their_ports_back() {
    let lab = lab(1, &[1]);
    let mut cluster = cluster(&lab, 100);
    let mut refused = 0;
    for port in 1000..3000 {
        let established = port % 2 == 0;
        let flags = if established {
            tcp::SYN | tcp::ACK
        } else {
            tcp::SYN
        };
        let client = format!("10.9.9.9:{port}");
        let out = cluster.feed(&lab.snapshot, 0, &tcp4(&client, VIP).flags(flags).frame());
        match out.verdict {
            Verdict::Transmit(0) if established => {
                let ack = tcp4(&client, VIP).flags(tcp::ACK).frame();
                cluster.feed(&lab.snapshot, 0, &ack).transmitted();
            }
            Verdict::Transmit(0) => {}
            verdict => {
                assert_eq!(verdict, Verdict::Drop(DropReason::TableFull));
                refused += 1;
            }
        }
        let tracked = cluster.shards[0].tables.v4.len() as u64;
        assert_eq!(cluster.shards[0].local_ports.usage().0, tracked);
    }
    assert!(refused > 0 && cluster.counters(0).evicted.get() > 0);
}

/// A removed backend's flows end toward both ends, with the local port.
#[test]
fn a_removed_backends_flow_is_reset_at_both_ends() {
    let mut lab = lab(1, &[1]);
    let mut cluster = cluster(&lab, 100);
    let client = |flags| tcp4("10.9.9.9:1000", VIP).flags(flags).frame();
    let there = cluster
        .feed(&lab.snapshot, 0, &client(tcp::SYN))
        .transmitted();
    let local = ends(&there).0;
    cluster
        .feed(&lab.snapshot, 0, &client(tcp::ACK))
        .transmitted();
    lab.backend(0).state = BackendState::Removed;
    let out = cluster.feed(&lab.snapshot, 0, &client(tcp::ACK));
    let reason = DropReason::BackendGone;
    assert_eq!(out.verdict, Verdict::Reply { port: 0, reason });
    let (_, onward) = cluster.outbox.sent.pop().expect("a reset to the backend");
    let onward = crate::lb::frame::Frame::bytes(&onward).to_vec();
    assert_eq!(ends(&onward).0, local);
    assert_eq!(ends(&onward).1, "10.0.1.1:8080");
    assert_eq!(cluster.shards[0].local_ports.usage().0, 0);
}

#[test]
fn udp_flows_have_ports_of_their_own() {
    let lab = lab(4, &[1, 1]);
    let mut cluster = cluster(&lab, 1000);
    for port in 1000..1400 {
        let client = format!("10.9.9.9:{port}");
        let request = udp4(&client, VIP).payload(b"q").frame();
        let there = cluster.feed(&lab.snapshot, 1, &request).transmitted();
        let (from, to, _) = ends(&there);
        let reply = udp4(&to, &from).payload(b"answer").frame();
        let back = cluster.feed(&lab.snapshot, 2, &reply).transmitted();
        assert_eq!((ends(&back).0.as_str(), ends(&back).1), (VIP, client));
    }
    assert_eq!(
        cluster.total(|c| c.local_ports.get()),
        0,
        "a gauge, set by the sweep"
    );
    let now = cluster.now;
    cluster.shards.iter_mut().for_each(|s| s.sweep(now, 1));
    assert_eq!(cluster.total(|c| c.local_ports.get()), 400);
}

/// An ICMP error quoting `frame`'s packet, from `from` to the packet's sender.
fn error(from: &str, frame: &[u8]) -> Vec<u8> {
    let (source, _, _) = ends(frame);
    let v6 = source.starts_with('[');
    let (mut error, header) = match v6 {
        false => (udp4(&format!("{from}:1"), &source), 20),
        true => (
            crate::lb::fixture::udp6(&format!("[{from}]:1"), &source),
            40,
        ),
    };
    error = error.payload(&frame[14..14 + header + 20]);
    let mut error = error.frame();
    let at = 14 + header;
    error[14 + if v6 { 6 } else { 9 }] = if v6 { 58 } else { 1 };
    error[at..at + 8].copy_from_slice(&[if v6 { 1 } else { 3 }, 4, 0, 0, 0, 0, 0, 0]);
    seal(&mut error);
    error
}

/// The sum that an ICMP message's checksum field belongs to.
fn icmp_sum(frame: &[u8]) -> crate::lb::checksum::Sum {
    use crate::lb::checksum::{Sum, pseudo_header};
    if frame[12] == 0x08 {
        return Sum::default().bytes(&frame[34..]);
    }
    let address = |at: usize| Ipv6Addr::read(&frame[at..]);
    pseudo_header(address(22), address(38), 58, frame.len() - 54).bytes(&frame[54..])
}

fn seal(frame: &mut [u8]) {
    let v4 = frame[12] == 0x08;
    if v4 {
        frame[24..26].fill(0);
        let sum = crate::lb::checksum::Sum::default().bytes(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.finish().to_be_bytes());
    }
    let at = if v4 { 36 } else { 56 };
    frame[at..at + 2].fill(0);
    let sum = icmp_sum(frame).finish();
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Addresses of the message, and of the packet it quotes with its ports.
fn told(frame: &[u8]) -> (IpAddr, IpAddr, String, String) {
    assert_eq!(icmp_sum(frame).fold(), 0xffff, "the message's checksum");
    let v4 = frame[12] == 0x08;
    let ip = |at: usize| match v4 {
        true => IpAddr::from(std::net::Ipv4Addr::read(&frame[at..])),
        false => Ipv6Addr::read(&frame[at..]).into(),
    };
    let (header, from, to) = if v4 { (20, 12, 16) } else { (40, 8, 24) };
    let quote = 14 + header + 8;
    // The quotation as a frame: its checksums must be right too.
    let quoted = [&frame[..14], &frame[quote..]].concat();
    let (source, destination, _) = ends(&quoted);
    (ip(14 + from), ip(14 + to), source, destination)
}

/// Errors from either side reach the other end in its own terms, wherever they come in.
#[test]
fn icmp_errors_are_translated_both_ways() {
    for v6 in [false, true] {
        let mut lab = lab(4, &[1]);
        let (client, vip, router) = match v6 {
            false => ("10.9.9.9:777", VIP, "10.0.0.254"),
            true => ("[2001:db8::9]:777", VIP6, "2001:db8::254"),
        };
        if v6 {
            let address = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
            lab.backend(0).address = address.into();
        }
        let mut cluster = cluster(&lab, 1000);
        let build = if v6 {
            tcp6(client, vip)
        } else {
            tcp4(client, vip)
        };
        let there = cluster.feed(&lab.snapshot, 0, &build.flags(tcp::SYN).frame());
        let (owner, there) = (there.worker, there.transmitted());
        let reply = answer(&there, tcp::SYN | tcp::ACK);
        let back = cluster.feed(&lab.snapshot, 1, &reply).transmitted();
        let (local, backend, _) = ends(&there);
        let ip = |end: &str| end.parse::<std::net::SocketAddr>().expect("endpoint").ip();
        for worker in 0..4 {
            // A router on the backends' side about what went to the backend.
            let out = cluster.feed(&lab.snapshot, worker, &error(router, &there));
            assert_eq!(out.worker, owner);
            let (from, to, source, destination) = told(&out.transmitted());
            assert_eq!((from, to), (ip(vip), ip(client)));
            assert_eq!((source.as_str(), destination.as_str()), (client, vip));
            // One on the client's side about what went to the client.
            let out = cluster.feed(&lab.snapshot, worker, &error(router, &back));
            assert_eq!(out.worker, owner);
            let (from, to, source, destination) = told(&out.transmitted());
            assert_eq!((from, to), (ip(&local), ip(&backend)));
            assert_eq!((source, destination), (backend.clone(), local.clone()));
        }
    }
}
