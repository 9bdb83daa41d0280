//! One case for every fault there is, with its place and its text.

use std::collections::HashSet;
use std::mem::discriminant;

use super::fault_cases::*;
use super::*;
use crate::mgmt::config::ConfigError::BadValue;

/// Runs every case and returns the faults that came.
fn run_all() -> Vec<ConfigError> {
    let cases = [
        syntax_cases(),
        value_cases(),
        uniqueness_cases(),
        network_cases(),
        service_cases(),
    ];
    let (mut faults, mut wrong) = (Vec::new(), Vec::new());
    for case in cases.into_iter().flatten() {
        match run(&case) {
            Ok(fault) => faults.push(fault),
            Err(difference) => wrong.push(difference),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    faults
}

fn run(case: &Case) -> Result<ConfigError, String> {
    let before = case.text.split('§').next().unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    let text = case.text.replace('§', "");
    let expected = format!("{line}:{column}: {}", case.fault);
    let result = parse(&text);
    match result {
        Err(invalid) if invalid.to_string() == expected => Ok(invalid.faults[0].error.clone()),
        Err(invalid) => Err(format!("expected {expected}\n     got {invalid}\n")),
        Ok(_) => Err(format!("expected {expected}\n     got no fault\n")),
    }
}

#[test]
fn every_fault_has_a_case_with_line_column_and_fix() {
    let faults = run_all();
    let kinds = |source: &str| source.matches("#[error(").count();

    let seen: HashSet<_> = faults.iter().map(discriminant).collect();
    let file_errors = 3;
    let all = kinds(include_str!("../error.rs")) - file_errors;
    assert_eq!(seen.len(), all, "a variant of ConfigError has no case here");
    for fault in &faults {
        let (text, other) = (fault.to_string(), fault.other_line());
        let told = other.map(|line| format!("on line {line}"));
        assert!(told.is_none_or(|told| text.contains(&told)), "{text}");
        assert_eq!(text.contains("on line "), other.is_some(), "{text}");
    }

    let values = faults.iter().filter_map(|fault| match fault {
        BadValue { error, .. } => Some(discriminant(error)),
        _ => None,
    });
    let seen: HashSet<_> = values.collect();
    assert_eq!(
        seen.len(),
        kinds(include_str!("../values.rs")),
        "a ValueError has no case here"
    );
}

#[test]
fn all_faults_of_a_file_are_told_in_order() {
    let text =
        format!("{PORT}gatewy = 1\n[workers]\nidle = \"pol\"\ncores = \"x\"\n{NAT}weight = 1\n");
    let faults: Vec<String> = parse(&text)
        .unwrap_err()
        .faults
        .iter()
        .map(Located::to_string)
        .collect();
    assert_eq!(faults.len(), 4, "{faults:#?}");
    let lines: Vec<&str> = faults
        .iter()
        .map(|fault| fault.split(':').next().unwrap())
        .collect();
    assert_eq!(lines, ["5", "7", "8", "14"]);
}

#[test]
fn a_fault_in_a_file_names_the_file() {
    let path = std::env::temp_dir().join(format!("evenkeel-faults-{}.toml", std::process::id()));
    std::fs::write(&path, "[workers]\nidle = 5\n").unwrap();
    let fault = load(&path).unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    let expected = "2:8: workers.idle is a whole number; write a string in quotes";
    assert_eq!(fault, format!("{}:{expected}", path.display()));

    let gone = load(&path).unwrap_err().to_string();
    assert!(
        gone.starts_with(&format!("cannot read {}: ", path.display())),
        "{gone}"
    );
    assert!(
        gone.ends_with("; check the path and its permissions"),
        "{gone}"
    );
    assert!(!gone.contains('\n'));
}
