//! Tests of the configuration: its faults, its meaning, and what it is saved as.

mod faults;
mod meaning;
mod round_trip;
mod values;

use super::supported::{Missing, NOT_YET, Supported};
use super::*;

/// Reads as if every key were supported.
fn parse_whole(text: &str) -> Result<Config, Invalid> {
    parse_as_if(text, Supported(&[]))
}
