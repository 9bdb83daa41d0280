//! The routes, and the tasks that serve them.

use std::io;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi, ToResponse};

use super::body::{JsonBody, Text};
use super::capture;
use super::change::{Applied, BackendSettings, Edit, etag, invalid_file};
use super::problem::Problem;
use super::request::{ConnectionFilter, Handle};
use super::socket::Socket;
use super::stream;
use super::trace::{Trace, TraceRequest};
use super::view::{Connections, ServiceStatus, Status};
use super::vips;
use crate::mgmt::config::{parse, to_toml};
use crate::mgmt::faults::Faults;

/// Serves the interface until the task is dropped. Run it as a task of the management thread.
///
/// # Errors
/// When the runtime cannot take the listening sockets.
pub async fn serve(socket: &Socket, handle: Handle, faults: Faults) -> io::Result<()> {
    let (all, read_only) = socket.listeners()?;
    let routes = all_routes(handle.clone()).merge(faults.routes(handle.clone()));
    let all = axum::serve(all, routes).into_future();
    let read_only = axum::serve(read_only, read_routes(handle)).into_future();
    tokio::try_join!(all, read_only).map(|_| ())
}

/// Ten thousand services with a hundred backends each fit.
const LARGEST_FILE: usize = 256 << 20;

/// What changes nothing.
fn read_routes(handle: Handle) -> Router {
    with_fallbacks(reading(), handle)
}

fn all_routes(handle: Handle) -> Router {
    with_fallbacks(reading().merge(changing()), handle)
}

fn changing() -> Router<Handle> {
    let backend = put(put_backend).patch(set_backend).delete(remove_backend);
    Router::new()
        .route(
            "/v1/config",
            put(replace_config).layer(DefaultBodyLimit::max(LARGEST_FILE)),
        )
        .route(
            "/v1/services/{name}",
            put(put_service).delete(remove_service),
        )
        .route("/v1/services/{name}/backends/{backend}", backend)
        .route("/v1/drain", put(vips::drain))
        // It shows what packets carry, which is not for everyone who may look at counts.
        .route("/v1/capture", get(capture::capture))
}

fn reading() -> Router<Handle> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/services/{name}", get(service))
        .route("/v1/connections", get(connections))
        .route("/v1/trace", get(trace))
        .route("/v1/config", get(config))
        .route("/v1/events", get(stream::events))
        .route("/v1/vips", get(vips::vips))
        .route("/v1/ready", get(vips::ready))
        .route("/v1/openapi.json", get(description))
}

