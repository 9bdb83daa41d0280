//! What the interface shows: plain data, the same in JSON, in the command line's tables and in
//! whatever else presents it. Counts are totals since start unless a name says otherwise; names and
//! tokens are spelled as in the configuration.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Everything `evenkeel status` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub uptime_seconds: u64,
    /// Number of the configuration that the workers use; every change makes a new one.
    pub generation: u64,
    pub services: Vec<ServiceStatus>,
    pub ports: Vec<PortStatus>,
    /// Drained as a whole: VIPs are withdrawn where a routing daemon or Linux decides about them.
    #[serde(default)]
    pub drained: bool,
    /// Linux's interfaces beside the ports.
    #[serde(default)]
    pub kernel: Vec<KernelStatus>,
    pub workers: Vec<WorkerStatus>,
    #[serde(default)]
    pub management: ManagementStatus,
    /// Reasons with a count above zero.
    pub drops: Vec<Reason>,
    /// Reasons why packets were given to management or the kernel, above zero.
    pub passed: Vec<Reason>,
    /// Reasons why packets were given to another worker, above zero; those that its ring had no room
    /// for included.
    pub handed_over: Vec<Reason>,
    /// What else was counted, above zero.
    pub counts: Vec<Reason>,
    /// Sentences an operator should know: what fell back to software, what waits.
    pub notes: Vec<String>,
}

/// Packets and connections of a service or backend. "In" is from clients, "out" is to them; methods
/// in which replies do not pass the balancer count none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    pub connections: u64,
    pub in_packets: u64,
    pub out_packets: u64,
    /// From the IP header on.
    pub in_bytes: u64,
    pub out_bytes: u64,
}

impl Traffic {
    /// What was added since `before`; nothing where a counter was reset in between.
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            connections: self.connections.saturating_sub(before.connections),
            in_packets: self.in_packets.saturating_sub(before.in_packets),
            out_packets: self.out_packets.saturating_sub(before.out_packets),
            in_bytes: self.in_bytes.saturating_sub(before.in_bytes),
            out_bytes: self.out_bytes.saturating_sub(before.out_bytes),
        }
    }

    /// The sum of several.
    pub fn sum(parts: impl Iterator<Item = Traffic>) -> Traffic {
        parts.fold(Traffic::default(), |sum, part| Traffic {
            connections: sum.connections + part.connections,
            in_packets: sum.in_packets + part.in_packets,
            out_packets: sum.out_packets + part.out_packets,
            in_bytes: sum.in_bytes + part.in_bytes,
            out_bytes: sum.out_bytes + part.out_bytes,
        })
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    pub name: String,
    /// As in the configuration: `tcp:192.0.2.80:80`.
    pub listen: Vec<String>,
    pub method: String,
    pub scheduler: String,
    /// Options that change who is chosen, in ipvsadm's spelling: `persistent 300`, `sh-port`.
    pub flags: Vec<String>,
    /// `null` where none is configured.
    #[serde(default)]
    pub quorum: Option<QuorumStatus>,
    /// Of all backends, removed ones that still have connections included.
    #[serde(flatten)]
    pub traffic: Traffic,
    pub backends: Vec<BackendStatus>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendStatus {
    pub name: String,
    pub address: String,
    /// `null`: the port that the client addressed.
    pub port: Option<u16>,
    pub method: String,
    /// As configured.
    pub weight: u32,
    /// As the scheduler uses it now.
    pub effective_weight: u32,
    /// Why the effective weight differs from the configured one.
    pub reason: Option<String>,
    pub state: BackendState,
    /// `null` where it is not checked.
    #[serde(default)]
    pub check: Option<CheckStatus>,
    /// Agents and exporters that cannot be used at the moment, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// TCP connections established, and live UDP flows.
    pub active: u64,
    /// All other tracked connections.
    pub inactive: u64,
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// How many backends a service needs, and has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuorumStatus {
    pub backends: u32,
    pub hysteresis: u32,
    pub up: u32,
    /// With hysteresis; while it is not, the sorry server answers, if there is one.
    pub met: bool,
}

/// What health checks find of a backend.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckStatus {
    /// As in the configuration: `tcp`, `http`.
    pub kind: String,
    pub up: bool,
    /// The last answer; empty before the first.
    pub answer: String,
    /// The last answer that was not good.
    pub last_failure: Option<String>,
    /// That the last good answer took; `null` before the first.
    pub milliseconds: Option<f64>,
    pub checks: u64,
    pub failures: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    #[default]
    Up,
    Down,
    Draining,
    /// Its next hop does not answer.
    Unreachable,
    /// Removed from the configuration and still named by connections.
    Removed,
}

