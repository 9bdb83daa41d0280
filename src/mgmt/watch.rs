//! Makes events of what nobody reports and can only be looked at: counters of refused packets, the
//! workers' flood guards, the ports' links, drains. Pure state on the management thread: what is
//! seen goes in with the time, what is new comes out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::events::{EventKind, Happening};
use crate::lb::counters::DropReason;
use crate::lb::snapshot::BackendId;

/// While packets are refused, this often it is told again.
const AGAIN: Duration = Duration::from_secs(10);

/// Reasons that say that something is full which an operator can make larger or relieve.
const FULL: [DropReason; 6] = [
    DropReason::TableFull,
    DropReason::PoolExhausted,
    DropReason::HandoffFull,
    DropReason::PuntFull,
    DropReason::TxFull,
    DropReason::NoBuffer,
];

/// One look at the appliance.
pub struct Seen {
    /// Packets dropped so far, by reason, over all workers.
    pub drops: Vec<(DropReason, u64)>,
    /// Whether each worker's flood guard is up.
    pub guards: Vec<bool>,
    /// Each port's name, and whether its link is up.
    pub links: Vec<(String, bool)>,
    pub drains: Vec<Drain>,
}

/// A backend that is drained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    pub id: BackendId,
    pub service: String,
    pub backend: String,
    pub connections: u64,
    /// Its deadline has passed: what connections it has are ended.
    pub over: bool,
}

/// What was seen the last time.
#[derive(Default)]
pub struct Watch {
    refused: HashMap<DropReason, Refused>,
    guards: Vec<bool>,
    links: HashMap<String, bool>,
    drains: HashMap<BackendId, Known>,
}

#[derive(Default, Clone, Copy)]
struct Refused {
    /// The count when it was told last, or looked at first.
    count: u64,
    told: Option<Instant>,
}

struct Known {
    drain: Drain,
    ended: bool,
}

impl Watch {
    /// What is new since the last look. `at_limits` names the limits that are reached; it is asked
    /// only where one was.
    pub fn look(
        &mut self,
        now: Instant,
        seen: Seen,
        at_limits: impl FnOnce() -> Vec<AtLimit>,
    ) -> Vec<Happening> {
        let mut news = Vec::new();
        self.look_at_links(seen.links, &mut news);
        self.look_at_guards(seen.guards, &mut news);
        self.look_at_drains(seen.drains, &mut news);
        for reason in FULL {
            if let Some(more) = self.refused(reason, &seen.drops, now) {
                news.push(full(reason, more));
            }
        }
        if let Some(more) = self.refused(DropReason::Limit, &seen.drops, now) {
            news.push(limited(more, at_limits()));
        }
        news
    }

    /// Packets that were dropped for `reason` since that was told last, if it is to be told.
    fn refused(
        &mut self,
        reason: DropReason,
        drops: &[(DropReason, u64)],
        now: Instant,
    ) -> Option<u64> {
        let count = drops.iter().find(|(r, _)| *r == reason)?.1;
        let known = self.refused.entry(reason).or_default();
        let is_due = known.told.is_none_or(|told| now - told >= AGAIN);
        if count == known.count || !is_due {
            return None;
        }
        let more = count.wrapping_sub(known.count);
        *known = Refused {
            count,
            told: Some(now),
        };
        Some(more)
    }

    fn look_at_links(&mut self, links: Vec<(String, bool)>, news: &mut Vec<Happening>) {
        for (port, up) in links {
            let before = self.links.insert(port.clone(), up);
            let (kind, message) = match (before, up) {
                (Some(false), true) => (EventKind::LinkUp, format!("port {port}: link up")),
                (Some(true) | None, false) => (
                    EventKind::LinkDown,
                    format!("port {port}: link down; check its cable and the other end"),
                ),
                _ => continue,
            };
            news.push(Happening::new(kind, message).of_port(port));
        }
    }

    fn look_at_guards(&mut self, guards: Vec<bool>, news: &mut Vec<Happening>) {
        self.guards.resize(guards.len(), false);
        let before = std::mem::replace(&mut self.guards, guards);
        let pairs = before.into_iter().zip(&self.guards).enumerate();
        for (worker, (before, &up)) in pairs.filter(|(_, (before, up))| before != *up) {
            let (kind, message) = match up && !before {
                true => (
                    EventKind::GuardUp,
                    format!(
                        "worker {worker}: flood guard up: new flows come faster than flood_guard allows, or its table is nearly full"
                    ),
                ),
                false => (
                    EventKind::GuardDown,
                    format!("worker {worker}: flood guard down: new flows are tracked again"),
                ),
            };
            news.push(Happening::new(kind, message).of_worker(worker as u16));
        }
    }

