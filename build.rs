//! Binds DPDK: asks pkg-config where it is, generates the Rust declarations of
//! what src/port uses (an explicit list, nothing else) and compiles the few
//! inline functions among them, plus src/port/shim.c, to a static library.

use std::{env, path::PathBuf, process::Command};

/// Types that src/port names. Everything they contain follows.
const TYPES: &[&str] = &[
    "rte_eth_conf",
    "rte_eth_dev_info",
    "rte_eth_rss_conf",
    "rte_eth_rss_reta_entry64",
    "rte_eth_stats",
    "rte_ether_addr",
    "cookie_io_functions_t",
];

/// Functions that src/port calls; the `static inline` ones get a wrapper.
const FUNCTIONS: &[&str] = &[
    "rte_eal_(cleanup|get_runtime_dir|has_hugepages|remote_launch|wait_lcore)",
    "rte_(strerror|get_main_lcore|lcore_id|eal_get_lcore_state|get_tsc_hz|openlog_stream)",
    "rte_log_(cur_msg_loglevel|set_global_level|set_level_pattern)",
    "rte_pktmbuf_(pool_create|alloc|alloc_bulk|free|free_bulk)",
    "rte_mempool_(free|avail_count|in_use_count)",
    "rte_ring_(create|free|enqueue|dequeue|enqueue_burst|dequeue_burst|count)",
    "rte_dev_(probe|remove)",
    "rte_eth_(rx|tx)_burst",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_dev_(configure|start|stop|close|reset|info_get|socket_id|set_mtu)",
    "rte_eth_dev_(get_name_by_port|is_valid_port|adjust_nb_rx_tx_desc)",
    "rte_eth_dev_(rss_hash_conf_get|rss_reta_query|rss_reta_update)",
    "rte_eth_dev_callback_(register|unregister)",
    "rte_eth_(find_next|macaddr_get|promiscuous_enable|allmulticast_enable)",
    "rte_eth_(stats_get|stats_reset)",
    "(fopencookie|fclose|setvbuf)",
    "ek_.*",
];

const VARIABLES: &[&str] = &[
    "EK_.*",
    "RTE_MAX_ETHPORTS",
    "RTE_MAX_LCORE",
    "RTE_PKTMBUF_HEADROOM",
];

fn main() {
    for file in ["build.rs", "src/port/wrapper.h", "src/port/shim.c"] {
        println!("cargo:rerun-if-changed={file}");
    }
    if let Err(error) = pkg_config::Config::new()
        .atleast_version("22.11")
        .probe("libdpdk")
    {
        eprintln!(
            "DPDK 22.11 or newer was not found: install Debian's package libdpdk-dev (and pkg-config)."
        );
        eprintln!("{error}");
        std::process::exit(1);
    }
    let cflags = cflags();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let wrappers = out.join("wrappers.c");

    let mut bindings = bindgen::Builder::default()
        .header("src/port/wrapper.h")
        .clang_args(&cflags)
        .allowlist_recursively(true)
        .wrap_static_fns(true)
        .wrap_static_fns_path(&wrappers)
        // Packed and aligned at once, which Rust cannot express; we touch none of them.
        .opaque_type("rte_(arp|l2tpv2|gtp|ipv6|ether_hdr|vlan_hdr).*")
        // src/port/mbuf.rs declares it and checks every offset against C.
        .blocklist_type("rte_mbuf")
        .raw_line("use super::mbuf::RawMbuf as rte_mbuf;")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .derive_default(true)
        .generate_comments(false);
    for name in TYPES {
        bindings = bindings.allowlist_type(name);
    }
    for name in FUNCTIONS {
        bindings = bindings.allowlist_function(name);
    }
    for name in VARIABLES {
        bindings = bindings.allowlist_var(name);
    }
    let bindings = bindings
        .generate()
        .expect("bindgen reads src/port/wrapper.h (needs libclang-dev)");
    bindings
        .write_to_file(out.join("dpdk.rs"))
        .expect("OUT_DIR is writable");

    let mut shim = cc::Build::new();
    for flag in &cflags {
        shim.flag(flag);
    }
    shim.file("src/port/shim.c")
        .file(&wrappers)
        .include(".")
        .opt_level(3)
        .compile("evenkeel_port");
}

/// DPDK's own compiler flags; `-march` among them must reach the inline
/// functions, and `-include rte_config.h` everything.
fn cflags() -> Vec<String> {
    let output = Command::new(env::var_os("PKG_CONFIG").unwrap_or("pkg-config".into()))
        .args(["--cflags", "libdpdk"])
        .output()
        .expect("pkg-config ran a moment ago");
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}
