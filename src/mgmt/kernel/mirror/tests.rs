//! Messages as Linux sends them, and what is learned from them.

use super::*;
use rtnetlink::packet_route::neighbour::NeighbourHeader;
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder, RouteNextHopBuilder};

/// Beside port 0, beside port 3, and one that is nobody's.
const WAN: u32 = 7;
const LAN: u32 = 8;
const OTHER: u32 = 2;

struct Told(Mirror);

impl Told {
    fn new() -> Self {
        Told(Mirror::new([(WAN, 0), (LAN, 3)].into(), Some(179)))
    }

    fn say(&mut self, message: RouteNetlinkMessage) -> bool {
        self.0.take(NetlinkHeader::default(), &message)
    }

    fn replace(&mut self, route: RouteMessage) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REPLACE;
        self.0.take(header, &RouteNetlinkMessage::NewRoute(route));
    }

    fn add(&mut self, route: &RouteMessage) {
        self.say(RouteNetlinkMessage::NewRoute(route.clone()));
    }

    fn remove(&mut self, route: &RouteMessage) {
        self.say(RouteNetlinkMessage::DelRoute(route.clone()));
    }

    /// The routes of a port as `prefix metric via`.
    fn routes(&self, port: u16) -> Vec<String> {
        let learned = self.0.learned();
        let text = |route: &LearnedRoute| {
            let via = route.via.map_or("link".to_owned(), |via| via.to_string());
            let Prefix { address, length } = route.prefix;
            format!("{address}/{length} {} {via}", route.metric)
        };
        learned.ports[&port].routes.iter().map(text).collect()
    }
}

fn prefix(text: &str) -> (IpAddr, u8) {
    let (address, length) = text.split_once('/').unwrap();
    (address.parse().unwrap(), length.parse().unwrap())
}

fn route(to: &str, via: Option<&str>, index: u32, metric: u32) -> RouteMessage {
    let (address, length) = prefix(to);
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, length)
        .unwrap()
        .output_interface(index)
        .priority(metric);
    if let Some(via) = via {
        builder = builder.gateway(via.parse().unwrap()).unwrap();
    }
    builder.build()
}

#[test]
fn routes_come_and_go_and_those_of_other_interfaces_do_not_matter() {
    let mut told = Told::new();
    let (first, second) = (
        route("10.9.0.0/24", Some("192.0.2.9"), WAN, 20),
        route("10.9.0.0/24", Some("192.0.2.8"), WAN, 10),
    );
    told.add(&first);
    told.add(&second);
    told.add(&first);
    told.add(&route("10.8.0.0/24", None, LAN, 0));
    told.add(&route("0.0.0.0/0", Some("203.0.113.1"), OTHER, 0));
    told.add(&route("2001:db8:9::/48", Some("fe80::1"), WAN, 1024));
    told.add(&route("fe80::/64", None, WAN, 256));
    assert_eq!(
        told.routes(0),
        [
            "10.9.0.0/24 10 192.0.2.8",
            "10.9.0.0/24 20 192.0.2.9",
            "2001:db8:9::/48 1024 fe80::1"
        ]
    );
    assert_eq!(told.routes(3), ["10.8.0.0/24 0 link"]);
    told.remove(&second);
    told.remove(&second);
    assert_eq!(
        told.routes(0),
        ["10.9.0.0/24 20 192.0.2.9", "2001:db8:9::/48 1024 fe80::1"]
    );
    told.0.forget();
    assert_eq!(told.routes(0), [""; 0]);
}

#[test]
fn a_replaced_route_leaves_nothing_behind() {
    let mut told = Told::new();
    told.add(&route("10.9.0.0/24", Some("192.0.2.9"), WAN, 0));
    told.replace(route("10.9.0.0/24", Some("10.0.0.9"), LAN, 0));
    assert_eq!(told.routes(0), [""; 0]);
    assert_eq!(told.routes(3), ["10.9.0.0/24 0 10.0.0.9"]);
    told.replace(route("10.9.0.0/24", Some("203.0.113.1"), OTHER, 0));
    assert_eq!(told.routes(3), [""; 0]);
}

