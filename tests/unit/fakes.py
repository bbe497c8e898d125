"""What the tests of several rooms share: a KafkaProducer with real futures, and looks into the outbox."""

from unittest.mock import create_autospec

from kafka import KafkaProducer, TopicPartition
from kafka.errors import TopicAuthorizationFailedError
from kafka.producer.future import FutureProduceResult, FutureRecordMetadata


def values(outbox):
    return [value for _, _, value in outbox.after(0, 10_000)]


def put(outbox, *texts):
    outbox.change([(b"h", text.encode()) for text in texts], [])


class Kafka:
    """A KafkaProducer with its real interface, real futures, and lists as spies."""

    def __init__(self, outbox):
        self.client = create_autospec(KafkaProducer, instance=True)
        self.client.send.side_effect = self.send
        self.client.partitions_for.return_value = {0}
        self.outbox = outbox
        self.raises = None
        self.sent = []  # values
        self.futures = []
        self.on_disk = []  # what the outbox held when each value was sent

    def send(self, topic, value=None, key=None, headers=None, partition=None, timestamp_ms=None):
        if self.raises:
            raise self.raises
        self.sent.append(value)
        if self.outbox:
            self.on_disk.append(values(self.outbox))
        produced = FutureProduceResult(TopicPartition(topic, 0))
        self.futures.append(FutureRecordMetadata(produced, 0, 1, None, len(key), len(value), -1))
        return self.futures[-1]

    def acknowledge(self, *indexes):
        """What kafka-python's sender does when the broker acknowledged a batch."""
        for index in indexes or range(len(self.futures)):
            if not self.futures[index].is_done:
                self.futures[index]._produce_future.success((7, -1, None))

    def refuse(self, *indexes):
        """What it does when the broker refused one."""
        for index in indexes:
            self.futures[index]._produce_future.success((-1, -1, lambda batch_index: TopicAuthorizationFailedError()))


def raised(*texts):
    return [(b"web-1", text.encode()) for text in texts]


def said(caplog, *levels):
    return [record.getMessage() for record in caplog.records if record.levelname in (levels or ("WARNING", "ERROR"))]
