"""Three brokers, of which one is always in trouble: nothing is lost, nothing is stored twice, and nothing waits for it.

Each takes as long as brokers need to end, to start and to get in sync. How late a warning may come is measured against
a librdkafka producer and consumer in the same minute.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2
from librdkafka import Pair
from pipeline import Pipeline, new_pipeline, wait_until
from scripts import DEADLINE, uses_hardly_anything

from servers import Kafka, Servers

pytestmark = pytest.mark.long

ALL = {1, 2, 3}


@pytest.fixture
def pipeline(cluster: Servers, tmp_path: Path) -> Iterator[Pipeline]:
    """A topic of one partition with a replica on each broker."""
    with new_pipeline(cluster, tmp_path) as made:
        yield made
    wait_until(lambda: cluster.kafka.in_sync("__consumer_offsets") == ALL, "in sync")


@contextmanager
def traffic(pipeline: Pipeline, figures: list[str], what: str) -> Iterator[None]:
    """Both scripts, and librdkafka's pair on a topic with the same leader: who is as late as the other, at the most."""
    kafka, other = pipeline.servers.kafka, f"{pipeline.topic}-librdkafka"
    with kafka.admin() as admin:
        replicas = admin.describe_topics([pipeline.topic])[0]["partitions"][0]["replica_nodes"]
        admin.create_topics({other: {"assignments": {0: replicas}}}, wait_for_metadata=True)
    with Pair(pipeline.servers, other) as pair:
        consumer, producer = pipeline.consumer(), pipeline.producer("--forever")
        pipeline.goes_on()
        wait_until(lambda: pair.read, "read by librdkafka")
        started_with, pair.latest_seconds = pipeline.count(), 0.0
        yield
        wait_until(pair.has_read_all, "read by librdkafka")
        pipeline.goes_on()
        ours, theirs = latest_seconds(pipeline, started_with), pair.latest_seconds
    pipeline.assert_all_arrive(producer, consumer)
    figures.append(f"{what}: a warning was at most {ours:.1f} s late, librdkafka's messages {theirs:.1f} s")
    assert ours < 1.5 * theirs + 10


def latest_seconds(pipeline: Pipeline, first: int) -> float:
    """The longest time between a warning and its row, without the first rows."""
    (found,) = pipeline.sql(
        """select extract(epoch from max(recorded_at - observed_at))::float8 as seconds
        from bandwidth_exceeds where "offset" >= %s""",
        first,
    )
    return float(found["seconds"])


def test_a_write_needs_two_of_three_replicas(pipeline: Pipeline) -> None:
    pipeline.drain()  # so that there is a __consumer_offsets
    topics = [pipeline.topic, "__consumer_offsets"]
    with pipeline.servers.kafka.admin() as admin:
        described = admin.describe_topics(topics)
        resources = [ConfigResource("topic", name) for name in topics]
        configs = admin.describe_configs(resources, config_filter="all")["topic"]
    assert [len(topic["partitions"][0]["replica_nodes"]) for topic in described] == [3, 3]
    assert [configs[name]["min.insync.replicas"]["value"] for name in topics] == ["2", "2"]


def restart(kafka: Kafka, number: int, topic: str) -> None:
    kafka.start(number)
    wait_until(lambda: kafka.in_sync(topic) == kafka.in_sync("__consumer_offsets") == ALL, "in sync")


def test_a_rolling_restart_costs_nothing(pipeline: Pipeline, figures: list[str]) -> None:
    """Three times a broker ends in order, starts, and gets in sync."""
    kafka = pipeline.servers.kafka
    with traffic(pipeline, figures, "rolling restart"):
        for number in kafka.brokers:
            kafka.stop(number)
            restart(kafka, number, pipeline.topic)


@pytest.mark.parametrize("of", ["the topic", "the offsets"])
def test_the_leader_that_is_killed_is_replaced(pipeline: Pipeline, of: str, figures: list[str]) -> None:
    """The others need seconds to notice, and the one that was killed has to get in sync again."""
    kafka = pipeline.servers.kafka
    with traffic(pipeline, figures, f"kill -9 of the leader of {of}"):
        leader = kafka.leader_of(pipeline.topic if of == "the topic" else "__consumer_offsets")
        assert leader
        kafka.kill(leader)
        pipeline.goes_on()
        restart(kafka, leader, pipeline.topic)


def test_a_broker_that_is_away_for_long_is_not_missed(pipeline: Pipeline, figures: list[str]) -> None:
    """As long as it takes to record 300 warnings: longer than a session, and than any timeout of a request."""
    kafka = pipeline.servers.kafka
    with traffic(pipeline, figures, "a broker away"):
        leader = kafka.leader_of(pipeline.topic)
        assert leader
        kafka.kill(leader)
        pipeline.has_rows(pipeline.count() + 300)
        restart(kafka, leader, pipeline.topic)


