//! Columns of text, aligned. Pure.

/// How a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

use Align::{Left, Right};

/// Rows of cells under a header; columns are as wide as their widest cell and one space apart.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Cells under a header that begins with one space stand at the right, as numbers do.
    pub fn new(header: &[&'static str]) -> Self {
        let align = header
            .iter()
            .map(|cell| if is_number(cell) { Right } else { Left });
        Table {
            align: align.collect(),
            header: header
                .iter()
                .map(|cell| {
                    if is_number(cell) {
                        cell.trim_start()
                    } else {
                        cell
                    }
                })
                .collect(),
            rows: Vec::new(),
        }
    }

    /// A row of as many cells as the header has.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How wide a column is.
    pub fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        let widths = cells.map(|cell| cell.chars().count());
        widths.chain([self.header[column].len()]).max().unwrap_or(0)
    }

    /// One line each, without trailing spaces.
    pub fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| self.width(column))
            .collect();
        let header: Vec<String> = self.header.iter().map(|cell| (*cell).to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&header).chain(&self.rows) {
            let columns = row.iter().zip(&widths).zip(&self.align);
            let cells = columns.map(|((cell, width), align)| match align {
                Left => format!("{cell:<width$}"),
                Right => format!("{cell:>width$}"),
            });
            let line = cells.collect::<Vec<_>>().join(" ");
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// Header cells of numbers begin with one space; an indented one begins with several.
fn is_number(header: &str) -> bool {
    header.starts_with(' ') && !header.starts_with("  ")
}

/// A count in at most six characters: `999999`, `1000k`, `123M`, `45G`.
pub fn count(number: u64) -> String {
    scaled(number, 1000, &["", "k", "M", "G", "T", "P"])
}

/// Bytes in powers of 1024, at most eight characters: `999999 B`, `9765 KiB`.
pub fn bytes(number: u64) -> String {
    scaled(
        number,
        1024,
        &[" B", " KiB", " MiB", " GiB", " TiB", " PiB"],
    )
}

fn scaled(number: u64, step: u64, units: &[&str]) -> String {
    let mut scaled = number;
    for unit in &units[..units.len() - 1] {
        let most = if unit.trim().len() < 2 && scaled == number {
            999_999
        } else {
            99_999
        };
        if scaled <= most {
            return format!("{scaled}{unit}");
        }
        scaled /= step;
    }
    format!("{scaled}{}", units[units.len() - 1])
}

/// A length of time in its two largest units: `3 d 4 h`, `59 s`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}
