//! The balancer's own sources without DPDK and management, so that measuring them builds in seconds.

#[path = "../../src/arch.rs"]
pub mod arch;
#[path = "../../src/lb/mod.rs"]
pub mod lb;
