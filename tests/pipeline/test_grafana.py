"""What deploy/ gives to Grafana: each query of the dashboard, the two alerts, and a role that only reads."""

import json
import re
import textwrap
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from databases import START, Own, Record, row

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROVISIONING = DEPLOY / "grafana" / "provisioning"
DASHBOARD: dict[str, Any] = json.loads((PROVISIONING / "dashboards" / "eventKafkaPostgres.json").read_text("utf-8"))
ALERTS = (PROVISIONING / "alerting" / "eventKafkaPostgres.yaml").read_text("utf-8")
SOURCE = (PROVISIONING / "datasources" / "eventKafkaPostgres.yaml").read_text("utf-8")
ROLE = (DEPLOY / "readonly-role.sql").read_text("utf-8")
READER = "bandwidth_reader"
OTHER = re.compile(r"\b(insert|update|delete|truncate|create|alter|drop)\b")


@pytest.fixture
def tables(own: Own) -> Own:
    """The tables as the consumer makes them, and the role as the README has it made."""
    own.record()
    own.sql(ROLE)
    own.sql(ROLE)  # the second time changes nothing
    return own


def read(own: Own, statement: str) -> list[dict[str, Any]]:
    """What the reader finds."""
    return own.sql(f"set role {READER}; {statement}")


def sqlstring(hosts: list[str]) -> str:
    """Grafana's format of this name: what is chosen, quoted, with commas between; nothing when nothing is."""
    return ",".join("'" + host.replace("'", "''") + "'" for host in hosts)


def grafana(query: str, hosts: list[str]) -> str:
    """What Grafana makes of a query: the macro of its PostgreSQL data source, and a variable with several values."""
    since, until = (f"'{(START + timedelta(hours=hours)).isoformat()}'" for hours in (-1, 1))
    query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {since} AND {until}", query)
    query = query.replace("${host:sqlstring}", sqlstring(hosts))
    assert "$" not in query
    assert not OTHER.search(query)
    return query


def panels(own: Own, *hosts: str) -> dict[str, list[dict[str, Any]]]:
    """What each panel shows when these hosts are chosen."""
    return {
        panel["title"]: read(own, grafana(target["rawSql"], [*hosts]))
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }


def overloads(host: str, *starts: float, seconds: int = 3) -> list[dict[str, str | None]]:
    """Warnings of overloads that begin so many seconds after START."""
    return [
        row(host, start + second, episode_started_at=(START + timedelta(seconds=start)).isoformat())
        for start in starts
        for second in range(seconds)
    ]


def test_each_query_of_the_dashboard_finds_what_was_chosen(tables: Own) -> None:
    names = ("web-1", "mail", "it's; --")
    rejected = [(Record(100, b"no warning"), "no JSON")]
    tables.record(
        [warned for name in names for warned in overloads(name, 0, 7200)],
        heartbeats=dict.fromkeys(names, START),
        rejected=rejected,
    )
    tables.sql("update rejected_messages set recorded_at = %s", START)
    found = panels(tables, "web-1", "it's; --")
    assert {title: len(rows) for title, rows in found.items()} == {
        "Bandwidth of hosts above their limit": 6,
        "Episodes": 2,
        "Heartbeats": 2,
        "Rejected messages": 1,
    }
    rates = found["Bandwidth of hosts above their limit"]
    assert [*rates[0]] == ["time", "metric", "value"]  # what Grafana makes a series of
    assert [each["time"] for each in rates] == sorted(each["time"] for each in rates)
    assert {each["metric"] for each in rates} == {"web-1", "it's; --"}
    assert all(each["warnings"] == 3 and each["seconds_over"] == 3.001 for each in found["Episodes"])
    assert found["Rejected messages"] == [{"rejected": 1}]


def test_the_dashboard_is_empty_and_no_error_when_no_host_is_chosen(tables: Own) -> None:
    tables.record(overloads("web-1", 0), heartbeats={"web-1": START})
    assert panels(tables) == {
        "Bandwidth of hosts above their limit": [],
        "Episodes": [],
        "Heartbeats": [],
        "Rejected messages": [{"rejected": 0}],
    }


