//! Configuring and starting a device: queues, MTU, RSS, offloads.

use super::device::Device;
use super::mempool::Mempool;
use super::types::{PortConfig, PortError, RssConfig, RssState};
use super::{interface, log, sys};

/// Ethernet header, two VLAN tags and the frame check sequence.
const FRAME_OVERHEAD: u32 = 14 + 2 * 4 + 4;

/// Entries in one `rte_eth_rss_reta_entry64`.
const RETA_GROUP: usize = 64;

pub(super) fn start(
    device: &Device,
    config: &PortConfig,
    pools: &[Mempool],
) -> Result<(), PortError> {
    let info = device.info()?;
    check(device, config, pools, &info)?;
    let rss = config
        .rss
        .as_ref()
        .filter(|_| info.flow_type_rss_offloads != 0);
    configure(device, config, rss, &info)?;
    set_mtu(device, config, &info)?;
    queues(device, config, pools)?;
    // From here the driver may hold buffers, until the device is closed.
    device.running(pools);
    let mark = log::mark();
    // SAFETY: configured, with all queues set up.
    let rc = unsafe { sys::rte_eth_dev_start(device.id()) };
    device.check("start", rc, mark)?;
    if let Some(rss) = rss {
        update_rss(device, rss, &info);
        let period = rss.reta_period.unwrap_or(info.reta_size);
        fill_reta(device, info.reta_size, period, config.rx_queues);
    }
    if info.rx_offload_capa & sys::EK_RX_OFFLOAD_VLAN_FILTER != 0 {
        hear_vlans(device, config)?;
    }
    // Drivers that always hear everything refuse these; nothing is lost then.
    // SAFETY: a started port.
    unsafe {
        if config.all_multicast {
            sys::rte_eth_allmulticast_enable(device.id());
        }
        if config.promiscuous {
            sys::rte_eth_promiscuous_enable(device.id());
        }
    }
    Ok(())
}

/// What DPDK would refuse with less to say, or not at all.
fn check(
    device: &Device,
    config: &PortConfig,
    pools: &[Mempool],
    info: &sys::rte_eth_dev_info,
) -> Result<(), PortError> {
    let refuse = |what: &str, reason: String| Err(device.refusal(what, reason));
    if config.rx_queues == 0 || config.rx_queues > info.max_rx_queues {
        let reason = format!(
            "asked for {}, the device has {}",
            config.rx_queues, info.max_rx_queues
        );
        return refuse("receive queues", reason);
    }
    if config.tx_queues == 0 || config.tx_queues > info.max_tx_queues {
        let reason = format!(
            "asked for {}, the device has {}",
            config.tx_queues, info.max_tx_queues
        );
        return refuse("transmit queues", reason);
    }
    if pools.len() != 1 && pools.len() != usize::from(config.rx_queues) {
        return refuse("pools", "give one, or one for each receive queue".into());
    }
    let Some(mtu) = config.mtu else {
        return Ok(());
    };
    if mtu < info.min_mtu || mtu > info.max_mtu {
        let reason = format!("{mtu} is outside {} to {}", info.min_mtu, info.max_mtu);
        return refuse("mtu", reason);
    }
    if mtu > most_mtu(info) && info.if_index == 0 {
        let reason = format!("{mtu} is more than the device takes, {}", most_mtu(info));
        return refuse("mtu", reason);
    }
    let room = pools.iter().map(Mempool::data_room).min().unwrap_or(0);
    let frame = u32::from(mtu) + FRAME_OVERHEAD;
    if frame > u32::from(room) {
        let most = u32::from(room).saturating_sub(FRAME_OVERHEAD);
        let reason = format!(
            "{mtu} needs buffers of {frame} bytes, they have {room}; set workers.buffer_size to at least {frame} or lower the port's mtu to {most}"
        );
        return refuse("mtu", reason);
    }
    Ok(())
}

/// The largest MTU that DPDK lets the driver have, by the arithmetic of rte_ethdev.c: a driver may
/// name the largest frame and no largest MTU.
fn most_mtu(info: &sys::rte_eth_dev_info) -> u16 {
    const ETHERNET: u32 = 14 + 4;
    let (frame, mtu) = (info.max_rx_pktlen, u32::from(info.max_mtu));
    let overhead = if info.max_mtu != u16::MAX && frame > mtu {
        frame - mtu
    } else {
        ETHERNET
    };
    mtu.min(frame.saturating_sub(overhead)) as u16
}

