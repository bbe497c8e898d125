import contextlib
import io
import json
import logging
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import struct
import threading
import time
from argparse import Namespace
from datetime import UTC, datetime, timedelta
from itertools import islice, repeat
from unittest.mock import create_autospec
from uuid import RFC_4122, UUID

import psutil
import pytest
import trustme
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import (
    KafkaConfigurationError,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
    UnrecognizedBrokerVersion,
)
from kafka.producer.future import FutureProduceResult, FutureRecordMetadata

import kconsumer
import kproducer
from kproducer import (
    PRODUCER_OPTIONS,
    PRODUCER_PROMISE,
    WINDOW,
    Certificates,
    Delivery,
    KafkaLog,
    Outage,
    PatientSocket,
    Sample,
    Stop,
    bandwidth,
    bandwidth_exceed_event_system,
    format_rate,
    kafka_options,
    main,
    open_outbox,
    outbox_path,
    parse_rate,
    plain,
    samples,
    uuid7,
    warning,
)
from simpleEvents import EventSystem

OBSERVED_AT = datetime(2026, 11, 23, 16, 22, 4, 796005, tzinfo=UTC)
EVENT_ID = UUID("01a20b20-7007-7b5a-b044-fec6a3afb754")


# Rates


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("1000000", 1_000_000),
        ("0", 0),
        ("0.5", 0.5),
        (" 1MB/s ", 1_000_000),
        ("1 MB/s", 1_000_000),
        ("1.5kB/s", 1500),
        ("1KB/s", 1000),
        ("7B/s", 7),
        ("2GB/s", 2e9),
        ("1TB/s", 1e12),
        ("80Mbit/s", 10_000_000),
        ("8bit/s", 1),
        ("1Gbit/s", 125_000_000),
        ("1MiB/s", 1 << 20),
        ("1KiB/s", 1 << 10),
        ("8Mibit/s", 1 << 20),
    ],
)
def test_a_rate_is_read_in_bytes_a_second(text, bytes_per_second):
    assert parse_rate(text) == bytes_per_second


@pytest.mark.parametrize(
    "text",
    ["", "fast", "1MB", "MB/s", "1mB/s", "1Mb/s", "1 M B/s", "1iB/s", "1MB/h", "-1", "+1", "1e6", "1,5MB/s", ".5", "5.",
     "nan", "inf", "0x10", "\u0661", "1MB/s\x00", "1_000"],
)  # fmt: skip
def test_what_is_no_rate_is_refused_with_the_forms_that_are(text):
    with pytest.raises(ValueError, match=r"is no rate: write bytes a second as 1000000, 1MB/s, 80Mbit/s or 1MiB/s"):
        parse_rate(text)


def test_a_rate_beyond_all_numbers_is_refused():
    with pytest.raises(ValueError, match="beyond all rates"):
        parse_rate("9" * 400)


@pytest.mark.parametrize(
    ("bytes_per_second", "text"),
    [
        (0, "0.00 B/s"),
        (999, "999.00 B/s"),
        (999.994, "999.99 B/s"),
        (999.995, "1.00 kB/s"),
        (1000, "1.00 kB/s"),
        (3_932_801.7, "3.93 MB/s"),
        (999_999_999, "1.00 GB/s"),
        (12.5e12, "12500.00 GB/s"),
    ],
)
def test_a_rate_is_written_for_people(bytes_per_second, text):
    assert format_rate(bytes_per_second) == text


# The identifier


def test_an_identifier_has_the_layout_of_rfc_9562():
    # the example of RFC 9562, appendix A.6
    assert uuid7(1645557742.000, 0xCC3 << 62 | 0x18C4DC0C0C07398F) == UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")


@pytest.mark.parametrize("random_bits", [0, (1 << 74) - 1, 0x155 << 64 | 0xAAAA])
def test_an_identifier_is_of_version_7_whatever_the_random_bits(random_bits):
    made = uuid7(1795450924.796, random_bits)
    assert (made.version, made.variant) == (7, RFC_4122)
    assert made.int >> 80 in (1795450924795, 1795450924796)


def test_later_identifiers_sort_behind_earlier_ones():
    largest, smallest = (1 << 74) - 1, 0
    assert uuid7(1000.001, largest) < uuid7(1000.002, smallest)
    assert str(uuid7(1000.001, largest)) < str(uuid7(1000.002, smallest))


# The bandwidth


@pytest.mark.parametrize(
    ("before", "after", "seconds", "expected"),
    [
        ({"a": (100, 200)}, {"a": (1100, 2200)}, 1.0, (1000, 2000)),
        ({"a": (0, 0)}, {"a": (1000, 500)}, 2.0, (500, 250)),  # by the time that was measured
        ({"a": (0, 0), "b": (0, 0)}, {"a": (1, 2), "b": (10, 20)}, 1.0, (11, 22)),
        ({"a": (900, 100)}, {"a": (5, 400)}, 1.0, (0, 300)),  # a counter that went back
        ({"a": (900, 0), "b": (0, 0)}, {"a": (0, 0), "b": (7, 8)}, 1.0, (7, 8)),  # takes nothing from another
        ({}, {"a": (10**9, 10**9)}, 1.0, (0, 0)),  # an interface that came
        ({"a": (10**9, 10**9)}, {}, 1.0, (0, 0)),  # one that went
        ({"a": (1, 1)}, {"b": (9, 9)}, 1.0, (0, 0)),
        ({}, {}, 1.0, (0, 0)),
    ],
)
def test_bandwidth_is_what_the_counters_grew_by_over_the_time(before, after, seconds, expected):
    assert bandwidth(before, after, seconds) == expected


# The warning


def the_warning():
    return warning(Sample(OBSERVED_AT, ["eth0"], 812345.64, 3120456.11), "web-1", 1e6, EVENT_ID)


def test_a_warning_is_the_documented_message():
    assert the_warning() == {
        "event_id": "01a20b20-7007-7b5a-b044-fec6a3afb754",
        "observed_at": "2026-11-23T16:22:04.796005+00:00",
        "host": "web-1",
        "interfaces": ["eth0"],
        "bytes_sent_per_second": 812345.6,
        "bytes_received_per_second": 3120456.1,
        "bytes_per_second": 3932801.8,
        "limit_bytes_per_second": 1000000.0,
        "message": "Bandwidth exceeded on web-1: 3.93 MB/s is over the limit of 1.00 MB/s",
    }


def test_a_warnings_fields_are_the_columns_of_the_table_in_their_order():
    columns = re.findall(r"^    \"?(\w+)\"? \w", kconsumer.TABLES["bandwidth_exceeds"], re.MULTILINE)
    assert [*the_warning()] == columns[: columns.index("topic")] == [*kconsumer.FIELDS]


def test_the_consumer_takes_what_the_producer_writes():
    value = json.dumps(the_warning(), ensure_ascii=False).encode()
    assert kconsumer.is_ours(value.decode())  # the fast way
    line = kconsumer.copy_line(value, "bandwidth_exceeds", 0, 5)
    assert line.startswith("01a20b20-7007-7b5a-b044-fec6a3afb754\t2026-11-23T16:22:04.796005+00:00\tweb-1\t")


def test_a_whole_second_has_its_microseconds_all_the_same():
    sample = Sample(OBSERVED_AT.replace(microsecond=0), [], 1, 1)
    assert warning(sample, "h", 1.0, EVENT_ID)["observed_at"] == "2026-11-23T16:22:04.000000+00:00"


# Samples


@pytest.fixture
def counters(clock):
    """Each second eth0 sends 1000 bytes and receives 500."""
    return lambda: {"eth0": (round(1000 * clock.now), round(500 * clock.now)), "lo": (0, 0)}


