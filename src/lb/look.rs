//! The first two passes over a burst: whom each frame is for, whether it is a plain packet, who
//! owns its flow and where the flow's entry should be; with the cache asked for what the next pass
//! needs. Pure; runs on workers for every packet.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use crate::arch::{Hot, Tags};

use super::Arrival;
use super::burst::Burst;
use super::conn::settling;
use super::flow::{Address, FlowKey, endpoint_hash};
use super::frame::{Frame, Note};
use super::looks::{Kind, Look, Looks, Meets};
use super::owner::Side;
use super::parse::{ETHERNET, Packet, Parsed};
use super::shard::Shard;
use super::table::{ConnTable, Slot};
use super::tracked::Tracked;

/// What a packet is to meet, and the hash that says where.
struct Aimed {
    hash: u64,
    meets: Meets,
    /// The worker that owns the flow, where it is another one.
    elsewhere: Option<u8>,
}

impl Aimed {
    /// The look at a packet and its hash. One that is for another worker has a note that says so: what
    /// was found out about it is told, where the packet is plain.
    #[inline(always)]
    fn look<A: Tracked, F: Frame>(
        &self,
        burst: &Burst,
        kind: Kind,
        packet: &Packet<A>,
        frame: &mut F,
        others: &mut usize,
    ) -> (Look, u64) {
        let is_plain = kind == A::REQUEST;
        let kind = match self.meets {
            Meets::Reply | Meets::LocalReply if is_plain => A::REPLY,
            _ => kind,
        };
        let settling = settling(packet.key.protocol, packet.tcp_flags);
        let look = Look::new(kind, self.meets, packet.length, settling);
        let Some(owner) = self.elsewhere else {
            return (look, self.hash);
        };
        let told = look.told(burst.snapshot.generation);
        let note = match told.filter(|_| is_plain && self.meets != Meets::LocalReply) {
            Some(look) => Note::Sight {
                look,
                hash: self.hash,
            },
            None => Note::NONE,
        };
        frame.set_note(note);
        *others += 1;
        (Look::ELSEWHERE, u64::from(owner))
    }
}

/// What the packets of a burst can be, and so how it is found out which entry each one has. Types, so
/// that each has a loop of its own and no packet costs a call.
trait How {
    /// Some may belong to other workers.
    const SHARED: bool;

    fn aim<A: Tracked>(shard: &Shard, burst: &Burst, key: &FlowKey<A>) -> Aimed;
}

/// Requests that belong to this worker.
struct Requests;

/// Requests, some of which may belong to other workers. `MASKED`: it is known that nothing has to be
/// divided by.
struct Owned<const MASKED: bool>;

/// Requests and replies that belong to this worker.
struct Sided;

impl How for Requests {
    const SHARED: bool = false;

    #[inline(always)]
    fn aim<A: Tracked>(shard: &Shard, burst: &Burst, key: &FlowKey<A>) -> Aimed {
        shard.aim_request(burst, key)
    }
}

impl<const MASKED: bool> How for Owned<MASKED> {
    const SHARED: bool = true;

    #[inline(always)]
    fn aim<A: Tracked>(shard: &Shard, burst: &Burst, key: &FlowKey<A>) -> Aimed {
        shard.aim_owned::<A, MASKED>(burst, key)
    }
}

impl How for Sided {
    const SHARED: bool = false;

    #[inline(always)]
    fn aim<A: Tracked>(shard: &Shard, burst: &Burst, key: &FlowKey<A>) -> Aimed {
        shard.aim_at(burst.snapshot.side(key), key)
    }
}

struct SecondPass<'a> {
    shard: &'a Shard,
    looks: &'a mut Looks,
    burst: Range<usize>,
}

impl Hot for SecondPass<'_> {
    type Output = ();

    #[inline(always)]
    fn run<T: Tags>(self) {
        let Self {
            shard,
            looks,
            mut burst,
        } = self;
        while !burst.is_empty() {
            let first = looks.of[burst.start];
            burst.start += match (first.kind(), first.meets()) {
                (Kind::V4 | Kind::ReplyV4 | Kind::OddV4, Meets::Request | Meets::Reply) => {
                    looks.reach::<T, _>(&shard.tables.v4, first, burst.clone())
                }
                (Kind::V6 | Kind::ReplyV6 | Kind::OddV6, Meets::Request | Meets::Reply) => {
                    looks.reach::<T, _>(&shard.tables.v6, first, burst.clone())
                }
                (_, Meets::LocalReply) => {
                    shard.reach_local(looks, burst.start);
                    1
                }
                _ => {
                    let rest = looks.of[burst.clone()].iter();
                    rest.take_while(|look| look.is_like(first)).count()
                }
            };
        }
    }
}