    fn look_at_drains(&mut self, drains: Vec<Drain>, news: &mut Vec<Happening>) {
        let mut before = std::mem::take(&mut self.drains);
        for drain in drains {
            let known = before.remove(&drain.id);
            if known.is_none() {
                let left = connections(drain.connections);
                news.push(of_drain(
                    EventKind::DrainBegun,
                    &drain,
                    &format!("drain begun: no new connections, {left} to end"),
                ));
            }
            let had_ended = known.is_some_and(|known| known.ended);
            let ended = had_ended || drain.over || drain.connections == 0;
            if ended && !had_ended {
                let how = match drain.connections {
                    0 => "drain ended: it has no connections any more".to_owned(),
                    left => format!(
                        "drain ended: its deadline has passed, {} cut",
                        connections(left)
                    ),
                };
                news.push(of_drain(EventKind::DrainEnded, &drain, &how));
            }
            self.drains.insert(drain.id, Known { drain, ended });
        }
        let mut left: Vec<_> = before.into_values().filter(|known| !known.ended).collect();
        left.sort_by_key(|known| known.drain.id);
        for Known { drain, .. } in left {
            let how = "drain ended: it takes new connections again, or was removed";
            news.push(of_drain(EventKind::DrainEnded, &drain, how));
        }
    }
}

fn of_drain(kind: EventKind, drain: &Drain, how: &str) -> Happening {
    let Drain {
        service, backend, ..
    } = drain;
    Happening::new(kind, format!("service {service}: backend {backend}: {how}"))
        .of_service(service)
        .of_backend(backend)
}

fn connections(count: u64) -> String {
    match count {
        1 => "1 connection".to_owned(),
        _ => format!("{count} connections"),
    }
}

fn full(reason: DropReason, more: u64) -> Happening {
    let message = format!(
        "{}: {more} packets dropped: {}",
        reason.token(),
        reason.explanation().trim_end_matches('.')
    );
    Happening::new(EventKind::ResourceFull, message)
}

/// A limit that may have refused connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtLimit {
    pub service: String,
    /// `None`: the service's own.
    pub backend: Option<String>,
    /// `100 of 100 connections`.
    pub what: String,
}

