"""Batches from Kafka to PostgreSQL, each in one transaction; the next one is read meanwhile."""

from __future__ import annotations

import logging
import math
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from eventkafkapostgres.calls import Interrupted
from eventkafkapostgres.database import BatchTimeout, OffsetConflict
from eventkafkapostgres.message import Batch
from eventkafkapostgres.outages import explain_postgres_error
from eventkafkapostgres.progress import Progress
from eventkafkapostgres.reader import Reader
from eventkafkapostgres.recovery import KAFKA_ERRORS

GROW_SECONDS = 1.0  # after a batch that was recorded within this time, one of twice its size is tried

logger = logging.getLogger(__name__)


class Recorder:
    """Records the batches of a Reader. At most one is being recorded, and one more read."""

    def __init__(self, reader: Reader, progress: Progress) -> None:
        self.reader, self.calls, self.clock, self.progress = reader, reader.calls, reader.clock, progress
        self.most_records = math.inf  # of a batch: fewer after one that did not go through in time

    def take(self) -> Batch | None:
        """One round, of a second or so: the next batch to record, or None."""
        self.progress.report(self.lag)
        return self.reader.take()

    def record(self, batch: Batch) -> bool:
        """Record a batch in one transaction, or in several where that takes too long; whether all of it is recorded."""
        if len(batch.records) > self.most_records:
            return all(not self.reader.stop.is_set() and self.record(half) for half in batch.split())
        began, resets = self.clock(), self.reader.resets
        try:
            rejected = self.calls.ask(
                lambda: self.calls.database.record(batch),
                self.meanwhile,
                lambda: self.reader.is_pointless(resets),
                is_divisible=len(batch.records) > 1,
            )
        except Interrupted:
            return False
        except OffsetConflict:
            if self.reader.resets == resets:
                self.reader.conflict()
            return False
        except BatchTimeout as error:
            self.most_records = len(batch.records) // 2
            logger.info("%d messages did not go through in time (%s): %d are tried",
                        len(batch.records), explain_postgres_error(error), self.most_records)  # fmt: skip
            return self.reader.resets == resets and self.record(batch)
        if self.clock() - began < GROW_SECONDS:
            self.most_records *= 2
        if self.reader.resets == resets:
            self.reader.offsets.record(batch.next_offsets)
        self.progress.add(batch, rejected)
        return True

    def meanwhile(self, job: Future[Any] | None) -> None:
        """While a batch is being recorded."""
        self.progress.report(self.lag)
        self.reader.read_ahead(job)

    def commit_to_kafka(self, batch: Batch) -> None:
        """Let Kafka show how far this consumer's partitions are recorded."""
        with self.reader.recovering():
            self.reader.member.commit(batch.topic_id, batch.next_offsets)

    def lag(self) -> int:
        """How many messages of this consumer's partitions are in Kafka and not recorded."""
        return self.reader.member.lag(self.reader.offsets.recorded)

    def close(self) -> None:
        """Show Kafka how far everything is recorded, and leave the group."""
        self.progress.end()
        with suppress(*KAFKA_ERRORS):
            self.reader.member.commit(self.reader.offsets.topic_id, self.reader.offsets.recorded, wait=True)
        self.reader.member.close()
