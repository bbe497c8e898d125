"""Whose fault is it that PostgreSQL refuses a batch? The row's, the table's or the server's, or nobody's.

The row's: it alone is refused, and the table accepts a row that is known to be good in its place. Nobody's: it is there
already. Anything else is the table's or the server's fault, would refuse any row, and is raised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

import psycopg2

from eventkafkapostgres.message import COLUMNS, ESCAPES
from eventkafkapostgres.outages import first_line

Row = tuple[Any, str]  # a record of Kafka, and its line for COPY
Item = TypeVar("Item")

# SQLSTATEs that no row causes, by their first characters: connection, transaction state, authorization, deadlock,
# resources, locks, cancelled or shut down, the operating system, configuration, damaged data.
SERVER_STATES = ("08", "0B", "25", "28", "2D", "3D", "40", "53", "55P", "55006", "57", "58", "F0", "HV", "XX")
MAX_SUSPECTS = 16  # rows that were refused, until a row that is good must be accepted

NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
INSERT = f"insert into bandwidth_exceeds ({NAMES}) values "
VALUES = f"({', '.join(['%s'] * len(COLUMNS))})"
STORED_EVENT_IDS = "select event_id::text from bandwidth_exceeds where event_id = any(%s::uuid[])"
# Whether a unique index has event_id in its key: then a row that violates it is a warning that is there already.
INDEX_HAS_EVENT_ID = """
select exists (
    select from pg_index join pg_attribute on attrelid = indexrelid and attnum <= indnkeyatts
    where indexrelid = to_regclass(format('%%I.%%I', %s::text, %s::text)) and attname = 'event_id')"""
NEWEST_ROW = f"""
select {", ".join(f'"{name}"::text' for name in COLUMNS)} from bandwidth_exceeds order by event_id desc limit 1"""
ORDINARY_ROW = {
    "seconds": "1",
    "host": "kconsumer",
    "interfaces": "{eth0}",
    "bytes_sent_per_second": "1000000",
    "bytes_received_per_second": "1000000",
    "bytes_per_second": "2000000",
    "limit_bytes_per_second": "1000000",
    "message": "Bandwidth exceeded on kconsumer: 2.00 MB/s is over the limit of 1.00 MB/s",
    "extra": None,
}
UNESCAPED = {escape: chr(code) for code, escape in ESCAPES.items()}


def unescape(text: str) -> str:
    return re.sub(r"\\.", lambda escape: UNESCAPED[escape[0]], text)


def copy_fields(line: str) -> list[str | None]:
    """The columns of a line in COPY's text format."""
    return [
        None if column == r"\N" else unescape(column) if "\\" in column else column
        for column in line.removesuffix("\n").split("\t")
    ]


def is_servers_fault(error: psycopg2.Error) -> bool:
    """Whether this error says nothing about what was sent: what was sent may be as good as ever."""
    code, diag = error.pgcode, error.diag
    # A check constraint and a missing partition share their SQLSTATE; the latter has no constraint to name.
    partition_is_missing = code == "23514" and diag.table_name is not None and diag.constraint_name is None
    return code is None or code.startswith(SERVER_STATES) or partition_is_missing


def insert_halving(
    cursor: Any,
    items: Sequence[Item],
    insert: Callable[[Sequence[Item]], None],
    refuse: Callable[[Item, psycopg2.Error], None],
) -> None:
    """Insert what can be inserted: halve what is refused until it is alone, and refuse() that.

    Needs `savepoint part`, and leaves it after what was inserted.
    """
    try:
        insert(items)
        cursor.execute("release savepoint part; savepoint part")
    except psycopg2.Error as error:
        if is_servers_fault(error):
            raise
        cursor.execute("rollback to savepoint part")
        if len(items) == 1:
            refuse(items[0], error)
        else:
            middle = len(items) // 2
            for half in (items[:middle], items[middle:]):
                insert_halving(cursor, half, insert, refuse)


