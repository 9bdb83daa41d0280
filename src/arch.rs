//! The few instructions the compiler does not find by itself: comparing a line of tags,
//! prefetching, and memory on huge pages. Safe functions around small `unsafe` blocks.
//! Runs on workers; never does I/O and, but for [`Region::zeroed`], never allocates.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

/// The tags of a bucket's ways: a cache line. They lie in the order in which AVX2 packs the results of
/// comparing them, so that no result has to be put in order.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct TagLine([u16; 32]);

impl TagLine {
    /// Where the tag of a way lies, and the way of what lies there: the middle quarters are exchanged.
    const fn place(way: usize) -> usize {
        way & 7 | (way & 8) << 1 | (way & 16) >> 1
    }

    #[inline(always)]
    pub fn of(&self, way: usize) -> u16 {
        self.0[Self::place(way)]
    }

    #[inline(always)]
    pub fn set(&mut self, way: usize, tag: u16) {
        self.0[Self::place(way)] = tag;
    }
}

/// A bit for each of the 32 ways whose tag equals `tag`; bit 0 is the first.
#[inline(always)]
pub fn match_tags(line: &TagLine, tag: u16) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        let pointer = line.0.as_ptr().cast::<__m128i>();
        // SAFETY: SSE2 is part of every x86-64; the four loads cover exactly the 64 bytes of
        // `line`, which is aligned to them.
        unsafe {
            let wanted = _mm_set1_epi16(tag.cast_signed());
            let equal = |i: usize| _mm_cmpeq_epi16(_mm_load_si128(pointer.add(i)), wanted);
            let low = _mm_movemask_epi8(_mm_packs_epi16(equal(0), equal(2))).cast_unsigned();
            let high = _mm_movemask_epi8(_mm_packs_epi16(equal(1), equal(3))).cast_unsigned();
            low | high << 16
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    match_tags_portable(line, tag)
}

/// What [`match_tags`] computes, in plain code: the definition its tests compare with.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn match_tags_portable(line: &TagLine, tag: u16) -> u32 {
    (0..32).fold(0, |mask, way| mask | u32::from(line.of(way) == tag) << way)
}

/// Moves those of at most 64 items whose bit is set in `apart`, bit 0 for the first, behind those whose
/// bit is not. Both keep their order. Returns how many the latter are. Without a branch on any bit,
/// because nobody could guess them.
pub fn part<T>(items: &mut [T], apart: u64) -> usize {
    let mut aside = [const { MaybeUninit::<T>::uninit() }; u64::BITS as usize];
    assert!(items.len() <= aside.len());
    let (mut kept, mut moved) = (0, 0);
    let begin = items.as_mut_ptr();
    // SAFETY: nothing here can panic or drop an item. `kept` and `moved` are never above `at`, so all
    // places are inside, and what is overwritten has been copied before: each item is copied to both
    // sides, of which the side that it does not belong to overwrites it next, or never reads it.
    unsafe {
        for at in 0..items.len() {
            let is_apart = (apart >> at & 1) as usize;
            let item = begin.add(at);
            aside[moved].as_mut_ptr().copy_from_nonoverlapping(item, 1);
            begin.add(kept).copy_from(item, 1);
            moved += is_apart;
            kept += 1 - is_apart;
        }
        let behind = begin.add(kept);
        behind.copy_from_nonoverlapping(aside.as_ptr().cast(), moved);
    }
    kept
}

/// Moves the items back to where they were before [`part`].
#[cold]
pub fn unpart<T>(items: &mut [T], apart: u64) {
    let mut parted = [const { MaybeUninit::<T>::uninit() }; u64::BITS as usize];
    let count = items.len();
    assert!(count <= parted.len());
    let bits = (0..count).map(|at| apart >> at & 1 == 1);
    let (mut kept, mut moved) = (0, bits.clone().filter(|&is_apart| !is_apart).count());
    let begin = items.as_mut_ptr();
    // SAFETY: nothing here can panic or drop an item. All are copied away first; then each place gets the
    // next of its side, and there are as many of a side as places for it: each is copied back once.
    unsafe {
        let copied = parted.as_mut_ptr().cast::<T>();
        copied.copy_from_nonoverlapping(begin, count);
        for (at, is_apart) in bits.enumerate() {
            let next = if is_apart { &mut moved } else { &mut kept };
            begin.add(at).copy_from_nonoverlapping(copied.add(*next), 1);
            *next += 1;
        }
    }
}

/// What a CPU has beyond the instructions that everything is compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// True only where the CPU has them: the proof that [`Cpu::run`] rests on.
    avx2: bool,
}

