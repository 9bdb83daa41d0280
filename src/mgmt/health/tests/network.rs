//! Backends that answer SYN, UDP and ping, and the wire between them and the engine.

use super::super::*;
use crate::lb::snapshot::BackendId;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::*;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What a backend has; tests take it away and give it back.
#[derive(Debug, Clone, Default)]
pub struct Backend {
    /// Addresses it answers for.
    pub addresses: HashSet<IpAddr>,
    pub open_ports: HashSet<u16>,
    /// Whether it unwraps IPIP.
    pub tunnel: bool,
    /// The only sources it can answer; none means all.
    pub answers_only: Option<HashSet<IpAddr>>,
}

/// All backends by the address their MAC is found under.
pub type Backends = Arc<Mutex<HashMap<IpAddr, Backend>>>;

pub struct World {
    pub engine: HealthEngine,
    pub transitions: mpsc::UnboundedReceiver<Transition>,
    pub backends: Backends,
}

impl World {
    /// Starts the engine and the wire on the current runtime.
    pub fn new() -> Self {
        let (out, mut wire) = mpsc::channel::<Outgoing>(16_384);
        let (sender, transitions) = mpsc::unbounded_channel();
        let (engine, mut runner) = HealthEngine::new(1500, out, sender);
        let backends = Backends::default();
        tokio::spawn(async move { runner.run().await });
        let (to, map) = (engine.clone(), backends.clone());
        tokio::spawn(async move {
            while let Some(sent) = wire.recv().await {
                let backend = map.lock().unwrap().get(&sent.towards).cloned();
                let answer = backend.and_then(|b| b.answer(&sent.packet));
                if let Some(answer) = answer {
                    to.receive(&answer, Instant::now());
                }
            }
        });
        Self {
            engine,
            transitions,
            backends,
        }
    }

    /// A backend with one address of its own and port 80 open.
    pub fn add_backend(&self, address: &str) {
        let backend = Backend {
            addresses: HashSet::from([ip(address)]),
            open_ports: HashSet::from([80]),
            ..Backend::default()
        };
        self.backends.lock().unwrap().insert(ip(address), backend);
    }

    pub fn change(&self, address: &str, change: impl FnOnce(&mut Backend)) {
        change(self.backends.lock().unwrap().get_mut(&ip(address)).unwrap());
    }

    /// The next transition within `limit` of stopped time.
    pub async fn next(&mut self, limit: Duration) -> Option<Transition> {
        let next = tokio::time::timeout(limit, self.transitions.recv()).await;
        next.ok().flatten()
    }
}

/// A check with the usual numbers: every 2 s, 1 s timeout, fall 3, rise 2.
pub fn spec(backend: &str, probe: Probe, route: Route) -> CheckSpec {
    CheckSpec {
        id: id(backend),
        service: "web".into(),
        backend: backend.into(),
        probe,
        route,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        jitter: Duration::ZERO,
        thresholds: Thresholds { rise: 2, fall: 3 },
        start: Start::Up,
        measure: false,
    }
}

/// One for each name.
pub fn id(backend: &str) -> BackendId {
    let bytes = backend.bytes().map(u32::from);
    BackendId(bytes.fold(0, |id, byte| id.wrapping_mul(257).wrapping_add(byte)))
}

impl Backend {
    /// What it answers to an IP packet.
    pub fn answer(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let (src, dst, protocol, payload) = read(packet);
        if self.tunnel && matches!(u8::from(protocol), 4 | 41) {
            let inner = Self {
                tunnel: false,
                ..self.clone()
            };
            return inner.answer(payload);
        }
        let can_answer = self
            .answers_only
            .as_ref()
            .is_none_or(|only| only.contains(&src));
        if !self.addresses.contains(&dst) || !can_answer {
            return None;
        }
        match protocol {
            IpProtocol::Tcp => self.answer_tcp(src, dst, payload),
            IpProtocol::Udp => Some(self.answer_udp(packet, src, dst, payload)),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => Some(answer_ping(src, dst, payload)),
            _ => None,
        }
    }

    fn answer_tcp(&self, src: IpAddr, dst: IpAddr, payload: &[u8]) -> Option<Vec<u8>> {
        let packet = TcpPacket::new_checked(payload).unwrap();
        let checksums = ChecksumCapabilities::default();
        let asked = TcpRepr::parse(&packet, &src.into(), &dst.into(), &checksums).unwrap();
        if asked.control != TcpControl::Syn {
            return None;
        }
        let open = self.open_ports.contains(&asked.dst_port);
        let answer = TcpRepr {
            src_port: asked.dst_port,
            dst_port: asked.src_port,
            control: if open {
                TcpControl::Syn
            } else {
                TcpControl::Rst
            },
            seq_number: TcpSeqNumber(1000),
            ack_number: Some(asked.seq_number + 1),
            payload: &[],
            ..asked
        };
        Some(write(
            dst,
            src,
            IpProtocol::Tcp,
            answer.buffer_len(),
            |buffer| {
                let mut packet = TcpPacket::new_unchecked(buffer);
                answer.emit(&mut packet, &dst.into(), &src.into(), &checksums);
            },
        ))
    }

