//! DPDK's environment: started once per process, on the thread that becomes
//! the main lcore, and the lcore threads that it brings.
//!
//! Also keeps count of everything that lives in DPDK's memory (pools, rings,
//! devices, running lcores): [`Eal::cleanup`] refuses while anything does.

use std::ffi::{CString, c_char};
use std::fs;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{hugepages, log, mempool, sys};

/// Memory that DPDK gets if the options name no amount, in MiB.
const DEFAULT_MEMORY_MIB: u32 = 512;

/// Whether to try huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Huge {
    /// Where enough are free.
    #[default]
    Auto,
    Never,
}

/// How to start DPDK.
#[derive(Clone, Debug)]
pub struct EalOptions {
    /// (lcore id, CPU). The first becomes the main lcore: the calling thread.
    pub lcores: Vec<(u32, u32)>,
    /// Names this instance's files; two instances need two prefixes.
    pub file_prefix: String,
    /// For pools, rings and tables together. None: 512.
    pub memory_mib: Option<u32>,
    /// The same without huge pages, where pools take more ([`pool_bytes`]).
    /// None: as much as with them.
    ///
    /// [`pool_bytes`]: super::pool_bytes
    pub ordinary_memory_mib: Option<u32>,
    pub huge: Huge,
    /// PCI devices to take, as `0000:03:00.0[,argument=...]`; empty: none.
    pub allow_pci: Vec<String>,
    /// As DPDK's `--log-level` takes it, such as `pmd.net.tap:debug`.
    pub log_level: Option<String>,
}

impl Default for EalOptions {
    fn default() -> Self {
        Self {
            lcores: vec![(0, 0)],
            file_prefix: "evenkeel".into(),
            memory_mib: None,
            ordinary_memory_mib: None,
            huge: Huge::Auto,
            allow_pci: Vec::new(),
            log_level: None,
        }
    }
}

/// Why DPDK could not be started or stopped: one line that says what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EalError {
    #[error("DPDK was started before in this process, and can only be started once")]
    AlreadyStarted,
    #[error("lcores: {0}")]
    Lcores(String),
    #[error("file prefix {0:?}: use letters, digits, '-' and '_'")]
    Prefix(String),
    #[error(
        "{needed} MiB of memory are needed and {available} MiB are available: free some, or lower the sizes in the configuration"
    )]
    Memory { needed: u64, available: u64 },
    #[error(
        "another instance with file prefix {0:?} is running: stop it, or choose another prefix"
    )]
    SecondInstance(String),
    #[error(
        "no permission to start DPDK ({0}): run as root, or with CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_IPC_LOCK and a writable runtime directory"
    )]
    Permission(String),
    #[error("DPDK did not start: {0}")]
    Start(String),
    #[error("DPDK cannot be stopped: {0} pools, rings, devices or lcores are still in use")]
    InUse(usize),
}

/// What became of this process's one EAL.
enum State {
    Untried,
    /// With the number of things that live in its memory.
    Up(usize),
    Over,
}

static STATE: Mutex<State> = Mutex::new(State::Untried);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held by everything that lives in DPDK's memory.
pub(super) struct Alive(());

