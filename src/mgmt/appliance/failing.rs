//! What is done after a fault of management itself, and faults that tests ask for.

use std::time::{Duration, Instant};

use super::Appliance;
use crate::mgmt::faults::Fault;
use crate::mgmt::hash_tables::Ahead;
use crate::mgmt::workers::WorkerLink;

impl Appliance {
    /// After a panic: gives up what was half done, and derives anew what follows from the
    /// configuration. Ids, counters, neighbours and what checks found survive.
    pub fn put_in_order(&mut self) {
        // Whoever waits for these is told; what workers still answer is nobody's.
        self.listings.clear();
        self.tracings.clear();
        self.end_capture();
        self.ahead = Ahead::default();
        self.rings_held = None;
        let config = match self.before.take() {
            Some(before) => {
                tracing::error!(
                    "the fault came with a new configuration, so the one before is used again"
                );
                *before
            }
            None => self.desired.config.clone(),
        };
        self.apply(config, Instant::now());
        self.desired.change_everything();
    }

    /// Fails as was asked for.
    pub(super) fn fail(&mut self, fault: Fault) {
        tracing::warn!("a fault was asked for: {fault:?}");
        match fault {
            Fault::Stall { milliseconds } => {
                std::thread::sleep(Duration::from_millis(milliseconds));
            }
            Fault::Panic => panic!("asked for"),
            Fault::HoldRings { milliseconds } => {
                self.rings_held = Some(Instant::now() + Duration::from_millis(milliseconds));
                self.workers.iter_mut().for_each(WorkerLink::fill_rings);
            }
        }
    }
}
