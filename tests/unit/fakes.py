"""What the tests of several rooms share: a Kafka with real futures, and looks into the outbox and the log."""

from unittest.mock import Mock, create_autospec

from kafka import KafkaProducer, TopicPartition
from kafka.errors import IllegalStateError, KafkaTimeoutError, TopicAuthorizationFailedError
from kafka.producer.future import FutureProduceResult, FutureRecordMetadata


def values(outbox):
    """What waits, oldest first; it is not on its way to anywhere by that."""
    handed_out = dict(outbox.memory.handed_out)
    outbox.after(-1, 1)  # where the file turns out to be damaged only now, the next time another one is read
    found = [warning.value for warning in outbox.after(-1, 10_000)]
    outbox.memory.handed_out = handed_out
    return found


def put(outbox, *texts):
    for text in texts:
        outbox.put(b"web-1", text.encode())


def fill_disk(outbox, is_full=True):
    """Let SQLite find the disk full, as it really does; with False, there is room again."""
    connection = outbox.file.connection
    pages = connection.execute("pragma page_count").fetchone()[0]
    connection.execute(f"pragma max_page_count = {pages if is_full else 1 << 30}")


def damage(outbox):
    """Overwrite the file under an open outbox, and make SQLite look at it again."""
    outbox.file.connection.execute("pragma wal_checkpoint(truncate)")
    outbox.path.write_bytes(b"\xff" * outbox.path.stat().st_size)
    outbox.file.connection.execute("pragma shrink_memory")


class Kafka:
    """A topic, and KafkaProducers with their real interface, real futures, and lists as spies."""

    def __init__(self, outbox=None):
        self.outbox = outbox
        self.partitions = {0}  # of the topic; None: there is none, or no broker that tells
        self.raises = None  # by send()
        self.producer_class = lambda: create_autospec(KafkaProducer, instance=True)
        self.producers = []
        self.sent = []  # values
        self.futures = []
        self.on_disk = []  # what the outbox held when each value was sent
        self.flushes = []  # the timeouts
        self.on_flush = lambda: None

    def new_producer(self):
        """A KafkaProducer."""
        made = self.producer_class()
        futures = []

        def send(topic, value=None, key=None, headers=None, partition=None, timestamp_ms=None):
            assert (topic, key) == ("bandwidth_exceeds", b"web-1")
            if self.raises:
                raise self.raises
            self.sent.append(value)
            if self.outbox is not None:
                self.on_disk.append(values(self.outbox))
            produced = FutureProduceResult(TopicPartition(topic, 0))
            futures.append(FutureRecordMetadata(produced, 0, 1, None, len(key), len(value), -1))
            self.futures.append(futures[-1])
            return futures[-1]

        def partitions_for(topic):
            if self.partitions is None:
                raise KafkaTimeoutError("Failed to update metadata after 0.0 secs.")
            return self.partitions

        def flush(timeout=None):
            self.flushes.append(timeout)
            self.on_flush()

        def force_close():
            """What the sender's thread does then: nothing that is in flight completes any more."""
            for future in futures:
                if not future.is_done:
                    future._produce_future.failure(IllegalStateError("Producer is closed forcefully."))

        made.send.side_effect, made.partitions_for.side_effect, made.flush.side_effect = send, partitions_for, flush
        made._sender = Mock()
        made._sender.force_close.side_effect = force_close
        self.producers.append(made)
        return made

    def acknowledge(self, *indexes):
        """What kafka-python's sender does when the broker acknowledged a batch; without indexes, all of them."""
        for future in [self.futures[index] for index in indexes] if indexes else self.futures:
            if not future.is_done:
                future._produce_future.success((7, -1, None))

    def refuse(self, *indexes, error=TopicAuthorizationFailedError):
        """What it does when the broker refused one."""
        for index in indexes:
            self.futures[index]._produce_future.success((-1, -1, lambda batch_index: error()))


def exchange(delivery):
    """A round of the loop of bandwidth_exceed_event_system(), without a sample."""
    for event in delivery.due():
        delivery.bandwidth_exceeds.add_event(event)
        delivery.send(event)
    for event in delivery.acknowledged():
        delivery.bandwidth_exceeds.remove_event(event)


def raise_warnings(delivery, *texts):
    """The same with some warnings."""
    put(delivery.outbox, *texts)
    exchange(delivery)


def logged(caplog, *levels):
    return [
        record.getMessage() for record in caplog.records if record.levelname in (levels or ("INFO", "WARNING", "ERROR"))
    ]
