"""The producer's promise over random histories: what is raised is acknowledged, or in the outbox, or logged as lost."""

import logging
import shutil
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from fakes import Kafka, damage, exchange, fill_disk, put, values
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.strategies import floats, integers, sampled_from

from eventkafkapostgres import delivery as delivery_module
from eventkafkapostgres import outbox as outbox_module
from eventkafkapostgres.delivery import Delivery
from eventkafkapostgres.outages import KafkaLog
from eventkafkapostgres.outbox import Outbox
from eventkafkapostgres.outbox_file import OutboxFile
from eventkafkapostgres.workarounds import end_producer
from simpleEvents import EventSystem

MEMORY, WINDOW = 3, 4  # warnings: so few that a short history reaches the limits
PADDING = "x" * 8000  # a warning needs pages of its own: a full disk has no room for it


class Clock:
    """Seconds that pass only when somebody says so."""

    now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class QuickFile(OutboxFile):
    """Not waiting for the disk: nothing here cuts the power."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.connection.execute("pragma synchronous = off")


class Producer(RuleBasedStateMachine):
    """One producer's outbox and delivery; Kafka, the disk and the operator do what they like."""

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.runs = 0
        self.raised, self.acknowledged, self.excused = set(), set(), set()  # values
        self.lost_before = 0
        self.refused_ever = False  # the disk, in this run
        self.is_full = False
        self.start(self.folder / "0" / "outbox.sqlite")

    def start(self, path):
        self.kafka = Kafka()
        self.kafka.producer_class = Mock
        self.outbox = Outbox(path, self.clock)
        self.delivery = Delivery(
            self.kafka.new_producer(), self.kafka.new_producer, "bandwidth_exceeds", self.outbox, EventSystem(),
            KafkaLog(self.clock), 5.0, self.clock, self.clock.sleep,
        )  # fmt: skip
        self.refused_ever = self.is_full = False

    # What happens

    @rule(count=integers(1, 6))
    def raise_warnings(self, count):
        for _ in range(count):
            text = f"{len(self.raised)} {PADDING}"
            self.raised.add(text.encode())
            put(self.outbox, text)
        exchange(self.delivery)

    @rule(seconds=floats(0, 40))
    def time_passes(self, seconds):
        self.clock.now += seconds
        exchange(self.delivery)

    def in_flight(self):
        return [event for event in self.delivery.bandwidth_exceeds.events if not event.future.is_done]

    @precondition(lambda self: self.in_flight())
    @rule(number=integers(0, WINDOW))
    def kafka_acknowledges(self, number):
        for event in self.in_flight()[: number + 1]:
            self.acknowledged.add(event.value)
            event.future._produce_future.success((7, -1, None))

    @precondition(lambda self: self.in_flight())
    @rule(number=integers(0, WINDOW))
    def kafka_takes_it_and_the_acknowledgement_is_lost(self, number):
        self.acknowledged.add(self.in_flight()[min(number, len(self.in_flight()) - 1)].value)

    @precondition(lambda self: self.in_flight())
    @rule(number=integers(0, WINDOW))
    def kafka_refuses(self, number):
        event = self.in_flight()[min(number, len(self.in_flight()) - 1)]
        self.kafka.refuse(self.kafka.futures.index(event.future))

    @rule(partitions=sampled_from([None, {0}, {0, 1}]))
    def topic_changes(self, partitions):
        self.kafka.partitions = partitions

    @precondition(lambda self: self.outbox.file)
    @rule(is_full=sampled_from([True, False]))
    def disk(self, is_full):
        fill_disk(self.outbox, is_full)
        self.is_full = is_full
        self.refused_ever |= is_full

    @precondition(lambda self: self.outbox.file and not self.is_full)
    @rule(suffix=sampled_from(["", "-wal"]))
    def somebody_removes_the_file(self, suffix):
        Path(f"{self.outbox.path}{suffix}").unlink(missing_ok=True)
        exchange(self.delivery)
        self.clock.now += 2
        exchange(self.delivery)

    @precondition(lambda self: self.outbox.file and not self.is_full)
    @rule()
    def the_file_is_damaged(self):
        """What stood in it and nowhere else can't be read any more."""
        known = [*self.outbox.memory.handed_out.values(), *self.outbox.memory.unsaved.values()]
        self.excused |= set(values(self.outbox)) - {warning.value for warning in known}
        damage(self.outbox)
        values(self.outbox)  # it is noticed
        assert self.outbox.left_behind

    @rule()
    def kill(self):
        """kill -9, and a new run: what was only in memory, because the disk refused, is gone."""
        if self.refused_ever:
            self.excused |= {warning.value for warning in self.outbox.memory.unsaved.values()}
        self.lost_before += self.outbox.lost
        self.runs += 1
        copy = self.folder / str(self.runs)
        shutil.copytree(self.outbox.path.parent, copy)
        self.outbox.file.close()
        self.start(copy / "outbox.sqlite")

    @rule()
    def stop(self):
        """SIGTERM, and a new run."""
        end_producer(self.delivery.kproducer)
        self.outbox.close()
        self.lost_before += self.outbox.lost
        self.start(self.outbox.path)

    # What holds

    @invariant()
    def nothing_is_missing(self):
        missing = self.raised - self.acknowledged - self.excused - set(values(self.outbox))
        assert len(missing) <= self.lost_before + self.outbox.lost
        assert self.refused_ever or not self.outbox.lost

    @invariant()
    def what_the_disk_takes_is_on_the_disk(self):
        assert self.refused_ever or not self.outbox.memory.unsaved
        assert len(self.outbox.memory.unsaved) <= MEMORY
        assert len(self.delivery.bandwidth_exceeds.events) <= WINDOW
        assert len(self.outbox.memory.handed_out) <= 2 * WINDOW

    @invariant()
    def everything_is_counted_once(self):
        assert len(self.outbox) == len(values(self.outbox)) == len(set(values(self.outbox)))

    def teardown(self):
        """All is well again: within some minutes everything is acknowledged."""
        if not hasattr(self, "outbox"):
            return
        self.kafka.partitions = {0}
        fill_disk(self.outbox, False)
        for _ in range(200):
            for event in self.in_flight():
                self.acknowledged.add(event.value)
                event.future._produce_future.success((7, -1, None))
            exchange(self.delivery)
            self.clock.now += 1
            if self.delivery.is_idle:
                break
        assert (len(self.outbox), self.delivery.bandwidth_exceeds.events) == (0, [])
        self.outbox.close()
        shutil.rmtree(self.folder)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(outbox_module, "MAX_IN_MEMORY", MEMORY)
    monkeypatch.setattr(delivery_module, "MAX_IN_FLIGHT", WINDOW)
    monkeypatch.setattr(outbox_module, "OutboxFile", QuickFile)
    logging.disable(logging.CRITICAL)  # thousands of lines
    yield
    logging.disable(logging.NOTSET)


class TestProducer(Producer.TestCase):
    settings = settings(max_examples=30, stateful_step_count=40, phases=[Phase.generate])
