import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from uuid import RFC_4122, UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from messages import GOOD, good

from eventkafkapostgres import message
from eventkafkapostgres.bandwidth import Sample
from eventkafkapostgres.message import FIELDS, copy_line, flatten, parse, read_heartbeat, uuid7, warning
from eventkafkapostgres.schema import TABLES

NUMBERS = tuple(name for name, kind in FIELDS.items() if kind is message.NUMBER)


COLUMN = {name: number for number, name in enumerate(message.COLUMNS)}


OBSERVED_AT = datetime(2026, 11, 23, 16, 22, 4, 796005, tzinfo=UTC)


EPISODE_STARTED_AT = datetime(2026, 11, 23, 16, 21, 58, 795911, tzinfo=UTC)
EVENT_ID = UUID("01a20b20-7007-7b5a-b044-fec6a3afb754")


# The identifier


def test_an_identifier_has_the_layout_of_rfc_9562():
    # the example of RFC 9562, appendix A.6
    assert uuid7(1645557742.000, 0xCC3 << 62 | 0x18C4DC0C0C07398F) == UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")


@pytest.mark.parametrize("random_bits", [0, (1 << 74) - 1, 0x155 << 64 | 0xAAAA])
def test_an_identifier_is_of_version_7_whatever_the_random_bits(random_bits):
    made = uuid7(1795450924.796, random_bits)
    assert (made.version, made.variant) == (7, RFC_4122)
    assert made.int >> 80 in (1795450924795, 1795450924796)


def test_later_identifiers_sort_behind_earlier_ones():
    largest, smallest = (1 << 74) - 1, 0
    assert uuid7(1000.001, largest) < uuid7(1000.002, smallest)
    assert str(uuid7(1000.001, largest)) < str(uuid7(1000.002, smallest))


# The warning


def the_warning():
    sample = Sample(OBSERVED_AT, 1.000213, ["eth0"], 812345.6, 3120456.1)
    return warning(sample, "web-1", 1e6, EVENT_ID, EPISODE_STARTED_AT)


def test_a_warning_is_the_documented_message():
    assert the_warning() == GOOD


def test_a_warnings_fields_are_the_columns_of_the_table_in_their_order():
    columns = [*TABLES["bandwidth_exceeds"]]
    assert [*the_warning()] == columns[: columns.index("topic")] == [*message.FIELDS]


def test_the_consumer_takes_what_the_producer_writes():
    value = json.dumps(the_warning(), ensure_ascii=False).encode()
    assert message.match_canonical(value.decode())  # the fast way
    line = message.copy_line(value, "bandwidth_exceeds", 0, 5)
    assert line.startswith(
        "01a20b20-7007-7b5a-b044-fec6a3afb754\t2026-11-23T16:22:04.796005+00:00\t1.000213\t2026-11-23T16:21:58.795911+00:00\tweb-1\t"
    )


def test_a_whole_second_has_its_microseconds_all_the_same():
    sample = Sample(OBSERVED_AT.replace(microsecond=0), 1.0, [], 1, 1)
    assert warning(sample, "h", 1.0, EVENT_ID, OBSERVED_AT)["observed_at"] == "2026-11-23T16:22:04.000000+00:00"


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
    assert len(columns) == len(message.COLUMNS)
    assert columns[-4:-1] == ["warnings", "3", "42"]
    fields: dict[str, object] = dict(zip(FIELDS, columns[:-4], strict=True))
    fields["interfaces"] = read_array(str(fields["interfaces"]))
    fields |= {name: float(str(fields[name])) for name in NUMBERS}
    return fields, None if columns[-1] is None else json.loads(columns[-1])


# Good messages


