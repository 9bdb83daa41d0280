//! Latency through the worker, and through a loop that does nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use evenkeel::lb::counters::WorkerCounters;
use evenkeel::port::clock::Tsc;
use evenkeel::port::ring::spsc;
use evenkeel::port::{Batch, Eal, LcoreHandle, Mempool};

use super::{BURST, Bench, Failure, STAMP, World, nanos, quantile, start, wire};

/// The inner packet of a tunnel lies behind 20 more bytes.
const BEHIND: std::ops::Range<usize> = STAMP.start + 20..STAMP.end + 20;

/// Latency through the worker at 80 % of the rate that it carries in this arrangement, and through
/// a loop that does nothing, at the same rate.
pub fn latency(
    eal: &Eal,
    world: &mut World,
    frames: &[Vec<u8>],
    seconds: f64,
) -> Result<String, Failure> {
    let snapshot = world.build();
    let (mut bench, handle) = start(eal, &snapshot, frames, ["net_ring0", "net_ring1"])?;
    bench.establish()?;
    let rate = 0.8 * bench.most(BEHIND)?;
    let through = bench.windows(rate, seconds, BEHIND)?;
    bench.stop(handle)?;
    let (mut bench, stop, handle) = echo(eal, frames, ["net_ring2", "net_ring3"])?;
    let beside = bench.windows(rate, seconds, STAMP);
    stop.store(true, Ordering::Relaxed);
    handle.join()?;
    drop(bench);
    let beside = beside?;
    Ok(format!(
        "{{\"mpps\": {:.3}, \"load\": 0.8, \"evenkeel\": {}, \"echo\": {}}}",
        rate / 1e6,
        through.json(),
        beside.json()
    ))
}

/// A worker's place taken by a loop that sends back what it receives.
fn echo<'f>(
    eal: &Eal,
    frames: &'f [Vec<u8>],
    devices: [&str; 2],
) -> Result<(Bench<'f>, Arc<AtomicBool>, LcoreHandle), Failure> {
    let pool = Mempool::new("packets", 16_383, 2048, 256, -1)?;
    let (there, mut far_rx, tx) = wire(&pool, devices[0])?;
    let (back, rx, mut far_tx) = wire(&pool, devices[1])?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let body = move || {
        let mut batch = Batch::new();
        while !stopped.load(Ordering::Relaxed) {
            far_rx.receive(&mut batch);
            far_tx.send(&mut batch);
        }
    };
    let handle = eal.launch(1, Box::new(body))?;
    let ((commands, _), (_, events)) = (spsc("commands", 64)?, spsc("events", 64)?);
    let ((_, passed), (_, checks)) = (spsc("passed", 64)?, spsc("checks", 64)?);
    let (inject, _) = spsc("inject", 64)?;
    let bench = Bench {
        frames,
        next: 0,
        pool,
        tx,
        rx,
        batch: Batch::new(),
        commands,
        events,
        counters: Arc::new(WorkerCounters::new(0)),
        _passed: [passed, checks],
        _inject: inject,
        _ports: [there, back],
    };
    Ok((bench, stop, handle))
}

/// Nanoseconds on a CPU, by thread of this process.
fn spent() -> Result<HashMap<String, u64>, Failure> {
    let mut spent = HashMap::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        let statistics = std::fs::read_to_string(path.join("schedstat"))?;
        let first = statistics.split_whitespace().next();
        let nanos = first.ok_or("no time in schedstat")?.parse()?;
        spent.insert(path.display().to_string(), nanos);
    }
    Ok(spent)
}

/// Frames' times in nanoseconds, sorted.
struct Times {
    sorted: Vec<u64>,
    sent: u64,
}

impl Times {
    fn json(&self) -> String {
        let at = |part| quantile(&self.sorted, part);
        format!(
            "{{\"p50_ns\": {}, \"p99_ns\": {}, \"p999_ns\": {}, \"frames\": {}, \"lost\": {}}}",
            at(0.5),
            at(0.99),
            at(0.999),
            self.sent,
            self.sent - self.sorted.len() as u64
        )
    }
}

