"""What the whole-pipeline tests are made of: the two scripts as processes, real servers, and what came of it."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psutil
import psycopg2
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from psycopg2.extras import RealDictCursor
from scripts import DEADLINE, Script, wait_until

from eventkafkapostgres.workarounds import repair_fetcher
from servers import Proxy, Servers

repair_fetcher()  # as the scripts do: else what observes here would not find a leader that moved

# PIPELINE_SCRIPTS: another folder with the scripts, such as a copy in which a mechanism was taken out
SCRIPTS = Path(os.environ.get("PIPELINE_SCRIPTS") or Path(__file__).resolve().parents[2])
LOOPBACK = next(name for name, nic in psutil.net_if_stats().items() if "loopback" in nic.flags.split(","))
IGNORED = ("read_text is deprecated", "open_text is deprecated")  # kafka-python's own, when it is imported
WARNINGS = ",".join(
    # a socket that kafka-python leaves to the garbage collector is none of ours either
    ["error", "ignore::ResourceWarning", *(f"ignore:{text}:DeprecationWarning" for text in IGNORED)]
)
SLOW = 100_000, 0.05  # bytes a second and seconds: what a proxy is when it is made
CLIENT: dict[str, Any] = {"api_version": (3, 9), "request_timeout_ms": 5000, "reconnect_backoff_max_ms": 500}

Side = Literal["kafka", "postgres"]
QUICK = {  # whom a kill took is out of the consumer group after 6 s, not 20
    "KAFKA_SESSION_TIMEOUT_MS": "6000",
    "KAFKA_HEARTBEAT_INTERVAL_MS": "2000",
    "KAFKA_REQUEST_TIMEOUT_MS": "1500",
}
open_pipelines: "list[Pipeline]" = []  # what a failure tells about


class Pipeline:
    """A topic, a consumer group and a database of one test's own, and the scripts that it starts between them."""

    def __init__(self, servers: Servers, directory: Path, name: str, partitions: int) -> None:
        self.servers, self.directory, self.topic, self.partitions = servers, directory, name, partitions
        self.group = self.database = name
        self.scripts: list[Script] = []
        self._observer: Any = None

    def environment(self, proxied: bool = False, **changes: str | None) -> dict[str, str]:
        """What a script gets: nothing of our own environment but the path; None takes a variable out."""
        given: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "PYTHONWARNINGS": WARNINGS,
            **self.servers.environment(proxied),
            "PGDATABASE": self.database,
            **changes,
        }
        return {name: value for name, value in given.items() if value is not None}

    def through(self, side: "Side", **changes: str | None) -> dict[str, str]:
        """The same with the proxy before one of the servers."""
        if side == "kafka":
            return self.environment(**self.servers.kafka.environment("PROXIED") | changes)
        host, port = self.servers.postgres_proxy.address
        return self.environment(**{"PGHOST": host, "PGPORT": str(port)} | changes)

    def proxy(self, side: "Side") -> Proxy:
        return self.servers.kafka_proxy if side == "kafka" else self.servers.postgres_proxy

    def producer(
        self,
        *arguments: str,
        host: str = "web-1",
        environment: Mapping[str, str] | None = None,
        scripts: Path = SCRIPTS,
    ) -> Script:
        """A producer that raises a warning with each sample, ten times a second; `arguments` win."""
        outbox = str(self.directory / f"{len(host)}{host.encode().hex()[:32]}.sqlite")
        where = ("--topic", self.topic, "--host", host, "--outbox", outbox)
        how = ("--interface", LOOPBACK, "--limit", "0", "--interval", "0.1")
        return self._start(scripts / "kproducer.py", [*where, *how, *arguments], environment)

    def consumer(
        self, *arguments: str, environment: Mapping[str, str] | None = None, scripts: Path = SCRIPTS
    ) -> Script:
        where = ("--topic", self.topic, "--group", self.group)
        return self._start(scripts / "kconsumer.py", [*where, *arguments], environment)

    def _start(self, script: Path, arguments: list[str], environment: Mapping[str, str] | None) -> Script:
        log = self.directory / f"{len(self.scripts)}-{script.stem}.log"
        started = Script(script, arguments, environment or self.environment(), log)
        self.scripts.append(started)
        return started

    def goes_on(self) -> None:
        """New rows come."""
        self.has_rows(self.count() + 5)

    def drain(self, **how: Any) -> None:
        """Record all that is in the topic. On a busy machine Kafka may be silent for longer than one run waits."""
        wait_until(lambda: self.consumer("--until-empty", **how).ends() == 0, "recorded by --until-empty")

    # What was raised, and what came of it

    def raised(self) -> dict[str, str]:
        """The warnings that all producers raised: event_id and message."""
        return {event_id: message for script in self.scripts for event_id, message in script.raised().items()}

    def sql(self, statement: str, *values: object, dbname: str | None = None) -> list[dict[str, Any]]:
        """What the superuser's statement returns."""
        connection = self.servers.postgres.connect("postgres", dbname=dbname or self.database)
        try:
            connection.autocommit = True
            with connection.cursor(cursor_factory=RealDictCursor) as cursor:
                cursor.execute(statement, values or None)
                return [dict(row) for row in cursor.fetchall()] if cursor.description else []
        finally:
            connection.close()

    def table(self, name: str, order: str) -> list[dict[str, Any]]:
        """All of a table; nothing while it isn't there."""
        try:
            return self.sql(f"select * from {name} order by {order}")
        except psycopg2.errors.UndefinedTable:
            return []

    def rows(self) -> list[dict[str, Any]]:
        return self.table("bandwidth_exceeds", 'topic, partition, "offset"')

    def rejected(self) -> list[dict[str, Any]]:
        return self.table("rejected_messages", 'topic, partition, "offset"')

    def count(self) -> int:
        """How many rows there are."""
        try:
            return int(self.sql("select count(*) from bandwidth_exceeds")[0]["count"])
        except psycopg2.errors.UndefinedTable:
            return 0

    def has_rows(self, count: int, seconds: float = DEADLINE) -> None:
        """Wait for so many rows."""
        wait_until(lambda: self.count() >= count, f"{count} rows", seconds)

    def consumed(self) -> dict[int, int]:
        """The next offset of each partition of the topic of which something is recorded, as the database has it."""
        topic_id = str(self.described()["topic_id"])
        rows = self.table("consumed_offsets", "partition")
        offsets = {row["partition"]: row["next_offset"] for row in rows if str(row["topic_id"]) == topic_id}
        return {partition: offset for partition, offset in offsets.items() if offset}

    def committed(self) -> dict[int, int]:
        """The next offset of each partition, as Kafka has it."""
        client = self._client(group_id=self.group)
        try:
            offsets = {at.partition: client.committed(at) for at in self._topic_partitions()}
            return {partition: offset for partition, offset in offsets.items() if offset is not None}
        finally:
            client.close()

    def ends(self) -> dict[int, int]:
        """Where each partition of the topic that holds messages ends."""
        if self._observer is None:
            self._observer = self._client()
        offsets = self._observer.end_offsets(self._topic_partitions())
        return {at.partition: offset for at, offset in offsets.items() if offset}

    def described(self) -> dict[str, Any]:
        """The topic, as Kafka describes it; with an error_code when it isn't there."""
        with self.servers.kafka.admin() as admin:
            found: dict[str, Any] = admin.describe_topics([self.topic])[0]
            return found

    def is_there(self) -> bool:
        """Whether Kafka has the topic."""
        return bool(self.described()["error_code"] == 0)

    def delete_topic(self) -> None:
        """Delete the topic, and wait until it is gone."""
        self.servers.kafka.delete_topic(self.topic)
        wait_until(lambda: not self.is_there(), "deleted")

    def create_topic(self, partitions: int | None = None) -> None:
        """Create the topic again, with as many partitions or another number."""
        self.partitions = partitions or self.partitions
        self.servers.kafka.create_topic(self.topic, self.partitions)
        self._forget_observer()

    def members(self, group: str | None = None) -> set[str]:
        """The ids of the members of the consumer group, or of another."""
        group = group or self.group
        with self.servers.kafka.admin() as admin:
            return {each["member_id"] for each in admin.describe_groups([group])[group]["members"]}

    def sent(self) -> int:
        """How many messages the topic has; -1 while Kafka doesn't answer."""
        try:
            return sum(self.ends().values())
        except (KafkaError, KeyError):  # KeyError is kafka-python's where a partition has no leader
            self._forget_observer()  # it may be stuck after an outage
            return -1

    def _forget_observer(self) -> None:
        if self._observer:
            self._observer.close(timeout_ms=1000)
            self._observer = None

    def messages(self) -> list[Any]:
        """Every message of the topic, by partition and offset."""
        wait_until(lambda: self.sent() >= 0, "answered by Kafka")
        client, ends = self._client(), self.ends()
        try:
            client.assign(self._topic_partitions())
            client.seek_to_beginning()
            found: list[Any] = []
            while any(client.position(TopicPartition(self.topic, at)) < end for at, end in ends.items()):
                for records in client.poll(timeout_ms=500).values():
                    found += records
            return sorted(found, key=lambda record: (record.partition, record.offset))
        finally:
            client.close()

    def _topic_partitions(self) -> list[TopicPartition]:
        return [TopicPartition(self.topic, number) for number in range(self.partitions)]

    def _client(self, **options: Any) -> Any:
        return KafkaConsumer(**self.servers.kafka.options(), **CLIENT, enable_auto_commit=False, **options)

    def send(self, values: Iterable[bytes | None], key: bytes | None = b"web-1", partition: int | None = None) -> None:
        """Send messages past the producer."""
        self.send_all(((key, value) for value in values), partition)

    def send_all(self, messages: Iterable[tuple[bytes | None, bytes | None]], partition: int | None = None) -> None:
        """The same with a key for each."""
        producer = KafkaProducer(**self.servers.kafka.options(), linger_ms=20, batch_size=1 << 18, acks="all", **CLIENT)
        try:
            futures = [producer.send(self.topic, value, key, partition=partition) for key, value in messages]
            for future in futures:
                future.get(DEADLINE)
        finally:
            producer.close()

    def assert_recorded(self, unlogged: int = 0) -> list[dict[str, Any]]:
        """Each warning that was raised is one row with its message, in order; the rows.

        `unlogged`: so many may be in no log, for a producer that is killed may have stored what it had yet to say.
        """
        raised, rows = self.raised(), self.rows()
        ids = [row["event_id"] for row in rows]
        assert len(ids) == len(set(ids))
        assert [event_id for event_id in raised if event_id not in set(ids)] == []
        assert len(set(ids) - raised.keys()) <= unlogged
        assert {i: raised[i] for i in ids if i in raised} == {
            row["event_id"]: row["message"] for row in rows if row["event_id"] in raised
        }
        self.assert_in_order(rows)
        return rows

    def assert_topic_is_recorded(self) -> None:
        """Each message of the topic is one row, in the same order."""
        sent = [json.loads(message.value)["event_id"] for message in self.messages()]
        assert [row["event_id"] for row in self.rows()] == sent
        assert self.rejected() == []

    def assert_all_arrive(self, producer: Script, consumer: Script) -> None:
        """Stop both scripts: all that the producer raised is recorded, and nothing was rejected."""
        assert producer.stop() == 0
        self.has_rows(len(producer.raised()))
        assert consumer.stop() == 0
        assert len(self.assert_recorded()) == len(producer.raised())
        assert self.rejected() == []

    @staticmethod
    def assert_in_order(rows: list[dict[str, Any]]) -> None:
        """A host's warnings are in one partition, in the order in which they were observed."""
        for host in {row["host"] for row in rows}:
            mine = sorted((row for row in rows if row["host"] == host), key=lambda row: row["offset"])
            assert len({row["partition"] for row in mine}) == 1
            observed = [row["observed_at"] for row in mine]
            assert observed == sorted(observed)

    def close(self) -> None:
        """End what runs, and take the database away."""
        for script in self.scripts:
            script.kill()
        self._forget_observer()
        with suppress(psycopg2.Error):
            self.sql(f'drop database if exists "{self.database}" with (force)', dbname="postgres")


