"""The messages that every system reads, the same in each run."""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from kafka import KafkaProducer

from eventkafkapostgres.bandwidth import Sample
from eventkafkapostgres.message import uuid7, warning
from servers import Servers

TOPIC = "bandwidth_exceeds"
HOSTS = 40
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)

Message = tuple[int, bytes, bytes]  # the host's number, key and value


def uuid4(unix_seconds: float, random_bits: int) -> UUID:
    """UUID version 4: as uuid7(), without the time."""
    high = random.Random(f"{unix_seconds} {random_bits}").getrandbits(128)
    return UUID(int=high, version=4)


def messages(
    count: int, first: int = 0, make_id: Callable[[float, int], UUID] = uuid7, begin: datetime = BEGIN
) -> Iterator[Message]:
    """Warnings of HOSTS hosts, each one a second, from the number `first` on."""
    chance = random.Random(1 + first)
    for number in range(first, first + count):
        second, host = divmod(number, HOSTS)
        at = begin + timedelta(seconds=second, microseconds=chance.randrange(1000))
        interfaces = ["eth0", "wlan0"][: 1 + host % 2]
        sent, received = round(chance.uniform(1e4, 1e6), 1), round(chance.uniform(1e6, 1e7), 1)
        sample = Sample(at, 1.0, interfaces, sent, received)
        event = warning(sample, f"web-{host}", 1e6, make_id(at.timestamp(), chance.getrandbits(74)), begin)
        yield host, event["host"].encode(), json.dumps(event).encode()


def producer(running: Servers, **options: Any) -> KafkaProducer:
    return KafkaProducer(**running.kafka.options(), enable_idempotence=False, **options)


def load(running: Servers, topic: str, partitions: int, sent: Iterable[Message]) -> None:
    """Make a topic and fill it; a host's warnings stay in one partition."""
    running.kafka.create_topic(topic, partitions)
    loader = producer(running, linger_ms=20, batch_size=1 << 18)
    for host, key, value in sent:
        loader.send(topic, key=key, value=value, partition=host % partitions)
    loader.flush()
    loader.close()
