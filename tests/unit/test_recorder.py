import json
import threading
from concurrent.futures import wait
from itertools import count, pairwise
from unittest.mock import create_autospec

import psycopg2
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailedError,
)
from kafka.future import Future
from kafka.structs import OffsetAndMetadata

from eventkafkapostgres.database import Moved
from eventkafkapostgres.message import FIELDS
from eventkafkapostgres.outages import KafkaLog
from eventkafkapostgres.recorder import IDLE_SECONDS, LOG_SECONDS, STUCK_SECONDS, Recorder

GOOD = {
    "event_id": "01a20b20-7007-7b5a-b044-fec6a3afb754",
    "observed_at": "2026-11-23T16:22:04.796005+00:00",
    "seconds": 1.000213,
    "episode_started_at": "2026-11-23T16:21:58.795911+00:00",
    "host": "web-1",
    "interfaces": ["eth0"],
    "bytes_sent_per_second": 812345.6,
    "bytes_received_per_second": 3120456.1,
    "bytes_per_second": 3932801.7,
    "limit_bytes_per_second": 1000000.0,
    "message": "Bandwidth exceeded on web-1: 3.93 MB/s is over the limit of 1.00 MB/s",
}


NUMBERS = tuple(FIELDS)[4:8]


def good(**changed):
    """A message with some fields changed, as json.dumps() writes it. A field that is ... is left out."""
    return json.dumps({name: value for name, value in (GOOD | changed).items() if value is not ...}).encode()


AT, NEXT = TopicPartition("warnings", 0), TopicPartition("warnings", 1)


def record(value, offset=0, partition=0, key=b"web-1"):
    size = len(value or b"")
    return ConsumerRecord("warnings", partition, -1, offset, 1795450924796, 0, key, value, [], None, 5, size, -1)


# The recorder


class Kafka:
    """A KafkaConsumer with its real interface, whose polls are played from a list; an empty one takes its time."""

    def __init__(self, clock):
        self.clock = clock
        self.client = create_autospec(KafkaConsumer, instance=True)
        self.client.poll.side_effect = self.poll
        self.client.subscribe.side_effect = self.subscribe
        self.client.assignment.side_effect = lambda: set(self.assigned)
        self.client.paused.side_effect = lambda: set(self.paused)
        self.client.pause.side_effect = lambda *partitions: self.paused.update(partitions)
        self.client.resume.side_effect = lambda *partitions: self.paused.difference_update(partitions)
        self.client.seek.side_effect = self.seek
        self.client.position.side_effect = lambda partition, timeout_ms=None: self.positions[partition]
        self.client.beginning_offsets.side_effect = lambda at, timeout_ms=None: {one: self.begins[one] for one in at}
        self.client.end_offsets.side_effect = lambda at, timeout_ms=None: {one: self.ends[one] for one in at}
        self.client.partitions_for_topic.side_effect = lambda topic: {one.partition for one in self.ends}
        self.client.highwater.side_effect = lambda partition: self.ends[partition]
        self.assigned = set()
        self.paused = set()
        self.positions = {}
        self.begins, self.ends = {AT: 0, NEXT: 0}, {AT: 100, NEXT: 100}
        self.script = []  # what the next polls do: return, raise, or call
        self.seeks = []

    def seek(self, partition, offset):
        assert partition in self.assigned
        self.positions[partition] = offset
        self.seeks.append((partition, offset))

    def subscribe(self, topics=(), pattern=None, listener=None):
        self.listener = listener

    def assign(self, *partitions):
        """What kafka-python's thread does in a rebalance."""
        self.listener.on_partitions_revoked(self.assigned)
        self.assigned = set(partitions)
        self.paused = set()
        self.listener.on_partitions_assigned(self.assigned)

    def poll(self, timeout_ms=0, max_records=None, update_offsets=True):
        doing = self.script.pop(0) if self.script else {}
        if isinstance(doing, Exception):
            raise doing
        if callable(doing):
            doing = doing() or {}
        if not doing:
            self.clock.now += timeout_ms / 1000
        for partition, records in doing.items():
            assert partition not in self.paused
            self.positions[partition] = records[-1].offset + 1
        return doing

    def committed(self):
        """What commit_async was called with, as {partition: offset}."""
        calls = self.client.commit_async.call_args_list
        assert all(type(one) is OffsetAndMetadata for call in calls for one in call.args[0].values())
        return [{partition: one.offset for partition, one in call.args[0].items()} for call in calls]


