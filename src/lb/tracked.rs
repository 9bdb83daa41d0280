//! What the shard's generic code needs to know of a family: which connection table is its own, and
//! what its plain packets are. Pure; used on workers.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::flow::Address;
use super::looks::Kind;
use super::parse::Packet;
use super::table::{ConnTable, Slot};

/// The connection tables of both families.
pub struct Tables {
    pub v4: ConnTable<Ipv4Addr>,
    pub v6: ConnTable<Ipv6Addr>,
}

impl Tables {
    /// Asks for a packet's entry, whose slot is known.
    #[inline(always)]
    pub(super) fn prefetch(&self, kind: Kind, slot: Slot) {
        match kind {
            Kind::V4 | Kind::ReplyV4 | Kind::OddV4 => self.v4.prefetch_slot(slot),
            Kind::V6 | Kind::ReplyV6 | Kind::OddV6 => self.v6.prefetch_slot(slot),
            Kind::Elsewhere | Kind::Unusual => {}
        }
    }
}

/// The table that holds a family's connections.
pub trait Tracked: Address {
    /// What plain packets of the family are.
    const REQUEST: Kind;
    const REPLY: Kind;
    /// The plain packet that a frame claims to hold, which may be too short for it; `None` says nothing.
    fn claimed(frame: &[u8], checksum_verified: bool) -> Option<Packet<Self>>;
    fn table(tables: &Tables) -> &ConnTable<Self>;
    fn table_mut(tables: &mut Tables) -> &mut ConnTable<Self>;
}

impl Tracked for Ipv4Addr {
    const REQUEST: Kind = Kind::V4;
    const REPLY: Kind = Kind::ReplyV4;

    #[inline(always)]
    fn claimed(frame: &[u8], checksum_verified: bool) -> Option<Packet<Self>> {
        Packet::claimed_v4(frame, checksum_verified)
    }
    #[inline(always)]
    fn table(tables: &Tables) -> &ConnTable<Self> {
        &tables.v4
    }
    #[inline(always)]
    fn table_mut(tables: &mut Tables) -> &mut ConnTable<Self> {
        &mut tables.v4
    }
}

impl Tracked for Ipv6Addr {
    const REQUEST: Kind = Kind::V6;
    const REPLY: Kind = Kind::ReplyV6;

    #[inline(always)]
    fn claimed(frame: &[u8], _: bool) -> Option<Packet<Self>> {
        Packet::claimed_v6(frame)
    }
    #[inline(always)]
    fn table(tables: &Tables) -> &ConnTable<Self> {
        &tables.v6
    }
    #[inline(always)]
    fn table_mut(tables: &mut Tables) -> &mut ConnTable<Self> {
        &mut tables.v6
    }
}
