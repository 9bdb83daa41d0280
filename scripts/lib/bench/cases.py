"""The cases: what is sent, by which method it is forwarded, and what is asked of the result."""

from dataclasses import dataclass

QUICK_FLOWS = [1_000, 10_000, 100_000, 1_000_000]
METHOD_FLOWS = [10_000, 100_000, 1_000_000]
# In the order of ipvsadm's manual; `mh` is Maglev. Without `ovf`, under which a backend takes no more
# connections than its weight: 16 backends cannot have as many as are opened here.
SCHEDULERS = ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo",
              "random", "twos"]  # fmt: skip


@dataclass(frozen=True)
class Case:
    name: str
    flows: int
    method: str = "direct-routing"
    family: str = "ipv4"
    # What bench-packets makes: "udp", or "tcp" with open, data and close of each connection.
    kind: str = "udp"
    scheduler: str = "wrr"
    # Every packet opens a flow: entries expire before their flow comes again.
    new_flows: bool = False
    # Workers, and the share of packets that arrive at another worker than their owner.
    workers: int = 1
    share: float = 0.0

    @property
    def frames(self):
        return self.flows * (6 if self.kind == "tcp" else 1)

    @property
    def connections(self):
        """Table size: the flows fill half of it."""
        return max(2 * self.flows, 1_000_000)


def all_cases():
    """Every case, in the order in which they run and are shown."""
    cases = [Case("direct-routing", flows) for flows in QUICK_FLOWS + [8_000_000]]
    for method in ("tunnel", "nat", "fullnat"):
        cases += [Case(method, flows, method=method) for flows in METHOD_FLOWS]
    cases += [Case("direct-routing-ipv6", flows, family="ipv6") for flows in QUICK_FLOWS]
    cases += [Case("tcp", 100_000, kind="tcp")]
    cases += [Case("new-flow", NEW_FLOWS, new_flows=True)]
    cases += [
        Case(f"new-flow-{scheduler}", NEW_FLOWS, scheduler=scheduler, new_flows=True)
        for scheduler in SCHEDULERS
        if scheduler != "wrr"
    ]
    for share in (0.0, 0.5, 1.0):
        cases.append(Case(f"workers-{share:g}-handed-off", 100_000, workers=2, share=share))
    return cases


# More than evenkeel forwards in a turn, so that a turn meets each flow once.
NEW_FLOWS = 2_000_000

# Least ratios to testpmd, by case and flows.
LEAST = {
    ("direct-routing", 1_000): 0.80,
    ("direct-routing", 10_000): 0.70,
    ("direct-routing", 100_000): 0.60,
    ("direct-routing", 1_000_000): 0.55,
    ("direct-routing", 8_000_000): 0.40,
    ("new-flow", NEW_FLOWS): 0.15,
    ("workers-0-handed-off", 100_000): 1.9,
    ("workers-1-handed-off", 100_000): 1.4,
}
# Least shares of direct routing's ratio at the same flow count.
LEAST_OF_DIRECT = {"tunnel": 0.85, "nat": 0.80, "fullnat": 0.75, "direct-routing-ipv6": 0.75}


def judge(results):
    """Adds to each result what is asked of it, where something is, and whether it is met."""
    direct = {r["flows"]: r["ratio"] for r in results if r["case"] == "direct-routing"}
    for result in results:
        least = LEAST.get((result["case"], result["flows"]))
        share = LEAST_OF_DIRECT.get(result["case"])
        if share is not None and result["flows"] in direct:
            least = share * direct[result["flows"]]
            result["of_direct_routing"] = round(result["ratio"] / direct[result["flows"]], 4)
        if least is not None:
            result["at_least"] = round(least, 4)
            result["met"] = result["ratio"] >= least