fn with_fallbacks(routes: Router<Handle>, handle: Handle) -> Router {
    routes
        .fallback(no_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(handle)
}

/// Everything that `evenkeel status` shows.
#[utoipa::path(get, path = "/v1/status", tag = "state", responses((status = 200, body = Status), (status = "default", response = Failed)))]
async fn status(State(handle): State<Handle>) -> Result<Json<Status>, Problem> {
    handle.status().await.map(Json)
}

/// All services and their backends.
#[utoipa::path(get, path = "/v1/services", tag = "state", responses((status = 200, body = Vec<ServiceStatus>), (status = "default", response = Failed)))]
async fn services(State(handle): State<Handle>) -> Result<Json<Vec<ServiceStatus>>, Problem> {
    handle.status().await.map(|status| Json(status.services))
}

/// One service and its backends.
#[utoipa::path(get, path = "/v1/services/{name}", tag = "state", params(("name", description = "The service")), responses((status = 200, body = ServiceStatus), (status = "default", response = Failed)))]
async fn service(
    State(handle): State<Handle>,
    Path(name): Path<String>,
) -> Result<Json<ServiceStatus>, Problem> {
    handle.service(&name).await.map(Json)
}

/// Tracked connections.
#[utoipa::path(get, path = "/v1/connections", tag = "state", params(ConnectionFilter), responses((status = 200, body = Connections), (status = "default", response = Failed)))]
async fn connections(
    State(handle): State<Handle>,
    filter: Result<Query<ConnectionFilter>, QueryRejection>,
) -> Result<Json<Connections>, Problem> {
    let Query(filter) = filter.map_err(|rejection| Problem::bad_query(&rejection.body_text()))?;
    handle.connections(filter).await.map(Json)
}

/// What would become of a packet, and why; nothing is sent and nothing changed.
#[utoipa::path(get, path = "/v1/trace", tag = "state", params(TraceRequest), responses((status = 200, body = Trace), (status = "default", response = Failed)))]
async fn trace(
    State(handle): State<Handle>,
    request: Result<Query<TraceRequest>, QueryRejection>,
) -> Result<Json<Trace>, Problem> {
    let Query(request) = request.map_err(|rejection| Problem::bad_query(&rejection.body_text()))?;
    handle.trace(request).await.map(Json)
}

/// The configuration in use, as TOML, with its tag.
#[utoipa::path(get, path = "/v1/config", tag = "configuration", responses((status = 200, body = String, content_type = "application/toml", headers(("ETag" = String, description = "For If-Match of a change"))), (status = "default", response = Failed)))]
async fn config(State(handle): State<Handle>) -> Result<Response, Problem> {
    let config = handle.config().await?;
    let tags = [
        (header::ETAG, etag(&config)),
        (header::CONTENT_TYPE, "application/toml".to_owned()),
    ];
    Ok((tags, to_toml(&config)).into_response())
}

/// How a change is to be made.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct How {
    /// Say what would change, and change nothing.
    #[serde(default)]
    dry_run: bool,
}

/// A header of every change.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only the description of it is used")]
struct IfMatch {
    /// The ETag of the configuration that the change was made for; refused with 412 if it is not in
    /// use any more.
    #[param(rename = "If-Match")]
    if_match: Option<String>,
}

/// Every fault.
#[derive(ToResponse)]
#[response(
    description = "What went wrong (RFC 9457)",
    content_type = "application/problem+json"
)]
#[expect(dead_code, reason = "only the description of it is used")]
pub(super) struct Failed(Problem);

/// The description of this interface in OpenAPI 3.1, made from the code.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "evenkeel",
        description = "HTTP on two Unix sockets: one for everything, and beside it a read-only one, on which the paths that change something do not exist. File permissions decide who may use them."
    ),
    paths(
        status,
        services,
        service,
        connections,
        trace,
        capture::capture,
        config,
        stream::events,
        vips::vips,
        vips::ready,
        vips::drain,
        description,
        replace_config,
        put_service,
        remove_service,
        put_backend,
        set_backend,
        remove_backend
    ),
    components(responses(Failed))
)]
struct Description;

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "state", responses((status = 200, description = "OpenAPI 3.1")))]
async fn description() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}

type HowQuery = Result<Query<How>, QueryRejection>;
type Change = Result<([(header::HeaderName, String); 1], Json<Applied>), Problem>;

fn is_dry(how: HowQuery) -> Result<bool, Problem> {
    let Query(how) = how.map_err(|rejection| Problem::bad_query(&rejection.body_text()))?;
    Ok(how.dry_run)
}

fn if_match(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::IF_MATCH)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn tagged(applied: Applied) -> Change {
    Ok(([(header::ETAG, applied.etag.clone())], Json(applied)))
}

/// Puts a whole configuration file in the place of the one in use.
#[utoipa::path(put, path = "/v1/config", tag = "configuration", params(How, IfMatch), request_body(content = String, content_type = "application/toml", description = "A configuration file"), responses((status = 200, body = Applied, headers(("ETag" = String, description = "Of the configuration in use"))), (status = "default", response = Failed)))]
async fn replace_config(
    State(handle): State<Handle>,
    how: HowQuery,
    headers: HeaderMap,
    Text(body): Text,
) -> Change {
    let config = parse(&body).map_err(|invalid| invalid_file(&invalid))?;
    tagged(
        handle
            .replace(config, if_match(&headers), is_dry(how)?)
            .await?,
    )
}

