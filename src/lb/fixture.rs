//! Packets and small configurations for tests, probes and benches: built from nothing, with
//! right checksums unless one is broken on purpose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::checksum::{Sum, pseudo_header};
use super::conn::{Conn, State, Timeouts};
use super::flow::{Address, protocol};
use super::frame::MemoryFrame;
use super::maglev::{Maglev, Member, SMALL_SIZE};
use super::owner::{Ownership, Sides};
use super::parse::{Parsed, parse};
use super::route::{Link, Prefix, Routes, Target};
use super::service_map::{Listen, ServiceMap};
use super::snapshot::*;
use super::vlan::{Vlan, Vlans};
use super::weights::Weights;
use super::{Outbox, frame};

/// MAC addresses of the fixtures' world: ours, the client side's router, backend N's.
pub const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub fn backend_mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, n]
}

/// A TCP or UDP packet under construction.
#[derive(Clone, Debug)]
pub struct Build {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
    flags: u8,
    ttl: u8,
    tos: u8,
    dont_fragment: bool,
    vlan: Option<u16>,
    /// Destination, then source.
    macs: [[u8; 6]; 2],
    identification: u16,
    sequence: u32,
    acknowledgment: u32,
    window: u16,
    /// TCP options, whole words.
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    payload: Vec<u8>,
}

fn build(source: &str, destination: &str, protocol: u8) -> Build {
    let parse = |text: &str| {
        text.parse()
            .unwrap_or_else(|_| panic!("not an endpoint: {text}"))
    };
    between(parse(source), parse(destination), protocol)
}

/// A packet from one endpoint to another of the same family.
pub fn between(source: SocketAddr, destination: SocketAddr, protocol: u8) -> Build {
    Build {
        source,
        destination,
        protocol,
        flags: 0,
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        vlan: None,
        macs: [OUR_MAC, CLIENT_MAC],
        identification: 0x1234,
        sequence: 1,
        acknowledgment: 2,
        window: 0xffff,
        options: Vec::new(),
        extensions: Vec::new(),
        payload: Vec::new(),
    }
}

pub fn udp4(source: &str, destination: &str) -> Build {
    build(source, destination, protocol::UDP)
}

pub fn udp6(source: &str, destination: &str) -> Build {
    build(source, destination, protocol::UDP)
}

pub fn tcp4(source: &str, destination: &str) -> Build {
    build(source, destination, protocol::TCP)
}

pub fn tcp6(source: &str, destination: &str) -> Build {
    build(source, destination, protocol::TCP)
}

impl Build {
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    pub fn dont_fragment(mut self, yes: bool) -> Self {
        self.dont_fragment = yes;
        self
    }

    pub fn vlan(mut self, id: u16) -> Self {
        self.vlan = Some(id);
        self
    }

    /// Ethernet addresses: to, from.
    pub fn macs(mut self, to: [u8; 6], from: [u8; 6]) -> Self {
        self.macs = [to, from];
        self
    }

    pub fn identification(mut self, id: u16) -> Self {
        self.identification = id;
        self
    }

    /// TCP's sequence and acknowledgment numbers.
    pub fn numbers(mut self, sequence: u32, acknowledgment: u32) -> Self {
        (self.sequence, self.acknowledgment) = (sequence, acknowledgment);
        self
    }