impl Alive {
    /// None unless the EAL is up.
    pub(super) fn new() -> Option<Self> {
        match &mut *state() {
            State::Up(count) => {
                *count += 1;
                Some(Self(()))
            }
            _ => None,
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if let State::Up(count) = &mut *state() {
            *count -= 1;
        }
    }
}

/// DPDK, running. Belongs to the thread that started it. Dropping it stops
/// DPDK and removes its files, unless something of it is still in use.
pub struct Eal {
    /// Why there are no huge pages, if there are none.
    no_huge_reason: Option<String>,
    runtime_dir: Option<PathBuf>,
    /// The main lcore is a thread: neither Send nor Sync.
    _thread: PhantomData<*const ()>,
}

impl Eal {
    /// Starts DPDK; the calling thread becomes the main lcore and is bound to
    /// its CPU, which threads and processes that it starts later inherit. Can be
    /// tried once per process.
    pub fn init(options: &EalOptions) -> Result<Eal, EalError> {
        let mut state = state();
        if !matches!(*state, State::Untried) {
            return Err(EalError::AlreadyStarted);
        }
        check_lcores(&options.lcores)?;
        let prefix = &options.file_prefix;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if prefix.is_empty() || !prefix.chars().all(plain) {
            return Err(EalError::Prefix(prefix.clone()));
        }
        let mut memory_mib = options.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB);
        let no_huge_reason = match options.huge {
            Huge::Never => Some("they are switched off".to_owned()),
            Huge::Auto => hugepages::check(memory_mib.into()).err(),
        };
        if no_huge_reason.is_some() {
            memory_mib = options.ordinary_memory_mib.unwrap_or(memory_mib);
            let available = hugepages::ordinary_memory_mib().unwrap_or(u64::MAX);
            let needed = u64::from(memory_mib);
            if needed > available {
                return Err(EalError::Memory { needed, available });
            }
        }
        *state = State::Over;
        start(
            &arguments(options, memory_mib, no_huge_reason.is_none()),
            prefix,
        )?;
        *state = State::Up(0);
        Ok(Eal {
            no_huge_reason,
            runtime_dir: runtime_dir(),
            _thread: PhantomData,
        })
    }

    /// Whether DPDK's memory is on huge pages.
    pub fn huge_pages(&self) -> bool {
        self.no_huge_reason.is_none()
    }

    /// Why it is not, and what to do about it.
    pub fn no_huge_pages_reason(&self) -> Option<&str> {
        self.no_huge_reason.as_deref()
    }

    /// Stops DPDK and removes its files. Refused, and DPDK left as it is,
    /// while anything that lives in its memory is in use.
    pub fn cleanup(&mut self) -> Result<(), EalError> {
        let outstanding = mempool::reap();
        let mut state = state();
        if let State::Up(count) = *state {
            if count + outstanding != 0 {
                return Err(EalError::InUse(count + outstanding));
            }
            *state = State::Over;
            // SAFETY: nothing that lives in DPDK's memory is left, and no lcore runs.
            unsafe { sys::rte_eal_cleanup() };
            remove_runtime_dir(self.runtime_dir.take());
        }
        Ok(())
    }
}

impl Drop for Eal {
    fn drop(&mut self) {
        if let Err(error) = self.cleanup() {
            tracing::warn!("{error}");
            // Its memory stays until the process ends; its files need not.
            remove_runtime_dir(self.runtime_dir.take());
        }
    }
}

const EACCES: u32 = 13;

/// rte_eal_init with its complaints turned into an error.
fn start(arguments: &[String], prefix: &str) -> Result<(), EalError> {
    let stream = log::install();
    if stream.is_null() {
        return Err(EalError::Start(
            "the C library has no stream for its log".into(),
        ));
    }
    let mark = log::mark();
    // DPDK may keep pointers into the arguments: leaked, once per process.
    let arguments: Vec<*mut c_char> = arguments
        .iter()
        .filter_map(|argument| CString::new(argument.as_str()).ok().map(CString::into_raw))
        .chain([std::ptr::null_mut()])
        .collect();
    let arguments = Vec::leak(arguments);
    // SAFETY: a NULL-terminated vector of C strings that live forever.
    let rc =
        unsafe { sys::ek_eal_init(arguments.len() as i32 - 1, arguments.as_mut_ptr(), stream) };
    if rc >= 0 {
        return Ok(());
    }
    if log::said_since(mark, "another primary process") {
        return Err(EalError::SecondInstance(prefix.to_owned()));
    }
    let said = log::complaint_since(mark).unwrap_or_else(|| errno_text(errno()));
    remove_runtime_dir(runtime_dir());
    if errno().unsigned_abs() == EACCES
        || said.contains("Permission denied")
        || said.contains("Operation not permitted")
        || said.contains("ermission")
    {
        return Err(EalError::Permission(said));
    }
    Err(EalError::Start(said))
}

