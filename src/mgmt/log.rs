//! Where the log goes: standard error, as text for people or one JSON object a line for programs.
//!
//! A line that comes again and again, as when a thousand backends come and go, is bounded by a rate
//! of its own: what is beyond it is counted and left out, and the count is logged.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::config::LogFormat;
use super::net::RateLimit;

/// Names levels and modules as tracing-subscriber's filters do, such as `evenkeel=debug`.
pub const FILTER_VARIABLE: &str = "EVENKEEL_LOG";

/// Lines a second that one place in the code may log for long, and at once: all backends of a large
/// installation may go down together.
const RATE: u32 = 100;
const BURST: u32 = 10_000;
/// How often it is said that lines were left out.
const SAY: Duration = Duration::from_secs(10);

/// Lines left out since the start.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// What a line's message says already; a program that reads JSON wants it apart.
const SAID: [&str; 5] = ["kind", "service", "backend", "port", "worker"];

/// Starts the log. The first call counts; a later one changes nothing.
pub fn init(format: LogFormat) {
    let filter = std::env::var(FILTER_VARIABLE)
        .ok()
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .unwrap_or_else(|| EnvFilter::new("info"));
    // An error means that a log was started before, which then goes on.
    let _ = tracing_subscriber::registry()
        .with(lines(format, std::io::stderr).with_filter(Limit::default()))
        .with(filter)
        .try_init();
}

fn lines<S, W>(format: LogFormat, to: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(to);
    match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text => {
            let fields = fmt::format::debug_fn(|to, field, value| match field.name() {
                "message" => write!(to, "{value:?}"),
                name if SAID.contains(&name) => Ok(()),
                name => write!(to, " {name}={value:?}"),
            });
            let layer = layer.with_target(false).with_ansi(false);
            layer.fmt_fields(fields).boxed()
        }
    }
}

/// Lets each place in the code log at its rate.
#[derive(Default)]
struct Limit {
    places: Mutex<HashMap<Identifier, RateLimit>>,
}

impl<S> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(event.metadata().callsite());
        let limit = place.or_insert_with(|| RateLimit::new(RATE, BURST));
        let takes = limit.take(Instant::now());
        LEFT_OUT.fetch_add(u64::from(!takes), Ordering::Relaxed);
        takes
    }
}

/// When it was said last that lines are missing, and how many.
#[derive(Debug)]
pub struct Gaps {
    told: u64,
    next: Instant,
}

impl Gaps {
    pub fn new(now: Instant) -> Self {
        Self {
            told: LEFT_OUT.load(Ordering::Relaxed),
            next: now,
        }
    }

    /// Logs how many lines were left out since the last time, if there were any.
    pub fn look(&mut self, now: Instant) {
        let all = LEFT_OUT.load(Ordering::Relaxed);
        if all == self.told || now < self.next {
            return;
        }
        let missing = all - self.told;
        (self.told, self.next) = (all, now + SAY);
        tracing::warn!(
            "{missing} lines were left out of this log: one kind came faster than {RATE} a second"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `log` logs.
    fn logged(format: LogFormat, log: impl FnOnce()) -> Vec<String> {
        let paper = Paper::default();
        let to = paper.clone();
        let layer = lines(format, move || to.clone()).with_filter(Limit::default());
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, log);
        let bytes = paper.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    fn transition() {
        tracing::warn!(service = "web", backend = "web-1", "web-1: up -> down");
    }

    #[test]
    fn text_says_it_once_and_json_has_the_parts_too() {
        let text = logged(LogFormat::Text, || {
            transition();
            tracing::info!(extra = 7, "other");
        });
        assert!(text[0].ends_with("WARN web-1: up -> down"), "{text:?}");
        assert!(text[1].ends_with("INFO other extra=7"), "{text:?}");
        let json = logged(LogFormat::Json, transition);
        let line: serde_json::Value = serde_json::from_str(&json[0]).expect("JSON");
        assert_eq!(line["message"], "web-1: up -> down");
        assert_eq!(
            (&line["service"], &line["level"]),
            (&"web".into(), &"WARN".into())
        );
    }

    #[test]
    fn one_place_is_bounded_and_another_is_heard_and_the_gap_is_told() {
        let mut gaps = Gaps::new(Instant::now());
        let lines = logged(LogFormat::Text, || {
            (0..BURST + 5_000).for_each(|_| transition());
            tracing::warn!("somebody else");
            gaps.look(Instant::now());
            gaps.look(Instant::now());
        });
        // While this runs, some more are due.
        let count = lines.len() - 2;
        let most = BURST as usize + 4_000;
        assert!((BURST as usize..most).contains(&count), "{count}");
        let others: Vec<&String> = lines.iter().filter(|l| !l.contains("->")).collect();
        assert!(others[0].ends_with("somebody else"));
        let missing = BURST as usize + 5_000 - count;
        let told = format!("WARN {missing} lines were left out of this log");
        assert!(others[1].contains(&told), "{others:?}");
        assert_eq!(others.len(), 2);
    }
}
