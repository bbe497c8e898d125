import contextlib
import logging
import math
import os
import re
import socket
import ssl
from types import SimpleNamespace

import psycopg2
import pytest
from environments import KAFKA, SASL
from kafka import KafkaConsumer, KafkaProducer

from eventkafkapostgres import settings
from eventkafkapostgres.outages import SettingsError, first_line
from eventkafkapostgres.settings import (
    CONSUMER_OPTIONS,
    FIXED_CONSUMER_OPTIONS,
    FIXED_PRODUCER_OPTIONS,
    KEEPALIVE_OPTIONS,
    PRODUCER_OPTIONS,
    kafka_options,
    make_client,
    postgres_options,
)
from eventkafkapostgres.tls import Certificates

# Settings of Kafka


def producer_options(**environ):
    return settings.producer_options({**KAFKA, **environ})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("KAFKA_LINGER_MS", "20", 20),
        ("KAFKA_CLIENT_ID", "7", "7"),
        ("KAFKA_API_VERSION", "2.8", (2, 8)),
        ("KAFKA_ALLOW_AUTO_CREATE_TOPICS", "false", False),
        ("KAFKA_ALLOW_AUTO_CREATE_TOPICS", "True", True),
        ("KAFKA_SEND_BUFFER_BYTES", "65536", 65536),
        ("KAFKA_COMPRESSION_TYPE", "gzip", "gzip"),
        ("KAFKA_REQUEST_TIMEOUT_MS", "4000", 4000),
        ("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT", "PLAINTEXT"),
        ("KAFKA_BOOTSTRAP_SERVERS", "a.example:9092, [::1]:9093", "a.example:9092, [::1]:9093"),
    ],
)
def test_a_setting_has_the_type_of_kafka_pythons_option(name, text, value):
    option = producer_options(**{name: text})[name.removeprefix("KAFKA_").lower()]
    assert option == value
    assert type(option) is type(value)


def test_without_a_word_tls_is_used_and_the_promise_is_kept():
    options = producer_options()
    assert options["security_protocol"] == "SSL"
    assert options.items() >= FIXED_PRODUCER_OPTIONS.items()
    assert (options["acks"], options["delivery_timeout_ms"], options["max_block_ms"]) == ("all", math.inf, 0)


@pytest.mark.parametrize("option", FIXED_PRODUCER_OPTIONS)
def test_what_the_promise_rests_on_cannot_be_set(option):
    with pytest.raises(SettingsError, match=f"KAFKA_{option.upper()} can't be set"):
        producer_options(**{f"KAFKA_{option.upper()}": "1"})


