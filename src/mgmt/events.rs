//! What happens to the appliance, one event for each thing that an operator would ask about: in the
//! log, and to whoever follows the interface's stream. Owned by the management thread. A reader that
//! is too slow loses events, which it can tell by their numbers, and holds nobody up.

use std::collections::VecDeque;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use utoipa::ToSchema;

/// Events that are kept for whoever comes later, and that a slow reader may be behind.
const KEPT: usize = 1024;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts from 1 since the start; where a number is left out, a reader was too slow.
    pub id: u64,
    /// RFC 3339, UTC.
    pub time: String,
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened, to what, and a line about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Happening {
    pub kind: EventKind,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub worker: Option<u16>,
    /// A line for people, with the cause and, where there is one, what to do.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// A health check is well again, or for the first time.
    BackendUp,
    /// A health check failed as often as it may.
    BackendDown,
    /// A health check set another weight.
    BackendWeight,
    QuorumLost,
    QuorumMet,
    /// The configuration was changed, by a file or by a command.
    Reload,
    /// A configuration was refused; the one in use stays.
    ReloadRefused,
    DrainBegun,
    /// The last connection ended, the deadline passed, or the drain was taken back.
    DrainEnded,
    /// A limit of a service or backend refused new connections.
    LimitHit,
    /// A table, pool or ring was full, so that packets were dropped.
    ResourceFull,
    /// New flows come faster than the guard allows: they get no entry.
    GuardUp,
    GuardDown,
    LinkUp,
    LinkDown,
    /// A port was reset by its device and works again.
    PortReset,
    /// A next hop answers.
    NeighbourUp,
    /// A next hop has another MAC address.
    NeighbourMoved,
    /// A next hop does not answer.
    NeighbourDown,
    /// Another machine uses one of our addresses.
    AddressConflict,
}

impl EventKind {
    pub const ALL: [EventKind; 20] = [
        EventKind::BackendUp,
        EventKind::BackendDown,
        EventKind::BackendWeight,
        EventKind::QuorumLost,
        EventKind::QuorumMet,
        EventKind::Reload,
        EventKind::ReloadRefused,
        EventKind::DrainBegun,
        EventKind::DrainEnded,
        EventKind::LimitHit,
        EventKind::ResourceFull,
        EventKind::GuardUp,
        EventKind::GuardDown,
        EventKind::LinkUp,
        EventKind::LinkDown,
        EventKind::PortReset,
        EventKind::NeighbourUp,
        EventKind::NeighbourMoved,
        EventKind::NeighbourDown,
        EventKind::AddressConflict,
    ];

    /// As in JSON.
    pub fn token(self) -> &'static str {
        match self {
            EventKind::BackendUp => "backend-up",
            EventKind::BackendDown => "backend-down",
            EventKind::BackendWeight => "backend-weight",
            EventKind::QuorumLost => "quorum-lost",
            EventKind::QuorumMet => "quorum-met",
            EventKind::Reload => "reload",
            EventKind::ReloadRefused => "reload-refused",
            EventKind::DrainBegun => "drain-begun",
            EventKind::DrainEnded => "drain-ended",
            EventKind::LimitHit => "limit-hit",
            EventKind::ResourceFull => "resource-full",
            EventKind::GuardUp => "guard-up",
            EventKind::GuardDown => "guard-down",
            EventKind::LinkUp => "link-up",
            EventKind::LinkDown => "link-down",
            EventKind::PortReset => "port-reset",
            EventKind::NeighbourUp => "neighbour-up",
            EventKind::NeighbourMoved => "neighbour-moved",
            EventKind::NeighbourDown => "neighbour-down",
            EventKind::AddressConflict => "address-conflict",
        }
    }

    fn level(self) -> tracing::Level {
        match self {
            EventKind::ReloadRefused | EventKind::AddressConflict => tracing::Level::ERROR,
            EventKind::BackendDown
            | EventKind::QuorumLost
            | EventKind::LimitHit
            | EventKind::ResourceFull
            | EventKind::GuardUp
            | EventKind::LinkDown
            | EventKind::NeighbourMoved
            | EventKind::NeighbourDown => tracing::Level::WARN,
            _ => tracing::Level::INFO,
        }
    }
}

