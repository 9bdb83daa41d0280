//! The C side of DPDK as bindgen sees it (build.rs lists what is in it).
//! Nothing outside `port` may name it.
#![allow(
    dead_code,
    improper_ctypes,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]

include!(concat!(env!("OUT_DIR"), "/dpdk.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::ffi::CStr;

    /// Name, what bindgen made of it, and the bits in DPDK's documentation.
    const FLAGS: &[(&str, u64, u64)] = &[
        ("RX_OFFLOAD_IPV4_CKSUM", EK_RX_OFFLOAD_IPV4_CKSUM, 1 << 1),
        ("RX_OFFLOAD_UDP_CKSUM", EK_RX_OFFLOAD_UDP_CKSUM, 1 << 2),
        ("RX_OFFLOAD_TCP_CKSUM", EK_RX_OFFLOAD_TCP_CKSUM, 1 << 3),
        ("RX_OFFLOAD_VLAN_STRIP", EK_RX_OFFLOAD_VLAN_STRIP, 1 << 0),
        ("RX_OFFLOAD_VLAN_FILTER", EK_RX_OFFLOAD_VLAN_FILTER, 1 << 9),
        ("RX_OFFLOAD_SCATTER", EK_RX_OFFLOAD_SCATTER, 1 << 13),
        ("RX_OFFLOAD_RSS_HASH", EK_RX_OFFLOAD_RSS_HASH, 1 << 19),
        ("TX_OFFLOAD_VLAN_INSERT", EK_TX_OFFLOAD_VLAN_INSERT, 1 << 0),
        ("TX_OFFLOAD_IPV4_CKSUM", EK_TX_OFFLOAD_IPV4_CKSUM, 1 << 1),
        ("TX_OFFLOAD_UDP_CKSUM", EK_TX_OFFLOAD_UDP_CKSUM, 1 << 2),
        ("TX_OFFLOAD_TCP_CKSUM", EK_TX_OFFLOAD_TCP_CKSUM, 1 << 3),
        (
            "TX_OFFLOAD_MBUF_FAST_FREE",
            EK_TX_OFFLOAD_MBUF_FAST_FREE,
            1 << 16,
        ),
        ("MBUF_RX_VLAN", EK_MBUF_RX_VLAN, 1 << 0),
        ("MBUF_RX_VLAN_STRIPPED", EK_MBUF_RX_VLAN_STRIPPED, 1 << 6),
        ("MBUF_RX_RSS_HASH", EK_MBUF_RX_RSS_HASH, 1 << 1),
        (
            "MBUF_RX_IP_CKSUM_MASK",
            EK_MBUF_RX_IP_CKSUM_MASK,
            1 << 4 | 1 << 7,
        ),
        ("MBUF_RX_IP_CKSUM_BAD", EK_MBUF_RX_IP_CKSUM_BAD, 1 << 4),
        ("MBUF_RX_IP_CKSUM_GOOD", EK_MBUF_RX_IP_CKSUM_GOOD, 1 << 7),
        (
            "MBUF_RX_L4_CKSUM_MASK",
            EK_MBUF_RX_L4_CKSUM_MASK,
            1 << 3 | 1 << 8,
        ),
        ("MBUF_RX_L4_CKSUM_BAD", EK_MBUF_RX_L4_CKSUM_BAD, 1 << 3),
        ("MBUF_RX_L4_CKSUM_GOOD", EK_MBUF_RX_L4_CKSUM_GOOD, 1 << 8),
        ("RSS_IPV4", EK_RSS_IPV4, 1 << 2),
        ("RSS_FRAG_IPV4", EK_RSS_FRAG_IPV4, 1 << 3),
        ("RSS_IPV4_TCP", EK_RSS_IPV4_TCP, 1 << 4),
        ("RSS_IPV4_UDP", EK_RSS_IPV4_UDP, 1 << 5),
        ("RSS_IPV6", EK_RSS_IPV6, 1 << 8),
        ("RSS_IPV6_TCP", EK_RSS_IPV6_TCP, 1 << 10),
        ("RSS_IPV6_UDP", EK_RSS_IPV6_UDP, 1 << 11),
        ("RSS_L3_SRC_ONLY", EK_RSS_L3_SRC_ONLY, 1 << 63),
        ("RSS_L3_DST_ONLY", EK_RSS_L3_DST_ONLY, 1 << 62),
        ("RSS_L4_SRC_ONLY", EK_RSS_L4_SRC_ONLY, 1 << 61),
        ("RSS_L4_DST_ONLY", EK_RSS_L4_DST_ONLY, 1 << 60),
    ];

    #[test]
    fn flags_are_what_c_and_the_documentation_say() {
        let mut c = BTreeMap::new();
        for index in 0.. {
            let mut name = std::ptr::null();
            let value = unsafe { ek_flag(index, &mut name) };
            if name.is_null() {
                break;
            }
            c.insert(unsafe { CStr::from_ptr(name) }.to_str().unwrap(), value);
        }
        assert_eq!(c.len(), FLAGS.len());
        for (name, rust, documented) in FLAGS {
            assert_eq!(rust, documented, "{name}");
            assert_eq!(Some(rust), c.get(name), "{name}");
        }
    }
}
