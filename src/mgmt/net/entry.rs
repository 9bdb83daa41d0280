//! One entry of the neighbour table, and what packets say about it.

use std::time::Instant;

use super::frame::Mac;

/// What a packet says about its sender's MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// An answer to our question: the neighbour hears us (RFC 4861 7.2.5, Solicited flag).
    Answer,
    /// The neighbour says so unasked: it exists, but whether it hears us is not known.
    Claim,
    /// As `Claim` or `Answer`, but not to replace a MAC we have (Override flag clear).
    Weak { solicited: bool },
}

impl Evidence {
    /// Whether the neighbour is known to hear us.
    pub fn confirms(self) -> bool {
        matches!(self, Self::Answer | Self::Weak { solicited: true })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Static,
    Incomplete { asked: u8 },
    Reachable,
    Stale,
    Probe { asked: u8 },
    Failed { rounds: u8 },
}

#[derive(Debug)]
pub(super) struct Entry {
    pub state: State,
    /// Set exactly while the entry is usable.
    pub mac: Option<Mac>,
    pub wanted: bool,
    pub changed: Instant,
    pub due: Option<Instant>,
    pub held: Vec<Vec<u8>>,
}

impl Entry {
    pub fn new(state: State, mac: Option<Mac>, now: Instant) -> Self {
        Self {
            state,
            mac,
            wanted: false,
            changed: now,
            due: None,
            held: Vec::new(),
        }
    }
}