fn limited(more: u64, at: Vec<AtLimit>) -> Happening {
    const NAMED: usize = 4;
    let name = |at: &AtLimit| match &at.backend {
        Some(backend) => format!("service {} backend {}: {}", at.service, backend, at.what),
        None => format!("service {}: {}", at.service, at.what),
    };
    let mut names: Vec<String> = at.iter().take(NAMED).map(name).collect();
    if at.len() > NAMED {
        names.push(format!("{} more", at.len() - NAMED));
    }
    let names = match names.is_empty() {
        true => String::new(),
        false => format!(": {}", names.join(", ")),
    };
    let message = format!("limit: {more} packets of new connections refused{names}");
    let happening = Happening::new(EventKind::LimitHit, message);
    match <[AtLimit; 1]>::try_from(at) {
        Ok(
            [
                AtLimit {
                    service, backend, ..
                },
            ],
        ) => Happening {
            backend,
            ..happening.of_service(service)
        },
        Err(_) => happening,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen() -> Seen {
        Seen {
            drops: DropReason::ALL.iter().map(|&reason| (reason, 0)).collect(),
            guards: vec![false, false],
            links: vec![("wan".into(), true), ("lan".into(), true)],
            drains: Vec::new(),
        }
    }

    fn dropped(reason: DropReason, count: u64) -> Seen {
        Seen {
            drops: vec![(reason, count)],
            ..seen()
        }
    }

    fn messages(news: Vec<Happening>) -> Vec<String> {
        let line = |news: Happening| format!("{} {}", news.kind.token(), news.message);
        news.into_iter().map(line).collect()
    }

    #[test]
    fn what_does_not_change_is_no_news() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        assert!(watch.look(now, seen(), Vec::new).is_empty());
        assert!(watch.look(now + SECOND, seen(), Vec::new).is_empty());
    }

    #[test]
    fn a_link_is_told_when_it_changes_and_when_it_is_down_at_the_start() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        let mut look = |wan: bool| {
            let links = vec![("wan".into(), wan)];
            messages(watch.look(now, Seen { links, ..seen() }, Vec::new))
        };
        let down = "link-down port wan: link down; check its cable and the other end";
        assert_eq!(look(false), [down]);
        assert!(look(false).is_empty());
        assert_eq!(look(true), ["link-up port wan: link up"]);
        assert_eq!(look(false), [down]);
    }

    #[test]
    fn each_workers_guard_is_told_up_and_down() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        let mut look = |guards: [bool; 2]| {
            let guards = guards.to_vec();
            watch.look(now, Seen { guards, ..seen() }, Vec::new)
        };
        assert!(look([false, false]).is_empty());
        let news = look([false, true]);
        assert_eq!(
            (news[0].kind, news[0].worker),
            (EventKind::GuardUp, Some(1))
        );
        let news = look([true, false]);
        let kinds: Vec<_> = news.iter().map(|news| news.kind).collect();
        assert_eq!(kinds, [EventKind::GuardUp, EventKind::GuardDown]);
    }

    #[test]
    fn refusals_are_told_at_once_and_then_every_ten_seconds_with_their_count() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let mut look = |seconds: u64, count: u64| {
            let now = start + Duration::from_secs(seconds);
            let news = watch.look(now, dropped(DropReason::TableFull, count), Vec::new);
            messages(news)
        };
        assert!(look(0, 0).is_empty());
        let told = look(1, 5);
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("resource-full table_full: 5 packets dropped: The connection"));
        assert!(look(2, 50).is_empty(), "not again so soon");
        assert!(look(11, 60)[0].contains(" 55 packets"));
        assert!(look(30, 60).is_empty(), "it is over");
        assert!(
            look(31, 61)[0].contains(" 1 packets"),
            "a new one is told at once"
        );
    }

    #[test]
    fn a_limit_is_told_with_who_is_at_it() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        watch.look(now, dropped(DropReason::Limit, 0), Vec::new);
        let at = AtLimit {
            service: "web".into(),
            backend: Some("a".into()),
            what: "100 of 100 connections".into(),
        };
        let news = watch.look(now, dropped(DropReason::Limit, 7), || vec![at.clone()]);
        assert_eq!(
            news[0].message,
            "limit: 7 packets of new connections refused: service web backend a: 100 of 100 connections"
        );
        assert_eq!(news[0].service.as_deref(), Some("web"));
        assert_eq!(news[0].backend.as_deref(), Some("a"));
        let later = now + AGAIN;
        let news = watch.look(later, dropped(DropReason::Limit, 8), || vec![at; 6]);
        assert!(news[0].message.ends_with(", 2 more"), "{}", news[0].message);
        assert_eq!(news[0].service, None);
    }

    fn drain(connections: u64, over: bool) -> Seen {
        let drain = Drain {
            id: BackendId(3),
            service: "web".into(),
            backend: "a".into(),
            connections,
            over,
        };
        let drains = vec![drain];
        Seen { drains, ..seen() }
    }

    #[test]
    fn a_drain_begins_and_ends_with_its_last_connection() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        let mut look = |seen| messages(watch.look(now, seen, Vec::new));
        assert_eq!(
            look(drain(2, false)),
            [
                "drain-begun service web: backend a: drain begun: no new connections, 2 connections to end"
            ]
        );
        assert!(look(drain(1, false)).is_empty());
        assert_eq!(
            look(drain(0, false)),
            ["drain-ended service web: backend a: drain ended: it has no connections any more"]
        );
        assert!(look(drain(0, false)).is_empty(), "told once");
        assert!(look(seen()).is_empty(), "it had ended");
    }

    #[test]
    fn a_drain_ends_at_its_deadline_or_when_it_is_taken_back() {
        let (mut watch, now) = (Watch::default(), Instant::now());
        let mut look = |seen| messages(watch.look(now, seen, Vec::new));
        look(drain(2, false));
        assert!(look(drain(2, true))[0].ends_with("its deadline has passed, 2 connections cut"));
        look(seen());
        assert_eq!(look(drain(2, false)).len(), 1, "begins anew");
        assert!(look(seen())[0].ends_with("it takes new connections again, or was removed"));
    }
}
