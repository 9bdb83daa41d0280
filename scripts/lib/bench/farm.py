"""Thousands of backends that evenkeel checks while it forwards what is measured.

They are behind a second port, a memif, whose other end is a program that answers for all of them on
management's core: their packets cost the worker what a network card's would, and no system calls.
"""

import subprocess

from .common import CORE_MAIN, PROBE, die
from .leftovers import start
from .surroundings import VIP, free_port

BACKENDS = 5_000
INTERVAL = 2


class Farm:
    """For one running evenkeel, as Surroundings is; with `checked` off, the configuration has the
    backends and no checks of them."""

    def __init__(self, directory):
        self.checked, self.socket = True, f"{directory}/farm"
        self.metrics = free_port()
        # Evenkeel's port looks for it when it starts.
        command = ["taskset", "-c", str(CORE_MAIN), str(PROBE), "respond", self.socket]
        self.log = open(f"{directory}/farm.log", "w")
        self.program = start(command, stdout=subprocess.PIPE, stderr=self.log)
        if self.program.stdout.readline() != b"ready\n":
            die("the farm of checked backends did not start")

    def configuration(self, mtu):
        address = lambda n: f"172.29.{1 + n // 250}.{1 + n % 250}"
        backends = "".join(
            f'[[service.backend]]\naddress = "{address(n)}"\n' for n in range(BACKENDS)
        )
        port = f"""
[[port]]
name = "lan"
device = "net_memif0,role=client,socket={self.socket},socket-abstract=no"
mtu = {mtu}
addresses = ["172.29.0.254/16"]
check_address = "172.29.0.253"
"""
        health = f'health = {{ type = "tcp", interval = "{INTERVAL}s", timeout = "1s", fall = 10 }}'
        service = f"""
[[service]]
name = "checked"
listen = ["tcp:{VIP}:80"]
method = "direct-routing"
scheduler = "wlc"
{health if self.checked else ""}
{backends}"""
        return port, service

    def begin(self, evenkeel):
        self.evenkeel = evenkeel

    def counts(self):
        """What management has counted of its checks."""
        status = self.evenkeel.status()
        if status is None:
            die("evenkeel does not answer")
        return status["management"]["checks"]

    def good(self):
        """Backends that were checked, and were well."""
        status = self.evenkeel.status() or {"services": []}
        backends = [b for s in status["services"] if s["name"] == "checked" for b in s["backends"]]
        checks = [backend["check"] for backend in backends if backend.get("check")]
        return sum(check["up"] and check["checks"] > check["failures"] for check in checks)

    def wait(self):
        """Until every backend is checked and well, where they are checked."""
        if self.checked:
            well = lambda: self.good() == BACKENDS
            self.evenkeel.wait_for(well, 60, f"does not find {BACKENDS} backends well")

    def end(self):
        self.program.terminate()
        self.program.wait()
