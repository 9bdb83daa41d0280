//! Puts together what was sent to us in fragments: pings that are longer than a link takes.
//!
//! Part of `NetState`, on the management thread. Fragments may be forged, so they are bounded in number,
//! in size and in time: a datagram too many takes the place of the oldest, and one whose fragments
//! contradict each other is forgotten (RFC 5722 4).

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Datagrams that wait for fragments: 2 MB when all are as long as they may be.
const DATAGRAMS: usize = 32;
/// Bytes of the longest payload: those of an IPv4 packet without options.
const LONGEST: usize = 65_515;
/// The longest has no more even where links take 576 bytes.
const PIECES: usize = 128;
const PATIENCE: Duration = Duration::from_secs(30);

/// What names a datagram (RFC 791 3.2, RFC 8200 4.5); its protocol is always ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    pub port: u16,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub number: u32,
}

#[derive(Debug, Clone, Copy)]
pub struct Fragment<'a> {
    /// Where its data stands in the datagram's, in bytes.
    pub offset: usize,
    /// Others follow behind it.
    pub more: bool,
    pub data: &'a [u8],
}

#[derive(Debug)]
struct Datagram {
    id: Id,
    since: Instant,
    data: Vec<u8>,
    /// Begin and end of what has come, in order; none overlaps another.
    pieces: Vec<(usize, usize)>,
    /// Its length, once the last fragment has come.
    length: Option<usize>,
}

#[derive(Debug, Default)]
pub struct Reassembly {
    /// In the order in which their first fragments came.
    datagrams: Vec<Datagram>,
}

impl Reassembly {
    /// Takes a fragment; the datagram's payload when that was all that it lacked.
    pub fn add(&mut self, id: Id, fragment: &Fragment<'_>, now: Instant) -> Option<Vec<u8>> {
        self.datagrams
            .retain(|one| now.saturating_duration_since(one.since) < PATIENCE);
        let found = self.datagrams.iter().position(|one| one.id == id);
        let at = found.unwrap_or_else(|| self.begin(id, now));
        let datagram = &mut self.datagrams[at];
        if !datagram.add(fragment) {
            self.datagrams.remove(at);
            return None;
        }
        let is_whole = datagram.is_whole();
        is_whole.then(|| self.datagrams.remove(at).data)
    }

    fn begin(&mut self, id: Id, now: Instant) -> usize {
        if self.datagrams.len() == DATAGRAMS {
            self.datagrams.remove(0);
        }
        self.datagrams.push(Datagram {
            id,
            since: now,
            data: Vec::new(),
            pieces: Vec::new(),
            length: None,
        });
        self.datagrams.len() - 1
    }
}

impl Datagram {
    /// False where the fragment contradicts the rules or the others.
    fn add(&mut self, fragment: &Fragment<'_>) -> bool {
        let &Fragment { offset, more, data } = fragment;
        let end = offset + data.len();
        if data.is_empty() || end > LONGEST || (more && data.len() % 8 != 0) {
            return false;
        }
        let at = self.pieces.partition_point(|&(begin, _)| begin < offset);
        if self.pieces.get(at) == Some(&(offset, end)) {
            // One that the network delivered twice.
            return self.data[offset..end] == *data;
        }
        let before = at.checked_sub(1).map_or(0, |before| self.pieces[before].1);
        let behind = self.pieces.get(at).map_or(LONGEST, |&(begin, _)| begin);
        let last = self.pieces.last().map_or(0, |&(_, end)| end);
        let fits = before <= offset && end <= behind && self.pieces.len() < PIECES;
        let is_right_end = match (self.length, more) {
            (Some(length), true) => end < length,
            (Some(_), false) => false,
            (None, true) => true,
            (None, false) => end > last,
        };
        if !fits || !is_right_end {
            return false;
        }
        if !more {
            self.length = Some(end);
        }
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(data);
        self.pieces.insert(at, (offset, end));
        true
    }

    fn is_whole(&self) -> bool {
        let come: usize = self.pieces.iter().map(|(begin, end)| end - begin).sum();
        self.length == Some(come)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u32) -> Id {
        Id {
            port: 0,
            source: "192.0.2.9".parse().unwrap(),
            destination: "192.0.2.2".parse().unwrap(),
            number,
        }
    }

