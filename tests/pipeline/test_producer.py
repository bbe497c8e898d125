"""The producer alone, on a real Kafka and on real disks: whatever is stuck, refused, full or gone, nothing is lost."""

import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from pipeline import Pipeline, Script, new_pipeline, wait_until
from scripts import uses_hardly_anything

from servers import Proxy, Servers

pytestmark = pytest.mark.long

MOUNT = 'mount -t tmpfs -o "$1" none "$0" && shift && exec "$@"'
ON_A_DISK_OF_ITS_OWN = f"""
import os, sys
folder, options, *command = sys.argv[1:]
namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
os.execvp("unshare", [*namespace, "sh", "-c", {MOUNT!r}, folder, options, sys.executable, *command])
"""
QUIET = ("--limit", "100GB/s", "--forever")


def through_proxy(pipeline: Pipeline) -> dict[str, str]:
    return pipeline.environment(**pipeline.servers.kafka.environment("PROXIED"))


def recovers(figures: list[str], what: str, condition: Callable[[], bool]) -> None:
    began_at = time.monotonic()
    wait_until(condition, "sent")
    figures.append(f"{what}: went on after {time.monotonic() - began_at:.1f} s")


def all_sent(pipeline: Pipeline, producer: Script) -> None:
    """Stop it: each warning is in the topic."""
    assert producer.stop() == 0
    sent = "".join(message.value.decode() for message in pipeline.messages())
    assert [event_id for event_id in producer.raised() if event_id not in sent] == []


# Killed


def test_a_full_outbox_survives_kill_minus_9(pipeline: Pipeline) -> None:
    pipeline.servers.kafka_proxy.mode = "refuse"
    producer = pipeline.producer("--interval", "0.01", "--forever", environment=through_proxy(pipeline))
    producer.raises(1200)  # more than may be in flight
    producer.kill()
    assert pipeline.sent() == 0
    pipeline.servers.kafka_proxy.mode = "pass"
    assert pipeline.producer("--flush-interval", "1", environment=through_proxy(pipeline)).ends() == 0
    pipeline.drain()
    pipeline.assert_recorded(unlogged=1)


