"""A consumer on a real Kafka and a real PostgreSQL where the first edition lost messages or went deaf."""

from collections.abc import Iterator

import pytest
from kafka import KafkaProducer
from pipeline import Pipeline, encoded, warning, warnings

from servers import Servers

DISTANCE_SECONDS = 0.13  # to Kafka and to PostgreSQL, each way


@pytest.mark.parametrize("runs", [True, False], ids=["the consumer runs", "the consumer is away"])
def test_a_topic_that_was_created_again_with_more_messages_than_were_read_loses_none(
    wide_pipeline: Pipeline, runs: bool
) -> None:
    pipeline = wide_pipeline
    consumer = pipeline.consumer()
    pipeline.send(warnings(100), partition=0)
    pipeline.send(warnings(2), partition=1)
    pipeline.has_rows(102)
    if not runs:
        assert consumer.stop() == 0
    pipeline.delete_topic()
    pipeline.create_topic(2)
    pipeline.send(warnings(10), partition=0)
    pipeline.send(warnings(30), partition=1)
    if not runs:
        consumer = pipeline.consumer()
    pipeline.has_rows(142)
    assert consumer.stop() == 0
    assert len(pipeline.sql("select distinct topic_id from consumed_offsets")) == 2


@pytest.fixture
def distant(servers_are_slow: Servers, wide_pipeline: Pipeline) -> Pipeline:
    return wide_pipeline


@pytest.fixture
def servers_are_slow(running: Servers) -> Iterator[Servers]:
    for proxy in (running.kafka_proxy, running.postgres_proxy):
        proxy.latency_seconds, proxy.bytes_per_second, proxy.mode = DISTANCE_SECONDS, 10_000_000, "slow"
    yield running
    for proxy in (running.kafka_proxy, running.postgres_proxy):
        proxy.mode = "pass"


@pytest.mark.long
def test_until_empty_records_all_that_is_far_away(distant: Pipeline) -> None:
    """Longer than 20 s: each question and each answer takes its time on the way."""
    distant.send(warnings(5000))
    consumer = distant.consumer("--until-empty", environment=distant.environment(proxied=True))
    assert consumer.ends() == 0
    assert distant.count() == 5000


@pytest.mark.long
def test_a_slow_link_lets_batches_through_that_are_small_enough(pipeline: Pipeline) -> None:
    """Longer than 20 s: a batch that does not go through within 8 s is tried in halves."""
    proxy = pipeline.servers.postgres_proxy
    pipeline.send(warnings(6000))  # some 2 MB
    proxy.latency_seconds, proxy.bytes_per_second, proxy.mode = 0.3, 100_000, "slow"
    environment = pipeline.environment(proxied=True) | pipeline.servers.kafka.environment()
    consumer = pipeline.consumer(environment=environment)
    pipeline.has_rows(6000, 240)
    proxy.mode = "pass"
    assert consumer.stop() == 0


def in_a_transaction(pipeline: Pipeline, values: list[bytes], partition: int) -> None:
    """Send messages whose partition then ends in the transaction's marker."""
    certificates = pipeline.servers.certificates
    admin = {"ssl_certfile": str(certificates.admin_cert), "ssl_keyfile": str(certificates.admin_key)}
    sender = KafkaProducer(**pipeline.servers.kafka.options() | admin, transactional_id=pipeline.topic)
    sender.init_transactions()
    sender.begin_transaction()
    for value in values:
        sender.send(pipeline.topic, value=value, key=b"web-1", partition=partition)
    sender.commit_transaction()
    sender.close()


def test_until_empty_ends_behind_the_marker_of_a_transaction_also_beside_another_consumer(
    wide_pipeline: Pipeline,
) -> None:
    pipeline = wide_pipeline
    other = pipeline.consumer()
    for partition in range(4):
        in_a_transaction(pipeline, warnings(3, f"web-{partition}"), partition)
    pipeline.has_rows(12)
    pipeline.drain()
    assert pipeline.consumed() == dict.fromkeys(range(4), 4)
    assert other.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("trial", range(2))
def test_two_consumers_read_on_whatever_is_done_to_their_topic(wide_pipeline: Pipeline, trial: int) -> None:
    """Longer than 20 s: new partitions are noticed after 10 s, and a member that is deaf is replaced after 25."""
    pipeline, sent = wide_pipeline, 0
    consumers = [pipeline.consumer() for _ in range(2)]
    kafka = pipeline.servers.kafka

    def reads_all(partitions: int) -> None:
        nonlocal sent
        for partition in range(partitions):
            pipeline.send([encoded(warning(f"web-{partition}"))], partition=partition)
            sent += 1
        pipeline.has_rows(sent)

    reads_all(4)
    with kafka.admin() as admin:
        admin.create_partitions({pipeline.topic: 8})
    reads_all(8)
    pipeline.delete_topic()
    pipeline.create_topic(4)
    reads_all(4)
    for consumer in consumers:
        assert consumer.stop() == 0