def measure(clock, stop, counters, idle=lambda: math.inf, interval=1.0, interfaces=("eth0",)):
    def now():
        return datetime.fromtimestamp(clock.now, UTC)

    return samples(interval, interfaces, stop, idle, counters, clock, now)


def test_a_sample_tells_rates_by_the_second_and_which_interfaces(clock, stop, counters):
    (sample,) = islice(measure(clock, stop, counters), 1)
    assert sample == Sample(datetime.fromtimestamp(1001, UTC), ["eth0"], 1000, 500)


def test_ticks_do_not_drift_however_long_the_work_between_them_takes(clock, stop, counters):
    at = []
    for sample in islice(measure(clock, stop, counters), 1000):
        at.append(sample.observed_at.timestamp())
        clock.now += 0.3  # what is done with the sample
    assert at == [1001.0 + n for n in range(1000)]


def test_a_slow_idle_delays_its_own_tick_and_no_other(clock, stop, counters):
    def idle():
        clock.now += 0.03
        return math.inf

    at = [sample.observed_at.timestamp() for sample in islice(measure(clock, stop, counters, idle), 1000)]
    assert max(abs(seconds - (1001 + n)) for n, seconds in enumerate(at)) < 0.031


def test_idle_is_called_again_as_soon_as_it_asks_for(clock, stop, counters):
    called = []

    def idle():
        called.append(clock.now)
        return 0.25

    list(islice(measure(clock, stop, counters, idle), 1))
    assert called == [1000.0, 1000.25, 1000.5, 1000.75]


def test_a_rate_is_divided_by_the_time_that_was_measured(clock, stop, counters):
    measured = measure(clock, stop, counters)
    next(measured)
    clock.now += 1.7  # the next sample comes 0.7 s late
    assert next(measured) == Sample(
        datetime.fromtimestamp(1002.7, UTC), ["eth0"], pytest.approx(1000), pytest.approx(500)
    )


def test_ticks_that_were_missed_are_left_out_and_their_bytes_are_in_the_next(clock, stop, counters):
    measured = measure(clock, stop, counters)
    next(measured)
    clock.now += 60.3  # asleep
    after_sleep = next(measured)
    assert after_sleep.observed_at.timestamp() == 1061.3
    assert after_sleep.bytes_sent_per_second == pytest.approx(1000)
    assert next(measured).observed_at.timestamp() == 1062.0  # and on the old grid again


@pytest.mark.parametrize("asleep", [5.0, 5.999])
def test_no_sample_is_measured_over_next_to_no_time(clock, stop, counters, asleep):
    measured = measure(clock, stop, counters)
    next(measured)
    clock.now += asleep
    next(measured)
    late = clock.now
    next(measured)
    assert clock.now - late >= 0.5


def test_sampling_ends_when_stop_is_set_and_not_before(clock, stop, counters):
    stop.at = 1004.5
    assert len(list(measure(clock, stop, counters))) == 4


def test_an_interval_of_part_of_a_second_is_kept_too(clock, stop, counters):
    at = [s.observed_at.timestamp() for s in islice(measure(clock, stop, counters, interval=0.25), 4)]
    assert at == [1000.25, 1000.5, 1000.75, 1001.0]


def test_only_the_interfaces_asked_for_are_measured(clock, stop):
    def three():
        return {name: (round(n * clock.now), 0) for n, name in enumerate(("a", "b", "c"), 1)}

    (sample,) = islice(measure(clock, stop, three, interfaces=("c", "a")), 1)
    assert sample[1:] == (["a", "c"], 4, 0)


def test_an_interface_that_was_asked_for_may_go_and_come_back(clock, stop):
    there = {"a": (0, 0), "b": (0, 0)}
    measured = measure(clock, stop, lambda: dict(there), interfaces=("a", "b"))
    there["a"], there["b"] = (10, 0), (1, 0)
    assert next(measured)[1:] == (["a", "b"], 0, 0)  # the generator's first reading is now
    del there["b"]
    there["a"] = (20, 0)
    assert next(measured)[1:] == (["a"], 10, 0)
    there.update(a=(30, 0), b=(10**9, 0))
    assert next(measured)[1:] == (["a", "b"], 10, 0)
    there.update(a=(40, 0), b=(10**9 + 5, 0))
    assert next(measured)[1:] == (["a", "b"], 15, 0)


def nics(**up):
    """What psutil.net_if_stats() returns, in its own type."""
    nic = type(next(iter(psutil.net_if_stats().values())))
    return {
        name: nic(isup=is_up, duplex=0, speed=0, mtu=1500, flags="up,loopback,running" if name == "lo" else "up")
        for name, is_up in up.items()
    }


def test_without_a_choice_what_is_up_is_measured_but_not_loopback(monkeypatch):
    stats = nics(lo=True, eth0=True, eth1=False)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: stats)
    assert kproducer.default_interfaces() == {"eth0"}


def test_an_interface_that_is_plugged_in_is_measured_from_then_on(clock, stop, monkeypatch):
    stats, plugged = nics(lo=True, eth0=True), nics(lo=True, eth0=True, usb0=True)
    there = {"lo": (0, 0), "eth0": (0, 0)}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: stats)
    measured = measure(clock, stop, lambda: dict(there), interfaces=())
    assert next(measured).interfaces == ["eth0"]
    stats = plugged
    there["usb0"] = (5, 5)
    assert next(measured)[1:] == (["eth0", "usb0"], 0, 0)
    there["usb0"] = (9, 9)
    assert next(measured)[1:] == (["eth0", "usb0"], 4, 4)


def test_an_interface_that_comes_up_is_measured_within_ten_samples(clock, stop, monkeypatch):
    # its counters were there all the time, as Linux has it
    stats, later = nics(lo=True, eth0=True, wlan0=False), nics(lo=True, eth0=True, wlan0=True)
    there = {"lo": (0, 0), "eth0": (0, 0), "wlan0": (0, 0)}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: stats)
    measured = measure(clock, stop, lambda: dict(there), interfaces=())
    assert next(measured).interfaces == ["eth0"]
    stats = later
    list(islice(measured, 10))
    there["wlan0"] = (9, 9)
    assert next(measured)[1:] == (["eth0", "wlan0"], 9, 9)


def test_the_real_counters_are_pairs_of_whole_numbers_by_interface():
    for name, (sent, received) in kproducer.read_counters().items():
        assert isinstance(name, str)
        assert isinstance(sent, int)
        assert isinstance(received, int)


# The outbox


@pytest.fixture
def outbox(tmp_path):
    made = open_outbox(tmp_path / "outbox.sqlite")
    yield made
    made.connection.close()


def values(outbox):
    return [value for _, _, value in outbox.after(0, 10_000)]


def put(outbox, *texts):
    outbox.change([(b"h", text.encode()) for text in texts], [])


def test_the_outbox_gives_back_what_was_stored_oldest_first(outbox):
    put(outbox, "c", "a")
    put(outbox, "b")
    assert outbox.after(0, 10) == [(1, b"h", b"c"), (2, b"h", b"a"), (3, b"h", b"b")]
    assert outbox.after(1, 1) == [(2, b"h", b"a")]
    assert outbox.after(3, 10) == []
    assert outbox.count() == 3


def test_what_is_removed_is_gone_and_the_rest_stays(outbox):
    put(outbox, "a", "b", "c")
    outbox.change([], [2])
    assert values(outbox) == [b"a", b"c"]


def test_the_outbox_survives_a_kill(outbox, tmp_path):
    put(outbox, "a", "b")
    outbox.change([(b"h", b"c")], [1])
    killed = tmp_path / "killed"  # what is on the disk at this moment, with nothing closed
    killed.mkdir()
    for path in tmp_path.glob("outbox.sqlite*"):
        shutil.copy(path, killed)
    after_kill = open_outbox(killed / "outbox.sqlite")
    assert values(after_kill) == [b"b", b"c"]
    after_kill.connection.close()


