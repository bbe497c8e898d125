import contextlib
import logging
import math
import socket
import threading
import time

import psutil
import pytest
from fakes import damage, exchange, fill_disk, logged, put, raise_warnings, values
from kafka import KafkaProducer, TopicPartition
from kafka.errors import InvalidRecordError, InvalidTimestampError, KafkaTimeoutError, MessageSizeTooLargeError

from eventkafkapostgres import delivery as delivery_module
from eventkafkapostgres.delivery import (
    IDLE_SECONDS,
    MAX_IN_FLIGHT,
    POLL_SECONDS,
    Delivery,
)
from eventkafkapostgres.workarounds import (
    CLIENT_OPTIONS,
    CONNECT_DELAY_MS,
    PRODUCER_CLIENT,
    ProducerClient,
    end_producer,
)
from simpleEvents import EventSystem


def in_flight(delivery):
    return [event.value for event in delivery.bandwidth_exceeds.events]


def rounds(delivery, clock, seconds, step=0.5):
    """Rounds without a sample, for so long."""
    ends_at = clock.now + seconds
    while clock.now < ends_at:
        clock.now += step
        exchange(delivery)


# Sending


def test_a_warning_is_stored_before_it_is_sent(delivery, kafka):
    raise_warnings(delivery, "a")
    raise_warnings(delivery, "b", "c")
    assert kafka.sent == [b"a", b"b", b"c"]
    assert kafka.on_disk == [[b"a"], [b"a", b"b", b"c"], [b"a", b"b", b"c"]]


def test_a_warning_is_sent_at_once_to_the_topic_with_the_hosts_name_as_key(delivery, kafka):
    raise_warnings(delivery, "a")
    kafka.producers[0].send.assert_called_once_with("bandwidth_exceeds", key=b"web-1", value=b"a")
    assert kafka.flushes == []


def test_a_warning_leaves_the_outbox_only_when_it_is_acknowledged(delivery, kafka, outbox):
    raise_warnings(delivery, "a", "b")
    exchange(delivery)
    assert values(outbox) == [b"a", b"b"]
    kafka.acknowledge(1)
    exchange(delivery)
    assert (values(outbox), delivery.acknowledgements) == ([b"a"], 1)
    kafka.acknowledge(0)
    exchange(delivery)
    assert (values(outbox), delivery.acknowledgements) == ([], 2)


def test_the_event_system_holds_the_warnings_that_are_in_flight(delivery, kafka):
    raise_warnings(delivery, "a", "b")
    assert in_flight(delivery) == [b"a", b"b"]
    kafka.acknowledge(0)
    exchange(delivery)
    assert in_flight(delivery) == [b"b"]


def test_what_an_earlier_run_left_is_sent_first(delivery, kafka, outbox):
    put(outbox, "old", "older")
    raise_warnings(delivery, "new")
    assert kafka.sent == [b"old", b"older", b"new"]
    kafka.acknowledge()
    exchange(delivery)
    assert len(outbox) == 0


def test_a_warning_is_sent_once_while_its_future_is_not_done(delivery, kafka, clock):
    raise_warnings(delivery, "a")
    rounds(delivery, clock, 10)
    assert kafka.sent == [b"a"]


@pytest.fixture
def small_window(monkeypatch):
    monkeypatch.setattr(delivery_module, "MAX_IN_FLIGHT", 10)


def test_at_most_a_window_of_warnings_is_in_flight_and_the_rest_waits(delivery, kafka, outbox, small_window):
    raise_warnings(delivery, *map(str, range(15)))
    exchange(delivery)
    assert (len(kafka.sent), len(outbox)) == (10, 15)
    kafka.acknowledge(0, 1, 2)
    exchange(delivery)
    exchange(delivery)
    assert kafka.sent[10:] == [b"10", b"11", b"12"]
    for _ in range(3):
        kafka.acknowledge()
        exchange(delivery)
    assert kafka.sent == [str(n).encode() for n in range(15)]
    assert (len(outbox), delivery.acknowledgements) == (0, 15)


def test_the_window_is_a_thousand_warnings():
    assert MAX_IN_FLIGHT == 1000


