//! The signals that management obeys. Held for as long as it runs: a signal that comes while nobody
//! holds them is lost.

use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Signals {
    /// SIGHUP: read the configuration's file again.
    pub hang_up: Signal,
    /// SIGTERM and SIGINT: come to an end.
    pub terminate: Signal,
    pub interrupt: Signal,
}

impl Signals {
    /// # Errors
    /// When the system takes no handler.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            hang_up: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}
