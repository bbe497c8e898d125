"""What people ask the database: the episodes, who is over the limit now, and the README's statements."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import fsum
from pathlib import Path
from typing import Any

import pytest
from databases import START, TOPIC_ID, Own, Record, new_database, row
from hypothesis import given, settings
from hypothesis import strategies as st

from servers import Postgres

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
STATEMENTS = [
    statement.strip()
    for block in re.findall(r"^```sql\n(.+?)^```", README, re.MULTILINE | re.DOTALL)
    for statement in block.split(";")
    if statement.strip()
]


@pytest.fixture(scope="module")
def made(postgres_server: Postgres) -> Iterator[Own]:
    """A database with the tables as the consumer makes them."""
    with new_database(postgres_server) as own:
        own.database.next_offsets(TOPIC_ID)
        yield own


@pytest.fixture
def tables(made: Own) -> Own:
    """The same, with nothing in it."""
    return emptied(made)


def emptied(own: Own) -> Own:
    own.sql("truncate bandwidth_exceeds, rejected_messages, consumed_offsets, heartbeats")
    own.next_offset = 0
    return own


# Episodes


@dataclass(order=True)
class Sample:
    """What a producer measured."""

    host: str
    second: float  # at its end
    seconds: float
    bytes_per_second: float


def overloads(samples: list[Sample], limits: Mapping[str, float], intervals: Mapping[str, float]) -> list[list[Sample]]:
    """The samples above the limit; those of a host that follow one another within 5 s or two intervals together."""
    found: list[list[Sample]] = []
    for sample in sorted(samples):
        if sample.bytes_per_second > limits[sample.host]:
            last = found[-1][-1] if found else None
            near = max(5.0, 2 * intervals[sample.host])
            if last and last.host == sample.host and round(sample.second - last.second, 6) <= near:
                found[-1].append(sample)
            else:
                found.append([sample])
    return found


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def insert(own: Own, found: list[list[Sample]], limits: Mapping[str, float]) -> None:
    """Put each sample of each overload into the table, as the consumer does."""
    rows = [
        row(
            sample.host,
            observed_at=at(sample.second).isoformat(),
            seconds=str(sample.seconds),
            episode_started_at=at(overload[0].second).isoformat(),
            bytes_per_second=str(sample.bytes_per_second),
            limit_bytes_per_second=str(limits[sample.host]),
        )
        for overload in found
        for sample in overload
    ]
    assert own.record(rows) == {}


def expected(overload: list[Sample], limit: float) -> dict[str, Any]:
    """The row of the view, from the samples themselves."""
    seconds = fsum(sample.seconds for sample in overload)
    moved = fsum(sample.bytes_per_second * sample.seconds for sample in overload)
    whole = {"abs": 1, "rel": 1e-9}  # rounded to bytes
    return {
        "host": overload[0].host,
        "started_at": at(overload[0].second),
        "ended_at": at(overload[-1].second),
        "seconds_over": pytest.approx(seconds, abs=0.0006),
        "peak_bytes_per_second": pytest.approx(max(sample.bytes_per_second for sample in overload), **whole),
        "mean_bytes_per_second": pytest.approx(moved / seconds, **whole),
        "bytes_over_limit": pytest.approx(moved - limit * seconds, **whole),
        "warnings": len(overload),
    }


@st.composite
def hosts(draw: st.DrawFn) -> tuple[list[Sample], dict[str, float], dict[str, float]]:
    """Samples of several hosts with their own intervals and limits, some above the limit, with pauses."""
    samples, limits, intervals = [], {}, {}
    for host in draw(st.lists(st.sampled_from(["web-1", "web-10", "db", "ÄÖ 你", "'; --"]), min_size=1, unique=True)):
        interval = intervals[host] = round(draw(st.floats(0.1, 60)), 3)
        limits[host] = draw(st.sampled_from([1e3, 1e6, 12.5e6]))
        second = draw(st.floats(0, 60))
        for _ in range(draw(st.integers(1, 25))):
            second += draw(st.sampled_from([0, 0, 0, 0, 4.9, 5, 5.1, 300]))  # a pause
            seconds = round(interval * draw(st.floats(0.9, 1.1)), 6)
            second = round(second + seconds, 6)
            samples.append(Sample(host, second, seconds, limits[host] * draw(st.floats(0.5, 9))))
    return samples, limits, intervals


@given(hosts())
@settings(max_examples=40)
def test_episodes_are_what_the_raw_samples_say(
    made: Own, measured: tuple[list[Sample], dict[str, float], dict[str, float]]
) -> None:
    samples, limits, intervals = measured
    found = overloads(samples, limits, intervals)
    insert(emptied(made), found, limits)
    rows = made.sql('select * from bandwidth_episodes order by host collate "C", started_at')
    assert rows == [expected(overload, limits[overload[0].host]) for overload in found]


def test_the_numbers_of_an_episode_are_for_people(tables: Own) -> None:
    samples = [Sample("web-1", 10 * number, 10.0004, 2e6 + number / 3) for number in range(1, 7)]
    insert(tables, [samples], {"web-1": 1e6})
    (episode,) = tables.sql("select * from bandwidth_episodes")
    assert [*episode.values()] == ["web-1", at(10), at(60), 60.002, 2000002.0, 2000001.0, 60002470.0, 6]


# Many rows

# Of each host, warnings of every second in episodes of 50 s, in the order in which they come; the last one goes on.
MANY = """
insert into bandwidth_exceeds (event_id, observed_at, seconds, episode_started_at, host, interfaces,
    bytes_sent_per_second, bytes_received_per_second, bytes_per_second, limit_bytes_per_second, message, topic,
    partition, "offset")
