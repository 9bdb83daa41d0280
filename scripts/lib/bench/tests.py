"""Tests of what the bench does beside measuring. `scripts/test` runs them as root."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import leftovers  # noqa: E402
from bench.common import HugePages  # noqa: E402


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Pages(HugePages):
    """A machine that gives fewer pages than it is asked for."""

    def __init__(self, knob, had, gives, at_once=1000):
        super().__init__()
        self.KNOB, self.had, self.gives, self.at_once = knob, had, gives, at_once
        self.rooms = 0
        knob.write_text(str(had))

    def make_room(self):
        self.rooms += 1

    def set(self, count):
        most = min(self.had + self.gives, self.reserved() + self.at_once)
        super().set(min(count, most))

    def free(self):
        return int(self.KNOB.read_text()), 2


class HugePagesTest(unittest.TestCase):
    def test_asks_again_for_what_it_did_not_get_at_once(self):
        with tempfile.TemporaryDirectory() as directory:
            pages = Pages(pathlib.Path(directory) / "knob", had=100, gives=20, at_once=8)
            pages.need(240)
            self.assertEqual(pages.KNOB.read_text(), "120")
            self.assertEqual(pages.rooms, 2, "all came at the third try")
            pages.give_back()
            self.assertEqual(pages.KNOB.read_text(), "100")

    def test_gives_back_what_it_got_and_not_what_it_asked_for(self):
        with tempfile.TemporaryDirectory() as directory:
            pages = Pages(pathlib.Path(directory) / "knob", had=100, gives=30)
            pages.need(240)
            self.assertEqual(pages.KNOB.read_text(), "120")
            with self.assertRaises(SystemExit):
                pages.need(300)
            self.assertEqual(pages.KNOB.read_text(), "130")
            # Somebody else takes some meanwhile.
            pages.KNOB.write_text("150")
            pages.give_back()
            self.assertEqual(pages.KNOB.read_text(), "120")
            pages.give_back()
            self.assertEqual(pages.KNOB.read_text(), "120")


class LeftoversTest(unittest.TestCase):
    def test_programs_die_with_a_killed_bench_even_when_they_are_stopped(self):
        bench = (
            f"import os, signal, sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
            "from bench.leftovers import start\n"
            "child = start(['sleep', '100'])\n"
            "os.kill(child.pid, signal.SIGSTOP)\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(100)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", bench], stdout=subprocess.PIPE)
        child = int(process.stdout.readline())
        process.kill()
        process.communicate()

        def is_gone():
            try:
                return b"\nState:\tZ" in pathlib.Path(f"/proc/{child}/status").read_bytes()
            except FileNotFoundError:
                return True

        gone = wait_until(is_gone)
        if not gone:
            os.kill(child, signal.SIGKILL)
        self.assertTrue(gone)

    def test_namespaces_are_known_by_their_names(self):
        for name in ("ekb12n1", "ekb99999n12"):
            self.assertTrue(leftovers.is_namespace(name), name)
        for name in ("ekb", "ekbn1", "ekb12", "ekb12n", "ekbenchn1", "ekt12-a", "lab", "xekb1n1"):
            self.assertFalse(leftovers.is_namespace(name), name)

    def test_files_of_dead_benches_go_and_others_stay(self):
        with tempfile.TemporaryDirectory() as directory:
            places = [pathlib.Path(directory) / name for name in ("tmp", "huge", "run")]
            for place in places:
                (place / "ekbench1x").mkdir(parents=True)
                (place / "ekbench1x" / "file").touch()
                (place / "ekbench1map_0").touch()
                (place / "other").touch()
            leftovers.clear_files(*places)
            for place in places:
                self.assertEqual([path.name for path in place.iterdir()], ["other"])


if __name__ == "__main__":
    outcome = unittest.main(exit=False, verbosity=2).result
    failed = len(outcome.failures) + len(outcome.errors)
    # As cargo closes a test run, so that scripts/test counts them.
    print(f"test result: {outcome.testsRun - failed} passed; {failed} failed")
    sys.exit(failed > 0)
