//! What is asked of Linux by netlink, and what it says by itself.
//!
//! A thread of its own, for a routing daemon may put a million routes into the kernel at once. It
//! tells management what concerns us, at most a few times a second. What Linux refuses is a line in
//! the log and no more.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{ErrorMessage, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Error, Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;
use tokio::time::Instant;

use super::mirror::{Learned, Mirror};
use super::vips::Announced;
use crate::lb::route;
use crate::mgmt::config::{Port, Prefix};
use crate::mgmt::supervise::{Restarts, caught};

/// Marks our routes in Linux's tables (`ip route` shows `proto 101`).
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(101);
/// Of the routes that the configuration names: any other route goes before.
const METRIC: u32 = 4_096;
/// Management is told when Linux has been still for so long, or has gone on for so much longer.
const STILL: Duration = Duration::from_millis(20);
const AT_MOST: Duration = Duration::from_millis(200);
/// Linux does not say everything: how often it is asked for all.
const ASK_AGAIN: Duration = Duration::from_secs(30);

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// What an interface gets.
#[derive(Clone)]
pub struct Setup {
    name: String,
    index: u32,
    port: u16,
    addresses: Vec<Prefix>,
    /// By gateway, the gateways' default routes included.
    routes: Vec<(Prefix, IpAddr)>,
}

impl Setup {
    /// `number`: the port's index.
    pub fn new(name: &str, index: u32, number: u16, port: &Port) -> Self {
        let default = |gateway: &IpAddr| {
            let address: IpAddr = match gateway {
                IpAddr::V4(_) => [0; 4].into(),
                IpAddr::V6(_) => [0; 16].into(),
            };
            (Prefix { address, length: 0 }, *gateway)
        };
        let routes = port.routes.iter().map(|route| (route.to, route.via));
        Self {
            name: name.to_owned(),
            index,
            port: number,
            addresses: port.addresses.clone(),
            routes: routes.chain(port.gateways.iter().map(default)).collect(),
        }
    }
}

/// Management's end of the thread, which ends with it.
pub struct Netlink {
    learned: watch::Receiver<Arc<Learned>>,
    announced: watch::Sender<Announced>,
}

impl Netlink {
    /// # Errors
    /// When the system has no thread for it.
    pub fn start(setups: Vec<Setup>, table: Option<u32>) -> io::Result<Self> {
        let (sender, learned) = watch::channel(Arc::default());
        let (announced, wanted) = watch::channel(Announced::new());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let ends = Ends {
            learned: sender,
            wanted,
        };
        let work = move || runtime.block_on(follow(setups, table, ends));
        std::thread::Builder::new()
            .name("netlink".to_owned())
            .spawn(work)?;
        Ok(Self { learned, announced })
    }

    /// What is to stand in the table, some time soon.
    pub fn announce(&self, announced: Announced) {
        self.announced.send_if_modified(|known| {
            let is_news = *known != announced;
            *known = announced;
            is_news
        });
    }

    /// What Linux has, if that is other than when it was last asked for.
    pub fn news(&mut self) -> Option<Arc<Learned>> {
        let has_changed = self.learned.has_changed().unwrap_or(false);
        has_changed.then(|| Arc::clone(&self.learned.borrow_and_update()))
    }
}

/// The thread's ends of what goes between it and management.
#[derive(Clone)]
struct Ends {
    learned: watch::Sender<Arc<Learned>>,
    wanted: watch::Receiver<Announced>,
}

async fn follow(setups: Vec<Setup>, table: Option<u32>, ends: Ends) {
    let mut restarts = Restarts::of("following Linux");
    let mut fault = None;
    while !ends.learned.is_closed() {
        let follower = Follower::new(setups.clone(), table, ends.clone());
        match caught(async { follower?.run().await }).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                let error = error.to_string();
                if fault.as_ref() != Some(&error) {
                    tracing::error!("netlink: {error}; it is tried again every second");
                }
                fault = Some(error);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(_) => restarts.after_panic().await,
        }
    }
}

type Messages = futures_util::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

/// One netlink connection and what came by it.
struct Follower {
    setups: Vec<Setup>,
    handle: Handle,
    messages: Messages,
    mirror: Mirror,
    ends: Ends,
    table: Option<u32>,
    /// When the table is to be looked at again, after Linux refused something.
    correct_at: Option<Instant>,
    /// What was refused last, so that it is said once.
    refused: Option<String>,
    /// Since when and until when management has not been told what is new.
    untold: Option<(Instant, Instant)>,
    ask_at: Instant,
}

