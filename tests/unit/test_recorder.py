import logging
from itertools import pairwise
from unittest.mock import create_autospec

import hypothesis.strategies as st
import psycopg2
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kafka.errors import (
    CommitFailedError,
    CorruptRecordError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaTimeoutError,
    LogTruncationError,
    SaslAuthenticationFailedError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
)
from kafka.structs import MemberState, OffsetAndMetadata
from world import FakeConsumer, World, check_signatures, partition

from eventkafkapostgres.calls import RETRY_SECONDS, Interrupted
from eventkafkapostgres.database import BatchTimeout
from eventkafkapostgres.group import UNSTABLE_SECONDS, GroupMember
from eventkafkapostgres.outages import KafkaLog
from eventkafkapostgres.reader import GIVE_UP_SECONDS, State
from eventkafkapostgres.recovery import RECREATE_CONSUMER_SECONDS, Recovery


@pytest.fixture
def world():
    """Two partitions with messages; the group gives both to us in the first moment."""
    made = World()
    made.produce(0, 5)
    made.produce(1, 3)
    made.events.append(lambda: made.consumer.give(0, 1))
    return made


@pytest.fixture
def until_empty():
    made = World(until_empty=True)
    made.produce(0, 5)
    made.produce(1, 3)
    made.events.append(lambda: made.consumer.give(0, 1))
    return made


def texts(caplog, level=logging.WARNING):
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def test_the_fakes_have_the_interface_of_the_real_ones():
    check_signatures()


# Reading and recording


def test_everything_is_recorded_and_shown_to_kafka(world):
    world.run(5)
    assert world.missing() == []
    assert world.database.offsets == {(world.topic.id, 0): 5, (world.topic.id, 1): 3}
    assert {at: n for commits in world.consumer.commits for at, n in commits.items()} == {
        partition(0): 5, partition(1): 3
    }  # fmt: skip


def test_reading_begins_where_the_database_says(world):
    world.database.offsets[world.topic.id, 0] = 4
    world.topic.begins[1] = 7  # offsets before these were deleted before the first run
    world.run(5)
    assert len(world.database.rows) == 1 + 3
    assert world.database.offsets == {(world.topic.id, 0): 5, (world.topic.id, 1): 10}


def test_nothing_is_read_while_the_database_is_asked(world):
    world.delays.append(6)
    read = []
    for _ in range(6):
        world.events.append(lambda: read.append(world.consumer.assigned - world.consumer.stopped))
    world.run(2)
    assert read[1:] == [set()] * 5
    world.run(5)
    assert world.missing() == []


def test_the_next_batch_is_read_while_one_is_being_recorded_and_no_more(world):
    world.most_records = 1
    world.delays.extend([0, 9])  # the question is answered at once, the first batch later
    seen = []
    for _ in range(12):
        world.events.append(lambda: seen.append((bool(world.executor.waiting), dict(world.consumer.positions))))
    world.run(30)
    two_polls = {partition(0): 2, partition(1): 2}  # of one message of each partition
    assert [positions for waits, positions in seen if waits][-1] == two_polls
    assert world.missing() == []


def test_a_batch_that_was_refused_is_tried_again_and_no_offset_moves_before(world, caplog):
    world.database.moods.extend(["well", "refuses", "refuses", "refuses"])
    world.run(60)
    assert world.missing() == []
    assert texts(caplog)[0] == "PostgreSQL: connection refused; trying again"
    assert len(texts(caplog)) <= 2


def test_after_a_stop_no_smaller_batch_is_begun(world):
    world.produce(0, 64)
    calls = []

    def slow(batch):
        calls.append(len(batch.records))
        world.stop.set()
        raise BatchTimeout("no answer for 8 seconds")

    world.database.record = slow
    world.run(60)
    assert len(calls) == 1


def test_a_kafka_consumer_that_can_not_be_replaced_is_tried_again(world, caplog):
    world.run(5)
    make, failures = world.reader.member.make_kconsumer, [OSError("can't start new thread")] * 2

    def fail_first():
        if failures:
            raise failures.pop()
        return make()

    world.reader.member.make_kconsumer = fail_first
    for error in (CommitFailedError(), CommitFailedError(), CommitFailedError()):
        world.events.extend([None, error])
    world.produce(0, 3)
    world.run(120)
    assert failures == []
    assert world.missing() == []
    assert "Kafka: can't start new thread; trying again" in texts(caplog)


