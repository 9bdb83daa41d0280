//! The Internet checksum (RFC 1071), whole and incremental (RFC 1624 equation 3).
//! Sums run over big-endian 16-bit words; results are host-order values to store big-endian.

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
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let twice = (once & 0xffff) + (once >> 16 & 0xffff) + (once >> 32);
        let thrice = (twice & 0xffff) + (twice >> 16);
        (thrice as u16).wrapping_add((thrice >> 16) as u16)
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

/// The sum of the TCP/UDP/ICMPv6 pseudo header (RFC 9293 3.1, RFC 8200 8.1).
pub fn pseudo_header<A: Address>(source: A, destination: A, protocol: u8, length: usize) -> Sum {
    let sum = Sum::default().address(source).address(destination);
    Sum(sum.0 + u64::from(protocol) + length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;

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
