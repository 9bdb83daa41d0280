//! Draws what `tests/feedback_sim.rs` tests: `scripts/plot-feedback` runs it. Writes an SVG to
//! the path given.

#[path = "../feedback/sim.rs"]
mod sim;

use std::fmt::Write;

use evenkeel::lb::snapshot::Scheduler;
use evenkeel::mgmt::feedback::Policy;
use sim::{
    CPU, Change, INTERVAL, MEASURED, SETUPS, SITE, Site, Weights, from_cold, p99s, run, setup,
    spread,
};

const LOADS: [f64; 3] = [0.5, 0.8, 0.9];
const SEEDS: std::ops::Range<u64> = 100_000..100_020;
const COLOURS: [&str; 7] = [
    "#9e9e9e", "#424242", "#64b5f6", "#1565c0", "#a5d6a7", "#2e7d32", "#e57373",
];
const WIDTH: f64 = 860.0;

fn main() {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: feedback_plot FILE.svg");
        std::process::exit(2);
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 760\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    bars(&mut svg);
    shares(&mut svg);
    svg.push_str("</svg>\n");
    if let Err(error) = std::fs::write(&path, svg) {
        eprintln!("{path}: {error}");
        std::process::exit(1);
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

/// The p99 of every policy at every load, on a logarithmic scale from 10 ms to 1000 s.
fn bars(svg: &mut String) {
    const BOTTOM: f64 = 340.0;
    let y = |seconds: f64| BOTTOM - (seconds.clamp(0.01, 1000.0) / 0.01).log10() * 56.0;
    text(
        svg,
        10.0,
        20.0,
        "start",
        "p99 response time over 600 s from a cold start, mean of 20 seeds with its standard deviation",
    );
    for (n, label) in ["10 ms", "100 ms", "1 s", "10 s", "100 s", "1000 s"]
        .iter()
        .enumerate()
    {
        let at = y(0.01 * 10f64.powi(n as i32));
        line(svg, (60.0, at), (600.0, at), "#dddddd");
        text(svg, 55.0, at + 4.0, "end", label);
    }
    for (group, load) in LOADS.into_iter().enumerate() {
        let left = 75.0 + 180.0 * group as f64;
        text(
            svg,
            left + 75.0,
            BOTTOM + 18.0,
            "middle",
            &format!("{:.0} % load", load * 100.0),
        );
        for (n, p99s) in p99s(&SETUPS, &SITE, load, SEEDS, from_cold(MEASURED))
            .iter()
            .enumerate()
        {
            let (mean, deviation) = spread(p99s);
            let (name, milliseconds) = (SETUPS[n].name, [mean * 1e3, deviation * 1e3]);
            println!("load {load}: {name}: {milliseconds:.0?} ms");
            let (x, top) = (left + 22.0 * n as f64, y(mean));
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"18\" height=\"{:.1}\" fill=\"{}\"/>",
                BOTTOM - top,
                COLOURS[n]
            );
            line(
                svg,
                (x + 9.0, y(mean - deviation)),
                (x + 9.0, y(mean + deviation)),
                "black",
            );
        }
    }
    for (n, setup) in SETUPS.iter().enumerate() {
        let at = 60.0 + 20.0 * n as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"630\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            at - 10.0,
            COLOURS[n]
        );
        text(svg, 648.0, at, "start", setup.name);
    }
}

/// The share of a server that slows down to a quarter and recovers, over time.
fn shares(svg: &mut String) {
    const BOTTOM: f64 = 720.0;
    const SERVER: usize = 8;
    let slow = Change {
        at: 200.0,
        server: SERVER,
        capacity: 1.0,
    };
    let well = Change {
        at: 400.0,
        capacity: 4.0,
        ..slow
    };
    let relative = setup(
        "",
        Scheduler::WeightedRoundRobin,
        Weights::Right,
        Some((Policy::Relative, CPU)),
    );
    let busy = Site {
        full: 500.0,
        ..SITE
    };
    let run = run(
        &relative,
        &busy,
        0.7,
        300_002,
        from_cold(600.0),
        &[slow, well],
    );
    let x = |seconds: f64| 60.0 + seconds * 0.9;
    let y = |share: f64| BOTTOM - share * 1200.0;
    text(
        svg,
        10.0,
        400.0,
        "start",
        "share of one server's weight at 70 % load: a quarter of its speed from 200 s to 400 s; dashes: what is due",
    );
    for percent in [0, 5, 10, 15, 20] {
        let at = y(f64::from(percent) / 100.0);
        line(svg, (60.0, at), (600.0, at), "#dddddd");
        text(svg, 55.0, at + 4.0, "end", &format!("{percent} %"));
    }
    for seconds in [0, 200, 400, 600] {
        text(
            svg,
            x(f64::from(seconds)),
            BOTTOM + 18.0,
            "middle",
            &format!("{seconds} s"),
        );
    }
    for (from, to, due) in [
        (0.0, 200.0, 4.0 / 22.0),
        (200.0, 400.0, 1.0 / 19.0),
        (400.0, 600.0, 4.0 / 22.0),
    ] {
        let _ = writeln!(
            svg,
            "<line x1=\"{:.1}\" y1=\"{2:.1}\" x2=\"{:.1}\" y2=\"{2:.1}\" stroke=\"#424242\" stroke-dasharray=\"4\"/>",
            x(from),
            x(to),
            y(due)
        );
    }
    let points: String = run
        .shares
        .iter()
        .enumerate()
        .map(|(n, s)| format!("{:.1},{:.1} ", x((n + 1) as f64 * INTERVAL), y(s[SERVER])))
        .collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"#1565c0\" stroke-width=\"2\"/>"
    );
}
