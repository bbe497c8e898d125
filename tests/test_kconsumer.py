import json
import math
import re
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from datetime import UTC, datetime, timedelta, timezone
from itertools import count, pairwise
from unittest.mock import create_autospec

import psycopg2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    KafkaConfigurationError,
    KafkaConnectionError,
    KafkaTimeoutError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailedError,
)
from kafka.future import Future
from kafka.structs import OffsetAndMetadata

import kconsumer
from kconsumer import (
    FIELDS,
    Database,
    Moved,
    Recorder,
    copy_line,
    first_line,
    heartbeat,
    main,
    parse,
    postgres_options,
)
from kproducer import KafkaLog

GOOD = {
    "event_id": "01a20b20-7007-7b5a-b044-fec6a3afb754",
    "observed_at": "2026-11-23T16:22:04.796005+00:00",
    "host": "web-1",
    "interfaces": ["eth0"],
    "bytes_sent_per_second": 812345.6,
    "bytes_received_per_second": 3120456.1,
    "bytes_per_second": 3932801.7,
    "limit_bytes_per_second": 1000000.0,
    "message": "Bandwidth exceeded on web-1: 3.93 MB/s is over the limit of 1.00 MB/s",
}
NUMBERS = tuple(FIELDS)[4:8]


def good(**changed):
    """A message with some fields changed, as json.dumps() writes it. A field that is ... is left out."""
    return json.dumps({name: value for name, value in (GOOD | changed).items() if value is not ...}).encode()


# An independent reading of COPY's text format and of an array literal (PostgreSQL's manual: COPY, Arrays)


def read_copy_text(line: str) -> list[str | None]:
    assert line.endswith("\n")
    columns = []
    for column in line[:-1].split("\t"):
        assert "\n" not in column
        assert "\r" not in column
        columns.append(None if column == r"\N" else "".join(read_copy_column(iter(column))))
    return columns


def read_copy_column(characters: Iterator[str]) -> Iterator[str]:
    for character in characters:
        if character == "\\":
            escaped = next(characters)
            assert escaped in "\\tnr", "an escape that this program has no reason to write"
            yield {"t": "\t", "n": "\n", "r": "\r"}.get(escaped, escaped)
        else:
            yield character


def read_array(literal: str) -> list[str]:
    assert (literal[0], literal[-1]) == ("{", "}")
    elements, rest = [], literal[1:-1]
    while rest:
        quoted = re.match(r'"((?:[^"\\]|\\.)*)"(?:, ?(?=")|$)', rest, re.DOTALL)
        assert quoted, f"no quoted element: {rest}"
        elements.append(re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL))
        rest = rest[quoted.end() :]
    return elements


def stored(value: bytes) -> tuple[dict[str, object], object]:
    """The fields that PostgreSQL would read from the line of this message, and extra."""
    columns = read_copy_text(copy_line(value, "warnings", 3, 42))
    assert len(columns) == 13
    assert columns[9:12] == ["warnings", "3", "42"]
    fields: dict[str, object] = dict(zip(FIELDS, columns[:9], strict=True))
    fields["interfaces"] = read_array(str(fields["interfaces"]))
    fields |= {name: float(str(fields[name])) for name in NUMBERS}
    return fields, None if columns[12] is None else json.loads(columns[12])


# Good messages


def test_a_warning_is_one_line_of_copy():
    assert copy_line(good(), "bandwidth_exceeds", 0, 7) == (
        "01a20b20-7007-7b5a-b044-fec6a3afb754\t2026-11-23T16:22:04.796005+00:00\tweb-1\t"
        '{"eth0"}\t812345.6\t3120456.1\t3932801.7\t1000000.0\t'
        "Bandwidth exceeded on web-1: 3.93 MB/s is over the limit of 1.00 MB/s\tbandwidth_exceeds\t0\t7\t\\N\n"
    )


AWKWARD = ["", " ", "\\", "\\N", "\\.", "\t", "\n", "\r", "\r\n", '"', '\\"', "'", "{", "}", "{}", "a,b", ",", "NULL",
           "null", "\\t", "\\\\", "a\tb\\nc\nd", "größe", "日本", "😀", "\x01", "\x7f", "\u2028", "\\x41",
           "\\101"]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD)
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_every_text_comes_back_as_it_was(text, ensure_ascii):
    fields = GOOD | {"host": text, "message": text, "interfaces": [text, "eth0", text]}
    value = json.dumps(fields, ensure_ascii=ensure_ascii).encode()
    assert stored(value) == (fields, None)


@pytest.mark.parametrize("text", AWKWARD)
def test_every_text_of_an_unknown_field_comes_back_as_it_was(text):
    assert stored(good(new={text: [text]})) == (GOOD, {"new": {text: [text]}})


@pytest.mark.parametrize("interfaces", [[], [""], ["", ""], ["a", "b", "c"], ["NULL"]])
def test_a_list_of_interfaces_comes_back_as_it_was(interfaces):
    assert stored(good(interfaces=interfaces))[0]["interfaces"] == interfaces


@pytest.mark.parametrize("interfaces", [[", "], [", ", "b"], [", ", ", "]])
def test_a_comma_and_a_space_are_a_name_like_any_other(interfaces):
    assert stored(good(interfaces=interfaces))[0]["interfaces"] == interfaces


@pytest.mark.parametrize(
    "text", ["0", "-0", "1", "1.5", "-2.25", "1e3", "1E+3", "1.7976931348623157e308", "123456789012345678901234567890"]
)
def test_a_number_goes_on_as_it_stands(text):
    value = good(bytes_per_second=77777).replace(b"77777", text.encode())
    assert read_copy_text(copy_line(value, "t", 0, 0))[6] == text


@pytest.mark.parametrize("around", [(b" ", b""), (b"", b"\n"), (b"\r\n\t ", b" \n")])
def test_white_space_around_a_message_does_no_harm(around):
    assert stored(around[0] + good() + around[1]) == (GOOD, None)
    assert stored(json.dumps(GOOD, indent=4).encode()) == (GOOD, None)


def test_the_last_of_two_fields_of_one_name_counts():
    value = b'{"host": "first", ' + good(host="second")[1:]
    assert stored(value)[0]["host"] in ("second",)


@pytest.mark.parametrize("extra", [{"a": None}, {"cpu": 0.5, "tags": ["x", {"y": []}]}, {"": ""}, {"topic": "mine"}])
def test_what_the_table_has_no_column_for_goes_to_extra(extra):
    assert stored(good(**extra)) == (GOOD, extra)


@pytest.mark.parametrize(
    "observed_at", ["2026-11-23T16:22:04Z", "2026-11-23 16:22:04+01:00", "2026-11-23T16:22:04.5-09:30"]
)
def test_any_time_with_its_zone_goes_on_as_it_stands(observed_at):
    assert stored(good(observed_at=observed_at))[0]["observed_at"] == observed_at


