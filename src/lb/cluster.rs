//! Several workers' shards in one test, with the rings between them: packets go in at any worker,
//! and come out where the owner sends them. Tests only.

use std::sync::Arc;

use super::counters::{DropReason, WorkerCounters};
use super::exits::Decided;
use super::fixture::TestOutbox;
use super::flow::Seed;
use super::fragment::FragmentStore;
use super::frame::{Frame, MemoryFrame};
use super::shard::{Shard, ShardSize};
use super::snapshot::Snapshot;
use super::{Arrival, MAX_BURST, Now, Pass, Verdict};

pub struct Cluster {
    pub shards: Vec<Shard>,
    /// The fragments each worker holds.
    pub stores: Vec<FragmentStore<MemoryFrame>>,
    /// The ends of held fragments, in order.
    pub released: Vec<Outcome>,
    pub outbox: TestOutbox,
    pub now: Now,
}

/// A packet's end: the worker that decided, its verdict, and the frame as that left it.
#[derive(Debug)]
pub struct Outcome {
    pub worker: usize,
    pub verdict: Verdict,
    pub frame: Vec<u8>,
}

impl Outcome {
    /// The frame, which must have been sent out of port 0.
    #[track_caller]
    pub fn transmitted(self) -> Vec<u8> {
        assert_eq!(self.verdict, Verdict::Transmit(0));
        self.frame
    }
}

impl Cluster {
    pub fn new(workers: usize, connections: usize) -> Self {
        let size = ShardSize {
            connections_v4: connections,
            connections_v6: connections,
            services: 4,
        };
        Self::of_size(workers, size)
    }

    pub fn of_size(workers: usize, size: ShardSize) -> Self {
        let shard = |n| {
            let counters = Arc::new(WorkerCounters::new(16));
            let seed = Seed([
                0x9e37_79b9_7f4a_7c15,
                0xd1b5_4a32_d192_ed03,
                0x8cb9_2ba7_2f3d_8dd7,
            ]);
            Shard::new(size, seed, n as u32, workers as u32, counters).expect("memory")
        };
        Self {
            shards: (0..workers).map(shard).collect(),
            stores: (0..workers).map(|_| FragmentStore::default()).collect(),
            released: Vec::new(),
            outbox: TestOutbox::default(),
            now: Now::from_nanos(1_000_000_000_000),
        }
    }

    pub fn counters(&self, worker: usize) -> &WorkerCounters {
        &self.shards[worker].counters
    }

    /// The sum of one counter over the workers.
    pub fn total(&self, counter: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.shards.iter().map(|s| counter(&s.counters)).sum()
    }

    pub fn pass_seconds(&mut self, seconds: u64) {
        self.now = Now::from_nanos(self.now.nanos + seconds * 1_000_000_000);
    }

    /// One packet arrives from port 0 at `worker`, and follows the rings to its end.
    #[track_caller]
    pub fn feed(&mut self, snapshot: &Snapshot, worker: usize, frame: &[u8]) -> Outcome {
        let frame = MemoryFrame::new(frame);
        let outcome = self.follow(snapshot, worker, Arrival::Port(0), frame);
        self.release(snapshot);
        outcome
    }

    #[track_caller]
    fn follow(
        &mut self,
        snapshot: &Snapshot,
        mut at: usize,
        mut arrival: Arrival,
        mut frame: MemoryFrame,
    ) -> Outcome {
        // To the keeper of fragments, the owner, the chooser of a backend, and back.
        for _ in 0..5 {
            let verdict = self.step(snapshot, at, arrival, &mut frame);
            if let Verdict::HandOff(next) = verdict {
                assert_ne!(usize::from(next), at, "handed to itself");
                (at, arrival) = (usize::from(next), Arrival::HandOff);
                continue;
            }
            let outcome = Outcome {
                worker: at,
                verdict,
                frame: frame.bytes().to_vec(),
            };
            if let Verdict::Hold(ticket) = verdict
                && let Some(displaced) = self.stores[at].put(ticket, frame)
            {
                self.end(at, displaced);
            }
            return outcome;
        }
        panic!("handed around without end");
    }

    fn end(&mut self, worker: usize, frame: MemoryFrame) {
        self.released.push(Outcome {
            worker,
            verdict: Verdict::Drop(DropReason::Fragment),
            frame: frame.bytes().to_vec(),
        });
    }

    /// What each worker does after a burst: held fragments whose wait is over.
    #[track_caller]
    pub fn release(&mut self, snapshot: &Snapshot) {
        for worker in 0..self.shards.len() {
            if self.shards[worker].fragments.is_idle() {
                continue;
            }
            while let Some(released) = self.shards[worker].release_fragment(self.now) {
                let frame = self.stores[worker].take(released.ticket);
                let frame = frame.expect("a ticket has a frame");
                if released.goes_on {
                    let outcome = self.follow(snapshot, worker, Arrival::HandOff, frame);
                    self.released.push(outcome);
                } else {
                    self.end(worker, frame);
                }
            }
        }
    }

    /// What one worker says about one packet.
    pub fn step(
        &mut self,
        snapshot: &Snapshot,
        worker: usize,
        arrival: Arrival,
        frame: &mut MemoryFrame,
    ) -> Verdict {
        let frames = std::slice::from_mut(frame);
        self.burst(snapshot, worker, arrival, frames).1[0]
    }

    /// What one worker makes of a burst.
    pub fn burst(
        &mut self,
        snapshot: &Snapshot,
        worker: usize,
        arrival: Arrival,
        frames: &mut [MemoryFrame],
    ) -> (Decided, [Verdict; MAX_BURST]) {
        let mut verdicts = [Verdict::Pass(Pass::Local); MAX_BURST];
        let decided = self.shards[worker].process(
            snapshot,
            self.now,
            arrival,
            frames,
            &mut verdicts,
            &mut self.outbox,
        );
        (decided, verdicts)
    }
}