@contextmanager
def new_pipeline(servers: Servers, directory: Path, partitions: int = 1) -> Iterator[Pipeline]:
    """A pipeline of its own; afterwards nothing of it runs, and the servers and the network are whole again."""
    name = f"t{uuid4().hex[:12]}"
    pipeline = Pipeline(servers, directory, name, partitions)
    with ExitStack() as stack:
        stack.callback(heal, servers)
        servers.kafka.create_topic(name, partitions)
        pipeline.sql(f'create database "{name}" owner events', dbname="postgres")
        stack.callback(pipeline.close)
        stack.callback(heal, servers)
        open_pipelines.append(pipeline)
        stack.callback(open_pipelines.remove, pipeline)
        yield pipeline


def heal(servers: Servers) -> None:
    """All that can be broken works again."""
    for proxy in (*servers.kafka_proxies, servers.postgres_proxy):
        proxy.mode = "pass"
        proxy.bytes_per_second, proxy.latency_seconds = SLOW
    servers.kafka.start()
    servers.postgres.start()


def warning(host: str = "web-1", second: int = 0, **changes: object) -> dict[str, Any]:
    """A message's fields as a producer sends them: of an overload that began at second 0."""
    began = datetime(2026, 11, 24, tzinfo=UTC)
    observed_at = began + timedelta(seconds=second)
    return {
        "event_id": str(uuid4()),
        "observed_at": observed_at.isoformat(timespec="microseconds"),
        "seconds": 1.0,
        "episode_started_at": began.isoformat(timespec="microseconds"),
        "host": host,
        "interfaces": ["eth0"],
        "bytes_sent_per_second": 812345.6,
        "bytes_received_per_second": 3120456.1,
        "bytes_per_second": 3932801.7,
        "limit_bytes_per_second": 1000000.0,
        "message": f"Bandwidth exceeded on {host}: 3.93 MB/s is over the limit of 1.00 MB/s",
        **changes,
    }


def encoded(fields: object) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def warnings(count: int, host: str = "web-1") -> list[bytes]:
    """So many messages of one host, a second apart."""
    return [encoded(warning(host, second)) for second in range(count)]
