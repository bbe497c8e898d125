"""From the outbox to Kafka, until it is acknowledged."""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kafka import KafkaProducer
from kafka.errors import (
    KafkaError,
)

from eventkafkapostgres.outages import KafkaLog, Outage, explain_kafka_error
from eventkafkapostgres.outbox import Outbox, set_aside
from simpleEvents import EventSystem

logger = logging.getLogger(__name__)

WINDOW = 1000  # warnings in flight, and warnings kept in memory while the disk takes none
SEND_SECONDS = 5.0  # without an acknowledgement for so long, Kafka is said to be away
RETRY_SECONDS = (1.0, 30.0)  # the first and the longest pause after Kafka refused a warning


@dataclass(eq=False, slots=True)
class Sent:
    """A warning that was sent, as bandwidth_exceeds holds it until Kafka acknowledges it."""

    position: int | None  # in the outbox; None when the disk refused it
    key: bytes
    value: bytes
    future: Any


class Delivery:
    """Takes warnings through the outbox to Kafka. Nothing here waits for Kafka: pump() does what can be done now."""

    def __init__(
        self,
        kproducer: KafkaProducer,
        topic: str,
        outbox: Outbox,
        bandwidth_exceeds: EventSystem[Sent],
        kafka_log: KafkaLog,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.kproducer, self.topic, self.outbox, self.clock, self.sleep = kproducer, topic, outbox, clock, sleep
        self.bandwidth_exceeds, self.kafka_log = bandwidth_exceeds, kafka_log
        self.kafka, self.disk = Outage("Kafka", logger), Outage("Outbox", logger)
        self.waiting = outbox.count()  # warnings that Kafka has not acknowledged
        self.acknowledged = 0
        self.lost = 0
        self.unsaved: list[tuple[bytes, bytes]] = []  # (key, value): raised, and not on the disk yet
        self.settled: set[int] = set()  # positions: acknowledged, and still on the disk
        self.sent_up_to = 0  # position
        self.refused: BaseException | None = None
        self.pause_seconds = RETRY_SECONDS[0]
        self.resume_at = self.alive_at = clock()
        self.topic_known = False
        self.episode: tuple[datetime, datetime] | None = None  # first and last warning of the overload that goes on
        self.heartbeat: Any = None  # the future of the last one
        self.heartbeat_at = -math.inf  # when the next one is due

    def pump(self, *raised: tuple[bytes, bytes]) -> None:
        """One round: look at each future, store what was raised, send what the window takes, say what is wrong."""
        self.settle()
        self.waiting += len(raised)
        self.unsaved.extend(raised)
        self.store()
        self.send()
        self.report()

    def settle(self) -> None:
        """Look at every future: an acknowledged warning may leave the outbox, a refused one is sent again later."""
        refused = False
        for sent in [sent for sent in self.bandwidth_exceeds.events if sent.future.is_done]:
            self.bandwidth_exceeds.remove_event(sent)
            if sent.future.succeeded():
                self.acknowledged += 1
                self.waiting -= 1
                self.alive_at, self.pause_seconds = self.clock(), RETRY_SECONDS[0]
                self.kafka.end()
                self.kafka_log.forget()
                if sent.position is not None:
                    self.settled.add(sent.position)
            else:
                refused, self.refused = True, sent.future.exception
                if sent.position is None:
                    self.unsaved.append((sent.key, sent.value))
        if refused:
            self.resume_at = self.clock() + self.pause_seconds
            self.pause_seconds = min(2 * self.pause_seconds, RETRY_SECONDS[1])

    def store(self) -> None:
        """Bring the outbox up to date, in one transaction. What a full disk refuses stays in memory, at most WINDOW."""
        if not (self.unsaved or self.settled):
            return
        try:
            self.outbox.change(self.unsaved, self.settled)
        except sqlite3.OperationalError as error:
            self.disk.begin(f"{self.outbox.path} can't be written: {error}")
            excess = max(0, len(self.unsaved) - WINDOW)
            if excess:
                logger.error("Outbox: %d warnings lost: neither the disk nor Kafka takes them", excess)
            del self.unsaved[:excess]
            self.lost += excess
            self.waiting -= excess
        except sqlite3.DatabaseError as error:
            self.begin_anew(error)
        else:
            self.unsaved.clear()
            self.settled.clear()
            self.disk.end()

    def begin_anew(self, error: sqlite3.DatabaseError) -> None:
        """Go on with a new outbox; what is in flight has no place in it."""
        self.outbox.connection.close()
        self.outbox = set_aside(self.outbox.path, error)
        self.sent_up_to = 0
        self.settled.clear()
        for sent in self.bandwidth_exceeds.events:
            sent.position = None
        self.waiting = len(self.unsaved) + len(self.bandwidth_exceeds.events)

    def send(self) -> None:
        """Send the oldest warnings that are not in flight, as many as the window has room for."""
        in_flight = self.bandwidth_exceeds.events
        if self.clock() < self.resume_at or (self.refused and in_flight):
            return
        if self.refused:  # begin again at the oldest, so that a host's warnings stay in order
            self.refused, self.sent_up_to, self.alive_at = None, 0, self.clock()
        room = WINDOW - len(in_flight)
        try:
            for position, key, value in self.outbox.after(self.sent_up_to, room) if room else ():
                if position not in self.settled:
                    self.send_one(position, key, value)
                self.sent_up_to = position
            while self.unsaved and len(in_flight) < WINDOW:
                self.send_one(None, *self.unsaved[0])
                del self.unsaved[0]
        except KafkaError:  # raised, not in the future: no metadata of the topic yet
            self.resume_at = self.clock() + 0.25
        except sqlite3.OperationalError as error:
            self.disk.begin(f"{self.outbox.path} can't be read: {error}")
        except sqlite3.DatabaseError as error:
            self.begin_anew(error)

    def send_one(self, position: int | None, key: bytes, value: bytes) -> None:
        future = self.kproducer.send(self.topic, value=value, key=key)
        self.bandwidth_exceeds.add_event(Sent(position, key, value, future))

    def report(self) -> None:
        """Say once when Kafka takes no warnings, with the cause; an acknowledgement says that it does again."""
        now = self.clock()
        if not self.topic_known:
            with contextlib.suppress(KafkaError):
                self.topic_known = bool(self.kproducer.partitions_for(self.topic))
            if self.topic_known and not self.waiting:
                self.kafka.end()
        if self.topic_known and not self.waiting:
            self.alive_at = now
        if self.refused:
            self.kafka.begin(explain_kafka_error(str(self.refused)))
        elif now - self.alive_at > SEND_SECONDS:
            if self.kafka_log.at > self.alive_at:
                self.kafka.begin(self.kafka_log.cause)
            elif now - self.alive_at > 2 * SEND_SECONDS:  # the log takes a handshake's time to name a cause
                self.kafka.begin("no answer")

    def episode_started_at(self, observed_at: datetime, interval_seconds: float) -> datetime:
        """When the overload began that a warning belongs to: it goes on while one follows another soon enough."""
        longest_gap = timedelta(seconds=max(5.0, 2 * interval_seconds))
        goes_on = self.episode and observed_at - self.episode[1] <= longest_gap
        started_at = self.episode[0] if self.episode and goes_on else observed_at
        self.episode = started_at, observed_at
        return started_at

    def idle(self) -> float:
        """pump(), then for how many seconds there is nothing to do."""
        self.pump()
        return 0.05 if self.waiting > len(self.bandwidth_exceeds.events) else math.inf

    def beat(self, key: bytes, value: bytes, seconds: float) -> None:
        """Send a heartbeat now or never: a late one says nothing. The next is due in `seconds`."""
        self.heartbeat_at = self.clock() + seconds
        if not self.heartbeat or self.heartbeat.is_done:
            with contextlib.suppress(KafkaError):
                self.heartbeat = self.kproducer.send(self.topic, value=value, key=key)

    def finish(self, seconds: float) -> None:
        """Flush, and look at every future until all are done or the time is over."""
        ends_at = self.clock() + seconds
        with contextlib.suppress(KafkaError):
            self.kproducer.flush(timeout=0)  # sends what lingers; the futures tell what became of it
        self.pump()
        while self.waiting and not self.kafka.causes and (left := ends_at - self.clock()) > 0:
            self.sleep(min(0.05, left))
            self.pump()
        self.store()
