//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, section 3.4), with weights.
//!
//! The table is a pure function of the backends' addresses, ports and configured weights and of
//! the size: the order of the file, health and history play no part, so instances agree.
//! Built by management; workers look up.

use std::net::IpAddr;

/// What identifies a backend to the hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Member {
    pub address: IpAddr,
    pub port: u16,
    pub weight: u32,
}

/// Sizes a table may have: primes, so that every skip visits every slot.
pub const SIZES: [u32; 8] = [251, 509, 1021, 4093, 16381, 65537, 131_071, 655_373];
/// The paper's small size, and our default.
pub const DEFAULT_SIZE: u32 = 65537;
/// Under a scheduler that is not a hash.
pub const SMALL_SIZE: u32 = 4093;

/// A look-up table from hashes to members' indexes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Maglev {
    slots: Box<[u32]>,
}

impl Maglev {
    /// Builds the table. A member of weight 0 gets no slots; values index `members` as given.
    pub fn build(members: &[Member], size: u32) -> Self {
        let mut order: Vec<usize> = (0..members.len())
            .filter(|&i| members[i].weight > 0)
            .collect();
        order.sort_by_key(|&i| members[i]);
        if order.is_empty() || size < 2 {
            return Self::default();
        }
        let heaviest = order.iter().map(|&i| members[i].weight).max().unwrap_or(1);
        let mut turns: Vec<Turn> = order
            .iter()
            .map(|&i| Turn::new(&members[i], i as u32, size))
            .collect();
        let mut slots = vec![0; size as usize];
        // One bit a slot stays in the first-level cache, where slots would not: towards the end
        // a member tries hundreds before it finds a free one.
        let mut taken = vec![0u64; (size as usize).div_ceil(64)];
        let mut left = size;
        // Round by round each member earns credit in proportion to its weight and takes a slot
        // for every whole unit: the heaviest one slot a round.
        while left > 0 {
            for turn in &mut turns {
                turn.credit += u64::from(turn.weight);
                if turn.credit < u64::from(heaviest) {
                    continue;
                }
                turn.credit -= u64::from(heaviest);
                let slot = turn.next_free(&taken, size) as usize;
                taken[slot / 64] |= 1 << (slot % 64);
                slots[slot] = turn.member;
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        Self {
            slots: slots.into(),
        }
    }

    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// The member for a hash that is even over 64 bits; `None` for a table without members.
    #[inline(always)]
    pub fn get(&self, hash: u64) -> Option<u32> {
        let slot = ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize;
        self.slots.get(slot).copied()
    }

    /// Slots, for statistics and diffs.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }
}

/// A member's walk through its own permutation of the slots.
struct Turn {
    at: u32,
    skip: u32,
    weight: u32,
    member: u32,
    credit: u64,
}

impl Turn {
    fn new(member: &Member, index: u32, size: u32) -> Self {
        let (a, b) = (
            member_hash(member, 0x6576_656e),
            member_hash(member, 0x6b65_656c),
        );
        Self {
            at: (a % u64::from(size)) as u32,
            skip: (b % u64::from(size - 1)) as u32 + 1,
            weight: member.weight,
            member: index,
            credit: 0,
        }
    }

    #[inline(always)]
    fn next_free(&mut self, taken: &[u64], size: u32) -> u32 {
        let mut slot = self.at;
        loop {
            let mut next = slot + self.skip;
            if next >= size {
                next -= size;
            }
            if taken[slot as usize / 64] >> (slot % 64) & 1 == 0 {
                self.at = next;
                return slot;
            }
            slot = next;
        }
    }
}

/// SplitMix64's finisher (Steele, Lea, Flood 2014): every input bit reaches every output bit.
/// Fixed for good: two versions of the program must agree on it.
#[inline(always)]
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// An unseeded hash of an endpoint, whose address is given in two words: the same on every instance
/// and in every version.
#[inline(always)]
pub fn stable_hash((high, low): (u64, u64), port: u16) -> u64 {
    mix(mix(high.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ low).wrapping_add(mix(u64::from(port) + 1))
        ^ mix(low ^ u64::from(port) << 40)
}

fn member_hash(member: &Member, salt: u64) -> u64 {
    let (high, low) = match member.address {
        IpAddr::V4(a) => (0, u64::from(a.to_bits())),
        IpAddr::V6(a) => ((a.to_bits() >> 64) as u64, a.to_bits() as u64),
    };
    mix(mix(mix(high ^ salt) ^ low) ^ u64::from(member.port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn members(count: u32) -> Vec<Member> {
        (0..count)
            .map(|n| Member {
                address: Ipv4Addr::from_bits(0x0a00_0001 + n).into(),
                port: 80,
                weight: 1,
            })
            .collect()
    }

    fn shares(table: &Maglev, count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        table.slots().iter().for_each(|&m| shares[m as usize] += 1);
        shares
    }

    #[test]
    fn equal_weights_get_equal_shares() {
        let table = Maglev::build(&members(10), DEFAULT_SIZE);
        let shares = shares(&table, 10);
        assert!(
            shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1,
            "{shares:?}"
        );
    }

    #[test]
    fn any_weights_get_proportional_shares() {
        let mut members = members(4);
        for (member, weight) in members.iter_mut().zip([1, 70, 300, 0]) {
            member.weight = weight;
        }
        let shares = shares(&Maglev::build(&members, DEFAULT_SIZE), 4);
        for (share, want) in shares
            .iter()
            .zip([1.0 / 371.0, 70.0 / 371.0, 300.0 / 371.0, 0.0])
        {
            assert!((*share as f64 - want * 65537.0).abs() <= 2.0, "{shares:?}");
        }
    }

    #[test]
    fn the_order_of_the_file_does_not_matter() {
        let forward = members(20);
        let backward: Vec<_> = forward.iter().rev().copied().collect();
        let (a, b) = (
            Maglev::build(&forward, 4093),
            Maglev::build(&backward, 4093),
        );
        let same = |(x, y): (&u32, &u32)| forward[*x as usize] == backward[*y as usize];
        assert!(a.slots().iter().zip(b.slots()).all(same));
    }

    #[test]
    fn removing_one_of_many_moves_few_others() {
        let all = members(100);
        let mut fewer = all.clone();
        fewer.remove(37);
        let (before, after) = (
            Maglev::build(&all, DEFAULT_SIZE),
            Maglev::build(&fewer, DEFAULT_SIZE),
        );
        let moved = before
            .slots()
            .iter()
            .zip(after.slots())
            .filter(|(b, a)| **b != 37 && all[**b as usize] != fewer[**a as usize])
            .count();
        assert!(moved < 65537 / 50, "{moved} slots moved");
    }

    #[test]
    fn nobody_means_none() {
        assert_eq!(Maglev::build(&[], 251).get(7), None);
        assert!(
            SIZES
                .iter()
                .all(|&n| (2..).take_while(|d| d * d <= n).all(|d| n % d != 0))
        );
    }
}
