//! Weights that follow the load: one controller for each service.
//!
//! Lives on the management thread. Everything but [`poll`] is pure and takes the time as a
//! parameter; [`poll`] asks agents and exporters over TCP. Nothing here touches a snapshot: the
//! management loop takes the weights that [`Controller::step`] returns and publishes them.
//!
//! | file | what it holds |
//! |---|---|
//! | `controller` | a service's backends: orders, slow start, staleness, what to push and why |
//! | `relative`, `capacity` | the default policy, and what it knows of a backend |
//! | `lvs` | the LVS project's formula |
//! | `whole` | whole numbers in given proportions |
//! | `sample`, `input` | what was observed, and what of it is believed |
//! | `agent`, `exporter` | what servers say, parsed |
//! | `poll` | asking them |
//! | `services` | all services' controllers: what the management loop talks to |

pub mod agent;
mod capacity;
mod controller;
pub mod exporter;
mod input;
pub mod lvs;
pub mod poll;
mod reason;
pub mod relative;
mod sample;
mod services;
pub mod whole;

pub use controller::{Controller, Member, Policy, Spec, Status};
pub use input::View;
pub use reason::Reason;
pub use sample::{Absurd, Sample, Source};
pub use services::{Change, Counted, Feedback, ServiceSpec};
