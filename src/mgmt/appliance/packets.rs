//! Packets between the workers' rings and what management does with them: neighbours, health checks,
//! frames that wait for their next hop. Runs on the management thread; no packet that is forwarded
//! comes here.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Appliance;
use crate::lb::parse::{Parsed, parse};
use crate::mgmt::health::Outgoing;
use crate::mgmt::net::{Fate, Output};
use crate::mgmt::workers::WorkerLink;
use crate::port::clock::Tsc;
use crate::port::{Mbuf, Mempool};
use crate::worker::{RESOLVE, interface_of};

/// Frames taken from one worker at a time, so that a flood of them starves nobody else.
const PASSED_AT_ONCE: usize = 256;
/// The same for packets to check addresses, which cost more each. With the time between two looks this is their rate
/// limit: what comes faster fills its ring, and is dropped and counted there.
const CHECKS_AT_ONCE: usize = 128;
/// Probes' packets sent before anything else gets its turn.
const PROBES_AT_ONCE: usize = 64;

impl Appliance {
    pub(super) fn take_passed(&mut self, worker: usize, now: Instant, out: &mut Output) {
        for _ in 0..PASSED_AT_ONCE {
            let Some(mbuf) = self.workers[worker].passed.pop() else {
                return;
            };
            let port = self.interface(&mbuf);
            if mbuf.stamp() & RESOLVE == 0 {
                // Direct checks come from the port's own address.
                if !self.checks.receive(mbuf.bytes(), self.received_at(&mbuf))
                    && self.net.receive(port, mbuf.bytes(), now, out) == Fate::Shared
                {
                    self.share(port, &mbuf);
                }
                continue;
            }
            let Some(destination) = destination(mbuf.bytes()) else {
                continue;
            };
            self.send_to(destination, mbuf.bytes().to_vec(), now, out);
        }
    }

    /// Gives Linux what it shares with us, where it has an interface beside the port.
    fn share(&mut self, port: u16, mbuf: &Mbuf) {
        // A packet in pieces is longer than a port's MTU lets Linux expect.
        if mbuf.segments() == 1 {
            let Self { kernel, net, .. } = self;
            kernel.give(port, mbuf.bytes(), |address| net.is_ours(port, address));
        }
    }

    /// Sends what Linux sends by its interfaces.
    pub(super) fn take_from_kernel(&mut self) {
        let Self {
            kernel,
            pool,
            workers,
            ..
        } = self;
        kernel.take(|port, frame| inject(pool, &mut workers[0], port, frame));
    }

    /// Sends a frame whose addresses are still to be written to the next hop toward
    /// `destination`, as soon as that is known.
    pub(super) fn send_to(
        &mut self,
        destination: IpAddr,
        mut frame: Vec<u8>,
        now: Instant,
        out: &mut Output,
    ) {
        let Some((port, mac)) = self.net.resolve(destination, None, now, out) else {
            self.net.resolve(destination, Some(frame), now, out);
            return;
        };
        frame[..6].copy_from_slice(mac.as_bytes());
        if let Some(facts) = self.desired.ports().get(usize::from(port)) {
            frame[6..12].copy_from_slice(&facts.mac);
        }
        out.frames.push((port, frame));
    }

    /// Answers to probes, and whatever else was sent to a check address.
    pub(super) fn take_checks(&mut self, worker: usize, now: Instant, out: &mut Output) {
        for _ in 0..CHECKS_AT_ONCE {
            let Some(mbuf) = self.workers[worker].checks.pop() else {
                return;
            };
            if !self.checks.receive(mbuf.bytes(), self.received_at(&mbuf)) {
                let port = self.interface(&mbuf);
                self.net.receive(port, mbuf.bytes(), now, out);
            }
        }
    }

    /// When a worker received a packet, by its stamp.
    pub(super) fn received_at(&self, mbuf: &Mbuf) -> Instant {
        let age = self.clock.nanos(Tsc::now().wrapping_sub(mbuf.stamp()));
        let now = Instant::now();
        now.checked_sub(Duration::from_nanos(age)).unwrap_or(now)
    }

    /// Sends a probe's packet, and some of those behind it.
    pub(super) fn send_probes(&mut self, first: Outgoing) {
        let (now, mut out) = (Instant::now(), Output::default());
        let mut next = Some(first);
        let mut count = 0;
        while let Some(packet) = next {
            let towards = packet.towards;
            self.send_to(towards, packet.into_frame(), now, &mut out);
            count += 1;
            next = match count < PROBES_AT_ONCE {
                true => self.checks.next_packet(),
                false => None,
            };
        }
        self.carry_out(out);
    }

    /// Hands a frame to a worker to send; lost, as on a full wire, when nothing is free.
    pub(super) fn send(&mut self, port: u16, frame: &[u8]) {
        inject(&self.pool, &mut self.workers[0], port, frame);
    }

    /// The index of the port or VLAN that a packet came in on.
    fn interface(&self, mbuf: &Mbuf) -> u16 {
        let of_port = || self.ports.index_of(mbuf.port()).unwrap_or(0) as u16;
        interface_of(mbuf).map_or_else(of_port, u16::from)
    }
}

/// Hands a frame to a worker to send; false where no buffer is free, or its ring is full.
fn inject(pool: &Mempool, worker: &mut WorkerLink, port: u16, frame: &[u8]) -> bool {
    let Some(mut mbuf) = pool.alloc() else {
        return false;
    };
    mbuf.set_stamp(u64::from(port));
    mbuf.fill(frame) && worker.inject.push(mbuf).is_ok()
}

/// Where a rewritten packet is going.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    match parse(frame, true) {
        Parsed::V4(packet) => Some(packet.key.destination.into()),
        Parsed::V6(packet) => Some(packet.key.destination.into()),
        _ => None,
    }
}
