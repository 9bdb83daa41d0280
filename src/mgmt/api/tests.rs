//! The interface over real Unix sockets, with a management loop of a few lines behind it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::*;
use crate::mgmt::config;
use crate::mgmt::events::{Event, EventKind, Events, Happening};
use crate::mgmt::faults::Faults;
use crate::mgmt::metrics::Families;

/// A directory of its own that goes away with the test.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("evenkeel-api-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("run/evenkeel.sock")
    }

    pub(super) fn files(&self) -> usize {
        fs::read_dir(self.0.join("run")).unwrap().count()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const SERVICE: &str = "[[service]]
name = \"web\"
listen = \"tcp:198.51.100.80:80\"
method = \"nat\"
scheduler = \"rr\"
[[service.backend]]
name = \"a\"
address = \"192.0.2.11\"
";

/// Answers as a management loop does.
async fn management(mut requests: mpsc::Receiver<Request>) {
    let text = "[[port]]\nname = \"p\"\ndevice = \"net_null0\"\n";
    let text = format!("{text}addresses = [\"192.0.2.2/24\"]\n{SERVICE}");
    let mut config = Arc::new(config::parse(&text).unwrap());
    let mut events = Events::default();
    let mut drained = Drain::default();
    for kind in [EventKind::LinkDown, EventKind::LinkUp] {
        events.tell(Happening::new(kind, kind.token()).of_port("p"));
    }
    while let Some(request) = requests.recv().await {
        match request {
            Request::Events { after, reply } => drop(reply.send(events.follow(after))),
            Request::Capture { request, reply } => {
                let (sender, pieces) = mpsc::channel(2);
                sender.try_send(format!("{request:?}").into()).unwrap();
                let _ = reply.send(Ok(pieces));
            }
            Request::Trace { request, reply } => {
                let packet = format!("{} {} {}", request.from, request.to, request.flags);
                let _ = reply.send(Ok(Trace {
                    packet,
                    ..Trace::default()
                }));
            }
            Request::Metrics(reply) => drop(reply.send(Families::default())),
            Request::Fault { .. } => panic!("the path does not exist"),
            Request::Vips(reply) => drop(reply.send(vec![VipStatus::default()])),
            Request::Drain { drain, reply } => {
                drained = drain;
                let _ = reply.send(drain);
            }
            Request::Ready { service, reply } => {
                let not = drained.drain || service.is_some_and(|name| name != "web");
                let _ = reply.send(match not {
                    true => Err(Problem::not_ready("it is drained")),
                    false => Ok(Ready { ready: true }),
                });
            }
            Request::Status(reply) => {
                let web = ServiceStatus {
                    name: "web".to_owned(),
                    ..ServiceStatus::default()
                };
                let status = Status {
                    generation: 7,
                    services: vec![web],
                    ..Status::default()
                };
                let _ = reply.send(status);
            }
            Request::Connections { filter, reply } => {
                let connection = ConnectionStatus {
                    service: filter.service.unwrap_or_default(),
                    client: filter
                        .client
                        .map(|client| client.to_string())
                        .unwrap_or_default(),
                    ..ConnectionStatus::default()
                };
                let more = filter.limit == 1;
                let _ = reply.send(Connections {
                    connections: vec![connection],
                    more,
                });
            }
            Request::Config(reply) => {
                let _ = reply.send(config.clone());
            }
            Request::Replace(replace) => {
                let if_match = replace.if_match.as_deref();
                let decided = decide(&config, &replace.config, if_match, replace.dry_run);
                if decided.as_ref().is_ok_and(|applied| !applied.dry_run) {
                    config = Arc::new(*replace.config);
                    events.tell(Happening::new(EventKind::Reload, "another configuration"));
                }
                let _ = replace.reply.send(decided);
            }
        }
    }
}

pub(super) struct Answer {
    pub status: StatusCode,
    kind: String,
    pub etag: Option<String>,
    body: Bytes,
}

impl Answer {
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap()
    }
}

pub(super) async fn ask(socket: &std::path::Path, method: &str, path: &str) -> Answer {
    send(socket, method, path, &[], "").await
}

pub(super) async fn send(
    socket: &std::path::Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Answer {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::<Bytes>::from(body.as_ref().to_vec()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let kind = response.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    let etag = response
        .headers()
        .get("etag")
        .map(|tag| tag.to_str().unwrap().to_owned());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    driver.abort();
    Answer {
        status,
        kind,
        etag,
        body,
    }
}

/// Runs `test` against a server with a management loop behind it.
pub(super) fn with_server<F: Future<Output = ()>>(name: &str, test: impl FnOnce(PathBuf) -> F) {
    let scratch = Scratch::new(name);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let socket = Socket::claim(&scratch.socket()).unwrap();
        let (handle, requests) = Handle::new();
        let test = tokio::time::timeout(Duration::from_secs(20), test(scratch.socket()));
        tokio::select! {
            served = serve(&socket, handle, Faults::Refused) => panic!("the server ended: {served:?}"),
            () = management(requests) => panic!("the handles are gone"),
            ended = test => ended.expect("the test takes too long"),
        }
    });
}

