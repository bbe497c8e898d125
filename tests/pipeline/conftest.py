"""What the whole-pipeline tests share: servers for each of pytest's workers, a topic and a database for each test."""

import fcntl
import logging
import os
import socket
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from databases import Own, new_database, postgres_alone
from pipeline import Pipeline, new_pipeline, open_pipelines

from servers import HOST, Postgres, Servers, fetch_kafka, record_aot_cache, servers
from servers.downloads import fetch_postgres

USERS = "RULE:^CN=([^,]*t[0-9a-f]{12}|server|admin)(,.*)?$/$1/,RULE:^.*$/service/"
SERVER_LINES = 20


@pytest.fixture(autouse=True)
def quiet_clients() -> Iterator[None]:
    """What this process's own Kafka clients log of a broker that is away, many times a second, hides the story."""
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The servers are on this machine, fetched by one worker, and Kafka has been prepared to start in half the time."""
    with (tmp_path_factory.getbasetemp().parent / "servers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fetch_kafka()
        fetch_postgres()
        if "SERVERS_KAFKA" not in os.environ:  # other versions are not started often enough
            record_aot_cache()


@pytest.fixture(scope="session")
def running(ready: None) -> Iterator[Servers]:
    """Apache Kafka and PostgreSQL, each with a proxy before it, for this worker alone: a test may break them.

    Kafka has ACLs: who is called after a topic of a test's own may do nothing; all others count as the user `service`,
    who may do everything.
    """
    with servers(sasl=True, acls=True, properties={"ssl.principal.mapping.rules": USERS}) as started, traffic():
        for kind in ("topic", "group", "transactional_id"):
            started.kafka.allow("service", "ALL", **{kind: "*"})
        yield started


@pytest.fixture(scope="session")
def guarded(running: Servers) -> Servers:
    """The same, for the tests that are about ACLs."""
    return running


@pytest.fixture(scope="module")
def cluster(ready: None) -> Iterator[Servers]:
    """Apache Kafka of three brokers, and PostgreSQL, for one file's tests: four Java processes less for the others."""
    with servers(brokers=3) as started, traffic():
        yield started


@pytest.fixture(scope="session")
def postgres_server(ready: None) -> Iterator[Postgres]:
    """PostgreSQL without Kafka, for this worker alone, for the tests that need no more."""
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
def figures(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines for the end of the run: what was measured."""
    lines: list[str] = []
    yield lines
    request.node.user_properties += [("figure", line) for line in lines]  # they reach the process that prints


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure tells its story: what the scripts and the servers logged last."""
    report = yield
    if report.failed and report.when != "teardown":
        for pipeline in open_pipelines:
            for script in pipeline.scripts:
                status = script.process.poll()
                state = "still runs" if status is None else f"ended with {status}"
                report.sections.append((f"{script.name}, which {state}", script.story()))
        for running in {id(pipeline.servers): pipeline.servers for pipeline in open_pipelines}.values():
            report.sections.append(("servers", running.tail(SERVER_LINES)))
    return report
