//! Counters: plain memory with one writer, the worker, which management reads and sums.
//! An add is a load and a store, never a locked instruction.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::queues::Evidence;

/// A number only one thread writes and any may read.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    #[inline(always)]
    pub fn add(&self, count: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// For gauges: connections come and go.
    #[inline(always)]
    pub fn subtract(&self, count: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_sub(count), Relaxed);
    }

    #[inline(always)]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! reasons {
    ($(#[$about:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $token:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];
            pub const COUNT: usize = Self::ALL.len();

            /// The word for it in status, metrics, trace, logs and docs.
            pub fn token(self) -> &'static str {
                match self { $($name::$variant => $token,)+ }
            }

            /// One sentence for an operator.
            pub fn explanation(self) -> &'static str {
                match self { $($name::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// Why a packet was not forwarded. Each drop counts under exactly one reason.
    DropReason {
        /// The frame ends before its headers say it does.
        Truncated = "truncated",
        /// The IP header contradicts itself.
        MalformedIp = "malformed_ip",
        /// The TCP or UDP header is cut short.
        MalformedL4 = "malformed_l4",
        /// The IPv4 header checksum is wrong.
        BadIpChecksum = "bad_ip_checksum",
        /// The frame was for another station: a foreign unicast MAC.
        ForeignMac = "foreign_mac",
        /// An IP packet in a broadcast or multicast frame for a balanced service.
        BroadcastMac = "broadcast_mac",
        /// The frame has the tag of a VLAN that its port does not have.
        UnknownVlan = "unknown_vlan",
        /// The source is a VIP, an address of ours, multicast, loopback or unspecified.
        BadSource = "bad_source",
        /// TTL or hop limit would reach zero.
        TtlExpired = "ttl_expired",
        /// TCP without SYN and without a tracked connection.
        Untracked = "untracked",
        /// No backend of the service can take a new connection.
        NoBackend = "no_backend",
        /// The connection's backend was removed from the configuration.
        BackendGone = "backend_gone",
        /// The next hop's MAC address is not known.
        NoNeighbour = "no_neighbour",
        /// Two flows of one client would look alike in the backend's replies.
        ReplyConflict = "reply_conflict",
        /// The connection table has no room and the flow cannot do without an entry.
        TableFull = "table_full",
        /// The packet does not fit the MTU after encapsulation.
        TooBig = "too_big",
        /// There was no room in front of the packet for a tunnel header.
        NoHeadroom = "no_headroom",
        /// The frame came in several buffers.
        Segmented = "segmented",
        /// A fragment whose datagram's first fragment has not been seen.
        Fragment = "fragment",
        /// An ICMP error that quotes no flow we know.
        IcmpUnrelated = "icmp_unrelated",
        /// The local addresses of the service have no free port for the backend.
        PoolExhausted = "pool_exhausted",
        /// A limit on new connections or on connections was reached.
        Limit = "limit",
        /// The owning worker's hand-off ring was full.
        HandoffFull = "handoff_full",
        /// Management's ring for passed packets was full, or its rate limit was reached.
        PuntFull = "punt_full",
        /// The transmit queue stayed full, or the port was being reset.
        TxFull = "tx_full",
        /// No memory buffer was free.
        NoBuffer = "no_buffer",
        /// The worker was shutting down.
        Shutdown = "shutdown",
    }
}

/// One backend's counters on one worker: a cache line.
#[derive(Default, Debug)]
#[repr(align(64))]
pub struct BackendCounters {
    pub connections: Counter,
    pub in_packets: Counter,
    pub in_bytes: Counter,
    pub out_packets: Counter,
    pub out_bytes: Counter,
    /// Gauge: connections established, or live UDP flows.
    pub active: Counter,
    /// Gauge: all other tracked connections.
    pub inactive: Counter,
}

/// One worker's counters. The balance: received + generated = transmitted + dropped (all
/// reasons) + passed + held, where a hand-off is sent by one worker and received by another.
#[derive(Debug)]
pub struct WorkerCounters {
    pub received: Counter,
    pub received_bytes: Counter,
    /// Packets this worker made itself (ICMP errors, resets, keep-alives) or was given by management.
    pub generated: Counter,
    pub transmitted: Counter,
    pub transmitted_bytes: Counter,
    pub dropped: [Counter; DropReason::COUNT],
    /// Given to management: ARP, NDP, ping, whatever is not balanced.
    pub passed: Counter,
    /// Those of them that were sent to a check address.
    pub passed_checks: Counter,
    /// Those of them that only wait for their next hop.
    pub passed_unresolved: Counter,
    pub handed_off: Counter,
    pub taken_over: Counter,
    /// Why packets had to be handed over, beside that their flow is another worker's; counted also
    /// where the ring was full.
    pub handed_fragments: Counter,
    pub handed_errors: Counter,
    pub handed_persistent: Counter,
    /// Packets forwarded by the consistent hash without an entry.
    pub stateless: Counter,
    pub new_connections: Counter,
    /// Keep-alives sent to clients because of a backend's packet without an entry.
    pub keepalives: Counter,
    /// ICMP errors, resets and keep-alives not sent because of their rate limit.
    pub unanswered: Counter,
    pub expired: Counter,
    pub evicted: Counter,
    /// Gauges: FullNAT's local ports in use, and all there are (each counts once for every local
    /// address and backend group).
    pub local_ports: Counter,
    pub local_ports_all: Counter,
    /// Gauge: how full the fullest of the worker's pools of local ports is, in thousandths. The sums
    /// above do not tell: a service can use the pools of its own addresses and backends alone.
    pub local_ports_fullest: Counter,
    /// Local ports taken from a connection that was over, or before their hold was, because no
    /// other was left.
    pub holds_cut_short: Counter,
    /// Gauge: fragments that wait for their first one.
    pub held: Counter,
    /// Gauge: 1 while the flood guard is up.
    pub guard_up: Counter,
    /// Gauges of the tables, in entries.
    pub table_v4: Counter,
    pub table_v6: Counter,
    /// Generation of the snapshot in force, and how many have been swapped in.
    pub generation: Counter,
    pub swaps: Counter,
    /// TSC ticks spent with packets in hand, and in all.
    pub busy_ticks: Counter,
    pub total_ticks: Counter,
    /// What packets said about the ports' receive queues, by port.
    pub queues: Box<[Evidence]>,
    pub backends: Box<[BackendCounters]>,
}

/// Ports that DPDK can have.
const PORTS: usize = 32;

impl WorkerCounters {
    /// Counters for backends with ids below `backends`.
    pub fn new(backends: usize) -> Self {
        Self {
            received: Counter::default(),
            received_bytes: Counter::default(),
            generated: Counter::default(),
            transmitted: Counter::default(),
            transmitted_bytes: Counter::default(),
            dropped: std::array::from_fn(|_| Counter::default()),
            passed: Counter::default(),
            passed_checks: Counter::default(),
            passed_unresolved: Counter::default(),
            handed_off: Counter::default(),
            taken_over: Counter::default(),
            handed_fragments: Counter::default(),
            handed_errors: Counter::default(),
            handed_persistent: Counter::default(),
            stateless: Counter::default(),
            new_connections: Counter::default(),
            keepalives: Counter::default(),
            unanswered: Counter::default(),
            expired: Counter::default(),
            evicted: Counter::default(),
            local_ports: Counter::default(),
            local_ports_all: Counter::default(),
            local_ports_fullest: Counter::default(),
            holds_cut_short: Counter::default(),
            held: Counter::default(),
            guard_up: Counter::default(),
            table_v4: Counter::default(),
            table_v6: Counter::default(),
            generation: Counter::default(),
            swaps: Counter::default(),
            busy_ticks: Counter::default(),
            total_ticks: Counter::default(),
            queues: (0..PORTS).map(|_| Evidence::default()).collect(),
            backends: (0..backends).map(|_| BackendCounters::default()).collect(),
        }
    }

    #[inline(always)]
    pub fn count_drop(&self, reason: DropReason) {
        self.dropped[reason as usize].add(1);
    }

    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(Counter::get).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::Pass;

    #[test]
    fn every_reason_is_documented() {
        let page = include_str!("../../docs/drop-reasons.md");
        for reason in DropReason::ALL {
            let row = format!("| `{}` |", reason.token());
            assert_eq!(page.matches(&row).count(), 1, "{row}");
        }
        for pass in [Pass::Local, Pass::Check, Pass::Resolve] {
            let row = format!("| `{}` |", pass.token());
            assert_eq!(page.matches(&row).count(), 1, "{row}");
        }
    }

    #[test]
    fn tokens_are_unique_and_explained() {
        let mut tokens: Vec<_> = DropReason::ALL.iter().map(|r| r.token()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), DropReason::COUNT);
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(
                reason.explanation().ends_with('.'),
                "{}",
                reason.explanation()
            );
        }
    }
}
