"""One connection, one transaction, one batch: its rows, what is rejected, heartbeats, and how far Kafka was read."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extras

from eventkafkapostgres.heartbeats import upsert_heartbeats
from eventkafkapostgres.message import Batch
from eventkafkapostgres.notify import notify_new_episodes
from eventkafkapostgres.outages import first_line
from eventkafkapostgres.refusals import NAMES, CarefulInsert, is_servers_fault
from eventkafkapostgres.schema import TABLES, create_if_allowed, create_tables, missing_relations

DATABASE_STALL_SECONDS = 8.0  # PostgreSQL made no progress for so long: its connection is given up
SETUP_SECONDS = 600  # the same while an index is made on a table that has rows
COPY_BYTES = 1 << 18  # of COPY's data, sent at once: each such piece that the connection accepts is progress
TOO_SLOW = ("57014", "25P03", "25P04")  # SQLSTATEs: a statement, an idle transaction, a transaction took too long

logger = logging.getLogger(__name__)

# What a role or database has set must not change what a batch needs. Ours are for this transaction alone, so that a
# pooler may give the connection to anybody afterwards. read only is respected: it is how providers protect a full disk.
# synchronous_commit too: after a crash, rows and offsets would be missing together, and be read again. A backend whose
# client is gone, or is behind a network that went silent, would keep its locks for hours: it ends by itself.
BEGIN = """
begin isolation level read committed;
set constraints all immediate;
set local statement_timeout = '30s';
set local lock_timeout = '5s';
set local idle_in_transaction_session_timeout = '15s';
set local tcp_keepalives_idle = 5;
set local tcp_keepalives_interval = 2;
set local tcp_keepalives_count = 3;
set local tcp_user_timeout = '10s'"""
BEGIN_17 = f"{BEGIN};\nset local transaction_timeout = 0"  # PostgreSQL 17 brought this setting
# A kconsumer of ours that waits for a client that is gone, and holds what a batch has waited for: its row in
# consumed_offsets, or one of the tables.
TERMINATE_STALE_BACKENDS = """
select pg_terminate_backend(pid) from pg_stat_activity as stale
where datname = current_database() and usename = session_user
and application_name = current_setting('application_name') and pid <> pg_backend_pid()
and wait_event = 'ClientRead' and state_change < clock_timestamp() - interval '8 s'
and exists (
    select from pg_locks as held where held.pid = stale.pid and granted and (
        transactionid in (
            select xmax from consumed_offsets
            where consumer_group = %s and topic_id = %s::uuid and partition = any(%s)
        ) or relation = any(%s::regclass[])
        and mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    )
)"""
# In a savepoint, for the end of a transaction brings back what the role has set, before any other statement of ours.
COPY = f"savepoint part; copy bandwidth_exceeds ({NAMES}) from stdin"
INSERT_REJECTED = """
insert into rejected_messages (topic_id, partition, "offset", topic, key, value, reason) values %s
on conflict do nothing"""
# Moves the offsets on only from where this consumer left them: not where the database was restored from a backup, or
# another consumer has these partitions now.
COMPARE_AND_SET_OFFSETS = """
update consumed_offsets as stored set next_offset = batch.next_offset
from unnest(%s::integer[], %s::bigint[], %s::bigint[]) as batch (partition, expected_offset, next_offset)
where stored.consumer_group = %s and stored.topic_id = %s::uuid
and stored.partition = batch.partition and stored.next_offset = batch.expected_offset"""
# With its commit in one message: a client that goes silent can't leave a row behind for which all others wait. And
# without ON CONFLICT alone, which would wait for whoever moves the row that is there.
INSERT_INITIAL_OFFSETS = """
insert into consumed_offsets (consumer_group, topic_id, partition, topic, next_offset)
select %(group)s, %(topic_id)s::uuid, partition, %(topic)s, next_offset
from unnest(%(partitions)s::integer[], %(begins)s::bigint[]) as new (partition, next_offset) where not exists (
    select from consumed_offsets as stored where stored.consumer_group = %(group)s
    and stored.topic_id = %(topic_id)s::uuid and stored.partition = new.partition
) on conflict do nothing; commit"""
NEXT_OFFSETS = "select partition, next_offset from consumed_offsets where consumer_group = %s and topic_id = %s::uuid"


class OffsetConflict(Exception):
    """The offsets in the database are not where this consumer left them."""


class BatchTimeout(psycopg2.OperationalError):
    """A batch did not go through in time: a smaller one may."""


def connect(url: str, options: Mapping[str, Any]) -> Any:
    """psycopg2.Error also where the server refuses in an encoding that is not UTF-8, for which psycopg2 has another."""
    try:
        return psycopg2.connect(url, **options)
    except UnicodeDecodeError as error:
        raise psycopg2.OperationalError(error.object.decode(errors="replace")) from error


class Progress(io.BytesIO):
    """What COPY reads; calls back for each piece that the connection accepted."""

    def __init__(self, data: bytes, accepted: Callable[[], None]) -> None:
        super().__init__(data)
        self.accepted = accepted

    def read(self, size: int | None = -1) -> bytes:
        self.accepted()
        return super().read(size)


class Database:
    """PostgreSQL, one connection for each call. A call runs in a thread of its own; who watches it looks at `deadline`.

    Every method raises psycopg2.Error when the database refuses or does not answer: then nothing was changed.
    """

    def __init__(
        self, url: str, options: Mapping[str, Any], group: str, topic: str, channel: str | None = None
    ) -> None:
        # Whatever PGCLIENTENCODING or the role say: what COPY gets is UTF-8.
        self.url, self.options = url, {**options, "client_encoding": "UTF8"}
        self.group, self.topic, self.channel = group, topic, channel
        self.connection: Any = None
        self.deadline = math.inf  # time.monotonic() at which the connection counts as dead
        self.aborted = False
        self.sending = False  # the batch's own statements have begun
        self.needs_setup = True  # tables may be missing
        self.waited_for: tuple[str, list[int]] | None = None  # topic id, partitions: a lock was not given up in time
        self.left_out: set[str] = set()  # hosts whose heartbeats can't be stored
        self.impossible: set[str] = set()  # indexes and the view that this user can't create: tried and logged once

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        """A cursor in a transaction of its own connection; without a commit inside, closing it rolls back."""
        self.aborted = self.sending = False
        self.extend_deadline()
        connection = None
        try:
            connection = self.connection = connect(self.url, self.options)
            connection.autocommit = True  # begin and commit are in our own statements
            self.aborted = False  # of several hosts, the first may have taken all of the time
            self.extend_deadline()
            with connection.cursor() as cursor:
                if self.needs_setup:
                    self.set_up(cursor)
                self.begin(cursor)
                yield cursor
                self.needs_setup = False
        except psycopg2.Error as error:
            self.needs_setup = True
            text = f"no answer for {DATABASE_STALL_SECONDS:.0f} seconds" if self.aborted else first_line(error)
            lost = error.pgcode is None and connection is not None and connection.closed
            if self.sending and (self.aborted or lost or error.pgcode in TOO_SLOW):
                raise BatchTimeout(text) from error
            if self.aborted:
                raise psycopg2.OperationalError(text) from error
            raise
        finally:
            self.connection, self.deadline = None, math.inf
            if connection is not None:
                connection.close()

    def begin(self, cursor: Any) -> None:
        cursor.execute(BEGIN_17 if cursor.connection.info.server_version >= 170000 else BEGIN)

    def extend_deadline(self, seconds: float = DATABASE_STALL_SECONDS) -> None:
        """The next step may take so long before its connection counts as dead."""
        self.deadline = time.monotonic() + seconds

    def abort_connection(self) -> None:
        """Shut the connection's socket down: the thread that waits for it gets an OperationalError at once."""
        self.aborted, self.deadline = True, math.inf
        with (
            contextlib.suppress(OSError, AttributeError, psycopg2.Error),
            socket.socket(fileno=os.dup(self.connection.fileno())) as connected,
        ):
            connected.shutdown(socket.SHUT_RDWR)

    def set_up(self, cursor: Any) -> None:
        """End whoever holds a lock that was waited for; create what is missing."""
        self.begin(cursor)
        missing = missing_relations(cursor)
        tables = [name for name in missing if name in TABLES]
        waited_for, self.waited_for = self.waited_for, None
        if tables:
            create_tables(cursor, tables)
        elif waited_for:
            cursor.execute(TERMINATE_STALE_BACKENDS, (self.group, *waited_for, list(TABLES)))
        for name in missing:
            if name not in TABLES and name not in self.impossible:
                seconds = DATABASE_STALL_SECONDS if tables else SETUP_SECONDS  # an index on many rows takes its time
                self.extend_deadline(seconds)
                if not create_if_allowed(cursor, name, seconds):
                    self.impossible.add(name)
                self.extend_deadline()
        cursor.execute("commit")

    def next_offsets(self, topic_id: UUID, begins: Mapping[int, int] | None = None) -> dict[int, int]:
        """The next offset of each partition, as it was stored with the rows; those not known yet begin at `begins`."""
        with self.transaction() as cursor:
            if begins:
                initial = {"partitions": list(begins), "begins": list(begins.values())}
                names = {"group": self.group, "topic_id": str(topic_id), "topic": self.topic}
                cursor.execute(INSERT_INITIAL_OFFSETS, names | initial)
            cursor.execute(NEXT_OFFSETS, (self.group, str(topic_id)))
            return dict(cursor.fetchall())

    def record(self, batch: Batch) -> list[tuple[Any, str]]:
        """Store a batch and its offsets in one transaction; the records that were rejected, with the reason.

        OffsetConflict when the offsets are not where this consumer left them; BatchTimeout when it took too long.
        """
        with self.transaction() as cursor:
            try:
                rejected = self.store(cursor, batch)
            except psycopg2.errors.LockNotAvailable:
                self.waited_for = str(batch.topic_id), [at.partition for at in batch.next_offsets]
                raise
            self.extend_deadline()
            cursor.execute("commit")
        return rejected

    def store(self, cursor: Any, batch: Batch) -> list[tuple[Any, str]]:
        """Everything of a batch, less the commit; what is rejected."""
        self.move_offsets(cursor, batch)
        self.sending = True
        rejected = list(batch.rejected)
        try:
            copy(cursor, batch, self.extend_deadline)
        except psycopg2.Error as error:
            if is_servers_fault(error):
                raise
            cursor.execute("rollback to savepoint part")
            rejected += CarefulInsert(cursor, self.extend_deadline).run(batch.rows)
        self.extend_deadline()
        if rejected:
            insert_rejected(cursor, batch.topic_id, rejected)
        if batch.heartbeats:
            upsert_heartbeats(cursor, batch.heartbeats, self.left_out)
        if self.channel:
            refused = {id(record) for record, _ in rejected}
            notify_new_episodes(
                cursor, self.channel, (line for record, line in batch.rows if id(record) not in refused)
            )
        return rejected

    def move_offsets(self, cursor: Any, batch: Batch) -> None:
        """Move the offsets on, and hold them until the end of the transaction."""
        partitions = [at.partition for at in batch.next_offsets]
        expected_offsets = [batch.expected_offsets[at] for at in batch.next_offsets]
        offsets = partitions, expected_offsets, list(batch.next_offsets.values())
        cursor.execute(COMPARE_AND_SET_OFFSETS, (*offsets, self.group, str(batch.topic_id)))
        if cursor.rowcount != len(partitions):
            raise OffsetConflict


def copy(cursor: Any, batch: Batch, progress: Callable[[], None]) -> None:
    """All rows at once: none is there when one is refused."""
    if batch.rows:
        lines = "".join([line for _, line in batch.rows])
        cursor.copy_expert(COPY, Progress(lines.encode(), progress), size=COPY_BYTES)


def insert_rejected(cursor: Any, topic_id: UUID, rejected: Sequence[tuple[Any, str]]) -> None:
    """What can't be stored as a warning. The reason may hold characters that the database has no code for."""
    encoding = cursor.connection.info.parameter_status("server_encoding")
    codec = psycopg2.extensions.encodings.get(encoding, "ascii")
    rows = [
        (str(topic_id), record.partition, record.offset, record.topic, record.key, record.value,
         reason.replace("\0", "").encode(codec, "backslashreplace").decode(codec))
        for record, reason in rejected
    ]  # fmt: skip
    psycopg2.extras.execute_values(cursor, INSERT_REJECTED, rows, page_size=1000)
