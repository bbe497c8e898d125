import json
import math
from datetime import UTC, datetime
from uuid import UUID

import psycopg2
import pytest
from kafka import KafkaConsumer, KafkaProducer

from eventkafkapostgres.message import FIELDS
from eventkafkapostgres.outages import first_line
from eventkafkapostgres.settings import (
    CONSUMER_OPTIONS,
    CONSUMER_PROMISE,
    PRODUCER_OPTIONS,
    PRODUCER_PROMISE,
    kafka_options,
    postgres_options,
)
from eventkafkapostgres.tls import Certificates

GOOD = {
    "event_id": "01a20b20-7007-7b5a-b044-fec6a3afb754",
    "observed_at": "2026-11-23T16:22:04.796005+00:00",
    "host": "web-1",
    "interfaces": ["eth0"],
    "bytes_sent_per_second": 812345.6,
    "bytes_received_per_second": 3120456.1,
    "bytes_per_second": 3932801.7,
    "limit_bytes_per_second": 1000000.0,
    "message": "Bandwidth exceeded on web-1: 3.93 MB/s is over the limit of 1.00 MB/s",
}


NUMBERS = tuple(FIELDS)[4:8]


def good(**changed):
    """A message with some fields changed, as json.dumps() writes it. A field that is ... is left out."""
    return json.dumps({name: value for name, value in (GOOD | changed).items() if value is not ...}).encode()


OBSERVED_AT = datetime(2026, 11, 23, 16, 22, 4, 796005, tzinfo=UTC)


EVENT_ID = UUID("01a20b20-7007-7b5a-b044-fec6a3afb754")


# Settings of Kafka

KAFKA = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
SASL = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
    "KAFKA_SASL_PLAIN_USERNAME": "avnadmin",
    "KAFKA_SASL_PLAIN_PASSWORD": "s3cret",
}


def producer_options(**environ):
    return kafka_options(KafkaProducer, {**KAFKA, **environ}, PRODUCER_OPTIONS, PRODUCER_PROMISE)


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
    assert options.items() >= PRODUCER_PROMISE.items()
    assert (options["acks"], options["delivery_timeout_ms"], options["max_block_ms"]) == ("all", math.inf, 0)


@pytest.mark.parametrize("option", PRODUCER_PROMISE)
def test_what_the_promise_rests_on_cannot_be_set(option):
    with pytest.raises(ValueError, match=f"KAFKA_{option.upper()} can't be set"):
        producer_options(**{f"KAFKA_{option.upper()}": "1"})


def test_settings_that_only_the_other_script_knows_are_accepted_and_left_out():
    environ = {"KAFKA_MAX_POLL_RECORDS": "10", "KAFKA_LINGER_MS": "5", **KAFKA}
    producers = kafka_options(KafkaProducer, environ, PRODUCER_OPTIONS, PRODUCER_PROMISE)
    consumers = kafka_options(KafkaConsumer, environ, CONSUMER_OPTIONS, CONSUMER_PROMISE)
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
        ({"KAFKA_BOOTSTRAP_SERVER": "a:1"}, "KAFKA_BOOTSTRAP_SERVER is no setting of kafka-python"),
        ({"KAFKA_SSL_CONTEXT": "x"}, "KAFKA_SSL_CONTEXT is no setting"),
        ({"KAFKA_VALUE_SERIALIZER": "x"}, "KAFKA_VALUE_SERIALIZER is no setting"),
        ({"KAFKA_SELECTOR": "x"}, "KAFKA_SELECTOR is no setting"),
        ({"KAFKA_METRIC_REPORTERS": "x"}, "KAFKA_METRIC_REPORTERS is no setting"),
        ({"KAFKA_": "x"}, "KAFKA_ is no setting"),
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
    with pytest.raises(ValueError, match=message) as caught:
        producer_options(**environ)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_an_address_that_holds_a_password_is_refused_without_printing_it():
    with pytest.raises(ValueError, match="KAFKA_BOOTSTRAP_SERVERS") as caught:
        producer_options(KAFKA_BOOTSTRAP_SERVERS="kafka://avnadmin:s3cret@a.example:9092")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("client", "options", "promise"),
    [
        (KafkaProducer, PRODUCER_OPTIONS, PRODUCER_PROMISE),
        (KafkaConsumer, CONSUMER_OPTIONS, CONSUMER_PROMISE),
    ],
)
def test_kafka_python_knows_every_option_that_it_is_given(client, options, promise):
    chosen = kafka_options(client, KAFKA, options, promise)
    Certificates(chosen)
    assert chosen.keys() | {"ssl_context"} <= client.DEFAULT_CONFIG.keys()


