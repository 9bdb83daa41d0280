//! The running ports, their links and their resets.
//!
//! A device may ask for a reset: a virtual function does when its physical function went down or was
//! set anew, or it stops without a word, and its link tells. Then the workers give its queues back, it is reset and started as it was before (queues,
//! RSS, MTU, multicast), and the workers get the new queues. Meanwhile it is as if the cable was
//! pulled: what would leave by the port is dropped and counted. Runs on the management thread; never
//! touches a packet.

use std::time::{Duration, Instant};

use crate::port::{
    Link, Mempool, Port, PortConfig, PortError, PortInfo, PortStats, RssState, RxQueue, Started,
    Stopped, TxQueue,
};
use crate::worker::Message;

use super::workers::WorkerLink;

/// Between two tries to start a port that would not.
const RETRY: Duration = Duration::from_secs(1);

/// Drivers of virtual functions that receive and send nothing any more after their physical function
/// went down, and never ask for a reset: the link, which goes down and comes back, is all they show.
const SILENT: [&str; 1] = ["net_e1000_igb_vf"];
/// How long the link must have been back before such a port is reset. Its link comes and goes while the
/// physical function starts, which forgets what it was told before it is done.
const SETTLE: Duration = Duration::from_secs(5);

/// When a port whose driver says nothing is to be reset: its link went down, came back, and stayed.
#[derive(Debug, Default)]
struct Returned {
    since: Option<Instant>,
}

impl Returned {
    fn is_due(&mut self, was_up: bool, up: bool, now: Instant) -> bool {
        self.since = match (was_up, up) {
            (_, false) => None,
            (false, true) => Some(now),
            (true, true) => self.since,
        };
        let is_due = self.since.is_some_and(|since| now - since >= SETTLE);
        if is_due {
            self.since = None;
        }
        is_due
    }
}

/// What there is to know of a port that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The link came up, or went down and came back between two looks.
    LinkUp,
    /// The port was reset and works again, maybe with another MAC address.
    Reset { mac: [u8; 6] },
}

/// A port with the receive and transmit queues that came with it.
pub struct Running {
    pub port: Port<Started>,
    pub info: PortInfo,
    /// What it was started with, and is after a reset.
    pub settings: PortConfig,
}

/// Where a port is between two resets.
enum State {
    Running(Port<Started>),
    /// The workers were asked for its queues; these came back.
    Collecting {
        port: Port<Started>,
        rx: Vec<RxQueue>,
        tx: Vec<TxQueue>,
    },
    /// Stopped, to be reset and started `at` a time. `failed` says why it would not the last time.
    Stopped {
        port: Port<Stopped>,
        at: Instant,
        failed: Option<PortError>,
    },
    /// The workers were sent its new queues, and so many have not said yet that they took them.
    HandingOut {
        port: Port<Started>,
        waiting: usize,
    },
    /// It could not be stopped, so it was closed.
    Closed,
}

struct Managed {
    name: String,
    id: u16,
    info: PortInfo,
    settings: PortConfig,
    state: State,
    link_up: bool,
    returned: Returned,
    resets: u64,
}

/// All ports, in the configuration's order.
pub struct Ports {
    ports: Vec<Managed>,
    pool: Mempool,
}

impl Ports {
    /// `pool` is where the receive queues take their buffers from.
    pub fn new(ports: Vec<Running>, pool: Mempool) -> Self {
        let managed = |running: Running| Managed {
            name: running.port.name().to_owned(),
            id: running.port.id(),
            info: running.info,
            settings: running.settings,
            state: State::Running(running.port),
            link_up: true,
            returned: Returned::default(),
            resets: 0,
        };
        Self {
            ports: ports.into_iter().map(managed).collect(),
            pool,
        }
    }

    /// The index of the port with this DPDK id.
    pub fn index_of(&self, id: u16) -> Option<usize> {
        self.ports.iter().position(|port| port.id == id)
    }

    /// What each port is, its link, and its device's counters.
    pub fn observe(&self) -> impl Iterator<Item = (&PortInfo, Link, PortStats)> {
        self.ports
            .iter()
            .map(|port| (&port.info, port.link(), port.stats()))
    }

