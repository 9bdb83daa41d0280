//! Binds DPDK: asks pkg-config where it is, generates the Rust declarations of
//! what src/port uses (an explicit list, nothing else) and compiles the few
//! inline functions among them, plus src/port/shim.c, to a static library.

use std::{env, path::PathBuf, process::Command};

/// Types that src/port names. Everything they contain follows.
const TYPES: &str = "rte_eth_(conf|dev_info|rss_conf|rss_reta_entry64|stats)|rte_ether_addr\
                     |cookie_io_functions_t";

/// Constants: those of src/port/wrapper.h, and limits.
const VARIABLES: &str = "EK_.*|RTE_MAX_(ETHPORTS|LCORE)|RTE_PKTMBUF_HEADROOM";

/// Functions that src/port calls; the `static inline` ones get a wrapper.
const FUNCTIONS: &[&str] = &[
    "rte_eal_(cleanup|get_runtime_dir|has_hugepages|remote_launch|wait_lcore)",
    "rte_(version|strerror|get_main_lcore|lcore_id|eal_get_lcore_state|get_tsc_hz|openlog_stream)",
    "rte_log_(cur_msg_loglevel|set_global_level|set_level_pattern)",
    "rte_pktmbuf_(pool_create_by_ops|alloc|alloc_bulk|free|free_bulk)",
    "rte_mbuf_best_mempool_ops",
    "rte_mempool_(free|avail_count|in_use_count)",
    "rte_ring_(create|free|enqueue|dequeue|enqueue_burst|dequeue_burst|count)",
    "rte_dev_(probe|remove)",
    "rte_eth_(rx|tx)_burst",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_dev_(configure|start|stop|close|reset|info_get|socket_id|set_mtu)",
    "rte_eth_dev_(get_name_by_port|is_valid_port|adjust_nb_rx_tx_desc)",
    "rte_eth_dev_(rss_hash_(conf_get|update)|rss_reta_query|rss_reta_update|vlan_filter)",
    "rte_eth_dev_callback_(register|unregister)",
    "rte_eth_(find_next|macaddr_get|promiscuous_enable|allmulticast_enable)",
    "rte_eth_(stats_get|stats_reset)",
    "(fopencookie|fclose|setvbuf)",
    "ek_.*",
];

fn main() {
    for file in ["build.rs", "src/port/wrapper.h", "src/port/shim.c"] {
        println!("cargo:rerun-if-changed={file}");
    }
    let mut dpdk = pkg_config::Config::new();
    if let Err(error) = dpdk.atleast_version("22.11").probe("libdpdk") {
        eprintln!("DPDK 22.11 or newer is missing: install Debian's libdpdk-dev and pkg-config.");
        eprintln!("{error}");
        std::process::exit(1);
    }
    let cflags = cflags();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let wrappers = out.join("wrappers.c");

    let bindings = bindgen::Builder::default()
        .header("src/port/wrapper.h")
        .clang_args(&cflags)
        .wrap_static_fns(true)
        .wrap_static_fns_path(&wrappers)
        // Packed and aligned at once, which Rust cannot express; we touch none of them.
        .opaque_type("rte_(arp|l2tpv2|gtp).*")
        // src/port/mbuf.rs declares it and checks every offset against C.
        .blocklist_type("rte_mbuf")
        .raw_line("use super::mbuf::RawMbuf as rte_mbuf;")
        .allowlist_type(TYPES)
        .allowlist_var(VARIABLES)
        .derive_default(true)
        .generate_comments(false);
    let bindings = FUNCTIONS
        .iter()
        .fold(bindings, |all, name| all.allowlist_function(name));
    let bindings = bindings
        .generate()
        .expect("bindgen and libclang read DPDK's headers");
    bindings
        .write_to_file(out.join("dpdk.rs"))
        .expect("OUT_DIR is writable");

    let mut shim = cc::Build::new();
    shim.file("src/port/shim.c")
        .file(&wrappers)
        .include(".")
        .opt_level(3);
    for flag in &cflags {
        shim.flag(flag);
    }
    shim.compile("evenkeel_port");
}

/// DPDK's own compiler flags; `-march` among them must reach the inline
/// functions, and `-include rte_config.h` everything.
fn cflags() -> Vec<String> {
    let program = env::var_os("PKG_CONFIG").unwrap_or("pkg-config".into());
    let output = Command::new(program).args(["--cflags", "libdpdk"]).output();
    let flags = output.expect("pkg-config ran a moment ago").stdout;
    String::from_utf8_lossy(&flags)
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}
