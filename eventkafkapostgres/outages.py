"""What an error means to the person who has to fix it, said once."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

INSTALL_PACKAGE = {  # for a topic whose messages are compressed so
    codec: f"needs the Python package {package}: pip install {package} (all of them: the extra 'compression')"
    for codec, package in (("lz4", "lz4"), ("snappy", "python-snappy"), ("zstd", "zstandard"))
}


class SettingsError(ValueError):
    """A setting is wrong: the script ends with this text as its one line, and with status 2."""


def counted(count: int, noun: str) -> str:
    """'1 warning', '2 warnings'."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


class Outage:
    """Logs once for each cause that something doesn't work, and once that it works again."""

    def __init__(self, name: str, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.logger, self.clock = name, logger, clock
        self.began_at = 0.0
        self.causes: list[str] = []  # logged since it last worked; empty while it works

    def begin(self, cause: str) -> None:
        """It does not work: log it, unless this cause was logged already."""
        if not self.causes:
            self.began_at = self.clock()
        if cause not in self.causes:
            self.causes.append(cause)
            self.logger.warning("%s: %s; trying again", self.name, cause)

    def seconds(self) -> float:
        """For how long it has been away."""
        return self.clock() - self.began_at if self.causes else 0.0

    def end(self) -> None:
        """It works."""
        if self.causes:
            self.causes.clear()
            self.logger.info("%s: works again", self.name)


# What kafka-python logs or raises, and what it means to the person who has to fix it; the most telling first.
KAFKA_CAUSES = {
    r"CERTIFICATE_VERIFY_FAILED.*mismatch": "the broker's certificate is for another host name",
    r"CERTIFICATE_VERIFY_FAILED.*expired": "the broker's certificate has expired",
    r"CERTIFICATE_VERIFY_FAILED": "the broker's certificate is not signed by the CA in KAFKA_SSL_CAFILE",
    r"ALERT_CERTIFICATE_REQUIRED": (
        "the broker requires a client certificate: set KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE"
    ),
    r"ALERT_(?:CERTIFICATE_|BAD_CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE|DECRYPT_ERROR|ACCESS_DENIED)": (
        "the broker does not accept the client certificate in KAFKA_SSL_CERTFILE"
    ),
    r"SaslAuthenticationFailed": "the broker does not accept KAFKA_SASL_PLAIN_USERNAME with its password",
    r"UnsupportedSaslMechanism": "the broker does not offer KAFKA_SASL_MECHANISM",
    r"GroupAuthorizationFailed|Not authorized to .* group": (
        "no right to the consumer group: this user needs READ on it"
    ),
    r"TopicAuthorizationFailed|Topic \S+ is not authorized": (
        "no right to the topic: this user needs DESCRIBE and WRITE (kproducer) or READ (kconsumer) on it"
    ),
    r"Topic (\S+) not found": r"the topic \1 is missing: create it, or give another --topic",
    **{f"Libraries for {codec} compression": f"compression {codec} {text}" for codec, text in INSTALL_PACKAGE.items()},
    r"InvalidTimestamp|Timestamp \d+ of message": (
        "the broker refuses the time of the messages: this host's clock is wrong, set it by NTP"
    ),
    r"WRONG_VERSION_NUMBER|Invalid frame length": "KAFKA_SECURITY_PROTOCOL does not fit this port of the broker",
    r"DNS lookup failed for (\S+?),": r"there is no host \1",
    r"ECONNREFUSED": "connection refused: nothing listens at KAFKA_BOOTSTRAP_SERVERS",
    r"NotEnoughReplicas": "too few replicas of the topic are in sync: brokers are down, or cut off from each other",
    r"timed out|RequestTimedOut": "no answer: the network or the broker is silent",
    r"Connection lost": (
        "the broker closes the connection: it is stopping, or the login or KAFKA_SECURITY_PROTOCOL is wrong"
    ),
}
CAUSE_SECONDS = 30.0  # for so long a telling cause is not replaced by a less telling one


def explain_kafka_error(text: str) -> str:
    """What an error of kafka-python means, or its own text in one line."""
    for pattern, meaning in KAFKA_CAUSES.items():
        if match := re.search(pattern, text):
            return match.expand(meaning)
    return " ".join(text.split())


class KafkaLog(logging.Handler):
    """Keeps the cause that kafka-python tells only to its log, dozens of times a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self.clock = clock
        self.forget()

    def forget(self) -> None:
        """Kafka answers: what was wrong before says nothing about what may be wrong later."""
        self.cause, self.rank, self.at = "", len(KAFKA_CAUSES), -math.inf

    def emit(self, record: logging.LogRecord) -> None:
        text, now = record.getMessage(), self.clock()
        for rank, (pattern, meaning) in enumerate(KAFKA_CAUSES.items()):
            if match := re.search(pattern, text):
                if rank <= self.rank or now - self.at > CAUSE_SECONDS:
                    self.cause, self.rank, self.at = match.expand(meaning), rank, now
                return


POSTGRES_REMEDIES = [
    (r"certificate verify failed", "PGSSLROOTCERT must name the CA of this server"),
    (r"root certificate file", "PGSSLROOTCERT must name the CA's certificate (Aiven: ca.pem of PostgreSQL)"),
    (r"password authentication failed|no password supplied", "correct PGUSER, PGPASSWORD or DATABASE_URL"),
    (r"no encryption|does not support SSL", "the server and PGSSLMODE do not agree on TLS"),
    (r"Connection refused|timeout expired|translate host name|unreachable", "is PGHOST right, PGPORT, the firewall?"),
    (r"definition of service|service file", "correct PGSERVICE or PGSERVICEFILE"),
    (r'database ".*" does not exist', "correct PGDATABASE or DATABASE_URL"),
]


def first_line(error: BaseException) -> str:
    """What the error says, without the data that PostgreSQL quotes below."""
    text = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)  # in the server's language
    text = re.split(r"\n(?:LINE|DETAIL|HINT|CONTEXT|\tIs the server)", text)[0]
    return " ".join(text.split()) or type(error).__name__


def explain_postgres_error(error: BaseException) -> str:
    """What the error says, and what to do where that is known."""
    text = first_line(error)
    return next((f"{text}: {remedy}" for pattern, remedy in POSTGRES_REMEDIES if re.search(pattern, text)), text)
