"""schema.sql as kconsumer uses it: what is missing in the database, and creating that."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import psycopg2

from eventkafkapostgres.outages import first_line

logger = logging.getLogger(__name__)

SCHEMA = re.sub(r" *--.*", "", files("eventkafkapostgres").joinpath("schema.sql").read_text(encoding="utf-8"))
CREATE = re.compile(r"^create (?:or replace )?(table|index|view) (?:if not exists )?(\w+)([^;]*);", re.MULTILINE)
COLUMN = re.compile(r'^    "?(?!primary key)(\w+)"? (double precision|\w+(?:\[\])?)', re.MULTILINE)
STATEMENTS = {found[2]: found[0] for found in CREATE.finditer(SCHEMA)}  # by the name of what each creates, in order
# Recording needs the tables. It goes on without the indexes and the view.
TABLES = {found[2]: dict(COLUMN.findall(found[3])) for found in CREATE.finditer(SCHEMA) if found[1] == "table"}
MISSING_RELATIONS = (
    "select name from unnest(%s::text[]) with ordinality as wanted (name, n) where to_regclass(name) is null order by n"
)
MISSING_COLUMNS = """
select name || ' ' || type from unnest(%s::text[], %s::text[]) as wanted (name, type) where not exists (
    select from pg_attribute where attrelid = %s::regclass and attname = name and not attisdropped)"""
PRIVILEGES = {  # what kconsumer does to each table
    "bandwidth_exceeds": ["INSERT", "SELECT"],
    "rejected_messages": ["INSERT"],
    "consumed_offsets": ["INSERT", "SELECT", "UPDATE"],
    "heartbeats": ["INSERT", "SELECT", "UPDATE"],
}
MISSING_PRIVILEGES = """
select privilege from unnest(%s::text[]) as privilege where exists (
    select from unnest(%s::text[]) as name where not has_column_privilege(%s, name, privilege))"""


def missing_relations(cursor: Any) -> list[str]:
    """The names in schema.sql that the database does not have."""
    cursor.execute(MISSING_RELATIONS, (list(STATEMENTS),))
    return [name for (name,) in cursor.fetchall()]


def missing_columns(cursor: Any, table: str) -> list[str]:
    """The columns that a table of the database lacks, with their types."""
    columns = TABLES[table]
    cursor.execute(MISSING_COLUMNS, (list(columns), list(columns.values()), table))
    return [column for (column,) in cursor.fetchall()]


def missing_privileges(cursor: Any, table: str) -> list[str]:
    """What this user would have to be granted on a table that has all of its columns."""
    cursor.execute(MISSING_PRIVILEGES, (PRIVILEGES[table], list(TABLES[table]), table))
    return [privilege for (privilege,) in cursor.fetchall()]


def create_tables(cursor: Any, names: Sequence[str]) -> None:
    """InsufficientPrivilege names the tables when there is no right to create them."""
    cursor.execute("select pg_advisory_xact_lock(hashtext('eventKafkaPostgres'))")  # one consumer at a time
    try:
        for name in names:
            cursor.execute(STATEMENTS[name])
    except psycopg2.errors.InsufficientPrivilege as error:
        raise psycopg2.errors.InsufficientPrivilege(
            f"there is no {', no '.join(names)}, and no right to create it: {first_line(error)}: "
            "let the owner of the database run kconsumer or schema.sql once"
        ) from error


def create_if_allowed(cursor: Any, name: str, seconds: float) -> bool:
    """Create an index or the view, within so many seconds, or log why there is none."""
    cursor.execute(f"savepoint creating; set local statement_timeout = '{seconds:.0f}s'")
    try:
        cursor.execute(STATEMENTS[name])
    except psycopg2.Error as error:
        if cursor.connection.closed:
            raise
        cursor.execute("rollback to savepoint creating")
        logger.warning("PostgreSQL: there is no %s; recording goes on without it: %s", name, first_line(error))
        return False
    return True
