//! An open DPDK device: found or plugged in by its string, shared by a port and
//! its queues, closed and unplugged when the last of them is gone.
//!
//! Runs on the management thread, or wherever the last queue is dropped;
//! DPDK's interrupt thread only sets bits in `events`.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::eal::{self, Alive};
use super::mempool::Mempool;
use super::types::{PortError, PortEvents};
use super::{log, sys};

/// An open device, shared by its port and queues.
pub(super) struct Device {
    id: u16,
    name: String,
    /// Bits are 1 << RTE_ETH_EVENT_*. A box, because DPDK keeps its address.
    events: Box<AtomicU32>,
    started: AtomicBool,
    /// What to unplug in the end: a virtual device that `open` plugged in.
    unplug: Option<*mut sys::rte_device>,
    /// The driver holds buffers out of these.
    pools: Mutex<Vec<Mempool>>,
    _alive: Alive,
}

// SAFETY: the raw pointer is only used in drop; DPDK's control functions for
// one port are called by one owner at a time.
unsafe impl Send for Device {}
// SAFETY: shared references only read, or go through atomics and the mutex.
unsafe impl Sync for Device {}

/// Ids that a [`Device`] has, and the lock under which devices are probed.
static CLAIMED: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

fn claimed() -> MutexGuard<'static, BTreeSet<u16>> {
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner)
}

const EVENTS: [u32; 3] = [
    sys::EK_EVENT_LSC,
    sys::EK_EVENT_RESET,
    sys::EK_EVENT_REMOVED,
];

impl Device {
    /// Finds or plugs in the device of this string and claims it.
    pub(super) fn open(name: &str, string: &str) -> Result<Self, PortError> {
        let alive = Alive::new().ok_or_else(|| PortError::NotStarted(name.to_owned()))?;
        let mut claimed = claimed();
        let (id, plugged) = match find(string) {
            Some(id) if claimed.contains(&id) => {
                return Err(PortError::InUse {
                    port: name.into(),
                    device: string.into(),
                });
            }
            Some(id) => (id, false),
            None => (plug(name, string)?, true),
        };
        claimed.insert(id);
        drop(claimed);
        let mut device = Self {
            id,
            name: name.to_owned(),
            events: Box::new(AtomicU32::new(0)),
            started: AtomicBool::new(false),
            unplug: None,
            pools: Mutex::new(Vec::new()),
            _alive: alive,
        };
        device.callbacks(true);
        if plugged {
            device.unplug = Some(device.info()?.device.cast());
        }
        Ok(device)
    }

