"""One member of a consumer group: a KafkaConsumer that is replaced when it is stuck."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import MemberState, OffsetAndMetadata

from eventkafkapostgres.message import flatten
from eventkafkapostgres.positions import Bounds, topic_key

OFFSETS_TIMEOUT_MS = 3000  # for a question to the broker
KEEP_ALIVE_MS = 100  # of a poll that reads nothing: it answers a rebalance of the group
UNSTABLE_SECONDS = 25.0  # without partitions for so long, a member may never get any again (KAFKA-9815)

logger = logging.getLogger(__name__)


def ask_offsets(
    ask: Callable[..., dict[TopicPartition, int]], partitions: list[TopicPartition]
) -> dict[TopicPartition, int]:
    """The answer of a KafkaConsumer's beginning_offsets() or end_offsets()."""
    try:
        return ask(partitions, timeout_ms=OFFSETS_TIMEOUT_MS)
    except KeyError as error:  # kafka-python 3.0.12, where a partition lost its leader meanwhile
        raise KafkaTimeoutError(f"no offsets of {error}") from error


class GroupMember(ConsumerRebalanceListener):  # type: ignore[misc]
    """Reads one topic. Where it reads each partition is for others to say: until seek(), a partition is not read.

    Its methods raise KafkaError when Kafka refuses or does not answer. One thread only.
    """

    def __init__(
        self, kconsumer: Any, make_kconsumer: Callable[[], Any], topic: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.make_kconsumer, self.topic, self.clock = make_kconsumer, topic, clock
        self.join(kconsumer)

    def join(self, kconsumer: Any) -> None:
        """Join the group with this KafkaConsumer."""
        self.kconsumer = kconsumer
        self.reassigned = False  # whether the group has assigned partitions since the last look
        self.positioned: set[TopicPartition] = set()  # nothing else is read
        self.heard_at = self.stable_at = self.clock()  # from Kafka; in the group
        kconsumer.subscribe([self.topic], listener=self)

    def replace(self) -> None:
        """Leave the group and join it with a new KafkaConsumer, which asks the bootstrap servers. May raise OSError."""
        kconsumer = self.make_kconsumer()
        self.close()
        self.join(kconsumer)

    def close(self) -> None:
        """Leave the group, or at least the connection."""
        with contextlib.suppress(KafkaError, OSError):
            self.kconsumer.close(timeout_ms=1000)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Nothing: what is recorded of them later changes nothing (see OffsetConflict)."""

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """The group has expelled this member: it has no partitions until it is back."""
        self.reassigned = True

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Runs on kafka-python's own thread: what is not paused there would be read from no position."""
        for partition in assigned:
            self.kconsumer.pause(partition)
            self.kconsumer.seek(partition, 0)
        self.reassigned = True

    def replace_if_deaf(self) -> bool:
        """Outside of a stable group for long, only a new KafkaConsumer helps; whether it was replaced."""
        self.note_state()
        is_deaf = self.clock() - self.stable_at > UNSTABLE_SECONDS
        if is_deaf:
            logger.debug("no partitions for long: a new KafkaConsumer joins the group")
            self.replace()
        return is_deaf

    def note_state(self) -> None:
        if self.kconsumer.group_metadata().state is MemberState.STABLE:
            self.stable_at = self.clock()

    def silent_seconds(self) -> float:
        """For how long nothing was heard from Kafka."""
        return self.clock() - self.heard_at

    def assigned(self) -> set[TopicPartition]:
        return set(self.kconsumer.assignment())

    def topic_id(self) -> UUID | None:
        """What identifies the topic, see topic_key(). None: there is no such topic, or it is not known yet."""
        cluster = self.kconsumer._cluster
        if not cluster.partitions_for_topic(self.topic):
            return None
        return topic_key(cluster.topic_id(self.topic), cluster.cluster_id, self.topic)

    def without_leader(self) -> set[TopicPartition]:
        """Partitions of the topic that can't be read now."""
        leader_of = self.kconsumer._cluster.leader_for_partition
        return {at for at in self.every_partition() if leader_of(at) in (None, -1)}

    def has_unpositioned(self) -> bool:
        """Whether the group assigned a partition that can be read and isn't."""
        return not self.assigned() <= self.positioned | self.without_leader()

    def bounds(self, partitions: Iterable[TopicPartition]) -> Bounds:
        """The first offset that Kafka has of each partition, and its next one."""
        chosen = list(partitions)
        if not chosen:
            return {}
        begins = ask_offsets(self.kconsumer.beginning_offsets, chosen)
        ends = ask_offsets(self.kconsumer.end_offsets, chosen)
        self.heard_at = self.clock()
        return {at: (begins[at], ends[at]) for at in chosen}

    def every_partition(self) -> list[TopicPartition]:
        """Those of the whole topic."""
        partitions = self.kconsumer._cluster.partitions_for_topic(self.topic)
        return [TopicPartition(self.topic, number) for number in sorted(partitions or ())]

    def probe(self) -> None:
        """Hear from Kafka, or KafkaTimeoutError."""
        ready = self.assigned() - self.without_leader()
        ask_offsets(self.kconsumer.end_offsets, list(ready) or [TopicPartition(self.topic, 0)])
        self.heard_at = self.clock()

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read this partition from here on."""
        with contextlib.suppress(ValueError):  # the group has just taken it away
            self.kconsumer.seek(partition, offset)
            self.positioned.add(partition)

    def poll(self, timeout_ms: int) -> list[Any]:
        """Records of the positioned partitions. None of them where the group assigned partitions meanwhile."""
        with contextlib.suppress(KeyError):  # the group has just taken one away
            self.kconsumer.resume(*self.positioned & set(self.kconsumer.paused()))
        records = flatten(self.kconsumer.poll(timeout_ms=timeout_ms))
        if records:
            self.heard_at = self.clock()
        return [] if self.reassigned else records

    def keep_alive(self) -> None:
        """Stay in the group without reading: a member that doesn't poll would hold up all others."""
        with contextlib.suppress(KeyError):  # the group has just taken one away
            self.kconsumer.pause(*self.assigned())
        self.kconsumer.poll(timeout_ms=KEEP_ALIVE_MS)
        self.note_state()

    def read_to(self) -> dict[TopicPartition, int]:
        """How far each positioned partition was read, with the markers of transactions behind its last message."""
        return {at: self.kconsumer.position(at, timeout_ms=OFFSETS_TIMEOUT_MS) for at in self.positioned}

    def commit(self, topic_id: UUID, offsets: Mapping[TopicPartition, int], wait: bool = False) -> None:
        """Show these offsets in Kafka, for lag monitors: nothing here reads them. None of a topic that is gone."""
        assigned = self.assigned() if topic_id == self.topic_id() else set()
        mine = {at: OffsetAndMetadata(offset, "", -1) for at, offset in offsets.items() if at in assigned}
        if mine and wait:
            self.kconsumer.commit(mine, timeout_ms=1000)
        elif mine:
            self.kconsumer.commit_async(mine)

    def lag(self, offsets: Mapping[TopicPartition, int]) -> int:
        """How many messages of the assigned partitions Kafka has beyond these offsets."""
        assigned = self.assigned()
        return sum(max(0, (self.kconsumer.highwater(at) or 0) - n) for at, n in offsets.items() if at in assigned)
