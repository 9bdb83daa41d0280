//! Where DPDK's own log goes: into `tracing` (target `dpdk`), and the last
//! lines into memory, so that an error can quote what the driver said.
//!
//! Called by DPDK on whichever thread logs; drivers log on set-up, tear-down
//! and faults, never per packet. Nothing of it reaches stdout.

use std::collections::VecDeque;
use std::ffi::{c_char, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sys;

/// Lines kept to be quoted.
const KEPT: usize = 64;

/// DPDK's levels: 1 is an emergency, 8 is debug.
const ERROR: i32 = 4;
const WARNING: i32 = 5;
const NOTICE: i32 = 6;
const INFO: i32 = 7;
const DEBUG: i32 = 8;

/// What net_tap calls errors where the kernel has no `multiq` queueing discipline. It wants one for
/// flow rules alone, and nothing here makes any.
const HARMLESS: &[&str] = &[
    "Specified qdisc kind is unknown",
    "multiq qdisc",
    "Disabling rte flow support",
];

struct Recent {
    /// Number of the line that comes next.
    next: u64,
    lines: VecDeque<(i32, String)>,
}

static RECENT: Mutex<Recent> = Mutex::new(Recent {
    next: 0,
    lines: VecDeque::new(),
});

fn recent() -> MutexGuard<'static, Recent> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Points DPDK's log here; returns the stream, null if the C library refuses.
pub(super) fn install() -> *mut c_void {
    let functions = sys::cookie_io_functions_t {
        read: None,
        write: Some(write),
        seek: None,
        close: None,
    };
    // SAFETY: the mode is NUL-terminated; `write` ignores the cookie; the stream
    // is never closed, so DPDK may use it until the process ends.
    unsafe {
        let stream = sys::fopencookie(std::ptr::null_mut(), c"w".as_ptr(), functions);
        if !stream.is_null() {
            sys::rte_openlog_stream(stream.cast());
        }
        stream.cast()
    }
}

/// A point in the log, for [`complaint_since`].
pub(super) fn mark() -> u64 {
    recent().next
}

/// What DPDK complained of since `mark`: the first error, or else the last
/// warning, on one line.
pub(super) fn complaint_since(mark: u64) -> Option<String> {
    let recent = recent();
    let oldest = recent.next - recent.lines.len() as u64;
    let skip = mark.saturating_sub(oldest) as usize;
    let since = || recent.lines.iter().skip(skip);
    since()
        .find(|(level, _)| *level <= ERROR)
        .or_else(|| since().rfind(|(level, _)| *level == WARNING))
        .map(|(_, line)| line.clone())
}

/// Whether any line since `mark` contains `text`.
pub(super) fn said_since(mark: u64, text: &str) -> bool {
    let recent = recent();
    let oldest = recent.next - recent.lines.len() as u64;
    let skip = mark.saturating_sub(oldest) as usize;
    recent
        .lines
        .iter()
        .skip(skip)
        .any(|(_, line)| line.contains(text))
}

/// The stream's write function (fopencookie(3)): takes everything.
unsafe extern "C" fn write(_: *mut c_void, text: *const c_char, size: usize) -> i64 {
    // SAFETY: the C library passes `size` readable bytes.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), size) };
    // SAFETY: reads a per-thread variable, set by the log call that we are inside of.
    let level = unsafe { sys::rte_log_cur_msg_loglevel() };
    for line in String::from_utf8_lossy(text)
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
    {
        let level = if HARMLESS.iter().any(|text| line.contains(text)) {
            DEBUG
        } else {
            level
        };
        keep(level, line);
        match level {
            ..=ERROR => tracing::error!(target: "dpdk", "{line}"),
            WARNING => tracing::warn!(target: "dpdk", "{line}"),
            NOTICE | INFO => tracing::debug!(target: "dpdk", "{line}"),
            _ => tracing::trace!(target: "dpdk", "{line}"),
        }
    }
    size as i64
}

fn keep(level: i32, line: &str) {
    let mut recent = recent();
    if recent.lines.len() == KEPT {
        recent.lines.pop_front();
    }
    recent.lines.push_back((level, line.to_owned()));
    recent.next += 1;
}
