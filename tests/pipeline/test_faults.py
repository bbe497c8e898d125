"""The promise, line by line: whatever is broken, nothing is lost, nothing is there twice, and everything goes on."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import pytest
from kafka import TopicPartition
from pipeline import Pipeline, Script, encoded, new_pipeline, wait_until, warning, warnings

from servers import Servers

SILENCE_SECONDS = 20.0
Side = Literal["kafka", "postgres"]


def through_kafka_proxy(pipeline: Pipeline) -> dict[str, str]:
    return pipeline.environment(**pipeline.servers.kafka.environment("PROXIED"))


def through_postgres_proxy(pipeline: Pipeline) -> dict[str, str]:
    host, port = pipeline.servers.postgres_proxy.address
    return pipeline.environment(PGHOST=host, PGPORT=str(port))


def goes_on(pipeline: Pipeline) -> None:
    """New rows come."""
    pipeline.has_rows(pipeline.count() + 5)


# Killed


def test_what_is_sent_twice_is_recorded_once(pipeline: Pipeline) -> None:
    proxy = pipeline.servers.kafka_proxy
    producer = pipeline.producer("--interval", "0.2", "--forever", environment=through_kafka_proxy(pipeline))
    wait_until(lambda: pipeline.sent() >= 3, "3 messages sent")
    proxy.latency_seconds, proxy.bytes_per_second = 1.0, 1_000_000
    proxy.mode = "slow"
    sent = pipeline.sent()
    wait_until(lambda: pipeline.sent() > sent, "a message sent")
    producer.kill()  # its acknowledgement is still on the way
    proxy.mode, proxy.latency_seconds, proxy.bytes_per_second = "pass", 0.05, 100_000
    assert pipeline.producer("--flush-interval", "0.5").ends() == 0
    ids = [json.loads(message.value)["event_id"] for message in pipeline.messages()]
    assert len(ids) > len(set(ids))
    pipeline.drain()
    assert len(pipeline.assert_recorded(unlogged=1)) == len(set(ids))
    assert pipeline.rejected() == []


def test_a_row_that_is_there_stays_as_it_is(pipeline: Pipeline) -> None:
    first = warnings(30)
    pipeline.send(first)
    pipeline.drain()
    rows = pipeline.rows()
    again = [value.replace(b"3.93 MB/s", b"5.00 MB/s") for value in first]
    new = encoded(warning(second=100))
    pipeline.send([*again[:15], new, *again[15:]])
    pipeline.drain()
    assert pipeline.rows()[:30] == rows
    assert len(pipeline.rows()) == 31
    assert pipeline.rejected() == []


def test_a_consumer_killed_between_the_two_commits_changes_nothing_when_it_reads_again(pipeline: Pipeline) -> None:
    proxy = pipeline.servers.kafka_proxy
    consumer = pipeline.consumer(environment=through_kafka_proxy(pipeline))
    pipeline.send(warnings(10))
    pipeline.has_rows(10)
    wait_until(lambda: pipeline.committed() == {0: 10}, "committed to Kafka")
    proxy.latency_seconds, proxy.bytes_per_second = 1.0, 1_000_000
    proxy.mode = "slow"
    pipeline.send(warnings(20))
    pipeline.has_rows(30)
    consumer.kill()  # its commit to Kafka is still on the way
    proxy.mode, proxy.latency_seconds, proxy.bytes_per_second = "black hole", 0.05, 100_000
    rows = pipeline.rows()
    assert pipeline.committed() == {0: 10}
    assert pipeline.consumed() == {0: 30}
    pipeline.send(warnings(5))
    pipeline.drain()
    assert pipeline.rows()[:30] == rows
    assert len(pipeline.rows()) == 35
    assert pipeline.rejected() == []


def test_a_consumer_that_is_killed_again_and_again_loses_nothing_and_doubles_nothing(wide_pipeline: Pipeline) -> None:
    hosts = [f"host-{number}" for number in range(20)]
    messages = [(host.encode(), encoded(warning(host, second))) for second in range(1000) for host in hosts]
    wide_pipeline.send_all(messages)
    quick = wide_pipeline.environment(
        KAFKA_REQUEST_TIMEOUT_MS="2000", KAFKA_HEARTBEAT_INTERVAL_MS="2500", KAFKA_SESSION_TIMEOUT_MS="6000",
        KAFKA_MAX_POLL_RECORDS="500",
    )  # fmt: skip
    for killed in range(1, 4):
        consumer = wide_pipeline.consumer(environment=quick)
        wide_pipeline.has_rows(killed * 3000)
        consumer.kill()
    assert wide_pipeline.count() < len(messages)
    wide_pipeline.drain()
    rows = wide_pipeline.rows()
    assert {row["event_id"] for row in rows} == {json.loads(value)["event_id"] for _, value in messages}
    assert len(rows) == len(messages)
    wide_pipeline.assert_in_order(rows)
    assert wide_pipeline.rejected() == []


@pytest.mark.parametrize("side", ["kafka", "postgres"])
def test_a_server_that_is_killed_and_comes_back_loses_nothing(
    pipeline: Pipeline, side: Side, figures: list[str]
) -> None:
    server = pipeline.servers.kafka if side == "kafka" else pipeline.servers.postgres
    consumer, producer = pipeline.consumer(), pipeline.producer("--forever")
    for _ in range(2):
        goes_on(pipeline)
        server.kill()
        producer.raises(len(producer.raised()) + 20)
        stored = pipeline.count() if side == "kafka" else 0
        server.start()
        stored = stored or pipeline.count()
        recovers(figures, f"{side} killed", lambda: pipeline.count() > stored)  # noqa: B023
    goes_on(pipeline)
    pipeline.assert_all_arrive(producer, consumer)


# The database is put back, the topic is not what it was


@contextmanager
def stopped(servers: Servers) -> Iterator[Path]:
    """PostgreSQL's data directory, while it stands still."""
    servers.postgres.stop()
    yield servers.postgres.data
    servers.postgres.start()


