"""From Kafka to PostgreSQL: batches, positions, rebalances."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extensions
import psycopg2.extras
from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from kafka.structs import OffsetAndMetadata

from eventkafkapostgres.console import Stop
from eventkafkapostgres.database import Database, Moved
from eventkafkapostgres.message import Batch, flatten, parse
from eventkafkapostgres.outages import REFUSED, KafkaLog, Outage, explained, plain
from eventkafkapostgres.settings import HASTY_POLL_MS, POLL_MS

logger = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 4.0, 30.0)  # pauses: the first, the longest when nothing answers, when PostgreSQL refuses
IDLE_SECONDS = 15.0  # without a message for so long, Kafka is asked whether it is there
SUSPECT_SECONDS = 5.0  # the same when its log says that it isn't
STUCK_SECONDS = 60.0  # the same until the consumer is made anew
GIVE_UP_SECONDS = 15.0  # --until-empty ends after so long without success
LOG_SECONDS, QUIET_SECONDS = 60.0, 600.0  # between two lines of the log: with something recorded, without
STOP_SECONDS = 3  # for what is going on after SIGINT or SIGTERM
GOES_ON = (
    KafkaConnectionError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
)  # the consumer still works


class Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """Tells the consumer's loop that the group gave it other partitions. Runs on kafka-python's thread."""

    consumer: Any
    changed = False

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        pass

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        # A place to stand, not to read from: the loop asks the database where to go on, and resumes.
        for partition in assigned:
            self.consumer.pause(partition)
            self.consumer.seek(partition, 0)
        self.changed = True


class Recorder:
    """Reads batches from Kafka and gives them to the database in a second thread, reading on meanwhile.

    Where to read from is what the database says, whenever the group assigns partitions and after any error.
    """

    def __init__(
        self,
        make_consumer: Callable[[], Any],
        database: Database,
        kafka_log: KafkaLog,
        topic: str,
        until_empty: bool,
        stop: Stop,
        renew: Callable[[], None] = lambda: None,
        show: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.make_consumer, self.database, self.kafka_log = make_consumer, database, kafka_log
        self.topic, self.until_empty, self.stop, self.clock = topic, until_empty, stop, clock
        self.renew, self.show = renew, show
        self.kafka, self.postgres = Outage("Kafka", logger), Outage("PostgreSQL", logger)
        self.consumer: Any = None
        self.assignment = Assignment()
        self.poll_ms = HASTY_POLL_MS if until_empty else POLL_MS
        self.joined = False  # whether the group assigned partitions, perhaps none
        self.sought = False  # whether the positions are those of the database
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.job: Future[Any] | None = None  # what the database is doing
        self.then: Callable[[Any], None]  # what to do with its result
        self.batches: deque[Batch] = deque()  # read and not recorded, at most two; the first may be on its way
        self.pause_seconds, self.retry_at = RETRY_SECONDS[0], 0.0
        self.heard_at = self.made_at = self.answered_at = clock()  # from Kafka; its consumer; by PostgreSQL
        self.shown_at = self.logged_at = self.verified_at = clock()
        self.ends: dict[TopicPartition, int] | None = None  # where the topic ended at the start
        self.finished = False
        self.recorded = self.shown = self.logged = 0
        self.next_offsets: dict[TopicPartition, int] = {}  # of what is recorded
        # What the database will say when everything read is recorded; None where it says nothing of a partition.
        self.left_at: dict[TopicPartition, int | None] = {}

    def run(self) -> int:
        """Until `stop`, or, with until_empty, until what was there at the start is recorded. The exit status."""
        while not (self.stop.is_set() or self.finished):
            if self.until_empty and self.given_up():
                logger.error("gave up after %.0f seconds", GIVE_UP_SECONDS)
                return 1
            try:
                self.step()
            except (OffsetOutOfRangeError, NoOffsetForPartitionError):
                self.lose_place()
            except KafkaError as error:
                self.lose_place()  # poll() may have skipped records before it raised
                self.kafka.begin(self.kafka_log.cause or plain(str(error)))
                if self.is_stuck(error):
                    self.close_consumer()
                self.renew()  # what Kafka refuses may be a certificate that has ended
                self.stop.wait(1.0)
        return 0

    def is_stuck(self, error: KafkaError) -> bool:
        """Whether only a new consumer can go on. It costs a session's time until the group gives it partitions."""
        if isinstance(error, KafkaTimeoutError):
            return self.kafka_log.cause != REFUSED and self.silent_seconds() > STUCK_SECONDS
        return not isinstance(error, GOES_ON)

    def silent_seconds(self) -> float:
        """For how long this consumer has heard nothing from Kafka."""
        return self.clock() - max(self.heard_at, self.made_at)

    def given_up(self) -> bool:
        """Whether Kafka or PostgreSQL has been away for too long."""
        now = self.clock()
        return bool(
            (self.kafka.causes and now - self.heard_at > GIVE_UP_SECONDS)
            or (self.postgres.causes and now - self.answered_at > GIVE_UP_SECONDS)
        )

    def step(self) -> None:
        """One round of at most a second or so. KafkaError when Kafka refuses or is silent."""
        if self.consumer is None:
            self.assignment.consumer = self.consumer = self.make_consumer()
            self.consumer.subscribe([self.topic], listener=self.assignment)
            self.made_at = self.clock()
        if self.job:
            self.finish_job()
        if self.assignment.changed:
            self.assignment.changed, self.joined = False, True
            self.lose_place()  # what is in hand may be somebody else's now
        free = not self.job and self.clock() >= self.retry_at
        if not self.joined:
            self.consumer.poll(timeout_ms=self.poll_ms)
        elif not self.sought:
            if free:
                if self.kafka.causes:
                    self.ask()
                self.start(self.database.next_offsets, then=self.seek)
            self.stay_in_group()
        elif self.batches and free:
            batch = self.batches[0]
            self.start(self.database.record, batch, then=lambda rejected: self.done(batch, rejected))
        elif len(self.batches) < 2:
            self.read()
        else:
            self.stay_in_group()
        self.ask_if_silent()
        self.report()

    def lose_place(self) -> None:
        """Drop what is in hand, and ask the database where to read: it is read again, here or by another consumer."""
        self.sought = False
        self.batches.clear()

    def start(self, call: Callable[..., Any], *arguments: Any, then: Callable[[Any], None]) -> None:
        """Let the database's thread do something; finish_job() goes on with `then`."""
        self.job, self.then = self.pool.submit(call, *arguments), then

    def finish_job(self) -> None:
        """Go on where the database has answered; try again later where it refused; give up on a silent connection."""
        assert self.job
        if not self.job.done():
            if self.clock() > self.database.deadline:
                self.database.cut()
            return
        job, self.job = self.job, None
        try:
            result = job.result()
        except psycopg2.Error as error:
            self.postgres.begin(explained(error))
            longest = RETRY_SECONDS[2] if error.pgcode or "FATAL" in str(error) else RETRY_SECONDS[1]
            self.retry_at = self.clock() + min(self.pause_seconds, longest)
            self.pause_seconds *= 2
        except Moved:
            self.moved()
        else:
            self.pause_seconds, self.answered_at = RETRY_SECONDS[0], self.clock()
            self.postgres.end()
            self.then(result)

    def moved(self) -> None:
        """Somebody else changed the offsets: a restored backup, or the consumer that has these partitions now."""
        logger.warning("the database's offsets are not where they were left: reading on from where they are")
        self.lose_place()

    def seek(self, stored: Mapping[int, int]) -> None:
        """Read on from the offsets that the database holds; from the start of a partition that it doesn't know."""
        if self.assignment.changed:
            return
        partitions = sorted(self.consumer.assignment())
        if not partitions:  # more consumers than partitions, or no topic: the latter is a KafkaTimeoutError
            self.consumer.end_offsets([TopicPartition(self.topic, 0)], timeout_ms=3000)
        begins = self.consumer.beginning_offsets(partitions, timeout_ms=3000)
        ends = self.consumer.end_offsets(partitions, timeout_ms=3000)
        made_anew = []
        for partition in partitions:
            begin, end = begins[partition], ends[partition]
            offset = stored.get(partition.partition, begin)
            name = f"{partition.topic}/{partition.partition}"
            if offset > end:
                logger.error("%s ends at %d, but %d were read: it was made anew; all of it is read", name, end, offset)
                made_anew.append(partition.partition)
            elif offset < begin:
                logger.error("%s: offsets %d to %d are lost: Kafka's retention deleted them unread",
                             name, offset, begin - 1)  # fmt: skip
            self.consumer.seek(partition, offset if begin <= offset <= end else begin)
            self.left_at[partition] = stored.get(partition.partition)
            if partition.partition in stored and offset <= end:  # whoever recorded it may not have told Kafka
                self.next_offsets[partition] = offset
        if self.until_empty and self.ends is None:
            everything = [TopicPartition(self.topic, n) for n in self.consumer.partitions_for_topic(self.topic)]
            begins = self.consumer.beginning_offsets(everything, timeout_ms=3000)
            ends = self.consumer.end_offsets(everything, timeout_ms=3000)
            self.ends = {partition: end for partition, end in ends.items() if end > begins[partition]}
        self.heard_at = self.clock()
        self.kafka.end()
        if made_anew:  # then ask again where to read
            self.start(self.database.forget, made_anew, then=lambda _: None)
        else:
            self.sought, self.verified_at = True, self.heard_at

    def read(self) -> None:
        """Read the next batch, or see that there is none."""
        if paused := self.consumer.paused():
            self.consumer.resume(*paused)
        polled = self.consumer.poll(timeout_ms=self.poll_ms)
        if self.assignment.changed:
            return
        if polled:
            self.heard_at = self.clock()
            self.kafka.end()
            batch = parse(flatten(polled), UUID(int=0), self.left_at)
            self.left_at |= batch.next_offsets
            self.batches.append(batch)
        elif not self.job and not self.batches:
            if self.ends is not None:
                self.start(self.database.next_offsets, then=self.compare)
            elif self.clock() - self.verified_at > LOG_SECONDS:
                self.start(self.database.next_offsets, then=self.verify)

    def verify(self, stored: Mapping[int, int]) -> None:
        """Where nothing comes in, see for a database that was put back to a backup: it is filled up again."""
        self.verified_at = self.clock()
        if any(stored.get(at.partition) != self.left_at[at] for at in self.consumer.assignment() if at in self.left_at):
            self.moved()
        else:
            self.tell(self.next_offsets)  # in a rebalance, Kafka takes none

    def compare(self, stored: Mapping[int, int]) -> None:
        """Finished when each partition is recorded, by this consumer or by another, to where it ended at the start."""
        mine = self.consumer.assignment()
        assert self.ends is not None
        self.finished = all(
            max(stored.get(partition.partition, 0), self.consumer.position(partition) if partition in mine else 0)
            >= end
            for partition, end in self.ends.items()
        )

    def stay_in_group(self) -> None:
        """Wait for the database without reading: a consumer that doesn't poll would hold up the whole group."""
        if self.job:
            wait([self.job], timeout=0.5)
            if self.job.done():
                return
        else:
            self.stop.wait(min(0.5, self.retry_at - self.clock()))
        if assigned := self.consumer.assignment():
            self.consumer.pause(*assigned)
        self.consumer.poll(timeout_ms=100)

    def done(self, batch: Batch, rejected: int) -> None:
        """A batch is recorded: now its offsets may go to Kafka."""
        if self.batches and self.batches[0] is batch:
            self.batches.popleft()
        recorded = len(batch.rows) + len(batch.rejected) - rejected
        self.recorded += recorded
        self.next_offsets |= batch.next_offsets
        if rejected:
            reason = f", the first: {batch.rejected[0][1]}" if batch.rejected else ""
            logger.warning("%d messages went to rejected_messages%s", rejected, reason)
        logger.debug("recorded %d, rejected %d", recorded, rejected)
        self.tell(batch.next_offsets)

    def tell(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Let Kafka show how far this consumer's partitions are recorded."""
        if mine := self.committable(offsets):
            self.consumer.commit_async(mine)

    def committable(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
        """As Kafka takes them, those of this consumer's partitions. Kafka only shows them: the database's count."""
        mine = self.consumer.assignment() if self.consumer else set()
        return {partition: OffsetAndMetadata(n, "", -1) for partition, n in offsets.items() if partition in mine}

    def ask_if_silent(self) -> None:
        """An idle topic and a dead connection look alike: ask. KafkaTimeoutError when it is dead."""
        silent_seconds = self.silent_seconds()
        if silent_seconds > IDLE_SECONDS or (silent_seconds > SUSPECT_SECONDS and self.kafka_log.at > self.heard_at):
            self.ask()
            if self.sought:
                self.kafka.end()

    def ask(self) -> None:
        """Hear from Kafka, or KafkaTimeoutError."""
        self.consumer.end_offsets(list(self.consumer.assignment()) or [TopicPartition(self.topic, 0)], timeout_ms=3000)
        self.heard_at = self.clock()
        self.kafka_log.forget()

    def report(self) -> None:
        """What was recorded: to a terminal each second, to the log each minute, or seldom when it is nothing."""
        now = self.clock()
        if now - self.shown_at >= 1:
            speed, behind = (self.recorded - self.shown) / (now - self.shown_at), self.behind()
            left = f", {behind:,} to go, {behind / speed:,.0f} s left" if behind and speed else ""
            self.show(f"{self.recorded:,} recorded, {speed:,.0f} a second{left}")
            self.shown_at, self.shown = now, self.recorded
        if now - self.logged_at >= (LOG_SECONDS if self.recorded > self.logged else QUIET_SECONDS):
            logger.info("%d recorded in the last %.0f s, %d to go", self.recorded - self.logged, now - self.logged_at,
                        self.behind())  # fmt: skip
            self.logged_at, self.logged = now, self.recorded
            self.renew()

    def behind(self) -> int:
        """How many messages of this consumer's partitions are in Kafka and not recorded."""
        positions = self.committable(self.next_offsets)
        return sum(max(0, (self.consumer.highwater(at) or 0) - n.offset) for at, n in positions.items())

    def close_consumer(self) -> None:
        """Leave the group, or at least this connection."""
        if self.consumer:
            with contextlib.suppress(KafkaError):
                self.consumer.close(timeout_ms=1000)
            self.consumer, self.joined = None, False

    def close(self) -> None:
        """Let the database finish what it is doing, if it can soon, and leave the group."""
        if self.job:
            wait([self.job], timeout=STOP_SECONDS)
            if not self.job.done():
                self.database.cut()
                wait([self.job], timeout=0.5)
            if self.consumer and self.job.done():
                with contextlib.suppress(KafkaError):
                    self.finish_job()
        self.show("")
        logger.info("stopped: %d recorded since the start", self.recorded)
        if offsets := self.committable(self.next_offsets):
            with contextlib.suppress(KafkaError):
                self.consumer.commit(offsets, timeout_ms=1000)
        self.close_consumer()
