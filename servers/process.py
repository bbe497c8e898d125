"""What both servers are made of: a port that stays ours, and a process that starts, answers, and is ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import psutil

HOST = "127.0.0.1"
START_SECONDS = 180.0  # a broker of three needs 10 on a quiet machine, and a minute on a busy one
STOP_SECONDS = 30.0
TAIL_BYTES = 65536

Address = tuple[str, int]
User = tuple[int, int]  # user id and group id

# Becomes the server (exec), after it has asked Linux for a signal when the process that started it ends. The user
# is changed first, for that would take the request back. (A preexec_fn could do it, but is not safe with threads.)
LAUNCHER = """
import ctypes, os, sys
parent, number, user, group, *command = sys.argv[1:]
if user:
    os.setgroups([])
    os.setgid(int(group))
    os.setuid(int(user))
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))
    if os.getppid() != int(parent):
        sys.exit("the process that started it has ended")
os.execv(command[0], command)
"""
# To Linux a parent is a thread: all servers are started by one that lives as long as this process.
_spawner = ThreadPoolExecutor(1, "spawner")


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


def spawn(
    command: list[str],
    directory: Path,
    output: IO[bytes],
    user: User | None,
    parent_death_signal: signal.Signals,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own; on Linux it gets a signal when this process ends, killed or not."""
    user_id, group_id = user or ("", "")
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER]
    arguments = map(str, (os.getpid(), parent_death_signal.value, user_id, group_id))
    return _spawner.submit(
        subprocess.Popen[bytes],
        [*launcher, *arguments, *command],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for this process, which stops the servers in order
    ).result()


class Server:
    """A process with a log, which has started when it answers."""

    name: str
    log: Path
    directory: Path
    user: User | None = None
    parent_death_signal = signal.SIGKILL
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
        self.process = self._spawn(self._command())
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

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self, number: signal.Signals, seconds: float = STOP_SECONDS) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
            self.kill()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return spawn(command, self.directory, log, self.user, self.parent_death_signal)

    def _run(self, command: list[str]) -> None:
        """Run a program of the server's to its end."""
        process = self._spawn(command)
        try:
            if process.wait() != 0:
                raise self._failure("could not be set up")
        finally:
            kill(process)

    def _failure(self, what: str) -> RuntimeError:
        end = self.tail()
        if "Address already in use" in end:
            return RuntimeError(f"{self.name} {what}: another program has taken its port in the meantime; try again")
        return RuntimeError(f"{self.name} {what}; the end of its log:\n{end}")

    def _prepare(self) -> None:
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError
