"""Bad messages among good ones: each is kept as it came, none stops, delays or spoils another.

What a bad message is, is decided by PostgreSQL (STORABLE), not by what kconsumer.py does: bytes that are UTF-8, an
object that jsonb takes, with fields of the right JSON types whose texts are what the columns' types take. The design
is narrower in three points: a time is RFC 3339's with its zone, a UUID is in RFC 9562's form, a host has at most 255
characters.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing

import pytest
from corpus import DIGITS, bad_messages, doubtful_messages, fields, generated, heartbeats, odd_messages, raw
from pipeline import Pipeline, wait_until
from psycopg2.extras import execute_values

TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-][0-9]{2}:[0-5][0-9])$"
STORABLE = rf"""
create function storable(value bytea) returns boolean language plpgsql as $$
declare fields jsonb;
begin
    fields := convert_from(value, 'UTF8')::jsonb;
    return coalesce(
        jsonb_typeof(fields) = 'object'
        and jsonb_typeof(fields -> 'event_id') = 'string'
        and fields ->> 'event_id' ~ '^[0-9a-fA-F]{{8}}(-[0-9a-fA-F]{{4}}){{3}}-[0-9a-fA-F]{{12}}$'
        and jsonb_typeof(fields -> 'observed_at') = 'string'
        and fields ->> 'observed_at' ~ '{TIME}'
        and pg_input_is_valid(fields ->> 'observed_at', 'timestamptz')
        and jsonb_typeof(fields -> 'episode_started_at') = 'string'
        and fields ->> 'episode_started_at' ~ '{TIME}'
        and pg_input_is_valid(fields ->> 'episode_started_at', 'timestamptz')
        and jsonb_typeof(fields -> 'host') = 'string' and char_length(fields ->> 'host') <= 255
        and jsonb_typeof(fields -> 'message') = 'string'
        and jsonb_typeof(fields -> 'interfaces') = 'array'
        and not exists (
            select from jsonb_array_elements(fields -> 'interfaces') as each where jsonb_typeof(each) <> 'string'
        )
        and not exists (
            select from unnest('{{seconds,bytes_sent_per_second,bytes_received_per_second,bytes_per_second,'
                'limit_bytes_per_second}}'::text[]) as name
            where jsonb_typeof(fields -> name) is distinct from 'number'
            or not pg_input_is_valid(fields ->> name, 'double precision')
        ), false);
exception when others then
    return false;
end $$;
create function heartbeat(value bytea) returns boolean language plpgsql as $$
declare fields jsonb;
begin
    fields := convert_from(value, 'UTF8')::jsonb;
    return coalesce(
        fields - '{{host, heartbeat_at}}'::text[] = '{{}}'
        and jsonb_typeof(fields -> 'host') = 'string' and char_length(fields ->> 'host') between 1 and 255
        and jsonb_typeof(fields -> 'heartbeat_at') = 'string'
        and fields ->> 'heartbeat_at' ~ '{TIME}'
        and pg_input_is_valid(to_microseconds(fields ->> 'heartbeat_at'), 'timestamptz'), false);
exception when others then
    return false;
end $$;
create function to_microseconds(at text) returns text return regexp_replace(at, '([.][0-9]{{1,6}})[0-9]*', '\1');
create table sent ("offset" bigint, value bytea)"""
JUDGE = """
select "offset", storable, heartbeat(value),
    case when storable then cast(convert_from(value, 'UTF8') as jsonb) ->> 'event_id' end as event_id
