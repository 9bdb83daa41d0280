/* What bindgen reads. Flags are spelled as typed constants here because DPDK
 * defines them as 64-bit macros of several shapes, and a macro may come out as
 * an int or not at all; layout constants pin RawMbuf to the C struct. */
#pragma once
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

#define EK_FLAGS(X)                                                            \
	X(RX_OFFLOAD_IPV4_CKSUM, RTE_ETH_RX_OFFLOAD_IPV4_CKSUM)                \
	X(RX_OFFLOAD_UDP_CKSUM, RTE_ETH_RX_OFFLOAD_UDP_CKSUM)                  \
	X(RX_OFFLOAD_TCP_CKSUM, RTE_ETH_RX_OFFLOAD_TCP_CKSUM)                  \
	X(RX_OFFLOAD_VLAN_STRIP, RTE_ETH_RX_OFFLOAD_VLAN_STRIP)                \
	X(RX_OFFLOAD_VLAN_FILTER, RTE_ETH_RX_OFFLOAD_VLAN_FILTER)                \
	X(RX_OFFLOAD_SCATTER, RTE_ETH_RX_OFFLOAD_SCATTER)                      \
	X(RX_OFFLOAD_RSS_HASH, RTE_ETH_RX_OFFLOAD_RSS_HASH)                    \
	X(TX_OFFLOAD_VLAN_INSERT, RTE_ETH_TX_OFFLOAD_VLAN_INSERT)              \
	X(TX_OFFLOAD_IPV4_CKSUM, RTE_ETH_TX_OFFLOAD_IPV4_CKSUM)                \
	X(TX_OFFLOAD_UDP_CKSUM, RTE_ETH_TX_OFFLOAD_UDP_CKSUM)                  \
	X(TX_OFFLOAD_TCP_CKSUM, RTE_ETH_TX_OFFLOAD_TCP_CKSUM)                  \
	X(TX_OFFLOAD_MBUF_FAST_FREE, RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE)        \
	X(MBUF_RX_VLAN, RTE_MBUF_F_RX_VLAN)                                    \
	X(MBUF_RX_VLAN_STRIPPED, RTE_MBUF_F_RX_VLAN_STRIPPED)                  \
	X(MBUF_RX_RSS_HASH, RTE_MBUF_F_RX_RSS_HASH)                            \
	X(MBUF_RX_IP_CKSUM_MASK, RTE_MBUF_F_RX_IP_CKSUM_MASK)                  \
	X(MBUF_RX_IP_CKSUM_BAD, RTE_MBUF_F_RX_IP_CKSUM_BAD)                    \
	X(MBUF_RX_IP_CKSUM_GOOD, RTE_MBUF_F_RX_IP_CKSUM_GOOD)                  \
	X(MBUF_RX_L4_CKSUM_MASK, RTE_MBUF_F_RX_L4_CKSUM_MASK)                  \
	X(MBUF_RX_L4_CKSUM_BAD, RTE_MBUF_F_RX_L4_CKSUM_BAD)                    \
	X(MBUF_RX_L4_CKSUM_GOOD, RTE_MBUF_F_RX_L4_CKSUM_GOOD)                  \
	X(RSS_IPV4, RTE_ETH_RSS_IPV4)                                          \
	X(RSS_FRAG_IPV4, RTE_ETH_RSS_FRAG_IPV4)                                \
	X(RSS_IPV4_TCP, RTE_ETH_RSS_NONFRAG_IPV4_TCP)                          \
	X(RSS_IPV4_UDP, RTE_ETH_RSS_NONFRAG_IPV4_UDP)                          \
	X(RSS_IPV6, RTE_ETH_RSS_IPV6)                                          \
	X(RSS_IPV6_TCP, RTE_ETH_RSS_NONFRAG_IPV6_TCP)                          \
	X(RSS_IPV6_UDP, RTE_ETH_RSS_NONFRAG_IPV6_UDP)                          \
	X(RSS_L3_SRC_ONLY, RTE_ETH_RSS_L3_SRC_ONLY)                            \
	X(RSS_L3_DST_ONLY, RTE_ETH_RSS_L3_DST_ONLY)                            \
	X(RSS_L4_SRC_ONLY, RTE_ETH_RSS_L4_SRC_ONLY)                            \
	X(RSS_L4_DST_ONLY, RTE_ETH_RSS_L4_DST_ONLY)

#define EK_CONSTANT(name, value) static const uint64_t EK_##name = (value);
EK_FLAGS(EK_CONSTANT)

#define EK_OFFSET(name, field) \
	static const uint64_t EK_MBUF_OFFSET_##name = offsetof(struct rte_mbuf, field);
EK_OFFSET(BUF_ADDR, buf_addr)
EK_OFFSET(DATA_OFF, data_off)
EK_OFFSET(REFCNT, refcnt)
EK_OFFSET(NB_SEGS, nb_segs)
EK_OFFSET(PORT, port)
EK_OFFSET(OL_FLAGS, ol_flags)
EK_OFFSET(PKT_LEN, pkt_len)
EK_OFFSET(DATA_LEN, data_len)
EK_OFFSET(VLAN_TCI, vlan_tci)
EK_OFFSET(RSS, hash.rss)
EK_OFFSET(BUF_LEN, buf_len)
EK_OFFSET(POOL, pool)
static const uint64_t EK_MBUF_SIZE = sizeof(struct rte_mbuf);

/* Device flags and events. */
static const uint32_t EK_DEV_INTR_LSC = RTE_ETH_DEV_INTR_LSC;
static const uint32_t EK_MQ_RX_NONE = RTE_ETH_MQ_RX_NONE;
static const uint32_t EK_MQ_RX_RSS = RTE_ETH_MQ_RX_RSS;
static const uint32_t EK_EVENT_LSC = RTE_ETH_EVENT_INTR_LSC;
static const uint32_t EK_EVENT_RESET = RTE_ETH_EVENT_INTR_RESET;
static const uint32_t EK_EVENT_REMOVED = RTE_ETH_EVENT_INTR_RMV;
static const uint32_t EK_RING_SP = RING_F_SP_ENQ;
static const uint32_t EK_RING_SC = RING_F_SC_DEQ;
static const uint32_t EK_RING_EXACT = RING_F_EXACT_SZ;

/* shim.c: what a macro, thread-local or bit field hides from bindgen. */
int ek_errno(void);
/* rte_eal_init, which writes its last words to stderr, past the log; they go to
 * the stdio stream `log` instead. */
int ek_eal_init(int argc, char **argv, void *log);
int ek_link(uint16_t port, uint32_t *speed_mbps, int *up);
/* Where a started port's driver keeps the state of a receive queue. */
const void *ek_rx_queue_state(uint16_t port, uint16_t queue);
/* Whether this way of keeping a pool's buffers is there: each is a driver. */
int ek_has_pool_ops(const char *name);
/* The name of the one that a pool's buffers are kept in; never goes away. */
const char *ek_pool_ops(const struct rte_mempool *pool);
/* The flag at `index` in EK_FLAGS' order as the C compiler sees it, and its
 * name; 0 and NULL past the end. The tests hold the Rust constants against it. */
uint64_t ek_flag(unsigned int index, const char **name);
