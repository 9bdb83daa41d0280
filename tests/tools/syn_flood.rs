//! SYNs from random sources for the end-to-end tests, by shared memory: no kernel's queue is between
//! them and evenkeel's workers, and they cost next to nothing.
//!
//! `syn_flood SOCKET MAC FILE` is the other end of evenkeel's `net_memif` port with this socket and MAC
//! address. While there is a FILE that says `ADDRESS:PORT RATE`, it sends so many SYNs a second there, each
//! from a random address in 11.0.0.0/8; when the file is gone it prints how many it were. What comes
//! back is thrown away. Prints `ready` when the socket is there.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use evenkeel::port::{
    Batch, Eal, EalOptions, Huge, Mempool, Port, PortConfig, RxQueue, Started, TxQueue,
};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet,
    Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

const OWN_MAC: EthernetAddress = EthernetAddress([0x02, 0, 0, 0, 0x0f, 0x01]);

struct Flood {
    rx: RxQueue,
    tx: TxQueue,
    pool: Mempool,
    batch: Batch,
    to: EthernetAddress,
    random: u64,
    _port: Port<Started>,
}

impl Flood {
    /// Sends until as many have been taken as are due, or there is no room.
    fn catch_up(
        &mut self,
        server: SocketAddrV4,
        sent: &mut u64,
        due: u64,
    ) -> Result<(), Box<dyn Error>> {
        while *sent < due {
            // Those that found no room the last time go first.
            let from = self.batch.len();
            let want = (due - *sent).min(32) as usize;
            if want > from && !self.pool.alloc_bulk(&mut self.batch, want - from) {
                return Err("no packet buffers".into());
            }
            for mbuf in &mut self.batch[from..] {
                // xorshift64 (Marsaglia, 2003).
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                if !mbuf.fill(&forged_syn(self.to, server, self.random)) {
                    return Err("a SYN does not fit a packet buffer".into());
                }
            }
            match self.tx.send(&mut self.batch) {
                0 => return Ok(()),
                taken => *sent += taken as u64,
            }
        }
        Ok(())
    }

    fn throw_away(&mut self) {
        let mut answers = Batch::new();
        while self.rx.receive(&mut answers) > 0 {
            answers.clear();
        }
    }

    /// Floods for as long as `file` is there.
    fn run(&mut self, file: &Path, server: SocketAddrV4, rate: u64) -> Result<(), Box<dyn Error>> {
        self.batch.clear();
        let (began, mut sent) = (Instant::now(), 0);
        let due = |took: Duration| (took.as_micros() * u128::from(rate)).div_ceil(1_000_000) as u64;
        let mut took = Duration::ZERO;
        while file.exists() || sent < due(took) {
            if file.exists() {
                took = began.elapsed();
            }
            self.catch_up(server, &mut sent, due(took))?;
            self.throw_away();
            thread::sleep(Duration::from_micros(500));
        }
        println!("{sent} SYNs in {} us", took.as_micros());
        Ok(())
    }
}

fn forged_syn(to: EthernetAddress, server: SocketAddrV4, random: u64) -> Vec<u8> {
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
    let link = EthernetRepr {
        src_addr: OWN_MAC,
        dst_addr: to,
        ethertype: EthernetProtocol::Ipv4,
    };
    let length = link.buffer_len() + header.buffer_len() + segment.buffer_len();
    let mut bytes = vec![0xa5; length];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    link.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    header.emit(&mut packet, &checksums);
    let (from, to) = (source.into(), (*server.ip()).into());
    let mut inner = TcpPacket::new_unchecked(packet.payload_mut());
    segment.emit(&mut inner, &from, &to, &checksums);
    bytes
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, mac, file] = words.as_slice() else {
        return Err("usage: syn_flood SOCKET MAC FILE".into());
    };
    let options = EalOptions {
        lcores: vec![(0, 0)],
        file_prefix: format!("ek-flood-{}", std::process::id()),
        memory_mib: Some(64),
        huge: Huge::Never,
        ..EalOptions::default()
    };
    let _eal = Eal::init(&options)?;
    let pool = Mempool::new("flood", 8191, 2048, 0, -1)?;
    let device = format!("net_memif0,role=server,socket={socket},socket-abstract=no");
    let started =
        Port::open("flood", &device)?.start(&PortConfig::default(), std::slice::from_ref(&pool));
    let (port, mut rx, mut tx) = started.map_err(|failed| failed.error)?;
    let mut flood = Flood {
        rx: rx.remove(0),
        tx: tx.remove(0),
        pool,
        batch: Batch::new(),
        to: mac.parse().map_err(|()| format!("{mac}: no MAC address"))?,
        random: 0x2545_f491_4f6c_dd1d,
        _port: port,
    };
    println!("ready");
    std::io::stdout().flush()?;
    // Until it is killed.
    loop {
        if let Ok(text) = fs::read_to_string(file)
            && let Some((server, rate)) = text.trim_end().split_once(' ')
        {
            flood.run(Path::new(file), server.parse()?, rate.parse()?)?;
            std::io::stdout().flush()?;
        }
        flood.throw_away();
        thread::sleep(Duration::from_millis(1));
    }
}
