"""A real PostgreSQL without a Kafka, a database of its own for each test, and batches as the consumer makes them."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg2
from kafka import TopicPartition
from psycopg2.extras import RealDictCursor

from eventkafkapostgres.database import Database
from eventkafkapostgres.message import COLUMNS, Batch
from servers import Certificates, Postgres

TOPIC = "bandwidth_exceeds"
TOPIC_ID = UUID("0a95a6a5-6a0c-4d0e-9df6-6f0c2ab3a1a1")
START = datetime(2026, 11, 24, tzinfo=UTC)
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})

Result = TypeVar("Result")


@dataclass
class Record:
    """What of Kafka's record a batch needs."""

    offset: int
    value: bytes | None = b"{}"
    key: bytes | None = b"web-1"
    partition: int = 0
    topic: str = TOPIC


def row(host: str = "web-1", second: float = 0, **changes: str | None) -> dict[str, str | None]:
    """The columns of a warning, as COPY reads them."""
    return {
        "event_id": str(uuid4()),
        "observed_at": (START + timedelta(seconds=second)).isoformat(),
        "seconds": "1.000213",
        "episode_started_at": START.isoformat(),
        "host": host,
        "interfaces": '{"eth0"}',
        "bytes_sent_per_second": "812345.6",
        "bytes_received_per_second": "3120456.1",
        "bytes_per_second": "3932801.7",
        "limit_bytes_per_second": "1000000.0",
        "message": f"Bandwidth exceeded on {host}: 3.93 MB/s is over the limit of 1.00 MB/s",
        "extra": None,
        **changes,
    }


def copy_line(columns: Mapping[str, str | None]) -> str:
    values = (columns[name] for name in COLUMNS)
    return "\t".join(r"\N" if value is None else value.translate(ESCAPES) for value in values) + "\n"


class Own:
    """A database of one test's own, and a consumer group that fills it."""

    def __init__(self, server: Postgres, name: str) -> None:
        self.server, self.name = server, name
        self.next_offset = 0
        self.database = self.connector()

    def connector(self, user: str = "events", url: str | None = None, **options: Any) -> Database:
        """A Database as kconsumer makes it."""
        options = {"application_name": "kconsumer", "connect_timeout": 4, "dbname": self.name} | options
        return Database(url or self.server.uri(user), options, "kconsumer", TOPIC)

    def connect(self, user: str = "postgres", **options: Any) -> Any:
        connection = self.server.connect(user, **{"dbname": self.name, "client_encoding": "UTF8"} | options)
        connection.autocommit = True
        return connection

    def sql(self, statement: str, *values: object, user: str = "postgres") -> list[dict[str, Any]]:
        """What a user's statement returns; the superuser's by default."""
        with closing(self.connect(user)) as connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(statement, values or None)
            return [dict(found) for found in cursor.fetchall()] if cursor.description else []

    def filled(self, statement: str) -> str:
        """The statement with the name of this database, how to reach it, and {alter}."""
        host, port = self.server.address
        known = {
            "alter": "alter table bandwidth_exceeds",
            "name": self.name,
            "host": host,
            "port": str(port),
            "password": self.server.passwords["events"],
        }
        for name, value in known.items():
            statement = statement.replace(f"{{{name}}}", value)
        return statement

    def batch(
        self,
        rows: Iterable[dict[str, str | None]] = (),
        heartbeats: Mapping[str, datetime] | None = None,
        rejected: Iterable[tuple[Record, str]] = (),
        topic_id: UUID = TOPIC_ID,
    ) -> Batch:
        """The next batch of partition 0: it begins where what is recorded ends."""
        records = [(Record(self.next_offset + number), columns) for number, columns in enumerate(rows)]
        lines = [
            (record, copy_line({"topic": TOPIC, "partition": "0", "offset": str(record.offset), **columns}))
            for record, columns in records
        ]
        at, stored = TopicPartition(TOPIC, 0), self.consumed()
        return Batch(
            topic_id=topic_id,
            records=[record for record, _ in lines],
            rows=lines,
            rejected=list(rejected),
            heartbeats=dict(heartbeats or {}),
            next_offsets={at: self.next_offset + max(1, len(lines))},
            expected_offsets={at: stored.get(0, self.next_offset)},
        )

    def record(self, rows: Iterable[dict[str, str | None]] = (), **options: Any) -> dict[int, str]:
        """Record a batch; offset and reason of what was rejected."""
        self.database.next_offsets(options.get("topic_id", TOPIC_ID), {0: self.next_offset})
        batch = self.batch(rows, **options)
        rejected = self.database.record(batch)
        (self.next_offset,) = batch.next_offsets.values()
        return {record.offset: reason for record, reason in rejected}

    def consumed(self) -> dict[int, int]:
        try:
            found = self.sql("select partition, next_offset from consumed_offsets")
        except psycopg2.errors.UndefinedTable:
            return {}
        return {each["partition"]: each["next_offset"] for each in found}

    def event_ids(self) -> list[str]:
        """Of all rows, in the order of their offsets."""
        return [each["event_id"] for each in self.sql('select event_id from bandwidth_exceeds order by "offset"')]

    def rejected(self) -> dict[int, str]:
        return {each["offset"]: each["reason"] for each in self.sql('select "offset", reason from rejected_messages')}


def watched(database: Database, call: Callable[[], Result]) -> Result:
    """Run a call as the recorder does: in a thread, with its connection aborted when the deadline is over."""
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(call)
        job.add_done_callback(lambda _: done.set())
        while not done.wait(0.1):
            if time.monotonic() > database.deadline:
                database.abort_connection()
        return job.result()


@contextmanager
def postgres_alone() -> Iterator[Postgres]:
    """PostgreSQL in a temporary directory that its user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="eventKafkaPostgres-", dir="/tmp" if os.geteuid() == 0 else None))
    try:
        with Postgres(directory, Certificates(directory / "certificates")) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def new_database(server: Postgres, options: str = "") -> Iterator[Own]:
    """A database for one test; `options` are CREATE DATABASE's."""
    own = Own(server, f"d{uuid4().hex[:12]}")
    with closing(server.connect("postgres", dbname="postgres")) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(f"create database {own.name} owner events template template0 {options}")
        cursor.execute(f"grant all on database {own.name} to events")
        try:
            yield own
        finally:
            cursor.execute(f"drop database {own.name} with (force)")
