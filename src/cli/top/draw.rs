//! What `top` looks like, from 80 columns and 24 lines on.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as Cells, Table, TableState};

use super::Screen;
use super::rates::{Row, WorkerRow};
use crate::cli::table::duration;
use crate::mgmt::api::BackendState;

/// Workers that are shown beside a long list of services.
const WORKERS: usize = 4;

const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);

pub fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let workers = screen.rates.workers();
    let shown = workers.len().min(WORKERS) as u16;
    let [top, services, below, drops, bottom] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(4),
        Constraint::Length(shown + 2),
        Constraint::Length(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(head(screen), top);
    draw_services(frame, screen, services);
    draw_workers(frame, &workers, below);
    frame.render_widget(dropped(screen), drops);
    frame.render_widget(foot(screen), bottom);
}

fn head(screen: &Screen) -> Paragraph<'_> {
    let status = screen.rates.status();
    let up = duration(status.uptime_seconds);
    let rows = screen.rates.rows(screen.sort);
    let services = rows.iter().filter(|row| row.backend.is_none());
    let rates = services.map(|row| row.rate);
    let (packets, bits) = rates.fold((0.0, 0.0), |(packets, bits), rate| {
        (
            packets + rate.in_packets + rate.out_packets,
            bits + rate.bits,
        )
    });
    let notes = match status.notes.len() {
        0 => String::new(),
        1 => "  1 note: see status".into(),
        count => format!("  {count} notes: see status"),
    };
    let line = format!(
        "evenkeel {}, up {up}: {} packet/s, {} bit/s",
        status.version,
        unit(packets),
        unit(bits)
    );
    Paragraph::new(Line::from(vec![
        Span::styled(line, HEAD),
        Span::styled(notes, Style::new().fg(Color::Yellow)),
    ]))
}

fn draw_services(frame: &mut Frame<'_>, screen: &Screen, area: Rect) {
    let header = [
        "Service, backend",
        "State",
        "Weight",
        "Active",
        "Other",
        "New/s",
        "In/s",
        "Out/s",
        "bit/s",
    ];
    let widths = [
        Constraint::Min(20),
        Constraint::Length(11),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
    ];
    let rows = screen.rates.rows(screen.sort);
    let table = Table::new(rows.iter().map(cells), widths)
        .header(
            Cells::new(header.iter().enumerate().map(|(at, name)| match at {
                0 | 1 => Cell::from(*name),
                _ => right(name),
            }))
            .style(HEAD),
        )
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .column_spacing(1);
    let mut state = TableState::new().with_selected(Some(screen.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

fn right(text: &str) -> Cell<'static> {
    Cell::from(Line::from(text.to_owned()).right_aligned())
}

fn cells(row: &Row) -> Cells<'static> {
    let (name, style) = match &row.backend {
        None => (row.service.clone(), HEAD),
        Some(backend) => (format!("  {backend}"), Style::new()),
    };
    let (word, colour) = match row.state {
        None => (row.what.clone(), Style::new()),
        Some(BackendState::Up) => ("up".to_owned(), Style::new().fg(Color::Green)),
        Some(state @ (BackendState::Down | BackendState::Unreachable)) => {
            (state.name().to_owned(), Style::new().fg(Color::Red))
        }
        Some(state) => (state.name().to_owned(), Style::new().fg(Color::Yellow)),
    };
    let weight = row
        .weight
        .map_or_else(String::new, |weight| weight.to_string());
    Cells::new(vec![
        Cell::from(name),
        Cell::from(Span::styled(word, colour)),
        right(&weight),
        right(&unit(row.active as f64)),
        right(&unit(row.inactive as f64)),
        right(&unit(row.rate.connections)),
        right(&unit(row.rate.in_packets)),
        right(&unit(row.rate.out_packets)),
        right(&unit(row.rate.bits)),
    ])
    .style(style)
}

fn draw_workers(frame: &mut Frame<'_>, workers: &[WorkerRow], area: Rect) {
    let header = [
        "Worker",
        "Core",
        "Busy",
        "In/s",
        "Out/s",
        "Drop/s",
        "Connections",
        "of",
    ];
    let widths = [6, 4, 5, 7, 7, 7, 11, 8].map(Constraint::Length);
    let row = |worker: &WorkerRow| {
        let busy = worker
            .busy
            .map_or_else(|| "-".into(), |busy| format!("{busy:.0} %"));
        Cells::new(
            [
                worker.worker.to_string(),
                worker.core.to_string(),
                busy,
                unit(worker.received),
                unit(worker.transmitted),
                unit(worker.dropped),
                unit(worker.connections as f64),
                unit(worker.capacity as f64),
            ]
            .map(|text| right(&text)),
        )
    };
    let mut busiest: Vec<&WorkerRow> = workers.iter().collect();
    if busiest.len() > WORKERS {
        let busy = |worker: &WorkerRow| worker.busy.unwrap_or(0.0);
        busiest.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
        busiest.truncate(WORKERS);
    }
    let table = Table::new(busiest.into_iter().map(row), widths)
        .header(Cells::new(header.map(right)).style(HEAD))
        .column_spacing(1);
    let [_, area] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(table, area);
}

fn dropped(screen: &Screen) -> Paragraph<'_> {
    let drops = screen.rates.drops();
    let words = drops
        .iter()
        .map(|(reason, rate)| format!("{reason} {}/s", unit(*rate)));
    let words: Vec<String> = words.collect();
    match words.is_empty() {
        true => Paragraph::new(Line::styled("nothing is dropped", FAINT)),
        false => Paragraph::new(Line::styled(
            format!("dropped: {}", words.join(", ")),
            Style::new().fg(Color::Red),
        )),
    }
}

fn foot(screen: &Screen) -> Paragraph<'_> {
    if !screen.message.is_empty() {
        return Paragraph::new(Line::styled(
            screen.message.as_str(),
            Style::new().fg(Color::Yellow),
        ));
    }
    let keys = format!(
        "q quit  s sort ({})  up/down choose  d drain or take back",
        screen.sort.name()
    );
    Paragraph::new(Line::styled(keys, FAINT))
}

/// A number in at most five characters: `0`, `7.3`, `999`, `1.2k`, `123k`, `4.5M`.
pub fn unit(number: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut scaled = number.max(0.0);
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    // In tenths, so that what is shown decides.
    let tenths = (scaled * 10.0).round() as u64;
    match tenths {
        0..100 if !tenths.is_multiple_of(10) => {
            format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
        }
        _ => format!("{scaled:.0}{}", UNITS[unit]),
    }
}
