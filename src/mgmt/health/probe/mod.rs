//! The kinds of check: what each asks and which answers it takes for good.
//!
//! A probe is one future on the management thread that ends with a verdict within the check's
//! timeout. The protocols are hyper's, rustls' and hickory's; only what is compared is here.

mod dns;
mod http;
mod script;
mod tls;
mod udp;

pub use dns::DnsProbe;
pub use http::{HttpProbe, StatusSet};
pub use script::ScriptProbe;
pub use tls::{Tls, TlsError, TlsOptions};
pub use udp::UdpProbe;

use super::route::Route;
use super::stack::{Datagram, NoPort, Protocol, Stack, TcpStream};
use std::fmt::Display;
use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What to ask a backend.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// A TCP handshake.
    Tcp,
    Http(HttpProbe),
    Https(HttpProbe, Tls),
    Udp(UdpProbe),
    Dns(DnsProbe),
    /// An ICMP echo.
    Ping,
    Script(ScriptProbe),
}

impl Probe {
    /// As it is called in the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http(_) => "http",
            Self::Https(..) => "https",
            Self::Udp(_) => "udp",
            Self::Dns(_) => "dns",
            Self::Ping => "ping",
            Self::Script(_) => "script",
        }
    }
}

/// A good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What was answered, in a few words for a log line.
    pub text: String,
    /// From the first packet out to the last one in, by the workers' stamps.
    pub took: Duration,
    /// A weight that the answer sets.
    pub weight: Option<u16>,
}

/// Why an answer was not good; each reads as the end of "check failed: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{stage} within {timeout:?}")]
    Timeout {
        stage: &'static str,
        timeout: Duration,
    },
    #[error("connection refused")]
    Refused,
    #[error("connection reset")]
    Reset,
    /// What the backend or someone on the way said, or how its answer differs.
    #[error("{0}")]
    Answer(String),
    /// The check itself could not be made.
    #[error("not checked: {0}")]
    NotChecked(String),
    /// The time is over, and management stood still meanwhile: the answer may lie in a ring.
    #[error("not judged: management was late")]
    Unjudged,
}

impl Failure {
    fn answer(why: impl Display) -> Self {
        Self::Answer(why.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::AddrInUse | io::ErrorKind::InvalidInput => {
                Self::NotChecked(error.to_string())
            }
            _ => Self::answer(error),
        }
    }
}

impl From<NoPort> for Failure {
    fn from(error: NoPort) -> Self {
        Self::NotChecked(error.to_string())
    }
}

/// What the probe is waiting for, to be named if the time runs out.
pub(super) struct Stage(Mutex<&'static str>);

impl Stage {
    fn set(&self, stage: &'static str) {
        *super::stack::lock(&self.0) = stage;
    }

    fn get(&self) -> &'static str {
        *super::stack::lock(&self.0)
    }
}

/// Who is checked, as scripts are told.
pub(super) struct Subject<'a> {
    pub service: &'a str,
    pub backend: &'a str,
}

/// When time runs out by more than this, or a tenth of the timeout, too late, then management stood
/// still, and the silence says nothing about the backend.
const SLACK: Duration = Duration::from_millis(20);

/// Makes one check, ending within `timeout`.
pub(super) async fn run(
    stack: &Stack,
    probe: &Probe,
    route: Route,
    subject: Subject<'_>,
    timeout: Duration,
) -> Result<Answer, Failure> {
    let stage = Stage(Mutex::new("no answer"));
    let asked = ask(stack, probe, route, &subject, timeout, &stage);
    let end = tokio::time::Instant::now() + timeout;
    match tokio::time::timeout_at(end, asked).await {
        Ok(result) => result,
        Err(_) if end.elapsed() > SLACK.max(timeout / 10) => Err(Failure::Unjudged),
        Err(_) => Err(Failure::Timeout {
            stage: stage.get(),
            timeout,
        }),
    }
}

async fn ask(
    stack: &Stack,
    probe: &Probe,
    route: Route,
    subject: &Subject<'_>,
    timeout: Duration,
    stage: &Stage,
) -> Result<Answer, Failure> {
    let clock = Clock::start();
    match probe {
        Probe::Tcp => {
            stage.set("no answer to SYN");
            let stream = TcpStream::connect(stack, route).await?;
            Ok(clock.answer("connected".into(), stream.stamp()))
        }
        Probe::Http(http) => {
            let stream = connect(stack, route, stage, "connected, but no HTTP answer").await?;
            let stamps = stream.stamps();
            let text = http.ask(stream, route.target()).await?;
            Ok(clock.answer(text, stamps.last()))
        }
        Probe::Https(http, tls) => {
            let waiting = "connected, but no TLS handshake";
            let stream = connect(stack, route, stage, waiting).await?;
            let stamps = stream.stamps();
            let stream = tls.connect(stream, route.target(), http.host()).await?;
            stage.set("TLS is set up, but no HTTP answer");
            let text = http.ask(stream, route.target()).await?;
            Ok(clock.answer(text, stamps.last()))
        }
        Probe::Udp(udp) => {
            let (text, stamp) = udp.ask(stack, route, timeout).await?;
            Ok(clock.answer(text, stamp))
        }
        Probe::Dns(dns) => {
            let (text, stamp) = dns.ask(stack, route).await?;
            Ok(clock.answer(text, Some(stamp)))
        }
        Probe::Ping => {
            stage.set("no echo reply");
            let (text, stamp) = ping(stack, route).await?;
            Ok(clock.answer(text, Some(stamp)))
        }
        Probe::Script(script) => {
            stage.set("the script did not end");
            let (text, weight) = script.run(route, subject).await?;
            let answer = clock.answer(text, None);
            Ok(Answer { weight, ..answer })
        }
    }
}

async fn connect(
    stack: &Stack,
    route: Route,
    stage: &Stage,
    then: &'static str,
) -> Result<TcpStream, Failure> {
    stage.set("no answer to SYN");
    let stream = TcpStream::connect(stack, route).await?;
    stage.set(then);
    Ok(stream)
}

async fn ping(stack: &Stack, route: Route) -> Result<(String, Instant), Failure> {
    const DATA: &[u8] = b"evenkeel health check";
    let mut socket = Datagram::open(stack, Protocol::Ping, route)?;
    socket.send(DATA);
    loop {
        let received = socket.receive().await;
        if received.payload.map_err(Failure::answer)? == DATA {
            return Ok(("echo reply".into(), received.stamp));
        }
    }
}

/// When a probe began.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn answer(&self, text: String, stamp: Option<Instant>) -> Answer {
        let end = stamp.unwrap_or_else(Instant::now);
        Answer {
            text,
            took: end.saturating_duration_since(self.0),
            weight: None,
        }
    }
}