def test_the_pause_holds_for_questions_as_for_batches(world):
    calls = []

    def refuse(topic_id, begins):
        calls.append(world.clock.now)
        raise psycopg2.OperationalError

    world.database.next_offsets = refuse
    world.run(600)
    pauses = [later - earlier for earlier, later in pairwise(calls)]
    assert min(pauses[3:]) >= RETRY_SECONDS[1]
    assert len(calls) < 600 / RETRY_SECONDS[1] + 5


@pytest.mark.parametrize(
    ("error", "pauses"), [(KafkaTimeoutError(), [1, 2, 2, 2, 2]), (CommitFailedError(), [1, 2, 4, 8, 8])]
)
def test_the_pause_after_an_error_of_kafka_is_short_unless_a_new_consumer_is_made(error, pauses):
    waited, member = [], create_autospec(GroupMember)
    member.silent_seconds.return_value = 0
    recovery = Recovery(member, KafkaLog(), waited.append)
    for _ in pauses:
        recovery.handle(error)
    assert waited == pauses


def test_what_was_committed_though_the_answer_was_lost_is_not_recorded_twice(world, caplog):
    world.database.moods.extend(["well", "answer is lost"])
    world.run(60)
    assert world.missing() == []
    assert sum(world.database.batches) == 8
    assert "the database's offsets are not where they were left: reading on from where they are" in texts(caplog)


# A batch that does not go through in time


def test_a_batch_that_takes_too_long_is_tried_in_halves_down_to_one_message(world):
    world.most_in_time = 1
    world.run(60)
    assert world.missing() == []
    assert world.database.batches == [1] * 8


def test_batches_become_larger_again_when_they_go_through(world):
    world.database.moods.extend(["well", "slow"])
    world.run(5)
    assert max(world.database.batches) <= 4
    world.produce(0, 64)
    world.run(30)
    assert max(world.database.batches) > 8
    assert world.missing() == []


def test_one_message_that_takes_too_long_is_waited_for(world, caplog):
    world.topic.logs = [world.topic.logs[0][:1], []]
    world.database.moods.extend(["well", "slow", "slow"])
    world.run(30)
    assert world.missing() == []


# Rebalances


@pytest.mark.parametrize("moment", range(8))
def test_what_is_in_hand_is_dropped_in_a_rebalance_and_nothing_is_lost(world, moment):
    world.most_records = 1
    world.delays.extend([2] * 8)
    world.run(0.1)
    world.events.extend([None] * moment)
    world.events.append(lambda: world.consumer.give(0))
    world.events.extend([None] * 5)
    world.events.append(lambda: world.consumer.give(0, 1))
    world.run(60)
    assert world.missing() == []


def test_an_answer_from_before_a_rebalance_is_dropped(world):
    world.delays.append(3)

    def other_consumer_was_faster():
        world.database.offsets[world.topic.id, 1] = 3
        for value in world.topic.logs[1]:
            world.database.rows[value] = value
        world.consumer.give(1)

    world.events.extend([None, None, other_consumer_was_faster])
    world.run(30)
    assert world.reader.state is State.READING
    assert world.consumer.positions == {partition(1): 3}


def test_a_consumer_that_the_group_gives_nothing_for_25_seconds_is_replaced(world):
    world.run(5)
    world.consumer.state = MemberState.UNJOINED  # kafka-python lacks KAFKA-9815
    world.run(UNSTABLE_SECONDS + 2)
    assert len(world.consumers) == 2
    assert world.consumers[0].closed
    world.produce(0)
    world.consumer.give(0, 1)
    world.run(5)
    assert world.missing() == []


# Kafka's errors


@pytest.mark.parametrize(
    "error", [KafkaConnectionError(), KafkaTimeoutError(), CommitFailedError(), SaslAuthenticationFailedError()]
)
def test_what_was_read_before_an_error_is_read_again(world, error):
    world.most_records = 1
    world.events.extend([None, None, error])
    world.run(2)
    world.events.append(lambda: world.consumer.give(0, 1))
    world.run(30)
    assert world.missing() == []


def test_a_refusal_that_goes_on_is_logged_once(world, caplog):
    for _ in range(40):
        world.events.append(GroupAuthorizationFailedError())
    began = world.clock.now
    while world.events:
        world.run(1)
    assert len(texts(caplog)) == 1
    assert len(world.consumers) <= 1 + (world.clock.now - began) / UNSTABLE_SECONDS
    world.consumer.give(0, 1)
    world.run(10)
    assert world.missing() == []


