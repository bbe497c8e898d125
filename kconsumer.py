"""Record the warnings that come through Apache Kafka in PostgreSQL, each once.

$ python kconsumer.py
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import math
import os
import re
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

import psycopg2
import psycopg2.extensions
import psycopg2.extras
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from kafka.structs import OffsetAndMetadata

from kproducer import (
    REFUSED,
    Certificates,
    Finding,
    KafkaLog,
    OneLineParser,
    Outage,
    Stop,
    Terminal,
    __version__,
    argument,
    check_kafka,
    end_process,
    kafka_options,
    make_client,
    plain,
    printable,
    start,
    topic_name,
)

POLL_MS = 1000  # as long as the broker holds a fetch when there is nothing: longer is cheaper, and no slower
HASTY_POLL_MS = 200  # the same with --until-empty
SILENCE_SECONDS = 8.0  # PostgreSQL made no progress for so long: its connection is given up
SETUP_SECONDS = 600.0  # the same while tables and indexes are made
RETRY_SECONDS = (1.0, 4.0, 30.0)  # pauses: the first, the longest when nothing answers, when PostgreSQL refuses
IDLE_SECONDS = 15.0  # without a message for so long, Kafka is asked whether it is there
SUSPECT_SECONDS = 5.0  # the same when its log says that it isn't
STUCK_SECONDS = 60.0  # the same until the consumer is made anew
GIVE_UP_SECONDS = 15.0  # --until-empty ends after so long without success
LOG_SECONDS, QUIET_SECONDS = 60.0, 600.0  # between two lines of the log: with something recorded, without
STOP_SECONDS = 3  # for what is going on after SIGINT or SIGTERM
HOST_CHARACTERS = 255
CLOCK_SECONDS = 2.0  # a clock that is further from the server's is wrong
# A thread that comes back from a socket waits so long for one that computes; Python's 5 ms cost a quarter of the speed.
SWITCH_SECONDS = 0.0005
COLLECT_OBJECTS = 50_000  # new ones until Python looks for garbage: its 700 come dozens of times in a batch

CONSUMER_OPTIONS: dict[str, Any] = {
    "client_id": "kconsumer",
    "request_timeout_ms": 5000,
    "heartbeat_interval_ms": 6000,
    "session_timeout_ms": 20000,
    "reconnect_backoff_max_ms": 2000,
    "metadata_max_age_ms": 10000,
    "max_poll_records": 10000,
    "fetch_max_wait_ms": POLL_MS,
    "metrics_enabled": False,
    "fetch_max_bytes": 2 << 20,
}
# What the promise rests on: no setting changes these.
CONSUMER_PROMISE: dict[str, Any] = {
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "group_id": "kconsumer",
    "consumer_timeout_ms": math.inf,
    "check_crcs": True,
}
POSTGRES_OPTIONS: dict[str, Any] = {
    "application_name": "kconsumer",
    "connect_timeout": 4,
    "gssencmode": "disable",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "sslmode": "verify-full",
    **({"tcp_user_timeout": 8000} if sys.platform == "linux" else {}),
}

DATA_ERRORS = (psycopg2.DataError, psycopg2.IntegrityError)  # SQLSTATE classes 22 and 23: the row's fault
SSL_MODES = ("verify-full", "verify-ca", "require", "prefer", "allow", "disable")
GOES_ON = (
    KafkaConnectionError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
)  # the consumer still works

logger = logging.getLogger("kconsumer")


# SQL

TABLES = {
    "bandwidth_exceeds": """