def test_the_outbox_waits_for_the_disk_at_each_change(outbox):
    assert outbox.connection.execute("pragma synchronous").fetchone() == (2,)  # full


def test_a_position_is_never_used_again(outbox):
    put(outbox, "a", "b")
    outbox.change([], [1, 2])
    path = outbox.path
    outbox.connection.close()
    again = open_outbox(path)
    put(again, "c")
    assert again.after(0, 10) == [(3, b"h", b"c")]
    again.connection.close()


def test_a_change_is_stored_as_a_whole_or_not_at_all(outbox):
    put(outbox, "a")
    with pytest.raises(sqlite3.Error):
        outbox.change([(b"h", b"b"), (b"h", object())], [1])
    assert values(outbox) == [b"a"]
    outbox.change([(b"h", b"b")], [1])
    assert values(outbox) == [b"b"]


def test_a_second_producer_is_told_that_the_outbox_is_in_use(outbox, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0}))
    with pytest.raises(ValueError, match=r"outbox.sqlite is in use: one producer per outbox, give this .* --outbox"):
        open_outbox(outbox.path)
    put(outbox, "a")  # and the first one goes on


@pytest.mark.parametrize("begins", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_outbox_is_set_aside_and_a_new_one_begins(tmp_path, caplog, begins):
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(begins)
    outbox = open_outbox(path)
    put(outbox, "a")
    assert values(outbox) == [b"a"]
    (aside,) = tmp_path.glob("outbox.sqlite.damaged-*")
    assert aside.read_bytes() == begins
    (said,) = caplog.messages
    assert str(path) in said
    assert str(aside) in said
    outbox.connection.close()


def test_the_outbox_makes_the_folders_that_are_missing(tmp_path):
    outbox = open_outbox(tmp_path / "a" / "b" / "outbox.sqlite")
    assert outbox.count() == 0
    outbox.connection.close()


@pytest.mark.parametrize("where", ["file/outbox.sqlite", "file/deeper/outbox.sqlite", "folder"])
def test_an_outbox_that_cannot_be_there_is_said_with_what_to_do(tmp_path, where):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"the outbox .* can't be (made|used): .*; give another --outbox"):
        open_outbox(tmp_path / where)


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"STATE_DIRECTORY": "/s", "XDG_STATE_HOME": "/x"}, "/s/outbox.sqlite"),
        ({"STATE_DIRECTORY": "/s:/t"}, "/s/outbox.sqlite"),
        ({"XDG_STATE_HOME": "/x"}, "/x/eventKafkaPostgres/outbox.sqlite"),
        ({}, os.path.expanduser("~/.local/state/eventKafkaPostgres/outbox.sqlite")),
    ],
)
def test_the_outbox_is_where_systemd_or_xdg_says(environ, path):
    assert str(outbox_path(environ)) == path


# Delivery


class Kafka:
    """A KafkaProducer with its real interface, real futures, and lists as spies."""

    def __init__(self, outbox):
        self.client = create_autospec(KafkaProducer, instance=True)
        self.client.send.side_effect = self.send
        self.client.partitions_for.return_value = {0}
        self.outbox = outbox
        self.raises = None
        self.sent = []  # values
        self.futures = []
        self.on_disk = []  # what the outbox held when each value was sent

    def send(self, topic, value=None, key=None, headers=None, partition=None, timestamp_ms=None):
        if self.raises:
            raise self.raises
        self.sent.append(value)
        if self.outbox:
            self.on_disk.append(values(self.outbox))
        produced = FutureProduceResult(TopicPartition(topic, 0))
        self.futures.append(FutureRecordMetadata(produced, 0, 1, None, len(key), len(value), -1))
        return self.futures[-1]

    def acknowledge(self, *indexes):
        """What kafka-python's sender does when the broker acknowledged a batch."""
        for index in indexes or range(len(self.futures)):
            if not self.futures[index].is_done:
                self.futures[index]._produce_future.success((7, -1, None))

    def refuse(self, *indexes):
        """What it does when the broker refused one."""
        for index in indexes:
            self.futures[index]._produce_future.success((-1, -1, lambda batch_index: TopicAuthorizationFailedError()))


@pytest.fixture
def kafka(outbox):
    return Kafka(outbox)


@pytest.fixture
def kafka_log(clock):
    return KafkaLog(clock)


@pytest.fixture
def delivery(kafka, outbox, kafka_log, clock):
    return Delivery(kafka.client, "bandwidth_exceeds", outbox, EventSystem(), kafka_log, clock, clock.sleep)


def raised(*texts):
    return [(b"web-1", text.encode()) for text in texts]


def said(caplog, *levels):
    return [record.getMessage() for record in caplog.records if record.levelname in (levels or ("WARNING", "ERROR"))]


def test_a_warning_is_stored_before_it_is_sent(delivery, kafka):
    delivery.pump(*raised("a"))
    delivery.pump(*raised("b", "c"))
    assert kafka.sent == [b"a", b"b", b"c"]
    assert kafka.on_disk == [[b"a"], [b"a", b"b", b"c"], [b"a", b"b", b"c"]]


def test_a_warning_is_sent_at_once_to_the_topic_with_the_hosts_name_as_key(delivery, kafka):
    delivery.pump(*raised("a"))
    kafka.client.send.assert_called_once_with("bandwidth_exceeds", value=b"a", key=b"web-1")
    kafka.client.flush.assert_not_called()


def test_a_warning_leaves_the_outbox_only_when_it_is_acknowledged(delivery, kafka, outbox):
    delivery.pump(*raised("a", "b"))
    delivery.pump()
    assert values(outbox) == [b"a", b"b"]
    kafka.acknowledge(1)
    delivery.pump()
    assert values(outbox) == [b"a"]
    assert (delivery.waiting, delivery.acknowledged) == (1, 1)
    kafka.acknowledge(0)
    delivery.pump()
    assert values(outbox) == []
    assert (delivery.waiting, delivery.acknowledged) == (0, 2)


def test_the_event_system_holds_the_warnings_that_are_in_flight(delivery, kafka):
    delivery.pump(*raised("a", "b"))
    assert [sent.value for sent in delivery.bandwidth_exceeds.events] == [b"a", b"b"]
    kafka.acknowledge(0)
    delivery.pump()
    assert [sent.value for sent in delivery.bandwidth_exceeds.events] == [b"b"]


def test_what_an_earlier_run_left_is_sent_first(outbox, kafka_log, clock):
    put(outbox, "old", "older")
    kafka = Kafka(outbox)
    delivery = Delivery(kafka.client, "t", outbox, EventSystem(), kafka_log, clock, clock.sleep)
    assert delivery.waiting == 2
    delivery.pump(*raised("new"))
    assert kafka.sent == [b"old", b"older", b"new"]
    kafka.acknowledge()
    delivery.pump()
    assert (delivery.waiting, outbox.count()) == (0, 0)


def test_a_warning_is_sent_once_while_its_future_is_not_done(delivery, kafka, clock):
    delivery.pump(*raised("a"))
    for _ in range(100):
        clock.now += 1
        delivery.pump()
    assert kafka.sent == [b"a"]


def test_at_most_a_window_of_warnings_is_in_flight_and_the_rest_waits_on_disk(delivery, kafka, outbox):
    kafka.outbox = None
    delivery.pump(*raised(*map(str, range(WINDOW + 5))))
    assert len(kafka.sent) == WINDOW == 1000
    assert outbox.count() == WINDOW + 5
    delivery.pump()
    assert len(kafka.sent) == WINDOW
    kafka.acknowledge(0, 1, 2)
    delivery.pump()
    assert kafka.sent[WINDOW:] == [b"1000", b"1001", b"1002"]
    kafka.acknowledge()
    delivery.pump()
    kafka.acknowledge()
    delivery.pump()
    assert kafka.sent == [str(n).encode() for n in range(WINDOW + 5)]
    assert (delivery.waiting, delivery.acknowledged) == (0, WINDOW + 5)


