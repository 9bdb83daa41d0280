//! `evenkeel events`: what happens, as it happens.

use clap::Args;

use super::{CliError, ClientError, Shared, client, print};
use crate::mgmt::events::Event;

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Show the events that are kept from before, and end
    #[arg(long)]
    pub past: bool,
    /// Begin after the event of this number, 0 being the first that is kept
    #[arg(long, value_name = "NUMBER")]
    pub after: Option<u64>,
}

pub fn run(args: &EventsArgs, shared: &Shared) -> Result<(), CliError> {
    let after = args.after.map(|after| format!("&after={after}"));
    let path = format!(
        "/v1/events?follow={}{}",
        !args.past,
        after.unwrap_or_default()
    );
    let mut lines = Lines::default();
    let mut failed = None;
    let show = |bytes: &[u8]| {
        let shown = lines
            .take(bytes)
            .iter()
            .try_for_each(|told| show(told, shared.json));
        failed = shown.err();
        failed.is_none()
    };
    let followed = client::block_on(client::follow(&shared.socket, &path, show));
    match (failed, args.past) {
        (Some(error), _) => Err(error),
        (None, true) => followed,
        (None, false) => match followed {
            Ok(()) | Err(CliError::Client(ClientError::Exchange(_))) => Err(CliError::Ended),
            failed => failed,
        },
    }
}

/// One server-sent event, as far as we care.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Event(String),
    /// So many were lost because we were too slow.
    Missed(String),
}

/// Server-sent events out of bytes that come in pieces.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
    missed: bool,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> Vec<Told> {
        self.rest.extend_from_slice(bytes);
        let mut told = Vec::new();
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            if line.is_empty() {
                self.missed = false;
            } else if let Some(name) = line.strip_prefix("event:") {
                self.missed = name.trim() == "missed";
            } else if let Some(data) = line.strip_prefix("data:") {
                let data = data.trim().to_owned();
                told.push(match self.missed {
                    true => Told::Missed(data),
                    false => Told::Event(data),
                });
            }
        }
        told
    }
}

fn show(told: &Told, json: bool) -> Result<(), CliError> {
    match told {
        Told::Event(data) | Told::Missed(data) if json => print(&format!("{data}\n")),
        Told::Event(data) => print(&line(data)?),
        Told::Missed(data) => print(&format!("(too slow to follow: {data})\n")),
    }
}

/// A line for people.
fn line(data: &str) -> Result<String, CliError> {
    let event: Event =
        serde_json::from_str(data).map_err(|error| ClientError::Answer(error.to_string()))?;
    let (kind, message) = (event.what.kind.token(), event.what.message);
    Ok(format!("{} {kind:<16} {message}\n", event.time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_the_bytes_are_cut() {
        let text = "id: 1\nevent: reload\ndata: {\"a\":1}\n\n:\n\nevent: missed\ndata: {\"missed\":3}\n\ndata: x\n\n";
        let want = [
            Told::Event("{\"a\":1}".into()),
            Told::Missed("{\"missed\":3}".into()),
            Told::Event("x".into()),
        ];
        for piece in [1, 2, 7, 1000] {
            let mut lines = Lines::default();
            let told: Vec<_> = text
                .as_bytes()
                .chunks(piece)
                .flat_map(|chunk| lines.take(chunk))
                .collect();
            assert_eq!(told, want, "in pieces of {piece}");
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let data = r#"{"id":7,"time":"2026-01-02T03:04:05.678Z","kind":"link-down","port":"wan","message":"port wan: link down"}"#;
        assert_eq!(
            line(data).unwrap(),
            "2026-01-02T03:04:05.678Z link-down        port wan: link down\n"
        );
        assert!(line("{}").is_err());
    }
}
