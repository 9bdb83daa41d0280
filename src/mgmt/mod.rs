//! The management thread: everything that is not forwarding a packet.

pub mod api;
pub mod appliance;
pub mod capture;
pub mod checks;
pub mod config;
pub mod desired;
pub mod drains;
pub mod events;
pub mod faults;
pub mod feedback;
pub mod hash_tables;
pub mod health;
pub mod hooks;
pub mod impact;
pub mod kernel;
pub mod load;
pub mod log;
pub mod metrics;
pub mod net;
pub mod ports;
pub mod quorum;
pub mod retired;
pub mod rss;
pub mod signals;
pub mod start;
pub mod status;
pub mod supervise;
pub mod survey;
pub mod timers;
pub mod trace;
pub mod watch;
pub mod watchdog;
pub mod workers;

use std::path::Path;
use std::time::Instant;

use thiserror::Error;
use tokio::sync::mpsc;

use appliance::Appliance;
use checks::Checks;
use config::Config;
use desired::Desired;
pub use faults::Faults;
use kernel::Kernel;
use load::Load;
use net::{NetState, Output};
use signals::Signals;
use supervise::{Restarts, caught};
use watchdog::Watchdog;

/// Why the appliance did not run to its end.
#[derive(Debug, Error)]
pub enum RunError {
    #[error(transparent)]
    Socket(#[from] api::SocketError),
    #[error(transparent)]
    Start(#[from] start::StartError),
    #[error("stopping: {0}")]
    Stop(#[from] crate::port::EalError),
    #[error("the management thread cannot run: {0}")]
    Io(#[from] std::io::Error),
    #[error("packets went missing: {0:?}; please report this")]
    Unbalanced(appliance::Balance),
}

/// Brings the appliance up: DPDK, ports, workers; it needs [`Appliance::look`] called from then on.
pub fn start(config: &Config) -> Result<Appliance, start::StartError> {
    let ready = start::prepare(config)?;
    let facts = ready.facts(config);
    let kernel = Kernel::new(config, &facts).map_err(start::StartError::kernel)?;
    let (now, mut out) = (Instant::now(), Output::default());
    let mut net = NetState::new(
        net::net_ports(config, &facts, kernel.learned()),
        now,
        &mut out,
    );
    net.set_vips(net::vips(config, kernel.learned()), now);
    if let Some(interval) = config.management.announce_every {
        net.announce_every(interval, now);
    }
    let mut desired = Desired::new(config.clone(), facts, ready.reta);
    net.want(desired.destinations(), now, &mut out);
    let (mut checks, mut load) = (Checks::new(config), Load::new(now));
    let snapshot = {
        checks.configure(&mut desired);
        load.configure(&mut desired, now);
        desired.look_at_quorums();
        desired.build(&net)
    };
    let machine = start::launch(ready, config, &snapshot)?;
    summary(config, &machine);
    let mut appliance = Appliance::new(machine, desired, net, kernel, checks, load, snapshot);
    appliance.begin(out);
    Ok(appliance)
}

/// Runs the appliance until a signal ends it. `file` is where the configuration came from: SIGHUP
/// reads it again.
pub fn run(config: Config, file: &Path, faults: Faults) -> Result<(), RunError> {
    supervise::log_panics();
    let socket = api::Socket::claim(&config.management.socket)?;
    let mut appliance = start(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (handle, requests) = api::Handle::new();
    let metrics = metrics_listener(&config, &mut appliance);
    let watchdog = Watchdog::start(appliance.pulse().clone())?;
    let ran = runtime.block_on(async {
        tokio::select! {
            served = api::serve(&socket, handle.clone(), faults) => served,
            served = metrics::serve(metrics, handle) => served,
            ended = manage(&mut appliance, file, requests) => ended,
        }
    });
    tracing::info!("stopping");
    watchdog::stopping();
    drop(watchdog);
    let balance = appliance.shut_down()?;
    tracing::info!(
        "packets: {} received + {} generated = {} transmitted + {} dropped + {} passed to management",
        balance.received,
        balance.generated,
        balance.transmitted,
        balance.dropped,
        balance.passed,
    );
    ran?;
    if balance.adds_up() {
        Ok(())
    } else {
        Err(RunError::Unbalanced(balance))
    }
}

/// The management loop, begun again whenever it panics.
async fn manage(
    appliance: &mut Appliance,
    file: &Path,
    mut requests: mpsc::Receiver<api::Request>,
) -> std::io::Result<()> {
    // Outside of what is begun again: a signal in between must not be lost.
    let mut signals = Signals::new()?;
    let mut restarts = Restarts::of("the management loop");
    appliance.start_tasks();
    watchdog::ready();
    while caught(appliance.run(file, &mut requests, &mut signals))
        .await
        .is_err()
    {
        restarts.after_panic().await;
        if caught(async { appliance.put_in_order() }).await.is_err() {
            tracing::error!("management goes on as it is; reload its configuration");
        }
    }
    Ok(())
}

/// Traffic matters more than metrics: where nobody can listen, it is said and goes on without.
fn metrics_listener(config: &Config, appliance: &mut Appliance) -> Option<metrics::Listener> {
    let address = config.management.metrics?;
    let bound =
        metrics::Listener::bind(address).and_then(|listener| Ok((listener.address()?, listener)));
    match bound {
        Ok((address, listener)) => {
            tracing::info!("metrics at http://{address}/metrics");
            Some(listener)
        }
        Err(error) => {
            let note = format!(
                "No metrics: cannot listen on {address}: {error}; set management.metrics to another address, or to \"off\"."
            );
            tracing::warn!("{note}");
            appliance.note(note);
            None
        }
    }
}

fn summary(config: &Config, machine: &start::Machine) {
    let cores: Vec<String> = machine.workers.iter().map(|w| w.core.to_string()).collect();
    tracing::info!(
        "workers: {}, on cores {}; management on core {}; room for {} connections; {} packet buffers",
        machine.workers.len(),
        cores.join(","),
        config.management.core,
        config.workers.connections,
        machine.pool.capacity(),
    );
    for service in &config.services {
        tracing::info!(
            "service {}: {}, {}, backends: {}",
            service.name,
            service.method.name(),
            service.scheduler.name(),
            service.backends.len(),
        );
        if let Some((port, room)) = narrow_tunnel(config, service) {
            tracing::info!(
                "service {}: what its tunnel carries over port {port} may be {room} bytes long, and longer packets are cut or answered with ICMP; a larger mtu on the port and its network, or mss_clamp, avoids that",
                service.name,
            );
        }
    }
}

/// The port, and the bytes left in its MTU, where a tunnel's clients with the usual MTU of 1,500 send
/// TCP segments that do not fit.
fn narrow_tunnel<'a>(config: &'a Config, service: &config::Service) -> Option<(&'a str, u16)> {
    const USUAL: u16 = 1500;
    if service.method != config::Method::Tunnel || service.mss_clamp.is_some() {
        return None;
    }
    let room = |backend: &config::Backend| {
        let port = config.egress(backend.address)?;
        let outer = if backend.address.is_ipv4() { 20 } else { 40 };
        Some((port.name.as_str(), port.mtu.saturating_sub(outer)))
    };
    let rooms = service.backends.iter().filter_map(room);
    rooms
        .min_by_key(|(_, room)| *room)
        .filter(|(_, room)| *room < USUAL)
}