fn configure(
    device: &Device,
    config: &PortConfig,
    rss: Option<&RssConfig>,
    info: &sys::rte_eth_dev_info,
) -> Result<(), PortError> {
    let mut conf = sys::rte_eth_conf::default();
    if let Some(mtu) = config.mtu {
        conf.rxmode.mtu = mtu.min(most_mtu(info)).into();
    }
    let mut key = rss.map(|rss| rss_key(rss, info)).unwrap_or_default();
    if let Some(rss) = rss {
        conf.rxmode.mq_mode = sys::EK_MQ_RX_RSS;
        conf.rx_adv_conf.rss_conf = rss_conf(rss, &mut key, info);
        conf.rxmode.offloads |= sys::EK_RX_OFFLOAD_RSS_HASH & info.rx_offload_capa;
    }
    if config.rx_ip_checksum {
        conf.rxmode.offloads |= sys::EK_RX_OFFLOAD_IPV4_CKSUM & info.rx_offload_capa;
    }
    if !config.vlans.is_empty() {
        conf.rxmode.offloads |= sys::EK_RX_OFFLOAD_VLAN_FILTER & info.rx_offload_capa;
    }
    // SAFETY: the driver's flags, if it has any, are static.
    let flags = unsafe { info.dev_flags.as_ref() }.copied().unwrap_or(0);
    if flags & sys::EK_DEV_INTR_LSC != 0 {
        conf.intr_conf.set_lsc(1);
    }
    let mark = log::mark();
    // SAFETY: an open, stopped port; DPDK copies the configuration, and the key
    // lives until it has.
    let rc = unsafe {
        sys::rte_eth_dev_configure(device.id(), config.rx_queues, config.tx_queues, &conf)
    };
    drop(key);
    device.check("configure", rc, mark)
}

/// What a device that does not name its key's size takes (rte_eth_dev_info).
const USUAL_KEY: usize = 40;

/// The wished key at the device's length, in a buffer that is long enough for
/// drivers that read a whole key whatever length they are told.
fn rss_key(rss: &RssConfig, info: &sys::rte_eth_dev_info) -> Vec<u8> {
    let room = usize::from(info.hash_key_size).max(64);
    rss.key.iter().copied().cycle().take(room).collect()
}

fn rss_conf(
    rss: &RssConfig,
    key: &mut [u8],
    info: &sys::rte_eth_dev_info,
) -> sys::rte_eth_rss_conf {
    let mut conf = sys::rte_eth_rss_conf {
        rss_hf: rss.hash_fields & info.flow_type_rss_offloads,
        ..Default::default()
    };
    // An empty key means the driver's own.
    if !key.is_empty() {
        conf.rss_key = key.as_mut_ptr();
        conf.rss_key_len = info.hash_key_size;
    }
    conf
}

/// Some drivers take key and fields only once they run. A refusal is no error
/// here: what is in force is read back with `rss_state`.
fn update_rss(device: &Device, rss: &RssConfig, info: &sys::rte_eth_dev_info) {
    let mut key = rss_key(rss, info);
    let mut conf = rss_conf(rss, &mut key, info);
    let is_so = |state: RssState| {
        state.hash_fields == conf.rss_hf && (key.is_empty() || key.starts_with(&state.key))
    };
    if rss_state(device).is_some_and(is_so) {
        return;
    }
    // SAFETY: a started port; DPDK copies the configuration, and the key lives
    // until it has.
    unsafe { sys::rte_eth_dev_rss_hash_update(device.id(), &mut conf) };
}

/// Lets frames of the configured VLANs through the device's filter.
fn hear_vlans(device: &Device, config: &PortConfig) -> Result<(), PortError> {
    let mark = log::mark();
    for &id in &config.vlans {
        // SAFETY: a started port that was configured to filter.
        let rc = unsafe { sys::rte_eth_dev_vlan_filter(device.id(), id, 1) };
        device.check(&format!("VLAN {id}"), rc, mark)?;
    }
    Ok(())
}

