"""Consumers of one group join, leave, sleep and are killed all the time: nothing is lost, nothing is stored twice."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from kafka import KafkaProducer
from pipeline import CLIENT, DEADLINE, QUICK, Pipeline, Script, encoded, wait_until, warning, warnings

pytestmark = pytest.mark.long

SECONDS = 30.0
SLEEP_SECONDS = 8.0  # longer than a session: who wakes up has lost what it had in hand
MOST = 4  # consumers at a time; there are as many partitions
HOSTS = [f"host-{number}" for number in range(20)]
SMALL_BATCHES = QUICK | {"KAFKA_MAX_POLL_RECORDS": "20"}  # so that many are on the way


class Flow:
    """Some hundred messages a second until it is closed; `sent` are their event_ids."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.over = pipeline, threading.Event()
        self.sent: list[str] = []
        self.thread = threading.Thread(target=self._send)

    def __enter__(self) -> "Flow":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _send(self) -> None:
        producer = KafkaProducer(**self.pipeline.servers.kafka.options(), linger_ms=5, acks="all", **CLIENT)
        futures: list[Any] = []
        second = 0
        while not self.over.wait(0.05):
            for host in HOSTS:
                event_id = str(uuid4())
                value = encoded(warning(host, second, event_id=event_id))
                futures.append(producer.send(self.pipeline.topic, value, host.encode()))
                self.sent.append(event_id)
            second += 1
        for future in futures:
            future.get(DEADLINE)
        producer.close()


def test_consumers_that_join_leave_sleep_and_are_killed_lose_nothing_and_double_nothing(
    wide_pipeline: Pipeline, figures: list[str], seed: Callable[[str], int]
) -> None:
    """Half a minute of it, and what the groups need to find together again."""
    pipeline, chance = wide_pipeline, random.Random(seed("REBALANCE_SEED"))
    environment = pipeline.environment(**SMALL_BATCHES)
    done: Counter[str] = Counter()
    running: list[Script] = []
    leaving: list[Script] = []
    asleep: list[tuple[float, Script]] = []
    ends_at = time.monotonic() + SECONDS
    with Flow(pipeline) as flow:
        while time.monotonic() < ends_at:
            if asleep and asleep[0][0] < time.monotonic():
                running.append(wake(asleep))
            action = chance.choice(["join", "join", "join", "join", "leave", "leave", "kill", "sleep"])
            if action == "join" and len(running) < MOST:
                running.append(pipeline.consumer(environment=environment))
            elif action == "leave" and running:
                leaving.append(running.pop(chance.randrange(len(running))))
                leaving[-1].process.send_signal(signal.SIGTERM)
            elif action == "kill" and running:
                running.pop(chance.randrange(len(running))).kill()
            elif action == "sleep" and running and not asleep:
                asleep.append((time.monotonic() + SLEEP_SECONDS, running.pop(chance.randrange(len(running)))))
                asleep[0][1].process.send_signal(signal.SIGSTOP)
            else:
                continue
            done[action] += 1
            for script in running:
                assert script.process.poll() is None, script.lines()[-5:]
            time.sleep(chance.uniform(0, 2))
    if asleep:
        running.append(wake(asleep))
    meanwhile = pipeline.count()
    pipeline.drain()
    for script in (*running, *leaving):
        script.process.send_signal(signal.SIGTERM)
    for script in (*running, *leaving):
        started = any(" started: " in line for line in script.lines())  # before, Python itself may take the signal
        assert script.ends() in ({0} if started else {0, -signal.SIGTERM})
    rows = pipeline.rows()
    stored = Counter(row["event_id"] for row in rows)
    lost = [event_id for event_id in flow.sent if event_id not in stored]
    figures.append(
        f"consumers that joined {done['join']} times, left {done['leave']} times, slept {done['sleep']} times, were "
        f"killed {done['kill']} times in {SECONDS:.0f} s: {len(flow.sent)} messages sent, {meanwhile} recorded "
        f"meanwhile, {len(lost)} lost, {len(rows) - len(stored)} duplicated"
    )
    assert lost == []
    assert sorted(stored.elements()) == sorted(flow.sent)
    pipeline.assert_in_order(rows)
    assert pipeline.rejected() == []
    assert pipeline.consumed() == pipeline.ends()
    pipeline.drain()  # Kafka takes no offsets from consumers that all leave at once: the next one tells them
    assert pipeline.committed() == pipeline.ends()


def wake(asleep: list[tuple[float, Script]]) -> Script:
    _, script = asleep.pop()
    script.process.send_signal(signal.SIGCONT)
    return script


def test_a_consumer_that_sleeps_in_the_middle_of_a_batch_neither_holds_up_nor_spoils_what_another_does(
    pipeline: Pipeline,
) -> None:
    """Two sessions' time: until the one that sleeps is given up, and until the one that ends is replaced."""
    proxy = pipeline.proxy("postgres")
    awake = pipeline.environment(**SMALL_BATCHES)
    pipeline.send(warnings(2000))
    proxy.bytes_per_second, proxy.mode = 100_000, "slow"
    slow = pipeline.through("postgres", **QUICK | {"KAFKA_MAX_POLL_RECORDS": "2000"})
    sleeper = pipeline.consumer(environment=slow)
    wait_until(lambda: pipeline.sql("select 1 from pg_stat_progress_copy"), "in the middle of a COPY")
    sleeper.process.send_signal(signal.SIGSTOP)
    assert pipeline.count() == 0
    other = pipeline.consumer(environment=awake)
    pipeline.has_rows(2000)  # the other one has its partition, and has ended the transaction that was left open
    pipeline.send(warnings(100))
    pipeline.has_rows(2100)
    rows = pipeline.rows()
    proxy.mode = "pass"
    sleeper.process.send_signal(signal.SIGCONT)
    pipeline.send(warnings(100))
    pipeline.has_rows(2200)
    assert other.stop() == 0
    pipeline.send(warnings(100))
    pipeline.has_rows(2300)  # now it is the first one's
    assert sleeper.stop() == 0
    assert pipeline.rows()[:2100] == rows
    assert [row["offset"] for row in pipeline.rows()] == list(range(2300))
    assert pipeline.rejected() == []
    assert pipeline.consumed() == pipeline.ends()
