//! What the receive queues of a port say about the owners of the flows on them, and what packets
//! said about that.
//!
//! A NIC that hashes as [`super::owner`] does puts every packet into its owner's queue, and nothing
//! need be computed. Whether it does is found out from packets: while a port is on trial, workers
//! compute every owner, and note whether it is the one whose queue the packet came by. What is proven
//! is still checked, now and then. Runs on workers; management draws the conclusions (`mgmt::rss`).

use super::burst::Burst;
use super::counters::Counter;
use super::flow::{Address, FlowKey, protocol};
use super::looks::Kind;
use super::owner::{Ownership, Side};
use super::parse::Packet;
use super::shard::Shard;

/// What the hash is taken of that chooses a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// Both ends: what one-way flows go by.
    Both,
    /// Address and port of the source: requests of two-way flows.
    Source,
    /// Those of the destination: replies of two-way flows.
    Destination,
}

impl By {
    /// What packets of this side have to be hashed by.
    pub fn of(side: Side) -> Self {
        match side {
            Side::OneWay => By::Both,
            Side::TwoWay => By::Source,
            Side::Reply | Side::LocalReply(_) => By::Destination,
        }
    }
}

/// Kinds of packets that a NIC may treat each in its own way: TCP and UDP of both families.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Classes(u8);

impl Classes {
    pub const COUNT: usize = 4;
    pub const NONE: Classes = Classes(0);
    pub const ALL: Classes = Classes(0b1111);
    const NAMES: [&str; Self::COUNT] = ["IPv4 TCP", "IPv4 UDP", "IPv6 TCP", "IPv6 UDP"];

    #[inline(always)]
    fn index<A: Address>(number: u8) -> usize {
        usize::from(A::HEADER == 40) * 2 + usize::from(number == protocol::UDP)
    }

    #[inline(always)]
    fn has(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }

    /// These and the one of this index.
    pub fn with(self, index: usize) -> Self {
        Self(self.0 | 1 << index)
    }

    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let named = Self::NAMES.into_iter().enumerate();
        named.filter_map(move |(index, name)| self.has(index).then_some(name))
    }
}

/// How a port's queues are chosen, as far as that is known. What is not proven is on trial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queues {
    pub by: By,
    pub proven: Classes,
}

/// What packets said about the queues of a port, on one worker.
#[derive(Debug, Default)]
pub struct Evidence {
    /// By class: a bit for each of the first 128 entries of the redirection table whose packets
    /// came by their owner's queue.
    agreed: [[Counter; 2]; Classes::COUNT],
    /// Packets that came by another's.
    pub disagreed: Counter,
}

impl Evidence {
    /// Takes down a packet of the class of this index and the table's entry.
    pub fn note(&self, class: usize, entry: u16, agrees: bool) {
        if !agrees {
            return self.disagreed.add(1);
        }
        let word = &self.agreed[class][usize::from(entry / 64 % 2)];
        word.set(word.get() | 1 << (entry % 64));
    }

    /// Of a class.
    pub fn agreed(&self, class: usize) -> u128 {
        let [low, high] = &self.agreed[class];
        u128::from(low.get()) | u128::from(high.get()) << 64
    }

    /// The port was reset: what is known of it is worth nothing.
    pub fn forget(&self) {
        self.agreed
            .as_flattened()
            .iter()
            .for_each(|word| word.set(0));
        self.disagreed.set(0);
    }
}

impl Queues {
    /// Everything that is plain and of this side comes by its owner's queue.
    pub(super) fn is_proven_for(self, side: Side) -> bool {
        self.by == By::of(side) && self.proven == Classes::ALL
    }
}

impl Shard {
    /// The owner of a packet that came in on a port, where it is another worker.
    #[inline(always)]
    pub(super) fn other_owner<A: Address>(
        &self,
        burst: &Burst,
        side: Side,
        key: &FlowKey<A>,
        kind: Kind,
    ) -> Option<u8> {
        let is_plain = matches!(kind, Kind::V4 | Kind::V6);
        let queues = burst.queues.filter(|q| is_plain && q.by == By::of(side));
        let class = Classes::index::<A>(key.protocol);
        if queues.is_some_and(|queues| queues.proven.has(class)) {
            return None;
        }
        let owner = burst.deal.owner(side, key);
        if queues.is_some() {
            self.note(burst, class, side.hash(key), burst.snapshot.ownership);
        }
        (owner != self.worker).then_some(owner)
    }

    #[cold]
    fn note(&self, burst: &Burst, class: usize, hash: u16, ownership: Ownership) {
        let evidence = burst.port.and_then(|port| self.counters.queues.get(port));
        if let Some(evidence) = evidence {
            let entry = hash & (ownership.reta() - 1);
            evidence.note(class, entry, ownership.worker(hash) == self.worker);
        }
    }

    /// Whether it is time to look at a packet whose owner is not computed.
    #[inline(always)]
    pub(super) fn is_audit_due(&mut self) -> bool {
        self.bursts = self.bursts.wrapping_add(1);
        self.bursts.is_multiple_of(64)
    }

    /// Computes the owner of a packet that came by a proven queue.
    #[cold]
    #[inline(never)]
    pub(super) fn audit<A: Address>(&self, burst: &Burst, frame: &[u8], length: u16) {
        let plain = Packet::<A>::plain(frame, length);
        let (Some(packet), Some(queues)) = (plain, burst.queues) else {
            return;
        };
        let key = &packet.key;
        let side = burst.snapshot.side(key);
        let class = Classes::index::<A>(key.protocol);
        if queues.by == By::of(side) && queues.proven.has(class) {
            self.note(burst, class, side.hash(key), burst.snapshot.ownership);
        }
    }
}

#[cfg(test)]
mod tests;