create table if not exists bandwidth_exceeds (
    event_id uuid primary key,
    observed_at timestamptz not null,
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
    # An episode begins at a warning that none precedes within 5 s, and ends at the next one that none follows so soon.
    # Subqueries with a limit, not joins: whatever the planner believes, each is one look into the index, and what is
    # asked of host or started_at reaches the table. A warning stands for the usual time between two of its episode.
    "bandwidth_episodes": """
create view bandwidth_episodes as
select first.host, first.observed_at as started_at, last.observed_at as ended_at, seconds_over,
    peak_bytes_per_second, mean_bytes_per_second, bytes_over_limit, warnings
from bandwidth_exceeds as first
cross join lateral (
    select observed_at from bandwidth_exceeds as here
    where here.host = first.host and here.observed_at >= first.observed_at and coalesce((
        select observed_at from bandwidth_exceeds as next
        where next.host = here.host and next.observed_at > here.observed_at order by next.observed_at limit 1
    ) > here.observed_at + interval '5 s', true)
    order by here.observed_at limit 1
) as last
cross join lateral (
    select count(*) as warnings, count(*) * seconds as seconds_over, max(bytes_per_second) as peak_bytes_per_second,
        avg(bytes_per_second) as mean_bytes_per_second,
        sum(bytes_per_second - limit_bytes_per_second) * seconds as bytes_over_limit
    from bandwidth_exceeds as each, (
        select coalesce(percentile_cont(0.5) within group (order by extract(epoch from gap)), 1) as seconds from (
            select observed_at - lag(observed_at) over (order by observed_at) as gap from bandwidth_exceeds as each
            where each.host = first.host and each.observed_at between first.observed_at and last.observed_at
        ) as gaps where gap > interval '0'
    ) as usual
    where each.host = first.host and each.observed_at between first.observed_at and last.observed_at
    group by seconds
) as episode
where coalesce((
    select observed_at from bandwidth_exceeds as previous
    where previous.host = first.host
    and (previous.observed_at, previous.event_id) < (first.observed_at, first.event_id)
    order by previous.observed_at desc, previous.event_id desc limit 1
) < first.observed_at - interval '5 s', true)""",
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
COLUMNS = """event_id, observed_at, host, interfaces, bytes_sent_per_second, bytes_received_per_second,
bytes_per_second, limit_bytes_per_second, message, topic, partition, "offset", extra"""
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

CLOCK_AND_SLOTS = """
select extract(epoch from clock_timestamp())::float8, current_setting('max_connections')::int
- current_setting('superuser_reserved_connections')::int - sum(numbackends)::int + 1 from pg_stat_database"""
RIGHTS = """
select has_schema_privilege(current_schema(), 'CREATE'), has_database_privilege(current_database(), 'TEMPORARY')"""
GRANTS = {  # what has to be granted on each table
    "bandwidth_exceeds": ["INSERT", "SELECT"],
    "rejected_messages": ["INSERT", "SELECT", "UPDATE"],
    "consumed_offsets": ["INSERT", "SELECT", "UPDATE", "DELETE"],
    "heartbeats": ["INSERT", "SELECT", "UPDATE"],
}
LACKING = "select needed from unnest(%s::text[]) as needed where not has_table_privilege(%s, needed)"
COLUMN = re.compile(r'^    "?(?!primary key)(\w+)"? (double precision|\w+(?:\[\])?)', re.MULTILINE)
COLUMNS_LACKING = """
select name || ' ' || type from unnest(%s::text[], %s::text[]) as wanted (name, type) where not exists (
    select from pg_attribute where attrelid = %s::regclass and attname = name and atttypid = type::regtype
    and not attisdropped)"""


# The rows


class Number(str):
    """A number of a JSON text, as it stands there: PostgreSQL reads it, and nothing is lost on the way."""

    __slots__ = ()


def refuse_constant(name: str) -> NoReturn:
    """NaN and the infinities are no JSON."""
    raise ValueError(f"{name} is no number")


decoder = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=refuse_constant)
FIELDS = {
    "event_id": str,
    "observed_at": str,
    "host": str,
    "interfaces": list,
    "bytes_sent_per_second": Number,
    "bytes_received_per_second": Number,
    "bytes_per_second": Number,
    "limit_bytes_per_second": Number,
    "message": str,
}
UUID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}"
TEXT, NAME, NUMBER = r'[^"\\\x00-\x1f]', r'[^"\\,\x00-\x1f]', r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,9})?"
is_uuid = re.compile(UUID, re.IGNORECASE | re.ASCII).fullmatch
is_time = re.compile(TIME.replace("T", "[T ]") + r"(?:\.[0-9]+)?(?:Z|[+-](?:0[0-9]|1[0-5]):[0-5][0-9])").fullmatch
# What kproducer.py writes, to the letter: no text in it can hold what COPY, an array or PostgreSQL minds. Any other
# message that is as good takes the longer way, to the same row.
is_ours = re.compile(
    rf'\{{"event_id": "({UUID})", "observed_at": "({TIME}\.[0-9]{{6}}\+00:00)", "host": "({TEXT}{{1,255}})", '
    rf'"interfaces": \[("{NAME}*"(?:, "{NAME}*")*)\], "bytes_sent_per_second": ({NUMBER}), '
    rf'"bytes_received_per_second": ({NUMBER}), "bytes_per_second": ({NUMBER}), '
    rf'"limit_bytes_per_second": ({NUMBER}), "message": "({TEXT}*)"\}}'
).fullmatch
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def copy_line(value: bytes, topic: str, partition: int, offset: int) -> str:
    """The row of a message in COPY's text format. ValueError tells why the message can't be stored."""
    text = value.decode()
    if ours := is_ours(text):
        event_id, observed_at, host, array, sent, received, total, limit, message = ours.groups()
        array, extra = array.replace('", "', '","'), r"\N"
    else:
        event_id, observed_at, host, array, sent, received, total, limit, message, extra = copy_fields(text)
    datetime.fromisoformat(observed_at)  # ValueError: there is no such day or hour
    return (
        f"{event_id}\t{observed_at}\t{host}\t{{{array}}}\t{sent}\t{received}\t{total}\t{limit}\t{message}\t"
        f"{topic}\t{partition}\t{offset}\t{extra}\n"
    )


