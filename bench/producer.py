"""What kproducer.py costs for each second that it samples, and how punctual it is, in good times and in bad ones."""

import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.latency import p99
from bench.measure import Measured
from servers import HOST, Mode, Servers

MODES: dict[str, Mode] = {"up": "pass", "refused": "refuse", "silent": "black hole"}
SETTLE_SECONDS = 10  # after the broker was taken away
PRODUCER = Path(__file__).parent.parent / "kproducer.py"


@dataclass
class Cost:
    """Of so many samples, each one above the limit: a warning, stored on disk and sent."""

    samples: int
    missed: int
    cpu_ms_per_sample: float
    memory_bytes: int
    late_p99_ms: float
    late_max_ms: float


@contextmanager
def traffic() -> Iterator[None]:
    """Something to measure: datagrams to nobody."""
    over = threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not over.wait(0.1):
                sender.sendto(bytes(1000), (HOST, 9))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def lateness(log: str) -> list[float]:
    """By how many milliseconds each sample came later than the most punctual one, from the times in the events' ids.

    The ticks are a second apart from the start on; a clock of whole milliseconds.
    """
    ids = re.findall(r"\(([0-9a-f]{8})-([0-9a-f]{4})-7", log)
    times = [int(high + low, 16) for high, low in ids]
    phases = [(at - times[0] + 500) % 1000 - 500 for at in times]
    return [float(phase - min(phases)) for phase in phases]


def cost(running: Servers, state: str, seconds: int) -> Cost:
    """Start the producer with a broker that is there, bring that into a state, and let so many seconds pass."""
    topic = f"producer-{time.time_ns()}"
    running.kafka.create_topic(topic)
    with tempfile.TemporaryDirectory(prefix="bench-") as name, (Path(name) / "log").open("wb") as log, traffic():
        arguments = ["--limit", "1", "--interface", loopback(), "--topic", topic, "--host", "bench"]
        command = [sys.executable, str(PRODUCER), *arguments, "--outbox", f"{name}/outbox", "--forever"]
        with Measured(command, os.environ | running.environment(proxied=True), log) as measured:
            time.sleep(5)
            running.kafka_proxy.mode = MODES[state]
            time.sleep(SETTLE_SECONDS)
            before, begun = (Path(name) / "log").stat().st_size, measured.now()[0]
            time.sleep(seconds)
            cpu, memory = measured.now()
            with (Path(name) / "log").open("rb") as lines:
                lines.seek(before)
                late = lateness(lines.read().decode())
            running.kafka_proxy.mode = "pass"
            measured.end()
    return Cost(len(late), max(0, seconds - len(late)), 1000 * (cpu - begun) / len(late), memory, p99(late), max(late))


def loopback() -> str:
    """The name of the interface that the traffic takes."""
    return "lo" if sys.platform == "linux" else "lo0"