    /// Bytes that tell where they stand.
    fn data(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n * 7 + n / 256) as u8).collect()
    }

    fn pieces(whole: &[u8], size: usize) -> Vec<Fragment<'_>> {
        let piece = |(n, data): (usize, &'_ [u8])| (n * size, data.len());
        let places = whole.chunks(size).enumerate().map(piece);
        places
            .map(|(offset, length)| Fragment {
                offset,
                more: offset + length < whole.len(),
                data: &whole[offset..offset + length],
            })
            .collect()
    }

    #[test]
    fn of_two_that_contradict_each_other_neither_counts() {
        let whole = data(24);
        let part = |offset: usize, end: usize, more| Fragment {
            offset,
            more,
            data: &whole[offset..end],
        };
        let (now, other) = (Instant::now(), data(200));
        let first = part(0, 8, true);
        let (middle, last) = (part(8, 16, true), part(16, 24, false));
        for (wrong, what) in [
            (part(0, 16, true), "another that begins there"),
            (part(16, 16, true), "an empty one"),
            (part(8, 15, true), "a length that is no multiple of 8"),
            (part(8, 24, true), "one that reaches over the last"),
            (part(8, 16, false), "another last one, before it"),
            (
                Fragment {
                    offset: 24,
                    ..middle
                },
                "one behind the last",
            ),
            (
                Fragment {
                    data: &other[100..108],
                    ..first
                },
                "other bytes in the same place",
            ),
            (
                Fragment {
                    offset: LONGEST - 3,
                    more: false,
                    data: &whole[..4],
                },
                "one beyond the largest datagram",
            ),
        ] {
            let mut reassembly = Reassembly::default();
            for fragment in [&first, &last, &wrong] {
                assert_eq!(reassembly.add(id(1), fragment, now), None, "{what}");
            }
            assert!(reassembly.datagrams.is_empty(), "{what}");
            assert_eq!(reassembly.add(id(1), &middle, now), None, "{what}");
        }
        let mut reassembly = Reassembly::default();
        for fragment in [&first, &first, &last] {
            assert_eq!(reassembly.add(id(1), fragment, now), None);
        }
        assert_eq!(reassembly.add(id(1), &middle, now), Some(whole.clone()));
    }

    #[test]
    fn it_is_bounded_in_number_and_time() {
        let whole = data(16);
        let parts = pieces(&whole, 8);
        let (mut reassembly, now) = (Reassembly::default(), Instant::now());
        for number in 0..=DATAGRAMS as u32 {
            assert_eq!(reassembly.add(id(number), &parts[0], now), None);
        }
        assert_eq!(reassembly.datagrams.len(), DATAGRAMS);
        let second = &parts[1];
        assert_eq!(reassembly.add(id(1), second, now), Some(whole.clone()));
        assert_eq!(reassembly.add(id(0), second, now), None, "gave way");
        let later = now + PATIENCE - Duration::from_millis(1);
        assert_eq!(reassembly.add(id(2), second, later), Some(whole.clone()));
        let later = now + PATIENCE;
        assert_eq!(reassembly.add(id(3), second, later), None, "too late");

        let long = data(8 * (PIECES + 1));
        let mut reassembly = Reassembly::default();
        for fragment in pieces(&long, 8) {
            assert_eq!(reassembly.add(id(1), &fragment, now), None);
        }
    }

    proptest! {
        /// In any order, some of them twice, and mixed with another datagram's.
        #[test]
        fn whatever_the_order_it_is_whole_at_the_end(
            length in 1..=LONGEST,
            size in (70..200_usize).prop_map(|n| n * 8),
            order in prop::collection::vec(any::<u32>(), 128),
        ) {
            let (whole, other) = (data(length), data(length / 2 + 1));
            let (mut reassembly, now) = (Reassembly::default(), Instant::now());
            let mut all = pieces(&whole, size);
            let mut by: Vec<usize> = (0..all.len()).collect();
            by.sort_by_key(|&at| order[at % order.len()]);
            all = by.iter().map(|&at| all[at]).collect();
            let strange = &pieces(&other, size)[0];
            let last = all.len() - 1;
            for (n, fragment) in all.iter().enumerate() {
                let done = reassembly.add(id(1), fragment, now);
                prop_assert_eq!(done.is_some(), n == last);
                if let Some(done) = done {
                    prop_assert!(done == whole);
                } else if order[n] % 4 == 0 {
                    prop_assert_eq!(reassembly.add(id(1), fragment, now), None);
                    reassembly.add(id(2), strange, now);
                }
            }
        }
    }
}