# Bad messages


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "Expecting value"),
        (b" ", "Expecting value"),
        (b"warning", "Expecting value"),
        (b"{", "Expecting property name"),
        (good()[:-1], "delimiter"),
        (good() + good(), "Extra data"),
        (good() + b"}", "Extra data"),
        (b"\xef\xbb\xbf" + good(), "Expecting value|BOM"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        (good().replace(b"web-1", b"web-\xe4"), "can't decode byte"),
        (good().replace(b"web-1", b"\xed\xa0\x80"), "can't decode byte"),  # a surrogate in UTF-8
        (good().decode().encode("utf-16"), "can't decode byte"),
        (b"null", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"7", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"[" + good() + b"]", "no JSON object"),
        (b"{}", "event_id is missing"),
        (good().replace(b"web-1", b"web\t1"), "Invalid control character"),
        (b"[" * 100 + b"]" * 100, "no JSON object"),
        (good(event_id="not-a-uuid"), "event_id is no UUID"),
        (good(event_id=""), "event_id is no UUID"),
        (good(event_id=GOOD["event_id"] + "\n"), "event_id is no UUID"),
        (good(event_id="{" + GOOD["event_id"] + "}"), "event_id is no UUID"),
        (good(event_id=GOOD["event_id"].replace("0", "\u0660")), "event_id is no UUID"),
        (good(observed_at="yesterday"), "observed_at is no time with a time zone"),
        (good(observed_at=""), "observed_at is no time with a time zone"),
        (good(observed_at="2026-13-01T00:00:00+00:00"), "month"),
        (good(observed_at="2026-11-23T16:22:04"), "observed_at is no time with a time zone"),
        (good(observed_at="2026-W47-1T16:22:04+00:00"), "observed_at is no time with a time zone"),
        (good(observed_at="2026-11-23T16:22:04+16:00"), "observed_at is no time with a time zone"),
        (good(observed_at="2026-11-23T16:22:04+00:00\n"), "observed_at is no time with a time zone"),
        (good(observed_at="infinity"), "observed_at is no time with a time zone"),
        (good(observed_at="2026-11-23T25:22:04+00:00"), "hour"),
        (good(observed_at="2026-11-23"), "observed_at is no time with a time zone"),
        (good(host="x" * 256), "host is longer than 255 characters"),
        (good(interfaces=[1]), "interfaces has the wrong type"),
        (good(interfaces=["a", None]), "interfaces has the wrong type"),
        (good(interfaces=[["a"]]), "interfaces has the wrong type"),
        *((good(**{name: ...}), f"{name} is missing") for name in FIELDS),
        *((good(**{name: None}), f"{name} has the wrong type") for name in FIELDS),
        *((good(**{name: True}), f"{name} has the wrong type") for name in FIELDS),
        *((good(**{name: {}}), f"{name} has the wrong type") for name in FIELDS),
        *((good(**{name: 7}), f"{name} has the wrong type") for name in FIELDS if name not in NUMBERS),
        *((good(**{name: "7"}), f"{name} has the wrong type") for name in (*NUMBERS, "interfaces")),
        *((good(**{name: math.nan}), "NaN is no number") for name in NUMBERS),
        *((good(**{name: math.inf}), "Infinity is no number") for name in NUMBERS),
        *((good(**{name: -math.inf}), "-Infinity is no number") for name in NUMBERS),
        (good(bytes_per_second=77777).replace(b"77777", b"1e400"), "is beyond a double precision"),
        (good(bytes_per_second=77777).replace(b"77777", b"-1E400"), "is beyond a double precision"),
        (good(bytes_per_second=77777).replace(b"77777", b"9" * 400), "is beyond a double precision"),
        (good(bytes_per_second=77777).replace(b"77777", b"9" * 10_000), "is beyond a double precision"),
        (good(bytes_per_second=77777).replace(b"77777", b"007"), "delimiter"),
        (good(host="a\0b"), "a text holds a NUL"),
        (good(message="\0"), "a text holds a NUL"),
        (good(interfaces=["\0"]), "a text holds a NUL"),
        (good(new="\0"), "a text holds a NUL"),
        (good(new=[{"\0": 1}]), "a text holds a NUL"),
        (good(new="\\\0"), "a text holds a NUL"),
        (good(host="\ud83d"), "can't encode character"),
        (good(message="\udc00"), "can't encode character"),
        (good(interfaces=["\ud800"]), "can't encode character"),
        (good(new="\ud800"), "can't encode character"),
        (good(**{"\udfff": 1}), "can't encode character"),
        (good(new=math.nan), "NaN is no number"),
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_stored_is_refused_with_the_reason(value, reason):
    with pytest.raises(ValueError, match=reason):
        copy_line(value, "t", 0, 0)


def test_a_backslash_before_u0000_is_no_nul():
    assert stored(good(new="\\u0000", message="\\u0000")) == (GOOD | {"message": "\\u0000"}, {"new": "\\u0000"})


def test_the_name_of_a_host_may_have_255_characters_of_any_kind():
    assert stored(good(host="😀" * 255))[0]["host"] == "😀" * 255


SEPARATORS = ["\t", "\n", "\\", "\0", "\ud800"]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_time_is_refused_where_date_and_time_are_parted_by_what_postgresql_reads_otherwise(separator):
    # datetime.fromisoformat() takes any character there
    with pytest.raises(ValueError, match="observed_at is no time with a time zone"):
        copy_line(good(observed_at=f"2026-11-23{separator}11:22:04+00:00"), "t", 0, 0)


@pytest.mark.parametrize("separator", ["\t", "\n", "\\", "\ud800"])
def test_no_batch_becomes_unreadable_by_the_time_of_one_message(separator):
    batch = parse({AT: [record(good(observed_at=f"2026-11-23{separator}11:22:04+00:00")), record(good())]})
    for _, line in batch.rows:
        assert len(read_copy_text(line)) == 13
        line.encode()


# What was dumped comes back

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.sampled_from(AWKWARD)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**24), 10**24)
zones = st.timedeltas(timedelta(hours=-15), timedelta(hours=15)).map(
    lambda offset: timezone(timedelta(minutes=offset // timedelta(minutes=1)))
)
warnings_of_any_kind = st.fixed_dictionaries(
    {
        "event_id": st.uuids().map(str),
        "observed_at": st.datetimes(timezones=zones).map(lambda at: at.isoformat()),
        "host": texts.filter(lambda text: len(text) <= 255),
        "interfaces": st.lists(texts),
        **dict.fromkeys(NUMBERS, numbers),
        "message": texts,
    }
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(texts, values, max_size=3),
    max_leaves=6,
)
extras = st.dictionaries(texts.filter(lambda name: name not in FIELDS), json_values, max_size=3)


@settings(deadline=None)
@given(warnings_of_any_kind, extras, st.booleans(), st.sampled_from([None, 0, 2]), st.randoms())
def test_what_json_writes_comes_back_out_of_the_line(fields, extra, ensure_ascii, indent, random):
    members = [*(fields | extra).items()]
    random.shuffle(members)
    read, rest = stored(json.dumps(dict(members), ensure_ascii=ensure_ascii, indent=indent).encode())
    assert rest == (extra or None)
    assert read == {**fields, **{name: float(fields[name]) for name in NUMBERS}}


plain_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='\\"')) | st.sampled_from(
    [", ", "{,}"]
)
as_the_producer_writes = st.fixed_dictionaries(
    {
        "event_id": st.uuids().map(str),
        "observed_at": st.datetimes(timezones=st.just(UTC)).map(lambda at: at.isoformat(timespec="microseconds")),
        "host": plain_texts.filter(lambda text: 1 <= len(text) <= 255),
        "interfaces": st.lists(plain_texts.filter(lambda name: "," not in name), min_size=1),
        **dict.fromkeys(NUMBERS, st.floats(0, 1e12).map(lambda rate: round(rate, 1))),
        "message": plain_texts,
    }
).map(lambda fields: {name: fields[name] for name in FIELDS})


