import io
import logging
import signal
from datetime import UTC, datetime
from uuid import UUID

import pytest

from eventkafkapostgres import console
from eventkafkapostgres.console import Stop

OBSERVED_AT = datetime(2026, 11, 23, 16, 22, 4, 796005, tzinfo=UTC)


EVENT_ID = UUID("01a20b20-7007-7b5a-b044-fec6a3afb754")


# Stop


def test_stop_wakes_who_waits_and_stays_set():
    stop = Stop()
    assert not stop.wait(0)
    stop.set()
    assert stop.wait(1000)
    assert stop.wait(1000)
    assert stop.is_set()


def test_the_first_signal_stops_and_the_second_one_kills(clean_process):
    stop = Stop()
    stop.on_signals()
    signal.raise_signal(signal.SIGTERM)
    assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL


# The terminal


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def tty(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr", Tty())
    return console.Terminal()


def test_a_line_of_the_log_goes_above_the_line_that_is_kept_up_to_date(tty):
    tty.show("1 of 2")
    tty.emit(logging.makeLogRecord({"msg": "logged"}))
    assert tty.stream.getvalue() == "\r\x1b[K1 of 2\r\x1b[Klogged\n1 of 2"


def test_the_line_is_no_longer_than_the_terminal_is_wide_and_red_when_it_alerts(tty, monkeypatch):
    tty.show("x" * 100, alert=True)
    assert tty.stream.getvalue() == f"\r\x1b[K\x1b[31m{'x' * 79}\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    tty.show("calm", alert=True)
    assert tty.stream.getvalue().endswith("\r\x1b[Kcalm")


def test_where_there_is_no_terminal_only_the_log_is_written(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    terminal = console.Terminal()
    terminal.show("1 of 2", alert=True)
    terminal.emit(logging.makeLogRecord({"msg": "logged"}))
    assert terminal.stream.getvalue() == "logged\n"
