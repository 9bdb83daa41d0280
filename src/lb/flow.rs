//! What names a flow: addresses, ports and protocol, for IPv4 and IPv6.
//! Pure values, used on workers and in management.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol numbers (IANA).
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const ICMPV6: u8 = 58;
}

/// An address of one family. Implemented for [`Ipv4Addr`] and [`Ipv6Addr`] alone.
pub trait Address: Copy + Eq + Hash + Ord + Debug + Send + Sync + Into<IpAddr> + 'static {
    /// The bytes of the fixed IP header.
    const HEADER: usize;
    /// Fills a connection up to half a cache line (IPv4) or a whole one (IPv6).
    type Pad: Copy + Default + Eq + Debug + Send + Sync;
    /// The unspecified address, all bits zero.
    const UNSPECIFIED: Self;
    /// Where source and destination stand in the IP header.
    const SOURCE_AT: usize;
    const DESTINATION_AT: usize;
    /// Where the number of the next protocol stands there.
    const PROTOCOL_AT: usize;
    /// Whether the addresses at the start of `bytes` are these two, in this order.
    fn are_at(bytes: &[u8], first: Self, second: Self) -> bool;
    /// The address in network byte order at the start of `bytes`.
    fn read(bytes: &[u8]) -> Self;
    /// Writes the address, in network byte order, to the start of `bytes`.
    fn write(self, bytes: &mut [u8]);
    /// The address of this family inside `any`.
    fn from_ip(any: IpAddr) -> Option<Self>;
    /// The address as two words; IPv4 leaves the first zero.
    fn words(self) -> (u64, u64);
    /// No host may send from it: unspecified, loopback, multicast or broadcast.
    fn is_invalid_source(self) -> bool;
}

impl Address for Ipv4Addr {
    const HEADER: usize = 20;
    type Pad = [u8; 0];
    const SOURCE_AT: usize = 12;
    const DESTINATION_AT: usize = 16;
    const PROTOCOL_AT: usize = 9;
    const UNSPECIFIED: Self = Ipv4Addr::UNSPECIFIED;

    #[inline(always)]
    fn are_at(bytes: &[u8], first: Self, second: Self) -> bool {
        // As one word, which is one comparison where the two lie side by side.
        let word = |address: Self| u64::from(u32::from_le_bytes(address.octets()));
        let mut both = [0; 8];
        both.copy_from_slice(&bytes[..8]);
        u64::from_le_bytes(both) == word(first) | word(second) << 32
    }

