//! Where packets go when they are decided about: out of a port, or to management. Belongs to one worker.

use super::{RESOLVE, Rings, WorkerPort};
use crate::lb::counters::{DropReason, WorkerCounters};
use crate::lb::snapshot::Snapshot;
use crate::lb::{Outbox, Pass};
use crate::port::clock::Tsc;
use crate::port::{Mbuf, Mempool};

/// The transmit buffers of all ports, and a pool for packets beside the burst's own.
pub(super) struct WayOut<'a> {
    pub pool: &'a Mempool,
    pub snapshot: &'a Snapshot,
    pub ports: &'a mut [WorkerPort],
    pub counters: &'a WorkerCounters,
}

impl WayOut<'_> {
    #[inline(always)]
    pub fn transmit(&mut self, port: u8, mbuf: Mbuf) {
        match self.ports.get_mut(usize::from(port)) {
            Some(port) => port.tx.push(mbuf),
            None => self.transmit_tagged(port, mbuf),
        }
    }

    /// Out of a VLAN, whose interfaces come behind the ports.
    #[cold]
    fn transmit_tagged(&mut self, interface: u8, mut mbuf: Mbuf) {
        let port = self.snapshot.vlans.send(interface, &mut mbuf);
        match port.map(|port| self.ports.get_mut(usize::from(port))) {
            Ok(Some(port)) => port.tx.push(mbuf),
            Ok(None) => self.counters.count_drop(DropReason::NoNeighbour),
            Err(reason) => self.counters.count_drop(reason),
        }
    }
}

impl Outbox for WayOut<'_> {
    type Frame = Mbuf;

    fn make(&mut self) -> Option<Mbuf> {
        self.pool.alloc()
    }

    fn send(&mut self, port: u8, mbuf: Mbuf) {
        self.counters.generated.add(1);
        self.transmit(port, mbuf);
    }
}

/// Gives a packet to management.
#[cold]
pub(super) fn pass_up(rings: &mut Rings, counters: &WorkerCounters, mut mbuf: Mbuf, pass: Pass) {
    let resolve = if pass == Pass::Resolve { RESOLVE } else { 0 };
    mbuf.set_stamp(Tsc::now() & !RESOLVE | resolve);
    let ring = match pass {
        Pass::Check => &mut rings.checks,
        Pass::Local | Pass::Resolve => &mut rings.passed,
    };
    match ring.push(mbuf) {
        Ok(()) => {
            counters.passed.add(1);
            counters.passed_checks.add(u64::from(pass == Pass::Check));
            let unresolved = u64::from(pass == Pass::Resolve);
            counters.passed_unresolved.add(unresolved);
        }
        Err(_full) => counters.count_drop(DropReason::PuntFull),
    }
}
