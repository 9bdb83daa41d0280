//! Bringing the appliance up: DPDK, ports, tables, rings, workers. And the way back down.
//! Runs on the main thread, which becomes the management thread.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use thiserror::Error;

use crate::lb::counters::WorkerCounters;
use crate::lb::flow::Seed;
use crate::lb::fullnat::group_count;
use crate::lb::owner::Ownership;
use crate::lb::shard::{Shard, ShardSize};
use crate::lb::snapshot::Snapshot;
use crate::port::ring::{self, Consumer, Producer, RingError, SharedProducer};
use crate::port::{
    Batch, Eal, EalError, EalOptions, Huge, LaunchError, Mempool, MempoolError, Port, PortError,
    PortInfo, RxQueue, Stopped, TxBuffer, TxQueue, pool_bytes,
};
use crate::worker::{Clock, Idle, Rings, Worker, WorkerPort};

use super::config::{self, Attachment, Config};
use super::desired::{MAX_BACKENDS, MAX_SERVICES, PortFacts};
use super::ports::Running;
use super::rss::{self, Plan, Rss};
use super::workers::{COMMANDS, CommandTotals, WorkerLink};

/// Packets a worker receives at once, and sends at once.
const BURST: usize = Batch::CAPACITY;
/// Packets that may wait for management, and from it, per worker.
pub const PASSED: u32 = 1024;
/// Packets that may wait for their owner.
const HANDOFF: u32 = 4096;
/// Packets that mempool caches, bursts in work and TX buffers hold, per worker.
const IN_WORK: usize = 1024;

/// Why the appliance could not start: one line that says what to do.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(transparent)]
    Eal(#[from] EalError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Mempool(#[from] MempoolError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("worker on core {core}: {error}")]
    Launch { core: u16, error: LaunchError },
    #[error(
        "no memory for {connections} connections: {error}; lower workers.connections or free memory"
    )]
    Tables {
        connections: usize,
        error: std::io::Error,
    },
    #[error(
        "port {port} has {queues} transmit queues for {workers} workers; use fewer cores in workers.cores, or a device with more queues"
    )]
    TxQueues {
        port: String,
        queues: u16,
        workers: usize,
    },
    #[error(
        "cannot make the interface {name}: {error}; run as root with /dev/net/tun, and look with `ip link` whether the name is taken"
    )]
    Kernel { name: String, error: std::io::Error },
}

impl StartError {
    pub fn kernel((name, error): (String, std::io::Error)) -> Self {
        Self::Kernel { name, error }
    }
}

/// Everything that runs, in the order in which it must come down.
pub struct Machine {
    pub workers: Vec<WorkerLink>,
    pub ports: Vec<Running>,
    pub rss: Rss,
    pub pool: Mempool,
    pub clock: Clock,
    pub eal: Eal,
}

/// Started ports whose queues wait for their workers.
pub struct Ready {
    pub eal: Eal,
    pub pool: Mempool,
    pub ports: Vec<Running>,
    /// What is done about each port's receive queues, and the size of the table that they go by.
    plans: Vec<Plan>,
    pub reta: u16,
    queues: Vec<Vec<(Option<RxQueue>, TxQueue)>>,
}

impl Ready {
    /// Of the ports and then the VLANs, as the configuration has them.
    pub fn facts(&self, config: &Config) -> Vec<PortFacts> {
        let fact = |(index, port): (usize, &config::Port)| {
            let (device, vlan) = match &port.attachment {
                Attachment::Device(_) => (index, None),
                Attachment::Vlan { parent, id } => (config.parent(parent)?, Some(*id)),
            };
            Some(PortFacts {
                name: port.name.clone(),
                mac: self.ports[device].port.mac(),
                mtu: port.mtu,
                device,
                vlan,
            })
        };
        config.ports.iter().enumerate().filter_map(fact).collect()
    }
}