select gen_random_uuid(), now() - before * pause - (49 - n) * interval '1 s', 1.0001,
    now() - before * pause - 49 * interval '1 s', 'host-' || host, '{eth0}', 0, 2e6, 2e6 + n, 1e6, 'much', 'topic', 0, n
from (select (%(days)s * interval '1 day' - interval '1 minute') / (%(episodes)s - 1) as pause) as known,
    generate_series(%(episodes)s - 1, 0, -1) as before, generate_series(0, 49) as n,
    generate_series(1, %(hosts)s) as host
where before > 0 or host <= 3
order by before desc, n, host"""


def crowd(own: Own, days: int, hosts: int, episodes: int) -> None:
    own.database.next_offsets(TOPIC_ID)
    statement = MANY % {"days": days, "hosts": hosts, "episodes": episodes}
    own.sql(statement)
    own.sql("vacuum analyze bandwidth_exceeds")


@pytest.fixture(scope="module")
def crowded(postgres_server: Postgres) -> Iterator[Own]:
    """100 hosts and 200,000 rows of 30 days; three hosts are over the limit now."""
    with new_database(postgres_server) as own:
        crowd(own, 30, 100, 41)
        yield own


def plan(own: Own, statement: str) -> str:
    return "\n".join(found["QUERY PLAN"] for found in own.sql(f"explain {statement}"))


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("host = 'host-7'", 40),
        ("host = 'host-2'", 41),
        ("started_at > now() - interval '1 day'", 103),
        ("host = 'host-7' and started_at > now() - interval '7 days'", 9),
        ("started_at > now() - interval '7 days' and host in ('host-7', 'host-8')", 18),
    ],
)
def test_the_episodes_of_one_host_or_one_day_are_found_through_an_index(crowded: Own, where: str, count: int) -> None:
    statement = f"select * from bandwidth_episodes where {where}"
    text = plan(crowded, statement)
    assert "Seq Scan" not in text, text
    assert "Index" in text
    found = crowded.sql(statement)
    assert len(found) == count
    assert all(each["warnings"] == 50 and each["seconds_over"] == 50.005 for each in found)


def test_who_is_over_now_is_found_through_an_index(crowded: Own) -> None:
    now = statement("select", "bandwidth_exceeds").replace("now()", "(now() - interval '1 h')")
    asked = statement("select", "bandwidth_exceeds").replace("10 seconds", "20 minutes")
    for text in (plan(crowded, now), plan(crowded, asked)):
        assert "Seq Scan" not in text, text
        assert "bandwidth_exceeds_times" in text
    assert {found["host"] for found in crowded.sql(asked)} == {"host-1", "host-2", "host-3"}


GAPS_AND_ISLANDS = """
select host, min(observed_at) as started_at, max(observed_at) as ended_at, sum(seconds) as seconds_over,
    max(bytes_per_second) as peak, sum(bytes_per_second * seconds) / sum(seconds) as mean,
    sum((bytes_per_second - limit_bytes_per_second) * seconds) as bytes_over_limit, count(*) as warnings
