//! DPDK itself, on virtual devices, without huge pages or privileges (parts that
//! make interfaces need root). DPDK starts once per process, so one `main` runs all
//! parts in turn, and each ends with its pool full again.

mod devices;
mod packets;
mod ports;
mod rings;
mod starting;

use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use evenkeel::port::{
    Batch, Eal, EalError, EalOptions, Huge, LaunchError, Mempool, MempoolError, Port, PortError,
    RingError, clock::Tsc, ring,
};

type Part = (&'static str, fn(&Eal, &Mempool));

const PARTS: &[Part] = &[
    ("mbufs keep their bounds", packets::mbuf_bounds),
    ("batches own what they hold", packets::batches),
    ("pools count and refuse", packets::pools),
    ("pools are stacks where they can be", packets::pool_ops),
    ("rings move ownership", rings::rings),
    (
        "rings between threads lose nothing",
        rings::rings_between_threads,
    ),
    ("net_null receives and sends", ports::net_null),
    ("net_ring loops back", ports::net_ring),
    ("a full transmit ring drops and counts", ports::full_ring),
    ("net_pcap reads and writes files", ports::net_pcap),
    (
        "a port stops, starts again and closes",
        ports::stop_and_start,
    ),
    ("bad devices are one-line errors", ports::bad_devices),
    (
        "small buffers are refused with a way out",
        ports::small_buffers,
    ),
    ("net_memif carries packets", devices::memif),
    ("lcores run, return and panic", lcores),
];

/// Parts that make network interfaces, in a network namespace of their own.
const ROOT_PARTS: &[Part] = &[
    ("net_tap is a network interface while open", devices::tap),
    ("net_tap carries more than 1500 bytes", devices::tap_mtu),
    ("net_af_packet carries packets", devices::af_packet),
    ("net_vhost starts", devices::vhost),
];

/// Set in the process that has a network namespace of its own.
const IN_NAMESPACE: &str = "EVENKEEL_TEST_IN_NAMESPACE";

fn main() {
    if starting::child() {
        return;
    }
    let root = is_root();
    if root && std::env::var_os(IN_NAMESPACE).is_none() {
        let mut again = Command::new("unshare");
        again
            .args(["--net", "--"])
            .arg(std::env::current_exe().unwrap());
        panic!("unshare: {}", again.env(IN_NAMESPACE, "1").exec());
    }
    before_start();
    starting::children();

    let prefix = format!("ek-port-{}", std::process::id());
    let options = EalOptions {
        lcores: vec![(0, cpu(0)), (1, cpu(1))],
        file_prefix: prefix.clone(),
        memory_mib: Some(128),
        huge: Huge::Never,
        ..EalOptions::default()
    };
    let eal = Eal::init(&options).expect("DPDK starts without huge pages");
    assert!(!eal.huge_pages());
    assert!(eal.no_huge_pages_reason().is_some());
    assert_eq!(Eal::init(&options).err(), Some(EalError::AlreadyStarted));
    assert!(Tsc::hz() > 1_000_000);
    starting::second_instance(&prefix);

    let pool = Mempool::new("test", 1023, 2048, 64, -1).expect("a pool");
    PARTS.iter().for_each(|part| run(part, &eal, &pool));
    for part in ROOT_PARTS {
        if root {
            run(part, &eal, &pool)
        } else {
            skipped(part.0)
        }
    }
    cleanup(eal, pool, &prefix);
    println!("ok: nothing is left behind");
}

fn run((name, part): &Part, eal: &Eal, pool: &Mempool) {
    part(eal, pool);
    assert_eq!(pool.in_use(), 0, "{name}: buffers are missing");
    assert_eq!(pool.available(), 1023, "{name}: too many buffers");
    println!("ok: {name}");
}

/// Also a line in the file that scripts/test gathers them from.
fn skipped(name: &str) {
    println!("SKIPPED: {name}: needs root");
    if let Some(list) = std::env::var_os("EVENKEEL_SKIPPED") {
        use std::io::Write;
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(list);
        writeln!(file.unwrap(), "vdev_port: {name}: needs root").unwrap();
    }
}

fn before_start() {
    assert_eq!(
        Mempool::new("early", 63, 2048, 0, -1).unwrap_err(),
        MempoolError::NotStarted
    );
    assert_eq!(
        ring::spsc::<Box<u8>>("early", 8).err(),
        Some(RingError::NotStarted)
    );
    assert!(matches!(
        Port::open("p", "net_null9"),
        Err(PortError::NotStarted(_))
    ));
}

pub fn status(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap()
        .trim()
        .to_owned()
}

fn is_root() -> bool {
    status("Uid:").split_whitespace().nth(1) == Some("0")
}

/// The n-th CPU that this process may use, or the last.
pub fn cpu(n: usize) -> u32 {
    let list = status("Cpus_allowed_list:");
    let ranges = list
        .split(',')
        .map(|part| part.split_once('-').unwrap_or((part, part)));
    let cpus: Vec<u32> = ranges
        .flat_map(|(a, b)| a.parse::<u32>().unwrap()..=b.parse().unwrap())
        .collect();
    cpus[n.min(cpus.len() - 1)]
}

fn lcores(eal: &Eal, pool: &Mempool) {
    let quit = Arc::new(AtomicBool::new(false));
    let (seen, pool) = (quit.clone(), pool.clone());
    let body = move || {
        // Leaves buffers in this core's cache, which must count as home.
        let mut batch = Batch::new();
        assert!(pool.alloc_bulk(&mut batch, 32));
        batch.clear();
        until(|| seen.load(Ordering::Acquire).then_some(()));
    };
    let handle = eal.launch(1, Box::new(body)).unwrap();
    assert!(!handle.is_finished());
    assert_eq!(
        eal.launch(1, Box::new(|| ())).err(),
        Some(LaunchError::Busy(1))
    );
    assert_eq!(
        eal.launch(7, Box::new(|| ())).err(),
        Some(LaunchError::Unknown(7))
    );
    assert_eq!(
        eal.launch(0, Box::new(|| ())).err(),
        Some(LaunchError::Unknown(0))
    );
    quit.store(true, Ordering::Release);
    handle.join().unwrap();

    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let panicked = eal
        .launch(1, Box::new(|| panic!("on purpose {}", 1)))
        .unwrap()
        .join();
    let caught = catch_unwind(AssertUnwindSafe(|| panic!("the hook is quiet"))).is_err();
    std::panic::set_hook(hook);
    assert!(caught);
    let message = "on purpose 1".to_owned();
    assert_eq!(panicked, Err(LaunchError::Panicked { lcore: 1, message }));
    eal.launch(1, Box::new(|| ()))
        .unwrap()
        .join()
        .expect("the lcore is usable again");
}

fn cleanup(mut eal: Eal, pool: Mempool, prefix: &str) {
    let runtime = starting::runtime_dir(prefix);
    assert!(runtime.exists(), "{}", runtime.display());
    assert_eq!(eal.cleanup(), Err(EalError::InUse(1)), "a pool is in use");
    let orphan = pool.alloc().unwrap();
    drop(pool);
    assert_eq!(
        eal.cleanup(),
        Err(EalError::InUse(1)),
        "a buffer is out, so its pool stays"
    );
    assert!(orphan.is_empty());
    drop(orphan);
    assert_eq!(eal.cleanup(), Ok(()));
    assert!(!runtime.exists(), "nothing is left behind");
    assert_eq!(
        Mempool::new("late", 63, 2048, 0, -1).unwrap_err(),
        MempoolError::NotStarted
    );
}

pub fn one_line(error: &impl ToString) {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 400, "{text:?}");
}

/// Asks until there is something, for ten seconds.
pub fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited ten seconds");
        std::thread::yield_now();
    }
}
