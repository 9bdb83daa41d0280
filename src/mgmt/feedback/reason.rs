//! Why a weight in force is what it is, in words for `status`.

use std::fmt;
use std::time::Duration;

#[derive(Clone, PartialEq, Debug)]
pub enum Reason {
    /// It is the configured one.
    Configured,
    /// Loads differ: this backend's against the mean, and its share against the configured one.
    Load { own: f64, mean: f64, share: f64 },
    /// The agent said a percentage.
    Percent(u32),
    /// The agent ordered a drain.
    Drain,
    /// The agent ordered maintenance.
    Maintenance,
    /// The agent said that it is down, and why.
    Down(Option<String>),
    /// Back for a short time only.
    SlowStart { percent: u32 },
    /// Nothing was heard for this long: on the way back to the configured share.
    Stale(Duration),
    /// No source has answered (policy `lvs`).
    Unreachable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => write!(f, "as configured"),
            Self::Load { own, mean, share } => write!(
                f,
                "load {own:.2} against a mean of {mean:.2}: {share:.2} of its configured share"
            ),
            Self::Percent(percent) => write!(f, "the agent said {percent}%"),
            Self::Drain => write!(f, "the agent said drain"),
            Self::Maintenance => write!(f, "the agent said maint"),
            Self::Down(None) => write!(f, "the agent said down"),
            Self::Down(Some(why)) => write!(f, "the agent said down: {why}"),
            Self::SlowStart { percent } => write!(f, "slow start, at {percent}%"),
            Self::Stale(age) => write!(
                f,
                "nothing heard of its load for {} s: going back to its configured share",
                age.as_secs()
            ),
            Self::Unreachable => write!(f, "no source of its load answers"),
        }
    }
}
