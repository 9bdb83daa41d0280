//! `evenkeel top`: services, backends and workers at work, once a second.

mod draw;
mod rates;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use clap::Args;
use hyper::Method;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::query::encode;
use super::{CliError, ClientError, Shared, client};
use crate::mgmt::api::{Applied, BackendSettings, BackendState, Status};
use rates::Rates;

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Seconds between two looks
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub interval: u64,
}

/// What rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Sort {
    /// The configuration's order.
    #[default]
    Configured,
    Connections,
    Packets,
    Name,
}

impl Sort {
    const ALL: [Sort; 4] = [
        Sort::Configured,
        Sort::Connections,
        Sort::Packets,
        Sort::Name,
    ];

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|&sort| sort == self);
        Self::ALL[(at.unwrap_or(0) + 1) % Self::ALL.len()]
    }

    fn name(self) -> &'static str {
        match self {
            Sort::Configured => "configuration",
            Sort::Connections => "connections",
            Sort::Packets => "packets",
            Sort::Name => "name",
        }
    }
}

/// All that is on the screen.
#[derive(Debug, Default)]
struct Screen {
    rates: Rates,
    sort: Sort,
    /// The row that keys speak of.
    selected: usize,
    /// What the last key did, or why there are no news.
    message: String,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Nothing,
    Quit,
    /// Drain the backend, or take it back.
    Drain {
        service: String,
        backend: String,
        drain: bool,
    },
}

impl Screen {
    fn press(&mut self, key: KeyCode) -> Wish {
        let last = self.rates.rows(self.sort).len().saturating_sub(1);
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.selected += 1,
            KeyCode::PageUp => self.selected = self.selected.saturating_sub(10),
            KeyCode::PageDown => self.selected += 10,
            KeyCode::Home => self.selected = 0,
            KeyCode::End => self.selected = last,
            KeyCode::Char('d') => return self.drain(),
            _ => {}
        }
        self.selected = self.selected.min(last);
        Wish::Nothing
    }

    fn drain(&mut self) -> Wish {
        let rows = self.rates.rows(self.sort);
        let row = rows.get(self.selected);
        let Some((row, backend)) = row.and_then(|row| Some((row, row.backend.clone()?))) else {
            self.message = "choose a backend with the arrow keys first".into();
            return Wish::Nothing;
        };
        Wish::Drain {
            service: row.service.clone(),
            backend,
            drain: row.state != Some(BackendState::Draining),
        }
    }
}

pub fn run(args: &TopArgs, shared: &Shared) -> Result<(), CliError> {
    // Before the screen changes: whoever cannot ask shall read why.
    let first = look(shared)?;
    let mut terminal = ratatui::try_init().map_err(CliError::Output)?;
    let shown = show(
        &mut terminal,
        first,
        shared,
        Duration::from_secs(args.interval),
    );
    ratatui::restore();
    shown
}

fn look(shared: &Shared) -> Result<Status, CliError> {
    client::block_on(client::get(&shared.socket, "/v1/status"))
}

fn show(
    terminal: &mut DefaultTerminal,
    first: Status,
    shared: &Shared,
    interval: Duration,
) -> Result<(), CliError> {
    let mut screen = Screen::default();
    screen.rates.take(first, Instant::now());
    let mut next = Instant::now() + interval;
    loop {
        terminal
            .draw(|frame| draw::draw(frame, &screen))
            .map_err(CliError::Output)?;
        if event::poll(next.saturating_duration_since(Instant::now())).map_err(CliError::Output)? {
            match event::read().map_err(CliError::Output)? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let is_break = key.modifiers.contains(KeyModifiers::CONTROL)
                        && key.code == KeyCode::Char('c');
                    match screen.press(key.code) {
                        Wish::Quit => return Ok(()),
                        _ if is_break => return Ok(()),
                        Wish::Nothing => {}
                        wish => screen.message = carry_out(&wish, shared),
                    }
                }
                _ => {}
            }
            continue;
        }
        next = Instant::now() + interval;
        match look(shared) {
            Ok(status) => {
                if screen.rates.is_stale() {
                    screen.message.clear();
                }
                screen.rates.take(status, Instant::now());
            }
            Err(error) => {
                screen.rates.set_stale();
                screen.message = error.to_string();
            }
        }
    }
}

/// Does it, and says what was done.
fn carry_out(wish: &Wish, shared: &Shared) -> String {
    let Wish::Drain {
        service,
        backend,
        drain,
    } = wish
    else {
        return String::new();
    };
    let path = format!(
        "/v1/services/{}/backends/{}",
        encode(service),
        encode(backend)
    );
    let set = BackendSettings {
        drain: Some(*drain),
        ..BackendSettings::default()
    };
    let change = async {
        let body = serde_json::to_string(&set);
        let body = body.map_err(|error| ClientError::Answer(error.to_string()))?;
        client::change::<Applied>(&shared.socket, Method::PATCH, &path, body).await
    };
    match client::block_on(change) {
        Ok(_) if *drain => format!("{service}/{backend} gets no new connections any more"),
        Ok(_) => format!("{service}/{backend} takes new connections again"),
        Err(error) => error.to_string(),
    }
}
