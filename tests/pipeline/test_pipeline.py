"""Both scripts as processes, over mutual TLS through Apache Kafka into PostgreSQL: what is raised is recorded."""

import json
import shutil
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pipeline import SCRIPTS, Pipeline, wait_until, warnings


def test_each_warning_of_an_interval_is_one_row_with_what_the_message_holds(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--flush-interval", "2")
    assert producer.ends() == 0
    count = len(producer.raised())
    assert count > 0
    assert producer.says(rf"{count} warnings? raised, {count} acknowledged, 0 left")
    assert producer.complaints() == []
    pipeline.drain()
    messages, rows = pipeline.messages(), pipeline.assert_recorded()
    assert len(messages) == len(rows) == count
    for message, row in zip(messages, rows, strict=True):
        fields = json.loads(message.value)
        assert message.key == b"web-1"
        times = {name: datetime.fromisoformat(fields[name]) for name in ("observed_at", "episode_started_at")}
        assert fields | times == {name: row[name] for name in fields}
        assert (row["topic"], row["partition"], row["offset"]) == (pipeline.topic, 0, message.offset)
        assert abs(datetime.now(UTC) - row["recorded_at"]) < timedelta(hours=1)
        assert row["extra"] is None
    assert pipeline.rejected() == []


def test_until_empty_records_what_was_there_and_a_second_run_adds_nothing(wide_pipeline: Pipeline) -> None:
    wide_pipeline.drain()  # there is nothing yet
    assert wide_pipeline.rows() == []
    for host in ("web-1", "web-2", "db-1", "mail"):
        wide_pipeline.send(warnings(25, host), host.encode())
    wide_pipeline.drain()
    rows = wide_pipeline.rows()
    assert len(rows) == 100
    assert wide_pipeline.consumed() == wide_pipeline.ends()
    wide_pipeline.drain()
    assert wide_pipeline.rows() == rows


def test_any_name_of_a_host_arrives_as_it_is(wide_pipeline: Pipeline) -> None:
    hosts = ['wéb "1"', "{a,b}\\n", "\\.", "NULL", "日本 🛰", "x" * 255]
    for producer in [wide_pipeline.producer("--flush-interval", "0.5", host=host) for host in hosts]:
        assert producer.ends() == 0
    wide_pipeline.drain()
    assert {row["host"] for row in wide_pipeline.assert_recorded()} == set(hosts)


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


def test_scripts_run_from_a_checkout_under_any_name(pipeline: Pipeline) -> None:
    checkout = pipeline.directory / "an other-name 2.0"
    checkout.mkdir()
    for script in SCRIPTS.glob("*.py"):
        shutil.copy(script, checkout)
    shutil.copytree(SCRIPTS / "eventkafkapostgres", checkout / "eventkafkapostgres")
    assert pipeline.producer("--flush-interval", "1", scripts=checkout).ends() == 0
    pipeline.drain(scripts=checkout)
    assert pipeline.assert_recorded()


def test_what_is_left_at_the_end_of_an_interval_goes_out_in_the_next_run(pipeline: Pipeline) -> None:
    pipeline.proxy("kafka").mode = "refuse"
    first = pipeline.producer("--flush-interval", "1", environment=pipeline.through("kafka"))
    assert first.ends() == 1
    assert first.says(rf"{len(first.raised())} left")
    pipeline.proxy("kafka").mode = "pass"
    second = pipeline.producer("--flush-interval", "1", environment=pipeline.through("kafka"))
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_both_scripts_in_order(pipeline: Pipeline, number: signal.Signals) -> None:
    consumer, producer = pipeline.consumer(), pipeline.producer("--forever")
    pipeline.has_rows(5)
    assert producer.stop(number) == 0
    pipeline.has_rows(len(producer.raised()))
    assert consumer.stop(number) == 0
    pipeline.assert_recorded()


def test_a_second_producer_on_the_same_outbox_is_refused_with_the_reason(pipeline: Pipeline, tmp_path: Path) -> None:
    first = pipeline.producer("--forever")
    first.raises(3)
    second = pipeline.producer("--forever")
    assert second.ends() == 2
    assert len(second.lines()) == 1
    assert "in use" in second.lines()[0]
    assert first.stop() == 0
    pipeline.drain()
    pipeline.assert_recorded()


def test_a_broker_that_is_away_at_the_start_delays_no_sample_and_loses_no_warning(pipeline: Pipeline) -> None:
    proxy = pipeline.proxy("kafka")
    proxy.mode = "refuse"
    producer = pipeline.producer("--flush-interval", "1000", environment=pipeline.through("kafka"))
    producer.raises(60)  # with each sample waiting for Kafka this would take half an hour
    assert pipeline.sent() == 0
    proxy.mode = "pass"
    wait_until(lambda: pipeline.sent() >= 60, "60 messages sent")
    assert producer.stop() == 0
    pipeline.drain()
    pipeline.assert_recorded()


@pytest.mark.parametrize("script", ["kproducer", "kconsumer"])
def test_check_reports_what_is_wrong_and_else_that_all_is_right(pipeline: Pipeline, script: str) -> None:
    start = pipeline.producer if script == "kproducer" else pipeline.consumer
    right = start("--check")
    assert right.ends() == 0, right.lines()
    assert [line for line in right.lines() if not line.startswith("✓ ")] == []
    other_ca = {"KAFKA_SSL_CAFILE": str(pipeline.servers.certificates.foreign[0])}
    wrong = start("--check", environment=pipeline.environment(**other_ca))
    assert wrong.ends() == 1
    assert "KAFKA_SSL_CAFILE" in next(line for line in wrong.lines() if line.startswith("✗ Kafka"))
    assert pipeline.rows() == []
