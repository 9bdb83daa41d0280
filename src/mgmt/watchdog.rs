//! Notices that the management loop stands still, and says so: in the log, in the status once the
//! loop goes on, and to systemd, whose watchdog is fed only while the loop beats.
//!
//! A thread of its own, which touches nothing but the [`Pulse`]. It cannot free a thread that hangs;
//! workers do not wait for that, and whether the program is to be started anew is systemd's to
//! decide (`WatchdogSec=`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// A loop that has not beaten for so long stands still: a hundred times what its slowest work takes.
const STALL: Duration = Duration::from_secs(2);
/// How often the watchdog looks, unless systemd wants to be fed more often.
const LOOK: Duration = Duration::from_millis(250);

/// The management loop's sign of life: one writer, many readers, nobody waits.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds from `start` to the last beat.
    last: AtomicU64,
    stalls: AtomicU64,
    longest: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }
    }
}

/// How well the management loop went, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalls {
    /// Times that it stood still for longer than two seconds.
    pub count: u64,
    pub longest: Duration,
}

impl Pulse {
    /// The loop is alive. Its own look at how long the last turn took counts: the watchdog, which
    /// looks now and then, would round it.
    pub fn beat(&self, now: Instant) {
        let now = self.millis(now);
        let pause = now.saturating_sub(self.last.swap(now, Ordering::Relaxed));
        if pause >= STALL.as_millis() as u64 {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            self.longest.fetch_max(pause, Ordering::Relaxed);
        }
    }

    pub fn stalls(&self) -> Stalls {
        Stalls {
            count: self.stalls.load(Ordering::Relaxed),
            longest: Duration::from_millis(self.longest.load(Ordering::Relaxed)),
        }
    }

    /// How long ago the last beat was.
    pub fn silence(&self, now: Instant) -> Duration {
        let last = self.last.load(Ordering::Relaxed);
        Duration::from_millis(self.millis(now).saturating_sub(last))
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }
}

/// The thread; it ends with this value.
#[derive(Debug)]
pub struct Watchdog {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// # Errors
    /// When there are too many threads.
    pub fn start(pulse: Arc<Pulse>) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let feed = sd_notify::watchdog_enabled();
        // Twice in systemd's interval, as sd_watchdog_enabled(3) has it, and once more to be sure.
        let look = feed.map_or(LOOK, |interval| LOOK.min(interval / 3));
        let watch = move || {
            let mut observer = Observer::default();
            while stopped.recv_timeout(look) == Err(RecvTimeoutError::Timeout) {
                let silence = pulse.silence(Instant::now());
                if let Some(line) = observer.observe(silence) {
                    tracing::warn!("{line}");
                }
                if feed.is_some() && silence < STALL {
                    tell_systemd(&[NotifyState::Watchdog]);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(watch)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic, and there is nobody left to be told.
            let _ = thread.join();
        }
    }
}

/// What the log is told of a loop that stands still: at once, then each time that it has lasted
/// twice as long, and when it is over.
#[derive(Debug, Default)]
struct Observer {
    longest: Duration,
    next: Duration,
}

impl Observer {
    fn observe(&mut self, silence: Duration) -> Option<String> {
        if silence < STALL {
            let was = std::mem::take(&mut self.longest);
            self.next = STALL;
            return (was >= STALL).then(|| {
                format!(
                    "the management loop goes on, after about {} s",
                    was.as_secs()
                )
            });
        }
        self.longest = silence;
        if silence < self.next {
            return None;
        }
        self.next = silence * 2;
        Some(format!(
            "the management loop stands still since {} s; packets are forwarded, but checks, changes and answers wait",
            silence.as_secs()
        ))
    }
}

/// Tells systemd, if it is there, that the appliance forwards.
pub fn ready() {
    tell_systemd(&[NotifyState::Ready]);
}

/// Does what a signal asked for, between telling systemd, if it is there, that it has begun and that
/// it is done: `systemctl reload` waits for that.
pub fn reloading(reload: impl FnOnce()) {
    let begun = NotifyState::monotonic_usec_now();
    if let Ok(now) = begun {
        tell_systemd(&[NotifyState::Reloading, now]);
    }
    reload();
    ready();
}

/// Tells systemd, if it is there, that the appliance comes to its end.
pub fn stopping() {
    tell_systemd(&[NotifyState::Stopping]);
}

/// Does nothing where no `NOTIFY_SOCKET` is set.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd was not told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn long_turns_are_counted_and_short_ones_are_not() {
        let pulse = Pulse::default();
        let at = |s: f64| pulse.start + seconds(s);
        for time in [0.001, 0.5, 2.4, 33.0, 33.1, 35.2] {
            pulse.beat(at(time));
        }
        let stalls = pulse.stalls();
        assert_eq!((stalls.count, stalls.longest), (2, seconds(30.6)));
        assert_eq!(pulse.silence(at(36.2)), seconds(1.0));
    }

    #[test]
    fn a_stall_is_told_at_once_then_ever_more_seldom_and_at_its_end() {
        let mut observer = Observer::default();
        let mut told = Vec::new();
        let silences = (0..130).map(|n| f64::from(n) * 0.25);
        for silence in silences.chain([0.1, 0.2]) {
            let line = observer.observe(seconds(silence));
            told.extend(line.map(|line| (silence, line)));
        }
        let times: Vec<f64> = told.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [2.0, 4.0, 8.0, 16.0, 32.0, 0.1]);
        assert!(told[0].1.contains("stands still since 2 s"), "{told:?}");
        assert!(told[5].1.contains("goes on, after about 32 s"), "{told:?}");
    }

    /// systemd's end of the notification socket is a datagram socket whose path is in the
    /// environment, which is the whole process's: tests/service.rs looks at that.
    #[test]
    fn the_thread_ends_with_its_value() {
        let pulse = Arc::new(Pulse::default());
        let watchdog = Watchdog::start(pulse.clone()).expect("a thread");
        assert_eq!(Arc::strong_count(&pulse), 2);
        drop(watchdog);
        assert_eq!(Arc::strong_count(&pulse), 1);
    }
}
