//! Which worker owns a flow: a pure function of its addresses, the same on every worker and for
//! both directions (DESIGN decision 1). Part of a snapshot; runs on workers.
//!
//! The key of the Toeplitz hash repeats one 16-bit pattern, so the hash of any input is a function
//! of the exclusive or of its 16-bit words: neither the order of the fields nor their position
//! matters, and both directions of a flow hash alike. A one-way flow is owned by its 4-tuple. A
//! two-way flow (NAT, FullNAT) is owned by one end alone, which both directions carry unchanged:
//! the client's under NAT, and under FullNAT the client's toward us and the local one in replies,
//! whose port was chosen so that both give the same worker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use super::addresses::AddressMap;
use super::flow::{Address, FlowKey, Seed, endpoint_hash, protocol};
use super::parse::{Extensions, Parsed, read_u16, walk_extensions};
use super::route::Prefix;
use super::snapshot::FastSet;

/// The pattern that the RSS key repeats.
pub const PATTERN: u16 = 0x6d5a;

/// Undoes a multiplication by [`PATTERN`]: in this ring the 16th power of any number of odd
/// weight is one.
const INVERSE: u16 = {
    let mut power = 1;
    let mut n = 0;
    while n < 15 {
        power = product(power, PATTERN);
        n += 1;
    }
    power
};

/// The carry-less product modulo x^16 + 1.
#[inline(always)]
const fn product(a: u16, b: u16) -> u16 {
    let mut result = 0;
    let mut at = 0;
    while at < 16 {
        if b >> at & 1 == 1 {
            result ^= a.rotate_left(at);
        }
        at += 1;
    }
    result
}

/// The 16 bits that the Toeplitz hash of an input consists of, twice over. `words` is the
/// exclusive or of the input's 16-bit words as they stand in a packet, big-endian: what turns them
/// round on the way here and back the compiler takes out.
#[inline(always)]
fn toeplitz(words: u16) -> u16 {
    let [high, low] = words.to_ne_bytes();
    OF_BYTES[0][usize::from(high)] ^ OF_BYTES[1][usize::from(low)]
}

/// The hash is linear: a word's is the exclusive or of those of its bytes, high and low.
static OF_BYTES: [[u16; 256]; 2] = {
    let mut hashes = [[0; 256]; 2];
    let mut byte = 0u16;
    while byte < 256 {
        // Input bit i (from the top) contributes the pattern rotated left by i.
        hashes[0][byte as usize] = product((byte << 8).reverse_bits(), PATTERN);
        hashes[1][byte as usize] = product(byte.reverse_bits(), PATTERN);
        byte += 1;
    }
    hashes
};

/// The low byte of [`toeplitz`], whose tables take half as many cache lines.
#[inline(always)]
fn toeplitz_low(words: u16) -> u8 {
    let [high, low] = words.to_ne_bytes();
    LOW_OF_BYTES.0[0][usize::from(high)] ^ LOW_OF_BYTES.0[1][usize::from(low)]
}

/// Eight cache lines, not nine.
#[repr(align(64))]
struct LowOfBytes([[u8; 256]; 2]);

static LOW_OF_BYTES: LowOfBytes = {
    let mut low = [[0; 256]; 2];
    let mut at = 0;
    while at < 512 {
        low[at / 256][at % 256] = OF_BYTES[at / 256][at % 256] as u8;
        at += 1;
    }
    LowOfBytes(low)
};

/// The hash of one end of a flow.
#[inline(always)]
pub fn end_hash<A: Address>(local: A, port: u16) -> u16 {
    toeplitz(words(local) ^ port.to_be())
}

/// The port of `local` with this hash: the hash is one to one in the port.
pub fn local_port<A: Address>(local: A, hash: u16) -> u16 {
    product(hash, INVERSE).reverse_bits() ^ u16::from_be(words(local))
}

/// The exclusive or of an address's 16-bit words, as they stand in a packet.
#[inline(always)]
fn words<A: Address>(address: A) -> u16 {
    fold(wide_words(address))
}