impl Looks {
    /// Asks for the entries of packets of one sort, the first one's, up to the first of another. Returns
    /// how many.
    #[inline(always)]
    fn reach<T: Tags, A: Tracked>(
        &mut self,
        table: &ConnTable<A>,
        first: Look,
        burst: Range<usize>,
    ) -> usize {
        let places = table.places();
        let looking = self.of[burst.clone()]
            .iter()
            .zip(&self.hashes[burst.clone()]);
        let mut done = 0;
        for (slot, (look, &hash)) in self.slots[burst].iter_mut().zip(looking) {
            if !look.is_like(first) {
                break;
            }
            let begin = *slot;
            if !places.prefetch_entry::<T>(slot, hash) {
                *slot = table.prefetch_other(begin, hash);
            }
            done += 1;
        }
        done
    }
}

impl Shard {
    /// First and second pass. Of a table that no core's cache holds, lines come from afar, and there are
    /// only so many under way at once: so the second pass follows the first at a distance, and its
    /// requests are spread over the time that both take.
    #[inline(always)]
    pub(super) fn look_at_all<F: Frame>(&self, burst: &Burst, frames: &mut [F], looks: &mut Looks) {
        /// Buckets that a core's own cache holds: about a megabyte.
        const NEAR: usize = 1024;
        const DISTANCE: usize = 16;
        looks.clear();
        looks.near = self.buckets() <= NEAR;
        if looks.near {
            self.first_pass(burst, frames, looks);
            return self.second_pass(looks, 0..looks.count);
        }
        let (mut begin, mut end) = (0, 0);
        for frames in frames.chunks_mut(DISTANCE) {
            self.first_pass(burst, frames, looks);
            self.second_pass(looks, begin..end);
            (begin, end) = (end, looks.count);
        }
        self.second_pass(looks, begin..end);
    }

    /// First pass: what each frame is, and a request for its bucket.
    #[inline(always)]
    fn first_pass<F: Frame>(&self, burst: &Burst, mut frames: &mut [F], looks: &mut Looks) {
        while !frames.is_empty() {
            let heard = match burst.arrival {
                Arrival::HandOff => self.hear(burst, frames, looks),
                Arrival::Port(_) => 0,
            };
            let done = if heard > 0 {
                heard
            } else if burst.requests_alone {
                self.aim_both::<Requests, _>(burst, frames, looks)
            } else if burst.one_way_alone && burst.deal.is_masked() {
                self.aim_both::<Owned<true>, _>(burst, frames, looks)
            } else if burst.one_way_alone {
                self.aim_both::<Owned<false>, _>(burst, frames, looks)
            } else if burst.port.is_none() {
                self.aim_both::<Sided, _>(burst, frames, looks)
            } else {
                0
            };
            frames = &mut frames[done..];
            if heard > 0 {
                continue;
            }
            if let Some((frame, rest)) = std::mem::take(&mut frames).split_first_mut() {
                self.look(burst, frame, looks);
                frames = rest;
            }
        }
    }

    /// Plain packets that other workers have looked at, of whichever family comes first, up to the first
    /// that is anything else. Returns how many. The packets themselves are not touched: they may still be
    /// on their way from another core.
    #[inline(never)]
    fn hear<F: Frame>(&self, burst: &Burst, frames: &[F], looks: &mut Looks) -> usize {
        /// Notes have been asked for all at once, of which a CPU seems to forget some.
        const AHEAD: usize = 16;
        let first = frames.first().map(F::note);
        let Some(Note::Sight { look: first, .. }) = first else {
            return 0;
        };
        let Some(first) = Look::heard(first, burst.snapshot.generation) else {
            return 0;
        };
        let (mut done, at) = (0, looks.count);
        let hashes = &mut looks.hashes[at..];
        let looking = looks.of[at..].iter_mut().zip(&mut *hashes);
        for (n, (frame, place)) in frames.iter().zip(looking).enumerate() {
            if let Some(ahead) = frames.get(n + AHEAD) {
                ahead.prefetch_note();
            }
            frame.prefetch_bytes();
            let Note::Sight { look, hash } = frame.note() else {
                break;
            };
            let Some(look) = first.heard_with(look) else {
                break;
            };
            (*place.0, *place.1) = (look, hash);
            done += 1;
        }
        looks.count += done;
        let (hashes, slots) = (&hashes[..done], &mut looks.slots[at..at + done]);
        match first.is_v4() {
            true => self.tables.v4.prefetch_buckets(self.cpu, hashes, slots),
            false => self.tables.v6.prefetch_buckets(self.cpu, hashes, slots),
        }
        done
    }

