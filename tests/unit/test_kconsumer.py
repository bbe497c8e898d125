from unittest.mock import create_autospec

import psycopg2
import pytest
from kafka import KafkaConsumer
from kafka.errors import (
    KafkaConfigurationError,
)

import kconsumer
from eventkafkapostgres import __version__, console, postgres_checks
from eventkafkapostgres.checks import Found
from eventkafkapostgres.schema import STATEMENTS
from kconsumer import main

# The command line


@pytest.fixture
def environ(clean_process, root):
    """An environment with which kconsumer would start."""
    for name, text in (
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        ("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT"),
        ("DATABASE_URL", "postgres://avnadmin:s3cret@127.0.0.1:1/d"),
        ("PGSSLROOTCERT", root),
    ):
        clean_process.setenv(name, text)
    clean_process.setattr(kconsumer, "log_config_problems", lambda options, context, topic: None)
    return clean_process


def run_main(argv, capsys):
    """The one line on standard error of a run that ends at once."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("kconsumer: ")
    assert (err.count("\n"), err[-1]) == (1, "\n")
    assert "s3cret" not in err
    return err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--topic", "a b"], "argument --topic: 'a b' is not a topic name"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--until-empty=yes"], "ignored explicit argument"),
        (["--group", ""], "argument --group: '' is not a name: 1 to 255 printable characters"),
        (["--group", "x" * 256], "argument --group"),
        (["--group", "a\nb"], "argument --group"),
    ],
)
def test_a_wrong_argument_ends_with_status_2_and_one_line(environ, capsys, argv, message):
    never_runs(environ)
    assert message in run_main(argv, capsys)


def never_runs(environ):
    """Where nothing was found wrong, the test fails instead of looking for servers."""

    def record_warnings(recorder, stop):
        raise AssertionError("it started")

    environ.setattr(kconsumer, "record_warnings", record_warnings)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", None, "KAFKA_BOOTSTRAP_SERVERS is not set"),
        ("KAFKA_GROUP_ID", "mine", "KAFKA_GROUP_ID can't be set"),
        ("KAFKA_ENABLE_AUTO_COMMIT", "true", "KAFKA_ENABLE_AUTO_COMMIT can't be set"),
        ("KAFKA_AUTO_OFFSET_RESET", "latest", "KAFKA_AUTO_OFFSET_RESET can't be set"),
        ("KAFKA_CONSUMER_TIMEOUT_MS", "5", "KAFKA_CONSUMER_TIMEOUT_MS can't be set"),
        ("KAFKA_MAX_POLL_RECORDS", "many", "KAFKA_MAX_POLL_RECORDS must be a whole number"),
        ("KAFKA_REQUEST_TIMEOUT_MS", "6000", "KAFKA_REQUEST_TIMEOUT_MS must be less than KAFKA_HEARTBEAT_INTERVAL_MS"),
        ("KAFKA_GROUPID", "1", "KAFKA_GROUPID: did you mean KAFKA_GROUP_ID"),
        ("DATABASE_URL", None, "DATABASE_URL is not set, and PGHOST isn't either"),
        ("DATABASE_URL", "postgres://u:s3cret@db/d?nosuch=1", "DATABASE_URL is not a service URI"),
        ("PGSSLROOTCERT", "/nowhere/ca.pem", "can't read /nowhere/ca.pem"),
        ("PGSSLMODE", "full", "PGSSLMODE"),
    ],
)
def test_a_wrong_environment_ends_with_status_2_and_one_line(environ, capsys, name, text, message):
    never_runs(environ)
    environ.delenv(name, raising=False)
    if text is not None:
        environ.setenv(name, text)
    assert message in run_main([], capsys)


def test_a_setting_that_only_the_producer_knows_is_accepted(environ):
    ran = []
    environ.setattr(kconsumer, "record_warnings", lambda recorder, stop: ran.append(recorder))
    environ.setenv("KAFKA_LINGER_MS", "5")
    assert main([]) == 0
    assert len(ran) == 1


def test_settings_that_kafka_python_itself_refuses_end_with_status_2_and_one_line(environ, capsys, stop):
    class Refusing(KafkaConsumer):
        def __init__(self, **options):
            raise KafkaConfigurationError("Heartbeat interval must be lower than the session timeout")

    environ.setattr(kconsumer, "KafkaConsumer", Refusing)
    environ.setattr(console.Stop, "wait", lambda stop, seconds: pytest.fail("it tries again for ever"))
    assert "Heartbeat interval must be lower" in run_main([], capsys)


@pytest.mark.parametrize(
    ("ahead", "read_only", "finding"),
    [
        (0.0, True, (False, "PostgreSQL: read-only: give the primary server, or see why it takes no rows")),
        (0.0, False, (True, "clock: 0.0 s from the server's")),
        (1.9, False, (True, "clock: 1.9 s from the server's")),
        (2.5, False, (False, "clock: 2.5 s from the server's: set it by NTP")),
        (-2.5, False, (False, "clock: 2.5 s from the server's: set it by NTP")),
        (-86400.0, False, (False, "clock: 86400.0 s from the server's: set it by NTP")),
    ],
)
def test_the_check_reports_the_servers_clock_and_a_server_that_is_read_only(
    database, monkeypatch, ahead, read_only, finding
):
    connection = create_autospec(psycopg2.extensions.connection, instance=True)
    connection.info = create_autospec(psycopg2.extensions.ConnectionInfo, instance=True, server_version=180001)
    connection.info.dsn_parameters = {"sslmode": "verify-full"}
    cursor = connection.cursor.return_value
    cursor.fetchone.side_effect = [(read_only, 1e9 + ahead, 50), (True,)]
    cursor.fetchall.return_value = [(name,) for name in STATEMENTS]
    database.url, database.options = "", {}
    monkeypatch.setattr(psycopg2, "connect", lambda url, **options: connection)
    monkeypatch.setattr(postgres_checks.time, "time", lambda: 1e9)
    assert finding in list(postgres_checks.check_postgres(database, Found()))
    connection.close.assert_called_once_with()


def test_help_names_every_setting_and_exit_status(environ, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("--topic", "--group", "--until-empty", "--check", "--version", "KAFKA_BOOTSTRAP_SERVERS",
                 "DATABASE_URL", "PGSSLROOTCERT", "Exit status"):  # fmt: skip
        assert word in text


def test_version_is_the_packages_own(environ, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"kconsumer {__version__}\n")