    fn from_ip(any: IpAddr) -> Option<Self> {
        match any {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    #[inline(always)]
    fn read(bytes: &[u8]) -> Self {
        Self::from([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline(always)]
    fn write(self, bytes: &mut [u8]) {
        bytes[..4].copy_from_slice(&self.octets());
    }

    #[inline(always)]
    fn words(self) -> (u64, u64) {
        (0, u64::from(self.to_bits()))
    }

    fn is_invalid_source(self) -> bool {
        // 0.0.0.0/8, 127/8, and from 224.0.0.0 upward: multicast, reserved, broadcast.
        let first = self.octets()[0];
        first == 0 || first == 127 || first >= 224
    }
}

impl Address for Ipv6Addr {
    const HEADER: usize = 40;
    type Pad = [u8; 8];
    const SOURCE_AT: usize = 8;
    const DESTINATION_AT: usize = 24;
    const PROTOCOL_AT: usize = 6;
    const UNSPECIFIED: Self = Ipv6Addr::UNSPECIFIED;

    #[inline(always)]
    fn are_at(bytes: &[u8], first: Self, second: Self) -> bool {
        Self::read(bytes) == first && Self::read(&bytes[16..]) == second
    }

    fn from_ip(any: IpAddr) -> Option<Self> {
        match any {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        }
    }

    #[inline(always)]
    fn read(bytes: &[u8]) -> Self {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[..16]);
        Self::from(octets)
    }

    #[inline(always)]
    fn write(self, bytes: &mut [u8]) {
        bytes[..16].copy_from_slice(&self.octets());
    }

    #[inline(always)]
    fn words(self) -> (u64, u64) {
        let bits = self.to_bits();
        ((bits >> 64) as u64, bits as u64)
    }

    fn is_invalid_source(self) -> bool {
        self.is_unspecified() || self.is_loopback() || self.is_multicast()
    }
}

/// Addresses, ports (host byte order) and IP protocol of a packet. For ICMP echo both ports are
/// the identifier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey<A> {
    pub source: A,
    pub destination: A,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

impl<A: Address> FlowKey<A> {
    /// The same flow seen from the other end.
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// The secret that keys the connection table's hash, so that nobody outside can aim at one
/// bucket. Drawn at random when the program starts.
#[derive(Clone, Copy)]
pub struct Seed(pub [u64; 3]);

impl Seed {
    /// A seed from the operating system's randomness.
    pub fn random() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self([1u64, 2, 3].map(|i| RandomState::new().hash_one(i) | 1))
    }
}

/// High and low half of the 128-bit product, folded together.
#[inline(always)]
pub(super) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// The hash of a client's endpoint: protocol, address and port. Requests and replies of a flow
/// both know these three, so both directions probe the same bucket (DESIGN decision 3). The lowest bit is
/// always set: a table's tags are the 16 lowest, and 0 is a free entry's.
#[inline(always)]
pub fn endpoint_hash<A: Address>(seed: &Seed, protocol: u8, address: A, port: u16) -> u64 {
    // As they stand in a packet, whose bytes need not be swapped then.
    let (high, low) = address.words();
    let port = u64::from(port.to_be()) | u64::from(protocol) << 16;
    let hash = if A::HEADER == 20 {
        let address = u64::from((low as u32).to_be());
        fold(address ^ seed.0[0], port ^ seed.0[1])
    } else {
        let address = fold(high.to_be() ^ seed.0[0], low.to_be() ^ seed.0[1]);
        fold(address, port ^ seed.0[2])
    };
    // Neighbouring numbers, multiplied once, lie at equal distances, which one seed in thirty makes fit the
    // size of a table so badly that it is full before it is.
    hash.wrapping_mul(seed.0[2]) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_spreads_neighbouring_endpoints() {
        let seed = Seed([
            0x9e37_79b9_7f4a_7c15,
            0xd1b5_4a32_d192_ed03,
            0x8cb9_2ba7_2f3d_8dd7,
        ]);
        let mut buckets = [0u32; 1024];
        for port in 0..64 {
            for host in 0..1024u32 {
                let address = Ipv4Addr::from_bits(0x0a00_0000 + host);
                let hash = endpoint_hash(&seed, protocol::TCP, address, 1024 + port);
                assert_eq!(hash & 1, 1, "no entry's tag is a free one's");
                buckets[((u128::from(hash) * 1024) >> 64) as usize] += 1;
            }
        }
        // 64 a bucket on average; the standard deviation of a fair hash is 8.
        assert!(
            buckets.iter().all(|&n| (16..=128).contains(&n)),
            "{buckets:?}"
        );
    }

    #[test]
    fn seeds_change_which_endpoints_collide() {
        let (a, b) = (
            Seed([11, 13, 17]),
            Seed([0x1234_5678_9abc_def1, 0xfeed_beef_cafe_f00d, 99]),
        );
        let top =
            |seed: &Seed, port| endpoint_hash(seed, 6, Ipv4Addr::new(10, 0, 0, 1), port) >> 56;
        let same = |seed: &Seed| {
            (0..2048u16)
                .filter(|&p| top(seed, p) == top(seed, 0))
                .collect::<Vec<_>>()
        };
        assert_ne!(same(&a), same(&b));
    }

    #[test]
    fn invalid_sources() {
        for bad in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
        ] {
            let bad: IpAddr = bad.parse().expect("address");
            let invalid = match bad {
                IpAddr::V4(a) => a.is_invalid_source(),
                IpAddr::V6(a) => a.is_invalid_source(),
            };
            assert!(invalid, "{bad}");
        }
        assert!(!Ipv4Addr::new(10, 1, 2, 3).is_invalid_source());
    }
}
