//! DPDK itself, on virtual devices, without huge pages or privileges beyond a
//! runtime directory. DPDK starts once per process, so one `main` runs all
//! parts in turn, and each ends with its pool full again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use evenkeel::port::{
    Batch, Eal, EalError, EalOptions, Huge, LaunchError, Mempool, MempoolError, Port, PortConfig,
    PortError, RingError, RssConfig, RxChecksum, TxBuffer, clock::Tsc, ring, rss,
};

type Part = (&'static str, fn(&Eal, &Mempool));

const PARTS: &[Part] = &[
    ("mbufs keep their bounds", mbuf_bounds),
    ("batches own what they hold", batches),
    ("pools count and refuse", pools),
    ("rings move ownership", rings),
    ("rings between threads lose nothing", rings_between_threads),
    ("net_null receives and sends", net_null),
    ("net_ring loops back", net_ring),
    ("a full transmit ring drops and counts", full_ring),
    ("net_pcap reads and writes files", net_pcap),
    ("a port stops, starts again and closes", stop_and_start),
    ("bad devices are one-line errors", bad_devices),
    ("lcores run, return and panic", lcores),
];

/// What the second process of `second_instance` is told to be.
const SECOND: &str = "EVENKEEL_TEST_SECOND_INSTANCE_OF";

fn main() {
    if let Ok(prefix) = std::env::var(SECOND) {
        return start_as_second(prefix);
    }
    assert_eq!(
        Mempool::new("early", 63, 2048, 0, -1).unwrap_err(),
        MempoolError::NotStarted
    );
    assert_eq!(
        ring::spsc::<Box<u8>>("early", 8).err(),
        Some(RingError::NotStarted)
    );
    assert!(matches!(
        Port::open("p", "net_null9"),
        Err(PortError::NotStarted(_))
    ));

    let prefix = format!("ek-port-{}", std::process::id());
    let options = EalOptions {
        lcores: vec![(0, 0), (1, last_cpu())],
        file_prefix: prefix.clone(),
        memory_mib: Some(128),
        huge: Huge::Never,
        ..EalOptions::default()
    };
    let eal = Eal::init(&options).expect("DPDK starts without huge pages");
    assert!(!eal.huge_pages());
    assert!(eal.no_huge_pages_reason().is_some());
    assert_eq!(Eal::init(&options).err(), Some(EalError::AlreadyStarted));
    assert!(Tsc::hz() > 1_000_000);
    second_instance(&prefix);

    let pool = Mempool::new("test", 1023, 2048, 64, -1).expect("a pool");
    for (name, part) in PARTS {
        part(&eal, &pool);
        assert_eq!(pool.in_use(), 0, "{name}: buffers are missing");
        assert_eq!(pool.available(), 1023, "{name}: too many buffers");
        println!("ok: {name}");
    }
    cleanup(eal, pool, &prefix);
    println!("ok: {} parts", PARTS.len());
}

/// The highest CPU that this process may use.
fn last_cpu() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap();
    list.rsplit([',', '-'])
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn start_as_second(prefix: String) {
    let options = EalOptions {
        file_prefix: prefix,
        memory_mib: Some(64),
        huge: Huge::Never,
        lcores: vec![(0, last_cpu())],
        ..EalOptions::default()
    };
    match Eal::init(&options) {
        Err(error) => println!("{error}"),
        Ok(_) => println!("started"),
    }
}

fn second_instance(prefix: &str) {
    let second = Command::new(std::env::current_exe().unwrap())
        .env(SECOND, prefix)
        .output();
    let second = second.unwrap();
    let said = String::from_utf8(second.stdout).unwrap();
    let expected = EalError::SecondInstance(prefix.to_owned()).to_string();
    assert_eq!(
        said.trim_end(),
        expected,
        "and on stderr: {:?}",
        second.stderr
    );
    assert!(
        second.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
}

fn mbuf_bounds(_: &Eal, pool: &Mempool) {
    let mut mbuf = pool.alloc().unwrap();
    assert_eq!(
        (mbuf.len(), mbuf.headroom(), mbuf.tailroom()),
        (0, 128, 2048)
    );
    assert!(!mbuf.append(2049));
    assert!(mbuf.append(2048));
    assert_eq!(
        (mbuf.len(), mbuf.packet_len(), mbuf.tailroom()),
        (2048, 2048, 0)
    );
    mbuf.bytes_mut().fill(0xa5);
    assert!(!mbuf.prepend(129));
    assert!(mbuf.prepend(128));
    assert_eq!((mbuf.headroom(), mbuf.len()), (0, 2176));
    assert!(!mbuf.prepend(1));
    assert!(mbuf.trim_front(128));
    assert!(mbuf.bytes().iter().all(|byte| *byte == 0xa5));
    assert!(!mbuf.trim_front(2049));
    mbuf.truncate(3000);
    assert_eq!(mbuf.len(), 2048);
    mbuf.truncate(60);
    assert_eq!(
        (mbuf.len(), mbuf.packet_len(), mbuf.tailroom()),
        (60, 60, 1988)
    );
    assert!(mbuf.trim_front(60) && mbuf.is_empty());
    assert!(!mbuf.fill(&[0; 2049]));
    assert!(mbuf.fill(b"packet"));
    assert_eq!(mbuf.bytes(), b"packet");
    assert_eq!(mbuf.segments(), 1);
    assert_eq!(
        (mbuf.ip_checksum(), mbuf.l4_checksum()),
        (RxChecksum::Unknown, RxChecksum::Unknown)
    );
    assert_eq!(
        (mbuf.rss_hash(), mbuf.vlan_tci(), mbuf.ol_flags()),
        (None, None, 0)
    );
    mbuf.set_stamp(u64::MAX);
    mbuf.prepend(mbuf.headroom());
    mbuf.bytes_mut().fill(0);
    assert_eq!(
        mbuf.stamp(),
        u64::MAX,
        "the stamp lies outside the headroom"
    );
    mbuf.prefetch();
    mbuf.prefetch_data();
}

fn batches(_: &Eal, pool: &Mempool) {
    let mut batch = Batch::new();
    assert!(!pool.alloc_bulk(&mut batch, 65));
    assert!(pool.alloc_bulk(&mut batch, 60));
    assert!(!pool.alloc_bulk(&mut batch, 5), "no room");
    assert_eq!((batch.len(), batch.room(), pool.in_use()), (60, 4, 60));
    for (index, mbuf) in batch.iter_mut().enumerate() {
        assert!(mbuf.fill(&[index as u8]));
    }
    for _ in 0..4 {
        batch.push(pool.alloc().unwrap()).unwrap();
    }
    assert!(batch.is_full() && batch.push(pool.alloc().unwrap()).is_err());
    assert_eq!(pool.in_use(), 64, "the refused one was freed");
    drop(batch.pop());
    let firsts: Vec<u8> = batch.drain().take(3).map(|mbuf| mbuf.bytes()[0]).collect();
    assert_eq!(firsts, [0, 1, 2]);
    assert_eq!((batch.len(), pool.in_use()), (0, 0), "drain frees the rest");
    assert!(pool.alloc_bulk(&mut batch, 9));
    batch.clear();
    assert_eq!(pool.in_use(), 0);
    assert!(pool.alloc_bulk(&mut batch, 9));
}

fn pools(_: &Eal, _: &Mempool) {
    let small = Mempool::new("small", 63, 256, 0, -1).unwrap();
    assert_eq!((small.capacity(), small.data_room()), (63, 256));
    let mut held: Vec<_> = std::iter::from_fn(|| small.alloc()).collect();
    assert_eq!((held.len(), small.available(), small.in_use()), (63, 0, 63));
    let mut batch = Batch::new();
    assert!(!small.alloc_bulk(&mut batch, 1) && batch.is_empty());
    held.truncate(1);
    // A buffer outlives the last handle of its pool.
    let survivor = held.pop().unwrap();
    drop(small);
    assert_eq!(survivor.len(), 0);
    drop(survivor);
    let error = Mempool::new("huge", 10_000_000, 9000, 256, -1).unwrap_err();
    assert!(
        matches!(
            error,
            MempoolError::Memory {
                count: 10_000_000,
                ..
            }
        ),
        "{error}"
    );
    one_line(&error);
}

/// Counts its drops.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn rings(_: &Eal, pool: &Mempool) {
    let drops = Arc::new(AtomicUsize::new(0));
    let (mut producer, mut consumer) = ring::spsc("counted", 5).unwrap();
    for _ in 0..5 {
        assert!(producer.push(Box::new(Counted(drops.clone()))).is_ok());
    }
    assert_eq!((producer.len(), consumer.capacity()), (5, 5));
    let refused = producer.push(Box::new(Counted(drops.clone())));
    assert_eq!(
        drops.load(Ordering::Relaxed),
        0,
        "a refused item comes back"
    );
    drop(refused);
    drop(consumer.pop().unwrap());
    assert_eq!(drops.load(Ordering::Relaxed), 2);
    drop(producer);
    assert_eq!(consumer.len(), 4);
    drop(consumer);
    assert_eq!(
        drops.load(Ordering::Relaxed),
        6,
        "the last end drops what is left"
    );

    let (mut producer, mut consumer) = ring::spsc("mbufs", 40).unwrap();
    let mut batch = Batch::new();
    assert!(pool.alloc_bulk(&mut batch, 64));
    for (index, mbuf) in batch.iter_mut().enumerate() {
        assert!(mbuf.fill(&[index as u8]));
    }
    assert_eq!(producer.push_batch(&mut batch), 40);
    assert_eq!(
        (batch.len(), batch[0].bytes()[0]),
        (24, 40),
        "the rest stays, in order"
    );
    let mut received = Batch::new();
    assert_eq!(consumer.pop_batch(&mut received), 40);
    assert!(
        received
            .iter()
            .enumerate()
            .all(|(index, mbuf)| mbuf.bytes() == [index as u8])
    );
    assert_eq!(producer.push_batch(&mut batch), 24);
    assert_eq!(pool.in_use(), 64);
}

fn rings_between_threads(_: &Eal, pool: &Mempool) {
    const EACH: usize = 2000;
    let (shared, mut consumer) = ring::mpsc("shared", 64).unwrap();
    let mut seen = vec![0usize; 2];
    std::thread::scope(|scope| {
        for sender in 0..2u8 {
            let (shared, pool) = (shared.clone(), pool.clone());
            scope.spawn(move || {
                for _ in 0..EACH {
                    let mut mbuf = until(|| pool.alloc());
                    assert!(mbuf.fill(&[sender]));
                    let mut waiting = Some(mbuf);
                    until(|| match shared.push(waiting.take()?) {
                        Ok(()) => Some(()),
                        Err(back) => {
                            waiting = Some(back);
                            None
                        }
                    });
                }
            });
        }
        for _ in 0..2 * EACH {
            let mbuf = until(|| consumer.pop());
            seen[usize::from(mbuf.bytes()[0])] += 1;
        }
    });
    assert_eq!(seen, [EACH, EACH]);
}

fn net_null(_: &Eal, pool: &Mempool) {
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

    let port = Port::open("null", "net_null0,size=100").expect("the refused one was closed");
    let (port, mut rx, mut tx) = port
        .start(&PortConfig::default(), std::slice::from_ref(pool))
        .unwrap();
    let mut batch = Batch::new();
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
    assert_eq!((port.stats().rx_packets, port.stats().tx_packets), (64, 64));
    assert!(port.link().up);
}

/// A port on a ring, which hands out what it is sent.
fn loopback(
    pool: &Mempool,
    device: &str,
) -> (
    evenkeel::port::Port<evenkeel::port::Started>,
    evenkeel::port::RxQueue,
    evenkeel::port::TxQueue,
) {
    let port = Port::open("loop", device).unwrap();
    let (port, mut rx, mut tx) = port
        .start(&PortConfig::default(), std::slice::from_ref(pool))
        .unwrap();
    (port, rx.remove(0), tx.remove(0))
}

fn net_ring(_: &Eal, pool: &Mempool) {
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

fn full_ring(_: &Eal, pool: &Mempool) {
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

fn net_pcap(_: &Eal, pool: &Mempool) {
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

fn stop_and_start(_: &Eal, pool: &Mempool) {
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
    if let Some(state) = port.rss() {
        assert!(
            state.key.chunks(2).all(|pair| pair == [0x6d, 0x5a]),
            "{state:?}"
        );
        assert!(state.reta.iter().all(|queue| *queue == 0), "{state:?}");
    }
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

fn bad_devices(_: &Eal, pool: &Mempool) {
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

fn lcores(eal: &Eal, pool: &Mempool) {
    let quit = Arc::new(AtomicBool::new(false));
    let (seen, pool) = (quit.clone(), pool.clone());
    let body = move || {
        // Leaves buffers in this core's cache, which must count as home.
        let mut batch = Batch::new();
        assert!(pool.alloc_bulk(&mut batch, 32));
        batch.clear();
        until(|| seen.load(Ordering::Acquire).then_some(()));
    };
    let handle = eal.launch(1, Box::new(body)).unwrap();
    assert!(!handle.is_finished());
    assert_eq!(
        eal.launch(1, Box::new(|| ())).err(),
        Some(LaunchError::Busy(1))
    );
    assert_eq!(
        eal.launch(7, Box::new(|| ())).err(),
        Some(LaunchError::Unknown(7))
    );
    assert_eq!(
        eal.launch(0, Box::new(|| ())).err(),
        Some(LaunchError::Unknown(0))
    );
    quit.store(true, Ordering::Release);
    handle.join().unwrap();

    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let panicked = eal
        .launch(1, Box::new(|| panic!("on purpose {}", 1)))
        .unwrap()
        .join();
    let caught = catch_unwind(AssertUnwindSafe(|| panic!("the hook is quiet"))).is_err();
    std::panic::set_hook(hook);
    assert!(caught);
    let message = "on purpose 1".to_owned();
    assert_eq!(panicked, Err(LaunchError::Panicked { lcore: 1, message }));
    eal.launch(1, Box::new(|| ()))
        .unwrap()
        .join()
        .expect("the lcore is usable again");
}

fn cleanup(mut eal: Eal, pool: Mempool, prefix: &str) {
    let runtime = runtime_dir(prefix);
    assert!(runtime.exists(), "{}", runtime.display());
    assert_eq!(eal.cleanup(), Err(EalError::InUse(1)), "a pool is in use");
    let orphan = pool.alloc().unwrap();
    drop(pool);
    assert_eq!(
        eal.cleanup(),
        Err(EalError::InUse(1)),
        "a buffer is out, so its pool stays"
    );
    assert!(orphan.is_empty());
    drop(orphan);
    assert_eq!(eal.cleanup(), Ok(()));
    assert!(!runtime.exists(), "nothing is left behind");
    assert_eq!(
        Mempool::new("late", 63, 2048, 0, -1).unwrap_err(),
        MempoolError::NotStarted
    );
}

fn runtime_dir(prefix: &str) -> std::path::PathBuf {
    let root = Path::new("/var/run/dpdk").join(prefix);
    if root.exists() {
        return root;
    }
    let user = std::env::var("XDG_RUNTIME_DIR").unwrap_or_else(|_| "/tmp".into());
    Path::new(&user).join("dpdk").join(prefix)
}

fn one_line(error: &impl ToString) {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 400, "{text:?}");
}

/// Asks until there is something, for ten seconds.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited ten seconds");
        std::thread::yield_now();
    }
}
