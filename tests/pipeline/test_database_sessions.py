"""The database's side of a batch: sessions, settings of the role, encodings, locks, silence, and what is set up."""

import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest
from databases import START, TOPIC_ID, Own, Record, new_database, row, watched
from pipeline import wait_until

from eventkafkapostgres import database as module
from eventkafkapostgres.database import BatchTimeout, Database, OffsetConflict
from eventkafkapostgres.schema import SCHEMA, STATEMENTS, TABLES, missing_columns, missing_privileges
from servers import HOST, Postgres, Proxy
from servers.process import Port


@pytest.fixture
def made(own: Own) -> Own:
    """A database with our tables, as kconsumer makes them."""
    own.database.next_offsets(TOPIC_ID)
    return own


# Offsets


def test_the_offsets_are_those_of_one_group_and_one_topic_id(made: Own) -> None:
    made.record([row(), row()])
    assert made.database.next_offsets(TOPIC_ID) == {0: 2}
    assert made.database.next_offsets(uuid4()) == {}
    (stored,) = made.sql("select * from consumed_offsets")
    assert (stored["consumer_group"], stored["topic"]) == ("kconsumer", "bandwidth_exceeds")


@pytest.mark.parametrize("expected_offset", [1, 3])
def test_a_batch_that_does_not_begin_where_the_offsets_are_changes_nothing(made: Own, expected_offset: int) -> None:
    made.record([row(), row()])
    batch = made.batch([row()])
    batch.expected_offsets = dict.fromkeys(batch.expected_offsets, expected_offset)
    with pytest.raises(OffsetConflict):
        made.database.record(batch)
    assert len(made.event_ids()) == 2
    assert made.consumed() == {0: 2}


def test_offsets_that_are_gone_are_a_conflict(made: Own) -> None:
    made.record([row()])
    batch = made.batch([row()])
    made.sql("truncate consumed_offsets")
    with pytest.raises(OffsetConflict):
        made.database.record(batch)


def test_a_rejected_message_is_kept_byte_for_byte_under_its_topic_id(made: Own) -> None:
    rejected = [(Record(7, b"\xff\0", None), "no JSON: \0"), (Record(8, None, b"\0"), "a tombstone")]
    assert made.record([], rejected=rejected) == {7: "no JSON: \0", 8: "a tombstone"}
    first, second = made.sql('select * from rejected_messages order by "offset"')
    assert (bytes(first["value"]), first["key"], first["reason"]) == (b"\xff\0", None, "no JSON: ")
    assert (second["value"], bytes(second["key"]), second["topic"]) == (None, b"\0", "bandwidth_exceeds")
    assert first["topic_id"] == str(TOPIC_ID)


# Heartbeats


def heartbeats(own: Own) -> dict[str, datetime]:
    return {each["host"]: each["heartbeat_at"] for each in own.sql("select host, heartbeat_at from heartbeats")}


def test_only_a_later_heartbeat_counts(made: Own) -> None:
    for seconds in (10, 5, 10, 20, 0):
        made.record([], heartbeats={"web-1": START + timedelta(seconds=seconds)})
    assert heartbeats(made) == {"web-1": START + timedelta(seconds=20)}


def test_a_heartbeat_of_the_future_counts_as_one_of_now(made: Own) -> None:
    made.record([], heartbeats={"new": datetime(2038, 1, 1, tzinfo=UTC)})
    made.sql("insert into heartbeats values ('old', '2038-01-01')")
    made.record([], heartbeats={"old": datetime.now(UTC) - timedelta(seconds=30)})
    assert abs(heartbeats(made)["new"] - datetime.now(UTC)) < timedelta(seconds=20)
    assert timedelta(seconds=25) < datetime.now(UTC) - heartbeats(made)["old"] < timedelta(seconds=60)


# Encodings

LATIN1, TOKYO = "Zürich", "東京"