/// Every path and method that is described is there, and every path that is routed is described.
#[test]
fn the_interface_describes_itself() {
    with_server("openapi", async |socket| {
        let answer = ask(&socket, "GET", "/v1/openapi.json").await;
        assert_eq!(answer.status, StatusCode::OK);
        let document: serde_json::Value = answer.json();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        let paths = document["paths"].as_object().unwrap();
        let code = include_str!("server.rs").split('"');
        let routed: BTreeSet<_> = code.filter(|text| text.starts_with("/v1/")).collect();
        let described: BTreeSet<_> = paths.keys().map(String::as_str).collect();
        assert_eq!(routed, described);
        for (path, methods) in paths {
            for method in methods.as_object().unwrap().keys() {
                let path = path.replace("{name}", "web").replace("{backend}", "a");
                // Without this it would not end.
                let path = path.replace("/events", "/events?follow=false");
                let answer = ask(&socket, &method.to_uppercase(), &path).await;
                let (there, status) = (answer.status, answer.status.as_u16());
                assert_ne!(there, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
                let is_problem = answer.kind == "application/problem+json";
                assert_eq!(is_problem, status >= 400, "{method} {path}");
                let no_path = is_problem && answer.json::<Problem>().kind.ends_with("no-such-path");
                assert!(!no_path, "{method} {path}");
            }
        }
        let status = &document["components"]["schemas"]["Status"]["properties"];
        assert_eq!(status["uptime_seconds"]["type"], "integer");
        let failed = &document["components"]["responses"]["Failed"]["content"];
        assert!(failed["application/problem+json"].is_object(), "{failed}");
    });
}

#[test]
fn views_are_served_on_both_sockets() {
    with_server("views", async |socket| {
        for socket in [socket.clone(), read_only_path(&socket)] {
            let status = ask(&socket, "GET", "/v1/status").await;
            assert_eq!(
                (status.status, status.kind.as_str()),
                (StatusCode::OK, "application/json")
            );
            assert_eq!(status.json::<Status>().generation, 7);
            let services = ask(&socket, "GET", "/v1/services").await;
            assert_eq!(services.json::<Vec<ServiceStatus>>()[0].name, "web");
            let service = ask(&socket, "GET", "/v1/services/web").await;
            assert_eq!(service.json::<ServiceStatus>().name, "web");
        }
    });
}

#[test]
fn the_configuration_comes_as_toml() {
    with_server("config", async |socket| {
        let answer = ask(&socket, "GET", "/v1/config").await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert_eq!(config::parse(&text).unwrap().ports[0].name, "p");
    });
}

#[test]
fn connections_are_filtered_by_the_query() {
    with_server("filter", async |socket| {
        let path = "/v1/connections?service=a%26b%20c&client=2001%3Adb8%3A%3A1&limit=1";
        let found: Connections = ask(&socket, "GET", path).await.json();
        assert_eq!(found.connections[0].service, "a&b c");
        assert_eq!(found.connections[0].client, "2001:db8::1");
        assert!(found.more);
        let found: Connections = ask(&socket, "GET", "/v1/connections").await.json();
        assert!(!found.more, "the limit has a default");
    });
}

/// The events in a text of server-sent events, each with its name and number.
fn told(text: &[u8]) -> Vec<(String, u64, Event)> {
    let text = String::from_utf8(text.to_vec()).unwrap();
    let read = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let event = serde_json::from_str(field("data: ")?).unwrap();
        let (name, id) = (
            field("event: ")?.to_owned(),
            field("id: ")?.parse().unwrap(),
        );
        Some((name, id, event))
    };
    text.split("\n\n").filter_map(read).collect()
}

#[test]
fn events_that_were_kept_are_told_on_both_sockets() {
    with_server("kept-events", async |socket| {
        for socket in [socket.clone(), read_only_path(&socket)] {
            let answer = ask(&socket, "GET", "/v1/events?follow=false").await;
            assert_eq!(answer.kind, "text/event-stream");
            let events = told(&answer.body);
            let ids: Vec<_> = events
                .iter()
                .map(|(name, id, _)| (name.as_str(), *id))
                .collect();
            assert_eq!(ids, [("link-down", 1), ("link-up", 2)]);
            assert_eq!(events[0].2.what.port.as_deref(), Some("p"));
            assert_eq!(
                (events[0].2.id, events[0].2.what.kind),
                (1, EventKind::LinkDown)
            );
            let later = ask(&socket, "GET", "/v1/events?follow=false&after=1").await;
            assert_eq!(told(&later.body).len(), 1);
        }
        let again = [("last-event-id", "1")];
        let answer = send(&socket, "GET", "/v1/events?follow=false", &again, "").await;
        assert_eq!(
            told(&answer.body)[0].1,
            2,
            "a reader that connects again goes on"
        );
    });
}

