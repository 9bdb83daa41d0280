//! Health checks along the path that traffic takes.
//!
//! `HealthEngine` is given the checks and every punted packet for a check address; out come IP
//! packets to send (with the address whose MAC they go to) and transitions. Everything runs on
//! the management thread, probes as tasks of its tokio runtime; nothing here touches DPDK, a
//! snapshot or a kernel socket (scripts may).

mod checker;
mod engine;
mod plan;
mod probe;
mod route;
mod stack;

#[cfg(test)]
mod tests;

// What a check's options are made of.
pub use hickory_proto::op::ResponseCode;
pub use hickory_proto::rr::{Name, RecordType};
pub use hyper::Method;
pub use hyper::http::uri::PathAndQuery;

pub use checker::{Checker, Start, Thresholds};
pub use engine::{CheckSpec, HealthEngine, Pace, Report, Runner, Transition};
pub use plan::{PlanError, plan, plan_service};
pub use probe::{
    Answer, DnsProbe, Failure, HttpProbe, Probe, ScriptProbe, StatusSet, Tls, TlsError, TlsOptions,
    UdpProbe,
};
pub use route::{Outgoing, Route};
pub use stack::StackCounters;