    pub fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    /// TCP options, in whole words of four bytes.
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4));
        self.options = options.to_vec();
        self
    }

    /// An IPv6 extension header of this type; `body` is what follows its first two bytes.
    pub fn extension(mut self, number: u8, body: &[u8]) -> Self {
        let mut body = body.to_vec();
        while !(body.len() + 2).is_multiple_of(8) {
            body.push(0);
        }
        self.extensions.push((number, body));
        self
    }

    /// The TCP or UDP header and payload, with checksum.
    fn transport(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        l4.extend(self.source.port().to_be_bytes());
        l4.extend(self.destination.port().to_be_bytes());
        let at = if self.protocol == protocol::TCP {
            l4.extend(self.sequence.to_be_bytes());
            l4.extend(self.acknowledgment.to_be_bytes());
            let words = 5 + self.options.len() as u8 / 4;
            l4.extend([words << 4, self.flags]);
            l4.extend(self.window.to_be_bytes());
            l4.extend([0; 4]);
            l4.extend(&self.options);
            16
        } else {
            l4.extend(((self.payload.len() + 8) as u16).to_be_bytes());
            l4.extend([0, 0]);
            6
        };
        l4.extend(&self.payload);
        let sum = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => pseudo_header(s, d, self.protocol, l4.len()),
            (IpAddr::V6(s), IpAddr::V6(d)) => pseudo_header(s, d, self.protocol, l4.len()),
            _ => panic!("both ends must be of one family"),
        };
        let checksum = sum.bytes(&l4).finish();
        let checksum = if checksum == 0 && self.protocol == protocol::UDP {
            0xffff
        } else {
            checksum
        };
        l4[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        l4
    }

    /// The whole Ethernet frame, from the client side's router to us.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.macs.as_flattened());
        if let Some(id) = self.vlan {
            frame.extend([0x81, 0x00]);
            frame.extend(id.to_be_bytes());
        }
        let l4 = self.transport();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                frame.extend(self.ip4(source, destination, l4.len()));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd]);
                frame.extend(self.ip6(source, destination, l4.len()));
            }
            _ => panic!("both ends must be of one family"),
        }
        frame.extend(l4);
        frame
    }

    fn ip4(&self, source: Ipv4Addr, destination: Ipv4Addr, payload: usize) -> Vec<u8> {
        let mut ip = vec![0x45, self.tos];
        ip.extend(((payload + 20) as u16).to_be_bytes());
        ip.extend(self.identification.to_be_bytes());
        ip.extend([
            if self.dont_fragment { 0x40 } else { 0 },
            0,
            self.ttl,
            self.protocol,
            0,
            0,
        ]);
        ip.extend(source.octets());
        ip.extend(destination.octets());
        let checksum = Sum::default().bytes(&ip).finish();
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        ip
    }

    fn ip6(&self, source: Ipv6Addr, destination: Ipv6Addr, payload: usize) -> Vec<u8> {
        let mut chain = Vec::new();
        for (n, (_, body)) in self.extensions.iter().enumerate() {
            let next = self
                .extensions
                .get(n + 1)
                .map_or(self.protocol, |(number, _)| *number);
            chain.extend([next, ((body.len() + 2) / 8 - 1) as u8]);
            chain.extend(body);
        }
        let first = self
            .extensions
            .first()
            .map_or(self.protocol, |(number, _)| *number);
        let mut ip = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        ip.extend(((payload + chain.len()) as u16).to_be_bytes());
        ip.extend([first, self.ttl]);
        ip.extend(source.octets());
        ip.extend(destination.octets());
        ip.extend(chain);
        ip
    }
}

/// Whether a frame's IPv4 header checksum and its TCP or UDP checksum are right, recomputed in
/// full.
pub fn checksums_are_right(frame: &[u8]) -> bool {
    fn l4_is_right<A: Address>(frame: &[u8], packet: &super::parse::Packet<A>) -> bool {
        let l4 =
            &frame[usize::from(packet.l4)..usize::from(packet.l3) + usize::from(packet.length)];
        if packet.key.protocol == protocol::UDP && l4[6..8] == [0, 0] {
            return A::HEADER == 20;
        }
        let key = &packet.key;
        pseudo_header(key.source, key.destination, key.protocol, l4.len())
            .bytes(l4)
            .fold()
            == 0xffff
    }
    match parse(frame, false) {
        Parsed::V4(packet) => l4_is_right(frame, &packet),
        Parsed::V6(packet) => l4_is_right(frame, &packet),
        _ => false,
    }
}

/// An established TCP connection, for tests of the table.
pub fn conn(client: &str, vip: &str) -> Conn<Ipv4Addr> {
    let endpoint = |text: &str| -> (Ipv4Addr, u16) {
        match text.parse() {
            Ok(SocketAddr::V4(a)) => (*a.ip(), a.port()),
            _ => panic!("not an IPv4 endpoint: {text}"),
        }
    };
    let ((client, client_port), (vip, vip_port)) = (endpoint(client), endpoint(vip));
    Conn {
        client,
        vip,
        client_port,
        vip_port,
        backend: BackendId(0),
        last_seen: 0,
        timeout: 900,
        protocol: protocol::TCP,
        state: State::Established,
        flags: 0,
        group: 0,
        local_port: 0,
        local_address: 0,
        local_index: 0,
        pad: [],
    }
}

/// One service (TCP and UDP port 80 of 192.0.2.80 and 2001:db8::80) with backends 10.0.1.1 and
/// up, clients behind a router, one port.
pub struct Lab {
    pub snapshot: Snapshot,
}

/// FullNAT's local addresses.
pub const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 200);
pub const LOCAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x200);