    fn answer_udp(&self, packet: &[u8], src: IpAddr, dst: IpAddr, payload: &[u8]) -> Vec<u8> {
        let asked = UdpPacket::new_checked(payload).unwrap();
        assert!(asked.verify_checksum(&src.into(), &dst.into()));
        if !self.open_ports.contains(&asked.dst_port()) {
            return unreachable(packet, src, dst);
        }
        let repr = UdpRepr {
            src_port: asked.dst_port(),
            dst_port: asked.src_port(),
        };
        let data = [b"re: ", asked.payload()].concat();
        let checksums = ChecksumCapabilities::default();
        write(dst, src, IpProtocol::Udp, 8 + data.len(), |buffer| {
            let mut packet = UdpPacket::new_unchecked(buffer);
            let fill = |b: &mut [u8]| b.copy_from_slice(&data);
            repr.emit(
                &mut packet,
                &dst.into(),
                &src.into(),
                data.len(),
                fill,
                &checksums,
            );
        })
    }
}

fn read(packet: &[u8]) -> (IpAddr, IpAddr, IpProtocol, &[u8]) {
    match IpVersion::of_packet(packet).unwrap() {
        IpVersion::Ipv4 => {
            let ip = Ipv4Packet::new_checked(packet).unwrap();
            assert!(ip.verify_checksum());
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            (src, dst, ip.next_header(), ip.payload())
        }
        IpVersion::Ipv6 => {
            let ip = Ipv6Packet::new_checked(packet).unwrap();
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            (src, dst, ip.next_header(), ip.payload())
        }
    }
}

fn write(
    src: IpAddr,
    dst: IpAddr,
    protocol: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let header = IpRepr::new(src.into(), dst.into(), protocol, len, 64);
    let mut bytes = vec![0xa5; header.buffer_len()];
    header.emit(&mut bytes[..], &ChecksumCapabilities::default());
    fill(&mut bytes[header.header_len()..]);
    bytes
}

fn answer_ping(src: IpAddr, dst: IpAddr, payload: &[u8]) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let mut bytes = payload.to_vec();
    match (src, dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let mut packet = Icmpv4Packet::new_unchecked(&mut bytes[..]);
            assert!(packet.verify_checksum());
            packet.set_msg_type(Icmpv4Message::EchoReply);
            packet.fill_checksum();
            write(dst, src, IpProtocol::Icmp, bytes.len(), |b| {
                b.copy_from_slice(&bytes)
            })
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let packet = Icmpv6Packet::new_checked(payload).unwrap();
            let asked = Icmpv6Repr::parse(&from, &to, &packet, &checksums).unwrap();
            let Icmpv6Repr::EchoRequest {
                ident,
                seq_no,
                data,
            } = asked
            else {
                panic!("{asked:?}")
            };
            let reply = Icmpv6Repr::EchoReply {
                ident,
                seq_no,
                data,
            };
            write(dst, src, IpProtocol::Icmpv6, bytes.len(), |b| {
                reply.emit(&to, &from, &mut Icmpv6Packet::new_unchecked(b), &checksums);
            })
        }
        _ => panic!("mixed families"),
    }
}

/// "Port unreachable", quoting the packet.
fn unreachable(packet: &[u8], src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    match (src, dst) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let quoted = Ipv4Packet::new_checked(packet).unwrap();
            let message = Icmpv4Repr::DstUnreachable {
                reason: Icmpv4DstUnreachable::PortUnreachable,
                header: Ipv4Repr::parse(&quoted, &checksums).unwrap(),
                data: &quoted.payload()[..8],
            };
            write(dst, src, IpProtocol::Icmp, message.buffer_len(), |b| {
                message.emit(&mut Icmpv4Packet::new_unchecked(b), &checksums);
            })
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let quoted = Ipv6Packet::new_checked(packet).unwrap();
            let message = Icmpv6Repr::DstUnreachable {
                reason: Icmpv6DstUnreachable::PortUnreachable,
                header: Ipv6Repr::parse(&quoted).unwrap(),
                data: quoted.payload(),
            };
            write(dst, src, IpProtocol::Icmpv6, message.buffer_len(), |b| {
                message.emit(&to, &from, &mut Icmpv6Packet::new_unchecked(b), &checksums);
            })
        }
        _ => panic!("mixed families"),
    }
}

/// A SYN as a probe would send it.
pub fn syn_packet(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Vec<u8> {
    let syn = TcpRepr {
        src_port,
        dst_port,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: Some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (src, dst) = (ip(src), ip(dst));
    write(src, dst, IpProtocol::Tcp, syn.buffer_len(), |buffer| {
        let mut packet = TcpPacket::new_unchecked(buffer);
        let checksums = ChecksumCapabilities::default();
        syn.emit(&mut packet, &src.into(), &dst.into(), &checksums);
    })
}