impl Happening {
    pub fn new(kind: EventKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            service: None,
            backend: None,
            port: None,
            worker: None,
            message: message.into(),
        }
    }

    pub fn of_service(self, service: impl Into<String>) -> Self {
        let service = Some(service.into());
        Self { service, ..self }
    }

    pub fn of_backend(self, backend: impl Into<String>) -> Self {
        let backend = Some(backend.into());
        Self { backend, ..self }
    }

    pub fn of_port(self, port: impl Into<String>) -> Self {
        let port = Some(port.into());
        Self { port, ..self }
    }

    pub fn of_worker(self, worker: u16) -> Self {
        let worker = Some(worker);
        Self { worker, ..self }
    }

    fn log(&self) {
        let Self {
            service,
            backend,
            port,
            worker,
            message,
            ..
        } = self;
        let kind = self.kind.token();
        match self.kind.level() {
            tracing::Level::ERROR => {
                tracing::error!(kind, service, backend, port, worker, "{message}");
            }
            tracing::Level::WARN => {
                tracing::warn!(kind, service, backend, port, worker, "{message}");
            }
            _ => tracing::info!(kind, service, backend, port, worker, "{message}"),
        }
    }
}

/// What a reader gets: what was kept, and then each event as it comes.
#[derive(Debug)]
pub struct Feed {
    pub kept: Vec<Event>,
    pub coming: broadcast::Receiver<Event>,
}

/// All events so far, of which the last ones are kept.
pub struct Events {
    last: u64,
    kept: VecDeque<Event>,
    coming: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            last: 0,
            kept: VecDeque::with_capacity(KEPT),
            coming: broadcast::Sender::new(KEPT),
        }
    }
}

impl Events {
    /// Logs it, and tells it to everybody who follows.
    pub fn tell(&mut self, what: Happening) {
        what.log();
        self.last += 1;
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let id = self.last;
        let event = Event { id, time, what };
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(event.clone());
        // Without readers it is for nobody.
        let _ = self.coming.send(event);
    }

    /// What came after the event of this number, and what will; only what will where it is `None`.
    pub fn follow(&self, after: Option<u64>) -> Feed {
        let after = after.unwrap_or(self.last);
        let kept = self.kept.iter().filter(|event| event.id > after);
        Feed {
            kept: kept.cloned().collect(),
            coming: self.coming.subscribe(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(events: &mut Events, count: usize) {
        for number in 0..count {
            events.tell(Happening::new(
                EventKind::Reload,
                format!("change {number}"),
            ));
        }
    }

    fn ids(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn a_reader_gets_what_was_kept_and_what_comes_with_no_gap_between() {
        let mut events = Events::default();
        told(&mut events, 3);
        let mut feed = events.follow(Some(1));
        assert_eq!(ids(&feed.kept), [2, 3]);
        assert!(events.follow(None).kept.is_empty());
        told(&mut events, 1);
        assert_eq!(feed.coming.try_recv().unwrap().id, 4);
        assert!(feed.coming.try_recv().is_err());
    }

    #[test]
    fn only_the_last_ones_are_kept() {
        let mut events = Events::default();
        told(&mut events, KEPT + 5);
        let kept = events.follow(Some(0)).kept;
        assert_eq!(kept.len(), KEPT);
        assert_eq!(kept[0].id, 6);
    }

    #[test]
    fn a_slow_reader_loses_events_and_is_told() {
        let mut events = Events::default();
        let mut slow = events.follow(None);
        told(&mut events, KEPT + 7);
        assert!(matches!(
            slow.coming.try_recv(),
            Err(broadcast::error::TryRecvError::Lagged(7))
        ));
        assert_eq!(slow.coming.try_recv().unwrap().id, 8);
    }

    #[test]
    fn kinds_are_spelled_alike_everywhere_and_documented() {
        let page = include_str!("../../docs/tools.md");
        for kind in EventKind::ALL {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.token()));
            let row = format!("| `{}` |", kind.token());
            assert_eq!(page.matches(&row).count(), 1, "{row}");
        }
    }

    #[test]
    fn in_json_an_event_is_flat_and_says_only_what_it_is_about() {
        let mut events = Events::default();
        let what = Happening::new(EventKind::LinkDown, "port wan: link down").of_port("wan");
        events.tell(what);
        let json = serde_json::to_value(&events.follow(Some(0)).kept[0]).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["id", "kind", "message", "port", "time"]);
        assert_eq!(json["kind"], "link-down");
        let time = json["time"].as_str().unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
    }
}
