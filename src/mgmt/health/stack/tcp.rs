//! One TCP connection of a probe, as a tokio stream.
//!
//! Each has its own smoltcp interface with its one socket. It is driven from three sides, always
//! under its lock: a packet arrives (at once, from the punt ring's reader), the probe reads or
//! writes, and smoltcp's own timer (retransmission) runs out while the probe waits.

use super::incoming::Incoming;
use super::{NoPort, Protocol, Reservation, Slot, Stack, lock, version};
use crate::mgmt::health::route::Route;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{self, RecvError, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Room for what has arrived and was not read yet, and for what was not acknowledged yet.
const RECEIVE_BUFFER: usize = 16 * 1024;
const SEND_BUFFER: usize = 4 * 1024;

/// What the stack's look-up leads to.
pub(super) struct Link {
    route: Route,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    device: Queues,
    reader: Option<Waker>,
    writer: Option<Waker>,
    refused: Option<String>,
    stamp: Option<Instant>,
}

/// Hands a packet to its connection. False if it is not from whom the probe speaks to.
pub(super) fn push(
    link: &Mutex<Link>,
    stack: &Stack,
    incoming: &Incoming<'_>,
    packet: &[u8],
    stamp: Instant,
) -> bool {
    let mut link = lock(link);
    if !incoming.is_about(&link.route) {
        return false;
    }
    link.stamp = Some(stamp);
    if let Some(why) = incoming.refusal() {
        link.refused = Some(why.to_owned());
    } else {
        link.device.received.push_back(packet.to_vec());
        link.drive(stack);
    }
    for waker in [link.reader.take(), link.writer.take()] {
        waker.into_iter().for_each(Waker::wake);
    }
    true
}

impl Link {
    fn new(route: Route, port: u16, seed: u64, stack: &Stack) -> io::Result<Self> {
        let mut device = Queues {
            received: VecDeque::new(),
            sent: Vec::new(),
            mtu: stack.shared.mtu - route.overhead(),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, stack.now());
        configure(&mut interface, route.source())?;
        let receive = tcp::SocketBuffer::new(vec![0; RECEIVE_BUFFER]);
        let send = tcp::SocketBuffer::new(vec![0; SEND_BUFFER]);
        let mut socket = tcp::Socket::new(receive, send);
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let target = route.target();
        let remote = IpEndpoint::new(target.ip().into(), target.port());
        let local = IpEndpoint::new(route.source().into(), port);
        socket
            .connect(interface.context(), remote, local)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why.to_string()))?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Self {
            route,
            interface,
            sockets,
            handle,
            device,
            reader: None,
            writer: None,
            refused: None,
            stamp: None,
        })
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Lets smoltcp read what arrived and say what it has to say.
    fn drive(&mut self, stack: &Stack) {
        let now = stack.now();
        self.interface
            .poll(now, &mut self.device, &mut self.sockets);
        for packet in self.device.sent.drain(..) {
            stack.send(&self.route, packet);
        }
    }

    fn check_refused(&self) -> io::Result<()> {
        match &self.refused {
            Some(why) => Err(io::Error::new(io::ErrorKind::HostUnreachable, why.clone())),
            None => Ok(()),
        }
    }
}

