//! A worker's queues of one port, and how much it asks of them at once.

use super::handoff::HandOffs;
use crate::port::{Batch, RxQueue, TxBuffer};

/// A worker's queues of one port.
pub struct WorkerPort {
    /// None where the port has fewer queues than there are workers (other workers receive, and
    /// hand over what belongs here), and while the port is being reset.
    pub rx: Option<RxQueue>,
    pub tx: TxBuffer,
    /// Nothing came the last time.
    pub(super) silent: bool,
}

impl WorkerPort {
    pub fn new(rx: Option<RxQueue>, tx: TxBuffer) -> Self {
        let silent = false;
        Self { rx, tx, silent }
    }

    pub(super) fn set_burst(&mut self, burst: u16) {
        if let Some(rx) = &mut self.rx {
            rx.set_burst(burst);
        }
    }
}

/// Packets to ask a port for at once. Their buffers, what a driver reads beside them and their flows'
/// entries shall stay in a core's first cache from the driver's visit to the last pass, and of a whole
/// batch some lines have gone by then. Among several workers it is a whole one: what they hand over
/// costs both a visit to a ring, whatever is in it.
pub(super) fn burst(handoffs: &HandOffs) -> u16 {
    match handoffs.is_alone() {
        true => 48,
        false => Batch::CAPACITY as u16,
    }
}
