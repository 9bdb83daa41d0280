//! Sets and maps of addresses, part of a snapshot: built by management, asked by workers.

use std::net::IpAddr;

use super::flow::fold;
use super::snapshot::FastSet;

/// Addresses of both families, each under a key that hashes in a few instructions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddressSet {
    v4: FastSet<u32>,
    v6: FastSet<u128>,
}

impl AddressSet {
    #[inline(always)]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(&address.to_bits()),
            IpAddr::V6(address) => self.v6.contains(&address.to_bits()),
        }
    }

    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().map(|&bits| IpAddr::V4(bits.into()));
        v4.chain(self.v6.iter().map(|&bits| IpAddr::V6(bits.into())))
    }
}

impl FromIterator<IpAddr> for AddressSet {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut set = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => set.v4.insert(address.to_bits()),
                IpAddr::V6(address) => set.v6.insert(address.to_bits()),
            };
        }
        set
    }
}

/// Values by address, for a look-up per packet: found in a few instructions, mostly at first sight. The
/// places follow from the addresses alone, which are the configuration's, not a stranger's.
#[derive(Clone, Debug, PartialEq)]
pub struct AddressMap<V> {
    v4: Places<u32, V>,
    v6: Places<u128, V>,
}

impl<V> Default for AddressMap<V> {
    fn default() -> Self {
        Self {
            v4: Places::of(4),
            v6: Places::of(4),
        }
    }
}

impl<V> AddressMap<V> {
    #[inline(always)]
    pub fn get(&self, address: IpAddr) -> Option<&V> {
        match address {
            IpAddr::V4(address) => self.v4.get(address.to_bits()),
            IpAddr::V6(address) => self.v6.get(address.to_bits()),
        }
    }

    pub fn insert(&mut self, address: IpAddr, value: V) {
        match address {
            IpAddr::V4(address) => self.v4.insert(address.to_bits(), value),
            IpAddr::V6(address) => self.v6.insert(address.to_bits(), value),
        };
    }
}

/// Open addressing, at most a quarter full, so that what is not there is missed at first sight, too.
#[derive(Clone, Debug)]
struct Places<K, V> {
    /// A power of two.
    places: Vec<Option<(K, V)>>,
    used: usize,
}

impl<K: Copy + Eq + Into<u128>, V> Places<K, V> {
    /// Nothing in so many places, a power of two.
    fn of(count: usize) -> Self {
        Self {
            places: (0..count).map(|_| None).collect(),
            used: 0,
        }
    }

    /// Where a key should be: bits of a product in which all of the key's have a part.
    #[inline(always)]
    fn first(&self, key: K) -> usize {
        let bits: u128 = key.into();
        let folded = ((bits >> 64) as u64).rotate_left(32) ^ bits as u64;
        (fold(folded, 0x9e37_79b9_7f4a_7c15) >> 32) as usize
    }

    #[inline(always)]
    fn get(&self, key: K) -> Option<&V> {
        let (mask, mut at) = (self.places.len() - 1, self.first(key));
        loop {
            match self.places.get(at & mask)? {
                Some((found, value)) if *found == key => return Some(value),
                Some(_) => at += 1,
                None => return None,
            }
        }
    }

    fn insert(&mut self, key: K, value: V) {
        if (self.used + 1) * 4 > self.places.len() {
            let mut larger = Self::of(self.places.len() * 2);
            for (key, value) in self.places.drain(..).flatten() {
                larger.insert(key, value);
            }
            *self = larger;
        }
        let (mask, mut at) = (self.places.len() - 1, self.first(key));
        while let Some((found, _)) = &self.places[at & mask]
            && *found != key
        {
            at += 1;
        }
        let place = &mut self.places[at & mask];
        self.used += usize::from(place.is_none());
        *place = Some((key, value));
    }
}

/// The same values under the same keys: places depend on the order in which they were taken.
impl<K: Copy + Eq + Into<u128>, V: PartialEq> PartialEq for Places<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let mut values = self.places.iter().flatten();
        self.used == other.used && values.all(|(key, value)| other.get(*key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_kept_apart() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let set: AddressSet = ["10.0.0.1", "::1", "10.0.0.1"]
            .map(ip)
            .into_iter()
            .collect();
        assert!(set.contains(ip("10.0.0.1")) && set.contains(ip("::1")));
        for other in ["0.0.0.1", "::a00:1", "10.0.0.2", "::ffff:10.0.0.1"] {
            assert!(!set.contains(ip(other)), "{other}");
        }
        let mut all: Vec<IpAddr> = set.iter().collect();
        all.sort();
        assert_eq!(all, ["10.0.0.1", "::1"].map(ip));
        assert!(!set.is_empty() && AddressSet::default().is_empty());
    }

    #[test]
    fn values_are_found_by_their_address_alone() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mut map = AddressMap::default();
        for (address, value) in [("10.0.0.1", 1), ("::a00:1", 2), ("10.0.0.1", 3)] {
            map.insert(ip(address), value);
        }
        assert_eq!(map.get(ip("10.0.0.1")), Some(&3));
        assert_eq!(map.get(ip("::a00:1")), Some(&2));
        assert_eq!(map.get(ip("0.0.0.1")), None);
    }

    #[test]
    fn maps_of_the_same_values_are_equal_in_whatever_order_they_were_made() {
        let of = |values: &[u32]| {
            let mut map = AddressMap::default();
            for &n in values {
                map.insert(IpAddr::V4(n.into()), n / 2);
            }
            map
        };
        let forward: Vec<u32> = (0..500).collect();
        let backward: Vec<u32> = (0..500).rev().collect();
        assert_eq!(of(&forward), of(&backward));
        assert_ne!(of(&forward), of(&forward[1..]));
        let mut changed = of(&forward);
        changed.insert(IpAddr::V4(7.into()), 9);
        assert_ne!(of(&forward), changed);
    }

    #[test]
    fn of_many_addresses_each_is_found_and_no_other() {
        let v4 = |n: u32| IpAddr::V4((0x0a00_0000 + n * 256).into());
        let v6 = |n: u32| IpAddr::V6(((0x2001_0db8 << 96) + u128::from(n)).into());
        let mut map = AddressMap::default();
        for n in 0..5000 {
            map.insert(v4(n), n);
            map.insert(v6(n), n);
            map.insert(v4(n / 2), n / 2);
        }
        for n in 0..10_000 {
            let wanted = (n < 5000).then_some(&n);
            assert_eq!((map.get(v4(n)), map.get(v6(n))), (wanted, wanted), "{n}");
        }
    }

    #[test]
    fn neighbouring_addresses_are_found_within_a_few_looks() {
        let bases = [0x0a00_0000u128, 0xc612_0000, 0x2001_0db8 << 96];
        // The last: hosts that are numbered as their subnets are.
        let steps = [1, 256, 65536, 1 << 64 | 1];
        for (base, step) in bases.into_iter().flat_map(|b| steps.map(|s| (b, s))) {
            let mut places = Places::of(4);
            let keys = (0..1000).map(|n| base + n * step);
            keys.clone().for_each(|key| places.insert(key, ()));
            let mask = places.places.len() - 1;
            let looks = |key: u128| {
                let mut at = places.first(key);
                let begin = at;
                while places.places[at & mask] != Some((key, ())) {
                    at += 1;
                }
                at - begin + 1
            };
            let most = keys.map(looks).max();
            assert!(most < Some(12), "{most:?} from {base:#x} by {step}");
        }
    }
}
