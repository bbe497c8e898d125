"""What a consumer does when Kafka refuses or is silent: logs the cause once, waits, is replaced where that helps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from kafka import TopicPartition
from kafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from eventkafkapostgres.group import GroupMember
from eventkafkapostgres.outages import KafkaLog, Outage, explain_kafka_error

RETRY_SECONDS = (1.0, 2.0, 8.0)  # pauses: the first, the longest, the longest after a new KafkaConsumer
PROBE_AFTER_SECONDS = 15.0  # without a message: is Kafka there?
PROBE_AFTER_ERROR_SECONDS = 5.0  # the same after kafka-python has logged an error
RECREATE_CONSUMER_SECONDS = 60.0  # without a word from Kafka: all brokers may have new addresses

KAFKA_ERRORS = (KafkaError, OSError)  # a reset in the middle of an answer is raised as it is
# The consumer goes on by itself after these, and without churn in its group.
RECOVERABLE_ERRORS = (OSError, KafkaConnectionError, KafkaTimeoutError, GroupAuthorizationFailedError,
                      TopicAuthorizationFailedError)  # fmt: skip
NO_SUCH_OFFSET = (OffsetOutOfRangeError, NoOffsetForPartitionError, LogTruncationError)

logger = logging.getLogger(__name__)


class Recovery:
    """Handles Kafka's errors. `wait` is a pause that a stop ends; `on_error` is what else may help."""

    def __init__(
        self,
        member: GroupMember,
        kafka_log: KafkaLog,
        wait: Callable[[float], object],
        on_error: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.member, self.kafka_log, self.wait, self.on_error = member, kafka_log, wait, on_error
        self.outage = Outage("Kafka", logger, clock)
        self.pause_seconds = RETRY_SECONDS[0]

    def works(self, leaderless: Collection[TopicPartition]) -> None:
        """Kafka answers, but for these partitions."""
        self.kafka_log.forget()
        self.pause_seconds = RETRY_SECONDS[0]
        if leaderless:
            self.outage.begin(f"no leader for partition {', '.join(str(at.partition) for at in sorted(leaderless))}")
        else:
            self.outage.end()

    def probe_if_silent(self) -> None:
        """An idle topic and a dead connection look alike: ask. KafkaTimeoutError when it is dead."""
        has_error = self.kafka_log.at > self.member.heard_at
        if self.member.silent_seconds() > (PROBE_AFTER_ERROR_SECONDS if has_error else PROBE_AFTER_SECONDS):
            self.member.probe()
            self.kafka_log.forget()

    def handle(self, error: Exception) -> bool:
        """Pause after an error; whether a new KafkaConsumer joins the group."""
        if isinstance(error, NO_SUCH_OFFSET):
            return False
        self.outage.begin(self.kafka_log.cause or explain_kafka_error(str(error)))
        is_stuck = self.member.silent_seconds() > RECREATE_CONSUMER_SECONDS
        replaces = is_stuck or not isinstance(error, RECOVERABLE_ERRORS)
        if replaces:
            try:
                self.member.replace()
            except OSError as worse:
                self.outage.begin(str(worse))
                replaces = False
        self.on_error()
        self.wait(min(self.pause_seconds, RETRY_SECONDS[2] if replaces else RETRY_SECONDS[1]))
        self.pause_seconds = min(2 * self.pause_seconds, RETRY_SECONDS[2])
        return replaces