def test_a_warning_is_one_line_of_copy():
    assert copy_line(good(), "bandwidth_exceeds", 0, 7) == (
        "01a20b20-7007-7b5a-b044-fec6a3afb754\t2026-11-23T16:22:04.796005+00:00\t1.000213\t2026-11-23T16:21:58.795911+00:00\tweb-1\t"
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
    assert read_copy_text(copy_line(value, "t", 0, 0))[COLUMN["bytes_per_second"]] == text


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
        (b"null", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"[" + good() + b"]", "not a JSON object"),
        (b"{}", "event_id is missing"),
        (good().replace(b"web-1", b"web\t1"), "Invalid control character"),
        (b"[" * 100 + b"]" * 100, "not a JSON object"),
        (good(event_id="not-a-uuid"), "event_id is not a UUID"),
        (good(event_id=""), "event_id is not a UUID"),
        (good(event_id=GOOD["event_id"] + "\n"), "event_id is not a UUID"),
        (good(event_id="{" + GOOD["event_id"] + "}"), "event_id is not a UUID"),
        (good(event_id=GOOD["event_id"].replace("0", "\u0660")), "event_id is not a UUID"),
        (good(observed_at="yesterday"), "observed_at is not a time with a time zone"),
        (good(observed_at=""), "observed_at is not a time with a time zone"),
        (good(observed_at="2026-13-01T00:00:00+00:00"), "month"),
        (good(observed_at="2026-11-23T16:22:04"), "observed_at is not a time with a time zone"),
        (good(observed_at="2026-W47-1T16:22:04+00:00"), "observed_at is not a time with a time zone"),
        (good(observed_at="2026-11-23T16:22:04+16:00"), "observed_at is not a time with a time zone"),
        (good(observed_at="2026-11-23T16:22:04+00:00\n"), "observed_at is not a time with a time zone"),
        (good(observed_at="infinity"), "observed_at is not a time with a time zone"),
        (good(observed_at="2026-11-23T25:22:04+00:00"), "hour"),
        (good(observed_at="2026-11-23"), "observed_at is not a time with a time zone"),
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
        *((good(**{name: math.nan}), "NaN is not a number") for name in NUMBERS),
        *((good(**{name: math.inf}), "Infinity is not a number") for name in NUMBERS),
        *((good(**{name: -math.inf}), "-Infinity is not a number") for name in NUMBERS),
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
        (good(new=math.nan), "NaN is not a number"),
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
    with pytest.raises(ValueError, match="observed_at is not a time with a time zone"):
        copy_line(good(observed_at=f"2026-11-23{separator}11:22:04+00:00"), "t", 0, 0)


@pytest.mark.parametrize("separator", ["\t", "\n", "\\", "\ud800"])
def test_no_batch_becomes_unreadable_by_the_time_of_one_message(separator):
    batch = parse_polled({AT: [record(good(observed_at=f"2026-11-23{separator}11:22:04+00:00")), record(good())]})
    for _, line in batch.rows:
        assert len(read_copy_text(line)) == len(message.COLUMNS)
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
        "episode_started_at": st.datetimes(timezones=zones).map(lambda at: at.isoformat()),
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
        "episode_started_at": st.datetimes(timezones=st.just(UTC)).map(
            lambda at: at.isoformat(timespec="microseconds")
        ),
        "host": plain_texts.filter(lambda text: 1 <= len(text) <= 255),
        "interfaces": st.lists(plain_texts, min_size=1),
        **dict.fromkeys(NUMBERS, st.floats(0, 1e12).map(lambda rate: round(rate, 1))),
        "message": plain_texts,
    }
).map(lambda fields: {name: fields[name] for name in FIELDS})


@settings(deadline=None)
@given(as_the_producer_writes)
def test_what_the_producer_writes_is_read_by_one_expression_and_comes_back(fields):
    text = json.dumps(fields, ensure_ascii=False)
    assert message.match_canonical(text)
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
TOPIC_ID = UUID("7d2f9f6e-0c4b-4c39-8a7e-2b0f6d0c5a11")


def parse_polled(polled, expected_offsets=None):
    return parse(flatten(polled), TOPIC_ID, expected_offsets or dict.fromkeys(polled, 0))


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
    batch = parse_polled({AT: [record(value, 5)]})
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
    batch = parse_polled({AT: [record(json.dumps(GOOD | changed | extra).encode())]})
    assert len(batch.rows) + len(batch.rejected) == 1
    for _, line in batch.rows:
        assert len(read_copy_text(line.encode().decode())) == len(message.COLUMNS)
        assert "\0" not in line