@pytest.fixture
def kafka(clock):
    return Kafka(clock)


class Held:
    """A call of the database that lasts until it is let go."""

    def __init__(self, result):
        self.result = result
        self.called, self.go = threading.Event(), threading.Event()

    def __call__(self, *arguments):
        self.called.set()
        assert self.go.wait(60)
        return self.result


@pytest.fixture
def hold():
    """Make a method of the database one that is held; all are let go at the end."""
    made = []

    def hold(method, result):
        made.append(Held(result))
        method.side_effect = made[-1]
        return made[-1]

    yield hold
    for held in made:
        held.go.set()


@pytest.fixture
def make_recorder(kafka, database, clock, stop, hold):
    made = []

    def make(until_empty=False):
        log = KafkaLog(clock)
        recorder = Recorder(lambda: kafka.client, database, log, "warnings", until_empty, stop, clock=clock)
        made.append(recorder)
        return recorder

    yield make
    for recorder in made:
        recorder.pool.shutdown(wait=False)


def step(recorder, times=1):
    """A round of the loop as run() makes it, after the database has done what it was doing."""
    for _ in range(times):
        if recorder.job:
            wait([recorder.job])
        recorder.step()


@pytest.fixture
def recorder(make_recorder, kafka):
    """One that reads partition 0 from where the database says."""
    ready = make_recorder()
    joins(ready, kafka)
    return ready


def joins(recorder, kafka, *partitions):
    kafka.script.append(lambda: kafka.assign(*(partitions or [AT])))
    step(recorder, 3)  # joins; asks the database; seeks, and reads nothing yet
    assert recorder.sought


def messages(first, last, partition=AT):
    return {partition: [record(good(), offset, partition.partition) for offset in range(first, last)]}


def recorded(database):
    """What Database.record was called with, as {partition: next offset}."""
    return [call.args[0].next_offsets for call in database.record.call_args_list]


def test_reading_starts_where_the_database_says(recorder, kafka):
    assert kafka.seeks[-1] == (AT, 40)
    assert kafka.paused == set()


def test_a_partition_that_the_database_does_not_know_is_read_from_its_start(make_recorder, kafka):
    kafka.begins[NEXT] = 7
    joins(make_recorder(), kafka, AT, NEXT)
    assert kafka.seeks[-2:] == [(AT, 40), (NEXT, 7)]


def test_nothing_is_read_before_the_database_has_said_where(hold, make_recorder, kafka, database):
    held = hold(database.next_offsets, {0: 40})
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    recorder.step()
    recorder.step()
    assert kafka.paused == {AT}
    assert not recorder.sought
    held.go.set()
    step(recorder)
    assert kafka.seeks[-1] == (AT, 40)


def test_offsets_go_to_kafka_only_after_the_database_has_recorded(hold, recorder, kafka, database):
    held = hold(database.record, 0)
    kafka.script.append(messages(40, 43))
    step(recorder)  # reads
    recorder.step()  # gives the batch to the database
    assert held.called.wait(60)
    recorder.step()  # reads on meanwhile
    assert recorded(database) == [{AT: 43}]
    assert kafka.committed() == []
    held.go.set()
    step(recorder)
    assert kafka.committed() == [{AT: 43}]
    assert recorder.recorded == 3


