"""Send a warning to Apache Kafka for each second in which this host uses more bandwidth than its limit.

$ python kproducer.py --limit 1MB/s
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import re
import secrets
import signal
import socket
import sqlite3
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

import psutil
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import (
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    KafkaConfigurationError,
    KafkaConnectionError,
    KafkaError,
    UnrecognizedBrokerVersion,
)

from simpleEvents import EventSystem

__version__ = "1.0.0"

WINDOW = 1000  # warnings in flight, and warnings kept in memory while the disk takes none
SEND_SECONDS = 5.0  # without an acknowledgement for so long, Kafka is said to be away
FLUSH_SECONDS = 10.0  # how long the end of an interval waits for the last acknowledgements
STOP_SECONDS = 3.0  # the same after SIGINT or SIGTERM
HANDSHAKE_SECONDS = 5.0  # a TLS handshake that takes longer has failed
CHECK_SECONDS = 8  # how long --check waits for Kafka
RENEW_DAYS = 30  # a certificate with fewer days left wants to be renewed
RETRY_SECONDS = (1.0, 30.0)  # the first and the longest pause after Kafka refused a warning

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
API_VERSION = (3, 9)  # given, so that no constructor waits for a broker; the real versions are negotiated all the same
NO_TEXT = {  # options whose default is None, but whose values are objects
    "ssl_context", "sasl_oauth_token_provider", "key_serializer", "value_serializer", "key_deserializer",
    "value_deserializer", "partition_assignment_strategy", "group_instance_id", "transactional_id", "socks5_proxy",
}  # fmt: skip
SASL_MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN")
SECURITY_PROTOCOLS = ("SSL", "SASL_SSL", "SASL_PLAINTEXT", "PLAINTEXT")

UNTIL_THE_END: list[Any] = []  # a KafkaProducer that is garbage-collected waits for its broker, and complains

logger = logging.getLogger("kproducer")


# The warning


class Sample(NamedTuple):
    """What one measurement of the bandwidth found."""

    observed_at: datetime
    interfaces: list[str]
    bytes_sent_per_second: float
    bytes_received_per_second: float


def parse_rate(text: str) -> float:
    """Bytes a second from '1000000', '1MB/s', '80Mbit/s' or '1MiB/s'. ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kKMGT]?)(i?)(B|bit)/s)?", text.strip(), re.ASCII)
    if not found or (found[3] and not found[2]):
        raise ValueError(f"{text!r} is no rate: write bytes a second as 1000000, 1MB/s, 80Mbit/s or 1MiB/s")
    number, prefix, binary, unit = found.groups()
    power = " KMGT".index((prefix or " ").upper())
    rate = float(number) * float((1024 if binary else 1000) ** power) / (8 if unit == "bit" else 1)
    if rate == math.inf:
        raise ValueError(f"{text[:20]}... is beyond all rates")
    return rate


def format_rate(bytes_per_second: float) -> str:
    """'3.93 MB/s': three figures or so, for people."""
    for unit in ("B/s", "kB/s", "MB/s", "GB/s"):
        if bytes_per_second < 999.995 or unit == "GB/s":
            break
        bytes_per_second /= 1000
    return f"{bytes_per_second:.2f} {unit}"


def uuid7(unix_seconds: float, random_bits: int) -> UUID:
    """UUID version 7 from a time and 74 random bits (RFC 9562, section 5.7)."""
    milliseconds = int(unix_seconds * 1000) & (1 << 48) - 1
    high, low = random_bits >> 62 & 0xFFF, random_bits & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low)


def bandwidth(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]], seconds: float
) -> tuple[float, float]:
    """Bytes sent and received a second between two readings of (bytes sent, bytes received) by interface.

    An interface that is in one reading only, or whose counter went back, adds nothing until the next reading.
    """
    shared = before.keys() & after.keys()
    sent, received = (sum(max(0, after[name][way] - before[name][way]) for name in shared) for way in (0, 1))
    return sent / seconds, received / seconds


def warning(sample: Sample, host: str, limit_bytes_per_second: float, event_id: UUID) -> dict[str, Any]:
    """The message for one second above the limit: its fields are the columns of the table."""
    total = sample.bytes_sent_per_second + sample.bytes_received_per_second
    return {
        "event_id": str(event_id),
        "observed_at": sample.observed_at.isoformat(timespec="microseconds"),
        "host": host,
        "interfaces": sample.interfaces,
        "bytes_sent_per_second": round(sample.bytes_sent_per_second, 1),
        "bytes_received_per_second": round(sample.bytes_received_per_second, 1),
        "bytes_per_second": round(total, 1),
        "limit_bytes_per_second": limit_bytes_per_second,
        "message": f"Bandwidth exceeded on {host}: {format_rate(total)} is over the limit of "
        f"{format_rate(limit_bytes_per_second)}",
    }


# Settings. kconsumer.py uses these too.


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


