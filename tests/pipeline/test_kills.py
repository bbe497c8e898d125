"""kill -9 of each part of the pipeline, at the worst moments as well: nothing is lost, nothing is stored twice."""

import json

import pytest
from pipeline import QUICK, Pipeline, Side, encoded, wait_until, warning, warnings


@pytest.mark.parametrize("side", ["kafka", "postgres"])
def test_a_server_that_is_killed_loses_nothing(pipeline: Pipeline, side: Side) -> None:
    server = pipeline.servers.kafka if side == "kafka" else pipeline.servers.postgres
    consumer, producer = pipeline.consumer(), pipeline.producer("--forever")
    pipeline.goes_on()
    server.kill()
    producer.raises(len(producer.raised()) + 20)
    server.start()
    pipeline.has_rows(len(producer.raised()))
    pipeline.assert_all_arrive(producer, consumer)


def test_a_producer_that_is_killed_loses_nothing(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    killed = pipeline.producer("--forever", "--interval", "0.02")
    pipeline.goes_on()
    killed.kill()
    producer = pipeline.producer("--forever")
    producer.raises(3)
    assert producer.stop() == 0
    pipeline.has_rows(len(pipeline.raised()))
    assert consumer.stop() == 0
    pipeline.assert_recorded(unlogged=1)
    assert pipeline.rejected() == []


def test_a_consumer_that_is_killed_again_and_again_loses_nothing_and_doubles_nothing(wide_pipeline: Pipeline) -> None:
    """20 s and more, for Kafka gives the partitions of one that was killed to the next after a session's time."""
    hosts = [f"host-{number}" for number in range(20)]
    messages = [(host.encode(), encoded(warning(host, second))) for second in range(1000) for host in hosts]
    wide_pipeline.send_all(messages)
    quick = wide_pipeline.environment(**QUICK, KAFKA_MAX_POLL_RECORDS="500")
    for killed in range(1, 3):
        consumer = wide_pipeline.consumer(environment=quick)
        wide_pipeline.has_rows(killed * 3000)
        consumer.kill()
    assert wide_pipeline.count() < len(messages)
    wide_pipeline.drain()
    rows = wide_pipeline.rows()
    assert {row["event_id"] for row in rows} == {json.loads(value)["event_id"] for _, value in messages}
    assert len(rows) == len(messages)
    wide_pipeline.assert_in_order(rows)
    assert wide_pipeline.rejected() == []


@pytest.mark.long
def test_what_is_sent_twice_is_recorded_once(pipeline: Pipeline) -> None:
    """Slow for a second each way, until a message is in Kafka and its acknowledgement is not here yet."""
    proxy = pipeline.proxy("kafka")
    producer = pipeline.producer("--interval", "0.2", "--forever", environment=pipeline.through("kafka"))
    wait_until(lambda: pipeline.sent() >= 3, "3 messages sent")
    proxy.latency_seconds, proxy.bytes_per_second = 1.0, 1_000_000
    proxy.mode = "slow"
    sent = pipeline.sent()
    wait_until(lambda: pipeline.sent() > sent, "a message sent")
    producer.kill()  # its acknowledgement is still on the way
    proxy.mode, proxy.latency_seconds, proxy.bytes_per_second = "pass", 0.05, 100_000
    assert pipeline.producer("--flush-interval", "0.5").ends() == 0
    ids = [json.loads(message.value)["event_id"] for message in pipeline.messages()]
    assert len(ids) > len(set(ids))
    pipeline.drain()
    assert len(pipeline.assert_recorded(unlogged=1)) == len(set(ids))
    assert pipeline.rejected() == []


@pytest.mark.long
def test_a_row_that_is_there_stays_as_it_is(pipeline: Pipeline) -> None:
    first = warnings(30)
    pipeline.send(first)
    pipeline.drain()
    rows = pipeline.rows()
    again = [value.replace(b"3.93 MB/s", b"5.00 MB/s") for value in first]
    new = encoded(warning(second=100))
    pipeline.send([*again[:15], new, *again[15:]])
    pipeline.drain()
    assert pipeline.rows()[:30] == rows
    assert len(pipeline.rows()) == 31
    assert pipeline.rejected() == []


@pytest.mark.long
def test_a_consumer_killed_between_the_two_commits_changes_nothing_when_it_reads_again(pipeline: Pipeline) -> None:
    """Slow for a second each way, until rows are in the database and Kafka has not been told."""
    proxy = pipeline.proxy("kafka")
    consumer = pipeline.consumer(environment=pipeline.through("kafka"))
    pipeline.send(warnings(10))
    pipeline.has_rows(10)
    wait_until(lambda: pipeline.committed() == {0: 10}, "committed to Kafka")
    proxy.latency_seconds, proxy.bytes_per_second = 1.0, 1_000_000
    proxy.mode = "slow"
    pipeline.send(warnings(20))
    pipeline.has_rows(30)
    consumer.kill()  # its commit to Kafka is still on the way
    proxy.mode, proxy.latency_seconds, proxy.bytes_per_second = "black hole", 0.05, 100_000
    rows = pipeline.rows()
    assert pipeline.committed() == {0: 10}
    assert pipeline.consumed() == {0: 30}
    pipeline.send(warnings(5))
    pipeline.drain()
    assert pipeline.rows()[:30] == rows
    assert len(pipeline.rows()) == 35
    assert pipeline.rejected() == []
