//! ICMP errors about balanced flows: an error belongs to the flow whose packet it quotes, and
//! follows that flow to its backend or, under NAT, back to its client, with the quotation
//! translated too (RFC 5508 section 4, RFC 2003 section 4 for tunnels).
//! Part of a worker's [`Shard`], off the fast path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{Sum, adjust};
use super::conn::{Conn, flag};
use super::counters::DropReason;
use super::flow::{Address, FlowKey, endpoint_hash, protocol};
use super::forward::nat::{self, Endpoint};
use super::forward::{Way, backend_port, to_backend};
use super::forward::{decrement_ttl, tunnel, write_address, write_macs, write_u16};
use super::frame::Frame;
use super::fullnat::local_end;
use super::icmp::{self, IcmpError};
use super::meet::is_request;
use super::owner::headers;
use super::parse::{ETHERNET, Packet, Parsed, read_u16};
use super::shard::Shard;
use super::snapshot::{Backend, BackendState, Snapshot};
use super::tracked::Tracked;
use super::{Now, Pass, Verdict};

/// The start of a packet that an error quotes: at least its IP header and 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Quote<A> {
    key: FlowKey<A>,
    /// Where the TCP or UDP header starts, from the quoted packet's start.
    l4: usize,
}

/// An ICMP message in its frame.
#[derive(Clone, Copy)]
struct Message {
    l3: usize,
    at: usize,
    end: usize,
}

/// Bytes of an ICMP header before the quotation.
const HEADER: usize = 8;

impl<A: Address> Quote<A> {
    fn read(ip: &[u8]) -> Option<Self> {
        let (protocol, l4) = headers(ip, A::HEADER == 20)?;
        if !matches!(protocol, protocol::TCP | protocol::UDP) {
            return None;
        }
        let ports = ip.get(l4..)?.first_chunk::<8>()?;
        Some(Self {
            key: FlowKey {
                source: A::read(&ip[A::SOURCE_AT..]),
                destination: A::read(&ip[A::DESTINATION_AT..]),
                source_port: read_u16(ports, 0),
                destination_port: read_u16(ports, 2),
                protocol,
            },
            l4,
        })
    }
}

/// Types of messages that follow a flow: unreachable, time exceeded, parameter problem, and
/// IPv6's too big. Redirects and source quench (RFC 6633) concern the next hop or nobody.
fn follows_a_flow<A: Address>(kind: u8) -> bool {
    if A::HEADER == 20 {
        matches!(kind, 3 | 11 | 12)
    } else {
        matches!(kind, 1..=4)
    }
}