/// That of its 32-bit words, likewise.
#[inline(always)]
fn wide_words<A: Address>(address: A) -> u32 {
    let (high, low) = address.words();
    let folded = high ^ low;
    ((folded ^ folded >> 32) as u32).to_be()
}

#[inline(always)]
fn fold(wide: u32) -> u16 {
    (wide ^ wide >> 16) as u16
}

/// How flows are dealt to workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ownership {
    /// Entries of the smallest redirection table (RETA) among the ports, a power of two (any other
    /// number is taken for the next lower one). Entry i of every port's table names queue
    /// `i % reta % workers`.
    pub reta: u16,
    pub workers: u8,
    /// Each worker computes the owner of every packet that comes in on a port, but where the port's
    /// queues are proven to tell it ([`super::queues`]).
    pub compute: bool,
}

/// An [`Ownership`] ready for many packets.
#[derive(Clone, Copy)]
pub struct Deal {
    /// The hash's bits that count.
    mask: u16,
    /// The number of workers, where it is no power of two and has to be divided by.
    divisor: Option<NonZeroU16>,
}

impl Deal {
    /// The worker for a Toeplitz hash.
    #[inline(always)]
    pub fn worker(self, hash: u16) -> u8 {
        let entry = hash & self.mask;
        match self.divisor {
            None => entry as u8,
            Some(workers) => (entry % workers) as u8,
        }
    }

    /// The owner of the flow of a TCP or UDP packet of this side.
    #[inline(always)]
    pub fn owner<A: Address>(self, side: Side, key: &FlowKey<A>) -> u8 {
        match self.is_masked() {
            true => self.masked_owner(side, key),
            false => self.worker(side.hash(key)),
        }
    }

    /// Nothing has to be divided by.
    #[inline(always)]
    pub fn is_masked(self) -> bool {
        self.divisor.is_none()
    }

    /// As [`Deal::owner`], where [`Deal::is_masked`]: there are at most 128 workers then.
    #[inline(always)]
    pub fn masked_owner<A: Address>(self, side: Side, key: &FlowKey<A>) -> u8 {
        debug_assert!(self.is_masked());
        toeplitz_low(side.words(key)) & self.mask as u8
    }
}

impl Default for Ownership {
    /// One worker owns everything.
    fn default() -> Self {
        Self {
            reta: 1,
            workers: 1,
            compute: false,
        }
    }
}

impl Ownership {
    /// The worker for a Toeplitz hash.
    #[inline(always)]
    pub fn worker(self, hash: u16) -> u8 {
        self.deal().worker(hash)
    }

    /// What does not depend on the packet, worked out once for many.
    #[inline(always)]
    pub fn deal(self) -> Deal {
        let (entries, workers) = (self.reta() - 1, u16::from(self.workers.max(1)));
        match workers.is_power_of_two() {
            true => Deal {
                mask: entries & (workers - 1),
                divisor: None,
            },
            false => Deal {
                mask: entries,
                divisor: NonZeroU16::new(workers),
            },
        }
    }

    /// The RETA's size, made sure of.
    #[inline(always)]
    pub fn reta(self) -> u16 {
        1 << self.reta.max(1).ilog2()
    }

    /// The owner of a flow of which only the client's packets pass here.
    #[inline(always)]
    pub fn one_way<A: Address>(self, key: &FlowKey<A>) -> u8 {
        Side::OneWay.owner(self, key)
    }

    /// The owner of a flow both of whose directions carry this endpoint: the client's, or
    /// FullNAT's local one.
    #[inline(always)]
    pub fn two_way<A: Address>(self, address: A, port: u16) -> u8 {
        self.worker(end_hash(address, port))
    }

    /// The worker that keeps a datagram's fragments together. Seeded, so that nobody can aim all
    /// fragments at one worker.
    pub fn fragments<A: Address>(
        self,
        seed: &Seed,
        source: A,
        destination: A,
        id: u32,
        protocol: u8,
    ) -> u8 {
        let one = endpoint_hash(seed, protocol, source, id as u16);
        let two = endpoint_hash(seed, protocol, destination, (id >> 16) as u16);
        let mixed = (one ^ two.rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 32) % u64::from(self.workers.max(1))) as u8
    }
}