    /// What the device says about RSS.
    pub fn rss(&self, index: usize) -> Option<RssState> {
        match &self.ports.get(index)?.state {
            State::Running(port)
            | State::Collecting { port, .. }
            | State::HandingOut { port, .. } => port.rss(),
            State::Stopped { .. } | State::Closed => None,
        }
    }

    /// A sentence for each port that is out of use.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.ports.iter().filter_map(Managed::note)
    }

    /// Resets that were done, of all ports together.
    pub fn resets(&self) -> u64 {
        self.ports.iter().map(|port| port.resets).sum()
    }

    /// Resets that were done, by port.
    pub fn resets_of(&self) -> Vec<u64> {
        self.ports.iter().map(|port| port.resets).collect()
    }

    /// A reset waits for the workers, so the next look should be soon.
    pub fn is_resetting(&self) -> bool {
        let waits = |port: &Managed| {
            matches!(
                port.state,
                State::Collecting { .. } | State::HandingOut { .. }
            )
        };
        self.ports.iter().any(waits)
    }

    /// Looks at what the devices say and takes resets a step further.
    pub fn look(&mut self, now: Instant, workers: &mut [WorkerLink]) -> Vec<(usize, Change)> {
        let mut changes = Vec::new();
        for (index, port) in self.ports.iter_mut().enumerate() {
            let change = port.step(index, now, workers, &self.pool);
            changes.extend(change.map(|change| (index, change)));
        }
        changes
    }

    /// A worker answered a [`Message::Queues`]: it gave its queues, or took new ones.
    pub fn returned(&mut self, index: usize, rx: Option<RxQueue>, tx: Option<TxQueue>) {
        let Some(port) = self.ports.get_mut(index) else {
            return;
        };
        match &mut port.state {
            State::Collecting {
                rx: all_rx,
                tx: all_tx,
                ..
            } => {
                all_rx.extend(rx);
                all_tx.extend(tx);
            }
            State::HandingOut { waiting, .. } => *waiting -= 1,
            State::Running(_) | State::Stopped { .. } | State::Closed => {}
        }
    }

    /// Stops all ports; `queues` are those that the workers had, by port.
    pub fn stop(self, queues: Vec<(Vec<RxQueue>, Vec<TxQueue>)>) {
        for (managed, (mut rx, mut tx)) in self.ports.into_iter().zip(queues) {
            let port = match managed.state {
                State::Running(port) | State::HandingOut { port, .. } => port,
                State::Collecting {
                    port,
                    rx: given_rx,
                    tx: given_tx,
                } => {
                    rx.extend(given_rx);
                    tx.extend(given_tx);
                    port
                }
                State::Stopped { .. } | State::Closed => continue,
            };
            if let Err(error) = port.stop(rx, tx) {
                tracing::warn!("{error}");
            }
        }
    }
}

impl Managed {
    fn link(&self) -> Link {
        match &self.state {
            State::Running(port)
            | State::Collecting { port, .. }
            | State::HandingOut { port, .. } => port.link(),
            State::Stopped { .. } | State::Closed => Link::default(),
        }
    }

    fn stats(&self) -> PortStats {
        match &self.state {
            State::Running(port)
            | State::Collecting { port, .. }
            | State::HandingOut { port, .. } => port.stats(),
            State::Stopped { port, .. } => port.stats(),
            State::Closed => PortStats::default(),
        }
    }

    fn note(&self) -> Option<String> {
        let name = &self.name;
        match &self.state {
            State::Running(_) => None,
            State::Collecting { .. }
            | State::HandingOut { .. }
            | State::Stopped { failed: None, .. } => Some(format!("Port {name} is being reset.")),
            State::Stopped {
                failed: Some(error),
                ..
            } => Some(format!(
                "Out of use since its reset, and tried again every second: {error}."
            )),
            State::Closed => Some(format!("Port {name} is closed: restart evenkeel.")),
        }
    }

    fn step(
        &mut self,
        index: usize,
        now: Instant,
        workers: &mut [WorkerLink],
        pool: &Mempool,
    ) -> Option<Change> {
        // Closed only for as long as this function looks for what comes next.
        let (next, change) = match std::mem::replace(&mut self.state, State::Closed) {
            State::Running(port) => self.watch(port, index, now, workers),
            State::Collecting { port, rx, tx } if self.is_complete(&rx, &tx) => {
                (self.stop(port, rx, tx, now), None)
            }
            State::Stopped { port, at, failed } if now >= at => (
                self.start(port, failed.is_some(), index, now, workers, pool),
                None,
            ),
            State::HandingOut { port, waiting: 0 } => {
                let mac = port.mac();
                self.info.mac = mac;
                tracing::info!("port {}: reset, and in use again", self.name);
                self.link_up = true;
                self.resets += 1;
                (State::Running(port), Some(Change::Reset { mac }))
            }
            unchanged => (unchanged, None),
        };
        self.state = next;
        change
    }

