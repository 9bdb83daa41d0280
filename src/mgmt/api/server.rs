//! The routes, and the tasks that serve them.

use std::io;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{Method, Uri};
use axum::routing::get;
use axum::{Json, Router};

use super::problem::Problem;
use super::request::{ConnectionFilter, Handle};
use super::socket::Socket;
use super::view::{Connections, ServiceStatus, Status};
use crate::mgmt::config::to_toml;

/// Serves the interface until the task is dropped. Run it as a task of the management thread.
///
/// # Errors
/// When the runtime cannot take the listening sockets.
pub async fn serve(socket: &Socket, handle: Handle) -> io::Result<()> {
    let (all, read_only) = socket.listeners()?;
    let all = axum::serve(all, read_routes(handle.clone())).into_future();
    let read_only = axum::serve(read_only, read_routes(handle)).into_future();
    tokio::try_join!(all, read_only).map(|_| ())
}

/// What changes nothing.
pub(super) fn read_routes(handle: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/services/{name}", get(service))
        .route("/v1/connections", get(connections))
        .route("/v1/config", get(config))
        .fallback(no_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(handle)
}

async fn status(State(handle): State<Handle>) -> Result<Json<Status>, Problem> {
    handle.status().await.map(Json)
}

async fn services(State(handle): State<Handle>) -> Result<Json<Vec<ServiceStatus>>, Problem> {
    handle.status().await.map(|status| Json(status.services))
}

async fn service(
    State(handle): State<Handle>,
    Path(name): Path<String>,
) -> Result<Json<ServiceStatus>, Problem> {
    handle.service(&name).await.map(Json)
}

async fn connections(
    State(handle): State<Handle>,
    filter: Result<Query<ConnectionFilter>, QueryRejection>,
) -> Result<Json<Connections>, Problem> {
    let Query(filter) = filter.map_err(|rejection| Problem::bad_query(&rejection.body_text()))?;
    handle.connections(filter).await.map(Json)
}

/// The configuration in use, as TOML.
async fn config(State(handle): State<Handle>) -> Result<String, Problem> {
    handle.config().await.map(|config| to_toml(&config))
}

async fn no_path(uri: Uri) -> Problem {
    Problem::no_path(uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::wrong_method(method.as_str(), uri.path())
}
