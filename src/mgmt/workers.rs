//! Management's ends of the rings to the workers.
//!
//! A command goes down as a box and comes back up when it is done, so a worker never frees
//! anything and management always knows what is outstanding. Runs on the management thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc;

use crate::arch::Populate;
use crate::lb::counters::WorkerCounters;
use crate::lb::listing;
use crate::lb::snapshot::Snapshot;
use crate::port::ring::{Consumer, Producer};
use crate::port::{LcoreHandle, Mbuf};
use crate::worker::{Message, Remains};

/// Commands that may be on their way to one worker; the rings hold that many both ways, so an
/// answer always finds room.
pub const COMMANDS: usize = 64;

/// One worker, seen from management.
pub struct WorkerLink {
    pub commands: Producer<Box<Message>>,
    pub events: Consumer<Box<Message>>,
    pub passed: Consumer<Mbuf>,
    /// What was sent to check addresses.
    pub checks: Consumer<Mbuf>,
    pub inject: Producer<Mbuf>,
    pub counters: Arc<WorkerCounters>,
    pub handle: LcoreHandle,
    pub remains: mpsc::Receiver<Remains>,
    pub core: u16,
    /// The memory of its persistence.
    pub templates: Populate,
    /// Connections that its tables can hold.
    pub capacity: u64,
    /// Commands that are on their way or being obeyed.
    pub outstanding: usize,
    /// Commands for which the ring has no room yet.
    pub backlog: VecDeque<Box<Message>>,
    pub totals: CommandTotals,
}

/// How many commands went where, since the start.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct CommandTotals {
    pub sent: u64,
    pub done: u64,
    /// Snapshots sent to the worker, and old ones that came back and were dropped.
    pub snapshots_sent: u64,
    pub snapshots_retired: u64,
}

impl WorkerLink {
    /// Sends a command now, or as soon as there is room.
    pub fn send(&mut self, message: Message) {
        // Of several waiting snapshots only the last one matters.
        if matches!(message, Message::Swap(_)) {
            self.backlog.retain(|m| !matches!(**m, Message::Swap(_)));
        }
        self.backlog.push_back(Box::new(message));
        self.push();
    }

    pub fn publish(&mut self, snapshot: &Arc<Snapshot>) {
        self.send(Message::Swap(Arc::clone(snapshot)));
    }

    fn push(&mut self) {
        while self.outstanding < COMMANDS
            && let Some(message) = self.backlog.pop_front()
        {
            let is_swap = matches!(*message, Message::Swap(_));
            if let Err(message) = self.commands.push(message) {
                self.backlog.push_front(message);
                return;
            }
            self.outstanding += 1;
            self.totals.sent += 1;
            self.totals.snapshots_sent += u64::from(is_swap);
        }
    }

    /// Takes back what is done, hands it to `done`, and sends what waited.
    pub fn collect(&mut self, mut done: impl FnMut(Message)) {
        while let Some(message) = self.events.pop() {
            self.outstanding -= 1;
            self.totals.done += 1;
            self.totals.snapshots_retired += u64::from(matches!(*message, Message::Swap(_)));
            done(*message);
        }
        self.push();
    }

    /// A fault that was asked for: as many commands as both rings hold and one in the worker's hand,
    /// which must not be collected meanwhile.
    pub fn fill_rings(&mut self) {
        // Beyond the end of every table.
        let nothing = || Message::List(Box::new(listing::Request::new(0, usize::MAX / 2)));
        while self.outstanding <= 2 * COMMANDS {
            // A worker that takes one makes room for the next.
            if self.commands.push(Box::new(nothing())).is_ok() {
                self.outstanding += 1;
                self.totals.sent += 1;
            }
        }
    }

    /// Nothing is on its way or waits.
    pub fn is_quiet(&self) -> bool {
        self.outstanding == 0 && self.backlog.is_empty()
    }
}
