//! DPDK: everything that crosses into C, and the only `unsafe` code beside
//! `arch`. It knows packets as bytes and nothing of load balancing.
//!
//! Ownership is the interface. A [`Mbuf`] frees itself when dropped; sending
//! one gives it away; a queue has one owner and cannot be cloned or shared; a
//! device closes when its [`Port`] and all its queues are gone. Everything
//! here counts as in use until dropped, and [`Eal::cleanup`] refuses to pull
//! the memory from under what is still alive.
#![allow(unsafe_code)]

mod batch;
pub mod clock;
mod device;
mod eal;
mod handle;
mod hugepages;
mod interface;
mod lcore;
mod log;
mod mbuf;
mod mempool;
mod queue;
pub mod ring;
mod start;
mod sys;
mod types;

pub use batch::Batch;
pub use eal::{Eal, EalError, EalOptions, Huge, version};
pub use handle::{NotStarted, Port, Running, Started, Stopped};
pub use lcore::{LaunchError, LcoreHandle};
pub use mbuf::{Mbuf, RxChecksum};
pub use mempool::{Mempool, MempoolError, pool_bytes};
pub use queue::{RxQueue, TxBuffer, TxQueue, TxStats};
pub use ring::RingError;
pub use types::{
    Link, PortConfig, PortError, PortEvents, PortInfo, PortStats, RssConfig, RssState, offload, rss,
};
