//! Work that is begun again when it panics: a fault in management costs the request or the check in
//! which it lies, and neither the appliance nor its other tasks.
//!
//! Each piece of work keeps its state outside of the future that is given up, and puts it in order
//! when it is begun again. Used on the management thread; the panic hook runs on any.

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

/// Waited before work that panics again and again is begun anew: doubled each time, up to the limit.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// Shorter than a stall that the watchdog would speak of.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Work that has gone well for so long is begun again at once.
const WELL: Duration = Duration::from_secs(10);

static PANICS: AtomicU64 = AtomicU64::new(0);
static LAST: Mutex<Option<String>> = Mutex::new(None);

/// Panics of this process since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Panics {
    pub count: u64,
    /// Where the last one was, and what it said.
    pub last: Option<String>,
}

pub fn panics() -> Panics {
    Panics {
        count: PANICS.load(Ordering::Relaxed),
        last: LAST.lock().unwrap_or_else(PoisonError::into_inner).clone(),
    }
}

/// From now on panics are counted and go to the log, in whatever form that has.
pub fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(tell)));
}

fn tell(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string);
    let place = place.unwrap_or_else(|| "an unknown place".into());
    let payload = panic.payload();
    let what = payload.downcast_ref::<&str>().copied();
    let what = what.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let what = what.unwrap_or("no message");
    let text = format!("{place}: {what}");
    PANICS.fetch_add(1, Ordering::Relaxed);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("a worker");
    tracing::error!("a fault in evenkeel, in thread {thread}, at {text}; please report this");
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
}

/// The work panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panicked;

/// Does `work`, to its end or to its panic. The caller must put in order what it may have left half
/// done.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    std::future::poll_fn(move |context| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

/// How often one piece of work has been begun.
#[derive(Debug)]
pub struct Restarts {
    work: &'static str,
    begun: Instant,
    pause: Duration,
}

impl Restarts {
    /// `work` completes "... is begun again".
    pub fn of(work: &'static str) -> Self {
        Self {
            work,
            begun: Instant::now(),
            pause: Duration::ZERO,
        }
    }

    /// Says that the work is begun again, and waits, where it fails again and again.
    pub async fn after_panic(&mut self) {
        if self.begun.elapsed() >= WELL {
            self.pause = Duration::ZERO;
        }
        tracing::warn!("{} is begun again; forwarding went on", self.work);
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        self.begun = Instant::now();
    }
}

/// A task that does what `make` makes until that ends without a panic.
pub fn spawn<F>(
    work: &'static str,
    make: impl Fn() -> F + Send + 'static,
) -> tokio::task::AbortHandle
where
    F: Future<Output = ()> + Send + 'static,
{
    let keep = async move {
        let mut restarts = Restarts::of(work);
        while caught(make()).await.is_err() {
            restarts.after_panic().await;
        }
    };
    tokio::spawn(keep).abort_handle()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[tokio::test]
    async fn work_that_panics_is_begun_again_until_it_ends() {
        let begun = Arc::new(AtomicU32::new(0));
        let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let count = begun.clone();
        spawn("a test", move || {
            let (count, sender) = (count.clone(), sender.clone());
            async move {
                tokio::task::yield_now().await;
                assert!(count.fetch_add(1, Ordering::Relaxed) == 2, "not yet");
                let _ = sender.send(());
            }
        });
        ended.recv().await.expect("it ended well");
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_while_it_goes_on_failing_and_is_bounded() {
        let mut restarts = Restarts::of("a test");
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let before = tokio::time::Instant::now();
            restarts.after_panic().await;
            pauses.push(before.elapsed().as_millis());
        }
        // tokio's timers count whole milliseconds.
        assert_eq!(pauses[0], 0);
        assert!(pauses[1] >= 10 && pauses[1] < 20, "{pauses:?}");
        assert!(pauses.windows(2).all(|two| two[0] <= two[1]), "{pauses:?}");
        assert!(pauses[8] >= 1000 && pauses[8] < 1010, "{pauses:?}");
    }
}
