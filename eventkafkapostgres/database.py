"""One connection, one transaction, one batch."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from eventkafkapostgres import message
from eventkafkapostgres.message import Batch
from eventkafkapostgres.outages import first_line

SILENCE_SECONDS = 8.0  # PostgreSQL made no progress for so long: its connection is given up
SETUP_SECONDS = 600.0  # the same while tables and indexes are made
DATA_ERRORS = (psycopg2.DataError, psycopg2.IntegrityError)  # SQLSTATE classes 22 and 23: the row's fault
TABLES = {
    "bandwidth_exceeds": """
create table if not exists bandwidth_exceeds (
    event_id uuid primary key,
    observed_at timestamptz not null,
    seconds double precision not null,
    episode_started_at timestamptz not null,
    host text not null,
    interfaces text[] not null,
    bytes_sent_per_second double precision not null,
    bytes_received_per_second double precision not null,
    bytes_per_second double precision not null,
    limit_bytes_per_second double precision not null,
    message text not null,
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    recorded_at timestamptz not null default now(),
    extra jsonb
)""",
    "bandwidth_exceeds_host_observed_at": """
create index if not exists bandwidth_exceeds_host_observed_at on bandwidth_exceeds (host, observed_at)""",
    "bandwidth_exceeds_observed_at": """
create index if not exists bandwidth_exceeds_observed_at on bandwidth_exceeds using brin (observed_at)""",
    "rejected_messages": """
create table if not exists rejected_messages (
    topic text,
    partition integer,
    "offset" bigint,
    key bytea,
    value bytea,
    reason text not null,
    recorded_at timestamptz not null default now(),
    primary key (topic, partition, "offset")
)""",
    "consumed_offsets": """
create table if not exists consumed_offsets (
    consumer_group text,
    topic text,
    partition integer,
    next_offset bigint not null,
    primary key (consumer_group, topic, partition)
)""",
    "heartbeats": """
create table if not exists heartbeats (
    host text primary key,
    heartbeat_at timestamptz not null,
    recorded_at timestamptz not null default now()
)""",
    "bandwidth_episodes": """
create view bandwidth_episodes as
select host, episode_started_at as started_at, max(observed_at) as ended_at,
    round(sum(seconds)::numeric, 3)::double precision as seconds_over,
    round(max(bytes_per_second)) as peak_bytes_per_second,
    round(sum(bytes_per_second * seconds) / nullif(sum(seconds), 0)) as mean_bytes_per_second,
    round(sum((bytes_per_second - limit_bytes_per_second) * seconds)) as bytes_over_limit, count(*) as warnings
