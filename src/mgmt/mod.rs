//! The management thread: everything that is not forwarding a packet.

pub mod api;
pub mod config;
pub mod health;
pub mod net;
pub mod timers;
