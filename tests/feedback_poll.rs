//! Agents and exporters over real sockets: good ones, and all kinds of bad ones.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use evenkeel::lb::snapshot::BackendId;
use evenkeel::mgmt::feedback::poll::{Heard, Pollers, Target, pause};
use evenkeel::mgmt::feedback::{Sample, Source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// How a server answers one connection.
#[derive(Clone, Copy)]
enum Manner {
    Say(&'static str),
    /// Takes the connection and keeps quiet.
    Silent,
    /// A byte now and then, never a whole line.
    Slow,
    /// Never ends.
    Endless,
    Http(&'static str),
}

async fn serve(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, manner));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, manner: Manner) {
    match manner {
        Manner::Say(text) => {
            let _ = stream.write_all(text.as_bytes()).await;
        }
        Manner::Silent => {
            let _ = stream.read(&mut [0; 16]).await;
        }
        Manner::Slow => {
            while stream.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Manner::Endless => while stream.write_all(&[b'9'; 4096]).await.is_ok() {},
        Manner::Http(text) => {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(text.as_bytes()).await;
        }
    }
}

/// The first `count` answers of a server with this manner.
async fn ask(source: Source, manner: Manner, count: usize) -> Vec<Result<Sample, String>> {
    let address = serve(manner).await;
    let (mut pollers, mut heard) = Pollers::new();
    let target = Target {
        id: BackendId(7),
        source,
        address,
        interval: Duration::from_millis(150),
    };
    pollers.set(&[target]);
    let mut answers = Vec::new();
    while answers.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
        let Heard {
            id,
            source: from,
            answer,
        } = next.expect("an answer in time").expect("a poller");
        assert_eq!((id, from), (BackendId(7), source));
        if let Err(why) = &answer {
            assert!(why.contains(&address.to_string()), "no address in: {why}");
        }
        answers.push(answer);
    }
    answers
}

fn fault(answers: &[Result<Sample, String>]) -> &str {
    match &answers[0] {
        Ok(sample) => panic!("believed {sample:?}"),
        Err(why) => why,
    }
}

#[tokio::test]
async fn good_agents_are_heard_again_and_again() {
    for (text, percent) in [("75%\n", 75), ("up 40%\r\n", 40), ("60%", 60)] {
        for answer in ask(Source::Agent, Manner::Say(text), 3).await {
            let advice = answer.expect("good").advice.expect("advice");
            assert_eq!(advice.percent, Some(percent));
        }
    }
}

#[tokio::test]
async fn bad_agents_are_named_with_a_reason() {
    for (manner, reason) in [
        (Manner::Silent, "gave no whole answer within 150 ms"),
        (Manner::Slow, "gave no whole answer within 150 ms"),
        (Manner::Endless, "longer than"),
        (Manner::Say("NaN%\n"), "`NaN%`"),
        (Manner::Say("-20%\n"), "`-20%`"),
        (Manner::Say("999999%\n"), "`999999%`"),
        (Manner::Say("7"), "`7`"),
        (Manner::Say(""), "without a whole line"),
        (Manner::Say("hello\n"), "`hello`"),
    ] {
        let answers = ask(Source::Agent, manner, 1).await;
        assert!(fault(&answers).contains(reason), "{}", fault(&answers));
    }
}

#[tokio::test]
async fn an_exporter_is_read_over_http() {
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 31\r\n\r\nnode_load1 3\nother_metric{} 1e9\n";
    for answer in ask(Source::Exporter, Manner::Http(text), 2).await {
        assert_eq!(answer.expect("good").load, Some(3.0));
    }
    for (text, reason) in [
        ("HTTP/1.0 404 Not Found\r\n\r\n", "not 200"),
        ("SSH-2.0-OpenSSH\r\n", "does not speak HTTP"),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nnode_load1 3\n",
            "cut short",
        ),
        ("HTTP/1.0 200 OK\r\nContent", "within its headers"),
        (
            "HTTP/1.0 200 OK\r\n\r\nnode_load1 NaN\n",
            "`node_load1` is `NaN`",
        ),
        ("HTTP/1.0 200 OK\r\n\r\nhello\n", "none of"),
    ] {
        let answers = ask(Source::Exporter, Manner::Http(text), 1).await;
        assert!(fault(&answers).contains(reason), "{}", fault(&answers));
    }
}

#[tokio::test]
async fn who_refuses_is_named_and_who_is_dropped_is_asked_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    drop(listener);
    let (mut pollers, mut heard) = Pollers::new();
    let interval = Duration::from_millis(20);
    let target = |n| Target {
        id: BackendId(n),
        source: Source::Agent,
        address,
        interval,
    };
    pollers.set(&[target(1), target(2)]);
    let first = heard.recv().await.expect("an answer");
    assert!(
        first
            .answer
            .expect_err("nobody listens")
            .contains("refused")
    );
    pollers.set(&[target(2)]);
    while heard.try_recv().is_ok() {}
    for _ in 0..10 {
        assert_eq!(heard.recv().await.expect("an answer").id, BackendId(2));
    }
    drop(pollers);
    // The channel ends when the last task is gone.
    while heard.recv().await.is_some() {}
}

/// Ordinary questions are 10 s apart here, quick ones 1 s.
#[tokio::test]
async fn who_is_new_is_asked_quickly_and_a_hurry_begins_at_once() {
    let address = serve(Manner::Say("50%\n")).await;
    let (mut pollers, mut heard) = Pollers::new();
    let interval = Duration::from_secs(20);
    pollers.set(&[Target {
        id: BackendId(7),
        source: Source::Agent,
        address,
        interval,
    }]);
    let answers = async |heard: &mut mpsc::Receiver<Heard>, count: usize| {
        for _ in 0..count {
            heard.recv().await.expect("a poller").answer.expect("good");
        }
    };
    // Ordinary ones would take three halves of an interval.
    let quick = tokio::time::timeout(interval, answers(&mut heard, 4)).await;
    quick.expect("quick questions");
    // The pause that goes on ends; the next is an ordinary one, until somebody is in a hurry.
    pollers.hurry(&HashSet::new());
    answers(&mut heard, 1).await;
    let ordinary = tokio::time::timeout(interval / 8, answers(&mut heard, 1)).await;
    assert!(ordinary.is_err(), "it is still asked quickly");
    pollers.hurry(&HashSet::from([BackendId(7)]));
    let quick = tokio::time::timeout(interval / 2, answers(&mut heard, 2)).await;
    quick.expect("quick questions");
}

#[test]
fn questions_are_spread_about_their_intervals() {
    let interval = Duration::from_secs(10);
    for (chance, part) in [(0.0, 0.45), (0.5, 0.5), (1.0, 0.55)] {
        let is_part = |pause: Duration, of: Duration| {
            pause.abs_diff(of.mul_f64(part)) < Duration::from_micros(1)
        };
        assert!(is_part(pause(interval, false, chance), interval));
        assert!(is_part(pause(interval, true, chance), interval / 10));
    }
}
