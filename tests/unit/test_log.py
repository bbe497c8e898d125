"""The log: whatever becomes of standard error, nobody waits for it, and what it accepts is there in order."""

import errno
import logging
import os
import pty
import threading
import time

import pytest

from eventkafkapostgres import log
from eventkafkapostgres.log import JournalFormatter, Terminal, is_journal


def record(text, level=logging.INFO):
    return logging.LogRecord("test", level, "", 0, text, None, None)


class Screen:
    """Where a terminal writes: it can refuse, or hold a write up."""

    def __init__(self):
        self.text = ""
        self.error = None
        self.is_open = threading.Event()
        self.is_open.set()

    def write(self, descriptor, data):
        self.is_open.wait()
        if self.error:
            raise self.error
        self.text += data.decode()


@pytest.fixture
def screen():
    return Screen()


@pytest.fixture
def terminal(screen, monkeypatch):
    """A terminal whose foreground this process is."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(log.os, "isatty", lambda descriptor: True)
    monkeypatch.setattr(log, "is_foreground", lambda descriptor: True)
    return Terminal(2, screen.write)


def show(terminal, line, alert=False):
    terminal.set_status(line, alert)
    terminal.flush()


def test_a_line_of_the_log_goes_above_the_status_line(terminal, screen):
    show(terminal, "1 of 2")
    terminal.emit(record("logged"))
    assert screen.text == "\r\x1b[K1 of 2\r\x1b[Klogged\n1 of 2"
    show(terminal, "")
    assert screen.text.endswith("logged\n1 of 2\r\x1b[K")


def test_the_status_line_is_no_longer_than_the_terminal_is_wide_and_red_when_it_alerts(terminal, screen, monkeypatch):
    show(terminal, "x" * 100, alert=True)
    assert screen.text == f"\r\x1b[K\x1b[31m{'x' * 79}\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    show(terminal, "calm", alert=True)
    assert screen.text.endswith("\r\x1b[Kcalm")


def test_where_there_is_no_terminal_only_the_log_is_written(screen):
    with open(os.devnull, "wb") as file:
        terminal = Terminal(file.fileno(), screen.write)
        show(terminal, "1 of 2", alert=True)
        terminal.emit(record("logged"))
    assert screen.text == "logged\n"


def test_a_background_job_draws_no_status_line_and_clears_none(terminal, screen, monkeypatch):
    show(terminal, "1 of 2")
    monkeypatch.setattr(log, "is_foreground", lambda descriptor: False)
    screen.text = ""
    show(terminal, "2 of 2")
    terminal.emit(record("logged"))
    assert screen.text == "logged\n"
    monkeypatch.setattr(log, "is_foreground", lambda descriptor: True)
    show(terminal, "3 of 3")
    assert screen.text == "logged\n\r\x1b[K3 of 3"


def test_lines_that_are_refused_are_counted_and_logged_once_they_are_accepted_again(terminal, screen):
    screen.error = OSError(errno.ENOSPC, "no space")
    for _ in range(3):
        terminal.emit(record("lost"))
    screen.error = None
    terminal.emit(record("there"))
    terminal.emit(record("again"))
    assert screen.text == (
        "3 lines of this log could not be written to standard error, and were dropped\nthere\nagain\n"
    )


def test_who_logs_does_not_wait_for_a_pipe_that_nobody_reads_and_memory_is_bounded(terminal, screen):
    screen.is_open.clear()
    began = time.monotonic()
    for number in range(log.MAX_LINES + 10):
        terminal.emit(record(str(number)))
    assert time.monotonic() - began < 5
    assert len(terminal.lines) == log.MAX_LINES
    screen.is_open.set()
    terminal.flush()
    terminal.emit(record("last"))
    lines = screen.text.splitlines()
    told = "9 lines of this log could not be written to standard error, and were dropped"
    assert lines == [*map(str, range(log.MAX_LINES + 1)), told, "last"]


def test_a_real_pipe_that_nobody_reads_holds_nobody_up():
    reader, writer = os.pipe()
    terminal = Terminal(writer)
    began = time.monotonic()
    for _ in range(100):
        terminal.emit(record("x" * 5000))
    assert time.monotonic() - began < 5
    received = b""
    while received.count(b"\n") < 100:
        received += os.read(reader, 1 << 16)
    terminal.flush()
    assert received == (b"x" * 5000 + b"\n") * 100
    os.close(reader)
    terminal.emit(record("nobody is there"))
    assert terminal.dropped == 1


def test_a_pipe_that_somebody_made_non_blocking_gets_everything():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    terminal = Terminal(writer)
    for _ in range(100):
        terminal.emit(record("x" * 5000))
    received = b""
    while received.count(b"\n") < 100:
        received += os.read(reader, 1 << 16)
    assert received == (b"x" * 5000 + b"\n") * 100


def test_a_terminal_that_was_closed_ends_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    parent, child = pty.openpty()
    terminal = Terminal(child)
    os.close(parent)
    terminal.set_status("1 of 2")
    terminal.emit(record("logged"))
    terminal.emit(record("logged"))
    assert terminal.dropped == 2


# systemd's journal


@pytest.mark.parametrize(
    ("level", "prefix"),
    [(logging.DEBUG, "<7>"), (logging.INFO, "<6>"), (logging.WARNING, "<4>"), (logging.ERROR, "<3>")],
)
def test_the_journal_gets_the_priority_of_each_line(level, prefix):
    assert JournalFormatter("%(message)s").format(record("one\ntwo", level)) == f"{prefix}one\n{prefix}two"


def test_the_journal_is_the_stream_that_systemd_names(monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert not is_journal(writer)
    status = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert is_journal(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
    assert not is_journal(writer)
    os.close(reader)
    os.close(writer)
    assert not is_journal(writer)
