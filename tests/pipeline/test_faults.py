"""A sick database and a broken network: nothing is lost, nothing is stored twice, and everything goes on."""

import signal
import time
from contextlib import closing

import pytest
from pipeline import QUICK, Pipeline, Script, Side, wait_until, warnings

from servers import Postgres

pytestmark = pytest.mark.long

# A sick database. What it refuses, and whose fault that is, is tested with the database alone.


def test_a_database_that_refuses_rejects_nothing_and_moves_no_offset(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    pipeline.send(warnings(1))
    wait_until(lambda: pipeline.committed() == {0: 1}, "committed to Kafka")
    postgres = pipeline.servers.postgres
    refused_before = refusals(postgres)
    pipeline.sql(f'alter database "{pipeline.database}" set default_transaction_read_only = on', dbname="postgres")
    pipeline.send([*warnings(5), b"not JSON"])
    assert consumer.says("read-only")
    for tries in (1, 2):
        wait_until(lambda: refusals(postgres) >= refused_before + tries, "tried")  # noqa: B023
        assert (pipeline.count(), pipeline.rejected()) == (1, [])
        assert (pipeline.consumed(), pipeline.committed()) == ({0: 1}, {0: 1})
    pipeline.sql(f'alter database "{pipeline.database}" reset default_transaction_read_only', dbname="postgres")
    pipeline.has_rows(6)
    wait_until(lambda: pipeline.committed() == {0: 7}, "committed to Kafka")
    assert pipeline.consumed() == {0: 7}
    assert [row["value"].tobytes() for row in pipeline.rejected()] == [b"not JSON"]
    assert consumer.says("works again")
    assert sum("read-only" in line for line in consumer.complaints()) == 1
    assert consumer.stop() == 0


def refusals(postgres: Postgres) -> int:
    return postgres.log.read_text(errors="replace").count("read-only transaction")


def test_a_locked_table_is_waited_for(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    pipeline.send(warnings(1))
    pipeline.has_rows(1)
    with closing(pipeline.servers.postgres.connect("postgres", dbname=pipeline.database)) as connection:
        connection.cursor().execute("lock table bandwidth_exceeds in access exclusive mode")
        pipeline.send(warnings(5))
        assert consumer.says("lock")
        assert pipeline.consumed() == {0: 1}
    pipeline.has_rows(6)
    assert consumer.stop() == 0
    assert pipeline.rejected() == []


def test_a_database_that_is_away_for_longer_than_a_session_costs_no_membership(pipeline: Pipeline) -> None:
    """Takes a session's time. That it is over shows on a member of another group, which was suspended meanwhile."""
    environment, other = pipeline.environment(**QUICK), f"{pipeline.group}-other"
    consumer, suspended = (
        pipeline.consumer("--group", name, environment=environment) for name in (pipeline.group, other)
    )
    pipeline.send(warnings(5))
    pipeline.has_rows(5)
    wait_until(lambda: pipeline.members(other), "a member")
    members = pipeline.members()
    assert len(members) == 1
    pipeline.servers.postgres.stop("immediate")
    pipeline.send(warnings(5))
    assert consumer.says("PostgreSQL: ")
    suspended.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not pipeline.members(other), "given up by Kafka")
    assert pipeline.committed() == {0: 5}
    pipeline.servers.postgres.start()
    pipeline.has_rows(10)
    assert pipeline.members() == members
    assert consumer.stop() == 0
    assert pipeline.rejected() == []
    assert len(consumer.complaints()) <= 4  # it went, perhaps it was starting up, and it works again


# The network


@pytest.mark.parametrize("side", ["kafka", "postgres"])
def test_connections_that_are_reset_in_the_middle_of_a_record_lose_nothing(pipeline: Pipeline, side: Side) -> None:
    environment = pipeline.environment(proxied=True)
    consumer = pipeline.consumer(environment=environment)
    producer = pipeline.producer("--interval", "0.05", "--forever", environment=environment)
    for bytes_ in (1, 300, 700, 1500, 2600, 4000, 7000, 11000):
        pipeline.goes_on()
        pipeline.proxy(side).reset(after_bytes=bytes_)
    pipeline.goes_on()
    pipeline.assert_all_arrive(producer, consumer)


def test_a_stop_during_the_flush_of_an_interval_waits_for_the_acknowledgements(pipeline: Pipeline) -> None:
    one_second_to_flush = ("--forever", "--interval", "2", "--flush-interval", "2")
    producer = pipeline.producer(*one_second_to_flush, environment=pipeline.through("kafka"))
    wait_until(lambda: pipeline.sent() > 0, "a warning sent")
    proxy = pipeline.proxy("kafka")
    proxy.latency_seconds, proxy.bytes_per_second, proxy.mode = 0.8, 1_000_000, "slow"
    producer.raises(len(producer.raised()) + 1)
    assert producer.stop() == 0
    assert pipeline.sent() == len(producer.raised())


@pytest.mark.parametrize("side", ["kafka", "postgres"])
def test_both_scripts_recover_from_a_silence(pipeline: Pipeline, side: Side, figures: list[str]) -> None:
    """Longer than 20 s, of which most is what it takes to notice a silence, and then that it is over."""
    consumer = pipeline.consumer(environment=pipeline.through(side))
    producer = pipeline.producer("--interval", "1", "--forever", environment=pipeline.through(side))
    pipeline.has_rows(3)
    pipeline.proxy(side).mode = "black hole"
    for script in (producer, consumer) if side == "kafka" else (consumer,):
        assert script.says("WARNING (Kafka|PostgreSQL): ")
    producer.raises(len(producer.raised()) + 2)
    pipeline.proxy(side).mode = "pass"
    whole_at = time.monotonic()
    pipeline.has_rows(len(producer.raised()))
    figures.append(f"{side} silent: all was recorded {time.monotonic() - whole_at:.1f} s after it was whole again")
    pipeline.assert_all_arrive(producer, consumer)


def test_a_batch_that_postgres_took_half_of_is_recorded_after_the_silence(pipeline: Pipeline) -> None:
    proxy = pipeline.proxy("postgres")
    pipeline.send(warnings(5000))
    proxy.mode, proxy.bytes_per_second = "slow", 200_000
    consumer = pipeline.consumer(environment=pipeline.through("postgres"))
    wait_until(lambda: copying(pipeline), "in the middle of a COPY")
    proxy.mode = "black hole"
    assert consumer.says("PostgreSQL: ")
    proxy.mode = "pass"
    pipeline.has_rows(5000)
    assert consumer.stop() == 0
    pipeline.assert_topic_is_recorded()


def copying(pipeline: Pipeline) -> bool:
    return bool(pipeline.sql("select 1 from pg_stat_progress_copy where tuples_processed > 0"))


@pytest.mark.parametrize(("side", "number"), [("kafka", signal.SIGTERM), ("postgres", signal.SIGINT)])
def test_both_scripts_stop_while_the_network_is_silent(
    pipeline: Pipeline, side: Side, number: signal.Signals, figures: list[str]
) -> None:
    """The flush at the end of an interval waits for the silent network as well as it can."""
    consumer = pipeline.consumer(environment=pipeline.through(side))
    producer = pipeline.producer("--forever", environment=pipeline.through(side))
    pipeline.has_rows(5)
    pipeline.proxy(side).mode = "black hole"
    started_in_silence = pipeline.producer("--forever", host="web-2", environment=pipeline.through(side))
    second = pipeline.consumer(environment=pipeline.through(side))
    assert second.says("started")
    for script in (producer, started_in_silence):
        script.raises(len(script.raised()) + 20)
    stops(figures, f"{side} silent, {number.name}", number, consumer, second, producer, started_in_silence)
    assert consumer.process.returncode == second.process.returncode == 0
    assert producer.process.returncode == started_in_silence.process.returncode == (1 if side == "kafka" else 0)
    pipeline.proxy(side).mode = "pass"
    for host in ("web-1", "web-2"):
        assert pipeline.producer("--flush-interval", "0.5", host=host).ends() == 0
    pipeline.drain()
    pipeline.assert_recorded()


def stops(figures: list[str], what: str, number: signal.Signals, *scripts: Script) -> None:
    began_at = time.monotonic()
    for script in scripts:
        script.process.send_signal(number)
    for script in scripts:
        script.ends()
    figures.append(f"{what}: all stopped in {time.monotonic() - began_at:.1f} s")
