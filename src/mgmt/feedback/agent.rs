//! The text an agent answers: HAProxy's agent-check protocol. One line of words, separated by
//! blanks or commas; what follows `#` is a reason for people. Pure.
//!
//! Source: HAProxy configuration manual, `agent-check`.

/// Longest line that is read; a longer one is a fault.
pub const LONGEST: usize = 1024;
/// Percentages above this are taken for a fault, not for a weight.
pub const MOST_PERCENT: u32 = 1000;

/// Whether the operator of the server wants it used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    Ready,
    /// No new connections.
    Drain,
    /// No new connections: under maintenance.
    Maintenance,
}

/// What an agent said. What a line does not mention stays as it was.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Advice {
    /// Share of the configured weight.
    pub percent: Option<u32>,
    pub order: Option<Order>,
    pub up: Option<bool>,
    /// Connections the server wants at most.
    pub max_connections: Option<u32>,
    /// What it says of itself.
    pub reason: Option<String>,
}

/// Why an answer was not taken; nothing of such an answer is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadAdvice {
    #[error("the agent closed without a whole line")]
    Truncated,
    #[error("the agent's line is longer than {LONGEST} bytes")]
    TooLong,
    #[error("the agent's line is not text")]
    NotText,
    #[error("the agent's line is empty")]
    Empty,
    #[error("the agent said `{0}`, which is no percentage from 0 to {MOST_PERCENT}")]
    Percent(String),
    #[error("the agent said `{0}`, which is no number of connections")]
    Connections(String),
    #[error("the agent said `{0}`, a word that means nothing here")]
    Word(String),
}

/// Reads an answer up to its first line end. `closed` says that the agent has closed: then a line
/// needs no end, which is how many agents are written, unless it was cut inside a word.
pub fn parse(bytes: &[u8], closed: bool) -> Result<Advice, BadAdvice> {
    let end = bytes.iter().position(|b| matches!(b, b'\n' | b'\r' | 0));
    let line = match end {
        Some(end) => &bytes[..end],
        None if bytes.len() > LONGEST => return Err(BadAdvice::TooLong),
        None if closed && !bytes.is_empty() => bytes,
        None => return Err(BadAdvice::Truncated),
    };
    if line.len() > LONGEST {
        return Err(BadAdvice::TooLong);
    }
    let line = std::str::from_utf8(line).map_err(|_| BadAdvice::NotText)?;
    let (words, reason) = match line.split_once('#') {
        Some((words, reason)) => (words, Some(reason.trim())),
        None => (line, None),
    };
    let mut advice = Advice {
        reason: reason.filter(|r| !r.is_empty()).map(printable),
        ..Advice::default()
    };
    let mut words = words
        .split([' ', '\t', ','])
        .filter(|w| !w.is_empty())
        .peekable();
    if words.peek().is_none() {
        return Err(BadAdvice::Empty);
    }
    for word in words {
        read_word(word, &mut advice)?;
    }
    Ok(advice)
}

fn read_word(word: &str, advice: &mut Advice) -> Result<(), BadAdvice> {
    if let Some(number) = word.strip_suffix('%') {
        let percent = number.parse().ok().filter(|p| *p <= MOST_PERCENT);
        advice.percent = Some(percent.ok_or_else(|| BadAdvice::Percent(printable(word)))?);
        return Ok(());
    }
    if let Some(number) = word.strip_prefix("maxconn:") {
        let connections = number.parse().ok();
        let bad = || BadAdvice::Connections(printable(word));
        advice.max_connections = Some(connections.ok_or_else(bad)?);
        return Ok(());
    }
    match word.to_ascii_lowercase().as_str() {
        "ready" => advice.order = Some(Order::Ready),
        "drain" => advice.order = Some(Order::Drain),
        "maint" => advice.order = Some(Order::Maintenance),
        "up" => advice.up = Some(true),
        "down" | "stopped" | "fail" | "failed" => advice.up = Some(false),
        _ => return Err(BadAdvice::Word(printable(word))),
    }
    Ok(())
}

/// At most 60 characters, none of which can upset a terminal or a log.
pub(super) fn printable(text: &str) -> String {
    let shown = text.chars().take(60);
    shown
        .map(|c| if c.is_control() { '.' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Advice, BadAdvice> {
        parse(text.as_bytes(), false)
    }

    #[test]
    fn words_and_their_meaning() {
        let advice = line("75%\n").expect("good");
        assert_eq!(advice.percent, Some(75));
        let advice = line("up,ready 40%\tmaxconn:30\r\nignored\n").expect("good");
        assert_eq!((advice.up, advice.order), (Some(true), Some(Order::Ready)));
        assert_eq!(
            (advice.percent, advice.max_connections),
            (Some(40), Some(30))
        );
        let advice = line("down # disk  full\n").expect("good");
        assert_eq!(advice.up, Some(false));
        assert_eq!(advice.reason.as_deref(), Some("disk  full"));
        for (word, order) in [("drain", Order::Drain), ("MAINT", Order::Maintenance)] {
            assert_eq!(line(&format!("{word}\n")).expect("good").order, Some(order));
        }
        for word in ["stopped", "fail", "failed"] {
            assert_eq!(line(&format!("{word}\n")).expect("good").up, Some(false));
        }
        assert_eq!(parse(b"60%", true).expect("closed after").percent, Some(60));
    }

    #[test]
    fn lies_are_refused_whole_and_named() {
        for bad in [
            "NaN%",
            "-5%",
            "1001%",
            "99999999999999999999%",
            "%",
            "7.5%",
            "1e3%",
            "inf%",
            "+-1%",
        ] {
            assert_eq!(
                line(&format!("up {bad}\n")),
                Err(BadAdvice::Percent(bad.into()))
            );
        }
        assert_eq!(
            line("maxconn:-1\n"),
            Err(BadAdvice::Connections("maxconn:-1".into()))
        );
        assert_eq!(line("weight 5\n"), Err(BadAdvice::Word("weight".into())));
        assert_eq!(line("\n"), Err(BadAdvice::Empty));
        assert_eq!(line("# only a reason\n"), Err(BadAdvice::Empty));
        assert_eq!(line("75"), Err(BadAdvice::Truncated));
        assert_eq!(parse(b"", true), Err(BadAdvice::Truncated));
        assert_eq!(parse(b"7", true), Err(BadAdvice::Word("7".into())));
        assert_eq!(parse(&[0xff, 0xfe, b'\n'], false), Err(BadAdvice::NotText));
        assert_eq!(parse(&[b'x'; LONGEST + 1], false), Err(BadAdvice::TooLong));
        let nasty = line("\u{1b}[2Jevil\n").expect_err("bad");
        assert!(!nasty.to_string().contains('\u{1b}'), "{nasty}");
    }
}
