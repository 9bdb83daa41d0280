//! What a connection costs in memory: a shard is made and filled, and the kernel says how much the
//! process grew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use balancer::lb::counters::WorkerCounters;
use balancer::lb::fixture::{Lab, TestOutbox, VIP, VIP6, udp4, udp6};
use balancer::lb::flow::Seed;
use balancer::lb::frame::MemoryFrame;
use balancer::lb::fullnat::group_count;
use balancer::lb::owner::Ownership;
use balancer::lb::shard::{Shard, ShardSize};
use balancer::lb::snapshot::{ForwardMethod, Scheduler};
use balancer::lb::{Arrival, MAX_BURST, Now, Pass, Verdict};

use crate::Failure;
use crate::make::is_v6;

const BACKENDS: usize = 192;
/// FullNAT's local addresses.
const LOCALS: u32 = 16;
const LOAD: f64 = 0.9;

/// Fills a shard for so many connections to 90 % and writes what each takes.
pub fn memory(method: &str, family: &str, connections: usize) -> Result<String, Failure> {
    let v6 = is_v6(family)?;
    let method = match method {
        "direct-routing" => ForwardMethod::DirectRouting,
        "fullnat" => ForwardMethod::FullNat,
        _ => return Err(format!("memory is not measured for {method}").into()),
    };
    let mut lab = Lab::with_method(method, Scheduler::WeightedRoundRobin, &[1; BACKENDS]);
    for n in 0..BACKENDS as u16 {
        if v6 {
            let address = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n + 1);
            lab.backend(n.into()).address = address.into();
        }
    }
    let local = |n: u32| match v6 {
        false => IpAddr::from(Ipv4Addr::from_bits(0x0a00_0200 + n)),
        true => Ipv6Addr::from_bits(0x2001_0db8_0002 << 80 | u128::from(n)).into(),
    };
    lab.snapshot.locals = (0..LOCALS).map(local).collect();
    lab.service().locals = (0..LOCALS as u16).collect();
    let counters = Arc::new(WorkerCounters::new(BACKENDS));
    let mut outbox = TestOutbox::default();
    let before = resident()?;
    let size = ShardSize {
        connections_v4: if v6 { 1 } else { connections },
        connections_v6: if v6 { connections } else { 1 },
        services: 1,
    };
    let seed = Seed::random();
    let mut shard = Shard::new(size, seed, 0, 1, Arc::clone(&counters))?;
    if method == ForwardMethod::FullNat {
        // As at evenkeel's start: room for as many addresses again.
        let (addresses, groups) = (LOCALS as usize, group_count(connections, LOCALS as usize));
        shard = shard.with_local_ports(2 * addresses, groups, Ownership::default())?;
    }
    let capacity = match v6 {
        false => shard.tables.v4.capacity(),
        true => shard.tables.v6.capacity(),
    };
    let wanted = (capacity as f64 * LOAD) as usize;
    let mut verdicts = [Verdict::Pass(Pass::Local); MAX_BURST];
    for first in (0..wanted).step_by(32) {
        let flows = first..wanted.min(first + 32);
        let mut frames: Vec<MemoryFrame> = flows.map(|flow| frame(v6, flow)).collect();
        let now = Now::from_nanos(1_000_000_000);
        let port = Arrival::Port(0);
        shard.process(
            &lab.snapshot,
            now,
            port,
            &mut frames,
            &mut verdicts,
            &mut outbox,
        );
    }
    let tracked = match v6 {
        false => shard.tables.v4.len(),
        true => shard.tables.v6.len(),
    };
    if tracked != wanted {
        return Err(format!("{tracked} of {wanted} flows are tracked").into());
    }
    let bytes = resident()? - before;
    Ok(format!(
        "{{\"connections\": {tracked}, \"capacity\": {capacity}, \"bytes_per_connection\": {:.1}}}",
        bytes as f64 / tracked as f64
    ))
}

fn frame(v6: bool, flow: usize) -> MemoryFrame {
    let (low, port) = (flow as u32 / 60_000, 1024 + flow % 60_000);
    let build = match v6 {
        false => udp4(
            &format!("{}:{port}", Ipv4Addr::from_bits(0x0a80_0000 + low)),
            VIP,
        ),
        true => {
            let client = Ipv6Addr::from_bits(0x2001_0db8_00c1_u128 << 80 | u128::from(low));
            udp6(&format!("[{client}]:{port}"), VIP6)
        }
    };
    MemoryFrame::new(&build.frame())
}

/// Bytes of this process that are in memory.
fn resident() -> Result<usize, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let kib: usize = kib.ok_or("no VmRSS in /proc/self/status")?.parse()?;
    Ok(kib * 1024)
}
