//! `service.health`: how a service's backends are checked. Plain data.

use std::net::IpAddr;
use std::time::Duration;

/// One check, run against every backend of the service.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    pub check: Check,
    pub via: Via,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures in a row that take a backend out, at least 1.
    pub fall: u32,
    /// Successes in a row that bring it back, at least 1.
    pub rise: u32,
    /// State before the first result.
    pub start: StartState,
    /// Checks are moved by up to this share of the interval, 0..=50 percent.
    pub jitter: u8,
    /// Address to check instead of the VIP (data path) or the backend (direct).
    pub address: Option<IpAddr>,
    /// Port to check instead of the service's or the backend's.
    pub port: Option<u16>,
}

/// What is sent and what is expected.
#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    Tcp,
    Http(HttpCheck),
    Udp {
        /// Sent as it is; empty by default.
        payload: String,
        /// The reply must start with it; `None`: silence is health, ICMP unreachable is not.
        reply: Option<String>,
    },
    Dns {
        query: String,
        /// Record type, such as `A`.
        record: String,
    },
    Ping,
    Script {
        /// Program and arguments. Exit 0: up, 1: down, 2..=255: weight becomes the code less 2.
        command: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpCheck {
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
    pub method: String,
    pub host: Option<String>,
    pub path: String,
    /// Inclusive ranges of statuses that mean health.
    pub status: Vec<(u16, u16)>,
    /// The body must contain it.
    pub body: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    pub verify: bool,
    pub sni: Option<String>,
}

/// Which way a check goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Through the DPDK port in the service's own forwarding method.
    DataPath,
    /// To the backend's own address.
    Direct,
}

impl Via {
    pub const NAMES: &[(&str, Via)] = &[("data-path", Via::DataPath), ("direct", Via::Direct)];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartState {
    Up,
    Down,
}

impl StartState {
    pub const NAMES: &[(&str, StartState)] = &[("up", StartState::Up), ("down", StartState::Down)];
}

/// The `type` key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckType {
    Tcp,
    Http,
    Https,
    Udp,
    Dns,
    Ping,
    Script,
}

impl CheckType {
    pub const NAMES: &[(&str, CheckType)] = &[
        ("tcp", CheckType::Tcp),
        ("http", CheckType::Http),
        ("https", CheckType::Https),
        ("udp", CheckType::Udp),
        ("dns", CheckType::Dns),
        ("ping", CheckType::Ping),
        ("script", CheckType::Script),
    ];
}
