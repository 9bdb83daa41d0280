//! keepalived's checkers become a service's health check.

use std::time::Duration;

use super::tree::Statement;
use super::virtual_server::SERVER_OPTIONS;
use super::{Import, ImportError, Reason, number};
use crate::mgmt::config::{Check, Health, HttpCheck, Protocol, Service, StartState, Tls, Via};

/// What a virtual server or a real server sets for the checks in it.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    pub delay_loop: Option<Duration>,
    pub connect_timeout: Option<Duration>,
    pub retry: Option<u32>,
    pub host: Option<String>,
    pub start_down: bool,
}

/// keepalived's, when nothing says otherwise.
const DELAY_LOOP: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What evenkeel takes.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

const SETTINGS: &[&str] = &[
    "delay_loop",
    "connect_timeout",
    "retry",
    "delay_before_retry",
    "warmup",
    "virtualhost",
    "alpha",
];

impl Defaults {
    pub fn takes(&self, keyword: &str) -> bool {
        SETTINGS.contains(&keyword)
    }

    /// Takes a statement whose keyword it [`takes`](Self::takes).
    pub fn set(&mut self, line: &Statement) -> Result<(), ImportError> {
        match line.keyword() {
            "delay_loop" => self.delay_loop = Some(seconds(line)?),
            "connect_timeout" => self.connect_timeout = Some(seconds(line)?),
            "retry" => self.retry = Some(line.value()?.number()?),
            "virtualhost" => self.host = Some(line.text()?.to_owned()),
            "alpha" => self.start_down = true,
            // The pause before a retry and the first delay are the interval and its jitter here.
            _ => {}
        }
        Ok(())
    }
}

/// A time in seconds, which may have a fraction.
fn seconds(line: &Statement) -> Result<Duration, ImportError> {
    let word = line.value()?;
    let not_a = || word.not_a("a number of seconds");
    let seconds: f64 = word.text.parse().map_err(|_| not_a())?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| not_a())?;
    Ok(Duration::from_millis(time.as_millis() as u64))
}

/// The check of one real server; the first when there are several.
pub fn of_real_server(
    server: &Statement,
    defaults: &Defaults,
    service: &Service,
    import: &mut Import,
) -> Result<Option<Health>, ImportError> {
    let mut defaults = defaults.clone();
    for line in server
        .block
        .iter()
        .filter(|line| SETTINGS.contains(&line.keyword()))
    {
        defaults.set(line)?;
    }
    let mut first: Option<Health> = None;
    for line in &server.block {
        let keyword = line.keyword();
        if SETTINGS.contains(&keyword) || SERVER_OPTIONS.contains(&keyword) {
            continue;
        }
        let Some(health) = checker(line, &defaults, service, import)? else {
            continue;
        };
        if first.is_some() {
            import.note(line.place(), format!("{keyword} is a further check of the same real server, and a service has one; it is left out"));
        } else {
            first = Some(health);
        }
    }
    Ok(first)
}

fn checker(
    line: &Statement,
    defaults: &Defaults,
    service: &Service,
    import: &mut Import,
) -> Result<Option<Health>, ImportError> {
    // The retries of keepalived's HTTP, SMTP, DNS and ping checks differ from those of the others.
    let (check, retries) = match line.keyword() {
        "TCP_CHECK" => (Check::Tcp, 1),
        "HTTP_GET" => (Check::Http(http(line, defaults, None, import)?), 3),
        "SSL_GET" => {
            let sni = line
                .block
                .iter()
                .any(|option| option.keyword() == "enable_sni");
            let tls = Tls {
                verify: false,
                sni: sni.then(|| defaults.host.clone()).flatten(),
            };
            (Check::Http(http(line, defaults, Some(tls), import)?), 3)
        }
        "UDP_CHECK" => (udp(line, import)?, 3),
        "DNS_CHECK" => (dns(line)?, 3),
        "PING_CHECK" => (Check::Ping, 1),
        "MISC_CHECK" => (script(line, import)?, 0),
        "SMTP_CHECK" => {
            import.note(
                line.place(),
                "SMTP_CHECK has no equivalent; a TCP check stands in its place",
            );
            (Check::Tcp, 3)
        }
        other => {
            import.note(
                line.place(),
                format!("{other} has no equivalent; it is left out"),
            );
            return Ok(None);
        }
    };
    let mut defaults = defaults.clone();
    for option in line
        .block
        .iter()
        .filter(|option| SETTINGS.contains(&option.keyword()))
    {
        defaults.set(option)?;
    }
    health(line, check, retries, &defaults, service, import).map(Some)
}

fn health(
    line: &Statement,
    check: Check,
    retries: u32,
    defaults: &Defaults,
    service: &Service,
    import: &mut Import,
) -> Result<Health, ImportError> {
    let interval = defaults
        .delay_loop
        .unwrap_or(DELAY_LOOP)
        .max(SHORTEST_INTERVAL);
    let timeout = defaults.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
    let mut health = Health {
        check,
        // What keepalived does; via = "data-path" also finds a backend that lost its VIP.
        via: Via::Direct,
        interval,
        timeout: timeout.clamp(Duration::from_millis(10), interval),
        fall: defaults
            .retry
            .unwrap_or(retries)
            .saturating_add(1)
            .min(1_000),
        rise: 1,
        start: if defaults.start_down {
            StartState::Down
        } else {
            StartState::Up
        },
        jitter: 10,
        address: None,
        port: None,
    };
    for option in &line.block {
        let place = option.place();
        match option.keyword() {
            "connect_port" => health.port = Some(option.value()?.number()?),
            "connect_ip" => health.address = Some(option.value()?.address()?),
            "bindto" | "bind_if" | "bind_port" | "fwmark" => {
                let keyword = option.keyword();
                import.note(
                    place,
                    format!(
                        "{keyword} has no equivalent; checks come from the port's check_address"
                    ),
                );
            }
            _ => {}
        }
    }
    let has_port = service
        .listen
        .iter()
        .all(|listen| listen.ports.single().is_some());
    let needs_port = !matches!(health.check, Check::Ping | Check::Script { .. });
    if needs_port && !has_port && health.port.is_none() {
        health.port = Some(match service.listen.first().map(|listen| listen.protocol) {
            Some(Protocol::Udp) => 53,
            _ => 80,
        });
        import.note(line.place(), "the service listens on several ports and the check names none; port 80 (53 for UDP) stands in its place, correct it");
    }
    Ok(health)
}