def copy_fields(text: str) -> list[str]:
    """The columns of a message that need not be ours, escaped for COPY; `extra` is the last. ValueError as above."""
    fields = decoder.decode(text)
    if type(fields) is not dict:
        raise ValueError("no JSON object")
    for name, kind in FIELDS.items():
        if type(fields.get(name)) is not kind:
            raise ValueError(f"{name} {'has the wrong type' if name in fields else 'is missing'}")
        if kind is Number and not math.isfinite(float(fields[name])):
            raise ValueError(f"{name} is beyond a double precision")
    event_id, observed_at, host, interfaces, *numbers, message = (fields[name] for name in FIELDS)
    if not is_uuid(event_id):
        raise ValueError("event_id is no UUID")
    if not is_time(observed_at):
        raise ValueError("observed_at is no time with a time zone (RFC 3339)")
    if len(host) > HOST_CHARACTERS:
        raise ValueError(f"host is longer than {HOST_CHARACTERS} characters")
    if any(type(name) is not str for name in interfaces):
        raise ValueError("interfaces has the wrong type")
    array = ",".join('"' + name.replace("\\", r"\\").replace('"', r"\"") + '"' for name in interfaces)
    extra = {name: value for name, value in fields.items() if name not in FIELDS}
    dumped = to_json(extra) if extra else ""
    texts = f"{host}{array}{message}"
    if "\0" in texts or r"\u0000" in dumped.replace(r"\\", ""):
        raise ValueError("a text holds a NUL, which PostgreSQL does not store")
    f"{texts}{dumped}".encode()  # UnicodeEncodeError is a ValueError: half a surrogate pair
    host, array, message, dumped = (column.translate(ESCAPES) for column in (host, array, message, dumped))
    return [event_id, observed_at, host, array, *numbers, message, dumped or r"\N"]