/// What a packet is to the balancer, by its addresses alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// From a client to an address all of whose services are one-way.
    OneWay,
    /// From a client to an address that has a two-way service.
    TwoWay,
    /// To a client, from a NAT backend.
    Reply,
    /// From a FullNAT backend to the local address of this index.
    LocalReply(u16),
}

impl Side {
    /// The hash that the owner of a TCP or UDP packet's flow is told from.
    #[inline(always)]
    pub fn hash<A: Address>(self, key: &FlowKey<A>) -> u16 {
        toeplitz(self.words(key))
    }

    /// The exclusive or of the words that the owner is told from.
    #[inline(always)]
    fn words<A: Address>(self, key: &FlowKey<A>) -> u16 {
        let source = || (wide_words(key.source), key.source_port);
        let destination = || (wide_words(key.destination), key.destination_port);
        let (address, port) = match self {
            Side::OneWay => {
                let (one, other) = (source(), destination());
                (one.0 ^ other.0, one.1 ^ other.1)
            }
            Side::TwoWay => source(),
            Side::Reply | Side::LocalReply(_) => destination(),
        };
        fold(address) ^ port.to_be()
    }

    /// The owner of the flow of a TCP or UDP packet of this side.
    #[inline(always)]
    pub fn owner<A: Address>(self, ownership: Ownership, key: &FlowKey<A>) -> u8 {
        ownership.deal().owner(self, key)
    }
}

/// Who is who among the addresses: what [`Side`] is read from. An address with any two-way service
/// is two-way for all its packets, whatever their port, since fragments and NICs see no ports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sides {
    addresses: AddressMap<Side>,
    /// Prefix services: longest first.
    prefixes: Vec<(Prefix, Side)>,
    /// Backends of NAT services, needed only to tell their replies from packets to a prefix.
    backends: FastSet<IpAddr>,
}

impl Sides {
    /// `listens`: every service's prefixes (a VIP is a whole-length one), and whether the service
    /// is two-way. `locals`: FullNAT's local addresses in the order of their indexes. `backends`:
    /// those of NAT services.
    pub fn new(
        listens: impl IntoIterator<Item = (Prefix, bool)>,
        locals: impl IntoIterator<Item = (u16, IpAddr)>,
        backends: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut sides = Self {
            backends: backends.into_iter().collect(),
            ..Self::default()
        };
        for (prefix, two_way) in listens {
            let side = if two_way { Side::TwoWay } else { Side::OneWay };
            if prefix.length == full_length(prefix.address) {
                if two_way || sides.addresses.get(prefix.address).is_none() {
                    sides.addresses.insert(prefix.address, side);
                }
                continue;
            }
            match sides.prefixes.iter_mut().find(|(p, _)| *p == prefix) {
                Some((_, known)) if two_way => *known = side,
                Some(_) => {}
                None => sides.prefixes.push((prefix, side)),
            }
        }
        sides
            .prefixes
            .sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.length));
        for (index, address) in locals {
            sides.addresses.insert(address, Side::LocalReply(index));
        }
        sides
    }

    #[inline(always)]
    pub fn side<A: Address>(&self, source: A, destination: A) -> Side {
        match self.addresses.get(destination.into()) {
            Some(&side) => side,
            None if self.prefixes.is_empty() => Side::Reply,
            None => self.by_prefix(source.into(), destination.into()),
        }
    }

    #[cold]
    fn by_prefix(&self, source: IpAddr, destination: IpAddr) -> Side {
        if self.backends.contains(&source) {
            return Side::Reply;
        }
        let found = self.prefixes.iter().find(|(p, _)| p.contains(destination));
        found.map_or(Side::OneWay, |&(_, side)| side)
    }

    /// The owner of a TCP or UDP packet's flow.
    pub fn owner<A: Address>(&self, ownership: Ownership, key: &FlowKey<A>) -> u8 {
        self.side(key.source, key.destination).owner(ownership, key)
    }

    /// The owner of the flow that an ICMP error speaks of; `None` where the quotation does not
    /// name one (not an error, cut short, a later fragment, another protocol).
    ///
    /// `parsed` must be what the parser made of `frame`. NICs hash such a message by its own
    /// addresses, so this is computed under RSS too.
    #[cold]
    pub fn owner_of_error(
        &self,
        ownership: Ownership,
        parsed: &Parsed,
        frame: &[u8],
    ) -> Option<u8> {
        let (is_v4, l3, l4, length) = match *parsed {
            Parsed::IcmpV4 { l3, l4, length } => (true, l3, l4, length),
            Parsed::IcmpV6 { l3, l4, length } => (false, l3, l4, length),
            _ => return None,
        };
        let message = frame.get(usize::from(l4)..usize::from(l3) + usize::from(length))?;
        let is_error = match (is_v4, *message.first()?) {
            // RFC 792: unreachable, source quench, redirect, time exceeded, parameter problem.
            (true, kind) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            // RFC 4443 2.1: errors have the top bit clear.
            (false, kind) => kind < 128,
        };
        if !is_error {
            return None;
        }
        match quoted(message.get(8..)?, is_v4)? {
            Quoted::V4(key) => Some(self.owner_of_quoted(ownership, key)),
            Quoted::V6(key) => Some(self.owner_of_quoted(ownership, key)),
        }
    }

    /// The quoted packet left here, so seen from here its flow's packets come the other way.
    fn owner_of_quoted<A: Address>(&self, ownership: Ownership, key: FlowKey<A>) -> u8 {
        // Under direct routing and in tunnels it is the client's own packet that was quoted.
        match self.addresses.get(key.destination.into()) {
            Some(Side::OneWay) => ownership.one_way(&key),
            _ => self.owner(ownership, &key.reversed()),
        }
    }
}

fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

enum Quoted {
    V4(FlowKey<Ipv4Addr>),
    V6(FlowKey<Ipv6Addr>),
}

/// The innermost TCP or UDP flow named by the start of a packet, of which only the IP header and
/// 8 bytes need be there. A tunnel header is looked through, once.
fn quoted(ip: &[u8], is_v4: bool) -> Option<Quoted> {
    let (inner, at) = headers(ip, is_v4)?;
    match inner {
        protocol::IPIP => flow(ip.get(at..)?, true),
        protocol::IPV6 => flow(ip.get(at..)?, false),
        _ => flow(ip, is_v4),
    }
}

/// The protocol behind the IP header and where it starts.
pub(super) fn headers(ip: &[u8], is_v4: bool) -> Option<(u8, usize)> {
    if is_v4 {
        let header = ip.first_chunk::<20>()?;
        let later = read_u16(header, 6) & 0x1fff != 0;
        let length = usize::from(header[0] & 0x0f) * 4;
        return (header[0] >> 4 == 4 && length >= 20 && !later).then_some((header[9], length));
    }
    let header = ip.first_chunk::<40>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    match walk_extensions(ip, header[6]) {
        Extensions::Upper { protocol, at } => Some((protocol, at)),
        Extensions::Fragment { at } => {
            let fragment = ip.get(at..)?.first_chunk::<8>()?;
            (read_u16(fragment, 2) & 0xfff8 == 0).then_some((fragment[0], at + 8))
        }
        Extensions::Malformed => None,
    }
}

fn flow(ip: &[u8], is_v4: bool) -> Option<Quoted> {
    let (protocol, at) = headers(ip, is_v4)?;
    if !matches!(protocol, protocol::TCP | protocol::UDP) {
        return None;
    }
    let ports = ip.get(at..)?.first_chunk::<4>()?;
    let (source_port, destination_port) = (read_u16(ports, 0), read_u16(ports, 2));
    if is_v4 {
        let address = |at: usize| ip[at..].first_chunk::<4>().map(|a| Ipv4Addr::from(*a));
        return Some(Quoted::V4(FlowKey {
            source: address(12)?,
            destination: address(16)?,
            source_port,
            destination_port,
            protocol,
        }));
    }
    let address = |at: usize| ip[at..].first_chunk::<16>().map(|a| Ipv6Addr::from(*a));
    Some(Quoted::V6(FlowKey {
        source: address(8)?,
        destination: address(24)?,
        source_port,
        destination_port,
        protocol,
    }))
}

#[cfg(test)]
pub(super) mod tests;
