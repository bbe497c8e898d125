"""What comes from Kafka, in batches, and from where to read on.

A Reader is in one of three states. JOINING: the group has not assigned partitions. POSITIONING: it has, and the
database is asked where to read them. READING. reset_positions() is the only way back, for every error and every
rebalance; an answer of the database from before it is dropped. Nothing is read while the database is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any
from uuid import UUID

from kafka.errors import UnsupportedCodecError

from eventkafkapostgres.calls import DatabaseCalls, Interrupted
from eventkafkapostgres.group import GroupMember
from eventkafkapostgres.message import Batch
from eventkafkapostgres.offsets import Offsets
from eventkafkapostgres.outages import explain_kafka_error
from eventkafkapostgres.recovery import KAFKA_ERRORS, Recovery
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

    `finished` once nothing more is to be done; `status` is the exit status then.
    """

    def __init__(self, member: GroupMember, calls: DatabaseCalls, recovery: Recovery, until_empty: bool) -> None:
        self.member, self.calls, self.recovery, self.until_empty = member, calls, recovery, until_empty
        self.stop, self.clock = calls.stop, calls.clock
        self.state = State.JOINING
        self.resets = 0
        self.offsets = Offsets()
        self.ahead: Batch | None = None  # read while another batch was being recorded
        self.finished, self.status = False, 0
        self.compare_at = 0.0  # when to look at the database's offsets again
        self.has_news = False  # whether something was read since the last look
        self.has_answered = False  # positions are known, and were not read yet: who may see a topic may not read it

    def take(self) -> Batch | None:
        """One round, of a second or so: the next batch, or None."""
        with suppress(Interrupted), self.recovering():
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
        return None

    def look_around(self) -> None:
        """See what changes the state: assignments, a topic that was created again, a member that is stuck, the end."""
        member = self.member
        if member.replace_if_deaf():
            self.reset_positions(State.JOINING)
        self.follow_group()
        recreated = member.topic_id() != self.offsets.topic_id
        if self.state is State.READING and (recreated or member.has_unpositioned()):
            self.reset_positions()
        if self.has_given_up():
            logger.error("gave up after %.0f seconds", GIVE_UP_SECONDS)
            self.finished, self.status = True, 1
            raise Interrupted

    def reset_positions(self, state: State | None = None) -> None:
        """Ask the database where to read: what was read and is not recorded is read again, here or by another."""
        self.resets += 1
        self.ahead = None
        self.member.positioned.clear()
        if state or self.state is State.READING:
            self.state = state or State.POSITIONING

    def ask_where(self, topic_id: UUID, begins: Mapping[int, int] | None = None) -> dict[int, int]:
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
        return self.resets != resets or self.has_given_up()

    def position(self) -> None:
        """Read on from the offsets that the database holds; from the start of a partition that it doesn't know."""
        member, topic_id = self.member, self.member.topic_id()
        if topic_id is None:
            member.probe()
            raise Interrupted
        member.keep_alive()  # nothing is read without a position, and a rebalance goes on whatever follows
        leaderless = member.without_leader()
        bounds = member.bounds(member.assigned() - leaderless)
        if self.until_empty:
            self.offsets.set_goal(member, topic_id, is_complete=not leaderless)
        stored = self.ask_where(topic_id, {at.partition: begin for at, (begin, _) in bounds.items()})
        self.offsets.begin(member, topic_id, bounds, stored)
        self.state = State.READING
        self.compare_at = self.clock() + (0 if self.offsets.goal is not None else COMPARE_SECONDS)
        self.has_answered = True

    def read(self) -> Batch | None:
        """What came, or a look at whether Kafka and the database are as they were left."""
        if self.must_compare():
            self.compare()
            return None
        batch = self.read_batch()
        if not batch and not self.member.reassigned:
            batch = self.offsets.skip_markers(self.member.read_to())
            if not batch and (self.clock() >= self.compare_at or (self.until_empty and self.has_news)):
                self.compare()
        return batch

    def read_batch(self) -> Batch | None:
        """What one poll returned, parsed."""
        records = self.member.poll(UNTIL_EMPTY_POLL_MS if self.until_empty else POLL_MS)
        if records or self.has_answered:
            self.recovery.works(self.member.without_leader())
            self.has_answered = False
        if not records:
            return None
        self.has_news = True
        return self.offsets.parse(records)

    def must_compare(self) -> bool:
        """Whether --until-empty has to look now, also where messages never cease to come."""
        return self.until_empty and self.clock() >= self.compare_at

    def compare(self) -> None:
        """Where nothing comes, see for --until-empty whether all is recorded, and for a database that was restored."""
        stored = self.ask_where(self.offsets.topic_id)
        self.has_news = False
        self.compare_at = self.clock() + (COMPARE_HASTY_SECONDS if self.until_empty else COMPARE_SECONDS)
        if not self.offsets.are_expected(stored):
            self.conflict()
        elif self.offsets.reach_goal(stored):
            self.finished = True
        else:  # whoever recorded it may not have told Kafka, and in a rebalance Kafka takes none
            self.member.commit(self.offsets.topic_id, self.offsets.recorded)

    def conflict(self) -> None:
        """Somebody else moved the offsets: a restored backup, or the consumer that has these partitions now."""
        logger.warning("the database's offsets are not where they were left: reading on from where they are")
        self.reset_positions()

    def read_ahead(self, job: Future[Any] | None) -> None:
        """Read the next batch while another is being recorded; that one, and nothing more."""
        is_enough = self.ahead or self.must_compare() or self.stop.is_set()
        if job is None or is_enough or self.state is not State.READING:
            self.stay(job)
            return
        with self.recovering():
            self.ahead = self.read_batch()

    def stay(self, job: Future[Any] | None) -> None:
        """Keep the partitions without reading them, while the database works or pauses."""
        if self.calls.wait_a_moment(job):
            with self.recovering():
                self.member.keep_alive()
        self.follow_group()

    def follow_group(self) -> None:
        """After a rebalance, what is in hand may be somebody else's."""
        if self.member.reassigned:
            self.member.reassigned = False
            self.reset_positions(State.POSITIONING)

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """After any error of Kafka: poll() may have skipped records before it raised, so they are read again."""
        try:
            yield
        except UnsupportedCodecError as error:  # a package is missing
            logger.error("Kafka: %s", explain_kafka_error(str(error)))
            self.reset_positions()
            self.finished, self.status = True, 2
        except KAFKA_ERRORS as error:
            self.offsets.note_truncation(error)
            is_new_member = self.recovery.handle(error)
            self.reset_positions(State.JOINING if is_new_member else None)

    def has_given_up(self) -> bool:
        """Whether Kafka or PostgreSQL has been away for too long for --until-empty."""
        seconds = max(self.recovery.outage.seconds(), self.calls.outage.seconds())
        return self.until_empty and seconds > GIVE_UP_SECONDS
