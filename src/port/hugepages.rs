//! Whether there are huge pages to be had, decided before the EAL starts,
//! because an EAL that fails to start cannot be started again.

use std::fs;
use std::path::Path;

/// Fit to be shown to an operator.
pub(super) type Reason = String;

/// Ok if mounted hugetlbfs file systems have `needed_mib` free; else why not,
/// and what to do about it.
pub(super) fn check(needed_mib: u64) -> Result<(), Reason> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let default_kib = meminfo_kib(&meminfo, "Hugepagesize:").unwrap_or(2048);
    let mounts = hugetlbfs(&mounts, default_kib);
    let mut free_mib = 0;
    let mut seen = Vec::new();
    for mount in &mounts {
        if !writable(&mount.path) || seen.contains(&mount.page_kib) {
            continue;
        }
        seen.push(mount.page_kib);
        free_mib += free_pages(mount.page_kib) * mount.page_kib / 1024;
    }
    if free_mib >= needed_mib {
        return Ok(());
    }
    let pages = needed_mib.div_ceil((default_kib / 1024).max(1));
    let enough_free = free_pages(default_kib) * default_kib / 1024 >= needed_mib;
    Err(match mounts.first() {
        None if enough_free => "hugetlbfs is not mounted: \
             mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages"
            .into(),
        Some(mount) if seen.is_empty() => {
            format!("{} is not writable for this user", mount.path)
        }
        _ => format!(
            "{free_mib} MiB of huge pages are free, {needed_mib} MiB are needed: \
             echo {pages} > /proc/sys/vm/nr_hugepages (and mount hugetlbfs on /dev/hugepages)"
        ),
    })
}

/// MiB of ordinary memory that the kernel thinks can be had.
pub(super) fn ordinary_memory_mib() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    Some(meminfo_kib(&meminfo, "MemAvailable:")? / 1024)
}

fn meminfo_kib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

struct Mount {
    path: String,
    page_kib: u64,
}

/// The hugetlbfs lines of /proc/mounts.
fn hugetlbfs(mounts: &str, default_kib: u64) -> Vec<Mount> {
    let fields = mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields
        .filter(|fields| fields.len() >= 4 && fields[2] == "hugetlbfs")
        .map(|fields| {
            let size = fields[3]
                .split(',')
                .find_map(|option| option.strip_prefix("pagesize="));
            Mount {
                path: fields[1].to_owned(),
                page_kib: size.and_then(size_kib).unwrap_or(default_kib),
            }
        })
        .collect()
}

/// "2M", "1024M" or "1G" in KiB.
fn size_kib(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "K" => 1,
        "M" => 1024,
        "G" => 1024 * 1024,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn free_pages(page_kib: u64) -> u64 {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{page_kib}kB/free_hugepages");
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// An empty file on hugetlbfs takes no page.
fn writable(mount: &str) -> bool {
    let probe = Path::new(mount).join(format!("evenkeel-probe-{}", std::process::id()));
    let made = fs::File::create(&probe).is_ok();
    made && fs::remove_file(&probe).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mounts_and_page_sizes() {
        let mounts = "proc /proc proc rw 0 0\n\
             hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n\
             none /mnt/huge1G hugetlbfs rw,pagesize=1024M 0 0\n\
             none /mnt/plain hugetlbfs rw 0 0\n";
        let found: Vec<_> = hugetlbfs(mounts, 2048)
            .into_iter()
            .map(|m| (m.path, m.page_kib))
            .collect();
        assert_eq!(
            found,
            [
                ("/dev/hugepages".to_owned(), 2048),
                ("/mnt/huge1G".to_owned(), 1024 * 1024),
                ("/mnt/plain".to_owned(), 2048)
            ]
        );
        assert_eq!(size_kib("1G"), Some(1024 * 1024));
        assert_eq!(size_kib("x"), None);
        assert_eq!(
            meminfo_kib("MemFree: 1 kB\nMemAvailable:  77 kB\n", "MemAvailable:"),
            Some(77)
        );
    }

    #[test]
    fn an_impossible_demand_says_what_to_do() {
        let reason = check(1 << 40).unwrap_err();
        assert!(!reason.contains('\n'));
        assert!(
            reason.contains("nr_hugepages") || reason.contains("writable"),
            "{reason}"
        );
    }
}