@settings(deadline=None)
@given(as_the_producer_writes)
def test_what_the_producer_writes_is_read_by_one_expression_and_comes_back(fields):
    text = json.dumps(fields, ensure_ascii=False)
    assert kconsumer.is_ours(text)
    assert stored(text.encode()) == (fields, None)


@settings(deadline=None)
@given(as_the_producer_writes, st.data())
def test_a_message_that_is_almost_the_producers_is_read_as_json_has_it(fields, data):
    text = json.dumps(fields, ensure_ascii=False)
    at = data.draw(st.integers(0, len(text)))
    text = (
        text[:at]
        + data.draw(st.sampled_from(['"', "\\", "\t", "\n", "\0", " ", ",", "{", "0", "e", ""]))
        + text[at + 1 :]
    )
    try:
        read, rest = stored(text.encode())
    except ValueError:
        return  # then parse() rejects it
    wanted = json.loads(text)
    assert rest == ({name: value for name, value in wanted.items() if name not in FIELDS} or None)
    assert read == {name: float(wanted[name]) if name in NUMBERS else wanted[name] for name in FIELDS}


# Batches

AT, NEXT = TopicPartition("warnings", 0), TopicPartition("warnings", 1)


def record(value, offset=0, partition=0, key=b"web-1"):
    size = len(value or b"")
    return ConsumerRecord("warnings", partition, -1, offset, 1795450924796, 0, key, value, [], None, 5, size, -1)


@settings(deadline=None)
@given(st.binary() | texts.map(str.encode) | json_values.map(lambda value: json.dumps(value).encode()) | st.none())
@example(b"[" * 10_000 + b"]" * 10_000)
@example(b'{"a":' * 10_000 + b"1" + b"}" * 10_000)
@example(good(new=1)[:-2] + b"[" * 10_000 + b"]" * 10_000 + b"}")
@example(good(new=1)[:-2] + b"[" * 900 + b"]" * 900 + b"}")
@example(b"9" * 100_000)
@example(b"\\ud800")
@example(b'"\\ud800"')
def test_parse_takes_any_bytes_and_loses_none(value):
    batch = parse({AT: [record(value, 5)]})
    assert len(batch.rows) + len(batch.rejected) + len(batch.heartbeats) == 1
    assert batch.next_offsets == {AT: 6}
    for _, reason in batch.rejected:
        reason.encode()
        assert "\0" not in reason


anything = json_values | st.text() | st.just(math.nan) | st.just(["a"])


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(list(FIELDS)), anything), extras)
@example({"observed_at": "2026-11-23\ud80011:22:04+00:00"}, {})
def test_parse_takes_any_fields_and_each_row_can_be_sent(changed, extra):
    batch = parse({AT: [record(json.dumps(GOOD | changed | extra).encode())]})
    assert len(batch.rows) + len(batch.rejected) == 1
    for _, line in batch.rows:
        assert len(read_copy_text(line.encode().decode())) == 13
        assert "\0" not in line


def test_a_batch_parts_what_can_be_stored_from_what_cannot():
    polled = {
        AT: [record(good(), 10), record(b"no", 11), record(None, 12), record(good(host="b"), 15)],
        NEXT: [record(b"[]", 3, 1)],
    }
    batch = parse(polled)
    assert [one.offset for one, _ in batch.rows] == [10, 15]
    assert [line.split("\t")[2] for _, line in batch.rows] == ["web-1", "b"]
    assert [(one.partition, one.offset) for one, _ in batch.rejected] == [(0, 11), (0, 12), (1, 3)]
    assert batch.rejected[1][1] == "a tombstone: a message without a value"
    assert batch.next_offsets == {AT: 16, NEXT: 4}


# Heartbeats


def beat(host="web-1", at="2026-11-23T16:22:04.796005+00:00", **more):
    return json.dumps({"host": host, "heartbeat_at": at, **more}).encode()


def test_a_heartbeat_is_neither_a_row_nor_rejected_and_the_latest_counts():
    first, later = "2026-11-23T16:22:04+00:00", "2026-11-23T16:22:14+00:00"
    batch = parse({AT: [record(beat(at=at), 1 + n) for n, at in enumerate((first, later, first))]})
    assert (batch.rows, batch.rejected) == ([], [])
    assert batch.heartbeats == {"web-1": datetime.fromisoformat(later)}
    assert batch.next_offsets == {AT: 4}


def test_each_host_has_its_own_latest_heartbeat():
    batch = parse({AT: [record(beat("a"), 1), record(beat("b"), 2)]})
    assert set(batch.heartbeats) == {"a", "b"}


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b"[" * 10_000,
        good(),
        beat(more=1),
        beat(host=""),
        beat(host="x" * 256),
        beat(host="a\0b"),
        beat(host="\ud800"),
        beat(host=7),
        beat(host=None),
        beat(at="soon"),
        beat(at="2026-11-23T16:22:04"),
        beat(at=7),
        beat(at=None),
        beat(at=["2026-11-23T16:22:04+00:00"]),
    ],
)
def test_what_is_no_heartbeat_is_none(value):
    assert heartbeat(value) is None


@pytest.mark.parametrize("host", [["a"], {"a": 1}])
def test_a_heartbeat_whose_host_is_no_text_is_rejected(host):
    assert len(parse({AT: [record(beat(host=host))]}).rejected) == 1


@pytest.mark.parametrize(
    "at",
    [
        "2026-W47-1T16:22:04+00:00",
        "2026-11-23T16:22:04+23:00",
        *(f"2026-11-23{separator}11:22:04+00:00" for separator in (*SEPARATORS, "é")),
    ],
)
def test_a_time_that_python_takes_and_postgresql_does_not_is_no_heartbeat(at):
    assert heartbeat(beat(at=at)) is None