/// Adds a service, or replaces it.
#[utoipa::path(put, path = "/v1/services/{name}", tag = "configuration", params(("name", description = "The service"), How, IfMatch), request_body(content = String, content_type = "application/toml", description = "A [[service]] table with its backends"), responses((status = 200, body = Applied, headers(("ETag" = String, description = "Of the configuration in use"))), (status = "default", response = Failed)))]
async fn put_service(
    State(handle): State<Handle>,
    Path(name): Path<String>,
    how: HowQuery,
    headers: HeaderMap,
    Text(toml): Text,
) -> Change {
    let edit = Edit::PutService { name, toml };
    tagged(handle.edit(&edit, if_match(&headers), is_dry(how)?).await?)
}

/// Removes a service.
#[utoipa::path(delete, path = "/v1/services/{name}", tag = "configuration", params(("name", description = "The service"), How, IfMatch), responses((status = 200, body = Applied, headers(("ETag" = String, description = "Of the configuration in use"))), (status = "default", response = Failed)))]
async fn remove_service(
    State(handle): State<Handle>,
    Path(name): Path<String>,
    how: HowQuery,
    headers: HeaderMap,
) -> Change {
    let edit = Edit::RemoveService { name };
    tagged(handle.edit(&edit, if_match(&headers), is_dry(how)?).await?)
}

/// Adds a backend to a service, or replaces it.
#[utoipa::path(put, path = "/v1/services/{name}/backends/{backend}", tag = "configuration", params(("name", description = "The service"), ("backend", description = "The backend"), How, IfMatch), request_body(content = String, content_type = "application/toml", description = "A [[service.backend]] table"), responses((status = 200, body = Applied, headers(("ETag" = String, description = "Of the configuration in use"))), (status = "default", response = Failed)))]
async fn put_backend(
    State(handle): State<Handle>,
    Path((service, name)): Path<(String, String)>,
    how: HowQuery,
    headers: HeaderMap,
    Text(toml): Text,
) -> Change {
    let edit = Edit::PutBackend {
        service,
        name,
        toml,
    };
    tagged(handle.edit(&edit, if_match(&headers), is_dry(how)?).await?)
}

/// Changes some settings of a backend.
#[utoipa::path(patch, path = "/v1/services/{name}/backends/{backend}", tag = "configuration", params(("name", description = "The service"), ("backend", description = "The backend"), How, IfMatch), request_body = BackendSettings, responses((status = 200, body = Applied, headers(("ETag" = String, description = "Of the configuration in use"))), (status = "default", response = Failed)))]
async fn set_backend(
    State(handle): State<Handle>,
    Path((service, name)): Path<(String, String)>,
    how: HowQuery,
    headers: HeaderMap,
    JsonBody(set): JsonBody<BackendSettings>,
) -> Change {
    let edit = Edit::SetBackend { service, name, set };
    tagged(handle.edit(&edit, if_match(&headers), is_dry(how)?).await?)
}

/// Removes a backend; its connections are ended.
#[utoipa::path(delete, path = "/v1/services/{name}/backends/{backend}", tag = "configuration", params(("name", description = "The service"), ("backend", description = "The backend"), How, IfMatch), responses((status = 200, body = Applied, headers(("ETag" = String, description = "Of the configuration in use"))), (status = "default", response = Failed)))]
async fn remove_backend(
    State(handle): State<Handle>,
    Path((service, name)): Path<(String, String)>,
    how: HowQuery,
    headers: HeaderMap,
) -> Change {
    let edit = Edit::RemoveBackend { service, name };
    tagged(handle.edit(&edit, if_match(&headers), is_dry(how)?).await?)
}

async fn no_path(uri: Uri) -> Problem {
    Problem::no_path(uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    Problem::wrong_method(method.as_str(), uri.path())
}
