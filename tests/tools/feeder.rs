//! A network card in software for the end-to-end tests: what a TAP device receives goes into the receive
//! queues of evenkeel's memif port, and what evenkeel sends goes out by the TAP.
//!
//! `feeder QUEUES both|source|destination|random FOLDER TAP...`: for TAP number n evenkeel's port is
//! `net_memif<n>` with the socket `FOLDER/memif<n>`. Which queue a packet gets is told by the Toeplitz
//! hash of both ends, of the source or of the destination, as evenkeel asks a card to hash, computed
//! here bit by bit as the standard has it; or it is random. Of two TAPs the second goes by the other
//! end. Prints `ready` when the TAPs are there.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use evenkeel::port::{
    Batch, Eal, EalOptions, Huge, Mempool, Port, PortConfig, RxQueue, Started, TxBuffer,
};

#[derive(Clone, Copy)]
enum By {
    Both,
    Source,
    Destination,
    Random,
}

/// The bytes that are hashed, behind an Ethernet header: addresses and ports of whole TCP and UDP
/// packets, addresses of others.
fn input(frame: &[u8], by: By) -> Vec<u8> {
    let ip = frame.get(14..).unwrap_or_default();
    let (at, length, header, protocol, is_whole) = match frame.get(12..14) {
        Some([0x08, 0x00]) if ip.len() >= 20 => {
            let header = usize::from(ip[0] & 15) * 4;
            (12, 4, header, ip[9], ip[6] & 0x3f == 0 && ip[7] == 0)
        }
        Some([0x86, 0xdd]) if ip.len() >= 40 => (8, 16, 40, ip[6], true),
        _ => return Vec::new(),
    };
    let addresses = [&ip[at..at + length], &ip[at + length..at + 2 * length]];
    let ports = ip
        .get(header..header + 4)
        .filter(|_| is_whole && matches!(protocol, 6 | 17));
    let ports = ports.map_or([&[][..], &[]], |ports| [&ports[..2], &ports[2..]]);
    match by {
        By::Source => [addresses[0], ports[0]].concat(),
        By::Destination => [addresses[1], ports[1]].concat(),
        By::Both | By::Random => [addresses[0], addresses[1], ports[0], ports[1]].concat(),
    }
}

/// For each bit that is set, the 32 bits of the key that begin there.
fn toeplitz(input: &[u8]) -> u32 {
    const KEY: u64 = 0x6d5a_6d5a_6d5a_6d5a;
    let bits = (0..input.len() * 8).filter(|bit| input[bit / 8] >> (7 - bit % 8) & 1 == 1);
    // The key repeats after 16 bits.
    bits.fold(0, |hash, bit| hash ^ (KEY << (bit % 16) >> 32) as u32)
}

struct Arm {
    tap_rx: RxQueue,
    tap_tx: TxBuffer,
    queues: Vec<(RxQueue, TxBuffer)>,
    by: By,
    random: u64,
    _ports: [Port<Started>; 2],
}

impl Arm {
    fn open(
        pool: &Mempool,
        n: usize,
        tap: &str,
        folder: &str,
        queues: u16,
        by: By,
    ) -> Result<Self, Box<dyn Error>> {
        let start = |name: &str, device: &str, queues, mtu| {
            let config = PortConfig {
                rx_queues: queues,
                tx_queues: queues,
                mtu,
                ..PortConfig::default()
            };
            let started = Port::open(name, device)?.start(&config, std::slice::from_ref(pool));
            started.map_err(|failed| failed.error)
        };
        let tap = format!("net_tap{n},iface={tap}");
        let (tap, mut tap_rx, mut tap_tx) = start("tap", &tap, 1, Some(1520))?;
        let memif = format!("net_memif{n},role=server,socket={folder}/memif{n},socket-abstract=no");
        let (memif, rx, tx) = start("memif", &memif, queues, None)?;
        Ok(Self {
            tap_rx: tap_rx.remove(0),
            tap_tx: TxBuffer::new(tap_tx.remove(0), 32),
            queues: rx
                .into_iter()
                .zip(tx.into_iter().map(|tx| TxBuffer::new(tx, 32)))
                .collect(),
            by,
            random: 0x9e37_79b9_7f4a_7c15,
            _ports: [tap, memif],
        })
    }

    fn queue(&mut self, frame: &[u8]) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let hash = match self.by {
            By::Random => (self.random >> 32) as u32,
            by => toeplitz(&input(frame, by)),
        };
        hash as usize % 128 % self.queues.len()
    }

    /// Packets that were carried.
    fn carry(&mut self, batch: &mut Batch) -> usize {
        let mut count = self.tap_rx.receive(batch);
        for mbuf in batch.drain() {
            let queue = self.queue(mbuf.bytes());
            self.queues[queue].1.push(mbuf);
        }
        for (rx, tx) in &mut self.queues {
            tx.flush();
            count += rx.receive(batch);
            batch.drain().for_each(|mbuf| self.tap_tx.push(mbuf));
        }
        self.tap_tx.flush();
        count
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [queues, by, folder, taps @ ..] = words.as_slice() else {
        return Err("usage: feeder QUEUES both|source|destination|random FOLDER TAP...".into());
    };
    let (by, other) = match by.as_str() {
        "both" => (By::Both, By::Both),
        "source" => (By::Source, By::Destination),
        "destination" => (By::Destination, By::Source),
        "random" => (By::Random, By::Random),
        other => return Err(format!("{other}: not a way to hash").into()),
    };
    let options = EalOptions {
        lcores: vec![(0, 0)],
        file_prefix: format!("ek-feeder-{}", std::process::id()),
        memory_mib: Some(192),
        huge: Huge::Never,
        ..EalOptions::default()
    };
    let _eal = Eal::init(&options)?;
    let pool = Mempool::new("feeder", 32_767, 2048, 0, -1)?;
    let mut arms = Vec::new();
    for (n, tap) in taps.iter().enumerate() {
        let by = if n == 0 { by } else { other };
        arms.push(Arm::open(&pool, n, tap, folder, queues.parse()?, by)?);
    }
    println!("ready");
    std::io::stdout().flush()?;
    let mut batch = Batch::new();
    // Until it is killed.
    loop {
        let carried: usize = arms.iter_mut().map(|arm| arm.carry(&mut batch)).sum();
        if carried == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
