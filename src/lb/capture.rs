//! Which packets a capture wants, and copies of them. Pure; copying runs on workers, into memory
//! that management made.

use std::net::IpAddr;

use super::Verdict;
use super::parse::{ETHERNET, Parsed, parse, read_u16};
use super::route::Prefix;
use super::snapshot::{ServiceId, Snapshot};

/// One end of a packet, as a filter has it: addresses, and a port, 0 for any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub addresses: Prefix,
    pub port: u16,
}

impl End {
    fn is(&self, (address, port): (IpAddr, u16)) -> bool {
        self.addresses.contains(address) && (self.port == 0 || self.port == port)
    }
}

/// What is wanted: all that is given must hold, of the packet as it came or as it leaves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    pub protocol: Option<u8>,
    /// Each must be an end of the packet, the source or the destination.
    pub ends: Vec<End>,
    /// Packets to one of its VIPs, and from one.
    pub service: Option<ServiceId>,
    /// Only what is not sent on.
    pub dropped: bool,
}

/// Protocol, source and destination; ports are 0 where there are none to be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
}

impl Ends {
    /// Those of an IP packet; `None` for other frames.
    pub fn of(frame: &[u8]) -> Option<Self> {
        match parse(frame, true) {
            Parsed::V4(packet) => Some(Self {
                protocol: packet.key.protocol,
                source: (packet.key.source.into(), packet.key.source_port),
                destination: (packet.key.destination.into(), packet.key.destination_port),
            }),
            Parsed::V6(packet) => Some(Self {
                protocol: packet.key.protocol,
                source: (packet.key.source.into(), packet.key.source_port),
                destination: (packet.key.destination.into(), packet.key.destination_port),
            }),
            _ => Self::of_ip(frame),
        }
    }

    /// Without ports: fragments, ICMP, tunnels.
    fn of_ip(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET..)?;
        let (protocol, source, destination): (u8, IpAddr, IpAddr) = match read_u16(frame, 12) {
            0x0800 => {
                let ip: &[u8; 20] = ip.first_chunk()?;
                let address = |at: usize| [ip[at], ip[at + 1], ip[at + 2], ip[at + 3]].into();
                (ip[9], address(12), address(16))
            }
            0x86dd => {
                let ip: &[u8; 40] = ip.first_chunk()?;
                let source: [u8; 16] = *ip[8..].first_chunk()?;
                let destination: [u8; 16] = *ip[24..].first_chunk()?;
                (ip[6], source.into(), destination.into())
            }
            _ => return None,
        };
        Some(Self {
            protocol,
            source: (source, 0),
            destination: (destination, 0),
        })
    }

    fn has(&self, end: &End) -> bool {
        end.is(self.source) || end.is(self.destination)
    }

    /// The service that the packet is for, or comes from.
    pub fn service(&self, snapshot: &Snapshot) -> Option<ServiceId> {
        let map = &snapshot.service_map;
        let at = |(address, port)| map.find(self.protocol, address, port);
        let found = at(self.destination).or_else(|| at(self.source))?;
        Some(found.id)
    }
}

impl Filter {
    /// Whether a packet is wanted that came with the ends `before` and leaves with `after`.
    pub fn wants(
        &self,
        snapshot: &Snapshot,
        before: Option<Ends>,
        after: Option<Ends>,
        verdict: Verdict,
    ) -> bool {
        let sides = || before.iter().chain(&after);
        let is_sent = matches!(verdict, Verdict::Transmit(_));
        (!self.dropped || !is_sent)
            && self
                .protocol
                .is_none_or(|p| sides().any(|side| side.protocol == p))
            && self
                .ends
                .iter()
                .all(|end| sides().any(|side| side.has(end)))
            && self
                .service
                .is_none_or(|id| sides().any(|side| side.service(snapshot) == Some(id)))
    }
}

/// A captured packet, as it came and as it leaves. Made by management, filled by a worker.
#[derive(Debug)]
pub struct Record {
    /// Nanoseconds on the workers' clock.
    pub nanos: u64,
    /// Where it came in, in the way of whoever filled this.
    pub arrival: u16,
    pub verdict: Verdict,
    pub before: Copied,
    pub after: Copied,
}

/// The beginning of a frame.
#[derive(Debug, Default)]
pub struct Copied {
    /// As far as its capacity went.
    pub bytes: Vec<u8>,
    /// Of the whole frame.
    pub length: u32,
}

