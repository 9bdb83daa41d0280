//! Tells the segment which addresses are ours: gratuitous ARP and unsolicited neighbour
//! advertisements, repeated and paced, and a limit on how often we defend one.
//!
//! Management thread; `now` is a parameter and frames go to `Output`.

use super::frame::{self, ArpParty, Mac, Tags};
use super::limit::RateLimit;
use super::links::{Link, Links};
use super::neighbour::Key;
use super::solicit::multicast_mac;
use super::{Counters, Output};
use smoltcp::wire::{
    ArpOperation, IPV6_LINK_LOCAL_ALL_NODES, Icmpv6Repr, NdiscNeighborFlags, NdiscRepr,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// RFC 5227 2.3 asks for two announcements and RFC 4861 7.2.6 allows three, a second or more
/// apart.
const ROUNDS: u8 = 3;
const SPACING: Duration = Duration::from_secs(1);
/// Addresses a second, so that 10,000 VIPs do not overrun a switch's control plane at once.
const PER_SECOND: u32 = 5000;
const BURST: u32 = 100;
/// RFC 5227 2.4: DEFEND_INTERVAL.
const DEFEND: Duration = Duration::from_secs(10);
const MAX_CONFLICTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Announcer {
    /// By time, then order of insertion: the port, the address and how often it is still sent.
    queue: BTreeMap<(Instant, u64), (Key, u8)>,
    sequence: u64,
    limit: RateLimit,
    /// How often everything is announced once more, and when that is due.
    every: Option<(Duration, Instant)>,
}

impl Announcer {
    pub fn new() -> Self {
        Self {
            queue: BTreeMap::new(),
            sequence: 0,
            limit: RateLimit::new(PER_SECOND, BURST),
            every: None,
        }
    }

    /// Starts the rounds for these addresses; rounds still under way for them start again.
    pub fn start(&mut self, keys: &BTreeSet<Key>, now: Instant) {
        self.queue.retain(|_, (key, _)| !keys.contains(key));
        for &key in keys {
            self.push(now, key, ROUNDS);
        }
    }

    /// Announces everything once more after each `interval`, for switches and hosts that forget or
    /// that missed the first rounds.
    pub fn repeat_every(&mut self, interval: Duration, now: Instant) {
        self.every = Some((interval, now + interval));
    }

    /// Announces each of `keys` once, unless rounds for it are still under way.
    fn repeat(&mut self, keys: &BTreeSet<Key>, now: Instant) {
        let under_way: BTreeSet<Key> = self.queue.values().map(|(key, _)| *key).collect();
        for &key in keys.difference(&under_way) {
            self.push(now, key, 1);
        }
    }

    /// Announces `key` once, in defence of it (RFC 5227 2.4 (c)).
    pub fn defend(&mut self, key: Key, now: Instant) {
        self.push(now, key, 1);
    }

    fn push(&mut self, at: Instant, key: Key, rounds: u8) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), (key, rounds));
    }

    pub fn poll(
        &mut self,
        links: &Links,
        counters: &mut Counters,
        now: Instant,
        out: &mut Output,
    ) -> Option<Instant> {
        if let Some((interval, at)) = self.every
            && at <= now
        {
            self.every = Some((interval, now + interval));
            self.repeat(&links.announced(), now);
        }
        while let Some(first) = self.queue.first_entry() {
            if first.key().0 > now {
                break;
            }
            if !self.limit.take(now) {
                return Some(self.limit.ready_at(now));
            }
            let (key, rounds) = first.remove();
            // A reload may have taken the address away in the meantime.
            let Some(link) = links.get(key.0).filter(|l| l.owns(key.1)) else {
                continue;
            };
            for frame in announcement(link, key.1) {
                counters.announcements += 1;
                out.frames.push((key.0, frame));
            }
            if rounds > 1 {
                self.push(now + SPACING, key, rounds - 1);
            }
        }
        let repeat = self.every.map(|(_, at)| at);
        let next = self.queue.first_key_value().map(|((at, _), _)| *at);
        [repeat, next].into_iter().flatten().min()
    }
}

/// For IPv4 both forms of gratuitous ARP (RFC 5944 4.6), since some hosts heed only one; for
/// IPv6 an unsolicited advertisement to all nodes that overrides what they know.
fn announcement(link: &Link, ip: IpAddr) -> Vec<Vec<u8>> {
    let mac = link.config.mac;
    let to = |dst| frame::Link {
        src: mac,
        dst,
        tags: Tags::default(),
    };
    match ip {
        IpAddr::V4(ip) => {
            let forms = [
                (ArpOperation::Request, Mac::default()),
                (ArpOperation::Reply, mac),
            ];
            let form = |(operation, target)| {
                let sender = ArpParty { mac, ip };
                let target = ArpParty { mac: target, ip };
                frame::arp(&to(Mac::BROADCAST), operation, sender, target)
            };
            forms.map(form).into()
        }
        IpAddr::V6(ip) => {
            let all = IPV6_LINK_LOCAL_ALL_NODES;
            let message = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::OVERRIDE,
                target_addr: ip,
                lladdr: Some(mac.into()),
            });
            let link = to(multicast_mac(all));
            vec![frame::icmpv6(&link, ip, all, 255, &message)]
        }
    }
}

/// Addresses that another host claimed, and when that was last reported.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    reported: HashMap<Key, Instant>,
    /// Since when, and when last, another host was heard to have an address that may just be moving.
    heard: HashMap<Key, (Instant, Instant)>,
}

/// An address that still is there twice after so long does not move any more.
const MOVES: Duration = Duration::from_secs(2);

impl Conflicts {
    /// Whether another host was heard to have the address a while ago, and now again.
    pub fn lasts(&mut self, key: Key, now: Instant) -> bool {
        let (first, last) = self.heard.entry(key).or_insert((now, now));
        if now.saturating_duration_since(*last) > DEFEND {
            *first = now;
        }
        *last = now;
        now.saturating_duration_since(*first) >= MOVES
    }

    /// Forgets what was heard of addresses that are not ours any more.
    pub fn keep(&mut self, is_ours: impl Fn(Key) -> bool) {
        self.heard.retain(|key, _| is_ours(*key));
    }

    /// Whether to report and defend now: once in ten seconds for each address, or two hosts
    /// that both defend would answer each other without end (RFC 5227 2.4).
    pub fn report(&mut self, key: Key, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < DEFEND;
        if self.reported.get(&key).is_some_and(recent) {
            return false;
        }
        if self.reported.len() >= MAX_CONFLICTS {
            self.reported.retain(|_, at| recent(at));
        }
        if self.reported.len() >= MAX_CONFLICTS {
            return false;
        }
        self.reported.insert(key, now);
        true
    }
}

/// Whether an address may be a sender's: not unspecified, broadcast, multicast or loopback.
pub(super) fn plausible_source(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast() || ip.is_loopback())
}
