"""The two scripts as processes, and what they say."""

import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil

from servers.process import spawn

DEADLINE = 120.0  # for what takes seconds
RAISED = re.compile(r"WARNING (Bandwidth exceeded on .*: \S+ \S+ is over the limit of \S+ \S+) \(([0-9a-f-]{36})\)$")
CERTIFICATE_EXPIRES = re.compile(r"WARNING KAFKA_SSL_CERTFILE (?:expire|end)")  # those of the tests are short-lived
MEASURED_SECONDS = 10.0
MOST_CORES = 0.05  # below 0.01 on a quiet machine, several times that on a busy one; what spins takes 0.3 and more
MOST_MEGABYTES = 110.0  # resident; a consumer in full swing has 80
GROWTH_MEGABYTES = 2.0
COMPLAINT = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^k(producer|consumer): |Traceback|Exception|Error\b")

Result = TypeVar("Result")


def wait_until(condition: Callable[[], Result], what: str, seconds: float = DEADLINE) -> Result:
    """The first true result of a condition; AssertionError with the last one when the time is over."""
    ends_at = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < ends_at, f"after {seconds:.0f} seconds still not {what}: {result!r}"
        time.sleep(0.03)
    return result


class Script:
    """One of the scripts as a process that does not outlive this one, with all that it says in a file."""

    def __init__(self, script: Path, arguments: Iterable[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log = log.stem, log
        with log.open("wb") as file:
            command = [sys.executable, str(script), *arguments]
            self.process = spawn(command, log.parent, file, None, signal.SIGKILL, environment)

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def raised(self) -> dict[str, str]:
        """The warnings that it raised, in order: event_id and message."""
        return {found[2]: found[1] for line in self.lines() if (found := RAISED.search(line))}

    def complaints(self) -> list[str]:
        """What it says was wrong."""
        lines = [line for line in self.lines() if not (RAISED.search(line) or CERTIFICATE_EXPIRES.search(line))]
        return [line for line in lines if COMPLAINT.search(line)]

    def story(self) -> str:
        """The last of what it logged but for what each second or interval says, and how many warnings it raised."""
        others = [line for line in self.lines() if not RAISED.search(line) and "interval over: " not in line]
        return "\n".join([*others[-60:], f"({len(self.raised())} warnings raised)"])

    def says(self, pattern: str) -> str:
        """Wait for a line with this pattern."""
        found = re.compile(pattern)

        def line() -> str:
            return next((line for line in self.lines() if found.search(line)), "")

        return wait_until(lambda: line() or self._must_run(pattern), f"said by {self.name}: {pattern}")

    def _must_run(self, pattern: str) -> str:
        assert self.process.poll() is None, f"{self.name} ended with {self.process.poll()} and never said {pattern}"
        return ""

    def raises(self, count: int) -> None:
        """Wait until it has raised so many warnings."""
        wait_until(lambda: len(self.raised()) >= count, f"{count} warnings raised by {self.name}")

    def ends(self, seconds: float = DEADLINE) -> int:
        """Wait for its end; its exit status."""
        return self.process.wait(seconds)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it in order; its exit status."""
        self.process.send_signal(number)
        return self.ends()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def usage(self) -> tuple[float, float]:
        """CPU seconds so far, and megabytes resident."""
        process = psutil.Process(self.process.pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss / 1e6


def uses_hardly_anything(figures: list[str], what: str, *scripts: Script) -> None:
    """For ten seconds: hardly any CPU time, and no more memory."""
    began_at, before = time.monotonic(), [script.usage() for script in scripts]
    wait_until(lambda: time.monotonic() - began_at > MEASURED_SECONDS, "measured")
    seconds = time.monotonic() - began_at
    for script, (cpu_before, megabytes_before) in zip(scripts, before, strict=True):
        cpu, megabytes = script.usage()
        cores = (cpu - cpu_before) / seconds
        figures.append(f"{what}, {script.name}: {100 * cores:.2f} % of a core, {megabytes:.0f} MB")
        assert cores < MOST_CORES
        assert megabytes < MOST_MEGABYTES
        assert megabytes - megabytes_before < GROWTH_MEGABYTES
