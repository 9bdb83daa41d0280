//! `evenkeel check --ports`: what the ports' devices can do, beside what evenkeel makes of it.

use std::fmt::Write as _;

use super::table::Table;
use super::{CliError, Shared, print, print_json};
use crate::mgmt::config::Config;
use crate::mgmt::survey::{Capabilities, PortSurvey, Survey, Use, WorkerPlace, survey};

/// Columns of text.
const WIDTH: usize = 80;

pub(super) fn run(config: &Config, shared: &Shared) -> Result<(), CliError> {
    let survey = survey(config)?;
    match shared.json {
        true => print_json(&survey)?,
        false => print(&text(&survey))?,
    }
    match survey.ports.iter().any(|port| port.error.is_some()) {
        true => Err(CliError::Said),
        false => Ok(()),
    }
}

fn text(survey: &Survey) -> String {
    let mut text = String::new();
    for port in &survey.ports {
        let _ = writeln!(text, "port {}: {}", port.name, port.device);
        if let (Some(can), Some(will)) = (&port.can, &port.will) {
            text += &table(can, will, &survey.workers);
        }
        for line in lines(port) {
            text += &wrapped(&line);
        }
        text.push('\n');
    }
    let _ = writeln!(text, "huge pages: {} MiB", survey.huge_pages_mib);
    text
}

fn lines(port: &PortSurvey) -> Vec<String> {
    let error = port.error.iter().map(|error| format!("error: {error}"));
    let notes = port.notes.iter().map(|note| format!("note: {note}"));
    error.chain(notes).collect()
}

fn table(can: &Capabilities, will: &Use, workers: &[WorkerPlace]) -> String {
    let mut table = Table::new(&["  What", "Device", "Evenkeel"]);
    let mut row = |what: &str, device: String, evenkeel: String| {
        table.row(vec![format!("  {what}"), device, evenkeel]);
    };
    let range = |(least, most): (u16, u16)| format!("{least} to {most}");
    row("driver", can.driver.clone(), can.mac.clone());
    row("NUMA node", or_dash(can.numa), placed(workers));
    row(
        "queues rx, tx",
        format!("{}, {}", can.rx_queues, can.tx_queues),
        format!("{}, {}", will.rx_queues, will.tx_queues),
    );
    row(
        "descriptors rx",
        range(can.rx_descriptors),
        will.rx_descriptors.to_string(),
    );
    row(
        "descriptors tx",
        range(can.tx_descriptors),
        will.tx_descriptors.to_string(),
    );
    row("MTU", range(can.mtu), will.mtu.to_string());
    let (owners, why) = match will.owners.split_once(": ") {
        Some((owners, why)) => (owners, Some(why)),
        None => match will.owners.split_once(", ") {
            Some((owners, why)) => (owners, Some(why)),
            None => (will.owners.as_str(), None),
        },
    };
    let rss = match can.rss_table {
        0 => "none".to_owned(),
        entries => format!("{entries} entries, key {} bytes", can.rss_key_bytes),
    };
    row("RSS", rss, owners.to_owned());
    row("RSS hashes", listed(&can.rss_hashes), String::new());
    row("RSS of one end", listed(&can.rss_one_end), String::new());
    row(
        "checksums rx",
        listed(&can.rx_checksums),
        format!("ipv4 by {}", will.rx_ipv4_checksum),
    );
    row(
        "checksums tx",
        listed(&can.tx_checksums),
        format!("by {}", will.tx_checksums),
    );
    let vlans = match will.vlans.len() {
        0 => "none".to_owned(),
        count => format!("{count}, filter by {}", will.vlan_filter),
    };
    row("VLANs", listed(&can.vlan), vlans);
    let mut text = table.render();
    if let Some(why) = why {
        text += &wrapped(&format!("owners: {owners}: {why}"));
    }
    text
}

/// `2 workers: 0`: the nodes that the workers are on.
fn placed(workers: &[WorkerPlace]) -> String {
    let mut nodes: Vec<String> = workers.iter().map(|worker| or_dash(worker.numa)).collect();
    nodes.sort();
    nodes.dedup();
    let count = workers.len();
    let noun = if count == 1 { "worker" } else { "workers" };
    format!("{count} {noun}: {}", nodes.join(","))
}

fn or_dash(node: Option<u32>) -> String {
    node.map_or_else(|| "-".to_owned(), |node| node.to_string())
}

fn listed(names: &[&str]) -> String {
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(" "),
    }
}

/// A sentence, indented, in lines of at most 80 columns; a longer word stays whole.
fn wrapped(sentence: &str) -> String {
    let (mut text, mut line) = (String::new(), " ".to_owned());
    for word in sentence.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            text += &line;
            text.push('\n');
            line = "   ".to_owned();
        }
        line.push(' ');
        line += word;
    }
    text + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_wrapped_at_80_columns() {
        let sentence = "word ".repeat(40);
        let text = wrapped(&sentence);
        assert!(text.lines().all(|line| line.len() <= WIDTH), "{text}");
        assert_eq!(text.lines().count(), 3);
        assert_eq!(text.split_whitespace().count(), 40);
        assert!(text.starts_with("  word"));
    }

    #[test]
    fn workers_are_placed_by_node() {
        let on = |core, numa| WorkerPlace { core, numa };
        assert_eq!(placed(&[on(1, None)]), "1 worker: -");
        let two = [on(1, Some(1)), on(2, Some(0)), on(3, Some(1))];
        assert_eq!(placed(&two), "3 workers: 0,1");
    }
}