def test_a_consumer_that_hears_nothing_asks_the_bootstrap_servers_again(world):
    world.run(5)
    world.seen = world.topic
    world.topic, gone = None, world.topic  # nothing answers
    world.run(RECREATE_CONSUMER_SECONDS + 20)
    assert len(world.consumers) >= 2
    world.topic = gone
    world.produce(0)
    world.consumer.give(0, 1)
    world.run(60)
    assert world.missing() == []


def test_a_package_that_is_missing_ends_it_with_one_line(world, caplog):
    world.run(3)
    world.events.append(UnsupportedCodecError("libzstd"))
    world.run(30)
    assert world.reader.finished
    assert world.reader.status == 2
    assert len(texts(caplog)) == 1


def test_a_partition_without_a_leader_holds_up_no_other(world, caplog):
    world.topic.leaderless.add(1)
    world.run(10)
    assert [number for number, _, _ in world.missing()] == [1] * 3
    assert texts(caplog) == ["Kafka: no leader for partition 1; trying again"]
    world.topic.leaderless.clear()
    world.run(10)
    assert world.missing() == []


def test_an_answer_without_a_partition_that_has_just_lost_its_leader_is_asked_for_again(world):
    ask, answers = world.consumer.end_offsets, iter([KeyError(partition(1))])

    def end_offsets(partitions, timeout_ms=None):  # as kafka-python 3.0.12 does
        if error := next(answers, None):
            raise error
        return ask(partitions, timeout_ms)

    world.consumer.end_offsets = end_offsets
    world.run(10)
    assert world.missing() == []


def test_whether_an_idle_kafka_is_there_takes_one_question(world):
    world.run(10)
    ask, asked = world.consumer.end_offsets, []
    world.consumer.end_offsets = lambda *arguments, **options: asked.append(1) or ask(*arguments, **options)
    world.consumer.beginning_offsets = None  # asking for these as well is a TypeError
    world.run(100)
    assert asked


# A topic that was created again, a database that was restored, retention


@pytest.mark.parametrize("count", [2, 30])
def test_a_topic_that_was_created_again_is_read_from_its_start_however_much_it_holds(world, caplog, count):
    world.run(5)
    world.recreate(2)
    world.produce(0, count)
    world.produce(1, count)
    world.events.append(world.see)
    world.run(20)
    assert world.missing() == []
    assert "topic warnings was deleted and created again: all of it is read" in texts(caplog)


def test_offsets_of_the_old_topic_are_not_committed_for_the_new_one(world):
    world.run(5)
    world.consumer.commits.clear()
    world.recreate(2)
    world.events.append(world.see)
    world.run(70)
    world.recorder.close()
    assert all(offset == 0 for commits in world.consumer.commits for offset in commits.values())


@pytest.mark.parametrize("is_last", [False, True])
def test_nor_where_it_is_recreated_while_a_batch_is_being_recorded(world, is_last):
    world.run(5)
    world.produce(0, 3)
    world.consumer.commits.clear()
    record = world.database.record

    def recreated_meanwhile(batch):
        world.recreate(2)
        world.see()
        if is_last:
            world.stop.set()
        return record(batch)

    world.database.record = recreated_meanwhile
    world.consumer.give(0, 1)
    world.run(5)
    world.database.record = record
    world.recorder.close()
    assert [offset for commits in world.consumer.commits for offset in commits.values() if offset] == []


def test_a_database_that_was_restored_is_filled_up_again(world, caplog):
    backup = world.snapshot()
    world.run(5)
    world.restore(backup)
    world.run(70)
    assert world.missing() == []
    assert "the database's offsets are not where they were left: reading on from where they are" in texts(caplog)


def test_a_database_that_is_as_it_was_left_is_not_read_into_again(world, caplog):
    for _ in range(100):
        world.events.extend([None, lambda: world.produce(0)])
        world.run(1.5)
    assert texts(caplog) == []
    assert sum(world.database.batches) == len(world.topic.logs[0]) + 3


def test_what_retention_deleted_unread_is_logged_and_the_rest_is_recorded(world, caplog):
    world.run(5)
    world.consumer.give()
    world.run(2)
    world.produce(0, 5)
    world.retain(0, 8)
    world.consumer.give(0, 1)
    world.run(5)
    assert world.missing() == []
    assert texts(caplog) == ["warnings/0: offsets 5 to 7 are lost: Kafka's retention deleted them unread"]


