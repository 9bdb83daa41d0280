//! What is on the screen, at 80 columns and 24 lines.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;

use super::draw::{draw, unit};
use super::*;
use crate::mgmt::api::{BackendStatus, Reason, ServiceStatus, Traffic, WorkerStatus};

fn backend(name: &str, state: BackendState, count: u64) -> BackendStatus {
    BackendStatus {
        name: name.into(),
        state,
        weight: 1,
        effective_weight: u32::from(state == BackendState::Up),
        active: count,
        inactive: 2 * count,
        traffic: Traffic {
            connections: count,
            in_packets: 10 * count,
            out_packets: 20 * count,
            in_bytes: 1000 * count,
            out_bytes: 100_000 * count,
        },
        ..BackendStatus::default()
    }
}

fn status(seconds: u64) -> Status {
    let service = |name: &str, scale: u64| ServiceStatus {
        name: name.into(),
        method: "direct-routing".into(),
        scheduler: "wlc".into(),
        backends: vec![
            backend("web-1", BackendState::Up, 2 * scale * seconds),
            backend("web-2", BackendState::Unreachable, 0),
            backend("web-3", BackendState::Draining, 3 * scale * seconds),
        ],
        ..ServiceStatus::default()
    };
    Status {
        version: "0.1.0".into(),
        uptime_seconds: seconds,
        generation: 12,
        services: vec![
            service("web", 5),
            service("a-service-with-a-long-name", 70_000),
        ],
        workers: vec![WorkerStatus {
            core: 3,
            received: 1_000_000 * seconds,
            dropped: 7 * seconds,
            busy_seconds: 0.25 * seconds as f64,
            seconds: seconds as f64,
            connections: 40,
            capacity: 1_000_000,
            ..WorkerStatus::default()
        }],
        drops: vec![Reason {
            reason: "no_backend".into(),
            count: 7 * seconds,
            explanation: String::new(),
        }],
        notes: vec!["No huge pages: none.".into()],
        ..Status::default()
    }
}

fn screen() -> Screen {
    let mut screen = Screen::default();
    let now = Instant::now();
    screen.rates.take(status(100), now);
    screen.rates.take(status(102), now + Duration::from_secs(2));
    screen
}

fn shown(screen: &Screen) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| draw(frame, screen)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |row: u16| {
        let cells = (0..80).map(|column| buffer[(column, row)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..24).map(line).collect()
}

#[test]
fn it_reads_well_at_80_columns_and_24_lines() {
    let lines = shown(&screen());
    let expected = "evenkeel 0.1.0, up 1 min 42 s: 11M packet/s, 283G bit/s  1 note: see status";
    assert_eq!(lines[0], expected);
    let rows = &lines[2..11];
    assert!(rows[0].starts_with("Service, backend"), "{rows:#?}");
    assert!(rows[1].starts_with("web "), "{rows:#?}");
    assert!(
        rows[2].starts_with("  web-1 ") && rows[2].contains(" up "),
        "{rows:#?}"
    );
    assert!(rows[3].contains("unreachable"), "{rows:#?}");
    // Two connections a second and five times ten packets in for each.
    let cells: Vec<&str> = rows[2].split_whitespace().collect();
    assert_eq!(
        cells,
        ["web-1", "up", "1", "1k", "2k", "10", "100", "200", "8.1M"]
    );
    assert!(rows[5].starts_with("a-service-with-a-long-na"), "{rows:#?}");
    let worker = lines
        .iter()
        .position(|line| line.starts_with("Worker"))
        .unwrap();
    let cells: Vec<&str> = lines[worker + 1].split_whitespace().collect();
    assert_eq!(cells, ["0", "3", "25", "%", "1M", "0", "7", "40", "1M"]);
    assert_eq!(lines[22], "dropped: no_backend 7/s");
    assert!(
        lines[23].starts_with("q quit  s sort (configuration)"),
        "{lines:#?}"
    );
    assert!(lines.iter().all(|line| line.chars().count() <= 80));
}

#[test]
fn keys_sort_choose_and_drain() {
    let mut screen = screen();
    assert_eq!(screen.press(KeyCode::Char('d')), Wish::Nothing);
    assert!(screen.message.contains("choose a backend"));
    for _ in 0..2 {
        assert_eq!(screen.press(KeyCode::Char('s')), Wish::Nothing);
    }
    assert_eq!(screen.sort, Sort::Packets);
    let rows = screen.rates.rows(screen.sort);
    let names: Vec<_> = rows.iter().map(|row| row.backend.as_deref()).collect();
    let one = [None, Some("web-3"), Some("web-1"), Some("web-2")];
    assert_eq!(names, [one, one].concat());
    assert_eq!(rows[0].service, "a-service-with-a-long-name");
    screen.press(KeyCode::Down);
    let drain = |backend: &str, drain| Wish::Drain {
        service: "a-service-with-a-long-name".into(),
        backend: backend.into(),
        drain,
    };
    assert_eq!(screen.press(KeyCode::Char('d')), drain("web-3", false));
    screen.press(KeyCode::Down);
    assert_eq!(screen.press(KeyCode::Char('d')), drain("web-1", true));
    screen.press(KeyCode::PageDown);
    screen.press(KeyCode::Down);
    assert_eq!(screen.selected, 7);
    screen.press(KeyCode::Home);
    assert_eq!(
        (screen.selected, screen.press(KeyCode::Char('q'))),
        (0, Wish::Quit)
    );
}

#[test]
fn nothing_is_made_up_without_a_status_before() {
    let mut screen = Screen::default();
    let now = Instant::now();
    screen.rates.take(status(100), now);
    let rates = |screen: &Screen| {
        let rows = screen.rates.rows(Sort::Configured);
        rows.iter().map(|row| row.rate.in_packets).sum::<f64>()
    };
    assert_eq!(rates(&screen), 0.0);
    assert!(screen.rates.drops().is_empty());
    assert_eq!(screen.rates.workers()[0].busy, None);
    // The program was started anew in between.
    screen.rates.take(status(3), now + Duration::from_secs(1));
    assert_eq!(rates(&screen), 0.0);
    let lines = shown(&screen);
    assert_eq!(lines[22], "nothing is dropped");
}

#[test]
fn numbers_fit() {
    for (number, text) in [
        (0.0, "0"),
        (0.5, "0.5"),
        (7.0, "7"),
        (9.94, "9.9"),
        (9.96, "10"),
        (999.4, "999"),
        (999.6, "1k"),
        (1_234.0, "1.2k"),
        (123_456.0, "123k"),
        (4_500_000.0, "4.5M"),
        (1e17, "100P"),
    ] {
        assert_eq!(unit(number), text, "{number}");
        assert!(unit(number).len() <= 5);
    }
}
