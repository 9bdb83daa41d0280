//! End-to-end tests: real clients reach real servers through network namespaces.
//!
//! Each test builds its own [`lab::Lab`], so tests run side by side and leave nothing behind. They
//! need root; without it each says that it was skipped.

mod lab;

mod availability;
mod capture;
mod changes;
mod checks;
mod downloads;
mod ending;
mod faults;
mod feedback;
mod flood;
mod health;
mod kernel;
mod lab_itself;
mod management;
mod many;
mod methods;
mod pair;
mod paths;
mod presence;
mod refusals;
mod wide;
