"""--check: a line for each thing that is needed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Generator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extensions
import psycopg2.extras
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import (
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    KafkaError,
)

from eventkafkapostgres.console import Finding
from eventkafkapostgres.database import Database
from eventkafkapostgres.outages import KafkaLog, explained, plain
from eventkafkapostgres.positions import topic_key
from eventkafkapostgres.schema import TABLES, missing_columns, missing_privileges, missing_relations
from eventkafkapostgres.tls import Certificates, lifetime

CHECK_SECONDS = 8  # how long --check waits for Kafka
CLOCK_SECONDS = 2.0  # a clock that is further from the server's is wrong
CLOCK_AND_SLOTS = """
select extract(epoch from clock_timestamp())::float8, current_setting('max_connections')::int
- current_setting('superuser_reserved_connections')::int - sum(numbackends)::int + 1 from pg_stat_database"""
RIGHTS = """
select has_schema_privilege(current_schema(), 'CREATE'), has_database_privilege(current_database(), 'TEMPORARY')"""
OFFSETS = "select topic_id::text, partition, next_offset from consumed_offsets where consumer_group = %s"

Stored = Mapping[UUID, Mapping[int, int]]  # next offsets by topic id and partition


def check_group(admin: KafkaAdminClient, group: str) -> Finding:
    """Whether this user may join the consumer group."""
    for pause_seconds in (1, 1, 1, 1, 0):
        try:
            found = admin.describe_groups([group])[group]
            if "READ" in (found["authorized_operations"] or "READ"):  # none are told of a group that is not there yet
                return True, f"group {group}: may be joined"
            break
        except GroupAuthorizationFailedError:
            break
        except CoordinatorNotAvailableError:  # a new Kafka makes its topic of offsets when it is first asked
            if not pause_seconds:
                raise
            time.sleep(pause_seconds)
    return False, f"group {group}: no right to READ: grant it to this user"


def check_kafka(
    options: dict[str, Any], kafka_log: KafkaLog, topic: str, right: str, stored: Stored | None = None
) -> Iterator[Finding]:
    """The files, the broker, the topic with this user's right to it ("READ" or "WRITE").

    With a group_id among the options also the group, and how far it is behind: `stored` are its next offsets.
    """
    certificates = Certificates(options)
    for name, count, days in certificates.days_left(datetime.now(UTC)):
        several = f"{count} certificates (a rotation is on), the first " if count > 1 else ""
        yield days >= 0, f"{name}: {several}{lifetime(days)}"
    servers = options["bootstrap_servers"]
    known = {name: value for name, value in options.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
    admin = None
    try:
        # a TLS handshake may take 5 s more than that
        admin = KafkaAdminClient(
            ssl_context=certificates.context, **known | {"bootstrap_timeout_ms": CHECK_SECONDS * 1000}
        )
        described = admin.describe_topics([topic])[0]
        partitions, rights = len(described["partitions"]), described["authorized_operations"] or []
        yield True, f"Kafka: {servers} answers, {options['security_protocol']}"
        if not partitions:
            yield False, f"topic {topic}: missing, or not to be seen by this user; create it and grant DESCRIBE on it"
        elif right not in rights:
            yield False, f"topic {topic}: {partitions} partitions, but no right to {right}: grant it to this user"
        else:
            yield True, f"topic {topic}: {partitions} partitions, {right} is granted"
        if group := options.get("group_id"):
            yield check_group(admin, group)
        if stored is not None and partitions:
            every = [TopicPartition(topic, n) for n in range(partitions)]
            begins = admin.list_partition_offsets(dict.fromkeys(every, OffsetSpec.EARLIEST))
            ends = admin.list_partition_offsets(dict.fromkeys(every, OffsetSpec.LATEST))
            recorded = stored.get(topic_key(described["topic_id"], admin.describe_cluster()["cluster_id"], topic), {})
            behind = (ends[at].offset - max(begins[at].offset, recorded.get(at.partition, 0)) for at in every)
            yield True, f"lag: {sum(max(0, messages) for messages in behind)} messages are not recorded yet"
    except KafkaError as error:
        yield False, f"Kafka: {servers}: {kafka_log.cause or plain(str(error))}"
    finally:
        if admin:
            admin.close()


def check_outbox(path: Path) -> Finding:
    """Whether the outbox can be used, and what waits in it."""
    if not path.exists():
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        right = parent.is_dir() and os.access(parent, os.W_OK)
        return right, f"outbox {path}: " + ("will be made" if right else f"nothing can be made in {parent}")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0)) as outbox:
            outbox.execute("pragma locking_mode = exclusive")  # so that no file is made for sharing it
            return True, f"outbox {path}: {outbox.execute('select count(*) from warnings').fetchone()[0]} warnings wait"
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            return True, f"outbox {path}: in use by a producer that runs"
        return False, f"outbox {path}: {error}; give another --outbox"


def check_postgres(database: Database) -> Generator[Finding, None, Stored | None]:
    """The server, its clock and its free connections, the tables and the rights. Returns the stored offsets, if any."""
    stored: dict[UUID, dict[int, int]] = {}
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
            missing = missing_relations(cursor)
            if missing:
                remedy = "will be made" if may_create else "missing, no right to create: let the owner run kconsumer"
                yield may_create, f"{', '.join(missing)}: {remedy}"
            for name in TABLES:
                if name not in missing:
                    yield check_table(cursor, name)
            if "consumed_offsets" not in missing:
                cursor.execute(OFFSETS, (database.group,))
                for topic_id, partition, next_offset in cursor:
                    stored.setdefault(UUID(topic_id), {})[partition] = next_offset
            return stored
    except psycopg2.Error as error:
        yield False, f"PostgreSQL: {explained(error)}"
        return None


def check_table(cursor: Any, name: str) -> Finding:
    """Whether a table has its columns and this user its rights."""
    if absent := missing_columns(cursor, name):
        return False, f"table {name}: no column {', '.join(absent)}: see the upgrade notes"
    if lacking := missing_privileges(cursor, name):
        return False, f"table {name}: no right to {', '.join(lacking)}: grant it to this user"
    return True, f"table {name}: there, as it should be"
