"""What Kafka says of a topic."""

import threading
import time
import uuid
from unittest.mock import create_autospec

import pytest
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaTimeoutError

from eventkafkapostgres import topic
from eventkafkapostgres.positions import topic_key
from eventkafkapostgres.topic import Topic, config_problems, describe_topic, log_config_problems

TOPIC_ID = uuid.UUID("a1e3d76f-8db5-458a-a09a-8c5a744d596c")


def make_admin(partitions=((0, 1), (1, -1)), configs=None, topic_id=str(TOPIC_ID)):
    """A KafkaAdminClient that describes one topic; partitions as (number, leader)."""
    admin = create_autospec(KafkaAdminClient, instance=True)
    admin.describe_topics.return_value = [
        {
            "partitions": [{"partition_index": number, "leader_id": leader} for number, leader in partitions],
            "authorized_operations": ["READ"],
            "topic_id": topic_id,
        }
    ]
    admin.describe_configs.return_value = {
        "topic": {"events": {name: {"value": value} for name, value in (configs or {}).items()}}
    }
    return admin


def test_a_topic_is_described_with_its_id_its_rights_and_who_has_no_leader():
    described = describe_topic(make_admin(configs={"cleanup.policy": "delete"}), "events")
    assert described == Topic("events", [0, 1], [1], ["READ"], TOPIC_ID, {"cleanup.policy": "delete"})


def test_a_topic_that_is_missing_has_no_partitions_and_nothing_more_is_asked():
    admin = make_admin(partitions=(), topic_id=None)
    assert describe_topic(admin, "events") == Topic("events", [], [], ["READ"], None, {})
    admin.describe_configs.assert_not_called()


@pytest.mark.parametrize(
    ("configs", "problem"),
    [
        ({"cleanup.policy": "compact"}, "cleanup.policy=compact deletes all but the last warning of each host"),
        ({"cleanup.policy": "compact,delete"}, "cleanup.policy=compact,delete deletes all but"),
        (
            {"compression.type": "zstd"},
            "compression.type=zstd needs the Python package zstandard: pip install zstandard",
        ),
    ],
)
def test_a_configuration_that_loses_warnings_or_can_not_be_read_is_a_problem(monkeypatch, configs, problem):
    monkeypatch.setitem(topic.CODECS, "zstd", lambda: False)
    (found,) = config_problems(Topic("events", [0], [], [], None, configs))
    assert problem in found


@pytest.mark.parametrize(
    "configs",
    [{}, {"cleanup.policy": "delete", "compression.type": "producer"}, {"compression.type": "gzip"}],
)
def test_any_other_configuration_is_none(configs):
    assert [*config_problems(Topic("events", [0], [], [], None, configs))] == []


def test_a_codec_whose_package_is_there_or_that_is_written_by_the_broker_is_no_problem(monkeypatch):
    zstd = Topic("events", [0], [], [], None, {"compression.type": "zstd"})
    monkeypatch.setitem(topic.CODECS, "zstd", lambda: False)
    assert [*config_problems(zstd, reads=False)] == []
    monkeypatch.setitem(topic.CODECS, "zstd", lambda: True)
    assert [*config_problems(zstd)] == []


def test_problems_are_logged_once_and_nobody_waits_for_them(monkeypatch, caplog):
    answered = threading.Event()
    admin = make_admin(configs={"cleanup.policy": "compact"})

    def slow(options, context, seconds):
        answered.wait(60)
        return admin

    def logged():
        return [record.getMessage() for record in caplog.records if record.name == topic.logger.name]

    monkeypatch.setattr(topic, "make_admin", slow)
    log_config_problems({}, None, "events")
    assert logged() == []
    answered.set()
    while not logged():
        time.sleep(0.01)
    admin.close.assert_called_once_with()
    (message,) = logged()
    assert message.startswith("Kafka: topic events: cleanup.policy=compact deletes")


def test_a_topic_that_is_there_later_is_asked_about_later(monkeypatch, caplog):
    there = make_admin(configs={"cleanup.policy": "compact"})
    answers = [KafkaTimeoutError(), make_admin(partitions=(), topic_id=None), there]

    def ask(*arguments):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(topic, "make_admin", ask)
    log_config_problems({}, None, "events", pause_seconds=0)
    while not caplog.messages:
        time.sleep(0.01)
    (message,) = caplog.messages
    assert message.startswith("Kafka: topic events: cleanup.policy=compact deletes")


def test_a_topic_of_a_broker_without_topic_ids_has_a_key_of_its_cluster_and_name():
    keys = {topic_key(none, cluster, name) for none in (None, uuid.UUID(int=0)) for cluster in "ab" for name in "cd"}
    assert len(keys) == 4
    there = uuid.uuid4()
    assert topic_key(there, "a", "c") == there
    assert there not in keys
