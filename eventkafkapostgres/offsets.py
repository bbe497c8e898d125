"""How far the partitions of a topic are read and recorded, and where reading them goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from kafka import TopicPartition
from kafka.errors import LogTruncationError

from eventkafkapostgres.group import GroupMember
from eventkafkapostgres.message import Batch, parse
from eventkafkapostgres.positions import Bounds, goal_of, is_expected, is_recorded, start_of

logger = logging.getLogger(__name__)


class Offsets:
    """Those of the partitions that a GroupMember reads."""

    def __init__(self) -> None:
        self.topic_id = UUID(int=0)
        self.expected: dict[TopicPartition, int] = {}  # what the database says once everything read is recorded
        self.recorded: dict[TopicPartition, int] = {}  # the next offsets of what is recorded
        self.diverged: dict[TopicPartition, int] = {}  # from here on Kafka may hold other messages than were recorded
        self.goal: dict[int, int] | None = None  # of --until-empty: partitions, and where they ended at the start

    def set_goal(self, member: GroupMember, topic_id: UUID, is_complete: bool) -> None:
        """The ends of all partitions, as soon as each has a leader, and again those of a topic that was recreated."""
        if topic_id != self.topic_id:
            self.goal = None
        if self.goal is None and is_complete:
            self.goal = goal_of(member.bounds(member.every_partition()))

    def begin(self, member: GroupMember, topic_id: UUID, bounds: Bounds, stored: Mapping[int, int]) -> None:
        """Read each of the partitions that have `bounds` from where the database says that it was left."""
        if topic_id != self.topic_id and self.topic_id.int:
            logger.warning("topic %s was deleted and created again: all of it is read", member.topic)
            self.diverged.clear()
        self.topic_id, self.expected, self.recorded = topic_id, {}, {}
        for at, (begin, end) in bounds.items():
            next_offset = self.expected[at] = stored[at.partition]
            if begin_reading(member, at, next_offset, begin, min(end, self.diverged.get(at, end))):
                self.recorded[at] = next_offset

    def parse(self, records: Sequence[Any]) -> Batch:
        """The batch of what was read."""
        batch = parse(records, self.topic_id, self.expected)
        self.expected |= batch.next_offsets
        return batch

    def skip_markers(self, read_to: Mapping[TopicPartition, int]) -> Batch | None:
        """A batch without messages, where a partition was read beyond its last one: a transaction leaves a marker.

        The same where Kafka lost messages: the stored offset goes back before new ones are there.
        """
        beyond = {
            at: offset
            for at, offset in read_to.items()
            if offset > self.expected[at] or (offset < self.expected[at] and at not in self.recorded)
        }
        batch = Batch(self.topic_id, [], {at: self.expected[at] for at in beyond}, beyond)
        self.expected |= beyond
        return batch if beyond else None

    def note_truncation(self, error: Exception) -> None:
        """Where the error says that Kafka went back to an offset, it may hold other messages from there on by now."""
        if isinstance(error, LogTruncationError):
            self.diverged |= {at: known.offset if known else 0 for at, known in error.divergent_offsets.items()}

    def record(self, next_offsets: Mapping[TopicPartition, int]) -> None:
        """The database has everything up to these offsets."""
        self.recorded |= next_offsets
        for at in next_offsets:
            self.diverged.pop(at, None)

    def are_expected(self, stored: Mapping[int, int]) -> bool:
        """Whether the database is where this consumer left it."""
        return is_expected(self.expected, stored)

    def reach_goal(self, stored: Mapping[int, int]) -> bool:
        """Whether everything that --until-empty has to record is in the database."""
        has_read = self.expected.keys() <= self.recorded.keys()  # not yet where Kafka lost messages
        return has_read and self.goal is not None and is_recorded(self.goal, stored)


def begin_reading(member: GroupMember, at: TopicPartition, stored: int, begin: int, end: int) -> bool:
    """Read a partition from where it was left, and log what is missing there; whether Kafka has what is recorded."""
    start, name = start_of(stored, begin, end), f"{at.topic}/{at.partition}"
    if start.lost:
        logger.error("%s: offsets %d to %d are lost: Kafka's retention deleted them unread",
                     name, start.lost[0], start.lost[-1])  # fmt: skip
    if start.truncated:
        logger.error("%s: Kafka lost messages: it went back to offset %d, and %d was recorded; all of it is read again",
                     name, end, stored)  # fmt: skip
    member.seek(at, start.offset)
    return not start.truncated
