//! `[[service]]` and its backends, as the rest of the program sees them. Plain data.

use std::net::IpAddr;
use std::time::Duration;

use super::health::Health;
use super::listen::Listen;
use super::values::Prefix;

/// `[[service]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    pub name: String,
    /// At least one.
    pub listen: Vec<Listen>,
    pub method: Method,
    pub scheduler: Scheduler,
    /// Slots of the Maglev table, a prime; `None`: as suits the scheduler.
    pub table_size: Option<u32>,
    /// Hash schedulers: the source port counts too.
    pub hash_port: bool,
    /// Hash schedulers: another backend answers when the chosen one may not.
    pub hash_fallback: bool,
    pub persistence: Option<Persistence>,
    pub when_no_backend: WhenNoBackend,
    pub untracked: Untracked,
    pub timeouts: Timeouts,
    pub one_packet: bool,
    /// Largest TCP segment that SYNs may announce.
    pub mss_clamp: Option<u16>,
    pub limits: Limits,
    pub advertise: Advertise,
    /// FullNAT's source addresses.
    pub local_addresses: Vec<IpAddr>,
    /// Tunnel: outer sources are taken from here, per flow.
    pub tunnel_source: Option<Prefix>,
    pub health: Option<Health>,
    pub quorum: Option<Quorum>,
    pub sorry_server: Option<SorryServer>,
    /// A backend that fails keeps its connections.
    pub inhibit: bool,
    /// Program and arguments to run on every change of a backend or the quorum.
    pub on_change: Vec<String>,
    pub feedback: Option<Feedback>,
    pub slow_start: Option<Duration>,
    /// Deadline of a drain; `None`: a drained backend keeps its connections until they end.
    pub drain_timeout: Option<Duration>,
    /// May be empty.
    pub backends: Vec<Backend>,
}

impl Service {
    /// A service with no backends and every option at its default.
    pub fn new(name: String, listen: Vec<Listen>, method: Method, scheduler: Scheduler) -> Self {
        Service {
            name,
            listen,
            method,
            scheduler,
            table_size: None,
            hash_port: false,
            hash_fallback: false,
            persistence: None,
            when_no_backend: WhenNoBackend::Reset,
            untracked: Untracked::default_for(scheduler),
            timeouts: Timeouts::default(),
            one_packet: false,
            mss_clamp: None,
            limits: Limits::default(),
            advertise: Advertise::Always,
            local_addresses: Vec::new(),
            tunnel_source: None,
            health: None,
            quorum: None,
            sorry_server: None,
            inhibit: false,
            on_change: Vec::new(),
            feedback: None,
            slow_start: None,
            drain_timeout: None,
            backends: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Nat,
    FullNat,
    Tunnel,
    DirectRouting,
}

impl Method {
    /// Names as configuration, metrics and status spell them; aliases come behind.
    pub const NAMES: &[(&str, Method)] = &[
        ("nat", Method::Nat),
        ("fullnat", Method::FullNat),
        ("tunnel", Method::Tunnel),
        ("direct-routing", Method::DirectRouting),
        ("dr", Method::DirectRouting),
        ("ipip", Method::Tunnel),
        ("tun", Method::Tunnel),
    ];

    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }
}

/// Named as ipvsadm names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    Rr,
    Wrr,
    Random,
    Lc,
    Wlc,
    Sed,
    Nq,
    Lblc,
    Lblcr,
    Dh,
    Sh,
    Mh,
    Fo,
    Ovf,
    Twos,
}

impl Scheduler {
    pub const NAMES: &[(&str, Scheduler)] = &[
        ("rr", Scheduler::Rr),
        ("wrr", Scheduler::Wrr),
        ("random", Scheduler::Random),
        ("lc", Scheduler::Lc),
        ("wlc", Scheduler::Wlc),
        ("sed", Scheduler::Sed),
        ("nq", Scheduler::Nq),
        ("lblc", Scheduler::Lblc),
        ("lblcr", Scheduler::Lblcr),
        ("dh", Scheduler::Dh),
        ("sh", Scheduler::Sh),
        ("mh", Scheduler::Mh),
        ("fo", Scheduler::Fo),
        ("ovf", Scheduler::Ovf),
        ("twos", Scheduler::Twos),
        ("maglev", Scheduler::Mh),
    ];

    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }

    /// Whether the choice is a pure function of the packet, so that another instance or a restarted
    /// one chooses alike.
    pub fn is_hash(self) -> bool {
        matches!(self, Scheduler::Mh | Scheduler::Sh | Scheduler::Dh)
    }
}

