//! Finds the hops to a server, as traceroute does by UDP.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{ANSWER_WITHIN, ASK_AT_MOST, LARGEST_PACKET};

/// How long one look for an answer may last.
const TRACE_LOOK: Duration = Duration::from_millis(20);

pub fn trace(address: &str, hops: &str) -> io::Result<()> {
    let server: SocketAddr = address.parse().map_err(io::Error::other)?;
    let hops: u32 = hops.parse().map_err(io::Error::other)?;
    let (domain, protocol) = match server {
        SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    // Read by the same calls as a UDP socket.
    let errors = UdpSocket::from(Socket::new(domain, Type::RAW, Some(protocol))?);
    errors.set_read_timeout(Some(TRACE_LOOK))?;
    for hop in 1..=hops {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        match server {
            SocketAddr::V4(_) => socket.set_ttl_v4(hop)?,
            SocketAddr::V6(_) => socket.set_unicast_hops_v6(hop)?,
        }
        socket.connect(&server.into())?;
        socket.set_read_timeout(Some(TRACE_LOOK))?;
        println!("{}", end_of(&socket.into(), &errors)?);
    }
    Ok(())
}

/// Who tells that a packet's time was up, or that it was answered.
fn end_of(socket: &UdpSocket, errors: &UdpSocket) -> io::Result<String> {
    let local = socket.local_addr()?;
    let began = Instant::now();
    let mut sent = 0;
    let mut message = [0; LARGEST_PACKET];
    while began.elapsed() < ANSWER_WITHIN * ASK_AT_MOST {
        if began.elapsed() >= ANSWER_WITHIN / 4 * sent {
            socket.send(b"trace")?;
            sent += 1;
        }
        if socket.recv(&mut message).is_ok() {
            return Ok("answer".into());
        }
        if let Ok((length, from)) = errors.recv_from(&mut message)
            && quoted_port(&message[..length], local.is_ipv4()) == Some(local.port())
        {
            return Ok(from.ip().to_string());
        }
    }
    Err(io::Error::other("nobody answers"))
}

/// The source port of the UDP packet that a time exceeded (RFC 792, RFC 4443 3.3) quotes.
fn quoted_port(message: &[u8], is_v4: bool) -> Option<u16> {
    // IPv4 raw sockets deliver the IP header, IPv6 ones do not (RFC 3542, 3).
    let (icmp, kind, header) = match is_v4 {
        true => (message.get(20..)?, 11, 20),
        false => (message, 3, 40),
    };
    let port = icmp.get(8 + header..)?.first_chunk()?;
    (icmp[0] == kind).then(|| u16::from_be_bytes(*port))
}
