//! Asks agents and exporters, each from a task of its own on the management thread.
//!
//! A question has a deadline for all of it, connecting included, and answers have a size beyond
//! which nothing is read, so that a server can hold up nothing but its own task. What is heard
//! goes down a channel; when that is full the answer is dropped, for the next one is newer.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::agent::{self, LONGEST};
use super::controller::QUICK;
use super::exporter::{LARGEST, Reading};
use super::sample::{Sample, Source};
use crate::lb::snapshot::BackendId;
use crate::mgmt::supervise;

/// Whom to ask, and how often.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    pub id: BackendId,
    /// [`Source::Agent`] or [`Source::Exporter`].
    pub source: Source,
    pub address: SocketAddr,
    pub interval: Duration,
}

/// What came of asking.
#[derive(Clone, PartialEq, Debug)]
pub struct Heard {
    pub id: BackendId,
    pub source: Source,
    /// A sample, or what an operator should know instead.
    pub answer: Result<Sample, String>,
}

/// The longest that a question may take, however long the interval is.
const PATIENCE: Duration = Duration::from_secs(2);

/// Questions for each of the controller's steps, so that what a step hears is of its own time.
const PER_STEP: f64 = 2.0;

/// A target's task, and whether it is in a hurry.
struct Task {
    handle: AbortHandle,
    quick: watch::Sender<bool>,
}

/// One task for each target. Dropping it ends them.
pub struct Pollers {
    tasks: HashMap<Target, Task>,
    heard: mpsc::Sender<Heard>,
}

impl Pollers {
    /// Pollers, and the end at which management hears. To be called on the management runtime.
    pub fn new() -> (Self, mpsc::Receiver<Heard>) {
        let (heard, receiver) = mpsc::channel(1024);
        let tasks = HashMap::new();
        (Self { tasks, heard }, receiver)
    }

    /// Asks these and nobody else from now on; who was asked before goes on undisturbed, and who is
    /// new is asked quickly.
    pub fn set(&mut self, targets: &[Target]) {
        self.tasks.retain(|target, task| {
            let stays = targets.contains(target);
            if !stays {
                task.handle.abort();
            }
            stays
        });
        for target in targets {
            let heard = &self.heard;
            self.tasks.entry(*target).or_insert_with(|| {
                let (target, heard) = (*target, heard.clone());
                let (quick, changes) = watch::channel(true);
                let asking = move || ask_on(target, heard.clone(), changes.clone());
                let handle = supervise::spawn("asking agents", asking);
                Task { handle, quick }
            });
        }
    }

    /// Asks about these backends quickly from now on, and about others at leisure.
    pub fn hurry(&self, quick: &HashSet<BackendId>) {
        for (target, task) in &self.tasks {
            let now = quick.contains(&target.id);
            task.quick.send_if_modified(|before| {
                let is_news = *before != now;
                *before = now;
                is_news
            });
        }
    }
}

impl Drop for Pollers {
    fn drop(&mut self) {
        self.tasks.values().for_each(|task| task.handle.abort());
    }
}

/// Asks one target for ever. The first question comes at a random moment and the others around the
/// end of a pause, so that many servers are not asked at once.
async fn ask_on(target: Target, heard: mpsc::Sender<Heard>, mut hurry: watch::Receiver<bool>) {
    let (mut before, mut woken) = (None, false);
    let is_quick = *hurry.borrow_and_update();
    tokio::time::sleep(pause(target.interval, is_quick, chance()).mul_f64(chance())).await;
    loop {
        // What a hurry is to learn begins with it.
        before = before.filter(|_| !woken);
        let answer = match target.source {
            Source::Exporter => ask_exporter(&target, &mut before).await,
            _ => ask_agent(&target).await,
        };
        let told = heard.try_send(Heard {
            id: target.id,
            source: target.source,
            answer,
        });
        if matches!(told, Err(mpsc::error::TrySendError::Closed(_))) {
            return;
        }
        woken = rest(target.interval, &mut hurry).await;
    }
}

