"""The systems that are compared. Each reads the whole topic into an empty table."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import kconsumer
from bench.measure import Measured
from demo.servers import Servers

ROOT = Path(__file__).parent.parent
# From the begin of the first transaction that stored rows to the end of the last one.
STORED = """
select count(*), extract(epoch from max(pg_xact_commit_timestamp(xmin)) - min(recorded_at))::float8
from bandwidth_exceeds"""


@dataclass
class Result:
    """What one run of a system brought."""

    rows: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    process_seconds: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


def make_tables(running: Servers) -> None:
    """Tables as the consumer makes them."""
    connection = running.postgres.connect()
    with connection, connection.cursor() as cursor:
        for statement in kconsumer.TABLES.values():
            cursor.execute(statement)
    connection.close()


def empty(running: Servers) -> None:
    """The tables without rows, and a server that has nothing left to write."""
    connection = running.postgres.connect()
    with connection, connection.cursor() as cursor:
        cursor.execute("truncate bandwidth_exceeds, rejected_messages, consumed_offsets")
    connection.close()
    connection = running.postgres.connect("postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("checkpoint")
    connection.close()


def stored(running: Servers) -> tuple[int, float]:
    """How many rows there are, and in how many seconds they came."""
    connection = running.postgres.connect()
    with connection, connection.cursor() as cursor:
        cursor.execute(STORED)
        count, seconds = cursor.fetchone() or (0, 0.0)
    connection.close()
    return count, seconds


def ceiling(name: str, most: int = sys.maxsize) -> Callable[[Servers, int], Result]:
    """A part of the work, by bench/ceilings.py, with so many messages at most."""

    def run(running: Servers, count: int) -> Result:
        count = min(count, most)
        command = [sys.executable, "-m", "bench.ceilings", name, str(count)]
        with Measured(command, environment(running), subprocess.PIPE) as measured:
            assert measured.process.stdout
            output = measured.process.stdout.read()
            if measured.wait() != 0:
                raise RuntimeError(output.decode())
        inside = json.loads(output)
        if name.endswith("_only"):
            rows, seconds = count, inside["seconds"]
        else:
            rows, seconds = stored(running)
        return Result(rows, seconds, inside["cpu_seconds"], measured.peak_bytes, measured.seconds)

    return run


def environment(running: Servers) -> dict[str, str]:
    return os.environ | running.environment()


def consumers(number: int) -> Callable[[Servers, int], Result]:
    """So many of our consumers in one group, until the topic is empty."""

    def run(running: Servers, count: int) -> Result:
        group = f"bench-{os.urandom(4).hex()}"
        script = os.environ.get("KCONSUMER", str(ROOT / "kconsumer.py"))
        command = [sys.executable, script, "--until-empty", "--group", group]
        with ExitStack() as stack, tempfile.TemporaryFile() as log:
            started = [stack.enter_context(Measured(command, environment(running), log)) for _ in range(number)]
            statuses = [each.wait() for each in started]
            if any(statuses):
                log.seek(0)
                raise RuntimeError(log.read().decode())
        rows, seconds = stored(running)
        return Result(
            rows,
            seconds,
            sum(each.cpu_seconds for each in started),
            max(each.peak_bytes for each in started),
            max(each.seconds for each in started),
        )

    return run


SYSTEMS: dict[str, Callable[[Servers, int], Result]] = {
    "kconsumer": consumers(1),
    "two kconsumers in the group": consumers(2),
    "plain COPY": ceiling("plain_copy"),
    "COPY in batches, a connection each": ceiling("copy_in_batches"),
    "poll only": ceiling("poll_only"),
    "parse only": ceiling("parse_only"),
    "connect, insert, close per message": ceiling("literal", 2_000),
    "one connection, commit per row": ceiling("commit_each", 10_000),
}