def test_a_batch_that_the_database_refused_is_kept_and_tried_again_and_no_offset_moves(
    recorder, kafka, database, stop, caplog
):
    database.record.side_effect = [psycopg2.OperationalError("connection refused")] * 3 + [0]
    kafka.script.append(messages(40, 43))
    step(recorder, 3)
    for _ in range(100):
        assert kafka.committed() == []
        step(recorder)
        if recorder.recorded:
            break
    assert recorded(database) == [{AT: 43}] * 4
    assert kafka.committed() == [{AT: 43}]
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        "PostgreSQL: connection refused; trying again",
        "PostgreSQL: works again",
    ]


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (psycopg2.OperationalError("could not connect: Connection refused"), [1, 2, 4, 4, 4]),
        (psycopg2.OperationalError("FATAL: password authentication failed"), [1, 2, 4, 8, 16, 30, 30]),
    ],
)
def test_the_pauses_grow_to_4_seconds_without_an_answer_and_to_30_after_a_refusal(
    recorder, kafka, database, clock, error, pauses
):
    called = []

    def refuse(batch):
        called.append(clock.now)
        raise error

    database.record.side_effect = refuse
    kafka.script.append(messages(40, 43))
    while len(called) <= len(pauses):
        step(recorder)
    measured = [after - before for before, after in pairwise(called)]
    for pause, seconds in zip(pauses, measured, strict=True):
        assert pause <= seconds < pause + 1.2  # polls lie between


def test_the_group_is_kept_and_nothing_more_is_read_while_the_database_is_away(recorder, kafka, database):
    database.record.side_effect = psycopg2.OperationalError("connection refused")
    kafka.script += [messages(40, 43), messages(43, 46)]
    step(recorder, 60)
    assert len(recorder.batches) == 2
    assert kafka.paused == {AT}
    assert kafka.client.poll.call_count > 20
    assert all(call.kwargs.get("timeout_ms", 0) >= 100 for call in kafka.client.poll.call_args_list)


def test_batches_are_recorded_in_the_order_in_which_they_were_read(recorder, kafka, database):
    kafka.script += [messages(n, n + 2) for n in range(40, 60, 2)]
    step(recorder, 40)
    assert recorded(database) == [{AT: n} for n in range(42, 62, 2)]
    assert kafka.committed() == recorded(database)


def test_what_is_in_hand_is_dropped_when_the_group_assigns_anew(hold, recorder, kafka, database):
    held = hold(database.record, 0)
    kafka.script += [messages(40, 43), messages(43, 46)]
    step(recorder)
    recorder.step()
    recorder.step()
    assert len(recorder.batches) == 2
    kafka.script.append(lambda: kafka.assign(NEXT))
    recorder.step()  # polls, so that it stays in the group
    recorder.step()
    assert not recorder.batches
    held.go.set()
    database.next_offsets.return_value = {0: 43, 1: 9}
    step(recorder, 4)
    assert recorded(database) == [{AT: 43}]  # not 46: it is another consumer's now
    assert kafka.committed() == []  # nor the offset of a partition that was taken away
    assert kafka.seeks[-1] == (NEXT, 9)


def test_records_that_come_with_a_changed_assignment_are_discarded(recorder, kafka, database):
    def both():
        kafka.assign(AT)
        kafka.paused.clear()
        return messages(0, 3)

    kafka.script.append(both)
    step(recorder)
    assert not recorder.batches
    step(recorder, 4)
    assert recorded(database) == []
    assert kafka.seeks[-1] == (AT, 40)
    kafka.script.append(messages(40, 43))
    step(recorder, 3)
    assert recorded(database) == [{AT: 43}]


def test_an_assignment_stands_paused_until_its_place_is_known(recorder, kafka):
    kafka.assign(AT, NEXT)
    assert kafka.paused == {AT, NEXT}
    assert recorder.assignment.changed


def test_stored_offsets_that_come_with_a_changed_assignment_are_asked_for_again(make_recorder, kafka, database):
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    step(recorder, 2)
    wait([recorder.job])
    kafka.assign(AT, NEXT)
    kafka.seeks.clear()
    recorder.step()
    assert kafka.seeks == []
    step(recorder, 3)
    assert kafka.seeks == [(AT, 40), (NEXT, 0)]
    assert database.next_offsets.call_count == 2


@pytest.mark.parametrize(
    "error",
    [KafkaConnectionError("socket disconnected"), OffsetOutOfRangeError({AT: 40}), NoOffsetForPartitionError(AT)],
)
def test_after_an_error_of_poll_reading_goes_on_where_the_database_says(recorder, kafka, database, stop, clock, error):
    kafka.script += [error, {}, {}, messages(40, 43)]
    kafka.seeks.clear()
    stop.at = clock.now + 5
    finish_with(recorder, lambda: recorded(database))
    assert kafka.seeks == [(AT, 40)]
    assert recorded(database) == [{AT: 43}]
    kafka.client.close.assert_not_called()  # not made anew: it still works


