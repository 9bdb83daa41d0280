//! Prometheus text as node_exporter writes it: load, processor, memory and disk of a server.
//! Pure: text and the previous reading in, shares out.
//!
//! Source: the Prometheus text exposition format, version 0.0.4; node_exporter's metric names.

use super::sample::{Sample, Source};

/// Longest answer that is read.
pub const LARGEST: usize = 4 << 20;

/// What one answer says. Counters mean something only beside those of an earlier answer.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Reading {
    /// Seconds all processors have spent, and spent idle.
    cpu_total: f64,
    cpu_idle: f64,
    processors: u32,
    load: Option<f64>,
    memory_total: Option<f64>,
    memory_available: Option<f64>,
    /// Seconds the busiest disk has spent with work.
    disk_busy: Option<f64>,
}

/// Why an answer was not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadReading {
    #[error("the exporter's answer is larger than {LARGEST} bytes")]
    TooLarge,
    #[error("the exporter's answer is not text")]
    NotText,
    #[error(
        "the exporter's answer has none of node_cpu_seconds_total, node_load1, node_memory_MemTotal_bytes"
    )]
    NothingKnown,
    #[error("the exporter's `{0}` is `{1}`, which is no such number")]
    Number(&'static str, String),
}

impl Reading {
    /// Reads an answer's body. Metrics that are not known are passed over.
    pub fn parse(body: &[u8]) -> Result<Self, BadReading> {
        if body.len() > LARGEST {
            return Err(BadReading::TooLarge);
        }
        let body = std::str::from_utf8(body).map_err(|_| BadReading::NotText)?;
        let mut reading = Self::default();
        for line in body.lines().filter(|l| !l.starts_with('#')) {
            reading.read_line(line)?;
        }
        let known =
            reading.processors > 0 || reading.load.is_some() || reading.memory_total.is_some();
        known.then_some(reading).ok_or(BadReading::NothingKnown)
    }

    fn read_line(&mut self, line: &str) -> Result<(), BadReading> {
        let Some((name, labels, value)) = split(line) else {
            return Ok(());
        };
        match name {
            "node_cpu_seconds_total" => {
                let seconds = number("node_cpu_seconds_total", value)?;
                self.cpu_total += seconds;
                // Every processor has exactly one idle line.
                if labels.contains("mode=\"idle\"") {
                    self.cpu_idle += seconds;
                    self.processors += 1;
                } else if labels.contains("mode=\"iowait\"") {
                    self.cpu_idle += seconds;
                }
            }
            "node_load1" => self.load = Some(number("node_load1", value)?),
            "node_memory_MemTotal_bytes" => {
                self.memory_total = Some(number("node_memory_MemTotal_bytes", value)?);
            }
            "node_memory_MemAvailable_bytes" => {
                self.memory_available = Some(number("node_memory_MemAvailable_bytes", value)?);
            }
            "node_disk_io_time_seconds_total" => {
                let seconds = number("node_disk_io_time_seconds_total", value)?;
                self.disk_busy = Some(self.disk_busy.unwrap_or(0.0).max(seconds));
            }
            _ => {}
        }
        Ok(())
    }

    /// The shares in use since `before`, `seconds` ago; without an earlier reading, or when the
    /// counters began anew, only what needs none. The load is the mean of a minute: it only
    /// stands for the processors where these are never heard of.
    pub fn since(&self, before: Option<&Reading>, seconds: f64) -> Sample {
        let load = self.load;
        let load = load.map(|load| load / f64::from(self.processors.max(1)));
        let mut sample = Sample {
            source: Source::Exporter,
            load: load.filter(|_| self.processors == 0),
            memory: self
                .memory_total
                .zip(self.memory_available)
                .filter(|(total, _)| *total > 0.0)
                .map(|(total, available)| (1.0 - available / total).clamp(0.0, 1.0)),
            ..Sample::default()
        };
        let Some(before) = before.filter(|_| seconds > 0.0) else {
            return sample;
        };
        let spent = self.cpu_total - before.cpu_total;
        let idle = self.cpu_idle - before.cpu_idle;
        if spent > 0.0 && idle >= 0.0 && self.processors == before.processors {
            sample.cpu = Some((1.0 - idle / spent).clamp(0.0, 1.0));
            sample.load = load;
        }
        let busy = self
            .disk_busy
            .zip(before.disk_busy)
            .map(|(now, then)| now - then);
        sample.disk = busy
            .filter(|busy| *busy >= 0.0)
            .map(|busy| (busy / seconds).min(1.0));
        sample
    }
}

