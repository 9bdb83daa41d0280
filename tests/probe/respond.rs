//! A farm of servers behind a memif port: claims every IPv4 address that somebody asks for, accepts
//! every TCP connection and closes it when the client does. Holds no state.

use std::io::Write;
use std::time::Duration;

use evenkeel::port::{Batch, Eal, EalOptions, Huge, Mempool, Port, PortConfig, TxBuffer};
use smoltcp::wire::{
    ArpOperation, ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, TcpPacket, TcpSeqNumber,
};

use crate::Failure;

const FARM_MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 2, 1]);
/// Where every connection's sequence numbers begin.
const FIRST: TcpSeqNumber = TcpSeqNumber(0x1000);

/// Runs until it is killed; prints `ready` once the socket is there.
pub fn run(socket: &str) -> Result<(), Failure> {
    let _eal = Eal::init(&EalOptions {
        lcores: vec![(0, 0)],
        file_prefix: format!("ekfarm{}", std::process::id()),
        memory_mib: Some(128),
        huge: Huge::Never,
        ..EalOptions::default()
    })?;
    let pool = Mempool::new("farm", 8191, 2048, 0, -1)?;
    let device = format!("net_memif0,role=server,socket={socket},socket-abstract=no");
    let port = Port::open("farm", &device)?;
    let started = port.start(&PortConfig::default(), std::slice::from_ref(&pool));
    let (_port, mut rx, mut tx) = started.map_err(|failed| failed.error)?;
    let mut rx = rx.remove(0);
    let mut tx = TxBuffer::new(tx.remove(0), 32);
    println!("ready");
    std::io::stdout().flush()?;
    let mut batch = Batch::new();
    loop {
        let received = rx.receive(&mut batch);
        for mut mbuf in batch.drain() {
            if answer(mbuf.bytes_mut()).is_some() {
                tx.push(mbuf);
            }
        }
        tx.flush();
        if received == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Makes a frame the answer to itself; None if it has none.
fn answer(bytes: &mut [u8]) -> Option<()> {
    let mut frame = EthernetFrame::new_checked(bytes).ok()?;
    let asker = frame.src_addr();
    match frame.ethertype() {
        EthernetProtocol::Arp => answer_arp(frame.payload_mut(), asker)?,
        EthernetProtocol::Ipv4 => answer_tcp(frame.payload_mut())?,
        _ => return None,
    }
    frame.set_src_addr(FARM_MAC);
    frame.set_dst_addr(asker);
    Some(())
}

fn answer_arp(bytes: &mut [u8], asker: EthernetAddress) -> Option<()> {
    let mut arp = ArpPacket::new_checked(bytes).ok()?;
    // Whoever announces its own address asks for nobody.
    if arp.operation() != ArpOperation::Request
        || arp.source_protocol_addr() == arp.target_protocol_addr()
    {
        return None;
    }
    let (from, to): ([u8; 4], [u8; 4]) = (
        arp.source_protocol_addr().try_into().ok()?,
        arp.target_protocol_addr().try_into().ok()?,
    );
    arp.set_operation(ArpOperation::Reply);
    arp.set_source_hardware_addr(FARM_MAC.as_bytes());
    arp.set_source_protocol_addr(&to);
    arp.set_target_hardware_addr(asker.as_bytes());
    arp.set_target_protocol_addr(&from);
    Some(())
}

fn answer_tcp(bytes: &mut [u8]) -> Option<()> {
    let mut ip = Ipv4Packet::new_checked(bytes).ok()?;
    if ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    let (client, server) = (ip.src_addr(), ip.dst_addr());
    let mut tcp = TcpPacket::new_checked(ip.payload_mut()).ok()?;
    // What only acknowledges, and what ends a connection at once, is not answered.
    if tcp.rst() || !tcp.syn() && !tcp.fin() {
        return None;
    }
    let (from, to) = (tcp.src_port(), tcp.dst_port());
    let end = tcp.seq_number() + tcp.segment_len();
    tcp.set_seq_number(if tcp.syn() { FIRST } else { tcp.ack_number() });
    tcp.set_ack_number(end);
    tcp.set_ack(true);
    tcp.set_src_port(to);
    tcp.set_dst_port(from);
    tcp.fill_checksum(&server.into(), &client.into());
    ip.set_src_addr(server);
    ip.set_dst_addr(client);
    ip.fill_checksum();
    Some(())
}
