"""What --check does with its checks, and those that need no server."""

import os
import resource
import sqlite3
import threading
import time
from argparse import Namespace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from eventkafkapostgres import checks
from eventkafkapostgres.checks import (
    CheckResult,
    check_bandwidth,
    check_consumer,
    check_outbox,
    check_producer,
    check_topic,
    run_checks,
)
from eventkafkapostgres.outages import SettingsError
from eventkafkapostgres.outbox import Outbox
from eventkafkapostgres.topic import Topic

TOPIC_ID = UUID("a1e3d76f-8db5-458a-a09a-8c5a744d596c")


def test_results_come_in_order_and_a_wrong_setting_is_one_of_them(kafka_log):
    def first():
        time.sleep(0.05)
        yield CheckResult(True, "a")
        raise SettingsError("X is wrong")

    results = run_checks({"first": first, "second": lambda: [CheckResult(False, "b")]}, kafka_log)
    assert [*results] == [(True, "a"), (False, "X is wrong"), (False, "b")]


def test_what_has_not_answered_in_time_is_given_up_with_the_cause_that_is_known(kafka_log, monkeypatch):
    monkeypatch.setattr(checks, "CHECK_SECONDS", 0.1)
    over = threading.Event()
    kafka_log.cause = "connection refused"

    def silent():
        yield CheckResult(True, "a")
        over.wait(60)

    results = [*run_checks({"PostgreSQL": silent, "Kafka": silent}, kafka_log)]
    over.set()
    assert results == [
        (True, "a"),
        (False, "PostgreSQL: no answer; given up after 0 s"),
        (True, "a"),
        (False, "Kafka: connection refused; given up after 0 s"),
    ]


def test_a_defect_of_a_check_is_not_hidden(kafka_log):
    with pytest.raises(KeyError):
        [*run_checks({"a": lambda: iter([{}["x"]])}, kafka_log)]


# The host


