import json
import logging
import os
import socket
from argparse import Namespace
from datetime import UTC, datetime, timedelta
from itertools import repeat
from uuid import UUID

import pytest
from environments import KAFKA, SASL
from fakes import exchange, raise_warnings
from kafka import KafkaProducer
from kafka.errors import (
    KafkaConfigurationError,
    UnrecognizedBrokerVersion,
)

import kproducer
from eventkafkapostgres import __version__, message
from eventkafkapostgres.bandwidth import Sample
from eventkafkapostgres.outages import explain_kafka_error
from eventkafkapostgres.workarounds import ProducerClient
from kproducer import bandwidth_exceed_event_system, end, main

OBSERVED_AT = datetime(2026, 11, 23, 16, 22, 4, 796005, tzinfo=UTC)


EVENT_ID = UUID("01a20b20-7007-7b5a-b044-fec6a3afb754")


# The loop


@pytest.fixture
def settings():
    return Namespace(
        limit=1000.0, interval=1.0, flush_interval=120.0, host="web-1", heartbeat=None, forever=False, interface=[]
    )


@pytest.fixture
def run_interval(delivery, outbox, settings, stop, clock):
    """One interval, in which these samples come, and no more of anything behind the last."""

    def run(samples):
        return bandwidth_exceed_event_system(
            samples, delivery.bandwidth_exceeds, outbox, delivery, settings, stop, clock=clock
        )

    return run


@pytest.fixture
def seconds_of(clock):
    """A sample each second, with these bytes sent and received."""

    def samples(rates):
        for rate in rates:
            clock.now += 1
            yield sample(rate)

    return samples


def sample(rate, observed_at=OBSERVED_AT):
    return Sample(observed_at, 1.0, ["eth0"], rate / 2, rate / 2)


def test_a_second_above_the_limit_is_a_warning_and_one_at_the_limit_is_none(run_interval, kafka, seconds_of):
    run_interval(seconds_of([999, 1000, 1000.2, 5000, 0]))
    sent = [json.loads(value) for value in kafka.sent]
    assert [event["bytes_per_second"] for event in sent] == [1000.2, 5000.0]
    assert len({event["event_id"] for event in sent}) == 2
    assert {event["host"] for event in sent} == {"web-1"}


def test_a_warning_is_registered_and_sent_at_once_and_flushed_only_at_the_end(
    run_interval, delivery, kafka, settings, clock
):
    events, registered = delivery.bandwidth_exceeds.events, []
    settings.flush_interval = 3.0

    def samples():
        for _ in range(3):
            clock.now += 1
            yield sample(5000)
            registered.append(len(events))
            assert kafka.flushes == []

    kafka.on_flush = kafka.acknowledge
    run_interval(samples())
    assert registered == [1, 2]
    assert events == []
    assert kafka.flushes == [10.0]


def test_an_acknowledgement_is_noticed_between_two_samples(run_interval, delivery, kafka, outbox, clock):
    def samples():
        yield sample(5000)
        kafka.acknowledge()
        assert len(outbox) == 1
        yield None
        assert (len(outbox), delivery.bandwidth_exceeds.events) == (0, [])

    run_interval(samples())
    assert delivery.acknowledgements == 1


@pytest.mark.parametrize(("partitions", "status"), [({0}, 0), (None, 1)])
def test_a_kafka_that_was_never_reached_is_a_1_and_one_that_has_gone_is_none(
    delivery, outbox, kafka, stop, partitions, status
):
    kafka.partitions = partitions
    exchange(delivery)
    kafka.partitions = None
    exchange(delivery)
    assert end(outbox, delivery, stop) == status


@pytest.mark.parametrize(("flush_interval", "samples_taken"), [(120.0, 120), (5.0, 5), (1.0, 1)])
def test_the_loop_flushes_and_breaks_out_after_the_flush_interval(
    run_interval, kafka, settings, seconds_of, clock, flush_interval, samples_taken
):
    settings.flush_interval = flush_interval
    kafka.on_flush = kafka.acknowledge

    def with_pauses():
        for each in seconds_of(repeat(5000)):
            yield each
            kafka.acknowledge()
            clock.now += 0.49
            yield None
            clock.now -= 0.49

    run_interval(with_pauses())
    assert len(kafka.sent) == samples_taken
    assert len(kafka.flushes) == 1


def test_the_interval_ends_also_where_nothing_can_be_measured(run_interval, settings, clock):
    settings.flush_interval = 5.0

    def samples():
        while True:
            clock.now += 0.5
            yield None

    run_interval(samples())
    assert clock.now == pytest.approx(1005.5)


def test_the_next_interval_begins_with_the_next_second(run_interval, kafka, settings, seconds_of):
    settings.flush_interval = 3.0
    kafka.on_flush = kafka.acknowledge
    samples = seconds_of(range(2000, 3000))
    for _ in range(4):
        run_interval(samples)
    assert [json.loads(value)["bytes_per_second"] for value in kafka.sent] == [*range(2000, 2012)]
    assert len(kafka.flushes) == 4


def test_the_end_of_an_interval_reports_what_became_of_its_warnings(
    run_interval, delivery, kafka, settings, seconds_of, caplog
):
    caplog.set_level(logging.INFO)
    settings.flush_interval = 3.0
    raise_warnings(delivery, "of an earlier interval")
    kafka.on_flush = lambda: (kafka.acknowledge(0, 1), kafka.refuse(2))
    run_interval(seconds_of([5000, 0, 5000]))
    assert caplog.messages[-1] == "interval over: 3 samples, 2 warnings raised, 2 acknowledged, 1 left"


