"""A certificate authority for one run, and the certificates that it issues to servers and clients."""

import functools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from servers.process import HOST, write_secret


class Certificates:
    """A certificate authority of our own, a server certificate for 127.0.0.1 and localhost, and client certificates.

    In the directory: ca.pem, server.cert, server.key, server.pem (both, for Kafka), service.cert, service.key,
    admin.cert, admin.key.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.server_cert, self.server_key = self._issue(self.authority, "server", HOST, "localhost")
        self.server_pem = directory / "server.pem"
        write_secret(self.server_pem, self.server_key.read_bytes() + self.server_cert.read_bytes())
        self.service_cert, self.service_key = self.client("service")
        self.admin_cert, self.admin_key = self.client("admin")

    def client(self, name: str, days: float = 365) -> tuple[Path, Path]:
        """Certificate and key of one more client, whom Kafka knows as User:name; days=-1: expired yesterday."""
        return self._issue(self.authority, name, name, days=days)

    @functools.cached_property
    def foreign(self) -> tuple[Path, Path, Path]:
        """foreign_ca.pem, foreign.cert, foreign.key: an authority that nobody trusts, and another `service` of its."""
        stranger, ca = trustme.CA(), self.directory / "foreign_ca.pem"
        stranger.cert_pem.write_to_path(ca)
        return ca, *self._issue(stranger, "service", "service", file="foreign")

    def _issue(
        self, authority: trustme.CA, name: str, *identities: str, days: float = 365, file: str | None = None
    ) -> tuple[Path, Path]:
        until = (datetime.now(UTC) + timedelta(days=days)).replace(tzinfo=None)
        issued = authority.issue_cert(*identities, common_name=name, not_after=until)
        cert, key = self.directory / f"{file or name}.cert", self.directory / f"{file or name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        private = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
        # PKCS#8 is the form that Kafka reads
        write_secret(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cert, key