@settings(deadline=None)
@given(anything, anything | st.datetimes(timezones=zones).map(lambda at: at.isoformat()), extras)
def test_parse_takes_any_fields_of_a_heartbeat_and_each_can_be_sent(host, at, extra):
    batch = parse({AT: [record(json.dumps({"host": host, "heartbeat_at": at, **extra}).encode())]})
    assert len(batch.rejected) + len(batch.heartbeats) == 1
    for of, when in batch.heartbeats.items():
        assert "\0" not in of
        assert f"{of}{when.isoformat()}".encode()


# The recorder


class Kafka:
    """A KafkaConsumer with its real interface, whose polls are played from a list; an empty one takes its time."""

    def __init__(self, clock):
        self.clock = clock
        self.client = create_autospec(KafkaConsumer, instance=True)
        self.client.poll.side_effect = self.poll
        self.client.subscribe.side_effect = self.subscribe
        self.client.assignment.side_effect = lambda: set(self.assigned)
        self.client.paused.side_effect = lambda: set(self.paused)
        self.client.pause.side_effect = lambda *partitions: self.paused.update(partitions)
        self.client.resume.side_effect = lambda *partitions: self.paused.difference_update(partitions)
        self.client.seek.side_effect = self.seek
        self.client.position.side_effect = lambda partition, timeout_ms=None: self.positions[partition]
        self.client.beginning_offsets.side_effect = lambda at, timeout_ms=None: {one: self.begins[one] for one in at}
        self.client.end_offsets.side_effect = lambda at, timeout_ms=None: {one: self.ends[one] for one in at}
        self.client.partitions_for_topic.side_effect = lambda topic: {one.partition for one in self.ends}
        self.client.highwater.side_effect = lambda partition: self.ends[partition]
        self.assigned = set()
        self.paused = set()
        self.positions = {}
        self.begins, self.ends = {AT: 0, NEXT: 0}, {AT: 100, NEXT: 100}
        self.script = []  # what the next polls do: return, raise, or call
        self.seeks = []

    def seek(self, partition, offset):
        assert partition in self.assigned
        self.positions[partition] = offset
        self.seeks.append((partition, offset))

    def subscribe(self, topics=(), pattern=None, listener=None):
        self.listener = listener

    def assign(self, *partitions):
        """What kafka-python's thread does in a rebalance."""
        self.listener.on_partitions_revoked(self.assigned)
        self.assigned = set(partitions)
        self.paused = set()
        self.listener.on_partitions_assigned(self.assigned)

    def poll(self, timeout_ms=0, max_records=None, update_offsets=True):
        doing = self.script.pop(0) if self.script else {}
        if isinstance(doing, Exception):
            raise doing
        if callable(doing):
            doing = doing() or {}
        if not doing:
            self.clock.now += timeout_ms / 1000
        for partition, records in doing.items():
            assert partition not in self.paused
            self.positions[partition] = records[-1].offset + 1
        return doing

    def committed(self):
        """What commit_async was called with, as {partition: offset}."""
        calls = self.client.commit_async.call_args_list
        assert all(type(one) is OffsetAndMetadata for call in calls for one in call.args[0].values())
        return [{partition: one.offset for partition, one in call.args[0].items()} for call in calls]


@pytest.fixture
def kafka(clock):
    return Kafka(clock)


@pytest.fixture
def database():
    faked = create_autospec(Database, instance=True)
    faked.deadline = math.inf
    faked.next_offsets.return_value = {0: 40}
    faked.record.return_value = 0
    return faked


class Held:
    """A call of the database that lasts until it is let go."""

    def __init__(self, result):
        self.result = result
        self.called, self.go = threading.Event(), threading.Event()

    def __call__(self, *arguments):
        self.called.set()
        assert self.go.wait(60)
        return self.result


@pytest.fixture
def hold():
    """Make a method of the database one that is held; all are let go at the end."""
    made = []

    def hold(method, result):
        made.append(Held(result))
        method.side_effect = made[-1]
        return made[-1]

    yield hold
    for held in made:
        held.go.set()


@pytest.fixture
def make_recorder(kafka, database, clock, stop, hold):
    made = []

    def make(until_empty=False):
        log = KafkaLog(clock)
        recorder = Recorder(lambda: kafka.client, database, log, "warnings", until_empty, stop, clock=clock)
        made.append(recorder)
        return recorder

    yield make
    for recorder in made:
        recorder.pool.shutdown(wait=False)


def step(recorder, times=1):
    """A round of the loop as run() makes it, after the database has done what it was doing."""
    for _ in range(times):
        if recorder.job:
            wait([recorder.job])
        recorder.step()


@pytest.fixture
def recorder(make_recorder, kafka):
    """One that reads partition 0 from where the database says."""
    ready = make_recorder()
    joins(ready, kafka)
    return ready


def joins(recorder, kafka, *partitions):
    kafka.script.append(lambda: kafka.assign(*(partitions or [AT])))
    step(recorder, 3)  # joins; asks the database; seeks, and reads nothing yet
    assert recorder.sought


def messages(first, last, partition=AT):
    return {partition: [record(good(), offset, partition.partition) for offset in range(first, last)]}


def recorded(database):
    """What Database.record was called with, as {partition: next offset}."""
    return [call.args[0].next_offsets for call in database.record.call_args_list]


def test_reading_starts_where_the_database_says(recorder, kafka):
    assert kafka.seeks[-1] == (AT, 40)
    assert kafka.paused == set()


def test_a_partition_that_the_database_does_not_know_is_read_from_its_start(make_recorder, kafka):
    kafka.begins[NEXT] = 7
    joins(make_recorder(), kafka, AT, NEXT)
    assert kafka.seeks[-2:] == [(AT, 40), (NEXT, 7)]


def test_nothing_is_read_before_the_database_has_said_where(hold, make_recorder, kafka, database):
    held = hold(database.next_offsets, {0: 40})
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    recorder.step()
    recorder.step()
    assert kafka.paused == {AT}
    assert not recorder.sought
    held.go.set()
    step(recorder)
    assert kafka.seeks[-1] == (AT, 40)


def test_offsets_go_to_kafka_only_after_the_database_has_recorded(hold, recorder, kafka, database):
    held = hold(database.record, 0)
    kafka.script.append(messages(40, 43))
    step(recorder)  # reads
    recorder.step()  # gives the batch to the database
    assert held.called.wait(60)
    recorder.step()  # reads on meanwhile
    assert recorded(database) == [{AT: 43}]
    assert kafka.committed() == []
    held.go.set()
    step(recorder)
    assert kafka.committed() == [{AT: 43}]
    assert recorder.recorded == 3


