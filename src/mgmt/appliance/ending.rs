//! The appliance's end: workers, then ports, then DPDK.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Appliance;
use super::balance::{self, Balance};
use crate::mgmt::workers::WorkerLink;
use crate::port::EalError;
use crate::worker::Message;

impl Appliance {
    /// Stops the workers, then the ports, and returns the last balance of packets. An error where
    /// DPDK could not be stopped, because a packet or a queue is still held somewhere.
    pub fn shut_down(mut self) -> Result<Balance, EalError> {
        /// All of it takes less than a second.
        const PATIENCE: Duration = Duration::from_millis(400);
        self.end_capture();
        let mut queues: Vec<(Vec<_>, Vec<_>)> = Vec::new();
        queues.resize_with(self.desired.ports().len(), Default::default);
        for message in [|| Message::Quiesce, || Message::Stop] {
            self.workers
                .iter_mut()
                .for_each(|worker| worker.send(message()));
            let deadline = Instant::now() + PATIENCE;
            while !self.workers.iter().all(WorkerLink::is_quiet) && Instant::now() < deadline {
                for worker in &mut self.workers {
                    worker.collect(|done| {
                        if let Message::Queues { port, rx, tx } = done {
                            queues[port].0.extend(rx);
                            queues[port].1.extend(tx);
                        }
                    });
                    while worker.passed.pop().is_some() {}
                    while worker.checks.pop().is_some() {}
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let mut balance_of = Vec::new();
        for worker in self.workers {
            if let Ok(remains) = worker.remains.recv_timeout(PATIENCE) {
                for ((rx, tx), queues) in remains.ports.into_iter().zip(&mut queues) {
                    queues.0.extend(rx);
                    queues.1.extend(tx);
                }
            }
            balance_of.push(Arc::clone(&worker.counters));
            if let Err(error) = worker.handle.join() {
                tracing::error!("worker on core {}: {error}", worker.core);
            }
        }
        self.ports.stop(queues);
        let balance = balance::sum(&balance_of);
        drop(self.pool);
        self.eal.cleanup()?;
        Ok(balance)
    }
}
