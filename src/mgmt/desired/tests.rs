//! A snapshot that shares with its predecessor is the one that would be built from nothing, after
//! any series of changes; and what has not changed is shared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Changed, Desired, Links, PortFacts, RETA};
use crate::lb::route::Prefix;
use crate::lb::snapshot::{BackendId, BackendState, Snapshot};
use crate::mgmt::config::{
    self, Backend, Config, Feedback, Method, Quorum, Scheduler, Service, SorryServer,
};
use crate::mgmt::kernel::{Learned, LearnedRoute};
use crate::mgmt::net::{Mac, NetState, Output, net_ports};

const SERVICES: usize = 5;
const ADDRESSES: usize = 9;

/// Backends next door on either port, behind a route, and behind the gateways.
fn address(n: usize) -> IpAddr {
    let last = n as u8;
    match n % 5 {
        0 => Ipv4Addr::new(192, 0, 2, 100 + last).into(),
        1 => Ipv4Addr::new(10, 0, 0, 100 + last).into(),
        2 => Ipv4Addr::new(172, 16, 0, last).into(),
        3 => Ipv4Addr::new(203, 0, 113, last).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)).into(),
    }
}

/// Next hops: the backends next door, both gateways and the router of the route.
fn hops() -> Vec<IpAddr> {
    let routers = ["192.0.2.1", "10.0.0.254", "10.0.0.9"];
    let routers = routers.map(|text| text.parse().expect("an address"));
    (0..ADDRESSES).map(address).chain(routers).collect()
}

fn ports() -> Config {
    config::parse(
        r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["192.0.2.2/24", "2001:db8::ff/64"]
gateway = "192.0.2.1"
check_address = "192.0.2.3"
[[port]]
name = "lan"
device = "net_null1"
addresses = ["10.0.0.1/24"]
gateway = "10.0.0.254"
[[port.route]]
to = "172.16.0.0/16"
via = "10.0.0.9"
[[service]]
name = "any"
listen = ["tcp:192.0.2.80:80"]
method = "nat"
scheduler = "rr"
"#,
    )
    .expect("a valid configuration")
}

/// What an operator, checks, feedback and the network do.
#[derive(Clone, Debug)]
enum Step {
    Service(usize, Option<Options>),
    Backend(usize, usize, Option<(u16, bool)>),
    Gateways(bool),
    Weight(u32, Option<u32>),
    CheckedWeight(u32, Option<u16>),
    Down(u32, bool),
    Hop(usize, Option<u8>),
    Mac(usize, u8),
    /// What Linux routes: behind which router of the second port what is behind the first one's
    /// gateway is.
    Learned(Option<bool>),
    Wait(u64),
    /// Connections of removed backends end, those of one id in so many excepted.
    Collect(u32),
    Build,
}

#[derive(Clone, Debug)]
struct Options {
    method: Method,
    scheduler: Scheduler,
    inhibit: bool,
    hash_too: bool,
    sorry: Option<Method>,
    hysteresis: u32,
}

