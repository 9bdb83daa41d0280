//! Errors of the interface, in the form of RFC 9457 (`application/problem+json`).

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// What went wrong with one request. `detail` is one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// A URI that names the kind of problem; stable, so that programs may compare it.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    pub detail: String,
    /// Every fault of a configuration or another body, each `line:column: reason; fix`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub faults: Vec<String>,
}

impl Problem {
    pub fn new(status: StatusCode, kind: &str, title: &str, detail: impl Into<String>) -> Self {
        Problem {
            kind: format!("urn:evenkeel:problem:{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            faults: Vec::new(),
        }
    }

    pub fn no_service(name: &str) -> Self {
        let detail = format!("there is no service \"{name}\"; `evenkeel status` lists them");
        Problem::new(
            StatusCode::NOT_FOUND,
            "no-such-service",
            "No such service",
            detail,
        )
    }

    pub fn no_backend(service: &str, name: &str) -> Self {
        let detail = format!(
            "service \"{service}\" has no backend \"{name}\"; `evenkeel status` lists them"
        );
        Problem::new(
            StatusCode::NOT_FOUND,
            "no-such-backend",
            "No such backend",
            detail,
        )
    }

    /// Nothing is changed by a configuration with faults.
    pub fn invalid(detail: String, faults: Vec<String>) -> Self {
        let kind = "invalid-configuration";
        let problem = Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            kind,
            "Invalid configuration",
            detail,
        );
        Problem { faults, ..problem }
    }

    /// Whether somebody else's change came between.
    pub fn is_overtaken(&self) -> bool {
        self.status == StatusCode::PRECONDITION_FAILED.as_u16()
    }

    pub fn bad_body(reason: &str) -> Self {
        let detail = format!("the body cannot be used: {reason}; correct it");
        Problem::new(StatusCode::BAD_REQUEST, "bad-body", "Bad body", detail)
    }

    /// A body in JSON that is broken, or that says what is not asked for there.
    pub fn bad_json(error: &serde_json::Error) -> Self {
        let (text, line, column) = (error.to_string(), error.line(), error.column());
        let place = format!(" at line {line} column {column}");
        let reason = text.strip_suffix(&place).unwrap_or(&text);
        let fault = format!("{line}:{column}: {reason}; correct it");
        let detail = format!("the body cannot be used: {fault}");
        let problem = Problem::new(StatusCode::BAD_REQUEST, "bad-body", "Bad body", detail);
        Problem {
            faults: vec![fault],
            ..problem
        }
    }

    pub fn no_path(path: &str) -> Self {
        let detail = format!("nothing is at {path}; see GET /v1/status");
        Problem::new(
            StatusCode::NOT_FOUND,
            "no-such-path",
            "No such path",
            detail,
        )
    }

    pub fn wrong_method(method: &str, path: &str) -> Self {
        let detail = format!("{path} does not take {method}; use GET");
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "wrong-method",
            "Wrong method",
            detail,
        )
    }

    pub fn bad_query(reason: &str) -> Self {
        let detail = format!("the query cannot be used: {reason}; correct it");
        Problem::new(StatusCode::BAD_REQUEST, "bad-query", "Bad query", detail)
    }

    /// This evenkeel wants no traffic.
    pub fn not_ready(reason: &str) -> Self {
        let detail = format!("not ready: {reason}");
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not-ready",
            "Not ready",
            detail,
        )
    }

    /// The management loop is gone.
    pub fn ending() -> Self {
        let detail = "evenkeel is shutting down; ask again when it runs";
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ending",
            "Shutting down",
            detail,
        )
    }

    /// The management loop panicked over the request, or over something else, and was begun again.
    pub fn fault() -> Self {
        let detail = "a fault in management ended this request; see whether it was done, look into \
                      the log, and please report it";
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "fault",
            "Fault in evenkeel",
            detail,
        )
    }

    /// The management loop did not answer.
    pub fn busy(waited: Duration) -> Self {
        let seconds = waited.as_secs();
        let detail = format!(
            "management did not answer within {seconds} s; forwarding goes on, look into the log"
        );
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "Management is busy",
            detail,
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self)).into_response();
        let kind = header::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}
