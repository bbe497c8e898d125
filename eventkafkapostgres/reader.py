"""What comes from Kafka, in batches, and from where to read on.

A Reader is in one of three states. JOINING: the group has not assigned partitions. POSITIONING: it has, and the
database is asked where to read them. READING. reset_positions() is the only way back, for every error and every
rebalance; an answer of the database from before it is dropped. Nothing is read while the database is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from enum import Enum
from types import MappingProxyType
from typing import Any
from uuid import UUID

from kafka import TopicPartition

from eventkafkapostgres.calls import DatabaseCalls, Interrupted
from eventkafkapostgres.console import Stop
from eventkafkapostgres.group import GroupMember
from eventkafkapostgres.message import Batch, parse
from eventkafkapostgres.positions import goal_of, is_expected, is_recorded, start_of
from eventkafkapostgres.recovery import KAFKA_ERRORS, Outcome, Recovery
from eventkafkapostgres.settings import POLL_MS, UNTIL_EMPTY_POLL_MS

COMPARE_SECONDS, COMPARE_HASTY_SECONDS = 60.0, 1.0  # between two looks into the database; the same with --until-empty
GIVE_UP_SECONDS = 15.0  # --until-empty ends after so long without success

logger = logging.getLogger(__name__)


class State(Enum):
    JOINING = "joining"
    POSITIONING = "positioning"
    READING = "reading"


class Reader:
    """Takes batches from Kafka, beginning where the database says.

    `finished` once nothing more is to be done, `failed` where that is no success.
    """

    def __init__(
        self,
        member: GroupMember,
        calls: DatabaseCalls,
        recovery: Recovery,
        until_empty: bool,
        stop: Stop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.member, self.calls, self.recovery = member, calls, recovery
        self.until_empty, self.stop, self.clock = until_empty, stop, clock
        self.state = State.JOINING
        self.resets = 0
        self.topic_id = UUID(int=0)
        self.expected: dict[TopicPartition, int] = {}  # what the database says once everything read is recorded
        self.recorded: dict[TopicPartition, int] = {}  # the next offsets of what is recorded
        self.ahead: Batch | None = None  # read while another batch was being recorded
        self.goal: dict[int, int] | None = None  # of --until-empty: partitions, and where they ended at the start
        self.finished = self.failed = False
        self.compare_at = 0.0  # when to look at the database's offsets again
        self.has_news = False  # whether something was read since the last look

    def take(self) -> Batch | None:
        """One round, of a second or so: the next batch, or None."""
        try:
            self.look_around()
            if self.ahead:
                batch, self.ahead = self.ahead, None
                return batch
            self.recovery.probe_if_silent()
            if self.state is State.READING:
                return self.read()
            if self.state is State.POSITIONING:
                self.position()
            else:
                self.member.keep_alive()
        except Interrupted:
            pass
        except KAFKA_ERRORS as error:
            self.recover(error)
        return None

    def look_around(self) -> None:
        """See what changes the state: assignments, a topic that was created again, a member that is stuck, the end."""
        member = self.member
        if member.is_deaf():
            logger.debug("no partitions for long: a new KafkaConsumer joins the group")
            member.replace()
            self.reset_positions(State.JOINING)
        self.follow_group()
        if self.state is State.READING and (
            member.topic_id() != self.topic_id or member.assigned() - member.positioned - member.without_leader()
        ):
            self.reset_positions()
        if self.until_empty and self.has_given_up():
            logger.error("gave up after %.0f seconds", GIVE_UP_SECONDS)
            self.finished = self.failed = True
            raise Interrupted

    def reset_positions(self, state: State | None = None) -> None:
        """Ask the database where to read: what was read and is not recorded is read again, here or by another."""
        self.resets += 1
        self.ahead = None
        self.member.forget_positions()
        if state or self.state is State.READING:
            self.state = state or State.POSITIONING

    def ask_where(self, topic_id: UUID, begins: Mapping[int, int] = MappingProxyType({})) -> dict[int, int]:
        """The next offsets of the partitions, from the database. Interrupted after a reset."""
        resets = self.resets
        stored = self.calls.ask(
            lambda: self.calls.database.next_offsets(topic_id, begins), self.stay, lambda: self.is_pointless(resets)
        )
        if self.resets != resets or self.member.reassigned:
            raise Interrupted
        return stored

    def is_pointless(self, resets: int) -> bool:
        """Whether there was a reset since, or time is over."""
        return self.resets != resets or (self.until_empty and self.has_given_up())

    def position(self) -> None:
        """Read on from the offsets that the database holds; from the start of a partition that it doesn't know."""
        member, topic_id = self.member, self.member.topic_id()
        if topic_id is None:
            member.probe()
            raise Interrupted
        leaderless = member.without_leader()
        bounds = member.bounds(member.assigned() - leaderless)
        if self.until_empty and not leaderless and (self.goal is None or topic_id != self.topic_id):
            self.goal = goal_of(member.bounds(member.every_partition()))
        stored = self.ask_where(topic_id, {at.partition: begin for at, (begin, _) in bounds.items()})
        if topic_id != self.topic_id and self.topic_id.int:
            logger.warning("topic %s was deleted and created again: all of it is read", member.topic)
        self.topic_id, self.expected, self.recorded = topic_id, {}, {}
        for at, (begin, end) in bounds.items():
            next_offset = self.expected[at] = stored[at.partition]
            if begin_reading(member, at, next_offset, begin, end):
                self.recorded[at] = next_offset
        self.state = State.READING
        self.compare_at = self.clock() + (0 if self.goal is not None else COMPARE_SECONDS)
        self.recovery.works(leaderless)

    def read(self) -> Batch | None:
        """What came, or a look at whether Kafka and the database are as they were left."""
        if self.until_empty and self.clock() >= self.compare_at:  # also where messages never cease to come
            self.compare()
            return None
        batch = self.read_batch()
        if not batch and not self.member.reassigned:
            batch = self.skip_markers()
            if not batch and (self.clock() >= self.compare_at or (self.until_empty and self.has_news)):
                self.compare()
        return batch

    def read_batch(self) -> Batch | None:
        """What one poll returned, parsed."""
        records = self.member.poll(UNTIL_EMPTY_POLL_MS if self.until_empty else POLL_MS)
        if not records:
            return None
        self.recovery.works(self.member.without_leader())
        batch = parse(records, self.topic_id, self.expected)
        self.expected |= batch.next_offsets
        self.has_news = True
        return batch

    def skip_markers(self) -> Batch | None:
        """A batch without messages, where a partition was read beyond its last one: a transaction leaves a marker."""
        beyond = {at: offset for at, offset in self.member.read_to().items() if offset > self.expected[at]}
        if not beyond:
            return None
        batch = Batch(self.topic_id, [], {at: self.expected[at] for at in beyond}, beyond)
        self.expected |= beyond
        return batch

    def compare(self) -> None:
        """Where nothing comes, see for --until-empty whether all is recorded, and for a database that was restored."""
        stored = self.ask_where(self.topic_id)
        self.has_news = False
        self.compare_at = self.clock() + (COMPARE_HASTY_SECONDS if self.until_empty else COMPARE_SECONDS)
        if not is_expected(self.expected, stored):
            self.conflict()
        elif self.goal is not None and is_recorded(self.goal, stored):
            self.finished = True
        else:  # whoever recorded it may not have told Kafka, and in a rebalance Kafka takes none
            self.member.commit(self.recorded)

    def conflict(self) -> None:
        """Somebody else moved the offsets: a restored backup, or the consumer that has these partitions now."""
        logger.warning("the database's offsets are not where they were left: reading on from where they are")
        self.reset_positions()

    def read_ahead(self, job: Future[Any] | None) -> None:
        """Read the next batch while another is being recorded; that one, and nothing more."""
        if job is None or self.ahead or self.state is not State.READING or self.stop.is_set():
            self.stay(job)
            return
        try:
            self.ahead = self.read_batch()
        except KAFKA_ERRORS as error:
            self.recover(error)

    def stay(self, job: Future[Any] | None) -> None:
        """Keep the partitions without reading them, while the database works or pauses."""
        if self.calls.wait_a_moment(job):
            try:
                self.member.keep_alive()
            except KAFKA_ERRORS as error:
                self.recover(error)
        self.follow_group()

    def follow_group(self) -> None:
        """After a rebalance, what is in hand may be somebody else's."""
        if self.member.reassigned:
            self.member.reassigned = False
            self.reset_positions(State.POSITIONING)

    def recover(self, error: Exception) -> None:
        """After any error of Kafka: poll() may have skipped records before it raised, so they are read again."""
        self.reset_positions()
        outcome = self.recovery.handle(error)
        if outcome is Outcome.REPLACED:
            self.reset_positions(State.JOINING)
        self.failed = self.finished = self.finished or outcome is Outcome.HOPELESS

    def has_given_up(self) -> bool:
        """Whether Kafka or PostgreSQL has been away for too long."""
        return max(self.recovery.outage.seconds(), self.calls.outage.seconds()) > GIVE_UP_SECONDS


def begin_reading(member: GroupMember, at: TopicPartition, stored: int, begin: int, end: int) -> bool:
    """Read a partition from where it was left, and log what is missing there; whether Kafka has what is recorded."""
    start, name = start_of(stored, begin, end), f"{at.topic}/{at.partition}"
    if start.lost:
        logger.error("%s: offsets %d to %d are lost: Kafka's retention deleted them unread",
                     name, start.lost[0], start.lost[-1])  # fmt: skip
    if start.truncated:
        logger.error("%s: Kafka lost messages: it ends at offset %d, and %d was recorded; all of it is read again",
                     name, end, stored)  # fmt: skip
    member.seek(at, start.offset)
    return not start.truncated
