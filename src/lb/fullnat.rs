//! FullNAT: both ends of a client's packets are rewritten, and a reply finds its connection by the
//! local address and port that it comes to, without a hash table; the whole connection is compared,
//! so a forged packet finds nothing. Which local ports are free is [`ports`]' business.

mod port_sets;
pub mod ports;

use super::conn::{Conn, flag};
use super::counters::DropReason;
use super::flow::{Address, FlowKey};
use super::forward::backend_port;
use super::forward::nat::Endpoint;
use super::owner::Ownership;
use super::parse::Packet;
use super::shard::Shard;
use super::snapshot::{Backend, Service, Snapshot};
use super::table::Slot;
use super::tracked::Tracked;
use super::{Now, Pass, Verdict};

pub use ports::{FIRST_PORT, HOLD, Lease, LocalPorts, group_count};

/// What becomes of the source of a FullNAT connection's packets; `None` for other connections.
#[inline(always)]
pub(super) fn local_end<A: Address>(snapshot: &Snapshot, conn: &Conn<A>) -> Option<Endpoint<A>> {
    if !conn.has(flag::FULL_NAT) {
        return None;
    }
    let address = snapshot.locals.get(usize::from(conn.local_address))?;
    Some(Endpoint {
        address: A::from_ip(*address)?,
        port: conn.local_port,
    })
}

/// Whether a packet is a FullNAT backend's answer in this connection.
#[inline(always)]
pub(super) fn is_local_reply<A: Address>(
    snapshot: &Snapshot,
    conn: &Conn<A>,
    key: &FlowKey<A>,
) -> bool {
    conn.has(flag::FULL_NAT)
        && conn.local_port == key.destination_port
        && conn.protocol == key.protocol
        && snapshot
            .locals
            .get(usize::from(conn.local_address))
            .is_some_and(|local| *local == key.destination.into())
        && snapshot.backend(conn.backend).is_some_and(|backend| {
            backend.address == key.source.into()
                && key.source_port == backend_port(backend, conn.vip_port)
        })
}

impl Shard {
    /// Gives the shard its local ports: `addresses` is one more than the highest index in
    /// [`Snapshot::locals`], now and later; `groups` is how many groups backends form, each of
    /// which can use every port anew. Takes 4.5 bytes for each of their products with this worker's
    /// share of 65,536 ports.
    pub fn with_local_ports(
        mut self,
        addresses: usize,
        groups: usize,
        ownership: Ownership,
    ) -> std::io::Result<Self> {
        self.local_ports = LocalPorts::new(addresses, groups, ownership, self.worker)?;
        self.counters
            .local_ports_all
            .set(self.local_ports.usage().1);
        Ok(self)
    }

    /// The cell of a reply to the local address of this index; beyond all where there is none.
    #[inline(always)]
    pub(super) fn local_cell<A: Address>(&self, address: u16, key: &FlowKey<A>) -> u64 {
        let group = self
            .local_ports
            .group(key.protocol, key.source, key.source_port);
        let (local, port) = (key.destination, key.destination_port);
        let cell = self.local_ports.cell(address, group, local, port);
        cell.map_or(u64::MAX, |cell| cell as u64)
    }

    /// The connection that a FullNAT backend's packet belongs to.
    pub(super) fn local_reply<A: Tracked>(
        &self,
        snapshot: &Snapshot,
        cell: u64,
        key: &FlowKey<A>,
    ) -> Option<Slot> {
        let slot = self.local_ports.slot(cell as usize)?;
        let conn = A::table(&self.tables).try_get(slot)?;
        is_local_reply(snapshot, conn, key).then_some(slot)
    }

    /// A packet to a local address that belongs to no connection: a probe's answer, which
    /// management waits for, or nothing.
    #[cold]
    pub(super) fn unknown_reply<A: Address>(&self, packet: &Packet<A>) -> Verdict {
        if packet.key.destination_port < FIRST_PORT {
            return Verdict::Pass(Pass::Check);
        }
        Verdict::Drop(DropReason::Untracked)
    }

    /// A local port for a new connection to `backend`: at one of the service's local addresses, in
    /// turn from one that depends on the client.
    pub(super) fn lease<A: Tracked>(
        &mut self,
        snapshot: &Snapshot,
        service: &Service,
        backend: &Backend,
        packet: &Packet<A>,
        hash: u64,
        now: Now,
    ) -> Result<Lease, DropReason> {
        let address = A::from_ip(backend.address).ok_or(DropReason::PoolExhausted)?;
        let port = backend_port(backend, packet.key.destination_port);
        let group = self.local_ports.group(packet.key.protocol, address, port);
        let candidates = || candidates::<A>(snapshot, service, hash);
        for (index, local) in candidates() {
            if let Some(lease) = self.local_ports.take(index, group, local, now.second) {
                return Ok(lease);
            }
        }
        // Before a connection is refused, one that is over or embryonic gives way, or a hold ends
        // early.
        for (index, local) in candidates() {
            let yields = self.local_ports.yields(index, group);
            let young = yields.is_some_and(|slot| {
                let conn = A::table(&self.tables).get(slot);
                conn.has(flag::EMBRYONIC)
            });
            if let Some(slot) = yields {
                self.forget::<A>(slot, now);
            }
            let lease = match self.local_ports.take(index, group, local, now.second) {
                Some(lease) => Some(lease),
                None => self.local_ports.take_held(index, group, local, now.second),
            };
            if let Some(lease) = lease {
                match young {
                    true => self.counters.evicted.add(1),
                    false => self.counters.holds_cut_short.add(1),
                }
                return Ok(lease);
            }
        }
        Err(DropReason::PoolExhausted)
    }
}

/// The service's local addresses of this family, with their indexes, from one that `hash` picks.
fn candidates<'s, A: Address>(
    snapshot: &'s Snapshot,
    service: &'s Service,
    hash: u64,
) -> impl Iterator<Item = (u16, A)> + 's {
    let count = service.locals.len();
    let start = (hash >> 32) as usize % count.max(1);
    (0..count).filter_map(move |n| {
        let index = service.locals[(start + n) % count];
        let address = snapshot.locals.get(usize::from(index))?;
        Some((index, A::from_ip(*address)?))
    })
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod flows;
