//! Tests of the configuration: its faults, its meaning, and what it is saved as.

mod diff;
mod fault_cases;
mod faults;
mod meaning;
mod round_trip;
mod values;

use super::*;
