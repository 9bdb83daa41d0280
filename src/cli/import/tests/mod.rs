//! Imports of inputs as they are found in the field, and of broken ones.

mod ipvsadm;
mod keepalived;

use std::path::PathBuf;

use super::*;
use crate::mgmt::config::*;

/// What `evenkeel import` would print, read back as if every key were supported. The port that the
/// operator fills in gets addresses around those of the tests.
fn read_back(source: &str, import: &Import) -> Config {
    let toml = write::to_toml(source, import);
    let addresses = [
        "addresses = [\"192.0.2.2/24\", \"10.0.0.2/8\", \"2001:db8::2/32\"]",
        "check_address = [\"192.0.2.3\", \"2001:db8::3\"]",
        "mtu = 9000",
    ];
    let toml = toml.replace("addresses = []", &addresses.join("\n"));
    parse_whole(&toml).unwrap_or_else(|faults| panic!("{faults}\nin:\n{toml}"))
}

fn services(import: &Import) -> Vec<Service> {
    import
        .services
        .iter()
        .map(|imported| imported.service.clone())
        .collect()
}

fn notes(import: &Import) -> Vec<String> {
    let mut notes: Vec<Note> = import.notes.clone();
    notes.sort();
    notes
        .iter()
        .map(|note| format!("{}: {}", note.place.line, note.text))
        .collect()
}

/// A directory of its own that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("evenkeel-import-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn masks_are_read_in_both_forms() {
    let place = Place {
        file: "f".to_owned(),
        line: 1,
    };
    let length = |text: &str| mask_length(text, &place).ok();
    assert_eq!(length("255.255.255.0"), Some(24));
    assert_eq!(length("255.255.255.255"), Some(32));
    assert_eq!(length("64"), Some(64));
    for bad in ["255.0.255.0", "0.0.0.0", "0", "129", "x"] {
        assert_eq!(length(bad), None, "{bad}");
    }
}

#[test]
fn every_reason_says_what_to_do() {
    let (text, name) = (|| "x".to_owned(), || "y".to_owned());
    let reasons = [
        Reason::NotARule(text()),
        Reason::NoValue(text()),
        Reason::Missing("x"),
        Reason::NoService(text()),
        Reason::Twice(text()),
        Reason::BadValue {
            value: text(),
            error: ValueError::Address,
        },
        Reason::NotA {
            value: text(),
            expected: "y",
        },
        Reason::NeverClosed,
        Reason::ClosesNothing,
        Reason::OpenQuote,
        Reason::IncludesItself(text()),
        Reason::Include {
            name: text(),
            error: name(),
        },
        Reason::NoGroup(text()),
    ];
    let variants = include_str!("../mod.rs").matches("#[error(").count() - 2;
    assert_eq!(reasons.len(), variants, "a reason is missing here");
    for reason in reasons {
        let text = reason.to_string();
        assert!(text.contains("; ") && !text.contains('\n'), "{text}");
    }
}