def test_settings_that_only_the_other_script_knows_are_accepted_and_left_out():
    environ = {"KAFKA_MAX_POLL_RECORDS": "10", "KAFKA_LINGER_MS": "5", **KAFKA}
    producers = settings.producer_options(environ)
    consumers = kafka_options(KafkaConsumer, environ, CONSUMER_OPTIONS, FIXED_CONSUMER_OPTIONS)
    assert ("max_poll_records" in producers, producers["linger_ms"]) == (False, 5)
    assert ("linger_ms" in consumers, consumers["max_poll_records"]) == (False, 10)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"KAFKA_BOOTSTRAP_SERVERS": ""}, "KAFKA_BOOTSTRAP_SERVERS is not set"),
        (
            {"KAFKA_BOOTSTRAP_SERVERS": "broker"},
            "KAFKA_BOOTSTRAP_SERVERS must be the brokers' addresses, as host:port,host:port",
        ),
        (
            {"KAFKA_BOOTSTRAP_SERVERS": "a:1,b"},
            "KAFKA_BOOTSTRAP_SERVERS must be the brokers' addresses, as host:port,host:port",
        ),
        (
            {"KAFKA_BOOTSTRAP_SERVERS": "a:1,"},
            "KAFKA_BOOTSTRAP_SERVERS must be the brokers' addresses, as host:port,host:port",
        ),
        ({"KAFKA_BOOTSTRAP_SERVERS": "kafka://a:9092"}, "KAFKA_BOOTSTRAP_SERVERS must be"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "a..b:9092"}, "KAFKA_BOOTSTRAP_SERVERS must be"),
        ({"KAFKA_BOOTSTRAP_SERVERS": f"{'a' * 64}.example:9092"}, "KAFKA_BOOTSTRAP_SERVERS must be"),
        ({"KAFKA_SSL_CONTEXT": "x"}, "KAFKA_SSL_CONTEXT is an option of kafka-python that no text can give"),
        ({"KAFKA_VALUE_SERIALIZER": "x"}, "KAFKA_VALUE_SERIALIZER is an option"),
        ({"KAFKA_SELECTOR": "x"}, "KAFKA_SELECTOR is an option"),
        ({"KAFKA_METRIC_REPORTERS": "x"}, "KAFKA_METRIC_REPORTERS is an option"),
        ({"KAFKA_KAFKA_CLIENT": "x"}, "KAFKA_KAFKA_CLIENT is an option"),
        ({"KAFKA_LINGER_MS": "-1"}, "KAFKA_LINGER_MS must be a whole number from 0 to 2147483647"),
        ({"KAFKA_METADATA_MAX_AGE_MS": "0"}, "KAFKA_METADATA_MAX_AGE_MS must be a whole number from 1 to 2147483647"),
        ({"KAFKA_SEND_BUFFER_BYTES": "2147483648"}, "KAFKA_SEND_BUFFER_BYTES must be a whole number from 1"),
        ({"KAFKA_CLIENT_ID": "a\udcffb"}, "KAFKA_CLIENT_ID must be printable text"),
        ({"KAFKA_CLIENT_RACK": "a\nb"}, "KAFKA_CLIENT_RACK must be printable text"),
        ({"KAFKA_PROXY_URL": "ftp://a:1"}, "KAFKA_PROXY_URL must be socks5://host:port"),
        ({"KAFKA_LINGER_MS": "5ms"}, "KAFKA_LINGER_MS must be a whole number"),
        ({"KAFKA_LINGER_MS": "1.5"}, "KAFKA_LINGER_MS must be a whole number"),
        ({"KAFKA_RECEIVE_BUFFER_BYTES": "many"}, "KAFKA_RECEIVE_BUFFER_BYTES must be a whole number"),
        ({"KAFKA_ALLOW_AUTO_CREATE_TOPICS": "0"}, "KAFKA_ALLOW_AUTO_CREATE_TOPICS must be true or false"),
        ({"KAFKA_API_VERSION": "new"}, "KAFKA_API_VERSION must be a version such as 3.9"),
        ({"KAFKA_SECURITY_PROTOCOL": "ssl"}, "KAFKA_SECURITY_PROTOCOL must be one of SSL, SASL_SSL"),
        ({"KAFKA_SECURITY_PROTOCOL": "SLL"}, "KAFKA_SECURITY_PROTOCOL must be one of"),
        ({"KAFKA_SECURITY_PROTOCOL": ""}, "KAFKA_SECURITY_PROTOCOL must be one of"),
        ({**SASL, "KAFKA_SASL_MECHANISM": "scram"}, "KAFKA_SASL_MECHANISM must be one of SCRAM-SHA-256"),
        ({**SASL, "KAFKA_SASL_PLAIN_USERNAME": ""}, "KAFKA_SASL_PLAIN_USERNAME is not set: SASL_SSL needs it"),
        ({**SASL, "KAFKA_SASL_PLAIN_PASSWORD": ""}, "KAFKA_SASL_PLAIN_PASSWORD is not set: SASL_SSL needs it"),
    ],
)
def test_a_wrong_setting_is_named(environ, message):
    with pytest.raises(SettingsError, match=message) as caught:
        producer_options(**environ)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("KAFKA_BOOTSTRAP_SERVER", "KAFKA_BOOTSTRAP_SERVERS"),
        ("KAFKA_BOOTSTRAPSERVERS", "KAFKA_BOOTSTRAP_SERVERS"),
        ("KAFKA_BOOSTRAP_SERVERS", "KAFKA_BOOTSTRAP_SERVERS"),
        ("KAFKA_SSL_CA_FILE", "KAFKA_SSL_CAFILE"),
        ("KAFKA_SSL_CERT_FILE", "KAFKA_SSL_CERTFILE"),
        ("KAFKA_SECURITY_PROTOCOLL", "KAFKA_SECURITY_PROTOCOL"),
        ("KAFKA_SASL_MECHANISMS", "KAFKA_SASL_MECHANISM"),
        ("KAFKA_SASL_USERNAME", "KAFKA_SASL_PLAIN_USERNAME"),
        ("KAFKA_SASL_PASSWORD", "KAFKA_SASL_PLAIN_PASSWORD"),
        ("KAFKA_REQUEST_TIMEOUT", "KAFKA_REQUEST_TIMEOUT_MS"),
    ],
)
def test_a_misspelt_setting_is_reported_with_the_right_name(name, right):
    environ = {name: "s3cret"} if right == "KAFKA_BOOTSTRAP_SERVERS" else {**KAFKA, name: "s3cret"}
    with pytest.raises(SettingsError, match=rf"^{name}: did you mean {right}\?") as caught:
        settings.producer_options(environ)
    assert "s3cret" not in str(caught.value)