impl Shard {
    /// An ICMP or ICMPv6 message to us: a ping for management, or an error about some flow.
    #[cold]
    #[inline(never)]
    pub(super) fn icmp<F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        parsed: &Parsed,
    ) -> Verdict {
        let message = |l3: u8, l4: u16, length: u16| Message {
            l3: usize::from(l3),
            at: usize::from(l4),
            end: usize::from(l3) + usize::from(length),
        };
        match *parsed {
            Parsed::IcmpV4 { l3, l4, length } => {
                self.message::<Ipv4Addr, F>(snapshot, now, frame, message(l3, l4, length))
            }
            Parsed::IcmpV6 { l3, l4, length } => {
                self.message::<Ipv6Addr, F>(snapshot, now, frame, message(l3, l4, length))
            }
            _ => Verdict::Pass(Pass::Local),
        }
    }

    fn message<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        message: Message,
    ) -> Verdict {
        let bytes = &frame.bytes()[..message.end];
        let destination = A::read(&bytes[message.l3 + A::DESTINATION_AT..]);
        if snapshot.is_check(destination) {
            return Verdict::Pass(Pass::Check);
        }
        let body = &bytes[message.at..];
        if body.len() < HEADER || !follows_a_flow::<A>(body[0]) {
            return Verdict::Pass(Pass::Local);
        }
        let source = A::read(&bytes[message.l3 + A::SOURCE_AT..]);
        let balanced = is_balanced(snapshot, destination.into());
        if balanced && (source.is_invalid_source() || snapshot.own.contains(source.into())) {
            return Verdict::Drop(DropReason::BadSource);
        }
        let quoted = &body[HEADER..];
        if let Some(quote) = Quote::<A>::read(quoted) {
            frame.truncate(message.end);
            if quote.key.source == destination
                && let Some(verdict) = self.to_the_backend(snapshot, now, frame, message, &quote)
            {
                return verdict;
            }
            if snapshot.two_way
                && quote.key.source == destination
                && let Some(verdict) = self.to_the_client(snapshot, now, frame, message, &quote)
            {
                return verdict;
            }
        } else if let Some(verdict) = self.about_a_tunnel::<A, F>(snapshot, now, frame, message) {
            return verdict;
        }
        if balanced {
            Verdict::Drop(DropReason::IcmpUnrelated)
        } else {
            Verdict::Pass(Pass::Local)
        }
    }

    /// About a packet from the service's address to a client: it goes to the flow's backend.
    fn to_the_backend<A: Tracked, F: Frame>(
        &self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        message: Message,
        quote: &Quote<A>,
    ) -> Option<Verdict> {
        let request = quote.key.reversed();
        let (conn, hash) = self.live(now, &request, |conn| is_request(conn, &request))?;
        let backend = snapshot.backend(conn.backend);
        let Some(backend) = backend.filter(|b| b.state != BackendState::Removed) else {
            return Some(Verdict::Drop(DropReason::BackendGone));
        };
        let packet = whole::<A>(frame.bytes(), message);
        let verdict = if backend.method.is_two_way() {
            let local = local_end(snapshot, &conn);
            translate_to_backend(frame, message, quote, &conn, backend, local)
        } else {
            let way = Way {
                backend,
                hash,
                local: None,
            };
            to_backend(frame, &packet, &way)
        };
        if let Verdict::Transmit(_) = verdict {
            self.count_in(backend, &packet);
        }
        Some(verdict)
    }

    /// About a client's packet that NAT had given a backend's address: it goes to the client.
    fn to_the_client<A: Tracked, F: Frame>(
        &self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        message: Message,
        quote: &Quote<A>,
    ) -> Option<Verdict> {
        let reply = quote.key.reversed();
        let (slot, _) = self.find(snapshot, &reply).filter(|&(_, reply)| reply)?;
        let conn = *A::table(&self.tables).get(slot);
        if conn.is_expired(now.second) {
            return None;
        }
        let Some(link) = snapshot.routes.link(conn.client.into()) else {
            return Some(Verdict::Drop(DropReason::NoNeighbour));
        };
        let bytes = frame.bytes_mut();
        if let Err(reason) = decrement_ttl::<A>(&mut bytes[message.l3..]) {
            return Some(Verdict::Drop(reason));
        }
        let (old, new) = (
            Endpoint {
                address: quote.key.destination,
                port: quote.key.destination_port,
            },
            Endpoint {
                address: conn.vip,
                port: conn.vip_port,
            },
        );
        translate_quote(&mut bytes[message.at..], quote, A::DESTINATION_AT, old, new);
        if conn.has(flag::FULL_NAT) {
            let (local, client) = (
                Endpoint {
                    address: quote.key.source,
                    port: quote.key.source_port,
                },
                Endpoint {
                    address: conn.client,
                    port: conn.client_port,
                },
            );
            let body = &mut bytes[message.at..];
            translate_quote(body, quote, A::SOURCE_AT, local, client);
            translate_outer(bytes, message, A::DESTINATION_AT, conn.client);
        }
        // Whoever sent it, to the client it speaks for the service: an address behind NAT would
        // mean nothing to it, and many a firewall would drop it.
        translate_outer(bytes, message, A::SOURCE_AT, conn.vip);
        write_macs(bytes, &link);
        if let Some(counters) = self.counters.backends.get(conn.backend.0 as usize) {
            counters.out_packets.add(1);
            let length = message.end - message.l3;
            counters.out_bytes.add(length as u64);
        }
        Some(Verdict::Transmit(link.port))
    }

    /// The unexpired connection of the client that `key` has as its source.
    fn live<A: Tracked>(
        &self,
        now: Now,
        key: &FlowKey<A>,
        matches: impl Fn(&Conn<A>) -> bool,
    ) -> Option<(Conn<A>, u64)> {
        let hash = endpoint_hash(&self.seed, key.protocol, key.source, key.source_port);
        let table = A::table(&self.tables);
        let conn = *table.get(table.find(hash, matches)?);
        (!conn.is_expired(now.second)).then_some((conn, hash))
    }

    /// About a packet of ours on its way through a tunnel.
    fn about_a_tunnel<A: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        message: Message,
    ) -> Option<Verdict> {
        let body = &frame.bytes()[message.at..message.end];
        let (number, inner) = headers(&body[HEADER..], A::HEADER == 20)?;
        let outer = A::read(&body[HEADER + A::DESTINATION_AT..]).into();
        let fits = narrowest::<A>(body)?;
        let at = message.at + HEADER + inner;
        let narrow = Narrow { outer, fits, at };
        frame.truncate(message.end);
        match number {
            protocol::IPIP => self.narrow::<Ipv4Addr, F>(snapshot, now, frame, narrow),
            protocol::IPV6 => self.narrow::<Ipv6Addr, F>(snapshot, now, frame, narrow),
            _ => None,
        }
    }

    /// A router on the way to a backend cannot take packets as long as we wrapped: the client is
    /// told what fits. Other errors about a tunnel say nothing that a client could act on; the
    /// health checks, which go the same way, find out.
    fn narrow<B: Tracked, F: Frame>(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        frame: &mut F,
        narrow: Narrow,
    ) -> Option<Verdict> {
        let quote = Quote::<B>::read(frame.bytes().get(narrow.at..)?)?;
        let (conn, _) = self.live(now, &quote.key, |conn| is_request(conn, &quote.key))?;
        let backend = snapshot.backend(conn.backend)?;
        if backend.address != narrow.outer {
            return None;
        }
        let reason = DropReason::TooBig;
        let Some(link) = snapshot.routes.link(conn.client.into()) else {
            return Some(Verdict::Drop(DropReason::NoNeighbour));
        };
        if !self.answers.icmp.take(now) {
            self.counters.unanswered.add(1);
            return Some(Verdict::Drop(reason));
        }
        // What was quoted becomes a frame again, and the error is made about it.
        if !frame.trim_front(narrow.at - ETHERNET) {
            return Some(Verdict::Drop(reason));
        }
        let bytes = frame.bytes_mut();
        bytes[..ETHERNET].fill(0);
        write_u16(bytes, 12, if B::HEADER == 20 { 0x0800 } else { 0x86dd });
        let fits = narrow
            .fits
            .saturating_sub(tunnel::overhead(narrow.outer) as u16);
        // Below these no host may go, whatever it is told (RFC 791, RFC 8200 section 5).
        let mtu = fits.max(if B::HEADER == 20 { 68 } else { 1280 });
        if !icmp::into_error(frame, ETHERNET, conn.vip, IcmpError::TooBig { mtu }) {
            return Some(Verdict::Drop(reason));
        }
        write_macs(frame.bytes_mut(), &link);
        Some(Verdict::Reply {
            port: link.port,
            reason,
        })
    }
}

