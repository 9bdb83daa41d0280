//! The neighbour table: which MAC an on-link address has, and whether it can still be reached.
//!
//! Owns the entries, their timers and the packets held for addresses being resolved. Management
//! thread; `now` is a parameter and frames go to `Output`, so it does no I/O. ARP and NDP share
//! it: the states are RFC 4861 7.3.2's, with one difference in favour of traffic: the old MAC
//! stays in use until unicast and then broadcast probes have all gone unanswered.

use super::entry::{Entry, Evidence, State};
use super::frame::{self, Mac};
use super::limit::RateLimit;
use super::links::Links;
use super::solicit::solicit;
use super::{Counters, NetEvent, Output};
use crate::mgmt::timers::Timers;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// RFC 4861 10: RetransTimer, MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT, ReachableTime.
const RETRANS: Duration = Duration::from_secs(1);
const SOLICITS: u8 = 3;
const REACHABLE: Duration = Duration::from_secs(30);
/// How long a neighbour nobody asked to keep stays usable before it is probed again.
const STALE: Duration = Duration::from_secs(60);
/// How long an unanswered address that is not wanted is remembered, so that packets to it are
/// dropped at once instead of asking again for each.
const REFUSED: Duration = Duration::from_secs(3);
/// Longest pause between questions for a wanted neighbour that does not answer.
const MAX_BACKOFF: Duration = Duration::from_secs(16);
/// Another MAC is not believed so soon after the last change, or two hosts that fight over an
/// address would make a snapshot per packet (Linux: neigh/*/locktime).
const LOCK: Duration = Duration::from_secs(1);
const MAX_ENTRIES: usize = 8192;
const HELD_PER_NEIGHBOUR: usize = 3;
const HELD_IN_ALL: usize = 512;
const SOLICITS_PER_SECOND: u32 = 1000;
const SOLICITS_BURST: u32 = 256;

pub(super) type Key = (u16, IpAddr);

#[derive(Debug)]
pub(super) struct Table {
    entries: HashMap<Key, Entry>,
    timers: Timers<Key>,
    /// Keys in order of creation, to evict the oldest; some may be gone or wanted by now.
    oldest: VecDeque<Key>,
    held: usize,
    limit: RateLimit,
    /// Counts changes of what is usable.
    version: u64,
}

/// What the table needs to ask a question and to report what came of it.
pub(super) struct Context<'a> {
    pub links: &'a Links,
    pub counters: &'a mut Counters,
    pub out: &'a mut Output,
    pub now: Instant,
}

impl Table {
    pub fn new() -> Self {
        Self {
            entries: HashMap::new(),
            timers: Timers::new(),
            oldest: VecDeque::new(),
            held: 0,
            limit: RateLimit::new(SOLICITS_PER_SECOND, SOLICITS_BURST),
            version: 0,
        }
    }

    pub fn set_static(&mut self, key: Key, mac: Mac, now: Instant) {
        self.remove(key);
        let entry = Entry::new(State::Static, Some(mac), now);
        self.entries.insert(key, entry);
        self.version += 1;
    }

    /// Drops static entries and those of ports that are gone, before a new configuration's
    /// static entries are set.
    pub fn retain_learned(&mut self, cx: &mut Context<'_>) {
        let gone = |(key, e): (&Key, &Entry)| {
            (e.state == State::Static || cx.links.get(key.0).is_none()).then_some(*key)
        };
        let gone: Vec<Key> = self.entries.iter().filter_map(gone).collect();
        for key in gone {
            self.drop_held(key, cx);
            self.remove(key);
        }
    }

    pub fn usable(&self) -> impl Iterator<Item = (Key, Mac)> {
        let usable = |(key, entry): (&Key, &Entry)| Some((*key, entry.mac?));
        self.entries.iter().filter_map(usable)
    }

