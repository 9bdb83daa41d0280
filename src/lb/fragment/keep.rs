//! The memory of fragments: which datagrams are known, and which fragments wait for their first.
//!
//! Owned by one worker; of fixed size, allocated once. It holds no frames: a frame that waits lies
//! in the worker's [`FragmentStore`], under the ticket given here.

use std::collections::VecDeque;

use super::super::Now;
use super::super::flow::{Address, Seed, endpoint_hash};
use super::recipe::Recipe;

/// Fragments that may wait for their first one, on one worker. More than two bursts, so that a
/// ticket's frame is in the store before the ticket can be given out again.
pub const WAITING: usize = 512;
/// Datagrams whose fragments are remembered, on one worker.
pub const DATAGRAMS: usize = 2048;
/// Nanoseconds that a fragment waits for its first one.
pub const PATIENCE: u64 = 1_000_000_000;
/// Nanoseconds after its last fragment that a datagram is remembered.
pub const MEMORY: u64 = 10_000_000_000;

const WAYS: usize = 8;
const NONE: u16 = u16::MAX;

/// What names a datagram (RFC 791 3.2; RFC 8200 4.5, where the protocol does not count and is 0).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Datagram {
    source: (u64, u64),
    destination: (u64, u64),
    id: u32,
    protocol: u8,
    v6: bool,
}

impl Datagram {
    pub fn new<A: Address>(source: A, destination: A, id: u32, protocol: u8) -> Self {
        let v6 = A::HEADER != 20;
        Self {
            source: source.words(),
            destination: destination.words(),
            id,
            protocol: if v6 { 0 } else { protocol },
            v6,
        }
    }
}

/// What is known of a datagram since its first fragment was seen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Known {
    /// Its flow belongs to this other worker.
    Elsewhere(u8),
    Here(Recipe),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    datagram: Datagram,
    touched: u64,
    used: bool,
    known: Option<Known>,
    /// Fragments that wait, in the order they came.
    first: u16,
    last: u16,
}

const UNUSED: Entry = Entry {
    datagram: Datagram {
        source: (0, 0),
        destination: (0, 0),
        id: 0,
        protocol: 0,
        v6: false,
    },
    touched: 0,
    used: false,
    known: None,
    first: NONE,
    last: NONE,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Free,
    Waits,
    /// On the queue of those to be released.
    Leaves,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    place: Place,
    since: u64,
    entry: u16,
    next: u16,
}

/// A fragment that need not wait any longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Released {
    pub ticket: u16,
    /// Its first fragment came: give it to [`super::super::shard::Shard::process`] as handed over.
    /// Else it has waited too long: drop it as [`super::super::counters::DropReason::Fragment`].
    pub goes_on: bool,
}

pub struct Fragments {
    entries: Box<[Entry]>,
    waiting: Box<[Waiting]>,
    /// Tickets are given out in turn, so those between these two are in the order of their age.
    oldest: u64,
    next: u64,
    leaving: VecDeque<Released>,
    held: usize,
    seed: Seed,
}

impl Fragments {
    pub fn new(seed: Seed) -> Self {
        let waiting = Waiting {
            place: Place::Free,
            since: 0,
            entry: NONE,
            next: NONE,
        };
        Self {
            entries: vec![UNUSED; DATAGRAMS].into(),
            waiting: vec![waiting; WAITING].into(),
            oldest: 0,
            next: 0,
            leaving: VecDeque::with_capacity(WAITING),
            held: 0,
            seed,
        }
    }

    /// Nothing waits, so that [`Fragments::release`] has nothing to do.
    #[inline(always)]
    pub fn is_idle(&self) -> bool {
        self.oldest == self.next && self.leaving.is_empty()
    }

    /// Frames in the store.
    pub fn held(&self) -> usize {
        self.held
    }

