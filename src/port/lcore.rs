//! Worker lcores: threads that the EAL made and bound to their CPUs. Here they
//! are given their work, by the main lcore, and their end is heard of.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;

use super::eal::{Alive, Eal};
use super::sys;

const EBUSY: u32 = 16;

/// Why an lcore did not start, or how it ended badly.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LaunchError {
    #[error("lcore {0} is not a worker lcore of this process")]
    Unknown(u32),
    #[error("lcore {0} is already running something")]
    Busy(u32),
    #[error("lcore {lcore} panicked: {message}")]
    Panicked { lcore: u32, message: String },
}

/// A running worker lcore. Dropping it leaves the lcore running.
pub struct LcoreHandle {
    lcore: u32,
    end: mpsc::Receiver<Option<String>>,
}

impl LcoreHandle {
    pub fn lcore(&self) -> u32 {
        self.lcore
    }

    /// Whether the lcore has returned, so that [`LcoreHandle::join`] will not wait.
    pub fn is_finished(&self) -> bool {
        // SAFETY: reads the state of an lcore that was launched, so exists.
        let state = unsafe { sys::rte_eal_get_lcore_state(self.lcore) };
        state == sys::rte_lcore_state_t_WAIT
    }

    /// Waits until the lcore returns; an error if it panicked.
    pub fn join(self) -> Result<(), LaunchError> {
        let lcore = self.lcore;
        // Sleeps here, so that the wait below, which spins, is short.
        let end = self.end.recv();
        // SAFETY: an lcore that was launched, so exists.
        unsafe { sys::rte_eal_wait_lcore(lcore) };
        match end {
            Ok(None) => Ok(()),
            Ok(Some(message)) => Err(LaunchError::Panicked { lcore, message }),
            Err(_) => Err(LaunchError::Panicked {
                lcore,
                message: "no word from it".into(),
            }),
        }
    }
}

impl Eal {
    /// Runs `body` on a worker lcore.
    pub fn launch(
        &self,
        lcore: u32,
        body: Box<dyn FnOnce() + Send>,
    ) -> Result<LcoreHandle, LaunchError> {
        let alive = Alive::new().ok_or(LaunchError::Unknown(lcore))?;
        let (sender, end) = mpsc::sync_channel(1);
        let run: Body = Box::new(move || {
            let panic = catch_unwind(AssertUnwindSafe(body))
                .err()
                .map(|p| message(&*p));
            drop(alive);
            // The handle may be gone; then nobody wants to know.
            let _ = sender.send(panic);
        });
        let argument = Box::into_raw(Box::new(run));
        // SAFETY: `entry` takes back the box that it is given, once.
        let rc = unsafe { sys::rte_eal_remote_launch(Some(entry), argument.cast(), lcore) };
        if rc == 0 {
            return Ok(LcoreHandle { lcore, end });
        }
        // SAFETY: the launch failed, so the box is still ours.
        drop(unsafe { Box::from_raw(argument) });
        Err(if rc.unsigned_abs() == EBUSY {
            LaunchError::Busy(lcore)
        } else {
            LaunchError::Unknown(lcore)
        })
    }
}

type Body = Box<dyn FnOnce() + Send>;

unsafe extern "C" fn entry(argument: *mut c_void) -> i32 {
    // SAFETY: `launch` passes a leaked box, once. The body catches its panics.
    let body = unsafe { Box::from_raw(argument.cast::<Body>()) };
    body();
    0
}

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".into())
}

/// Whether the calling thread is the main lcore and every worker lcore waits.
pub(super) fn quiet() -> bool {
    // SAFETY: both read variables of the EAL.
    let (here, main) = unsafe { (sys::rte_lcore_id(), sys::rte_get_main_lcore()) };
    // SAFETY: ids below RTE_MAX_LCORE are in range, whether in use or not.
    let waits =
        |lcore| unsafe { sys::rte_eal_get_lcore_state(lcore) } == sys::rte_lcore_state_t_WAIT;
    here == main && (0..sys::RTE_MAX_LCORE).all(|lcore| lcore == main || waits(lcore))
}