def test_a_batch_that_the_database_refused_is_kept_and_tried_again_and_no_offset_moves(
    recorder, kafka, database, stop, caplog
):
    database.record.side_effect = [psycopg2.OperationalError("connection refused")] * 3 + [0]
    kafka.script.append(messages(40, 43))
    step(recorder, 3)
    for _ in range(100):
        assert kafka.committed() == []
        step(recorder)
        if recorder.recorded:
            break
    assert recorded(database) == [{AT: 43}] * 4
    assert kafka.committed() == [{AT: 43}]
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        "PostgreSQL: connection refused; trying again",
        "PostgreSQL: works again",
    ]


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (psycopg2.OperationalError("could not connect: Connection refused"), [1, 2, 4, 4, 4]),
        (psycopg2.OperationalError("FATAL: password authentication failed"), [1, 2, 4, 8, 16, 30, 30]),
    ],
)
def test_the_pauses_grow_to_4_seconds_without_an_answer_and_to_30_after_a_refusal(
    recorder, kafka, database, clock, error, pauses
):
    called = []

    def refuse(batch):
        called.append(clock.now)
        raise error

    database.record.side_effect = refuse
    kafka.script.append(messages(40, 43))
    while len(called) <= len(pauses):
        step(recorder)
    measured = [after - before for before, after in pairwise(called)]
    for pause, seconds in zip(pauses, measured, strict=True):
        assert pause <= seconds < pause + 1.2  # polls lie between


def test_the_group_is_kept_and_nothing_more_is_read_while_the_database_is_away(recorder, kafka, database):
    database.record.side_effect = psycopg2.OperationalError("connection refused")
    kafka.script += [messages(40, 43), messages(43, 46)]
    step(recorder, 60)
    assert len(recorder.batches) == 2
    assert kafka.paused == {AT}
    assert kafka.client.poll.call_count > 20
    assert all(call.kwargs.get("timeout_ms", 0) >= 100 for call in kafka.client.poll.call_args_list)


def test_batches_are_recorded_in_the_order_in_which_they_were_read(recorder, kafka, database):
    kafka.script += [messages(n, n + 2) for n in range(40, 60, 2)]
    step(recorder, 40)
    assert recorded(database) == [{AT: n} for n in range(42, 62, 2)]
    assert kafka.committed() == recorded(database)


def test_what_is_in_hand_is_dropped_when_the_group_assigns_anew(hold, recorder, kafka, database):
    held = hold(database.record, 0)
    kafka.script += [messages(40, 43), messages(43, 46)]
    step(recorder)
    recorder.step()
    recorder.step()
    assert len(recorder.batches) == 2
    kafka.script.append(lambda: kafka.assign(NEXT))
    recorder.step()  # polls, so that it stays in the group
    recorder.step()
    assert not recorder.batches
    held.go.set()
    database.next_offsets.return_value = {0: 43, 1: 9}
    step(recorder, 4)
    assert recorded(database) == [{AT: 43}]  # not 46: it is another consumer's now
    assert kafka.committed() == []  # nor the offset of a partition that was taken away
    assert kafka.seeks[-1] == (NEXT, 9)


def test_records_that_come_with_a_changed_assignment_are_discarded(recorder, kafka, database):
    def both():
        kafka.assign(AT)
        kafka.paused.clear()
        return messages(0, 3)

    kafka.script.append(both)
    step(recorder)
    assert not recorder.batches
    step(recorder, 4)
    assert recorded(database) == []
    assert kafka.seeks[-1] == (AT, 40)
    kafka.script.append(messages(40, 43))
    step(recorder, 3)
    assert recorded(database) == [{AT: 43}]


def test_an_assignment_stands_paused_until_its_place_is_known(recorder, kafka):
    kafka.assign(AT, NEXT)
    assert kafka.paused == {AT, NEXT}
    assert recorder.assignment.changed


def test_stored_offsets_that_come_with_a_changed_assignment_are_asked_for_again(make_recorder, kafka, database):
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    step(recorder, 2)
    wait([recorder.job])
    kafka.assign(AT, NEXT)
    kafka.seeks.clear()
    recorder.step()
    assert kafka.seeks == []
    step(recorder, 3)
    assert kafka.seeks == [(AT, 40), (NEXT, 0)]
    assert database.next_offsets.call_count == 2


@pytest.mark.parametrize(
    "error",
    [KafkaConnectionError("socket disconnected"), OffsetOutOfRangeError({AT: 40}), NoOffsetForPartitionError(AT)],
)
def test_after_an_error_of_poll_reading_goes_on_where_the_database_says(recorder, kafka, database, stop, clock, error):
    kafka.script += [error, {}, {}, messages(40, 43)]
    kafka.seeks.clear()
    stop.at = clock.now + 5
    finish_with(recorder, lambda: recorded(database))
    assert kafka.seeks == [(AT, 40)]
    assert recorded(database) == [{AT: 43}]
    kafka.client.close.assert_not_called()  # not made anew: it still works


def finish_with(recorder, done, waits=True):
    """run(), each round with the database's work done unless it must not be waited for, until done() says so."""
    original = recorder.step

    rounds = count()

    def stepping():
        assert next(rounds) < 2000
        if recorder.job and waits:
            wait([recorder.job])
        original()
        if done():
            recorder.stop.set()

    recorder.step = stepping
    return recorder.run()


def test_what_was_read_before_an_error_is_dropped_and_read_again(hold, recorder, kafka, database, stop, clock):
    database.next_offsets.side_effect = [{0: 43}]
    held = hold(database.record, 0)
    kafka.script += [messages(40, 43), messages(43, 46)]
    step(recorder)
    recorder.step()
    recorder.step()
    kafka.script += [KafkaConnectionError(), lambda: held.go.set(), {}, messages(43, 46)]
    finish_with(recorder, lambda: len(recorded(database)) == 2, waits=False)
    assert recorded(database) == [{AT: 43}, {AT: 46}]
    assert kafka.seeks[-1] == (AT, 43)


def test_a_consumer_that_is_silent_is_made_anew_and_that_is_said_once(make_recorder, kafka, clock, stop, caplog):
    recorder = make_recorder()
    joins(recorder, kafka)
    made = []
    recorder.make_consumer = lambda: made.append(clock.now) or kafka.client
    kafka.client.end_offsets.side_effect = KafkaTimeoutError("Timeout")

    finish_with(recorder, lambda: len(made) == 2)
    assert made[0] >= 1000 + kconsumer.STUCK_SECONDS
    kafka.client.close.assert_called_with(timeout_ms=1000)
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(said) == 1
    assert said[0].startswith("Kafka: ")


def test_an_idle_topic_is_asked_for_its_end_and_nothing_is_said(recorder, kafka, clock, caplog):
    kafka.client.end_offsets.reset_mock()
    while clock.now < 1000 + 1.8 * kconsumer.IDLE_SECONDS:
        step(recorder)
    assert kafka.client.end_offsets.call_count == 1
    assert [one for one in caplog.records if one.levelname == "WARNING"] == []


def test_no_right_to_the_group_is_said_once_and_the_consumer_goes_on(make_recorder, kafka, caplog, stop, clock):
    recorder = make_recorder()
    kafka.script += [GroupAuthorizationFailedError("kconsumer")] * 5 + [lambda: kafka.assign(AT)]
    finish_with(recorder, lambda: recorder.sought)
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert said == [
        "Kafka: no right to the consumer group: this user needs READ on it; trying again",
        "Kafka: works again",
    ]
    kafka.client.close.assert_not_called()


