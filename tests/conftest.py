"""What all tests share: how to repeat one, a clock and a stop that take no time, and a process left as it was found."""

import logging
import os
import random
import shlex
import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from eventkafkapostgres.console import Stop

# A busy machine is no reason to fail: how long an example takes says nothing here.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

SEEDS = pytest.StashKey[dict[str, int]]()
LONGEST_FIRST = ("chaos", "long")  # markers
# Files whose tests share what is expensive: three brokers, or dozens of scripts that are started at once.
ON_ONE_WORKER = ("test_check.py", "test_cluster.py", "test_refused.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: several workers then end at about the same time."""

    def rank(item: pytest.Item) -> int:
        marked = [number for number, marker in enumerate(LONGEST_FIRST) if item.get_closest_marker(marker)]
        return marked[0] if marked else len(LONGEST_FIRST)

    items.sort(key=rank)


class Scheduling(LoadScopeScheduling):
    """A worker takes the tests of one of those files together, and of all others one after the other.

    `--dist loadgroup` would do the same, but pytest 9.2 made it distribute as if there were no groups, without a word
    (pytest-xdist's issue 1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.endswith(ON_ONE_WORKER) else nodeid


@pytest.hookimpl(optionalhook=True)  # there is no such hook without -n
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> Callable[[str], int]:
    """A number from the environment by its name, or a random one, which a failure tells."""

    def draw(name: str) -> int:
        number = int(os.environ.get(name) or random.SystemRandom().randrange(10**6))
        request.node.stash.setdefault(SEEDS, {})[name] = number
        return number

    return draw


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure says how to run that test alone."""
    report = yield
    if report.failed:
        seeds = [f"{name}={number}" for name, number in item.stash.get(SEEDS, {}).items()]
        command = [*seeds, "python", "-m", "pytest", "-n0", "-m", "", item.nodeid]
        report.sections.append(("to run this test alone", shlex.join(command)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ended = [report for reports in terminalreporter.stats.values() for report in reports]
    properties = [
        each for report in ended if getattr(report, "when", "") == "teardown" for each in report.user_properties
    ]
    if figures := [text for name, text in properties if name == "figure"]:
        terminalreporter.section("measured")
        for line in figures:
            terminalreporter.write_line(str(line))


class FakeClock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeStop(Stop):
    """A stop whose waiting takes no time: it advances the clock instead. Set by itself when `at` comes."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.at: float | None = None
        self.waits: list[float] = []

    def wait(self, seconds: float) -> bool:
        if not self.stopped:
            self.waits.append(seconds)
            self.clock.now += max(0.0, seconds)
            if self.at is not None and self.clock.now >= self.at:
                self.set()
        return self.stopped


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stop(clock: FakeClock) -> FakeStop:
    return FakeStop(clock)


@pytest.fixture
def clean_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No setting in the environment; the environment, signal handlers and loggers come back afterwards."""
    for name in [*os.environ]:
        if name.startswith(("KAFKA_", "PG", "DATABASE_URL", "STATE_DIRECTORY", "XDG_STATE_HOME")):
            monkeypatch.delenv(name)
    environ = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    kafka_logger = logging.getLogger("kafka")
    log = kafka_logger.handlers[:], kafka_logger.propagate, kafka_logger.level
    yield monkeypatch
    os.environ.clear()  # libpq's defaults are set there
    os.environ.update(environ)
    signal.alarm(0)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    kafka_logger.handlers[:], kafka_logger.propagate = log[:2]
    kafka_logger.setLevel(log[2])
