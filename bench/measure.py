"""What a process and its children use, and what others use meanwhile."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import psutil

from servers import Servers


class Measured:
    """A process that is measured while it runs: `peak_bytes` of memory, and, when it has ended, `cpu_seconds`.

    CPU time is the system's account of the process with the children that it waited for, from its first instruction.
    The peak is the kernel's (VmHWM) on Linux, elsewhere the highest of twenty samples a second.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: IO[bytes] | int,
        directory: Path | None = None,
    ) -> None:
        self.started_at = time.perf_counter()
        self.process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=directory
        )
        self.peak_bytes = 0
        self.cpu_seconds = self.seconds = 0.0
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _watch(self) -> None:
        status, process = Path(f"/proc/{self.process.pid}/status"), psutil.Process(self.process.pid)
        with suppress(OSError, psutil.Error, StopIteration):
            while True:
                if status.exists():
                    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
                    self.peak_bytes = int(line.split()[1]) * 1024
                else:
                    self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
                time.sleep(0.05)

    def now(self) -> tuple[float, int]:
        """CPU seconds so far, and bytes of memory at this moment."""
        process = psutil.Process(self.process.pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss

    def wait(self) -> int:
        """Its exit status."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.seconds = time.perf_counter() - self.started_at
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self.watcher.join()
        return self.process.returncode

    def end(self) -> int:
        """Ask it to end, and wait for that."""
        self.process.terminate()
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.wait()


def foreign_seconds(running: Servers) -> float:
    """CPU seconds of this machine that are neither the servers' nor ours. Only differences mean something."""
    everything = psutil.cpu_times()
    idle = everything.idle + getattr(everything, "iowait", 0) + getattr(everything, "steal", 0)
    ours = sum(os.times()[:4])  # with the children that were waited for
    for server in running.processes:
        process = psutil.Process(server.pid)
        ours += sum(process.cpu_times()[:4])
        for child in process.children():
            with suppress(psutil.Error):
                ours += sum(child.cpu_times()[:2])
    # guest time is in user time already
    guest = getattr(everything, "guest", 0) + getattr(everything, "guest_nice", 0)
    return float(sum(everything) - guest - idle - ours)