def test_the_hosts_to_choose_from_are_those_of_the_last_month_and_those_that_send_heartbeats(tables: Own) -> None:
    now = (datetime.now(UTC) - START).total_seconds()
    tables.record(overloads("web-1", now - 60) + overloads("gone", now - 3e6), heartbeats={"quiet": START})
    (query,) = [each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    assert read(tables, grafana(query, [])) == [{"host": "quiet"}, {"host": "web-1"}]


# Alerts


def rules() -> dict[str, tuple[str, float]]:
    """Title of each alert, its query, and the number above which it fires."""
    found = re.findall(
        r"^ +title: (.+)$(?s:.+?)rawSql: \|\n((?: {16}.+\n)+)(?s:.+?)type: gt, params: \[(\d+)\]", ALERTS, re.MULTILINE
    )
    return {title: (textwrap.dedent(query), float(limit)) for title, query, limit in found}


def firing(own: Own, title: str) -> dict[str, float]:
    """For which hosts an alert fires, and the number that it shows."""
    query, limit = rules()[title]
    assert "$" not in query
    assert not OTHER.search(query)
    found = read(own, query)
    assert all([*each] == ["host", "seconds"] and type(each["seconds"]) is float for each in found)
    hosts = [each["host"] for each in found]
    assert len(hosts) == len(set(hosts))  # Grafana makes one alert of each, and refuses two of one name
    return {each["host"]: each["seconds"] for each in found if each["seconds"] > limit}


OVERLOAD, HEARTBEAT = "Bandwidth above the limit for more than a minute", "No heartbeat for more than five minutes"


def test_there_are_two_alerts() -> None:
    assert [*rules()] == [OVERLOAD, HEARTBEAT]
    assert ALERTS.count("rawSql") == 2


def test_an_overload_alerts_after_its_first_minute_until_it_has_been_over_for_some_minutes(tables: Own) -> None:
    now = (datetime.now(UTC) - START).total_seconds()
    tables.record(
        [
            *overloads("going on", now - 90, seconds=90),
            *overloads("going on", now - 250, seconds=10),  # the one before of the same host
            *overloads("too short", now - 40, seconds=40),
            *overloads("many short ones", *(now - start for start in range(20, 290, 20)), seconds=10),
            *overloads("just over", now - 200, seconds=70),
            *overloads("long over", now - 3600, seconds=600),
        ]
    )
    assert firing(tables, OVERLOAD) == {"going on": 89, "just over": 69}


def test_no_overload_is_no_row(tables: Own) -> None:
    assert firing(tables, OVERLOAD) == {}
    assert firing(tables, HEARTBEAT) == {}


def test_a_host_whose_heartbeats_stop_alerts(tables: Own) -> None:
    now = datetime.now(UTC)
    beats = {"watched": 60, "late": 290, "silent": 310, "gone": 86400 * 30}
    tables.record(heartbeats={host: now - timedelta(seconds=seconds) for host, seconds in beats.items()})
    assert firing(tables, HEARTBEAT).keys() == {"silent", "gone"}


def test_the_alert_of_an_overload_reads_the_last_minutes_and_not_the_table(tables: Own) -> None:
    tables.sql("""
        insert into bandwidth_exceeds
        select gen_random_uuid(), now() - n * interval '1 s', 1, now(), 'web-1', '{}', 1, 1, 2, 1, 'much', 'topic', 0, n
        from generate_series(100000, 1, -1) as n""")
    tables.sql("vacuum analyze bandwidth_exceeds")
    plan = "\n".join(each["QUERY PLAN"] for each in tables.sql(f"explain {rules()[OVERLOAD][0]}"))
    assert "bandwidth_exceeds_times" in plan, plan


def test_dashboard_and_alerts_use_the_data_source_that_is_provisioned() -> None:
    (uid,) = re.findall(r"^ +uid: (\S+)$", SOURCE, re.MULTILINE)
    (kind,) = re.findall(r"^ +type: (\S+)$", SOURCE, re.MULTILINE)
    sources = set(re.findall(r"datasourceUid: (\S+)", ALERTS)) | set(re.findall(r"uid: ([\w-]+)\}", ALERTS))
    assert sources == {uid, "__expr__"}
    (chosen,) = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "datasource"]
    assert (chosen["query"], chosen["current"]["value"]) == (kind, uid)
    assert f"user: {READER}\n" in SOURCE


def test_no_annotation_has_a_dollar_which_grafana_would_take_for_its_environment() -> None:
    assert "$" not in ALERTS
    assert re.findall(r"\$\w+", SOURCE) == ["$EVENTKAFKAPOSTGRES_PASSWORD"]


# The role


@pytest.mark.parametrize(
    "statement",
    [
        "insert into heartbeats values ('web-1', now())",
        "delete from bandwidth_exceeds",
        "update consumed_offsets set next_offset = 0",
        "truncate rejected_messages",
        "select value from rejected_messages",
        "select key from rejected_messages",
        "create temporary table mine (id int)",
    ],
)
def test_the_reader_may_read_and_do_nothing_else(tables: Own, statement: str) -> None:
    for setting in ("on", "off"):  # its default is a convenience: without it, it has no right either
        if "temporary" in statement and setting == "off":
            continue  # that right is PUBLIC's
        with closing(tables.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(f"set role {READER}; set default_transaction_read_only = {setting}")
            with pytest.raises((psycopg2.errors.InsufficientPrivilege, psycopg2.errors.ReadOnlySqlTransaction)):
                cursor.execute(statement)


def test_the_reader_logs_in_with_a_password_and_reads_only(tables: Own) -> None:
    tables.sql(f"alter role {READER} password 'a secret'")
    tables.record(overloads("web-1", 0))
    options = {"user": READER, "password": "a secret", "dbname": tables.name}
    with closing(psycopg2.connect(tables.server.uri(), **options)) as connection, connection.cursor() as cursor:
        cursor.execute("show default_transaction_read_only")
        assert cursor.fetchone() == ("on",)
        cursor.execute("select count(*) from bandwidth_episodes")
        assert cursor.fetchone() == (1,)
