//! Faults of management on request, so that tests can see what forwarding makes of them: it stands
//! still, it panics, it takes nothing back from its workers.
//!
//! Refused, as a path that does not exist, unless evenkeel was started with `--allow-faults`. No
//! part of the described interface.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::api::{Handle, Problem};

/// Whether faults may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    Refused,
    Allowed,
}

/// What is to go wrong with the management loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// It does nothing for so long.
    Stall {
        milliseconds: u64,
    },
    Panic,
    /// The rings of commands are full both ways for so long; everything else goes on.
    HoldRings {
        milliseconds: u64,
    },
}

/// From the answer to the fault.
pub const DELAY: Duration = Duration::from_millis(50);

impl Faults {
    pub(super) fn routes(self, handle: Handle) -> Router {
        match self {
            Faults::Refused => Router::new(),
            Faults::Allowed => Router::new()
                .route("/v1/faults", post(fail))
                .with_state(handle),
        }
    }
}

/// Answers before it goes wrong.
async fn fail(
    State(handle): State<Handle>,
    Json(fault): Json<Fault>,
) -> Result<StatusCode, Problem> {
    handle.fail(fault).await?;
    Ok(StatusCode::ACCEPTED)
}
