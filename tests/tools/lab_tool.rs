//! What the hosts of the test lab run beside nginx.
//!
//! - `lab_tool unwrap TUN` takes the outer header off IPIP, 6in4, 4in6 and 6in6 packets addressed
//!   to this host and hands the inner packet to the kernel through a TUN device: a stand-in for the
//!   kernel's `ipip` and `ip6tnl` devices, which many container and microVM kernels do not have.
//! - `lab_tool wrap SOURCE DESTINATION` sends one IPIP or 6in6 packet that holds an ICMP echo request, to
//!   test `unwrap` without a balancer.
//! - `lab_tool udp-echo NAME ADDRESS:PORT...` answers each datagram with its name and the payload.
//! - `lab_tool udp-ask ADDRESS:PORT COUNT [BYTES]` asks COUNT times, each from a new port, and prints the
//!   answers; with BYTES each question is that long, and of an answer only its name is printed.
//! - `lab_tool trace ADDRESS:PORT HOPS` sends a UDP packet that lives for one hop, then one for two, and so
//!   on, and prints who told of its end each time, or `answer` where it was answered.
//! - `lab_tool tcp-echo PORT` sends back what it receives, on all addresses.
//! - `lab_tool tcp-hold ADDRESS:PORT COUNT SECONDS` opens COUNT connections, prints `ready`, sends a
//!   line through each and waits for its echo, round after round, for so long; at the end it prints
//!   how many rounds there were. One connection that breaks fails it.
//! - `lab_tool tcp-keep ADDRESS:PORT COUNT FILE` opens COUNT connections, prints `ready`, and does the same
//!   until FILE is there; at the end it prints how many broke.
//! - `lab_tool agent ADDRESS:PORT FILE` answers each TCP connection with what is in FILE, as an agent
//!   that HAProxy's agent-check asks does.
//!
//! `unwrap`, `udp-echo`, `tcp-echo` and `agent` print `ready` once their sockets are open and end when
//! they are killed.

mod trace;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, Ipv6Repr,
};
use socket2::{Domain, Protocol, Socket, Type};
use trace::trace;
use tun_rs::{DeviceBuilder, SyncDevice};

const IPPROTO_IPIP: i32 = 4;
const IPPROTO_IPV6: i32 = 41;
const IDENTIFIER: u16 = 0x6b65;
const LARGEST_PACKET: usize = 65_535;
/// A burst of 50 downloads' acknowledgements fits, so that the lab itself loses nothing.
const RECEIVE_BUFFER: usize = 4 << 20;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const ASK_AT_MOST: u32 = 3;
/// Long enough for TCP to try again a few times.
const HELD_WITHIN: Duration = Duration::from_secs(60);
/// The same, for all of a round.
const KEPT_WITHIN: Duration = Duration::from_secs(25);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["unwrap", tun] => unwrap_into(tun),
        ["wrap", source, destination] => wrap_echo_request(source, destination),
        ["udp-echo", name, addresses @ ..] if !addresses.is_empty() => udp_echo(name, addresses),
        ["udp-ask", address, count] => udp_ask(address, count, None),
        ["udp-ask", address, count, bytes] => udp_ask(address, count, Some(bytes)),
        ["trace", address, hops] => trace(address, hops),
        ["tcp-echo", port] => tcp_echo(port),
        ["tcp-hold", address, count, seconds] => tcp_hold(address, count, seconds),
        ["tcp-keep", address, count, file] => tcp_keep(address, count, file),
        ["agent", address, file] => agent(address, file),
        _ => Err(io::Error::other(
            "usage: unwrap TUN | wrap SOURCE DESTINATION | udp-echo NAME ADDRESS:PORT... | udp-ask ADDRESS:PORT COUNT [BYTES] | trace ADDRESS:PORT HOPS | tcp-echo PORT | tcp-hold ADDRESS:PORT COUNT SECONDS | tcp-keep ADDRESS:PORT COUNT FILE | agent ADDRESS:PORT FILE",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab_tool: {error}");
            ExitCode::FAILURE
        }
    }
}

fn agent(address: &str, file: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    say_ready()?;
    loop {
        let (mut asker, _) = listener.accept()?;
        // An asker that has gone is the asker's affair.
        let _ = asker.write_all(&std::fs::read(file)?);
    }
}

