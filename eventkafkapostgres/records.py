"""Kafka's record batches (KIP-98, magic 2), decoded in two thirds of the time that kafka-python 3.0.12 takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from kafka.errors import CorruptRecordError
from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint


@dataclass(slots=True)
class Record:
    """What kafka-python's DefaultRecord has, as attributes: a property costs a call, and there are ten for a record."""

    size_in_bytes: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: ClassVar[tuple[()]] = ()  # never read: kafka-python refuses a name that is not UTF-8, and Kafka does not
    checksum: ClassVar[None] = None

    def validate_crc(self) -> bool:
        """The checksum is the batch's."""
        return True


class RecordBatch(DefaultRecordBatch):  # type: ignore[misc]
    """Decodes all records but the markers of transactions, which it leaves to kafka-python."""

    def __iter__(self) -> Iterator[Any]:
        self._maybe_uncompress()
        return self if self.is_control_batch else self._records()

    def _records(self) -> Iterator[Record]:
        """CorruptRecordError where the bytes are no records."""
        buffer, at = bytes(self._buffer), self._pos  # a slice of bytes is copied once, of a bytearray twice
        base_offset, timestamp_type = self.base_offset, self.timestamp_type
        first_timestamp, append_timestamp = self.first_timestamp, self.max_timestamp
        for _ in range(self.records_count):
            key = value = None
            try:
                size, begin = decode_varint(buffer, at)
                timestamp, at = decode_varint(buffer, begin + 1)  # behind the attributes
                offset, at = decode_varint(buffer, at)
                key_size, at = decode_varint(buffer, at)
                if key_size >= 0:
                    key, at = buffer[at : at + key_size], at + key_size
                value_size, at = decode_varint(buffer, at)
                if value_size >= 0:
                    value, at = buffer[at : at + value_size], at + value_size
            except (ValueError, IndexError) as error:
                raise CorruptRecordError(f"no record: {error}") from error
            end = begin + size
            if not at < end <= len(buffer):  # behind the value there is the number of headers at least
                raise CorruptRecordError(f"a record of {size} bytes that does not fit")
            timestamp = append_timestamp if timestamp_type else first_timestamp + timestamp
            yield Record(size, base_offset + offset, timestamp, timestamp_type, key, value)
            at = end
        if at != len(buffer):
            raise CorruptRecordError(f"{len(buffer) - at} bytes behind the last record")


def decode_faster() -> None:
    """Let every KafkaConsumer of this process decode its records so."""
    memory_records.DefaultRecordBatch = RecordBatch