# PostgreSQL's settings


def postgres(root, **environ):
    return postgres_options({"PGHOST": "db.example", "PGSSLROOTCERT": root, **environ})


def test_without_a_word_the_server_is_verified_in_full_and_silence_is_noticed(root, caplog):
    url, options = postgres(root)
    assert url == ""
    assert options["sslmode"] == "verify-full"
    assert options["connect_timeout"] > 0
    assert options["keepalives_idle"] > 0
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("environ", "sslmode"),
    [
        ({"DATABASE_URL": "postgres://u:s3cret@db:5432/d?sslmode=require"}, None),
        ({"DATABASE_URL": "postgres://u:s3cret@db:5432/d"}, "verify-full"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d", "PGSSLMODE": "disable"}, None),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?sslmode=verify-full", "PGSSLMODE": "disable"}, None),
        ({"DATABASE_URL": "host=db password=s3cret sslmode=verify-ca"}, None),
        ({"PGSSLMODE": "verify-ca"}, None),
    ],
)
def test_what_the_url_or_a_variable_says_of_tls_is_obeyed(root, environ, sslmode):
    url, options = postgres(root, **environ)
    assert url == environ.get("DATABASE_URL", "")
    assert options.get("sslmode") == sslmode


@pytest.mark.parametrize(
    ("environ", "left_out"),
    [
        ({"DATABASE_URL": "postgres://u@db/d?connect_timeout=9"}, "connect_timeout"),
        ({"PGCONNECT_TIMEOUT": "9"}, "connect_timeout"),
        ({"PGAPPNAME": "mine"}, "application_name"),
        ({"DATABASE_URL": "postgres://u@db/d?keepalives_idle=9"}, "keepalives_idle"),
    ],
)
def test_our_option_gives_way_to_one_that_is_set(root, environ, left_out):
    assert left_out not in postgres(root, **environ)[1]


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
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?nosuch=1"}, "DATABASE_URL is no service URI"),
        ({"DATABASE_URL": "postgres://u:s3cret@[db/d"}, "DATABASE_URL is no service URI"),
        ({"DATABASE_URL": "s3cret"}, "DATABASE_URL is no service URI"),
        ({"DATABASE_URL": "mysql://u:s3cret@db/d"}, "DATABASE_URL is no service URI"),
        ({"PGSSLMODE": "VERIFY-FULL"}, r"PGSSLMODE \(or sslmode in DATABASE_URL\) must be one of verify-full"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?sslmode=yes"}, "PGSSLMODE .* must be one of"),
        ({"PGSSLROOTCERT": "/nowhere/ca.pem"}, "can't read /nowhere/ca.pem: PGSSLROOTCERT must name the CA's"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?sslrootcert=/nowhere"}, "can't read /nowhere: PGSSLROOTCERT"),
    ],
)
def test_a_wrong_setting_of_postgresql_is_named_and_no_secret_is_told(root, environ, message):
    environ = {"PGHOST": "db.example", "PGSSLROOTCERT": root} | environ
    environ = {name: text for name, text in environ.items() if text}
    with pytest.raises(ValueError, match=message) as caught:
        postgres_options(environ)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_root_certificate_is_needed_where_none_is_used(tmp_path):
    environ = {"PGHOST": "db", "PGSSLROOTCERT": "/nowhere", "PGSSLMODE": "require"}
    assert "sslmode" not in postgres_options(environ)[1]
    assert postgres_options({"PGHOST": "db", "PGSSLROOTCERT": "system"})[1]["sslmode"] == "verify-full"


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
