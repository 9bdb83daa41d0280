//! Where the log goes: standard error, as text for people or one JSON object a line for programs.

use tracing_subscriber::EnvFilter;

use crate::mgmt::config::LogFormat;

/// Names levels and modules as tracing-subscriber's filters do, such as `evenkeel=debug`.
pub const FILTER_VARIABLE: &str = "EVENKEEL_LOG";

/// Starts the log. The first call counts; a later one changes nothing.
pub fn init(format: LogFormat) {
    let filter = std::env::var(FILTER_VARIABLE)
        .ok()
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .unwrap_or_else(|| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // An error means that a log was started before, which then goes on.
    let _ = match format {
        LogFormat::Text => log.with_target(false).with_ansi(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}
