"""A real Apache Kafka of one or more brokers, with TLS, SASL and ACLs."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

from servers.broker import Broker, aot_cache
from servers.certificates import Certificates
from servers.downloads import KAFKA
from servers.process import START_SECONDS, STOP_SECONDS
from servers.proxy import Proxy

SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


def cluster_properties(brokers: Mapping[int, Broker]) -> dict[str, str]:
    replicas = min(3, len(brokers))
    in_sync = max(1, replicas - 1)
    voters = (f"{number}@{'{}:{}'.format(*each.address('CONTROLLER'))}" for number, each in brokers.items())
    return {
        "controller.quorum.voters": ",".join(voters),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "DIRECT",
        "auto.create.topics.enable": "false",
        "broker.session.timeout.ms": "2000",  # a broker that was killed can't come back sooner
        "broker.heartbeat.interval.ms": "500",
        "group.initial.rebalance.delay.ms": "0",
        "log.cleaner.dedupe.buffer.size": "2097152",  # the default takes 128 MB of memory
        "default.replication.factor": str(replicas),
        "min.insync.replicas": str(in_sync),
        "offsets.topic.num.partitions": "1",
        "offsets.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.min.isr": str(in_sync),
        "transaction.state.log.replication.factor": str(replicas),
        "transaction.state.log.min.isr": str(in_sync),
    }


def tls_properties(certificates: Certificates) -> dict[str, str]:
    return {
        "ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.server_pem),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca),
        "ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/,DEFAULT",
    }


def sasl_properties(password: str) -> dict[str, str]:
    return {
        "sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
        "listener.name.sasl.ssl.client.auth": "none",
        "listener.name.sasl.scram-sha-256.sasl.jaas.config": SCRAM,
        "listener.name.sasl.scram-sha-512.sasl.jaas.config": SCRAM,
        "listener.name.sasl.plain.sasl.jaas.config": f'{PLAIN} user_service="{password}";',
    }


class Kafka:
    """A cluster of brokers, numbered from 1, with mutual TLS on each listener; the controllers' are no exception.

    There is a broker for each proxy. With three or more, topics have three replicas, and a write needs two of them.
    Clients are known by their certificate's common name: `admin` may do everything, and so may everyone else unless
    `acls`. The listener DIRECT advertises the brokers themselves, PROXIED their proxies. With `sasl` there is SASL too:
    TLS without a client certificate, for the user `service` with `password` by SCRAM-SHA-256, SCRAM-SHA-512 or PLAIN.
    `properties` are the brokers', read at each start, and win.
    """

    name = KAFKA

    def __init__(
        self,
        directory: Path,
        certificates: Certificates,
        proxies: Sequence[Proxy],
        sasl: bool = False,
        acls: bool = False,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self.certificates = certificates
        self.password = secrets.token_urlsafe(12)
        self.properties: dict[str, str] = {}
        scram_password = self.password if sasl else None
        self.brokers = {
            number: Broker(directory / f"kafka-{number}", number, proxy, self.properties, scram_password)
            for number, proxy in enumerate(proxies, 1)
        }
        self.properties |= cluster_properties(self.brokers) | tls_properties(certificates)
        if sasl:
            self.properties |= sasl_properties(self.password)
        if acls:
            self.properties |= {
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:server;User:admin",
            }
        self.properties |= properties or {}

    def start(self, number: int | None = None) -> None:
        """Start the brokers that are down, or the one of that number; returns when they answer."""
        chosen = self._chosen(number)
        with ThreadPoolExecutor(len(chosen)) as pool:
            for started in [pool.submit(each.start) for each in chosen]:
                started.result()

    def stop(self, number: int | None = None) -> None:
        """SIGTERM to all brokers, or to the one of that number, which then hands over its partitions."""
        chosen = self._chosen(number)
        with ThreadPoolExecutor(len(chosen)) as pool:
            for stopped in [pool.submit(each.stop) for each in chosen]:
                stopped.result()

    def kill(self, number: int | None = None) -> None:
        """SIGKILL to all brokers, or to the one of that number."""
        for each in self._chosen(number):
            each.kill()

    def close(self) -> None:
        """End it for good and release its ports."""
        for each in self.brokers.values():
            each.close()

    def _chosen(self, number: int | None) -> list[Broker]:
        return list(self.brokers.values()) if number is None else [self.brokers[number]]

    def environment(self, listener: str = "DIRECT", mechanism: str = "SCRAM-SHA-256") -> dict[str, str]:
        """What the scripts need to connect as `service`: with its certificate, or on SASL with its password."""
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": ",".join(each.advertised(listener) for each in self.brokers.values()),
            "KAFKA_SSL_CAFILE": str(self.certificates.ca),
        }
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
        topic = {"num_partitions": partitions, "replication_factor": min(3, len(self.brokers)), "configs": options}
        with self.admin() as admin:
            admin.create_topics({name: topic}, wait_for_metadata=True)
            deadline = time.monotonic() + START_SECONDS
            while not all(each["leader_id"] >= 0 for each in admin.describe_topics([name])[0]["partitions"]):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"topic {name} has no leader")
                time.sleep(0.03)

    def delete_topic(self, name: str) -> None:
        """Delete a topic with its messages."""
        with self.admin() as admin:
            admin.delete_topics([name])

    def leader_of(self, topic: str, partition: int = 0) -> int | None:
        """The number of the broker that leads a partition; None while there is none."""
        leader: int = self._partition(topic, partition)["leader_id"]
        return None if leader < 0 else leader

    def in_sync(self, topic: str, partition: int = 0) -> set[int]:
        """The numbers of the brokers that have all of a partition's messages."""
        return set(self._partition(topic, partition)["isr_nodes"])

    def _partition(self, topic: str, partition: int) -> dict[str, Any]:
        with self.admin() as admin:
            partitions: Iterable[dict[str, Any]] = admin.describe_topics([topic])[0]["partitions"]
        return next(each for each in partitions if each["partition_index"] == partition)

    def allow(self, user: str, *operations: str, **resource: str) -> None:
        """Let a user do things ("READ", "WRITE", "DESCRIBE", ... or "ALL"); needs `acls`.

        The resource is `topic`, `group` or `transactional_id` with its name.
        """
        ((kind, name),) = resource.items()
        pattern = ResourcePattern(ResourceType[kind.upper()], name)
        acls = [ACL(f"User:{user}", "*", ACLOperation[each], ACLPermissionType.ALLOW, pattern) for each in operations]
        with self.admin() as admin:
            failed = admin.create_acls(acls)["failed"]
        if failed:
            raise RuntimeError(f"{KAFKA} made no such rule: {failed}")

    def disallow(self, user: str) -> None:
        """Take from a user everything that `allow` gave."""
        everything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
        with self.admin() as admin:
            admin.delete_acls([ACLFilter(f"User:{user}", None, ACLOperation.ANY, ACLPermissionType.ANY, everything)])


def record_aot_cache() -> None:
    """Start and stop a broker once (10 s), so that each later start takes half as long: for those who start many."""
    if aot_cache().exists():
        return
    with tempfile.TemporaryDirectory(prefix="eventKafkaPostgres-") as name, Proxy() as proxy:
        kafka = Kafka(Path(name), Certificates(Path(name)), [proxy], sasl=True)
        recorded = kafka.brokers[1].directory / "kafka.aot"
        kafka.brokers[1].java_flags = (f"-XX:AOTCacheOutput={recorded}",)
        try:
            kafka.start()
            kafka.create_topic("any")
            kafka.brokers[1].stop(10 * STOP_SECONDS)  # on its way out it writes the cache
        finally:
            kafka.close()
        if recorded.exists():  # Java before 25 makes none
            unfinished = aot_cache().with_suffix(f".{os.getpid()}")
            shutil.copy(recorded, unfinished)
            unfinished.replace(aot_cache())  # so that nobody reads half a file
