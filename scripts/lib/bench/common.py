"""What all parts of the bench share: places, messages, huge pages."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
EVENKEEL = TARGET / "evenkeel"
PACKETS = TARGET / "bench-packets"
PROBE = TARGET / "bench-probe"

CORE_MAIN, CORE_WORKER = 0, 1
BACKENDS = 16
# Buffers beside those that hold the replayed frames: queues, rings and bursts in work.
SPARE_BUFFERS = 32768
# DPDK's headroom in front of a packet, and what a buffer costs beside its data.
HEADROOM = 128
OVERHEAD = 384


def say(text):
    print(text, file=sys.stderr, flush=True)


def die(text):
    sys.exit(f"bench: {text}")


def buffer_size(flows):
    """Data bytes of a packet buffer, in both programs."""
    return 128 if flows > 2_000_000 else 2048


def mtu(flows):
    """The largest IP packet that a port may take with such buffers: beside it they hold an Ethernet
    header, two VLAN tags and the frame check sequence."""
    return min(1500, buffer_size(flows) - 26)


def pool_mib(frames, flows):
    return (frames + SPARE_BUFFERS) * (buffer_size(flows) + HEADROOM + OVERHEAD) // (1 << 20) + 160


class HugePages:
    """Reserves huge pages as they are needed, and gives back at the end what it took."""

    KNOB = pathlib.Path("/proc/sys/vm/nr_hugepages")
    TRIES = 8

    def __init__(self):
        self.taken = 0

    def free(self):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines}
        return int(found["HugePages_Free"]), int(found["Hugepagesize"]) // 1024

    def need(self, mib):
        if not os.path.ismount("/dev/hugepages"):
            os.makedirs("/dev/hugepages", exist_ok=True)
            subprocess.run(["mount", "-t", "hugetlbfs", "none", "/dev/hugepages"], check=True)
        for _ in range(self.TRIES):
            free, size = self.free()
            missing = -(-mib // size) - free
            if missing <= 0:
                return
            before = self.reserved()
            self.set(before + missing)
            # The kernel gives what it has in one piece, which may be less; asked again, it makes more.
            self.taken += self.reserved() - before
            if self.reserved() - before < missing:
                self.make_room()
        free, size = self.free()
        if free * size < mib:
            die(f"{mib} MiB of huge pages are needed and {free * size} could be had: free memory")

    def make_room(self):
        """Has the kernel give up what it keeps of files, and put what is free together."""
        for knob in ("drop_caches", "compact_memory"):
            pathlib.Path("/proc/sys/vm", knob).write_text("1")

    def reserved(self):
        return int(self.KNOB.read_text())

    def set(self, count):
        self.KNOB.write_text(str(count))

    def give_back(self):
        if self.taken:
            self.set(max(0, self.reserved() - self.taken))
            self.taken = 0
