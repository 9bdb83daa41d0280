//! Publishing snapshots under a worker that forwards.

use std::sync::Arc;
use std::time::Instant;

use evenkeel::lb::snapshot::Snapshot;
use evenkeel::port::Eal;
use evenkeel::worker::Message;

use super::{Bench, Failure, World, nanos, quantile, start};

/// Different snapshots that are published in turn.
const SNAPSHOTS: usize = 8;
/// Bursts between two swaps.
const QUIET: usize = 64;

/// The time that a change of one backend's weight takes until the worker uses it, and bursts'
/// round trips with and without a swap between them.
pub fn publish(
    eal: &Eal,
    world: &mut World,
    frames: &[Vec<u8>],
    swaps: usize,
) -> Result<String, Failure> {
    let begun = Instant::now();
    let mut snapshots = vec![world.build()];
    let first = begun.elapsed();
    let (mut bench, handle) = start(eal, &snapshots[0], frames, ["net_ring0", "net_ring1"])?;
    bench.establish()?;
    let (mut builds, mut published) = (Vec::new(), Vec::new());
    for n in 0..SNAPSHOTS {
        let service = world.desired.config.services[n].clone();
        let id = world.desired.find_backend(&service, &service.backends[0]);
        let id = id.ok_or("a backend without an id")?;
        let begun = Instant::now();
        world.desired.set_weight(id, Some(2));
        let snapshot = world.build();
        builds.push(begun.elapsed().as_micros() as u64);
        bench.swap(&snapshot)?;
        while bench.counters.generation.get() != snapshot.generation {
            std::hint::spin_loop();
        }
        published.push(begun.elapsed().as_micros() as u64);
        snapshots.push(snapshot);
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for n in 0..swaps {
        for _ in 0..QUIET {
            without.push(nanos(bench.round_trip()?));
        }
        let before = bench.counters.swaps.get();
        bench.swap(&snapshots[n % snapshots.len()])?;
        // The worker obeys between two bursts: the swap shows in this burst or the next.
        while bench.counters.swaps.get() == before {
            with.push(nanos(bench.round_trip()?));
        }
        with.push(nanos(bench.round_trip()?));
    }
    let lost = bench.counters.dropped_total();
    bench.stop(handle)?;
    let all = [&mut builds, &mut published, &mut with, &mut without];
    all.into_iter().for_each(|values| values.sort_unstable());
    Ok(format!(
        "{{\"services\": {}, \"read_ms\": {}, \"first_build_ms\": {}, \"build_us\": {}, \
         \"publish_us\": {}, \"swaps\": {swaps}, \"burst_p99_ns\": {}, \"burst_with_swap_p99_ns\": {}, \
         \"burst_max_ns\": {}, \"burst_with_swap_max_ns\": {}, \"lost\": {lost}}}",
        world.desired.config.services.len(),
        world.read.as_millis(),
        first.as_millis(),
        quantile(&builds, 0.5),
        quantile(&published, 0.5),
        quantile(&without, 0.99),
        quantile(&with, 0.99),
        quantile(&without, 1.0),
        quantile(&with, 1.0),
    ))
}

impl Bench<'_> {
    /// Sends the worker a snapshot, and drops what came back.
    fn swap(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), Failure> {
        while self.events.pop().is_some() {}
        let message = Box::new(Message::Swap(Arc::clone(snapshot)));
        let pushed = self.commands.push(message);
        pushed.map_err(|_full| "no room for a command".into())
    }
}
