//! Everything that can be wrong with a configuration. Each text is one line, `reason; fix`. Pure.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use thiserror::Error;

use super::listen::Listen;
use super::span::{Span, position};
use super::values::ValueError;

/// One fault. Where it is stands beside it, in [`Problem`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error("{0}; correct the TOML here")]
    Syntax(String),
    #[error("unknown key \"{key}\" in {table}; {}", suggest(.suggestion, "remove it"))]
    UnknownKey {
        table: String,
        key: String,
        suggestion: Option<String>,
    },
    #[error("{key} is {found}; write {expected}")]
    WrongType {
        key: String,
        found: &'static str,
        expected: &'static str,
    },
    #[error("{table} has no {key}; add {key} = {example}")]
    MissingKey {
        table: String,
        key: &'static str,
        example: &'static str,
    },
    #[error("there is no [[port]]; add one with a name and a DPDK device")]
    NoPort,
    #[error("{key} = \"{value}\" {error}")]
    BadValue {
        key: String,
        value: String,
        error: ValueError,
    },
    #[error("{key} = \"{value}\" is not known; use {}", one_of(.choices))]
    BadChoice {
        key: String,
        value: String,
        choices: Vec<&'static str>,
    },
    #[error("{key} = {value} is out of range; use {min} to {max}")]
    OutOfRange {
        key: String,
        value: String,
        min: String,
        max: String,
    },
    #[error("{key} has {count} of them; give {allowed}")]
    WrongCount {
        key: String,
        count: usize,
        allowed: &'static str,
    },

    #[error("{kind} \"{name}\" is already on line {line}; give it another name")]
    DuplicateName {
        kind: &'static str,
        name: String,
        line: usize,
    },
    #[error("device \"{device}\" is already the port's on line {line}; a device makes one port")]
    DuplicateDevice { device: String, line: usize },
    #[error("{key} belongs to the VLAN's parent; remove it here")]
    ParentsKey { key: String },
    #[error("no port with a device is called \"{0}\"; name the [[port]] that the VLAN is on")]
    NoParent(String),
    #[error("VLAN {id} of port \"{parent}\" is already on line {line}; remove one of them")]
    DuplicateVlan {
        id: u16,
        parent: String,
        line: usize,
    },
    #[error("the interface \"{name}\" is already on line {line}; give it another name")]
    DuplicateInterface { name: String, line: usize },
    #[error(
        "the interface \"{0}\" is the device of a port itself; give it another name, such as \"ek-wan\""
    )]
    InterfaceIsDevice(String),
    #[error("{0} needs a Linux interface beside a port; add kernel_interface to a [[port]]")]
    NeedsInterface(&'static str),
    #[error(
        "vip_table = {0} is a table that Linux routes by itself; use another number, such as 179"
    )]
    TableInUse(u32),
    #[error("VIP {vip} is advertised otherwise on line {line}; write the same advertise in both")]
    AdvertisedOtherwise { vip: IpAddr, line: usize },
    #[error("there are {0} ports and VLANs; at most 255 are possible")]
    TooManyPorts(usize),
    #[error("{listen} is already listened on, on line {line}; remove one of them")]
    DuplicateListen { listen: Listen, line: usize },
    #[error(
        "{listen} shares some ports with the one on line {line} and neither is the narrower; make the ranges disjoint or one part of the other"
    )]
    CrossingListen { listen: Listen, line: usize },
    #[error("{endpoint} is already used on line {line}; remove one and add their weights")]
    DuplicateBackend { endpoint: String, line: usize },
    #[error("{address} is already used on line {line}; remove one of them")]
    DuplicateAddress { address: IpAddr, line: usize },

    #[error(
        "core {0} is the management thread's, and idle = \"poll\" would starve it; set management.core to another core or workers.idle to \"yield\""
    )]
    CoreShared(u16),
    #[error(
        "core {0} is named twice, and with idle = \"poll\" its workers would take turns; name every core once or set workers.idle to \"yield\" or \"sleep\""
    )]
    CoreTwice(u16),
    #[error(
        "{connections} connections take {needed} of {memory}, which leaves nothing for packets; set workers.memory to at least {fix} or lower workers.connections"
    )]
    MemoryTooSmall {
        connections: u32,
        needed: String,
        memory: String,
        fix: String,
    },

    #[error(
        "{what} {address} is not in a subnet of port \"{port}\"; add an address in its subnet to the port's addresses or use one that is"
    )]
    NotOnLink {
        what: &'static str,
        address: IpAddr,
        port: String,
    },
    #[error("no port has a subnet, route or gateway to {0}; add one of them to a [[port]]")]
    NoRoute(IpAddr),
    #[error(
        "direct routing needs the backend on the link of a port, and {0} is behind a router; use method = \"tunnel\" or give it an address in a port's subnet"
    )]
    DirectRoutingOffLink(IpAddr),
    #[error(
        "a tunnel to {backend} makes packets of up to {needed} bytes and port \"{port}\" takes {mtu}; set mtu = {needed} on the port and its link"
    )]
    TunnelMtu {
        backend: IpAddr,
        port: String,
        mtu: u16,
        needed: u16,
    },

    #[error(
        "VIP {vip} is also a backend's address, on line {line}; give one of them another address"
    )]
    VipIsBackend { vip: IpAddr, line: usize },
    #[error(
        "VIP {vip} is also an address of a port or a router, on line {line}; use an address that nobody else answers for"
    )]
    VipIsOurs { vip: IpAddr, line: usize },
    #[error(
        "backend {backend} is an address of the balancer itself, on line {line}; use the address of another host"
    )]
    BackendIsOurs { backend: IpAddr, line: usize },
    #[error(
        "the check address {address} is already used on line {line}; use one that belongs to the checks alone"
    )]
    CheckAddressTaken { address: IpAddr, line: usize },

    #[error(
        "{method} cannot send {vip} to {address}, which is of the other IP family; use backends of the VIP's family or method = \"tunnel\""
    )]
    FamilyMismatch {
        method: &'static str,
        vip: IpAddr,
        address: IpAddr,
    },
    #[error(
        "{method} leaves ports as they are, so the backend's port {port} is never used; remove the port or use method = \"nat\""
    )]
    PortCannotChange { method: &'static str, port: u16 },
    #[error(
        "the service listens on several ports and the backend names one; remove the backend's port so that each keeps its own"
    )]
    PortOfRange,
    #[error("lower = {lower} is above upper = {upper}; set lower below upper")]
    LowerAboveUpper { lower: u32, upper: u32 },
    #[error("lower has no effect without upper; add upper or remove lower")]
    LowerWithoutUpper,

    #[error(
        "untracked = \"hash\" needs a scheduler that is a hash, and {0} is none; use scheduler = \"mh\" or untracked = \"reset\""
    )]
    UntrackedNeedsHash(&'static str),
    #[error("table_size = {0} is no prime; use {1}")]
    TableSizeNotPrime(u64, u64),
    #[error(
        "one_packet is for UDP alone and the service listens on TCP; remove one_packet or the tcp: entries"
    )]
    OnePacketNeedsUdp,
    #[error(
        "one_packet keeps no connection, and {0} needs one to know the replies by; remove it or use method = \"tunnel\" or \"direct-routing\""
    )]
    OnePacketNeedsOneWay(&'static str),
    #[error("fullnat needs source addresses of its own for {0}; add local_addresses")]
    NoLocalAddresses(&'static str),
    #[error("{key} is for method = \"{method}\" alone; remove it or change the method")]
    NotForMethod {
        key: &'static str,
        method: &'static str,
    },
    #[error(
        "the quorum of {quorum} and its hysteresis {hysteresis} cannot be met by {backends} backends; keep quorum + hysteresis at {backends} or less and the hysteresis below the quorum"
    )]
    QuorumImpossible {
        quorum: u32,
        hysteresis: u32,
        backends: usize,
    },
    #[error("the service has no single port to check; add port to health")]
    HealthNeedsPort,
    #[error("the service has no single address to check; add address to health")]
    HealthNeedsAddress,
    /// Reason and fix are the plan's.
    #[error("{0}")]
    HealthImpossible(String),
    #[error(
        "a check that may take {timeout} does not end within the interval of {interval}; set timeout to the interval or less"
    )]
    TimeoutAboveInterval { timeout: String, interval: String },
}

