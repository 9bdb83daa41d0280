"""The configuration that evenkeel gets for a case. Its defaults stand, but for what a case is about."""

from .common import BACKENDS, CORE_MAIN, CORE_WORKER, SPARE_BUFFERS, buffer_size, mtu

# Replies of FullNAT backends go to these.
LOCALS = ", ".join(f'"198.18.1.{n + 1}"' for n in range(16))


def backend_mac(n):
    return f"02:00:00:00:01:{n:02x}"


def backend_address(family, n):
    return f"198.18.0.{n + 1}" if family == "ipv4" else f"2001:db8::{n + 1:x}"


def table(case):
    """Connections that all workers together can track."""
    return case.connections


def configuration(case, device, directory, surroundings=None):
    neighbours = "".join(
        f'[[port.neighbour]]\naddress = "{backend_address(case.family, n)}"\nmac = "{backend_mac(n)}"\n'
        for n in range(BACKENDS)
    )
    port = "port = 8080\n" if case.method in ("nat", "fullnat") else ""
    backends = "".join(
        f'[[service.backend]]\naddress = "{backend_address(case.family, n)}"\n{port}'
        for n in range(BACKENDS)
    )
    vip = "198.18.255.1" if case.family == "ipv4" else "[2001:db8:ff::1]"
    protocol = "tcp" if case.kind == "tcp" else "udp"
    extra = f"local_addresses = [{LOCALS}]\n" if case.method == "fullnat" else ""
    # New flows shall be gone in the next turn.
    extra += 'timeouts = { udp = "1s" }\n' if case.new_flows else ""
    # Management has no core of its own where there are several workers: see compare_workers.
    alone = case.workers == 1
    cores = f"{CORE_WORKER}" if alone else f"{CORE_MAIN}-{CORE_MAIN + case.workers - 1}"
    most = mtu(case.flows)
    lan, checked = surroundings.configuration(most) if surroundings else ("", "")
    metrics = f'metrics = "127.0.0.1:{surroundings.metrics}"\n' if surroundings else ""
    # All flows come within milliseconds of the start, which would be a flood to the guard.
    return f"""
[workers]
cores = "{cores}"
connections = {table(case)}
memory = "16GiB"
buffers = {case.frames + SPARE_BUFFERS}
buffer_size = {buffer_size(case.flows)}
idle = "{'poll' if alone else 'yield'}"
flood_guard = 4294967295
[management]
core = {CORE_MAIN}
socket = "{directory}/evenkeel.sock"
{metrics}[[port]]
name = "wan"
device = "{device}"
mtu = {most}
addresses = ["198.18.0.254/16", "2001:db8::fe/64"]
{neighbours}{lan}
[[service]]
name = "bench"
listen = ["{protocol}:{vip}:80"]
method = "{case.method}"
scheduler = "{case.scheduler}"
{extra}{backends}{checked}"""
