#include "wrapper.h"
#include <string.h>

int ek_errno(void)
{
	return rte_errno;
}

int ek_eal_init(int argc, char **argv, void *log)
{
	FILE *usual = stderr;
	int rc;

	stderr = log; /* the GNU C library lets it be assigned */
	rc = rte_eal_init(argc, argv);
	stderr = usual;
	return rc;
}

/* rte_eth_link keeps the state in bit fields, and 24.11 moved them into a union. */
int ek_link(uint16_t port, uint32_t *speed_mbps, int *up)
{
	struct rte_eth_link link = { 0 };
	int rc = rte_eth_link_get_nowait(port, &link);

	*speed_mbps = link.link_speed == RTE_ETH_SPEED_NUM_UNKNOWN ? 0 : link.link_speed;
	*up = rc == 0 && link.link_status == RTE_ETH_LINK_UP;
	return rc;
}

const void *ek_rx_queue_state(uint16_t port, uint16_t queue)
{
	return rte_eth_fp_ops[port].rxq.data[queue];
}

const char *ek_pool_ops(const struct rte_mempool *pool)
{
	return rte_mempool_get_ops(pool->ops_index)->name;
}

int ek_has_pool_ops(const char *name)
{
	for (uint32_t i = 0; i < rte_mempool_ops_table.num_ops; i++)
		if (strcmp(rte_mempool_get_ops(i)->name, name) == 0)
			return 1;
	return 0;
}

#define EK_ROW(name, value) { #name, (value) },
static const struct {
	const char *name;
	uint64_t value;
} flags[] = { EK_FLAGS(EK_ROW) };

uint64_t ek_flag(unsigned int index, const char **name)
{
	if (index >= sizeof(flags) / sizeof(flags[0])) {
		*name = NULL;
		return 0;
	}
	*name = flags[index].name;
	return flags[index].value;
}