def test_send_that_raises_for_want_of_metadata_loses_nothing(delivery, kafka, clock, outbox):
    kafka.raises = KafkaTimeoutError("Failed to update metadata after 0.0 secs.")
    kafka.client.partitions_for.side_effect = kafka.raises
    delivery.pump(*raised("a", "b"))
    assert (kafka.sent, values(outbox), delivery.bandwidth_exceeds.events) == ([], [b"a", b"b"], [])
    kafka.raises = kafka.client.partitions_for.side_effect = None
    delivery.pump()  # too soon
    assert kafka.sent == []
    clock.now += 0.25
    delivery.pump(*raised("c"))
    assert kafka.sent == [b"a", b"b", b"c"]


def test_send_that_raises_in_the_middle_goes_on_behind_what_was_sent(delivery, kafka, clock):
    delivery.pump(*raised("a"))
    kafka.raises = KafkaTimeoutError()
    delivery.pump(*raised("b"))
    kafka.raises = None
    clock.now += 1
    delivery.pump(*raised("c"))
    assert kafka.sent == [b"a", b"b", b"c"]


def test_a_refused_warning_stays_and_is_sent_again_from_the_oldest_on(delivery, kafka, clock, outbox):
    delivery.pump(*raised("a", "b", "c"))
    kafka.acknowledge(0)
    kafka.refuse(1)
    delivery.pump()
    assert values(outbox) == [b"b", b"c"]
    clock.now += 60
    delivery.pump()
    assert kafka.sent == [b"a", b"b", b"c"]  # c is on its way: nothing overtakes it
    kafka.refuse(2)
    delivery.pump()
    clock.now += 60
    delivery.pump(*raised("d"))
    assert kafka.sent == [b"a", b"b", b"c", b"b", b"c", b"d"]
    kafka.acknowledge()
    delivery.pump()
    assert (delivery.waiting, delivery.acknowledged, outbox.count()) == (0, 4, 0)


