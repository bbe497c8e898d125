"""An outbox, a delivery and what they talk to."""

import math
from unittest.mock import create_autospec

import pytest
from fakes import Kafka

from eventkafkapostgres.database import Database
from eventkafkapostgres.delivery import Delivery
from eventkafkapostgres.outages import KafkaLog
from eventkafkapostgres.outbox import Outbox
from simpleEvents import EventSystem


@pytest.fixture
def outbox(tmp_path, clock):
    made = Outbox(tmp_path / "outbox.sqlite", clock)
    yield made
    if made.file:
        made.file.close()


@pytest.fixture
def kafka(outbox):
    return Kafka(outbox)


@pytest.fixture
def kafka_log(clock):
    return KafkaLog(clock)


@pytest.fixture
def new_delivery(kafka, kafka_log, clock):
    """A delivery of an outbox to Kafka, with nothing in flight."""
    return lambda outbox: Delivery(
        kafka.new_producer(), kafka.new_producer, "bandwidth_exceeds", outbox, EventSystem(), kafka_log, 5.0, clock,
        clock.sleep,
    )  # fmt: skip


@pytest.fixture
def delivery(new_delivery, outbox):
    return new_delivery(outbox)


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text("a certificate")
    return str(path)


@pytest.fixture
def database():
    faked = create_autospec(Database, instance=True)
    faked.deadline = math.inf
    faked.next_offsets.return_value = {0: 40}
    faked.record.return_value = 0
    return faked