/// Starts DPDK and the ports.
pub fn prepare(config: &Config) -> Result<Ready, StartError> {
    let workers = config.workers.cores.len();
    let buffers = packet_buffers(config);
    let eal = Eal::init(&eal_options(config))?;
    match eal.no_huge_pages_reason() {
        None => tracing::info!("DPDK's memory is on huge pages"),
        Some(reason) => {
            tracing::warn!("no huge pages, which costs speed (more TLB misses): {reason}")
        }
    }
    let pool = Mempool::new("packets", buffers, config.workers.buffer_size, 256, -1)?;
    tracing::info!(
        "{} packet buffers of {} bytes, kept by {}",
        pool.capacity(),
        pool.data_room(),
        pool.ops()
    );
    let mut opened = Vec::new();
    for (port, device) in config.devices() {
        opened.push(open_port(port, device, workers)?);
    }
    let reta = rss::reta(opened.iter().map(|(_, info)| info), workers);
    let (mut ports, mut plans) = (Vec::new(), Vec::new());
    let mut queues: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for ((port, _), opened) in config.devices().zip(opened) {
        let mut plan = Plan::of(config, port, &opened.1, reta);
        let (running, rx, tx) = start_port(config, port, opened, &mut plan, &pool)?;
        plans.push(plan);
        let mut rx = rx.into_iter();
        for (worker, tx) in queues.iter_mut().zip(tx) {
            worker.push((rx.next(), tx));
        }
        ports.push(running);
    }
    Ok(Ready {
        eal,
        pool,
        ports,
        plans,
        reta,
        queues,
    })
}

const HUGE_PAGE_BYTES: u64 = 2 << 20;
const ORDINARY_PAGE_BYTES: u64 = 4 << 10;

/// MiB of huge pages for DPDK: packet buffers, rings, queues.
pub fn huge_pages_mib(config: &Config) -> u32 {
    dpdk_memory_mib(config, HUGE_PAGE_BYTES)
}

fn dpdk_memory_mib(config: &Config, page_bytes: u64) -> u32 {
    let (buffers, room) = (packet_buffers(config), config.workers.buffer_size);
    let pool_mib = pool_bytes(buffers, room, page_bytes).div_ceil(1 << 20);
    (pool_mib + 64) as u32
}

fn eal_options(config: &Config) -> EalOptions {
    let main = (0, u32::from(config.management.core));
    let workers = config.workers.cores.iter().zip(1..);
    // Two instances with different sockets may run side by side.
    let socket = config.management.socket.to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: Vec<char> = socket.chars().map(plain).collect();
    let tail: String = name[name.len().saturating_sub(48)..].iter().collect();
    let devices = config.devices().map(|(_, device)| device.to_owned());
    EalOptions {
        lcores: std::iter::once(main)
            .chain(workers.map(|(&core, id)| (id, u32::from(core))))
            .collect(),
        file_prefix: format!("evenkeel{tail}"),
        memory_mib: Some(huge_pages_mib(config)),
        ordinary_memory_mib: Some(dpdk_memory_mib(config, ORDINARY_PAGE_BYTES)),
        huge: Huge::Auto,
        allow_pci: devices.filter(|device| is_pci(device)).collect(),
        log_level: None,
    }
}

/// A PCI address, not a virtual device.
pub(super) fn is_pci(device: &str) -> bool {
    let address = device.split(',').next().unwrap_or(device);
    address.contains(':') && !address.starts_with("net_")
}

/// What rings, queues and bursts can hold at once, with some to spare.
fn packet_buffers(config: &Config) -> u32 {
    let workers = config.workers.cores.len();
    let per_port = |p: &config::Port| usize::from(p.rx_descriptors) + usize::from(p.tx_descriptors);
    let queues: usize = config.devices().map(|(port, _)| per_port(port)).sum();
    let needed = workers * (queues + IN_WORK + 3 * PASSED as usize + HANDOFF as usize) + 1024;
    config.workers.buffers.unwrap_or(needed as u32)
}

type StartedPort = (Running, Vec<RxQueue>, Vec<TxQueue>);