    /// Where no packet needs a closer look than `H` takes: plain packets of IPv4
    /// from the first frame on, and of IPv6 behind them. Returns how many.
    #[inline(always)]
    fn aim_both<H: How, F: Frame>(
        &self,
        burst: &Burst,
        frames: &mut [F],
        looks: &mut Looks,
    ) -> usize {
        // A port's NIC verifies checksums or it does not.
        let done = match frames.first().is_some_and(F::ip_checksum_verified) {
            true => self.aim_run::<H, Ipv4Addr, F, true>(burst, frames, looks),
            false => self.aim_run::<H, Ipv4Addr, F, false>(burst, frames, looks),
        };
        let frames = &mut frames[done..];
        if frames.is_empty() {
            return done;
        }
        done + self.aim_run::<H, Ipv6Addr, F, false>(burst, frames, looks)
    }

    /// Plain packets of a family from the first frame on, up to the first that is anything else. With
    /// `VERIFIED`, that is also one whose checksum no NIC has verified. They lose their padding.
    #[inline(never)]
    fn aim_run<H: How, A: Tracked, F: Frame, const VERIFIED: bool>(
        &self,
        burst: &Burst,
        frames: &mut [F],
        looks: &mut Looks,
    ) -> usize {
        let (mut done, mut others, at) = (0, 0, looks.count);
        let hashes = &mut looks.hashes[at..];
        let looking = looks.of[at..].iter_mut().zip(&mut *hashes);
        for (frame, (look, hash)) in frames.iter_mut().zip(looking) {
            let bytes = frame.bytes();
            if !burst.may_be_plain(frame, bytes) || VERIFIED && !frame.ip_checksum_verified() {
                break;
            }
            let Some(packet) = A::claimed(bytes, VERIFIED) else {
                break;
            };
            let (key, length) = (packet.key, ETHERNET + usize::from(packet.length));
            if length != bytes.len() {
                if !packet.fits(bytes) {
                    break;
                }
                frame.truncate(length);
            }
            let aimed = H::aim(self, burst, &key);
            (*look, *hash) = aimed.look(burst, A::REQUEST, &packet, frame, &mut others);
            done += 1;
        }
        let own = match H::SHARED {
            true => looks.take_out(done, others),
            false => done,
        };
        looks.count = at + own;
        let hashes = &looks.hashes[at..];
        let slots = &mut looks.slots[at..at + own];
        A::table(&self.tables).prefetch_buckets(self.cpu, &hashes[..own], slots);
        done
    }

    /// A request that belongs to this worker.
    #[inline(always)]
    fn aim_request<A: Tracked>(&self, _: &Burst, key: &FlowKey<A>) -> Aimed {
        Aimed {
            hash: self.client_hash(key),
            meets: Meets::Request,
            elsewhere: None,
        }
    }

    /// A request that may belong to another worker.
    #[inline(always)]
    fn aim_owned<A: Tracked, const MASKED: bool>(&self, burst: &Burst, key: &FlowKey<A>) -> Aimed {
        let owner = match MASKED {
            true => burst.deal.masked_owner(Side::OneWay, key),
            false => burst.deal.owner(Side::OneWay, key),
        };
        Aimed {
            elsewhere: (owner != self.worker).then_some(owner),
            ..self.aim_request(burst, key)
        }
    }

    /// Second pass: a request for each packet's entry.
    #[inline(never)]
    fn second_pass(&self, looks: &mut Looks, burst: Range<usize>) {
        self.cpu.run(SecondPass {
            shard: self,
            looks,
            burst,
        });
    }