/// Waits until the next question is due: at once when a hurry begins, and then says so.
async fn rest(interval: Duration, hurry: &mut watch::Receiver<bool>) -> bool {
    let is_quick = *hurry.borrow_and_update();
    let over = tokio::time::sleep(pause(interval, is_quick, chance()));
    if is_quick {
        over.await;
        return false;
    }
    tokio::select! {
        () = over => false,
        Ok(_) = hurry.wait_for(|quick| *quick) => true,
    }
}

/// How long to wait until the next question; `chance` lies evenly from 0 to 1.
pub fn pause(interval: Duration, quick: bool, chance: f64) -> Duration {
    let steps = if quick { QUICK } else { 1 };
    interval.mul_f64((0.9 + 0.2 * chance) / (PER_STEP * f64::from(steps)))
}

/// Evenly from 0 to 1.
fn chance() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

async fn ask_agent(target: &Target) -> Result<Sample, String> {
    let answer = exchange(target, b"", LONGEST + 1, |bytes| {
        bytes.iter().any(|b| matches!(b, b'\n' | b'\r'))
    });
    let answer = answer.await?;
    let advice = agent::parse(&answer.bytes, answer.closed);
    let advice = advice.map_err(|bad| format!("{}: {bad}", target.address))?;
    Ok(Sample {
        source: Source::Agent,
        advice: Some(advice),
        ..Sample::default()
    })
}

async fn ask_exporter(
    target: &Target,
    before: &mut Option<(Reading, Instant)>,
) -> Result<Sample, String> {
    let request = format!(
        "GET /metrics HTTP/1.0\r\nHost: {}\r\nAccept: text/plain;version=0.0.4\r\n\r\n",
        target.address
    );
    let answer = exchange(target, request.as_bytes(), LARGEST + 1, |_| false).await?;
    let at = Instant::now();
    let say = |what: &str| format!("{}: {what}", target.address);
    let body = body(&answer.bytes).map_err(say)?;
    let reading = Reading::parse(body).map_err(|bad| say(&bad.to_string()))?;
    let (earlier, seconds) = match before.as_ref() {
        Some((reading, then)) => (Some(reading), (at - *then).as_secs_f64()),
        None => (None, 0.0),
    };
    let sample = reading.since(earlier, seconds);
    *before = Some((reading, at));
    Ok(sample)
}

/// The body of an HTTP answer that is all there.
fn body(answer: &[u8]) -> Result<&[u8], &'static str> {
    let status = answer
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(2..5));
    match status {
        Some(b"200") => {}
        Some(_) => return Err("the exporter's answer to GET /metrics is not 200"),
        None => return Err("the exporter does not speak HTTP"),
    }
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or("the exporter's answer ends within its headers")?;
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    match length(head) {
        Some(length) if body.len() < length => Err("the exporter's answer is cut short"),
        _ => Ok(body),
    }
}

fn length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = headers.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next()?.1.trim().parse().ok()
}

struct Answer {
    bytes: Vec<u8>,
    closed: bool,
}

/// Sends `request` and reads until the other side closes, `most` bytes are there, or `enough`
/// says so.
async fn exchange(
    target: &Target,
    request: &[u8],
    most: usize,
    enough: impl Fn(&[u8]) -> bool,
) -> Result<Answer, String> {
    let patience = target.interval.min(PATIENCE);
    let talk = async {
        let mut stream = TcpStream::connect(target.address).await?;
        stream.write_all(request).await?;
        let mut bytes = Vec::with_capacity(most.min(64 * 1024));
        let mut chunk = [0; 4096];
        while bytes.len() < most && !enough(&bytes) {
            let count = stream.read(&mut chunk).await?;
            if count == 0 {
                return Ok(Answer {
                    bytes,
                    closed: true,
                });
            }
            bytes.extend_from_slice(&chunk[..count]);
        }
        Ok(Answer {
            bytes,
            closed: false,
        })
    };
    let talked: Result<std::io::Result<Answer>, _> = tokio::time::timeout(patience, talk).await;
    match talked {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{}: {error}", target.address)),
        Err(_) => Err(format!(
            "{} gave no whole answer within {} ms",
            target.address,
            patience.as_millis()
        )),
    }
}