impl Follower {
    fn new(setups: Vec<Setup>, table: Option<u32>, ends: Ends) -> Result<Self, Error> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&GROUPS)
            .map_err(|error| Error::NamespaceError(error.to_string()))?;
        // It ends with the handle.
        tokio::spawn(connection);
        let ports: HashMap<u32, u16> = setups.iter().map(|s| (s.index, s.port)).collect();
        Ok(Self {
            mirror: Mirror::new(ports, table),
            setups,
            handle,
            messages: messages.map(|(message, _)| message).boxed(),
            ends,
            table,
            correct_at: None,
            refused: None,
            untold: None,
            ask_at: Instant::now(),
        })
    }

    /// Until management has gone.
    async fn run(mut self) -> Result<(), Error> {
        for setup in &self.setups {
            set_up(&self.handle, setup).await;
        }
        let Ends {
            learned,
            mut wanted,
        } = self.ends.clone();
        loop {
            let (_, tell_at) = self.untold.unwrap_or((self.ask_at, self.ask_at));
            let correct_at = self.correct_at.unwrap_or(self.ask_at);
            tokio::select! {
                () = learned.closed() => return Ok(()),
                message = self.messages.next() => match message {
                    Some(message) => self.take(message),
                    None => return Err(Error::RequestFailed),
                },
                () = tokio::time::sleep_until(self.ask_at) => self.ask().await?,
                () = tokio::time::sleep_until(tell_at), if self.untold.is_some() => {
                    self.tell();
                    self.correct().await;
                }
                Ok(()) = wanted.changed() => self.correct().await,
                () = tokio::time::sleep_until(correct_at), if self.correct_at.is_some() => {
                    self.correct().await;
                }
            }
        }
    }

    fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) {
        let is_lost = match message.payload {
            NetlinkPayload::InnerMessage(inner) => self.mirror.take(message.header, &inner),
            // More was said than there was room for.
            NetlinkPayload::Overrun(_) => true,
            _ => false,
        };
        if is_lost {
            self.ask_at = self.ask_at.min(Instant::now() + STILL);
        }
        if self.mirror.has_changed() {
            self.tell_soon();
        }
    }

    fn tell_soon(&mut self) {
        let now = Instant::now();
        let (since, _) = self.untold.unwrap_or((now, now));
        self.untold = Some((since, (now + STILL).min(since + AT_MOST)));
    }

    fn tell(&mut self) {
        self.untold = None;
        let learned = Arc::new(self.mirror.learned());
        self.ends.learned.send_if_modified(|known| {
            let is_news = **known != *learned;
            *known = learned;
            is_news
        });
    }

    /// Makes the table as it is wanted.
    async fn correct(&mut self) {
        self.correct_at = None;
        let Some(table) = self.table else { return };
        let wanted = self.ends.wanted.borrow().clone();
        let mut refused = None;
        for &(prefix, port) in &wanted {
            let setup = self.setups.iter().find(|setup| setup.port == port);
            if let Some(setup) = setup.filter(|_| !self.mirror.announced().contains(&prefix)) {
                refused = refused.or(self.announce(table, setup.index, prefix).await);
            }
        }
        let prefixes: BTreeSet<route::Prefix> = wanted.iter().map(|(prefix, _)| *prefix).collect();
        let surplus = self.mirror.announced().difference(&prefixes);
        for prefix in surplus.copied().collect::<Vec<_>>() {
            refused = refused.or(self.withdraw(table, prefix).await);
        }
        if refused.is_some() {
            self.correct_at = Some(Instant::now() + Duration::from_secs(1));
            if refused != self.refused {
                let why = refused.as_deref().unwrap_or_default();
                tracing::warn!(
                    "table {table} is not as it should be: {why}; it is tried again every second"
                );
            }
        }
        self.refused = refused;
        if self.mirror.has_changed() {
            self.tell_soon();
        }
    }

    /// Why the VIP does not stand in the table, if Linux refuses it. What it does for us, Linux does
    /// not tell us like what it does for others.
    async fn announce(&mut self, table: u32, index: u32, vip: route::Prefix) -> Option<String> {
        let added = self.handle.route().add(vip_route(table, index, vip)?);
        let refused = fault(added.execute().await, libc::EEXIST);
        if refused.is_none() {
            self.mirror.set_announced(vip, true);
        }
        refused
    }

    /// The same for what is to leave it.
    async fn withdraw(&mut self, table: u32, vip: route::Prefix) -> Option<String> {
        let mut refused = None;
        for setup in &self.setups {
            let removed = self.handle.route().del(vip_route(table, setup.index, vip)?);
            refused = refused.or(fault(removed.execute().await, libc::ESRCH));
        }
        if refused.is_none() {
            self.mirror.set_announced(vip, false);
        }
        refused
    }

    /// Asks for everything. What Linux says meanwhile is taken afterwards, in its order.
    async fn ask(&mut self) -> Result<(), Error> {
        self.mirror.forget();
        let header = Default::default();
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses.try_next().await? {
            let message = RouteNetlinkMessage::NewAddress(address);
            self.mirror.take(header, &message);
        }
        let mut neighbours = self.handle.neighbours().get().execute();
        while let Some(neighbour) = neighbours.try_next().await? {
            let message = RouteNetlinkMessage::NewNeighbour(neighbour);
            self.mirror.take(header, &message);
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut of_family = RouteMessage::default();
            of_family.header.address_family = family;
            let mut routes = self.handle.route().get(of_family).execute();
            while let Some(route) = routes.try_next().await? {
                self.mirror
                    .take(header, &RouteNetlinkMessage::NewRoute(route));
            }
        }
        self.ask_at = Instant::now() + ASK_AGAIN;
        self.tell_soon();
        Ok(())
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

/// A VIP by its interface: such a route goes with the interface, and with the program.
fn vip_route(table: u32, index: u32, vip: route::Prefix) -> Option<RouteMessage> {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(vip.address, vip.length)
        .ok()?;
    let builder = builder.output_interface(index).table_id(table);
    let builder = match vip.address {
        IpAddr::V4(_) => builder.scope(RouteScope::Link),
        IpAddr::V6(_) => builder,
    };
    Some(builder.protocol(PROTOCOL).build())
}

/// Why something was refused, but for this one reason.
fn fault(result: Result<(), Error>, unless: i32) -> Option<String> {
    let is_fine = |refused: &ErrorMessage| refused.raw_code() == -unless;
    match result {
        Ok(()) => None,
        Err(Error::NetlinkError(refused)) if is_fine(&refused) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Logs what was refused, but for what is there already.
fn say(result: Result<(), Error>, what: impl FnOnce() -> String) {
    if let Some(why) = fault(result, libc::EEXIST) {
        tracing::warn!("{}: {why}; look at `ip address` and `ip route`", what());
    }
}
