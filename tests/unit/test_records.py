"""The decoder of record batches against kafka-python's own, which it must equal in everything but headers."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from eventkafkapostgres.records import RecordBatch, decode_faster

AT = TopicPartition("bandwidth_exceeds", 0)
NONE, GZIP = 0, 1
APPEND_TIME, CONTROL = 0x08, 0x30

# the longest lengths of one and of two bytes, and the next ones
texts = st.binary(max_size=20) | st.sampled_from([63, 64, 8191, 8192]).map(bytes)
record_fields = st.tuples(
    st.integers(0, 1 << 40),  # milliseconds
    st.none() | texts,  # key
    st.none() | texts,  # value
    st.just([]) | st.lists(st.tuples(st.text(max_size=9), st.none() | st.binary(max_size=9)), max_size=3),
)


def encoded(records, offsets=None, compression=NONE, attributes=0):
    """One batch as Kafka sends it; `offsets` may have gaps, as after compaction."""
    builder = DefaultRecordBatchBuilder(2, compression, False, -1, -1, -1, 1 << 24)
    for offset, (timestamp, key, value, headers) in zip(offsets or range(len(records)), records, strict=True):
        builder.append(offset, timestamp, key, value, headers)
    batch = builder.build()
    batch[DefaultRecordBatch.ATTRIBUTES_OFFSET + 1] |= attributes
    return bytes(batch)


def polled(decoder, batches, monkeypatch):
    """What KafkaConsumer.poll() makes of the batches, or its error."""
    with monkeypatch.context() as patch:
        patch.setattr(memory_records, "DefaultRecordBatch", decoder)
        partition = Fetcher.PartitionRecords(
            0, AT, MemoryRecords(batches), check_crcs=False, isolation_level=IsolationLevel.READ_COMMITTED
        )
        try:
            records = [one._replace(headers=(), serialized_header_size=0) for one in partition.take()]
        except CorruptRecordError:
            return CorruptRecordError
        return records, partition.next_fetch_offset, partition.bytes_read


@pytest.fixture(scope="module")
def patches():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@settings(deadline=None)
@given(
    st.lists(record_fields, min_size=1, max_size=9),
    st.sampled_from([NONE, GZIP]),
    st.sampled_from([0, APPEND_TIME]),
    st.lists(st.integers(1, 1 << 20), min_size=9, max_size=9),
)
def test_any_batch_is_decoded_as_by_kafka_python(patches, records, compression, attributes, gaps):
    offsets = list(itertools.accumulate(gaps[: len(records) - 1], initial=0))
    batch = encoded(records, offsets, compression, attributes)
    ours, theirs = (polled(decoder, batch * 2, patches) for decoder in (RecordBatch, DefaultRecordBatch))
    assert len(ours[0]) == 2 * len(records)
    assert ours == theirs


@settings(deadline=None)
@given(st.lists(record_fields, min_size=1, max_size=4), st.data())
def test_a_damaged_batch_is_refused_or_decoded(patches, records, data):
    batch = bytearray(encoded(records))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(DefaultRecordBatch.HEADER_STRUCT.size, len(batch) - 1))
        batch[at] = data.draw(st.integers(0, 255))
    found = polled(RecordBatch, bytes(batch), patches)  # no other error: the checksum is looked at before this
    assert found is CorruptRecordError or len(found[0]) <= len(records)


def test_the_name_of_a_header_may_be_any_bytes(patches):
    batch = encoded([(1, b"web-1", b"{}", []), (2, None, b"[]", [("name", b"value")]), (3, b"web-1", None, [])])
    ours, next_offset, _ = polled(RecordBatch, batch.replace(b"name", b"\xff\xfe\xfd\xfc"), patches)
    assert [(one.offset, one.timestamp, one.key, one.value) for one in ours] == [
        (0, 1, b"web-1", b"{}"),
        (1, 2, None, b"[]"),
        (2, 3, b"web-1", None),
    ]
    assert next_offset == 3


def test_a_record_of_a_megabyte_is_decoded(patches):
    batch = encoded([(1, b"web-1", bytes(1 << 20), [])])
    assert polled(RecordBatch, batch, patches) == polled(DefaultRecordBatch, batch, patches)


def test_the_marker_of_a_transaction_is_not_a_record(patches):
    marker = encoded([(0, b"\0\0\0\1", b"", [])], attributes=CONTROL)
    assert polled(RecordBatch, marker, patches) == polled(DefaultRecordBatch, marker, patches) == ([], 1, 0)


def test_it_is_used_once_asked_for(monkeypatch):
    monkeypatch.setattr(memory_records, "DefaultRecordBatch", DefaultRecordBatch)
    decode_faster()
    assert type(MemoryRecords(encoded([(1, b"web-1", b"{}", [])])).next_batch()) is RecordBatch
