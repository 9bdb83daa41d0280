//! The packets: random clients and ports, each flow once, in an order without pattern.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use balancer::lb::flow::{Address, FlowKey};
use balancer::lb::owner::Ownership;

use crate::Failure;
use crate::frame::{CLIENT_MAC, OUR_MAC, TCP, UDP, sum};
use crate::pcap;

pub const VIP: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 1);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1);
const PORT: u16 = 80;
/// 10.0.0.0/9 and a /96: no client is a backend.
const CLIENTS: u32 = 0x0a00_0000;
const CLIENTS6: u128 = 0x2001_0db8_00c1 << 80;
/// As evenkeel has it while no port's RSS is confirmed.
const RETA: u16 = 128;

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;
/// What a client sends in a short connection.
const SEGMENTS: [u8; 6] = [SYN, ACK, PSH | ACK, PSH | ACK, FIN | ACK, ACK];
/// Connections that are open at a time.
const AT_ONCE: usize = 1000;

/// A client: the number that its address is made of, and its port.
pub type Client = (u32, u16);

/// A small generator of random numbers (splitmix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }
}

/// So many different clients, always the same ones for a number.
pub fn clients(count: usize) -> Vec<Client> {
    let mut random = Random(count as u64);
    let mut seen = HashSet::with_capacity(count);
    let mut clients = Vec::with_capacity(count);
    while clients.len() < count {
        let bits = random.next();
        let client = (bits as u32 & 0x7f_ffff, 1024 + random.below(64512) as u16);
        if seen.insert(client) {
            clients.push(client);
        }
    }
    clients
}

/// The frames of a kind, in the order in which they are to be sent.
pub fn frames<'c>(
    kind: &str,
    family: &str,
    clients: &'c [Client],
) -> Result<Box<dyn Iterator<Item = Vec<u8>> + 'c>, Failure> {
    let v6 = is_v6(family)?;
    match kind {
        "udp" => Ok(Box::new(clients.iter().map(move |&c| frame(v6, c, None)))),
        "tcp" => {
            let segments = clients.chunks(AT_ONCE).flat_map(|open| {
                let flags = SEGMENTS.into_iter();
                flags.flat_map(move |flags| open.iter().map(move |&c| (c, flags)))
            });
            Ok(Box::new(
                segments.map(move |(c, flags)| frame(v6, c, Some(flags))),
            ))
        }
        _ => Err(format!("no kind {kind}").into()),
    }
}

pub fn is_v6(family: &str) -> Result<bool, Failure> {
    match family {
        "ipv4" => Ok(false),
        "ipv6" => Ok(true),
        _ => Err(format!("no family {family}").into()),
    }
}

/// A frame of 60 bytes, or of 62 for UDP and 74 for TCP over IPv6: UDP, or TCP with these flags.
fn frame(v6: bool, (client, port): Client, flags: Option<u8>) -> Vec<u8> {
    let (number, header) = match flags {
        None => (UDP, 8),
        Some(_) => (TCP, 20),
    };
    let payload = if v6 { 0 } else { 60 - 14 - 20 - header };
    let mut l4 = vec![0; header + payload];
    l4[..2].copy_from_slice(&port.to_be_bytes());
    l4[2..4].copy_from_slice(&PORT.to_be_bytes());
    let length = l4.len() as u16;
    let at = match flags {
        None => {
            l4[4..6].copy_from_slice(&length.to_be_bytes());
            6
        }
        Some(flags) => {
            l4[12..16].copy_from_slice(&[5 << 4, flags, 0xff, 0xff]);
            16
        }
    };
    let mut ip = match v6 {
        false => vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, number, 0, 0],
        true => vec![0x60, 0, 0, 0, 0, 0, number, 64],
    };
    let ends = ip.len();
    if v6 {
        ip[4..6].copy_from_slice(&length.to_be_bytes());
        ip.extend(Ipv6Addr::from_bits(CLIENTS6 | u128::from(client)).octets());
        ip.extend(VIP6.octets());
    } else {
        ip[2..4].copy_from_slice(&(length + 20).to_be_bytes());
        ip.extend((CLIENTS | client).to_be_bytes());
        ip.extend(VIP.octets());
        let checksum = !sum(&[&ip]);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    let pseudo = (u32::from(length) + u32::from(number)).to_be_bytes();
    let checksum = match !sum(&[&ip[ends..], &pseudo, &l4]) {
        0 if number == UDP => 0xffff,
        checksum => checksum,
    };
    l4[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    let ethertype = if v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    [&OUR_MAC[..], &CLIENT_MAC, &ethertype, &ip, &l4].concat()
}

/// Writes a file of UDP frames for each worker's queue. `share` of them belong to other workers,
/// whom the balancer itself names.
pub fn split(
    family: &str,
    flows: usize,
    workers: u8,
    share: f64,
    stem: &str,
) -> Result<(), Failure> {
    let v6 = is_v6(family)?;
    let ownership = Ownership {
        reta: RETA,
        workers,
        compute: true,
    };
    let mut queues = vec![Vec::new(); usize::from(workers)];
    let mut owned = vec![0usize; usize::from(workers)];
    for client in clients(flows) {
        let owner = match v6 {
            false => owner(
                ownership,
                Ipv4Addr::from_bits(CLIENTS | client.0),
                VIP,
                client.1,
            ),
            true => {
                let address = Ipv6Addr::from_bits(CLIENTS6 | u128::from(client.0));
                owner(ownership, address, VIP6, client.1)
            }
        };
        let count = &mut owned[usize::from(owner)];
        // Of every `n` flows of an owner, so many that their share is right.
        let (before, after) = (*count as f64 * share, (*count + 1) as f64 * share);
        *count += 1;
        let is_foreign = after.floor() > before.floor();
        let queue = (usize::from(owner) + usize::from(is_foreign)) % usize::from(workers);
        queues[queue].push(client);
    }
    for (queue, clients) in queues.iter().enumerate() {
        let frames = clients.iter().map(|&c| frame(v6, c, None));
        pcap::write(format!("{stem}{queue}").as_ref(), frames)?;
    }
    Ok(())
}

fn owner<A: Address>(ownership: Ownership, source: A, destination: A, source_port: u16) -> u8 {
    ownership.one_way(&FlowKey {
        source,
        destination,
        source_port,
        destination_port: PORT,
        protocol: UDP,
    })
}
