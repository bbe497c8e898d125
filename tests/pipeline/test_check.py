"""--check of both scripts: what is right, and each thing that can be wrong with what to do about it."""

import hashlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from kafka import TopicPartition
from pipeline import LOOPBACK, Pipeline, Script, new_pipeline, warnings
from pipeline import SCRIPTS as SCRIPTS_FOLDER
from test_compression import without_packages

from servers import Proxy, Servers

pytestmark = pytest.mark.long

AT_ONCE = 4  # more of them would be too slow to find the cause in time
SOON = 60.0
NOWHERE = "127.0.0.1:1"
SCRIPTS = ("kproducer", "kconsumer")


class Checked(NamedTuple):
    """What a --check printed, and how it ended."""

    lines: list[str]
    status: int

    def wrong(self) -> list[str]:
        return [line for line in self.lines if line.startswith("✗")]


def start(pipeline: Pipeline, script: str, *arguments: str, **changes: str | None) -> Script:
    make = pipeline.producer if script == "kproducer" else pipeline.consumer
    return make("--check", *arguments, environment=pipeline.environment(**changes))


def result(script: Script) -> Checked:
    status = script.ends()
    return Checked(script.lines(), status)


def check(pipeline: Pipeline, script: str, *arguments: str, **changes: str | None) -> Checked:
    return result(start(pipeline, script, *arguments, **changes))


def assert_plain(checked: Checked) -> None:
    """Every line is a finding; the first ones that are wrong decide the status."""
    assert checked.lines
    assert [line for line in checked.lines if line[:2] not in ("✓ ", "✗ ")] == []
    assert checked.status == (1 if checked.wrong() else 0)