/// Beyond the configuration, because virtual drivers only then tell the
/// interface on the other side.
fn set_mtu(
    device: &Device,
    config: &PortConfig,
    info: &sys::rte_eth_dev_info,
) -> Result<(), PortError> {
    const ENOTSUP: i32 = 95;
    let Some(mtu) = config.mtu else {
        return Ok(());
    };
    // net_tap and net_af_packet name a limit below what they carry.
    if mtu > most_mtu(info) {
        let set = interface::set_mtu(info.if_index, mtu);
        return set.map_err(|error| device.refusal("mtu", error.to_string()));
    }
    let mark = log::mark();
    // SAFETY: a configured, stopped port.
    match unsafe { sys::rte_eth_dev_set_mtu(device.id(), mtu) } {
        rc if rc == -ENOTSUP => Ok(()),
        rc => device.check("mtu", rc, mark),
    }
}

fn queues(device: &Device, config: &PortConfig, pools: &[Mempool]) -> Result<(), PortError> {
    let id = device.id();
    let (mut rx, mut tx) = (config.rx_descriptors, config.tx_descriptors);
    let mark = log::mark();
    // SAFETY: a configured port; both are read and written.
    let rc = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &mut rx, &mut tx) };
    device.check("descriptors", rc, mark)?;
    // SAFETY: an open port.
    let socket = unsafe { sys::rte_eth_dev_socket_id(id) } as u32;
    for queue in 0..config.rx_queues {
        let pool = pools.get(usize::from(queue)).unwrap_or(&pools[0]);
        // SAFETY: `running` keeps the pools alive as long as the device; a null
        // configuration means the driver's own.
        let rc = unsafe {
            let none = std::ptr::null();
            sys::rte_eth_rx_queue_setup(id, queue, rx, socket, none, pool.raw())
        };
        device.check("receive queue", rc, mark)?;
    }
    for queue in 0..config.tx_queues {
        // SAFETY: as above.
        let rc = unsafe { sys::rte_eth_tx_queue_setup(id, queue, tx, socket, std::ptr::null()) };
        device.check("transmit queue", rc, mark)?;
    }
    Ok(())
}

/// Entry i gets queue (i mod period) mod queues, so that tables of different
/// sizes agree if they share the period. A refusal is no error, as in `update_rss`.
fn fill_reta(device: &Device, size: u16, period: u16, queues: u16) {
    if size == 0 || period == 0 {
        return;
    }
    let mut table = reta(size);
    for index in 0..usize::from(size) {
        let entry = (index as u16 % period) % queues;
        table[index / RETA_GROUP].reta[index % RETA_GROUP] = entry;
    }
    // SAFETY: a started port and a table of `size` entries.
    unsafe { sys::rte_eth_dev_rss_reta_update(device.id(), table.as_mut_ptr(), size) };
}

/// A table with every entry selected.
fn reta(size: u16) -> Vec<sys::rte_eth_rss_reta_entry64> {
    let mut table =
        vec![sys::rte_eth_rss_reta_entry64::default(); usize::from(size).div_ceil(RETA_GROUP)];
    for index in 0..usize::from(size) {
        table[index / RETA_GROUP].mask |= 1 << (index % RETA_GROUP);
    }
    table
}

/// Key, fields and table as the device reads them back.
pub(super) fn rss_state(device: &Device) -> Option<RssState> {
    let info = device.info().ok()?;
    if info.flow_type_rss_offloads == 0 || info.reta_size == 0 {
        return None;
    }
    // Drivers write a whole key whatever length they are told: leave room.
    let mut key = vec![0; usize::from(info.hash_key_size).max(64)];
    let mut conf = sys::rte_eth_rss_conf {
        rss_key: key.as_mut_ptr(),
        rss_key_len: info.hash_key_size,
        ..Default::default()
    };
    // SAFETY: an open port; the key has room for what the driver writes.
    if unsafe { sys::rte_eth_dev_rss_hash_conf_get(device.id(), &mut conf) } != 0 {
        return None;
    }
    key.truncate(match conf.rss_key_len {
        0 => USUAL_KEY,
        len => len.into(),
    });
    let mut table = reta(info.reta_size);
    // SAFETY: an open port and a table of its size.
    let rc =
        unsafe { sys::rte_eth_dev_rss_reta_query(device.id(), table.as_mut_ptr(), info.reta_size) };
    if rc != 0 {
        return None;
    }
    let reta = table
        .iter()
        .flat_map(|group| group.reta)
        .take(info.reta_size.into())
        .collect();
    Some(RssState {
        key,
        hash_fields: conf.rss_hf,
        reta,
    })
}
