"""The TLS context, renewed certificates, and cures for kafka-python's defects."""

from __future__ import annotations

import logging
import math
import re
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kafka.errors import (
    KafkaConnectionError,
)

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0  # a TLS handshake that takes longer has failed
RENEW_DAYS = 30  # a certificate with fewer days left wants to be renewed


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