class PatientSocket(ssl.SSLSocket):
    """A TLS socket that makes up for two defects of kafka-python 3.0."""

    has_read = False

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """The end of the connection is told on its own: kafka-python throws away what it read just before it."""
        data = super().recv(buflen, flags)
        if not data and self.has_read:
            self.has_read = False
            raise ssl.SSLWantReadError
        self.has_read = bool(data)
        return data

    def do_handshake(self, block: bool = False) -> None:
        """With a deadline: kafka-python waits for ever for a peer that accepts and stays silent."""
        self.settimeout(HANDSHAKE_SECONDS)
        super().do_handshake(block)
        self.settimeout(0.0)


class PatientContext(ssl.SSLContext):
    """A TLS context that makes up for a third: an OSError here ends kafka-python's refreshing of metadata for good."""

    sslsocket_class = PatientSocket

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """KafkaConnectionError where the peer resets the connection before its TLS begins."""
        try:
            return super().wrap_socket(*arguments, **options)
        except OSError as error:
            raise KafkaConnectionError(str(error)) from error


class Certificates:
    """The TLS context that KAFKA_SSL_... describes, kept up to date with the files.

    ValueError names what is wrong. `context` is None where the security protocol is without TLS.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        """Takes the ssl_ options out of `options`: kafka-python gets the context instead."""
        self.tls = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
        self.files = {
            n: Path(self.tls[n])
            for n in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
            if self.tls.get(n)
        }
        for name, path in self.files.items():
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"KAFKA_{name.upper()}: can't read {path}: {error.strerror}") from error
        self.context: ssl.SSLContext | None = None
        if options["security_protocol"].endswith("SSL"):
            self.context = PatientContext(ssl.PROTOCOL_TLS_CLIENT)
            self.load(self.context)
        self.loaded = self.changed()
        self.told_at = -math.inf

    def load(self, context: ssl.SSLContext) -> None:
        """Bring files and settings into a context."""
        tls = self.tls
        wrong = "KAFKA_SSL_CAFILE holds no certificate in PEM format"
        try:
            if tls.get("ssl_cafile"):
                context.load_verify_locations(tls["ssl_cafile"])
            else:
                context.load_default_certs()
            context.check_hostname = tls.get("ssl_check_hostname", True)
            if tls.get("ssl_crlfile"):
                wrong = "KAFKA_SSL_CRLFILE holds no revocation list in PEM format"
                context.load_verify_locations(tls["ssl_crlfile"])
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
            if tls.get("ssl_ciphers"):
                wrong = "KAFKA_SSL_CIPHERS names no cipher that OpenSSL has"
                context.set_ciphers(tls["ssl_ciphers"])
            if tls.get("ssl_certfile"):
                wrong = "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE (or its KAFKA_SSL_PASSWORD) don't fit"
                password = tls.get("ssl_password") or ""  # without one, OpenSSL would ask on the terminal
                context.load_cert_chain(tls["ssl_certfile"], tls.get("ssl_keyfile") or None, password)
            elif tls.get("ssl_keyfile"):
                raise ValueError("KAFKA_SSL_CERTFILE is not set, but KAFKA_SSL_KEYFILE is: a client needs both")
        except ssl.SSLError as error:
            raise ValueError(f"{wrong}: {getattr(error, 'reason', None) or error}") from error

    def changed(self) -> list[int]:
        """When each file was changed."""
        return [path.stat().st_mtime_ns for path in self.files.values()]

    def days_left(self, now: datetime) -> Iterator[tuple[str, int, int]]:
        """Of each file with certificates: its setting, how many, and the days that the first to end has left."""
        for name in ("ssl_certfile", "ssl_cafile"):
            if name in self.files and (ends := certificate_ends(self.files[name].read_text())):
                yield f"KAFKA_{name.upper()}", len(ends), (min(ends) - now).days

    def renew(self) -> None:
        """Use files that were changed for the next connections; say once a day that a certificate ends soon."""
        try:
            if self.context and (changed := self.changed()) != self.loaded:
                self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # half written files must not spoil the one in use
                self.load(self.context)
                self.loaded = changed
                logger.info("the certificates on disk were renewed: new connections use them")
            if time.monotonic() - self.told_at > 86400:
                self.told_at = time.monotonic()
                for name, _, days in self.days_left(datetime.now(UTC)):
                    if days < RENEW_DAYS:
                        logger.warning("%s %s", name, lifetime(days))
        except (OSError, ValueError) as error:
            logger.warning("the certificates on disk can't be used, the old ones are: %s", error)


def lifetime(days: int) -> str:
    """How long a certificate is good, for people."""
    if days < 0:
        return f"ended {-days - 1} days ago: get a new one"
    return f"ends in {days} days" + (": get a new one" if days < RENEW_DAYS else "")


def certificate_ends(pem: str) -> list[datetime]:
    """When each certificate of a PEM file ends: the second time of its validity (RFC 5280, section 4.1.2.5)."""
    ends = []
    for certificate in re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.DOTALL):
        times = re.findall(rb"\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z", ssl.PEM_cert_to_DER_cert(certificate))
        short, long = (text.decode() for text in times[1])
        # RFC 5280: a year of two digits below 50 is in this century
        full = long or ("20" if short < "50" else "19") + short
        ends.append(datetime.strptime(full + "+0000", "%Y%m%d%H%M%S%z"))
    return ends


def outbox_path(environ: Mapping[str, str]) -> Path:
    """outbox.sqlite where systemd says, else where the XDG Base Directory Specification says."""
    if state := environ.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0], "outbox.sqlite")
    home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home, "eventKafkaPostgres", "outbox.sqlite")


# Signals and the end of the process. kconsumer.py uses these too.


def end_process(status: int) -> NoReturn:
    """End now, without waiting for threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Stop:
    """Set by SIGINT or SIGTERM: a signal handler may use a SimpleQueue, but not a threading.Event."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[None] = SimpleQueue()
        self.stopped = False

    def set(self) -> None:
        self.stopped = True
        self.queue.put(None)

    def is_set(self) -> bool:
        return self.stopped

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is set; whether it is."""
        if not self.stopped:
            with contextlib.suppress(Empty):
                self.queue.get(timeout=max(0.0, seconds))
        return self.stopped

    def on_signals(self, grace_seconds: int = 0) -> None:
        """Let the first SIGINT or SIGTERM set this. The second one ends the process at once.

        With a grace the process ends with status 0 when it is over, wherever it hangs.
        """

        def handle(signum: int, frame: object) -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            self.set()
            signal.alarm(grace_seconds)

        signal.signal(signal.SIGALRM, lambda signum, frame: end_process(0))

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)