fn options() -> impl Strategy<Value = Options> {
    let method = || {
        prop::sample::select(vec![
            Method::Nat,
            Method::FullNat,
            Method::Tunnel,
            Method::DirectRouting,
        ])
    };
    let scheduler = prop::sample::select(vec![Scheduler::Rr, Scheduler::Wlc, Scheduler::Lblc]);
    let flags = any::<(bool, bool)>();
    let sorry = prop::option::of(method());
    (method(), scheduler, flags, sorry, 0..2u32).prop_map(
        |(method, scheduler, (inhibit, hash_too), sorry, hysteresis)| Options {
            method,
            scheduler,
            inhibit,
            hash_too,
            sorry,
            hysteresis,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let ids = 0..(SERVICES * 4) as u32;
    prop_oneof![
        1 => (0..SERVICES, prop::option::weighted(0.8, options()))
            .prop_map(|(n, options)| Step::Service(n, options)),
        3 => (0..SERVICES, 0..ADDRESSES, prop::option::weighted(0.7, (0..4u16, any::<bool>())))
            .prop_map(|(n, address, backend)| Step::Backend(n, address, backend)),
        1 => any::<bool>().prop_map(Step::Gateways),
        2 => (ids.clone(), prop::option::of(0..5u32)).prop_map(|(id, w)| Step::Weight(id, w)),
        1 => (ids.clone(), prop::option::of(0..5u16))
            .prop_map(|(id, w)| Step::CheckedWeight(id, w)),
        3 => (ids, any::<bool>()).prop_map(|(id, down)| Step::Down(id, down)),
        2 => (0..ADDRESSES + 3, prop::option::of(1..4u8)).prop_map(|(n, mac)| Step::Hop(n, mac)),
        1 => (0..2usize, any::<u8>()).prop_map(|(port, mac)| Step::Mac(port, mac)),
        1 => prop::option::of(any::<bool>()).prop_map(Step::Learned),
        1 => (1..60u64).prop_map(Step::Wait),
        1 => (1..4u32).prop_map(Step::Collect),
        4 => Just(Step::Build),
    ]
}

struct World {
    config: Config,
    services: Vec<Option<(Options, Vec<Backend>)>>,
    hops: Vec<Option<u8>>,
    learned: Learned,
    net: NetState,
    now: Instant,
    desired: Desired,
}

impl World {
    fn new() -> Self {
        let (config, now) = (ports(), Instant::now());
        let facts = config.ports.iter().zip(0..).map(|(port, n)| PortFacts {
            name: port.name.clone(),
            mac: [2, 0, 0, 0, 0, n],
            mtu: 1500,
            device: usize::from(n),
            vlan: None,
        });
        let facts: Vec<PortFacts> = facts.collect();
        let net = NetState::new(
            net_ports(&config, &facts, &Learned::default()),
            now,
            &mut Output::default(),
        );
        Self {
            desired: Desired::new(config.clone(), facts, RETA),
            config,
            services: vec![None; SERVICES],
            hops: vec![None; ADDRESSES + 3],
            learned: Learned::default(),
            net,
            now,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Service(n, None) => self.services[n] = None,
            Step::Service(n, Some(options)) => match &mut self.services[n] {
                Some(service) => service.0 = options,
                none => *none = Some((options, Vec::new())),
            },
            Step::Backend(n, at, backend) => {
                let Some((_, backends)) = &mut self.services[n] else {
                    return;
                };
                backends.retain(|b| b.address != address(at));
                backends.extend(backend.map(|(weight, drain)| self::backend(at, weight, drain)));
            }
            Step::Gateways(both) => {
                let gateways = &mut self.config.ports[1].gateways;
                gateways.truncate(usize::from(both));
                if both && gateways.is_empty() {
                    gateways.push("10.0.0.254".parse().expect("an address"));
                }
            }
            Step::Weight(id, weight) => drop(self.desired.set_weight(BackendId(id), weight)),
            Step::CheckedWeight(id, weight) => {
                self.desired.set_checked_weight(BackendId(id), weight);
            }
            Step::Down(id, down) => drop(self.desired.set_down(BackendId(id), down)),
            Step::Hop(n, mac) => self.hops[n] = mac,
            Step::Mac(port, mac) => self.desired.set_port_mac(port, [2, 0, 0, 0, 1, mac]),
            Step::Learned(router) => self.learn(router),
            Step::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.desired.look_at_drains(self.now);
            }
            Step::Collect(kept) => {
                let in_use = self.desired.last.generation;
                let has_connections = |id: BackendId| id.0.is_multiple_of(kept + 1);
                self.desired.collect_removed(in_use, has_connections);
            }
            Step::Build => self.build(),
        }
        self.apply();
    }

    fn learn(&mut self, router: Option<bool>) {
        let router = router.map(|second| if second { "10.0.0.9" } else { "10.0.0.254" });
        let route = router.map(|router| LearnedRoute {
            metric: 0,
            prefix: Prefix::new([203, 0, 113, 0].into(), 24),
            via: Some(router.parse().expect("an address")),
        });
        let of_port = self.learned.ports.entry(1).or_default();
        of_port.routes = route.into_iter().collect();
    }

    /// What of the configuration and the network is other than before.
    fn apply(&mut self) {
        let services = self.services.iter().enumerate();
        let services = services.filter_map(|(n, service)| {
            let (options, backends) = service.as_ref()?;
            Some(self::service(n, options, backends))
        });
        self.config.services = services.collect();
        if self.config != self.desired.config {
            self.desired.replace(self.config.clone());
        }
        let mut ports = net_ports(&self.config, self.desired.ports(), &self.learned);
        for (hop, mac) in hops().into_iter().zip(&self.hops) {
            let port = usize::from(matches!(hop, IpAddr::V4(a) if a.octets()[0] == 10));
            let mac = mac.map(|mac| Mac::from_bytes(&[2, 0, 0, 0, 2, mac]));
            ports[port].neighbours.extend(mac.map(|mac| (hop, mac)));
        }
        self.net.set_ports(ports, self.now, &mut Output::default());
    }

    fn build(&mut self) {
        let mut other = self.desired.clone();
        other.change_everything();
        let changes = self.desired.look_at_quorums();
        assert_eq!(changes, other.look_at_quorums());
        let whole = from_nothing(&self.desired, &self.net);
        let built = self.desired.build(&self.net);
        assert_eq!(*built, *whole);
        assert_eq!(built.generation, self.desired.last.generation);
        check(&built, &self.desired);
    }
}

fn backend(at: usize, weight: u16, drain: bool) -> Backend {
    Backend {
        name: format!("b{at}"),
        address: address(at),
        port: Some(8000 + at as u16),
        weight,
        upper: None,
        lower: None,
        drain,
    }
}

fn service(n: usize, options: &Options, backends: &[Backend]) -> Service {
    let listen = format!("tcp:198.51.100.{n}:80")
        .parse()
        .expect("an address");
    let (method, scheduler) = (options.method, options.scheduler);
    let mut service = Service::new(format!("s{n}"), vec![listen], method, scheduler);
    service.table_size = Some(13);
    service.inhibit = options.inhibit;
    service.drain_timeout = Some(Duration::from_secs(50));
    service.backends = backends.to_vec();
    service.feedback = options.hash_too.then(|| Feedback {
        hash_too: true,
        ..Feedback::default()
    });
    service.quorum = Some(Quorum {
        backends: 2,
        hysteresis: options.hysteresis,
    });
    service.sorry_server = options.sorry.map(|method| SorryServer {
        address: address(n),
        port: Some(80),
        method: Some(method),
    });
    if method == Method::FullNat {
        service.local_addresses = vec![Ipv4Addr::new(192, 0, 2, 50 + n as u8).into()];
    }
    service
}

/// The next snapshot, with nothing taken from the last one.
fn from_nothing(desired: &Desired, net: &NetState) -> Arc<Snapshot> {
    let mut other = desired.clone();
    other.last = Arc::new(Snapshot {
        generation: desired.last.generation,
        ..Snapshot::default()
    });
    other.links = Links::default();
    other.changed = Changed::default();
    other.change_everything();
    other.changed.backends = desired.removed.keys().copied().collect();
    other.build(net)
}

/// What holds of every snapshot, whatever it was built from.
fn check(built: &Snapshot, desired: &Desired) {
    let (mut services, mut backends) = (0, 0);
    for service in &desired.config.services {
        let id = desired.find_service(service).expect("an id");
        let of = built.service(id).expect("in the snapshot");
        assert_eq!(*of.name, *service.name);
        for backend in &service.backends {
            let id = desired.find_backend(service, backend).expect("an id");
            let seen = built.backend(id).expect("in the snapshot");
            assert_eq!((seen.id, seen.service), (id, of.id));
            assert_eq!(seen.address, backend.address);
            assert_eq!(desired.backend_name(id).as_ref(), Some(&backend.name));
        }
        services += 1;
        backends += service.backends.len() + usize::from(service.sorry_server.is_some());
    }
    assert_eq!(built.services.iter().flatten().count(), services);
    let all = || built.backends.iter();
    let removed = all().filter(|b| desired.removed.contains_key(&b.id));
    let removed: Vec<BackendState> = removed.map(|b| b.state).collect();
    assert!(removed.iter().all(|s| *s == BackendState::Removed));
    assert_eq!(removed.len(), desired.removed.len());
    assert_eq!(all().count(), backends + removed.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn an_incremental_snapshot_is_the_whole_one(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        world.build();
        for step in steps {
            world.take(step);
        }
        world.build();
    }
}

/// So many services with 20 backends each, all behind the gateway.
fn many(services: usize) -> World {
    let mut world = World::new();
    world.hops[ADDRESSES] = Some(7);
    let service = |n: usize| {
        let listen = format!("udp:198.18.{}.{}:53", n / 256, n % 256);
        let listen = vec![listen.parse().expect("an address")];
        let mut service = Service::new(format!("m{n}"), listen, Method::Tunnel, Scheduler::Wrr);
        service.table_size = Some(13);
        let address = |b: usize| Ipv4Addr::from_bits(0x0b00_0000 + (n * 20 + b) as u32);
        service.backends.extend((0..20).map(|b| Backend {
            address: address(b).into(),
            ..backend(b, 1, false)
        }));
        service
    };
    world.config.services = (0..services).map(service).collect();
    world.desired.replace(world.config.clone());
    let ports = net_ports(&world.config, world.desired.ports(), &Learned::default());
    world
        .net
        .set_ports(ports, world.now, &mut Output::default());
    world.build();
    world
}

/// Chunks of services and backends that two snapshots do not share.
fn unshared(a: &Snapshot, b: &Snapshot) -> (usize, usize) {
    let (services, all_services) = a.services.shared(&b.services);
    let (backends, all_backends) = a.backends.shared(&b.backends);
    (all_services - services, all_backends - backends)
}

#[test]
fn one_change_among_many_copies_one_chunk_of_each_kind() {
    let mut world = many(320);
    let before = Arc::clone(&world.desired.last);
    let service = &world.config.services[100];
    let id = world.desired.find_backend(service, &service.backends[3]);
    let id = id.expect("an id");
    type Change = fn(&mut Desired, BackendId) -> bool;
    let changes: [(Change, _); 3] = [
        (|desired, id| desired.set_weight(id, Some(7)), (1, 1)),
        (|desired, id| desired.set_down(id, true), (1, 1)),
        // It stands behind the weight that is in force.
        (
            |desired, id| desired.set_checked_weight(id, Some(9)),
            (0, 0),
        ),
    ];
    for (change, copied) in changes {
        let before = Arc::clone(&world.desired.last);
        assert!(change(&mut world.desired, id));
        assert_eq!(world.desired.missing_tables(), []);
        let after = world.desired.build(&world.net);
        assert_eq!(unshared(&before, &after), copied);
        assert!(Arc::ptr_eq(&before.service_map, &after.service_map));
        assert!(Arc::ptr_eq(&before.routes, &after.routes));
        assert!(Arc::ptr_eq(&before.sides, &after.sides));
        assert!(Arc::ptr_eq(&before.own, &after.own));
    }
    let after = &world.desired.last;
    assert_eq!(unshared(&before, after), (1, 1));
    assert_eq!(after.backend(id).map(|b| b.state), Some(BackendState::Down));
    assert_eq!(after.backend(id).map(|b| b.weight), Some(7));
}

#[test]
fn what_is_no_news_copies_nothing() {
    let mut world = many(64);
    let before = Arc::clone(&world.desired.last);
    assert!(!world.desired.set_down(BackendId(5), false));
    assert!(!world.desired.set_weight(BackendId(5), None));
    let after = world.desired.build(&world.net);
    assert_eq!(unshared(&before, &after), (0, 0));
    assert_eq!(after.generation, before.generation + 1);
}

#[test]
fn a_reload_copies_what_it_changes() {
    let mut world = many(320);
    let before = Arc::clone(&world.desired.last);
    world.config.services[7].backends[0].weight = 5;
    world.desired.replace(world.config.clone());
    let after = world.desired.build(&world.net);
    assert_eq!(unshared(&before, &after), (1, 1));
    world.config.services.remove(7);
    world.desired.replace(world.config.clone());
    let after = world.desired.build(&world.net);
    let (services, backends) = unshared(&before, &after);
    assert!(services == 1 && backends <= 2, "{services} {backends}");
    assert_eq!(world.desired.removed.len(), 20);
}

#[test]
fn an_id_is_free_when_no_worker_uses_a_snapshot_that_has_it() {
    let mut world = many(2);
    world.config.services[1].backends.pop();
    let old = world.desired.last.generation;
    world.desired.replace(world.config.clone());
    assert!(
        !world.desired.collect_removed(old, |_| false),
        "not built yet"
    );
    let built = world.desired.build(&world.net);
    assert!(
        !world.desired.collect_removed(old, |_| false),
        "still in use"
    );
    assert!(!world.desired.collect_removed(built.generation, |_| true));
    assert_eq!(world.desired.removed().count(), 1);
    assert!(world.desired.collect_removed(built.generation, |_| false));
    assert_eq!(world.desired.removed().count(), 0);
    let built = world.desired.build(&world.net);
    assert_eq!(built.backends.iter().count(), 39);
    // What no snapshot ever had is forgotten at once.
    world.config.services[0].backends.push(backend(3, 1, false));
    world.desired.replace(world.config.clone());
    world.config.services[0].backends.pop();
    world.desired.replace(world.config.clone());
    assert_eq!(world.desired.removed().count(), 0);
}
