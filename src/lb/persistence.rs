//! Persistence: a client, or all clients of a prefix, stay with one backend for a time, in all
//! services of a group (what LVS calls a persistence template).
//!
//! A template belongs to the worker that a hash of its key names, and lives there alone (DESIGN
//! decision 2). The worker that owns a new flow sends the flow's first packet there with the note
//! [`ASK`]; the packet comes back with the note of the backend that was chosen. Runs on workers;
//! of fixed size, never allocates after start.

use std::net::IpAddr;

use super::Now;
use super::flow::{Address, Seed, endpoint_hash};
use super::maglev::mix;
use super::route::Prefix;
use super::schedule::Candidates;
use super::snapshot::{Backend, BackendId};
use crate::arch::{Populate, Region};

/// A service's persistence, in a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Persistence {
    /// Seconds since the last new connection after which a client is forgotten.
    pub timeout: u32,
    /// Clients that share this many bits of their address count as one.
    pub prefix_v4: u8,
    pub prefix_v6: u8,
    /// Services of one group have the same number here.
    pub group: u64,
}

/// The note on a packet whose backend the template's worker is to choose.
pub const ASK: u32 = 1;
/// The note of a chosen backend is its id plus this. 0 is no note.
const CHOSEN: u32 = 2;

/// The note that says which backend was chosen.
pub fn chosen(id: BackendId) -> u32 {
    id.0.wrapping_add(CHOSEN)
}

/// The backend that a note names.
pub fn named(note: u32) -> Option<BackendId> {
    note.checked_sub(CHOSEN).map(BackendId)
}

/// Whom a template is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    group: u64,
    client: (u64, u64),
    v6: bool,
    hash: u64,
}

impl Key {
    pub fn new<A: Address>(persistence: &Persistence, client: A, seed: &Seed) -> Self {
        let v6 = A::HEADER != 20;
        let length = if v6 {
            persistence.prefix_v6
        } else {
            persistence.prefix_v4
        };
        let prefix = Prefix::new(client.into(), length).address;
        let prefix = A::from_ip(prefix).unwrap_or(client);
        let hash = endpoint_hash(seed, 0, prefix, 0) ^ persistence.group;
        Self {
            group: persistence.group,
            client: prefix.words(),
            v6,
            hash: mix(hash),
        }
    }

    /// The worker whose templates hold this one.
    pub fn owner(&self, workers: u8) -> u8 {
        ((self.hash >> 32) % u64::from(workers.max(1))) as u8
    }
}

/// All zero is an empty one.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    key: Key,
    backend: BackendId,
    /// In another service of the group it is the backend with this address.
    server: (u64, u64),
    /// Second of the last new connection, and for how long it counts from then.
    used: u32,
    timeout: u32,
    live: bool,
}

impl Template {
    pub fn backend(&self) -> BackendId {
        self.backend
    }

    fn is_over(&self, second: u32) -> bool {
        !self.live || second.wrapping_sub(self.used) > self.timeout
    }
}

const WAYS: usize = 8;

/// The words of an address, as [`Address::words`] has them. Whether two are of one family is for
/// others to know.
fn words(address: IpAddr) -> (u64, u64) {
    match address {
        IpAddr::V4(address) => address.words(),
        IpAddr::V6(address) => address.words(),
    }
}

/// One worker's templates.
pub struct Templates {
    templates: Region<Template>,
}

impl Templates {
    /// Room for about `count` clients, in memory that need not be there before there is a service
    /// with persistence.
    pub fn new(count: usize) -> std::io::Result<Self> {
        let count = count.max(1).next_multiple_of(WAYS);
        Ok(Self {
            templates: Region::reserved(count)?,
        })
    }

    pub fn populate(&self) -> Populate {
        self.templates.populate()
    }

    /// Where the key's bucket begins.
    fn first(&self, key: &Key) -> usize {
        let buckets = self.templates.len() / WAYS;
        (key.hash as u32 as usize) % buckets * WAYS
    }

    fn bucket(&mut self, key: &Key) -> &mut [Template] {
        let at = self.first(key);
        &mut self.templates[at..at + WAYS]
    }

    /// The client's backend among `candidates`, if it has one and `can_take` holds of it. The time
    /// starts anew.
    pub fn find<'s>(
        &mut self,
        key: &Key,
        now: Now,
        candidates: &Candidates<'s, '_>,
        can_take: impl Fn(&Backend) -> bool,
    ) -> Option<&'s Backend> {
        let template = self
            .bucket(key)
            .iter_mut()
            .find(|t| t.key == *key && !t.is_over(now.second))?;
        let (id, server) = (template.backend, template.server);
        let backend = candidates
            .iter()
            .find(|b| b.id == id)
            .or_else(|| candidates.iter().find(|b| words(b.address) == server))
            .filter(|b| can_take(b))?;
        template.used = now.second;
        Some(backend)
    }

    /// The client's template, if it has one; its time does not start anew.
    pub fn peek(&self, key: &Key, now: Now) -> Option<Template> {
        let bucket = &self.templates[self.first(key)..][..WAYS];
        let live = |t: &&Template| t.key == *key && !t.is_over(now.second);
        bucket.iter().find(live).copied()
    }

    /// Puts a template of another worker in its place, which must be free.
    pub fn put(&mut self, template: Template) {
        if let Some(place) = self.bucket(&template.key).first_mut() {
            *place = template;
        }
    }

    /// From now on the client stays with this backend. Where there is no room the client that
    /// would be forgotten first makes some, unless `spare` says not to.
    pub fn learn(&mut self, key: Key, timeout: u32, backend: &Backend, now: Now, spare: bool) {
        let left = |t: &Template| match t.is_over(now.second) {
            true => 0,
            false => 1 + t.timeout - now.second.wrapping_sub(t.used),
        };
        let bucket = self.bucket(&key);
        let known = bucket.iter().position(|t| t.live && t.key == key);
        let oldest = (0..WAYS).min_by_key(|&at| left(&bucket[at]));
        let Some(at) = known.or(oldest) else { return };
        if known.is_none() && spare && left(&bucket[at]) != 0 {
            return;
        }
        bucket[at] = Template {
            key,
            backend: backend.id,
            server: words(backend.address),
            used: now.second,
            timeout,
            live: true,
        };
    }
}

#[cfg(test)]
mod tests;