def test_what_is_measured_is_reported_with_the_rate_of_the_moment(monkeypatch):
    readings = iter([{"eth0": (0, 0), "lo": (0, 0)}, {"eth0": (500_000, 1_000_000), "lo": (9, 9)}])
    clock = iter([10.0, 11.0])
    monkeypatch.setattr(checks, "read_counters", lambda: next(readings))
    monkeypatch.setattr(checks.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(checks.time, "monotonic", lambda: next(clock))
    assert [*check_bandwidth(["eth0"], 1e6, "web-1")] == [
        (True, "measuring eth0 (--interface)"),
        (True, "bandwidth of web-1: 1.50 MB/s now, the limit is 1.00 MB/s"),
    ]


def test_an_interface_that_is_not_there_is_reported(monkeypatch):
    monkeypatch.setattr(checks, "read_counters", lambda: {"eth0": (0, 0)})
    monkeypatch.setattr(checks, "MEASURED_SECONDS", 0.01)
    ok, text = next(iter(check_bandwidth(["eth0", "wg0"], 1e6, "web-1")))
    assert not ok
    assert "no interface wg0; this host has eth0" in text


def test_counters_that_can_not_be_read_are_reported(monkeypatch):
    monkeypatch.setattr(checks, "read_counters", lambda: (_ for _ in ()).throw(OSError(1, "not permitted")))
    (result,) = check_bandwidth([], 1e6, "web-1")
    assert result == (False, "bandwidth: can't read the interfaces' counters: not permitted")


# The outbox


def test_an_outbox_that_will_be_made_leaves_no_trace_of_the_check(tmp_path):
    path = tmp_path / "a" / "b" / "outbox.sqlite"
    assert check_outbox(path) == (True, f"outbox {path}: will be made")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "path",
    [
        Path("/proc/x/outbox.sqlite"),
        Path("/dev/null/outbox.sqlite"),
        Path("x" * 300),
        Path("/") / "/".join(["x"] * 3000),
    ],
)
def test_an_outbox_that_can_not_be_made_is_reported(path):
    ok, text = check_outbox(path)
    assert not ok
    assert text.startswith(f"outbox {path}: can't be written: ")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_disk_that_takes_no_more_is_reported(tmp_path, is_there):
    path = tmp_path / "outbox.sqlite"
    if is_there:
        Outbox(path).close()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        ok, text = check_outbox(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not ok
    assert text == f"outbox {path}: can't be written: File too large; give another --outbox"


def test_intervals_that_do_not_go_together_are_reported(tmp_path, kafka_log, monkeypatch):
    def options():
        raise SettingsError("KAFKA_BOOTSTRAP_SERVERS is not set")

    monkeypatch.setattr(checks, "MEASURED_SECONDS", 0.01)
    settings = Namespace(interface=[], limit=1.0, host="web-1", interval=5.0, flush_interval=1.0, topic="a",
                         outbox=tmp_path / "outbox.sqlite")  # fmt: skip
    results = [*check_producer(settings, options, kafka_log)]
    assert (False, "--flush-interval (1 s) must not be shorter than --interval (5 s)") in results
    assert (False, "KAFKA_BOOTSTRAP_SERVERS is not set") in results


def test_an_outbox_that_is_no_file_is_reported(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        assert check_outbox(path) == (False, f"outbox {path}: not a regular file; give another --outbox")


def test_warnings_that_wait_are_counted_and_nothing_is_changed(tmp_path):
    path = tmp_path / "outbox.sqlite"
    outbox = Outbox(path)
    outbox.put(b"k", b"v")
    assert check_outbox(path) == (True, f"outbox {path}: in use by a producer that runs")
    outbox.close()
    before = path.read_bytes()
    assert check_outbox(path) == (True, f"outbox {path}: 1 warning waiting")
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("content", [b"", "another's"])
def test_a_file_without_our_table_is_an_outbox_without_warnings(tmp_path, content):
    path = tmp_path / "outbox.sqlite"
    if content:
        with sqlite3.connect(path) as other:
            other.execute("create table x (y)")
        other.close()
    else:
        path.touch()
    assert check_outbox(path) == (True, f"outbox {path}: 0 warnings waiting")


def test_a_damaged_outbox_is_reported(tmp_path):
    path = tmp_path / "outbox.sqlite"
    outbox = Outbox(path)
    for _ in range(50):
        outbox.put(b"k" * 100, b"v" * 5000)
    outbox.close()
    content = bytearray(path.read_bytes())
    content[8192:12288] = os.urandom(4096)
    path.write_bytes(content)
    ok, text = check_outbox(path)
    assert not ok
    assert text.startswith(f"outbox {path}: ")


# The topic, and how far the consumer is behind


@pytest.mark.parametrize(
    ("topic", "results"),
    [
        (
            Topic("t", [], [], [], None, {}),
            [(False, "topic t: missing, or not visible to this user; create it and grant DESCRIBE on it")],
        ),
        (Topic("t", [0], [], ["READ"], None, {}), [(True, "topic t: 1 partition, READ is granted")]),
        (
            Topic("t", [0, 1], [1], ["WRITE"], None, {"cleanup.policy": "delete"}),
            [
                (False, "topic t: 2 partitions, but no right to READ: grant it to this user"),
                (False, "topic t: no leader for partition 1: are all brokers running?"),
            ],
        ),
    ],
)
def test_a_topic_is_there_with_its_right_and_its_leaders(topic, results):
    assert [*check_topic(topic, "READ")] == results


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ({}, "lag: 15 messages not recorded yet"),
        ({TOPIC_ID: {0: 10, 1: 107}}, "lag: 3 messages not recorded yet"),
        ({TOPIC_ID: {0: 99, 1: 109}}, "lag: 1 message not recorded yet"),
        ({uuid4(): {0: 10, 1: 110}}, "lag: 15 messages not recorded yet"),  # of a topic that had this name before
        (None, None),
    ],
)
def test_the_lag_is_what_kafka_still_has_of_this_topic_and_the_database_has_not(monkeypatch, kafka_log, stored, text):
    def kafka(client, options, log, topic, privilege, found):
        found.topic_id, found.offsets = TOPIC_ID, {0: (5, 10), 1: (100, 110)}
        return []

    def postgres(found):
        found.stored = stored
        return []

    monkeypatch.setattr(checks, "check_kafka", kafka)
    results = [*check_consumer(Namespace(topic="t"), dict, postgres, kafka_log)]
    assert results == ([(True, text)] if text else [])