def test_the_pause_after_a_refusal_doubles_up_to_30_seconds_and_an_acknowledgement_resets_it(delivery, kafka, clock):
    def pause():
        kafka.refuse(-1)
        delivery.pump()
        refused_at, sent = clock.now, len(kafka.sent)
        while len(kafka.sent) == sent:
            clock.now += 0.5
            delivery.pump()
        return clock.now - refused_at

    delivery.pump(*raised("a"))
    assert [pause() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    kafka.acknowledge()
    delivery.pump(*raised("b"))
    assert pause() == 1


@pytest.fixture
def full_disk(outbox):
    """Let SQLite find the disk full, as it really does; called with False, there is room again."""

    def full(is_full):
        pages = outbox.connection.execute("pragma page_count").fetchone()[0]
        outbox.connection.execute(f"pragma max_page_count = {pages if is_full else 1 << 30}")

    return full


FAT = "x" * 8000


def test_a_full_disk_stops_no_warning_and_is_said_once(delivery, kafka, full_disk, caplog, outbox):
    full_disk(True)
    for n in range(5):
        delivery.pump(*raised(f"{n}{FAT}"))
    assert [value[:1] for value in kafka.sent] == [b"0", b"1", b"2", b"3", b"4"]
    (said_once,) = said(caplog)
    assert f"Outbox: {outbox.path} can't be written: database or disk is full" in said_once
    kafka.acknowledge()
    delivery.pump()
    assert (delivery.waiting, delivery.acknowledged, delivery.lost) == (0, 5, 0)


def test_a_disk_that_has_room_again_takes_what_waited_and_says_so_once(
    delivery, kafka, full_disk, caplog, outbox, clock
):
    full_disk(True)
    kafka.raises = KafkaTimeoutError()
    delivery.pump(*raised(f"0{FAT}", f"1{FAT}"))
    assert (outbox.count(), delivery.waiting) == (0, 2)
    full_disk(False)
    delivery.pump()
    delivery.pump()
    assert (outbox.count(), delivery.waiting) == (2, 2)
    assert said(caplog, "WARNING")[-1] == "Outbox: works again"
    assert len(said(caplog)) == 2
    kafka.raises = None
    clock.now += 1
    delivery.pump()
    assert [value[:1] for value in kafka.sent] == [b"0", b"1"]


def test_a_warning_that_only_memory_holds_is_sent_again_when_it_was_refused(delivery, kafka, full_disk, clock):
    full_disk(True)
    delivery.pump(*raised(f"0{FAT}"))
    kafka.refuse(0)
    delivery.pump()
    clock.now += 2
    delivery.pump()
    assert [value[:1] for value in kafka.sent] == [b"0", b"0"]
    kafka.acknowledge()
    delivery.pump()
    assert (delivery.waiting, delivery.acknowledged) == (0, 1)


def test_what_neither_disk_nor_kafka_takes_is_kept_up_to_a_window_then_counted_as_lost(
    delivery, kafka, full_disk, caplog
):
    full_disk(True)
    kafka.raises = KafkaTimeoutError()
    delivery.pump(*raised(*(f"{n:04}{FAT}" for n in range(WINDOW + 3))))
    assert (delivery.lost, delivery.waiting, len(delivery.unsaved)) == (3, WINDOW, WINDOW)
    assert delivery.unsaved[0][1].startswith(b"0003")  # the oldest are lost
    assert "3 warnings lost: neither the disk nor Kafka takes them" in said(caplog, "ERROR")[0]


def test_an_acknowledged_warning_is_counted_once_though_the_disk_kept_it(delivery, kafka, outbox, clock):
    delivery.pump(*raised("a", "b"))
    outbox.connection.execute("pragma query_only = on")  # remounted read-only
    kafka.acknowledge(0)
    kafka.refuse(1)
    delivery.pump()
    clock.now += 60
    delivery.pump()
    kafka.acknowledge()
    delivery.pump()
    assert (delivery.waiting, delivery.acknowledged) == (0, 2)


def damage(outbox):
    """Overwrite the file under an open outbox, and make SQLite look at it again."""
    outbox.connection.execute("pragma wal_checkpoint(truncate)")
    size = outbox.path.stat().st_size
    with outbox.path.open("r+b") as file:
        file.write(b"\xff" * size)
    outbox.connection.execute("pragma shrink_memory")


def test_an_outbox_that_is_damaged_while_running_is_set_aside_and_the_work_goes_on(delivery, kafka, outbox, tmp_path):
    kafka.outbox = None
    delivery.pump(*raised("a"))
    damage(outbox)
    delivery.pump(*raised("b"))
    delivery.pump(*raised("c"))
    assert len([*tmp_path.glob("*.damaged-*")]) == 1
    assert kafka.sent == [b"a", b"b", b"c"]
    kafka.acknowledge()
    delivery.pump()
    assert (delivery.waiting, delivery.acknowledged, delivery.lost) == (0, 3, 0)
    assert delivery.outbox.count() == 0
    delivery.outbox.connection.close()


def test_an_outage_is_said_once_with_its_cause_and_its_end_once(delivery, kafka, kafka_log, caplog, clock):
    kafka.raises = KafkaTimeoutError()
    kafka.client.partitions_for.side_effect = kafka.raises
    for _ in range(30):
        kafka_log.emit(logging.makeLogRecord({"msg": "connect failed: ECONNREFUSED"}))
        delivery.pump(*raised("a"))
        clock.now += 1
    assert said(caplog) == [
        "Kafka: connection refused: nothing listens at KAFKA_BOOTSTRAP_SERVERS; trying again",
    ]
    kafka.raises = kafka.client.partitions_for.side_effect = None
    for _ in range(3):
        delivery.pump()
        kafka.acknowledge()
        clock.now += 1
    assert said(caplog)[1:] == ["Kafka: works again"]


def test_a_future_that_never_completes_is_said_when_no_cause_is_known(delivery, kafka, caplog, clock):
    delivery.pump()
    delivery.pump(*raised("a"))
    clock.now += 9
    delivery.pump()
    assert said(caplog) == []
    clock.now += 2
    delivery.pump()
    delivery.pump()
    assert said(caplog) == ["Kafka: no answer; trying again"]


def test_nothing_is_said_of_kafka_while_nothing_waits(delivery, kafka, caplog, clock):
    for _ in range(60):
        delivery.pump()
        clock.now += 1
    assert said(caplog) == []


def test_a_refusal_is_said_once_in_plain_words(delivery, kafka, caplog, clock):
    delivery.pump(*raised("a"))
    for _ in range(3):
        kafka.refuse(-1)
        delivery.pump()
        clock.now += 60
        delivery.pump()
    (message,) = said(caplog)
    assert message.startswith("Kafka: no right to the topic: this user needs DESCRIBE and WRITE")


def test_finish_flushes_without_blocking_and_ends_when_all_is_acknowledged(delivery, kafka, clock):
    delivery.pump(*raised("a"))
    kafka.client.flush.side_effect = lambda timeout: kafka.acknowledge()
    delivery.finish(10)
    kafka.client.flush.assert_called_once_with(timeout=0)
    assert (delivery.waiting, clock.now) == (0, 1000.0)


def test_finish_looks_at_every_future_though_flush_came_back(delivery, kafka, outbox):
    delivery.pump(*raised("a", "b"))
    kafka.acknowledge(0)
    kafka.refuse(1)
    delivery.finish(10)  # flush() raised nothing
    assert (delivery.waiting, delivery.acknowledged, values(outbox)) == (1, 1, [b"b"])


def test_finish_waits_no_longer_than_it_may_for_a_future_that_never_completes(delivery, kafka, clock, outbox):
    kafka.client.flush.side_effect = KafkaTimeoutError("Timeout waiting for future")
    delivery.pump(*raised("a"))
    delivery.finish(3.0)
    assert clock.now == pytest.approx(1003.0)
    assert (delivery.waiting, values(outbox)) == (1, [b"a"])


# The loop


@pytest.fixture
def settings():
    return Namespace(limit=1000.0, interval=1.0, flush_interval=120.0, host="web-1", heartbeat=None)


def seconds_of(clock, rates):
    """A sample each second, with these bytes sent a second."""
    for rate in rates:
        clock.now += 1
        yield Sample(OBSERVED_AT, ["eth0"], rate / 2, rate / 2)


def run_interval(delivery, measured, settings, stop, clock):
    bandwidth_exceed_event_system(delivery, measured, settings, stop, clock=clock)


def test_a_second_above_the_limit_is_a_warning_and_one_at_the_limit_is_none(delivery, kafka, settings, stop, clock):
    run_interval(delivery, seconds_of(clock, [999, 1000, 1000.2, 5000, 0]), settings, stop, clock)
    sent = [json.loads(value) for value in kafka.sent]
    assert [event["bytes_per_second"] for event in sent] == [1000.2, 5000.0]
    assert len({event["event_id"] for event in sent}) == 2
    assert {event["host"] for event in sent} == {"web-1"}
    assert [call.kwargs["key"] for call in kafka.client.send.call_args_list] == [b"web-1", b"web-1"]


def test_a_warning_is_registered_sent_and_flushed_only_at_the_end(delivery, kafka, settings, stop, clock):
    events = delivery.bandwidth_exceeds.events

    def measured():
        for _ in range(3):
            clock.now += 1
            yield Sample(OBSERVED_AT, ["eth0"], 5000, 0)
            registered.append(len(events))
            kafka.client.flush.assert_not_called()

    registered = []
    kafka.client.flush.side_effect = lambda timeout: kafka.acknowledge()
    run_interval(delivery, measured(), settings, stop, clock)
    assert registered == [1, 2, 3]
    assert events == []
    kafka.client.flush.assert_called_once_with(timeout=0)


@pytest.mark.parametrize(("flush_interval", "samples_taken"), [(120.0, 120), (5.0, 5), (1.0, 1), (0.5, 1)])
def test_the_loop_flushes_and_breaks_out_after_the_flush_interval(
    delivery, kafka, settings, stop, clock, flush_interval, samples_taken
):
    settings.flush_interval = flush_interval
    kafka.client.flush.side_effect = lambda timeout: kafka.acknowledge()
    run_interval(delivery, seconds_of(clock, repeat(5000)), settings, stop, clock)
    assert len(kafka.sent) == samples_taken
    kafka.client.flush.assert_called_once()


def test_the_next_interval_begins_with_the_next_second(delivery, kafka, settings, stop, clock):
    settings.flush_interval = 3.0
    kafka.client.flush.side_effect = lambda timeout: kafka.acknowledge()
    measured = seconds_of(clock, range(2000, 3000))
    for _ in range(4):
        run_interval(delivery, measured, settings, stop, clock)
    assert [json.loads(value)["bytes_per_second"] for value in kafka.sent] == [*range(2000, 2012)]
    assert kafka.client.flush.call_count == 4


def test_the_end_of_an_interval_says_what_became_of_its_warnings(delivery, kafka, settings, stop, clock, caplog):
    caplog.set_level(logging.INFO)
    delivery.pump(*raised("of an earlier interval"))
    kafka.client.flush.side_effect = lambda timeout: (kafka.acknowledge(0, 1), kafka.refuse(2))
    run_interval(delivery, seconds_of(clock, [5000, 0, 5000]), settings, stop, clock)
    assert caplog.messages[-1] == "interval over: 3 samples, 2 warnings raised, 2 acknowledged, 1 left"


def test_the_sampling_goes_on_each_second_while_kafka_is_away(delivery, kafka, settings, stop, clock, outbox):
    kafka.raises = KafkaTimeoutError()
    kafka.client.partitions_for.side_effect = kafka.raises
    run_interval(delivery, seconds_of(clock, repeat(5000, 120)), settings, stop, clock)
    assert len(kafka.client.flush.call_args_list) == 1
    assert (outbox.count(), delivery.waiting) == (120, 120)


def test_after_a_signal_the_last_acknowledgements_get_three_seconds(delivery, kafka, settings, stop, clock):
    def measured():
        yield Sample(OBSERVED_AT, ["eth0"], 5000, 0)
        stop.set()

    run_interval(delivery, measured(), settings, stop, clock)
    assert clock.now == pytest.approx(1003.0)
    assert delivery.waiting == 1


def test_a_heartbeat_goes_out_as_often_as_it_is_asked_for_beside_the_warnings(delivery, kafka, settings, stop, clock):
    settings.heartbeat = 10.0
    kafka.client.flush.side_effect = lambda timeout: kafka.acknowledge()

    def measured():
        for sample in seconds_of(clock, repeat(0, 35)):
            kafka.acknowledge()
            yield sample

    run_interval(delivery, measured(), settings, stop, clock)
    beat = json.dumps({"host": "web-1", "heartbeat_at": "2026-11-23T16:22:04.796005+00:00"}).encode()
    assert kafka.sent == [beat] * 4
    assert (delivery.waiting, delivery.acknowledged) == (0, 0)
    assert kconsumer.heartbeat(beat) == ("web-1", datetime.fromisoformat("2026-11-23T16:22:04.796005+00:00"))


def test_a_heartbeat_is_left_out_while_the_last_one_is_on_its_way_or_kafka_is_away(delivery, kafka):
    kafka.outbox = None
    kafka.raises = KafkaTimeoutError()
    delivery.beat(b"web-1", b"1", 10)
    kafka.raises = None
    delivery.beat(b"web-1", b"2", 10)
    delivery.beat(b"web-1", b"3", 10)
    kafka.acknowledge()
    delivery.beat(b"web-1", b"4", 10)
    assert kafka.sent == [b"2", b"4"]


# What kafka-python says


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] Hostname mismatch, certificate is not valid", "for another host name"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired", "has expired"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self signed", "not signed by the CA in KAFKA_SSL_CAFILE"),
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]", "wants a client certificate"),
        ("SaslAuthenticationFailedError: no", "KAFKA_SASL_PLAIN_USERNAME with its password"),
        ("Topic warnings not found in cluster metadata", "the topic warnings is missing"),
        ("DNS lookup failed for nohost:9092, exception", "there is no host nohost"),
        ("what nobody thought of", "what nobody thought of"),
    ],
)
def test_an_error_of_kafka_python_is_put_in_plain_words(text, meaning):
    assert meaning in plain(text)