    pub fn mac(&self, key: Key) -> Option<Mac> {
        self.entries.get(&key)?.mac
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let due = self.timers.next()?;
        Some(due.max(self.limit.ready_at(now)))
    }

    /// Makes exactly `keys` the wanted ones: they are resolved now and kept resolved.
    pub fn want(&mut self, keys: impl Iterator<Item = Key>, cx: &mut Context<'_>) {
        let keys: HashSet<Key> = keys.collect();
        for (key, entry) in &mut self.entries {
            if entry.wanted && !keys.contains(key) {
                entry.wanted = false;
                self.oldest.push_back(*key);
            }
        }
        for key in keys {
            if !self.entries.contains_key(&key) && !self.create(key, cx) {
                continue;
            }
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            entry.wanted = true;
            match entry.state {
                State::Stale => self.enter(key, State::Probe { asked: 0 }, cx.now),
                State::Failed { .. } => self.enter(key, State::Failed { rounds: 0 }, cx.now),
                _ => {}
            }
        }
    }

    /// The MAC of `key` if it is usable. If not, the question is asked (or is already being
    /// asked) and `packet` waits for the answer, a few for each neighbour, the oldest giving way.
    pub fn resolve(
        &mut self,
        key: Key,
        packet: Option<Vec<u8>>,
        cx: &mut Context<'_>,
    ) -> Option<Mac> {
        let refused = match self.entries.get(&key) {
            Some(entry) => matches!(entry.state, State::Failed { .. }),
            None => !self.create(key, cx),
        };
        let mac = self.mac(key);
        match (mac, packet) {
            (Some(mac), Some(packet)) => send_held(key, mac, packet, cx),
            (None, Some(_)) if refused => cx.counters.held_dropped += 1,
            (None, Some(packet)) => self.hold(key, packet, cx),
            (_, None) => {}
        }
        mac
    }