def backup(pipeline: Pipeline) -> Path:
    copy = pipeline.directory / "backup"
    with stopped(pipeline.servers) as data:
        subprocess.run(["cp", "-a", str(data), str(copy)], check=True)
    return copy


def restore(pipeline: Pipeline, copy: Path) -> None:
    with stopped(pipeline.servers) as data:
        shutil.rmtree(data)
        subprocess.run(["cp", "-a", str(copy), str(data)], check=True)


def test_a_database_put_back_to_a_backup_is_filled_up_again(pipeline: Pipeline) -> None:
    pipeline.send(warnings(50))
    pipeline.drain()
    copy = backup(pipeline)
    pipeline.send(warnings(50))
    pipeline.drain()
    restore(pipeline, copy)
    assert pipeline.count() == 50
    pipeline.send(warnings(50))
    pipeline.drain()
    assert_topic_is_recorded(pipeline)


def test_a_database_put_back_while_the_consumer_runs_is_filled_up_again(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    pipeline.send(warnings(50))
    pipeline.has_rows(50)
    copy = backup(pipeline)
    pipeline.send(warnings(50))
    pipeline.has_rows(100)
    restore(pipeline, copy)
    pipeline.send(warnings(50))
    pipeline.has_rows(150)
    assert consumer.stop() == 0
    assert_topic_is_recorded(pipeline)


def test_a_database_made_anew_while_the_consumer_runs_is_filled_from_kafka(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    pipeline.send(warnings(50))
    pipeline.has_rows(50)
    pipeline.sql(f'drop database "{pipeline.database}" with (force)', dbname="postgres")
    pipeline.sql(f'create database "{pipeline.database}" owner events', dbname="postgres")
    pipeline.send(warnings(5))
    pipeline.has_rows(55)
    assert consumer.stop() == 0
    assert_topic_is_recorded(pipeline)


def assert_topic_is_recorded(pipeline: Pipeline) -> None:
    sent = [json.loads(message.value)["event_id"] for message in pipeline.messages()]
    assert [row["event_id"] for row in pipeline.rows()] == sent
    assert pipeline.rejected() == []


@pytest.mark.parametrize("runs", [True, False], ids=["the consumer runs", "the consumer is away"])
def test_a_topic_that_is_made_anew_is_read_from_its_start(pipeline: Pipeline, runs: bool) -> None:
    consumer = pipeline.consumer()
    pipeline.send(warnings(50))
    pipeline.has_rows(50)
    if not runs:
        assert consumer.stop() == 0
    kafka = pipeline.servers.kafka
    kafka.delete_topic(pipeline.topic)
    wait_until(lambda: not is_there(pipeline), "deleted")
    kafka.create_topic(pipeline.topic)
    pipeline.send(warnings(10))
    if not runs:
        consumer = pipeline.consumer()
    pipeline.has_rows(60)
    assert consumer.says("created again")
    pipeline.send(warnings(10))
    pipeline.has_rows(70)
    assert consumer.stop() == 0
    assert pipeline.consumed() == {0: 20}


def is_there(pipeline: Pipeline) -> bool:
    with pipeline.servers.kafka.admin() as admin:
        return admin.describe_topics([pipeline.topic])[0]["error_code"] == 0


def test_what_retention_deleted_unread_is_said_and_the_rest_is_recorded(pipeline: Pipeline) -> None:
    pipeline.send(warnings(20))
    pipeline.drain()
    pipeline.send(warnings(80))
    with pipeline.servers.kafka.admin() as admin:
        admin.delete_records({TopicPartition(pipeline.topic, 0): 60})
    consumer = pipeline.consumer("--until-empty")
    assert consumer.ends() == 0
    assert [row["offset"] for row in pipeline.rows()] == [*range(20), *range(60, 100)]
    assert len(consumer.complaints()) == 1
    assert re.search(r"\b20\b.*\b59\b.*lost", consumer.complaints()[0])


def test_a_topic_that_is_missing_is_waited_for_by_both(pipeline: Pipeline) -> None:
    kafka = pipeline.servers.kafka
    kafka.delete_topic(pipeline.topic)
    wait_until(lambda: not is_there(pipeline), "deleted")
    consumer, producer = pipeline.consumer(), pipeline.producer("--forever")
    for script in (consumer, producer):
        assert script.says(rf"WARNING Kafka: .*{pipeline.topic}")
    kafka.create_topic(pipeline.topic)
    pipeline.has_rows(len(producer.raised()))
    pipeline.assert_all_arrive(producer, consumer)


# A sick database


def administer(statement: str) -> Callable[[Pipeline], None]:
    def act(pipeline: Pipeline) -> None:
        password = pipeline.servers.postgres.passwords["events"]
        # a database that is read-only can't be told otherwise from inside
        where = "postgres" if statement.startswith("alter") else None
        pipeline.sql(statement.format(database=pipeline.database, password=password), dbname=where)

    return act


FULL = """
create function full_disk() returns trigger language plpgsql as
$$ begin raise 'could not extend file: No space left on device' using errcode = '53100'; end $$;
create trigger full_disk before insert on bandwidth_exceeds for each row execute function full_disk()"""
SICK = {
    "read-only": (
        'alter database "{database}" set default_transaction_read_only = on',
        'alter database "{database}" reset default_transaction_read_only',
        "read-only",
    ),
    "out of connections": (
        'alter database "{database}" connection limit 0',
        'alter database "{database}" connection limit -1',
        "too many connections",
    ),
    "wrong password": (
        "alter role events password 'another'",
        "alter role events password '{password}'",
        "password",
    ),
    "may not write rows": (
        "revoke insert on bandwidth_exceeds from events",
        "grant insert on bandwidth_exceeds to events",
        "permission denied",
    ),
    "may not reject": (
        "revoke insert on rejected_messages from events",
        "grant insert on rejected_messages to events",
        "permission denied",
    ),
    "may not write offsets": (
        "revoke insert, update on consumed_offsets from events",
        "grant insert, update on consumed_offsets to events",
        "permission denied",
    ),
    "full": (FULL, "drop trigger full_disk on bandwidth_exceeds", "No space left"),
}


@pytest.mark.parametrize("sickness", SICK)
def test_a_sick_database_rejects_nothing_and_moves_no_offset(pipeline: Pipeline, sickness: str) -> None:
    sicken, cure, cause = SICK[sickness]
    consumer = pipeline.consumer()
    pipeline.send(warnings(1))
    wait_until(lambda: pipeline.committed() == {0: 1}, "committed to Kafka")
    administer(sicken)(pipeline)
    try:
        pipeline.send([*warnings(5), b"not JSON"])
        assert consumer.says(cause)
        for _ in range(2):
            assert (pipeline.count(), pipeline.rejected()) == (1, [])
            assert (pipeline.consumed(), pipeline.committed()) == ({0: 1}, {0: 1})
            time.sleep(1.5)  # the time of another attempt
    finally:
        administer(cure)(pipeline)
    pipeline.has_rows(6)
    wait_until(lambda: pipeline.committed() == {0: 7}, "committed to Kafka")
    assert pipeline.consumed() == {0: 7}
    assert [row["value"].tobytes() for row in pipeline.rejected()] == [b"not JSON"]
    assert consumer.says("works again")
    assert sum(bool(re.search(cause, line)) for line in consumer.complaints()) == 1
    assert consumer.stop() == 0


def test_a_locked_table_is_waited_for(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    pipeline.send(warnings(1))
    pipeline.has_rows(1)
    with closing(pipeline.servers.postgres.connect("postgres", dbname=pipeline.database)) as connection:
        connection.cursor().execute("lock table bandwidth_exceeds in access exclusive mode")
        pipeline.send(warnings(5))
        assert consumer.says("lock")
        assert pipeline.consumed() == {0: 1}
    pipeline.has_rows(6)
    assert consumer.stop() == 0
    assert pipeline.rejected() == []


def test_a_database_that_is_away_for_longer_than_a_session_costs_no_membership(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    pipeline.send(warnings(5))
    pipeline.has_rows(5)
    members = group_members(pipeline)
    assert len(members) == 1
    pipeline.servers.postgres.stop("immediate")
    pipeline.send(warnings(5))
    assert consumer.says("PostgreSQL: ")
    time.sleep(25)  # the session is 20 seconds
    assert pipeline.committed() == {0: 5}
    pipeline.servers.postgres.start()
    pipeline.has_rows(10)
    assert group_members(pipeline) == members
    assert consumer.stop() == 0
    assert pipeline.rejected() == []
    assert len(consumer.complaints()) <= 4  # it went, perhaps it was starting up, and it works again


def group_members(pipeline: Pipeline) -> set[str]:
    with pipeline.servers.kafka.admin() as admin:
        return {member["member_id"] for member in admin.describe_groups([pipeline.group])[pipeline.group]["members"]}


def test_one_bad_message_is_rejected_and_those_around_it_are_recorded(pipeline: Pipeline) -> None:
    bad = encoded(warning()).replace(b"812345.6", b'"many"')
    pipeline.send([*warnings(30), bad, *warnings(30)], key=b"\x00\xff")
    consumer = pipeline.consumer("--until-empty")
    assert consumer.ends() == 0
    assert len(pipeline.rows()) == 60
    (rejected,) = pipeline.rejected()
    assert (rejected["offset"], rejected["key"].tobytes(), rejected["value"].tobytes()) == (30, b"\x00\xff", bad)
    assert "bytes_sent_per_second" in rejected["reason"]
    assert pipeline.consumed() == {0: 61}


# The network


@pytest.mark.parametrize("side", ["kafka", "postgres"])
def test_connections_that_are_reset_in_the_middle_of_a_record_lose_nothing(pipeline: Pipeline, side: Side) -> None:
    servers = pipeline.servers
    proxy = servers.kafka_proxy if side == "kafka" else servers.postgres_proxy
    environment = pipeline.environment(proxied=True)
    consumer = pipeline.consumer(environment=environment)
    producer = pipeline.producer("--interval", "0.05", "--forever", environment=environment)
    for bytes_ in (1, 300, 700, 1500, 2600, 4000, 7000, 11000):
        goes_on(pipeline)
        proxy.reset(after_bytes=bytes_)
    goes_on(pipeline)
    pipeline.assert_all_arrive(producer, consumer)


def test_both_scripts_recover_from_a_silent_kafka(pipeline: Pipeline, figures: list[str]) -> None:
    proxy = pipeline.servers.kafka_proxy
    consumer = pipeline.consumer(environment=through_kafka_proxy(pipeline))
    producer = pipeline.producer("--interval", "1", "--forever", environment=through_kafka_proxy(pipeline))
    pipeline.has_rows(3)
    proxy.mode = "black hole"
    used = stays_small(figures, "Kafka silent", producer, consumer)
    raised = len(producer.raised())
    pipeline.send(warnings(1, "direct"), key=b"direct")
    sent, stored = pipeline.sent(), pipeline.count()
    proxy.mode = "pass"
    recovers(figures, "producer, Kafka silent", lambda: pipeline.sent() > sent)
    recovers(figures, "consumer, Kafka silent", lambda: pipeline.count() > stored)
    assert raised >= used * 0.5
    assert producer.stop() == 0
    pipeline.has_rows(len(producer.raised()) + 1)
    assert consumer.stop() == 0
    assert pipeline.rejected() == []


def test_the_consumer_recovers_from_a_silent_postgres(pipeline: Pipeline, figures: list[str]) -> None:
    proxy = pipeline.servers.postgres_proxy
    consumer = pipeline.consumer(environment=through_postgres_proxy(pipeline))
    producer = pipeline.producer("--forever")
    pipeline.has_rows(10)
    proxy.mode = "black hole"
    stays_small(figures, "PostgreSQL silent", consumer)
    stored = pipeline.count()
    proxy.mode = "pass"
    recovers(figures, "consumer, PostgreSQL silent", lambda: pipeline.count() > stored)
    pipeline.assert_all_arrive(producer, consumer)


def test_a_batch_that_postgres_took_half_of_is_recorded_after_the_silence(pipeline: Pipeline) -> None:
    proxy = pipeline.servers.postgres_proxy
    environment = through_postgres_proxy(pipeline)
    messages = warnings(5000)
    pipeline.send(messages)
    proxy.mode = "slow"
    proxy.bytes_per_second = 200_000
    consumer = pipeline.consumer("--until-empty", environment=environment)
    wait_until(lambda: copying(pipeline), "in the middle of a COPY")
    proxy.mode = "black hole"
    assert consumer.says("PostgreSQL: ")
    proxy.mode, proxy.bytes_per_second = "pass", 100_000
    assert consumer.ends() == 0
    assert_topic_is_recorded(pipeline)


def copying(pipeline: Pipeline) -> bool:
    return bool(pipeline.sql("select 1 from pg_stat_progress_copy where tuples_processed > 0"))


def stays_small(figures: list[str], what: str, *scripts: Script) -> float:
    """Let a silence pass, in which scripts use hardly any CPU and no more memory; its seconds."""
    time.sleep(2)  # what was in flight arrives nowhere
    began_at, before = time.monotonic(), [script.usage() for script in scripts]
    time.sleep(SILENCE_SECONDS)
    seconds = time.monotonic() - began_at
    for script, (cpu, megabytes) in zip(scripts, before, strict=True):
        cores, growth = (script.usage()[0] - cpu) / seconds, script.usage()[1] - megabytes
        figures.append(f"{what}, {script.name}: {cores:.3f} of a core, {growth:+.1f} MB in {seconds:.0f} s")
        assert cores < 0.5
        assert growth < 50
    return seconds


def recovers(figures: list[str], what: str, condition: Callable[[], bool]) -> None:
    began_at = time.monotonic()
    wait_until(condition, "recovered", 100.0)
    figures.append(f"{what}: went on {time.monotonic() - began_at:.1f} s after it was whole again")


@pytest.mark.parametrize("side", ["kafka", "postgres"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_scripts_stop_while_the_network_is_silent(
    pipeline: Pipeline, side: Side, number: signal.Signals, figures: list[str]
) -> None:
    servers = pipeline.servers
    environment = through_kafka_proxy(pipeline) if side == "kafka" else through_postgres_proxy(pipeline)
    proxy = servers.kafka_proxy if side == "kafka" else servers.postgres_proxy
    consumer = pipeline.consumer(environment=environment)
    producer = pipeline.producer("--forever", environment=environment)
    pipeline.has_rows(5)
    proxy.mode = "black hole"
    in_silence = pipeline.producer("--forever", host="web-2", environment=environment)
    for script in (producer, in_silence):
        script.raises(len(script.raised()) + 20)
    stops(figures, f"{side} silent, {number.name}", number, consumer, producer, in_silence)
    assert consumer.process.returncode == 0
    assert producer.process.returncode == in_silence.process.returncode == (1 if side == "kafka" else 0)
    proxy.mode = "pass"
    for host in ("web-1", "web-2"):
        assert pipeline.producer("--flush-interval", "0.5", host=host).ends() == 0
    pipeline.drain()
    pipeline.assert_recorded()


def test_a_consumer_that_starts_in_a_silence_stops_too(pipeline: Pipeline, figures: list[str]) -> None:
    pipeline.send(warnings(3))
    for proxy, environment in (
        (pipeline.servers.kafka_proxy, through_kafka_proxy(pipeline)),
        (pipeline.servers.postgres_proxy, through_postgres_proxy(pipeline)),
    ):
        proxy.mode = "black hole"
        consumer = pipeline.consumer(environment=environment)
        assert consumer.says("started")
        time.sleep(3)
        stops(figures, "started in a silence", signal.SIGTERM, consumer)
        assert consumer.process.returncode == 0
        proxy.mode = "pass"
    pipeline.drain()
    assert_topic_is_recorded(pipeline)


def stops(figures: list[str], what: str, number: signal.Signals, *scripts: Script) -> None:
    began_at = time.monotonic()
    for script in scripts:
        script.process.send_signal(number)
    running = set(scripts)
    while running:
        assert time.monotonic() - began_at < 50
        for script in [script for script in running if script.process.poll() is not None]:
            running.remove(script)
            figures.append(f"{what}: {script.name} stopped in {time.monotonic() - began_at:.1f} s")
        time.sleep(0.03)


# Refused


Refusal = tuple[str, dict[str, str | None], list[str], str]


def kafka_refusals(servers: Servers) -> list[Refusal]:
    certificates = servers.certificates
    foreign_ca, foreign_cert, foreign_key = certificates.foreign
    late_cert, late_key = certificates.client("late", days=-1)

    def client(cert: Path, key: Path) -> dict[str, str | None]:
        return {"KAFKA_SSL_CERTFILE": str(cert), "KAFKA_SSL_KEYFILE": str(key)}

    nobody: dict[str, str | None] = {"KAFKA_SSL_CERTFILE": None, "KAFKA_SSL_KEYFILE": None}
    sasl = nobody | servers.kafka.environment("SASL") | {"KAFKA_SASL_PLAIN_PASSWORD": "not-this-one"}
    return [
        ("wrong CA", {"KAFKA_SSL_CAFILE": str(foreign_ca)}, [], r"certificate.*KAFKA_SSL_CAFILE"),
        ("foreign client certificate", client(foreign_cert, foreign_key), [], r"KAFKA_SSL_CERTFILE"),
        ("expired client certificate", client(late_cert, late_key), [], r"KAFKA_SSL_CERTFILE"),
        ("no client certificate", nobody, [], r"KAFKA_SSL_CERTFILE"),
        ("plain text to a TLS port", nobody | {"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT", "KAFKA_SSL_CAFILE": None}, [],
         r"KAFKA_SECURITY_PROTOCOL|TLS|SSL"),
        ("wrong SASL password", sasl, [], r"KAFKA_SASL_PLAIN_PASSWORD|[Pp]assword|[Aa]uthentication"),
        ("nothing there", {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, [], r"127\.0\.0\.1:1\b|refused"),
        ("unknown name", {"KAFKA_BOOTSTRAP_SERVERS": "no-such-host.invalid:9092"}, [], r"no-such-host\.invalid"),
        ("missing topic", {}, ["--topic", "none-such"], r"none-such"),
    ]  # fmt: skip


def postgres_refusals(servers: Servers) -> list[Refusal]:
    return [
        ("PG wrong password", {"PGPASSWORD": "not-this-one"}, [], r"password"),
        ("PG wrong CA", {"PGSSLROOTCERT": str(servers.certificates.foreign[0])}, [], r"certificate"),
        ("PG no such database", {"PGDATABASE": "none-such"}, [], r"none-such"),
        ("PG nothing there", {"PGPORT": "1"}, [], r"refused"),
        ("PG may not make tables", {"PGDATABASE": "postgres"}, [], r"bandwidth_exceeds.*permission denied"),
        ("PG other name", {"PGHOST": "127.0.0.2"}, [], r"127\.0\.0\.2"),
    ]


PRODUCER_REFUSED = ("wrong CA", "foreign client certificate", "expired client certificate", "no client certificate",
                    "plain text to a TLS port", "wrong SASL password", "nothing there", "unknown name",
                    "missing topic")  # fmt: skip
CONSUMER_REFUSED = (*PRODUCER_REFUSED, "PG wrong password", "PG wrong CA", "PG no such database", "PG nothing there",
                    "PG may not make tables", "PG other name")  # fmt: skip


@pytest.fixture(scope="module")
def refused(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Script, str]]]:
    """All scripts that are refused, at once, for each of them tries for 15 seconds; and the causes that they owe us."""
    with new_pipeline(running, tmp_path_factory.mktemp("refused")) as pipeline:
        pipeline.send(warnings(1))
        started = {}
        for number, (name, changes, arguments, cause) in enumerate(kafka_refusals(running)):
            environment = pipeline.environment(**changes)
            producer = pipeline.producer(
                "--flush-interval", "6", *arguments, host=f"web-{number}", environment=environment
            )
            started[f"producer {name}"] = producer, cause
        for name, changes, arguments, cause in (*kafka_refusals(running), *postgres_refusals(running)):
            own = ["--group", name.replace(" ", "-")]
            consumer = pipeline.consumer("--until-empty", *own, *arguments, environment=pipeline.environment(**changes))
            started[f"consumer {name}"] = consumer, cause
        yield started


@pytest.mark.parametrize(
    "name", [*(f"producer {name}" for name in PRODUCER_REFUSED), *(f"consumer {name}" for name in CONSUMER_REFUSED)]
)
def test_who_is_refused_says_the_cause_once_and_ends_with_1(
    refused: dict[str, tuple[Script, str]], name: str, running: Servers
) -> None:
    script, cause = refused[name]
    assert script.ends() == 1
    said = "\n".join(script.lines())
    print(said)
    assert "Traceback" not in said
    for secret in ("not-this-one", *running.postgres.passwords.values(), running.kafka.password):
        assert secret not in said
    assert sum(bool(re.search(cause, line)) for line in script.complaints()) == 1
    assert len(script.complaints()) <= 2  # the cause, and that it gave up
