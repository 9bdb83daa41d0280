//! Coverage-guided fuzzing of the whole pure pipeline: an input is a small program (`program`) of
//! packets, faults and events that several workers process; a model (`model`) holds what comes out
//! against what went in; and at the end of each input the shards must be as empty as before.
#![no_main]

#[path = "../../src/arch.rs"]
mod arch;
#[path = "../../src/lb/mod.rs"]
mod lb;
mod model;
mod program;
mod world;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static INPUTS: AtomicU64 = AtomicU64::new(0);
static FORWARDED: AtomicU64 = AtomicU64::new(0);
static FRAMES: AtomicU64 = AtomicU64::new(0);

extern "C" fn report() {
    let (inputs, forwarded) = (INPUTS.load(Relaxed), FORWARDED.load(Relaxed));
    let share = forwarded * 100 / inputs.max(1);
    let frames = FRAMES.load(Relaxed);
    eprintln!("inputs {inputs} frames {frames} forwarded-percent {share}");
}

/// What libFuzzer calls for each input.
///
/// # Safety
/// `data` points to `size` bytes that nobody else changes meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> i32 {
    thread_local!(static WORLDS: RefCell<world::Worlds> = RefCell::new(world::Worlds::new()));
    let bytes = match size {
        0 => &[][..],
        // SAFETY: libFuzzer's contract, as above.
        _ => unsafe { std::slice::from_raw_parts(data, size) },
    };
    if INPUTS.fetch_add(1, Relaxed) == 0 {
        // SAFETY: `report` is a plain function that reads three counters.
        unsafe { libc::atexit(report) };
    }
    WORLDS.with_borrow_mut(|worlds| {
        if INPUTS.load(Relaxed).is_multiple_of(world::ERA) {
            *worlds = world::Worlds::new();
        }
        let sum = program::run(worlds, bytes);
        FRAMES.fetch_add(sum.frames, Relaxed);
        FORWARDED.fetch_add(u64::from(sum.forwarded > 0), Relaxed);
    });
    0
}
