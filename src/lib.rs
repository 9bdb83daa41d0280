//! evenkeel: a layer-4 load balancer on DPDK.
//!
//! | module | what it holds |
//! |---|---|
//! | [`lb`] | the balancer itself, pure: flow keys, connection table, schedulers, forwarding |
//! | [`mgmt`] | the management thread: configuration, neighbours, health, API, metrics |
//! | [`port`] | DPDK and its unsafe code: EAL, pools, packets, queues, rings, ports |
//! | [`worker`] | one core's loop |
//! | [`arch`] | the few SIMD loads and prefetches, behind safe functions |

pub mod arch;
pub mod cli;
pub mod lb;
pub mod mgmt;
pub mod port;
pub mod worker;