@pytest.mark.parametrize("client_encoding", [None, "LATIN1", "SJIS"])
@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1", "SQL_ASCII"])
def test_every_encoding_stores_what_it_can_and_rejects_the_rest(
    postgres_server: Postgres,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    encoding: str,
    client_encoding: str | None,
) -> None:
    if client_encoding:
        monkeypatch.setenv("PGCLIENTENCODING", client_encoding)
    with new_database(postgres_server, f"encoding '{encoding}' lc_collate 'C' lc_ctype 'C'") as own:
        beats = dict.fromkeys((LATIN1, TOKYO), START)
        refused = {1, 2} if encoding == "LATIN1" else {2}
        rejected = own.record(
            [row(LATIN1), row(TOKYO), row(seconds="1e400")],
            heartbeats=beats,
            rejected=[(Record(99), f"no {TOKYO}")],
        )
        assert rejected.keys() == refused | {99}
        assert own.record([row()], heartbeats=beats) == {}
        with closing(own.connect(client_encoding="UTF8")) as connection, connection.cursor() as cursor:
            cursor.execute("select host from bandwidth_exceeds union select host from heartbeats")
            hosts = {host for (host,) in cursor.fetchall()}
            cursor.execute('select reason from rejected_messages where partition = 0 and "offset" = 99')
            ((reason,),) = cursor.fetchall()
        assert hosts == {"web-1", LATIN1} | ({TOKYO} if encoding != "LATIN1" else set())
        assert reason == (f"no {TOKYO}" if encoding == "UTF8" else r"no \u6771\u4eac")
        left_out = [record.message for record in caplog.records if "heartbeats of" in record.message]
        assert len(left_out) == (encoding == "LATIN1")


# What the role or the database has set


@pytest.mark.parametrize(
    "setting",
    [
        "statement_timeout = 5",
        "lock_timeout = 1",
        "idle_in_transaction_session_timeout = 1",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_isolation = 'repeatable read'",
        "default_transaction_deferrable = on",
        "client_encoding = 'LATIN1'",
        "standard_conforming_strings = off",
        "datestyle = 'SQL, DMY'",
        "timezone = 'Asia/Kathmandu'",
        "synchronous_commit = off",
        "search_path = mine, public",
        "array_nulls = off",
        "transform_null_equals = on",
        "bytea_output = escape",
        "row_security = off",
        "transaction_timeout = 20",
    ],
)
def test_what_the_role_has_set_changes_nothing(made: Own, setting: str) -> None:
    name, *_ = setting.split()
    if not made.sql("select name from pg_settings where lower(name) = %s", name):
        pytest.skip(f"this PostgreSQL has no {name}")
    made.sql(f"create schema mine; alter role events in database {made.name} set {setting}")
    many = [row("Zürich 'n' \\ co", second, extra='{"n": [1, null]}') for second in range(3000)]
    assert made.record([*many, row(seconds="1e400")], heartbeats={"Zürich": START}).keys() == {3000}
    assert made.record(many) == {}
    (found,) = made.sql("select count(*), min(host) as host, min(observed_at) as first from bandwidth_exceeds")
    assert found == {"count": 3000, "host": "Zürich 'n' \\ co", "first": START}
    assert heartbeats(made) == {"Zürich": START}


