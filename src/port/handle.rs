//! [`Port`]: a device in the hands of management, stopped or started. What
//! can be asked of it depends on its state; its queues go to workers.

use std::fmt;
use std::sync::Arc;

use super::device::{Device, text};
use super::mempool::Mempool;
use super::queue::{RxQueue, TxQueue};
use super::types::{Link, PortConfig, PortError, PortEvents, PortInfo, PortStats, RssState};
use super::{start, sys};

/// State of a port that has no queues.
pub struct Stopped(());
/// State of a port whose queues exist.
pub struct Started {
    rx_queues: usize,
    tx_queues: usize,
}

/// A port that did not start, stopped and fit to be tried again, and why.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotStarted {
    pub port: Port<Stopped>,
    pub error: PortError,
}

/// A started port and its queues, in order.
pub type Running = (Port<Started>, Vec<RxQueue>, Vec<TxQueue>);

/// An Ethernet device. Dropping it and its queues closes the device.
pub struct Port<State> {
    device: Arc<Device>,
    state: State,
}

impl<State> fmt::Debug for Port<State> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({:?}, id {})", self.device.name(), self.device.id())
    }
}

impl<State> Port<State> {
    /// The name it was opened under.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// DPDK's id, which received mbufs carry.
    pub fn id(&self) -> u16 {
        self.device.id()
    }

    pub fn mac(&self) -> [u8; 6] {
        let mut mac = sys::rte_ether_addr::default();
        // SAFETY: an open port; the struct is written.
        unsafe { sys::rte_eth_macaddr_get(self.device.id(), &mut mac) };
        mac.addr_bytes
    }

    /// What it is and can do.
    pub fn info(&self) -> Result<PortInfo, PortError> {
        let info = self.device.info()?;
        // SAFETY: an open port.
        let socket = unsafe { sys::rte_eth_dev_socket_id(self.device.id()) };
        Ok(PortInfo {
            driver: text(info.driver_name),
            mac: self.mac(),
            numa: u32::try_from(socket).ok(),
            max_rx_queues: info.max_rx_queues,
            max_tx_queues: info.max_tx_queues,
            reta_size: info.reta_size,
            rss_key_size: info.hash_key_size,
            rss_fields: info.flow_type_rss_offloads,
            rx_offloads: info.rx_offload_capa,
            tx_offloads: info.tx_offload_capa,
            min_mtu: info.min_mtu,
            max_mtu: info.max_mtu,
            rx_descriptors: (info.rx_desc_lim.nb_min, info.rx_desc_lim.nb_max),
            tx_descriptors: (info.tx_desc_lim.nb_min, info.tx_desc_lim.nb_max),
        })
    }

    /// Link state as last known; does not wait.
    pub fn link(&self) -> Link {
        let (mut speed_mbps, mut up) = (0, 0);
        // SAFETY: an open port; both are written.
        let rc = unsafe { sys::ek_link(self.device.id(), &mut speed_mbps, &mut up) };
        if rc < 0 {
            Link::default()
        } else {
            Link {
                up: up != 0,
                speed_mbps,
            }
        }
    }

    /// What has happened since the last call.
    pub fn events(&self) -> PortEvents {
        self.device.take_events()
    }

    /// The device's counters; zeros if it has none.
    pub fn stats(&self) -> PortStats {
        let mut stats = sys::rte_eth_stats::default();
        // SAFETY: an open port; the struct is written.
        if unsafe { sys::rte_eth_stats_get(self.device.id(), &mut stats) } != 0 {
            return PortStats::default();
        }
        PortStats {
            rx_packets: stats.ipackets,
            rx_bytes: stats.ibytes,
            rx_missed: stats.imissed,
            rx_errors: stats.ierrors,
            rx_no_buffer: stats.rx_nombuf,
            tx_packets: stats.opackets,
            tx_bytes: stats.obytes,
            tx_errors: stats.oerrors,
        }
    }
}

impl Port<Stopped> {
    /// Opens a device: a PCI address that the EAL was told to allow, or a
    /// virtual device's string such as `net_tap0,iface=ek0`. `name` is what
    /// errors and logs call it.
    pub fn open(name: &str, device: &str) -> Result<Self, PortError> {
        Ok(Port {
            device: Arc::new(Device::open(name, device)?),
            state: Stopped(()),
        })
    }

    /// Configures queues and starts. `pools` is one pool for all receive
    /// queues, or one for each.
    pub fn start(self, config: &PortConfig, pools: &[Mempool]) -> Result<Running, NotStarted> {
        if let Err(error) = start::start(&self.device, config, pools) {
            self.device.stop();
            return Err(NotStarted { port: self, error });
        }
        let device = self.device;
        let rx: Vec<_> = (0..config.rx_queues)
            .map(|queue| RxQueue::new(device.clone(), queue))
            .collect();
        let tx: Vec<_> = (0..config.tx_queues)
            .map(|queue| TxQueue::new(device.clone(), queue))
            .collect();
        let state = Started {
            rx_queues: rx.len(),
            tx_queues: tx.len(),
        };
        Ok((Port { device, state }, rx, tx))
    }

    /// Resets the device, as [`PortEvents::reset_needed`] asks for, and forgets its events until
    /// then. False where the driver has no reset; stopping and starting is all there is then.
    pub fn reset(&mut self) -> Result<bool, PortError> {
        const ENOTSUP: i32 = 95;
        let mark = super::log::mark();
        // SAFETY: an open, stopped port.
        let rc = unsafe { sys::rte_eth_dev_reset(self.device.id()) };
        self.device.take_events();
        if rc == -ENOTSUP {
            return Ok(false);
        }
        self.device.check("reset", rc, mark).map(|()| true)
    }
}

impl Port<Started> {
    /// RSS as the device says it is in force; None if it has none or does not say.
    pub fn rss(&self) -> Option<RssState> {
        start::rss_state(&self.device)
    }

    /// Stops the device. Takes all its queues back, so that nobody can be in
    /// them; an error, and the device closed, if any is missing or another port's.
    pub fn stop(self, rx: Vec<RxQueue>, tx: Vec<TxQueue>) -> Result<Port<Stopped>, PortError> {
        let ours = rx
            .iter()
            .all(|queue| Arc::ptr_eq(queue.device(), &self.device))
            && tx
                .iter()
                .all(|queue| Arc::ptr_eq(queue.device(), &self.device));
        if !ours || rx.len() != self.state.rx_queues || tx.len() != self.state.tx_queues {
            let reason = format!(
                "all {} receive and {} transmit queues are needed back, got {} and {}",
                self.state.rx_queues,
                self.state.tx_queues,
                rx.len(),
                tx.len()
            );
            return Err(self.device.refusal("stop", reason));
        }
        self.device.stop();
        Ok(Port {
            device: self.device,
            state: Stopped(()),
        })
    }
}