def test_the_most_telling_cause_is_kept_for_a_while_and_then_gives_way(kafka_log, clock):
    for text in ("CERTIFICATE_VERIFY_FAILED", "Connection lost", "nothing that is known"):
        kafka_log.emit(logging.makeLogRecord({"msg": text}))
    assert "not signed by the CA" in kafka_log.cause
    assert kafka_log.at == 1000
    clock.now += kproducer.CAUSE_SECONDS + 1
    kafka_log.emit(logging.makeLogRecord({"msg": "Connection lost"}))
    assert "closes the connection" in kafka_log.cause
    assert kafka_log.at == clock.now
    kafka_log.forget()
    kafka_log.emit(logging.makeLogRecord({"msg": "Connection lost"}))
    assert "closes the connection" in kafka_log.cause


def test_an_outage_says_each_cause_once_and_its_end_once(caplog):
    outage = Outage("Kafka", logging.getLogger("kproducer"))
    outage.end()
    for cause in ("refused", "refused", "silent", "refused"):
        outage.begin(cause)
    outage.end()
    outage.end()
    outage.begin("refused")
    assert caplog.messages == [
        "Kafka: refused; trying again",
        "Kafka: silent; trying again",
        "Kafka: works again",
        "Kafka: refused; trying again",
    ]


# Stop


def test_stop_wakes_who_waits_and_stays_set():
    stop = Stop()
    assert not stop.wait(0)
    stop.set()
    assert stop.wait(1000)
    assert stop.wait(1000)
    assert stop.is_set()


def test_the_first_signal_stops_and_the_second_one_kills(clean_process):
    stop = Stop()
    stop.on_signals()
    signal.raise_signal(signal.SIGTERM)
    assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL


# The terminal


class Tty(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def tty(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr", Tty())
    return kproducer.Terminal()


def test_a_line_of_the_log_goes_above_the_line_that_is_kept_up_to_date(tty):
    tty.show("1 of 2")
    tty.emit(logging.makeLogRecord({"msg": "logged"}))
    assert tty.stream.getvalue() == "\r\x1b[K1 of 2\r\x1b[Klogged\n1 of 2"


def test_the_line_is_no_longer_than_the_terminal_is_wide_and_red_when_it_alerts(tty, monkeypatch):
    tty.show("x" * 100, alert=True)
    assert tty.stream.getvalue() == f"\r\x1b[K\x1b[31m{'x' * 79}\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    tty.show("calm", alert=True)
    assert tty.stream.getvalue().endswith("\r\x1b[Kcalm")


def test_where_there_is_no_terminal_only_the_log_is_written(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    terminal = kproducer.Terminal()
    terminal.show("1 of 2", alert=True)
    terminal.emit(logging.makeLogRecord({"msg": "logged"}))
    assert terminal.stream.getvalue() == "logged\n"


# Settings of Kafka

KAFKA = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
SASL = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
    "KAFKA_SASL_PLAIN_USERNAME": "avnadmin",
    "KAFKA_SASL_PLAIN_PASSWORD": "s3cret",
}


def producer_options(**environ):
    return kafka_options(KafkaProducer, {**KAFKA, **environ}, PRODUCER_OPTIONS, PRODUCER_PROMISE)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("KAFKA_LINGER_MS", "20", 20),
        ("KAFKA_CLIENT_ID", "7", "7"),
        ("KAFKA_API_VERSION", "2.8", (2, 8)),
        ("KAFKA_ALLOW_AUTO_CREATE_TOPICS", "false", False),
        ("KAFKA_ALLOW_AUTO_CREATE_TOPICS", "True", True),
        ("KAFKA_SEND_BUFFER_BYTES", "65536", 65536),
        ("KAFKA_COMPRESSION_TYPE", "gzip", "gzip"),
        ("KAFKA_REQUEST_TIMEOUT_MS", "4000", 4000),
        ("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT", "PLAINTEXT"),
        ("KAFKA_BOOTSTRAP_SERVERS", "a.example:9092, [::1]:9093", "a.example:9092, [::1]:9093"),
    ],
)
def test_a_setting_has_the_type_of_kafka_pythons_option(name, text, value):
    option = producer_options(**{name: text})[name.removeprefix("KAFKA_").lower()]
    assert option == value
    assert type(option) is type(value)


def test_without_a_word_tls_is_used_and_the_promise_is_kept():
    options = producer_options()
    assert options["security_protocol"] == "SSL"
    assert options.items() >= PRODUCER_PROMISE.items()
    assert (options["acks"], options["delivery_timeout_ms"], options["max_block_ms"]) == ("all", math.inf, 0)


@pytest.mark.parametrize("option", PRODUCER_PROMISE)
def test_what_the_promise_rests_on_cannot_be_set(option):
    with pytest.raises(ValueError, match=f"KAFKA_{option.upper()} can't be set"):
        producer_options(**{f"KAFKA_{option.upper()}": "1"})


