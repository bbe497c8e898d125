"""What a person sees: on a terminal one line below the log that is kept up to date, elsewhere the log alone."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from pipeline import Pipeline, Script, wait_until, warnings
from terminal import CTRL_C, RED, RedirectedTerminal, Terminal, plain

from servers import Proxy

pytestmark = pytest.mark.long

RATE = r"\d{1,3}\.\d\d [kMG]?B/s"
STATE = re.compile(rf"{RATE} of ({RATE}), (\d+) warnings raised, (\d+) waiting")
PROGRESS = re.compile(r"([\d,]+) recorded, ([\d,]+) a second(?:, (?P<left>[\d,]+) to go, (?P<seconds>[\d,]+) s left)?")
BACKLOG = 100_000
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?:INFO|WARNING) ")
ESCAPES = ("\x1b", "\r")
FOREVER = ("--forever", "--flush-interval", "1000", "--interval", "0.2")


@pytest.fixture
def terminal(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline whose scripts are started on a terminal."""
    monkeypatch.setattr("pipeline.Script", Terminal)
    return pipeline


def on_terminal(script: Script) -> Terminal:
    assert isinstance(script, Terminal)
    return script


def producer(pipeline: Pipeline, *arguments: str, proxied: bool = False, **changes: str | None) -> Terminal:
    environment = pipeline.environment(proxied, **changes)
    return on_terminal(pipeline.producer(*FOREVER, *arguments, environment=environment))


@contextmanager
def slow(proxy: Proxy, bytes_per_second: int) -> Iterator[None]:
    before = proxy.bytes_per_second, proxy.latency_seconds
    try:
        proxy.mode, proxy.bytes_per_second, proxy.latency_seconds = "slow", bytes_per_second, 0.0
        yield
    finally:
        proxy.mode = "pass"
        proxy.bytes_per_second, proxy.latency_seconds = before


def state(script: Terminal) -> tuple[int, int]:
    """The warnings raised and those that wait, as the line below the log says now."""
    found = STATE.fullmatch(script.screen()[-1])
    return (int(found[2]), int(found[3])) if found else (0, 0)


def test_a_producer_keeps_one_line_with_rate_limit_warnings_raised_and_waiting(terminal: Pipeline) -> None:
    terminal.servers.kafka_proxy.mode = "refuse"
    script = producer(terminal, proxied=True)
    wait_until(lambda: state(script)[1] >= 10, "10 waiting")
    script.says("Kafka: connection refused.*; trying again")
    terminal.servers.kafka_proxy.mode = "pass"
    wait_until(lambda: state(script)[1] == 1, "one waiting, the latest")
    script.press(CTRL_C)
    assert script.ends() == 0
    shown = [STATE.fullmatch(plain(line).removesuffix("^C")) for line in script.shown()]
    assert all(shown), script.shown()
    states = [(int(found[2]), int(found[3])) for found in shown if found]
    assert all(raised <= later for (raised, _), (later, _) in pairwise(states))
    assert all(waiting <= raised for raised, waiting in states)
    assert states[-1][0] == len(script.raised())
    terminal.drain()
    assert len(terminal.assert_recorded()) == len(script.raised())


def test_the_line_is_below_the_log_and_gone_at_the_end(terminal: Pipeline) -> None:
    script = producer(terminal)
    wait_until(lambda: state(script)[0] >= 10, "10 warnings shown")
    rows = script.screen()
    assert [row for row in rows[:-1] if STATE.search(row)] == []
    script.press(CTRL_C)
    assert script.ends() == 0
    rows = script.screen()
    assert [row for row in rows if STATE.search(row) or "^C" in row] == []
    assert rows[-1] == ""
    assert rows[-2].endswith("0 left")  # of the log's last line


def test_the_line_is_red_above_the_limit(terminal: Pipeline) -> None:
    above, below = producer(terminal), producer(terminal, "--limit", "1000GB/s", "--outbox", "below.sqlite")
    for script in (above, below):
        wait_until(lambda script=script: len(script.shown()) >= 10, "10 lines shown")
        assert script.stop() == 0
    assert {line.startswith(RED) for line in above.shown()} == {True}
    assert {line.startswith(RED) for line in below.shown()} == {False}


def test_no_color_is_obeyed(terminal: Pipeline) -> None:
    script = producer(terminal, NO_COLOR="1")
    wait_until(lambda: state(script)[0] >= 10, "10 warnings shown")
    assert script.stop() == 0
    assert RED not in script.text()


def test_a_dumb_terminal_gets_plain_lines(terminal: Pipeline) -> None:
    script = producer(terminal, TERM="dumb")
    wait_until(lambda: script.text().count("Bandwidth exceeded") >= 10, "10 warnings logged")
    assert script.stop() == 0
    assert not any(escape in script.text().replace("\r\n", "\n") for escape in ESCAPES)


@pytest.mark.parametrize(
    ("columns", "stdout"),
    [
        (80, "the terminal"),
        (40, "the terminal"),
        (40, "elsewhere"),
    ],
)
def test_the_line_is_never_wider_than_the_terminal(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, columns: int, stdout: str
) -> None:
    kind = Terminal if stdout == "the terminal" else RedirectedTerminal
    monkeypatch.setattr(kind, "columns", columns)
    monkeypatch.setattr("pipeline.Script", kind)
    script = producer(pipeline)
    wait_until(lambda: len(script.shown()) >= 10, "10 lines shown")
    assert script.stop() == 0
    assert max(len(plain(line)) for line in script.shown()) < columns


def test_a_consumer_shows_how_many_how_fast_and_how_long_still(terminal: Pipeline) -> None:
    terminal.send(warnings(BACKLOG))
    with slow(terminal.servers.postgres_proxy, 6_000_000):  # some seconds for 30 MB, on any machine
        script = on_terminal(terminal.consumer("--until-empty", environment=terminal.environment(proxied=True)))
        assert script.ends() == 0
    assert terminal.count() == BACKLOG
    shown = [PROGRESS.fullmatch(line) for line in script.shown()]
    assert all(shown), script.shown()
    recorded, left = (
        [int(found[group].replace(",", "")) for found in shown if found and found["left"]] for group in (1, "left")
    )
    assert len(recorded) >= 2
    assert recorded == sorted(recorded)
    assert left == sorted(left, reverse=True)
    assert all(each + rest == BACKLOG for each, rest in zip(recorded, left, strict=True))
    assert max(len(line) for line in script.shown()) < 80
    rows = script.screen()
    assert [row for row in rows if PROGRESS.search(row)] == []
    assert rows[-2].endswith(f"stopped: {BACKLOG} recorded since the start")
    assert rows[-1] == ""


def test_where_there_is_no_terminal_there_is_the_log_alone(pipeline: Pipeline) -> None:
    environment = pipeline.environment(TERM="xterm-256color")
    producer = pipeline.producer("--flush-interval", "2", environment=environment)
    assert producer.ends() == 0
    consumer = pipeline.consumer("--until-empty", environment=environment)
    assert consumer.ends() == 0
    for script in (producer, consumer):
        text = script.log.read_bytes().decode()
        assert [line for line in text.split("\n") if line and not LOG_LINE.match(line)] == []
        assert not any(escape in text for escape in ESCAPES)