fn open_port(
    config: &config::Port,
    device: &str,
    workers: usize,
) -> Result<(Port<Stopped>, PortInfo), StartError> {
    let port = Port::<Stopped>::open(&config.name, device)?;
    let info = port.info()?;
    if usize::from(info.max_tx_queues) < workers {
        return Err(StartError::TxQueues {
            port: config.name.clone(),
            queues: info.max_tx_queues,
            workers,
        });
    }
    Ok((port, info))
}

/// Starts a port with the receive queues as planned; the plan changes where the device will not.
fn start_port(
    whole: &Config,
    config: &config::Port,
    (port, info): (Port<Stopped>, PortInfo),
    plan: &mut Plan,
    pool: &Mempool,
) -> Result<StartedPort, StartError> {
    let workers = whole.workers.cores.len();
    let rx_queues = info.max_rx_queues.min(workers as u16);
    let mut settings = crate::port::PortConfig {
        rx_queues,
        tx_queues: workers as u16,
        rx_descriptors: config.rx_descriptors,
        tx_descriptors: config.tx_descriptors,
        mtu: Some(config.mtu),
        vlans: vlans(whole, config),
        rss: plan.settings(),
        ..crate::port::PortConfig::default()
    };
    let mut started = port.start(&settings, std::slice::from_ref(pool));
    if settings.rss.is_some()
        && let Err(failed) = started
    {
        *plan = Plan::Compute(format!("the device refuses RSS: {}", failed.error));
        settings.rss = None;
        started = failed.port.start(&settings, std::slice::from_ref(pool));
    }
    let (port, rx, tx) = started.map_err(|failed| failed.error)?;
    tracing::info!(
        "port {}: {} ({}), MAC {}, queues: {} rx, {} tx{}",
        config.name,
        config.device().unwrap_or_default(),
        info.driver,
        mac_text(&port.mac()),
        rx.len(),
        tx.len(),
        if info.rx_offloads == 0 {
            ", checksums in software"
        } else {
            ""
        },
    );
    let running = Running {
        port,
        info,
        settings,
    };
    Ok((running, rx, tx))
}

/// The VLANs of a port.
pub(super) fn vlans(config: &Config, of: &config::Port) -> Vec<u16> {
    let vlan = |port: &config::Port| match &port.attachment {
        Attachment::Vlan { parent, id } if *parent == of.name => Some(*id),
        _ => None,
    };
    config.ports.iter().filter_map(vlan).collect()
}

pub(super) fn mac_text(mac: &[u8; 6]) -> String {
    let parts: Vec<String> = mac.iter().map(|b| format!("{b:02x}")).collect();
    parts.join(":")
}

/// The two ends of one worker's rings.
struct Ends {
    rings: Rings,
    commands: Producer<Box<crate::worker::Message>>,
    events: Consumer<Box<crate::worker::Message>>,
    passed: Consumer<crate::port::Mbuf>,
    checks: Consumer<crate::port::Mbuf>,
    inject: Producer<crate::port::Mbuf>,
}

fn ends(
    taken: Consumer<crate::port::Mbuf>,
    handoff: Vec<SharedProducer<crate::port::Mbuf>>,
) -> Result<Ends, RingError> {
    let (commands, commands_in) = ring::spsc("commands", COMMANDS as u32)?;
    let (events_out, events) = ring::spsc("events", COMMANDS as u32)?;
    let (passed_out, passed) = ring::spsc("passed", PASSED)?;
    let (checks_out, checks) = ring::spsc("checks", PASSED)?;
    let (inject, inject_in) = ring::spsc("inject", PASSED)?;
    let rings = Rings {
        commands: commands_in,
        events: events_out,
        passed: passed_out,
        checks: checks_out,
        inject: inject_in,
        taken,
        handoff,
    };
    Ok(Ends {
        rings,
        commands,
        events,
        passed,
        checks,
        inject,
    })
}

