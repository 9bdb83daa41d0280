"""evenkeel and dpdk-testpmd as running programs that can be stopped and resumed."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time

from .common import CORE_MAIN, CORE_WORKER, EVENKEEL, HEADROOM, SPARE_BUFFERS, buffer_size, die
from .leftovers import PREFIX, start


class Program:
    """A running data plane. `transmitted` says how many frames it has sent."""

    def __init__(self, process):
        self.process, self.running = process, True

    def threads(self):
        """Nanoseconds on a CPU, by thread."""
        spent = {}
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            path = pathlib.Path(f"/proc/{self.process.pid}/task/{task}")
            try:
                spent[task] = int((path / "schedstat").read_text().split()[0])
            except (OSError, IndexError):
                pass
        return spent

    def pause(self):
        self.running = False
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)
        self.running = True

    def span(self, seconds):
        """What it does in so long a time."""
        before, count, begun = self.threads(), self.transmitted(), time.monotonic()
        time.sleep(seconds)
        after, sent, ended = self.threads(), self.transmitted(), time.monotonic()
        spent = {thread: after[thread] - before.get(thread, 0) for thread in after}
        return Turn(sent - count, ended - begun, spent)

    def turn(self, seconds, warm_up=0.1):
        """One turn: the program runs for so long and is stopped again."""
        self.resume()
        time.sleep(warm_up)
        turn = self.span(seconds)
        self.pause()
        return turn

    def end(self):
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Turn:
    def __init__(self, frames, seconds, spent):
        self.frames, self.seconds, self.spent = frames, seconds, spent

    @property
    def mpps(self):
        return self.frames / self.seconds / 1e6

    @property
    def share(self):
        """The busiest thread's share of a CPU."""
        return max(self.spent.values()) / (self.seconds * 1e9)

    def least_share(self, workers):
        """The share of a CPU of the worker that obtained least; workers are the busiest threads."""
        return sorted(self.spent.values())[-workers] / (self.seconds * 1e9)

    def mpps_per_cpu(self, workers):
        """Per second of CPU that the workers, which are the busiest threads, obtained."""
        obtained = sorted(self.spent.values())[-workers:]
        return self.frames / (sum(obtained) / 1e9) / 1e6


class Evenkeel(Program):
    def __init__(self, configuration, directory, surroundings=None):
        self.surroundings = None
        self.file = pathlib.Path(directory) / "bench.toml"
        self.file.write_text(configuration)
        self.socket = f"{directory}/evenkeel.sock"
        self.log = open(f"{directory}/evenkeel.log", "w")
        begun = time.monotonic()
        command = [str(EVENKEEL), "run", "--config", str(self.file)]
        super().__init__(start(command, stdout=self.log, stderr=self.log))
        self.wait_for(lambda: self.status() is not None, 120, "did not start")
        self.started_in = time.monotonic() - begun
        if surroundings:
            self.surroundings = surroundings
            try:
                surroundings.begin(self)
            except BaseException:
                self.end()
                raise

    def end(self):
        super().end()
        if self.surroundings:
            self.surroundings.end()

    def reload(self, configuration):
        self.file.write_text(configuration)
        command = [str(EVENKEEL), "reload", "--config", str(self.file), "--socket", self.socket]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            die(f"evenkeel does not take another configuration: {done.stderr.strip()}")

    def surrounded(self, what):
        """Calls the surroundings' method of this name, if there are any; evenkeel must run."""
        if self.surroundings:
            getattr(self.surroundings, what)()

    def wait_for(self, condition, seconds, what):
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                status = self.status() or {}
                self.end()
                log = pathlib.Path(self.log.name).read_text()[-2000:]
                die(f"evenkeel {what}:\n{log}{status.get('workers')} {status.get('drops')}")
            time.sleep(0.02)

    def ask(self, method, path, body=None):
        """The answer to a request on evenkeel's socket, and its status code."""
        text = json.dumps(body) if body is not None else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(self.socket)
            client.sendall((head + text).encode())
            answer = b""
            while part := client.recv(1 << 20):
                answer += part
        head, body = answer.split(b"\r\n\r\n", 1)
        return int(head.split()[1]), json.loads(body)

    def status(self):
        try:
            return self.ask("GET", "/v1/status")[1]
        except (OSError, ValueError, IndexError):
            return None

    def sum(self, field):
        status = self.status()
        if status is None:
            die(f"evenkeel does not answer:\n{pathlib.Path(self.log.name).read_text()[-2000:]}")
        return sum(worker[field] for worker in status["workers"])

    def transmitted(self):
        return self.sum("transmitted")

    def entries(self):
        return self.sum("connections")

    def opened(self):
        """Connections opened so far."""
        return sum(service["connections"] for service in self.status()["services"])


class Testpmd(Program):
    def __init__(self, device, directory, frames, flows, mode, burst):
        command = [
            "stdbuf", "-oL", "dpdk-testpmd", "--lcores", f"0@{CORE_MAIN},1@{CORE_WORKER}",
            "--no-pci", "--file-prefix", f"{PREFIX}{os.getpid()}{mode}{burst}", "--vdev", device, "--",
            "-i", f"--forward-mode={mode}", "--nb-cores=1", f"--burst={burst}",
            f"--total-num-mbufs={frames + SPARE_BUFFERS}",
            f"--mbuf-size={buffer_size(flows) + HEADROOM}",
            "--rxd=1024", "--txd=1024", "--no-lsc-interrupt",
        ]  # fmt: skip
        self.mode, self.burst = mode, burst
        self.log = open(f"{directory}/testpmd.log", "w")
        process = start(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            bufsize=1,
        )  # fmt: skip
        super().__init__(process)
        self.tell("start")
        self.transmitted()

    def end(self):
        # At a signal alone it would go on waiting for the next command.
        self.resume()
        self.tell("quit")
        self.process.stdin.close()
        super().end()

    def tell(self, text):
        try:
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.complain()

    def complain(self):
        log = pathlib.Path(self.log.name).read_text()[-1500:]
        die(f"dpdk-testpmd ended; see whether memory or huge pages are left:\n{log}")

    def transmitted(self):
        self.tell("show port stats 0")
        for line in self.process.stdout:
            if "TX-packets:" in line:
                return int(line.split("TX-packets:")[1].split()[0])
        self.complain()
