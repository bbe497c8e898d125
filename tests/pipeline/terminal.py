"""A terminal for the tests: a pseudo-terminal with a script in it, and what a person would see on it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from pipeline import Script

# The script becomes the foreground of the terminal that its standard streams are: Ctrl-C reaches it.
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
RED, PLAIN = "\x1b[31m", "\x1b[0m"
CTRL_C = b"\x03"
# Where the line below the log begins: anew, or behind a line of the log
BORDER = re.compile(r"\r\x1b\[K|\r\n")
LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} |k(?:producer|consumer): |\^C")


class Terminal(Script):
    """A script whose standard streams are a terminal."""

    columns = 80

    def __init__(self, script: Path, arguments: Iterable[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log = log.stem, log
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, self.columns, 0, 0))
        with open(slave, "wb", buffering=0) as end:
            self.process = subprocess.Popen(
                [sys.executable, "-c", TAKE_TERMINAL, str(script), *arguments],
                env={"TERM": "xterm-256color", **environment},
                cwd=log.parent,
                stdin=end,
                stdout=self.stdout(end),
                stderr=end,
                start_new_session=True,
            )
        log.touch()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def stdout(self, end: IO[bytes]) -> IO[bytes] | int:
        return end

    def _read(self) -> None:
        with self.log.open("wb", buffering=0) as log:
            while True:
                try:
                    data = os.read(self.master, 65536)
                except OSError:  # Linux: nobody holds the other end any more
                    break
                if not data:
                    break
                log.write(data)
        os.close(self.master)

    def ends(self, seconds: float = 120.0) -> int:
        """Wait for its end, and until all that it wrote is read; its exit status."""
        status = super().ends(seconds)
        self._reader.join(seconds)
        return status

    def kill(self) -> None:
        super().kill()
        self._reader.join()

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    # What it wrote

    def text(self) -> str:
        return self.log.read_bytes().decode(errors="replace")

    def lines(self) -> list[str]:
        """What it logged, without the line below."""
        return [piece for piece in BORDER.split(self.text()) if LOGGED.match(piece)]

    def shown(self) -> list[str]:
        """What the line below was, one after the other, as it was written."""
        *pieces, _ = BORDER.split(self.text())  # the last may not be whole
        return [piece for piece in pieces if piece and not LOGGED.match(piece)]

    def screen(self) -> list[str]:
        """What a person sees, with the lines that have left the top."""
        return screen(self.text(), self.columns)


class RedirectedTerminal(Terminal):
    """The same where standard output goes elsewhere."""

    def stdout(self, end: IO[bytes]) -> IO[bytes] | int:
        return subprocess.DEVNULL


def plain(line: str) -> str:
    return line.replace(RED, "").replace(PLAIN, "")


def screen(text: str, columns: int) -> list[str]:
    """The rows that a terminal makes of a text: it knows CR, LF, erasing to the end of the line, and colours.

    As a real one it goes on in the next row where one is full, and CR goes to the start of that row.
    """
    rows, column = [""], 0
    for code, character in re.findall(r"\x1b\[([0-9;]*[A-Za-z])|(.)", text, re.DOTALL):
        if code == "K":
            rows[-1] = rows[-1][:column]
        elif code:
            assert code.endswith("m"), f"a terminal may not know {code!r}"
        elif character == "\r":
            column = 0
        elif character == "\n":
            rows.append("")
        else:
            assert character.isprintable(), f"a terminal may not know {character!r}"
            if column == columns:
                rows.append("")
                column = 0
            rows[-1] = rows[-1][:column].ljust(column) + character + rows[-1][column + 1 :]
            column += 1
    return rows
