"""The message, both ways: a warning becomes JSON, and JSON becomes a row of PostgreSQL's table bandwidth_exceeds.

FIELDS says once which fields there are: their names are the names of the table's columns.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from uuid import UUID

from kafka import TopicPartition

from eventkafkapostgres.rates import format_rates_apart

if TYPE_CHECKING:
    from eventkafkapostgres.bandwidth import Sample

HOST_CHARACTERS = 255  # the longest name of a host
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})  # of COPY's text format


class NumberLiteral(str):
    """A number as it stands in the JSON text: PostgreSQL reads it, and no digit is lost on the way."""

    __slots__ = ()


# The checks of a field's value: ValueError says what is wrong with it; else the text of its column


def _check_uuid(text: str) -> str:
    if not re.fullmatch(UUID_PATTERN, text, re.IGNORECASE | re.ASCII):
        raise ValueError("is not a UUID")
    return text


def _check_time(text: str) -> str:
    if not is_time(text):
        raise ValueError("is not a time with a time zone (RFC 3339)")
    datetime.fromisoformat(text)  # ValueError: there is no such day or hour
    return text


def _check_host(text: str) -> str:
    if len(text) > HOST_CHARACTERS:
        raise ValueError(f"is longer than {HOST_CHARACTERS} characters")
    return text


def _check_names(names: list[object]) -> str:
    """An array literal."""
    if not all(type(name) is str for name in names):
        raise ValueError("has the wrong type")
    return "{" + ",".join('"' + str(name).replace("\\", r"\\").replace('"', r"\"") + '"' for name in names) + "}"


def _check_number(number: str) -> str:
    if not math.isfinite(float(number)):
        raise ValueError("is beyond a double precision")
    return number


# The fields

UUID_PATTERN = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}"
_CHARACTER = r'[^"\\\x00-\x1f]'  # needs an escape neither in JSON nor in COPY's text format nor in an array literal
is_time = re.compile(_TIME.replace("T", "[T ]") + r"(?:\.[0-9]+)?(?:Z|[+-](?:0[0-9]|1[0-5]):[0-5][0-9])").fullmatch


class Kind(NamedTuple):
    """What values a field has."""

    type: type  # as `decoder` reads it
    check: Callable[[Any], str]
    pattern: str  # as json.dumps() writes it, in its canonical form; the group is the text of the column


IDENTIFIER = Kind(str, _check_uuid, f'"({UUID_PATTERN})"')
TIME = Kind(str, _check_time, rf'"({_TIME}\.[0-9]{{6}}\+00:00)"')
HOST = Kind(str, _check_host, rf'"({_CHARACTER}{{1,{HOST_CHARACTERS}}})"')
NAMES = Kind(list, _check_names, rf'\[("{_CHARACTER}*"(?:, "{_CHARACTER}*")*)\]')
NUMBER = Kind(NumberLiteral, _check_number, r"((?!0[0-9])[0-9]{1,15}\.[0-9]{1,9})")
TEXT = Kind(str, str, f'"({_CHARACTER}*)"')
FIELDS = {
    "event_id": IDENTIFIER,
    "observed_at": TIME,
    "seconds": NUMBER,
    "episode_started_at": TIME,
    "host": HOST,
    "interfaces": NAMES,
    "bytes_sent_per_second": NUMBER,
    "bytes_received_per_second": NUMBER,
    "bytes_per_second": NUMBER,
    "limit_bytes_per_second": NUMBER,
    "message": TEXT,
}
COLUMNS = (*FIELDS, "topic", "partition", "offset", "extra")  # of a line for COPY, in this order
# What kproducer.py writes, to the letter. Any other message that is as good takes the longer way, to the same row.
match_canonical = re.compile(
    r"\{" + ", ".join(f'"{name}": {kind.pattern}' for name, kind in FIELDS.items()) + r"\}"
).fullmatch
_OBSERVED_AT, _EPISODE_STARTED_AT, _INTERFACES = map(
    list(FIELDS).index, ("observed_at", "episode_started_at", "interfaces")
)


# A warning becomes JSON


def uuid7(unix_seconds: float, random_bits: int) -> UUID:
    """UUID version 7 from a time and 74 random bits (RFC 9562, section 5.7)."""
    milliseconds = int(unix_seconds * 1000) & (1 << 48) - 1
    high, low = random_bits >> 62 & 0xFFF, random_bits & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low)


def warning(
    sample: Sample, host: str, limit_bytes_per_second: float, event_id: UUID, episode_started_at: datetime
) -> dict[str, Any]:
    """The fields of the message for one sample above the limit; its rates are over `seconds`, which end at observed_at.

    `episode_started_at` is the observed_at of the overload's first warning. Both times must be in UTC.
    """
    rate, limit = format_rates_apart(sample.bytes_per_second, limit_bytes_per_second)
    return {
        "event_id": str(event_id),
        "observed_at": sample.observed_at.isoformat(timespec="microseconds"),
        "seconds": round(sample.seconds, 6),
        "episode_started_at": episode_started_at.isoformat(timespec="microseconds"),
        "host": host,
        "interfaces": sample.interfaces,
        "bytes_sent_per_second": sample.bytes_sent_per_second,
        "bytes_received_per_second": sample.bytes_received_per_second,
        "bytes_per_second": sample.bytes_per_second,
        "limit_bytes_per_second": limit_bytes_per_second,
        "message": f"Bandwidth exceeded on {host}: {rate} is over the limit of {limit}",
    }


def heartbeat(host: str, at: datetime) -> dict[str, str]:
    """The fields of the message that says that a host is watched."""
    return {"host": host, "heartbeat_at": at.isoformat(timespec="microseconds")}


def to_json(value: object) -> str:
    """The JSON text of a value; each NumberLiteral as it stood."""
    if isinstance(value, dict):
        return "{" + ", ".join([f"{to_json(name)}: {to_json(member)}" for name, member in value.items()]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([to_json(member) for member in value]) + "]"
    return str(value) if isinstance(value, NumberLiteral) else json.dumps(value, ensure_ascii=False)


# JSON becomes a row


def _refuse_constant(name: str) -> NoReturn:
    """JSON has neither NaN nor the infinities."""
    raise ValueError(f"{name} is not a number")


check_episode = lru_cache(maxsize=4096)(datetime.fromisoformat)  # the same for all warnings of an overload
decoder = json.JSONDecoder(parse_float=NumberLiteral, parse_int=NumberLiteral, parse_constant=_refuse_constant)


def copy_line(value: bytes, topic: str, partition: int, offset: int) -> str:
    """The row of a message in COPY's text format. ValueError says why the message can't be stored."""
    text = value.decode()
    if canonical := match_canonical(text):
        columns, extra = list(canonical.groups()), r"\N"
        datetime.fromisoformat(columns[_OBSERVED_AT])  # ValueError: there is no such day or hour
        check_episode(columns[_EPISODE_STARTED_AT])
        columns[_INTERFACES] = f"{{{columns[_INTERFACES]}}}"
    else:
        *columns, extra = copy_columns(text)
    return "\t".join(columns) + f"\t{topic}\t{partition}\t{offset}\t{extra}\n"


def copy_columns(text: str) -> list[str]:
    """The columns of any message, escaped for COPY; `extra` comes last. ValueError as copy_line()."""
    fields = decoder.decode(text)
    if type(fields) is not dict:
        raise ValueError("not a JSON object")
    columns = []
    for name, kind in FIELDS.items():
        if type(fields.get(name)) is not kind.type:
            raise ValueError(f"{name} {'has the wrong type' if name in fields else 'is missing'}")
        try:
            columns.append(kind.check(fields[name]))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
    extra = {name: member for name, member in fields.items() if name not in FIELDS}
    dumped = to_json(extra) if extra else ""
    texts = "".join(columns)
    if "\0" in texts or r"\u0000" in dumped.replace(r"\\", ""):
        raise ValueError("a text holds a NUL, which PostgreSQL does not store")
    f"{texts}{dumped}".encode()  # UnicodeEncodeError, which is a ValueError: half of a surrogate pair
    return [column.translate(ESCAPES) for column in columns] + [dumped.translate(ESCAPES) or r"\N"]


def read_heartbeat(value: bytes | None) -> tuple[str, datetime] | None:
    """Host and time of a heartbeat; None when the message is not one."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        fields = json.loads(value or b"")
        host, at = fields["host"], fields["heartbeat_at"]
        if len(fields) == 2 and type(host) is str and host.encode() and is_time(at):
            return (host, datetime.fromisoformat(at)) if len(host) <= HOST_CHARACTERS and "\0" not in host else None
    return None