#[test]
fn of_several_paths_each_counts() {
    let mut told = Told::new();
    let path = |via: &str, index| {
        let builder = RouteNextHopBuilder::new_ipv4().interface(index);
        builder.via(via.parse().unwrap()).unwrap().build()
    };
    let paths = vec![path("192.0.2.8", WAN), path("10.0.0.8", LAN)];
    let (address, length) = prefix("10.9.0.0/24");
    let both = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, length)
        .unwrap()
        .multipath(paths)
        .build();
    told.add(&both);
    assert_eq!(told.routes(0), ["10.9.0.0/24 0 192.0.2.8"]);
    assert_eq!(told.routes(3), ["10.9.0.0/24 0 10.0.0.8"]);
    told.remove(&both);
    assert_eq!(told.routes(3), [""; 0]);
}

#[test]
fn our_own_routes_are_no_news_and_only_our_table_announces() {
    let mut told = Told::new();
    let own = |to: &str, table| {
        let (address, length) = prefix(to);
        RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, length)
            .unwrap()
            .output_interface(WAN)
            .table_id(table)
            .protocol(PROTOCOL)
            .build()
    };
    told.add(&own("0.0.0.0/0", 254));
    told.add(&own("192.0.2.80/32", 179));
    told.add(&own("192.0.2.81/32", 180));
    told.add(&own("2001:db8::80/128", 179));
    assert_eq!(told.routes(0), [""; 0]);
    let announced = || -> Vec<String> {
        let all = told.0.announced().iter();
        all.map(|prefix| prefix.address.to_string()).collect()
    };
    assert_eq!(announced(), ["192.0.2.80", "2001:db8::80"]);
    told.remove(&own("192.0.2.80/32", 179));
    assert_eq!(told.0.learned().announced.len(), 1);
}

#[test]
fn addresses_are_held_on_any_interface_and_an_end_of_one_is_doubtful() {
    let mut told = Told::new();
    let address = |index, last| {
        let address = std::net::Ipv4Addr::new(192, 0, 2, last);
        AddressMessageBuilder::<std::net::Ipv4Addr>::new()
            .index(index)
            .address(address, 24)
            .build()
    };
    assert!(!told.say(RouteNetlinkMessage::NewAddress(address(WAN, 80))));
    told.say(RouteNetlinkMessage::NewAddress(address(OTHER, 81)));
    let learned = told.0.learned();
    assert_eq!(learned.addresses.len(), 2);
    assert_eq!(
        learned.ports[&0].addresses,
        [("192.0.2.80".parse().unwrap(), 24)]
    );
    assert!(told.say(RouteNetlinkMessage::DelAddress(address(WAN, 80))));
    assert!(!told.say(RouteNetlinkMessage::DelAddress(address(OTHER, 81))));
    assert_eq!(told.0.learned().addresses.len(), 0);
}

#[test]
fn only_permanent_neighbours_count() {
    let mut told = Told::new();
    let neighbour = |state| {
        let mut message = NeighbourMessage::default();
        message.header = NeighbourHeader {
            ifindex: WAN,
            state,
            ..NeighbourHeader::default()
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([192, 0, 2, 7].into())),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 7]),
        ];
        RouteNetlinkMessage::NewNeighbour(message)
    };
    told.say(neighbour(NeighbourState::Reachable));
    assert_eq!(told.0.learned().ports[&0].neighbours.len(), 0);
    told.say(neighbour(NeighbourState::Permanent));
    assert_eq!(told.0.learned().ports[&0].neighbours.len(), 1);
    told.say(neighbour(NeighbourState::Stale));
    assert_eq!(told.0.learned().ports[&0].neighbours.len(), 0);
}
