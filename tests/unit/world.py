"""A Kafka with one topic, a PostgreSQL, and a kconsumer between them, without time and threads: faults are scripted.

Each poll, each wait and each call of the database is a moment in which the next of the world's `events` happens.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections import deque
from concurrent.futures import Executor, Future
from types import SimpleNamespace
from uuid import UUID

import psycopg2
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import IllegalStateError, KafkaTimeoutError, OffsetOutOfRangeError
from kafka.structs import MemberState
from messages import GOOD

from eventkafkapostgres.calls import DatabaseCalls
from eventkafkapostgres.console import Stop
from eventkafkapostgres.database import BatchTimeout, OffsetConflict
from eventkafkapostgres.group import GroupMember
from eventkafkapostgres.outages import KafkaLog
from eventkafkapostgres.progress import Progress
from eventkafkapostgres.reader import Reader
from eventkafkapostgres.recorder import Recorder
from eventkafkapostgres.recovery import Recovery
from kconsumer import record_warnings

TOPIC = "warnings"


class Clock:
    """Seconds that pass only when somebody waits."""

    now = 1000.0

    def __call__(self):
        return self.now


class Waits(Stop):
    """A stop whose waiting takes no time."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.at = clock, math.inf

    def is_set(self):
        return self.stopped or self.clock.now >= self.at

    def wait(self, seconds):
        self.clock.now += max(0.0, seconds)
        return self.is_set()


def partition(number):
    return TopicPartition(TOPIC, number)


class Topic:
    """One life of the topic: its id, and of each partition the values from an offset on. None is a marker."""

    ids = itertools.count(1)

    def __init__(self, partitions):
        self.id = UUID(int=next(self.ids))
        self.logs = [[] for _ in range(partitions)]
        self.begins = [0] * partitions
        self.leaderless = set()

    def has(self, number):
        """Whether a partition can be read."""
        return number < len(self.logs) and number not in self.leaderless

    def end(self, number):
        return self.begins[number] + len(self.logs[number])


class FakeConsumer:
    """What a GroupMember uses of KafkaConsumer, with the same signatures (see check_signatures)."""

    def __init__(self, world):
        self.world, self.listener = world, None
        self.assigned, self.stopped, self.positions = set(), set(), {}
        self.state, self.closed = MemberState.UNJOINED, False
        self._cluster = FakeMetadata(world)
        self.commits = []

    def subscribe(self, topics=(), pattern=None, listener=None):
        assert topics == [TOPIC]
        self.listener = listener

    def give(self, *numbers):
        """What kafka-python's thread does in a rebalance."""
        self.listener.on_partitions_revoked(self.assigned)
        self.assigned, self.stopped, self.positions = {partition(number) for number in numbers}, set(), {}
        self.state = MemberState.STABLE
        self.listener.on_partitions_assigned(self.assigned)

    def assignment(self):
        return set(self.assigned)

    def paused(self):
        return set(self.stopped)

    def pause(self, *partitions):
        if not self.assigned.issuperset(partitions):
            raise KeyError
        self.stopped.update(partitions)

    def resume(self, *partitions):
        self.stopped.difference_update(partitions)

    def seek(self, partition, offset):
        if partition not in self.assigned:
            raise ValueError("Unassigned partition")
        self.positions[partition] = offset

    def position(self, partition, timeout_ms=None):
        if partition not in self.assigned:
            raise IllegalStateError("Partition is not assigned")
        return self.positions[partition]

    def poll(self, timeout_ms=0, max_records=None, update_offsets=True):
        assert not self.closed
        self.world.clock.now += timeout_ms / 1000
        self.world.happen()
        topic, polled = self.world.topic, {}
        for at in sorted(self.assigned - self.stopped):
            if topic is None or not topic.has(at.partition):
                continue
            first, begin = self.positions[at], topic.begins[at.partition]
            if not begin <= first <= topic.end(at.partition):
                raise OffsetOutOfRangeError({at: first})
            values = topic.logs[at.partition][first - begin :][: self.world.most_records]
            self.positions[at] = first + len(values)
            if found := [record(v, first + n, at.partition) for n, v in enumerate(values) if v is not None]:
                polled[at] = found
        return polled

    def _offsets(self, partitions, offset_of):
        self.world.happen()
        topic = self.world.topic
        if topic is None or any(not topic.has(at.partition) for at in partitions):
            raise KafkaTimeoutError("Timeout")
        return {at: offset_of(topic, at.partition) for at in partitions}

    def beginning_offsets(self, partitions, timeout_ms=None):
        return self._offsets(partitions, lambda topic, number: topic.begins[number])

    def end_offsets(self, partitions, timeout_ms=None):
        return self._offsets(partitions, Topic.end)

    def highwater(self, partition):
        return None

    def group_metadata(self):
        return SimpleNamespace(state=self.state)

    def commit_async(self, offsets=None, callback=None):
        self.commits.append({at: one.offset for at, one in offsets.items()})

    def commit(self, offsets=None, timeout_ms=None):
        self.commits.append({at: one.offset for at, one in offsets.items()})

    def close(self, autocommit=True, timeout_ms=None):
        self.closed = True


