//! Ports on devices that need nothing: null, ring, pcap.

use std::time::{Duration, Instant};

use evenkeel::port::{
    Batch, Eal, Mempool, Port, PortConfig, PortError, RssConfig, RxQueue, Started, TxBuffer,
    TxQueue, rss,
};

use crate::one_line;

pub fn net_null(_: &Eal, pool: &Mempool) {
    let port = Port::open("null", "net_null0,size=100").unwrap();
    let info = port.info().unwrap();
    assert_eq!(info.driver, "net_null");
    let wish = PortConfig {
        rx_queues: info.max_rx_queues + 1,
        ..PortConfig::default()
    };
    let refused = port.start(&wish, std::slice::from_ref(pool)).unwrap_err();
    assert!(refused.to_string().contains("receive queues"), "{refused}");
    one_line(&refused);
    let taken = Port::open("null", "net_null0,size=100").unwrap_err();
    assert!(matches!(taken, PortError::InUse { .. }), "{taken}");
    drop(refused);

    let port = Port::open("null", "net_null0,size=100").expect("the refused one is closed");
    let (port, mut rx, mut tx) = port
        .start(&PortConfig::default(), std::slice::from_ref(pool))
        .unwrap();
    let mut batch = Batch::new();
    assert_eq!(rx[0].receive(&mut batch), 64, "a whole batch at first");
    batch.clear();
    rx[0].set_burst(20);
    assert_eq!(rx[0].receive(&mut batch), 20);
    assert_eq!(rx[0].receive(&mut batch), 20);
    rx[0].set_burst(1000);
    assert_eq!(
        rx[0].receive(&mut batch),
        24,
        "no more than there is room for"
    );
    assert!(
        batch
            .iter()
            .all(|mbuf| mbuf.len() == 100 && mbuf.port() == port.id())
    );
    assert_eq!(rx[0].receive(&mut batch), 0);
    assert_eq!(tx[0].send(&mut batch), 64);
    assert!(batch.is_empty());
    assert_eq!(
        (port.stats().rx_packets, port.stats().tx_packets),
        (128, 64)
    );
    assert!(port.link().up);
}

/// A port on a ring, which hands out what it is sent.
pub fn loopback(pool: &Mempool, device: &str) -> (Port<Started>, RxQueue, TxQueue) {
    let port = Port::open("loop", device).unwrap();
    let (port, mut rx, mut tx) = port
        .start(&PortConfig::default(), std::slice::from_ref(pool))
        .unwrap();
    (port, rx.remove(0), tx.remove(0))
}

pub fn net_ring(_: &Eal, pool: &Mempool) {
    let (_port, mut rx, tx) = loopback(pool, "net_ring0");
    let mut tx = TxBuffer::new(tx, 8);
    for index in 0..20u8 {
        let mut mbuf = pool.alloc().unwrap();
        assert!(mbuf.fill(&[index; 60]));
        tx.push(mbuf);
    }
    assert_eq!(
        (tx.waiting(), tx.stats().packets),
        (4, 16),
        "sent by bursts of 8"
    );
    assert_eq!(tx.flush(), 4);
    assert_eq!(tx.flush(), 0);
    let stats = tx.stats();
    assert_eq!((stats.packets, stats.bytes, stats.dropped), (20, 1200, 0));
    let mut batch = Batch::new();
    assert_eq!(rx.receive(&mut batch), 20);
    assert!(
        batch
            .iter()
            .enumerate()
            .all(|(index, mbuf)| mbuf.bytes() == [index as u8; 60])
    );
    // Left unflushed: freed with the buffer, as the pool's count shows.
    tx.push(batch.pop().unwrap());
}

pub fn full_ring(_: &Eal, pool: &Mempool) {
    let (_port, mut rx, tx) = loopback(pool, "net_ring1");
    let mut tx = TxBuffer::new(tx, 32);
    // The driver's ring holds 1023; the pool as many. Fill it with what it
    // hands back, so that the pool does not run dry first.
    let big = Mempool::new("big", 4095, 128, 0, -1).unwrap();
    let start = Instant::now();
    for _ in 0..2000 {
        let mut mbuf = big.alloc().unwrap();
        assert!(mbuf.append(64));
        tx.push(mbuf);
    }
    tx.flush();
    assert!(start.elapsed() < Duration::from_secs(5), "it does not spin");
    let stats = tx.stats();
    assert!(stats.packets > 0 && stats.dropped > 0, "{stats:?}");
    assert_eq!(stats.packets + stats.dropped, 2000);
    assert_eq!(stats.bytes, stats.packets * 64);
    assert_eq!(stats.dropped_bytes, stats.dropped * 64);
    assert_eq!(
        u64::from(big.in_use()),
        stats.packets,
        "what was dropped was freed"
    );
    let mut received = 0;
    let mut batch = Batch::new();
    while rx.receive(&mut batch) > 0 {
        received += batch.len() as u64;
        batch.clear();
    }
    assert_eq!(received, stats.packets);
    assert_eq!(big.in_use(), 0);
}

