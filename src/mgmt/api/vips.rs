//! Who answers for the VIPs, whether traffic is wanted, and the drain of the whole appliance.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::body::JsonBody;
use super::problem::Problem;
use super::request::Handle;
use super::server::Failed;
use super::view::{Drain, Ready, VipStatus};

/// All VIPs, and who answers for them.
#[utoipa::path(get, path = "/v1/vips", tag = "state", responses((status = 200, body = Vec<VipStatus>), (status = "default", response = Failed)))]
pub(super) async fn vips(State(handle): State<Handle>) -> Result<Json<Vec<VipStatus>>, Problem> {
    handle.vips().await.map(Json)
}

/// What is asked about.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct About {
    /// A service that must have its quorum too.
    service: Option<String>,
}

/// Whether traffic is wanted: 503 if it is not.
#[utoipa::path(get, path = "/v1/ready", tag = "state", params(About), responses((status = 200, body = Ready), (status = "default", response = Failed)))]
pub(super) async fn ready(
    State(handle): State<Handle>,
    about: Result<Query<About>, QueryRejection>,
) -> Result<Json<Ready>, Problem> {
    let Query(about) = about.map_err(|rejection| Problem::bad_query(&rejection.body_text()))?;
    handle.ready(about.service).await.map(Json)
}

/// Withdraws the VIPs, or announces them again. Connections are forwarded all the same.
#[utoipa::path(put, path = "/v1/drain", tag = "state", request_body = Drain, responses((status = 200, body = Drain), (status = "default", response = Failed)))]
pub(super) async fn drain(
    State(handle): State<Handle>,
    JsonBody(drain): JsonBody<Drain>,
) -> Result<Json<Drain>, Problem> {
    handle.drain(drain).await.map(Json)
}