impl Bench<'_> {
    /// The highest of a row of rates, each a tenth lower than the one before, at which no frame is
    /// lost and none waits long, per second.
    fn most(&mut self, at: std::ops::Range<usize>) -> Result<f64, Failure> {
        const HIGHEST: f64 = 20e6;
        const SECONDS: f64 = 0.3;
        const LONG: u64 = 100_000;
        let rates = (0..40).map(|n| HIGHEST * 0.9f64.powi(n));
        for rate in rates {
            let times = self.window(rate, SECONDS, at.clone())?;
            let all_back = times.sent == times.sorted.len() as u64;
            if all_back && quantile(&times.sorted, 0.99) < LONG {
                return Ok(rate);
            }
        }
        Err("no rate is carried without loss".into())
    }

    /// As [`Bench::paced`], in windows of a part of the time each, so that a busy machine leaves
    /// some of them alone.
    fn windows(
        &mut self,
        rate: f64,
        seconds: f64,
        at: std::ops::Range<usize>,
    ) -> Result<Times, Failure> {
        const WINDOWS: u32 = 10;
        let mut all = Times {
            sorted: Vec::new(),
            sent: 0,
        };
        for _ in 0..WINDOWS {
            let times = self.window(rate, seconds / f64::from(WINDOWS), at.clone())?;
            all.sorted.extend(times.sorted);
            all.sent += times.sent;
        }
        all.sorted.sort_unstable();
        Ok(all)
    }

    /// As [`Bench::paced`], again and again until both threads had their CPUs meanwhile.
    fn window(
        &mut self,
        rate: f64,
        seconds: f64,
        at: std::ops::Range<usize>,
    ) -> Result<Times, Failure> {
        const CPU_SHARE: f64 = 0.97;
        const PATIENCE: usize = 60;
        for _ in 0..PATIENCE {
            let (before, begun) = (spent()?, Instant::now());
            let times = self.paced(rate, seconds, at.clone());
            let elapsed = begun.elapsed().as_nanos() as f64;
            let after = spent()?;
            let of = |(thread, nanos): (&String, &u64)| nanos - before.get(thread).unwrap_or(&0);
            let mut shares: Vec<u64> = after.iter().map(of).collect();
            shares.sort_unstable();
            // The sender and the worker, which both poll.
            let second = shares.iter().rev().nth(1).copied().unwrap_or(0);
            if second as f64 >= CPU_SHARE * elapsed {
                return Ok(times);
            }
        }
        Err("these CPUs are busy: try again later".into())
    }

    /// Sends at a rate, each frame when it is due. Times run from when a frame was due, so that a
    /// late sender hides nothing.
    fn paced(&mut self, rate: f64, seconds: f64, at: std::ops::Range<usize>) -> Times {
        let ticks = Tsc::hz() as f64 / rate;
        let all = (rate * seconds) as u64;
        // Written at once, so that no page fault counts as latency.
        let mut times = vec![u64::MAX; all as usize];
        let begun = Tsc::now();
        let (mut sent, mut back, mut last) = (0, 0, begun);
        while sent < all || Tsc::now() - last < Tsc::hz() / 10 {
            let now = Tsc::now();
            let due = (((now - begun) as f64 / ticks) as u64).min(all);
            if due > sent {
                let count = (due - sent).min(BURST as u64) as usize;
                // The first of them has waited longest: its time is taken for all.
                let first = begun + (sent as f64 * ticks) as u64;
                sent += self.send(count, first) as u64;
                last = now;
            }
            self.take(at.clone(), |stamp| {
                times[back] = Tsc::now() - stamp;
                back += 1;
            });
        }
        times.truncate(back);
        times.iter_mut().for_each(|time| *time = nanos(*time));
        times.sort_unstable();
        Times {
            sorted: times,
            sent,
        }
    }
}
