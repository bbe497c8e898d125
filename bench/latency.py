"""How long from a message's sending until its row can be seen, at 10 messages a second, and what idleness costs.

The clock of one process counts: before send(), and when a query has returned the row. The row came to be visible after
the query before that one was asked: by so much a number may be too high, and that is measured too.
"""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from bench.load import Message, messages, producer
from bench.measure import Measured, foreign_seconds
from bench.services import Service
from bench.systems import empty
from servers import Servers

PARTITIONS = 4
IDLE_SECONDS = 20
WARM_UP = 100  # messages, until Java has compiled something
GIVE_UP_SECONDS = 60.0


@dataclass
class Latency:
    """Milliseconds from sending to seeing, and what the program used."""

    messages: int
    median_ms: float
    p99_ms: float
    max_ms: float
    error_median_ms: float
    error_p99_ms: float
    idle_cpu_percent: float
    idle_bytes: int
    cpu_ms_per_message: float
    foreign_cores: float


class Sender(threading.Thread):
    """Sends messages at about 10 a second, not in step with anything; `sent` has each event's time."""

    def __init__(self, running: Servers, topic: str, what: Sequence[Message]) -> None:
        super().__init__(daemon=True)
        self.producer = producer(running)
        self.producer.partitions_for(topic)  # the first send() would wait for it
        self.topic, self.what = topic, what
        self.sent: dict[str, float] = {}

    def run(self) -> None:
        chance = random.Random(2)
        for host, key, value in self.what:
            time.sleep(chance.uniform(0.05, 0.15))
            event_id = value[14:50].decode()
            self.sent[event_id] = time.perf_counter()
            self.producer.send(self.topic, key=key, value=value, partition=host % PARTITIONS)
        self.producer.close()


def appearances(cursor: Any, table: str, count: int) -> Iterator[tuple[str, float, float]]:
    """So many new rows, each with the times when it was not there yet, and when it was."""
    cursor.execute("select to_regclass(%s) is not null", (table,))
    there = cursor.fetchone()[0]
    cursor.execute(f"select count(*) from {table}" if there else "select 0")
    have = first = cursor.fetchone()[0]
    asked, seen_at = time.perf_counter(), time.perf_counter()
    while have - first < count:
        before, asked = asked, time.perf_counter()
        if there:
            cursor.execute(f"select event_id::text from {table} offset %s", (have,))  # rows lie as they came
            new = cursor.fetchall()
        else:
            cursor.execute("select to_regclass(%s) is not null", (table,))
            there, new = cursor.fetchone()[0], []
        now = time.perf_counter()
        for (event_id,) in new:
            yield event_id, before, now
            seen_at, have = now, have + 1
        if now - seen_at > GIVE_UP_SECONDS:
            raise RuntimeError(f"only {have - first} of {count} messages came into {table}")
        time.sleep(0.0005)


def send_and_see(running: Servers, topic: str, table: str, what: Sequence[Message]) -> tuple[list[float], list[float]]:
    """Milliseconds until each message was seen, and by how much each may be too many."""
    sender = Sender(running, topic, what)
    with closing(running.postgres.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        sender.start()
        seen = list(appearances(cursor, table, len(what)))
    took = [(now - sender.sent[event_id]) * 1000 for event_id, _, now in seen]
    return took, [(now - before) * 1000 for _, before, now in seen]


def idle(measured: Measured) -> tuple[float, int]:
    """Per cent of a core, and bytes, with nothing to do."""
    time.sleep(2)
    begin, at = measured.now()[0], time.perf_counter()
    time.sleep(IDLE_SECONDS)
    end, memory = measured.now()
    return 100 * (end - begin) / (time.perf_counter() - at), memory


def p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]


def latency(running: Servers, service: Service, count: int) -> Latency:
    """Start the service on a topic of its own, and watch so many messages come."""
    topic = f"latency-{time.time_ns()}"
    running.kafka.create_topic(topic, PARTITIONS)
    empty(running)
    what = list(messages(WARM_UP + count))
    with service.start(running, topic) as measured:
        send_and_see(running, topic, service.table, what[:WARM_UP])
        idle_percent, idle_bytes = idle(measured)
        cpu, foreign, at = measured.now()[0], foreign_seconds(running), time.perf_counter()
        took, error = send_and_see(running, topic, service.table, what[WARM_UP:])
        cpu, foreign, seconds = (
            measured.now()[0] - cpu, foreign_seconds(running) - foreign, time.perf_counter() - at
        )  # fmt: skip
        # the service is ours and has not ended yet: what it used is not foreign
        foreign -= cpu
        measured.end()
    return Latency(count, median(took), p99(took), max(took), median(error), p99(error), idle_percent, idle_bytes,
                   1000 * cpu / count, foreign / seconds)  # fmt: skip
