//! The CPU's time-stamp counter: what a worker reads once per burst.

use super::sys;

/// The time-stamp counter. It counts at a constant rate on every CPU that
/// DPDK supports, also while the core sleeps.
pub struct Tsc;

impl Tsc {
    /// Ticks since some point before start.
    #[inline(always)]
    pub fn now() -> u64 {
        // SAFETY: RDTSC exists on every x86-64 CPU and touches no memory.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    /// Ticks per second, as the EAL measured or read it; 0 before `Eal::init`.
    pub fn hz() -> u64 {
        // SAFETY: reads a variable that the EAL sets once.
        unsafe { sys::rte_get_tsc_hz() }
    }
}
