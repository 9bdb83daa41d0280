"""Evenkeel beside a reference, in turns: first every frame is checked, then both are timed."""

import dataclasses
import json
import os
import pathlib
import subprocess
import time

from . import common
from .cases import Case
from .common import BACKENDS, PACKETS, die, say
from .configuration import configuration
from .programs import Evenkeel, Testpmd
from .surroundings import Surroundings

# A turn in which a program had less of its CPU counts for nothing.
CPU_SHARE = 0.97
# Of several workers each must have had so much: while one waits, what others hand to it is lost.
# Less than above, because management shares a core with one of them.
WORKER_SHARE = 0.9
# How often that may happen for each turn that counts.
PATIENCE = 12
# A turn: long against the milliseconds in which caches fill, and short enough that a busy machine
# leaves some turns alone.
SECONDS = 0.4
# At least so much of all packets must open a flow where all should.
NEW_SHARE = 0.95


class Bench:
    """One run of the bench: how often, where, beside what."""

    def __init__(self, directory, pairs, huge_pages, mode="5tswap", bare=False):
        self.directory, self.pairs = directory, pairs
        self.huge_pages, self.mode, self.bare = huge_pages, mode, bare

    def packets(self, *arguments):
        done = subprocess.run([PACKETS, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            die(done.stderr[-3000:])
        return done.stdout

    def file(self, kind, family, flows):
        path = f"{self.directory}/{kind}-{family}-{flows}.pcap"
        if not os.path.exists(path):
            self.packets("make", kind, family, flows, path)
        return path

    def evenkeel(self, case, device, directory=None, bare=False):
        """Runs with all that it has to do beside forwarding, unless `bare`."""
        directory = directory or self.directory
        surroundings = None if bare or self.bare else Surroundings()
        text = configuration(case, device, directory, surroundings)
        return Evenkeel(text, directory, surroundings)

    def need_memory(self, case, programs):
        self.huge_pages.need(programs * common.pool_mib(case.frames, case.flows))

    # --- the checked run -----------------------------------------------------------------------

    def check_frames(self, case):
        """Runs the case once into a file and checks every frame."""
        pcap = self.file(case.kind, case.family, case.flows)
        out = f"{self.directory}/out.pcap"
        self.need_memory(case, 1)
        evenkeel = self.evenkeel(case, f"net_pcap0,rx_pcap={pcap},tx_pcap={out}", bare=True)
        try:
            sent = lambda: evenkeel.transmitted() >= case.frames
            evenkeel.wait_for(sent, 60, "did not send every frame")
            # The gauge of entries follows within a moment.
            tracked = lambda: evenkeel.entries() == case.flows
            if not case.new_flows:
                evenkeel.wait_for(tracked, 5, f"does not track {case.flows} flows")
            drops, opened = evenkeel.status()["drops"], evenkeel.opened()
        finally:
            evenkeel.end()
        if drops:
            die(f"the checked run dropped packets: {drops}")
        if opened != case.flows:
            die(f"the checked run opened {opened} connections for {case.flows} flows")
        found = json.loads(
            self.packets("check", case.method, case.kind, case.family, case.flows, pcap, out)
        )
        os.unlink(out)
        spread = max(found["backends"]) - min(found["backends"])
        if found["frames"] != case.frames or case.scheduler in ("rr", "wrr") and spread > 1:
            die(f"{found['frames']} of {case.frames} frames; backends differ by {spread}")

    # --- the timed run -------------------------------------------------------------------------

    def reference(self, case, programs):
        """testpmd on the same packets, at the better of two bursts."""
        flows = 1000 if case.new_flows else case.flows
        frames = 1000 if case.new_flows else case.frames
        pcap = self.file(case.kind, case.family, flows)
        device = f"net_pcap0,rx_pcap={pcap},infinite_rx=1"

        def begin(burst):
            program = Testpmd(device, self.directory, frames, flows, self.mode, burst)
            programs.append(program)
            program.pause()
            return program

        # Both are there at once, as evenkeel and one of them will be, so that the better one need not
        # start again. The best of a few turns, for what the CPU was to it: one that somebody else had
        # a share of says little.
        candidates = [begin(32), begin(64)]
        rates = {program: [] for program in candidates}
        for program in candidates * 3:
            turn = program.turn(SECONDS / 2)
            rates[program].append(turn.mpps / turn.share)
        best = max(candidates, key=lambda program: max(rates[program]))
        for program in candidates:
            if program is not best:
                program.end()
        return best

    def warm_up(self, evenkeel, case):
        """Every flow has its entry and has come again."""
        evenkeel.resume()
        times = 1 if case.new_flows else 3
        done = lambda: evenkeel.transmitted() >= times * case.frames
        evenkeel.wait_for(done, 120, "does not get through its packets")
        evenkeel.surrounded("wait")
        evenkeel.pause()

    def measure(self, case: Case):
        return self.compare_workers(case) if case.workers > 1 else self.compare(case)

    def compare(self, case: Case):
        label = f"{case.name}, {case.flows} flows"
        say(f"{label}: checking every frame")
        self.check_frames(case)
        pcap = self.file(case.kind, case.family, case.flows)
        programs = []
        self.need_memory(case, 2)
        try:
            reference = self.reference(case, programs)
            evenkeel = self.evenkeel(case, f"net_pcap0,rx_pcap={pcap},infinite_rx=1")
            programs.append(evenkeel)
            self.warm_up(evenkeel, case)
            ours, theirs = self.take_turns(case, label, evenkeel, reference)
            evenkeel.resume()
            if not case.new_flows:
                tracked = lambda: evenkeel.entries() == case.flows
                evenkeel.wait_for(tracked, 15, f"does not track {case.flows} flows")
            drops = evenkeel.status()["drops"]
            evenkeel.surrounded("confirm")
        finally:
            for program in programs:
                if program.process.poll() is None:
                    program.end()
        if drops:
            die(f"the timed run dropped packets: {drops}")
        name = f"dpdk-testpmd {self.mode}, burst {reference.burst}"
        name += ", 1000 flows" if case.new_flows else ""
        return summary(case, ours, theirs, name)

    # --- several workers -----------------------------------------------------------------------

    def compare_workers(self, case: Case):
        """Several workers beside one, per second of CPU that the workers obtained: management has
        no core of its own here. The frames are split among the receive queues by owner."""
        label = f"{case.name}, {case.workers} workers"
        stem = f"{self.directory}/split-{case.share:g}-"
        self.packets("split", case.family, case.flows, case.workers, case.share, stem)
        queues = "".join(f",rx_pcap={stem}{n}" for n in range(case.workers))
        one = dataclasses.replace(case, workers=1)
        pcap = self.file(case.kind, case.family, case.flows)
        self.need_memory(case, 2)
        directories = [f"{self.directory}/{n}" for n in (1, case.workers)]
        programs, ours, theirs, apart, wasted = [], [], [], [], 0
        try:
            for each, device, directory in (
                (one, f"net_pcap0,rx_pcap={pcap},infinite_rx=1", directories[0]),
                (case, f"net_pcap0{queues},infinite_rx=1", directories[1]),
            ):
                os.makedirs(directory, exist_ok=True)
                program = self.evenkeel(each, device, directory)
                programs.append(program)
                self.warm_up(program, each)
            single, several = programs
            while len(ours) < self.pairs:
                distance = self.distance(case)
                a, b = several.turn(SECONDS), single.turn(SECONDS)
                if a.least_share(case.workers) < WORKER_SHARE:
                    wasted += 1
                    say(f"{label}: a worker had only {a.least_share(case.workers):.1%} of its CPU")
                    if wasted > PATIENCE * self.pairs:
                        die("this machine gives too little of its CPU to measure; try again later")
                    continue
                ours.append(a.mpps_per_cpu(case.workers) * case.workers)
                theirs.append(b.mpps_per_cpu(1))
                apart.append(distance)
                ratio = f"{ours[-1]:6.2f} / {theirs[-1]:6.2f} Mpps = {ours[-1] / theirs[-1]:.3f}"
                say(f"{label}: {ratio}, the CPUs {distance} ns apart")
            lost = self.check_workers(case, several)
        finally:
            for program in programs:
                program.end()
        found = summary(case, ours, theirs, "evenkeel, 1 worker")
        return found | {"handoff_full": lost, "line_ns": sorted(apart)[len(apart) // 2]}

    def distance(self, case):
        """Nanoseconds until a line that one worker's CPU has written is seen by another's, while nobody
        else uses them. A virtual machine may have its CPUs moved, and then it changes by the minute."""
        cpus = f"{common.CORE_MAIN}-{common.CORE_MAIN + case.workers - 1}"
        done = subprocess.run(
            ["taskset", "-c", cpus, PACKETS, "distance"], capture_output=True, text=True
        )
        if done.returncode != 0:
            die(done.stderr)
        return int(done.stdout)

    def check_workers(self, case, evenkeel):
        """The share of packets that were handed off is right, and nothing was lost but where a
        worker waited for its CPU while the other kept handing over; returns that share."""
        evenkeel.resume()
        status = evenkeel.status()
        received = sum(worker["received"] for worker in status["workers"])
        handed = sum(worker["handed_over"] for worker in status["workers"])
        lost = {drop["reason"]: drop["count"] / received for drop in status["drops"]}
        full = lost.pop("handoff_full", 0.0)
        if lost:
            die(f"the timed run dropped packets: {status['drops']}")
        if abs(handed / received + full - case.share) > 0.02:
            die(f"{handed / received:.1%} of the packets were handed over, not {case.share:.0%}")
        return round(full, 5)

    def take_turns(self, case, label, evenkeel, reference):
        ours, theirs, wasted = [], [], 0
        while len(ours) < self.pairs:
            if case.new_flows:
                a, inserted = self.turn_of_new_flows(evenkeel)
            else:
                a, inserted = evenkeel.turn(SECONDS), 1.0
            b = reference.turn(SECONDS)
            share = min(a.share, b.share)
            if share < CPU_SHARE:
                wasted += 1
                say(f"{label}: a turn had only {share:.1%} of its CPU and does not count")
                if wasted > PATIENCE * self.pairs:
                    die("this machine gives too little of its CPU to measure; try again later")
                continue
            if inserted < NEW_SHARE:
                die(f"only {inserted:.1%} of the packets opened a flow, of all that should have")
            ours.append(a.mpps)
            theirs.append(b.mpps)
            say(f"{label}: {a.mpps:6.2f} / {b.mpps:6.2f} Mpps = {a.mpps / b.mpps:.3f}")
        return ours, theirs

    def turn_of_new_flows(self, evenkeel):
        """A turn short enough to meet each flow once, after a pause in which all entries expired;
        and the share of its packets that opened a flow."""
        time.sleep(2.2)
        evenkeel.resume()
        opened, sent = evenkeel.opened(), evenkeel.transmitted()
        turn = evenkeel.turn(0.2, warm_up=0.02)
        evenkeel.resume()
        opened, sent = evenkeel.opened() - opened, evenkeel.transmitted() - sent
        evenkeel.pause()
        return turn, opened / sent


def summary(case, ours, theirs, reference):
    ratios = sorted(a / b for a, b in zip(ours, theirs))
    middle = lambda values: sorted(values)[len(values) // 2]
    return {
        "case": case.name,
        "flows": case.flows,
        "workers": case.workers,
        "mpps": round(middle(ours), 3),
        "reference": reference,
        "reference_mpps": round(middle(theirs), 3),
        "ratio": round(middle(ratios), 4),
        "ratio_min": round(ratios[0], 4),
        "ratio_max": round(ratios[-1], 4),
        "runs": len(ratios),
    }
