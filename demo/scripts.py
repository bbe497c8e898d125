"""The two scripts as processes."""

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from demo.terminal import RED, say
from servers.process import spawn

CHECKOUT = Path(__file__).resolve().parent.parent
END_SECONDS = 15.0  # for what should take a moment
WARNING = re.compile(r" WARNING Bandwidth exceeded on .* \(([0-9a-f-]{36})\)$")


class Script:
    """One of the two scripts as a process, which may be killed and started again, and what it logs."""

    process: subprocess.Popen[bytes]

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.arguments, self.environment, self.log = name, arguments, environment, log
        self.seen = 0
        self.start()

    def start(self) -> None:
        """Start it, or start it again; it is killed when this process ends, for a script without servers is useless."""
        command = [sys.executable, str(CHECKOUT / self.name), *self.arguments]
        with self.log.open("ab") as log:
            self.process = spawn(command, CHECKOUT, log, None, signal.SIGKILL, os.environ | self.environment)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").split("\n")[:-1]

    def raised(self) -> list[str]:
        """The event_id of each warning that was logged."""
        return [found[1] for line in self.lines() if (found := WARNING.search(line))]

    def say_news(self) -> None:
        """Whatever else it logged meanwhile that a person should see."""
        for line in self.lines()[self.seen :]:
            self.seen += 1
            if not WARNING.search(line) and " INFO " not in line:
                say(f"{self.name}: {line}", RED)

    def end(self) -> int:
        """Wait for the end, say its last words, and give the status."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        self.kill()
        status = self.process.returncode
        self.say_news()
        last_words = (self.lines() or ["nothing was logged"])[-1].rpartition(" INFO ")[2]
        say(f"{self.name} ended with status {status}: {last_words}")
        return status


def say_command(name: str, arguments: list[str], environment: dict[str, str]) -> None:
    """The command as a person would type it."""
    settings = [f"{key}={shlex.quote(value)}" for key, value in environment.items()]
    say(f"$ {' '.join([*settings, 'python', shlex.join([name, *arguments])])}")
