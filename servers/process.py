"""What both servers are made of: a port that stays ours, and a process that starts, answers, and is ended."""

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import psutil

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 30.0

Address = tuple[str, int]


class Port:
    """A port of 127.0.0.1 that the system handed out and that stays ours while the server behind it is away.

    On Linux a socket that is bound and does not listen keeps it: connecting is refused, and a server that sets
    SO_REUSEADDR, as both do, may still listen. Without it, the source port of somebody's outgoing connection can
    take the place of a server that was killed: even a client's own, which then talks to itself.
    """

    def __init__(self) -> None:
        self.guard = socket.socket()
        self.guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.guard.bind((HOST, 0))
        self.number: int = self.guard.getsockname()[1]
        if sys.platform != "linux":
            self.guard.close()

    def close(self) -> None:
        self.guard.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to a process and its children, and wait until none of them runs."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGSTOP)  # a stopped process starts no more children
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    while any(map(is_running, children)):
        time.sleep(0.01)


def is_running(process: psutil.Process) -> bool:
    """Whether it runs. A zombie does not: its new parent may be slow to notice that it ended."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def anyone_may_enter(directory: Path) -> bool:
    """Whether any user of the machine may enter a directory."""
    directory = directory.resolve()
    return all(each.stat().st_mode & 0o001 for each in (directory, *directory.parents))


def write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


class Server:
    """A process with a log, which has started when it answers."""

    name: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's (first) process."""
        if self.process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self.process.pid

    def start(self) -> None:
        """Start, or start again on the same ports with the same data; returns when the server answers.

        Raises a RuntimeError with the last lines of the server's log when it doesn't.
        """
        if self.process is not None and self.process.poll() is None:
            return
        self._prepare()
        with self.log.open("ab") as log:
            self.process = self._launch(log)
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self._answers():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise self._failure("did not start")
                time.sleep(0.03)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL for all of its processes; start() recovers what was stored."""
        if self.process is not None:
            kill(self.process)
            self.process = None

    def close(self) -> None:
        """End it for good."""
        self.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            self.kill()

    def _failure(self, what: str) -> RuntimeError:
        end = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
        if "Address already in use" in end:
            return RuntimeError(f"{self.name} {what}: another program has taken its port in the meantime; try again")
        return RuntimeError(f"{self.name} {what}; the end of its log:\n{end}")

    def _prepare(self) -> None:
        raise NotImplementedError

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError
