"""What people ask the database: the episodes, the README's statements, the dashboard's queries, the heartbeats."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pipeline import Pipeline, encoded, new_pipeline, wait_until, warning, warnings

from servers import Servers

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STATEMENTS = [
    statement.strip()
    for block in re.findall(r"^```sql\n(.+?)^```", README, re.MULTILINE | re.DOTALL)
    for statement in block.split(";")
    if statement.strip()
]
START = datetime(2026, 11, 24, tzinfo=UTC)
INSERT = """
insert into bandwidth_exceeds (event_id, observed_at, seconds, episode_started_at, host, interfaces,
    bytes_sent_per_second,
    bytes_received_per_second, bytes_per_second, limit_bytes_per_second, message, topic, partition, "offset")
select event_id, observed_at, 1, '2026-11-24T00:00Z', host, '{eth0}', 0, rate, rate, warned_at, 'much', 'topic', 0, 0
from json_to_recordset(%s) as warned (event_id uuid, observed_at timestamptz, host text, rate float8, warned_at float8)
"""

Warned = tuple[str, float, float, float]  # host, second, bytes per second, limit


@pytest.fixture(scope="module")
def made(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A database with the tables as the consumer makes them."""
    with new_pipeline(running, tmp_path_factory.mktemp("tables")) as pipeline:
        pipeline.drain()
        yield pipeline


@pytest.fixture
def tables(made: Pipeline) -> Pipeline:
    """The same, with nothing in it."""
    made.sql("truncate bandwidth_exceeds, rejected_messages, consumed_offsets, heartbeats")
    return made


def insert(pipeline: Pipeline, warned: list[Warned]) -> None:
    """Put warnings into the table."""
    rows = [
        {
            "event_id": str(UUID(int=number)),
            "observed_at": (START + timedelta(seconds=second)).isoformat(),
            "host": host,
            "rate": rate,
            "warned_at": limit,
        }
        for number, (host, second, rate, limit) in enumerate(warned)
    ]
    pipeline.sql(INSERT, json.dumps(rows))


def insert_beats(pipeline: Pipeline, beats: dict[str, datetime]) -> None:
    for host, at in beats.items():
        pipeline.sql("insert into heartbeats (host, heartbeat_at) values (%s, %s)", host, at)


def episodes(pipeline: Pipeline) -> list[tuple[Any, ...]]:
    rows = pipeline.sql("select * from bandwidth_episodes order by host, started_at")
    return [tuple(row.values()) for row in rows]


