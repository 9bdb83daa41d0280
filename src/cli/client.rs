//! Asks a running evenkeel over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use super::CliError;
use crate::mgmt::api::{Problem, read_only_path};

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no evenkeel answers on {}; start it, or give its socket with --socket", .0.display())]
    NotRunning(PathBuf),
    #[error("you may not use {}; run as root or as a member of the socket's group", .0.display())]
    Forbidden(PathBuf),
    #[error("cannot reach {}: {error}; check --socket", .path.display())]
    Connect { path: PathBuf, error: io::Error },
    #[error("no answer within {0} s; look into evenkeel's log")]
    Timeout(u64),
    #[error("the connection broke: {0}; ask again")]
    Exchange(#[from] hyper::Error),
    #[error("evenkeel's answer makes no sense: {0}; use the same version of both")]
    Answer(String),
    #[error("{}", .0.detail)]
    Refused(Problem),
}

/// Longer than the daemon itself waits for its management loop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for several things one after the other on one thread.
pub fn block_on<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    Ok(runtime.block_on(work)?)
}

/// Gets what is at `path` (with its query) as JSON.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    from_json(&within_patience(ask(socket, Method::GET, path, String::new())).await?)
}

/// Gets what is at `path` as text.
pub async fn get_text(socket: &Path, path: &str) -> Result<String, ClientError> {
    let body = within_patience(ask(socket, Method::GET, path, String::new())).await?;
    String::from_utf8(body.to_vec()).map_err(|error| ClientError::Answer(error.to_string()))
}

/// Changes what is at `path`. A body that begins as JSON does is sent as JSON.
pub async fn change<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: String,
) -> Result<T, ClientError> {
    from_json(&within_patience(ask(socket, method, path, body)).await?)
}

/// Gets what is at `path` piece by piece, for as long as it comes and `take` wants more.
pub async fn follow(
    socket: &Path,
    path: &str,
    mut take: impl FnMut(&[u8]) -> bool,
) -> Result<(), ClientError> {
    let stream = within_patience(connect(socket, true)).await?;
    let request = request(Method::GET, path, String::new())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the runtime of the command.
    tokio::spawn(connection);
    let answer = async { Ok(sender.send_request(request).await?) };
    let response = within_patience(answer).await?;
    let is_success = response.status().is_success();
    let mut body = response.into_body();
    if !is_success {
        return Err(refused(&body.collect().await?.to_bytes()));
    }
    while let Some(frame) = body.frame().await {
        if !frame?.data_ref().is_none_or(|bytes| take(bytes)) {
            break;
        }
    }
    Ok(())
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Answer(error.to_string()))
}

async fn within_patience<T>(
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let timeout = tokio::time::timeout(PATIENCE, work).await;
    timeout.unwrap_or(Err(ClientError::Timeout(PATIENCE.as_secs())))
}

async fn ask(
    socket: &Path,
    method: Method,
    path: &str,
    body: String,
) -> Result<Bytes, ClientError> {
    let stream = connect(socket, method == Method::GET).await?;
    exchange(stream, request(method, path, body)?).await
}

fn request(method: Method, path: &str, body: String) -> Result<Request<Full<Bytes>>, ClientError> {
    let kind = if body.starts_with('{') {
        "application/json"
    } else {
        "text/plain"
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "evenkeel")
        .header(header::CONTENT_TYPE, kind)
        .body(Full::from(body))
        .map_err(|error| ClientError::Answer(error.to_string()))
}

/// The socket for everything, or the read-only one where we may not use that and only look.
async fn connect(socket: &Path, only_look: bool) -> Result<UnixStream, ClientError> {
    let mut result = UnixStream::connect(socket).await;
    let is_forbidden =
        matches!(&result, Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
    if is_forbidden && only_look {
        result = UnixStream::connect(read_only_path(socket)).await;
    }
    let path = || socket.to_owned();
    result.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning(path())
        }
        io::ErrorKind::PermissionDenied => ClientError::Forbidden(path()),
        _ => ClientError::Connect {
            path: path(),
            error,
        },
    })
}

async fn exchange(stream: UnixStream, request: Request<Full<Bytes>>) -> Result<Bytes, ClientError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let ask = async {
        let response = sender.send_request(request).await?;
        let is_success = response.status().is_success();
        Ok::<_, hyper::Error>((is_success, response.into_body().collect().await?.to_bytes()))
    };
    tokio::pin!(connection);
    tokio::pin!(ask);
    // The connection must be driven while we wait; it may end before the answer was read out.
    let (is_success, body) = tokio::select! {
        answer = &mut ask => answer?,
        ended = &mut connection => {
            ended?;
            ask.await?
        }
    };
    if is_success {
        return Ok(body);
    }
    Err(refused(&body))
}

fn refused(body: &[u8]) -> ClientError {
    match serde_json::from_slice(body) {
        Ok(problem) => ClientError::Refused(problem),
        Err(error) => ClientError::Answer(error.to_string()),
    }
}
