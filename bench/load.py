"""The messages that every system reads, the same in each run."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from kafka import KafkaProducer

from demo.servers import Servers
from kproducer import Sample, uuid7, warning

TOPIC = "bandwidth_exceeds"
HOSTS = 40
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


def messages(count: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Warnings of HOSTS hosts, each one a second: the host's number, key and value."""
    chance = random.Random(1)
    for number in range(count):
        second, host = divmod(number, HOSTS)
        at = BEGIN + timedelta(seconds=second, microseconds=chance.randrange(1000))
        interfaces = ["eth0", "wlan0"][: 1 + host % 2]
        sample = Sample(at, interfaces, chance.uniform(1e4, 1e6), chance.uniform(1e6, 1e7))
        event = warning(sample, f"web-{host}", 1e6, uuid7(at.timestamp(), chance.getrandbits(74)))
        yield host, event["host"].encode(), json.dumps(event).encode()


def load(running: Servers, count: int, partitions: int) -> None:
    """Make the topic and fill it; a host's warnings stay in one partition."""
    running.kafka.create_topic(TOPIC, partitions)
    options: dict[str, Any] = {"linger_ms": 20, "batch_size": 1 << 18, "enable_idempotence": False}
    producer = KafkaProducer(**running.kafka.options(), **options)
    for host, key, value in messages(count):
        producer.send(TOPIC, key=key, value=value, partition=host % partitions)
    producer.flush()
    producer.close()
