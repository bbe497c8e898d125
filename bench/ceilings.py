"""Parts of the consumer's work alone, and the simplest consumers: `python -m bench.ceilings NAME COUNT`.

Each runs as a process of its own, whose settings are in the environment, and prints JSON. What is prepared before the
clock starts counts neither as time nor as CPU time.
"""

import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import psycopg2
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from bench.load import TOPIC, messages
from eventkafkapostgres.database import COPY
from eventkafkapostgres.message import Batch, flatten, parse
from eventkafkapostgres.settings import consumer_options, postgres_options
from eventkafkapostgres.tls import Certificates

BATCH = 10_000
INSERT = """
insert into bandwidth_exceeds (event_id, observed_at, seconds, episode_started_at, host, interfaces,
    bytes_sent_per_second,
    bytes_received_per_second, bytes_per_second, limit_bytes_per_second, message, topic, partition, "offset")
values (%(event_id)s, %(observed_at)s, %(seconds)s, %(episode_started_at)s, %(host)s, %(interfaces)s,
    %(bytes_sent_per_second)s,
    %(bytes_received_per_second)s, %(bytes_per_second)s, %(limit_bytes_per_second)s, %(message)s,
    %(topic)s, %(partition)s, %(offset)s)
on conflict do nothing"""


def connect() -> Any:
    """As the consumer connects."""
    url, options = postgres_options(os.environ)
    return psycopg2.connect(url, **options)


def polls(count: int) -> Iterator[dict[TopicPartition, list[Any]]]:
    """What each poll of a consumer with the consumer's own options returns, from the topic's start."""
    options = consumer_options(os.environ, "bench", until_empty=False)
    consumer = KafkaConsumer(ssl_context=Certificates(options).context, **options)
    consumer.assign([TopicPartition(TOPIC, number) for number in sorted(consumer.partitions_for_topic(TOPIC))])
    consumer.seek_to_beginning()
    while count > 0:
        polled = consumer.poll(timeout_ms=500)
        count -= sum(map(len, polled.values()))
        yield polled
    consumer.close()


def in_memory(count: int) -> list[dict[TopicPartition, list[Any]]]:
    """The same messages without Kafka, in polls of BATCH."""
    there = [
        ConsumerRecord(TOPIC, 0, -1, offset, 0, 0, key, value, [], None, len(key), len(value), -1)
        for offset, (_, key, value) in enumerate(messages(count))
    ]
    return [{TopicPartition(TOPIC, 0): there[at : at + BATCH]} for at in range(0, count, BATCH)]


def parse_polled(polled: dict[TopicPartition, list[Any]]) -> Batch:
    """As the consumer parses what a poll returned."""
    return parse(flatten(polled), UUID(int=0), dict.fromkeys(polled, 0))


def texts(count: int) -> list[bytes]:
    """The rows as COPY reads them, one text for each batch."""
    return ["".join(line for _, line in parse_polled(polled).rows).encode() for polled in in_memory(count)]


def copy(text: bytes) -> None:
    """One connection, one COPY, one transaction."""
    with closing(connect()) as connection, connection.cursor() as cursor:
        cursor.copy_expert(COPY, io.BytesIO(text), size=1 << 18)
        connection.commit()


def poll_only(count: int) -> Iterator[None]:
    """kafka-python's poll with the consumer's options; the clock starts with the first records."""
    polled = polls(count)
    next(polled)
    yield
    for _ in polled:
        pass


def parse_only(count: int) -> Iterator[None]:
    """message.parse on records in memory."""
    there = in_memory(count)
    yield
    for polled in there:
        parse_polled(polled)


def plain_copy(count: int) -> Iterator[None]:
    """Everything in one COPY."""
    text = b"".join(texts(count))
    yield
    copy(text)


def copy_in_batches(count: int) -> Iterator[None]:
    """A connection and a COPY for each BATCH."""
    there = texts(count)
    yield
    for text in there:
        copy(text)


def rows(count: int) -> Iterator[dict[str, Any]]:
    for polled in polls(count):
        for records in polled.values():
            for record in records[:count]:
                yield json.loads(record.value) | {
                    "topic": record.topic, "partition": record.partition, "offset": record.offset
                }  # fmt: skip


def literal(count: int) -> Iterator[None]:
    """The specification taken literally: connect, insert, close for each message."""
    yield
    for _, row in zip(range(count), rows(count), strict=False):
        with closing(connect()) as connection, connection.cursor() as cursor:
            cursor.execute(INSERT, row)
            connection.commit()


def commit_each(count: int) -> Iterator[None]:
    """One connection, a commit for each message."""
    yield
    with closing(connect()) as connection, connection.cursor() as cursor:
        for _, row in zip(range(count), rows(count), strict=False):
            cursor.execute(INSERT, row)
            connection.commit()


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(name: str, count: int) -> None:
    parts: dict[str, Callable[[int], Iterator[None]]] = {
        each.__name__: each for each in (poll_only, parse_only, plain_copy, copy_in_batches, literal, commit_each)
    }
    work = parts[name](count)
    next(work)
    cpu, started = cpu_seconds(), time.perf_counter()
    next(work, None)
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": cpu_seconds() - cpu}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
