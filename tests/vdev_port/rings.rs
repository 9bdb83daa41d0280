//! Rings between owners and between threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use evenkeel::port::{Batch, Eal, Mempool, ring};

use crate::until;

/// Counts its drops.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub fn rings(_: &Eal, pool: &Mempool) {
    let drops = Arc::new(AtomicUsize::new(0));
    let (mut producer, mut consumer) = ring::spsc("counted", 5).unwrap();
    for _ in 0..5 {
        assert!(producer.push(Box::new(Counted(drops.clone()))).is_ok());
    }
    assert_eq!((producer.len(), consumer.capacity()), (5, 5));
    let refused = producer.push(Box::new(Counted(drops.clone())));
    assert_eq!(
        drops.load(Ordering::Relaxed),
        0,
        "a refused item comes back"
    );
    drop(refused);
    drop(consumer.pop().unwrap());
    assert_eq!(drops.load(Ordering::Relaxed), 2);
    drop(producer);
    assert_eq!(consumer.len(), 4);
    drop(consumer);
    assert_eq!(
        drops.load(Ordering::Relaxed),
        6,
        "the last end drops what is left"
    );

    let (mut producer, mut consumer) = ring::spsc("mbufs", 40).unwrap();
    let mut batch = Batch::new();
    assert!(pool.alloc_bulk(&mut batch, 64));
    for (index, mbuf) in batch.iter_mut().enumerate() {
        assert!(mbuf.fill(&[index as u8]));
    }
    assert_eq!(producer.push_batch(&mut batch), 40);
    assert_eq!(
        (batch.len(), batch[0].bytes()[0]),
        (24, 40),
        "the rest stays, in order"
    );
    let mut received = Batch::new();
    assert_eq!(consumer.pop_batch(&mut received), 0);
    assert!(
        received
            .iter()
            .enumerate()
            .all(|(index, mbuf)| mbuf.bytes() == [index as u8])
    );
    assert_eq!(producer.push_batch(&mut batch), 24);
    assert_eq!(pool.in_use(), 64);
}

pub fn rings_between_threads(_: &Eal, pool: &Mempool) {
    const EACH: usize = 2000;
    let (shared, mut consumer) = ring::mpsc("shared", 64).unwrap();
    let mut seen = vec![0usize; 2];
    std::thread::scope(|scope| {
        for sender in 0..2u8 {
            let (shared, pool) = (shared.clone(), pool.clone());
            scope.spawn(move || {
                for _ in 0..EACH {
                    let mut mbuf = until(|| pool.alloc());
                    assert!(mbuf.fill(&[sender]));
                    let mut waiting = Some(mbuf);
                    until(|| match shared.push(waiting.take()?) {
                        Ok(()) => Some(()),
                        Err(back) => {
                            waiting = Some(back);
                            None
                        }
                    });
                }
            });
        }
        for _ in 0..2 * EACH {
            let mbuf = until(|| consumer.pop());
            seen[usize::from(mbuf.bytes()[0])] += 1;
        }
    });
    assert_eq!(seen, [EACH, EACH]);
}
