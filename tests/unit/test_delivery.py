import logging
from datetime import UTC, datetime
from uuid import UUID

import pytest
from fakes import Kafka, put, raised, said, values
from kafka.errors import (
    KafkaTimeoutError,
)

from eventkafkapostgres.delivery import WINDOW, Delivery
from simpleEvents import EventSystem

OBSERVED_AT = datetime(2026, 11, 23, 16, 22, 4, 796005, tzinfo=UTC)


EVENT_ID = UUID("01a20b20-7007-7b5a-b044-fec6a3afb754")


# Delivery


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
    caplog.set_level(logging.INFO)
    delivery.pump()
    delivery.pump()
    assert (outbox.count(), delivery.waiting) == (2, 2)
    assert said(caplog, "INFO") == ["Outbox: works again"]
    assert len(said(caplog)) == 1
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
    caplog.set_level(logging.INFO)
    for _ in range(3):
        delivery.pump()
        kafka.acknowledge()
        clock.now += 1
    assert said(caplog, "INFO") == ["Kafka: works again"]
    assert len(said(caplog)) == 1


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
