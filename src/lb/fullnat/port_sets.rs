//! Sets of ports, a bit for each, and above each 64 words of bits one that says which of them are not
//! empty: a flood that uses up all ports asks for a free one with each packet. Part of [`super::ports`].

use crate::arch::Region;

/// A set of ports in each pool.
pub(super) struct PortSets {
    words: Region<u64>,
    summaries: Region<u64>,
    /// Words of a pool.
    each: usize,
}

impl PortSets {
    pub fn new(pools: usize, ports: usize) -> std::io::Result<Self> {
        let each = ports.div_ceil(64);
        Ok(Self {
            words: Region::zeroed((pools * each).max(1))?,
            summaries: Region::zeroed((pools * each.div_ceil(64)).max(1))?,
            each,
        })
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        (self.words.len() + self.summaries.len()) * size_of::<u64>()
    }

    /// Words of a pool.
    pub fn each(&self) -> usize {
        self.each
    }

    pub fn word(&self, pool: usize, word: usize) -> u64 {
        self.words[pool * self.each + word]
    }

    fn set_word(&mut self, pool: usize, word: usize, bits: u64) {
        self.words[pool * self.each + word] = bits;
        let summary = &mut self.summaries[pool * self.each.div_ceil(64) + word / 64];
        *summary &= !(1 << (word % 64));
        *summary |= u64::from(bits != 0) << (word % 64);
    }

    /// Puts in all of every pool's ports.
    pub fn fill(&mut self, pools: usize, ports: usize) {
        for pool in 0..pools {
            for word in 0..self.each {
                let bits = (ports - word * 64).min(64) as u32;
                self.set_word(pool, word, u64::MAX >> (64 - bits));
            }
        }
    }

    pub fn insert(&mut self, pool: usize, index: u16) {
        let word = usize::from(index) / 64;
        self.set_word(pool, word, self.word(pool, word) | 1 << (index % 64));
    }

    pub fn remove(&mut self, pool: usize, index: u16) {
        let word = usize::from(index) / 64;
        self.set_word(pool, word, self.word(pool, word) & !(1 << (index % 64)));
    }

    /// The first port at or behind `from`, in a circle.
    pub fn next(&self, pool: usize, from: u32) -> Option<u16> {
        let first = (from as usize / 64).checked_rem(self.each)?;
        let found = |word: usize, bits: u64| (word * 64) as u16 + bits.trailing_zeros() as u16;
        let rest = self.word(pool, first) & u64::MAX << (from % 64);
        if rest != 0 {
            return Some(found(first, rest));
        }
        // In the end the first again, for the bits below.
        let word = self.next_word(pool, (first + 1) % self.each)?;
        Some(found(word, self.word(pool, word)))
    }

    /// The first word at or behind `from` that is not empty, in a circle.
    pub fn next_word(&self, pool: usize, from: usize) -> Option<usize> {
        let each = self.each.div_ceil(64);
        let summaries = &self.summaries[pool * each..][..each];
        let first = from / 64;
        let rest = summaries.get(first)? & u64::MAX << (from % 64);
        let at = |summary: usize, bits: u64| summary * 64 + bits.trailing_zeros() as usize;
        if rest != 0 {
            return Some(at(first, rest));
        }
        let mut others = (first + 1..each).chain(0..=first);
        let other = others.find(|&summary| summaries[summary] != 0)?;
        Some(at(other, summaries[other]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Two pools, of sizes that do and do not fill their last words.
        #[test]
        fn they_are_sets_whose_next_goes_round(
            ports in prop::sample::select(vec![1, 64, 65, 200, 4096, 5000, 65_536]),
            full in any::<bool>(),
            steps in prop::collection::vec(
                (0..2_usize, any::<bool>(), any::<prop::sample::Index>()), 1..300),
        ) {
            let mut sets = PortSets::new(2, ports).expect("memory");
            let mut model = [BTreeSet::new(), BTreeSet::new()];
            if full {
                sets.fill(2, ports);
                model = [(); 2].map(|()| (0..ports).map(|port| port as u16).collect());
            }
            for (pool, puts_in, at) in steps {
                let index = at.index(ports) as u16;
                if puts_in {
                    sets.insert(pool, index);
                    model[pool].insert(index);
                } else {
                    sets.remove(pool, index);
                    model[pool].remove(&index);
                }
                for (pool, set) in model.iter().enumerate() {
                    for from in [index, 0, (ports - 1) as u16] {
                        let next = set.range(from..).next().or(set.first()).copied();
                        prop_assert_eq!(sets.next(pool, from.into()), next);
                        let word = usize::from(from) / 64;
                        let behind = set.range(word as u16 * 64..).next().or(set.first());
                        let expected = behind.map(|&port| usize::from(port) / 64);
                        prop_assert_eq!(sets.next_word(pool, word), expected);
                    }
                }
            }
        }
    }
}