class Terminal(logging.StreamHandler[Any]):
    """The log on standard error and, where that is a terminal, one line below it that is kept up to date."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.interactive = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.line = ""

    def show(self, line: str, alert: bool = False) -> None:
        """Show this line instead; an alert is red, unless NO_COLOR is set. Nothing where there is no terminal."""
        if self.interactive:
            columns = 0
            with contextlib.suppress(OSError):
                columns = os.get_terminal_size(self.stream.fileno()).columns
            line = line[: (columns or 80) - 1]
            with self.lock or contextlib.nullcontext():
                self.line = f"\x1b[31m{line}\x1b[0m" if alert and not os.environ.get("NO_COLOR") else line
                self.stream.write(f"\r\x1b[K{self.line}")
                self.stream.flush()

    def emit(self, record: logging.LogRecord) -> None:
        if self.line:
            self.stream.write("\r\x1b[K")
        super().emit(record)
        self.stream.write(self.line)
        self.flush()


# The outbox


class Outbox:
    """The warnings that Kafka has not acknowledged yet, in a SQLite file: they survive a kill and a power cut.

    Its methods raise sqlite3.OperationalError when the disk refuses, sqlite3.DatabaseError when the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, timeout=2.0, isolation_level=None)
        try:
            # An exclusive lock is held until the process ends: it is what keeps a second producer out.
            for statement in (
                "pragma locking_mode = exclusive",
                "pragma journal_mode = wal",
                "pragma synchronous = full",
                "create table if not exists warnings (position integer primary key autoincrement, key, value)",
            ):
                self.connection.execute(statement)
            if (found := self.connection.execute("pragma quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
        except sqlite3.Error:
            self.connection.close()
            raise

    def transaction(self) -> sqlite3.Connection:
        """Use with `with`: what is inside is stored on disk as a whole, or not at all."""
        self.connection.execute("begin immediate")
        return self.connection

    def change(self, add: Iterable[tuple[bytes, bytes]], remove: Iterable[int]) -> None:
        """Store warnings as (key, value) and take others out by position, in one transaction."""
        with self.transaction():
            self.connection.executemany("insert into warnings (key, value) values (?, ?)", add)
            self.connection.executemany("delete from warnings where position = ?", ((at,) for at in remove))

    def after(self, position: int, most: int) -> list[tuple[int, bytes, bytes]]:
        """The oldest warnings behind a position, at most so many, as (position, key, value)."""
        rows = self.connection.execute(
            "select position, key, value from warnings where position > ? order by position limit ?", (position, most)
        )
        return rows.fetchall()

    def count(self) -> int:
        """How many warnings wait."""
        return int(self.connection.execute("select count(*) from warnings").fetchone()[0])


def open_outbox(path: Path) -> Outbox:
    """The outbox at this path; a damaged file is set aside first. ValueError says why there can't be one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Outbox(path)
    except OSError as error:
        raise ValueError(f"the outbox {path} can't be made: {error.strerror}; give another --outbox") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            raise ValueError(f"{path} is in use: one producer per outbox, give this one another --outbox") from error
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
            raise ValueError(f"the outbox {path} can't be used: {error}; give another --outbox") from error
        return outbox_in_memory(path, error)
    except sqlite3.DatabaseError as error:
        return set_aside(path, error)


def set_aside(path: Path, error: sqlite3.DatabaseError) -> Outbox:
    """Give a damaged outbox another name, so that nothing in it is lost for good, and begin a new one."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    try:
        for suffix in ("", "-wal"):
            if (part := Path(f"{path}{suffix}")).exists():
                part.rename(f"{aside}{suffix}")
        logger.error("Outbox: %s is damaged (%s); it is kept as %s, a new one begins", path, error, aside)
        return Outbox(path)
    except (OSError, sqlite3.Error) as worse:
        return outbox_in_memory(path, worse)


def outbox_in_memory(path: Path, error: Exception) -> Outbox:
    """What there is where the disk takes nothing at all: sampling and sending go on."""
    logger.error("Outbox: %s can't be used (%s); warnings wait in memory until the next start", path, error)
    return Outbox(Path(":memory:"))


# Kafka


class Outage:
    """Says once, with its cause, that something is away, and once that it is back."""

    def __init__(self, name: str, logger: logging.Logger) -> None:
        self.name, self.logger = name, logger
        self.causes: list[str] = []  # what was said of the outage that is going on; empty when there is none

    def begin(self, cause: str) -> None:
        """It is away: say so, unless this cause was said already."""
        if cause not in self.causes:
            self.causes.append(cause)
            self.logger.warning("%s: %s; trying again", self.name, cause)

    def end(self) -> None:
        """It works."""
        if self.causes:
            self.causes.clear()
            self.logger.warning("%s: works again", self.name)


REFUSED = "connection refused: nothing listens at KAFKA_BOOTSTRAP_SERVERS"
# What kafka-python says when it can't get through, the most telling first, and what it means to who has to mend it.
CAUSES = [
    (r"CERTIFICATE_VERIFY_FAILED.*mismatch", "the broker's certificate is for another host name"),
    (r"CERTIFICATE_VERIFY_FAILED.*expired", "the broker's certificate has expired"),
    (r"CERTIFICATE_VERIFY_FAILED", "the broker's certificate is not signed by the CA in KAFKA_SSL_CAFILE"),
    (
        r"ALERT_CERTIFICATE_REQUIRED",
        "the broker wants a client certificate: set KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE",
    ),
    (
        r"ALERT_(?:CERTIFICATE_|BAD_CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE|DECRYPT_ERROR|ACCESS_DENIED)",
        "the broker does not accept the client certificate in KAFKA_SSL_CERTFILE",
    ),
    (r"SaslAuthenticationFailed", "the broker does not accept KAFKA_SASL_PLAIN_USERNAME with its password"),
    (r"UnsupportedSaslMechanism", "the broker does not offer KAFKA_SASL_MECHANISM"),
    (
        r"GroupAuthorizationFailed|Not authorized to .* group",
        "no right to the consumer group: this user needs READ on it",
    ),
    (
        r"TopicAuthorizationFailed|Topic \S+ is not authorized",
        "no right to the topic: this user needs DESCRIBE and WRITE (kproducer) or READ (kconsumer) on it",
    ),
    (r"Topic (\S+) not found", r"the topic \1 is missing: create it, or give another --topic"),
    (r"WRONG_VERSION_NUMBER|Invalid frame length", "KAFKA_SECURITY_PROTOCOL does not fit this port of the broker"),
    (r"DNS lookup failed for (\S+?),", r"there is no host \1"),
    (r"ECONNREFUSED", REFUSED),
    (r"timed out|RequestTimedOut", "no answer: the network or the broker is silent"),
    (r"Connection lost", "the broker closes the connection: it ends, or the login or KAFKA_SECURITY_PROTOCOL is wrong"),
]
CAUSE_SECONDS = 30.0  # for so long a telling cause is not replaced by a less telling one


def plain(text: str) -> str:
    """What an error of kafka-python means, or its own text."""
    return next((match.expand(meaning) for pattern, meaning in CAUSES if (match := re.search(pattern, text))), text)


class KafkaLog(logging.Handler):
    """Keeps the cause that kafka-python tells only to its log, dozens of times a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self.clock = clock
        self.forget()

    def forget(self) -> None:
        """Kafka answers: what was wrong before says nothing of what may be wrong later."""
        self.cause, self.rank, self.at = "", len(CAUSES), -math.inf

    def emit(self, record: logging.LogRecord) -> None:
        text, now = record.getMessage(), self.clock()
        for rank, (pattern, meaning) in enumerate(CAUSES):
            if match := re.search(pattern, text):
                if rank <= self.rank or now - self.at > CAUSE_SECONDS:
                    self.cause, self.rank, self.at = match.expand(meaning), rank, now
                return


@dataclass(eq=False, slots=True)
class Sent:
    """A warning that was sent, as bandwidth_exceeds holds it until Kafka acknowledges it."""

    position: int | None  # in the outbox; None when the disk refused it
    key: bytes
    value: bytes
    future: Any


class Delivery:
    """Takes warnings through the outbox to Kafka. Nothing here waits for Kafka: pump() does what can be done now."""

    def __init__(
        self,
        kproducer: KafkaProducer,
        topic: str,
        outbox: Outbox,
        bandwidth_exceeds: EventSystem[Sent],
        kafka_log: KafkaLog,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.kproducer, self.topic, self.outbox, self.clock, self.sleep = kproducer, topic, outbox, clock, sleep
        self.bandwidth_exceeds, self.kafka_log = bandwidth_exceeds, kafka_log
        self.kafka, self.disk = Outage("Kafka", logger), Outage("Outbox", logger)
        self.waiting = outbox.count()  # warnings that Kafka has not acknowledged
        self.acknowledged = 0
        self.lost = 0
        self.unsaved: list[tuple[bytes, bytes]] = []  # (key, value): raised, and not on the disk yet
        self.settled: set[int] = set()  # positions: acknowledged, and still on the disk
        self.sent_up_to = 0  # position
        self.refused: BaseException | None = None
        self.pause_seconds = RETRY_SECONDS[0]
        self.resume_at = self.alive_at = clock()
        self.topic_known = False
        self.heartbeat: Any = None  # the future of the last one
        self.heartbeat_at = -math.inf  # when the next one is due

    def pump(self, *raised: tuple[bytes, bytes]) -> None:
        """One round: look at each future, store what was raised, send what the window takes, say what is wrong."""
        self.settle()
        self.waiting += len(raised)
        self.unsaved.extend(raised)
        self.store()
        self.send()
        self.report()

    def settle(self) -> None:
        """Look at every future: an acknowledged warning may leave the outbox, a refused one is sent again later."""
        refused = False
        for sent in [sent for sent in self.bandwidth_exceeds.events if sent.future.is_done]:
            self.bandwidth_exceeds.remove_event(sent)
            if sent.future.succeeded():
                self.acknowledged += 1
                self.waiting -= 1
                self.alive_at, self.pause_seconds = self.clock(), RETRY_SECONDS[0]
                self.kafka.end()
                self.kafka_log.forget()
                if sent.position is not None:
                    self.settled.add(sent.position)
            else:
                refused, self.refused = True, sent.future.exception
                if sent.position is None:
                    self.unsaved.append((sent.key, sent.value))
        if refused:
            self.resume_at = self.clock() + self.pause_seconds
            self.pause_seconds = min(2 * self.pause_seconds, RETRY_SECONDS[1])

    def store(self) -> None:
        """Bring the outbox up to date, in one transaction. What a full disk refuses stays in memory, at most WINDOW."""
        if not (self.unsaved or self.settled):
            return
        try:
            self.outbox.change(self.unsaved, self.settled)
        except sqlite3.OperationalError as error:
            self.disk.begin(f"{self.outbox.path} can't be written: {error}")
            excess = max(0, len(self.unsaved) - WINDOW)
            if excess:
                logger.error("Outbox: %d warnings lost: neither the disk nor Kafka takes them", excess)
            del self.unsaved[:excess]
            self.lost += excess
            self.waiting -= excess
        except sqlite3.DatabaseError as error:
            self.begin_anew(error)
        else:
            self.unsaved.clear()
            self.settled.clear()
            self.disk.end()

    def begin_anew(self, error: sqlite3.DatabaseError) -> None:
        """Go on with a new outbox; what is in flight has no place in it."""
        self.outbox.connection.close()
        self.outbox = set_aside(self.outbox.path, error)
        self.sent_up_to = 0
        self.settled.clear()
        for sent in self.bandwidth_exceeds.events:
            sent.position = None
        self.waiting = len(self.unsaved) + len(self.bandwidth_exceeds.events)

    def send(self) -> None:
        """Send the oldest warnings that are not in flight, as many as the window has room for."""
        in_flight = self.bandwidth_exceeds.events
        if self.clock() < self.resume_at or (self.refused and in_flight):
            return
        if self.refused:  # begin again at the oldest, so that a host's warnings stay in order
            self.refused, self.sent_up_to, self.alive_at = None, 0, self.clock()
        room = WINDOW - len(in_flight)
        try:
            for position, key, value in self.outbox.after(self.sent_up_to, room) if room else ():
                if position not in self.settled:
                    self.send_one(position, key, value)
                self.sent_up_to = position
            while self.unsaved and len(in_flight) < WINDOW:
                self.send_one(None, *self.unsaved[0])
                del self.unsaved[0]
        except KafkaError:  # raised, not in the future: no metadata of the topic yet
            self.resume_at = self.clock() + 0.25
        except sqlite3.OperationalError as error:
            self.disk.begin(f"{self.outbox.path} can't be read: {error}")
        except sqlite3.DatabaseError as error:
            self.begin_anew(error)

    def send_one(self, position: int | None, key: bytes, value: bytes) -> None:
        future = self.kproducer.send(self.topic, value=value, key=key)
        self.bandwidth_exceeds.add_event(Sent(position, key, value, future))

    def report(self) -> None:
        """Say once when Kafka takes no warnings, with the cause; an acknowledgement says that it does again."""
        now = self.clock()
        if not self.topic_known:
            with contextlib.suppress(KafkaError):
                self.topic_known = bool(self.kproducer.partitions_for(self.topic))
            if self.topic_known and not self.waiting:
                self.kafka.end()
        if self.topic_known and not self.waiting:
            self.alive_at = now
        if self.refused:
            self.kafka.begin(plain(str(self.refused)))
        elif now - self.alive_at > SEND_SECONDS:
            if self.kafka_log.at > self.alive_at:
                self.kafka.begin(self.kafka_log.cause)
            elif now - self.alive_at > 2 * SEND_SECONDS:  # the log takes a handshake's time to name a cause
                self.kafka.begin("no answer")

    def idle(self) -> float:
        """pump(), then for how many seconds there is nothing to do."""
        self.pump()
        return 0.05 if self.waiting > len(self.bandwidth_exceeds.events) else math.inf

    def beat(self, key: bytes, value: bytes, seconds: float) -> None:
        """Send a heartbeat now or never: a late one says nothing. The next is due in `seconds`."""
        self.heartbeat_at = self.clock() + seconds
        if not self.heartbeat or self.heartbeat.is_done:
            with contextlib.suppress(KafkaError):
                self.heartbeat = self.kproducer.send(self.topic, value=value, key=key)

    def finish(self, seconds: float) -> None:
        """Flush, and look at every future until all are done or the time is over."""
        ends_at = self.clock() + seconds
        with contextlib.suppress(KafkaError):
            self.kproducer.flush(timeout=0)  # sends what lingers; the futures tell what became of it
        self.pump()
        while self.waiting and not self.kafka.causes and (left := ends_at - self.clock()) > 0:
            self.sleep(min(0.05, left))
            self.pump()
        self.store()


# The loop


def read_counters() -> dict[str, tuple[int, int]]:
    """Bytes sent and received by each interface of this host since it came up."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    return {name: (counter.bytes_sent, counter.bytes_recv) for name, counter in counters.items() if name.isprintable()}


def default_interfaces() -> set[str]:
    """The interfaces that are up, without loopback."""
    stats = psutil.net_if_stats()
    return {name for name, nic in stats.items() if nic.isup and "loopback" not in nic.flags.split(",")}


def samples(
    interval_seconds: float,
    interfaces: Sequence[str],
    stop: Stop,
    idle: Callable[[], float],
    counters: Callable[[], dict[str, tuple[int, int]]] = read_counters,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Sample]:
    """The bandwidth at each tick, until `stop` is set. Ticks are counted from the start, so the second doesn't drift.

    The time to the next tick is spent in idle(), which returns for how many seconds it has nothing to do.
    A tick that was missed (the host was asleep) is left out; its bytes are in the next one, over the time measured.
    """
    started_at = measured_at = clock()
    before, chosen = counters(), set(interfaces) or default_interfaces()
    tick = 1
    while True:
        while (left := started_at + tick * interval_seconds - clock()) > 0:
            if stop.wait(min(left, idle())):
                return
        after, at = counters(), clock()
        if not interfaces and (tick % 10 == 0 or after.keys() != before.keys()):
            chosen = default_interfaces()
        measured = {name: after[name] for name in sorted(after.keys() & chosen)}
        yield Sample(now(), list(measured), *bandwidth(before, measured, at - measured_at))
        before, measured_at = after, at
        tick = math.floor((at - started_at) / interval_seconds + 0.5) + 1


def bandwidth_exceed_event_system(
    delivery: Delivery,
    measured: Iterator[Sample],
    settings: argparse.Namespace,
    stop: Stop,
    flush_seconds: float = FLUSH_SECONDS,
    show: Callable[[str, bool], None] = lambda line, alert: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """One interval: a warning for each sample above the limit, registered and sent at once; flush; break out."""
    # half a tick early, so that the tick at the interval's end belongs to it
    ends_at = clock() + settings.flush_interval - settings.interval / 2
    sampled, raised, acknowledged_before = 0, 0, delivery.acknowledged
    key, limit = settings.host.encode(), format_rate(settings.limit)
    for sample in measured:
        sampled += 1
        bytes_per_second = sample.bytes_sent_per_second + sample.bytes_received_per_second
        exceeded = bytes_per_second > settings.limit
        if exceeded:
            raised += 1
            event = warning(
                sample, settings.host, settings.limit, uuid7(sample.observed_at.timestamp(), secrets.randbits(74))
            )
            delivery.pump((key, json.dumps(event, ensure_ascii=False).encode()))
            logger.warning("%s (%s)", event["message"], event["event_id"])
        if settings.heartbeat and clock() >= delivery.heartbeat_at:
            beat = {"host": settings.host, "heartbeat_at": sample.observed_at.isoformat(timespec="microseconds")}
            delivery.beat(key, json.dumps(beat, ensure_ascii=False).encode(), settings.heartbeat)
        state = f"{raised} warnings raised, {delivery.waiting} waiting"
        show(f"{format_rate(bytes_per_second)} of {limit}, {state}", exceeded)
        if clock() >= ends_at:
            break
    delivery.finish(STOP_SECONDS if stop.is_set() else flush_seconds)
    logger.info(
        "interval over: %d samples, %d warnings raised, %d acknowledged, %d left",
        sampled,
        raised,
        delivery.acknowledged - acknowledged_before,
        delivery.waiting,
    )


# --check. kconsumer.py uses this too.

Finding = tuple[bool, str]  # whether it is right, and a line that says what to do where it isn't


def show(findings: Iterator[Finding]) -> int:
    """Print a line for each finding as soon as it is there; the exit status."""
    right = True
    for ok, text in findings:
        print("✓" if ok else "✗", text, flush=True)
        right &= ok
    return 0 if right else 1


def check_group(admin: KafkaAdminClient, group: str) -> Finding:
    """Whether this user may join the consumer group."""
    for pause_seconds in (1, 1, 1, 1, 0):
        try:
            found = admin.describe_groups([group])[group]
            if "READ" in (found["authorized_operations"] or "READ"):  # none are told of a group that is not there yet
                return True, f"group {group}: may be joined"
            break
        except GroupAuthorizationFailedError:
            break
        except CoordinatorNotAvailableError:  # a new Kafka makes its topic of offsets when it is first asked
            if not pause_seconds:
                raise
            time.sleep(pause_seconds)
    return False, f"group {group}: no right to READ: grant it to this user"


def check_kafka(
    options: dict[str, Any], kafka_log: KafkaLog, topic: str, right: str, stored: Mapping[int, int] | None = None
) -> Iterator[Finding]:
    """The files, the broker, the topic with this user's right to it ("READ" or "WRITE").

    With a group_id among the options also the group, and how far it is behind: `stored` are its next offsets.
    """
    certificates = Certificates(options)
    for name, count, days in certificates.days_left(datetime.now(UTC)):
        several = f"{count} certificates (a rotation is on), the first " if count > 1 else ""
        yield days >= 0, f"{name}: {several}{lifetime(days)}"
    servers = options["bootstrap_servers"]
    known = {name: value for name, value in options.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
    admin = None
    try:
        # a TLS handshake may take 5 s more than that
        admin = KafkaAdminClient(
            ssl_context=certificates.context, **known | {"bootstrap_timeout_ms": CHECK_SECONDS * 1000}
        )
        described = admin.describe_topics([topic])[0]
        partitions, rights = len(described["partitions"]), described["authorized_operations"] or []
        yield True, f"Kafka: {servers} answers, {options['security_protocol']}"
        if not partitions:
            yield False, f"topic {topic}: missing, or not to be seen by this user; create it and grant DESCRIBE on it"
        elif right not in rights:
            yield False, f"topic {topic}: {partitions} partitions, but no right to {right}: grant it to this user"
        else:
            yield True, f"topic {topic}: {partitions} partitions, {right} is granted"
        if group := options.get("group_id"):
            yield check_group(admin, group)
        if stored is not None and partitions:
            every = [TopicPartition(topic, n) for n in range(partitions)]
            begins = admin.list_partition_offsets(dict.fromkeys(every, OffsetSpec.EARLIEST))
            ends = admin.list_partition_offsets(dict.fromkeys(every, OffsetSpec.LATEST))
            behind = (ends[at].offset - max(begins[at].offset, stored.get(at.partition, 0)) for at in every)
            yield True, f"lag: {sum(max(0, messages) for messages in behind)} messages are not recorded yet"
    except KafkaError as error:
        yield False, f"Kafka: {servers}: {kafka_log.cause or plain(str(error))}"
    finally:
        if admin:
            admin.close()


def check_outbox(path: Path) -> Finding:
    """Whether the outbox can be used, and what waits in it."""
    if not path.exists():
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        right = parent.is_dir() and os.access(parent, os.W_OK)
        return right, f"outbox {path}: " + ("will be made" if right else f"nothing can be made in {parent}")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0)) as outbox:
            outbox.execute("pragma locking_mode = exclusive")  # so that no file is made for sharing it
            return True, f"outbox {path}: {outbox.execute('select count(*) from warnings').fetchone()[0]} warnings wait"
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            return True, f"outbox {path}: in use by a producer that runs"
        return False, f"outbox {path}: {error}; give another --outbox"


def check(settings: argparse.Namespace, kafka_log: KafkaLog) -> Iterator[Finding]:
    """Everything that the producer needs."""
    yield check_outbox(settings.outbox or outbox_path(os.environ))
    options = kafka_options(KafkaProducer, os.environ, PRODUCER_OPTIONS, PRODUCER_PROMISE)
    yield from check_kafka(options, kafka_log, settings.topic, "WRITE")


# The command line


class OneLineParser(argparse.ArgumentParser):
    """An error is one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def argument(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """For argparse's type=: the text of a ValueError is what the user sees."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return converted


def seconds(text: str) -> float:
    """A finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is no number of seconds above 0")
    return value


def topic_name(text: str) -> str:
    """A name that Kafka takes for a topic."""
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", text) or text in (".", ".."):
        raise ValueError(f"{text!r} is no topic's name: letters, digits, '.', '_' and '-', at most 249")
    return text


def printable(text: str) -> str:
    """A name of a host or a group: 1 to 255 characters that people can read."""
    if not 1 <= len(text) <= 255 or not text.isprintable():
        raise ValueError(f"{text!r} is no name: 1 to 255 printable characters")
    return text


def interface(name: str) -> str:
    """The name of an interface that is there."""
    if name not in (there := read_counters()):
        raise ValueError(f"there is no interface {name!r}: this host has {', '.join(sorted(there))}")
    return name


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=prog,
        description="Warn through Apache Kafka of each second in which this host uses more bandwidth than its limit.",
        epilog="Environment: KAFKA_BOOTSTRAP_SERVERS, KAFKA_SSL_CAFILE, KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE, and "
        "KAFKA_<OPTION> for each option of kafka-python. Exit status: 0 done; 1 failed, or warnings are left in the "
        "outbox; 2 wrong usage or settings.",
    )
    add = parser.add_argument
    add("--limit", type=argument(parse_rate), default="1MB/s", metavar="RATE",
        help="bytes a second, sent plus received: 1000000, 1MB/s, 80Mbit/s, 1MiB/s (default: 1MB/s)")  # fmt: skip
    add("--interval", type=argument(seconds), default=1.0, metavar="SECONDS",
        help="time between two samples (default: 1)")  # fmt: skip
    add("--flush-interval", type=argument(seconds), default=120.0, metavar="SECONDS",
        help="time until the flush, and the end (default: 120)")  # fmt: skip
    add("--interface", type=argument(interface), action="append", default=[], metavar="NAME",
        help="an interface to measure; may be repeated (default: every one that is up, without loopback)")  # fmt: skip
    add("--topic", type=argument(topic_name), default="bandwidth_exceeds", metavar="NAME",
        help="Kafka's topic (default: bandwidth_exceeds)")  # fmt: skip
    add("--host", type=argument(printable), default=socket.gethostname(), metavar="NAME",
        help="the name in the warnings (default: this host's name)")  # fmt: skip
    add("--outbox", type=Path, metavar="FILE",
        help="where warnings wait for Kafka (default: outbox.sqlite in $STATE_DIRECTORY, else in eventKafkaPostgres "
        "under $XDG_STATE_HOME or ~/.local/state)")  # fmt: skip
    add("--heartbeat", type=argument(seconds), metavar="SECONDS",
        help="also say in the table heartbeats, so often, that this host is watched (default: never)")  # fmt: skip
    add("--forever", action="store_true", help="start the next interval instead of ending")
    add("--check", action="store_true", help="try everything that is needed, change nothing, and say what to do")
    add("-v", "--verbose", action="store_true", help="log more, and tracebacks")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def start_logging(verbose: bool) -> tuple[KafkaLog, Terminal]:
    """Log to standard error; kafka-python's own lines only with --verbose."""
    terminal = Terminal()
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=level, handlers=[terminal])
    kafka_log, kafka_logger = KafkaLog(), logging.getLogger("kafka")
    kafka_logger.addHandler(kafka_log)
    kafka_logger.propagate = verbose
    kafka_logger.setLevel(logging.INFO if verbose else logging.WARNING)
    return kafka_log, terminal


def run(settings: argparse.Namespace, stop: Stop, kafka_log: KafkaLog, terminal: Terminal) -> int:
    """Sample, warn and send until the interval is over, or for ever. ValueError when a setting is wrong."""
    options = kafka_options(KafkaProducer, os.environ, PRODUCER_OPTIONS, PRODUCER_PROMISE)
    certificates = Certificates(options)
    certificates.renew()
    outbox = open_outbox(settings.outbox or outbox_path(os.environ))
    kproducer = make_client(KafkaProducer, certificates.context, options)
    UNTIL_THE_END.append(kproducer)
    bandwidth_exceeds: EventSystem[Sent] = EventSystem()
    delivery = Delivery(kproducer, settings.topic, outbox, bandwidth_exceeds, kafka_log)
    logger.info("started: limit %s, topic %s, %d warnings wait in %s",
                format_rate(settings.limit), settings.topic, delivery.waiting, outbox.path)  # fmt: skip
    measured = samples(settings.interval, settings.interface, stop, delivery.idle)
    while True:
        # with --forever the flush may take what is left of this second, not the next sample's time
        flush_seconds = settings.interval / 2 if settings.forever else FLUSH_SECONDS
        bandwidth_exceed_event_system(delivery, measured, settings, stop, flush_seconds, terminal.show)
        certificates.renew()
        if stop.is_set() or not settings.forever:
            break
    terminal.show("")
    if not bandwidth_exceeds.events:
        kproducer.close(timeout=1)
    return 1 if delivery.waiting or delivery.lost or not delivery.topic_known else 0


def start(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    run: Callable[[argparse.Namespace, Stop, KafkaLog, Terminal], int],
    check: Callable[[argparse.Namespace, KafkaLog], Iterator[Finding]],
    grace_seconds: int = 0,
) -> int:
    """Run a script, or its --check; the exit status. What is wrong with the settings is one line, and status 2."""
    settings = parser.parse_args(argv)
    kafka_log, terminal = start_logging(settings.verbose)
    stop = Stop()
    stop.on_signals(grace_seconds)
    try:
        if not __debug__:
            raise ValueError("kafka-python fails without asserts: unset PYTHONOPTIMIZE, start without -O")
        return show(check(settings, kafka_log)) if settings.check else run(settings, stop, kafka_log, terminal)
    except (ValueError, KafkaError) as error:
        logger.debug("traceback:", exc_info=True)
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    return start(build_parser("kproducer"), argv, run, check)


def command() -> NoReturn:
    """Run main() and end at once: kafka-python's threads would hold up the end of a process whose broker is away."""
    end_process(main())


if __name__ == "__main__":
    command()
