"""Whose fault a refusal is, and the halving that finds it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventkafkapostgres.message import COLUMNS, ESCAPES
from eventkafkapostgres.refusals import ORDINARY_ROW, copy_fields, insert_halving, is_servers_fault


class Refused(psycopg2.DataError):
    """What psycopg2 raises, with the fields that the server sent."""

    def __init__(self, code: str | None, table: str | None = None, constraint: str | None = None) -> None:
        super().__init__("refused")
        self.code, self.fields = code, SimpleNamespace(table_name=table, constraint_name=constraint)

    pgcode = property(lambda self: self.code)  # type: ignore[assignment]
    diag = property(lambda self: self.fields)  # type: ignore[assignment]


class Transaction:
    """Savepoints over a list."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.saved: list[int] = []
        self.statements = 0

    def execute(self, statement: str) -> None:
        if statement.startswith("rollback"):
            self.rows = self.saved[:]
        else:
            self.saved = self.rows[:]


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_the_columns_of_a_line_are_what_was_escaped(columns: list[str]) -> None:
    line = "\t".join(column.translate(ESCAPES) for column in columns) + "\n"
    assert copy_fields(line) == columns


def test_a_null_is_no_text() -> None:
    assert copy_fields("\\N\t\\\\N\tN\t\n") == [None, "\\N", "N", ""]


@given(st.integers(1, 300), st.sets(st.integers(0, 299)))
def test_halving_inserts_all_but_what_is_refused_alone(count: int, bad: set[int]) -> None:
    transaction, refused = Transaction(), []

    def insert(items: Sequence[int]) -> None:
        transaction.statements += 1
        for item in items:
            if item in bad:
                raise Refused("22003")
            transaction.rows.append(item)

    insert_halving(transaction, range(count), insert, lambda item, error: refused.append(item))
    assert transaction.rows == [n for n in range(count) if n not in bad]
    assert refused == sorted(n for n in bad if n < count)
    assert transaction.statements <= 1 + 2 * len(refused) * count.bit_length()


@pytest.mark.parametrize(
    ("code", "diag", "servers"),
    [
        (None, {}, True),  # the connection is gone
        ("08006", {}, True),
        ("25006", {}, True),  # read only
        ("25P03", {}, True),  # idle in the transaction for too long
        ("40001", {}, True),
        ("40P01", {}, True),
        ("53100", {}, True),  # the disk is full
        ("53200", {}, True),
        ("55P03", {}, True),  # a lock was not given
        ("57014", {}, True),  # cancelled
        ("57P01", {}, True),
        ("58030", {}, True),
        ("XX002", {}, True),  # a damaged index
        ("23514", {"table": "bandwidth_exceeds"}, True),  # a partition is missing
        ("23514", {"table": "bandwidth_exceeds", "constraint": "mine"}, False),
        ("23514", {}, False),  # a trigger's
        ("22003", {}, False),
        ("22P05", {}, False),
        ("23505", {"table": "bandwidth_exceeds", "constraint": "mine"}, False),
        ("42501", {}, False),  # row-level security, or no right: a good row tells
        ("54000", {}, False),
        ("55000", {}, False),
        ("P0001", {}, False),
    ],
)
def test_what_no_row_causes_is_the_servers_fault(code: str | None, diag: dict[str, Any], servers: bool) -> None:
    assert is_servers_fault(Refused(code, **diag)) == servers


def test_the_ordinary_row_has_every_column_that_is_not_given_to_it() -> None:
    given_to_it = {"event_id", "observed_at", "episode_started_at", "topic", "partition", "offset"}
    assert ORDINARY_ROW.keys() | given_to_it == {*COLUMNS}