fn http(
    line: &Statement,
    defaults: &Defaults,
    tls: Option<Tls>,
    import: &mut Import,
) -> Result<HttpCheck, ImportError> {
    let mut check = HttpCheck {
        tls,
        method: "GET".to_owned(),
        host: defaults.host.clone(),
        path: "/".to_owned(),
        status: vec![(200, 299)],
        body: None,
    };
    let option = |keyword| line.block.iter().find(|option| option.keyword() == keyword);
    if let Some(host) = option("virtualhost") {
        check.host = Some(host.text()?.to_owned());
    }
    let mut urls = line.block.iter().filter(|option| option.keyword() == "url");
    let Some(url) = urls.next() else {
        return Err(Reason::Missing("a url block").at(line.place()));
    };
    if let Some(second) = urls.next() {
        import.note(second.place(), "a check has one URL; the first one is used");
    }
    for option in &url.block {
        match option.keyword() {
            "path" => check.path = option.text()?.to_owned(),
            "virtualhost" => check.host = Some(option.text()?.to_owned()),
            "status_code" => check.status = statuses(option)?,
            "digest" => import.note(option.place(), "digest has no equivalent; write body = \"...\" with a text that a good answer contains"),
            "regex" => import.note(option.place(), "regex has no equivalent; write body = \"...\" with a text that a good answer contains"),
            other => import.note(option.place(), format!("{other} has no equivalent; it is left out")),
        }
    }
    if let Some(tls) = check.tls.as_mut().filter(|tls| tls.sni.is_some()) {
        tls.sni = check.host.clone();
    }
    Ok(check)
}

/// `200`, `200-299`, several of them.
fn statuses(line: &Statement) -> Result<Vec<(u16, u16)>, ImportError> {
    let mut statuses = Vec::new();
    for word in &line.parameters {
        let (text, place) = (word.text.as_str(), &word.place);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = (number::<u16>(first, place)?, number::<u16>(last, place)?);
        if range.0 > range.1 || range.0 < 100 || range.1 > 599 {
            return Err(word.not_a("an HTTP status or a range of them"));
        }
        statuses.push(range);
    }
    if statuses.is_empty() {
        return Err(Reason::NoValue("status_code".to_owned()).at(line.place()));
    }
    Ok(statuses)
}

fn udp(line: &Statement, import: &mut Import) -> Result<Check, ImportError> {
    let (mut payload, mut reply) = (String::new(), None);
    for option in &line.block {
        let bytes = || Ok(text_of_hex(option.text()?));
        match option.keyword() {
            "payload" => match bytes()? {
                Some(text) => payload = text,
                None => import.note(
                    option.place(),
                    "the payload is no text, and only text has an equivalent; it is left out",
                ),
            },
            "require_reply" if option.parameter(0).is_some() => match bytes()? {
                Some(text) => reply = Some(text),
                None => import.note(
                    option.place(),
                    "the reply is no text, and only text has an equivalent; any answer will do",
                ),
            },
            _ => {}
        }
    }
    Ok(Check::Udp { payload, reply })
}

/// keepalived writes payloads as hexadecimal digits; the text they stand for, if it is one.
fn text_of_hex(digits: &str) -> Option<String> {
    let digits: Vec<u32> = digits
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let bytes = digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect();
    String::from_utf8(bytes).ok()
}

fn dns(line: &Statement) -> Result<Check, ImportError> {
    let (mut query, mut record) = (".".to_owned(), "SOA".to_owned());
    for option in &line.block {
        match option.keyword() {
            "name" => query = option.text()?.to_owned(),
            "type" => record = option.text()?.to_owned(),
            _ => {}
        }
    }
    Ok(Check::Dns { query, record })
}

fn script(line: &Statement, import: &mut Import) -> Result<Check, ImportError> {
    let mut command = Vec::new();
    for option in &line.block {
        match option.keyword() {
            "misc_path" => {
                command = option
                    .text()?
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect();
                command.extend(
                    option
                        .parameters
                        .iter()
                        .skip(1)
                        .map(|word| word.text.clone()),
                );
            }
            "misc_timeout" | "misc_dynamic" | "user" => {
                let keyword = option.keyword();
                let what = match keyword {
                    "misc_timeout" => "set timeout of the check instead",
                    "misc_dynamic" => "exit codes 2 to 255 always set the weight",
                    _ => "the script runs as evenkeel does",
                };
                import.note(
                    option.place(),
                    format!("{keyword} has no equivalent; {what}"),
                );
            }
            _ => {}
        }
    }
    if command.is_empty() {
        return Err(Reason::Missing("misc_path").at(line.place()));
    }
    Ok(Check::Script { command })
}
