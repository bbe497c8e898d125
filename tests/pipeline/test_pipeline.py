"""Both scripts as processes, over mutual TLS through Apache Kafka into PostgreSQL: what is raised is recorded."""

import json
import shutil
import signal
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from pipeline import SCRIPTS, Pipeline, encoded, wait_until, warning, warnings


def test_each_warning_of_an_interval_is_one_row(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--flush-interval", "3")
    assert producer.ends() == 0
    assert len(producer.raised()) >= 10
    pipeline.drain()
    rows = pipeline.assert_recorded()
    assert len(rows) == len(producer.raised())
    assert pipeline.rejected() == []


def test_a_row_holds_what_the_message_said_and_where_it_stood(pipeline: Pipeline) -> None:
    assert pipeline.producer("--flush-interval", "1").ends() == 0
    pipeline.drain()
    messages, rows = pipeline.messages(), pipeline.rows()
    assert len(messages) == len(rows) > 0
    for message, row in zip(messages, rows, strict=True):
        fields = json.loads(message.value)
        assert message.key == b"web-1"
        times = {name: datetime.fromisoformat(fields[name]) for name in ("observed_at", "episode_started_at")}
        assert fields | times == {name: row[name] for name in fields}
        assert (row["topic"], row["partition"], row["offset"]) == (pipeline.topic, 0, message.offset)
        assert abs(datetime.now(UTC) - row["recorded_at"]) < timedelta(hours=1)
        assert row["extra"] is None


def test_the_producer_counts_what_it_raised_and_what_kafka_acknowledged(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--flush-interval", "1")
    assert producer.ends() == 0
    count = len(producer.raised())
    assert producer.says(rf"{count} warnings raised, {count} acknowledged, 0 left")
    assert pipeline.sent() == count
    assert producer.complaints() == []


def test_a_consumer_that_runs_records_each_warning_as_it_comes(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    producer = pipeline.producer("--forever", "--flush-interval", "1")
    pipeline.has_rows(20)
    assert producer.stop() == 0
    assert sum("interval over" in line for line in producer.lines()) >= 2
    pipeline.has_rows(len(producer.raised()))
    assert consumer.stop() == 0
    pipeline.assert_recorded()
    wait_until(lambda: pipeline.committed() == pipeline.ends(), "all offsets committed to Kafka")
    assert pipeline.consumed() == pipeline.ends()
    assert producer.complaints() == consumer.complaints() == []


def test_bandwidth_within_the_limit_raises_nothing(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--limit", "1000GB/s", "--flush-interval", "2")
    assert producer.ends() == 0
    assert producer.raised() == {}
    assert pipeline.sent() == 0


def test_until_empty_ends_on_an_empty_topic(wide_pipeline: Pipeline) -> None:
    wide_pipeline.drain()
    assert wide_pipeline.rows() == []


def test_until_empty_records_what_was_there_and_a_second_run_adds_nothing(wide_pipeline: Pipeline) -> None:
    for host in ("web-1", "web-2", "db-1", "mail"):
        wide_pipeline.send(warnings(25, host), host.encode())
    wide_pipeline.drain()
    rows = wide_pipeline.rows()
    assert len(rows) == 100
    assert wide_pipeline.consumed() == wide_pipeline.ends()
    wide_pipeline.drain()
    assert wide_pipeline.rows() == rows


def test_scripts_run_from_a_checkout_under_any_name(pipeline: Pipeline) -> None:
    checkout = pipeline.directory / "an other-name 2.0"
    checkout.mkdir()
    for script in SCRIPTS.glob("*.py"):
        shutil.copy(script, checkout)
    shutil.copytree(SCRIPTS / "eventkafkapostgres", checkout / "eventkafkapostgres")
    assert pipeline.producer("--flush-interval", "1", scripts=checkout).ends() == 0
    assert pipeline.consumer("--until-empty", scripts=checkout).ends() == 0
    assert pipeline.assert_recorded()


def test_a_broker_that_is_away_at_the_start_delays_no_sample_and_loses_no_warning(pipeline: Pipeline) -> None:
    pipeline.servers.kafka_proxy.mode = "refuse"
    producer = pipeline.producer("--flush-interval", "1000", environment=pipeline.environment(proxied=True))
    producer.raises(60)
    assert pipeline.sent() == 0
    pipeline.servers.kafka_proxy.mode = "pass"
    wait_until(lambda: pipeline.sent() >= 60, "60 messages sent")
    assert producer.stop() == 0
    pipeline.drain()
    rows = pipeline.assert_recorded()
    observed = [row["observed_at"] for row in rows]
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(observed)]
    assert sorted(gaps)[len(gaps) // 2] < 1
    assert max(gaps) < 3  # a sample that waited for Kafka would be half a minute late


def test_what_is_left_at_the_end_of_an_interval_goes_out_in_the_next_run(pipeline: Pipeline) -> None:
    pipeline.servers.kafka_proxy.mode = "refuse"
    first = pipeline.producer("--flush-interval", "1", environment=pipeline.environment(proxied=True))
    assert first.ends() == 1
    assert first.says(rf"{len(first.raised())} left")
    pipeline.servers.kafka_proxy.mode = "pass"
    second = pipeline.producer("--flush-interval", "1", environment=pipeline.environment(proxied=True))
    assert second.ends() == 0
    pipeline.drain()
    assert len(pipeline.assert_recorded()) == len(first.raised()) + len(second.raised())


def test_sasl_and_a_service_uri_serve_as_well_as_certificates(pipeline: Pipeline) -> None:
    servers = pipeline.servers
    password = servers.postgres.passwords["events"]
    uri = servers.postgres.uri().replace("/events?", f"/{pipeline.database}?")
    no_pg = dict.fromkeys(servers.postgres.environment())
    plain = {"KAFKA_SSL_CERTFILE": None, "KAFKA_SSL_KEYFILE": None} | servers.kafka.environment("SASL")
    environment = pipeline.environment(**no_pg | plain | {"DATABASE_URL": uri})
    producer = pipeline.producer("--flush-interval", "1", environment=environment)
    assert producer.ends() == 0
    consumer = pipeline.consumer("--until-empty", "-v", environment=environment)
    assert consumer.ends() == 0
    assert pipeline.assert_recorded()
    said = "".join(producer.lines() + consumer.lines())
    assert password not in said
    assert servers.kafka.password not in said


@pytest.mark.parametrize("host", ["web-1", 'wéb "1"', "{a,b}\\n", "\\.", "NULL", "日本 🛰", "x" * 255])
def test_any_name_of_a_host_arrives_as_it_is(pipeline: Pipeline, host: str) -> None:
    assert pipeline.producer("--flush-interval", "0.5", host=host).ends() == 0
    pipeline.drain()
    assert {row["host"] for row in pipeline.assert_recorded()} == {host}


def test_fields_of_a_newer_producer_are_kept(pipeline: Pipeline) -> None:
    pipeline.send([encoded(warning(rack="b\t7", load=[1.5, {"é": None}]))])
    pipeline.drain()
    assert [row["extra"] for row in pipeline.rows()] == [{"rack": "b\t7", "load": [1.5, {"é": None}]}]


def test_people_see_one_episode_for_an_overload(pipeline: Pipeline) -> None:
    hour = "2026-11-24T01:00:00.000000+00:00"
    second = [encoded(warning("web-1", 3600 + number, episode_started_at=hour)) for number in range(20)]
    pipeline.send([*warnings(10), *second])
    pipeline.drain()
    assert len(pipeline.sql("select * from bandwidth_episodes where host = 'web-1'")) == 2


def test_thousands_of_messages_are_recorded_each_once(wide_pipeline: Pipeline, figures: list[str]) -> None:
    hosts = [f"host-{number}" for number in range(40)]
    messages = [(host.encode(), encoded(warning(host, second))) for second in range(1000) for host in hosts]
    wide_pipeline.send_all(messages)
    started_at = time.monotonic()
    wide_pipeline.drain()
    seconds = time.monotonic() - started_at
    figures.append(f"{len(messages)} messages recorded in {seconds:.1f} s: {len(messages) / seconds:.0f} a second")
    rows = wide_pipeline.rows()
    assert {row["event_id"] for row in rows} == {json.loads(value)["event_id"] for _, value in messages}
    assert len(rows) == len(messages)
    wide_pipeline.assert_in_order(rows)
    assert wide_pipeline.rejected() == []
    assert wide_pipeline.consumed() == wide_pipeline.ends()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_both_scripts_in_order(pipeline: Pipeline, number: signal.Signals) -> None:
    consumer, producer = pipeline.consumer(), pipeline.producer("--forever")
    pipeline.has_rows(5)
    assert producer.stop(number) == 0
    pipeline.has_rows(len(producer.raised()))
    assert consumer.stop(number) == 0
    pipeline.assert_recorded()


def test_a_second_producer_on_the_same_outbox_is_told_so(pipeline: Pipeline, tmp_path: Path) -> None:
    first = pipeline.producer("--forever")
    first.raises(3)
    second = pipeline.producer("--forever")
    assert second.ends() == 2
    assert len(second.lines()) == 1
    assert "in use" in second.lines()[0]
    assert first.stop() == 0
    pipeline.drain()
    pipeline.assert_recorded()