/// The first name listed for `value`; every value is listed.
pub(super) fn name_of<T: Copy + PartialEq>(names: &[(&'static str, T)], value: T) -> &'static str {
    names
        .iter()
        .find(|(_, named)| *named == value)
        .map_or("", |(name, _)| name)
}

/// Clients stick to a backend for a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Persistence {
    pub timeout: Duration,
    /// Clients in one such prefix count as one: 1..=32.
    pub prefix_v4: u8,
    /// 1..=128.
    pub prefix_v6: u8,
    /// Services of one group send a client to the same backend.
    pub group: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenNoBackend {
    Reset,
    Drop,
    UseAll,
}

impl WhenNoBackend {
    pub const NAMES: &[(&str, WhenNoBackend)] = &[
        ("reset", WhenNoBackend::Reset),
        ("drop", WhenNoBackend::Drop),
        ("use-all", WhenNoBackend::UseAll),
    ];
}

/// When evenkeel answers ARP and neighbour discovery for a service's VIPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advertise {
    Always,
    /// While Linux has the address: VRRP, or whoever gives it, decides.
    Kernel,
}

impl Advertise {
    pub const NAMES: &[(&str, Advertise)] =
        &[("always", Advertise::Always), ("kernel", Advertise::Kernel)];

    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }
}

/// What happens to TCP without SYN and without entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untracked {
    Hash,
    Reset,
    Drop,
}

impl Untracked {
    pub const NAMES: &[(&str, Untracked)] = &[
        ("hash", Untracked::Hash),
        ("reset", Untracked::Reset),
        ("drop", Untracked::Drop),
    ];

    pub fn default_for(scheduler: Scheduler) -> Self {
        if scheduler.is_hash() {
            Untracked::Hash
        } else {
            Untracked::Reset
        }
    }
}

/// How long a connection is kept in each state without a packet: whole seconds, 1..=65535.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub established: Duration,
    pub syn_sent: Duration,
    pub syn_recv: Duration,
    pub fin_wait: Duration,
    pub time_wait: Duration,
    pub close: Duration,
    pub close_wait: Duration,
    pub last_ack: Duration,
    pub udp: Duration,
}

impl Default for Timeouts {
    /// What an operator of Linux Virtual Server is used to.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Timeouts {
            established: seconds(900),
            syn_sent: seconds(120),
            syn_recv: seconds(60),
            fin_wait: seconds(120),
            time_wait: seconds(120),
            close: seconds(10),
            close_wait: seconds(60),
            last_ack: seconds(30),
            udp: seconds(300),
        }
    }
}

impl Timeouts {
    /// The longest time an entry's field holds.
    pub const LONGEST: Duration = Duration::from_secs(65_535);
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    pub connections: Option<u32>,
    /// New connections a second.
    pub rate: Option<u32>,
}

/// How many backends must be up, and by how many more or fewer the state changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Quorum {
    pub backends: u32,
    pub hysteresis: u32,
}

/// Answers while the quorum is lost.
#[derive(Debug, Clone, PartialEq)]
pub struct SorryServer {
    pub address: IpAddr,
    /// `None`: the port the client addressed.
    pub port: Option<u16>,
    /// `None`: the service's.
    pub method: Option<Method>,
}

/// Weights that follow the backends' load.
#[derive(Debug, Clone, PartialEq)]
pub struct Feedback {
    pub policy: FeedbackPolicy,
    pub interval: Duration,
    /// Port of an agent that speaks HAProxy's agent-check text.
    pub agent_port: Option<u16>,
    /// Port of a Prometheus node_exporter.
    pub exporter_port: Option<u16>,
    /// Hash tables follow too; instances then choose differently.
    pub hash_too: bool,
}

impl Default for Feedback {
    fn default() -> Self {
        Feedback {
            policy: FeedbackPolicy::Relative,
            interval: Duration::from_secs(5),
            agent_port: None,
            exporter_port: None,
            hash_too: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedbackPolicy {
    Relative,
    Lvs,
}

impl FeedbackPolicy {
    pub const NAMES: &[(&str, FeedbackPolicy)] = &[
        ("relative", FeedbackPolicy::Relative),
        ("lvs", FeedbackPolicy::Lvs),
    ];
}

/// `[[service.backend]]`: a real server.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// Unique in its service; the address (and port) when none is written.
    pub name: String,
    pub address: IpAddr,
    /// `None`: the port the client addressed.
    pub port: Option<u16>,
    /// 0: takes no new connections.
    pub weight: u16,
    /// Connections above which it is overloaded.
    pub upper: Option<u32>,
    /// Connections below which it is no longer overloaded; `None`: 3/4 of `upper`.
    pub lower: Option<u32>,
    pub drain: bool,
}