/// What a router said about a tunnel.
struct Narrow {
    /// The tunnel's far end.
    outer: IpAddr,
    fits: u16,
    /// Where the wrapped packet starts in the frame.
    at: usize,
}

/// The MTU that a "too big" names; `None` for other errors and routers that name none.
fn narrowest<A: Address>(body: &[u8]) -> Option<u16> {
    let mtu = if A::HEADER == 20 {
        (body[..2] == [3, 4]).then(|| u32::from(read_u16(body, 6)))
    } else {
        (body[0] == 2).then(|| u32::from(read_u16(body, 4)) << 16 | u32::from(read_u16(body, 6)))
    };
    mtu.filter(|&mtu| mtu != 0)
        .map(|mtu| mtu.min(u32::from(u16::MAX)) as u16)
}

/// Some service listens on the address, and not only because its prefix takes in one of ours.
fn is_balanced(snapshot: &Snapshot, address: IpAddr) -> bool {
    let map = &snapshot.service_map;
    map.is_vip(address) || map.is_covered(address) && !snapshot.own.contains(address)
}

/// The message as a packet to forward.
fn whole<A: Address>(bytes: &[u8], message: Message) -> Packet<A> {
    let ip = &bytes[message.l3..];
    Packet {
        key: FlowKey {
            source: A::read(&ip[A::SOURCE_AT..]),
            destination: A::read(&ip[A::DESTINATION_AT..]),
            source_port: 0,
            destination_port: 0,
            protocol: if A::HEADER == 20 {
                protocol::ICMP
            } else {
                protocol::ICMPV6
            },
        },
        l3: message.l3 as u8,
        l4: message.at as u16,
        length: (message.end - message.l3) as u16,
        tcp_flags: 0,
    }
}

