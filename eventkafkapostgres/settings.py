"""The environment becomes options of kafka-python and of libpq."""

from __future__ import annotations

import difflib
import errno
import logging
import math
import os
import re
import ssl
from collections.abc import Mapping, MutableMapping
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

from eventkafkapostgres.outages import SettingsError, explain_kafka_error
from eventkafkapostgres.workarounds import CLIENT_OPTIONS

logger = logging.getLogger(__name__)

POLL_MS = 1000  # as long as the broker holds a fetch when there is nothing: longer is cheaper, and no slower
UNTIL_EMPTY_POLL_MS = 200  # the same with --until-empty

# What each client is made with, unless the environment says otherwise.
COMMON_OPTIONS: dict[str, Any] = {
    **CLIENT_OPTIONS,
    "api_version": (3, 9),  # given, so that no constructor waits for a broker; the real versions are negotiated anyway
    "security_protocol": "SSL",
    "request_timeout_ms": 5000,
    "retry_backoff_ms": 500,  # ten times a second (a missing topic, too few replicas) costs 2 % of a core
    "reconnect_backoff_max_ms": 2000,
    "metadata_max_age_ms": 10000,  # the longest until a topic or a right that was missing is noticed
    "metrics_enabled": False,
}
PRODUCER_OPTIONS: dict[str, Any] = {"client_id": "kproducer"}
FIXED_PRODUCER_OPTIONS: dict[str, Any] = {  # the guarantees depend on these: no setting changes them
    "acks": "all",
    "enable_idempotence": False,
    "max_in_flight_requests_per_connection": 1,
    "delivery_timeout_ms": math.inf,
    "retries": math.inf,
    "max_block_ms": 0,
}
CONSUMER_OPTIONS: dict[str, Any] = {
    "client_id": "kconsumer",
    "heartbeat_interval_ms": 6000,
    "session_timeout_ms": 20000,
    "max_poll_records": 10000,
    "fetch_max_wait_ms": POLL_MS,
    "fetch_max_bytes": 2 << 20,
    "allow_auto_create_topics": False,  # a --topic that is misspelt must not be created by reading it
}
FIXED_CONSUMER_OPTIONS: dict[str, Any] = {  # the guarantees depend on these: no setting changes them
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "consumer_timeout_ms": math.inf,
    "check_crcs": True,
}
POSTGRES_DEFAULTS = {  # in the environment, for that is where libpq looks last
    "PGAPPNAME": "kconsumer",
    "PGCONNECT_TIMEOUT": "4",
    "PGGSSENCMODE": "disable",
    "PGSSLMODE": "verify-full",
}
KEEPALIVE_OPTIONS: dict[str, Any] = {  # libpq has no variables for these, and ignores what a system lacks
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 8000,
}
SSL_MODES = ("verify-full", "verify-ca", "require", "prefer", "allow", "disable")
NOT_SETTABLE_FROM_ENV = {  # options whose default is None, but whose values are objects, or that are of no use here
    "ssl_context", "sasl_oauth_token_provider", "key_serializer", "value_serializer", "key_deserializer",
    "value_deserializer", "partition_assignment_strategy", "group_instance_id", "transactional_id", "socks5_proxy",
}  # fmt: skip
ZERO_ALLOWED = {"linger_ms", "batch_size"}  # 0 elsewhere is a busy loop, or a timeout that is over at once
MAX_NUMBER = 2**31 - 1  # for milliseconds and bytes alike: a C int
SASL_MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN")
SECURITY_PROTOCOLS = ("SSL", "SASL_SSL", "SASL_PLAINTEXT", "PLAINTEXT")
MISSPELT = 0.88  # as similar as a misspelt name is to the right one: one letter or two, a plural, an underscore
# What Kubernetes sets in each pod for a service whose name begins with kafka.
SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?)")
LISTED_NAMES = 5  # the log line names at most so many variables that are not used


