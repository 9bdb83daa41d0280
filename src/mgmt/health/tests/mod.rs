//! The engine against backends made of a few lines, on tokio's stopped clock.

mod engine;
mod network;
mod probes;