    /// First pass over any frame.
    #[inline(never)]
    fn look<F: Frame>(&self, burst: &Burst, frame: &mut F, looks: &mut Looks) {
        let bytes = frame.bytes();
        if burst.may_be_plain(frame, bytes) {
            if let Some(packet) = Packet::find_plain_v4(bytes, frame.ip_checksum_verified()) {
                frame.truncate(ETHERNET + usize::from(packet.length));
                return self.aim(burst, &packet, Kind::V4, frame, looks);
            }
            if let Some(packet) = Packet::find_plain_v6(bytes) {
                frame.truncate(ETHERNET + usize::from(packet.length));
                return self.aim(burst, &packet, Kind::V6, frame, looks);
            }
        }
        self.look_closely(burst, frame, looks);
    }

    /// The first pass over a frame that is not plain.
    #[inline(never)]
    fn look_closely<F: Frame>(&self, burst: &Burst, frame: &mut F, looks: &mut Looks) {
        match burst.parse(frame) {
            Parsed::V4(packet) => self.aim(burst, &packet, Kind::OddV4, frame, looks),
            Parsed::V6(packet) => self.aim(burst, &packet, Kind::OddV6, frame, looks),
            _ => {
                looks.of[looks.count] = Look::UNUSUAL;
                looks.count += 1;
            }
        }
    }

    /// Who owns a packet's flow, and where its entry should be.
    #[inline(always)]
    fn aim<A: Tracked, F: Frame>(
        &self,
        burst: &Burst,
        packet: &Packet<A>,
        kind: Kind,
        frame: &mut F,
        looks: &mut Looks,
    ) {
        let key = packet.key;
        let requests_alone = match kind {
            Kind::V4 | Kind::V6 => burst.requests_alone,
            _ => burst.odd_requests_alone,
        };
        let aimed = match (requests_alone, burst.one_way_alone) {
            (true, _) => self.aim_request(burst, &key),
            (false, true) => self.aim_owned::<A, false>(burst, &key),
            // A copy, so that the key stays in registers otherwise.
            (false, false) => self.aim_by_side(burst, &{ key }, kind),
        };
        let mut others = 0;
        let (look, hash) = aimed.look(burst, kind, packet, frame, &mut others);
        (looks.of[looks.count], looks.hashes[looks.count]) = (look, hash);
        let at = looks.count;
        looks.count += looks.take_out(1, others);
        looks.slots[at] = A::table(&self.tables).prefetch_bucket(hash);
    }

    /// As [`Shard::aim`], where there are replies and other workers.
    #[inline(never)]
    fn aim_by_side<A: Tracked>(&self, burst: &Burst, key: &FlowKey<A>, kind: Kind) -> Aimed {
        let side = burst.snapshot.side(key);
        let elsewhere = burst
            .port
            .and_then(|_| self.other_owner(burst, side, key, kind));
        Aimed {
            elsewhere,
            ..self.aim_at(side, key)
        }
    }

    /// What a packet of this worker's meets, and the hash of where its entry should be.
    #[inline(always)]
    fn aim_at<A: Tracked>(&self, side: Side, key: &FlowKey<A>) -> Aimed {
        let (hash, meets) = self.meets(side, key);
        if meets == Meets::LocalReply {
            self.local_ports.prefetch(hash as usize);
        }
        Aimed {
            hash,
            meets,
            elsewhere: None,
        }
    }

    /// Second pass over a reply to one of FullNAT's local ports, which says where the entry is.
    #[inline(never)]
    fn reach_local(&self, looks: &mut Looks, at: usize) {
        let slot = self.local_ports.slot(looks.hashes[at] as usize);
        looks.slots[at] = slot.unwrap_or(Slot::NONE);
        self.tables.prefetch(looks.of[at].kind(), looks.slots[at]);
    }

    /// What a packet of this worker's is to meet, and the hash of the client's end of its flow: the
    /// source, but for replies.
    #[inline(always)]
    pub(super) fn meets<A: Address>(&self, side: Side, key: &FlowKey<A>) -> (u64, Meets) {
        let hash = |address, port| endpoint_hash(&self.seed, key.protocol, address, port);
        match side {
            Side::OneWay | Side::TwoWay => (hash(key.source, key.source_port), Meets::Request),
            Side::Reply => (hash(key.destination, key.destination_port), Meets::Reply),
            Side::LocalReply(address) => (self.local_cell(address, key), Meets::LocalReply),
        }
    }
}

#[cfg(test)]
mod tests;