def kafka_options(
    client: Any, environ: Mapping[str, str], options: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """What a Kafka client is made with: COMMON_OPTIONS, `options`, each KAFKA_<OPTION> with its type, `fixed`.

    SettingsError says in one line which setting is wrong and what to do.
    """
    known = {**KafkaConsumer.DEFAULT_CONFIG, **KafkaProducer.DEFAULT_CONFIG, **COMMON_OPTIONS}
    settable = {
        name: default
        for name, default in known.items()
        if name not in NOT_SETTABLE_FROM_ENV and isinstance(default, bool | int | float | str | tuple | None)
    }
    chosen: dict[str, Any] = {**COMMON_OPTIONS, **options}
    unused = []
    for name, text in environ.items():
        if not name.startswith("KAFKA_"):
            continue
        option = name.removeprefix("KAFKA_").lower()
        if option in fixed:
            raise SettingsError(f"{name} can't be set: the guarantees depend on its value; unset it")
        if option in settable:
            value = parse_option(name, text, settable[option])
            if option in client.DEFAULT_CONFIG:
                chosen[option] = value
        elif option in known:
            raise SettingsError(f"{name} is an option of kafka-python that no text can give: unset it")
        elif right := did_you_mean(name, settable, environ):
            raise SettingsError(f"{name}: did you mean {right}? Correct the name, or unset it")
        else:
            unused.append(name)
    if unused:
        more = f" and {len(unused) - LISTED_NAMES} more" if len(unused) > LISTED_NAMES else ""
        logger.info("no options of kafka-python, not used: %s%s", ", ".join(sorted(unused)[:LISTED_NAMES]), more)
    check_addresses(chosen.get("bootstrap_servers") or "")
    check_security(chosen)
    return {**chosen, **fixed}


def producer_options(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the KafkaProducer is made with. SettingsError when a setting is wrong."""
    return kafka_options(KafkaProducer, environ, PRODUCER_OPTIONS, FIXED_PRODUCER_OPTIONS)


def consumer_options(environ: Mapping[str, str], group: str, until_empty: bool) -> dict[str, Any]:
    """What the KafkaConsumer is made with. SettingsError when a setting is wrong."""
    fixed = {**FIXED_CONSUMER_OPTIONS, "group_id": group}
    waits = {"fetch_max_wait_ms": UNTIL_EMPTY_POLL_MS} if until_empty else {}
    options = kafka_options(KafkaConsumer, environ, CONSUMER_OPTIONS | waits, fixed)
    if options["request_timeout_ms"] >= options["heartbeat_interval_ms"]:
        raise SettingsError("KAFKA_REQUEST_TIMEOUT_MS must be less than KAFKA_HEARTBEAT_INTERVAL_MS")
    return options


def did_you_mean(name: str, settable: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """The variable that a misspelt one was meant to be; None for a name that belongs to somebody else."""
    if SERVICE_LINK.fullmatch(name.removeprefix("KAFKA_")):
        return None
    option = name.removeprefix("KAFKA_").lower()
    option = option.replace("sasl_", "sasl_plain_") if option in ("sasl_username", "sasl_password") else option
    for similar in difflib.get_close_matches(option, settable, 1, MISSPELT):
        right = f"KAFKA_{similar.upper()}"
        has_no_more_words = option.count("_") <= similar.count("_")  # transaction_max_timeout_ms is a broker's
        if right not in environ and (has_no_more_words or option.replace("_", "") == similar.replace("_", "")):
            return right
    return None


def parse_option(name: str, text: str, default: Any) -> Any:
    """The value of a setting in the type of its default. SettingsError names the setting."""
    option = name.removeprefix("KAFKA_").lower()
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.split("."))
        if isinstance(default, int | float) or option.endswith("_buffer_bytes"):
            number = float(text) if isinstance(default, float) else int(text)
            if not (0 if option in ZERO_ALLOWED else 1) <= number <= MAX_NUMBER:
                raise ValueError
            return number
    except (KeyError, ValueError):
        kind = {bool: "true or false", float: "a number", tuple: "a version such as 3.9"}
        needed = kind.get(type(default), f"a whole number from {int(option not in ZERO_ALLOWED)} to {MAX_NUMBER}")
        raise SettingsError(f"{name} must be {needed}") from None
    if not option.endswith("file") and not text.isprintable():
        raise SettingsError(f"{name} must be printable text")
    return text


def check_addresses(servers: str) -> None:
    """SettingsError where KAFKA_BOOTSTRAP_SERVERS is not set, or no list of addresses."""
    if not servers:
        raise SettingsError("KAFKA_BOOTSTRAP_SERVERS is not set: give the brokers' addresses as host:port,host:port")
    for address in servers.split(","):
        found = re.fullmatch(r"\s*(?:\[[0-9a-fA-F:]+\]|([^\s:,/@]+)):([0-9]{1,5})\s*", address)
        try:
            good = found and 1 <= int(found[2]) <= 65535 and (found[1] or "").encode("idna") is not None
        except UnicodeError:  # no host can have this name
            good = False
        if not good:
            raise SettingsError("KAFKA_BOOTSTRAP_SERVERS must be the brokers' addresses, as host:port,host:port")


def check_security(chosen: Mapping[str, Any]) -> None:
    """SettingsError where protocol, SASL and proxy don't fit; a warning where nobody checks whose broker it is."""
    protocol = chosen["security_protocol"]
    if protocol not in SECURITY_PROTOCOLS:
        raise SettingsError(f"KAFKA_SECURITY_PROTOCOL must be one of {', '.join(SECURITY_PROTOCOLS)}")
    if protocol.startswith("SASL"):
        if chosen.get("sasl_mechanism") not in SASL_MECHANISMS:
            raise SettingsError(f"KAFKA_SASL_MECHANISM must be one of {', '.join(SASL_MECHANISMS)}")
        for option in ("sasl_plain_username", "sasl_plain_password"):
            if not chosen.get(option):
                raise SettingsError(f"KAFKA_{option.upper()} is not set: {protocol} needs it")
    if not re.match(r"(socks5h?|http)://[^\s/]|each-address:$", chosen["proxy_url"]):
        raise SettingsError("KAFKA_PROXY_URL must be socks5://host:port, socks5h://host:port or http://host:port")
    if not protocol.endswith("SSL"):
        logger.warning("Kafka: %s is plain text: anybody on the way can read and change it; SSL is not", protocol)
    elif not chosen.get("ssl_check_hostname", True):
        logger.warning("Kafka: KAFKA_SSL_CHECK_HOSTNAME=false does not check whose broker it is")


def make_client(client: Any, context: ssl.SSLContext | None, options: Mapping[str, Any]) -> Any:
    """A KafkaProducer or KafkaConsumer. SettingsError when its options don't go together, OSError without a thread."""
    try:
        return client(ssl_context=context, **options)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError, KafkaError) as error:
        text = explain_kafka_error(str(error))
        if "new thread" in text:
            raise OSError(errno.EAGAIN, text) from error
        raise SettingsError(f"kafka-python can't use these KAFKA_ settings: {text}") from error


def postgres_options(environ: MutableMapping[str, str]) -> tuple[str, dict[str, Any]]:
    """DATABASE_URL, and the options that psycopg2 gets beside it. SettingsError: what is wrong.

    Our defaults go into `environ`, where libpq looks after the URI and the service file: so its own rules decide.
    """
    url = environ.get("DATABASE_URL", "")
    given = parse_url(url)
    if not (url or {"PGHOST", "PGHOSTADDR", "PGSERVICE"} & environ.keys()):
        raise SettingsError(
            "DATABASE_URL is not set, and PGHOST isn't either: one of them must say where PostgreSQL is"
        )
    ports = given.get("port") or environ.get("PGPORT") or "5432"
    if not all(re.fullmatch("[0-9]{0,5}", port) and int(port or 1) in range(1, 65536) for port in ports.split(",")):
        raise SettingsError("PGPORT (or the port in DATABASE_URL) must be a number from 1 to 65535")
    for name, value in POSTGRES_DEFAULTS.items():
        environ.setdefault(name, value)
    # sslrootcert=system: the libcrypto of psycopg2-binary looks where it was built; Python's knows this system.
    system = ssl.get_default_verify_paths()
    for name, path in (("SSL_CERT_FILE", system.cafile), ("SSL_CERT_DIR", system.capath)):
        if path:
            environ.setdefault(name, path)
    if given.get("service") or environ.get("PGSERVICE"):  # only libpq knows what the service file says
        return url, {}
    check_postgres_tls(given, environ)
    return url, {name: value for name, value in KEEPALIVE_OPTIONS.items() if name not in given}


def parse_url(url: str) -> dict[str, str]:
    """What DATABASE_URL gives. SettingsError without a word of it, for it may hold a password."""
    scheme, separator, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    is_url = separator and "=" not in scheme
    if is_url and (authority.count("@") > 1 or "@" in path.partition("?")[0]):
        raise SettingsError("DATABASE_URL: '@' and '/' in a user or password must be written as %40 and %2F")
    if is_url and re.search("%(?![0-9a-fA-F]{2})", authority):
        raise SettingsError("DATABASE_URL: '%' in a user or password must be written as %25")
    import psycopg2.extensions  # here: kproducer has no use for its 4 MB

    try:
        given: dict[str, str] = psycopg2.extensions.parse_dsn(url)
    except psycopg2.ProgrammingError:  # its text may quote the password
        raise SettingsError(
            "DATABASE_URL is not a service URI: write postgres://user:password@host:port/database"
        ) from None
    return given


def check_postgres_tls(given: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """SettingsError where the CA's certificate can't be read; a warning where nobody checks whose server it is."""
    sslmode = given.get("sslmode") or environ["PGSSLMODE"]
    if sslmode not in SSL_MODES:
        raise SettingsError(f"PGSSLMODE (or sslmode in DATABASE_URL) must be one of {', '.join(SSL_MODES)}")
    host = given.get("host") or environ.get("PGHOST") or ""
    address = given.get("hostaddr") or environ.get("PGHOSTADDR")
    if not address and all(each.startswith(("/", "@")) or not each for each in host.split(",")):
        return  # Unix sockets, on which libpq ignores sslmode
    if not sslmode.startswith("verify"):
        logger.warning("PostgreSQL: sslmode=%s does not check whose server it is; verify-full does", sslmode)
        return
    root = given.get("sslrootcert") or environ.get("PGSSLROOTCERT") or os.path.expanduser("~/.postgresql/root.crt")
    if root != "system" and not os.access(root, os.R_OK):
        raise SettingsError(
            f"can't read {root}: PGSSLROOTCERT must name the CA's certificate (Aiven: ca.pem of PostgreSQL)"
        )