    #[inline(always)]
    pub(super) fn id(&self) -> u16 {
        self.id
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What DPDK says about it.
    pub(super) fn info(&self) -> Result<sys::rte_eth_dev_info, PortError> {
        let mark = log::mark();
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: an open port; the struct is written.
        let rc = unsafe { sys::rte_eth_dev_info_get(self.id, &mut info) };
        self.check("device information", rc, mark).map(|()| info)
    }

    /// What has happened since the last call.
    pub(super) fn take_events(&self) -> PortEvents {
        let events = self.events.swap(0, Ordering::AcqRel);
        let has = |event: u32| events & (1 << event) != 0;
        PortEvents {
            link_changed: has(sys::EK_EVENT_LSC),
            reset_needed: has(sys::EK_EVENT_RESET),
            removed: has(sys::EK_EVENT_REMOVED),
        }
    }

    /// Notes that it runs, and keeps the pools that its driver takes from.
    pub(super) fn running(&self, pools: &[Mempool]) {
        *self.pools.lock().unwrap_or_else(PoisonError::into_inner) = pools.to_vec();
        self.started.store(true, Ordering::Release);
    }

    /// Stops it, if it runs. The caller has all its queues, or they are gone.
    pub(super) fn stop(&self) {
        if self.started.swap(false, Ordering::AcqRel) {
            // SAFETY: an open port, and nobody is in its queues.
            unsafe { sys::rte_eth_dev_stop(self.id) };
        }
    }

    /// Ok if DPDK's answer `rc` is not negative; else an error with what the
    /// log has had to say since `mark`.
    pub(super) fn check(&self, what: &str, rc: i32, mark: u64) -> Result<(), PortError> {
        if rc >= 0 {
            return Ok(());
        }
        Err(self.refusal(
            what,
            log::complaint_since(mark).unwrap_or_else(|| eal::errno_text(rc)),
        ))
    }

    pub(super) fn refusal(&self, what: &str, reason: String) -> PortError {
        PortError::Refused {
            port: self.name.clone(),
            what: what.into(),
            reason,
        }
    }

    fn callbacks(&self, on: bool) {
        let argument: *mut c_void = std::ptr::from_ref(&*self.events).cast_mut().cast();
        for event in EVENTS {
            // SAFETY: the argument outlives the registration: drop unregisters first.
            unsafe {
                if on {
                    sys::rte_eth_dev_callback_register(self.id, event, Some(noted), argument);
                } else {
                    sys::rte_eth_dev_callback_unregister(self.id, event, Some(noted), argument);
                }
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let mut claimed = claimed();
        self.stop();
        self.callbacks(false);
        // SAFETY: port and queues are gone, so nothing uses the device any more.
        unsafe {
            sys::rte_eth_dev_close(self.id);
            if let Some(device) = self.unplug {
                sys::rte_dev_remove(device);
            }
        }
        claimed.remove(&self.id);
    }
}

unsafe extern "C" fn noted(_: u16, event: u32, events: *mut c_void, _: *mut c_void) -> i32 {
    // SAFETY: the argument that `callbacks` registered.
    unsafe { &*events.cast::<AtomicU32>() }.fetch_or(1 << event, Ordering::Release);
    0
}

/// Ids of all open DPDK ports.
fn ids() -> impl Iterator<Item = u16> {
    // SAFETY: only looks an id up.
    (0..sys::RTE_MAX_ETHPORTS as u16)
        .filter(|id| unsafe { sys::rte_eth_dev_is_valid_port(*id) } == 1)
}

/// The port that DPDK already has under this device string's name.
fn find(string: &str) -> Option<u16> {
    let name = string.split(',').next().unwrap_or_default();
    ids().find(|id| {
        let mut buffer = [0 as c_char; 256];
        // SAFETY: the buffer has room for DPDK's longest name, 64 bytes.
        let rc = unsafe { sys::rte_eth_dev_get_name_by_port(*id, buffer.as_mut_ptr()) };
        // DPDK spells PCI addresses with their domain.
        let known = text(buffer.as_ptr());
        rc == 0 && (known == name || known.strip_prefix("0000:") == Some(name))
    })
}

/// Plugs the device in; returns the first port that it brings.
fn plug(name: &str, string: &str) -> Result<u16, PortError> {
    let failed = |reason: String| PortError::Open {
        port: name.to_owned(),
        device: string.to_owned(),
        reason,
    };
    if let Some(interface) = taken_interface(string) {
        return Err(failed(format!(
            "network interface {interface} exists already"
        )));
    }
    let before: Vec<u16> = ids().collect();
    let devargs = CString::new(string).map_err(|error| failed(error.to_string()))?;
    let mark = log::mark();
    // SAFETY: a NUL-terminated string, which DPDK copies.
    let rc = unsafe { sys::rte_dev_probe(devargs.as_ptr()) };
    if rc < 0 && log::said_since(mark, "Operation not permitted") {
        return Err(PortError::Permission {
            port: name.to_owned(),
            device: string.to_owned(),
            reason: "Operation not permitted".to_owned(),
        });
    }
    if rc < 0 {
        return Err(failed(
            log::complaint_since(mark).unwrap_or_else(|| eal::errno_text(rc)),
        ));
    }
    let new = ids().find(|id| !before.contains(id));
    new.ok_or_else(|| failed("it brings no Ethernet port".into()))
}

/// The interface that a TAP device would have to make, if it exists. The driver
/// would join it, and share its packets with whoever made it.
fn taken_interface(string: &str) -> Option<&str> {
    let arguments = string.strip_prefix("net_tap")?.split(',');
    let interface = arguments
        .skip(1)
        .find_map(|argument| argument.strip_prefix("iface="))?;
    let table = std::fs::read_to_string("/proc/self/net/dev").ok()?;
    let mut names = table
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()));
    names.any(|name| name == interface).then_some(interface)
}

/// A C string, or nothing.
pub(super) fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: DPDK's strings are NUL-terminated and the callers' are theirs.
    unsafe { CStr::from_ptr(string) }
        .to_string_lossy()
        .into_owned()
}
