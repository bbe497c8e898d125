"""From the outbox to Kafka, until it is acknowledged."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.future import Future

from eventkafkapostgres.outages import KafkaLog, Outage, explain_kafka_error
from eventkafkapostgres.outbox import Outbox
from eventkafkapostgres.workarounds import end_producer

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 1000  # warnings
PAUSE_SECONDS = (1.0, 30.0)  # the first and the longest pause before a producer that is stuck or refused is replaced
POLL_SECONDS = 0.05  # how soon an acknowledgement or a refusal is noticed
ACTIVE_SECONDS = 2.0  # for so long after a send. Later, and of all else:
IDLE_SECONDS = 0.5
AWAY_SECONDS = 0.5  # how long a flush waits for a Kafka that is known to be away


def answer_seconds(options: Mapping[str, Any]) -> float:
    """How long an acknowledgement may take while all is well."""
    return float(options.get("linger_ms", 0) + options["request_timeout_ms"]) / 1000


def silence(kafka_log: KafkaLog, seconds: float, answer_seconds: float) -> str:
    """Why there has been no answer for so long; "" while there is nothing to say."""
    if seconds > answer_seconds and kafka_log.clock() - kafka_log.at < seconds:
        return kafka_log.cause
    return "no answer" if seconds > 2 * answer_seconds else ""  # the log needs a handshake's time to name a cause


def flush_quietly(kproducer: KafkaProducer, seconds: float) -> None:
    """KafkaProducer.flush(). The futures tell what became of what was in flight."""
    with contextlib.suppress(KafkaError):
        kproducer.flush(timeout=seconds)


@dataclass(eq=False, slots=True)
class InFlight:
    """A warning on its way to Kafka, as bandwidth_exceeds holds it."""

    position: int  # in the outbox
    key: bytes
    value: bytes
    future: Any = None


class Events(Protocol):
    """What is in flight: an EventSystem."""

    events: list[InFlight]

    def add_event(self, event: InFlight, /) -> None: ...

    def remove_event(self, event: InFlight, /) -> None: ...


class Delivery:
    """Sends what the outbox holds. What is stuck or refused has one cure: a new KafkaProducer, and the oldest again.

    A warning that goes out twice is stored once. Nothing here waits for Kafka, but flush().
    """

    def __init__(
        self,
        kproducer: KafkaProducer,
        new_producer: Callable[[], KafkaProducer],
        topic: str,
        outbox: Outbox,
        bandwidth_exceeds: Events,
        kafka_log: KafkaLog,
        answer_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`answer_seconds`: how long an acknowledgement may take while all is well."""
        self.kproducer, self.new_producer, self.topic = kproducer, new_producer, topic
        self.outbox, self.bandwidth_exceeds, self.kafka_log = outbox, bandwidth_exceeds, kafka_log
        self.answer_seconds, self.clock, self.sleep = answer_seconds, clock, sleep
        self.outage = Outage("Kafka", logger)
        self.acknowledgements = 0
        self.partitions = 0  # of the topic, as this producer knows it
        self.sent_up_to = 0  # position
        self.alive_at = self.active_at = clock()  # the last answer or new producer; the last send or new producer
        self.refused = self.was_reached = False  # since it worked; Kafka has ever told of the topic
        self.replace_at, self.pause_seconds = math.inf, PAUSE_SECONDS[0]
        self.heartbeat: InFlight | None = None
        self.heartbeat_at = -math.inf  # when the next one is due

    @property
    def is_idle(self) -> bool:
        """Whether the topic is there, and Kafka owes no answer."""
        return bool(self.partitions) and not len(self.outbox) and not self.heartbeat

    def due(self) -> Iterator[InFlight]:
        """What is to be sent now, oldest first."""
        self.outbox.maintain()
        if self.clock() >= self.replace_at:
            self._replace_producer()
        self._watch()
        in_flight = len(self.bandwidth_exceeds.events)
        if in_flight < min(len(self.outbox), MAX_IN_FLIGHT) and self.partitions and self.replace_at == math.inf:
            for position, key, value in self.outbox.after(self.sent_up_to, MAX_IN_FLIGHT - in_flight):
                self.sent_up_to = position
                yield InFlight(position, key, value)

    def send(self, event: InFlight) -> None:
        """Hand a warning to the KafkaProducer. The future tells what becomes of it."""
        self.active_at = self.clock()
        try:
            event.future = self.kproducer.send(self.topic, key=event.key, value=event.value)
        except (KafkaError, TypeError, ValueError) as error:  # it is too large, or the topic goes in this moment
            event.future = Future().failure(error)

    def acknowledged(self) -> list[InFlight]:
        """What Kafka has acknowledged since the last call: it has left the outbox."""
        done = [event for event in self.bandwidth_exceeds.events if event.future.is_done]
        acknowledged = [event for event in done if event.future.succeeded()]
        if acknowledged:
            self.outbox.remove(event.position for event in acknowledged)
            self.acknowledgements += len(acknowledged)
            self._works()
        if failed := next((event for event in done if event.future.failed()), None):
            self._refuse(failed.future.exception)
        return acknowledged

    def send_heartbeat(self, key: bytes, value: bytes, seconds: float) -> None:
        """Send a heartbeat now or never: a late one says nothing. The next is due in `seconds`."""
        self.heartbeat_at = self.clock() + seconds
        if self.partitions and not self.heartbeat:
            self.heartbeat = InFlight(0, key, value)
            self.send(self.heartbeat)

    def pause(self) -> float:
        """For how many seconds there is nothing to do."""
        waits = bool(self.bandwidth_exceeds.events or self.heartbeat or not self.partitions)
        return POLL_SECONDS if waits and self.clock() - self.active_at < ACTIVE_SECONDS else IDLE_SECONDS

    def flush(self, seconds: float) -> None:
        """KafkaProducer.flush(), until Kafka owes no answer or the time is over; it is short while Kafka is away."""
        began_at = self.clock()
        while not self.is_idle:
            left = began_at + (min(seconds, AWAY_SECONDS) if self.outage.causes else seconds) - self.clock()
            if left <= 0:
                break
            for event in self.due():
                self.bandwidth_exceeds.add_event(event)
                self.send(event)
            # in a thread, for its timeout begins again with each batch
            flushing = threading.Thread(target=flush_quietly, args=(self.kproducer, left), daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can be started: what does not linger is sent anyway
                flushing.start()
                flushing.join(left)
            for event in self.acknowledged():
                self.bandwidth_exceeds.remove_event(event)
            self.sleep(0.0 if self.is_idle else min(POLL_SECONDS, left))

    def _works(self) -> None:
        """Kafka acknowledges."""
        self.alive_at, self.refused, self.pause_seconds = self.clock(), False, PAUSE_SECONDS[0]
        self.outage.end()
        self.kafka_log.forget()

    def _refuse(self, error: BaseException) -> None:
        """Kafka refuses: say so, and begin again after a pause."""
        self.refused = True
        self.outage.begin(explain_kafka_error(str(error)))
        self.replace_at = min(self.replace_at, self.clock() + self.pause_seconds)

    def _watch(self) -> None:
        """Notice a topic that has gone, came, or shrunk; what became of the heartbeat; a silence."""
        known, self.partitions = self.partitions, 0
        with contextlib.suppress(KafkaError):  # there is no answer yet, no such topic, or this user may not see it
            self.partitions = len(self.kproducer.partitions_for(self.topic))
            self.was_reached = True
        if self.partitions < known:  # this producer would spin, and never complete what is in flight
            self.replace_at = min(self.replace_at, self.clock() + self.pause_seconds)
        if self.heartbeat and self.heartbeat.future.is_done:
            self._works() if self.heartbeat.future.succeeded() else self._refuse(self.heartbeat.future.exception)
            self.heartbeat = None
        if self.is_idle:
            self.alive_at = self.clock()
            if not known and not self.refused:
                self.outage.end()
        silent_seconds = self.clock() - self.alive_at
        if self.replace_at == math.inf and (cause := silence(self.kafka_log, silent_seconds, self.answer_seconds)):
            self.outage.begin(cause)
        if silent_seconds > 3 * self.answer_seconds + self.pause_seconds:
            self.replace_at = -math.inf

    def _replace_producer(self) -> None:
        """The cure: a new KafkaProducer, nothing in flight, and sending begins again at the oldest warning."""
        self.alive_at = self.active_at = self.clock()
        self.pause_seconds = min(2 * self.pause_seconds, PAUSE_SECONDS[1])
        self.replace_at = self.alive_at + self.pause_seconds
        try:
            kproducer = self.new_producer()
        except OSError as error:  # no file is left to open, or no thread to start
            self.outage.begin(str(error))
            return
        end_producer(self.kproducer)
        self.kproducer, self.partitions, self.sent_up_to = kproducer, 0, 0
        self.heartbeat, self.replace_at = None, math.inf
        for event in [*self.bandwidth_exceeds.events]:
            self.bandwidth_exceeds.remove_event(event)