pub const VIP: &str = "192.0.2.80:80";
pub const VIP6: &str = "[2001:db8::80]:80";

impl Lab {
    /// Direct routing, one backend per weight.
    pub fn new(scheduler: Scheduler, weights: &[u32]) -> Self {
        Self::with_method(ForwardMethod::DirectRouting, scheduler, weights)
    }

    pub fn with_method(method: ForwardMethod, scheduler: Scheduler, weights: &[u32]) -> Self {
        let backends: Vec<Backend> = weights
            .iter()
            .enumerate()
            .map(|(n, &weight)| backend(n as u32, method, weight))
            .collect();
        let members: Vec<Member> = backends
            .iter()
            .map(|b| Member {
                address: b.address,
                port: b.port,
                weight: b.configured_weight,
            })
            .collect();
        let service = Service {
            id: ServiceId(0),
            name: "web".into(),
            method,
            scheduler,
            locals: [0, 1].into(),
            backends: backends.iter().map(|b| b.id).collect(),
            weights: Arc::default(),
            maglev: Arc::new(Maglev::build(&members, SMALL_SIZE)),
            hash_port: true,
            hash_fallback: false,
            when_no_backend: WhenNoBackend::Drop,
            untracked: Untracked::Drop,
            timeouts: Timeouts::default(),
            one_packet: false,
            mss_clamp: 0,
            limits: Limits::default(),
            persistence: None,
        };
        let vips = [VIP, VIP6].map(|text| match text.parse::<SocketAddr>() {
            Ok(endpoint) => endpoint.ip(),
            Err(_) => panic!("not an endpoint: {text}"),
        });
        let listens = vips.into_iter().flat_map(|vip| {
            let length = if vip.is_ipv4() { 32 } else { 128 };
            [protocol::TCP, protocol::UDP].map(|protocol| {
                let prefix = Prefix::new(vip, length);
                (
                    Listen {
                        protocol,
                        prefix,
                        first_port: 80,
                        last_port: 80,
                    },
                    ServiceId(0),
                )
            })
        });
        let locals: [IpAddr; 2] = [LOCAL.into(), LOCAL6.into()];
        let backends = backends.into_iter().map(Some).collect();
        let mut service = service;
        service.weights = Arc::new(Weights::of(&service.backends, &backends));
        let snapshot = Snapshot {
            generation: 1,
            services: [Some(Arc::new(service))].into_iter().collect(),
            backends,
            service_map: Arc::new(ServiceMap::new(listens)),
            ports: [PortView {
                mac: OUR_MAC,
                mtu: 1500,
                queues: None,
            }]
            .into(),
            vlans: Arc::default(),
            routes: Arc::new(routes(0)),
            own: Arc::new(vips.into_iter().chain(locals).collect()),
            checks: Arc::default(),
            two_way: method.is_two_way(),
            ownership: Ownership::default(),
            sides: Arc::new(Sides::new(
                vips.map(|vip| {
                    let length = if vip.is_ipv4() { 32 } else { 128 };
                    (Prefix::new(vip, length), method.is_two_way())
                }),
                (0..).zip(locals),
                [],
            )),
            fronts: Arc::default(),
            locals: locals.into(),
            flood_guard: 0,
        };
        Self { snapshot }
    }

    /// Puts the client side's router and the backends into VLANs of the port; 0 is none.
    pub fn in_vlans(&mut self, clients: u16, backends: u16) {
        let snapshot = &mut self.snapshot;
        let mut ids = vec![clients, backends];
        ids.retain(|&id| id != 0);
        let interface = |id| {
            ids.iter()
                .position(|&of| of == id)
                .map_or(0, |at| at as u8 + 1)
        };
        let port = snapshot.ports[0].clone();
        snapshot.ports = vec![port; 1 + ids.len()].into();
        snapshot.routes = Arc::new(routes(interface(clients)));
        let backends_on = interface(backends);
        let vlans = ids.into_iter().map(|id| Vlan { port: 0, id });
        snapshot.vlans = Arc::new(Vlans::new(1, vlans.collect()));
        for n in 0..snapshot.backends.len() as u32 {
            let mut backend = self.backend(n);
            if let Some(link) = &mut backend.link {
                link.port = backends_on;
            }
        }
    }

