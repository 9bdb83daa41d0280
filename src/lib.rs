//! evenkeel: a layer-4 load balancer on DPDK.
//!
//! | module | what it holds |
//! |---|---|
//! | [`lb`] | the balancer itself, pure: flow keys, connection table, schedulers, forwarding |
//! | [`mgmt`] | the management thread: configuration, neighbours, health, API, metrics |
//! | [`arch`] | the few SIMD loads and prefetches, behind safe functions |

pub mod arch;
pub mod lb;
pub mod mgmt;
