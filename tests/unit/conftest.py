"""An outbox, a delivery and what they talk to."""

import math
from unittest.mock import create_autospec

import pytest
from fakes import Kafka

from eventkafkapostgres.database import Database
from eventkafkapostgres.delivery import Delivery
from eventkafkapostgres.outages import KafkaLog
from eventkafkapostgres.outbox import open_outbox
from simpleEvents import EventSystem


@pytest.fixture
def outbox(tmp_path):
    made = open_outbox(tmp_path / "outbox.sqlite")
    yield made
    made.connection.close()


@pytest.fixture
def kafka(outbox):
    return Kafka(outbox)


@pytest.fixture
def kafka_log(clock):
    return KafkaLog(clock)


@pytest.fixture
def delivery(kafka, outbox, kafka_log, clock):
    return Delivery(kafka.client, "bandwidth_exceeds", outbox, EventSystem(), kafka_log, clock, clock.sleep)


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