    /// Lets the service listen on these prefixes and ranges of ports instead, by TCP and UDP.
    pub fn listen(&mut self, listens: &[(&str, u8, u16, u16)]) {
        let prefix = |&(address, length, ..): &(&str, u8, u16, u16)| {
            let address: IpAddr = address
                .parse()
                .unwrap_or_else(|_| panic!("not an address: {address}"));
            Prefix::new(address, length)
        };
        let both = listens.iter().flat_map(|listen| {
            [protocol::TCP, protocol::UDP].map(|protocol| {
                let listen = Listen {
                    protocol,
                    prefix: prefix(listen),
                    first_port: listen.2,
                    last_port: listen.3,
                };
                (listen, ServiceId(0))
            })
        });
        let snapshot = &mut self.snapshot;
        snapshot.service_map = Arc::new(ServiceMap::new(both));
        let locals = snapshot.locals.iter().copied();
        let backends = snapshot.backends.iter().flatten().map(|b| b.address);
        snapshot.own = Arc::new(snapshot.service_map.vips().chain(locals.clone()).collect());
        snapshot.sides = Arc::new(Sides::new(
            listens.iter().map(|l| (prefix(l), snapshot.two_way)),
            (0..).zip(locals),
            backends,
        ));
    }

    /// A backend, to be changed; the service's weights follow when the loan ends.
    pub fn backend(&mut self, id: u32) -> Loan<'_> {
        match self.snapshot.backends.get(id) {
            Some(Some(_)) => Loan { lab: self, id },
            _ => panic!("no backend {id}"),
        }
    }

    pub fn service(&mut self) -> &mut Service {
        match self.snapshot.services.get_mut(0) {
            Some(Some(service)) => Arc::make_mut(service),
            _ => panic!("no service"),
        }
    }
}

/// A backend of the lab while it is being changed.
pub struct Loan<'l> {
    lab: &'l mut Lab,
    id: u32,
}

impl std::ops::Deref for Loan<'_> {
    type Target = Backend;
    fn deref(&self) -> &Backend {
        match self.lab.snapshot.backend(BackendId(self.id)) {
            Some(backend) => backend,
            None => panic!("no backend {}", self.id),
        }
    }
}

impl std::ops::DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut Backend {
        match self.lab.snapshot.backends.get_mut(self.id) {
            Some(Some(backend)) => backend,
            _ => panic!("no backend {}", self.id),
        }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let snapshot = &self.lab.snapshot;
        let Some(service) = snapshot.service(ServiceId(0)) else {
            return;
        };
        let weights = Weights::of(&service.backends, &snapshot.backends);
        self.lab.service().weights = Arc::new(weights);
    }
}

/// Keeps what was sent: (port, frame). Empty frames are made while `buffers` lasts.
#[derive(Debug)]
pub struct TestOutbox {
    pub sent: Vec<(u8, MemoryFrame)>,
    pub buffers: usize,
}

impl Default for TestOutbox {
    fn default() -> Self {
        Self {
            sent: Vec::new(),
            buffers: usize::MAX,
        }
    }
}

impl Outbox for TestOutbox {
    type Frame = MemoryFrame;

    fn make(&mut self) -> Option<MemoryFrame> {
        self.buffers = self.buffers.checked_sub(1)?;
        Some(MemoryFrame::new(&[]))
    }

    fn send(&mut self, port: u8, frame: MemoryFrame) {
        assert!(
            frame::Frame::bytes(&frame).len() >= super::parse::ETHERNET,
            "an unfinished frame was sent"
        );
        self.sent.push((port, frame));
    }
}

/// The default route, both families, by the client side's router on `interface`.
fn routes(interface: u8) -> Routes {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&CLIENT_MAC);
    macs[6..].copy_from_slice(&OUR_MAC);
    let target = Target::Via(Some(Link {
        macs,
        port: interface,
    }));
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    Routes::new(
        any.map(|address| (Prefix::new(address, 0), target))
            .to_vec(),
        FastMap::default(),
    )
}

fn backend(n: u32, method: ForwardMethod, weight: u32) -> Backend {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&backend_mac(n as u8));
    macs[6..].copy_from_slice(&OUR_MAC);
    Backend {
        link: Some(Link { macs, port: 0 }),
        method,
        state: BackendState::Up,
        port: if method.is_two_way() { 8080 } else { 0 },
        mtu: if method == ForwardMethod::Tunnel {
            1480
        } else {
            1500
        },
        service: ServiceId(0),
        id: BackendId(n),
        outer_spread: 0,
        address: Ipv4Addr::from_bits(0x0a00_0101 + n).into(),
        outer_source: Ipv4Addr::new(10, 0, 1, 254).into(),
        weight,
        configured_weight: weight,
        upper: 0,
        lower: 0,
    }
}