def to_json(value: object) -> str:
    """What json.dumps() writes, but each Number as it stood."""
    if isinstance(value, dict):
        return "{" + ", ".join([f"{to_json(name)}: {to_json(member)}" for name, member in value.items()]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([to_json(member) for member in value]) + "]"
    return str(value) if isinstance(value, Number) else json.dumps(value, ensure_ascii=False)


def heartbeat(value: bytes | None) -> tuple[str, datetime] | None:
    """Host and time of a heartbeat; None when the message is none."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        fields = json.loads(value or b"")
        host, at = fields["host"], fields["heartbeat_at"]
        if len(fields) == 2 and type(host) is str and host.encode() and is_time(at):
            return (host, datetime.fromisoformat(at)) if len(host) <= HOST_CHARACTERS and "\0" not in host else None
    return None


class Moved(Exception):
    """The offsets in the database are not where this consumer left them."""


@dataclass
class Batch:
    """What one poll returned, parsed."""

    rows: list[tuple[Any, str]] = field(default_factory=list)  # record and its line for COPY
    rejected: list[tuple[Any, str]] = field(default_factory=list)  # record and the reason
    heartbeats: dict[str, datetime] = field(default_factory=dict)  # host and its latest
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)
    left_at: dict[TopicPartition, int | None] = field(
        default_factory=dict
    )  # what the database says before; None: nothing


def parse(polled: Mapping[TopicPartition, Iterable[Any]]) -> Batch:
    """Rows for the table, and what can't be one with the reason; never an error."""
    batch = Batch()
    for (topic, partition), records in polled.items():
        for record in records:
            try:
                if record.value is None:
                    raise ValueError("a tombstone: a message without a value")
                batch.rows.append((record, copy_line(record.value, topic, partition, record.offset)))
            except (ValueError, RecursionError) as error:
                if beat := heartbeat(record.value):
                    host, at = beat
                    batch.heartbeats[host] = max(at, batch.heartbeats.get(host, at))
                else:
                    batch.rejected.append((record, str(error)))
        batch.next_offsets[TopicPartition(topic, partition)] = record.offset + 1
    return batch


# PostgreSQL


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
        offsets = [(self.group, self.topic, at.partition, batch.left_at[at], n) for at, n in batch.next_offsets.items()]
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


def first_line(error: BaseException) -> str:
    """What the error says, without the data that PostgreSQL quotes below."""
    return (
        " ".join(re.split(r"\n(?:LINE|DETAIL|HINT|CONTEXT|\tIs the server)", str(error))[0].split())
        or type(error).__name__
    )


POSTGRES_REMEDIES = [
    (r"certificate verify failed", "PGSSLROOTCERT must name the CA of this server"),
    (r"password authentication failed|no password supplied", "correct PGUSER, PGPASSWORD or DATABASE_URL"),
    (r"no encryption|does not support SSL", "the server and PGSSLMODE don't agree on TLS"),
    (r"Connection refused|timeout expired|translate host name|unreachable", "is PGHOST right, PGPORT, the firewall?"),
    (r'database ".*" does not exist', "correct PGDATABASE or DATABASE_URL"),
    (r"temporary tables", "grant TEMPORARY on the database to this user"),
]


def explained(error: BaseException) -> str:
    """What the error says, and what to do where that is known."""
    text = first_line(error)
    return next((f"{text}: {remedy}" for pattern, remedy in POSTGRES_REMEDIES if re.search(pattern, text)), text)


def postgres_options(environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """DATABASE_URL and our options for libpq, less those that it or a PG variable sets. ValueError: what is wrong."""
    url = environ.get("DATABASE_URL", "")
    try:
        given: dict[str, Any] = psycopg2.extensions.parse_dsn(url)
    except psycopg2.ProgrammingError:  # its text may quote the password
        raise ValueError("DATABASE_URL is no service URI: write postgres://user:password@host:port/database") from None
    if not re.fullmatch(r"[0-9,]*", given.get("port") or environ.get("PGPORT") or ""):
        raise ValueError("PGPORT (or the port in DATABASE_URL) must be a number")
    if not (given or {"PGHOST", "PGHOSTADDR", "PGSERVICE"} & environ.keys()):
        raise ValueError("DATABASE_URL is not set, and PGHOST isn't either: one of them must say where PostgreSQL is")
    variables = {"sslmode": "PGSSLMODE", "application_name": "PGAPPNAME", "connect_timeout": "PGCONNECT_TIMEOUT",
                 "gssencmode": "PGGSSENCMODE"}  # fmt: skip
    options = {
        name: value
        for name, value in POSTGRES_OPTIONS.items()
        if name not in given and variables.get(name, name) not in environ
    }
    sslmode = options.get("sslmode") or given.get("sslmode") or environ.get("PGSSLMODE")
    if sslmode not in SSL_MODES:
        raise ValueError(f"PGSSLMODE (or sslmode in DATABASE_URL) must be one of {', '.join(SSL_MODES)}")
    root = given.get("sslrootcert") or environ.get("PGSSLROOTCERT") or os.path.expanduser("~/.postgresql/root.crt")
    if sslmode.startswith("verify") and root != "system" and not os.access(root, os.R_OK):
        raise ValueError(
            f"can't read {root}: PGSSLROOTCERT must name the CA's certificate (Aiven: ca.pem of PostgreSQL)"
        )
    if not sslmode.startswith("verify"):
        logger.warning("PostgreSQL: sslmode=%s does not check whose server it is; verify-full does", sslmode)
    return url, options


# Kafka to PostgreSQL


class Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells the consumer's loop that the group gave it other partitions. Runs on kafka-python's thread."""

    consumer: Any
    changed = False

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        pass

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        # A place to stand, not to read from: the loop asks the database where to go on, and resumes.
        for partition in assigned:
            self.consumer.pause(partition)
            self.consumer.seek(partition, 0)
        self.changed = True


class Recorder:
    """Reads batches from Kafka and gives them to the database in a second thread, reading on meanwhile.

    Where to read from is what the database says, whenever the group assigns partitions and after any error.
    """

    def __init__(
        self,
        make_consumer: Callable[[], Any],
        database: Database,
        kafka_log: KafkaLog,
        topic: str,
        until_empty: bool,
        stop: Stop,
        renew: Callable[[], None] = lambda: None,
        show: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.make_consumer, self.database, self.kafka_log = make_consumer, database, kafka_log
        self.topic, self.until_empty, self.stop, self.clock = topic, until_empty, stop, clock
        self.renew, self.show = renew, show
        self.kafka, self.postgres = Outage("Kafka", logger), Outage("PostgreSQL", logger)
        self.consumer: Any = None
        self.assignment = Assignment()
        self.poll_ms = HASTY_POLL_MS if until_empty else POLL_MS
        self.joined = False  # whether the group assigned partitions, perhaps none
        self.sought = False  # whether the positions are those of the database
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.job: Future[Any] | None = None  # what the database is doing
        self.then: Callable[[Any], None]  # what to do with its result
        self.batches: deque[Batch] = deque()  # read and not recorded, at most two; the first may be on its way
        self.pause_seconds, self.retry_at = RETRY_SECONDS[0], 0.0
        self.heard_at = self.made_at = self.answered_at = clock()  # from Kafka; its consumer; by PostgreSQL
        self.shown_at = self.logged_at = self.verified_at = clock()
        self.ends: dict[TopicPartition, int] | None = None  # where the topic ended at the start
        self.finished = False
        self.recorded = self.shown = self.logged = 0
        self.next_offsets: dict[TopicPartition, int] = {}  # of what is recorded
        # What the database will say when everything read is recorded; None where it says nothing of a partition.
        self.left_at: dict[TopicPartition, int | None] = {}

    def run(self) -> int:
        """Until `stop`, or, with until_empty, until what was there at the start is recorded. The exit status."""
        while not (self.stop.is_set() or self.finished):
            if self.until_empty and self.given_up():
                logger.error("gave up after %.0f seconds", GIVE_UP_SECONDS)
                return 1
            try:
                self.step()
            except (OffsetOutOfRangeError, NoOffsetForPartitionError):
                self.lose_place()
            except KafkaError as error:
                self.lose_place()  # poll() may have skipped records before it raised
                self.kafka.begin(self.kafka_log.cause or plain(str(error)))
                if self.is_stuck(error):
                    self.close_consumer()
                self.renew()  # what Kafka refuses may be a certificate that has ended
                self.stop.wait(1.0)
        return 0

    def is_stuck(self, error: KafkaError) -> bool:
        """Whether only a new consumer can go on. It costs a session's time until the group gives it partitions."""
        if isinstance(error, KafkaTimeoutError):
            return self.kafka_log.cause != REFUSED and self.silent_seconds() > STUCK_SECONDS
        return not isinstance(error, GOES_ON)

    def silent_seconds(self) -> float:
        """For how long this consumer has heard nothing from Kafka."""
        return self.clock() - max(self.heard_at, self.made_at)

    def given_up(self) -> bool:
        """Whether Kafka or PostgreSQL has been away for too long."""
        now = self.clock()
        return bool(
            (self.kafka.causes and now - self.heard_at > GIVE_UP_SECONDS)
            or (self.postgres.causes and now - self.answered_at > GIVE_UP_SECONDS)
        )

    def step(self) -> None:
        """One round of at most a second or so. KafkaError when Kafka refuses or is silent."""
        if self.consumer is None:
            self.assignment.consumer = self.consumer = self.make_consumer()
            self.consumer.subscribe([self.topic], listener=self.assignment)
            self.made_at = self.clock()
        if self.job:
            self.finish_job()
        if self.assignment.changed:
            self.assignment.changed, self.joined = False, True
            self.lose_place()  # what is in hand may be somebody else's now
        free = not self.job and self.clock() >= self.retry_at
        if not self.joined:
            self.consumer.poll(timeout_ms=self.poll_ms)
        elif not self.sought:
            if free:
                if self.kafka.causes:
                    self.ask()
                self.start(self.database.next_offsets, then=self.seek)
            self.stay_in_group()
        elif self.batches and free:
            batch = self.batches[0]
            self.start(self.database.record, batch, then=lambda rejected: self.done(batch, rejected))
        elif len(self.batches) < 2:
            self.read()
        else:
            self.stay_in_group()
        self.ask_if_silent()
        self.report()

    def lose_place(self) -> None:
        """Drop what is in hand, and ask the database where to read: it is read again, here or by another consumer."""
        self.sought = False
        self.batches.clear()

    def start(self, call: Callable[..., Any], *arguments: Any, then: Callable[[Any], None]) -> None:
        """Let the database's thread do something; finish_job() goes on with `then`."""
        self.job, self.then = self.pool.submit(call, *arguments), then

    def finish_job(self) -> None:
        """Go on where the database has answered; try again later where it refused; give up on a silent connection."""
        assert self.job
        if not self.job.done():
            if self.clock() > self.database.deadline:
                self.database.cut()
            return
        job, self.job = self.job, None
        try:
            result = job.result()
        except psycopg2.Error as error:
            self.postgres.begin(explained(error))
            longest = RETRY_SECONDS[2] if error.pgcode or "FATAL" in str(error) else RETRY_SECONDS[1]
            self.retry_at = self.clock() + min(self.pause_seconds, longest)
            self.pause_seconds *= 2
        except Moved:
            self.moved()
        else:
            self.pause_seconds, self.answered_at = RETRY_SECONDS[0], self.clock()
            self.postgres.end()
            self.then(result)

    def moved(self) -> None:
        """Somebody else changed the offsets: a restored backup, or the consumer that has these partitions now."""
        logger.warning("the database's offsets are not where they were left: reading on from where they are")
        self.lose_place()

    def seek(self, stored: Mapping[int, int]) -> None:
        """Read on from the offsets that the database holds; from the start of a partition that it doesn't know."""
        if self.assignment.changed:
            return
        partitions = sorted(self.consumer.assignment())
        if not partitions:  # more consumers than partitions, or no topic: the latter is a KafkaTimeoutError
            self.consumer.end_offsets([TopicPartition(self.topic, 0)], timeout_ms=3000)
        begins = self.consumer.beginning_offsets(partitions, timeout_ms=3000)
        ends = self.consumer.end_offsets(partitions, timeout_ms=3000)
        made_anew = []
        for partition in partitions:
            begin, end = begins[partition], ends[partition]
            offset = stored.get(partition.partition, begin)
            name = f"{partition.topic}/{partition.partition}"
            if offset > end:
                logger.error("%s ends at %d, but %d were read: it was made anew; all of it is read", name, end, offset)
                made_anew.append(partition.partition)
            elif offset < begin:
                logger.error("%s: offsets %d to %d are lost: Kafka's retention deleted them unread",
                             name, offset, begin - 1)  # fmt: skip
            self.consumer.seek(partition, offset if begin <= offset <= end else begin)
            self.left_at[partition] = stored.get(partition.partition)
            if partition.partition in stored and offset <= end:  # whoever recorded it may not have told Kafka
                self.next_offsets[partition] = offset
        if self.until_empty and self.ends is None:
            everything = [TopicPartition(self.topic, n) for n in self.consumer.partitions_for_topic(self.topic)]
            begins = self.consumer.beginning_offsets(everything, timeout_ms=3000)
            ends = self.consumer.end_offsets(everything, timeout_ms=3000)
            self.ends = {partition: end for partition, end in ends.items() if end > begins[partition]}
        self.heard_at = self.clock()
        self.kafka.end()
        if made_anew:  # then ask again where to read
            self.start(self.database.forget, made_anew, then=lambda _: None)
        else:
            self.sought, self.verified_at = True, self.heard_at

    def read(self) -> None:
        """Read the next batch, or see that there is none."""
        if paused := self.consumer.paused():
            self.consumer.resume(*paused)
        polled = self.consumer.poll(timeout_ms=self.poll_ms)
        if self.assignment.changed:
            return
        if polled:
            self.heard_at = self.clock()
            self.kafka.end()
            batch = parse(polled)
            batch.left_at = {partition: self.left_at[partition] for partition in batch.next_offsets}
            self.left_at |= batch.next_offsets
            self.batches.append(batch)
        elif not self.job and not self.batches:
            if self.ends is not None:
                self.start(self.database.next_offsets, then=self.compare)
            elif self.clock() - self.verified_at > LOG_SECONDS:
                self.start(self.database.next_offsets, then=self.verify)

    def verify(self, stored: Mapping[int, int]) -> None:
        """Where nothing comes in, see for a database that was put back to a backup: it is filled up again."""
        self.verified_at = self.clock()
        if any(stored.get(at.partition) != self.left_at[at] for at in self.consumer.assignment() if at in self.left_at):
            self.moved()
        else:
            self.tell(self.next_offsets)  # in a rebalance, Kafka takes none

    def compare(self, stored: Mapping[int, int]) -> None:
        """Finished when each partition is recorded, by this consumer or by another, to where it ended at the start."""
        mine = self.consumer.assignment()
        assert self.ends is not None
        self.finished = all(
            max(stored.get(partition.partition, 0), self.consumer.position(partition) if partition in mine else 0)
            >= end
            for partition, end in self.ends.items()
        )

    def stay_in_group(self) -> None:
        """Wait for the database without reading: a consumer that doesn't poll would hold up the whole group."""
        if self.job:
            wait([self.job], timeout=0.5)
            if self.job.done():
                return
        else:
            self.stop.wait(min(0.5, self.retry_at - self.clock()))
        if assigned := self.consumer.assignment():
            self.consumer.pause(*assigned)
        self.consumer.poll(timeout_ms=100)

    def done(self, batch: Batch, rejected: int) -> None:
        """A batch is recorded: now its offsets may go to Kafka."""
        if self.batches and self.batches[0] is batch:
            self.batches.popleft()
        recorded = len(batch.rows) + len(batch.rejected) - rejected
        self.recorded += recorded
        self.next_offsets |= batch.next_offsets
        if rejected:
            reason = f", the first: {batch.rejected[0][1]}" if batch.rejected else ""
            logger.warning("%d messages went to rejected_messages%s", rejected, reason)
        logger.debug("recorded %d, rejected %d", recorded, rejected)
        self.tell(batch.next_offsets)

    def tell(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Let Kafka show how far this consumer's partitions are recorded."""
        if mine := self.committable(offsets):
            self.consumer.commit_async(mine)

    def committable(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
        """As Kafka takes them, those of this consumer's partitions. Kafka only shows them: the database's count."""
        mine = self.consumer.assignment() if self.consumer else set()
        return {partition: OffsetAndMetadata(n, "", -1) for partition, n in offsets.items() if partition in mine}

    def ask_if_silent(self) -> None:
        """An idle topic and a dead connection look alike: ask. KafkaTimeoutError when it is dead."""
        silent_seconds = self.silent_seconds()
        if silent_seconds > IDLE_SECONDS or (silent_seconds > SUSPECT_SECONDS and self.kafka_log.at > self.heard_at):
            self.ask()
            if self.sought:
                self.kafka.end()

    def ask(self) -> None:
        """Hear from Kafka, or KafkaTimeoutError."""
        self.consumer.end_offsets(list(self.consumer.assignment()) or [TopicPartition(self.topic, 0)], timeout_ms=3000)
        self.heard_at = self.clock()
        self.kafka_log.forget()

    def report(self) -> None:
        """What was recorded: to a terminal each second, to the log each minute, or seldom when it is nothing."""
        now = self.clock()
        if now - self.shown_at >= 1:
            speed, behind = (self.recorded - self.shown) / (now - self.shown_at), self.behind()
            left = f", {behind:,} to go, {behind / speed:,.0f} s left" if behind and speed else ""
            self.show(f"{self.recorded:,} recorded, {speed:,.0f} a second{left}")
            self.shown_at, self.shown = now, self.recorded
        if now - self.logged_at >= (LOG_SECONDS if self.recorded > self.logged else QUIET_SECONDS):
            logger.info("%d recorded in the last %.0f s, %d to go", self.recorded - self.logged, now - self.logged_at,
                        self.behind())  # fmt: skip
            self.logged_at, self.logged = now, self.recorded
            self.renew()

    def behind(self) -> int:
        """How many messages of this consumer's partitions are in Kafka and not recorded."""
        positions = self.committable(self.next_offsets)
        return sum(max(0, (self.consumer.highwater(at) or 0) - n.offset) for at, n in positions.items())

    def close_consumer(self) -> None:
        """Leave the group, or at least this connection."""
        if self.consumer:
            with contextlib.suppress(KafkaError):
                self.consumer.close(timeout_ms=1000)
            self.consumer, self.joined = None, False

    def close(self) -> None:
        """Let the database finish what it is doing, if it can soon, and leave the group."""
        if self.job:
            wait([self.job], timeout=STOP_SECONDS)
            if not self.job.done():
                self.database.cut()
                wait([self.job], timeout=0.5)
            if self.consumer and self.job.done():
                with contextlib.suppress(KafkaError):
                    self.finish_job()
        self.show("")
        logger.info("stopped: %d recorded since the start", self.recorded)
        if offsets := self.committable(self.next_offsets):
            with contextlib.suppress(KafkaError):
                self.consumer.commit(offsets, timeout_ms=1000)
        self.close_consumer()


# --check


def check_postgres(database: Database) -> Generator[Finding, None, dict[int, int] | None]:
    """The server, its clock and its free connections, the tables and the rights. Returns the stored offsets, if any."""
    stored: dict[int, int] = {}
    try:
        with contextlib.closing(psycopg2.connect(database.url, **database.options)) as connection:
            connection.autocommit = True
            info, cursor = connection.info, connection.cursor()
            tls = info.ssl_attribute("protocol") if info.ssl_in_use else "no TLS"
            yield True, f"PostgreSQL {info.server_version // 10000}: {info.host}:{info.port} answers, {tls}"
            cursor.execute(CLOCK_AND_SLOTS)
            server_seconds, free = cursor.fetchone()
            difference = abs(server_seconds - time.time())
            right = difference < CLOCK_SECONDS
            yield right, f"clock: {difference:.1f} s from the server's" + ("" if right else ": set it by NTP")
            yield free > 0, f"connections: {free} free" + ("" if free > 0 else ": end some, or raise max_connections")
            cursor.execute(RIGHTS)
            may_create, may_copy = cursor.fetchone()
            if not may_copy:
                yield False, "no right to make temporary tables: grant TEMPORARY on the database to this user"
            missing = missing_tables(cursor)
            if missing:
                remedy = "will be made" if may_create else "missing, no right to create: let the owner run kconsumer"
                yield may_create, f"{', '.join(missing)}: {remedy}"
            for name, needed in GRANTS.items():
                if name not in missing:
                    yield check_table(cursor, name, needed)
            if "consumed_offsets" not in missing:
                cursor.execute(NEXT_OFFSETS, (database.group, database.topic))
                stored = dict(cursor.fetchall())
            return stored
    except psycopg2.Error as error:
        yield False, f"PostgreSQL: {explained(error)}"
        return None


def check_table(cursor: Any, name: str, needed: list[str]) -> Finding:
    """Whether a table has its columns and this user its rights."""
    columns = COLUMN.findall(TABLES[name])
    cursor.execute(COLUMNS_LACKING, ([column for column, _ in columns], [kind for _, kind in columns], name))
    if absent := [column for (column,) in cursor.fetchall()]:
        return False, f"table {name}: no column {', '.join(absent)}: see the upgrade notes"
    cursor.execute(LACKING, (needed, name))
    if lacking := [right for (right,) in cursor.fetchall()]:
        return False, f"table {name}: no right to {', '.join(lacking)}: grant it to this user"
    return True, f"table {name}: there, as it should be"


def check(settings: argparse.Namespace, kafka_log: KafkaLog) -> Iterator[Finding]:
    """Everything that the consumer needs."""
    options = consumer_options(settings)
    stored = yield from check_postgres(Database(*postgres_options(os.environ), settings.group, settings.topic))
    yield from check_kafka(options, kafka_log, settings.topic, "READ", stored)


# The command line


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=prog,
        description="Record the warnings that come through Apache Kafka in PostgreSQL, each once.",
        epilog="Environment: KAFKA_BOOTSTRAP_SERVERS, KAFKA_SSL_CAFILE, KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE, and "
        "KAFKA_<OPTION> for each option of kafka-python; DATABASE_URL, or PGHOST, PGPORT, PGUSER, PGPASSWORD, "
        "PGDATABASE, PGSSLMODE, PGSSLROOTCERT and libpq's others. Exit status: 0 done or stopped; 1 failed; 2 wrong "
        "usage or settings.",
    )
    add = parser.add_argument
    add("--topic", type=argument(topic_name), default="bandwidth_exceeds", metavar="NAME",
        help="Kafka's topic (default: bandwidth_exceeds)")  # fmt: skip
    add(
        "--group",
        type=argument(printable),
        default="kconsumer",
        metavar="NAME",
        help="Kafka's consumer group (default: kconsumer)",
    )
    add("--until-empty", action="store_true", help="end when everything that was in the topic at the start is recorded")
    add("--check", action="store_true", help="try everything that is needed, change nothing, and say what to do")
    add("-v", "--verbose", action="store_true", help="log more, and tracebacks")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def consumer_options(settings: argparse.Namespace) -> dict[str, Any]:
    """What the KafkaConsumer is made with. ValueError when a setting is wrong."""
    promise = {**CONSUMER_PROMISE, "group_id": settings.group}
    waits = {"fetch_max_wait_ms": HASTY_POLL_MS} if settings.until_empty else {}
    options = kafka_options(KafkaConsumer, os.environ, CONSUMER_OPTIONS | waits, promise)
    if options["request_timeout_ms"] >= options["heartbeat_interval_ms"]:
        raise ValueError("KAFKA_REQUEST_TIMEOUT_MS must be less than KAFKA_HEARTBEAT_INTERVAL_MS")
    return options


def run(settings: argparse.Namespace, stop: Stop, kafka_log: KafkaLog, terminal: Terminal) -> int:
    """Record until stopped. ValueError when a setting is wrong."""
    options = consumer_options(settings)
    certificates = Certificates(options)
    certificates.renew()
    database = Database(*postgres_options(os.environ), settings.group, settings.topic)

    recorder = Recorder(
        lambda: make_client(KafkaConsumer, certificates.context, options),
        database,
        kafka_log,
        settings.topic,
        settings.until_empty,
        stop,
        certificates.renew,
        terminal.show,
    )
    logger.info("started: topic %s, group %s", settings.topic, settings.group)
    try:
        return recorder.run()
    finally:
        recorder.close()


def main(argv: Sequence[str] | None = None) -> int:
    return start(build_parser("kconsumer"), argv, run, check, STOP_SECONDS + 1)


def command() -> NoReturn:
    """Run main() and end at once: threads that wait for a silent network would hold up the end."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(COLLECT_OBJECTS)
    end_process(main())


if __name__ == "__main__":
    command()
