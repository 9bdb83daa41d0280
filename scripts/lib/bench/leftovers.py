"""What a bench that was killed leaves behind.

Its programs die with it: the kernel kills them when the process that started them ends, however it
ends. What it cannot clear away that way, the next bench does, before anything is measured. There is one
bench at a time, so whatever has a bench's name then is a dead one's.
"""

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

PREFIX = "ekbench"
NAMESPACES = "ekb"
PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec a program does as little as it can.
LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    """For `preexec_fn`: this process, stopped or not, ends when its parent does."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command, **options):
    """A process that does not outlive the bench."""
    return subprocess.Popen(command, preexec_fn=die_with_parent, **options)


def is_namespace(name):
    """Whether a bench gave this name to a network namespace: its process id, `n` and a number."""
    pid, _, number = name.removeprefix(NAMESPACES).partition("n")
    return name.startswith(NAMESPACES) and pid.isdigit() and number.isdigit()


def clear_up():
    """Removes what dead benches left; to be called by the one that holds the bench's lock."""
    clear_namespaces()
    # Packets, testpmd's huge pages, which are files, and DPDK's notes on a process.
    clear_files(tempfile.gettempdir(), "/dev/hugepages", "/run/dpdk")


def clear_namespaces():
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    names = [line.split()[0] for line in listed.stdout.splitlines() if line]
    for name in filter(is_namespace, names):
        inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        for pid in inside.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        # A pair of interfaces goes with its namespace, but only some time after.
        subprocess.run(["ip", "link", "del", f"{name}a"], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def clear_files(*places):
    for place in places:
        for path in pathlib.Path(place).glob(f"{PREFIX}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