fn unwrap_into(name: &str) -> io::Result<()> {
    let tun = Arc::new(DeviceBuilder::new().name(name).build_sync()?);
    let mut readers = Vec::new();
    for domain in [Domain::IPV4, Domain::IPV6] {
        for protocol in [IPPROTO_IPIP, IPPROTO_IPV6] {
            // A kernel that has the tunnel protocol built in still lets a raw socket see it.
            let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
            let tun = Arc::clone(&tun);
            readers.push(thread::spawn(move || unwrap_each(socket, domain, &tun)));
        }
    }
    say_ready()?;
    for reader in readers {
        reader
            .join()
            .map_err(|_| io::Error::other("a reader panicked"))??;
    }
    Ok(())
}

fn unwrap_each(mut socket: Socket, domain: Domain, tun: &SyncDevice) -> io::Result<()> {
    let mut packet = vec![0; LARGEST_PACKET];
    loop {
        let length = socket.read(&mut packet)?;
        // IPv4 raw sockets deliver the outer header, IPv6 raw sockets do not (RFC 3542, 3).
        let outer = match packet[..length] {
            [first, ..] if domain == Domain::IPV4 => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        let Some(inner) = packet[..length]
            .get(outer..)
            .filter(|inner| !inner.is_empty())
        else {
            eprintln!("lab_tool: an outer packet of {length} bytes holds nothing");
            continue;
        };
        // The kernel refuses what is no IP packet; a host would drop it as silently.
        if let Err(error) = tun.send(inner) {
            eprintln!(
                "lab_tool: an inner packet of {} bytes: {error}",
                inner.len()
            );
        }
    }
}

/// The inner and the outer packet go from `source` to `destination`, so that the destination's
/// kernel answers the ping on its own.
fn wrap_echo_request(source: &str, destination: &str) -> io::Result<()> {
    let source: IpAddr = source.parse().map_err(io::Error::other)?;
    let destination: IpAddr = destination.parse().map_err(io::Error::other)?;
    let (domain, protocol, inner) = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (Domain::IPV4, IPPROTO_IPIP, echo_request_v4(from, to))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            (Domain::IPV6, IPPROTO_IPV6, echo_request_v6(from, to))
        }
        _ => return Err(io::Error::other("two addresses of one family are needed")),
    };
    // The kernel writes the outer header.
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.send_to(&inner, &SocketAddr::new(destination, 0).into())?;
    Ok(())
}

fn echo_request_v4(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let ping = Icmpv4Repr::EchoRequest {
        ident: IDENTIFIER,
        seq_no: 1,
        data: b"evenkeel",
    };
    let header = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmp,
        payload_len: ping.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0xa5; header.buffer_len() + ping.buffer_len()];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
    header.emit(&mut packet, &checksums);
    ping.emit(
        &mut Icmpv4Packet::new_unchecked(packet.payload_mut()),
        &checksums,
    );
    bytes
}

fn echo_request_v6(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let ping = Icmpv6Repr::EchoRequest {
        ident: IDENTIFIER,
        seq_no: 1,
        data: b"evenkeel",
    };
    let header = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: ping.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0xa5; header.buffer_len() + ping.buffer_len()];
    let mut packet = Ipv6Packet::new_unchecked(&mut bytes);
    header.emit(&mut packet);
    let mut inner = Icmpv6Packet::new_unchecked(packet.payload_mut());
    ping.emit(&from, &to, &mut inner, &checksums);
    bytes
}

fn udp_echo(name: &str, addresses: &[&str]) -> io::Result<()> {
    // One socket for each address, not one for all: the answer must leave with the address asked.
    let sockets = addresses
        .iter()
        .map(UdpSocket::bind)
        .collect::<io::Result<Vec<_>>>()?;
    say_ready()?;
    let each = |socket: UdpSocket| -> io::Result<()> {
        let mut question = [0; LARGEST_PACKET];
        loop {
            let (length, from) = socket.recv_from(&mut question)?;
            let mut answer = format!("{name} ").into_bytes();
            answer.extend_from_slice(&question[..length]);
            socket.send_to(&answer, from)?;
        }
    };
    thread::scope(|scope| {
        let all: Vec<_> = sockets
            .into_iter()
            .map(|socket| scope.spawn(|| each(socket)))
            .collect();
        for one in all {
            one.join()
                .map_err(|_| io::Error::other("an echo panicked"))??;
        }
        Ok(())
    })
}

fn udp_ask(address: &str, count: &str, bytes: Option<&str>) -> io::Result<()> {
    let bytes: usize = bytes.map_or(Ok(0), str::parse).map_err(io::Error::other)?;
    let server: SocketAddr = address.parse().map_err(io::Error::other)?;
    let count: u32 = count.parse().map_err(io::Error::other)?;
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    for number in 0..count {
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        let answer = ask_until_answered(&socket, number, bytes)?;
        match bytes {
            0 => println!("{answer}"),
            _ => println!("{}", answer.split(' ').next().unwrap_or_default()),
        }
    }
    Ok(())
}