    fn bucket(&self, datagram: &Datagram) -> std::ops::Range<usize> {
        let (source, destination) = (datagram.source, datagram.destination);
        let folded = |(high, low): (u64, u64)| {
            std::net::Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))
        };
        let one = endpoint_hash(
            &self.seed,
            datagram.protocol,
            folded(source),
            datagram.id as u16,
        );
        let two = endpoint_hash(
            &self.seed,
            1,
            folded(destination),
            (datagram.id >> 16) as u16,
        );
        let mixed = (one ^ two.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bucket = (mixed >> 32) as usize % (self.entries.len() / WAYS) * WAYS;
        bucket..bucket + WAYS
    }

    fn find(&self, datagram: &Datagram, now: Now) -> Option<usize> {
        let entry = self.bucket(datagram).find(|&at| {
            let entry = &self.entries[at];
            entry.used && entry.datagram == *datagram
        })?;
        (now.nanos.saturating_sub(self.entries[entry].touched) <= MEMORY).then_some(entry)
    }

    /// The datagram's entry; if need be, in the place of the one not touched for longest.
    fn enter(&mut self, datagram: Datagram, now: Now) -> usize {
        if let Some(at) = self.find(&datagram, now) {
            self.entries[at].touched = now.nanos;
            return at;
        }
        let age = |at: &usize| match &self.entries[*at] {
            entry if !entry.used || entry.datagram == datagram => 0,
            entry => entry.touched + 1,
        };
        let bucket = self.bucket(&datagram);
        let at = bucket.clone().min_by_key(age).unwrap_or(bucket.start);
        self.let_leave(at, false);
        self.entries[at] = Entry {
            datagram,
            touched: now.nanos,
            used: true,
            ..UNUSED
        };
        at
    }

    /// What is known of a datagram.
    pub fn known(&mut self, datagram: &Datagram, now: Now) -> Option<Known> {
        let at = self.find(datagram, now)?;
        self.entries[at].touched = now.nanos;
        self.entries[at].known
    }

    /// The first fragment was seen: all that wait may go on.
    pub fn learn(&mut self, datagram: Datagram, known: Known, now: Now) {
        let at = self.enter(datagram, now);
        self.entries[at].known = Some(known);
        self.let_leave(at, true);
    }

    /// A ticket for a fragment whose first one was not seen yet. It may be that of the fragment
    /// that has waited longest, whose frame the store then gives back.
    pub fn wait(&mut self, datagram: Datagram, now: Now) -> Option<u16> {
        let ticket = (self.next % self.waiting.len() as u64) as u16;
        match self.waiting[usize::from(ticket)].place {
            Place::Leaves => return None,
            Place::Waits => self.unlink(ticket),
            Place::Free => self.held += 1,
        }
        let at = self.enter(datagram, now);
        self.next += 1;
        self.oldest = self
            .oldest
            .max(self.next.saturating_sub(self.waiting.len() as u64));
        self.waiting[usize::from(ticket)] = Waiting {
            place: Place::Waits,
            since: now.nanos,
            entry: at as u16,
            next: NONE,
        };
        let last = std::mem::replace(&mut self.entries[at].last, ticket);
        match last {
            NONE => self.entries[at].first = ticket,
            last => self.waiting[usize::from(last)].next = ticket,
        }
        Some(ticket)
    }

    /// The next fragment that need not wait any longer. To be asked until there is none, after
    /// each burst, unless [`Fragments::is_idle`].
    pub fn release(&mut self, now: Now) -> Option<Released> {
        while self.oldest < self.next {
            let ticket = (self.oldest % self.waiting.len() as u64) as u16;
            let waiting = self.waiting[usize::from(ticket)];
            if waiting.place == Place::Waits {
                if now.nanos.saturating_sub(waiting.since) <= PATIENCE {
                    break;
                }
                self.unlink(ticket);
                self.leave(ticket, false);
            }
            self.oldest += 1;
        }
        let released = self.leaving.pop_front()?;
        self.waiting[usize::from(released.ticket)].place = Place::Free;
        self.held -= 1;
        Some(released)
    }

    /// Takes the oldest fragment of its datagram off that datagram's list. Tickets age in turn,
    /// so the oldest of all is the oldest of its own.
    fn unlink(&mut self, ticket: u16) {
        let waiting = self.waiting[usize::from(ticket)];
        let entry = &mut self.entries[usize::from(waiting.entry)];
        debug_assert_eq!(entry.first, ticket);
        entry.first = waiting.next;
        if waiting.next == NONE {
            entry.last = NONE;
        }
    }

    fn leave(&mut self, ticket: u16, goes_on: bool) {
        self.waiting[usize::from(ticket)].place = Place::Leaves;
        self.leaving.push_back(Released { ticket, goes_on });
    }

    fn let_leave(&mut self, at: usize, go_on: bool) {
        let mut ticket = self.entries[at].first;
        (self.entries[at].first, self.entries[at].last) = (NONE, NONE);
        while ticket != NONE {
            let next = self.waiting[usize::from(ticket)].next;
            self.leave(ticket, go_on);
            ticket = next;
        }
    }
}

/// The frames that wait, by their tickets. Belongs to the worker.
pub struct FragmentStore<F> {
    frames: Box<[Option<F>]>,
}

impl<F> Default for FragmentStore<F> {
    fn default() -> Self {
        Self {
            frames: (0..WAITING).map(|_| None).collect(),
        }
    }
}

impl<F> FragmentStore<F> {
    /// Keeps a frame whose verdict was [`super::super::Verdict::Hold`]. What comes back has waited
    /// longest and is to be dropped as [`super::super::counters::DropReason::Fragment`].
    #[must_use]
    pub fn put(&mut self, ticket: u16, frame: F) -> Option<F> {
        match self.frames.get_mut(usize::from(ticket)) {
            Some(place) => place.replace(frame),
            None => Some(frame),
        }
    }

    /// Gives back the frame that is [`Released`].
    pub fn take(&mut self, ticket: u16) -> Option<F> {
        self.frames.get_mut(usize::from(ticket))?.take()
    }
}
