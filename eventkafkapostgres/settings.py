"""The environment becomes options of kafka-python and of libpq."""

from __future__ import annotations

import logging
import math
import os
import re
import ssl
import sys
from collections.abc import Mapping
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import (
    KafkaConfigurationError,
    UnrecognizedBrokerVersion,
)

logger = logging.getLogger(__name__)

POLL_MS = 1000  # as long as the broker holds a fetch when there is nothing: longer is cheaper, and no slower
HASTY_POLL_MS = 200  # the same with --until-empty

PRODUCER_OPTIONS: dict[str, Any] = {
    "client_id": "kproducer",
    "request_timeout_ms": 5000,
    "reconnect_backoff_max_ms": 2000,
    "metadata_max_age_ms": 10000,  # the longest until a topic or a right that was missing is noticed
    "metrics_enabled": False,
}
# What the promise rests on: no setting changes these.
PRODUCER_PROMISE: dict[str, Any] = {
    "acks": "all",
    "enable_idempotence": False,
    "max_in_flight_requests_per_connection": 1,
    "delivery_timeout_ms": math.inf,
    "retries": math.inf,
    "max_block_ms": 0,
}
CONSUMER_OPTIONS: dict[str, Any] = {
    "client_id": "kconsumer",
    "request_timeout_ms": 5000,
    "heartbeat_interval_ms": 6000,
    "session_timeout_ms": 20000,
    "reconnect_backoff_max_ms": 2000,
    "metadata_max_age_ms": 10000,
    "max_poll_records": 10000,
    "fetch_max_wait_ms": POLL_MS,
    "metrics_enabled": False,
    "fetch_max_bytes": 2 << 20,
}
# What the promise rests on: no setting changes these.
CONSUMER_PROMISE: dict[str, Any] = {
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "group_id": "kconsumer",
    "consumer_timeout_ms": math.inf,
    "check_crcs": True,
}
POSTGRES_OPTIONS: dict[str, Any] = {
    "application_name": "kconsumer",
    "connect_timeout": 4,
    "gssencmode": "disable",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "sslmode": "verify-full",
    **({"tcp_user_timeout": 8000} if sys.platform == "linux" else {}),
}
SSL_MODES = ("verify-full", "verify-ca", "require", "prefer", "allow", "disable")
API_VERSION = (3, 9)  # given, so that no constructor waits for a broker; the real versions are negotiated all the same
NO_TEXT = {  # options whose default is None, but whose values are objects
    "ssl_context", "sasl_oauth_token_provider", "key_serializer", "value_serializer", "key_deserializer",
    "value_deserializer", "partition_assignment_strategy", "group_instance_id", "transactional_id", "socks5_proxy",
}  # fmt: skip
SASL_MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN")
SECURITY_PROTOCOLS = ("SSL", "SASL_SSL", "SASL_PLAINTEXT", "PLAINTEXT")


def kafka_options(
    client: Any, environ: Mapping[str, str], options: Mapping[str, Any], promise: Mapping[str, Any]
) -> dict[str, Any]:
    """What a Kafka client is made with: `options`, then each KAFKA_<OPTION> with its type, then `promise`.

    ValueError says in one line which setting is wrong and what to do.
    """
    known = {**KafkaConsumer.DEFAULT_CONFIG, **KafkaProducer.DEFAULT_CONFIG, "api_version": API_VERSION}
    chosen: dict[str, Any] = {"security_protocol": "SSL", "api_version": API_VERSION, **options}
    for name, text in environ.items():
        if not name.startswith("KAFKA_"):
            continue
        option = name.removeprefix("KAFKA_").lower()
        if option in promise:
            raise ValueError(f"{name} can't be set: what this program promises rests on its value; unset it")
        if option in NO_TEXT or not isinstance(known.get(option, ...), bool | int | float | str | tuple | None):
            raise ValueError(f"{name} is no setting of kafka-python that a text can give: correct the name or unset it")
        value = typed(name, text, known[option])
        if option in client.DEFAULT_CONFIG:
            chosen[option] = value
    if not chosen.get("bootstrap_servers"):
        raise ValueError("KAFKA_BOOTSTRAP_SERVERS is not set: give the brokers' addresses as host:port,host:port")
    for address in chosen["bootstrap_servers"].split(","):
        found = re.fullmatch(r"\s*(?:\[[0-9a-fA-F:]+\]|[^\s:,/]+):([0-9]{1,5})\s*", address)
        if not found or not 1 <= int(found[1]) <= 65535:
            raise ValueError("KAFKA_BOOTSTRAP_SERVERS must be the brokers' addresses, as host:port,host:port")
    if chosen["security_protocol"] not in SECURITY_PROTOCOLS:
        raise ValueError(f"KAFKA_SECURITY_PROTOCOL must be one of {', '.join(SECURITY_PROTOCOLS)}")
    if chosen["security_protocol"].startswith("SASL"):
        if chosen.get("sasl_mechanism") not in SASL_MECHANISMS:
            raise ValueError(f"KAFKA_SASL_MECHANISM must be one of {', '.join(SASL_MECHANISMS)}")
        for option in ("sasl_plain_username", "sasl_plain_password"):
            if not chosen.get(option):
                raise ValueError(f"KAFKA_{option.upper()} is not set: {chosen['security_protocol']} needs it")
    return {**chosen, **promise}