def test_settings_that_only_the_other_script_knows_are_accepted_and_left_out():
    environ = {"KAFKA_MAX_POLL_RECORDS": "10", "KAFKA_LINGER_MS": "5", **KAFKA}
    producers = kafka_options(KafkaProducer, environ, PRODUCER_OPTIONS, PRODUCER_PROMISE)
    consumers = kafka_options(KafkaConsumer, environ, kconsumer.CONSUMER_OPTIONS, kconsumer.CONSUMER_PROMISE)
    assert ("max_poll_records" in producers, producers["linger_ms"]) == (False, 5)
    assert ("linger_ms" in consumers, consumers["max_poll_records"]) == (False, 10)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"KAFKA_BOOTSTRAP_SERVERS": ""}, "KAFKA_BOOTSTRAP_SERVERS is not set"),
        (
            {"KAFKA_BOOTSTRAP_SERVERS": "broker"},
            "KAFKA_BOOTSTRAP_SERVERS must be the brokers' addresses, as host:port,host:port",
        ),
        (
            {"KAFKA_BOOTSTRAP_SERVERS": "a:1,b"},
            "KAFKA_BOOTSTRAP_SERVERS must be the brokers' addresses, as host:port,host:port",
        ),
        (
            {"KAFKA_BOOTSTRAP_SERVERS": "a:1,"},
            "KAFKA_BOOTSTRAP_SERVERS must be the brokers' addresses, as host:port,host:port",
        ),
        ({"KAFKA_BOOTSTRAP_SERVERS": "kafka://a:9092"}, "KAFKA_BOOTSTRAP_SERVERS must be"),
        ({"KAFKA_BOOTSTRAP_SERVER": "a:1"}, "KAFKA_BOOTSTRAP_SERVER is no setting of kafka-python"),
        ({"KAFKA_SSL_CONTEXT": "x"}, "KAFKA_SSL_CONTEXT is no setting"),
        ({"KAFKA_VALUE_SERIALIZER": "x"}, "KAFKA_VALUE_SERIALIZER is no setting"),
        ({"KAFKA_SELECTOR": "x"}, "KAFKA_SELECTOR is no setting"),
        ({"KAFKA_METRIC_REPORTERS": "x"}, "KAFKA_METRIC_REPORTERS is no setting"),
        ({"KAFKA_": "x"}, "KAFKA_ is no setting"),
        ({"KAFKA_LINGER_MS": "5ms"}, "KAFKA_LINGER_MS must be a whole number"),
        ({"KAFKA_LINGER_MS": "1.5"}, "KAFKA_LINGER_MS must be a whole number"),
        ({"KAFKA_RECEIVE_BUFFER_BYTES": "many"}, "KAFKA_RECEIVE_BUFFER_BYTES must be a whole number"),
        ({"KAFKA_ALLOW_AUTO_CREATE_TOPICS": "0"}, "KAFKA_ALLOW_AUTO_CREATE_TOPICS must be true or false"),
        ({"KAFKA_API_VERSION": "new"}, "KAFKA_API_VERSION must be a version such as 3.9"),
        ({"KAFKA_SECURITY_PROTOCOL": "ssl"}, "KAFKA_SECURITY_PROTOCOL must be one of SSL, SASL_SSL"),
        ({"KAFKA_SECURITY_PROTOCOL": "SLL"}, "KAFKA_SECURITY_PROTOCOL must be one of"),
        ({"KAFKA_SECURITY_PROTOCOL": ""}, "KAFKA_SECURITY_PROTOCOL must be one of"),
        ({**SASL, "KAFKA_SASL_MECHANISM": "scram"}, "KAFKA_SASL_MECHANISM must be one of SCRAM-SHA-256"),
        ({**SASL, "KAFKA_SASL_PLAIN_USERNAME": ""}, "KAFKA_SASL_PLAIN_USERNAME is not set: SASL_SSL needs it"),
        ({**SASL, "KAFKA_SASL_PLAIN_PASSWORD": ""}, "KAFKA_SASL_PLAIN_PASSWORD is not set: SASL_SSL needs it"),
    ],
)
def test_a_wrong_setting_is_named(environ, message):
    with pytest.raises(ValueError, match=message) as caught:
        producer_options(**environ)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_an_address_that_holds_a_password_is_refused_without_printing_it():
    with pytest.raises(ValueError, match="KAFKA_BOOTSTRAP_SERVERS") as caught:
        producer_options(KAFKA_BOOTSTRAP_SERVERS="kafka://avnadmin:s3cret@a.example:9092")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("client", "options", "promise"),
    [
        (KafkaProducer, PRODUCER_OPTIONS, PRODUCER_PROMISE),
        (KafkaConsumer, kconsumer.CONSUMER_OPTIONS, kconsumer.CONSUMER_PROMISE),
    ],
)
def test_kafka_python_knows_every_option_that_it_is_given(client, options, promise):
    chosen = kafka_options(client, KAFKA, options, promise)
    Certificates(chosen)
    assert chosen.keys() | {"ssl_context"} <= client.DEFAULT_CONFIG.keys()


# TLS


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """Paths of a CA's certificate, two clients' certificates and keys, an encrypted key, and a text that is no PEM."""
    from cryptography.hazmat.primitives import serialization as pem

    folder = tmp_path_factory.mktemp("pem")
    ca = trustme.CA()
    files = Namespace(ca=str(folder / "ca.pem"), text=str(folder / "text.pem"), folder=str(folder))
    ca.cert_pem.write_to_path(files.ca)
    (folder / "text.pem").write_text("no certificate")
    for name in ("one", "other"):
        issued = ca.issue_cert(f"{name}.example")
        setattr(files, name, str(folder / f"{name}.cert"))
        setattr(files, f"{name}_key", str(folder / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.cert")
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    key = pem.load_pem_private_key((folder / "one.key").read_bytes(), None)
    files.locked_key = str(folder / "locked.key")
    (folder / "locked.key").write_bytes(
        key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"s3cret"))
    )
    return files


def tls_context(options):
    return Certificates(options).context


def tls(protocol="SSL", **options):
    return {"security_protocol": protocol, **{f"ssl_{name}": value for name, value in options.items()}}


def test_tls_checks_the_broker_and_its_handshake_has_a_deadline(pem):
    options = tls(cafile=pem.ca, certfile=pem.one, keyfile=pem.one_key) | {"client_id": "x"}
    context = tls_context(options)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.sslsocket_class is PatientSocket
    assert options == {"security_protocol": "SSL", "client_id": "x"}  # kafka-python gets the context instead


@pytest.mark.parametrize(
    ("protocol", "has_context"), [("SSL", True), ("SASL_SSL", True), ("PLAINTEXT", False), ("SASL_PLAINTEXT", False)]
)
def test_only_a_protocol_with_tls_gets_a_context(pem, protocol, has_context):
    assert (tls_context(tls(protocol, cafile=pem.ca)) is not None) == has_context


def test_the_check_of_the_host_name_ends_only_when_it_is_said(pem):
    context = tls_context(tls(cafile=pem.ca, check_hostname=False))
    assert not context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_a_key_with_a_password_is_opened_with_it(pem):
    assert tls_context(tls(cafile=pem.ca, certfile=pem.one, keyfile=pem.locked_key, password="s3cret"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cafile": "/nowhere/ca.pem"}, "KAFKA_SSL_CAFILE: can't read /nowhere/ca.pem: No such file or directory"),
        ({"certfile": "/nowhere/c"}, "KAFKA_SSL_CERTFILE: can't read /nowhere/c"),
        ({"keyfile": "/nowhere/k"}, "KAFKA_SSL_KEYFILE: can't read /nowhere/k"),
        ({"crlfile": "/nowhere/crl"}, "KAFKA_SSL_CRLFILE: can't read /nowhere/crl"),
        ({"cafile": "folder"}, "KAFKA_SSL_CAFILE: can't read .*: Is a directory"),
        ({"cafile": "text"}, "KAFKA_SSL_CAFILE holds no certificate in PEM format"),
        ({"crlfile": "text"}, "KAFKA_SSL_CRLFILE holds no revocation list in PEM format"),
        ({"ciphers": "ROT13"}, "KAFKA_SSL_CIPHERS names no cipher that OpenSSL has"),
        ({"keyfile": "other_key"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": "text"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": "ca"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"certfile": "text"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": "locked_key"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": "locked_key", "password": "wr0ng"}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"keyfile": None}, "KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE .* don't fit"),
        ({"certfile": None}, "KAFKA_SSL_CERTFILE is not set, but KAFKA_SSL_KEYFILE is"),
    ],
)
def test_a_file_that_does_not_do_is_named(pem, wrong, message):
    right = {"cafile": pem.ca, "certfile": pem.one, "keyfile": pem.one_key}
    files = {name: getattr(pem, value or "", value) for name, value in wrong.items()}
    with pytest.raises(ValueError, match=message) as caught:
        tls_context(tls(**(right | files)))
    assert "\n" not in str(caught.value)
    assert "wr0ng" not in str(caught.value)


def test_a_connection_that_is_reset_before_its_tls_is_an_error_that_kafka_python_expects(pem):
    context = tls_context(tls(cafile=pem.ca, certfile=pem.one, keyfile=pem.one_key))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # a reset, which on loopback is there at once
        with pytest.raises(KafkaError):
            context.wrap_socket(client, server_hostname="127.0.0.1", do_handshake_on_connect=False)


def test_a_handshake_with_a_peer_that_stays_silent_ends(pem, monkeypatch):
    monkeypatch.setattr(kproducer, "HANDSHAKE_SECONDS", 0.01)
    ours, silent = socket.socketpair()
    with silent, ours:
        context = tls_context(tls(cafile=pem.ca))
        began = time.monotonic()
        with (
            context.wrap_socket(ours, server_hostname="a.example", do_handshake_on_connect=False) as wrapped,
            pytest.raises(TimeoutError),
        ):
            wrapped.do_handshake()
        assert time.monotonic() - began < 4


