//! What `evenkeel capture` asks for.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::problem::Problem;
use super::request::{Clients, Handle};
use super::server::Failed;

/// Which packets, and how many. What is left out does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CaptureRequest {
    /// Packets to and from the VIPs of this service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// `tcp` or `udp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Address or prefix of one end of the packet, as it comes or as it leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub client: Option<Clients>,
    /// The port of that end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_port: Option<u16>,
    /// Address or prefix of the other end: a VIP, or a backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub server: Option<Clients>,
    /// The port of that end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_port: Option<u16>,
    /// Only what is not sent on.
    #[serde(default)]
    pub dropped: bool,
    /// Bytes of each packet, 64 to 9216.
    #[serde(default = "snap")]
    pub snap: u16,
    /// End after so many packets, at most a million.
    #[serde(default = "packets")]
    pub packets: u64,
    /// End after so many seconds, at most an hour.
    #[serde(default = "seconds")]
    pub seconds: u32,
    /// At most so many packets a second, all workers together, at most 100,000.
    #[serde(default = "rate")]
    pub rate: u32,
}

fn snap() -> u16 {
    256
}

fn packets() -> u64 {
    1000
}

fn seconds() -> u32 {
    60
}

fn rate() -> u32 {
    10_000
}

impl CaptureRequest {
    /// What is wrong with it.
    pub fn fault(&self) -> Option<&'static str> {
        let protocol = self.protocol.as_deref();
        [
            (64..=9216).contains(&self.snap),
            (1..=1_000_000).contains(&self.packets),
            (1..=3600).contains(&self.seconds),
            (1..=100_000).contains(&self.rate),
            protocol.is_none_or(|protocol| matches!(protocol, "tcp" | "udp")),
        ]
        .into_iter()
        .zip([
            "`snap` is 64 to 9216 bytes",
            "`packets` is 1 to 1000000",
            "`seconds` is 1 to 3600",
            "`rate` is 1 to 100000 packets a second",
            "`protocol` is tcp or udp",
        ])
        .find_map(|(is_right, fault)| (!is_right).then_some(fault))
    }
}

/// Packets from the data path in pcapng, as they came and as they left, with what became of each as
/// a comment; one capture at a time. The stream ends with the capture, and the capture with the
/// stream.
#[utoipa::path(get, path = "/v1/capture", tag = "state", params(CaptureRequest), responses((status = 200, description = "A pcapng file", body = Vec<u8>, content_type = "application/x-pcapng"), (status = "default", response = Failed)))]
pub(super) async fn capture(
    State(handle): State<Handle>,
    request: Result<Query<CaptureRequest>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(request) = request.map_err(|rejection| Problem::bad_query(&rejection.body_text()))?;
    if let Some(fault) = request.fault() {
        return Err(Problem::bad_query(fault));
    }
    let pieces = handle.capture(request).await?;
    let body = stream::unfold(pieces, async |mut pieces| {
        let piece = pieces.recv().await?;
        Some((Ok::<Bytes, Infallible>(piece), pieces))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-pcapng")];
    Ok((kind, Body::from_stream(body)).into_response())
}