def snapshot(directory: Path) -> dict[str, str]:
    """Each file below, but the logs of the scripts, with a digest of its content."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def groups(pipeline: Pipeline) -> set[str]:
    with pipeline.servers.kafka.admin() as admin:
        return {group["group_id"] for group in admin.list_groups()}


# Everything is right


@pytest.mark.parametrize("script", SCRIPTS)
def test_when_all_is_right_each_line_is_ok_and_nothing_is_changed(wide_pipeline: Pipeline, script: str) -> None:
    pipeline = wide_pipeline
    pipeline.send(warnings(3))
    before = snapshot(pipeline.directory)
    checked = check(pipeline, script)
    assert_plain(checked)
    assert checked.status == 0
    text = "\n".join(checked.lines)
    for expected in (
        r"✓ KAFKA_SSL_CERTFILE: expires in \d+ days",
        r"✓ KAFKA_SSL_CAFILE: expires in \d+ days",
        r"✓ Kafka: 127\.0\.0\.1:\d+ answers, SSL",
        rf"✓ topic {pipeline.topic}: 4 partitions, {'WRITE' if script == 'kproducer' else 'READ'} is granted",
        *(
            [
                r"✓ outbox \S+: will be made",
                rf"✓ measuring {LOOPBACK} .*",
                r"✓ bandwidth of web-1: .*B/s now, the limit is .*B/s",
            ]
            if script == "kproducer"
            else [
                r"✓ PostgreSQL \d+: 127\.0\.0\.1:\d+ answers, TLSv1\.[23]",
                r"✓ clock: 0\.\d s from the server's",
                r"✓ connections: \d+ free",
                r"✓ bandwidth_exceeds, .*: will be made",
                rf"✓ group {pipeline.group}: may be joined",
            ]
        ),
    ):
        assert re.search(f"^{expected}$", text, re.MULTILINE), expected
    assert snapshot(pipeline.directory) == before
    assert pipeline.sql("select relname from pg_class where relnamespace = 'public'::regnamespace") == []
    assert pipeline.group not in groups(pipeline)
    assert pipeline.committed() == {}
    assert pipeline.sent() == 3


def test_when_the_tables_are_there_the_check_of_the_consumer_changes_nothing_either(pipeline: Pipeline) -> None:
    pipeline.send(warnings(3))
    pipeline.drain()
    before = pipeline.rows(), pipeline.consumed(), pipeline.committed()
    checked = check(pipeline, "kconsumer")
    assert_plain(checked)
    assert checked.status == 0
    for table in ("bandwidth_exceeds", "rejected_messages", "consumed_offsets", "heartbeats"):
        assert f"✓ table {table}: there, as it should be" in checked.lines
    assert (pipeline.rows(), pipeline.consumed(), pipeline.committed()) == before


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN"])
def test_all_is_right_with_a_user_and_a_password_too(pipeline: Pipeline, mechanism: str) -> None:
    changes = {"KAFKA_SSL_CERTFILE": None, "KAFKA_SSL_KEYFILE": None}
    changes |= pipeline.servers.kafka.environment("SASL", mechanism)
    started = [start(pipeline, script, **changes) for script in SCRIPTS]
    for checked in map(result, started):
        assert_plain(checked)
        assert checked.status == 0
        assert any(line.endswith("answers, SASL_SSL") for line in checked.lines)


def test_the_first_check_of_a_new_kafka_where_no_group_was_ever_used_is_right(guarded: Servers, tmp_path: Path) -> None:
    with new_pipeline(guarded, tmp_path) as pipeline:
        with guarded.kafka.admin() as admin:
            if "__consumer_offsets" in admin.list_topics():
                admin.delete_topics(["__consumer_offsets"])
        checked = check(pipeline, "kconsumer")
        assert checked.wrong() == []


# What is wrong with Kafka and PostgreSQL, all at once: most of it takes seconds to be seen

NO_CERTIFICATE: dict[str, str | None] = {"KAFKA_SSL_CERTFILE": None, "KAFKA_SSL_KEYFILE": None}
KAFKA_LINES = {
    "refused": r"✗ Kafka: 127\.0\.0\.1:1: connection refused: nothing listens at KAFKA_BOOTSTRAP_SERVERS",
    "silent": r"✗ Kafka: (\S+: )?no answer: the network or the broker is silent.*",
    "no such host": r"✗ Kafka: \S+: there is no host nowhere\.invalid\S*",
    "foreign CA": r"✗ Kafka: \S+: the broker's certificate is not signed by the CA in KAFKA_SSL_CAFILE",
    "foreign client": r"✗ Kafka: \S+: the broker does not accept the client certificate in KAFKA_SSL_CERTFILE",
    "expired client": r"✗ KAFKA_SSL_CERTFILE: expired 1 day ago: get a new one",
    "no client certificate": r"✗ Kafka: \S+: the broker requires a client certificate: set KAFKA_SSL_CERTFILE and .*",
    # kafka-python throws the broker's alert away where it comes with the end of the connection
    "plain text": r"✗ Kafka: \S+: (KAFKA_SECURITY_PROTOCOL does not fit this port of the broker|the broker closes the "
    r"connection: it is stopping, or the login or KAFKA_SECURITY_PROTOCOL is wrong)",
    # a broker that is busy closes the connection too late for the check to hear of it
    "SASL on another port": r"✗ Kafka: \S+: .*(?:KAFKA_SECURITY_PROTOCOL|no answer).*",
    "SASL password": r"✗ Kafka: \S+: the broker does not accept KAFKA_SASL_PLAIN_USERNAME with its password",
    "no topic": r"✗ topic \S+: missing, .*; create it and grant DESCRIBE on it",
}
POSTGRES_LINES = {
    "PostgreSQL refused": r"✗ PostgreSQL: .*Connection refused.*: is PGHOST right, PGPORT, the firewall\?",
    "PostgreSQL silent": r"✗ PostgreSQL: .*timeout expired: is PGHOST right, PGPORT, the firewall\?",
    "PostgreSQL password": r"✗ PostgreSQL: .*password authentication failed for user .*: correct PGUSER, .*",
    "PostgreSQL CA": r"✗ PostgreSQL: .*certificate verify failed: PGSSLROOTCERT must name the CA of this server",
    "no database": r'✗ PostgreSQL: .*database "nowhere" does not exist: correct PGDATABASE or DATABASE_URL',
    "no tables, no right to create": r"✗ bandwidth_exceeds, .*: missing, no right to create: let the owner .*",
    "a column is missing": r"✗ table bandwidth_exceeds: no column extra jsonb: see the upgrade notes",
    "no right to the tables": r"✗ table consumed_offsets: no right to UPDATE: grant it to this user",
}


def changes_of_kafka(servers: Servers, silent: Proxy) -> dict[str, dict[str, str | None]]:
    """What makes each thing wrong in the environment of a script."""
    certificates = servers.certificates
    foreign_ca, foreign_cert, foreign_key = certificates.foreign
    expired_cert, expired_key = certificates.client("expired", days=-1)
    password = {"KAFKA_SASL_PLAIN_USERNAME": "service", "KAFKA_SASL_PLAIN_PASSWORD": "not the password"}
    return {
        "refused": {"KAFKA_BOOTSTRAP_SERVERS": NOWHERE},
        "silent": {"KAFKA_BOOTSTRAP_SERVERS": "{}:{}".format(*silent.address)},
        "no such host": {"KAFKA_BOOTSTRAP_SERVERS": "nowhere.invalid:9092"},
        "foreign CA": {"KAFKA_SSL_CAFILE": str(foreign_ca)},
        "foreign client": {"KAFKA_SSL_CERTFILE": str(foreign_cert), "KAFKA_SSL_KEYFILE": str(foreign_key)},
        "expired client": {"KAFKA_SSL_CERTFILE": str(expired_cert), "KAFKA_SSL_KEYFILE": str(expired_key)},
        "no client certificate": NO_CERTIFICATE,
        "plain text": {"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"},
        "SASL on another port": password
        | {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"},
        "SASL password": NO_CERTIFICATE | servers.kafka.environment("SASL") | password,
        "no topic": {},
    }


def changes_of_postgres(pipeline: Pipeline, silent: Proxy) -> dict[str, dict[str, str | None]]:
    """What makes each thing wrong in the environment of the consumer, and in databases made for that."""
    pipeline.drain()
    user = pipeline.database
    for name in ("empty", "lacks", "poor"):
        pipeline.sql(f'create database "{name}{user}" template "{user if name != "empty" else "template1"}"')
    pipeline.sql("alter table bandwidth_exceeds drop column extra", dbname=f"lacks{user}")
    pipeline.sql(f"create role \"{user}\" login password 'poor'")
    pipeline.sql(f'grant select, insert, update on all tables in schema public to "{user}"', dbname=f"poor{user}")
    pipeline.sql(f'revoke update on consumed_offsets from "{user}"', dbname=f"poor{user}")
    poor = {"PGUSER": user, "PGPASSWORD": "poor"}
    return {
        "PostgreSQL refused": {"PGPORT": "1"},
        "PostgreSQL silent": {"PGPORT": str(silent.address[1])},
        "PostgreSQL password": {"PGPASSWORD": "not the password"},
        "PostgreSQL CA": {"PGSSLROOTCERT": str(pipeline.servers.certificates.foreign[0])},
        "no database": {"PGDATABASE": "nowhere"},
        "no tables, no right to create": poor | {"PGDATABASE": f"empty{user}"},
        "a column is missing": {"PGDATABASE": f"lacks{user}"},
        "no right to the tables": poor | {"PGDATABASE": f"poor{user}"},
    }


@pytest.fixture(scope="module")
def wrong(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Checked]]:
    """What --check says of each thing that is wrong, by script and thing."""
    with new_pipeline(running, tmp_path_factory.mktemp("wrong")) as pipeline, Proxy() as silent:
        silent.mode = "black hole"
        name = pipeline.database
        try:
            everything = changes_of_kafka(running, silent)
            postgres = changes_of_postgres(pipeline, silent)
            both = {"PGPORT": str(silent.address[1])} | everything["silent"]
            began = time.monotonic()
            results = {("kconsumer", "both silent"): check(pipeline, "kconsumer", **both)}
            assert time.monotonic() - began < SOON
            cases = [(script, *case) for script in SCRIPTS for case in everything.items()]
            cases += [("kconsumer", *case) for case in postgres.items()]
            for begin in range(0, len(cases), AT_ONCE):
                started = {}
                for script, thing, changes in cases[begin : begin + AT_ONCE]:
                    topic = ["--topic", f"no-{pipeline.topic}"] if thing == "no topic" else []
                    started[script, thing] = start(pipeline, script, *topic, **changes)
                results |= {key: result(each) for key, each in started.items()}
            yield results
        finally:
            for each in ("empty", "lacks", "poor"):
                pipeline.sql(f'drop database if exists "{each}{name}" with (force)', dbname="postgres")
            pipeline.sql(f'drop owned by "{name}"; drop role "{name}"', dbname="postgres")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("thing", KAFKA_LINES)
def test_what_is_wrong_with_kafka_is_one_line(wrong: dict[tuple[str, str], Checked], script: str, thing: str) -> None:
    checked = wrong[script, thing]
    assert_plain(checked)
    assert checked.status == 1
    assert any(re.fullmatch(KAFKA_LINES[thing], line) for line in checked.wrong()), checked.lines
    assert not any("not the password" in line for line in checked.lines)


@pytest.mark.parametrize("thing", POSTGRES_LINES)
def test_what_is_wrong_with_postgresql_is_one_line_and_kafka_is_checked_all_the_same(
    wrong: dict[tuple[str, str], Checked], thing: str
) -> None:
    checked = wrong["kconsumer", thing]
    assert_plain(checked)
    assert checked.status == 1
    assert len(checked.wrong()) == 1
    assert re.fullmatch(POSTGRES_LINES[thing], checked.wrong()[0])
    assert any(line.startswith("✓ Kafka: ") for line in checked.lines)
    assert not any("not the password" in line for line in checked.lines)


def test_when_neither_answers_both_are_reported(wrong: dict[tuple[str, str], Checked]) -> None:
    checked = wrong["kconsumer", "both silent"]
    assert_plain(checked)
    assert checked.status == 1
    assert [line.partition(":")[0] for line in checked.wrong()] == ["✗ PostgreSQL", "✗ Kafka"]


# What can be seen without the network: it is a result, and the rest is checked all the same


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"KAFKA_BOOTSTRAP_SERVERS": None}, "KAFKA_BOOTSTRAP_SERVERS is not set"),
        ({"KAFKA_BOOTSTRAP_SERVER": "a:1", "KAFKA_BOOTSTRAP_SERVERS": None}, "KAFKA_BOOTSTRAP_SERVER: did you mean"),
        ({"KAFKA_SSL_CERTFILE": "nowhere.cert"}, "KAFKA_SSL_CERTFILE: can't read nowhere.cert: No such file"),
        ({"KAFKA_SSL_KEYFILE": "{admin_key}"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"KAFKA_SSL_CAFILE": "{service_key}"}, "KAFKA_SSL_CAFILE holds no certificate"),
        ({"KAFKA_SASL_MECHANISM": "GSSAPI", "KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "KAFKA_SASL_MECHANISM must be"),
    ],
)
def test_a_wrong_setting_is_one_line_and_the_rest_is_checked(
    pipeline: Pipeline, script: str, changes: dict[str, str | None], said: str
) -> None:
    certificates = vars(pipeline.servers.certificates)
    checked = check(pipeline, script, **{n: v.format_map(certificates) if v else v for n, v in changes.items()})
    assert_plain(checked)
    (line,) = checked.wrong()
    assert re.match(f"✗ {said}", line)
    assert any(line.startswith("✓ PostgreSQL" if script == "kconsumer" else "✓ outbox") for line in checked.lines)


# Certificates


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_certificate_that_ends_soon_and_a_rotation_of_cas_are_reported(pipeline: Pipeline, script: str) -> None:
    certificates = pipeline.servers.certificates
    cert, key = certificates.client("soon", days=5.5)
    both = pipeline.directory / "ca.pem"
    both.write_bytes(certificates.foreign[0].read_bytes() + certificates.ca.read_bytes())
    checked = check(
        pipeline, script, KAFKA_SSL_CERTFILE=str(cert), KAFKA_SSL_KEYFILE=str(key), KAFKA_SSL_CAFILE=str(both)
    )
    assert_plain(checked)
    assert checked.status == 0
    assert "✓ KAFKA_SSL_CERTFILE: expires in 5 days: get a new one" in checked.lines
    assert any(line.startswith("✓ KAFKA_SSL_CAFILE: 2 certificates, the last expires in ") for line in checked.lines)


# Rights


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_right_that_is_missing_has_its_line(guarded: Servers, tmp_path: Path, script: str) -> None:
    with new_pipeline(guarded, tmp_path) as pipeline:
        cert, key = guarded.certificates.client(pipeline.topic)
        user: dict[str, str | None] = {"KAFKA_SSL_CERTFILE": str(cert), "KAFKA_SSL_KEYFILE": str(key)}
        right = "WRITE" if script == "kproducer" else "READ"
        group = f"✗ group {pipeline.group}: no right to READ: grant it to this user"

        def wrong_without_group() -> list[str]:
            checked = check(pipeline, script, **user)
            assert_plain(checked)
            assert (group in checked.lines) == (script == "kconsumer")
            return [line for line in checked.wrong() if line != group]

        unseen = f"✗ topic {pipeline.topic}: missing, or not visible to this user; create it and grant DESCRIBE on it"
        assert wrong_without_group() == [unseen]
        guarded.kafka.allow(pipeline.topic, "DESCRIBE", topic=pipeline.topic)
        assert wrong_without_group() == [
            f"✗ topic {pipeline.topic}: 1 partition, but no right to {right}: grant it to this user"
        ]
        guarded.kafka.allow(pipeline.topic, right, topic=pipeline.topic)
        assert wrong_without_group() == []
        guarded.kafka.allow(pipeline.topic, "READ", group=pipeline.group)
        assert check(pipeline, script, **user).status == 0
        guarded.kafka.disallow(pipeline.topic)


# PostgreSQL


def free_connections(pipeline: Pipeline) -> int:
    found = re.search(r"^✓ connections: (\d+) free$", "\n".join(check(pipeline, "kconsumer").lines), re.MULTILINE)
    assert found
    return int(found[1])


def test_the_connections_of_other_users_count(pipeline: Pipeline) -> None:
    free = free_connections(pipeline)
    others = [pipeline.servers.postgres.connect("postgres") for _ in range(20)]
    try:
        assert free_connections(pipeline) == free - 20
    finally:
        for other in others:
            other.close()


def test_no_free_connection_is_reported(pipeline: Pipeline) -> None:
    pipeline.sql(f'alter database "{pipeline.database}" connection limit 0')
    checked = check(pipeline, "kconsumer")
    assert_plain(checked)
    assert re.fullmatch("✗ PostgreSQL: .*too many connections for database .*", checked.wrong()[0])


def test_no_right_to_temporary_tables_is_needed(pipeline: Pipeline) -> None:
    user = pipeline.database
    pipeline.sql(f"create role \"{user}\" login password 'poor'")
    pipeline.sql(f'revoke all on database "{user}" from public; grant connect on database "{user}" to "{user}"')
    pipeline.sql(f'grant create on schema public to "{user}"')
    try:
        checked = check(pipeline, "kconsumer", PGUSER=user, PGPASSWORD="poor")
        assert checked.wrong() == []
    finally:
        pipeline.sql(f'drop owned by "{user}"; drop role "{user}"')


def test_a_column_of_another_name_is_reported(pipeline: Pipeline) -> None:
    pipeline.drain()
    pipeline.sql("alter table heartbeats rename heartbeat_at to beat_at")
    (line,) = check(pipeline, "kconsumer").wrong()
    assert line == "✗ table heartbeats: no column heartbeat_at timestamptz: see the upgrade notes"


# How far the consumer is behind


def lag(pipeline: Pipeline) -> int:
    found = re.search(
        r"^✓ lag: (\d+) messages? not recorded yet$", "\n".join(check(pipeline, "kconsumer").lines), re.MULTILINE
    )
    assert found
    return int(found[1])


def test_the_lag_is_what_is_in_kafka_and_not_recorded(wide_pipeline: Pipeline) -> None:
    for host in ("web-1", "web-2", "db-1", "mail"):
        wide_pipeline.send(warnings(25, host), host.encode())
    wide_pipeline.drain()
    assert lag(wide_pipeline) == 0
    wide_pipeline.send(warnings(7), b"web-1")
    wide_pipeline.send(warnings(5), b"mail")
    assert lag(wide_pipeline) == 12
    wide_pipeline.drain()
    assert lag(wide_pipeline) == 0


def test_before_the_first_run_all_that_is_there_is_the_lag(pipeline: Pipeline) -> None:
    pipeline.send(warnings(9))
    assert lag(pipeline) == 9


def test_what_retention_has_deleted_is_no_lag(pipeline: Pipeline) -> None:
    pipeline.send(warnings(9))
    with pipeline.servers.kafka.admin() as admin:
        admin.delete_records({TopicPartition(pipeline.topic, 0): 9})
    pipeline.drain()
    assert lag(pipeline) == 0


# The outbox


def outbox_line(pipeline: Pipeline, outbox: Path) -> str:
    checked = check(pipeline, "kproducer", "--outbox", str(outbox))
    assert_plain(checked)
    return next(line for line in checked.lines if f"outbox {outbox}:" in line)


def test_what_waits_in_the_outbox_is_counted_and_stays_there(pipeline: Pipeline) -> None:
    outbox = pipeline.directory / "outbox.sqlite"
    away = pipeline.environment(KAFKA_BOOTSTRAP_SERVERS=NOWHERE)
    producer = pipeline.producer("--outbox", str(outbox), "--forever", environment=away)
    producer.raises(5)
    assert producer.stop() == 1
    count = len(producer.raised())
    for _ in range(2):
        assert outbox_line(pipeline, outbox) == f"✓ outbox {outbox}: {count} warnings waiting"
    assert pipeline.sent() == 0
    assert pipeline.producer("--outbox", str(outbox), "--flush-interval", "1", "--limit", "1GB/s").ends() == 0
    assert outbox_line(pipeline, outbox) == f"✓ outbox {outbox}: 0 warnings waiting"
    pipeline.drain()
    assert len(pipeline.assert_recorded()) == count


def test_an_outbox_in_use_is_reported_and_its_producer_is_not_disturbed(pipeline: Pipeline) -> None:
    outbox = pipeline.directory / "outbox.sqlite"
    producer = pipeline.producer("--outbox", str(outbox), "--forever", "--flush-interval", "1")
    producer.raises(5)
    assert outbox_line(pipeline, outbox) == f"✓ outbox {outbox}: in use by a producer that runs"
    producer.raises(len(producer.raised()) + 5)
    assert producer.stop() == 0
    assert producer.complaints() == []


def test_a_damaged_outbox_is_reported_and_left_alone(pipeline: Pipeline) -> None:
    outbox = pipeline.directory / "outbox.sqlite"
    outbox.write_bytes(b"this is no database, and it is long enough to be seen to be none" * 20)
    before = snapshot(pipeline.directory)
    assert outbox_line(pipeline, outbox).startswith(f"✗ outbox {outbox}: file is not a database")
    assert snapshot(pipeline.directory) == before


def test_the_check_leaves_no_file_beside_the_outbox_of_a_killed_producer(pipeline: Pipeline) -> None:
    outbox = pipeline.directory / "outbox.sqlite"
    away = pipeline.environment(KAFKA_BOOTSTRAP_SERVERS=NOWHERE)
    producer = pipeline.producer("--outbox", str(outbox), "--forever", environment=away)
    producer.raises(5)
    producer.kill()
    before = snapshot(pipeline.directory)
    line = outbox_line(pipeline, outbox)
    assert snapshot(pipeline.directory).keys() <= before.keys()
    assert pipeline.producer("--outbox", str(outbox), "--flush-interval", "1", "--limit", "1GB/s").ends() == 0
    assert re.fullmatch(rf"✓ outbox {outbox}: {pipeline.sent()} warnings? waiting", line)
    pipeline.drain()
    pipeline.assert_recorded(unlogged=1)


@pytest.mark.parametrize("place", ["a folder", "under a file"])
def test_an_outbox_that_can_not_be_used_is_reported(pipeline: Pipeline, place: str) -> None:
    outbox = pipeline.directory / "state"
    if place == "a folder":
        outbox.mkdir()
    else:
        outbox.touch()
        outbox = outbox / "outbox.sqlite"
    line = outbox_line(pipeline, outbox)
    run = pipeline.producer("--outbox", str(outbox), "--flush-interval", "1", "--interface", LOOPBACK)
    assert run.ends() == 2
    assert line.startswith("✗ ")


def test_an_empty_outbox_file_is_as_good_as_none(pipeline: Pipeline) -> None:
    outbox = pipeline.directory / "outbox.sqlite"
    outbox.touch()
    assert outbox_line(pipeline, outbox) == f"✓ outbox {outbox}: 0 warnings waiting"


# What the run would refuse, or log


@pytest.mark.parametrize(
    ("script", "changes", "said"),
    [
        ("kproducer", {"KAFKA_COMPRESSION_TYPE": "nope"}, "kafka-python can't use these KAFKA_ settings: .*nope"),
        (
            "kproducer",
            {"KAFKA_COMPRESSION_TYPE": "zstd"},
            ".*: compression zstd needs the Python package zstandard: .*",
        ),
        (
            "kconsumer",
            {"KAFKA_HEARTBEAT_INTERVAL_MS": "30000"},
            ".*: Heartbeat interval must be lower",
        ),
    ],
)
def test_options_that_kafka_python_refuses_are_reported_and_kafka_is_checked_all_the_same(
    pipeline: Pipeline, script: str, changes: dict[str, str | None], said: str
) -> None:
    checked = check(pipeline, script, **changes | without_packages(pipeline.directory))
    assert_plain(checked)
    (line,) = checked.wrong()
    assert re.match(f"✗ {said}", line.replace("KafkaConfigurationError: ", ""))
    assert any(line.startswith(f"✓ topic {pipeline.topic}") for line in checked.lines)


def test_a_topic_that_keeps_the_last_warning_of_each_host_only_is_reported(pipeline: Pipeline) -> None:
    topic = f"compact-{pipeline.topic}"
    pipeline.servers.kafka.create_topic(topic, **{"cleanup.policy": "compact"})
    for script in SCRIPTS:
        (line,) = check(pipeline, script, "--topic", topic).wrong()
        assert line.startswith(f"✗ topic {topic}: cleanup.policy=compact deletes all but the last warning of each host")
    consumer = pipeline.consumer("--topic", topic)
    assert consumer.says(f"WARNING Kafka: topic {topic}: cleanup.policy=compact deletes all but the last warning")
    assert consumer.stop() == 0


def test_plain_text_is_reported(pipeline: Pipeline) -> None:
    lines = check(pipeline, "kconsumer", PGSSLMODE="require").lines
    assert any(re.search("answers, TLSv1.3 .sslmode=require does not check whose server it is", line) for line in lines)


# Where it is printed to


def piped(pipeline: Pipeline, script: str, redirection: str, **changes: str | None) -> subprocess.CompletedProcess[str]:
    """What a shell's redirection makes of a --check, with its status at the end of standard output."""
    arguments = ["--check", "--topic", pipeline.topic, *(["--group", pipeline.group] * (script == "kconsumer"))]
    command = shlex.join([sys.executable, str(SCRIPTS_FOLDER / f"{script}.py"), *arguments])
    return subprocess.run(
        ["bash", "-c", f"{command} {redirection}; echo status ${{PIPESTATUS[0]}}"],
        env=pipeline.environment(**changes),
        cwd=pipeline.directory,
        capture_output=True,
        text=True,
        timeout=SOON,
    )


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("redirection", "status", "stderr"),
    [
        ("| head -1", 0, ""),
        (">&-", 0, ""),
        (">/dev/full", 1, "ERROR can't print the results: No space left on device\n"),
    ],
)
def test_where_nobody_can_read_the_results_the_status_is_true(
    pipeline: Pipeline, script: str, redirection: str, status: int, stderr: str
) -> None:
    interfaces: dict[str, str | None] = {}
    ended = piped(pipeline, script, redirection, **interfaces)
    lines = ended.stdout.splitlines()
    # a container may have no interface but loopback: then nothing would be measured
    assert lines[-1] == f"status {status}" or "nothing is measured" in piped(pipeline, script, "").stdout
    assert len(lines) <= 2
    assert ended.stderr.endswith(stderr)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_encoding_without_check_marks_gets_others(pipeline: Pipeline, encoding: str) -> None:
    lines = piped(pipeline, "kconsumer", "", PYTHONIOENCODING=encoding).stdout.splitlines()
    assert {line[:2] for line in lines[:-1]} == {"+ "}
    assert lines[-1] == "status 0"


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_in_the_middle_is_not_success(pipeline: Pipeline, script: str) -> None:
    with Proxy() as silent:
        silent.mode = "black hole"
        checking = start(pipeline, script, KAFKA_BOOTSTRAP_SERVERS="{}:{}".format(*silent.address))
        checking.says("✓")
        assert checking.stop(signal.SIGINT) == 130
        assert not any("Traceback" in line for line in checking.lines())


def test_when_no_address_of_either_answers_both_are_reported(pipeline: Pipeline) -> None:
    with Proxy() as silent:
        silent.mode = "black hole"
        away = {"KAFKA_BOOTSTRAP_SERVERS": "{0}:{1},localhost:{1}".format(*silent.address)}
        away |= {"PGHOST": "localhost,127.0.0.1,localhost", "PGPORT": str(silent.address[1])}
        checked = check(pipeline, "kconsumer", **away)
        assert_plain(checked)
        assert [line.partition(":")[0] for line in checked.wrong()] == ["✗ PostgreSQL", "✗ Kafka"]