fn ask_until_answered(socket: &UdpSocket, number: u32, bytes: usize) -> io::Result<String> {
    let mut question = format!("question {number}");
    while question.len() < bytes {
        question.push_str(&format!(" {}", question.len()));
    }
    let mut answer = [0; LARGEST_PACKET];
    for _ in 0..ASK_AT_MOST {
        socket.send(question.as_bytes())?;
        match socket.recv(&mut answer) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&answer[..length]).into_owned();
                if !text.ends_with(&question) {
                    return Err(io::Error::other(format!(
                        "asked '{question}', was told '{text}'"
                    )));
                }
                return Ok(text);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let bytes = question.len();
    Err(io::Error::other(format!(
        "question {number}, of {bytes} bytes, was not answered"
    )))
}

fn tcp_echo(port: &str) -> io::Result<()> {
    let port: u16 = port.parse().map_err(io::Error::other)?;
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from(([0u16; 8], port)).into())?;
    socket.listen(4096)?;
    let listener = TcpListener::from(socket);
    say_ready()?;
    for stream in listener.incoming() {
        let stream = stream?;
        let echo = move || {
            let (mut from, mut to) = (&stream, &stream);
            // A client that goes away ends it.
            let _ = io::copy(&mut from, &mut to);
        };
        thread::Builder::new().stack_size(64 << 10).spawn(echo)?;
    }
    Ok(())
}

fn tcp_hold(address: &str, count: &str, seconds: &str) -> io::Result<()> {
    let server: SocketAddr = address.parse().map_err(io::Error::other)?;
    let count: usize = count.parse().map_err(io::Error::other)?;
    let seconds: u64 = seconds.parse().map_err(io::Error::other)?;
    let broken = |what: &str, number: usize, round: u32, error: io::Error| {
        io::Error::other(format!(
            "connection {number}, round {round}: {what}: {error}"
        ))
    };
    let mut held = Vec::new();
    for number in 0..count {
        let stream = TcpStream::connect_timeout(&server, HELD_WITHIN)
            .map_err(|error| broken("not opened", number, 0, error))?;
        stream.set_read_timeout(Some(HELD_WITHIN))?;
        stream.set_nodelay(true)?;
        held.push(stream);
    }
    say_ready()?;
    let (began, mut round) = (Instant::now(), 0);
    while round < 2 || began.elapsed() < Duration::from_secs(seconds) {
        round += 1;
        for (number, stream) in held.iter_mut().enumerate() {
            let line = format!("{number:08} {round:08}\n");
            let sent = stream.write_all(line.as_bytes());
            sent.map_err(|error| broken("not sent", number, round, error))?;
        }
        for (number, stream) in held.iter_mut().enumerate() {
            let mut line = [0; 18];
            let read = stream.read_exact(&mut line);
            read.map_err(|error| broken("no echo", number, round, error))?;
            if line != *format!("{number:08} {round:08}\n").as_bytes() {
                let other = io::Error::other(String::from_utf8_lossy(&line).into_owned());
                return Err(broken("another echo", number, round, other));
            }
        }
    }
    println!("held {count} connections for {round} rounds");
    Ok(())
}

/// A connection that breaks is counted, and the others go on.
fn tcp_keep(address: &str, count: &str, file: &str) -> io::Result<()> {
    let server: SocketAddr = address.parse().map_err(io::Error::other)?;
    let count: usize = count.parse().map_err(io::Error::other)?;
    let mut kept = Vec::new();
    for _ in 0..count {
        let stream = TcpStream::connect_timeout(&server, KEPT_WITHIN)?;
        stream.set_nodelay(true)?;
        kept.push(stream);
    }
    say_ready()?;
    let mut round = 0;
    loop {
        let is_last = Path::new(file).exists();
        round += 1;
        let line = format!("{round:08}\n");
        kept.retain_mut(|stream| stream.write_all(line.as_bytes()).is_ok());
        let began = Instant::now();
        kept.retain_mut(|stream| {
            let left = KEPT_WITHIN.saturating_sub(began.elapsed());
            let left = left.max(Duration::from_millis(1));
            if stream.set_read_timeout(Some(left)).is_err() {
                return false;
            }
            let mut echo = vec![0; line.len()];
            stream.read_exact(&mut echo).is_ok() && echo == line.as_bytes()
        });
        if is_last || kept.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    println!("{} of {count} broke", count - kept.len());
    Ok(())
}

fn say_ready() -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    out.flush()
}
