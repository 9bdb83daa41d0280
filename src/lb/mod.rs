//! The balancer, pure: packet bytes, a snapshot, a worker's shard and the time go in, a verdict
//! comes out. No DPDK, no clock, no I/O, so every rule is tested without a NIC.
//!
//! Read [`shard`] first: it lists what happens to a burst, in order.

pub mod addresses;
pub mod admit;
pub mod answers;
pub mod backends;
pub mod bucket;
mod burst;
pub mod capture;
pub mod checksum;
mod choose;
#[cfg(test)]
pub mod cluster;
pub mod conn;
pub mod counters;
pub mod exits;
#[doc(hidden)]
pub mod fixture;
pub mod flow;
pub mod forward;
pub mod fragment;
pub mod frame;
pub mod fullnat;
pub mod guard;
pub mod icmp;
pub mod keepalive;
pub mod listing;
mod look;
mod looks;
pub mod maglev;
mod meet;
pub mod mtu;
pub mod owner;
pub mod parse;
pub mod persistence;
pub mod prefix_map;
pub mod queues;
pub mod related;
pub mod reset;
pub mod route;
pub mod schedule;
pub mod service_map;
mod settled;
pub mod shard;
pub mod snapshot;
pub mod table;
pub mod trace;
pub mod tracked;
pub mod vlan;
pub mod weights;

/// The largest burst a worker hands over at once.
pub const MAX_BURST: usize = 64;

/// The time, read once per burst.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Whole seconds since an arbitrary start; the tick of connection time stamps.
    pub second: u32,
    /// Nanoseconds since the same start.
    pub nanos: u64,
}

impl Now {
    pub fn from_nanos(nanos: u64) -> Self {
        Self {
            second: (nanos / 1_000_000_000) as u32,
            nanos,
        }
    }
}

/// Where packets beside the burst's own come from and go to: resets toward the other end of a
/// flow, the further fragments of a packet that was cut.
pub trait Outbox {
    type Frame: frame::Frame;
    /// An empty frame with room in front, which grows by [`frame::Frame::append`]; `None` while
    /// there is no free buffer. One that is dropped instead of sent leaves no trace.
    fn make(&mut self) -> Option<Self::Frame>;
    /// Sends a finished frame out of `port`. Whoever implements this counts it as generated, and
    /// what becomes of it, like the burst's own frames.
    fn send(&mut self, port: u8, frame: Self::Frame);
}

/// How a burst of packets reached a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// Received on the port of this index.
    Port(u8),
    /// Handed over by other workers, unchanged but for padding, with a note. A whole packet is not
    /// handed on again.
    HandOff,
}

/// Why a packet goes to management.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// Neither balanced nor dropped: ARP, NDP, ping, anything for us or for the kernel.
    Local,
    /// For a check address: most likely an answer to a health check.
    Check,
    /// Rewritten and ready, but the next hop toward its destination is not resolved yet.
    Resolve,
}

impl Pass {
    /// The word for it in status, metrics and docs.
    pub fn token(self) -> &'static str {
        match self {
            Pass::Local => "local",
            Pass::Check => "check",
            Pass::Resolve => "resolve",
        }
    }
}

/// What is to be done with a packet. The frame has been rewritten accordingly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Send it out of this port.
    Transmit(u8),
    /// The frame has become an answer to its sender, a reset or an ICMP error: send it out of
    /// `port`. The packet that it was counts as dropped for `reason`, the answer as generated.
    Reply {
        port: u8,
        reason: counters::DropReason,
    },
    Drop(counters::DropReason),
    Pass(Pass),
    /// It is for another worker, which most likely owns its flow: put it on the ring to the worker of
    /// this index. What there is to say about it is in the frame's note ([`frame::Frame::note`]).
    HandOff(u8),
    /// A fragment that has to wait: give it to the worker's [`fragment::FragmentStore`] under this
    /// ticket.
    Hold(u16),
}