def test_a_producer_that_is_killed_again_and_again_loses_nothing(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    for round_ in range(8):
        producer = pipeline.producer("--interval", "0.02", "--forever")
        producer.raises(5 + 3 * round_)
        producer.kill()
    assert pipeline.producer("--flush-interval", "0.5").ends() == 0
    pipeline.drain()
    assert consumer.stop() == 0
    rows = pipeline.assert_recorded(unlogged=8)
    assert len({row["episode_started_at"] for row in rows}) == 1  # an overload goes on over a restart


# The topic


@pytest.mark.parametrize("quiet", [True, False], ids=["nothing in flight", "warnings in flight"])
def test_a_topic_that_is_deleted_and_comes_back_with_fewer_partitions_is_sent_to(
    wide_pipeline: Pipeline, quiet: bool, figures: list[str]
) -> None:
    arguments = QUIET if quiet else ("--forever",)
    producer = wide_pipeline.producer("--interval", "0.5", "--heartbeat", "1", *arguments)
    wait_until(lambda: wide_pipeline.sent() > 2, "sent")
    wide_pipeline.delete_topic()
    assert producer.says(f"WARNING Kafka: the topic {wide_pipeline.topic} is missing")
    wide_pipeline.create_topic(1)
    recovers(figures, "topic recreated", lambda: wide_pipeline.sent() > 0)
    uses_hardly_anything(figures, "topic recreated with fewer partitions", producer)
    assert producer.says("Kafka: works again")
    assert producer.stop() == 0


def test_a_right_that_was_taken_away_and_granted_again_is_noticed(guarded: Servers, tmp_path: Path) -> None:
    """Up to half a minute: the pause before the next attempt."""
    with new_pipeline(guarded, tmp_path) as pipeline:
        producer = pipeline.producer("--interval", "0.5", "--forever")
        producer.raises(3)
        guarded.kafka.disallow("service")
        try:
            guarded.kafka.allow("service", "DESCRIBE", topic="*")
            assert producer.says("WARNING Kafka: no right to the topic")
        finally:
            guarded.kafka.allow("service", "ALL", topic="*")
            guarded.kafka.allow("service", "ALL", group="*")
        assert producer.says("Kafka: works again")
        all_sent(pipeline, producer)
        assert len(producer.complaints()) <= 2


def test_a_refusal_is_noticed_before_the_next_sample_and_logged_once(pipeline: Pipeline) -> None:
    """Messages that linger for 0.2 s are too old for this topic, and each refusal names another time."""
    pipeline.servers.kafka.create_topic(f"{pipeline.topic}-now", message_timestamp_before_max_ms=1)
    producer = pipeline.producer(
        "--interval", "4", "--forever", "--topic", f"{pipeline.topic}-now",
        environment=pipeline.environment(KAFKA_LINGER_MS="200"),
    )  # fmt: skip
    assert producer.says("WARNING Kafka: .*this host's clock is wrong")
    assert len(producer.raised()) == 1
    producer.raises(4)
    assert len(producer.complaints()) == 1
    assert producer.stop() == 1


# Kafka away


def test_a_kafka_that_was_killed_is_sent_to_again(pipeline: Pipeline, figures: list[str]) -> None:
    producer = pipeline.producer("--interval", "0.5", "--forever")
    producer.raises(3)
    pipeline.servers.kafka.kill()
    assert producer.says("WARNING Kafka: connection refused")
    pipeline.servers.kafka.start()
    recovers(figures, "Kafka killed", lambda: pipeline.sent() > 5)
    all_sent(pipeline, producer)


def test_a_silent_kafka_gets_new_producers(pipeline: Pipeline, figures: list[str]) -> None:
    producer = pipeline.producer("--interval", "0.5", "--forever", environment=through_proxy(pipeline))
    producer.raises(3)
    pipeline.servers.kafka_proxy.mode = "black hole"
    producer.raises(45)  # the first new one comes after 16 s
    pipeline.servers.kafka_proxy.mode = "pass"
    sent = pipeline.sent()
    recovers(figures, "Kafka silent", lambda: pipeline.sent() > sent)
    all_sent(pipeline, producer)


def test_brokers_that_all_have_new_addresses_are_found_by_the_bootstrap_servers(
    pipeline: Pipeline, figures: list[str]
) -> None:
    kafka, advertised = pipeline.servers.kafka, pipeline.servers.kafka.brokers[1]._advertised
    target, old = kafka.brokers[1].address("PROXIED"), advertised["PROXIED"]
    with Proxy(target) as bootstrap, Proxy(target) as new:
        servers = "{}:{}".format(*bootstrap.address)
        environment = through_proxy(pipeline) | {"KAFKA_BOOTSTRAP_SERVERS": servers}
        producer = pipeline.producer("--interval", "0.5", "--forever", environment=environment)
        wait_until(lambda: pipeline.sent() > 2, "sent")
        bootstrap.mode = "refuse"
        try:
            kafka.stop()
            pipeline.servers.kafka_proxy.mode = "refuse"
            advertised["PROXIED"] = new.address
            kafka.start()
            assert producer.says("WARNING Kafka: connection refused")
            sent = pipeline.sent()
            bootstrap.mode = "pass"
            recovers(figures, "new addresses", lambda: pipeline.sent() > sent)
            all_sent(pipeline, producer)
        finally:
            kafka.stop()
            advertised["PROXIED"] = old
            kafka.start()


def test_a_heartbeat_in_flight_does_not_hinder_the_end(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--heartbeat", "0.5", *QUIET, environment=through_proxy(pipeline))
    wait_until(lambda: pipeline.sent() > 2, "a heartbeat sent")
    pipeline.servers.kafka_proxy.mode = "black hole"
    time.sleep(1.5)  # longer than until the next one
    assert producer.stop() == 0
    assert producer.complaints() == []


# The flush, and the end


def test_a_single_sample_at_the_end_of_a_long_interval_arrives(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--interval", "3", "--flush-interval", "3")
    assert producer.ends() == 0
    assert (pipeline.sent(), producer.complaints()) == (1, [])


def test_the_flush_sends_what_lingers(pipeline: Pipeline) -> None:
    environment = pipeline.environment(KAFKA_LINGER_MS="30000")
    producer = pipeline.producer("--interval", "1", "--flush-interval", "3", environment=environment)
    assert producer.ends(20) == 0
    assert (pipeline.sent(), producer.complaints()) == (3, [])


def test_an_interval_without_kafka_logs_why_it_ends_with_1(pipeline: Pipeline) -> None:
    nowhere = pipeline.environment(KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    producer = pipeline.producer("--limit", "100GB/s", "--flush-interval", "0.2", environment=nowhere)
    assert producer.ends() == 1
    assert len(producer.complaints()) == 1


# The disk


def test_a_damaged_outbox_is_set_aside_and_the_sampling_goes_on(pipeline: Pipeline) -> None:
    outbox = pipeline.directory / "damaged.sqlite"
    outbox.write_bytes(os.urandom(50_000))
    damaged = outbox.read_bytes()
    producer = pipeline.producer("--outbox", str(outbox), "--flush-interval", "1")
    assert producer.ends() == 1  # something may have stayed behind
    assert producer.says("is damaged")
    assert any(path.read_bytes() == damaged for path in pipeline.directory.glob("damaged.sqlite.damaged-*"))
    assert pipeline.producer("--outbox", str(outbox), "--flush-interval", "1").ends() == 0
    pipeline.drain()
    pipeline.assert_recorded()


def test_an_outbox_that_is_removed_while_it_runs_is_recreated(pipeline: Pipeline) -> None:
    outbox = pipeline.directory / "state" / "outbox.sqlite"
    nowhere = pipeline.environment(KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    producer = pipeline.producer("--forever", "--outbox", str(outbox), environment=nowhere)
    producer.raises(5)
    outbox.unlink()
    assert producer.says("ERROR Outbox: .* was removed or replaced")
    second = pipeline.producer("--outbox", str(outbox), host="web-2", environment=nowhere)
    assert second.ends() == 2
    producer.kill()
    with closing(sqlite3.connect(outbox)) as connection:
        (stored,) = connection.execute("select count(*) from warnings").fetchone()
    assert stored >= len(producer.raised())


def producer_on(pipeline: Pipeline, options: str, *arguments: str, environment: dict[str, str] | None = None) -> Script:
    """A producer whose outbox has a small disk of its own, which nobody else sees and which goes with it."""
    folder = pipeline.directory / "disk"
    folder.mkdir()
    enter = pipeline.directory / "on_a_disk_of_its_own.py"
    enter.write_text(ON_A_DISK_OF_ITS_OWN)
    command = [str(enter), str(folder), options]
    try:
        subprocess.run(["python3", *command, "-c", ""], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system; fakes in tests/unit/test_outbox.py do the same")
    script = Path(__file__).parents[2] / "kproducer.py"
    how = [str(script), "--topic", pipeline.topic, "--host", "web-1", "--outbox", str(folder / "outbox.sqlite")]
    lo = ["--interface", "lo", "--limit", "0", "--interval", "0.05", *arguments]
    return pipeline._start(enter, [str(folder), options, *how, *lo], environment)


def test_what_neither_a_full_disk_nor_kafka_took_is_counted_as_lost(pipeline: Pipeline) -> None:
    nowhere = pipeline.environment(KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    producer = producer_on(pipeline, "size=128k", "--flush-interval", "6", environment=nowhere)
    assert producer.ends() == 1
    log = "\n".join(producer.lines())
    assert "can't be written: database or disk is full" in log
    lost, left = (
        int(number[1])
        for number in (re.search(r"(\d+) warnings are lost", log), re.search(r"(\d+) warnings? left in", log))
        if number
    )
    assert lost > 0
    assert left > 0
    assert lost + left == len(producer.raised())


@pytest.mark.parametrize("options", ["nr_inodes=1", "nr_inodes=2", "ro", "size=4k"])
def test_without_room_for_an_outbox_everything_is_sent_from_memory(pipeline: Pipeline, options: str) -> None:
    producer = producer_on(pipeline, options, "--flush-interval", "3")
    assert producer.ends() == 0
    assert len(producer.complaints()) == 1
    assert "warnings wait in memory" in producer.complaints()[0]
    assert len(producer.raised()) > 10
    assert pipeline.sent() == len(producer.raised())