def test_too_few_replicas_in_sync_are_a_cause_of_their_own(pipeline: Pipeline, figures: list[str]) -> None:
    """A replica is in sync until its broker is known to be gone, and again once it has caught up."""
    kafka, away = pipeline.servers.kafka, 2
    pipeline.delete_topic()
    with kafka.admin() as admin:
        admin.create_topics({pipeline.topic: {"assignments": {0: [1, away]}}}, wait_for_metadata=True)
    consumer, producer = pipeline.consumer(), pipeline.producer("--forever", "--interval", "1")
    pipeline.goes_on()
    kafka.kill(away)
    producer.says("Kafka: too few replicas of the topic are in sync")
    uses_hardly_anything(figures, "too few replicas in sync", producer)
    kafka.start(away)
    producer.says("Kafka: works again")
    pipeline.goes_on()
    pipeline.assert_all_arrive(producer, consumer)


def test_offsets_are_asked_of_the_leader_of_now(cluster: Servers) -> None:
    """A partition that moves while nobody reads it: its old leader runs on, and refuses."""
    kafka, partition = cluster.kafka, TopicPartition("moved", 0)
    with kafka.admin() as admin:
        admin.create_topics({partition.topic: {"assignments": {0: [1, 2, 3]}}}, wait_for_metadata=True)
        kconsumer = KafkaConsumer(**kafka.options(), metadata_max_age_ms=600_000)
        try:
            assert kconsumer.end_offsets([partition]) == {partition: 0}
            admin.alter_partition_reassignments({partition: [2, 3]})
            wait_until(lambda: kafka.leader_of(partition.topic) == 2, "moved")
            assert kconsumer.end_offsets([partition], timeout_ms=1000 * DEADLINE) == {partition: 0}
        finally:
            kconsumer.close(timeout_ms=0)


def host_of(partition: int, partitions: int) -> str:
    """The name of a host whose warnings go to a partition."""
    return next(
        name
        for name in map("web-{}".format, count(1))
        if (murmur2(name.encode()) & 0x7FFFFFFF) % partitions == partition
    )


def test_while_a_partition_has_no_leader_the_others_go_on(pipeline: Pipeline, figures: list[str]) -> None:
    """A consumer that runs and one that starts, 20 warnings each, CPU time, and the broker's way back."""
    kafka, only = pipeline.servers.kafka, 2
    pipeline.delete_topic()
    spread = {"assignments": {0: [1], 1: [only]}, "configs": {"min.insync.replicas": "1"}}
    with kafka.admin() as admin:
        admin.create_topics({pipeline.topic: spread}, wait_for_metadata=True)
    pipeline.partitions = 2
    healthy, stuck = host_of(0, 2), host_of(1, 2)
    consumer = pipeline.consumer()
    producers = [
        pipeline.producer("--forever", host=healthy),
        pipeline.producer("--forever", "--interval", "1", host=stuck),
    ]
    wait_until(lambda: hosts(pipeline) == {healthy, stuck}, "recorded from both")
    kafka.kill(only)
    wait_until(lambda: has_no_leader(pipeline, 1), "without a leader")
    rows_come(pipeline, healthy)
    assert consumer.stop() == 0
    consumer = pipeline.consumer()  # one that has to ask where to begin
    rows_come(pipeline, healthy)
    uses_hardly_anything(figures, "a partition without a leader", producers[1])
    kafka.start(only)
    raised = len(producers[1].raised())
    wait_until(lambda: count_of(pipeline, stuck) >= raised, "recorded")
    for producer in producers:
        assert producer.stop() == 0
    pipeline.has_rows(len(pipeline.raised()))
    assert consumer.stop() == 0
    assert len(pipeline.assert_recorded()) == len(pipeline.raised())
    assert pipeline.rejected() == []


def has_no_leader(pipeline: Pipeline, partition: int) -> bool:
    with suppress(KafkaError):  # until it knows that a broker is gone, the one that is asked may ask it
        return pipeline.servers.kafka.leader_of(pipeline.topic, partition) is None
    return False


def hosts(pipeline: Pipeline) -> set[str]:
    return {row["host"] for row in pipeline.rows()}


def count_of(pipeline: Pipeline, host: str) -> int:
    return sum(row["host"] == host for row in pipeline.rows())


def rows_come(pipeline: Pipeline, host: str) -> None:
    """New rows of a host come."""
    before = count_of(pipeline, host)
    wait_until(lambda: count_of(pipeline, host) >= before + 20, f"recorded from {host}")