def test_offsets_that_kafka_no_longer_has_are_said_and_reading_goes_on_at_the_first_it_has(
    make_recorder, kafka, caplog
):
    kafka.begins[AT] = 60
    joins(make_recorder(), kafka)
    assert kafka.seeks[-1] == (AT, 60)
    assert "warnings/0: offsets 40 to 59 are lost: Kafka's retention deleted them unread" in caplog.messages


def test_a_topic_that_was_made_anew_is_read_from_its_start_and_its_old_offsets_are_forgotten(
    make_recorder, kafka, database, caplog
):
    kafka.ends[AT] = 5
    database.forget.side_effect = lambda partitions: database.next_offsets.return_value.clear()
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    step(recorder, 3)
    assert not recorder.sought
    step(recorder, 2)
    database.forget.assert_called_once_with([0])
    assert kafka.seeks[-1] == (AT, 0)
    assert recorder.sought
    assert "warnings/0 ends at 5, but 40 were read: it was made anew; all of it is read" in caplog.messages


def test_a_rebalance_while_old_offsets_are_forgotten_is_sought_all_the_same(hold, make_recorder, kafka, database):
    held = hold(database.forget, None)
    database.next_offsets.return_value = {0: 40, 1: 70}
    kafka.ends[AT] = 5
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    step(recorder, 3)  # seeks, and lets the database forget
    kafka.assign(NEXT)
    recorder.step()
    held.go.set()
    step(recorder, 4)
    assert kafka.seeks[-1] == (NEXT, 70)


def test_a_commit_that_fails_changes_nothing(recorder, kafka, database, stop, clock):
    kafka.client.commit_async.side_effect = lambda offsets=None, callback=None: Future().failure(CommitFailedError())
    kafka.script += [messages(40, 43), {}, {}, messages(43, 46)]
    finish_with(recorder, lambda: len(recorded(database)) == 2)
    assert recorded(database) == [{AT: 43}, {AT: 46}]


def test_rejected_messages_are_counted_apart_and_said_with_the_first_reason(recorder, kafka, database, caplog):
    database.record.return_value = 2
    kafka.script.append({AT: [record(good(), 40), record(b"no", 41), record(good(), 42)]})  # PostgreSQL refuses one too
    step(recorder, 4)
    assert recorder.recorded == 1
    assert any("2 messages went to rejected_messages, the first: Expecting value" in one for one in caplog.messages)


def test_a_database_that_hangs_is_cut_off(hold, recorder, kafka, database, clock):
    held = hold(database.record, 0)
    database.cut.side_effect = held.go.set
    kafka.script.append(messages(40, 43))
    step(recorder)
    recorder.step()
    database.deadline = clock.now + 8
    recorder.step()
    database.cut.assert_not_called()
    clock.now += 8.1
    recorder.step()
    database.cut.assert_called_once_with()


# --until-empty


def test_until_empty_ends_with_0_when_everything_of_the_start_is_recorded(make_recorder, kafka, database):
    database.next_offsets.return_value = {0: 97}
    kafka.ends = {AT: 100}
    recorder = make_recorder(until_empty=True)

    def record_all(batch):
        database.next_offsets.return_value = {0: batch.next_offsets[AT]}
        return 0

    database.record.side_effect = record_all
    kafka.script += [lambda: kafka.assign(AT), {}, messages(97, 100)]
    assert finish_with(recorder, lambda: False) == 0
    assert recorded(database) == [{AT: 100}]
    assert recorder.finished
    assert kafka.committed() == [{AT: 100}]


def test_until_empty_waits_for_the_partitions_that_another_consumer_reads(make_recorder, kafka, database):
    database.next_offsets.return_value = {0: 100, 1: 50}
    recorder = make_recorder(until_empty=True)
    joins(recorder, kafka)
    kafka.positions[AT] = 100
    step(recorder, 6)
    assert not recorder.finished
    database.next_offsets.return_value = {0: 100, 1: 100}
    step(recorder, 4)
    assert recorder.finished


def test_until_empty_does_not_wait_for_what_came_later(make_recorder, kafka, database):
    database.next_offsets.return_value = {0: 100, 1: 100}
    recorder = make_recorder(until_empty=True)
    joins(recorder, kafka)
    kafka.ends = {AT: 200, NEXT: 200}
    step(recorder, 4)
    assert recorder.finished


def test_until_empty_ends_at_once_on_an_empty_topic(make_recorder, kafka, database):
    database.next_offsets.return_value = {}
    kafka.begins = kafka.ends = {AT: 100}
    recorder = make_recorder(until_empty=True)
    kafka.script.append(lambda: kafka.assign(AT))
    assert finish_with(recorder, lambda: False) == 0


def test_until_empty_gives_up_with_1_when_postgresql_stays_away(make_recorder, kafka, database, clock):
    database.next_offsets.side_effect = psycopg2.OperationalError("connection refused")
    recorder = make_recorder(until_empty=True)
    kafka.script.append(lambda: kafka.assign(AT))
    assert finish_with(recorder, lambda: False) == 1
    assert 1015 < clock.now < 1025


def test_until_empty_gives_up_with_1_when_kafka_stays_away(make_recorder, kafka, database, clock):
    kafka.client.end_offsets.side_effect = KafkaTimeoutError()
    recorder = make_recorder(until_empty=True)

    assert finish_with(recorder, lambda: False) == 1
    assert clock.now < 1040


def test_until_empty_gives_up_with_1_when_kafka_refuses_for_good(make_recorder, kafka, clock):
    recorder = make_recorder(until_empty=True)
    kafka.script += [SaslAuthenticationFailedError("no")] * 1000
    assert finish_with(recorder, lambda: False) == 1
    assert 1015 < clock.now < 1025


# Offsets that are not where they were left


def test_each_batch_says_where_the_database_was_left(recorder, kafka, database):
    kafka.script += [messages(40, 43), messages(43, 46)]
    step(recorder, 8)
    assert [call.args[0].left_at for call in database.record.call_args_list] == [{AT: 40}, {AT: 43}]


def test_the_first_batch_of_a_partition_that_the_database_does_not_know_was_left_nowhere(
    make_recorder, kafka, database
):
    database.next_offsets.return_value = {}
    recorder = make_recorder()
    joins(recorder, kafka)
    kafka.script += [messages(0, 3), messages(3, 5)]
    step(recorder, 8)
    assert [call.args[0].left_at for call in database.record.call_args_list] == [{AT: None}, {AT: 3}]


