"""What an error means to the person who has to fix it, said once."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Outage:
    """Says once, with its cause, that something is away, and once that it is back."""

    def __init__(self, name: str, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self.logger, self.clock = name, logger, clock
        self.began_at = 0.0
        self.causes: list[str] = []  # what was said of the outage that is going on; empty when there is none

    def begin(self, cause: str) -> None:
        """It is away: say so, unless this cause was said already."""
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


POSTGRES_REMEDIES = [
    (r"certificate verify failed", "PGSSLROOTCERT must name the CA of this server"),
    (r"password authentication failed|no password supplied", "correct PGUSER, PGPASSWORD or DATABASE_URL"),
    (r"no encryption|does not support SSL", "the server and PGSSLMODE don't agree on TLS"),
    (r"Connection refused|timeout expired|translate host name|unreachable", "is PGHOST right, PGPORT, the firewall?"),
    (r'database ".*" does not exist', "correct PGDATABASE or DATABASE_URL"),
    (r"temporary tables", "grant TEMPORARY on the database to this user"),
]


def first_line(error: BaseException) -> str:
    """What the error says, without the data that PostgreSQL quotes below."""
    return (
        " ".join(re.split(r"\n(?:LINE|DETAIL|HINT|CONTEXT|\tIs the server)", str(error))[0].split())
        or type(error).__name__
    )


def explained(error: BaseException) -> str:
    """What the error says, and what to do where that is known."""
    text = first_line(error)
    return next((f"{text}: {remedy}" for pattern, remedy in POSTGRES_REMEDIES if re.search(pattern, text)), text)
