"""What the unit tests share: a clock that stands still, a stop that advances it, and a process left as it was found."""

import logging
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from eventkafkapostgres.console import Stop

# A busy machine is no reason to fail: how long an example takes says nothing here.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


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
