//! What `evenkeel trace` asks and shows.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A packet that nobody sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TraceRequest {
    /// Address and port that it comes from: `198.51.100.7:40000`, IPv6 in brackets.
    #[param(value_type = String)]
    pub from: SocketAddr,
    /// Address and port that it is sent to, of the same family.
    #[param(value_type = String)]
    pub to: SocketAddr,
    /// `tcp` or `udp`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// TCP: `syn`, `ack`, `fin`, `rst`, or several with commas between them.
    #[serde(default = "syn")]
    pub flags: String,
}

fn tcp() -> String {
    "tcp".into()
}

fn syn() -> String {
    "syn".into()
}

/// What would become of it, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Trace {
    /// The packet in a line.
    pub packet: String,
    /// The port or VLAN that it is taken to come in on: the one that leads back to its sender.
    pub port: String,
    /// The worker that owns its flow, and its core.
    pub worker: u16,
    pub core: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// The state of its connection, if one is tracked, as `connections` has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Address and port of the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_address: Option<String>,
    /// Why this backend, or why none.
    pub why: String,
    /// `transmit`, `answer` (it becomes an answer to its sender), `drop` or `pass` (it is given to
    /// management).
    pub verdict: String,
    /// The drop reason, or why it is given to management: a token that status and metrics have too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The verdict in a sentence.
    pub explanation: String,
    /// Where it leaves, and the Ethernet address that it is sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_port: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<String>,
    /// Its headers as it would leave, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub headers: Vec<String>,
    /// What to look at, where it does not reach a backend.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
}
