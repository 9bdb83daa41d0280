//! The management thread: everything that is not forwarding a packet.

pub mod config;
pub mod net;
