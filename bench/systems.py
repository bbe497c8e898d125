"""The systems that are compared. Each reads the whole topic into an empty table."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bench.load import BEGIN, TOPIC
from bench.measure import Measured
from bench.services import Service, kconsumer_script
from eventkafkapostgres.schema import STATEMENTS
from servers import Servers

# From the begin of the first transaction that stored rows to the end of the last one.
STORED = """
select count(*), extract(epoch from max(pg_xact_commit_timestamp(xmin)) - min(recorded_at))::float8
from {} where observed_at >= '{}'"""
QUIET_SECONDS, GIVE_UP_SECONDS = 2.0, 60.0  # without growth: the table is complete; it never will be


@dataclass
class Result:
    """What one run of a system brought."""

    rows: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    process_seconds: float
    foreign_cores: float = 0.0

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds

    @property
    def cpu_seconds_per_100_000(self) -> float:
        return self.cpu_seconds * 100_000 / self.rows


System = Callable[[Servers, int], Result]


def query(running: Servers, statement: str, user: str = "events") -> list[tuple[Any, ...]]:
    """The rows of one statement in a transaction, or none, of its own."""
    with closing(running.postgres.connect(user)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def make_tables(running: Servers) -> None:
    """Tables as the consumer makes them."""
    for statement in STATEMENTS.values():
        query(running, statement)


def empty(running: Servers) -> None:
    """The tables without rows, and a server that has nothing left to write."""
    query(running, "truncate bandwidth_exceeds, rejected_messages, consumed_offsets")
    query(running, "drop table if exists telegraf")
    query(running, "checkpoint", "postgres")


def stored(running: Servers, table: str = "bandwidth_exceeds", since: datetime = BEGIN) -> tuple[int, float]:
    """How many rows there are, and in how many seconds they came."""
    rows, seconds = query(running, STORED.format(table, since))[0]
    return rows, seconds


def ceiling(name: str, most: int = sys.maxsize) -> System:
    """A part of the work, by bench/ceilings.py, with so many messages at most."""

    def run(running: Servers, count: int) -> Result:
        count = min(count, most)
        command = [sys.executable, "-m", "bench.ceilings", name, str(count)]
        with Measured(command, os.environ | running.environment(), subprocess.PIPE) as measured:
            assert measured.process.stdout
            output = measured.process.stdout.read()
            if measured.wait() != 0:
                raise RuntimeError(output.decode())
        inside = json.loads(output.splitlines()[-1])
        rows, seconds = (count, inside["seconds"]) if name.endswith("_only") else stored(running)
        return Result(rows, seconds, inside["cpu_seconds"], measured.peak_bytes, measured.seconds)

    return run


def consumers(number: int, topic: str = TOPIC, schema: str = "public", since: datetime = BEGIN) -> System:
    """So many of our consumers in one group, until the topic is empty."""

    def run(running: Servers, count: int) -> Result:
        group = f"bench-{os.urandom(4).hex()}"
        command = [sys.executable, kconsumer_script(), "--until-empty", "--topic", topic, "--group", group]
        environment = os.environ | running.environment() | {"PGOPTIONS": f"-c search_path={schema}"}
        with ExitStack() as stack, tempfile.TemporaryFile() as log:
            started = [stack.enter_context(Measured(command, environment, log)) for _ in range(number)]
            statuses = [each.wait() for each in started]
            if any(statuses):
                log.seek(0)
                raise RuntimeError(log.read().decode())
        cpu_seconds = sum(each.cpu_seconds for each in started)
        peak, longest = max(each.peak_bytes for each in started), max(each.seconds for each in started)
        rows, seconds = stored(running, f"{schema}.bandwidth_exceeds", since)
        return Result(rows, seconds, cpu_seconds, peak, longest)

    return run


def drain(service: Service, topic: str = TOPIC) -> System:
    """Run a service until everything is stored, or nothing more is.

    The CPU time of one that starts slowly, as Java does, counts from its first rows on.
    """

    def run(running: Servers, count: int) -> Result:
        size = f"select coalesce(pg_relation_size(to_regclass('{service.table}')), 0)"
        with service.start(running, topic) as measured:
            before, grown_at, skipped = 0, time.perf_counter(), 0.0
            while True:
                time.sleep(0.2)
                now, quiet = query(running, size)[0][0], time.perf_counter() - grown_at
                if now > before:
                    if service.starts_slowly and not before:
                        skipped = measured.now()[0]
                    before, grown_at = now, time.perf_counter()
                elif before and quiet > QUIET_SECONDS:
                    if stored(running, service.table)[0] >= count or quiet > 5 * QUIET_SECONDS:
                        break
                elif quiet > GIVE_UP_SECONDS or measured.process.poll() is not None:
                    raise RuntimeError(f"nothing came into {service.table}")
            cpu_seconds = measured.now()[0] - skipped
            measured.end()
        rows, seconds = stored(running, service.table)
        return Result(rows, seconds, cpu_seconds, measured.peak_bytes, measured.seconds)

    return run


def systems(services: dict[str, Service]) -> dict[str, System]:
    """All that are compared, ours first, the slowest last."""
    return {
        "kconsumer": consumers(1),
        "two kconsumers, one group": consumers(2),
        **{name: drain(service) for name, service in services.items()},
        "a commit per row": ceiling("commit_each", 10_000),
        "a connection per message": ceiling("literal", 2_000),
        "ceiling: plain COPY": ceiling("plain_copy"),
        "ceiling: COPY in batches": ceiling("copy_in_batches"),
        "ceiling: poll only": ceiling("poll_only"),
        "ceiling: parse only": ceiling("parse_only"),
    }


@dataclass
class Twice:
    """What became of messages of which some were sent twice."""

    events: int
    rows: int
    lost: int
    repeated: int


def sent_twice(running: Servers, service: Service, topic: str, events: int) -> Twice:
    """Let a service read a topic that holds so many events, and some of them again."""
    empty(running)
    drain(service, topic)(running, events)
    rows, different = query(running, f"select count(*), count(distinct event_id) from {service.table}")[0]
    return Twice(events, rows, events - different, rows - different)