def test_messages_that_kafka_lost_are_logged_and_what_came_after_them_is_recorded(world, caplog):
    world.run(5)
    del world.topic.logs[0][2:]
    world.produce(0, 1)
    world.run(20)
    assert world.missing() == []
    assert any("Kafka lost messages" in text for text in texts(caplog))


def test_messages_that_were_written_where_kafka_lost_some_are_recorded_however_many_they_are(world):
    world.run(5)

    def elect():
        del world.topic.logs[0][2:]
        world.produce(0, 10)
        raise LogTruncationError({partition(0): OffsetAndMetadata(2, "", 1)})

    world.events.append(elect)
    world.run(20)
    assert world.missing() == []


def test_the_offset_goes_back_at_once_where_kafka_lost_everything(world):
    world.run(5)
    world.topic.logs[0].clear()
    world.run(70)
    assert world.database.offsets[world.topic.id, 0] == 0


def test_a_partition_whose_leader_comes_back_in_the_middle_of_a_poll_is_read_from_its_position(world):
    world.run(5)
    world.topic.leaderless.add(1)
    world.events.append(KafkaConnectionError())
    world.run(10)
    world.produce(1, 2)
    world.events.append(world.topic.leaderless.clear)
    world.run(10)
    assert world.missing() == []


def test_a_member_that_was_expelled_waits_for_its_group(world, caplog):
    world.run(5)

    def expel():
        world.consumer.listener.on_partitions_lost(world.consumer.assigned)
        world.consumer.assigned = set()

    world.events.append(expel)
    world.run(5)
    assert texts(caplog) == []
    assert len(world.consumers) == 1


@pytest.mark.parametrize("error", [TopicAuthorizationFailedError({"warnings"}), CorruptRecordError()])
def test_an_error_of_each_read_is_logged_once(world, caplog, error, monkeypatch):
    poll = FakeConsumer.poll

    def fail(consumer, timeout_ms=0):
        if consumer.assigned - consumer.stopped:
            raise error
        if not consumer.assigned:
            consumer.give(0, 1)
        return poll(consumer, timeout_ms)

    monkeypatch.setattr(FakeConsumer, "poll", fail)
    caplog.set_level(logging.INFO)
    world.run(60)
    assert [text for text in texts(caplog, logging.INFO) if text.startswith("Kafka")] == [texts(caplog)[0]]


def test_what_can_not_be_a_row_is_counted_apart(world, caplog):
    world.produce(0, good=False)
    world.run(5)
    assert world.missing() == []
    assert len(world.database.rejected) == 1
    assert world.recorder.progress.recorded == 8
    assert texts(caplog) == [
        "1 message went to rejected_messages, the first: Expecting value: line 1 column 1 (char 0)"
    ]


# --until-empty


def test_until_empty_reads_again_where_kafka_lost_messages(until_empty):
    world = until_empty
    world.database.offsets = {(world.topic.id, 0): 9, (world.topic.id, 1): 9}
    world.run(20)
    assert world.reader.finished
    assert world.reader.status == 0
    assert world.missing() == []


def test_until_empty_ends_when_everything_of_the_start_is_recorded(until_empty):
    until_empty.delays.extend([3] * 20)
    until_empty.run(1000)
    assert until_empty.reader.finished
    assert until_empty.reader.status == 0
    assert until_empty.missing() == []


def test_until_empty_ends_at_once_on_an_empty_topic():
    world = World(until_empty=True)
    world.events.append(lambda: world.consumer.give(0, 1))
    began = world.clock.now
    world.run(1000)
    assert world.reader.finished
    assert world.clock.now - began < 10


def test_until_empty_records_what_comes_slowly_from_far_away(until_empty):
    # while the question "is it finished?" is under way, nothing is read
    until_empty.most_records = 1
    until_empty.delays.extend([5] * 200)
    until_empty.run(10_000)
    assert until_empty.reader.finished
    assert until_empty.missing() == []


def test_until_empty_ends_where_messages_come_while_others_are_being_recorded(until_empty):
    # then there is always a batch that was read ahead
    world = until_empty
    world.delays.extend([2] * 1000)
    world.events.extend([lambda: world.produce(0)] * 1000)
    world.run(100)
    assert world.reader.finished
    assert world.reader.status == 0