from bandwidth_exceeds group by host, episode_started_at""",
}
MISSING = (
    "select name from unnest(%s::text[]) with ordinality as wanted (name, n) where to_regclass(name) is null order by n"
)
# A backend whose client is gone, or behind a network that went silent, would keep its locks for hours.
BEGIN = """
begin;
set local timezone = 'UTC';
set local lock_timeout = '5s';
set local idle_in_transaction_session_timeout = '15s';
set local tcp_keepalives_idle = 5;
set local tcp_keepalives_interval = 2;
set local tcp_keepalives_count = 3;
set local tcp_user_timeout = '10s'"""
END_FORSAKEN = """
select pg_terminate_backend(pid) from pg_stat_activity
where usename = current_user and application_name = current_setting('application_name') and pid <> pg_backend_pid()
and wait_event = 'ClientRead' and xact_start is not null and state_change < now() - interval '8 s'"""
COLUMNS = ", ".join(f'"{name}"' for name in message.COLUMNS)
COPY = f"copy bandwidth_exceeds ({COLUMNS}) from stdin"
TEMPORARY = "create temporary table batch (like bandwidth_exceeds including defaults, n integer) on commit drop"
COPY_TEMPORARY = f"copy batch ({COLUMNS}, n) from stdin"
MERGE = f"""
insert into bandwidth_exceeds ({COLUMNS}) select {COLUMNS} from batch where n >= %s and n < %s on conflict do nothing"""
REJECT = """
insert into rejected_messages (topic, partition, "offset", key, value, reason) values %s on conflict do nothing"""
BEATEN = """
insert into heartbeats (host, heartbeat_at) values %s on conflict (host) do update
set heartbeat_at = excluded.heartbeat_at, recorded_at = default where heartbeats.heartbeat_at < excluded.heartbeat_at"""
# Moves the offsets on only from where this consumer left them: not where the database was put back to a backup, or
# another consumer has these partitions now.
ADVANCE = """
update consumed_offsets as stored set next_offset = batch.next_offset
from (values %s) as batch (consumer_group, topic, partition, left_at, next_offset)
where stored.consumer_group = batch.consumer_group and stored.topic = batch.topic
and stored.partition = batch.partition and stored.next_offset = batch.left_at"""
BEGIN_AT = """
insert into consumed_offsets (consumer_group, topic, partition, next_offset) values %s on conflict do nothing"""
NEXT_OFFSETS = "select partition, next_offset from consumed_offsets where consumer_group = %s and topic = %s"
# A topic that was made anew counts from 0 again: what was rejected at these offsets before keeps its row.
FORGET = "delete from consumed_offsets where consumer_group = %s and topic = %s and partition = %s"
RENAME_REJECTED = """
update rejected_messages set topic = topic || ' before ' || now() where topic = %s and partition = %s"""


class Moved(Exception):
    """The offsets in the database are not where this consumer left them."""


class Progress(io.BytesIO):
    """What COPY reads; each piece that the connection took is told."""

    def __init__(self, data: bytes, told: Callable[[], None]) -> None:
        super().__init__(data)
        self.told = told

    def read(self, size: int | None = -1) -> bytes:
        self.told()
        return super().read(size)


class Database:
    """PostgreSQL, one connection for each call. A call runs in a thread of its own; cut() ends one that hangs.

    Every method raises psycopg2.Error when the database refuses or does not answer: then nothing was changed.
    """

    def __init__(self, url: str, options: Mapping[str, Any], group: str, topic: str) -> None:
        self.url, self.options, self.group, self.topic = url, options, group, topic
        self.current: Any = None
        self.deadline = math.inf
        self.was_cut = False
        self.doubtful = True  # the tables may be missing, and a forsaken backend may hold locks

    @contextlib.contextmanager
    def cursor(self) -> Iterator[Any]:
        """A cursor in a transaction of its own connection; without a commit inside, closing it rolls back."""
        self.wait_for()
        self.was_cut = False
        connection = psycopg2.connect(self.url, **self.options)
        try:
            self.current, connection.autocommit = connection, True  # begin and commit are in our own statements
            with connection.cursor() as cursor:
                if self.doubtful:
                    cursor.execute(END_FORSAKEN)
                    self.make_tables(cursor)
                cursor.execute(BEGIN)
                self.wait_for()
                yield cursor
                self.doubtful = False
        except psycopg2.Error as error:
            self.doubtful = True
            if self.was_cut:
                raise psycopg2.OperationalError(f"no answer for {SILENCE_SECONDS:.0f} seconds") from error
            raise
        finally:
            self.current, self.deadline = None, math.inf
            connection.close()

    def wait_for(self, seconds: float = SILENCE_SECONDS) -> None:
        """The next step may take so long before its connection counts as dead."""
        self.deadline = time.monotonic() + seconds

    def cut(self) -> None:
        """Shut the connection's socket: the thread that waits for it gets an OperationalError at once."""
        self.was_cut, self.deadline = True, math.inf
        with (
            contextlib.suppress(OSError, AttributeError, psycopg2.Error),
            socket.socket(fileno=os.dup(self.current.fileno())) as connected,
        ):
            connected.shutdown(socket.SHUT_RDWR)

    def make_tables(self, cursor: Any) -> None:
        """Make what is missing. InsufficientPrivilege names it when there is no right to."""
        self.wait_for(SETUP_SECONDS)
        if not missing_tables(cursor):
            return
        cursor.execute("begin; select pg_advisory_xact_lock(hashtext('eventKafkaPostgres'))")  # one consumer at a time
        missing = missing_tables(cursor)
        try:
            for name in missing:
                cursor.execute(TABLES[name])
            cursor.execute("commit")
        except psycopg2.errors.InsufficientPrivilege as error:
            raise psycopg2.errors.InsufficientPrivilege(
                f"there is no {', no '.join(missing)}, and no right to create it: {first_line(error)}"
            ) from error

    def next_offsets(self) -> dict[int, int]:
        """The next offset of each partition, as it was stored with the rows."""
        with self.cursor() as cursor:
            cursor.execute(NEXT_OFFSETS, (self.group, self.topic))
            return dict(cursor.fetchall())

    def forget(self, partitions: Sequence[int]) -> None:
        """Begin partitions of a topic that was made anew at its start."""
        with self.cursor() as cursor:
            for partition in partitions:
                cursor.execute(FORGET, (self.group, self.topic, partition))
                cursor.execute(RENAME_REJECTED, (self.topic, partition))
            cursor.execute("commit")

    def record(self, batch: Batch) -> int:
        """Store a batch and its offsets in one transaction; how many messages were rejected.

        Moved when the offsets are not where this consumer left them.
        """
        rejected = batch.rejected
        with self.cursor() as cursor:
            try:
                self.advance(cursor, batch)
                self.copy(cursor, COPY, [line for _, line in batch.rows])
            except DATA_ERRORS:
                cursor.execute(f"rollback; {BEGIN}; {TEMPORARY}")
                self.advance(cursor, batch)
                rejected = rejected + self.merge(cursor, batch.rows)
            if rejected:
                values = [(r.topic, r.partition, r.offset, r.key, r.value, reason) for r, reason in rejected]
                psycopg2.extras.execute_values(cursor, REJECT, values)
            if batch.heartbeats:
                psycopg2.extras.execute_values(cursor, BEATEN, sorted(batch.heartbeats.items()))
            self.wait_for()
            cursor.execute("commit")
        return len(rejected)

    def advance(self, cursor: Any, batch: Batch) -> None:
        """Move the offsets on, and hold them until the end of the transaction."""
        offsets = [
            (self.group, self.topic, at.partition, batch.expected_offsets[at], n)
            for at, n in batch.next_offsets.items()
        ]
        known = [row for row in offsets if row[3] is not None]
        new = [(*row[:3], row[4]) for row in offsets if row[3] is None]
        for statement, rows in ((ADVANCE, known), (BEGIN_AT, new)):
            if rows:
                psycopg2.extras.execute_values(cursor, statement, rows, page_size=len(rows))
                if cursor.rowcount != len(rows):
                    raise Moved

    def copy(self, cursor: Any, statement: str, lines: Sequence[str]) -> None:
        cursor.copy_expert(statement, Progress("".join(lines).encode(), self.wait_for), size=1 << 18)

    def merge(self, cursor: Any, rows: Sequence[tuple[Any, str]]) -> list[tuple[Any, str]]:
        """Add the rows that are not there yet; those that PostgreSQL refuses are returned, with the reason."""
        lines = [f"{line[:-1]}\t{n}\n" for n, (_, line) in enumerate(rows)]
        refused, begin = [], 0
        while begin < len(lines):  # what no column takes: COPY tells the line
            cursor.execute("savepoint part")
            try:
                self.copy(cursor, COPY_TEMPORARY, lines[begin:])
                break
            except DATA_ERRORS as error:
                cursor.execute("rollback to savepoint part")
                told = re.match(r"COPY batch\D+(\d+)", error.diag.context or "")
                if not told:
                    raise
                bad = begin + int(told[1]) - 1
                self.copy(cursor, COPY_TEMPORARY, lines[begin:bad])
                cursor.execute("release savepoint part")
                refused.append((rows[bad][0], first_line(error)))
                begin = bad + 1
        return refused + self.insert(cursor, rows, 0, len(rows))

    def insert(self, cursor: Any, rows: Sequence[tuple[Any, str]], low: int, high: int) -> list[tuple[Any, str]]:
        """Merge rows[low:high], halving until a row that a constraint of the table refuses is alone."""
        self.wait_for()
        cursor.execute("savepoint part")
        try:
            cursor.execute(f"{MERGE}; release savepoint part", (low, high))
            return []
        except DATA_ERRORS as error:
            cursor.execute("rollback to savepoint part; release savepoint part")
            if high - low == 1:
                return [(rows[low][0], first_line(error))]
        middle = (low + high) // 2
        return self.insert(cursor, rows, low, middle) + self.insert(cursor, rows, middle, high)


def missing_tables(cursor: Any) -> list[str]:
    """The names in TABLES that the database does not have."""
    cursor.execute(MISSING, (list(TABLES),))
    return [name for (name,) in cursor.fetchall()]
