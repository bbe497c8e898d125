"""A librdkafka producer and consumer beside the scripts, on the same brokers: how late are its messages?"""

import threading
import time
from typing import Any

from confluent_kafka import Consumer, Producer

from servers import Servers

INTERVAL_SECONDS = 0.1


class Pair:
    """Sends a message ten times a second and reads them. `latest_seconds`: the longest that one was on its way."""

    def __init__(self, servers: Servers, topic: str) -> None:
        environment = servers.kafka.environment()
        common = {
            "bootstrap.servers": environment["KAFKA_BOOTSTRAP_SERVERS"],
            "security.protocol": "ssl",
            "ssl.ca.location": environment["KAFKA_SSL_CAFILE"],
            "ssl.certificate.location": environment["KAFKA_SSL_CERTFILE"],
            "ssl.key.location": environment["KAFKA_SSL_KEYFILE"],
            "log_level": 0,
        }
        self.topic = topic
        self.sent = self.read = 0
        self.latest_seconds = 0.0
        self._stop = threading.Event()
        self._producer = Producer(common | {"enable.idempotence": True})
        self._consumer = Consumer(common | {"group.id": topic, "auto.offset.reset": "earliest"})
        self._threads = [threading.Thread(target=each) for each in (self._send, self._read)]

    def __enter__(self) -> "Pair":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._producer.produce(self.topic, str(time.monotonic()).encode())
            self._producer.poll(0)
            self.sent += 1
        self._producer.flush(60)

    def _read(self) -> None:
        self._consumer.subscribe([self.topic])
        while not self._stop.is_set():
            message: Any = self._consumer.poll(0.2)
            if message is None or message.error():
                continue
            self.read += 1
            self.latest_seconds = max(self.latest_seconds, time.monotonic() - float(message.value()))
        self._consumer.close()

    def has_read_all(self) -> bool:
        """Whether it has caught up: the latest second is all that may be on its way."""
        return self.read > 0 and self.sent - self.read < 1 / INTERVAL_SECONDS
