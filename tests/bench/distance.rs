//! How far apart two CPUs are: what it takes until a line that one has written is seen by the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

const ROUNDS: u64 = 2_000;
/// Batches of rounds, of which the quickest counts: in the others somebody was interrupted.
const BATCHES: u64 = 50;

/// Nanoseconds one way, between the two CPUs that this process may use.
pub fn between_cpus() -> f64 {
    let line = Arc::new(AtomicU64::new(0));
    let other = Arc::clone(&line);
    let answers = std::thread::spawn(move || {
        for round in 0..ROUNDS * BATCHES {
            wait_for(&other, 2 * round + 1);
            other.store(2 * round + 2, Relaxed);
        }
    });
    let mut least = f64::MAX;
    for batch in 0..BATCHES {
        let begun = Instant::now();
        for round in batch * ROUNDS..(batch + 1) * ROUNDS {
            line.store(2 * round + 1, Relaxed);
            wait_for(&line, 2 * round + 2);
        }
        let nanos = begun.elapsed().as_nanos() as f64;
        least = least.min(nanos / (2 * ROUNDS) as f64);
    }
    // It has answered all.
    let _ = answers.join();
    least
}

/// Looks without a pause, which would be part of what is measured; but where both threads are on one
/// CPU, the other has to get it.
fn wait_for(line: &AtomicU64, value: u64) {
    let mut looks = 0u32;
    while line.load(Relaxed) != value {
        looks += 1;
        if looks.is_multiple_of(1 << 16) {
            std::thread::yield_now();
        }
    }
}