from sent cross join lateral storable(value)"""
# What PostgreSQL makes of the message itself, beside what is in the table.
DIFFERENT = """
with stored as materialized (
    select bandwidth_exceeds.*, value from bandwidth_exceeds join sent using ("offset")
)
select stored."offset" from stored cross join lateral (select convert_from(value, 'UTF8')::jsonb as fields) as message
where (stored.event_id, stored.observed_at, stored.seconds, stored.episode_started_at, stored.host,
    stored.interfaces, stored.bytes_sent_per_second,
    stored.bytes_received_per_second, stored.bytes_per_second, stored.limit_bytes_per_second, stored.message,
    stored.topic, stored.partition, stored.extra) is distinct from
    (cast(fields ->> 'event_id' as uuid), cast(fields ->> 'observed_at' as timestamptz),
    cast(fields ->> 'seconds' as float8), cast(fields ->> 'episode_started_at' as timestamptz), fields ->> 'host',
    array(select jsonb_array_elements_text(fields -> 'interfaces')), cast(fields ->> 'bytes_sent_per_second' as float8),
    cast(fields ->> 'bytes_received_per_second' as float8), cast(fields ->> 'bytes_per_second' as float8),
    cast(fields ->> 'limit_bytes_per_second' as float8), fields ->> 'message', %s, 0,
    nullif(fields - '{event_id,observed_at,seconds,episode_started_at,host,interfaces,bytes_sent_per_second,'
    'bytes_received_per_second,bytes_per_second,limit_bytes_per_second,message}'::text[], '{}'))"""
# A heartbeat of the future counts as one of the moment when it was recorded.
BEATEN_OTHERWISE = """
select host from heartbeats full join (
    select fields ->> 'host' as host, max(to_microseconds(fields ->> 'heartbeat_at')::timestamptz) as at
    from (select value from sent where heartbeat(value) offset 0) as beaten
    cross join lateral (select convert_from(value, 'UTF8')::jsonb as fields) as message group by 1
) as beaten using (host) where at is distinct from heartbeat_at and not (at > now() and heartbeat_at <= now())"""
KEYS = (b"web-1", None, b"", b"\x00\xff\\N\n", b"k" * 1000)


# What was sent, and what came of it

Known = tuple[str, bool | None]  # what it is, and whether it is good; None: either will do


def send_among_good_ones(pipeline: Pipeline, values: Iterable[bytes | None]) -> None:
    """Send messages in this order, with none to three good ones between, under all kinds of keys."""
    chance = random.Random(len(pipeline.topic))
    messages: list[tuple[bytes | None, bytes | None]] = []
    for value in values:
        messages += [(b"web-1", fields()) for _ in range(chance.randrange(4))]
        messages.append((chance.choice(KEYS), value))
    pipeline.send_all(messages)


def record_all(pipeline: Pipeline, at_once: int) -> None:
    """Let a consumer record everything; no complaint of PostgreSQL, no second try."""
    ends = pipeline.ends()
    consumer = pipeline.consumer(environment=pipeline.environment(KAFKA_MAX_POLL_RECORDS=str(at_once)))
    wait_until(lambda: pipeline.consumed() == ends, f"recorded to {ends}")
    wait_until(lambda: pipeline.committed() == ends, f"committed to {ends}")
    assert consumer.stop() == 0
    assert [line for line in consumer.complaints() if " went to rejected_messages" not in line] == []


def assert_each_is_where_it_belongs(pipeline: Pipeline, known: Mapping[bytes | None, Known]) -> tuple[int, int]:
    """Each message is one row with its values, or rejected with its bytes; how many are.

    What is `known` of a message is compared with PostgreSQL's opinion.
    """
    sent = {message.offset: message for message in pipeline.messages()}
    rows = {row["offset"] for row in pipeline.sql('select "offset" from bandwidth_exceeds')}
    rejected = {row["offset"]: row for row in pipeline.rejected()}
    assert rows & rejected.keys() == set()
    pipeline.sql(STORABLE)
    insert(pipeline, "sent", [(offset, message.value) for offset, message in sent.items()])
    seen: set[str] = set()
    for offset, storable, is_heartbeat, event_id in (tuple(row.values()) for row in pipeline.sql(JUDGE)):
        value = sent[offset].value
        name, expected = known.get(value, ("generated, or a good one", storable))
        about = f"{offset}, {name}: {value and value[:400]!r}"
        if expected is None:
            expected = offset in rows
        else:
            assert expected == storable, f"PostgreSQL thinks otherwise of {about}"
        if is_heartbeat or event_id in seen:
            assert offset not in rows | rejected.keys(), about
        elif expected:
            seen.add(event_id)
            assert offset in rows, f"no row: {about}, {rejected[offset]['reason'] if offset in rejected else 'nowhere'}"
        else:
            assert offset in rejected, f"not rejected: {about}"
    for offset, row in rejected.items():
        key, value = (None if row[name] is None else row[name].tobytes() for name in ("key", "value"))
        assert (key, value) == (sent[offset].key, sent[offset].value)
        assert (row["topic"], row["partition"]) == (pipeline.topic, 0)
        assert row["reason"].strip()
    assert pipeline.sql(DIFFERENT, pipeline.topic) == []
    assert pipeline.sql(BEATEN_OTHERWISE) == []
    return len(rows), len(rejected)


def insert(pipeline: Pipeline, table: str, rows: Sequence[tuple[object, ...]]) -> None:
    connection = pipeline.servers.postgres.connect("postgres", dbname=pipeline.database)
    with closing(connection), connection, connection.cursor() as cursor:
        execute_values(cursor, f"insert into {table} values %s", rows, page_size=20)


@pytest.mark.parametrize("at_once", [pytest.param(7, marks=pytest.mark.long), 10_000], ids="{} at once".format)
def test_each_good_message_is_a_row_and_each_bad_one_is_kept_as_it_came(
    pipeline: Pipeline, at_once: int, figures: list[str]
) -> None:
    known: dict[bytes | None, Known] = {value: (name, False) for name, value in bad_messages()}
    bad = len(known)
    known |= {value: (name, True) for name, value in odd_messages()}
    known |= {value: (name, None) for name, value in doubtful_messages()}
    known |= {value: (name, False) for name, value in heartbeats()}
    assert bad >= 200
    send_among_good_ones(pipeline, known)
    record_all(pipeline, at_once)
    rows, rejected = assert_each_is_where_it_belongs(pipeline, known)
    figures.append(f"{bad} bad messages of the corpus, at most {at_once} at once: {rows} rows, {rejected} rejected")


@pytest.mark.long
def test_a_number_in_a_new_field_keeps_its_digits(pipeline: Pipeline) -> None:
    known: dict[bytes | None, Known] = {raw(new=number): (number, True) for number in DIGITS}
    pipeline.send(known)
    pipeline.drain()
    assert_each_is_where_it_belongs(pipeline, known)


@pytest.mark.long
def test_generated_messages_are_each_a_row_or_rejected(pipeline: Pipeline, figures: list[str]) -> None:
    """Hypothesis takes its time to think of a thousand messages."""
    send_among_good_ones(pipeline, generated(1000))
    record_all(pipeline, 100)
    rows, rejected = assert_each_is_where_it_belongs(pipeline, {})
    figures.append(f"generated messages among good ones: {rows} rows, {rejected} rejected")


@pytest.mark.long
@pytest.mark.parametrize(
    "bad",
    [fields(bytes_sent_per_second="many"), raw(bytes_sent_per_second="1e-400")],
    ids=["seen by the consumer", "seen by PostgreSQL"],
)
def test_nothing_but_bad_messages_makes_progress(pipeline: Pipeline, bad: bytes) -> None:
    pipeline.send([bad] * 1000)
    pipeline.drain()
    assert len(pipeline.rejected()) == 1000
    assert pipeline.consumed() == pipeline.ends()