impl BackendState {
    pub fn name(self) -> &'static str {
        match self {
            BackendState::Up => "up",
            BackendState::Down => "down",
            BackendState::Draining => "draining",
            BackendState::Unreachable => "unreachable",
            BackendState::Removed => "removed",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PortStatus {
    pub name: String,
    pub device: String,
    pub driver: String,
    pub mac: String,
    pub link_up: bool,
    /// Mbit/s; `null` when the device does not say.
    pub speed: Option<u32>,
    pub mtu: u16,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Packets that the device had no room for.
    pub rx_missed: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    /// Whether its receive queues are trusted to tell a packet's owner, or why owners are computed.
    pub queues: String,
}

/// An address that services listen on, or a prefix of them, and who answers for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VipStatus {
    pub address: String,
    pub services: Vec<String>,
    /// As configured: `always`, or `kernel` where Linux's having the address decides.
    pub advertise: String,
    /// evenkeel answers ARP and neighbour discovery for it.
    pub answered: bool,
    /// Linux has the address.
    pub held: bool,
    /// One of its services has backends enough.
    pub quorum: bool,
    /// It stands in the table for routing daemons.
    pub announced: bool,
}

/// This evenkeel wants traffic; where it does not, there is a problem instead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    pub ready: bool,
}

/// Whether this evenkeel is drained: its VIPs withdrawn, and not ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    pub drain: bool,
}

/// Linux's interface beside a port, and what passed it; frames.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KernelStatus {
    pub interface: String,
    pub port: String,
    pub to_linux: u64,
    pub from_linux: u64,
    /// Linux had no room, or its interface was down.
    pub to_linux_dropped: u64,
    /// No buffer was free, or the ring to the worker was full.
    pub from_linux_dropped: u64,
    /// Routes by this interface that Linux has beside evenkeel's own.
    pub routes: u64,
    /// Not given to Linux: they went to an address that evenkeel answers for and Linux does not have.
    pub withheld: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkerStatus {
    pub worker: u16,
    pub core: u16,
    pub received: u64,
    pub generated: u64,
    pub transmitted: u64,
    pub dropped: u64,
    pub passed: u64,
    pub handed_over: u64,
    /// Packets it holds at this moment.
    pub held: u64,
    /// Share of its time since the start that it spent on packets, in percent; `null` if not measured.
    pub busy: Option<u8>,
    /// Time spent on packets, and all.
    #[serde(default)]
    pub busy_seconds: f64,
    #[serde(default)]
    pub seconds: f64,
    pub connections: u64,
    /// Connections that its table can hold.
    pub capacity: u64,
    /// Commands that it has not done yet, or whose end management has not seen yet.
    pub commands_waiting: u64,
    /// Snapshots sent to it, and old ones that came back.
    #[serde(default)]
    pub snapshots_sent: u64,
    #[serde(default)]
    pub snapshots_retired: u64,
    /// Packets passed to management that it has not taken yet: ARP, NDP, ping, what is not balanced.
    #[serde(default)]
    pub passed_waiting: u64,
    /// The same of packets to check addresses.
    #[serde(default)]
    pub checks_waiting: u64,
}

/// How the management thread does, which checks, answers and changes, and forwards nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ManagementStatus {
    /// Times that its loop stood still for two seconds or more.
    pub stalls: u64,
    pub longest_stall_milliseconds: u64,
    /// Faults in evenkeel itself, after which what failed was begun again.
    pub panics: u64,
    pub last_panic: Option<String>,
    pub checks: ChecksStatus,
    /// Packet buffers of all ports and workers, and how many hold a packet or lie ready in queues.
    pub buffers: u64,
    pub buffers_in_use: u64,
}

/// How health checks keep up with their plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChecksStatus {
    pub started: u64,
    /// Started by more than a tenth of their interval too late.
    pub late: u64,
    /// Not started, because the one before had not ended.
    pub skipped: u64,
    /// Without a verdict, because management itself was late.
    pub unjudged: u64,
    /// The longest that one started after its time.
    pub latest_milliseconds: f64,
    /// Waiting for an answer now.
    pub in_flight: u64,
    /// Packets that found no room on their way out.
    pub packets_lost: u64,
}

/// A count with its token and a sentence about it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    pub reason: String,
    pub count: u64,
    pub explanation: String,
}

/// One tracked connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionStatus {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `address:port`, IPv6 in brackets.
    pub client: String,
    pub virtual_address: String,
    pub backend_address: String,
    pub service: String,
    pub backend: String,
    pub method: String,
    /// As timeouts are called in the configuration: `established`, `fin_wait`, `udp`.
    pub state: String,
    /// Seconds until it is forgotten, if no packet comes.
    pub expires: u32,
    pub worker: u16,
}

/// What `evenkeel connections` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Connections {
    pub connections: Vec<ConnectionStatus>,
    /// Whether the limit cut the list short.
    pub more: bool,
}
