"""What is no rate beside a reference: start-up, memory, latency, publishing a snapshot, health checks.

Each measure is a function of the bench that returns a list of results: what was measured, the value
with its unit, and where something is asked, what and whether it is met.
"""

import json
import os
import statistics
import subprocess
import time

from .cases import Case
from .common import PROBE, die, say
from .compare import CPU_SHARE, PATIENCE
from .configuration import configuration
from .farm import BACKENDS, INTERVAL, Farm
from .programs import Evenkeel


def value(measure, what, amount, unit, at_most=None):
    result = {"measure": measure, "what": what, "value": amount, "unit": unit}
    if at_most is not None:
        result |= {"at_most": at_most, "met": amount <= at_most}
    return result


def probe(bench, *arguments):
    """The answer of the program that holds both ends of a worker's wires."""
    bench.huge_pages.need(256)
    done = subprocess.run([PROBE, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        die(done.stderr[-2000:])
    return json.loads(done.stdout)


def start_up(bench):
    """From the start of the program until it answers, and until it has forwarded a packet."""
    case = Case("start-up", 1000)
    pcap = bench.file(case.kind, case.family, case.flows)
    bench.need_memory(case, 1)
    answers, forwards = [], []
    for n in range(bench.pairs):
        begun = time.monotonic()
        text = configuration(case, f"net_pcap0,rx_pcap={pcap},infinite_rx=1", bench.directory)
        evenkeel = Evenkeel(text, bench.directory)
        try:
            evenkeel.wait_for(lambda: evenkeel.transmitted() > 0, 60, "forwards nothing")
            answers.append(evenkeel.started_in)
            forwards.append(time.monotonic() - begun)
        finally:
            evenkeel.end()
        say(f"start-up: {forwards[-1]:.2f} s")
    middle = lambda values: round(sorted(values)[len(values) // 2], 2)
    return [
        value("start-up", "until it answers, 1 M connections", middle(answers), "s"),
        value("start-up", "until it has forwarded, 1 M connections", middle(forwards), "s"),
    ]


def memory(bench):
    """What the kernel says that a worker's tables grew by, per connection at 90 % load."""
    results = []
    for method, family, at_most in (
        ("direct-routing", "ipv4", 64), ("fullnat", "ipv4", 64),
        ("direct-routing", "ipv6", 112), ("fullnat", "ipv6", 112),
    ):  # fmt: skip
        for connections in (1_000_000, 8_000_000):
            found = json.loads(bench.packets("memory", method, family, connections))
            what = f"{method} {family}, {connections // 1_000_000} M connections at 90 %"
            amount = found["bytes_per_connection"]
            results.append(value("memory", what, amount, "bytes per connection", at_most))
            say(f"memory: {what}: {amount} bytes per connection")
    return results


def latency(bench):
    """Of one worker in tunnel mode, 100,000 flows, at 80 % of what this arrangement carries."""
    found = probe(bench, "latency", 1, 16, 100_000, 5)
    if found["evenkeel"]["lost"] or found["echo"]["lost"]:
        die(f"frames were lost at 80 % load: {found}")
    results = [value("latency", "rate", found["mpps"], "Mpps")]
    for point in ("p50", "p99", "p999"):
        through, beside = found["evenkeel"][f"{point}_ns"], found["echo"][f"{point}_ns"]
        say(f"latency: {point} {through} ns, of which {through - beside} are added")
        results.append(value("latency", f"{point}, there and back", through, "ns"))
        results.append(value("latency", f"{point}, added to a loop's", through - beside, "ns"))
    return results


def publish(bench):
    """One backend's change among 10,000 services of 20 backends, and 1,000 swaps."""
    found = probe(bench, "publish", 10_000, 20, 1_000, 1_000)
    say(f"publish: {found}")
    if found["lost"]:
        die(f"packets were lost while snapshots were published: {found['lost']}")
    growth = found["burst_with_swap_p99_ns"] - found["burst_p99_ns"]
    what = "10,000 services of 20 backends"
    return [
        value("publish", f"reading the configuration, {what}", found["read_ms"], "ms"),
        value("publish", f"first snapshot, {what}", found["first_build_ms"], "ms"),
        value("publish", "building after one backend's change", found["build_us"] / 1000, "ms"),
        value("publish", "one backend's change in force", found["publish_us"] / 1000, "ms", 5),
        value("publish", "p99 of bursts without a swap", found["burst_p99_ns"], "ns"),
        value("publish", "p99 of bursts with one, above that", growth, "ns", 5000),
        value("publish", "worst burst without a swap", found["burst_max_ns"], "ns"),
        value("publish", "worst burst with a swap", found["burst_with_swap_max_ns"], "ns"),
        value("publish", "swaps without a lost packet", found["swaps"], "swaps"),
    ]


TURNS = ("on", "off", "off again")


def checks(bench):
    """5,000 backends checked every 2 s while a worker forwards at full rate: whether checks are in
    time, and what they cost it. They are switched on and off by reloads, so that the rates that are
    compared are of the same process, with the same memory; two turns without them show what the
    machine itself makes of a pair."""
    case = Case("checks", 10_000)
    pcap = bench.file(case.kind, case.family, case.flows)
    bench.need_memory(case, 1)
    farm = Farm(bench.directory)
    text = lambda: configuration(
        case, f"net_pcap0,rx_pcap={pcap},infinite_rx=1", bench.directory, farm
    )
    evenkeel = Evenkeel(text(), bench.directory, farm)

    def rate(checked):
        """While backends are checked, or not; None if the worker had too little of its CPU."""
        farm.checked = checked
        evenkeel.reload(text())
        farm.wait()
        # What a reload stirs up is over.
        time.sleep(1)
        span = evenkeel.span(2)
        if span.share < CPU_SHARE:
            say(f"checks: a turn had only {span.share:.1%} of its CPU and does not count")
        return span.mpps if span.share >= CPU_SHARE else None

    try:
        bench.warm_up(evenkeel, case)
        evenkeel.resume()
        results = in_time(evenkeel, farm)
        losses, between, wasted = [], [], 0
        while len(losses) < max(10, bench.pairs):
            # Each comes first, second and third in turn, so that no drift looks like a loss.
            turn = len(losses) % 3
            rates = {name: rate(name == "on") for name in TURNS[turn:] + TURNS[:turn]}
            if None in rates.values():
                wasted += 1
                if wasted > PATIENCE * bench.pairs:
                    die("this machine gives too little of its CPU to measure; try again later")
                continue
            off = (rates["off"] + rates["off again"]) / 2
            losses.append(100 * (1 - rates["on"] / off))
            between.append(100 * (1 - rates["off again"] / rates["off"]))
            say(
                f"checks: {rates['on']:6.2f} / {off:6.2f} Mpps, {losses[-1]:5.2f} % less;"
                f" without checks, one turn to the next {between[-1]:5.2f} %"
            )
        if drops := evenkeel.status()["drops"]:
            die(f"the timed run dropped packets: {drops}")
    finally:
        evenkeel.end()
    spread = lambda of: f"{min(of):.2f} to {max(of):.2f} % in {len(of)} pairs"
    what = f"what they take from the rate, {spread(losses)}"
    control = f"the same of two turns without them, {spread(between)}"
    return results + [
        value("checks", what, round(statistics.median(losses), 2), "%", 3),
        value("checks", control, round(statistics.median(between), 2), "%"),
    ]


def in_time(evenkeel, farm, seconds=20):
    """How late the checks are beside forwarding."""
    farm.wait()
    before, sent, begun = farm.counts(), evenkeel.transmitted(), time.monotonic()
    time.sleep(seconds)
    after, took = farm.counts(), time.monotonic() - begun
    rate = (evenkeel.transmitted() - sent) / took / 1e6
    more = lambda key: after[key] - before[key]
    started, asked = more("started"), BACKENDS * took / INTERVAL
    say(f"checks: {started} in {took:.1f} s at {rate:.1f} Mpps, {more('late')} late, {after}")
    if started < 0.95 * asked:
        die(f"only {started} checks were made in {took:.1f} s, of {asked:.0f} that were due")
    late = more("late") + more("skipped")
    return [
        value("checks", f"made in {took:.0f} s beside {rate:.0f} Mpps", started, "checks"),
        value("checks", "more than a tenth of the interval late, or left out", late, "checks", 0),
    ]


MEASURES = {
    "start-up": start_up,
    "memory": memory,
    "latency": latency,
    "publish": publish,
    "checks": checks,
}