/// Makes the shards and sends the workers off with `snapshot`.
pub fn launch(
    ready: Ready,
    config: &Config,
    snapshot: &Arc<Snapshot>,
) -> Result<Machine, StartError> {
    let count = config.workers.cores.len();
    let (seed, clock) = (Seed::random(), Clock::start());
    let mut senders = Vec::new();
    let mut takers = Vec::new();
    for _ in 0..count {
        let (sender, taker) = ring::mpsc("handoff", HANDOFF)?;
        senders.push(sender);
        takers.push(taker);
    }
    let mut workers = Vec::new();
    let cores = config.workers.cores.iter().copied();
    for (index, ((core, queues), taken)) in cores.zip(ready.queues).zip(takers).enumerate() {
        let counters = Arc::new(WorkerCounters::new(MAX_BACKENDS));
        let shard = shard(config, index, count, (seed, ready.reta), &counters)?;
        let capacity = shard.tables.v4.capacity() + shard.tables.v6.capacity();
        let templates = shard.template_memory();
        if has_persistence(config) {
            templates.now();
        }
        let ends = ends(taken, senders.clone())?;
        let port = |(rx, tx)| WorkerPort::new(rx, TxBuffer::new(tx, BURST));
        let ports = queues.into_iter().map(port).collect();
        let snapshot = Arc::clone(snapshot);
        let idle = idle(config.workers.idle);
        let worker = Worker::new(
            index,
            shard,
            snapshot,
            ready.pool.clone(),
            ports,
            ends.rings,
            clock,
            idle,
        );
        let (leave, remains) = mpsc::channel();
        let body = Box::new(move || {
            // Management is gone only when the process ends anyway.
            let _ = leave.send(worker.run());
        });
        let handle = ready
            .eal
            .launch(index as u32 + 1, body)
            .map_err(|error| StartError::Launch { core, error })?;
        workers.push(WorkerLink {
            commands: ends.commands,
            events: ends.events,
            passed: ends.passed,
            checks: ends.checks,
            inject: ends.inject,
            counters,
            handle,
            remains,
            core,
            templates,
            capacity: capacity as u64,
            outstanding: 0,
            backlog: Default::default(),
            totals: CommandTotals::default(),
        });
    }
    let names = config.devices().map(|(port, _)| port.name.clone());
    let read_back = ready.ports.iter().map(|running| running.port.rss());
    let trials = names.zip(ready.plans).zip(read_back);
    let trials = trials.map(|((name, plan), state)| (name, plan, state));
    let now = Instant::now();
    Ok(Machine {
        workers,
        rss: Rss::new(trials.collect(), count as u16, ready.reta, now),
        ports: ready.ports,
        pool: ready.pool,
        clock,
        eal: ready.eal,
    })
}

/// Whether workers need memory for clients that stay with their backends.
pub fn has_persistence(config: &Config) -> bool {
    config.services.iter().any(|s| s.persistence.is_some())
}

fn shard(
    config: &Config,
    index: usize,
    count: usize,
    (seed, reta): (Seed, u16),
    counters: &Arc<WorkerCounters>,
) -> Result<Shard, StartError> {
    let connections = (config.workers.connections as usize).div_ceil(count);
    let v6 = config
        .services
        .iter()
        .flat_map(|s| &s.listen)
        .any(|l| l.addresses.address.is_ipv6());
    let size = ShardSize {
        connections_v4: connections,
        connections_v6: if v6 { connections } else { 1 },
        services: MAX_SERVICES,
    };
    let counters = Arc::clone(counters);
    let failed = |error| StartError::Tables { connections, error };
    let shard = Shard::new(size, seed, index as u32, count as u32, counters).map_err(failed)?;
    let addresses: HashSet<IpAddr> = config
        .services
        .iter()
        .flat_map(|s| s.local_addresses.iter().copied())
        .collect();
    if addresses.is_empty() {
        return Ok(shard);
    }
    // Room for as many addresses again, which a reload may bring.
    let groups = group_count(config.workers.connections as usize, addresses.len());
    let ownership = Ownership {
        reta,
        workers: count as u8,
        compute: count > 1,
    };
    shard
        .with_local_ports(addresses.len() * 2, groups, ownership)
        .map_err(failed)
}

fn idle(idle: config::Idle) -> Idle {
    match idle {
        config::Idle::Poll => Idle::Poll,
        config::Idle::Yield => Idle::Yield,
        config::Idle::Sleep => Idle::Sleep,
    }
}