/// Work that is compiled for each kind of CPU. `run`, and what it calls and is meant to gain, must be
/// `#[inline(always)]`: functions that stand apart are compiled for all CPUs.
pub trait Hot {
    type Output;
    fn run<T: Tags>(self) -> Self::Output;
}

/// How a kind of CPU compares a line of tags.
pub trait Tags {
    /// As [`match_tags`].
    fn matching(line: &TagLine, tag: u16) -> u32;
}

/// Of every CPU; the other kinds are named in this file alone, so that none runs where it cannot.
pub struct Any;

impl Tags for Any {
    #[inline(always)]
    fn matching(line: &TagLine, tag: u16) -> u32 {
        match_tags(line, tag)
    }
}

impl Cpu {
    /// Any CPU that the program runs on.
    pub const ANY: Self = Self { avx2: false };

    /// This machine's.
    pub fn this() -> Self {
        #[cfg(target_arch = "x86_64")]
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("movbe");
        #[cfg(not(target_arch = "x86_64"))]
        let avx2 = false;
        Self { avx2 }
    }

    /// Does the work with the best code for this CPU.
    #[inline(always)]
    pub fn run<H: Hot>(self, hot: H) -> H::Output {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            // SAFETY: `avx2` was set because the CPU has all these instructions.
            return unsafe { newer::run(hot) };
        }
        hot.run::<Any>()
    }
}

#[cfg(target_arch = "x86_64")]
mod newer {
    use super::{Hot, TagLine, Tags};
    use std::arch::x86_64::*;

    struct Avx2;

    #[target_feature(enable = "avx2,bmi1,bmi2,movbe")]
    pub fn run<H: Hot>(hot: H) -> H::Output {
        hot.run::<Avx2>()
    }

    impl Tags for Avx2 {
        #[inline(always)]
        fn matching(line: &TagLine, tag: u16) -> u32 {
            // SAFETY: the type is only used in `run`, so the CPU has AVX2.
            unsafe { matching(line, tag) }
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn matching(line: &TagLine, tag: u16) -> u32 {
        let pointer = line.0.as_ptr().cast::<__m256i>();
        let wanted = _mm256_set1_epi16(tag.cast_signed());
        // SAFETY: the two loads cover exactly the 64 bytes of `line`, which is aligned to them.
        let (first, second) = unsafe {
            (
                _mm256_load_si256(pointer),
                _mm256_load_si256(pointer.add(1)),
            )
        };
        let both = _mm256_packs_epi16(
            _mm256_cmpeq_epi16(first, wanted),
            _mm256_cmpeq_epi16(second, wanted),
        );
        _mm256_movemask_epi8(both).cast_unsigned()
    }
}

/// Asks the cache for the line that holds the start of `value`. Never faults.
#[inline(always)]
pub fn prefetch<T: ?Sized>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint; any address is allowed and nothing is read or written.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Asks the cache for the line in which the value of this index begins, wherever that is.
#[inline(always)]
pub fn prefetch_index<T>(values: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = values.as_ptr().wrapping_add(index);
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, index);
}

/// Asks the cache for the line of tags that holds the tag of this index.
#[inline(always)]
pub fn prefetch_tag(lines: &[TagLine], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = lines.as_ptr().cast::<u16>().wrapping_add(index);
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (lines, index);
}

/// Types for which all bytes zero is a valid value.
///
/// # Safety
/// The all-zero bit pattern must be a valid value of the type, and the type must not need `Drop`.
pub unsafe trait Zeroed: Copy {}
// SAFETY: an integer.
unsafe impl Zeroed for u32 {}
// SAFETY: an integer.
unsafe impl Zeroed for u64 {}
// SAFETY: see the connection's definition: integers, addresses made of bytes, and enums whose
// first variant has discriminant 0.
unsafe impl<A: crate::lb::flow::Address> Zeroed for crate::lb::conn::Conn<A> {}
// SAFETY: integers.
unsafe impl Zeroed for TagLine {}
// SAFETY: integers and booleans.
unsafe impl Zeroed for crate::lb::persistence::Template {}

/// A fixed array of zeroed values in memory of its own, on huge pages where the kernel grants
/// them (`madvise`). One relocatable region: it holds no pointers.
pub struct Region<T: Zeroed> {
    start: std::ptr::NonNull<T>,
    count: usize,
    bytes: usize,
}

// SAFETY: a `Region` owns its memory as a `Box<[T]>` would.
unsafe impl<T: Zeroed + Send> Send for Region<T> {}
// SAFETY: as for `Box<[T]>`: shared access gives `&[T]` alone.
unsafe impl<T: Zeroed + Sync> Sync for Region<T> {}

const HUGE_PAGE: usize = 2 << 20;

impl<T: Zeroed> Region<T> {
    /// `count` zeroed values. The memory is touched at once, so that a worker never faults on it.
    pub fn zeroed(count: usize) -> std::io::Result<Self> {
        let region = Self::reserved(count)?;
        region.populate().now();
        Ok(region)
    }

