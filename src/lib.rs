//! evenkeel
pub mod mgmt;
