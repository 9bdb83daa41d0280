//! Sets and maps of addresses, part of a snapshot: built by management, asked by workers.

use std::net::IpAddr;

use super::snapshot::{FastMap, FastSet};

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

/// Values by address, likewise.
#[derive(Clone, Debug, PartialEq)]
pub struct AddressMap<V> {
    v4: FastMap<u32, V>,
    v6: FastMap<u128, V>,
}

impl<V> Default for AddressMap<V> {
    fn default() -> Self {
        Self {
            v4: FastMap::default(),
            v6: FastMap::default(),
        }
    }
}

impl<V> AddressMap<V> {
    #[inline(always)]
    pub fn get(&self, address: IpAddr) -> Option<&V> {
        match address {
            IpAddr::V4(address) => self.v4.get(&address.to_bits()),
            IpAddr::V6(address) => self.v6.get(&address.to_bits()),
        }
    }

    pub fn insert(&mut self, address: IpAddr, value: V) {
        match address {
            IpAddr::V4(address) => self.v4.insert(address.to_bits(), value),
            IpAddr::V6(address) => self.v6.insert(address.to_bits(), value),
        };
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
}
