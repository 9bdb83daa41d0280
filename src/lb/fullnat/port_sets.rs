//! Sets of ports, a bit for each. Part of [`super::ports`].

use crate::arch::Region;

/// A set of ports in each pool.
pub(super) struct PortSets {
    pub words: Region<u64>,
    /// Words of a pool.
    pub each: usize,
}

impl PortSets {
    pub fn new(pools: usize, ports: usize) -> std::io::Result<Self> {
        let each = ports.div_ceil(64);
        let words = Region::zeroed((pools * each).max(1))?;
        Ok(Self { words, each })
    }

    /// Puts in all of every pool's ports.
    pub fn fill(&mut self, pools: usize, ports: usize) {
        for pool in 0..pools {
            for word in 0..self.each {
                let bits = (ports - word * 64).min(64) as u32;
                self.words[pool * self.each + word] = u64::MAX >> (64 - bits);
            }
        }
    }

    pub fn insert(&mut self, pool: usize, index: u16) {
        self.words[pool * self.each + usize::from(index) / 64] |= 1 << (index % 64);
    }

    pub fn remove(&mut self, pool: usize, index: u16) {
        self.words[pool * self.each + usize::from(index) / 64] &= !(1 << (index % 64));
    }

    /// The first at or behind `from`, in a circle.
    pub fn next(&self, pool: usize, from: u32) -> Option<u16> {
        let words = &self.words[pool * self.each..][..self.each];
        let (first, bit) = (from as usize / 64 % self.each, from % 64);
        let found = |word: usize, bits: u64| (word * 64) as u16 + bits.trailing_zeros() as u16;
        let rest = words[first] & u64::MAX << bit;
        if rest != 0 {
            return Some(found(first, rest));
        }
        // In the end the first again, for the bits below.
        let others = (first + 1..self.each).chain(0..=first);
        let mut others = others.filter(|&word| words[word] != 0);
        others.next().map(|word| found(word, words[word]))
    }
}
