//! Values by address prefix, found by the longest prefix that holds an address: however many there
//! are, a look-up is a hash for each length that occurs. Built by management; workers only look up.

use std::net::IpAddr;

use super::route::Prefix;
use super::snapshot::FastMap;

#[derive(Clone, Debug, PartialEq)]
pub struct PrefixMap<T> {
    v4: Vec<OfLength<T>>,
    v6: Vec<OfLength<T>>,
}

/// The prefixes of one length. They stand longest first.
#[derive(Clone, Debug, PartialEq)]
struct OfLength<T> {
    length: u8,
    values: FastMap<IpAddr, T>,
}

impl<T> Default for PrefixMap<T> {
    fn default() -> Self {
        Self {
            v4: Vec::new(),
            v6: Vec::new(),
        }
    }
}

impl<T> PrefixMap<T> {
    /// The value of a prefix; what `make` makes where there is none yet.
    pub fn entry(&mut self, prefix: Prefix, make: impl FnOnce() -> T) -> &mut T {
        let lengths = match prefix.address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        let place = lengths.partition_point(|one| one.length > prefix.length);
        let is_there = |one: &OfLength<T>| one.length == prefix.length;
        if !lengths.get(place).is_some_and(is_there) {
            let new = OfLength {
                length: prefix.length,
                values: FastMap::default(),
            };
            lengths.insert(place, new);
        }
        let values = &mut lengths[place].values;
        values.entry(prefix.address).or_insert_with(make)
    }

    /// The value of the longest prefix that holds `address`.
    pub fn longest(&self, address: IpAddr) -> Option<&T> {
        let mut lengths = match address {
            IpAddr::V4(_) => self.v4.iter(),
            IpAddr::V6(_) => self.v6.iter(),
        };
        lengths.find_map(|one| {
            let network = Prefix::new(address, one.length).address;
            one.values.get(&network)
        })
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &T)> {
        self.v4.iter().chain(&self.v6).flat_map(|one| {
            let length = one.length;
            let values = one.values.iter();
            values.map(move |(&address, value)| (Prefix { address, length }, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_finds_what_a_search_through_all_finds(
            prefixes in proptest::collection::vec((any::<bool>(), any::<u8>(), 0..=8u8), 0..40),
            asked in proptest::collection::vec((any::<bool>(), any::<u8>()), 1..20),
        ) {
            // Few bits, so that prefixes nest; the same ones at the end of either family.
            let address = |v4, low: u8| match v4 {
                true => IpAddr::from([10, 0, 0, low]),
                false => IpAddr::from([0x20, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, low]),
            };
            let prefix = |v4: bool, low, length| {
                Prefix::new(address(v4, low), if v4 { 24 } else { 120 } + length)
            };
            let all: Vec<Prefix> = prefixes.iter().map(|&(v4, low, l)| prefix(v4, low, l)).collect();
            let mut map = PrefixMap::default();
            for (number, prefix) in all.iter().enumerate() {
                map.entry(*prefix, || number);
            }
            for (v4, low) in asked {
                let address = address(v4, low);
                let fit = all.iter().enumerate().filter(|(_, p)| p.contains(address));
                // The first of equals.
                let best = fit.min_by_key(|(number, p)| (std::cmp::Reverse(p.length), *number));
                prop_assert_eq!(map.longest(address).copied(), best.map(|(number, _)| number));
            }
            let listed: std::collections::HashSet<Prefix> = map.iter().map(|(p, _)| p).collect();
            prop_assert_eq!(listed, all.into_iter().collect());
        }
    }
}
