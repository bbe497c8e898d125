import argparse
import contextlib
import errno
import io
import os
import signal

import pytest
from kafka.errors import KafkaTimeoutError

from eventkafkapostgres import console
from eventkafkapostgres.checks import CheckResult, print_results
from eventkafkapostgres.console import OneLineParser, Stop, run_command
from eventkafkapostgres.outages import SettingsError

# Stop


def test_stop_wakes_who_waits_and_stays_set():
    stop = Stop()
    assert not stop.wait(0)
    stop.set()
    assert stop.wait(1000)
    assert stop.wait(1000)
    assert stop.is_set()


def test_the_first_signal_stops_and_a_later_one_kills(clean_process, clock):
    clean_process.setattr(console.time, "monotonic", clock)
    stop = Stop()
    stop.on_signals()
    signal.raise_signal(signal.SIGTERM)
    assert stop.is_set()
    ended = []
    clean_process.setattr(os, "_exit", ended.append)
    clock.sleep(console.ONE_STOP_SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    assert ended == [128 + signal.SIGTERM, 128 + signal.SIGINT]


@pytest.mark.parametrize("hung_status", [0, 1])
def test_what_hangs_after_a_signal_ends_with_the_status_for_that(clean_process, hung_status):
    ended = []
    clean_process.setattr(os, "_exit", ended.append)
    clean_process.setattr(signal, "alarm", lambda seconds: signal.raise_signal(signal.SIGALRM))
    Stop().on_signals(6, hung_status)
    signal.raise_signal(signal.SIGTERM)
    assert ended == [hung_status]


def test_a_signal_that_timeout_sends_twice_stops_and_does_not_kill(clean_process, clock):
    clean_process.setattr(console.time, "monotonic", clock)
    ended = []
    clean_process.setattr(os, "_exit", ended.append)
    stop = Stop()
    stop.on_signals()
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
    assert stop.is_set()
    assert ended == []


# The exit status


def parser():
    made = OneLineParser(prog="script")
    made.add_argument("--check", action="store_true")
    made.add_argument("--verbose", action="store_true")
    return made


def raising(error):
    def run(*_):
        raise error

    return run


def test_a_wrong_setting_is_one_line_and_status_2(clean_process, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(parser(), [], raising(SettingsError("X is wrong:\n  set Y")), lambda *_: 0)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "script: X is wrong: set Y\n"


@pytest.mark.parametrize("error", [ValueError("a\nb"), KafkaTimeoutError("late"), OSError(5, "broken"), KeyError("x")])
def test_any_other_exception_is_one_line_of_the_log_and_status_1_and_not_called_wrong_usage(
    clean_process, capsys, caplog, error
):
    assert run_command(parser(), [], raising(error), lambda *_: 0) == 1
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith(f"unexpected error: {type(error).__name__}: ")
    assert "\n" not in line
    assert capsys.readouterr().err == ""


def test_the_journal_gets_the_priority(clean_process, capsys, monkeypatch):
    monkeypatch.setattr(console, "is_journal", lambda: True)
    with pytest.raises(SystemExit):
        parser().error("wrong")
    assert capsys.readouterr().err == "<3>script: wrong\n"


# The results of --check

RESULTS = [CheckResult(True, "Kafka: answers"), CheckResult(False, "clock: wrong\n")]


class Stdout(io.TextIOWrapper):
    """A standard output with an encoding, and perhaps an error when it is written to."""

    def __init__(self, encoding="utf-8", error=None):
        self.bytes, self.error = io.BytesIO(), error
        super().__init__(self.bytes, encoding=encoding, write_through=True)

    def flush(self):
        if self.error:
            raise self.error
        super().flush()


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", "✓ Kafka: answers\n✗ clock: wrong\n"),
        ("latin-1", "+ Kafka: answers\nx clock: wrong\n"),
        ("ascii", "+ Kafka: answers\nx clock: wrong\n"),
    ],
)
def test_results_are_a_line_each_whatever_the_encoding(monkeypatch, encoding, printed):
    monkeypatch.setattr("sys.stdout", Stdout(encoding))
    assert print_results(iter(RESULTS)) == 1
    assert console.sys.stdout.bytes.getvalue().decode(encoding) == printed
    assert print_results(iter(RESULTS[:1])) == 0


def test_who_reads_the_first_line_only_gets_the_true_status(monkeypatch, caplog):
    monkeypatch.setattr("sys.stdout", Stdout(error=BrokenPipeError()))
    checked = []
    assert print_results(checked.append(each) or each for each in RESULTS) == 1
    assert checked == RESULTS
    assert print_results(iter(RESULTS[:1])) == 0
    assert caplog.messages == []


def test_results_that_nobody_reads_hold_nobody_up(monkeypatch, caplog):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1 << 16))
    os.set_blocking(writer, True)
    monkeypatch.setattr(console, "PRINT_SECONDS", 0.01)
    with open(writer, "w") as full, open(reader, "rb"):
        monkeypatch.setattr("sys.stdout", full)
        assert print_results(iter(RESULTS[:1] * 2)) == 1
    assert caplog.messages == ["can't print the results: nobody reads them"]


def test_results_that_can_not_be_printed_are_reported_and_are_status_1(monkeypatch, caplog):
    monkeypatch.setattr("sys.stdout", Stdout(error=OSError(errno.ENOSPC, "No space left on device")))
    assert print_results(iter(RESULTS[:1] * 2)) == 1
    assert caplog.messages == ["can't print the results: No space left on device"]


def test_the_check_has_its_own_status(clean_process, capsys):
    never = raising(AssertionError("it ran"))
    assert run_command(parser(), ["--check"], never, lambda *_: print_results(RESULTS)) == 1
    assert capsys.readouterr().out == "✓ Kafka: answers\n✗ clock: wrong\n"


def test_types_of_arguments_tell_their_own_text():
    with pytest.raises(argparse.ArgumentTypeError, match="is not a topic name"):
        console.argument(console.topic_name)("a b")