from (
    select *, count(*) filter (where coalesce(gap > interval '5 s', true))
        over (partition by host order by observed_at) as number
    from (
        select *, observed_at - lag(observed_at) over (partition by host order by observed_at) as gap
        from bandwidth_exceeds where observed_at > now() - interval '7 days'
    ) as gaps
) as numbered
group by host, number"""
SEVEN_DAYS = "select * from bandwidth_episodes where started_at > now() - interval '7 days'"


@pytest.mark.long
def test_the_episodes_of_two_million_rows_are_twice_as_fast_as_window_functions(
    postgres_server: Postgres, figures: list[str]
) -> None:
    with new_database(postgres_server) as own:
        crowd(own, 30, 50, 801)
        (counted,) = own.sql("select count(*) from bandwidth_exceeds")
        assert counted["count"] > 2_000_000 - 2_500
        timings: dict[str, list[float]] = {}
        for _ in range(3):
            for name, asked in {
                "view, all hosts of 7 days": SEVEN_DAYS,
                "window functions, the same": GAPS_AND_ISLANDS,
                "view, everything": "select * from bandwidth_episodes",
                "view, one host": "select * from bandwidth_episodes where host = 'host-7'",
                "who is over now": statement("select", "bandwidth_exceeds").replace("10 seconds", "10 minutes"),
            }.items():
                began = time.monotonic()
                found = len(own.sql(asked))
                timings.setdefault(f"{name} ({found} rows)", []).append(time.monotonic() - began)
        figures += [f"two million rows: {name}: {min(each):.3f} s" for name, each in timings.items()]
        view, windows = (min(each) for each in [*timings.values()][:2])
        assert view <= windows / 2


# The README's statements


def test_the_readme_has_the_statements_that_are_tested_here() -> None:
    words = [re.findall(r"(?:from|into|update) (\w+)", each)[0] for each in STATEMENTS]
    assert words == [
        "bandwidth_episodes",
        "bandwidth_exceeds",
        "heartbeats",
        "rejected_messages",
        "bandwidth_exceeds",
        "rejected_messages",
    ]


def statement(start: str, table: str) -> str:
    """The statement of the README that begins with a word and is about a table."""
    (found,) = [each for each in STATEMENTS if each.startswith(start) and re.search(rf"from {table}\s", each)]
    return found


def ago(**since: float) -> str:
    return (datetime.now(UTC) - timedelta(**since)).isoformat()


def warn(host: str, bytes_per_second: float = 2e6, **since: float) -> dict[str, str | None]:
    """A warning of so long ago, the first of its overload."""
    return row(host, observed_at=ago(**since), episode_started_at=ago(**since), bytes_per_second=str(bytes_per_second))


def test_the_readmes_episodes_are_those_of_the_last_day_the_largest_first(tables: Own) -> None:
    tables.record([warn("small", hours=1), warn("large", 9e6, hours=2), warn("old", 9e6, hours=25)])
    assert [each["host"] for each in tables.sql(statement("select", "bandwidth_episodes"))] == ["large", "small"]


def test_the_readmes_question_for_hosts_that_are_over_the_limit_now(tables: Own) -> None:
    since = ago(hours=1)
    tables.record([
        row("over", observed_at=ago(seconds=seconds), episode_started_at=since, bytes_per_second=str(rate))
        for seconds, rate in ((2, 3e6), (1, 2e6))
    ])  # fmt: skip
    tables.record([warn("no longer", seconds=60)])
    (found,) = tables.sql(statement("select", "bandwidth_exceeds"))
    assert (found["host"], found["over_since"].isoformat()) == ("over", since)


def test_the_readmes_retention_deletes_what_is_old_and_nothing_else(tables: Own) -> None:
    tables.record(
        [warn(f"{days} days", days=days) for days in (0, 399, 401, 4000)],
        rejected=[(Record(days), "no JSON") for days in (0, 399, 401, 4000)],
        heartbeats={"web-1": datetime.now(UTC) - timedelta(days=500)},
    )
    tables.sql("""update rejected_messages set recorded_at = now() - "offset" * interval '1 day'""")
    for table in ("bandwidth_exceeds", "rejected_messages"):
        tables.sql(statement("delete", table))
    assert {each["host"] for each in tables.sql("select host from bandwidth_exceeds")} == {"0 days", "399 days"}
    assert tables.rejected().keys() == {0, 399}
    assert tables.consumed() == {0: 4}
    assert [each["host"] for each in tables.sql("select host from heartbeats")] == ["web-1"]


def test_the_readmes_question_for_hosts_that_nobody_watches(tables: Own) -> None:
    now = datetime.now(UTC)
    tables.record([], heartbeats={"watched": now - timedelta(seconds=60), "silent": now - timedelta(seconds=360)})
    (found,) = tables.sql(statement("select", "heartbeats"))
    assert found["host"] == "silent"
    assert timedelta(seconds=360) <= found["silent_for"] < timedelta(seconds=3600)


def test_the_readmes_question_for_what_was_rejected_takes_any_bytes(tables: Own) -> None:
    values = [b"no warning", b"\xff\xfe no text", None]
    tables.record([], rejected=[(Record(offset, value), "no JSON") for offset, value in enumerate(values)])
    rows = tables.sql(statement("select", "rejected_messages"))
    assert [each["offset"] for each in rows] == [0, 1, 2]
    assert "no warning" in rows[0].values()


# What inserting costs