impl Copied {
    pub fn with_room(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            length: 0,
        }
    }

    /// Copies as much as there is room for; never allocates.
    pub fn copy(&mut self, frame: &[u8]) {
        let kept = frame.len().min(self.bytes.capacity());
        self.bytes.clear();
        self.bytes.extend_from_slice(&frame[..kept]);
        self.length = frame.len() as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lb::counters::DropReason;
    use crate::lb::fixture::{Lab, VIP, tcp4, udp6};
    use crate::lb::snapshot::{ForwardMethod, Scheduler};

    const SENT: Verdict = Verdict::Transmit(0);

    fn end(address: &str, length: u8, port: u16) -> End {
        End {
            addresses: Prefix::new(address.parse().expect("an address"), length),
            port,
        }
    }

    #[test]
    fn a_flow_is_wanted_in_both_directions_however_it_is_rewritten() {
        let lab = Lab::with_method(ForwardMethod::Nat, Scheduler::RoundRobin, &[1]);
        let ends = |from, to| Ends::of(&tcp4(from, to).frame());
        let request = (
            ends("10.0.0.7:4000", VIP),
            ends("10.0.0.7:4000", "10.0.1.1:8080"),
        );
        let reply = (
            ends("10.0.1.1:8080", "10.0.0.7:4000"),
            ends(VIP, "10.0.0.7:4000"),
        );
        let wants =
            |filter: &Filter, (before, after)| filter.wants(&lab.snapshot, before, after, SENT);
        let of = |ends: &[End]| Filter {
            ends: ends.to_vec(),
            ..Filter::default()
        };
        for both in [
            Filter::default(),
            of(&[end("10.0.0.7", 32, 4000), end("192.0.2.80", 32, 80)]),
            of(&[end("10.0.0.0", 24, 0), end("10.0.1.1", 32, 8080)]),
            Filter {
                protocol: Some(6),
                service: Some(ServiceId(0)),
                ..Filter::default()
            },
        ] {
            assert!(wants(&both, request) && wants(&both, reply), "{both:?}");
        }
        for neither in [
            of(&[end("10.0.0.7", 32, 4001)]),
            of(&[end("10.0.0.7", 32, 4000), end("10.0.1.2", 32, 0)]),
            of(&[end("2001:db8::", 32, 0)]),
            Filter {
                protocol: Some(17),
                ..Filter::default()
            },
            Filter {
                service: Some(ServiceId(1)),
                ..Filter::default()
            },
            Filter {
                dropped: true,
                ..Filter::default()
            },
        ] {
            assert!(
                !wants(&neither, request) && !wants(&neither, reply),
                "{neither:?}"
            );
        }
        let dropped = Filter {
            dropped: true,
            ..Filter::default()
        };
        let verdict = Verdict::Drop(DropReason::NoBackend);
        assert!(dropped.wants(&lab.snapshot, request.0, request.0, verdict));
        // What has no addresses is wanted where nothing is asked of them.
        assert!(Filter::default().wants(&lab.snapshot, None, None, SENT));
        assert!(!of(&[end("0.0.0.0", 0, 0)]).wants(&lab.snapshot, None, None, SENT));
    }

    #[test]
    fn ends_are_read_of_whatever_has_addresses() {
        let v6 = Ends::of(&udp6("[2001:db8::1]:5", "[2001:db8::2]:6").frame());
        let v6 = v6.expect("IPv6");
        assert_eq!((v6.protocol, v6.source.1, v6.destination.1), (17, 5, 6));
        let mut icmp = tcp4("10.0.0.7:4000", VIP).frame();
        icmp[ETHERNET + 9] = 1;
        let ends = Ends::of(&icmp).expect("IPv4");
        assert_eq!(
            (ends.protocol, ends.source),
            (1, ("10.0.0.7".parse().expect("v4"), 0))
        );
        for short in 0..ETHERNET + 20 {
            assert_eq!(Ends::of(&icmp[..short]), None, "{short}");
        }
        let mut arp = icmp.clone();
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(Ends::of(&arp), None);
    }

    #[test]
    fn copies_stay_within_their_room() {
        let mut copied = Copied::with_room(4);
        let room = copied.bytes.capacity();
        copied.copy(&[7; 100]);
        assert_eq!((copied.bytes.len(), copied.length), (room, 100));
        copied.copy(&[1, 2]);
        assert_eq!((&copied.bytes[..], copied.length), (&[1, 2][..], 2));
        assert_eq!(copied.bytes.capacity(), room);
    }
}
