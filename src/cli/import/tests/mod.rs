//! Imports of inputs as they are found in the field, and of broken ones.

mod ipvsadm;
mod keepalived;

use std::collections::HashSet;
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
    parse(&toml).unwrap_or_else(|faults| panic!("{faults}\nin:\n{toml}"))
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
    let word = |text: &str| Word {
        text: text.to_owned(),
        place: Place {
            file: "f".to_owned(),
            line: 1,
            column: 1,
        },
    };
    let length = |text: &str| mask_length(&word(text)).ok();
    assert_eq!(length("255.255.255.0"), Some(24));
    assert_eq!(length("255.255.255.255"), Some(32));
    assert_eq!(length("64"), Some(64));
    for bad in ["255.0.255.0", "0.0.0.0", "0", "129", "x"] {
        assert_eq!(length(bad), None, "{bad}");
    }
}

/// Text with a `§` where the fault is, and what is said of it.
type Case = (&'static str, &'static str);

/// The text without its mark, and the place as faults tell it.
fn unmark(file: &str, text: &str) -> (String, Place) {
    let before = text.split('§').next().unwrap_or_default();
    let place = Place {
        file: file.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before.chars().rev().take_while(|c| *c != '\n').count() + 1,
    };
    assert_eq!(text.matches('§').count(), 1, "{text}");
    (text.replace('§', ""), place)
}

/// The reason, which stands where it should and says what it should.
fn reason(error: ImportError, place: &Place, said: &str) -> Reason {
    assert_eq!(error.to_string(), format!("{place}: {said}"));
    match error {
        ImportError::Input { reason, .. } => reason,
        ImportError::Read { .. } => panic!("{error}"),
    }
}

#[test]
fn every_fault_has_a_case_with_line_column_and_fix() {
    let faults = [ipvsadm::faults(), keepalived::faults()].concat();
    for fault in &faults {
        assert!(fault.to_string().contains("; "), "{fault}");
    }
    let seen: HashSet<_> = faults.iter().map(std::mem::discriminant).collect();
    let read_and_input = 2;
    let variants = include_str!("../mod.rs").matches("#[error(").count() - read_and_input;
    assert_eq!(seen.len(), variants, "a variant of Reason has no case");
}
