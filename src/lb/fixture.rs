//! Packets and small configurations for tests, probes and benches.

mod build;

pub use build::*;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::conn::{Conn, State, Timeouts};
use super::flow::{Address, protocol};
use super::frame::MemoryFrame;
use super::maglev::{Maglev, Member, SMALL_SIZE};
use super::owner::{Ownership, Sides};
use super::route::{Link, Prefix, Routes, Target};
use super::service_map::{Listen, ServiceMap};
use super::snapshot::*;
use super::vlan::{Vlan, Vlans};
use super::weights::Weights;
use super::{Outbox, frame};

/// An established TCP connection, for tests of the table.
pub fn conn(client: &str, vip: &str) -> Conn<Ipv4Addr> {
    let endpoint = |text: &str| -> (Ipv4Addr, u16) {
        match text.parse() {
            Ok(SocketAddr::V4(a)) => (*a.ip(), a.port()),
            _ => panic!("not an IPv4 endpoint: {text}"),
        }
    };
    established(endpoint(client), endpoint(vip))
}

/// An established TCP connection of these two ends.
pub fn established<A: Address>(client: (A, u16), vip: (A, u16)) -> Conn<A> {
    let ((client, client_port), (vip, vip_port)) = (client, vip);
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
        pad: A::Pad::default(),
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
        let backends = backends.into_iter().collect();
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
        let backends = snapshot.backends.iter().map(|b| b.address);
        snapshot.own = Arc::new(snapshot.service_map.vips().chain(locals.clone()).collect());
        snapshot.sides = Arc::new(Sides::new(
            listens.iter().map(|l| (prefix(l), snapshot.two_way)),
            (0..).zip(locals),
            backends,
        ));
    }

    /// A backend, to be changed: for the snapshot, and the service's weights, when the loan ends.
    pub fn backend(&mut self, id: u32) -> Loan<'_> {
        match self.snapshot.backend(BackendId(id)).cloned() {
            Some(backend) => Loan { lab: self, backend },
            None => panic!("no backend {id}"),
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
    backend: Backend,
}

impl std::ops::Deref for Loan<'_> {
    type Target = Backend;
    fn deref(&self) -> &Backend {
        &self.backend
    }
}

impl std::ops::DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut Backend {
        &mut self.backend
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let snapshot = &mut self.lab.snapshot;
        let backend = self.backend.clone();
        snapshot.backends.set(backend.id, Some(backend));
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