#[test]
fn a_change_is_told_to_who_follows() {
    with_server("events", async |socket| {
        let stream = UnixStream::connect(&socket).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let driver = tokio::spawn(connection);
        let request = hyper::Request::get("/v1/events").header("host", "test");
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let mut body = sender.send_request(request).await.unwrap().into_body();
        let gone = ask(&socket, "DELETE", "/v1/services/web").await;
        assert_eq!(gone.status, StatusCode::OK);
        let mut text = Vec::new();
        while told(&text).is_empty() {
            text.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        let (name, id, event) = told(&text).remove(0);
        assert_eq!(
            (name.as_str(), id),
            ("reload", 3),
            "what came before is not told"
        );
        assert_eq!(event.what.message, "another configuration");
        driver.abort();
    });
}

#[test]
fn changes_are_made_whole_and_only_on_what_they_were_made_from() {
    with_server("change", async |socket| {
        let before = ask(&socket, "GET", "/v1/config").await;
        let tag = before.etag.clone().unwrap();
        let json = [("content-type", "application/json")];
        let backend = "/v1/services/web/backends/a";
        let set = send(&socket, "PATCH", backend, &json, "{\"weight\": 5}").await;
        let applied: Applied = set.json();
        assert_eq!(applied.diff.changes[0].keys, ["weight: default -> 5"]);
        assert_ne!(set.etag.as_ref(), Some(&tag));

        let stale = [
            ("content-type", "application/json"),
            ("if-match", tag.as_str()),
        ];
        let refused = send(&socket, "PATCH", backend, &stale, "{\"weight\": 6}").await;
        assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED);

        let text = String::from_utf8(before.body.to_vec()).unwrap();
        let dry = send(&socket, "PUT", "/v1/config?dry_run=true", &[], &text).await;
        assert_eq!(dry.json::<Applied>().diff.changes.len(), 1);
        let whole = send(&socket, "PUT", "/v1/config", &[], &text).await;
        assert_eq!(whole.etag, Some(tag), "as it was before");

        let toml = "[[service.backend]]\nname = \"b\"\naddress = \"192.0.2.12\"\n";
        let put = send(&socket, "PUT", "/v1/services/web/backends/b", &[], toml).await;
        assert_eq!(put.status, StatusCode::OK);
        let gone = send(&socket, "DELETE", "/v1/services/web", &[], "").await;
        assert_eq!(
            gone.json::<Applied>().diff.changes[0].to_string(),
            "- service web"
        );
    });
}

#[test]
fn errors_are_problem_details_that_say_what_to_do() {
    with_server("problems", async |socket| {
        let cases = [
            ("GET", "/v1/services/none", 404, "no-such-service"),
            ("GET", "/v2", 404, "no-such-path"),
            ("DELETE", "/v1/status", 405, "wrong-method"),
            ("GET", "/v1/connections?client=x", 400, "bad-query"),
            (
                "GET",
                "/v1/connections?client=192.0.2.0/33",
                400,
                "bad-query",
            ),
            ("GET", "/v1/trace", 400, "bad-query"),
            ("GET", "/v1/capture?snap=63", 400, "bad-query"),
            ("GET", "/v1/capture?packets=0", 400, "bad-query"),
            ("GET", "/v1/capture?seconds=3601", 400, "bad-query"),
            ("GET", "/v1/capture?rate=100001", 400, "bad-query"),
            ("GET", "/v1/capture?protocol=icmp", 400, "bad-query"),
            (
                "GET",
                "/v1/trace?from=192.0.2.1&to=192.0.2.80:80",
                400,
                "bad-query",
            ),
            ("GET", "/v1/connections?clint=192.0.2.1", 400, "bad-query"),
            ("GET", "/v1/connections?limit=-1", 400, "bad-query"),
            ("GET", "/v1/events?after=x", 400, "bad-query"),
            ("GET", "/v1/events?before=1", 400, "bad-query"),
        ];
        for (method, path, status, kind) in cases {
            let answer = ask(&socket, method, path).await;
            assert_eq!(answer.kind, "application/problem+json", "{path}");
            let problem: Problem = answer.json();
            assert_eq!(answer.status.as_u16(), status, "{path}");
            assert_eq!(problem.status, status, "{path}");
            assert_eq!(
                problem.kind,
                format!("urn:evenkeel:problem:{kind}"),
                "{path}"
            );
            assert!(
                problem.detail.contains(';') && !problem.detail.contains('\n'),
                "{problem:?}"
            );
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_stuck_or_ended_loop_is_told_apart() {
    let (handle, requests) = Handle::new();
    let problem = handle.status().await.unwrap_err();
    assert_eq!(
        (problem.status, problem.title.as_str()),
        (503, "Management is busy")
    );
    drop(requests);
    let problem = handle.status().await.unwrap_err();
    assert_eq!(
        (problem.status, problem.title.as_str()),
        (503, "Shutting down")
    );
}