def test_the_warnings_of_a_run_are_one_episode(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--flush-interval", "2")
    assert producer.ends() == 0
    pipeline.drain()
    rows = pipeline.assert_recorded()
    (episode,) = pipeline.sql("select * from bandwidth_episodes")
    assert episode["host"] == "web-1"
    assert (episode["started_at"], episode["ended_at"]) == (rows[0]["observed_at"], rows[-1]["observed_at"])
    assert episode["warnings"] == len(rows)
    assert episode["seconds_over"] == pytest.approx(0.1 * len(rows), rel=0.5)


# The README's statements


def test_the_readme_has_the_statements_that_are_tested_here() -> None:
    words = [re.findall(r"(?:from|into|update) (\w+)", statement)[0] for statement in STATEMENTS]
    assert words == ["bandwidth_episodes", "heartbeats", "rejected_messages", "bandwidth_exceeds", "rejected_messages"]


def statement(start: str, table: str) -> str:
    """The statement of the README that begins with a word and is about a table."""
    (found,) = [each for each in STATEMENTS if each.startswith(start) and f"from {table} " in each]
    return found


def test_the_readmes_episodes_are_those_of_the_last_day_the_largest_first(tables: Pipeline) -> None:
    now = (datetime.now(UTC) - START).total_seconds()
    insert(
        tables,
        [("small", now - 3600, 2e6, 1e6), ("large", now - 7200, 9e6, 1e6), ("old", now - 90000, 9e6, 1e6)],
    )
    assert [row["host"] for row in tables.sql(statement("select", "bandwidth_episodes"))] == ["large", "small"]


def test_the_readmes_retention_deletes_what_is_old_and_nothing_else(tables: Pipeline) -> None:
    now = (datetime.now(UTC) - START).total_seconds()
    day = 86400
    insert(tables, [(f"{days} days", now - days * day, 2e6, 1e6) for days in (0, 399, 401, 4000)])
    tables.sql("""
        insert into rejected_messages (topic, partition, "offset", value, reason, recorded_at)
        select 'topic', 0, days, 'no warning', 'no JSON', now() - days * interval '1 day' from unnest(%s) as days""",
        [0, 399, 401, 4000])  # fmt: skip
    tables.sql("insert into consumed_offsets values ('group', 'topic', 0, 5)")
    insert_beats(tables, {"web-1": datetime.now(UTC) - timedelta(days=500)})
    for table in ("bandwidth_exceeds", "rejected_messages"):
        tables.sql(statement("delete", table))
    assert {row["host"] for row in tables.rows()} == {"0 days", "399 days"}
    assert {row["offset"] for row in tables.rejected()} == {0, 399}
    assert tables.consumed() == {0: 5}
    assert [*heartbeats(tables)] == ["web-1"]


def test_the_readmes_question_for_hosts_that_nobody_watches(tables: Pipeline) -> None:
    now = datetime.now(UTC)
    insert_beats(tables, {"watched": now - timedelta(seconds=60), "silent": now - timedelta(seconds=360)})
    (row,) = tables.sql(statement("select", "heartbeats"))
    assert row["host"] == "silent"
    assert timedelta(seconds=360) <= row["silent_for"] < timedelta(seconds=3600)


def test_the_readmes_question_for_what_was_rejected(pipeline: Pipeline) -> None:
    pipeline.send([b"no warning", encoded(warning(host="\0"))])
    pipeline.drain()
    rows = pipeline.sql(statement("select", "rejected_messages"))
    assert [row["offset"] for row in rows] == [0, 1]
    assert "no warning" in list(rows[0].values())


def test_the_readmes_question_for_what_was_rejected_takes_any_bytes(pipeline: Pipeline) -> None:
    pipeline.send([b"\xff\xfe no text", None])
    pipeline.drain()
    assert len(pipeline.sql(statement("select", "rejected_messages"))) == 2


# Grafana


def dashboard() -> Any:
    return json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))


def grafana(query: str) -> str:
    """What Grafana makes of a query: its PostgreSQL data source's macros, and a variable with several values."""
    since, until = (f"'{(START + timedelta(hours=hours)).isoformat()}'" for hours in (-1, 1))
    query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {since} AND {until}", query)
    query = query.replace("$host", "'web-1','db'")
    assert "$" not in query
    return query.replace("%", "%%")


def test_each_query_of_the_dashboard_runs_and_finds_what_was_chosen(tables: Pipeline) -> None:
    insert(tables, [(host, second, 2e6, 1e6) for host in ("web-1", "mail", "db") for second in (0, 1, 2, 7200)])
    insert_beats(tables, dict.fromkeys(("web-1", "mail"), START))
    found = {
        panel["title"]: tables.sql(grafana(target["rawSql"]))
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    }
    assert {title: len(rows) for title, rows in found.items()} == {
        "Bandwidth of hosts above their limit": 6,
        "Episodes": 2,
        "Heartbeats": 1,
        "Rejected messages": 1,
    }
    rates = found["Bandwidth of hosts above their limit"]
    assert [*rates[0]] == ["time", "metric", "value"]  # what Grafana makes a series of
    assert [row["time"] for row in rates] == sorted(row["time"] for row in rates)
    assert {row["metric"] for row in rates} == {"web-1", "db"}
    assert found["Rejected messages"] == [{"rejected": 0}]


def test_the_hosts_of_the_dashboard_are_those_of_the_last_month(tables: Pipeline) -> None:
    now = (datetime.now(UTC) - START).total_seconds()
    insert(tables, [("web-1", now - 60, 2e6, 1e6), ("web-1", now - 50, 2e6, 1e6), ("gone", now - 3e6, 2e6, 1e6)])
    (query,) = [v["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    assert tables.sql(query) == [{"host": "web-1"}]


def test_a_host_that_only_beats_can_be_chosen_in_the_dashboard(tables: Pipeline) -> None:
    insert_beats(tables, {"never over its limit": datetime.now(UTC)})
    (query,) = [v["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    assert tables.sql(query) == [{"host": "never over its limit"}]


# Heartbeats


def beat(host: str, at: datetime) -> bytes:
    return encoded({"host": host, "heartbeat_at": at.isoformat(timespec="microseconds")})


def heartbeats(pipeline: Pipeline) -> dict[str, datetime]:
    return {row["host"]: row["heartbeat_at"] for row in pipeline.table("heartbeats", "host")}


def test_a_producer_that_has_nothing_to_warn_of_says_that_it_watches(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    quiet = ("--forever", "--flush-interval", "1", "--heartbeat", "1", "--limit", "1000GB/s")
    producers = [pipeline.producer(*quiet, host=host) for host in ("web-1", "web-2")]
    pipeline.has_rows(0)
    first = wait_for_beats(pipeline, {})
    second = wait_for_beats(pipeline, first)
    assert first.keys() == second.keys() == {"web-1", "web-2"}
    assert all(abs(datetime.now(UTC) - at) < timedelta(minutes=10) for at in second.values())
    for script in (*producers, consumer):
        assert script.stop() == 0
        assert script.complaints() == []
    assert pipeline.rows() == pipeline.rejected() == []
    assert pipeline.sent() >= 4


def wait_for_beats(pipeline: Pipeline, before: dict[str, datetime]) -> dict[str, datetime]:
    """A later heartbeat of both hosts than `before`."""

    def later() -> dict[str, datetime]:
        found = heartbeats(pipeline)
        return found if len(found) == 2 and all(at > before.get(host, START) for host, at in found.items()) else {}

    return wait_until(later, f"later than {before}")


def test_heartbeats_and_warnings_go_their_own_ways(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--flush-interval", "2", "--heartbeat", "0.1")
    assert producer.ends() == 0
    pipeline.drain()
    assert len(pipeline.assert_recorded()) == len(producer.raised())
    assert [*heartbeats(pipeline)] == ["web-1"]
    assert pipeline.rejected() == []
    assert pipeline.sent() > len(producer.raised())


def test_without_the_flag_there_are_no_heartbeats(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--flush-interval", "1")
    assert producer.ends() == 0
    pipeline.drain()
    assert heartbeats(pipeline) == {}
    assert pipeline.sent() == len(producer.raised())


def test_an_old_heartbeat_never_overwrites_a_newer_one(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    for count, seconds in enumerate((10, 5, 10, 20, 0), 1):
        pipeline.send([beat("web-1", START + timedelta(seconds=seconds))])
        wait_until(lambda count=count: pipeline.consumed() == {0: count}, f"{count} consumed")
    assert heartbeats(pipeline) == {"web-1": START + timedelta(seconds=20)}
    assert consumer.stop() == 0


def test_an_old_heartbeat_never_overwrites_a_newer_one_of_the_same_batch(pipeline: Pipeline) -> None:
    pipeline.send([beat("web-1", START + timedelta(seconds=seconds)) for seconds in (5, 20, 0)])
    pipeline.drain()
    assert heartbeats(pipeline) == {"web-1": START + timedelta(seconds=20)}


@pytest.mark.parametrize(
    "at",
    ["2026-W47-2T00:00:00+00:00", "2026-11-24T00:00:00+23:00"],
    ids=["a week", "an offset of 23 hours"],
)
def test_a_heartbeat_that_postgresql_refuses_holds_up_nothing(pipeline: Pipeline, at: str) -> None:
    pipeline.send([encoded({"host": "web-1", "heartbeat_at": at}), *warnings(3)])
    assert pipeline.consumer("--until-empty").ends() == 0
    assert pipeline.count() == 3
    assert len(pipeline.rejected()) == 1