def test_what_the_role_has_set_ends_no_session_behind_a_refusal(made: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a transaction brings the role's timeout back, and without a savepoint an error is such an end."""
    made.sql(f"alter role events in database {made.name} set idle_in_transaction_session_timeout = 1")
    is_servers_fault = module.is_servers_fault

    def slowly(error: psycopg2.Error) -> bool:
        time.sleep(0.1)
        return is_servers_fault(error)

    monkeypatch.setattr(module, "is_servers_fault", slowly)
    twice = [row()]
    assert made.record(twice) == made.record(twice) == {}


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_of_two_consumers_of_one_partition_one_finds_the_offsets_moved(made: Own, isolation: str) -> None:
    made.sql(f"alter role events in database {made.name} set default_transaction_isolation = '{isolation}'")
    made.record([row()])
    batch = made.batch([row()])
    with closing(made.connect("events")) as other, other.cursor() as cursor, ThreadPoolExecutor(1) as pool:
        cursor.execute("begin; update consumed_offsets set next_offset = 5")
        job = pool.submit(made.database.record, batch)
        wait_until(lambda: made.sql("select pid from pg_locks where not granted"), "waiting")
        cursor.execute("commit")
        with pytest.raises(OffsetConflict):
            job.result()
    assert len(made.event_ids()) == 1


# Locks


def hold(own: Own, statement: str) -> psycopg2.extensions.connection:
    """A backend of another kconsumer that holds a lock, and whose client is gone."""
    connection = own.connect("events", application_name="kconsumer")
    with connection.cursor() as cursor:
        cursor.execute(f"begin; {statement}")
    return connection


def runs(own: Own, pid: int) -> bool:
    return bool(own.sql("select pid from pg_stat_activity where pid = %s", pid))


class Silent:
    """What COPY reads from a colleague who has nothing to send until the end."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def read(self, size: int) -> str:
        self.end.wait()
        return ""


@pytest.mark.parametrize(
    "statement", ["update consumed_offsets set next_offset = 1", "lock bandwidth_exceeds in share mode"]
)
def test_only_who_holds_a_lock_that_is_waited_for_is_ended(
    made: Own, postgres_server: Postgres, statement: str
) -> None:
    made.record([row()])
    batch, silent = made.batch([row()]), Silent()
    with new_database(postgres_server) as elsewhere, ThreadPoolExecutor(1) as pool:
        elsewhere.record([row()])
        stale, innocent = hold(made, statement), hold(elsewhere, statement)
        colleague = made.connect("events", application_name="kconsumer")
        copying = pool.submit(colleague.cursor().copy_expert, "copy rejected_messages from stdin", silent)
        try:
            refusals = 0
            with pytest.raises(psycopg2.errors.LockNotAvailable):  # it isn't stale yet
                made.database.record(batch)
            while not made.event_ids()[1:]:
                try:
                    made.database.record(batch)
                except psycopg2.errors.LockNotAvailable:
                    refusals += 1
            assert refusals <= 2
            assert not runs(made, stale.info.backend_pid)
            assert runs(made, innocent.info.backend_pid)
            assert runs(made, colleague.info.backend_pid)
        finally:
            silent.end.set()
        copying.result()
        for connection in (stale, innocent, colleague):
            connection.close()


# Time and silence


def test_a_batch_that_takes_too_long_is_recognized_and_half_of_it_goes_through(made: Own) -> None:
    made.sql("""
        create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.01); return new; end $$;
        create trigger slow before insert on bandwidth_exceeds for each row execute function slow()""")
    rows = [row(second=second) for second in range(1000)]
    made.database.next_offsets(TOPIC_ID, {0: 0})
    with pytest.raises(BatchTimeout, match="no answer for 8 seconds"):
        watched(made.database, lambda: made.database.record(made.batch(rows)))
    assert made.event_ids() == []
    assert watched(made.database, lambda: made.record(rows[:500])) == {}
    assert len(made.event_ids()) == 500


@pytest.mark.parametrize("end", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_batch_that_is_interrupted_changes_nothing(made: Own, end: str) -> None:
    made.record([row()])
    batch = made.batch([row()])
    with closing(made.connect()) as other, other.cursor() as cursor, ThreadPoolExecutor(1) as pool:
        cursor.execute("begin; lock bandwidth_exceeds")
        job = pool.submit(made.database.record, batch)
        (waiting,) = wait_until(lambda: made.sql("select pid from pg_locks where not granted"), "waiting")
        made.sql(f"select {end}(%s)", waiting["pid"])
        with pytest.raises(BatchTimeout):
            job.result()
        cursor.execute("commit")
    assert made.database.record(batch) == []
    assert len(made.event_ids()) == 2


@pytest.fixture
def proxy(postgres_server: Postgres) -> Iterator[Proxy]:
    with Proxy(postgres_server.address) as started:
        yield started


@pytest.mark.parametrize("step", ["set_up", "begin", "store"])
def test_a_network_that_goes_silent_is_noticed_within_the_stall_deadline(
    made: Own, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made.record([row()])
    database = made.connector(url=made.server.uri(address=proxy.address))
    original = getattr(Database, step)

    def silent(*arguments: object) -> object:
        proxy.mode = "black hole"
        return original(*arguments)

    monkeypatch.setattr(Database, step, silent)
    batch, began = made.batch([row()]), time.monotonic()
    with pytest.raises(psycopg2.OperationalError, match="no answer for 8 seconds"):
        watched(database, lambda: database.record(batch))
    assert time.monotonic() - began < module.DATABASE_STALL_SECONDS + 3
    monkeypatch.undo()
    proxy.mode = "pass"
    assert database.record(batch) == []
    assert len(made.event_ids()) == 2


def test_a_batch_that_the_network_swallows_is_a_batch_that_took_too_long(made: Own, proxy: Proxy) -> None:
    database = made.connector(url=made.server.uri(address=proxy.address))
    many = made.batch([row(message="x" * 1000) for _ in range(3000)])
    database.next_offsets(TOPIC_ID, {0: 0})
    proxy.reset(after_bytes=1 << 20)
    with pytest.raises(BatchTimeout):
        database.record(many)
    assert database.record(many) == []


# What is set up


def test_schema_sql_runs_again_and_again(own: Own) -> None:
    for _ in range(3):
        own.sql(SCHEMA, user="events")
    assert [name for name in STATEMENTS if not own.sql("select 1 where to_regclass(%s) is not null", name)] == []


def test_consumers_that_start_at_once_set_up_one_schema(own: Own) -> None:
    databases = [own.connector() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert [*pool.map(lambda database: database.next_offsets(TOPIC_ID), databases)] == [{}] * 6


def test_recording_needs_no_view_no_index_and_no_right_to_create_them(
    made: Own, caplog: pytest.LogCaptureFixture
) -> None:
    made.sql("""
        drop view bandwidth_episodes; drop index bandwidth_exceeds_times;
        alter table bandwidth_exceeds owner to postgres; grant select, insert on bandwidth_exceeds to events;
        alter schema public owner to postgres; revoke create on schema public from public, events""")
    made.database = made.connector()
    for _ in range(2):
        made.record([row()])
        made.database.needs_setup = True
    assert len(made.event_ids()) == 2
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.WARNING, f"PostgreSQL: there is no {name}; recording goes on without it: {reason}")
        for name, reason in (
            ("bandwidth_exceeds_times", "must be owner of table bandwidth_exceeds"),
            ("bandwidth_episodes", "permission denied for schema public"),
        )
    ]


def test_a_table_that_is_missing_and_may_not_be_created_is_named(made: Own) -> None:
    made.sql("""
        drop table heartbeats; alter schema public owner to postgres;
        revoke create on schema public from public, events""")
    made.database = made.connector()
    for _ in range(2):
        with pytest.raises(
            psycopg2.errors.InsufficientPrivilege, match="there is no heartbeats, and no right to create"
        ):
            made.record([row()])
    made.sql(STATEMENTS["heartbeats"] + "; grant select, insert, update on heartbeats to events")
    assert made.record([row()], heartbeats={"web-1": START}) == {}


def test_tables_that_are_dropped_are_made_again(made: Own) -> None:
    made.record([row()])
    made.sql("drop table bandwidth_exceeds cascade")
    with pytest.raises(psycopg2.errors.UndefinedTable):
        made.record([row()])
    assert made.record([row()]) == {}
    assert len(made.event_ids()) == 1
    assert made.sql("select host from bandwidth_episodes")


def test_what_is_missing_in_a_table_and_to_a_user_is_found(made: Own) -> None:
    made.sql("""
        alter table heartbeats drop column recorded_at; alter table consumed_offsets owner to postgres;
        grant select on consumed_offsets to events; grant insert (consumer_group) on consumed_offsets to events""")
    with closing(made.connect("events")) as connection, connection.cursor() as cursor:
        assert {table: found for table in TABLES if (found := missing_columns(cursor, table))} == {
            "heartbeats": ["recorded_at timestamptz"]
        }
        assert {t: found for t in TABLES if t != "heartbeats" and (found := missing_privileges(cursor, t))} == {
            "consumed_offsets": ["INSERT", "UPDATE"]
        }


# A pooler

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@pytest.fixture
def pooled(made: Own, tmp_path: Path) -> Iterator[Database]:
    """A consumer's database behind PgBouncer in transaction mode, with a single connection to the server."""
    if PGBOUNCER is None:
        pytest.skip("pgbouncer is not installed")
    host, port = made.server.address
    directory = Path("/tmp", f"pgbouncer-{made.name}")
    directory.mkdir(mode=0o777)
    listen = Port()
    (directory / "users").write_text(f'"events" "{made.server.passwords["events"]}"\n')
    (directory / "ini").write_text(f"""
[databases]
{made.name} = host={host} port={port}
[pgbouncer]
listen_addr = {HOST}
listen_port = {listen.number}
unix_socket_dir =
auth_type = plain
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = 1
server_tls_sslmode = require
""")
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    log = (directory / "log").open("wb")
    process = subprocess.Popen([PGBOUNCER, str(directory / "ini")], stdout=log, stderr=log, **user)  # type: ignore[call-overload]
    password = made.server.passwords["events"]
    database = made.connector(url=f"postgres://events:{password}@{HOST}:{listen.number}/{made.name}?sslmode=disable")

    def answers() -> bool:
        try:
            database.next_offsets(TOPIC_ID)
        except psycopg2.OperationalError:
            assert process.poll() is None, (directory / "log").read_text()
            return False
        return True

    try:
        wait_until(answers, "PgBouncer answers")
        yield database
    finally:
        process.kill()
        process.wait()
        log.close()
        listen.close()
        shutil.rmtree(directory)


