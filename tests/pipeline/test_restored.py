"""The database is restored from a backup or recreated, the topic is recreated or lost some of its messages."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import TopicPartition
from pipeline import Pipeline, warnings

from servers import Servers

pytestmark = pytest.mark.long


@contextmanager
def stopped(servers: Servers) -> Iterator[Path]:
    """PostgreSQL's data directory, while it stands still."""
    servers.postgres.stop()
    yield servers.postgres.data
    servers.postgres.start()


def backup(pipeline: Pipeline) -> Path:
    copy = pipeline.directory / "backup"
    with stopped(pipeline.servers) as data:
        subprocess.run(["cp", "-a", str(data), str(copy)], check=True)
    return copy


def restore(pipeline: Pipeline, copy: Path) -> None:
    with stopped(pipeline.servers) as data:
        shutil.rmtree(data)
        subprocess.run(["cp", "-a", str(copy), str(data)], check=True)


def test_a_database_restored_from_a_backup_is_filled_up_again(pipeline: Pipeline) -> None:
    pipeline.send(warnings(50))
    pipeline.drain()
    copy = backup(pipeline)
    pipeline.send(warnings(50))
    pipeline.drain()
    restore(pipeline, copy)
    assert pipeline.count() == 50
    pipeline.send(warnings(50))
    pipeline.drain()
    pipeline.assert_topic_is_recorded()


def test_a_database_restored_while_the_consumer_runs_is_filled_up_again(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    pipeline.send(warnings(50))
    pipeline.has_rows(50)
    copy = backup(pipeline)
    pipeline.send(warnings(50))
    pipeline.has_rows(100)
    restore(pipeline, copy)
    pipeline.send(warnings(50))
    pipeline.has_rows(150)
    assert consumer.stop() == 0
    pipeline.assert_topic_is_recorded()


def test_a_database_recreated_while_the_consumer_runs_is_filled_from_kafka(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    pipeline.send(warnings(50))
    pipeline.has_rows(50)
    pipeline.sql(f'drop database "{pipeline.database}" with (force)', dbname="postgres")
    pipeline.sql(f'create database "{pipeline.database}" owner events', dbname="postgres")
    pipeline.send(warnings(5))
    pipeline.has_rows(55)
    assert consumer.stop() == 0
    pipeline.assert_topic_is_recorded()


def test_what_retention_deleted_unread_is_logged_and_the_rest_is_recorded(pipeline: Pipeline) -> None:
    pipeline.send(warnings(20))
    pipeline.drain()
    pipeline.send(warnings(80))
    with pipeline.servers.kafka.admin() as admin:
        admin.delete_records({TopicPartition(pipeline.topic, 0): 60})
    consumer = pipeline.consumer("--until-empty")
    assert consumer.ends() == 0
    assert [row["offset"] for row in pipeline.rows()] == [*range(20), *range(60, 100)]
    assert len(consumer.complaints()) == 1
    assert re.search(r"\b20\b.*\b59\b.*lost", consumer.complaints()[0])


def test_a_topic_that_is_missing_is_waited_for_by_both(pipeline: Pipeline) -> None:
    pipeline.delete_topic()
    consumer, producer = pipeline.consumer(), pipeline.producer("--forever")
    for script in (consumer, producer):
        assert script.says(rf"WARNING Kafka: .*{pipeline.topic}")
    pipeline.create_topic()
    pipeline.has_rows(len(producer.raised()))
    pipeline.assert_all_arrive(producer, consumer)
