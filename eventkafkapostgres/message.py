"""The message, both ways: a warning becomes JSON, and JSON becomes a row."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn
from uuid import UUID

from kafka import TopicPartition

from eventkafkapostgres.bandwidth import Sample, format_rate


def uuid7(unix_seconds: float, random_bits: int) -> UUID:
    """UUID version 7 from a time and 74 random bits (RFC 9562, section 5.7)."""
    milliseconds = int(unix_seconds * 1000) & (1 << 48) - 1
    high, low = random_bits >> 62 & 0xFFF, random_bits & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | high << 64 | 2 << 62 | low)


def warning(sample: Sample, host: str, limit_bytes_per_second: float, event_id: UUID) -> dict[str, Any]:
    """The message for one second above the limit: its fields are the columns of the table."""
    total = sample.bytes_sent_per_second + sample.bytes_received_per_second
    return {
        "event_id": str(event_id),
        "observed_at": sample.observed_at.isoformat(timespec="microseconds"),
        "host": host,
        "interfaces": sample.interfaces,
        "bytes_sent_per_second": round(sample.bytes_sent_per_second, 1),
        "bytes_received_per_second": round(sample.bytes_received_per_second, 1),
        "bytes_per_second": round(total, 1),
        "limit_bytes_per_second": limit_bytes_per_second,
        "message": f"Bandwidth exceeded on {host}: {format_rate(total)} is over the limit of "
        f"{format_rate(limit_bytes_per_second)}",
    }


HOST_CHARACTERS = 255


class Number(str):
    """A number of a JSON text, as it stands there: PostgreSQL reads it, and nothing is lost on the way."""

    __slots__ = ()


def refuse_constant(name: str) -> NoReturn:
    """NaN and the infinities are no JSON."""
    raise ValueError(f"{name} is no number")


decoder = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=refuse_constant)
FIELDS = {
    "event_id": str,
    "observed_at": str,
    "host": str,
    "interfaces": list,
    "bytes_sent_per_second": Number,
    "bytes_received_per_second": Number,
    "bytes_per_second": Number,
    "limit_bytes_per_second": Number,
    "message": str,
}
UUID_PATTERN = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}"
TEXT, NAME, NUMBER = r'[^"\\\x00-\x1f]', r'[^"\\,\x00-\x1f]', r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,9})?"
is_uuid = re.compile(UUID_PATTERN, re.IGNORECASE | re.ASCII).fullmatch
is_time = re.compile(TIME.replace("T", "[T ]") + r"(?:\.[0-9]+)?(?:Z|[+-](?:0[0-9]|1[0-5]):[0-5][0-9])").fullmatch
# What kproducer.py writes, to the letter: no text in it can hold what COPY, an array or PostgreSQL minds. Any other
# message that is as good takes the longer way, to the same row.
is_ours = re.compile(
    rf'\{{"event_id": "({UUID_PATTERN})", "observed_at": "({TIME}\.[0-9]{{6}}\+00:00)", "host": "({TEXT}{{1,255}})", '
    rf'"interfaces": \[("{NAME}*"(?:, "{NAME}*")*)\], "bytes_sent_per_second": ({NUMBER}), '
    rf'"bytes_received_per_second": ({NUMBER}), "bytes_per_second": ({NUMBER}), '
    rf'"limit_bytes_per_second": ({NUMBER}), "message": "({TEXT}*)"\}}'
).fullmatch
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def copy_line(value: bytes, topic: str, partition: int, offset: int) -> str:
    """The row of a message in COPY's text format. ValueError tells why the message can't be stored."""
    text = value.decode()
    if ours := is_ours(text):
        event_id, observed_at, host, array, sent, received, total, limit, message = ours.groups()
        array, extra = array.replace('", "', '","'), r"\N"
    else:
        event_id, observed_at, host, array, sent, received, total, limit, message, extra = copy_fields(text)
    datetime.fromisoformat(observed_at)  # ValueError: there is no such day or hour
    return (
        f"{event_id}\t{observed_at}\t{host}\t{{{array}}}\t{sent}\t{received}\t{total}\t{limit}\t{message}\t"
        f"{topic}\t{partition}\t{offset}\t{extra}\n"
    )


def copy_fields(text: str) -> list[str]:
    """The columns of a message that need not be ours, escaped for COPY; `extra` is the last. ValueError as above."""
    fields = decoder.decode(text)
    if type(fields) is not dict:
        raise ValueError("no JSON object")
    for name, kind in FIELDS.items():
        if type(fields.get(name)) is not kind:
            raise ValueError(f"{name} {'has the wrong type' if name in fields else 'is missing'}")
        if kind is Number and not math.isfinite(float(fields[name])):
            raise ValueError(f"{name} is beyond a double precision")
    event_id, observed_at, host, interfaces, *numbers, message = (fields[name] for name in FIELDS)
    if not is_uuid(event_id):
        raise ValueError("event_id is no UUID")
    if not is_time(observed_at):
        raise ValueError("observed_at is no time with a time zone (RFC 3339)")
    if len(host) > HOST_CHARACTERS:
        raise ValueError(f"host is longer than {HOST_CHARACTERS} characters")
    if any(type(name) is not str for name in interfaces):
        raise ValueError("interfaces has the wrong type")
    array = ",".join('"' + name.replace("\\", r"\\").replace('"', r"\"") + '"' for name in interfaces)
    extra = {name: value for name, value in fields.items() if name not in FIELDS}
    dumped = to_json(extra) if extra else ""
    texts = f"{host}{array}{message}"
    if "\0" in texts or r"\u0000" in dumped.replace(r"\\", ""):
        raise ValueError("a text holds a NUL, which PostgreSQL does not store")
    f"{texts}{dumped}".encode()  # UnicodeEncodeError is a ValueError: half a surrogate pair
    host, array, message, dumped = (column.translate(ESCAPES) for column in (host, array, message, dumped))
    return [event_id, observed_at, host, array, *numbers, message, dumped or r"\N"]


def to_json(value: object) -> str:
    """What json.dumps() writes, but each Number as it stood."""
    if isinstance(value, dict):
        return "{" + ", ".join([f"{to_json(name)}: {to_json(member)}" for name, member in value.items()]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([to_json(member) for member in value]) + "]"
    return str(value) if isinstance(value, Number) else json.dumps(value, ensure_ascii=False)


def heartbeat(value: bytes | None) -> tuple[str, datetime] | None:
    """Host and time of a heartbeat; None when the message is none."""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        fields = json.loads(value or b"")
        host, at = fields["host"], fields["heartbeat_at"]
        if len(fields) == 2 and type(host) is str and host.encode() and is_time(at):
            return (host, datetime.fromisoformat(at)) if len(host) <= HOST_CHARACTERS and "\0" not in host else None
    return None


@dataclass
class Batch:
    """What one poll returned, parsed."""

    rows: list[tuple[Any, str]] = field(default_factory=list)  # record and its line for COPY
    rejected: list[tuple[Any, str]] = field(default_factory=list)  # record and the reason
    heartbeats: dict[str, datetime] = field(default_factory=dict)  # host and its latest
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)
    left_at: dict[TopicPartition, int | None] = field(
        default_factory=dict
    )  # what the database says before; None: nothing


def parse(polled: Mapping[TopicPartition, Iterable[Any]]) -> Batch:
    """Rows for the table, and what can't be one with the reason; never an error."""
    batch = Batch()
    for (topic, partition), records in polled.items():
        for record in records:
            try:
                if record.value is None:
                    raise ValueError("a tombstone: a message without a value")
                batch.rows.append((record, copy_line(record.value, topic, partition, record.offset)))
            except (ValueError, RecursionError) as error:
                if beat := heartbeat(record.value):
                    host, at = beat
                    batch.heartbeats[host] = max(at, batch.heartbeats.get(host, at))
                else:
                    batch.rejected.append((record, str(error)))
        batch.next_offsets[TopicPartition(topic, partition)] = record.offset + 1
    return batch