def test_pgbouncer_in_transaction_mode_changes_nothing(made: Own, pooled: Database) -> None:
    made.sql("drop table bandwidth_exceeds, heartbeats cascade")
    pooled.needs_setup = True
    made.database = pooled
    many = [row("Zürich", second) for second in range(3000)]
    assert made.record([*many, row(seconds="1e400")], heartbeats={"Zürich": START}).keys() == {3000}
    assert made.record(many) == {}
    with closing(psycopg2.connect(pooled.url, **{**pooled.options, "application_name": "another"})) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for name, value in (("statement_timeout", "0"), ("lock_timeout", "0"), ("transaction_isolation",) * 2):
                cursor.execute(f"show {name}")
                assert cursor.fetchone()[0] == (value if value != name else "read committed")
    assert len(made.event_ids()) == 3000


# How long it takes


def test_one_bad_warning_and_duplicates_cost_little(made: Own, figures: list[str]) -> None:
    rows = [row(second=second) for second in range(5000)]
    rows[3456] = row(seconds="1e400")
    timings = {}
    for name, batch in {"new, one bad": rows, "duplicates, one bad": rows}.items():
        began = time.monotonic()
        assert made.record(batch).keys() == {made.next_offset - 5000 + 3456}
        timings[name] = time.monotonic() - began
    made.sql("alter table bandwidth_exceeds add constraint closed check (false) not valid")
    batch, began = made.batch([row() for _ in range(5000)]), time.monotonic()
    with pytest.raises(psycopg2.errors.CheckViolation):
        made.database.record(batch)
    timings["refused by the table"] = time.monotonic() - began
    figures += [f"batch of 5,000 {name}: {seconds:.2f} s" for name, seconds in timings.items()]
    assert max(timings.values()) < 15  # seconds, on a busy machine; 0.3 on a quiet one