class CarefulInsert:
    """Inserts the rows that are not there yet, in the cursor's transaction. `progress` is called before each statement.

    It needs `savepoint part`, and neither a temporary table nor ON CONFLICT, which rules, views and deferrable
    constraints refuse, and it parses nothing that the server says.
    """

    def __init__(self, cursor: Any, progress: Callable[[], None]) -> None:
        self.cursor, self.progress = cursor, progress
        self.refused: list[tuple[tuple[Row, bytes], psycopg2.Error]] = []
        self.rows_fault: set[str | None] = set()  # SQLSTATEs with which the table refuses some rows and accepts others

    def run(self, rows: Sequence[Row]) -> list[tuple[Any, str]]:
        """The records of the rows that are rejected, with the reason. psycopg2.Error when it isn't the rows' fault."""
        while rows:
            stored, new, again = self._stored(rows), {}, []
            for row in rows:
                if (event_id := event_id_of(row)) in new:
                    again.append(row)  # looked at when it is known whether the first one was recorded
                elif event_id not in stored:
                    new[event_id] = row
            items = [(row, self.cursor.mogrify(VALUES, copy_fields(row[1]))) for row in new.values()]
            # COPY refused them all, so less than all are tried first
            for part in (items[: len(items) // 2], items[len(items) // 2 :]):
                if part:
                    insert_halving(self.cursor, part, self._insert, self._refuse)
            rows = again
        if self.refused:
            self._blame_the_rows()
            self._try_unique_ones_again()
        return [(record, first_line(error)) for ((record, _), _), error in self.refused]

    def _insert(self, items: Sequence[tuple[Row, bytes]]) -> None:
        self.progress()
        self.cursor.execute(INSERT.encode() + b",".join([values for _, values in items]))

    def _refuse(self, item: tuple[Row, bytes], error: psycopg2.Error) -> None:
        row, _ = item
        if error.pgcode == "23505" and self._is_duplicate(row, error):
            return
        self.refused.append((item, error))
        if len(self.refused) == MAX_SUSPECTS:
            self._blame_the_rows()

    def _is_duplicate(self, row: Row, error: psycopg2.Error) -> bool:
        self.cursor.execute(INDEX_HAS_EVENT_ID, (error.diag.schema_name, error.diag.constraint_name))
        return bool(self.cursor.fetchone()[0] or self._stored([row]))

    def _stored(self, rows: Sequence[Row]) -> set[str]:
        """The event_ids that are in the table."""
        self.cursor.execute(STORED_EVENT_IDS, ([event_id_of(row) for row in rows],))
        return {stored for (stored,) in self.cursor.fetchall()}

    def _blame_the_rows(self) -> None:
        """Raise a refusal unless the table accepts a good row in its place; each SQLSTATE is tried once."""
        for ((_, line), _), error in self.refused:
            if error.pgcode not in self.rows_fault:
                if not self._accepts_a_good_row_for(line):
                    raise error
                self.rows_fault.add(error.pgcode)

    def _accepts_a_good_row_for(self, line: str) -> bool:
        """Whether an ordinary row or the newest one would be accepted in its place, at its time or now."""
        place = dict(zip(COLUMNS, copy_fields(line), strict=True))
        self.cursor.execute(NEWEST_ROW)
        newest = [dict(zip(COLUMNS, row, strict=True)) for row in self.cursor.fetchall()]
        return any(
            self._accepts(good | {name: place[name] for name in ("topic", "partition", "offset")}, observed_at)
            for observed_at in (place["observed_at"], datetime.now(UTC).isoformat())
            for good in (ORDINARY_ROW, *newest)
        )

    def _try_unique_ones_again(self) -> None:
        """A sequence that was behind its column's values is past them now: what it refused was as good as any row."""
        again = [item for item, error in self.refused if error.pgcode == "23505"]
        if again:
            self.refused = [refused for refused in self.refused if refused[1].pgcode != "23505"]
            insert_halving(self.cursor, again, self._insert, self._refuse)

    def _accepts(self, row: dict[str, str | None], observed_at: str | None) -> bool:
        """Whether the table would accept this row as a new warning of that time."""
        self.progress()
        row |= {"event_id": str(uuid4()), "observed_at": observed_at, "episode_started_at": observed_at}
        try:
            self.cursor.execute(INSERT + VALUES, [row[name] for name in COLUMNS])
        except psycopg2.Error as error:
            if error.pgcode is None or error.pgcode.startswith(SERVER_STATES):
                raise
            return False
        finally:
            if not self.cursor.connection.closed:
                self.cursor.execute("rollback to savepoint part")
        return True


def event_id_of(row: Row) -> str:
    """The row's event_id, as PostgreSQL writes it."""
    return row[1].partition("\t")[0].lower()