def finish_with(recorder, done, waits=True):
    """run(), each round with the database's work done unless it must not be waited for, until done() says so."""
    original = recorder.step

    rounds = count()

    def stepping():
        assert next(rounds) < 2000
        if recorder.job and waits:
            wait([recorder.job])
        original()
        if done():
            recorder.stop.set()

    recorder.step = stepping
    return recorder.run()


def test_what_was_read_before_an_error_is_dropped_and_read_again(hold, recorder, kafka, database, stop, clock):
    database.next_offsets.side_effect = [{0: 43}]
    held = hold(database.record, 0)
    kafka.script += [messages(40, 43), messages(43, 46)]
    step(recorder)
    recorder.step()
    recorder.step()
    kafka.script += [KafkaConnectionError(), lambda: held.go.set(), {}, messages(43, 46)]
    finish_with(recorder, lambda: len(recorded(database)) == 2, waits=False)
    assert recorded(database) == [{AT: 43}, {AT: 46}]
    assert kafka.seeks[-1] == (AT, 43)


def test_a_consumer_that_is_silent_is_made_anew_and_that_is_said_once(make_recorder, kafka, clock, stop, caplog):
    recorder = make_recorder()
    joins(recorder, kafka)
    made = []
    recorder.make_consumer = lambda: made.append(clock.now) or kafka.client
    kafka.client.end_offsets.side_effect = KafkaTimeoutError("Timeout")

    finish_with(recorder, lambda: len(made) == 2)
    assert made[0] >= 1000 + STUCK_SECONDS
    kafka.client.close.assert_called_with(timeout_ms=1000)
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(said) == 1
    assert said[0].startswith("Kafka: ")


def test_an_idle_topic_is_asked_for_its_end_and_nothing_is_said(recorder, kafka, clock, caplog):
    kafka.client.end_offsets.reset_mock()
    while clock.now < 1000 + 1.8 * IDLE_SECONDS:
        step(recorder)
    assert kafka.client.end_offsets.call_count == 1
    assert [one for one in caplog.records if one.levelname == "WARNING"] == []


def test_no_right_to_the_group_is_said_once_and_the_consumer_goes_on(make_recorder, kafka, caplog, stop, clock):
    recorder = make_recorder()
    kafka.script += [GroupAuthorizationFailedError("kconsumer")] * 5 + [lambda: kafka.assign(AT)]
    finish_with(recorder, lambda: recorder.sought)
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert said == [
        "Kafka: no right to the consumer group: this user needs READ on it; trying again",
        "Kafka: works again",
    ]
    kafka.client.close.assert_not_called()


def test_offsets_that_kafka_no_longer_has_are_said_and_reading_goes_on_at_the_first_it_has(
    make_recorder, kafka, caplog
):
    kafka.begins[AT] = 60
    joins(make_recorder(), kafka)
    assert kafka.seeks[-1] == (AT, 60)
    assert "warnings/0: offsets 40 to 59 are lost: Kafka's retention deleted them unread" in caplog.messages


def test_a_topic_that_was_made_anew_is_read_from_its_start_and_its_old_offsets_are_forgotten(
    make_recorder, kafka, database, caplog
):
    kafka.ends[AT] = 5
    database.forget.side_effect = lambda partitions: database.next_offsets.return_value.clear()
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    step(recorder, 3)
    assert not recorder.sought
    step(recorder, 2)
    database.forget.assert_called_once_with([0])
    assert kafka.seeks[-1] == (AT, 0)
    assert recorder.sought
    assert "warnings/0 ends at 5, but 40 were read: it was made anew; all of it is read" in caplog.messages


def test_a_rebalance_while_old_offsets_are_forgotten_is_sought_all_the_same(hold, make_recorder, kafka, database):
    held = hold(database.forget, None)
    database.next_offsets.return_value = {0: 40, 1: 70}
    kafka.ends[AT] = 5
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    step(recorder, 3)  # seeks, and lets the database forget
    kafka.assign(NEXT)
    recorder.step()
    held.go.set()
    step(recorder, 4)
    assert kafka.seeks[-1] == (NEXT, 70)