/// Name, labels (without braces) and value of a line; `None` for what is no sample.
fn split(line: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = line.split_at(line.find(['{', ' ', '\t'])?);
    let (labels, rest) = match rest.strip_prefix('{') {
        // Label values may hold braces; the last one ends the labels.
        Some(rest) => rest.rsplit_once('}')?,
        None => ("", rest),
    };
    Some((name, labels, rest.split_ascii_whitespace().next()?))
}

/// All these metrics are finite and not negative.
fn number(name: &'static str, text: &str) -> Result<f64, BadReading> {
    let value: Option<f64> = text.parse().ok();
    value
        .filter(|v| v.is_finite() && *v >= 0.0)
        .ok_or_else(|| BadReading::Number(name, super::agent::printable(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(idle: f64, user: f64, disk: f64) -> String {
        format!(
            "# HELP node_load1 1m load average.\n# TYPE node_load1 gauge\nnode_load1 1.5\n\
             node_cpu_seconds_total{{cpu=\"0\",mode=\"idle\"}} {idle}\n\
             node_cpu_seconds_total{{cpu=\"0\",mode=\"user\"}} {user}\n\
             node_cpu_seconds_total{{cpu=\"1\",mode=\"idle\"}} {idle}\n\
             node_cpu_seconds_total{{cpu=\"1\",mode=\"iowait\"}} 1\n\
             node_cpu_seconds_total{{cpu=\"1\",mode=\"system\"}} {user} 1700000000000\n\
             node_memory_MemTotal_bytes 8e+09\nnode_memory_MemAvailable_bytes 2e+09\n\
             node_disk_io_time_seconds_total{{device=\"sda\"}} 3\n\
             node_disk_io_time_seconds_total{{device=\"sdb}}\"}} {disk}\n\
             node_textfile_scrape_error 0\n"
        )
    }

    #[test]
    fn shares_come_from_two_readings() {
        let before = Reading::parse(body(100.0, 50.0, 20.0).as_bytes()).expect("good");
        let after = Reading::parse(body(102.0, 56.0, 21.0).as_bytes()).expect("good");
        let first = before.since(None, 0.0);
        assert_eq!((first.cpu, first.disk), (None, None));
        assert_eq!((first.load, first.memory), (None, Some(0.75)));
        let sample = after.since(Some(&before), 5.0);
        assert_eq!((sample.cpu, sample.disk), (Some(0.75), Some(0.2)));
        assert_eq!(sample.load, Some(0.75));
        // A server that was restarted counts from nought.
        let sample = before.since(Some(&after), 5.0);
        assert_eq!((sample.cpu, sample.disk), (None, None));
    }

    #[test]
    fn lies_are_refused_and_named() {
        for value in ["NaN", "+Inf", "-1", "much", "1e999"] {
            let refused = Reading::parse(format!("node_load1 {value}\n").as_bytes());
            assert_eq!(refused, Err(BadReading::Number("node_load1", value.into())));
        }
        assert_eq!(Reading::parse(b""), Err(BadReading::NothingKnown));
        assert_eq!(Reading::parse(b"<html>"), Err(BadReading::NothingKnown));
        assert_eq!(Reading::parse(&[0xff]), Err(BadReading::NotText));
        // Cut in mid-line: what came before counts, the stump does not.
        let cut = Reading::parse(b"node_load1 2\nnode_cpu_seconds_total{cpu=\"0\",mo");
        assert_eq!(cut.map(|r| r.load), Ok(Some(2.0)));
        let huge = vec![b' '; LARGEST + 1];
        assert_eq!(Reading::parse(&huge), Err(BadReading::TooLarge));
    }
}