impl ConfigError {
    /// The other line that this is about, which the text has as "on line N".
    pub fn other_line(&self) -> Option<usize> {
        use ConfigError::*;
        match *self {
            DuplicateName { line, .. }
            | DuplicateDevice { line, .. }
            | DuplicateVlan { line, .. }
            | DuplicateInterface { line, .. }
            | AdvertisedOtherwise { line, .. }
            | DuplicateListen { line, .. }
            | CrossingListen { line, .. }
            | DuplicateBackend { line, .. }
            | DuplicateAddress { line, .. }
            | VipIsBackend { line, .. }
            | VipIsOurs { line, .. }
            | BackendIsOurs { line, .. }
            | CheckAddressTaken { line, .. } => Some(line),
            _ => None,
        }
    }
}

fn suggest(suggestion: &Option<String>, otherwise: &str) -> String {
    match suggestion {
        Some(key) => format!("did you mean \"{key}\"?"),
        None => otherwise.to_owned(),
    }
}

fn one_of(choices: &[&str]) -> String {
    match choices {
        [only] => format!("\"{only}\""),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|choice| format!("\"{choice}\"")).collect();
            format!("{} or \"{last}\"", first.join(", "))
        }
        [] => "another".to_owned(),
    }
}

/// A fault and the bytes it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub span: Span,
    pub error: ConfigError,
}

/// A fault with its place in the file; prints `line:column: reason; fix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    pub error: ConfigError,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.error)
    }
}

/// All faults of one text, in the order of their places; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub faults: Vec<Located>,
}

impl Invalid {
    pub(super) fn new(text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.span);
        problems.dedup();
        let locate = |problem: Problem| {
            let (line, column) = position(text, problem.span.start);
            Located {
                line,
                column,
                error: problem.error,
            }
        };
        Invalid {
            faults: problems.into_iter().map(locate).collect(),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.faults.iter().map(Located::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Invalid {}

/// Why a configuration file gave no configuration, or could not be written.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("cannot read {}: {error}; check the path and its permissions", .path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("cannot write {}: {error}; check the directory, its permissions and its free space", .path.display())]
    Write { path: PathBuf, error: io::Error },
    /// One line per fault, each `file:line:column: reason; fix`.
    #[error("{}", with_file(.path, .invalid))]
    Invalid { path: PathBuf, invalid: Invalid },
}

fn with_file(path: &std::path::Path, invalid: &Invalid) -> String {
    let line = |fault: &Located| format!("{}:{fault}", path.display());
    invalid
        .faults
        .iter()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}