def check_signatures():
    """A fake that has another interface than the real one proves nothing."""
    for name, method in vars(FakeConsumer).items():
        if not name.startswith("_") and name != "give":
            real = inspect.signature(getattr(KafkaConsumer, name)).parameters
            assert list(inspect.signature(method).parameters)[1:] == list(real)[1:], name


class FakeMetadata:
    """What ClusterMetadata knows: the topic as it was when it was looked at last."""

    def __init__(self, world):
        self.world, self.config, self.cluster_id = world, {}, "cluster"

    def partitions_for_topic(self, topic):
        return self.world.seen and set(range(len(self.world.seen.logs)))

    def topic_id(self, topic_name):
        return self.world.seen.id

    def leader_for_partition(self, partition):
        return -1 if partition.partition in self.world.seen.leaderless else 1


class FakeDatabase:
    """What Database does, on dicts. `moods` says what the next calls do."""

    def __init__(self, world):
        self.world, self.deadline = world, math.inf
        self.rows, self.rejected, self.offsets = {}, {}, {}
        self.moods = deque()
        self.batches = []  # how many records each batch that was recorded had

    def abort_connection(self):
        self.deadline = math.inf

    def _mood(self):
        return self.moods.popleft() if self.moods else "well"

    def next_offsets(self, topic_id, begins=None):
        if self._mood() != "well":
            raise psycopg2.OperationalError("connection refused")
        for number, begin in (begins or {}).items():
            self.offsets.setdefault((topic_id, number), begin)
        return {number: offset for (one, number), offset in self.offsets.items() if one == topic_id}

    def record(self, batch):
        mood = self._mood()
        if mood == "refuses" or (mood == "slow" and len(batch.records) <= 1):
            raise psycopg2.OperationalError("connection refused")
        if mood == "slow" or len(batch.records) > self.world.most_in_time:
            raise BatchTimeout("no answer for 8 seconds")
        for at, expected in batch.expected_offsets.items():
            if self.offsets.get((batch.topic_id, at.partition)) != expected:
                raise OffsetConflict
        self.batches.append(len(batch.records))
        for at, offset in batch.next_offsets.items():
            self.offsets[batch.topic_id, at.partition] = offset
        for one, _ in batch.rows:
            self.rows.setdefault(json.loads(one.value)["event_id"], one.value)
        for one, _ in batch.rejected:
            self.rejected.setdefault((batch.topic_id, one.partition, one.offset), one.value)
        if mood == "answer is lost":
            raise psycopg2.OperationalError("server closed the connection unexpectedly")
        return list(batch.rejected)


