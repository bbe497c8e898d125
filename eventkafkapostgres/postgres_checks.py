"""--check of PostgreSQL: the server, the tables and the privileges."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg2

from eventkafkapostgres.checks import CheckResult, Found
from eventkafkapostgres.database import Database, connect
from eventkafkapostgres.outages import explain_postgres_error
from eventkafkapostgres.schema import TABLES, missing_columns, missing_privileges, missing_relations

CLOCK_SECONDS = 2.0  # a clock that is further from the server's is wrong
SERVER = """
select current_setting('transaction_read_only')::bool, extract(epoch from clock_timestamp())::float8,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
    - sum(numbackends)::int + 1
from pg_stat_database"""
MAY_CREATE = "select has_schema_privilege(current_schema(), 'CREATE')"
OFFSETS = "select topic_id::text, partition, next_offset from consumed_offsets where consumer_group = %s"


def check_postgres(database: Database, found: Found) -> Iterator[CheckResult]:
    """The server, its clock and its free connections, the tables and the privileges; the group's offsets are found."""
    stored: dict[UUID, dict[int, int]] = defaultdict(dict)
    try:
        with contextlib.closing(connect(database.url, database.options)) as connection:
            connection.autocommit = True
            info, cursor = connection.info, connection.cursor()
            sslmode = info.dsn_parameters.get("sslmode", "")
            verified = "" if sslmode.startswith("verify") else f" (sslmode={sslmode} does not check whose server it is)"
            tls = f"{info.ssl_attribute('protocol')}{verified}" if info.ssl_in_use else "no TLS"
            yield CheckResult(
                True, f"PostgreSQL {info.server_version // 10000}: {info.host}:{info.port} answers, {tls}"
            )
            yield from check_server(cursor)
            if missing := missing_relations(cursor):
                cursor.execute(MAY_CREATE)
                (may_create,) = cursor.fetchone()
                remedy = "will be made" if may_create else "missing, no right to create: let the owner run kconsumer"
                yield CheckResult(may_create, f"{', '.join(missing)}: {remedy}")
            for name in TABLES:
                if name not in missing:
                    yield check_table(cursor, name)
            if "consumed_offsets" not in missing:
                cursor.execute(OFFSETS, (database.group,))
                for topic_id, partition, next_offset in cursor:
                    stored[UUID(topic_id)][partition] = next_offset
            found.stored = stored
    except psycopg2.Error as error:
        yield CheckResult(False, f"PostgreSQL: {explain_postgres_error(error)}")


def check_server(cursor: Any) -> Iterator[CheckResult]:
    """Whether the server can be written to; its clock, and its free connections."""
    cursor.execute(SERVER)
    read_only, server_seconds, free = cursor.fetchone()
    if read_only:
        yield CheckResult(False, "PostgreSQL: read-only: give the primary server, or see why it takes no rows")
    difference = abs(server_seconds - time.time())
    ok = difference < CLOCK_SECONDS
    yield CheckResult(ok, f"clock: {difference:.1f} s from the server's" + ("" if ok else ": set it by NTP"))
    yield CheckResult(
        free > 0, f"connections: {free} free" + ("" if free > 0 else ": end some, or raise max_connections")
    )


def check_table(cursor: Any, name: str) -> CheckResult:
    """Whether a table has its columns, and this user its privileges."""
    if absent := missing_columns(cursor, name):
        return CheckResult(False, f"table {name}: no column {', '.join(absent)}: see the upgrade notes")
    if lacking := missing_privileges(cursor, name):
        return CheckResult(False, f"table {name}: no right to {', '.join(lacking)}: grant it to this user")
    return CheckResult(True, f"table {name}: there, as it should be")
