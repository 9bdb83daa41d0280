//! `on_change`: a program that is run, or a URL that is posted to, on every change of a backend or
//! of a service's quorum.
//!
//! Tasks on the management thread, one for each service, so that a service's changes are told in
//! their order and a slow program holds up nobody else's. What goes wrong is a warning in the log.

use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::mpsc;

use super::config::Config;

/// The longest that one call may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Changes of one service that may wait to be told.
const WAITING: usize = 256;

/// What is told: as JSON in a post, as environment variables to a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `backend` or `quorum`.
    pub event: &'static str,
    pub service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// A backend is `up` or `down`, a quorum `met` or `lost`.
    pub old: &'static str,
    pub new: &'static str,
    /// The kind of check that decided, and the answer it got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

struct Call {
    command: Vec<String>,
    change: Change,
}

/// Why a change could not be told.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("it cannot be run: {0}")]
    Run(std::io::Error),
    #[error("it ended with {0}")]
    Status(std::process::ExitStatus),
    #[error("it took longer than {} s", PATIENCE.as_secs())]
    Slow,
    #[error("it is no URL of the form http://host:port/path")]
    Url,
    #[error("{0}")]
    Connect(std::io::Error),
    #[error("no HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answered {0}")]
    Answer(hyper::StatusCode),
}

/// The hooks of all services.
#[derive(Default)]
pub struct Hooks {
    queues: HashMap<String, mpsc::Sender<Call>>,
}

impl Hooks {
    /// Forgets services that are gone; what waits is still told.
    pub fn configure(&mut self, config: &Config) {
        let has = |name: &String| config.services.iter().any(|s| s.name == *name);
        self.queues.retain(|name, _| has(name));
    }

    /// Tells a change to the service's hook, some time soon. Needs the management runtime.
    pub fn tell(&mut self, config: &Config, change: Change) {
        let service = config.services.iter().find(|s| s.name == change.service);
        let Some(command) = service.map(|s| &s.on_change).filter(|c| !c.is_empty()) else {
            return;
        };
        // A task that panicked has closed its end.
        self.queues.retain(|_, queue| !queue.is_closed());
        let queue = self.queues.entry(change.service.clone());
        let queue = queue.or_insert_with(|| {
            let (queue, calls) = mpsc::channel(WAITING);
            tokio::spawn(work_off(calls));
            queue
        });
        let service = change.service.clone();
        let command = command.clone();
        if queue.try_send(Call { command, change }).is_err() {
            tracing::warn!(
                "service {service}: a change was not told to its hook, which is too slow"
            );
        }
    }
}

async fn work_off(mut calls: mpsc::Receiver<Call>) {
    while let Some(Call { command, change }) = calls.recv().await {
        let told = tokio::time::timeout(PATIENCE, call(&command, &change)).await;
        if let Err(why) = told.unwrap_or(Err(HookError::Slow)) {
            tracing::warn!("service {}: hook {}: {why}", change.service, command[0]);
        }
    }
}

async fn call(command: &[String], change: &Change) -> Result<(), HookError> {
    match command {
        [url, ..] if url.starts_with("http://") => post(url, change).await,
        [program, arguments @ ..] => run(program, arguments, change).await,
        [] => Ok(()),
    }
}

async fn run(program: &str, arguments: &[String], change: &Change) -> Result<(), HookError> {
    let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
    let status = Command::new(program)
        .args(arguments)
        .env("EVENKEEL_EVENT", change.event)
        .env("EVENKEEL_SERVICE", &change.service)
        .env("EVENKEEL_BACKEND", or_empty(&change.backend))
        .env("EVENKEEL_OLD", change.old)
        .env("EVENKEEL_NEW", change.new)
        .env("EVENKEEL_CHECK", or_empty(&change.check))
        .env("EVENKEEL_ANSWER", or_empty(&change.answer))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(HookError::Run)?;
    match status.success() {
        true => Ok(()),
        false => Err(HookError::Status(status)),
    }
}

async fn post(url: &str, change: &Change) -> Result<(), HookError> {
    let uri: Uri = url.parse().map_err(|_| HookError::Url)?;
    let authority = uri.authority().ok_or(HookError::Url)?;
    let host = authority.host().trim_matches(['[', ']']);
    let address = (host, authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await;
    let stream = TokioIo::new(stream.map_err(HookError::Connect)?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let body = serde_json::to_vec(change).map_err(|error| HookError::Connect(error.into()))?;
    let request = Request::post(path)
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| HookError::Url)?;
    // It does the work that the answer waits for.
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    connection.abort();
    let status = answer?.status();
    match status.is_success() {
        true => Ok(()),
        false => Err(HookError::Answer(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn change(new: &'static str) -> Change {
        Change {
            event: "backend",
            service: "web".into(),
            backend: Some("web-1".into()),
            old: "up",
            new,
            check: Some("tcp".into()),
            answer: Some("connection refused".into()),
        }
    }

    #[tokio::test]
    async fn a_program_is_told_in_its_environment_and_its_failure_is_known() {
        let folder = std::env::temp_dir().join(format!("evenkeel-hooks-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("told");
        let script = "echo \"$EVENKEEL_EVENT $EVENKEEL_SERVICE/$EVENKEEL_BACKEND $EVENKEEL_OLD \
                      $EVENKEEL_NEW $EVENKEEL_CHECK: $EVENKEEL_ANSWER\" >> \"$0\"";
        let file_name = file.display().to_string();
        let command = ["/bin/sh", "-c", script, &file_name].map(String::from);
        for new in ["down", "up"] {
            call(&command, &change(new)).await.expect("told");
        }
        let told = std::fs::read_to_string(&file).expect("something told");
        std::fs::remove_dir_all(&folder).expect("cleaned up");
        let line = |new| format!("backend web/web-1 up {new} tcp: connection refused\n");
        assert_eq!(told, line("down") + &line("up"));

        let fails = ["/bin/false".to_owned()];
        let why = call(&fails, &change("up")).await.expect_err("it fails");
        assert_eq!(why.to_string(), "it ended with exit status: 1");
        let missing = ["/nowhere".to_owned()];
        let why = call(&missing, &change("up")).await.expect_err("not there");
        assert!(why.to_string().starts_with("it cannot be run: "), "{why}");
    }

    #[tokio::test]
    async fn a_url_is_posted_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let server = tokio::spawn(async move {
            let mut requests = Vec::new();
            for status in ["204 No Content", "500 Oh"] {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    let mut chunk = [0; 1024];
                    let count = stream.read(&mut chunk).await.expect("a request");
                    request.extend_from_slice(&chunk[..count]);
                }
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.expect("sent");
                requests.push(String::from_utf8(request).expect("text"));
            }
            requests
        });
        let command = [format!("http://{address}/changed?x=1")];
        call(&command, &change("down")).await.expect("told");
        let why = call(&command, &change("up")).await.expect_err("refused");
        assert!(why.to_string().starts_with("it answered 500"), "{why}");
        let requests = server.await.expect("both");
        assert!(
            requests[0].starts_with("POST /changed?x=1 HTTP/1.1\r\n"),
            "{}",
            requests[0]
        );
        let body = requests[0].split("\r\n\r\n").nth(1).expect("a body");
        assert_eq!(
            body,
            "{\"event\":\"backend\",\"service\":\"web\",\"backend\":\"web-1\",\"old\":\"up\",\
             \"new\":\"down\",\"check\":\"tcp\",\"answer\":\"connection refused\"}"
        );
    }
}
