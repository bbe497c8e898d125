"""The log and the status line on standard error, which must never hold up or end the work."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
from collections.abc import Callable

from eventkafkapostgres.outages import KafkaLog, counted

STDERR = 2
MAX_LINES = 1000  # that wait for standard error; what comes then is dropped
PATIENCE_SECONDS = 0.05  # so long a line of the log may hold up what comes after it
DRAIN_SECONDS = 2.0  # the same for what still waits at the end
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}  # syslog's


class JournalFormatter(logging.Formatter):
    """Each line with its priority, and without the time, which systemd's journal adds (man sd-daemon)."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{PRIORITIES.get(record.levelno, 6)}>"
        return prefix + super().format(record).replace("\n", f"\n{prefix}")


def is_journal(descriptor: int = STDERR) -> bool:
    """Whether this is the stream to the journal, which systemd names in JOURNAL_STREAM as device:inode."""
    with contextlib.suppress(OSError):
        status = os.fstat(descriptor)
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def is_foreground(descriptor: int) -> bool:
    """Whether this is a terminal, and this process belongs to the job that has it now."""
    with contextlib.suppress(OSError):
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    return False


def write_all(descriptor: int, data: bytes) -> None:
    """Write, however long it takes. OSError when the descriptor is closed or its disk is full."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # another process that shares it has made it non-blocking
            select.select([], [descriptor], [])


class Terminal(logging.Handler):
    """The log on standard error and, where that is a terminal, a status line below it.

    A thread of its own writes, so that nobody waits for long, whatever standard error is: a pipe that is full, a
    terminal that is stopped. What standard error does not accept is dropped, and counted.
    """

    def __init__(self, descriptor: int = STDERR, write: Callable[[int, bytes], None] = write_all) -> None:
        super().__init__()
        self.descriptor, self.write = descriptor, write
        self.interactive = os.isatty(descriptor) and os.environ.get("TERM") != "dumb"
        self.changed = threading.Condition()
        self.lines: list[tuple[str, int]] = []  # with how many lines of the log each stands for
        self.writing = 0  # lines of the log
        self.dropped = 0  # lines of the log that were not written, and of which no line says so yet
        self.is_stuck = False  # the last line that was written took longer than PATIENCE_SECONDS
        self.status = self.seen_status = ""
        self.is_drawn = False  # a status line is on the screen
        threading.Thread(target=self.write_forever, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record) + "\n"
        with self.changed:
            if len(self.lines) >= MAX_LINES:
                self.dropped += 1
                return
            if self.dropped:
                self.lines.append((self.dropped_line(), self.dropped))
                self.dropped = 0
            self.lines.append((text, 1))
            self.changed.notify_all()
            if not self.is_stuck:
                self.drain(PATIENCE_SECONDS)

    def set_status(self, line: str, alert: bool = False) -> None:
        """Show this line instead; an alert is red, unless NO_COLOR is set. Nothing where there is no terminal."""
        if self.interactive:
            columns = 0
            with contextlib.suppress(OSError):
                columns = os.get_terminal_size(self.descriptor).columns
            line = line[: (columns or 80) - 1]
            with self.changed:
                self.status = f"\x1b[31m{line}\x1b[0m" if alert and not os.environ.get("NO_COLOR") else line
                self.changed.notify_all()

    def flush(self) -> None:
        self.drain(DRAIN_SECONDS)

    def drain(self, seconds: float) -> None:
        """Wait until all is written, but no longer than this."""
        with self.changed:
            self.is_stuck = not self.changed.wait_for(self.is_written, seconds)

    def is_written(self) -> bool:
        return not (self.lines or self.writing) and self.status == self.seen_status

    def write_forever(self) -> None:
        """What the thread does: a turn whenever there is something new."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.lines or self.status != self.seen_status)
                text = "".join(text for text, _ in self.lines)
                self.writing, self.seen_status = sum(count for _, count in self.lines), self.status
                self.lines.clear()
            drawing = self.drawing(text, self.seen_status).encode(errors="backslashreplace")
            dropped = 0
            try:
                self.write(self.descriptor, drawing)
            except OSError:
                dropped = self.writing
            with self.changed:
                self.dropped += dropped
                self.writing, self.is_stuck = 0, False
                self.changed.notify_all()

    def drawing(self, text: str, status: str) -> str:
        """What brings the screen up to date. A background job draws nothing: the shell's prompt is there."""
        if not (self.interactive and is_foreground(self.descriptor)):
            self.is_drawn = False
            return text
        clear = "\r\x1b[K" if self.is_drawn or (status and not text) else ""
        self.is_drawn = bool(status)
        return clear + text + status

    def dropped_line(self) -> str:
        text = f"{counted(self.dropped, 'line')} of this log could not be written to standard error, and were dropped"
        return self.format(logging.LogRecord("log", logging.WARNING, "", 0, text, None, None)) + "\n"


def start_logging(verbose: bool, level: int = logging.INFO) -> tuple[KafkaLog, Terminal]:
    """Log to standard error; kafka-python's own lines only with --verbose."""
    terminal = Terminal()
    terminal.setFormatter(
        JournalFormatter("%(message)s") if is_journal() else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.DEBUG if verbose else level, handlers=[terminal])
    kafka_log, kafka_logger = KafkaLog(), logging.getLogger("kafka")
    kafka_logger.addHandler(kafka_log)
    kafka_logger.propagate = verbose
    kafka_logger.setLevel(logging.INFO if verbose else logging.WARNING)
    return kafka_log, terminal


def log_unexpected_errors() -> None:
    """An exception that ends a thread, or that nobody can catch, is a line of the log; with --verbose, a traceback."""
    log = logging.getLogger(__name__)

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        name = arguments.thread.name if arguments.thread else "?"
        log.error("unexpected error in thread %s: %s", name, describe(arguments.exc_value or arguments.exc_type()))
        log.debug("traceback:", exc_info=arguments.exc_value)

    threading.excepthook = in_thread
    sys.unraisablehook = lambda unraisable: log.debug("ignored: %r in %r", unraisable.exc_value, unraisable.object)


def describe(error: BaseException) -> str:
    """Type and text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