class LateExecutor(Executor):
    """Runs a call after so many moments as the world says."""

    def __init__(self, world):
        self.world, self.waiting = world, None

    def submit(self, fn, /, *args, **kwargs):
        assert self.waiting is None, "two calls at a time are with the database"
        job = Future()
        self.waiting = [self.world.delays.popleft() if self.world.delays else 0, job, fn]
        self.moment()
        return job

    def moment(self):
        if self.waiting and self.waiting[0] <= 0:
            (_, job, fn), self.waiting = self.waiting, None
            try:
                job.set_result(fn())
            except Exception as error:
                job.set_exception(error)
        elif self.waiting:
            self.waiting[0] -= 1


class FakeCalls(DatabaseCalls):
    """Its waiting takes no time, but lets things happen."""

    def wait_a_moment(self, job):
        self.clock.now += 0.5
        self.world.happen(in_kafka=False)
        return not (self.stop.is_set() if job is None else job.done())


class World:
    """All of it. `events` are functions; one is called in each moment. None lets a moment pass, errors are Kafka's."""

    def __init__(self, partitions=2, until_empty=False):
        self.clock = Clock()
        self.stop = Waits(self.clock)
        self.topic = self.seen = Topic(partitions)
        self.events, self.delays = deque(), deque()
        self.most_records, self.most_in_time = 500, math.inf
        self.produced = itertools.count(1)
        self.database = FakeDatabase(self)
        self.executor = LateExecutor(self)
        self.consumers = []
        self.kafka_log = KafkaLog(self.clock)
        calls = FakeCalls(self.database, self.stop, self.clock, self.executor)
        calls.world = self
        member = GroupMember(self.make_consumer(), self.make_consumer, TOPIC, self.clock)
        recovery = Recovery(member, self.kafka_log, self.stop.wait, clock=self.clock)
        self.reader = Reader(member, calls, recovery, until_empty)
        progress = Progress(lambda line: None, lambda: None, self.clock)
        self.recorder = Recorder(self.reader, progress)

    def make_consumer(self):
        self.consumers.append(FakeConsumer(self))
        return self.consumers[-1]

    @property
    def consumer(self):
        return self.consumers[-1]

    def happen(self, in_kafka=True):
        """A moment passes. An event that is an error of Kafka is raised by the next call of Kafka."""
        self.executor.moment()
        if self.events and (in_kafka or not isinstance(self.events[0], Exception)):
            event = self.events.popleft()
            if isinstance(event, Exception):
                raise event
            if event:
                event()

    def see(self):
        """kafka-python refreshes its metadata."""
        self.seen = self.topic

    def produce(self, number, count=1, good=True):
        for _ in range(count):
            event_id = str(UUID(int=next(self.produced)))
            value = json.dumps(GOOD | {"event_id": event_id}) if good else f"bad {event_id}"
            self.topic.logs[number].append(value.encode())

    def recreate(self, partitions):
        self.topic = Topic(partitions)

    def retain(self, number, count):
        """Retention deletes the oldest messages of a partition."""
        count = min(count, len(self.topic.logs[number]))
        del self.topic.logs[number][:count]
        self.topic.begins[number] += count

    def snapshot(self):
        """A backup of the database."""
        one = self.database
        return dict(one.rows), dict(one.rejected), dict(one.offsets)

    def restore(self, backup):
        one = self.database
        one.rows, one.rejected, one.offsets = (dict(part) for part in backup)

    def run(self, seconds):
        """Let kconsumer's own loop run for so long."""
        self.stop.stopped, self.stop.at = False, self.clock.now + seconds
        record_warnings(self.recorder, self.stop)

    def missing(self):
        """Messages that Kafka has and the database hasn't."""
        one, topic = self.database, self.topic
        return [
            (number, offset, value)
            for number, log in enumerate(topic.logs)
            for offset, value in enumerate(log, topic.begins[number])
            if value is not None
            and value not in one.rows.values()
            and one.rejected.get((topic.id, number, offset)) != value
        ]


def record(value, offset, number=0):
    return ConsumerRecord(TOPIC, number, -1, offset, 1795450924796, 0, b"web-1", value, [], None, 5, len(value), -1)