def test_a_commit_that_fails_changes_nothing(recorder, kafka, database, stop, clock):
    kafka.client.commit_async.side_effect = lambda offsets=None, callback=None: Future().failure(CommitFailedError())
    kafka.script += [messages(40, 43), {}, {}, messages(43, 46)]
    finish_with(recorder, lambda: len(recorded(database)) == 2)
    assert recorded(database) == [{AT: 43}, {AT: 46}]


def test_rejected_messages_are_counted_apart_and_said_with_the_first_reason(recorder, kafka, database, caplog):
    database.record.return_value = 2
    kafka.script.append({AT: [record(good(), 40), record(b"no", 41), record(good(), 42)]})  # PostgreSQL refuses one too
    step(recorder, 4)
    assert recorder.recorded == 1
    assert any("2 messages went to rejected_messages, the first: Expecting value" in one for one in caplog.messages)


def test_a_database_that_hangs_is_cut_off(hold, recorder, kafka, database, clock):
    held = hold(database.record, 0)
    database.cut.side_effect = held.go.set
    kafka.script.append(messages(40, 43))
    step(recorder)
    recorder.step()
    database.deadline = clock.now + 8
    recorder.step()
    database.cut.assert_not_called()
    clock.now += 8.1
    recorder.step()
    database.cut.assert_called_once_with()


# --until-empty


def test_until_empty_ends_with_0_when_everything_of_the_start_is_recorded(make_recorder, kafka, database):
    database.next_offsets.return_value = {0: 97}
    kafka.ends = {AT: 100}
    recorder = make_recorder(until_empty=True)

    def record_all(batch):
        database.next_offsets.return_value = {0: batch.next_offsets[AT]}
        return 0

    database.record.side_effect = record_all
    kafka.script += [lambda: kafka.assign(AT), {}, messages(97, 100)]
    assert finish_with(recorder, lambda: False) == 0
    assert recorded(database) == [{AT: 100}]
    assert recorder.finished
    assert kafka.committed() == [{AT: 100}]


def test_until_empty_waits_for_the_partitions_that_another_consumer_reads(make_recorder, kafka, database):
    database.next_offsets.return_value = {0: 100, 1: 50}
    recorder = make_recorder(until_empty=True)
    joins(recorder, kafka)
    kafka.positions[AT] = 100
    step(recorder, 6)
    assert not recorder.finished
    database.next_offsets.return_value = {0: 100, 1: 100}
    step(recorder, 4)
    assert recorder.finished


def test_until_empty_does_not_wait_for_what_came_later(make_recorder, kafka, database):
    database.next_offsets.return_value = {0: 100, 1: 100}
    recorder = make_recorder(until_empty=True)
    joins(recorder, kafka)
    kafka.ends = {AT: 200, NEXT: 200}
    step(recorder, 4)
    assert recorder.finished


def test_until_empty_ends_at_once_on_an_empty_topic(make_recorder, kafka, database):
    database.next_offsets.return_value = {}
    kafka.begins = kafka.ends = {AT: 100}
    recorder = make_recorder(until_empty=True)
    kafka.script.append(lambda: kafka.assign(AT))
    assert finish_with(recorder, lambda: False) == 0


def test_until_empty_gives_up_with_1_when_postgresql_stays_away(make_recorder, kafka, database, clock):
    database.next_offsets.side_effect = psycopg2.OperationalError("connection refused")
    recorder = make_recorder(until_empty=True)
    kafka.script.append(lambda: kafka.assign(AT))
    assert finish_with(recorder, lambda: False) == 1
    assert 1015 < clock.now < 1025


def test_until_empty_gives_up_with_1_when_kafka_stays_away(make_recorder, kafka, database, clock):
    kafka.client.end_offsets.side_effect = KafkaTimeoutError()
    recorder = make_recorder(until_empty=True)

    assert finish_with(recorder, lambda: False) == 1
    assert clock.now < 1040