    fn hold(&mut self, key: Key, packet: Vec<u8>, cx: &mut Context<'_>) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if entry.held.len() == HELD_PER_NEIGHBOUR {
            entry.held.remove(0);
            self.held -= 1;
            cx.counters.held_dropped += 1;
        }
        if self.held == HELD_IN_ALL {
            cx.counters.held_dropped += 1;
            return;
        }
        entry.held.push(packet);
        self.held += 1;
    }

    /// Creates an entry that asks at once. False if the table is full of wanted entries.
    fn create(&mut self, key: Key, cx: &mut Context<'_>) -> bool {
        let state = State::Incomplete { asked: 0 };
        if !self.insert(key, Entry::new(state, None, cx.now), cx) {
            return false;
        }
        self.set_timer(key, Some(cx.now));
        self.ask_if_due(key, cx);
        true
    }

    fn insert(&mut self, key: Key, entry: Entry, cx: &mut Context<'_>) -> bool {
        if self.entries.len() >= MAX_ENTRIES && !self.evict(cx) {
            cx.counters.table_full += 1;
            return false;
        }
        if self.oldest.len() >= 2 * MAX_ENTRIES {
            let entries = &self.entries;
            let mut seen = HashSet::new();
            self.oldest
                .retain(|k| entries.contains_key(k) && seen.insert(*k));
        }
        self.oldest.push_back(key);
        self.entries.insert(key, entry);
        true
    }

    /// Removes the oldest entry that nobody wants.
    fn evict(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some(key) = self.oldest.pop_front() {
            let Some(entry) = self.entries.get(&key) else {
                continue;
            };
            if entry.wanted || entry.state == State::Static {
                continue;
            }
            if entry.mac.is_some() {
                let (port, ip) = key;
                cx.out.events.push(NetEvent::NeighbourLost { ip, port });
            }
            self.drop_held(key, cx);
            self.remove(key);
            return true;
        }
        false
    }

    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.timers.cancel(key, entry.due);
            self.held -= entry.held.len();
            self.version += u64::from(entry.mac.is_some());
        }
    }

    fn drop_held(&mut self, key: Key, cx: &mut Context<'_>) {
        if let Some(entry) = self.entries.get_mut(&key) {
            cx.counters.held_dropped += entry.held.len() as u64;
            self.held -= entry.held.len();
            entry.held.clear();
        }
    }

    fn set_timer(&mut self, key: Key, due: Option<Instant>) {
        if let Some(entry) = self.entries.get_mut(&key) {
            self.timers.cancel(key, entry.due);
            entry.due = due;
            if let Some(at) = due {
                self.timers.set(key, at);
            }
        }
    }

    /// Changes the state and sets the timer that belongs to it.
    fn enter(&mut self, key: Key, state: State, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        entry.state = state;
        let wanted = entry.wanted;
        let due = match state {
            State::Static => None,
            State::Incomplete { .. } | State::Probe { .. } => Some(now),
            State::Reachable => Some(now + self.timers.jitter(REACHABLE)),
            State::Stale => Some(now + self.timers.jitter(STALE)),
            State::Failed { .. } if !wanted => Some(now + REFUSED),
            State::Failed { rounds } => {
                let pause = RETRANS * (1 << rounds.min(4));
                Some(now + self.timers.jitter(pause.min(MAX_BACKOFF)))
            }
        };
        self.set_timer(key, due);
    }

    /// What a packet said about a neighbour's MAC. An unknown sender gets an entry only if
    /// `create`: it spoke to us, so we are about to answer it.
    pub fn learn(
        &mut self,
        key: Key,
        mac: Mac,
        evidence: Evidence,
        create: bool,
        cx: &mut Context<'_>,
    ) {
        let Some(entry) = self.entries.get(&key) else {
            if create && self.insert(key, Entry::new(State::Stale, None, cx.now), cx) {
                self.resolved(key, mac, evidence, cx);
            }
            return;
        };
        match entry.mac {
            _ if entry.state == State::Static => {}
            None => self.resolved(key, mac, evidence, cx),
            Some(known) if known == mac => {
                if evidence.confirms() {
                    self.enter(key, State::Reachable, cx.now);
                }
            }
            Some(_) if matches!(evidence, Evidence::Weak { .. }) => {
                if entry.state == State::Reachable {
                    self.doubt(key, cx);
                }
            }
            Some(old) => {
                if cx.now.saturating_duration_since(entry.changed) < LOCK {
                    return;
                }
                self.take_mac(key, mac, evidence, cx);
                let (port, ip) = key;
                let new = mac;
                cx.out
                    .events
                    .push(NetEvent::NeighbourChanged { ip, port, old, new });
            }
        }
    }

    fn resolved(&mut self, key: Key, mac: Mac, evidence: Evidence, cx: &mut Context<'_>) {
        self.take_mac(key, mac, evidence, cx);
        let (port, ip) = key;
        cx.out
            .events
            .push(NetEvent::NeighbourResolved { ip, port, mac });
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let held = std::mem::take(&mut entry.held);
        self.held -= held.len();
        for packet in held {
            send_held(key, mac, packet, cx);
        }
    }

    fn take_mac(&mut self, key: Key, mac: Mac, evidence: Evidence, cx: &mut Context<'_>) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.mac = Some(mac);
            entry.changed = cx.now;
            self.version += 1;
        }
        if evidence.confirms() {
            self.enter(key, State::Reachable, cx.now);
        } else {
            self.doubt(key, cx);
        }
    }

    /// Usable, but not known to hear us: a wanted neighbour is probed at once.
    fn doubt(&mut self, key: Key, cx: &mut Context<'_>) {
        let wanted = self.entries.get(&key).is_some_and(|e| e.wanted);
        let state = if wanted {
            State::Probe { asked: 0 }
        } else {
            State::Stale
        };
        self.enter(key, state, cx.now);
    }

    /// After link-up: what was reachable may not be any more.
    pub fn doubt_port(&mut self, port: u16, cx: &mut Context<'_>) {
        let reachable = |(key, e): (&Key, &Entry)| {
            (key.0 == port && e.state == State::Reachable).then_some(*key)
        };
        let reachable: Vec<Key> = self.entries.iter().filter_map(reachable).collect();
        for key in reachable {
            self.doubt(key, cx);
        }
    }

    /// Does what is due. Each entry acts at most once a call, however far the clock has jumped.
    /// While no question may be sent nothing else is done either: those due longest stay first
    /// in line, and a crowd that waits costs nothing.
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        while self.limit.ready_at(cx.now) <= cx.now {
            let Some(key) = self.timers.pop_due(cx.now) else {
                break;
            };
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.due = None;
                self.act(key, cx);
            }
        }
    }

    fn ask_if_due(&mut self, key: Key, cx: &mut Context<'_>) {
        self.set_timer(key, None);
        self.act(key, cx);
    }

    fn act(&mut self, key: Key, cx: &mut Context<'_>) {
        let Some(entry) = self.entries.get(&key) else {
            return;
        };
        // A backend may move to another MAC, so a wanted one is asked for by broadcast too.
        let probes = if entry.wanted { 2 * SOLICITS } else { SOLICITS };
        match entry.state {
            State::Static => {}
            State::Reachable if entry.wanted => {
                self.enter(key, State::Probe { asked: 0 }, cx.now);
                self.ask_if_due(key, cx);
            }
            State::Reachable => self.enter(key, State::Stale, cx.now),
            State::Stale => {
                self.enter(key, State::Probe { asked: 0 }, cx.now);
                self.ask_if_due(key, cx);
            }
            State::Incomplete { asked } if asked < SOLICITS => {
                self.ask(key, None, State::Incomplete { asked: asked + 1 }, cx);
            }
            State::Probe { asked } if asked < probes => {
                let to = entry.mac.filter(|_| asked < SOLICITS);
                self.ask(key, to, State::Probe { asked: asked + 1 }, cx);
            }
            State::Incomplete { .. } | State::Probe { .. } => self.fail(key, cx),
            State::Failed { .. } if !entry.wanted => self.remove(key),
            State::Failed { rounds } => {
                let rounds = rounds.saturating_add(1);
                if self.ask(key, None, State::Failed { rounds }, cx) {
                    self.enter(key, State::Failed { rounds }, cx.now);
                }
            }
        }
    }

    /// Sends one question and goes to `next` for a second; over the limit it stays due.
    fn ask(&mut self, key: Key, to: Option<Mac>, next: State, cx: &mut Context<'_>) -> bool {
        if !self.limit.take(cx.now) {
            self.set_timer(key, Some(cx.now));
            return false;
        }
        let link = cx.links.get(key.0);
        if let Some(frame) = link.and_then(|l| solicit(l, key.1, to)) {
            cx.counters.solicitations += 1;
            cx.out.frames.push((key.0, frame));
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.state = next;
        }
        self.set_timer(key, Some(cx.now + RETRANS));
        true
    }

    fn fail(&mut self, key: Key, cx: &mut Context<'_>) {
        self.drop_held(key, cx);
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let (port, ip) = key;
        if entry.mac.take().is_some() {
            self.version += 1;
            cx.out.events.push(NetEvent::NeighbourLost { ip, port });
        } else if entry.wanted {
            cx.out.events.push(NetEvent::NeighbourSilent { ip, port });
        }
        self.enter(key, State::Failed { rounds: 0 }, cx.now);
    }
}

/// A packet that waited for its next hop leaves by the port the next hop is on.
fn send_held(key: Key, mac: Mac, mut packet: Vec<u8>, cx: &mut Context<'_>) {
    let Some(link) = cx.links.get(key.0) else {
        return;
    };
    if frame::address_frame(&mut packet, link.config.mac, mac) {
        cx.out.frames.push((key.0, packet));
    } else {
        cx.counters.held_dropped += 1;
    }
}