@dataclass
class Batch:
    """Messages that are recorded in one transaction, parsed: what goes to which table."""

    topic_id: UUID
    records: Sequence[Any]  # kafka-python's, as they were read: those of a partition in order
    expected_offsets: Mapping[TopicPartition, int]  # what consumed_offsets says before
    next_offsets: dict[TopicPartition, int]  # what it says afterwards
    rows: list[tuple[Any, str]] = field(default_factory=list)  # record, and its line for COPY
    rejected: list[tuple[Any, str]] = field(default_factory=list)  # record, and the reason
    heartbeats: dict[str, datetime] = field(default_factory=dict)  # host, and its latest

    def split(self) -> tuple[Batch, Batch]:
        """Two halves, for two transactions in this order. Needs two records at least."""
        middle = len(self.records) // 2
        first = parse(self.records[:middle], self.topic_id, self.expected_offsets)
        second = parse(self.records[middle:], self.topic_id, {**self.expected_offsets, **first.next_offsets})
        return first, second


def parse(records: Sequence[Any], topic_id: UUID, expected_offsets: Mapping[TopicPartition, int]) -> Batch:
    """A batch of any records of one topic; what can't be a row is in it with the reason. Never an error."""
    last = {record.partition: record for record in records}
    next_offsets = {TopicPartition(record.topic, record.partition): record.offset + 1 for record in last.values()}
    batch = Batch(topic_id, records, {at: expected_offsets[at] for at in next_offsets}, next_offsets)
    for record in records:
        try:
            if record.value is None:
                raise ValueError("a tombstone: a message without a value")
            batch.rows.append((record, copy_line(record.value, record.topic, record.partition, record.offset)))
        except (ValueError, RecursionError) as error:
            if found := read_heartbeat(record.value):
                host, at = found
                batch.heartbeats[host] = max(at, batch.heartbeats.get(host, at))
            else:
                batch.rejected.append((record, str(error)))
    return batch


def flatten(polled: Mapping[TopicPartition, Iterable[Any]]) -> list[Any]:
    """The records that KafkaConsumer.poll() returned."""
    return [record for records in polled.values() for record in records]
