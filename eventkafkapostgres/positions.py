"""Where to read a partition, and whether everything is recorded: decisions from what Kafka and the database say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from kafka import TopicPartition

Bounds = Mapping[TopicPartition, tuple[int, int]]  # the first offset that Kafka has of a partition, and its next one


class Start(NamedTuple):
    """Where to begin reading a partition."""

    offset: int
    lost: range  # offsets that Kafka deleted before they were read
    truncated: bool  # Kafka has less than what was recorded


def start_of(stored: int, begin: int, end: int) -> Start:
    """Read on at the stored offset; from the first that Kafka has where it isn't there.

    A topic that was created again is another topic, with offsets of its own. So a stored offset beyond the end means
    that Kafka itself went back (an election of a replica that was behind, a restored disk): what is recorded stays,
    and everything is read again, since event_id keeps it from being stored twice.
    """
    if stored > end:
        return Start(begin, range(0), True)
    return Start(max(stored, begin), range(stored, begin), False)


def goal_of(bounds: Bounds) -> dict[int, int]:
    """What --until-empty has to record: each partition that holds messages, and where it ends now."""
    return {at.partition: end for at, (begin, end) in bounds.items() if end > begin}


def is_recorded(goal: Mapping[int, int], stored: Mapping[int, int]) -> bool:
    """Whether the database has everything up to the goal, recorded by this consumer or by another."""
    return all(stored.get(partition, 0) >= end for partition, end in goal.items())


def is_expected(expected: Mapping[TopicPartition, int], stored: Mapping[int, int]) -> bool:
    """Whether the database is where this consumer left it: neither restored from a backup nor moved by another."""
    return all(stored.get(at.partition) == offset for at, offset in expected.items())


def topic_key(topic_id: UUID | None, cluster_id: str | None, topic: str) -> UUID:
    """The topic's id in Kafka (KIP-516), which a topic that is created again does not keep.

    Brokers before Kafka 2.8 give none: then it is made from the names of cluster and topic, and is kept.
    """
    return topic_id if topic_id and topic_id.int else uuid5(NAMESPACE_URL, f"kafka:{cluster_id}/{topic}")
