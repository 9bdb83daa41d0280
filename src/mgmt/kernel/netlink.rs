//! What is asked of Linux by netlink: addresses and routes of the interfaces.
//!
//! A task on the management thread. What Linux refuses is a line in the log and no more.

use std::net::IpAddr;

use rtnetlink::packet_core::ErrorMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::{Error, Handle, RouteMessageBuilder};

use crate::mgmt::config::{Port, Prefix};

/// Marks our routes in Linux's tables (`ip route` shows `proto 101`).
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(101);
/// Of the routes that the configuration names: any other route goes before.
const METRIC: u32 = 4_096;

/// What an interface gets.
pub struct Setup {
    name: String,
    index: u32,
    addresses: Vec<Prefix>,
    /// By gateway, the gateways' default routes included.
    routes: Vec<(Prefix, IpAddr)>,
}

impl Setup {
    pub fn new(name: &str, index: u32, port: &Port) -> Self {
        let default = |gateway: &IpAddr| {
            let any: IpAddr = match gateway {
                IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            let everything = Prefix {
                address: any,
                length: 0,
            };
            (everything, *gateway)
        };
        let routes = port.routes.iter().map(|route| (route.to, route.via));
        Self {
            name: name.to_owned(),
            index,
            addresses: port.addresses.clone(),
            routes: routes.chain(port.gateways.iter().map(default)).collect(),
        }
    }
}

/// Gives the interfaces what they are to have.
pub async fn run(setups: Vec<Setup>) {
    let (connection, handle, _) = match rtnetlink::new_connection() {
        Ok(connection) => connection,
        Err(error) => {
            tracing::error!("no netlink, so kernel interfaces have no addresses: {error}");
            return;
        }
    };
    tokio::spawn(connection);
    for setup in &setups {
        set_up(&handle, setup).await;
    }
}

async fn set_up(handle: &Handle, setup: &Setup) {
    let Setup { name, index, .. } = setup;
    for own in &setup.addresses {
        let added = handle.address().add(*index, own.address, own.length);
        say(added.execute().await, || {
            format!("{name} does not get the address {own}")
        });
    }
    for (to, via) in &setup.routes {
        let Some(message) = route(*index, *to, *via) else {
            continue;
        };
        say(handle.route().add(message).execute().await, || {
            format!("{name} does not get the route to {to} via {via}")
        });
    }
}

fn route(index: u32, to: Prefix, via: IpAddr) -> Option<RouteMessage> {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to.address, to.length)
        .ok()?;
    let builder = builder.gateway(via).ok()?;
    let builder = builder.output_interface(index).priority(METRIC);
    Some(builder.protocol(PROTOCOL).build())
}

/// Logs what was refused, but for what is there already.
fn say(result: Result<(), Error>, what: impl FnOnce() -> String) {
    let exists = |refused: &ErrorMessage| refused.raw_code() == -libc::EEXIST;
    match result {
        Ok(()) => {}
        Err(Error::NetlinkError(refused)) if exists(&refused) => {}
        Err(error) => tracing::warn!("{}: {error}; look at `ip address` and `ip route`", what()),
    }
}
