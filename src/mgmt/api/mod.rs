//! The programming interface: HTTP and JSON on a Unix socket, where file permissions decide who may
//! use it. It runs as tasks on the management thread and owns nothing but the sockets: every answer
//! comes from the management loop, which it asks over a channel, so it never touches a worker.

mod body;
mod capture;
mod change;
mod place;
mod problem;
mod request;
mod server;
mod socket;
mod stream;
mod trace;
mod view;
mod vips;

#[cfg(test)]
mod body_tests;
#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod socket_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vips_tests;

pub use capture::CaptureRequest;
pub use change::{Applied, BackendSettings, Edit, Replace, decide, etag};
pub use problem::Problem;
pub use request::{Clients, ConnectionFilter, Handle, Request};
pub use server::serve;
pub use socket::{Socket, SocketError, read_only_path};
pub use trace::{Trace, TraceRequest};
pub use view::*;