    /// The same in memory that is there, and counts, only when [`Populate::now`] has been called.
    pub fn reserved(count: usize) -> std::io::Result<Self> {
        let wanted = (count.max(1))
            .checked_mul(size_of::<T>())
            .and_then(|n| n.checked_next_multiple_of(HUGE_PAGE))
            .ok_or(std::io::ErrorKind::OutOfMemory)?;
        let length = if wanted == HUGE_PAGE && count * size_of::<T>() < HUGE_PAGE / 2 {
            (count.max(1) * size_of::<T>()).next_multiple_of(4096)
        } else {
            wanted
        };
        // SAFETY: a fresh anonymous private mapping; no memory of ours is affected.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the range was mapped above. A kernel that cannot give huge pages leaves ordinary
        // ones, which is correct and slower.
        unsafe { libc::madvise(start, length, libc::MADV_HUGEPAGE) };
        let start =
            std::ptr::NonNull::new(start.cast::<T>()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            start,
            count,
            bytes: length,
        })
    }

    /// What touches the memory.
    pub fn populate(&self) -> Populate {
        Populate {
            start: self.start.as_ptr() as usize,
            bytes: self.bytes,
        }
    }
}

/// Touches the memory of a [`Region`], from any thread and while another uses it, so that whoever
/// uses it next does not have to wait for pages.
#[derive(Clone, Copy, Debug)]
pub struct Populate {
    start: usize,
    bytes: usize,
}

impl Populate {
    pub fn now(self) {
        let start = self.start as *mut libc::c_void;
        // SAFETY: pages that are there keep what they hold, and where nothing is mapped any more
        // the kernel refuses. Where it cannot, pages come with their first use.
        unsafe { libc::madvise(start, self.bytes, libc::MADV_POPULATE_WRITE) };
    }
}

impl<T: Zeroed> Deref for Region<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is page-aligned (no `T` here asks for more), holds `count` values,
        // all zero at first, which `Zeroed` says is valid, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> DerefMut for Region<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

impl<T: Zeroed> Drop for Region<T> {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `zeroed`; no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Matching<'l>(&'l TagLine, u16);

    impl Hot for Matching<'_> {
        type Output = u32;

        fn run<T: Tags>(self) -> u32 {
            T::matching(self.0, self.1)
        }
    }

    #[test]
    fn tags_match_as_the_portable_definition_says_on_every_cpu() {
        let mut line = TagLine([0; 32]);
        for way in 0..32 {
            line.set(
                way,
                [0, 1, 0x7fff, 0x8000, 0xffff, 0x00ff, 0xff00][way * 5 % 7],
            );
        }
        for tag in [0, 1, 2, 0x7fff, 0x8000, 0xffff, 0x00ff, 0xff00] {
            let wanted = match_tags_portable(&line, tag);
            for cpu in [Cpu::ANY, Cpu::this()] {
                let found = cpu.run(Matching(&line, tag));
                assert_eq!(found, wanted, "tag {tag:#x}, {cpu:?}");
            }
        }
    }

    #[test]
    fn a_region_starts_zeroed_and_keeps_what_is_written() {
        let mut region = Region::<u64>::zeroed(700_000).expect("memory");
        assert!(region.iter().all(|&v| v == 0));
        region[699_999] = 7;
        assert_eq!((region.len(), region[699_999]), (700_000, 7));
    }

    #[test]
    fn a_reserved_region_keeps_what_is_written_before_it_is_populated() {
        let mut region = Region::<u64>::reserved(700_000).expect("memory");
        region[3] = 7;
        region.populate().now();
        region.populate().now();
        assert_eq!((region[3], region[4], region[699_999]), (7, 0, 0));
    }

    proptest! {
        /// With items that have to be dropped once each.
        #[test]
        fn items_are_parted_in_their_order_and_back(count in 0usize..=64, apart: u64) {
            let mut items: Vec<_> = (0..count).map(|n| n.to_string()).collect();
            let is_apart = |n: &usize| apart >> n & 1 == 1;
            let (moved, kept): (Vec<usize>, Vec<usize>) = (0..count).partition(is_apart);
            prop_assert_eq!(part(&mut items, apart), kept.len());
            let wanted = kept.iter().chain(&moved).map(ToString::to_string);
            prop_assert_eq!(&items, &wanted.collect::<Vec<_>>());
            unpart(&mut items, apart);
            prop_assert_eq!(items, (0..count).map(|n| n.to_string()).collect::<Vec<_>>());
        }
    }
}