def test_the_sampling_goes_on_each_second_while_kafka_is_away(run_interval, kafka, seconds_of, outbox):
    kafka.partitions = None
    run_interval(seconds_of(repeat(5000, 120)))
    assert len(outbox) == 120


def test_with_forever_the_flush_does_not_delay_the_next_sample(run_interval, settings, seconds_of, clock):
    settings.flush_interval, settings.forever = 3.0, True
    run_interval(seconds_of([5000, 5000, 5000]))
    assert clock.now == pytest.approx(1003.5)


def test_after_a_signal_the_last_acknowledgements_get_three_seconds(run_interval, outbox, stop, clock):
    def samples():
        yield sample(5000)
        stop.set()
        yield None

    run_interval(samples())
    assert clock.now == pytest.approx(1003.0)
    assert len(outbox) == 1


def test_a_signal_during_the_flush_of_an_interval_gets_its_own_three_seconds(
    run_interval, kafka, settings, seconds_of, stop, clock
):
    settings.flush_interval, settings.forever = 3.0, True
    kafka.on_flush = stop.set
    assert run_interval(seconds_of([5000, 5000, 5000]))
    began_at = clock.now
    assert not run_interval(iter([None]))
    assert clock.now - began_at == pytest.approx(3.0)


def test_the_next_interval_begins_where_another_one_follows(clean_process, tmp_path):
    follows = [True, True, False]

    def interval(rounds, bandwidth_exceeds, outbox, delivery, settings, stop, show):
        stop.set()
        return follows.pop(0)

    clean_process.setattr(kproducer, "bandwidth_exceed_event_system", interval)
    clean_process.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert main(["--outbox", str(tmp_path / "outbox.sqlite")]) == 0
    assert follows == []


def test_after_a_signal_nothing_is_waited_for_when_nothing_is_left(run_interval, kafka, stop, clock):
    kafka.partitions = None
    stop.set()
    run_interval(iter([None]))
    assert clock.now == 1000.0


def test_a_heartbeat_goes_out_as_often_as_it_is_asked_for_beside_the_warnings(
    run_interval, delivery, kafka, settings, seconds_of
):
    settings.heartbeat = 10.0
    kafka.outbox = None

    def samples():
        for each in seconds_of(repeat(0, 35)):
            kafka.acknowledge()
            yield each

    run_interval(samples())
    beat = json.dumps({"host": "web-1", "heartbeat_at": "2026-11-23T16:22:04.796005+00:00"}).encode()
    assert kafka.sent == [beat] * 4
    assert (len(delivery.outbox), delivery.acknowledgements) == (0, 0)
    assert message.read_heartbeat(beat) == ("web-1", OBSERVED_AT)


def test_the_warnings_of_one_overload_say_when_it_started(run_interval, kafka, settings):
    seconds = [0, 1, 6, 12, 13]
    run_interval(sample(5000, OBSERVED_AT + timedelta(seconds=second)) for second in seconds)
    started = [datetime.fromisoformat(json.loads(value)["episode_started_at"]) for value in kafka.sent]
    assert [(at - OBSERVED_AT).total_seconds() for at in started] == [0, 0, 0, 12, 12]


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
        (["--limit", "fast"], "argument --limit: 'fast' is not a rate"),
        (["--limit=-1"], "argument --limit: '-1' is not a rate"),
        (["--interval", "0"], "argument --interval: '0' is not a number of seconds above 0"),
        (["--interval", "nan"], "argument --interval"),
        (["--flush-interval", "inf"], "argument --flush-interval"),
        (["--flush-interval=-5"], "argument --flush-interval"),
        (["--flush-interval", "soon"], "argument --flush-interval"),
        (["--interface", "no such"], "is not an interface name"),
        (["--topic", "a b"], "argument --topic: 'a b' is not a topic name"),
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


def test_an_option_of_the_environment_reaches_the_producer(clean_process, capsys, tmp_path):
    made = []

    class Recording(KafkaProducer):
        def __del__(self):
            """Nothing: there is nothing to close."""

        def __init__(self, **options):
            made.append(options)
            raise ValueError

    clean_process.setattr(kproducer, "KafkaProducer", Recording)
    clean_process.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    clean_process.setenv("KAFKA_PROXY_URL", "socks5://127.0.0.1:1080")
    run_main(["--outbox", str(tmp_path / "outbox.sqlite")], capsys)
    assert made[0]["proxy_url"] == "socks5://127.0.0.1:1080"
    assert made[0]["kafka_client"] is ProducerClient


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
    assert (ended.value.code, capsys.readouterr().out) == (0, f"kproducer {__version__}\n")
    root = os.path.dirname(os.path.abspath(kproducer.__file__))
    with open(os.path.join(root, "__init__.py")) as file:
        assert f'__version__ = "{__version__}"' in file.read()


def test_without_arguments_the_settings_are_the_documented_ones():
    settings = kproducer.build_parser("kproducer").parse_args([])
    assert (settings.limit, settings.interval, settings.flush_interval) == (1e6, 1.0, 120.0)
    assert (settings.topic, settings.interface, settings.forever) == ("bandwidth_exceeds", [], False)
    assert settings.host == socket.gethostname()
