//! Reads `service.health`. A key that belongs to another type of check is an unknown key here. Pure.

use std::time::Duration;

use super::health::*;
use super::read::{DAY, MILLISECOND, SECOND, span_or};
use super::reader::Reader;
use super::span::Span;
use super::values::{ValueError, digits, parse_unicast};

const SHORTEST: Duration = Duration::from_millis(100);

/// `timeout_span` becomes the place of `timeout`, or of the table.
pub(super) fn read_health(mut r: Reader<'_>, timeout_span: &mut Span) -> Option<Health> {
    let kind = r.choice("type", CheckType::NAMES);
    r.require("type", "\"tcp\"");
    let via = r
        .choice("via", Via::NAMES)
        .map_or(Via::DataPath, |at| at.value);
    let interval = r.time("interval", SHORTEST..=DAY, MILLISECOND);
    let timeout = r.time("timeout", MILLISECOND * 10..=DAY, MILLISECOND);
    *timeout_span = span_or(&timeout, r.span);
    let interval = interval.map_or(Duration::from_secs(2), |at| at.value);
    let fall = r.integer("fall", 1..=1_000).map_or(3, |at| at.value);
    let rise = r.integer("rise", 1..=1_000).map_or(2, |at| at.value);
    let start = r
        .choice("start", StartState::NAMES)
        .map_or(StartState::Up, |at| at.value);
    let jitter = r.integer("jitter", 0..=50).map_or(10, |at| at.value);
    let address = r.parsed("address", parse_unicast).map(|at| at.value);
    let port = r.integer("port", 1..=u16::MAX).map(|at| at.value);
    let Some(kind) = kind else {
        // Without a type nobody knows which other keys are right.
        return None;
    };
    let check = read_check(&mut r, kind.value);
    r.finish();
    let timeout = timeout.map_or(interval.min(SECOND), |at| at.value);
    Some(Health {
        check: check?,
        via,
        interval,
        timeout,
        fall,
        rise,
        start,
        jitter,
        address,
        port,
    })
}

fn read_check(r: &mut Reader<'_>, kind: CheckType) -> Option<Check> {
    Some(match kind {
        CheckType::Tcp => Check::Tcp,
        CheckType::Ping => Check::Ping,
        CheckType::Http => Check::Http(read_http(r, None)),
        CheckType::Https => {
            let verify = r.boolean("tls_verify").is_none_or(|at| at.value);
            let sni = r.string("sni").map(|at| at.value.to_owned());
            Check::Http(read_http(r, Some(Tls { verify, sni })))
        }
        CheckType::Udp => Check::Udp {
            payload: r
                .string("payload")
                .map_or_else(String::new, |at| at.value.to_owned()),
            reply: r.string("reply").map(|at| at.value.to_owned()),
        },
        CheckType::Dns => {
            let query = r.string("query").map(|at| at.value.to_owned());
            r.require("query", "\"example.org\"");
            let record = r.string("record").map_or("A", |at| at.value).to_owned();
            Check::Dns {
                query: query?,
                record,
            }
        }
        CheckType::Script => {
            let word = |text: &str| {
                if text.is_empty() {
                    Err(ValueError::Empty)
                } else {
                    Ok(text.to_owned())
                }
            };
            let command: Vec<String> = r
                .list("command", word)
                .into_iter()
                .map(|at| at.value)
                .collect();
            r.require("command", "[\"/usr/local/bin/check\"]");
            if command.is_empty() {
                return None;
            }
            Check::Script { command }
        }
    })
}

fn read_http(r: &mut Reader<'_>, tls: Option<Tls>) -> HttpCheck {
    let mut status: Vec<(u16, u16)> = r
        .list("status", parse_status)
        .into_iter()
        .map(|at| at.value)
        .collect();
    if status.is_empty() {
        status.push((200, 399));
    }
    HttpCheck {
        tls,
        method: r.string("method").map_or("GET", |at| at.value).to_owned(),
        host: r.string("host").map(|at| at.value.to_owned()),
        path: r.string("path").map_or("/", |at| at.value).to_owned(),
        status,
        body: r.string("body").map(|at| at.value.to_owned()),
    }
}

/// `"200"` or `"200-299"`.
fn parse_status(text: &str) -> Result<(u16, u16), ValueError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |t: &str| {
        digits::<u16>(t)
            .filter(|code| (100..=599).contains(code))
            .ok_or(ValueError::Status)
    };
    let range = (number(first)?, number(last)?);
    if range.0 <= range.1 {
        Ok(range)
    } else {
        Err(ValueError::Status)
    }
}