KUBERNETES = [  # of the services kafka, kafka-bootstrap, kafka-bootstrap-servers and kafka-ssl-cafile
    f"KAFKA_{service}{name}"
    for service in ("", "BOOTSTRAP_", "BOOTSTRAP_SERVERS_", "SSL_CAFILE_")
    for name in (
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_TCP_CLIENT",
        "PORT",
        "PORT_9092_TCP",
        "PORT_9092_TCP_ADDR",
        "PORT_9092_TCP_PORT",
        "PORT_9092_TCP_PROTO",
    )
]
KAFKAS_OWN = re.findall(  # of Kafka's scripts and of the images that turn variables into a broker's configuration
    r"\w+",
    "HOME OPTS HEAP_OPTS LOG4J_OPTS JMX_OPTS JMX_PORT GC_LOG_OPTS JVM_PERFORMANCE_OPTS DEBUG VERSION NODE_ID BROKER_ID "
    "LISTENERS ADVERTISED_LISTENERS LOG_DIRS ZOOKEEPER_CONNECT SASL_ENABLED_MECHANISMS SSL_KEYSTORE_LOCATION "
    "SSL_KEYSTORE_PASSWORD SSL_KEY_PASSWORD SSL_TRUSTSTORE_LOCATION SSL_CLIENT_AUTH AUTO_CREATE_TOPICS_ENABLE "
    "GROUP_INITIAL_REBALANCE_DELAY_MS REPLICA_FETCH_MAX_BYTES REPLICA_FETCH_MIN_BYTES MESSAGE_MAX_BYTES "
    "SOCKET_SEND_BUFFER_BYTES SOCKET_RECEIVE_BUFFER_BYTES TRANSACTION_MAX_TIMEOUT_MS BROKERS URL HOST TOPIC "
    "BOOTSTRAP_SERVERS_URL SCHEMA_REGISTRY_URL CFG_NODE_ID NONSENSE",
)


@pytest.mark.parametrize("name", [*KUBERNETES, *(f"KAFKA_{name}" for name in KAFKAS_OWN), "KAFKA_"])
def test_a_name_that_is_no_option_belongs_to_somebody_else(name, caplog):
    caplog.set_level(logging.INFO)
    assert producer_options(**{name: "tcp://10.0.0.7:9092"}) == producer_options()
    assert caplog.messages == [f"no options of kafka-python, not used: {name}"]


def test_all_names_that_belong_to_somebody_else_are_one_line_of_the_log(caplog):
    caplog.set_level(logging.INFO)
    producer_options(**dict.fromkeys(KUBERNETES, "tcp://10.0.0.7:9092"))
    (line,) = caplog.messages
    assert line.endswith(f", KAFKA_BOOTSTRAP_PORT_9092_TCP_PROTO and {len(KUBERNETES) - 5} more")


def test_a_name_that_is_like_a_setting_is_no_error_beside_that_setting():
    assert producer_options(KAFKA_BOOTSTRAP_SERVER="b:1") == producer_options()


