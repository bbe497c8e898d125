"""The TLS context that the KAFKA_SSL_... settings describe, and certificates that are renewed on disk."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from eventkafkapostgres.outages import SettingsError, counted
from eventkafkapostgres.workarounds import TLSContext

logger = logging.getLogger(__name__)

RENEW_DAYS = 30  # a certificate with fewer days left should be renewed
REMINDER_SECONDS = 86400.0


class Expiry(NamedTuple):
    """When what a file holds expires."""

    setting: str
    certificates: int
    days_left: int


class Certificates:
    """The TLS context that KAFKA_SSL_... describes, kept up to date with the files.

    SettingsError names what is wrong. `context` is None where the security protocol is without TLS.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        """Takes the ssl_ options out of `options`: kafka-python gets the context instead."""
        self.tls = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
        self.files = {name: Path(text) for name, text in self.tls.items() if name.endswith("file") and text}
        for name, path in self.files.items():
            try:
                path.read_bytes()
            except OSError as error:
                raise SettingsError(f"KAFKA_{name.upper()}: can't read {path}: {error.strerror}") from error
        self.context: ssl.SSLContext | None = None
        if options["security_protocol"].endswith("SSL"):
            self.context = TLSContext(ssl.PROTOCOL_TLS_CLIENT)
            self.load(self.context)
            if self.tls.get("ssl_keyfile") and not self.tls.get("ssl_certfile"):
                raise SettingsError("KAFKA_SSL_CERTFILE is not set, but KAFKA_SSL_KEYFILE is: a client needs both")
        self.loaded = self.digests()
        self.reminded_at = -math.inf
        self.reported = ""  # what was logged about files that can't be used

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
        except (ssl.SSLError, ValueError) as error:  # ValueError: a password that is too long
            raise SettingsError(f"{wrong}: {getattr(error, 'reason', None) or error}") from error

    def digests(self) -> list[bytes]:
        """Of what the files hold: a file that was replaced may have the modification time of the old one."""
        return [hashlib.sha256(path.read_bytes()).digest() for path in self.files.values()]

    def expiries(self, now: datetime) -> Iterator[Expiry]:
        """When the files with certificates expire.

        A chain is as good as its first certificate to expire, a bundle of CAs as good as its last: a root that has
        expired does no harm beside one that signs the broker's certificate.
        """
        for name, decisive in (("ssl_certfile", min), ("ssl_cafile", max)):
            if name in self.files and (dates := expiry_dates(self.files[name].read_text(errors="replace"))):
                yield Expiry(f"KAFKA_{name.upper()}", len(dates), (decisive(dates) - now).days)

    def renew(self) -> None:
        """Use files that were changed for the next connections; log once a day that a certificate expires soon."""
        try:
            if self.context and (digests := self.digests()) != self.loaded:
                self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # half written files must not spoil the one in use
                self.load(self.context)
                self.loaded = digests
                logger.info("the certificates on disk were renewed: new connections use them")
            if time.monotonic() - self.reminded_at > REMINDER_SECONDS:
                self.reminded_at = time.monotonic()
                for setting, _, days in self.expiries(datetime.now(UTC)):
                    if days < RENEW_DAYS:
                        logger.warning("%s %s", setting, expiry_text(days))
            self.reported = ""
        except (OSError, SettingsError) as error:
            if str(error) != self.reported:
                self.reported = str(error)
                logger.warning("the certificates on disk can't be used, the old ones are: %s", error)


def expiry_text(days: int) -> str:
    """How long a certificate is valid, for people."""
    if days < 0:
        return f"expired {counted(-days - 1, 'day')} ago: get a new one"
    return f"expires in {counted(days, 'day')}" + (": get a new one" if days < RENEW_DAYS else "")


def expiry_dates(pem: str) -> list[datetime]:
    """When each certificate of a PEM file expires: the second time of its validity (RFC 5280, section 4.1.2.5)."""
    dates = []
    for certificate in re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", pem, re.DOTALL):
        times = re.findall(rb"\x17\x0d(\d{12}Z)|\x18\x0f(\d{14}Z)", ssl.PEM_cert_to_DER_cert(certificate))
        short, long = (text.decode() for text in times[1])  # Python's %y puts 69 to 99 into the 20th century
        dates.append(datetime.strptime(short or long, "%y%m%d%H%M%S%z" if short else "%Y%m%d%H%M%S%z"))
    return dates
