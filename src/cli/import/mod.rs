//! `evenkeel import`: turns what Linux Virtual Server's own tools write into a configuration.
//!
//! What has an equivalent becomes services; what has none is listed, with its line, at the top of the
//! output and on standard error. Nothing is guessed silently, and nothing is started or changed.

mod checkers;
mod ipvsadm;
mod keepalived;
mod tree;
mod virtual_server;
mod write;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use thiserror::Error;

use super::{CliError, Shared, print, print_json};
use crate::mgmt::config::{Prefix, Service, ValueError};

#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(subcommand)]
    pub from: From,
}

#[derive(Debug, Subcommand)]
pub enum From {
    /// Read what `ipvsadm -Sn` prints
    Ipvsadm {
        /// File to read; standard input if left out
        file: Option<PathBuf>,
    },
    /// Read a keepalived.conf and what it includes
    Keepalived {
        /// File to read
        #[arg(default_value = "/etc/keepalived/keepalived.conf")]
        file: PathBuf,
    },
}

/// Where something stood in the input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Place {
    /// For what a whole line says.
    fn line_of_file(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }
}

/// A word of the input and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub place: Place,
}

impl Word {
    fn not_a(&self, expected: &'static str) -> ImportError {
        Reason::NotA {
            value: self.text.clone(),
            expected,
        }
        .at(&self.place)
    }

    /// A whole number.
    fn number<T: std::str::FromStr>(&self) -> Result<T, ImportError> {
        number(&self.text, &self.place)
    }

    fn address(&self) -> Result<std::net::IpAddr, ImportError> {
        address(&self.text, &self.place)
    }
}

/// Why an input cannot be imported: one line that names the place and says what to do.
#[derive(Debug, Error)]
pub enum ImportError {
    #[error("cannot read {name}: {error}; check the path and its permissions")]
    Read { name: String, error: std::io::Error },
    #[error("{place}: {reason}")]
    Input { place: Place, reason: Reason },
}

/// What is wrong at a place; `reason; fix`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Reason {
    #[error("\"{0}\" is not a line of `ipvsadm -Sn`; give its output as it is")]
    NotARule(String),
    #[error("{0} has no value; add it")]
    NoValue(String),
    #[error("{0} is missing; add it")]
    Missing(&'static str),
    #[error("there is no service {0} above this line; put its -A line first")]
    NoService(String),
    #[error("{0} is here twice; remove one of them")]
    Twice(String),
    #[error("\"{value}\" {error}")]
    BadValue { value: String, error: ValueError },
    #[error("\"{value}\" is not {expected}; correct it")]
    NotA {
        value: String,
        expected: &'static str,
    },
    #[error("a {{ is never closed; add the }} that belongs to it")]
    NeverClosed,
    #[error("a }} closes nothing; remove it or add its {{")]
    ClosesNothing,
    #[error("a quote is never closed; add the other one on this line")]
    OpenQuote,
    #[error("{0} includes itself; remove the include")]
    IncludesItself(String),
    #[error("cannot read the included {name}: {error}; correct the path or remove the include")]
    Include { name: String, error: String },
    #[error("there is no virtual_server_group {0}; define it or correct the name")]
    NoGroup(String),
}

impl Reason {
    fn at(self, place: &Place) -> ImportError {
        ImportError::Input {
            place: place.clone(),
            reason: self,
        }
    }
}

/// Something that the configuration cannot say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Note {
    pub place: Place,
    pub text: String,
}

/// A service with the comment that stands above it.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    pub place: Place,
    pub service: Service,
}

/// What came out of an input.
#[derive(Debug, Default)]
pub struct Import {
    pub services: Vec<Imported>,
    pub notes: Vec<Note>,
}

impl Import {
    fn note(&mut self, place: &Place, text: impl Into<String>) {
        self.notes.push(Note {
            place: place.clone(),
            text: text.into(),
        });
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    toml: &'a str,
    no_equivalent: &'a [Note],
}

pub fn run(args: &ImportArgs, shared: &Shared) -> Result<(), CliError> {
    let (source, mut import) = match &args.from {
        From::Ipvsadm { file } => {
            let (name, text) = read_input(file.as_deref())?;
            ("ipvsadm", ipvsadm::import(&name, &text)?)
        }
        From::Keepalived { file } => ("keepalived", keepalived::import(file)?),
    };
    import.notes.sort();
    import.notes.dedup();
    let toml = write::to_toml(source, &import);
    if shared.json {
        return print_json(&Report {
            toml: &toml,
            no_equivalent: &import.notes,
        });
    }
    for note in &import.notes {
        eprintln!("{}: {}", note.place.line_of_file(), note.text);
    }
    print(&toml)
}

fn read_input(file: Option<&Path>) -> Result<(String, String), ImportError> {
    let Some(path) = file else {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        let name = "standard input".to_owned();
        return match read {
            Ok(_) => Ok((name, text)),
            Err(error) => Err(ImportError::Read { name, error }),
        };
    };
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((name, text)),
        Err(error) => Err(ImportError::Read { name, error }),
    }
}

fn number<T: std::str::FromStr>(text: &str, place: &Place) -> Result<T, ImportError> {
    let not_a = || Reason::NotA {
        value: text.to_owned(),
        expected: "a whole number",
    };
    text.parse().map_err(|_| not_a().at(place))
}

fn address(text: &str, place: &Place) -> Result<std::net::IpAddr, ImportError> {
    let bad = |error| {
        Reason::BadValue {
            value: text.to_owned(),
            error,
        }
        .at(place)
    };
    crate::mgmt::config::parse_unicast(text).map_err(bad)
}

/// A network mask as `255.255.255.0`, or a prefix length; the length.
fn mask_length(word: &Word) -> Result<u8, ImportError> {
    let not_a = || word.not_a("a network mask");
    if let Ok(mask) = word.text.parse::<std::net::Ipv4Addr>() {
        let bits = u32::from(mask);
        let length = bits.leading_ones();
        let contiguous = bits.checked_shl(length).unwrap_or(0) == 0;
        return if contiguous && length > 0 {
            Ok(length as u8)
        } else {
            Err(not_a())
        };
    }
    word.text
        .parse::<u8>()
        .ok()
        .filter(|length| (1..=128).contains(length))
        .ok_or_else(not_a)
}

/// A service's name from what it listens on: `tcp-192.0.2.80-80`.
fn service_name(protocol: &str, addresses: &Prefix, ports: &str) -> String {
    let ports = if ports == "*" { "all" } else { ports };
    format!("{protocol}-{}-{ports}", addresses.address)
}