def test_nothing_is_sent_before_the_topic_is_known(delivery, kafka, outbox):
    kafka.partitions = None
    raise_warnings(delivery, "a", "b")
    assert (kafka.sent, values(outbox)) == ([], [b"a", b"b"])
    kafka.partitions = {0, 1}
    raise_warnings(delivery, "c")
    assert kafka.sent == [b"a", b"b", b"c"]


def test_while_something_is_in_flight_it_is_looked_at_often_and_then_seldom(delivery, kafka, clock):
    assert delivery.pause() == POLL_SECONDS  # the topic is not known yet
    exchange(delivery)
    assert delivery.pause() == IDLE_SECONDS
    raise_warnings(delivery, "a")
    assert delivery.pause() == POLL_SECONDS
    clock.now += 10
    assert delivery.pause() == IDLE_SECONDS  # Kafka is away: nobody is in a hurry
    kafka.acknowledge()
    raise_warnings(delivery, "b")
    kafka.acknowledge()
    exchange(delivery)
    assert delivery.pause() == IDLE_SECONDS


# What is stuck or refused has one cure


def test_a_refused_warning_stays_and_a_new_producer_begins_again_at_the_oldest(delivery, kafka, clock, outbox):
    raise_warnings(delivery, "a", "b", "c")
    kafka.acknowledge(0)
    kafka.refuse(1)
    exchange(delivery)
    assert values(outbox) == [b"b", b"c"]
    raise_warnings(delivery, "d")
    assert kafka.sent == [b"a", b"b", b"c"]  # nothing goes out in the pause
    rounds(delivery, clock, 1)
    assert kafka.sent == [b"a", b"b", b"c", b"b", b"c", b"d"]
    old, new = kafka.producers
    assert delivery.kproducer is new
    old._sender.force_close.assert_called_once_with()
    kafka.acknowledge()
    exchange(delivery)
    assert (len(outbox), in_flight(delivery), delivery.acknowledgements) == (0, [], 4)


def pause(delivery, kafka, clock, **refusal):
    """For how many seconds nothing is sent after a refusal."""
    kafka.refuse(-1, **refusal)
    exchange(delivery)
    refused_at, sent = clock.now, len(kafka.sent)
    while len(kafka.sent) == sent:
        clock.now += 0.5
        exchange(delivery)
    return clock.now - refused_at