def test_until_empty_gives_up_with_1_when_kafka_refuses_for_good(make_recorder, kafka, clock):
    recorder = make_recorder(until_empty=True)
    kafka.script += [SaslAuthenticationFailedError("no")] * 1000
    assert finish_with(recorder, lambda: False) == 1
    assert 1015 < clock.now < 1025


# Offsets that are not where they were left


def test_each_batch_says_where_the_database_was_left(recorder, kafka, database):
    kafka.script += [messages(40, 43), messages(43, 46)]
    step(recorder, 8)
    assert [call.args[0].expected_offsets for call in database.record.call_args_list] == [{AT: 40}, {AT: 43}]


def test_the_first_batch_of_a_partition_that_the_database_does_not_know_was_left_nowhere(
    make_recorder, kafka, database
):
    database.next_offsets.return_value = {}
    recorder = make_recorder()
    joins(recorder, kafka)
    kafka.script += [messages(0, 3), messages(3, 5)]
    step(recorder, 8)
    assert [call.args[0].expected_offsets for call in database.record.call_args_list] == [{AT: None}, {AT: 3}]


def test_a_database_that_was_put_back_while_reading_is_filled_up_again(recorder, kafka, database, caplog):
    database.record.side_effect = [Moved(), 0]
    kafka.script.append(messages(40, 43))
    step(recorder, 2)
    database.next_offsets.return_value = {0: 10}
    step(recorder, 4)
    assert kafka.seeks[-1] == (AT, 10)
    assert kafka.committed() == []
    kafka.script.append(messages(10, 46))
    step(recorder, 4)
    assert recorded(database) == [{AT: 43}, {AT: 46}]
    assert kafka.committed() == [{AT: 46}]
    assert sum("are not where they were left" in message for message in caplog.messages) == 1


def test_a_database_that_was_put_back_while_nothing_came_is_filled_up_again(recorder, kafka, database, clock):
    database.next_offsets.return_value = {0: 10}
    ends_at = clock.now + 1.5 * LOG_SECONDS
    while clock.now < ends_at:
        step(recorder)
    assert kafka.seeks[-1] == (AT, 10)


def test_a_database_that_is_where_it_was_left_is_not_sought_again(recorder, kafka, database, clock, caplog):
    kafka.seeks.clear()
    ends_at = clock.now + 10 * LOG_SECONDS
    while clock.now < ends_at:
        step(recorder)
    assert kafka.seeks == []
    assert [one for one in caplog.records if one.levelname == "WARNING"] == []


def test_where_nothing_comes_kafka_is_told_again_what_it_may_not_have_taken(recorder, kafka, database, clock):
    kafka.script.append(messages(40, 43))
    step(recorder, 4)
    database.next_offsets.return_value = {0: 43}
    ends_at = clock.now + 2.5 * LOG_SECONDS
    while clock.now < ends_at:
        step(recorder)
    assert kafka.committed() == [{AT: 43}] * 3


# The end


def test_stopping_lets_the_database_finish_and_leaves_the_group(recorder, kafka, database):
    kafka.script.append(messages(40, 43))
    step(recorder)
    recorder.step()
    recorder.close()
    assert recorder.recorded == 3
    assert kafka.committed() == [{AT: 43}]
    kafka.client.close.assert_called_once_with(timeout_ms=1000)


def test_stopping_does_not_fail_while_kafka_is_away(make_recorder, kafka):
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    step(recorder)
    recorder.step()  # asks the database where to read
    kafka.client.beginning_offsets.side_effect = KafkaTimeoutError()
    kafka.client.close.side_effect = KafkaTimeoutError()
    recorder.close()


def test_stopping_shows_kafka_the_last_offsets_if_it_is_there(recorder, kafka):
    kafka.script.append(messages(40, 43))
    step(recorder, 3)
    kafka.client.commit.side_effect = KafkaTimeoutError()
    recorder.close()
    kafka.client.commit.assert_called_once_with({AT: OffsetAndMetadata(43, "", -1)}, timeout_ms=1000)
    kafka.client.close.assert_called_once_with(timeout_ms=1000)


def test_a_recorder_that_is_stopped_at_once_ends_with_0(make_recorder, stop):
    stop.set()
    recorder = make_recorder()
    assert recorder.run() == 0
    recorder.close()
