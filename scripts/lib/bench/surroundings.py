"""What a running evenkeel has to do beside forwarding: backends that it checks on the way that traffic
takes, agents whose load it asks for, and somebody who scrapes its metrics.

The packets that are measured come and go through DPDK's pcap driver, where nobody can answer a check.
So evenkeel has a second port, a TAP, and behind it, in a network namespace, a service by direct routing
with as many backends. Its agents are asked over a veth pair, by the kernel's network.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

from .common import BACKENDS, die
from .leftovers import NAMESPACES, start

VIP = "198.51.100.80"
AGENT_PORT = 9000
# Between two scrapes: Prometheus's own default is 15 s.
SCRAPES = 0.25

# Answers checks at port 80 and feedback at AGENT_PORT; runs in the namespace.
SERVER = f"""
import selectors, socket
listeners = selectors.DefaultSelector()
for port, answer in ((80, b""), ({AGENT_PORT}, b"100%\\n")):
    listener = socket.create_server(("0.0.0.0", port), backlog=256)
    listeners.register(listener, selectors.EVENT_READ, answer)
print("ready", flush=True)
while True:
    for key, _ in listeners.select():
        client = key.fileobj.accept()[0]
        if key.data:
            client.sendall(key.data)
        client.close()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        die(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


class Surroundings:
    """For one running evenkeel. `configuration()` goes into its file; `begin()` once it runs."""

    count = 0

    def __init__(self):
        Surroundings.count += 1
        self.number = Surroundings.count
        stem = f"{NAMESPACES}{os.getpid() % 100_000}n{self.number}"
        self.namespace, self.tap, self.near, self.far = stem, f"{stem}t", f"{stem}a", f"{stem}b"
        # Several may be there at once, each with networks of its own, in which no client is.
        self.subnet, self.link = (f"172.{net}.{self.number % 250}" for net in (27, 28))
        self.backends = [f"{self.subnet}.{n + 1}" for n in range(BACKENDS)]
        self.metrics = free_port()
        self.server, self.scraper, self.evenkeel = None, None, None
        self.scrapes, self.ending = 0, threading.Event()
        # Checks and scrapes when the measuring began.
        self.before = (0, 0)

    def configuration(self, mtu):
        backends = "".join(
            f'[[service.backend]]\naddress = "{address}"\n' for address in self.backends
        )
        port = f"""
[[port]]
name = "lan"
device = "net_tap{self.number},iface={self.tap}"
mtu = {mtu}
addresses = ["{self.subnet}.254/24"]
check_address = "{self.subnet}.253"
"""
        service = f"""
[[service]]
name = "checked"
listen = ["tcp:{VIP}:80"]
method = "direct-routing"
scheduler = "wlc"
health = {{ type = "tcp", fall = 10 }}
feedback = {{ agent_port = {AGENT_PORT} }}
{backends}"""
        return port, service

    def begin(self, evenkeel):
        """Puts the other end of the TAP in place, and what is behind it."""
        self.evenkeel = evenkeel
        near, far, space = self.near, self.far, self.namespace
        run("ip", "netns", "add", space)
        run("ip", "link", "set", self.tap, "netns", space)
        inside = ["ip", "-n", space]
        # DPDK gives the kernel's end of a TAP the port's own address. Whoever answers with that is
        # no neighbour.
        run(*inside, "link", "set", self.tap, "address", f"02:00:4d:4d:00:{self.number % 256:02x}")
        for address in self.backends:
            run(*inside, "address", "add", f"{address}/24", "dev", self.tap)
        run(*inside, "address", "add", f"{VIP}/32", "dev", "lo")
        # The VIP is evenkeel's on the wire, as everywhere behind direct routing.
        for setting in ("arp_ignore=1", "arp_announce=2"):
            setting = f"net.ipv4.conf.all.{setting}"
            run("ip", "netns", "exec", space, "sysctl", "-qw", setting)
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        run("ip", "address", "add", f"{self.link}.1/30", "dev", near)
        run(*inside, "address", "add", f"{self.link}.2/30", "dev", far)
        run("ip", "link", "set", near, "up")
        for device in ("lo", self.tap, far):
            run(*inside, "link", "set", device, "up")
        run("ip", "route", "add", f"{self.subnet}.0/24", "via", f"{self.link}.2", "dev", near)
        self.server = start(
            ["ip", "netns", "exec", space, sys.executable, "-c", SERVER], stdout=subprocess.PIPE
        )
        if self.server.stdout.readline() != b"ready\n":
            die("the checked backends did not start")
        self.scraper = threading.Thread(target=self.scrape, daemon=True)
        self.scraper.start()

    def least_checks(self):
        """Good checks that the least checked backend has had; none of them may be down."""
        status = self.evenkeel.status() or {"services": []}
        checked = [s for s in status["services"] if s["name"] == "checked"]
        checks = [b.get("check") for s in checked for b in s["backends"]]
        if not checks or None in checks:
            return 0
        if down := [check["answer"] for check in checks if not check["up"]]:
            die(f"{len(down)} of the checked backends are down: {down[0]}")
        return min(check["checks"] - check["failures"] for check in checks)

    def scrape(self):
        while not self.ending.wait(SCRAPES):
            if not self.evenkeel.running:
                continue
            try:
                url = f"http://127.0.0.1:{self.metrics}/metrics"
                with urllib.request.urlopen(url, timeout=2) as answer:
                    self.scrapes += b"evenkeel_" in answer.read()
            except OSError:
                # It was stopped meanwhile.
                pass

    def wait(self):
        """Returns when every backend has been found well, and metrics have been scraped."""
        busy = lambda: self.least_checks() > 0 and self.scrapes > 0
        self.evenkeel.wait_for(busy, 60, "does not check its backends, or has no metrics")
        self.before = (self.least_checks(), self.scrapes)

    def confirm(self):
        """Dies unless checks and scrapes went on while evenkeel was measured."""
        checks, scrapes = self.before
        if self.least_checks() <= checks or self.scrapes <= scrapes:
            die("no health checks or no scrapes were made while evenkeel was measured")

    def end(self):
        self.ending.set()
        if self.scraper:
            self.scraper.join()
        if self.server:
            self.server.terminate()
            self.server.wait()
        # The TAP went with evenkeel. The pair would go with the namespace, but only some time after, and
        # the next surroundings need its route.
        subprocess.run(["ip", "link", "del", self.near], capture_output=True)
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True)
