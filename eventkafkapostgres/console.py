"""Signals, the log, the status line, types of arguments, the exit status."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from kafka.errors import (
    KafkaError,
)

from eventkafkapostgres.outages import KafkaLog

logger = logging.getLogger(__name__)

__version__ = "1.0.0"


def end_process(status: int) -> NoReturn:
    """End now, without waiting for threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Stop:
    """Set by SIGINT or SIGTERM: a signal handler may use a SimpleQueue, but not a threading.Event."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[None] = SimpleQueue()
        self.stopped = False

    def set(self) -> None:
        self.stopped = True
        self.queue.put(None)

    def is_set(self) -> bool:
        return self.stopped

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is set; whether it is."""
        if not self.stopped:
            with contextlib.suppress(Empty):
                self.queue.get(timeout=max(0.0, seconds))
        return self.stopped

    def on_signals(self, grace_seconds: int = 0) -> None:
        """Let the first SIGINT or SIGTERM set this. The second one ends the process at once.

        With a grace the process ends with status 0 when it is over, wherever it hangs.
        """

        def handle(signum: int, frame: object) -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            self.set()
            signal.alarm(grace_seconds)

        signal.signal(signal.SIGALRM, lambda signum, frame: end_process(0))

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)


class Terminal(logging.StreamHandler[Any]):
    """The log on standard error and, where that is a terminal, one line below it that is kept up to date."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.interactive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.line = ""

    def show(self, line: str, alert: bool = False) -> None:
        """Show this line instead; an alert is red, unless NO_COLOR is set. Nothing where there is no terminal."""
        if self.interactive:
            columns = 0
            with contextlib.suppress(OSError):
                columns = os.get_terminal_size(self.stream.fileno()).columns
            line = line[: (columns or 80) - 1]
            with self.lock or contextlib.nullcontext():
                self.line = f"\x1b[31m{line}\x1b[0m" if alert and not os.environ.get("NO_COLOR") else line
                self.stream.write(f"\r\x1b[K{self.line}")
                self.stream.flush()

    def emit(self, record: logging.LogRecord) -> None:
        if self.line:
            self.stream.write("\r\x1b[K")
        super().emit(record)
        self.stream.write(self.line)
        self.flush()


Finding = tuple[bool, str]  # whether it is right, and a line that says what to do where it isn't


def show(findings: Iterator[Finding]) -> int:
    """Print a line for each finding as soon as it is there; the exit status."""
    right = True
    for ok, text in findings:
        print("✓" if ok else "✗", text, flush=True)
        right &= ok
    return 0 if right else 1


class OneLineParser(argparse.ArgumentParser):
    """An error is one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def argument(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """For argparse's type=: the text of a ValueError is what the user sees."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return converted


def seconds(text: str) -> float:
    """A finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is no number of seconds above 0")
    return value


def topic_name(text: str) -> str:
    """A name that Kafka takes for a topic."""
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", text) or text in (".", ".."):
        raise ValueError(f"{text!r} is no topic's name: letters, digits, '.', '_' and '-', at most 249")
    return text


def printable(text: str) -> str:
    """A name of a host or a group: 1 to 255 characters that people can read."""
    if not 1 <= len(text) <= 255 or not text.isprintable():
        raise ValueError(f"{text!r} is no name: 1 to 255 printable characters")
    return text


def start_logging(verbose: bool) -> tuple[KafkaLog, Terminal]:
    """Log to standard error; kafka-python's own lines only with --verbose."""
    terminal = Terminal()
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=level, handlers=[terminal])
    kafka_log, kafka_logger = KafkaLog(), logging.getLogger("kafka")
    kafka_logger.addHandler(kafka_log)
    kafka_logger.propagate = verbose
    kafka_logger.setLevel(logging.INFO if verbose else logging.WARNING)
    return kafka_log, terminal


def start(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace, Stop, KafkaLog, Terminal], int],
    check: Callable[[argparse.Namespace, KafkaLog], Iterator[Finding]],
    grace_seconds: int = 0,
) -> int:
    """Run a script, or its --check; the exit status. What is wrong with the settings is one line, and status 2."""
    settings = parser.parse_args(argv)
    kafka_log, terminal = start_logging(settings.verbose)
    stop = Stop()
    stop.on_signals(grace_seconds)
    try:
        if not __debug__:
            raise ValueError("kafka-python fails without asserts: unset PYTHONOPTIMIZE, start without -O")
        return show(check(settings, kafka_log)) if settings.check else run(settings, stop, kafka_log, terminal)
    except (ValueError, KafkaError) as error:
        logger.debug("traceback:", exc_info=True)
        parser.error(str(error))