def test_a_database_that_was_put_back_while_reading_is_filled_up_again(recorder, kafka, database, caplog):
    database.record.side_effect = [Moved(), 0]
    kafka.script.append(messages(40, 43))
    step(recorder, 2)
    database.next_offsets.return_value = {0: 10}
    step(recorder, 4)
    assert kafka.seeks[-1] == (AT, 10)
    assert kafka.committed() == []
    kafka.script.append(messages(10, 46))
    step(recorder, 4)
    assert recorded(database) == [{AT: 43}, {AT: 46}]
    assert kafka.committed() == [{AT: 46}]
    assert sum("are not where they were left" in message for message in caplog.messages) == 1


def test_a_database_that_was_put_back_while_nothing_came_is_filled_up_again(recorder, kafka, database, clock):
    database.next_offsets.return_value = {0: 10}
    ends_at = clock.now + 1.5 * kconsumer.LOG_SECONDS
    while clock.now < ends_at:
        step(recorder)
    assert kafka.seeks[-1] == (AT, 10)


def test_a_database_that_is_where_it_was_left_is_not_sought_again(recorder, kafka, database, clock, caplog):
    kafka.seeks.clear()
    ends_at = clock.now + 10 * kconsumer.LOG_SECONDS
    while clock.now < ends_at:
        step(recorder)
    assert kafka.seeks == []
    assert [one for one in caplog.records if one.levelname == "WARNING"] == []


def test_where_nothing_comes_kafka_is_told_again_what_it_may_not_have_taken(recorder, kafka, database, clock):
    kafka.script.append(messages(40, 43))
    step(recorder, 4)
    database.next_offsets.return_value = {0: 43}
    ends_at = clock.now + 2.5 * kconsumer.LOG_SECONDS
    while clock.now < ends_at:
        step(recorder)
    assert kafka.committed() == [{AT: 43}] * 3


# The end


def test_stopping_lets_the_database_finish_and_leaves_the_group(recorder, kafka, database):
    kafka.script.append(messages(40, 43))
    step(recorder)
    recorder.step()
    recorder.close()
    assert recorder.recorded == 3
    assert kafka.committed() == [{AT: 43}]
    kafka.client.close.assert_called_once_with(timeout_ms=1000)


def test_stopping_does_not_fail_while_kafka_is_away(make_recorder, kafka):
    recorder = make_recorder()
    kafka.script.append(lambda: kafka.assign(AT))
    step(recorder)
    recorder.step()  # asks the database where to read
    kafka.client.beginning_offsets.side_effect = KafkaTimeoutError()
    kafka.client.close.side_effect = KafkaTimeoutError()
    recorder.close()


def test_stopping_shows_kafka_the_last_offsets_if_it_is_there(recorder, kafka):
    kafka.script.append(messages(40, 43))
    step(recorder, 3)
    kafka.client.commit.side_effect = KafkaTimeoutError()
    recorder.close()
    kafka.client.commit.assert_called_once_with({AT: OffsetAndMetadata(43, "", -1)}, timeout_ms=1000)
    kafka.client.close.assert_called_once_with(timeout_ms=1000)


def test_a_recorder_that_is_stopped_at_once_ends_with_0(make_recorder, stop):
    stop.set()
    recorder = make_recorder()
    assert recorder.run() == 0
    recorder.close()


# PostgreSQL's settings


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text("a certificate")
    return str(path)


def postgres(root, **environ):
    return postgres_options({"PGHOST": "db.example", "PGSSLROOTCERT": root, **environ})


def test_without_a_word_the_server_is_verified_in_full_and_silence_is_noticed(root, caplog):
    url, options = postgres(root)
    assert url == ""
    assert options["sslmode"] == "verify-full"
    assert options["connect_timeout"] > 0
    assert options["keepalives_idle"] > 0
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("environ", "sslmode"),
    [
        ({"DATABASE_URL": "postgres://u:s3cret@db:5432/d?sslmode=require"}, None),
        ({"DATABASE_URL": "postgres://u:s3cret@db:5432/d"}, "verify-full"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d", "PGSSLMODE": "disable"}, None),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?sslmode=verify-full", "PGSSLMODE": "disable"}, None),
        ({"DATABASE_URL": "host=db password=s3cret sslmode=verify-ca"}, None),
        ({"PGSSLMODE": "verify-ca"}, None),
    ],
)
def test_what_the_url_or_a_variable_says_of_tls_is_obeyed(root, environ, sslmode):
    url, options = postgres(root, **environ)
    assert url == environ.get("DATABASE_URL", "")
    assert options.get("sslmode") == sslmode


@pytest.mark.parametrize(
    ("environ", "left_out"),
    [
        ({"DATABASE_URL": "postgres://u@db/d?connect_timeout=9"}, "connect_timeout"),
        ({"PGCONNECT_TIMEOUT": "9"}, "connect_timeout"),
        ({"PGAPPNAME": "mine"}, "application_name"),
        ({"DATABASE_URL": "postgres://u@db/d?keepalives_idle=9"}, "keepalives_idle"),
    ],
)
def test_our_option_gives_way_to_one_that_is_set(root, environ, left_out):
    assert left_out not in postgres(root, **environ)[1]


@pytest.mark.parametrize(
    ("sslmode", "is_warned"),
    [
        ("disable", True),
        ("allow", True),
        ("prefer", True),
        ("require", True),
        ("verify-ca", False),
        ("verify-full", False),
    ],
)
@pytest.mark.parametrize("where", ["url", "variable"])
def test_a_mode_that_does_not_check_the_server_is_warned_about(root, caplog, sslmode, is_warned, where):
    url = "postgres://u:s3cret@db/d"
    environ = {"DATABASE_URL": f"{url}?sslmode={sslmode}"} if where == "url" else {"PGSSLMODE": sslmode}
    postgres(root, **environ)
    assert [f"sslmode={sslmode} does not check" in message for message in caplog.messages] == [True] * is_warned
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PGHOST": ""} | {"PGSSLMODE": "disable"}, "DATABASE_URL is not set, and PGHOST isn't either"),
        ({"DATABASE_URL": "postgres://u:s3cret@db:x/d"}, r"PGPORT \(or the port in DATABASE_URL\) must be a number"),
        ({"PGPORT": "s3cret"}, r"PGPORT \(or the port in DATABASE_URL\) must be a number"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?nosuch=1"}, "DATABASE_URL is no service URI"),
        ({"DATABASE_URL": "postgres://u:s3cret@[db/d"}, "DATABASE_URL is no service URI"),
        ({"DATABASE_URL": "s3cret"}, "DATABASE_URL is no service URI"),
        ({"DATABASE_URL": "mysql://u:s3cret@db/d"}, "DATABASE_URL is no service URI"),
        ({"PGSSLMODE": "VERIFY-FULL"}, r"PGSSLMODE \(or sslmode in DATABASE_URL\) must be one of verify-full"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?sslmode=yes"}, "PGSSLMODE .* must be one of"),
        ({"PGSSLROOTCERT": "/nowhere/ca.pem"}, "can't read /nowhere/ca.pem: PGSSLROOTCERT must name the CA's"),
        ({"DATABASE_URL": "postgres://u:s3cret@db/d?sslrootcert=/nowhere"}, "can't read /nowhere: PGSSLROOTCERT"),
    ],
)
def test_a_wrong_setting_of_postgresql_is_named_and_no_secret_is_told(root, environ, message):
    environ = {"PGHOST": "db.example", "PGSSLROOTCERT": root} | environ
    environ = {name: text for name, text in environ.items() if text}
    with pytest.raises(ValueError, match=message) as caught:
        postgres_options(environ)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_root_certificate_is_needed_where_none_is_used(tmp_path):
    environ = {"PGHOST": "db", "PGSSLROOTCERT": "/nowhere", "PGSSLMODE": "require"}
    assert "sslmode" not in postgres_options(environ)[1]
    assert postgres_options({"PGHOST": "db", "PGSSLROOTCERT": "system"})[1]["sslmode"] == "verify-full"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("connection refused\n\tIs the server running?\n", "connection refused"),
        ('invalid input\nCONTEXT:  COPY batch, line 1: "s3cret"\n', "invalid input"),
        ("", "OperationalError"),
    ],
)
def test_an_error_of_postgresql_is_one_line_without_the_data(text, line):
    assert first_line(psycopg2.OperationalError(text)) == line