def test_a_batch_parts_what_can_be_stored_from_what_cannot():
    polled = {
        AT: [record(good(), 10), record(b"no", 11), record(None, 12), record(good(host="b"), 15)],
        NEXT: [record(b"[]", 3, 1)],
    }
    batch = parse_polled(polled)
    assert [one.offset for one, _ in batch.rows] == [10, 15]
    assert [line.split("\t")[COLUMN["host"]] for _, line in batch.rows] == ["web-1", "b"]
    assert [(one.partition, one.offset) for one, _ in batch.rejected] == [(0, 11), (0, 12), (1, 3)]
    assert batch.rejected[1][1] == "a tombstone: a message without a value"
    assert batch.next_offsets == {AT: 16, NEXT: 4}


# Heartbeats


@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.booleans()), min_size=2, max_size=9))
def test_the_halves_of_a_batch_are_recorded_one_after_the_other_as_the_whole_would_be(given_records):
    offsets, polled = {AT: 40, NEXT: 7}, {AT: [], NEXT: []}
    for partition, is_good in given_records:
        at = TopicPartition("warnings", partition)
        polled[at].append(record(good() if is_good else b"bad", offsets[at] + len(polled[at]), partition))
    whole = parse_polled(polled, {AT: 40, NEXT: 7})
    first, second = whole.split()
    assert first.rows + second.rows == whole.rows
    assert first.rejected + second.rejected == whole.rejected
    assert {**first.next_offsets, **second.next_offsets} == whole.next_offsets
    assert first.expected_offsets == {at: {AT: 40, NEXT: 7}[at] for at in first.next_offsets}
    assert second.expected_offsets == {
        at: first.next_offsets.get(at, {AT: 40, NEXT: 7}[at]) for at in second.next_offsets
    }
    assert {first.topic_id, second.topic_id} == {TOPIC_ID}
    assert first.records
    assert second.records


def beat(host="web-1", at="2026-11-23T16:22:04.796005+00:00", **more):
    return json.dumps({"host": host, "heartbeat_at": at, **more}).encode()


def test_a_heartbeat_is_neither_a_row_nor_rejected_and_the_latest_counts():
    first, later = "2026-11-23T16:22:04+00:00", "2026-11-23T16:22:14+00:00"
    batch = parse_polled({AT: [record(beat(at=at), 1 + n) for n, at in enumerate((first, later, first))]})
    assert (batch.rows, batch.rejected) == ([], [])
    assert batch.heartbeats == {"web-1": datetime.fromisoformat(later)}
    assert batch.next_offsets == {AT: 4}


def test_each_host_has_its_own_latest_heartbeat():
    batch = parse_polled({AT: [record(beat("a"), 1), record(beat("b"), 2)]})
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
    assert read_heartbeat(value) is None


@pytest.mark.parametrize("host", [["a"], {"a": 1}])
def test_a_heartbeat_whose_host_is_no_text_is_rejected(host):
    assert len(parse_polled({AT: [record(beat(host=host))]}).rejected) == 1


@pytest.mark.parametrize(
    "at",
    [
        "2026-W47-1T16:22:04+00:00",
        "2026-11-23T16:22:04+23:00",
        *(f"2026-11-23{separator}11:22:04+00:00" for separator in (*SEPARATORS, "é")),
    ],
)
def test_a_time_that_python_takes_and_postgresql_does_not_is_no_heartbeat(at):
    assert read_heartbeat(beat(at=at)) is None


@settings(deadline=None)
@given(anything, anything | st.datetimes(timezones=zones).map(lambda at: at.isoformat()), extras)
def test_parse_takes_any_fields_of_a_heartbeat_and_each_can_be_sent(host, at, extra):
    batch = parse_polled({AT: [record(json.dumps({"host": host, "heartbeat_at": at, **extra}).encode())]})
    assert len(batch.rejected) + len(batch.heartbeats) == 1
    for of, when in batch.heartbeats.items():
        assert "\0" not in of
        assert f"{of}{when.isoformat()}".encode()