def typed(name: str, text: str, default: Any) -> Any:
    """The value of a setting in the type of its default. ValueError names the setting."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.split("."))
        if isinstance(default, int) or name.endswith("_BUFFER_BYTES"):
            return int(text)
        return float(text) if isinstance(default, float) else text
    except (KeyError, ValueError):
        kind = {bool: "true or false", float: "a number", tuple: "a version such as 3.9"}
        raise ValueError(f"{name} must be {kind.get(type(default), 'a whole number')}") from None


def make_client(client: Any, context: ssl.SSLContext | None, options: Mapping[str, Any]) -> Any:
    """A KafkaProducer or KafkaConsumer. ValueError when its options don't go together."""
    try:
        return client(ssl_context=context, **options)
    except (AssertionError, RuntimeError, TypeError, KafkaConfigurationError, UnrecognizedBrokerVersion) as error:
        raise ValueError(f"kafka-python can't use these KAFKA_ settings: {error}") from error


def postgres_options(environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """DATABASE_URL and our options for libpq, less those that it or a PG variable sets. ValueError: what is wrong."""
    url = environ.get("DATABASE_URL", "")
    try:
        given: dict[str, Any] = psycopg2.extensions.parse_dsn(url)
    except psycopg2.ProgrammingError:  # its text may quote the password
        raise ValueError("DATABASE_URL is no service URI: write postgres://user:password@host:port/database") from None
    if not re.fullmatch(r"[0-9,]*", given.get("port") or environ.get("PGPORT") or ""):
        raise ValueError("PGPORT (or the port in DATABASE_URL) must be a number")
    if not (given or {"PGHOST", "PGHOSTADDR", "PGSERVICE"} & environ.keys()):
        raise ValueError("DATABASE_URL is not set, and PGHOST isn't either: one of them must say where PostgreSQL is")
    variables = {"sslmode": "PGSSLMODE", "application_name": "PGAPPNAME", "connect_timeout": "PGCONNECT_TIMEOUT",
                 "gssencmode": "PGGSSENCMODE"}  # fmt: skip
    options = {
        name: value
        for name, value in POSTGRES_OPTIONS.items()
        if name not in given and variables.get(name, name) not in environ
    }
    sslmode = options.get("sslmode") or given.get("sslmode") or environ.get("PGSSLMODE")
    if sslmode not in SSL_MODES:
        raise ValueError(f"PGSSLMODE (or sslmode in DATABASE_URL) must be one of {', '.join(SSL_MODES)}")
    root = given.get("sslrootcert") or environ.get("PGSSLROOTCERT") or os.path.expanduser("~/.postgresql/root.crt")
    if sslmode.startswith("verify") and root != "system" and not os.access(root, os.R_OK):
        raise ValueError(
            f"can't read {root}: PGSSLROOTCERT must name the CA's certificate (Aiven: ca.pem of PostgreSQL)"
        )
    if not sslmode.startswith("verify"):
        logger.warning("PostgreSQL: sslmode=%s does not check whose server it is; verify-full does", sslmode)
    return url, options