    fn is_complete(&self, rx: &[RxQueue], tx: &[TxQueue]) -> bool {
        rx.len() == usize::from(self.settings.rx_queues)
            && tx.len() == usize::from(self.settings.tx_queues)
    }

    /// Reads the device's events and its link.
    fn watch(
        &mut self,
        port: Port<Started>,
        index: usize,
        now: Instant,
        workers: &mut [WorkerLink],
    ) -> (State, Option<Change>) {
        let events = port.events();
        if events.removed {
            tracing::error!(
                "port {}: its device was removed; put it back and restart evenkeel",
                self.name
            );
        }
        let (was_up, up) = (self.link_up, port.link().up);
        self.link_up = up;
        let has_returned =
            SILENT.contains(&self.info.driver.as_str()) && self.returned.is_due(was_up, up, now);
        if events.reset_needed || has_returned {
            let why = match has_returned {
                false => "asks for a reset",
                true => "has its link back, and needs a reset that its driver does not ask for",
            };
            tracing::warn!("port {}: its device {why}", self.name);
            for worker in workers {
                worker.send(Message::Queues {
                    port: index,
                    rx: None,
                    tx: None,
                });
            }
            let (rx, tx) = (Vec::new(), Vec::new());
            return (State::Collecting { port, rx, tx }, None);
        }
        match (was_up, up) {
            (false, true) => tracing::info!("port {}: link up", self.name),
            (true, false) => tracing::warn!("port {}: link down", self.name),
            _ => {}
        }
        let came_up = up && (!was_up || events.link_changed);
        (State::Running(port), came_up.then_some(Change::LinkUp))
    }

    fn stop(&self, port: Port<Started>, rx: Vec<RxQueue>, tx: Vec<TxQueue>, now: Instant) -> State {
        match port.stop(rx, tx) {
            Ok(port) => State::Stopped {
                port,
                at: now,
                failed: None,
            },
            Err(error) => {
                tracing::error!("{error}; restart evenkeel");
                State::Closed
            }
        }
    }

    fn start(
        &self,
        mut port: Port<Stopped>,
        was_tried: bool,
        index: usize,
        now: Instant,
        workers: &mut [WorkerLink],
        pool: &Mempool,
    ) -> State {
        let again = |port, error: PortError| {
            if !was_tried {
                tracing::error!("{error}; it is tried again every second");
            }
            State::Stopped {
                port,
                at: now + RETRY,
                failed: Some(error),
            }
        };
        match port.reset() {
            Ok(true) => {}
            Ok(false) => tracing::info!(
                "port {}: its driver has no reset; it is only stopped and started",
                self.name
            ),
            Err(error) => return again(port, error),
        }
        match port.start(&self.settings, std::slice::from_ref(pool)) {
            Ok((port, rx, tx)) => {
                let mut rx = rx.into_iter();
                for (worker, tx) in workers.iter_mut().zip(tx) {
                    worker.send(Message::Queues {
                        port: index,
                        rx: rx.next(),
                        tx: Some(tx),
                    });
                }
                let waiting = workers.len();
                State::HandingOut { port, waiting }
            }
            Err(not_started) => again(not_started.port, not_started.error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_device_is_reset_once_its_link_is_back_to_stay() {
        let (mut returned, start) = (Returned::default(), Instant::now());
        let mut look =
            |was_up, up, seconds| returned.is_due(was_up, up, start + Duration::from_secs(seconds));
        assert!(!look(true, true, 0), "it was never down");
        assert!(!look(true, false, 10));
        assert!(!look(false, true, 11), "back");
        assert!(!look(true, false, 14), "and gone again");
        assert!(!look(false, true, 15));
        assert!(!look(true, true, 19));
        assert!(look(true, true, 20));
        assert!(!look(true, true, 40), "once");
    }
}