fn arguments(options: &EalOptions, memory_mib: u32, huge: bool) -> Vec<String> {
    let lcores: Vec<String> = options
        .lcores
        .iter()
        .map(|(lcore, cpu)| format!("{lcore}@{cpu}"))
        .collect();
    let mut arguments = vec![
        "evenkeel".to_owned(),
        format!("--lcores={}", lcores.join(",")),
        format!("--main-lcore={}", options.lcores[0].0),
        format!("--file-prefix={}", options.file_prefix),
        format!("-m{memory_mib}"),
        "--no-telemetry".to_owned(),
    ];
    // The lock on the shared configuration is what reports a second instance,
    // so it stays on. Unlinking at once leaves no page behind after a crash.
    arguments.push(if huge { "--huge-unlink" } else { "--no-huge" }.to_owned());
    if options.allow_pci.is_empty() {
        arguments.push("--no-pci".to_owned());
    }
    arguments.extend(
        options
            .allow_pci
            .iter()
            .map(|device| format!("--allow={device}")),
    );
    arguments.extend(
        options
            .log_level
            .iter()
            .map(|level| format!("--log-level={level}")),
    );
    arguments
}

/// The EAL aborts the process on some of these, so they are checked first.
fn check_lcores(lcores: &[(u32, u32)]) -> Result<(), EalError> {
    if lcores.is_empty() {
        return Err(EalError::Lcores("at least the main lcore is needed".into()));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    for (index, (lcore, cpu)) in lcores.iter().enumerate() {
        if *lcore >= sys::RTE_MAX_LCORE {
            let most = sys::RTE_MAX_LCORE - 1;
            return Err(EalError::Lcores(format!(
                "lcore {lcore}: the highest is {most}"
            )));
        }
        if lcores[..index].iter().any(|(other, _)| other == lcore) {
            return Err(EalError::Lcores(format!("lcore {lcore} is there twice")));
        }
        if let Some(allowed) = allowed.map(str::trim)
            && !in_cpu_list(allowed, *cpu)
        {
            return Err(EalError::Lcores(format!(
                "CPU {cpu} is not one this process may use ({allowed})"
            )));
        }
    }
    Ok(())
}

/// Whether a list such as `0-3,7` has the CPU.
fn in_cpu_list(list: &str, cpu: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&cpu))
    })
}

fn runtime_dir() -> Option<PathBuf> {
    // SAFETY: returns a pointer to a static buffer with a C string.
    let path = unsafe { sys::rte_eal_get_runtime_dir() };
    if path.is_null() {
        return None;
    }
    // SAFETY: checked; NUL-terminated and not written to after init.
    let path = unsafe { std::ffi::CStr::from_ptr(path) }.to_str().ok()?;
    (!path.is_empty()).then(|| PathBuf::from(path))
}

/// DPDK leaves its files there; a later start would clean them up, but nothing
/// is to be left behind.
fn remove_runtime_dir(path: Option<PathBuf>) {
    if let Some(path) = path
        && path.components().count() > 2
    {
        let _ = fs::remove_dir_all(path);
    }
}

/// The DPDK that the program runs with, such as `DPDK 22.11.3`. Needs no EAL.
pub fn version() -> String {
    // SAFETY: returns a pointer to a static C string.
    unsafe { std::ffi::CStr::from_ptr(sys::rte_version()) }
        .to_string_lossy()
        .into_owned()
}

/// What the last failed DPDK call on this thread left in `rte_errno`.
pub(super) fn errno() -> i32 {
    // SAFETY: reads a per-thread variable.
    unsafe { sys::ek_errno() }
}

/// The text of an error number, of either sign.
pub(super) fn errno_text(number: i32) -> String {
    // SAFETY: returns a C string in static or per-thread memory.
    unsafe { std::ffi::CStr::from_ptr(sys::rte_strerror(number.saturating_abs())) }
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert!(in_cpu_list("0-3,7", 2));
        assert!(in_cpu_list("0-3,7", 7));
        assert!(!in_cpu_list("0-3,7", 5));
        assert!(!in_cpu_list("", 0));
    }

    #[test]
    fn bad_lcores_are_refused_before_dpdk_sees_them() {
        assert!(matches!(check_lcores(&[]), Err(EalError::Lcores(_))));
        assert!(matches!(
            check_lcores(&[(0, 0), (0, 0)]),
            Err(EalError::Lcores(_))
        ));
        assert!(matches!(
            check_lcores(&[(100_000, 0)]),
            Err(EalError::Lcores(_))
        ));
        assert!(matches!(
            check_lcores(&[(0, 100_000)]),
            Err(EalError::Lcores(_))
        ));
    }
}
