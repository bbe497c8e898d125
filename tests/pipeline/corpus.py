"""Bad messages, odd ones, and ones that nobody has thought of: each with a name for whoever reads of a failure."""

import gzip
import json
import struct
from collections.abc import Iterator
from datetime import UTC
from uuid import UUID, uuid4

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pipeline import encoded, warning

FIELDS = tuple(warning())
TEXTS = ("event_id", "observed_at", "episode_started_at", "host", "message")
NUMBERS = tuple(name for name in FIELDS if name.endswith(("_per_second", "seconds")))
DIGITS = ("0." + "1" * 400, "0.1234567890123456789012345", "1e400", "9" * 10_000, "1e-400")  # jsonb keeps them all


def fields(**changes: object) -> bytes:
    """A good message with other fields; ... takes one out. Whatever ASCII does not have is escaped."""
    changed = warning() | changes
    return json.dumps({name: value for name, value in changed.items() if value is not ...}).encode()


def raw(**texts: str) -> bytes:
    """A good message in which some values are these JSON texts, as they stand."""
    parts = {name: json.dumps(value) for name, value in warning().items()} | texts
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in parts.items()) + "}").encode()


def halves() -> Iterator[tuple[str, bytes]]:
    """Messages that were cut in two: one after the other they are two good ones."""
    for cut in (0.02, 0.3, 0.5, 0.7, 0.98):
        two = fields() + fields()
        at = int(len(two) / 2 * cut)
        yield f"the first {cut} of a message", two[:at]
        yield f"the rest behind {cut}, and half of the next", two[at : len(two) // 4 * 3]
        yield f"the end of that behind {cut}", two[len(two) // 4 * 3 :]


def bad_times() -> Iterator[str]:
    yield from ("", "now", "yesterday", "infinity", "-infinity", "epoch", "allballs", "1764000000", "24.11.2026")
    yield from ("2026-11-24", "12:00:00Z", "2026-11-24T12:00:00", "2026-11-24 12:00:00", "2026-11-24T12:00Z")
    yield from ("2026-11-24T12:00:00 CET", "2026-11-24T12:00:00 Europe/Berlin", "2026-11-24T12:00:00+0000")
    yield from ("2026-W48-2T12:00:00Z", "2026W482T120000Z", "2026-328T12:00:00Z", "20261124T120000Z")
    yield from ("2026-02-30T12:00:00Z", "2026-02-29T12:00:00Z", "2026-04-31T12:00:00Z", "1900-02-29T12:00:00Z")
    yield from ("2026-00-10T12:00:00Z", "2026-13-10T12:00:00Z", "2026-11-00T12:00:00Z", "2026-11-32T12:00:00Z")
    yield from ("0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z", "+12026-11-24T12:00:00Z")
    yield from ("2026-11-24T25:00:00Z", "2026-11-24T12:60:00Z", "2026-11-24T12:00:61Z", "2026-11-24T12:00:-1Z")
    yield from ("2026-11-24T12:00:00+24:00", "2026-11-24T12:00:00+16:00", "2026-11-24T12:00:00+12:60")
    yield from ("2026-11-24T12:00:00.Z", "2026-11-24T12:00:00,5Z", "2026-11-24T12:00:00.5.5Z")
    yield from ("2026-11-24T12:00:00Z\n", " 2026-11-24T12:00:00Z", "2026-11-24\t12:00:00Z", "2026-11-24\\12:00:00Z")
    yield from (
        "\u0662\u0660\u0662\u0666-11-24T12:00:00Z",
        "2026-11-24T12:00:00Z\0",
        "2026-11-24T12:00:00ZZ",
        "2026-11-24T12:00:00Z BC",
    )
    yield f"2026-11-24T12:00:00.{'0' * 200}Z"  # longer than any time that PostgreSQL reads
    yield f"2026-11-24T12:00:00.{'9' * 100_000}+00:00"


def bad_numbers() -> Iterator[str]:
    """As JSON texts; some are numbers for JSON, but for no double precision."""
    yield from ("NaN", "Infinity", "-Infinity", "nan", "inf", "1e400", "-1E+400", "9" * 400, "-" + "9" * 400)
    yield from ("1e-400", "0." + "0" * 400 + "1", "1.8e308", "1e131073", "1e-20000", "1e999999999999", "9" * 5000)
    yield from (
        "01",
        "-01",
        "+1",
        ".5",
        "5.",
        "1e",
        "1e+",
        "0x10",
        "1_000",
        "1,5",
        "1 000",
        "--1",
        "-",
        "\u0661\u0662",
        "1f",
    )
    yield from ('"812345.6"', '"NaN"', '""', "null", "true", "false", "[]", "[1]", "{}", '{"$numberDouble": "1"}')


def bad_messages() -> Iterator[tuple[str, bytes | None]]:
    good = fields()
    yield "tombstone", None
    yield "empty", b""
    for text in (b" ", b"\n", b"null", b"true", b"0", b"-0", b"1.5", b'""', b'"text"', b"[]", b"{}", b"[{}]", b"{",
                 b"}", b'"', b"\\.", b"\\N", b"\\.\n", b"\\", b"\0", b"\0" * 1000, b"nul", b"undefined", b"text",
                 b'{"a": 1}', b"[%b]" % good, b"[%b, %b]" % (good, good), b"\x1a", b"\x04",
                 json.dumps(good.decode()).encode()):  # fmt: skip
        yield f"text {text[:20]!r}", text
    for value in (b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xf5\x80\x80\x80", b"\xfe\xff",
                  b"\x80", b"\xf0\x9f\x98", b"\xe9"):  # fmt: skip
        yield f"invalid UTF-8 {value!r} alone", value
        for place in (b"web-1", b"eth0", b"812345.6", b'"host"', b"limit of"):
            yield f"invalid UTF-8 {value!r} at {place!r}", good.replace(place, place[:2] + value + place[2:], 1)
    for coding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp500"):
        yield f"in {coding}", fields(host="wéb").decode().encode(coding)
    for control in range(0x20):
        yield f"raw control character {control:#x} in a text", good.replace(b"web-1", b"web%c1" % control)
        if chr(control) not in " \t\n\r":
            yield f"control character {control:#x} between fields", good.replace(b", ", b",%c" % control, 1)
    for part in ("\0", "a\0b", "\\\0", "\ud800", "\udfff", "\udc00\ud800", "a\ud83d", "\ud83dA\ude00", "\\\ud800"):
        yield f"{part!r} as host", fields(host=part)
        yield f"{part!r} in the message", fields(message=f"x{part}y")
        yield f"{part!r} among the interfaces", fields(interfaces=["eth0", part])
        yield f"{part!r} as event_id", fields(event_id=part)
        yield f"{part!r} in a new field", fields(new=[{"deep": part}])
        yield f"{part!r} in the name of a new field", fields(**{f"new{part}": 1})
    for name in FIELDS:
        yield f"{name} is missing", fields(**{name: ...})
        yield f"{name} is spelled otherwise", good.replace(f'"{name}"'.encode(), f'"{name.upper()}"'.encode())
        wrong: object
        for wrong in (None, True, False, {}, {"text": "a"}, [[]], [None], [1], [["eth0"]]):
            yield f"{name} is {wrong}", fields(**{name: wrong})
        if name in TEXTS:
            yield f"{name} is a number", fields(**{name: 17})
            yield f"{name} is a list", fields(**{name: ["a"]})
        yield f"{name} twice, the last time null", good[:-1] + f', "{name}": null}}'.encode()
    for at in bad_times():
        yield f"observed at {at[:40]!r}", fields(observed_at=at)
    for number, name in zip(bad_numbers(), NUMBERS * 20, strict=False):
        yield f"{name} is {number[:20]}", raw(**{name: number})
    for event_id in ("", "1", "warning-17", "g" * 36, str(uuid4())[:-1], f"{uuid4()}0", f" {uuid4()}", f"{uuid4()}\n",
                 "urn:uuid:" + str(uuid4()), "--" * 18, str(uuid4()).replace("-", "_"), "\u0660" * 36):  # fmt: skip
        yield f"event_id {event_id!r}", fields(event_id=event_id)
    interfaces: object
    for interfaces in ("eth0", "{eth0}", {"0": "eth0"}, ["eth0", None], ["eth0", 7], [["eth0"], ["lo"]], [{}], [True]):
        yield f"interfaces {interfaces!r}", fields(interfaces=interfaces)
    yield "a host with 256 characters", fields(host="x" * 256)
    yield "a host with 1 MB", fields(host="x" * 1_000_000)
    for length in (1, 100, 900_000):
        yield f"{length} brackets", b"[" * length
    for depth in (10_000, 100_000):
        yield f"an array {depth} deep", b"[" * depth + b"]" * depth
        yield f"an object {depth} deep", b'{"a":' * depth + b"1" + b"}" * depth
        yield f"interfaces {depth} deep", raw(interfaces="[" * depth + "]" * depth)
    for number in ("NaN", "Infinity", "-Infinity", "01", "1e131073"):
        yield f"a new field is {number}", raw(new=number)
    for text in (good + good, good + b"\n" + good, good + b"}", good[1:], good[:-1], b"{" + good, good[:-1] + b",}",
                 good.replace(b",", b",,", 1), good.replace(b'"', b"'"), good.replace(b'"host"', b"host"),
                 b"callback(%b)" % good, good + b" // comment", b"/* comment */" + good, good + b"\0", good + b"\x0c",
                 b"\xc2\xa0" + good, good + b"\xe2\x80\xa8", b"data: %b\n\n" % good, b"\x1e" + good,
                 good.replace(b": ", b"=", 1), repr(warning()).encode(), good.replace(b"web-1", b"web\\x2d1"),
                 good.replace(b"web-1", b"\\u12"), good.replace(b"web-1", b"\\"), good.replace(b"web-1", b"\\'"),
                 good.replace(b'"web-1"', b'"web-1')):  # fmt: skip
        yield f"almost JSON {text[:15]!r} ... {text[-15:]!r}", text
    yield from other_systems(good)
    yield from halves()


def other_systems(good: bytes) -> Iterator[tuple[str, bytes]]:
    """What else is written to topics."""
    before = {"schema": {"type": "struct"}, "payload": {"before": None, "after": json.loads(good), "op": "c"}}
    yield "Debezium", json.dumps(before).encode()
    yield "Kafka Connect", json.dumps({"schema": None, "payload": json.loads(good)}).encode()
    yield "CloudEvents", json.dumps({"specversion": "1.0", "id": str(uuid4()), "data": json.loads(good)}).encode()
    yield "Telegraf", b'{"fields":{"bytes_sent":812345},"name":"net","tags":{"host":"web-1"},"timestamp":1764000000}'
    yield "InfluxDB", b"net,host=web-1,interface=eth0 bytes_sent=812345i 1764000000000000000"
    yield "Prometheus", b'node_network_transmit_bytes_total{device="eth0"} 8.12345e+05'
    yield "Filebeat", b'{"@timestamp":"2026-11-24T12:00:00.000Z","@metadata":{"beat":"filebeat"},"message":"text"}'
    yield "GELF", b'{"version":"1.1","host":"web-1","short_message":"text","timestamp":1764000000.5,"level":5}'
    yield "syslog", b"<165>1 2026-11-24T12:00:00Z web-1 kproducer - ID47 - text"
    yield "Avro with a schema's number", b"\x00\x00\x00\x00\x07\x02\x0aweb-1\x00"
    yield "Protocol Buffers", b"\x0a\x05web-1\x12\x04eth0\x19" + struct.pack("<d", 812345.6)
    yield "MessagePack", b"\x82\xa4host\xa5web-1\xa1n\x01"
    yield "gzip", gzip.compress(good)
    yield "XML", b"<warning><host>web-1</host></warning>"
    yield "CSV", b'event_id,host\n1,"web-1"'
    yield "YAML", b"host: web-1\ninterfaces:\n- eth0\n"
    yield "SQL", b"'; drop table bandwidth_exceeds; --"
    yield (
        "a row of COPY",
        b"\t".join([str(uuid4()).encode(), b"2026-11-24 12:00:00+00", b"web-1", b"{eth0}", b"1", b"2", b"3"]),
    )
    yield "logfmt", b"level=warn host=web-1 bytes=812345"
    yield "a heartbeat without a time", b'{"host": "web-1", "heartbeat_at": null}'
    yield "a heartbeat with another field", b'{"host": "web-1", "heartbeat_at": "2026-11-24T12:00:00Z", "up": true}'
    yield "a heartbeat without a time zone", b'{"host": "web-1", "heartbeat_at": "2026-11-24T12:00:00"}'
    yield "a heartbeat on Feb 30", b'{"host": "web-1", "heartbeat_at": "2026-02-30T12:00:00Z"}'
    yield "a heartbeat of a NUL", b'{"host": "\\u0000", "heartbeat_at": "2026-11-24T12:00:00Z"}'
    yield "a heartbeat of a surrogate", b'{"host": "\\ud800", "heartbeat_at": "2026-11-24T12:00:00Z"}'
    yield "a heartbeat in year 0", b'{"host": "web-1", "heartbeat_at": "0000-01-01T00:00:00Z"}'


def odd_messages() -> Iterator[tuple[str, bytes]]:
    """Good ones that look bad: each is a row."""
    for text in ("", " ", "\\.", "\\N", "NULL", "null", "{}", '{"a","b"}', '"', "\\", "\\\\", '\\"', "'", "$1", "%s",
                 "%", ",", "a,b", "{", "}", "\t", "\n", "\r", "\r\n", "\\n", "\\u0000", "\\x00", "\x7f", "\x80", "\x85",
                 "\u2028", "\ufeff", "\ufffe", "\uffff", "\U0010ffff", "😀", "日本 🛰", "e\u0301", "\u202e",
                 "'; drop table bandwidth_exceeds; --", "\\.\n", "\n\\.\n", "\t\t\t\t",
                 *map(chr, range(1, 0x20))):  # fmt: skip
        yield f"{text!r} as every text", fields(host=text, message=text, interfaces=[text, text], new={text: text})
        yield (
            f"{text!r} as a text, not escaped",
            encoded(warning(host=text, message=f"{text}\\", interfaces=["", text])),
        )
    for text in ("0", "-0", "0.0", "-0.0", "1E5", "1e5", "1e+05", "1e-10", "5e-324", "1.7976931348623157e308", "0.1",
                 "9" * 300, DIGITS[0], "123456789012345678901234567890", "1e-300", "-1"):  # fmt: skip
        yield f"the number {text[:25]}", raw(**dict.fromkeys(NUMBERS, text))
        if text not in DIGITS:
            yield f"the number {text[:25]} in a new field", raw(new=f"[{text}]")
    for text in ("2026-11-24T12:00:00Z", "2026-11-24 12:00:00Z", "2026-11-24T12:00:00+00:00",
                 "2026-11-24T12:00:00-00:00", "2026-11-24T12:00:00.1Z", "2026-11-24T12:00:00.123456789Z",
                 "2026-11-24T23:59:59.9999999+05:30", "2026-11-24T12:00:00+15:59", "2026-11-24T12:00:00-15:59",
                 "2024-02-29T12:00:00Z", "2000-02-29T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z",
                 "1969-12-31T23:59:59-12:00"):  # fmt: skip
        yield f"observed at {text}", fields(observed_at=text)
    yield "before our era, for UTC", fields(observed_at="0001-01-01T00:00:00+15:59")
    yield "after year 9999, for UTC", fields(observed_at="9999-12-31T23:59:59-15:59")
    for number in (0, 1 << 127, (1 << 128) - 1):
        yield f"UUID {number:x}", fields(event_id=str(UUID(int=number)))
    yield "a UUID in capitals", fields(event_id=str(uuid4()).upper())
    yield "no interface", fields(interfaces=[])
    yield "10,000 interfaces", fields(interfaces=[f"eth{number}" for number in range(10_000)])
    yield "a host with 255 characters", fields(host="😀" * 255)
    yield "a message of 1 MB", fields(message="x" * 1_000_000)
    yield "a message of 1 MB, each character escaped", fields(message="\\" * 500_000)
    yield "a new field of 1 MB", fields(new="x" * 1_000_000)
    yield "an interface of 1 MB", fields(interfaces=["x" * 1_000_000])
    yield "10,000 new fields", fields(**{f"new{number}": number for number in range(10_000)})
    for new in (None, True, 0, "", [], {}, [None], {"a": {"b": [1, 2.5, "c", None]}}, {"": ""}, 1 << 80):
        yield f"a new field is {new!r}", fields(new=new)
    yield "a new field without a name", fields(**{"": 1})
    yield "a new field with a column's name", fields(topic="other", partition=-1, offset="x", recorded_at=None, extra=1)
    yield "a new field 100 deep", raw(new="[" * 100 + "]" * 100)
    for name in FIELDS:
        yield f"{name} twice, the first time null", b'{"%s": null, ' % name.encode() + fields()[1:]
    yield "a new field twice", fields(new=1)[:-1] + b', "new": 2}'
    yield "the last field first", json.dumps(dict(reversed(warning().items()))).encode()
    yield "indented", json.dumps(warning(), indent="\t").encode()
    yield "without white space", json.dumps(warning(), separators=(",", ":")).encode()
    yield "white space around it", b" \r\n\t" + fields() + b"\n\n "
    yield "names that are escaped", fields().replace(b'"host"', b'"\\u0068ost"')
    yield "a slash that is escaped", fields().replace(b"web-1", b"web\\/1")
    yield "a pair of surrogates", fields().replace(b"web-1", b"\\ud83d\\ude00")
    yield "an escaped backslash before u0000", fields().replace(b"web-1", b"\\\\u0000")


def doubtful_messages() -> Iterator[tuple[str, bytes]]:
    """PostgreSQL takes them, and the design does not say: a row that is right, or rejected."""
    for depth in (500, 900, 1000, 2000, 3000, 5000, 7000, 9000, 10_000, 20_000, 100_000):
        yield f"a new field with arrays {depth} deep", raw(new="[" * depth + "]" * depth)
        yield f"a new field with objects {depth} deep", raw(new='{"a":' * depth + "1" + "}" * depth)
    for text in ("2026-12-31T23:59:60Z", "2026-12-31T23:59:60.5+00:00", "2026-11-24T24:00:00Z", "2026-11-24t12:00:00z"):
        yield f"observed at {text}", fields(observed_at=text)
    for text in (f"{{{uuid4()}}}", str(uuid4()).replace("-", "")):
        yield f"event_id {text}", fields(event_id=text)


def heartbeats() -> Iterator[tuple[str, bytes]]:
    """Neither rows nor rejected: of each host the latest time is kept."""
    for host, at in (("a", "2026-11-24T12:00:01Z"), ("a", "2026-11-24T12:00:02+05:30"), ("a", "2026-11-24 12:00:00Z"),
                     ("b", f"2026-11-24T12:00:00.{0:0200}Z"), ("c", "0001-01-01T00:00:00+15:59"),
                     ("c", "0001-01-01T00:00:00-15:59"), ("d", "9999-12-31T23:59:59-15:59"),
                     ("\\.", "2024-02-29T00:00:00Z"),
                     ("😀" * 255, "2026-11-24T12:00:00.5Z"), ("{a,b}\t\"'%s", "2026-11-24T12:00:00Z")):  # fmt: skip
        yield f"a heartbeat of {host[:20]!r} at {at[:40]}", json.dumps({"heartbeat_at": at, "host": host}).encode()


# Generated ones

PLACE = "00000000-0000-4000-8000-000000000000"  # of an event_id: what is generated has none of its own
NEARLY_A_TIME = (
    r"[0-9]{4}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{0,9})?(Z|[+-][01][0-9]:?[0-6][0-9]|)"
)
texts = st.text(st.characters())  # with lone surrogates and NUL
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
times = (
    st.datetimes(timezones=st.just(UTC)).map(lambda at: at.isoformat())
    | st.from_regex(NEARLY_A_TIME, fullmatch=True)
    | texts
)
number_texts = st.from_regex(r"-?[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
good_fields = {
    "event_id": st.just(PLACE),
    "observed_at": times,
    "episode_started_at": times,
    "host": texts,
    "interfaces": st.lists(texts, max_size=5),
    **dict.fromkeys(NUMBERS, st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 1 << 70)),
    "message": texts,
}
almost_good = st.builds(
    lambda values, wrong, new, left_out, how: json.dumps(
        {name: value for name, value in (new | values | wrong).items() if name not in left_out}, **how
    ).encode(errors="surrogatepass"),
    st.fixed_dictionaries(good_fields),
    st.just({}) | st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=2),
    st.just({}) | st.dictionaries(texts, json_values, max_size=3),
    st.sets(st.sampled_from(FIELDS), max_size=1),
    st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.none() | st.sampled_from(["", "\t"])}),
)
spoilt = st.builds(
    lambda message, at, length, instead: message[:at] + instead + message[at + length :],
    almost_good | st.just(encoded(warning(event_id=PLACE))),
    st.integers(0, 400),
    st.integers(0, 3),
    st.binary(max_size=3) | texts.map(lambda text: text.encode(errors="surrogatepass")),
)
with_numbers = st.builds(
    lambda name, number: raw(**{"event_id": f'"{PLACE}"', name: number}), st.sampled_from(NUMBERS), number_texts
)
anything = st.binary() | json_values.map(lambda value: json.dumps(value).encode())


def generated(count: int) -> list[bytes]:
    found: list[bytes] = []

    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(almost_good | spoilt | with_numbers | anything)
    def collect(message: bytes) -> None:
        found.append(message.replace(PLACE.encode(), str(uuid4()).encode()))

    collect()
    return found