/// The interface's address and a route for everything; on an IP medium the gateway named in it
/// is never used.
fn configure(interface: &mut Interface, source: IpAddr) -> io::Result<()> {
    let length = match source {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    interface.update_ip_addrs(|addresses| {
        // Its capacity is at least one.
        let _ = addresses.push(IpCidr::new(source.into(), length));
    });
    let routes = interface.routes_mut();
    let added = match source {
        IpAddr::V4(ip) => routes.add_default_ipv4_route(ip).map(drop),
        IpAddr::V6(ip) => routes.add_default_ipv6_route(ip).map(drop),
    };
    added.map_err(|_| io::ErrorKind::OutOfMemory.into())
}

/// A probe's connection. Dropped, it resets what is left of the connection: a probe leaves
/// nothing behind on the backend.
pub(in crate::mgmt::health) struct TcpStream {
    link: Arc<Mutex<Link>>,
    timer: Pin<Box<Sleep>>,
    reservation: Reservation,
}

impl TcpStream {
    /// Connects; the caller limits how long it waits.
    pub async fn connect(stack: &Stack, route: Route) -> io::Result<Self> {
        let target = route.target().ip();
        if version(route.source()) != version(target) || target.is_multicast() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let no_port = |why: NoPort| io::Error::new(io::ErrorKind::AddrInUse, why.to_string());
        let reservation = stack.reserve(Protocol::Tcp, &route).map_err(no_port)?;
        let port = reservation.key.port;
        let link = Link::new(route, port, reservation.random(), stack)?;
        let link = Arc::new(Mutex::new(link));
        reservation.fill(Slot::Tcp(link.clone()));
        let mut stream = Self {
            link,
            timer: Box::pin(tokio::time::sleep_until(stack.shared.start)),
            reservation,
        };
        poll_fn(|context| {
            stream.drive_until(context, Side::Write, |link| {
                link.check_refused()?;
                match link.socket().state() {
                    State::SynSent | State::SynReceived => Ok(None),
                    State::Closed => Err(io::ErrorKind::ConnectionRefused.into()),
                    _ => Ok(Some(())),
                }
            })
        })
        .await?;
        Ok(stream)
    }

    /// When a worker had the last packet of this connection.
    pub fn stamp(&self) -> Option<Instant> {
        lock(&self.link).stamp
    }

    /// A handle that tells the stamp after the stream was given to a library.
    pub fn stamps(&self) -> Stamps {
        Stamps(self.link.clone())
    }

    /// Drives the connection until `done` says something; until then the probe is woken by
    /// packets and by smoltcp's timer.
    fn drive_until<T>(
        &mut self,
        context: &mut Context<'_>,
        side: Side,
        mut done: impl FnMut(&mut Link) -> io::Result<Option<T>>,
    ) -> Poll<io::Result<T>> {
        let stack = &self.reservation.stack;
        let mut link = lock(&self.link);
        loop {
            link.drive(stack);
            if let Some(value) = done(&mut link).transpose() {
                // What was read or written may open a window or fill a segment.
                link.drive(stack);
                return Poll::Ready(value);
            }
            let waker = Some(context.waker().clone());
            match side {
                Side::Read => link.reader = waker,
                Side::Write => link.writer = waker,
            }
            let Link {
                interface, sockets, ..
            } = &mut *link;
            let Some(due) = interface.poll_at(stack.now(), sockets) else {
                return Poll::Pending;
            };
            self.timer.as_mut().reset(stack.at(due));
            ready!(self.timer.as_mut().poll(context));
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Read,
    Write,
}

/// See [`TcpStream::stamps`].
pub(in crate::mgmt::health) struct Stamps(Arc<Mutex<Link>>);

impl Stamps {
    pub fn last(&self) -> Option<Instant> {
        lock(&self.0).stamp
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.drive_until(context, Side::Read, |link| {
            let socket = link.socket();
            if socket.can_recv() {
                let read = socket.recv(|data| {
                    let len = data.len().min(buffer.remaining());
                    buffer.put_slice(&data[..len]);
                    (len, ())
                });
                return read.map(Some).map_err(io::Error::other);
            }
            if socket.may_recv() {
                return link.check_refused().map(|()| None);
            }
            // Nothing more will come: the other end has finished, or it has reset.
            match socket.recv(|_| (0, ())) {
                Err(RecvError::InvalidState) => Err(io::ErrorKind::ConnectionReset.into()),
                _ => Ok(Some(())),
            }
        })
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.drive_until(context, Side::Write, |link| {
            link.check_refused()?;
            let socket = link.socket();
            if !socket.may_send() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match socket.send_slice(data) {
                Ok(0) if !data.is_empty() => Ok(None),
                sent => sent.map(Some).map_err(io::Error::other),
            }
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut link = lock(&self.link);
        link.socket().close();
        link.drive(&self.reservation.stack);
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        let mut link = lock(&self.link);
        link.socket().abort();
        link.drive(&self.reservation.stack);
    }
}

/// smoltcp's view of the way in and out.
struct Queues {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    mtu: usize,
}

struct RxToken(Vec<u8>);

struct TxToken<'a>(&'a mut Vec<Vec<u8>>);

impl phy::Device for Queues {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(RxToken, TxToken<'_>)> {
        let packet = self.received.pop_front()?;
        Some((RxToken(packet), TxToken(&mut self.sent)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<TxToken<'_>> {
        Some(TxToken(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut packet = vec![0; len];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}
