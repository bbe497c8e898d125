"""The command line and the process: signals, types of arguments, the exit status."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from eventkafkapostgres.log import Terminal, describe, is_journal, log_unexpected_errors, start_logging
from eventkafkapostgres.outages import KafkaLog, SettingsError
from eventkafkapostgres.signals import end_on_signals, handle_signals

logger = logging.getLogger(__name__)

ONE_STOP_SECONDS = 0.1  # two signals within it are one: timeout(1) sends its own to the process and to its group
PRINT_SECONDS = 2.0  # so long the end of a process waits for who reads its last line


# The process


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

    def on_signals(self, grace_seconds: int = 0, hung_status: int = 0) -> None:
        """Let the first SIGINT or SIGTERM set this. A later one ends the process at once.

        With a grace the process ends when it is over, wherever it hangs, with the status for that.
        """

        def handle(signum: int, frame: object) -> None:
            ends_at = time.monotonic() + ONE_STOP_SECONDS
            handle_signals(lambda signum, frame: time.monotonic() < ends_at or os._exit(128 + signum))
            self.set()
            signal.alarm(grace_seconds)

        signal.signal(signal.SIGALRM, lambda signum, frame: os._exit(hung_status))
        handle_signals(handle)


def run_process(main: Callable[[], int]) -> NoReturn:
    """Run main() and end the process with its status, whatever becomes of its output.

    Threads are not waited for: those of kafka-python would hold up the end while the broker is away.
    """
    # A terminal that is closed, or that stops background jobs which write to it, must not end the work.
    for number in (signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    end_on_signals(sys.argv)
    open_standard_streams()
    log_unexpected_errors()
    try:
        status = main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def open_standard_streams() -> None:
    """Open those that the parent closed on /dev/null: the next file that is opened would get their number."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def is_writable(stream: Any) -> bool:
    """Whether a stream accepts something within PRINT_SECONDS: a pipe that is full holds up who writes to it."""
    try:
        return bool(select.select([], [stream], [], PRINT_SECONDS)[1])
    except (OSError, ValueError):  # not a file: that of a test
        return True


# The command line


class OneLineParser(argparse.ArgumentParser):
    """An error is one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        priority = "<3>" if is_journal() else ""
        self.exit(2, f"{priority}{self.prog}: {' '.join(message.split())}\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """What can't be printed changes nothing: neither the exit status, nor when it comes."""
        with contextlib.suppress(OSError):
            if is_writable(file):
                super()._print_message(message, file)


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
        raise ValueError(f"{text!r} is not a number of seconds above 0")
    return value


def topic_name(text: str) -> str:
    """A name that Kafka accepts for a topic."""
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", text) or text in (".", ".."):
        raise ValueError(f"{text!r} is not a topic name: letters, digits, '.', '_' and '-', at most 249")
    return text


def printable(text: str) -> str:
    """A name of a host or a group: 1 to 255 characters that people can read."""
    if not 1 <= len(text) <= 255 or not text.isprintable():
        raise ValueError(f"{text!r} is not a name: 1 to 255 printable characters")
    return text


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace, Stop, KafkaLog, Terminal], int],
    check: Callable[[argparse.Namespace, KafkaLog], int],
    grace_seconds: int = 0,
) -> int:
    """Run a script, or its --check; the exit status.

    A wrong setting is one line, and status 2. Any other exception is a defect of ours: one line of the log, status 1.
    """
    settings = parser.parse_args(argv)
    # --check prints what is wrong: only an error of its own belongs to the log
    kafka_log, terminal = start_logging(settings.verbose, logging.ERROR if settings.check else logging.INFO)
    try:
        if not __debug__:
            raise SettingsError("kafka-python fails without asserts: unset PYTHONOPTIMIZE, start without -O")
        if settings.check:
            end_on_signals(["--check"])
            return check(settings, kafka_log)
        stop = Stop()
        stop.on_signals(grace_seconds, hung_status=getattr(settings, "until_empty", False) is True)
        return run(settings, stop, kafka_log, terminal)
    except SettingsError as error:
        logger.debug("traceback:", exc_info=True)
        terminal.flush()
        parser.error(str(error))
    except Exception as error:
        terminal.set_status("")
        logger.error("unexpected error: %s; with -v the log shows where", describe(error))
        logger.debug("traceback:", exc_info=True)
        return 1
