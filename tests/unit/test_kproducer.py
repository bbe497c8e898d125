import json
import logging
import os
import socket
from argparse import Namespace
from datetime import UTC, datetime
from itertools import repeat
from uuid import UUID

import pytest
from fakes import raised
from kafka import KafkaProducer
from kafka.errors import (
    KafkaConfigurationError,
    KafkaTimeoutError,
    UnrecognizedBrokerVersion,
)

import kproducer
from eventkafkapostgres import console, message
from eventkafkapostgres.bandwidth import Sample
from eventkafkapostgres.outages import explain_kafka_error
from kproducer import bandwidth_exceed_event_system, main

OBSERVED_AT = datetime(2026, 11, 23, 16, 22, 4, 796005, tzinfo=UTC)


EVENT_ID = UUID("01a20b20-7007-7b5a-b044-fec6a3afb754")


KAFKA = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
SASL = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
    "KAFKA_SASL_PLAIN_USERNAME": "avnadmin",
    "KAFKA_SASL_PLAIN_PASSWORD": "s3cret",
}


# The loop


@pytest.fixture
def settings():
    return Namespace(limit=1000.0, interval=1.0, flush_interval=120.0, host="web-1", heartbeat=None)


def seconds_of(clock, rates):
    """A sample each second, with these bytes sent a second."""
    for rate in rates:
        clock.now += 1
        yield Sample(OBSERVED_AT, 1.0, ["eth0"], rate / 2, rate / 2)


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
            yield Sample(OBSERVED_AT, 1.0, ["eth0"], 5000, 0)
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
        yield Sample(OBSERVED_AT, 1.0, ["eth0"], 5000, 0)
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
    assert message.read_heartbeat(beat) == ("web-1", datetime.fromisoformat("2026-11-23T16:22:04.796005+00:00"))


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
        (["--interface", "no such"], "is no interface's name"),
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
    assert explain_kafka_error(str(error)) in run_main(["--outbox", str(tmp_path / "outbox.sqlite")], capsys)


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
    assert (ended.value.code, capsys.readouterr().out) == (0, f"kproducer {console.__version__}\n")
    root = os.path.dirname(os.path.abspath(kproducer.__file__))
    with open(os.path.join(root, "__init__.py")) as file:
        assert f'__version__ = "{console.__version__}"' in file.read()


def test_without_arguments_the_settings_are_the_documented_ones():
    settings = kproducer.build_parser("kproducer").parse_args([])
    assert (settings.limit, settings.interval, settings.flush_interval) == (1e6, 1.0, 120.0)
    assert (settings.topic, settings.interface, settings.forever) == ("bandwidth_exceeds", [], False)
    assert settings.host == socket.gethostname()
