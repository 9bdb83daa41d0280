//! Copies of connections for people to look at: management sends a request with room, the worker
//! fills it between two bursts, and the next request goes on where this one ended.

use std::net::{IpAddr, SocketAddr};

use super::Now;
use super::conn::{Conn, State};
use super::flow::Address;
use super::shard::Shard;
use super::snapshot::BackendId;
use super::table::ConnTable;
use super::tracked::Tracked;

/// One connection, as a listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    pub protocol: u8,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub backend: BackendId,
    pub state: State,
    /// Seconds until it is forgotten.
    pub expires: u32,
}

/// A request for the connections of some buckets, and its answer.
#[derive(Debug)]
pub struct Request {
    /// The asker's own number for the question that this is a part of.
    pub question: u64,
    /// First bucket to look at; both tables are walked at once.
    pub from: usize,
    /// Where to go on, once filled; `None` at the end of the tables.
    pub next: Option<usize>,
    /// Filled up to its capacity, which must hold two buckets: 64.
    pub connections: Vec<Listed>,
}

/// Buckets that one request looks at: what a worker does between two bursts stays short.
const BUCKETS: usize = 16;

impl Request {
    /// A request that starts at bucket `from`, with room for all that one answer can hold.
    pub fn new(question: u64, from: usize) -> Self {
        Self {
            question,
            from,
            next: None,
            connections: Vec::with_capacity(2 * BUCKETS * super::table::WAYS),
        }
    }

    /// Copies without allocating.
    pub fn fill(&mut self, shard: &Shard, now: Now) {
        let end = self.from + BUCKETS;
        self.copy(&shard.tables.v4, self.from..end, now);
        self.copy(&shard.tables.v6, self.from..end, now);
        self.next = (end < shard.buckets()).then_some(end);
    }

    fn copy<A: Tracked>(
        &mut self,
        table: &ConnTable<A>,
        buckets: std::ops::Range<usize>,
        now: Now,
    ) {
        for (_, conn) in table.entries(buckets) {
            if !conn.is_expired(now.second) && self.connections.len() < self.connections.capacity()
            {
                self.connections.push(listed(conn, now));
            }
        }
    }
}

fn listed<A: Address>(conn: &Conn<A>, now: Now) -> Listed {
    let ip = |address: A| -> IpAddr { address.into() };
    let age = now.second.wrapping_sub(conn.last_seen);
    Listed {
        protocol: conn.protocol,
        client: SocketAddr::new(ip(conn.client), conn.client_port),
        vip: SocketAddr::new(ip(conn.vip), conn.vip_port),
        backend: conn.backend,
        state: conn.state,
        expires: u32::from(conn.timeout).saturating_sub(age),
    }
}
