//! Virtual devices that have something on the other side.

use std::net::UdpSocket;
use std::process::Command;

use evenkeel::port::{
    Batch, Eal, Mbuf, Mempool, Port, PortConfig, RxQueue, Started, TxBuffer, TxQueue,
};

use crate::{one_line, until};

/// A frame of 60 bytes to everybody, of an experimental EtherType (RFC 5342),
/// with `mark` as its payload.
fn frame(pool: &Mempool, mark: u8) -> Mbuf {
    let mut mbuf = pool.alloc().unwrap();
    let mut bytes = [mark; 60];
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    assert!(mbuf.fill(&bytes));
    mbuf
}

fn is_marked(mbuf: &Mbuf, mark: u8) -> bool {
    mbuf.len() >= 60 && mbuf.bytes()[12..14] == [0x88, 0xb5] && mbuf.bytes()[14] == mark
}

fn open_with_mtu(pool: &Mempool, device: &str, mtu: u16) -> (Port<Started>, RxQueue, TxQueue) {
    // The drivers take a buffer for every descriptor in advance.
    let config = PortConfig {
        rx_descriptors: 256,
        tx_descriptors: 256,
        mtu: Some(mtu),
        ..PortConfig::default()
    };
    let (port, mut rx, mut tx) = Port::open("dev", device)
        .unwrap()
        .start(&config, std::slice::from_ref(pool))
        .unwrap_or_else(|error| panic!("{error}"));
    (port, rx.remove(0), tx.remove(0))
}

fn open(pool: &Mempool, device: &str) -> (Port<Started>, RxQueue, TxQueue) {
    open_with_mtu(pool, device, 1400)
}

/// Sends ten marked frames, some by themselves and some as a batch, and waits until all have come out at the other end.
fn carries(pool: &Mempool, tx: &mut TxBuffer, rx: &mut RxQueue) {
    // A memif client offers its buffers when it first asks for packets.
    let mut batch = Batch::new();
    rx.prefetch();
    rx.receive(&mut batch);
    batch.clear();
    for mark in 0..4 {
        tx.push(frame(pool, mark));
    }
    for mark in 4..9 {
        assert!(batch.push(frame(pool, mark)).is_ok());
    }
    assert_eq!(tx.send_all(&mut batch, 300), 5);
    assert!(batch.is_empty());
    tx.push(frame(pool, 9));
    tx.flush();
    let stats = tx.stats();
    assert_eq!((stats.packets, stats.bytes, stats.dropped), (10, 600, 0));
    let mut next = 0;
    until(|| {
        rx.receive(&mut batch);
        for mbuf in batch.drain() {
            if is_marked(&mbuf, next) {
                next += 1;
            }
        }
        (next == 10).then_some(())
    });
}

pub fn memif(_: &Eal, pool: &Mempool) {
    let socket = std::env::temp_dir().join(format!("ek-memif-{}", std::process::id()));
    let socket = socket.display();
    let server = format!("net_memif0,role=server,socket={socket},socket-abstract=no");
    let client = format!("net_memif1,role=client,socket={socket},socket-abstract=no");
    let (server, mut server_rx, server_tx) = open(pool, &server);
    let (client, mut client_rx, client_tx) = open(pool, &client);
    until(|| (server.link().up && client.link().up).then_some(()));
    let (mut client_tx, mut server_tx) =
        (TxBuffer::new(client_tx, 32), TxBuffer::new(server_tx, 32));
    carries(pool, &mut client_tx, &mut server_rx);
    carries(pool, &mut server_tx, &mut client_rx);
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Packets that the kernel has had from an interface of this namespace; None
/// if there is no such interface.
fn kernel_received(interface: &str) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    let line = table
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{interface}:")))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

pub fn tap(_: &Eal, pool: &Mempool) {
    assert_eq!(kernel_received("ektap0"), None);
    let (port, mut rx, tx) = open(pool, "net_tap0,iface=ektap0");
    assert!(ip("-o link show dev ektap0").contains("mtu 1400"));
    assert!(until(|| Some(port.link()).filter(|link| link.up)).up);
    let busy = Port::open("again", "net_tap1,iface=ektap0").unwrap_err();
    one_line(&busy);
    println!("    {busy}");

    let mut tx = TxBuffer::new(tx, 8);
    let before = kernel_received("ektap0").unwrap();
    (0..10).for_each(|mark| tx.push(frame(pool, mark)));
    tx.flush();
    assert_eq!(
        (tx.stats().packets, tx.stats().bytes, tx.stats().dropped),
        (10, 600, 0)
    );
    until(|| (kernel_received("ektap0")? >= before + 10).then_some(()));

    // The kernel asks for a neighbour: an ARP request to everybody.
    ip("addr add 192.0.2.1/24 dev ektap0");
    let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
    let mut batch = Batch::new();
    until(|| {
        // Refused while the neighbour is known not to answer.
        let _ = socket.send_to(b"x", "192.0.2.2:9");
        rx.receive(&mut batch);
        batch
            .drain()
            .find(|mbuf| mbuf.bytes()[12..14] == [0x08, 0x06])
    });
    // And for an IPv6 one, by multicast.
    until(|| {
        rx.receive(&mut batch);
        let multicast = |mbuf: &Mbuf| mbuf.bytes()[..2] == [0x33, 0x33];
        batch.drain().find(multicast)
    });
    drop((rx, tx));
    assert!(
        kernel_received("ektap0").is_some(),
        "the port keeps it open"
    );
    drop(port);
    assert_eq!(
        kernel_received("ektap0"),
        None,
        "the interface went with the port"
    );
}

/// DPDK's limit for the driver is lower than what it carries.
pub fn tap_mtu(_: &Eal, pool: &Mempool) {
    let (_port, mut rx, _tx) = open_with_mtu(pool, "net_tap3,iface=ektap3", 1520);
    assert!(ip("-o link show dev ektap3").contains("mtu 1520 "));
    ip("addr add 192.0.2.1/24 dev ektap3");
    ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:01 dev ektap3");
    let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
    let mut batch = Batch::new();
    until(|| {
        let _ = socket.send_to(&[0; 1520 - 20 - 8], "192.0.2.2:9");
        rx.receive(&mut batch);
        batch.drain().find(|mbuf| mbuf.packet_len() == 14 + 1520)
    });
}

pub fn af_packet(_: &Eal, pool: &Mempool) {
    ip("link add ekv0 type veth peer name ekv1");
    ip("link set ekv0 up");
    ip("link set ekv1 up");
    let (_one, _, tx) = open_with_mtu(pool, "net_af_packet0,iface=ekv0", 1500);
    let (_two, mut rx, _tx) = open_with_mtu(pool, "net_af_packet1,iface=ekv1", 1500);
    carries(pool, &mut TxBuffer::new(tx, 32), &mut rx);
}

pub fn vhost(_: &Eal, pool: &Mempool) {
    let socket = std::env::temp_dir().join(format!("ek-vhost-{}", std::process::id()));
    let device = format!("net_vhost0,iface={}", socket.display());
    let (port, mut rx, tx) = open(pool, &device);
    let mut batch = Batch::new();
    assert_eq!(rx.receive(&mut batch), 0, "nobody is connected");
    let mut tx = TxBuffer::new(tx, 8);
    (0..8).for_each(|mark| tx.push(frame(pool, mark)));
    assert_eq!(
        (tx.stats().packets, tx.stats().dropped),
        (0, 8),
        "and nobody takes anything"
    );
    assert!(socket.exists());
    drop((port, rx, tx));
    assert!(!socket.exists(), "the socket went with the port");
}
