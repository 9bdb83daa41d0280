//! The Internet checksum (RFC 1071), whole and incremental (RFC 1624 equation 3).
//! Sums run over big-endian 16-bit words; results are host-order values to store big-endian. A
//! [`Change`] runs over words as they lie in memory: the sum minds no order of bytes (RFC 1071 2 B).

use super::flow::Address;

/// A one's complement sum in progress, not yet folded to 16 bits.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Sum(pub u64);

impl Sum {
    /// Adds bytes; an odd last byte counts as the high half of a word.
    #[inline(always)]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            self.0 += u64::from(u32::from_be_bytes(*word));
        }
        let (pairs, odd) = rest.as_chunks::<2>();
        for pair in pairs {
            self.0 += u64::from(u16::from_be_bytes(*pair));
        }
        if let [last] = odd {
            self.0 += u64::from(*last) << 8;
        }
        self
    }

    #[inline(always)]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    #[inline(always)]
    pub fn address<A: Address>(self, address: A) -> Self {
        let (high, low) = address.words();
        Self(self.0 + (high >> 32) + (high & 0xffff_ffff) + (low >> 32) + (low & 0xffff_ffff))
    }

    /// Takes `old` out: in one's complement that is adding its inverse.
    #[inline(always)]
    pub fn without(self, old: Sum) -> Self {
        Self(self.0 + u64::from(!old.fold()))
    }

    /// The sum with its carries folded in.
    #[inline(always)]
    pub fn fold(self) -> u16 {
        // Each half at most carries once, and then is not all ones.
        let (sum, carry) = (self.0 as u32).overflowing_add((self.0 >> 32) as u32);
        let sum = sum + u32::from(carry);
        let (half, carry) = (sum as u16).overflowing_add((sum >> 16) as u16);
        half + u16::from(carry)
    }

    /// The value to store in a checksum field.
    #[inline(always)]
    pub fn finish(self) -> u16 {
        !self.fold()
    }
}

/// The checksum after a change from words that sum to `old` to words that sum to `new`
/// (RFC 1624: `~(~HC + ~m + m')`). What was wrong before stays wrong.
#[inline(always)]
pub fn adjust(checksum: u16, old: Sum, new: Sum) -> u16 {
    new.word(!checksum).without(old).finish()
}

/// What a change of addresses and ports means for the checksums that cover them: the sum of the
/// new words and of the inverse of the old ones.
#[derive(Clone, Copy, Default, Debug)]
pub struct Change(u64);

impl Change {
    #[inline(always)]
    pub fn address<A: Address>(self, old: A, new: A) -> Self {
        let ((old_high, old_low), (new_high, new_low)) = (old.words(), new.words());
        let half =
            |old: u64, new: u64| u64::from(!(old as u32).to_be()) + u64::from((new as u32).to_be());
        let sum = self.0 + half(old_low, new_low);
        if A::HEADER == 20 {
            return Self(sum);
        }
        Self(
            sum + half(old_low >> 32, new_low >> 32)
                + half(old_high, new_high)
                + half(old_high >> 32, new_high >> 32),
        )
    }

    /// Of a word in host order.
    #[inline(always)]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old.to_be()) + u64::from(new.to_be()))
    }

    /// Changes the checksum at `at`: `~(~HC + ~m + m')`. What was wrong before stays wrong.
    #[inline(always)]
    pub fn apply(self, bytes: &mut [u8], at: usize) {
        let checksum = u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&self.of(checksum).to_ne_bytes());
    }

    /// The same of a UDP checksum: zero says that there is none, and a computed zero is sent as
    /// ones (RFC 768).
    #[inline(always)]
    pub fn apply_udp(self, bytes: &mut [u8], at: usize) {
        let checksum = u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        if checksum != 0 {
            let changed = self.of(checksum);
            let sent = if changed == 0 { u16::MAX } else { changed };
            bytes[at..at + 2].copy_from_slice(&sent.to_ne_bytes());
        }
    }

    #[inline(always)]
    fn of(self, checksum: u16) -> u16 {
        Sum(self.0).word(!checksum).finish()
    }
}

/// The sum of the TCP/UDP/ICMPv6 pseudo header (RFC 9293 3.1, RFC 8200 8.1).
pub fn pseudo_header<A: Address>(source: A, destination: A, protocol: u8, length: usize) -> Sum {
    let sum = Sum::default().address(source).address(destination);
    Sum(sum.0 + u64::from(protocol) + length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// RFC 1071 section 4.1, word for word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&bytes).fold(), 0xddf2);
    }

    proptest! {
        #[test]
        fn whole_checksum_is_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Sum::default().bytes(&bytes).finish(), reference(&bytes));
        }

        #[test]
        fn incremental_is_full_recompute(
            mut bytes in prop::collection::vec(any::<u8>(), 8..100),
            new in any::<[u8; 4]>(),
        ) {
            // An all-zero message has two representations of zero; the Internet's never are.
            bytes[6] |= 1;
            let old_sum = reference(&bytes);
            let old = Sum::default().bytes(&bytes[0..4]);
            bytes[0..4].copy_from_slice(&new);
            let adjusted = adjust(old_sum, old, Sum::default().bytes(&new));
            prop_assert_eq!(adjusted, reference(&bytes));
        }

        /// Whatever is changed, and wherever the checksum stands.
        #[test]
        fn a_change_is_what_adjusting_says(
            (old, new) in any::<([u64; 2], [u64; 2])>(),
            ports in any::<(u16, u16)>(),
            checksum: u16,
            v6: bool,
        ) {
            let v4 = |bits: [u64; 2]| Ipv4Addr::from_bits(bits[0] as u32);
            let v6_of = |bits: [u64; 2]| Ipv6Addr::from_bits(u128::from(bits[0]) << 64 | u128::from(bits[1]));
            let (change, before, after) = match v6 {
                false => (
                    Change::default().address(v4(old), v4(new)),
                    Sum::default().address(v4(old)),
                    Sum::default().address(v4(new)),
                ),
                true => (
                    Change::default().address(v6_of(old), v6_of(new)),
                    Sum::default().address(v6_of(old)),
                    Sum::default().address(v6_of(new)),
                ),
            };
            let change = change.word(ports.0, ports.1);
            let wanted = adjust(checksum, before.word(ports.0), after.word(ports.1));
            let mut bytes = [1, 2, 3, 4];
            bytes[1..3].copy_from_slice(&checksum.to_be_bytes());
            let mut udp = bytes;
            change.apply(&mut bytes, 1);
            // Zero and all ones are the same number.
            prop_assert_eq!(u16::from_be_bytes([bytes[1], bytes[2]]) % 0xffff, wanted % 0xffff);
            prop_assert_eq!((bytes[0], bytes[3]), (1, 4));
            change.apply_udp(&mut udp, 1);
            match checksum {
                0 => prop_assert_eq!(udp, [1, 0, 0, 4]),
                _ if bytes[1..3] == [0, 0] => prop_assert_eq!(udp, [1, 0xff, 0xff, 4]),
                _ => prop_assert_eq!(udp, bytes),
            }
        }

        #[test]
        fn addresses_sum_as_their_bytes(bits in any::<u128>()) {
            let address = Ipv6Addr::from_bits(bits);
            prop_assert_eq!(
                Sum::default().address(address).fold(),
                Sum::default().bytes(&address.octets()).fold()
            );
        }
    }
}