fn translate_to_backend<A: Address, F: Frame>(
    frame: &mut F,
    message: Message,
    quote: &Quote<A>,
    conn: &Conn<A>,
    backend: &Backend,
    local: Option<Endpoint<A>>,
) -> Verdict {
    let Some(link) = &backend.link else {
        return Verdict::Drop(DropReason::NoNeighbour);
    };
    let Some(address) = A::from_ip(backend.address) else {
        return Verdict::Drop(DropReason::IcmpUnrelated);
    };
    let bytes = frame.bytes_mut();
    if let Err(reason) = decrement_ttl::<A>(&mut bytes[message.l3..]) {
        return Verdict::Drop(reason);
    }
    let (old, new) = (
        Endpoint {
            address: conn.vip,
            port: conn.vip_port,
        },
        Endpoint {
            address,
            port: backend_port(backend, conn.vip_port),
        },
    );
    translate_quote(&mut bytes[message.at..], quote, A::SOURCE_AT, old, new);
    translate_outer(bytes, message, A::DESTINATION_AT, address);
    // A FullNAT backend knows its client, and whoever complains in its name, by the local address.
    if let Some(local) = local {
        let client = Endpoint {
            address: conn.client,
            port: conn.client_port,
        };
        let body = &mut bytes[message.at..];
        translate_quote(body, quote, A::DESTINATION_AT, client, local);
        translate_outer(bytes, message, A::SOURCE_AT, local.address);
    }
    write_macs(bytes, link);
    Verdict::Transmit(link.port)
}

/// Rewrites one end of the quoted packet, with the checksums in the quotation (as far as it
/// reaches) and that of the ICMP message following. `at` is where the address stands.
fn translate_quote<A: Address>(
    body: &mut [u8],
    quote: &Quote<A>,
    at: usize,
    old: Endpoint<A>,
    new: Endpoint<A>,
) {
    let before = Sum::default().bytes(&body[HEADER..]);
    let quoted = &mut body[HEADER..];
    let change = write_address(quoted, at, old.address, new.address);
    let port_at = if at == A::SOURCE_AT { 0 } else { 2 };
    let l4 = &mut quoted[quote.l4..];
    write_u16(l4, port_at, new.port);
    let checksum_ends = if quote.key.protocol == protocol::TCP {
        18
    } else {
        8
    };
    if l4.len() >= checksum_ends {
        nat::adjust_l4(l4, quote.key.protocol, change.word(old.port, new.port));
    }
    let after = Sum::default().bytes(&body[HEADER..]);
    let checksum = adjust(read_u16(body, 2), before, after);
    write_u16(body, 2, checksum);
}

/// Rewrites one address of the message itself; ICMPv6's checksum covers it too.
fn translate_outer<A: Address>(bytes: &mut [u8], message: Message, at: usize, new: A) {
    let old = A::read(&bytes[message.l3 + at..]);
    let change = write_address(&mut bytes[message.l3..], at, old, new);
    if A::HEADER == 40 {
        change.apply(&mut bytes[message.at..], 2);
    }
}
