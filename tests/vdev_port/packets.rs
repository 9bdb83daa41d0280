//! Mbufs, batches and pools.

use evenkeel::port::{Batch, Eal, Mempool, MempoolError, RxChecksum};

use crate::one_line;

pub fn mbuf_bounds(_: &Eal, pool: &Mempool) {
    let mut mbuf = pool.alloc().unwrap();
    assert_eq!(
        (mbuf.len(), mbuf.headroom(), mbuf.tailroom()),
        (0, 128, 2048)
    );
    assert!(!mbuf.append(2049));
    assert!(mbuf.append(2048));
    assert_eq!(
        (mbuf.len(), mbuf.packet_len(), mbuf.tailroom()),
        (2048, 2048, 0)
    );
    mbuf.bytes_mut().fill(0xa5);
    assert!(!mbuf.prepend(129));
    assert!(mbuf.prepend(128));
    assert_eq!((mbuf.headroom(), mbuf.len()), (0, 2176));
    assert!(!mbuf.prepend(1));
    assert!(mbuf.trim_front(128));
    assert!(mbuf.bytes().iter().all(|byte| *byte == 0xa5));
    assert!(!mbuf.trim_front(2049));
    mbuf.truncate(3000);
    assert_eq!(mbuf.len(), 2048);
    mbuf.truncate(60);
    assert_eq!(
        (mbuf.len(), mbuf.packet_len(), mbuf.tailroom()),
        (60, 60, 1988)
    );
    assert!(mbuf.trim_front(60) && mbuf.is_empty());
    assert!(!mbuf.fill(&[0; 2049]));
    assert!(mbuf.fill(b"packet"));
    assert_eq!(mbuf.bytes(), b"packet");
    assert_eq!(mbuf.segments(), 1);
    assert_eq!(
        (mbuf.ip_checksum(), mbuf.l4_checksum()),
        (RxChecksum::Unknown, RxChecksum::Unknown)
    );
    assert_eq!(
        (mbuf.rss_hash(), mbuf.vlan_tci(), mbuf.ol_flags()),
        (None, None, 0)
    );
    mbuf.set_stamp(u64::MAX);
    mbuf.prepend(mbuf.headroom());
    mbuf.bytes_mut().fill(0);
    assert_eq!(
        mbuf.stamp(),
        u64::MAX,
        "the stamp lies outside the headroom"
    );
    let note = (0x8765_4321_fedc_ba98, 0x1234_5678_9abc_def0);
    mbuf.set_note(note);
    assert_eq!((mbuf.note(), mbuf.stamp()), (note, u64::MAX));
    assert_eq!((mbuf.rss_hash(), mbuf.ol_flags()), (None, 0));
    mbuf.prefetch();
    mbuf.prefetch_data();
    mbuf.prefetch_received();
}

pub fn batches(_: &Eal, pool: &Mempool) {
    let mut batch = Batch::new();
    assert!(!pool.alloc_bulk(&mut batch, 65));
    assert!(pool.alloc_bulk(&mut batch, 60));
    assert!(!pool.alloc_bulk(&mut batch, 5), "no room");
    assert_eq!((batch.len(), batch.room(), pool.in_use()), (60, 4, 60));
    for (index, mbuf) in batch.iter_mut().enumerate() {
        assert!(mbuf.fill(&[index as u8]));
    }
    for _ in 0..4 {
        batch.push(pool.alloc().unwrap()).unwrap();
    }
    assert!(batch.is_full() && batch.push(pool.alloc().unwrap()).is_err());
    assert_eq!(pool.in_use(), 64, "the refused one was freed");
    drop(batch.pop());
    let firsts: Vec<u8> = batch.drain().take(3).map(|mbuf| mbuf.bytes()[0]).collect();
    assert_eq!(firsts, [0, 1, 2]);
    assert_eq!((batch.len(), pool.in_use()), (0, 0), "drain frees the rest");
    parts_of_batches(pool);
    assert!(pool.alloc_bulk(&mut batch, 9));
    batch.clear();
    assert_eq!(pool.in_use(), 0);
    assert!(pool.alloc_bulk(&mut batch, 9));
}

/// What lies behind a batch's first packets can be taken, and moved to another batch.
fn parts_of_batches(pool: &Mempool) {
    let numbered = |numbers: std::ops::Range<u8>| {
        let mut batch = Batch::new();
        for number in numbers {
            let mut mbuf = pool.alloc().unwrap();
            assert!(mbuf.fill(&[number]));
            batch.push(mbuf).unwrap();
        }
        batch
    };
    let numbers = |batch: &Batch| batch.iter().map(|m| m.bytes()[0]).collect::<Vec<_>>();

    let mut from = numbered(0..6);
    let taken = from.drain_behind(4).map(|m| m.bytes()[0]);
    assert_eq!(taken.collect::<Vec<_>>(), [4, 5]);
    let mut to = numbered(20..22);
    from.move_behind(1, &mut to);
    assert_eq!(numbers(&from), [0]);
    assert_eq!(numbers(&to), [20, 21, 1, 2, 3]);
    from.move_behind(1, &mut to);
    from.move_behind(9, &mut to);
    assert_eq!(
        (from.len(), to.len(), from.drain_behind(9).len()),
        (1, 5, 0)
    );
    let mut from = numbered(0..64);
    from.move_behind(1, &mut to);
    assert_eq!((from.len(), to.len()), (1, 64));
    assert_eq!(
        (numbers(&to)[63], pool.in_use()),
        (59, 65 + 1),
        "no room frees"
    );
}

/// Buffers are kept on a stack, so that what came back last is given out next; and where DPDK has no
/// such way to keep them, in its own.
pub fn pool_ops(_: &Eal, _: &Mempool) {
    // Without a cache, which is a stack too.
    let usual = Mempool::new("usual", 63, 256, 0, -1).unwrap();
    assert_eq!((usual.ops(), last_is_next(&usual)), ("lf_stack", true));
    let other = Mempool::with_ops(c"no_such_ops", "other", 63, 256, 0, -1).unwrap();
    assert_eq!((other.ops(), last_is_next(&other)), ("ring_mp_mc", false));
}

fn last_is_next(pool: &Mempool) -> bool {
    let place = || pool.alloc().unwrap().bytes().as_ptr();
    let first = place();
    first == place()
}

pub fn pools(_: &Eal, _: &Mempool) {
    let small = Mempool::new("small", 63, 256, 0, -1).unwrap();
    assert_eq!((small.capacity(), small.data_room()), (63, 256));
    let mut held: Vec<_> = std::iter::from_fn(|| small.alloc()).collect();
    assert_eq!((held.len(), small.available(), small.in_use()), (63, 0, 63));
    let mut batch = Batch::new();
    assert!(!small.alloc_bulk(&mut batch, 1) && batch.is_empty());
    held.truncate(1);
    // A buffer outlives the last handle of its pool.
    let survivor = held.pop().unwrap();
    drop(small);
    assert_eq!(survivor.len(), 0);
    drop(survivor);
    let error = Mempool::new("huge", 10_000_000, 9000, 256, -1).unwrap_err();
    assert!(
        matches!(
            error,
            MempoolError::Memory {
                count: 10_000_000,
                ..
            }
        ),
        "{error}"
    );
    one_line(&error);
}
