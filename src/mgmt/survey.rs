//! What the devices of a configuration's ports can do, and what evenkeel makes of it: opens each port,
//! asks, and closes it again. Nothing is started and no packet moves. For `evenkeel check --ports`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;
use thiserror::Error;

use super::config::{self, Config};
use super::rss::{self, Plan};
use super::start::{huge_pages_mib, is_pci, mac_text, vlans};
use crate::lb::queues::By;
use crate::port::rss as fields;
use crate::port::{Eal, EalError, EalOptions, Huge, Port, PortInfo, Stopped, offload};

/// Why nothing could be asked: one line that says what to do.
#[derive(Debug, Error)]
pub enum SurveyError {
    #[error(transparent)]
    Eal(#[from] EalError),
}

/// MiB of DPDK's memory while devices are asked.
const MEMORY_MIB: u32 = 64;

#[derive(Debug, Serialize)]
pub struct Survey {
    /// What evenkeel will want of huge pages.
    pub huge_pages_mib: u32,
    pub workers: Vec<WorkerPlace>,
    pub ports: Vec<PortSurvey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WorkerPlace {
    pub core: u16,
    /// NUMA node; absent where the machine has one memory.
    pub numa: Option<u32>,
}

#[derive(Debug, Serialize)]
pub struct PortSurvey {
    pub name: String,
    pub device: String,
    /// Why the device cannot be used; then nothing else is known.
    pub error: Option<String>,
    pub can: Option<Capabilities>,
    pub will: Option<Use>,
    /// What to know, or to do something about.
    pub notes: Vec<String>,
}

/// What the device says that it can do.
#[derive(Debug, Serialize)]
pub struct Capabilities {
    pub driver: String,
    pub mac: String,
    pub numa: Option<u32>,
    pub rx_queues: u16,
    pub tx_queues: u16,
    /// Least and most.
    pub rx_descriptors: (u16, u16),
    pub tx_descriptors: (u16, u16),
    pub mtu: (u16, u16),
    /// Entries of the redirection table; 0: no RSS.
    pub rss_table: u16,
    pub rss_key_bytes: u8,
    pub rss_hashes: Vec<&'static str>,
    /// The ends that RSS can hash alone: `source`, `destination`.
    pub rss_one_end: Vec<&'static str>,
    /// Checksums that are verified of what comes in: `ipv4`, `tcp`, `udp`.
    pub rx_checksums: Vec<&'static str>,
    /// Checksums that can be filled in.
    pub tx_checksums: Vec<&'static str>,
    /// `filter`, `strip`, `insert`.
    pub vlan: Vec<&'static str>,
}

/// What evenkeel will do with it.
#[derive(Debug, Serialize)]
pub struct Use {
    pub rx_queues: u16,
    pub tx_queues: u16,
    pub rx_descriptors: u16,
    pub tx_descriptors: u16,
    pub mtu: u16,
    /// How a packet's worker is found: `one worker`, `RSS by both ends`, `computed`, ...
    pub owners: String,
    /// Who verifies the checksum of IPv4 headers that come in: `device` or `software`.
    pub rx_ipv4_checksum: &'static str,
    /// Checksums of what is rewritten are corrected by the difference, wherever it leaves.
    pub tx_checksums: &'static str,
    pub vlans: Vec<u16>,
    /// Who keeps other VLANs out: `device`, `software`, or nobody where none is configured.
    pub vlan_filter: &'static str,
}

/// Opens the ports of a valid configuration and asks them. A port that cannot be opened says why and
/// hinders no other.
pub fn survey(config: &Config) -> Result<Survey, SurveyError> {
    let devices = config.devices().map(|(_, device)| device.to_owned());
    let _eal = Eal::init(&EalOptions {
        lcores: vec![(0, u32::from(config.management.core))],
        // Beside a running evenkeel, with its own files.
        file_prefix: format!("evenkeel-check-{}", std::process::id()),
        memory_mib: Some(MEMORY_MIB),
        ordinary_memory_mib: None,
        huge: Huge::Never,
        allow_pci: devices.filter(|device| is_pci(device)).collect(),
        log_level: None,
    })?;
    let open = |(port, device): (&config::Port, &str)| {
        Port::<Stopped>::open(&port.name, device).and_then(|opened| opened.info())
    };
    let infos: Vec<_> = config.devices().map(open).collect();
    let reta = rss::reta(infos.iter().flatten(), config.workers.cores.len());
    let cores = config.workers.cores.iter();
    let workers: Vec<_> = cores
        .map(|&core| WorkerPlace {
            core,
            numa: numa_of_core(Path::new("/sys"), core),
        })
        .collect();
    let ports = config.devices().zip(infos).map(|((port, device), info)| {
        let mut surveyed = PortSurvey {
            name: port.name.clone(),
            device: device.to_owned(),
            error: None,
            can: None,
            will: None,
            notes: Vec::new(),
        };
        match info {
            Err(error) => surveyed.error = Some(error.to_string()),
            Ok(info) => {
                surveyed.notes = notes(port, &info, &workers);
                let plan = Plan::of(config, port, &info, reta);
                surveyed.will = Some(intended(config, port, &info, &plan));
                surveyed.can = Some(capabilities(&info));
            }
        }
        surveyed
    });
    Ok(Survey {
        huge_pages_mib: huge_pages_mib(config),
        ports: ports.collect(),
        workers,
    })
}

fn names(flags: u64, of: &[(u64, &'static str)]) -> Vec<&'static str> {
    let has = |(flag, _): &&(u64, &'static str)| flags & flag == *flag;
    of.iter().filter(has).map(|(_, name)| *name).collect()
}

fn capabilities(info: &PortInfo) -> Capabilities {
    let (rx, tx) = (info.rx_offloads, info.tx_offloads);
    let mut vlan = names(
        rx,
        &[
            (offload::RX_VLAN_FILTER, "filter"),
            (offload::RX_VLAN_STRIP, "strip"),
        ],
    );
    vlan.extend(names(tx, &[(offload::TX_VLAN_INSERT, "insert")]));
    Capabilities {
        driver: info.driver.clone(),
        mac: mac_text(&info.mac),
        numa: info.numa,
        rx_queues: info.max_rx_queues,
        tx_queues: info.max_tx_queues,
        rx_descriptors: info.rx_descriptors,
        tx_descriptors: info.tx_descriptors,
        mtu: (info.min_mtu, info.max_mtu),
        rss_table: info.reta_size,
        rss_key_bytes: info.rss_key_size,
        rss_hashes: names(
            info.rss_fields,
            &[
                (fields::IPV4, "ipv4"),
                (fields::IPV4_TCP, "tcp4"),
                (fields::IPV4_UDP, "udp4"),
                (fields::IPV6, "ipv6"),
                (fields::IPV6_TCP, "tcp6"),
                (fields::IPV6_UDP, "udp6"),
            ],
        ),
        rss_one_end: names(
            info.rss_fields,
            &[
                (fields::L3_SRC_ONLY | fields::L4_SRC_ONLY, "source"),
                (fields::L3_DST_ONLY | fields::L4_DST_ONLY, "destination"),
            ],
        ),
        rx_checksums: names(
            rx,
            &[
                (offload::RX_IPV4_CHECKSUM, "ipv4"),
                (offload::RX_TCP_CHECKSUM, "tcp"),
                (offload::RX_UDP_CHECKSUM, "udp"),
            ],
        ),
        tx_checksums: names(
            tx,
            &[
                (offload::TX_IPV4_CHECKSUM, "ipv4"),
                (offload::TX_TCP_CHECKSUM, "tcp"),
                (offload::TX_UDP_CHECKSUM, "udp"),
            ],
        ),
        vlan,
    }
}

fn intended(config: &Config, port: &config::Port, info: &PortInfo, plan: &Plan) -> Use {
    let workers = config.workers.cores.len() as u16;
    let device_or_software = |flag| match info.rx_offloads & flag {
        0 => "software",
        _ => "device",
    };
    let vlans = vlans(config, port);
    Use {
        rx_queues: info.max_rx_queues.min(workers),
        tx_queues: workers,
        rx_descriptors: port.rx_descriptors,
        tx_descriptors: port.tx_descriptors,
        mtu: port.mtu,
        owners: owners(plan, workers),
        rx_ipv4_checksum: device_or_software(offload::RX_IPV4_CHECKSUM),
        tx_checksums: "software",
        vlan_filter: match vlans.is_empty() {
            true => "none",
            false => device_or_software(offload::RX_VLAN_FILTER),
        },
        vlans,
    }
}

fn owners(plan: &Plan, workers: u16) -> String {
    let end = |by: &By| match by {
        By::Both => "both ends",
        By::Source => "the source",
        By::Destination => "the destination",
    };
    match plan {
        Plan::Compute(_) if workers < 2 => "one worker".into(),
        Plan::Compute(reason) => format!("computed: {reason}"),
        Plan::Ask { by, .. } => format!("RSS by {}, once packets prove it", end(by)),
        Plan::Assume { by } => format!("RSS by {}, set by others, once packets prove it", end(by)),
    }
}

fn notes(port: &config::Port, info: &PortInfo, workers: &[WorkerPlace]) -> Vec<String> {
    let mut notes = Vec::new();
    let count = workers.len();
    if usize::from(info.max_tx_queues) < count {
        notes.push(format!(
            "it has {} transmit queues for {count} workers, so evenkeel does not start: use fewer cores in workers.cores",
            info.max_tx_queues
        ));
    }
    if port.mtu < info.min_mtu || port.mtu > info.max_mtu {
        notes.push(format!(
            "its device takes an MTU of {} to {}, so evenkeel does not start: change mtu = {}",
            info.min_mtu, info.max_mtu, port.mtu
        ));
    }
    let mut far: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for worker in workers {
        if let (Some(core), Some(card)) = (worker.numa, info.numa)
            && core != card
        {
            far.entry(core).or_default().push(worker.core.to_string());
        }
    }
    for (node, cores) in far {
        notes.push(format!(
            "cores {} are on NUMA node {node}, its device on node {}: packets cross between them, which costs speed; choose cores of the device's node",
            cores.join(","),
            info.numa.unwrap_or_default(),
        ));
    }
    notes
}

/// The NUMA node of a CPU, as sysfs has it: `devices/system/cpu/cpu3/node1`.
fn numa_of_core(sys: &Path, core: u16) -> Option<u32> {
    let folder = sys.join(format!("devices/system/cpu/cpu{core}"));
    let mut entries = fs::read_dir(folder).ok()?.flatten();
    entries.find_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.strip_prefix("node")?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> PortInfo {
        PortInfo {
            driver: "net_x".into(),
            mac: [2, 0, 0, 0, 0, 1],
            numa: Some(0),
            max_rx_queues: 4,
            max_tx_queues: 2,
            reta_size: 128,
            rss_key_size: 40,
            rss_fields: fields::IPV4
                | fields::IPV6_UDP
                | fields::L3_SRC_ONLY
                | fields::L4_SRC_ONLY
                | fields::L3_DST_ONLY,
            rx_offloads: offload::RX_IPV4_CHECKSUM | offload::RX_VLAN_STRIP,
            tx_offloads: offload::TX_UDP_CHECKSUM | offload::TX_VLAN_INSERT,
            min_mtu: 68,
            max_mtu: 1500,
            rx_descriptors: (32, 4096),
            tx_descriptors: (32, 4096),
        }
    }

    fn on(core: u16, numa: u32) -> WorkerPlace {
        let numa = Some(numa);
        WorkerPlace { core, numa }
    }

    #[test]
    fn flags_are_named_and_half_an_end_is_none() {
        let can = capabilities(&info());
        assert_eq!(can.rss_hashes, ["ipv4", "udp6"]);
        assert_eq!(can.rss_one_end, ["source"]);
        assert_eq!(can.rx_checksums, ["ipv4"]);
        assert_eq!(can.tx_checksums, ["udp"]);
        assert_eq!(can.vlan, ["strip", "insert"]);
        assert_eq!(can.mac, "02:00:00:00:00:01");
    }

    #[test]
    fn what_keeps_evenkeel_from_starting_and_far_memory_are_noted() {
        let text =
            "[[port]]\nname = \"a\"\ndevice = \"net_null0\"\naddresses = [\"192.0.2.2/24\"]\n";
        let config = config::parse(text).unwrap();
        let port = &config.ports[0];
        assert_eq!(notes(port, &info(), &[on(1, 0), on(2, 0)]).len(), 0);
        let far = notes(port, &info(), &[on(1, 1), on(2, 0), on(3, 1)]);
        assert!(far[0].starts_with("it has 2 transmit queues for 3 workers"));
        assert!(far[1].starts_with("cores 1,3 are on NUMA node 1, its device on node 0"));
        let small = PortInfo {
            max_mtu: 1280,
            ..info()
        };
        assert!(notes(port, &small, &[on(1, 0)])[0].ends_with("change mtu = 1500"));
    }

    #[test]
    fn a_cores_node_is_read_from_sysfs() {
        let sys = std::env::temp_dir().join(format!("evenkeel-survey-{}", std::process::id()));
        let cpu = sys.join("devices/system/cpu/cpu3");
        fs::create_dir_all(cpu.join("node1")).unwrap();
        fs::create_dir_all(cpu.join("topology")).unwrap();
        let found = (numa_of_core(&sys, 3), numa_of_core(&sys, 4));
        fs::remove_dir_all(&sys).unwrap();
        assert_eq!(found, (Some(1), None));
    }
}