# The command line


@pytest.fixture
def environ(clean_process, root):
    """An environment with which kconsumer would start."""
    for name, text in (
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        ("KAFKA_SECURITY_PROTOCOL", "PLAINTEXT"),
        ("DATABASE_URL", "postgres://avnadmin:s3cret@127.0.0.1:1/d"),
        ("PGSSLROOTCERT", root),
    ):
        clean_process.setenv(name, text)
    return clean_process


def run_main(argv, capsys):
    """The one line on standard error of a run that ends at once."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("kconsumer: ")
    assert (err.count("\n"), err[-1]) == (1, "\n")
    assert "s3cret" not in err
    return err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--topic", "a b"], "argument --topic: 'a b' is no topic's name"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--until-empty=yes"], "ignored explicit argument"),
        (["--group", ""], "argument --group: '' is no name: 1 to 255 printable characters"),
        (["--group", "x" * 256], "argument --group"),
        (["--group", "a\nb"], "argument --group"),
    ],
)
def test_a_wrong_argument_ends_with_status_2_and_one_line(environ, capsys, argv, message):
    never_runs(environ)
    assert message in run_main(argv, capsys)


def never_runs(environ):
    """Where nothing was found wrong, the test fails instead of looking for servers."""

    def run(recorder):
        raise AssertionError("it started")

    environ.setattr(Recorder, "run", run)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", None, "KAFKA_BOOTSTRAP_SERVERS is not set"),
        ("KAFKA_GROUP_ID", "mine", "KAFKA_GROUP_ID can't be set"),
        ("KAFKA_ENABLE_AUTO_COMMIT", "true", "KAFKA_ENABLE_AUTO_COMMIT can't be set"),
        ("KAFKA_AUTO_OFFSET_RESET", "latest", "KAFKA_AUTO_OFFSET_RESET can't be set"),
        ("KAFKA_CONSUMER_TIMEOUT_MS", "5", "KAFKA_CONSUMER_TIMEOUT_MS can't be set"),
        ("KAFKA_MAX_POLL_RECORDS", "many", "KAFKA_MAX_POLL_RECORDS must be a whole number"),
        ("KAFKA_REQUEST_TIMEOUT_MS", "6000", "KAFKA_REQUEST_TIMEOUT_MS must be less than KAFKA_HEARTBEAT_INTERVAL_MS"),
        ("KAFKA_NONSENSE", "1", "KAFKA_NONSENSE is no setting"),
        ("DATABASE_URL", None, "DATABASE_URL is not set, and PGHOST isn't either"),
        ("DATABASE_URL", "postgres://u:s3cret@db/d?nosuch=1", "DATABASE_URL is no service URI"),
        ("PGSSLROOTCERT", "/nowhere/ca.pem", "can't read /nowhere/ca.pem"),
        ("PGSSLMODE", "full", "PGSSLMODE"),
    ],
)
def test_a_wrong_environment_ends_with_status_2_and_one_line(environ, capsys, name, text, message):
    never_runs(environ)
    environ.delenv(name, raising=False)
    if text is not None:
        environ.setenv(name, text)
    assert message in run_main([], capsys)


def test_a_setting_that_only_the_producer_knows_is_accepted(environ):
    ran = []
    environ.setattr(Recorder, "run", lambda recorder: ran.append(recorder) or 0)
    environ.setenv("KAFKA_LINGER_MS", "5")
    assert main([]) == 0
    assert len(ran) == 1


def test_settings_that_kafka_python_itself_refuses_end_with_status_2_and_one_line(environ, capsys, stop):
    class Refusing(KafkaConsumer):
        def __init__(self, **options):
            raise KafkaConfigurationError("Heartbeat interval must be lower than the session timeout")

    environ.setattr(kconsumer, "KafkaConsumer", Refusing)
    environ.setattr(kconsumer.Stop, "wait", lambda stop, seconds: pytest.fail("it tries again for ever"))
    assert "Heartbeat interval must be lower" in run_main([], capsys)


@pytest.mark.parametrize(
    ("ahead", "finding"),
    [
        (0.0, (True, "clock: 0.0 s from the server's")),
        (1.9, (True, "clock: 1.9 s from the server's")),
        (2.5, (False, "clock: 2.5 s from the server's: set it by NTP")),
        (-2.5, (False, "clock: 2.5 s from the server's: set it by NTP")),
        (-86400.0, (False, "clock: 86400.0 s from the server's: set it by NTP")),
    ],
)
def test_the_check_says_how_far_the_clock_is_from_the_servers(database, monkeypatch, ahead, finding):
    connection = create_autospec(psycopg2.extensions.connection, instance=True)
    connection.info = create_autospec(psycopg2.extensions.ConnectionInfo, instance=True, server_version=180001)
    cursor = connection.cursor.return_value
    cursor.fetchone.side_effect = [(1e9 + ahead, 50), (True, True)]
    cursor.fetchall.return_value = [(name,) for name in kconsumer.TABLES]
    database.url, database.options = "", {}
    monkeypatch.setattr(psycopg2, "connect", lambda url, **options: connection)
    monkeypatch.setattr(kconsumer.time, "time", lambda: 1e9)
    assert finding in list(kconsumer.check_postgres(database))
    connection.close.assert_called_once_with()


def test_help_names_every_setting_and_exit_status(environ, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in ("--topic", "--group", "--until-empty", "--check", "--version", "KAFKA_BOOTSTRAP_SERVERS",
                 "DATABASE_URL", "PGSSLROOTCERT", "Exit status"):  # fmt: skip
        assert word in text


def test_version_is_the_packages_own(environ, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"kconsumer {kconsumer.__version__}\n")
