//! What a port is told and what it tells: plain data, no calls into DPDK.

/// Hash field flags for [`RssConfig::hash_fields`].
pub mod rss {
    use super::super::sys;

    pub const IPV4: u64 = sys::EK_RSS_IPV4;
    pub const FRAG_IPV4: u64 = sys::EK_RSS_FRAG_IPV4;
    pub const IPV4_TCP: u64 = sys::EK_RSS_IPV4_TCP;
    pub const IPV4_UDP: u64 = sys::EK_RSS_IPV4_UDP;
    pub const IPV6: u64 = sys::EK_RSS_IPV6;
    pub const IPV6_TCP: u64 = sys::EK_RSS_IPV6_TCP;
    pub const IPV6_UDP: u64 = sys::EK_RSS_IPV6_UDP;
    /// Restrict the hash to one side's address or port.
    pub const L3_SRC_ONLY: u64 = sys::EK_RSS_L3_SRC_ONLY;
    pub const L3_DST_ONLY: u64 = sys::EK_RSS_L3_DST_ONLY;
    pub const L4_SRC_ONLY: u64 = sys::EK_RSS_L4_SRC_ONLY;
    pub const L4_DST_ONLY: u64 = sys::EK_RSS_L4_DST_ONLY;
}

/// Why a device could not be used: one line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PortError {
    #[error("port {0}: DPDK is not started")]
    NotStarted(String),
    #[error(
        "port {port}: cannot open device {device:?}: {reason}; check that it exists, that no other program uses it and that its driver is installed"
    )]
    Open {
        port: String,
        device: String,
        reason: String,
    },
    #[error(
        "port {port}: no permission to open device {device:?}: {reason}; run as root, or with CAP_NET_ADMIN"
    )]
    Permission {
        port: String,
        device: String,
        reason: String,
    },
    #[error("port {port}: device {device:?} is in use by another port")]
    InUse { port: String, device: String },
    #[error("port {port}: {what}: {reason}")]
    Refused {
        port: String,
        what: String,
        reason: String,
    },
}

/// What a device is and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    pub driver: String,
    pub mac: [u8; 6],
    /// NUMA node, where known.
    pub numa: Option<u32>,
    pub max_rx_queues: u16,
    pub max_tx_queues: u16,
    /// Entries of the RSS indirection table; 0: no RSS.
    pub reta_size: u16,
    /// Bytes of the RSS key.
    pub rss_key_size: u8,
    /// What RSS can hash, as [`rss`] flags.
    pub rss_fields: u64,
    /// `RTE_ETH_RX_OFFLOAD_*` and `RTE_ETH_TX_OFFLOAD_*`.
    pub rx_offloads: u64,
    pub tx_offloads: u64,
    pub min_mtu: u16,
    pub max_mtu: u16,
    /// Least and most descriptors of a queue.
    pub rx_descriptors: (u16, u16),
    pub tx_descriptors: (u16, u16),
}

/// How received packets are spread over the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RssConfig {
    /// Repeated or cut to the device's key size.
    pub key: Vec<u8>,
    /// [`rss`] flags; what the device cannot hash is left out.
    pub hash_fields: u64,
    /// Entry i of the indirection table gets queue (i mod period) mod queues.
    /// None: the table's own size.
    pub reta_period: Option<u16>,
}

/// What is in force, as the device says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RssState {
    pub key: Vec<u8>,
    pub hash_fields: u64,
    /// The queue of each entry of the indirection table.
    pub reta: Vec<u16>,
}

/// How to start a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    pub rx_queues: u16,
    pub tx_queues: u16,
    /// Wished for each queue; the device's limits prevail. Drivers take a buffer
    /// in advance for every receive descriptor, so a pool needs more than
    /// `rx_queues` * `rx_descriptors`.
    pub rx_descriptors: u16,
    pub tx_descriptors: u16,
    /// None: leave it.
    pub mtu: Option<u16>,
    /// None: whatever the device does. Ignored where there is no RSS.
    pub rss: Option<RssConfig>,
    /// Have the device verify IPv4 header checksums, where it can.
    pub rx_ip_checksum: bool,
    pub promiscuous: bool,
    /// Needed to hear neighbour solicitations.
    pub all_multicast: bool,
    /// 802.1Q ids that are to be received with their tags. A device that can filter hears these and
    /// untagged frames alone; a virtual function may hear no tagged frame that it did not ask for.
    pub vlans: Vec<u16>,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mtu: None,
            rss: None,
            rx_ip_checksum: true,
            promiscuous: false,
            all_multicast: true,
            vlans: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub up: bool,
    /// 0 if unknown.
    pub speed_mbps: u32,
}

/// The device's own counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// Dropped by the device because the queues were full.
    pub rx_missed: u64,
    pub rx_errors: u64,
    /// Receptions that failed for want of a buffer.
    pub rx_no_buffer: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

/// What has happened to a device since last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortEvents {
    pub link_changed: bool,
    /// The device wants to be stopped, reset and started again.
    pub reset_needed: bool,
    pub removed: bool,
}

/// What a device can do by itself: flags of [`PortInfo::rx_offloads`] and, those of TX, of
/// [`PortInfo::tx_offloads`].
pub mod offload {
    use super::super::sys;

    pub const RX_IPV4_CHECKSUM: u64 = sys::EK_RX_OFFLOAD_IPV4_CKSUM;
    pub const RX_TCP_CHECKSUM: u64 = sys::EK_RX_OFFLOAD_TCP_CKSUM;
    pub const RX_UDP_CHECKSUM: u64 = sys::EK_RX_OFFLOAD_UDP_CKSUM;
    pub const RX_VLAN_STRIP: u64 = sys::EK_RX_OFFLOAD_VLAN_STRIP;
    pub const RX_VLAN_FILTER: u64 = sys::EK_RX_OFFLOAD_VLAN_FILTER;
    pub const TX_IPV4_CHECKSUM: u64 = sys::EK_TX_OFFLOAD_IPV4_CKSUM;
    pub const TX_TCP_CHECKSUM: u64 = sys::EK_TX_OFFLOAD_TCP_CKSUM;
    pub const TX_UDP_CHECKSUM: u64 = sys::EK_TX_OFFLOAD_UDP_CKSUM;
    pub const TX_VLAN_INSERT: u64 = sys::EK_TX_OFFLOAD_VLAN_INSERT;
}