@pytest.mark.parametrize(
    ("environ", "warnings"),
    [
        ({}, []),
        ({"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}, ["Kafka: PLAINTEXT is plain text"]),
        ({**SASL, "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}, ["Kafka: SASL_PLAINTEXT is plain text"]),
        (SASL, []),
        ({"KAFKA_SSL_CHECK_HOSTNAME": "false"}, ["Kafka: KAFKA_SSL_CHECK_HOSTNAME=false does not check"]),
    ],
)
def test_kafka_without_tls_or_of_unknown_identity_is_warned_about(environ, warnings, caplog):
    producer_options(**environ)
    assert [message[: len(text)] for message, text in zip(caplog.messages, warnings, strict=True)] == warnings


def test_an_address_that_holds_a_password_is_refused_without_printing_it():
    with pytest.raises(SettingsError, match="KAFKA_BOOTSTRAP_SERVERS") as caught:
        producer_options(KAFKA_BOOTSTRAP_SERVERS="kafka://avnadmin:s3cret@a.example:9092")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("client", "options", "promise"),
    [
        (KafkaProducer, PRODUCER_OPTIONS, FIXED_PRODUCER_OPTIONS),
        (KafkaConsumer, CONSUMER_OPTIONS, FIXED_CONSUMER_OPTIONS),
    ],
)
def test_kafka_python_knows_every_option_that_it_is_given(client, options, promise):
    chosen = kafka_options(client, KAFKA, options, promise)
    Certificates(chosen)
    assert chosen.keys() | {"ssl_context"} <= client.DEFAULT_CONFIG.keys()


# PostgreSQL's settings


def postgres(root, **environ):
    """What the driver is given, as libpq sees it: URL, options, environment."""
    environ = {"PGHOST": "db.example", "PGSSLROOTCERT": root, **environ}
    url, options = postgres_options(environ)
    return url, options, environ


def test_without_a_word_the_server_is_verified_in_full_and_silence_is_noticed(root, caplog):
    url, options, environ = postgres(root)
    assert url == ""
    assert environ["PGSSLMODE"] == "verify-full"
    assert int(environ["PGCONNECT_TIMEOUT"]) > 0
    assert options["keepalives_idle"] > 0
    assert caplog.messages == []


def test_our_defaults_are_where_libpq_looks_last(root):
    url, options, environ = postgres(root, DATABASE_URL="postgres://u@db/d?sslmode=require&keepalives_idle=9")
    assert url == "postgres://u@db/d?sslmode=require&keepalives_idle=9"
    assert options.keys() == KEEPALIVE_OPTIONS.keys() - {"keepalives_idle"}
    assert environ["PGSSLMODE"] == "verify-full"
    assert postgres(root, PGSSLMODE="verify-ca", PGAPPNAME="mine")[2].items() >= {
        ("PGSSLMODE", "verify-ca"),
        ("PGAPPNAME", "mine"),
    }


def resolved(tmp_path, monkeypatch, **environ):
    """What libpq itself makes of these settings, for a server that closes each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "services").write_text(f"""
[aiven]
host=127.0.0.1
port={server.getsockname()[1]}
sslmode=verify-ca
sslrootcert=/from/the/service
dbname=of-the-service
""")
        for name, text in {"PGSERVICEFILE": str(tmp_path / "services"), **environ}.items():
            monkeypatch.setenv(name, text)
        url, options = postgres_options(os.environ)
        with contextlib.closing(psycopg2.connect(url, async_=True, **options)) as connection:
            return connection.info.dsn_parameters


@pytest.mark.parametrize("how", [{"PGSERVICE": "aiven"}, {"DATABASE_URL": "postgres:///?service=aiven"}])
def test_what_the_service_file_sets_wins_over_our_defaults(tmp_path, clean_process, how, caplog):
    parameters = resolved(tmp_path, clean_process, **how)
    assert parameters["sslmode"] == "verify-ca"
    assert parameters["sslrootcert"] == "/from/the/service"
    assert parameters["dbname"] == "of-the-service"
    assert parameters["application_name"] == "kconsumer"
    assert caplog.messages == []


def test_what_the_url_sets_wins_over_the_service_file(tmp_path, clean_process):
    parameters = resolved(tmp_path, clean_process, DATABASE_URL="postgres:///d?service=aiven&sslmode=disable")
    assert (parameters["sslmode"], parameters["dbname"]) == ("disable", "d")


@pytest.mark.parametrize(
    "environ",
    [
        {"DATABASE_URL": "postgres:///d"},
        {"DATABASE_URL": "postgres:///d?host=/run/postgresql"},
        {"DATABASE_URL": "postgres://%2Frun%2Fpostgresql/d", "PGSSLMODE": "disable"},
        {"PGHOST": "/run/postgresql"},
    ],
)
def test_a_unix_socket_has_no_tls_and_needs_no_root_certificate(environ, caplog):
    postgres_options({"PGSSLROOTCERT": "/nowhere", **environ})
    assert caplog.messages == []


def test_the_systems_cas_are_those_that_python_knows():
    environ = {"PGHOST": "db", "PGSSLROOTCERT": "system"}
    postgres_options(environ)
    paths = ssl.get_default_verify_paths()
    assert environ.get("SSL_CERT_FILE") == paths.cafile
    assert environ.get("SSL_CERT_DIR") == paths.capath
    mine = {"PGHOST": "db", "PGSSLROOTCERT": "system", "SSL_CERT_FILE": "/mine"}
    postgres_options(mine)
    assert mine["SSL_CERT_FILE"] == "/mine"


@pytest.mark.parametrize(
    ("sslmode", "is_warned"),
    [
        ("disable", True),
        ("allow", True),
        ("prefer", True),
        ("require", True),
        ("verify-ca", False),
        ("verify-full", False),
    ],
)
@pytest.mark.parametrize("where", ["url", "variable"])
def test_a_mode_that_does_not_check_the_server_is_warned_about(root, caplog, sslmode, is_warned, where):
    url = "postgres://u:s3cret@db/d"
    environ = {"DATABASE_URL": f"{url}?sslmode={sslmode}"} if where == "url" else {"PGSSLMODE": sslmode}
    postgres(root, **environ)
    assert [f"sslmode={sslmode} does not check" in message for message in caplog.messages] == [True] * is_warned
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PGHOST": ""} | {"PGSSLMODE": "disable"}, "DATABASE_URL is not set, and PGHOST isn't either"),
        ({"DATABASE_URL": "postgres://u:s3cret@db:x/d"}, r"PGPORT \(or the port in DATABASE_URL\) must be a number"),
        ({"PGPORT": "s3cret"}, r"PGPORT \(or the port in DATABASE_URL\) must be a number"),
        ({"DATABASE_URL": "postgres://u:p@s3cret@db/d"}, "'@' and '/' in a user or password must be written as %40"),
        ({"DATABASE_URL": "postgres://u:p@s3cret@db"}, "must be written as %40"),
        ({"DATABASE_URL": "postgresql://u:12/s3cret@db/d"}, "must be written as %40"),
        ({"DATABASE_URL": "postgres://u:s3cret%t@db/d"}, "'%' in a user or password must be written as %25"),
        ({"DATABASE_URL": "password=s3cret://%t host=[db port=x"}, "PGPORT"),
        ({"DATABASE_URL": "postgres://u:s3cret@db:65536/d"}, "must be a number from 1 to 65535"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?nosuch=1"}, "DATABASE_URL is not a service URI"),
        ({"DATABASE_URL": "postgres://u:s3cret@[db/d"}, "DATABASE_URL is not a service URI"),
        ({"DATABASE_URL": "s3cret"}, "DATABASE_URL is not a service URI"),
        ({"DATABASE_URL": "mysql://u:s3cret@db/d"}, "DATABASE_URL is not a service URI"),
        ({"PGSSLMODE": "VERIFY-FULL"}, r"PGSSLMODE \(or sslmode in DATABASE_URL\) must be one of verify-full"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?sslmode=yes"}, "PGSSLMODE .* must be one of"),
        ({"PGSSLROOTCERT": "/nowhere/ca.pem"}, "can't read /nowhere/ca.pem: PGSSLROOTCERT must name the CA's"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?sslrootcert=/nowhere"}, "can't read /nowhere: PGSSLROOTCERT"),
    ],
)
def test_a_wrong_setting_of_postgresql_is_named_and_no_secret_is_logged(root, environ, message):
    environ = {"PGHOST": "db.example", "PGSSLROOTCERT": root} | environ
    environ = {name: text for name, text in environ.items() if text}
    with pytest.raises(SettingsError, match=message) as caught:
        postgres_options(environ)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_root_certificate_is_needed_where_none_is_used():
    postgres_options({"PGHOST": "db", "PGSSLROOTCERT": "/nowhere", "PGSSLMODE": "require"})
    postgres_options({"PGHOST": "db", "PGSSLROOTCERT": "system"})


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u:p%40ss@db/d?application_name=a@b",
        "postgres://u@a,b:5433/d",
        "postgres://db",
        "host=db password=p@ss@word",
    ],
)
def test_an_at_sign_where_it_may_be_is_no_error(root, url):
    assert postgres(root, DATABASE_URL=url)[0] == url


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("connection refused\n\tIs the server running?\n", "connection refused"),
        ('invalid input\nCONTEXT:  COPY batch, line 1: "s3cret"\n', "invalid input"),
        ("", "OperationalError"),
    ],
)
def test_an_error_of_postgresql_is_one_line_without_the_data(text, line):
    assert first_line(psycopg2.OperationalError(text)) == line


def test_what_the_server_quotes_of_the_data_is_left_out_in_each_language():
    class Refusal(psycopg2.Error):
        diag = SimpleNamespace(message_primary="doppelt")

    assert first_line(Refusal("FEHLER:  doppelt\nDETAILS:  Schlüssel (host)=(secret) existiert.")) == "doppelt"


def test_no_thread_that_can_be_started_is_no_wrong_setting():
    def client(**options):
        raise RuntimeError("can't start new thread")

    with pytest.raises(OSError, match="can't start new thread"):
        make_client(client, None, {})
