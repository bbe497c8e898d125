"""Whether the rate falls with what is stored: empty tables and full ones, with keys of UUID version 7 and version 4.

Four schemas hold the consumer's tables; the full ones were filled by SQL, with keys like those of the messages. A round
brings new messages into each of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from bench.load import BEGIN, HOSTS, load, messages, uuid4
from bench.systems import consumers, query
from eventkafkapostgres.message import uuid7
from eventkafkapostgres.schema import STATEMENTS
from servers import Servers

SECONDS_BETWEEN_ROUNDS = 1_000_000
KEYS: dict[str, Callable[[float, int], UUID]] = {"v7": uuid7, "v4": uuid4}
# As wide as the messages' rows, from before them; a host's in order.
FILL = f"""
insert into bandwidth_exceeds (event_id, observed_at, seconds, episode_started_at, host, interfaces,
    bytes_sent_per_second,
    bytes_received_per_second, bytes_per_second, limit_bytes_per_second, message, topic, partition, "offset")
select {{key}}, at, 1, timestamptz '{BEGIN}' - interval '1 s', host, array['eth0'], n % 99991 + 0.1,
    n % 999983 + 0.2, n % 999983 + n % 99991 + 0.3, 1e6,
    'Bandwidth exceeded on ' || host || ': 4.56 MB/s is over the limit of 1.00 MB/s', 'before', n % 4, n
from generate_series(1, {{rows}}) as n,
lateral (select 'web-' || n % {HOSTS} as host, timestamptz '{BEGIN}' - ({{rows}} - n) / {HOSTS} * interval '1 s'
    - interval '1 s' as at)"""
KEY = {"v4": "gen_random_uuid()", "v7": "uuidv7(at - clock_timestamp())"}
INDEXES = [name for name in STATEMENTS if name.startswith("bandwidth_exceeds_")]
WAL = "select pg_current_wal_insert_lsn() - '0/0'"


@dataclass
class Grown:
    """One round: rows that were there, how fast others came, and what they cost the server's log."""

    keys: str
    stored: int
    rows_per_second: float
    wal_bytes_per_row: float


def fill(running: Servers, schema: str, keys: str, rows: int) -> None:
    """The consumer's tables in a schema of their own, with so many rows, and their indexes as just built."""
    path = f"set search_path = {schema}; set maintenance_work_mem = '512MB'; "
    query(running, f"create schema {schema}")
    for statement in STATEMENTS.values():
        query(running, path + statement)
    if rows:
        drop = "alter table bandwidth_exceeds drop constraint bandwidth_exceeds_pkey; "
        drop += f"drop index {', '.join(INDEXES)}; "
        query(running, path + drop + FILL.format(key=KEY[keys], rows=rows))
        query(running, path + "alter table bandwidth_exceeds add primary key (event_id)")
        for name in INDEXES:
            query(running, path + STATEMENTS[name])
        query(running, f"vacuum analyze {schema}.bandwidth_exceeds")


def growth(
    running: Servers, rows: int, count: int, rounds: int, partitions: int, report: Callable[[str], None]
) -> list[Grown]:
    """Rounds of all four, in turn."""
    tables = [(keys, stored) for keys in KEYS for stored in (0, rows)]
    for keys, stored in tables:
        report(f"Filling a table with {stored:,} rows, keys {keys} ...")
        fill(running, f"{keys}_{stored}", keys, stored)
    grown = []
    for number in range(rounds):
        begin = BEGIN + timedelta(seconds=SECONDS_BETWEEN_ROUNDS * number)
        for keys, make_id in KEYS.items():
            load(running, f"growth-{keys}-{number}", partitions, messages(count, 0, make_id, begin))
        for keys, stored in tables:
            schema = f"{keys}_{stored}"
            if not stored:
                query(running, f"truncate {schema}.bandwidth_exceeds")
            query(running, "checkpoint", "postgres")
            before = query(running, WAL)[0][0]
            result = consumers(1, f"growth-{keys}-{number}", schema, begin)(running, count)
            wal = float(query(running, WAL)[0][0] - before) / result.rows
            grown.append(Grown(keys, stored, result.rows_per_second, wal))
            report(f"{number + 1}: {keys} keys on {stored:,} rows: {result.rows_per_second:,.0f} rows/s")
    return grown
