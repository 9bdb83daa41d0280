//! The configuration file: TOML text becomes a [`Config`] that the rest of the program trusts, and a
//! [`Config`] becomes text again.
//!
//! Three steps, one module each: `read` gives every value its type and bounds, `check` compares the
//! values with one another, and what is left is a [`Config`]. All faults of a text are reported, each
//! with line, column, reason and fix. Runs on the management thread or before any thread is started;
//! it touches files only in [`load`] and [`save`], and never a packet.

mod check;
mod check_service;
mod diff;
mod error;
mod health;
mod listen;
mod model;
mod read;
mod read_health;
mod read_service;
mod reader;
mod save;
mod service;
mod span;
mod values;

#[cfg(test)]
mod tests;

use std::path::Path;

use toml::de::DeTable;

pub use check::BYTES_PER_CONNECTION;
pub use diff::{Change, ChangeKind, Diff};
pub use error::{ConfigError, FileError, Invalid, Located, Problem};
pub use model::*;
pub use save::{backend_to_toml, save, service_to_toml, to_toml};
pub use span::Span;
pub use values::{
    Mac, Prefix, ValueError, format_cores, format_size, format_time, parse_cores, parse_size,
    parse_time, parse_unicast,
};

use reader::{Reader, Sink};

/// Reads and validates the file at `path`.
pub fn load(path: &Path) -> Result<Config, FileError> {
    let text = std::fs::read_to_string(path).map_err(|error| FileError::Read {
        path: path.to_owned(),
        error,
    })?;
    parse(&text).map_err(|invalid| FileError::Invalid {
        path: path.to_owned(),
        invalid,
    })
}

/// Reads and validates a configuration. The error holds every fault that was found.
pub fn parse(text: &str) -> Result<Config, Invalid> {
    let sink = Sink::new(text);
    let (document, faults) = DeTable::parse_recoverable(text);
    for fault in &faults {
        let span = fault.span().unwrap_or_default().into();
        sink.push(span, ConfigError::Syntax(one_line(fault.message())));
    }
    let draft = read::read(Reader::new(&sink, "", Span::default(), document.get_ref()));
    // What is left of a broken document would be compared for nothing.
    if faults.is_empty() {
        check::check(&draft, &sink);
    }
    let problems = sink.into_problems();
    if problems.is_empty() {
        Ok(draft.config)
    } else {
        Err(Invalid::new(text, problems))
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