def test_until_empty_waits_for_what_another_consumer_records(until_empty):
    world = until_empty
    world.events.clear()
    world.events.append(lambda: world.consumer.give(0))
    world.run(20)
    assert not world.reader.finished
    world.database.offsets[world.topic.id, 1] = 3
    world.run(20)
    assert world.reader.finished


def test_until_empty_ends_where_the_topic_is_created_again_meanwhile_and_has_no_leader_yet(until_empty):
    world = until_empty
    world.events.clear()
    world.events.append(lambda: world.consumer.give(0))  # the other partition is another consumer's, which is slow
    world.run(8)

    def create_again():
        world.recreate(2)
        world.topic.leaderless.add(0)
        world.see()

    world.events.append(create_again)
    world.run(8)
    world.topic.leaderless.clear()
    world.produce(0)
    world.see()
    world.run(20)
    assert world.reader.finished
    assert world.reader.status == 0
    assert world.missing() == []


def test_until_empty_ends_where_the_topic_is_created_again_meanwhile_and_holds_less(until_empty):
    world = until_empty
    world.database.moods.extend(["well"] + ["refuses"] * 3)

    def create_again():
        world.recreate(2)
        world.produce(0)
        world.see()

    world.events.extend([*[None] * 8, create_again])
    world.run(200)
    assert world.reader.finished
    assert world.reader.status == 0
    assert world.missing() == []


def test_until_empty_ends_where_messages_never_cease_to_come(until_empty):
    world = until_empty
    for _ in range(2000):
        world.events.append(lambda: world.produce(0))
    world.run(100)
    assert world.reader.finished


def test_until_empty_asks_once_a_second_at_most_while_it_waits_for_another(until_empty):
    world = until_empty
    world.events.clear()
    world.events.append(lambda: world.consumer.give(0))
    world.run(10)
    asked = []
    ask = world.database.next_offsets
    world.database.next_offsets = lambda topic_id, begins: asked.append(1) or ask(topic_id, begins)
    world.run(30)
    assert 10 < len(asked) <= 30


def test_until_empty_ends_behind_the_marker_of_a_transaction(until_empty):
    until_empty.topic.logs[1].append(None)
    until_empty.run(100)
    assert until_empty.reader.finished
    assert until_empty.database.offsets[until_empty.topic.id, 1] == 4


@pytest.mark.parametrize("what", ["PostgreSQL", "Kafka", "no leader"])
def test_until_empty_gives_up_where_nothing_works(until_empty, what):
    world = until_empty
    if what == "PostgreSQL":
        world.database.moods.extend(["refuses"] * 100)
    elif what == "Kafka":
        world.topic = None
    else:
        world.topic.leaderless.add(1)
    began = world.clock.now
    world.run(1000)
    assert world.reader.finished
    assert world.reader.status == 1
    assert GIVE_UP_SECONDS <= world.clock.now - began < 10 * GIVE_UP_SECONDS


# The end


def test_after_a_stop_the_database_may_finish_what_it_does(world):
    world.run(0.3)
    world.delays.extend([0, 2])
    world.events.extend([None, None, None, world.stop.set])
    world.run(30)
    assert world.executor.waiting is None


def test_a_stop_ends_the_connection_that_hangs(world):
    aborted = []
    world.database.abort_connection = lambda: (aborted.append(1), world.executor.waiting.__setitem__(0, 0))
    world.delays.append(10**6)
    world.events.extend([None, None, world.stop.set])
    world.run(30)
    assert aborted


def test_an_answer_that_nobody_waits_for_any_more_interrupts(world):
    world.database.moods.append("refuses")
    with pytest.raises(Interrupted):
        world.reader.calls.ask(
            lambda: world.database.next_offsets(world.topic.id), world.reader.calls.wait_a_moment, lambda: True
        )


# Whatever happens, in any order


