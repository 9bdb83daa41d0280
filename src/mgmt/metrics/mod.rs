//! OpenMetrics at `/metrics`, read-only, over TCP. Runs as a task on the management thread; asks the
//! management loop for each answer and touches nothing else. docs/metrics.md lists the families.

mod collect;
mod family;

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::api::{Handle, Problem};

pub use collect::collect;
pub use family::{Families, Format};

/// Where metrics are asked for. Bound before the runtime is there, so that a fault shows at start.
#[derive(Debug)]
pub struct Listener(std::net::TcpListener);

impl Listener {
    pub fn bind(address: SocketAddr) -> io::Result<Listener> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Listener(listener))
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Serves until the task is dropped; for ever without a listener.
///
/// # Errors
/// When the runtime cannot take the listening socket.
pub async fn serve(listener: Option<Listener>, handle: Handle) -> io::Result<()> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .with_state(handle);
    axum::serve(TcpListener::from_std(listener.0)?, routes).await
}

async fn metrics(State(handle): State<Handle>, headers: HeaderMap) -> Result<Response, Problem> {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or_default();
    let format = Format::for_accept(accept);
    let text = handle.metrics().await?.encode(format);
    Ok(([(header::CONTENT_TYPE, format.content_type())], text).into_response())
}