def test_after_the_handshake_the_socket_blocks_nobody(pem):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem.one, pem.one_key)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        accepted = threading.Thread(target=lambda: server.wrap_socket(theirs, server_side=True).close())
        accepted.start()
        context = tls_context(tls(cafile=pem.ca))
        with context.wrap_socket(ours, server_hostname="one.example", do_handshake_on_connect=False) as wrapped:
            wrapped.do_handshake()
            assert wrapped.version()
            assert wrapped.gettimeout() == 0.0
        accepted.join()


def certificate_shown(context, pem):
    """The serial number of the client certificate that a broker sees; the bytes go through memory."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem.one, pem.one_key)
    server.load_verify_locations(pem.ca)
    server.verify_mode = ssl.CERT_REQUIRED
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        context.wrap_bio(to_client, to_server, server_hostname="one.example"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(3):
        for end in ends:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends[1].getpeercert()["serialNumber"]


def test_certificates_that_were_renewed_on_disk_are_used_and_half_written_ones_are_not(pem, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cert, key = tmp_path / "cert", tmp_path / "key"
    shutil.copy(pem.one, cert)
    shutil.copy(pem.one_key, key)
    certificates = Certificates(tls(cafile=pem.ca, certfile=str(cert), keyfile=str(key)))
    certificates.renew()
    assert caplog.messages == []
    old = certificate_shown(certificates.context, pem)
    shutil.copy(pem.other, cert)
    os.utime(cert, ns=(1, 1))
    certificates.renew()
    assert certificate_shown(certificates.context, pem) == old
    (message,) = caplog.messages
    assert "can't be used, the old ones are: KAFKA_SSL_CERTFILE and KAFKA_SSL_KEYFILE" in message
    shutil.copy(pem.other_key, key)
    os.utime(key, ns=(2, 2))
    certificates.renew()
    certificates.renew()
    assert certificate_shown(certificates.context, pem) != old
    assert caplog.messages[1:] == ["the certificates on disk were renewed: new connections use them"]


def test_a_certificate_that_ends_soon_is_said_once_a_day(pem, tmp_path, caplog):
    now = datetime.now(UTC)
    issued = trustme.CA().issue_cert("a.example", not_after=now + timedelta(days=7, hours=1))
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    files = {"cafile": pem.ca, "certfile": str(tmp_path / "cert"), "keyfile": str(tmp_path / "key")}
    certificates = Certificates(tls(**files))
    assert next(certificates.days_left(now)) == ("KAFKA_SSL_CERTFILE", 1, 7)
    certificates.renew()
    certificates.renew()
    assert caplog.messages == ["KAFKA_SSL_CERTFILE ends in 7 days: get a new one"]


def test_the_end_of_each_certificate_in_a_file_is_found(tmp_path):
    ends = [datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)]
    text = ""
    for end in ends:
        chain = trustme.CA().issue_cert("a.example", not_after=end).cert_chain_pems
        text += "a comment\n" + chain[0].bytes().decode()
    assert kproducer.certificate_ends(text) == ends
    assert kproducer.certificate_ends("no certificate") == []


# The command line


def run_main(argv, capsys, status=2):
    """The one line on standard error of a run that ends at once."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (status, "")
    assert err.startswith("kproducer: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--limit", "fast"], "argument --limit: 'fast' is no rate"),
        (["--limit=-1"], "argument --limit: '-1' is no rate"),
        (["--interval", "0"], "argument --interval: '0' is no number of seconds above 0"),
        (["--interval", "nan"], "argument --interval"),
        (["--flush-interval", "inf"], "argument --flush-interval"),
        (["--flush-interval=-5"], "argument --flush-interval"),
        (["--flush-interval", "soon"], "argument --flush-interval"),
        (["--interface", "nosuch0"], "there is no interface 'nosuch0': this host has "),
        (["--topic", "a b"], "argument --topic: 'a b' is no topic's name"),
        (["--topic", ".."], "argument --topic"),
        (["--topic", ""], "argument --topic"),
        (["--topic", "x" * 250], "argument --topic"),
        (["--host", ""], "argument --host"),
        (["--host", "x" * 256], "argument --host"),
        (["--host", "a\nb"], "argument --host"),
        (["--host", "\udcff"], "argument --host"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["nonsense"], "unrecognized arguments: nonsense"),
    ],
)
def test_a_wrong_argument_ends_with_status_2_and_one_line(clean_process, capsys, argv, message):
    assert message in run_main(argv, capsys)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "KAFKA_BOOTSTRAP_SERVERS is not set: give the brokers' addresses as host:port,host:port"),
        ({**KAFKA, "KAFKA_ACKS": "1"}, "KAFKA_ACKS can't be set"),
        ({**KAFKA, "KAFKA_SSL_CAFILE": "/nowhere/ca.pem"}, "KAFKA_SSL_CAFILE: can't read /nowhere/ca.pem"),
        ({**KAFKA, **SASL, "KAFKA_SASL_MECHANISM": "NONE"}, "KAFKA_SASL_MECHANISM must be one of"),
        ({**KAFKA, **SASL, "KAFKA_LINGER_MS": "s3cret"}, "KAFKA_LINGER_MS must be a whole number"),
    ],
)
def test_a_wrong_environment_ends_with_status_2_and_one_line(clean_process, capsys, tmp_path, environ, message):
    for name, text in environ.items():
        clean_process.setenv(name, text)
    line = run_main(["--outbox", str(tmp_path / "outbox.sqlite")], capsys)
    assert message in line
    assert "s3cret" not in line


def test_an_outbox_that_cannot_be_ends_with_status_2_and_one_line(clean_process, capsys, tmp_path):
    clean_process.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert "give another --outbox" in run_main(["--outbox", str(tmp_path)], capsys)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Not supported codec: bogus"),
        RuntimeError("Libraries for snappy compression codec not found"),
        UnrecognizedBrokerVersion((0, 1)),
        KafkaConfigurationError("connections_max_idle_ms must be larger"),
    ],
)  # what kafka-python raises for KAFKA_COMPRESSION_TYPE, KAFKA_API_VERSION and others
def test_a_setting_that_kafka_python_itself_refuses_ends_with_status_2_and_one_line(
    clean_process, capsys, tmp_path, error
):
    class Refusing(KafkaProducer):
        _closed = True

        def __init__(self, **options):
            raise error

    clean_process.setattr(kproducer, "KafkaProducer", Refusing)
    clean_process.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert str(error) in run_main(["--outbox", str(tmp_path / "outbox.sqlite")], capsys)


def test_help_names_every_setting_and_exit_status(clean_process, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    text = " ".join(text.split())
    for word in ("--limit", "--interval", "--flush-interval", "--interface", "--topic", "--host", "--outbox",
                 "--forever", "--check", "--version", "KAFKA_BOOTSTRAP_SERVERS", "Exit status"):  # fmt: skip
        assert word in text


def test_version_is_the_packages_own(clean_process, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"kproducer {kproducer.__version__}\n")
    root = os.path.dirname(os.path.abspath(kproducer.__file__))
    with open(os.path.join(root, "__init__.py")) as file:
        assert f'__version__ = "{kproducer.__version__}"' in file.read()


def test_without_arguments_the_settings_are_the_documented_ones():
    settings = kproducer.build_parser("kproducer").parse_args([])
    assert (settings.limit, settings.interval, settings.flush_interval) == (1e6, 1.0, 120.0)
    assert (settings.topic, settings.interface, settings.forever) == ("bandwidth_exceeds", [], False)
    assert settings.host == socket.gethostname()