class Histories(RuleBasedStateMachine):
    """The promise: when all is well again, everything that Kafka has is in the database."""

    @initialize(partitions=st.integers(1, 3), most_records=st.integers(1, 4))
    def begin(self, partitions, most_records):
        self.world = World(partitions)
        self.world.most_records = most_records
        self.backup = self.world.snapshot()

    def number(self, data):
        return data.draw(st.integers(0, len(self.world.topic.logs) - 1))

    @rule(data=st.data(), count=st.integers(1, 5), good=st.sampled_from([True, True, True, False]))
    def produce(self, data, count, good):
        self.world.produce(self.number(data), count, good)

    @rule(data=st.data())
    def marker(self, data):
        self.world.topic.logs[self.number(data)].append(None)

    @rule(data=st.data())
    def rebalance(self, data):
        world = self.world
        numbers = data.draw(st.sets(st.integers(0, len(world.topic.logs) - 1)))
        world.events.append(lambda: world.consumer.give(*numbers))

    @rule(data=st.data(), count=st.integers(1, 3))
    def another_consumer_records(self, data, count):
        """It has had the partition, knows where it is, and may have it no more."""
        world, number = self.world, self.number(data)

        def event():
            topic, one = world.topic, world.database
            if number >= len(topic.logs):
                return
            first = max(one.offsets.get((topic.id, number), topic.begins[number]), topic.begins[number])
            values = topic.logs[number][first - topic.begins[number] :][:count]
            for offset, value in enumerate(values, first):
                if value is not None:
                    one.rejected[topic.id, number, offset] = value
            one.offsets[topic.id, number] = first + len(values)

        world.events.append(event)

    @rule(moods=st.lists(st.sampled_from(["well", "refuses", "answer is lost", "slow"]), max_size=4))
    def database_has_moods(self, moods):
        self.world.database.moods.extend(moods)

    @rule(delays=st.lists(st.integers(0, 6), max_size=4))
    def database_is_slow(self, delays):
        self.world.delays.extend(delays)

    @rule(
        error=st.sampled_from(
            [KafkaConnectionError, KafkaTimeoutError, SaslAuthenticationFailedError, CommitFailedError]
        ),
        moments=st.integers(0, 3),
    )
    def kafka_fails(self, error, moments):
        self.world.events.extend([None] * moments)
        self.world.events.append(error())

    @rule(data=st.data(), count=st.integers(1, 4))
    def retention(self, data, count):
        self.world.retain(self.number(data), count)

    @rule(partitions=st.integers(1, 3))
    def recreate(self, partitions):
        self.world.recreate(partitions)
        self.world.events.extend([None, None, self.world.see])

    @rule()
    def back_up(self):
        self.backup = self.world.snapshot()

    @rule()
    def restore(self):
        backup = self.backup
        self.world.events.append(lambda: self.world.restore(backup))

    @rule(data=st.data())
    def lose_leader(self, data):
        self.world.topic.leaderless.add(self.number(data))

    @rule()
    def deaf(self):
        self.world.consumer.state = MemberState.UNJOINED

    @rule(seconds=st.floats(0.1, 40))
    def run(self, seconds):
        self.world.run(seconds)

    @rule()
    def kill(self):
        """kill -9: the next one begins with nothing but what the database has."""
        self.begin_again(until_empty=False)

    @rule(
        error=st.sampled_from([None, KafkaConnectionError(), CommitFailedError()]),
        moments=st.integers(0, 3),
        seconds=st.floats(1, 60),
    )
    def run_until_empty(self, error, moments, seconds):
        """Where it ends with 0, all that was there at its start is recorded."""
        self.begin_again(until_empty=True)
        world, everything = self.world, range(len(self.world.topic.logs))
        ends = {number: world.topic.end(number) for number in everything if world.topic.logs[number]}
        world.see()
        world.consumer.give(*everything)
        world.events.extend([*[None] * moments, error])
        world.run(seconds)
        if world.reader.finished and world.reader.status == 0:
            recorded = {number: world.database.offsets.get((world.topic.id, number), 0) for number in ends}
            assert all(recorded[number] >= end for number, end in ends.items()), (recorded, ends)
        self.begin_again(until_empty=False)

    def begin_again(self, until_empty):
        old = self.world
        self.world = World(1, until_empty)
        for name in ("topic", "seen", "produced", "most_records", "database"):
            setattr(self.world, name, getattr(old, name))
        self.world.database.world = self.world
        self.world.reader.calls.database = self.world.database

    @invariant()
    def one_call_at_a_time(self):
        pass  # LateExecutor asserts it

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        world.topic.leaderless.clear()
        world.see()
        world.database.moods.clear()
        world.run(5)  # what was planned happens
        while world.events:
            world.run(5)
        everything = range(len(world.topic.logs))
        for _ in range(3):
            world.see()
            world.consumer.give(*everything)
            world.run(100)
        assert world.missing() == []
        for number in everything:
            assert world.database.offsets.get((world.topic.id, number), 0) == world.topic.end(number)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
