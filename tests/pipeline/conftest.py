"""The servers that all whole-pipeline tests share, and a topic and a database for each of them."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import Own, new_database, postgres_alone
from pipeline import Pipeline, new_pipeline

from servers import HOST, Postgres, Servers, record_aot_cache, servers

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def fast_kafka() -> None:
    """The first run on a machine prepares Kafka to start faster."""
    if "SERVERS_KAFKA" not in os.environ:  # other versions are not started often enough
        record_aot_cache()


@pytest.fixture(scope="session")
def running(fast_kafka: None) -> Iterator[Servers]:
    """Apache Kafka and PostgreSQL, each with a proxy before it, once per run."""
    with servers(sasl=True) as started, traffic():
        yield started


@pytest.fixture(scope="session")
def guarded(fast_kafka: None) -> Iterator[Servers]:
    """The same with a Kafka that has ACLs, for the tests that need it: `service` may do everything."""
    with servers(sasl=True, acls=True) as started, traffic():
        started.kafka.allow("service", "ALL", topic="*")
        started.kafka.allow("service", "ALL", group="*")
        yield started


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """PostgreSQL without Kafka, once per run, for the tests that need no more."""
    with postgres_alone() as started:
        yield started


@pytest.fixture
def own(postgres_server: Postgres) -> Iterator[Own]:
    """A database for this test alone, with nothing in it."""
    with new_database(postgres_server) as made:
        yield made


class traffic:
    """Datagrams on loopback, so that each sample of its bandwidth is above zero."""

    def __enter__(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._send)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _send(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.bind((HOST, 0))
            while not self.over.wait(0.004):
                end.sendto(b"traffic", end.getsockname())
                end.recv(16)


@pytest.fixture
def pipeline(running: Servers, tmp_path: Path) -> Iterator[Pipeline]:
    """A topic of one partition, a group and a database for this test alone."""
    with new_pipeline(running, tmp_path) as made:
        yield made


@pytest.fixture
def wide_pipeline(running: Servers, tmp_path: Path) -> Iterator[Pipeline]:
    """The same with four partitions."""
    with new_pipeline(running, tmp_path, partitions=4) as made:
        yield made


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the run: what was measured."""
    return request.config.stash.setdefault(FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(FIGURES, []):
        terminalreporter.section("measured")
        for line in figures:
            terminalreporter.write_line(line)