pub fn net_pcap(_: &Eal, pool: &Mempool) {
    let dir = std::env::temp_dir().join(format!("ek-port-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (first, second) = (dir.join("1.pcap"), dir.join("2.pcap"));
    let packets: Vec<Vec<u8>> = (60..100).map(|len| vec![len as u8; len]).collect();
    std::fs::write(&first, pcap(&packets)).unwrap();
    {
        let string = format!(
            "net_pcap0,rx_pcap={},tx_pcap={}",
            first.display(),
            second.display()
        );
        let (_port, mut rx, tx) = loopback(pool, &string);
        let mut tx = TxBuffer::new(tx, 32);
        let mut batch = Batch::new();
        while rx.receive(&mut batch) > 0 {
            batch.drain().for_each(|mbuf| tx.push(mbuf));
        }
        let (_queue, stats) = tx.into_queue();
        assert_eq!((stats.packets, stats.dropped), (40, 0));
    }
    let written = std::fs::read(&second).unwrap();
    assert_eq!(unpcap(&written), packets);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A pcap file (libpcap's format, microseconds, Ethernet).
fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
    let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1];
    let mut file: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    for packet in packets {
        for word in [0, 0, packet.len() as u32, packet.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(packet);
    }
    file
}

fn unpcap(mut file: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    file = &file[24..];
    while !file.is_empty() {
        let len = u32::from_le_bytes(file[8..12].try_into().unwrap()) as usize;
        packets.push(file[16..16 + len].to_vec());
        file = &file[16 + len..];
    }
    packets
}

pub fn stop_and_start(_: &Eal, pool: &Mempool) {
    let port = Port::open("again", "net_null3").unwrap();
    let taken = Port::open("other", "net_null3").unwrap_err();
    assert!(matches!(taken, PortError::InUse { .. }), "{taken}");
    let pools = std::slice::from_ref(pool);
    let wish = PortConfig {
        rss: Some(RssConfig {
            key: vec![0x6d, 0x5a],
            hash_fields: rss::IPV4 | rss::IPV4_TCP,
            reta_period: Some(64),
        }),
        ..PortConfig::default()
    };
    let (port, rx, tx) = port.start(&wish, pools).unwrap();
    let state = port.rss().expect("net_null says what it hashes");
    assert_eq!(state.key, [0x6d, 0x5a].repeat(20));
    assert_eq!(state.hash_fields, rss::IPV4 | rss::IPV4_TCP);
    assert_eq!(state.reta, [0; 128]);
    let mut port = port.stop(rx, tx).unwrap();
    // No virtual device here can be reset; the refusal is one line.
    if let Err(error) = port.reset() {
        one_line(&error);
    }
    let (port, rx, mut tx) = port.start(&PortConfig::default(), pools).unwrap();
    let kept = tx.pop();
    let error = port.stop(rx, tx).unwrap_err();
    assert!(
        error.to_string().contains("queues are needed back"),
        "{error}"
    );
    let busy = Port::open("again", "net_null3").unwrap_err();
    assert!(
        matches!(busy, PortError::InUse { .. }),
        "a queue keeps its device open: {busy}"
    );
    drop(kept);
    Port::open("again", "net_null3").expect("the last queue closed it");
}

pub fn bad_devices(_: &Eal, pool: &Mempool) {
    for device in [
        "nonsense",
        "",
        "net_nosuch0",
        "net_pcap7,rx_pcap=/no/such/file.pcap",
        "0000:ff:1f.7",
    ] {
        let error = Port::open("wan", device).unwrap_err();
        assert!(matches!(error, PortError::Open { .. }), "{device}: {error}");
        one_line(&error);
        assert!(error.to_string().contains("wan"), "{error}");
        println!("    {error}");
    }
    let port = Port::open("wan", "net_null8").unwrap();
    let wish = PortConfig {
        mtu: Some(9000),
        ..PortConfig::default()
    };
    let error = port.start(&wish, std::slice::from_ref(pool)).unwrap_err();
    assert!(error.to_string().contains("mtu"), "{error}");
}

/// The refusal names two ways out, and both lead out.
pub fn small_buffers(_: &Eal, _: &Mempool) {
    let start = |mtu, buffer| {
        let pool = Mempool::new("small", 63, buffer, 0, -1).unwrap();
        let wish = PortConfig {
            mtu: Some(mtu),
            ..PortConfig::default()
        };
        let port = Port::open("wan", "net_null8").unwrap();
        let started = port.start(&wish, &[pool]);
        started.map(|_| ()).map_err(|refused| refused.to_string())
    };
    let refusal = "port wan: mtu: 1500 needs buffers of 1526 bytes, they have 128; \
                   set workers.buffer_size to at least 1526 or lower the port's mtu to 102";
    assert_eq!(start(1500, 128), Err(refusal.to_owned()));
    assert_eq!(start(1500, 1526), Ok(()));
    assert_eq!(start(102, 128), Ok(()));
    assert!(start(1500, 1525).is_err() && start(103, 128).is_err());
}