def test_the_pause_doubles_up_to_30_seconds_and_an_acknowledgement_resets_it(delivery, kafka, clock):
    raise_warnings(delivery, "a")
    assert [pause(delivery, kafka, clock) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    kafka.acknowledge()
    raise_warnings(delivery, "b")
    assert pause(delivery, kafka, clock) == 1


@pytest.mark.parametrize("partitions", [None, set(), {0}])
@pytest.mark.parametrize("in_flight", [True, False])
def test_a_topic_that_was_deleted_or_has_fewer_partitions_gets_a_new_producer_soon(
    delivery, kafka, clock, outbox, partitions, in_flight
):
    kafka.partitions = {0, 1, 2}
    raise_warnings(delivery, *(["a"] if in_flight else []))
    kafka.partitions = partitions
    rounds(delivery, clock, 2)
    assert len(kafka.producers) == 2
    kafka.partitions = {0}
    raise_warnings(delivery, "b")
    assert kafka.sent[-1] == b"b"
    kafka.acknowledge(*(range(-2, 0) if in_flight else [-1]))
    rounds(delivery, clock, 60)
    assert (len(outbox), len(kafka.producers)) == (0, 2)


def test_a_topic_that_gets_more_partitions_changes_nothing(delivery, kafka, clock):
    raise_warnings(delivery, "a")
    kafka.partitions = {0, 1, 2}
    kafka.acknowledge()
    rounds(delivery, clock, 60)
    assert len(kafka.producers) == 1


def test_an_acknowledgement_that_never_comes_gets_a_new_producer_at_longer_and_longer_intervals(delivery, kafka, clock):
    raise_warnings(delivery, "a")
    made_at = []
    while len(made_at) < 7:
        rounds(delivery, clock, 0.5)
        if len(kafka.producers) > len(made_at) + 1:
            made_at.append(clock.now)
    pauses = [later - earlier for earlier, later in zip([1000.0, *made_at], made_at, strict=False)]
    assert pauses == pytest.approx([16, 17, 19, 23, 31, 45, 45], abs=1.1)
    assert kafka.sent == [b"a"] * 8


def test_while_acknowledgements_come_the_producer_is_left_alone(delivery, kafka, clock):
    raise_warnings(delivery, *map(str, range(100)))
    for n in range(50):
        kafka.acknowledge(n)
        rounds(delivery, clock, 10)
    assert len(kafka.producers) == 1


def test_a_quiet_producer_is_left_alone(delivery, kafka, clock, caplog):
    rounds(delivery, clock, 3600, step=10)
    assert len(kafka.producers) == 1
    raise_warnings(delivery, "a")
    rounds(delivery, clock, 15)
    assert len(kafka.producers) == 1


def test_what_the_old_producer_tells_after_the_cure_is_not_listened_to(delivery, kafka, clock, outbox):
    raise_warnings(delivery, "a", "b")
    kafka.refuse(0)
    rounds(delivery, clock, 1.5)
    assert kafka.sent == [b"a", b"b", b"a", b"b"]
    assert in_flight(delivery) == [b"a", b"b"]
    kafka.acknowledge(2)
    rounds(delivery, clock, 5)
    assert values(outbox) == [b"b"]


@pytest.mark.parametrize("error", [MessageSizeTooLargeError("larger than max_request_size"), KafkaTimeoutError()])
def test_what_send_raises_is_a_refusal(delivery, kafka, clock, outbox, caplog, error):
    kafka.raises = error
    raise_warnings(delivery, "a", "b")
    assert (kafka.sent, values(outbox)) == ([], [b"a", b"b"])
    kafka.raises = None
    rounds(delivery, clock, 1)
    assert kafka.sent == [b"a", b"b"]
    assert len(logged(caplog)) == 1


def test_without_a_file_left_to_open_the_old_producer_goes_on(delivery, kafka, clock, caplog):
    raise_warnings(delivery, "a")

    def no_file():
        raise OSError(24, "Too many open files")

    make, delivery.new_producer = delivery.new_producer, no_file
    rounds(delivery, clock, 30)
    assert "Kafka: [Errno 24] Too many open files; trying again" in logged(caplog)
    kafka.producers[0]._sender.force_close.assert_not_called()
    delivery.new_producer = make
    rounds(delivery, clock, 30)
    assert kafka.sent[:2] == [b"a", b"a"]


# The disk and the outbox, as delivery sees them


def test_a_full_disk_stops_no_warning(delivery, kafka, outbox, clock):
    fill_disk(outbox)
    for n in range(5):
        raise_warnings(delivery, f"{n}{'x' * 8000}")
    assert [value[:1] for value in kafka.sent] == [b"0", b"1", b"2", b"3", b"4"]
    kafka.refuse(0)
    rounds(delivery, clock, 2)
    assert [value[:1] for value in kafka.sent[5:]] == [b"0", b"1", b"2", b"3", b"4"]
    kafka.acknowledge()
    exchange(delivery)
    assert (len(outbox), delivery.acknowledgements, outbox.lost) == (0, 5, 0)


def test_an_outbox_that_is_damaged_while_something_is_in_flight_loses_none_of_that(delivery, kafka, outbox, clock):
    kafka.outbox = None
    raise_warnings(delivery, "a", "b")
    damage(outbox)
    raise_warnings(delivery, "c")
    kafka.acknowledge(0)
    kafka.refuse(1)
    rounds(delivery, clock, 3)
    assert kafka.sent == [b"a", b"b", b"c", b"b", b"c"]
    kafka.acknowledge()
    exchange(delivery)
    assert (len(outbox), delivery.acknowledgements) == (0, 3)


# Heartbeats


def test_a_heartbeat_goes_out_now_or_never(delivery, kafka):
    kafka.outbox, kafka.partitions = None, None
    delivery.send_heartbeat(b"web-1", b"1", 10)
    kafka.partitions = {0}
    exchange(delivery)
    delivery.send_heartbeat(b"web-1", b"2", 10)
    delivery.send_heartbeat(b"web-1", b"3", 10)  # the last one is still on its way
    kafka.acknowledge()
    exchange(delivery)
    delivery.send_heartbeat(b"web-1", b"4", 10)
    assert kafka.sent == [b"2", b"4"]
    assert (len(delivery.outbox), delivery.acknowledgements, in_flight(delivery)) == (0, 0, [])


def test_a_heartbeat_that_is_stuck_gets_a_new_producer_and_blocks_no_other_one(delivery, kafka, clock):
    exchange(delivery)
    delivery.send_heartbeat(b"web-1", b"1", 10)
    rounds(delivery, clock, 17)
    assert len(kafka.producers) == 2
    delivery.send_heartbeat(b"web-1", b"2", 10)
    assert kafka.sent == [b"1", b"2"]


def test_a_heartbeat_that_is_refused_is_logged_once_and_the_next_one_is_tried(delivery, kafka, clock, caplog):
    caplog.set_level(logging.INFO)
    exchange(delivery)
    for _ in range(5):
        delivery.send_heartbeat(b"web-1", b"1", 10)
        kafka.refuse(-1)
        rounds(delivery, clock, 60)
    assert len(kafka.sent) == 5
    (line,) = logged(caplog)
    assert "no right to the topic" in line
    delivery.send_heartbeat(b"web-1", b"1", 10)
    kafka.acknowledge()
    exchange(delivery)
    assert logged(caplog)[1:] == ["Kafka: works again"]


# The log


def test_an_outage_is_logged_once_with_its_cause_and_its_end_once(delivery, kafka, kafka_log, caplog, clock):
    caplog.set_level(logging.INFO)
    kafka.partitions = None
    for _ in range(100):
        kafka_log.emit(logging.makeLogRecord({"msg": "connect failed: ECONNREFUSED"}))
        raise_warnings(delivery, "a")
        clock.now += 1
    assert logged(caplog) == ["Kafka: connection refused: nothing listens at KAFKA_BOOTSTRAP_SERVERS; trying again"]
    kafka.partitions = {0}
    for _ in range(3):
        exchange(delivery)
        kafka.acknowledge()
        clock.now += 1
    assert logged(caplog)[1:] == ["Kafka: works again"]


def test_a_future_that_never_completes_is_logged_when_no_cause_is_known(delivery, kafka, caplog, clock):
    raise_warnings(delivery, "a")
    rounds(delivery, clock, 9)
    assert logged(caplog) == []
    rounds(delivery, clock, 200)
    assert logged(caplog) == ["Kafka: no answer; trying again"]


def test_nothing_is_logged_while_nothing_waits(delivery, caplog, clock):
    rounds(delivery, clock, 60)
    assert logged(caplog) == []


def test_a_quiet_host_logs_why_it_could_not_send_and_that_it_could_again(delivery, kafka, kafka_log, caplog, clock):
    caplog.set_level(logging.INFO)
    kafka.partitions = None
    kafka_log.emit(logging.makeLogRecord({"msg": "connect failed: ECONNREFUSED"}))
    clock.now += 0.1
    kafka_log.at = clock.now
    rounds(delivery, clock, 10)
    kafka.partitions = {0}
    rounds(delivery, clock, 10)
    assert logged(caplog) == [
        "Kafka: connection refused: nothing listens at KAFKA_BOOTSTRAP_SERVERS; trying again",
        "Kafka: works again",
    ]


@pytest.mark.parametrize("error", [InvalidTimestampError, InvalidRecordError])
def test_refusals_whose_text_differs_each_time_are_one_cause(delivery, kafka, caplog, clock, error):
    raise_warnings(delivery, "a")
    for n in range(5):
        text = f"Timestamp 179575523029{n} of message with offset {n} is out of range. It should be within [{n}, {n}]"
        pause(delivery, kafka, clock, error=lambda text=text: error(text))
    (line,) = logged(caplog)
    assert "this host's clock is wrong" in line


def test_after_a_refusal_another_cause_is_logged_as_well(delivery, kafka, kafka_log, caplog, clock):
    raise_warnings(delivery, "a")
    kafka.refuse(-1)
    for _ in range(40):
        rounds(delivery, clock, 0.5)
        kafka_log.emit(logging.makeLogRecord({"msg": "connect failed: ECONNREFUSED"}))
    refusal, refused_connection = logged(caplog)
    assert "no right to the topic" in refusal
    assert "connection refused" in refused_connection


def test_the_pause_after_a_refusal_is_no_silence(delivery, kafka, caplog, clock):
    raise_warnings(delivery, "a")
    for _ in range(8):
        pause(delivery, kafka, clock)
    (line,) = logged(caplog)
    assert "no right to the topic" in line


# The end


def test_flush_makes_the_producer_send_what_lingers_and_ends_when_all_is_acknowledged(delivery, kafka, clock, outbox):
    raise_warnings(delivery, "a")
    kafka.on_flush = kafka.acknowledge
    delivery.flush(10)
    assert kafka.flushes == [10]
    assert (len(outbox), clock.now) == (0, 1000.0)


def test_flush_sends_what_is_left_as_soon_as_the_topic_is_known(delivery, kafka, outbox, small_window):
    kafka.partitions = None
    kafka.on_flush = kafka.acknowledge
    raise_warnings(delivery, *map(str, range(25)))
    sleep = delivery.sleep

    def wake_up(seconds):
        sleep(seconds)
        kafka.partitions = {0}

    delivery.sleep = wake_up
    delivery.flush(10)
    assert (len(outbox), delivery.acknowledgements) == (0, 25)


def test_flush_looks_at_every_future_though_it_came_back(delivery, kafka, outbox):
    raise_warnings(delivery, "a", "b")
    kafka.on_flush = lambda: (kafka.acknowledge(0), kafka.refuse(1))
    delivery.flush(10)
    assert (delivery.acknowledgements, values(outbox)) == (1, [b"b"])


def test_flush_waits_no_longer_than_it_may(delivery, kafka, clock, outbox):
    raise_warnings(delivery, "a")
    delivery.flush(3.0)
    assert clock.now == pytest.approx(1003.0)
    assert values(outbox) == [b"a"]


def test_flush_does_not_wait_long_for_a_kafka_that_is_known_to_be_away(delivery, kafka, clock):
    raise_warnings(delivery, "a")
    kafka.refuse(0)
    exchange(delivery)
    delivery.flush(10)
    assert clock.now == pytest.approx(1000.5)


def test_the_end_does_not_raise_while_a_heartbeat_is_in_flight(delivery, kafka):
    exchange(delivery)
    delivery.send_heartbeat(b"web-1", b"1", 10)
    kafka.producers[0].flush.side_effect = KafkaTimeoutError
    delivery.flush(1)
    end_producer(delivery.kproducer)


# kafka-python itself


def test_kafka_python_takes_the_delay_of_a_connection_for_milliseconds(monkeypatch):
    """An idle sender asks for it: in seconds, or 0 while it connects, it would ask again at once."""
    client = ProducerClient(bootstrap_servers="127.0.0.1:1", api_version=(3, 9))
    try:
        assert client.connection_delay("bootstrap-0") == CONNECT_DELAY_MS
        monkeypatch.setattr(client._manager, "connection_delay", lambda node: 1.5)
        assert client.connection_delay("bootstrap-0") == 1500
    finally:
        client.close()


TOPIC = "bandwidth_exceeds"


class Listener(threading.Thread):
    """Accepts connections, reads, and says nothing, like a broker that hangs."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.accepted = []
        self.start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                self.accepted.append(self.listener.accept()[0])

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join()
        for connection in self.accepted:
            connection.close()


def test_two_hundred_cures_leave_no_thread_and_no_file_behind(outbox, kafka_log):
    def new_producer():
        return KafkaProducer(bootstrap_servers=listener.address, api_version=(3, 9), acks="all", max_block_ms=0,
                             enable_idempotence=False, delivery_timeout_ms=math.inf,
                             **CLIENT_OPTIONS | PRODUCER_CLIENT)  # fmt: skip

    def threads():
        return [thread for thread in threading.enumerate() if thread.name.endswith("-network-thread")]

    def wait_for(condition):
        ends_at = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < ends_at
            time.sleep(0.01)

    process = psutil.Process()
    files = process.num_fds()
    listener = Listener()
    delivery = Delivery(new_producer(), new_producer, TOPIC, outbox, EventSystem(), kafka_log, answer_seconds=1e6)
    for count in range(200):
        connections = len(listener.accepted)
        delivery.kproducer._accumulator.append(TopicPartition(TOPIC, 0), None, b"key", b"never acknowledged", [])
        exchange(delivery)
        if count % 2:  # with a connection, and without one
            wait_for(lambda connections=connections: len(listener.accepted) > connections)
        delivery.replace_at = -math.inf
    exchange(delivery)
    wait_for(lambda: len(threads()) == 1)
    end_producer(delivery.kproducer)
    wait_for(lambda: not threads())
    listener.close()
    assert process.num_fds() == files
