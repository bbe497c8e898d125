"""kconsumer --notify: a real LISTEN hears of each overload once, when its first row is there."""

import json
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar

import pytest
from databases import START, Own, row
from pipeline import Pipeline, wait_until, warnings
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from eventkafkapostgres.notify import NOTIFY_NEW_EPISODES, channel_name, notify_new_episodes

README = (Path(__file__).resolve().parents[2] / "deploy" / "README.md").read_text(encoding="utf-8")
SECONDS = 30.0
LISTENING = "select pid from pg_stat_activity where datname = %s and query = 'listen overload' and state = 'idle'"


@pytest.fixture
def ear(own: Own) -> Iterator["Ear"]:
    own.record()  # the tables
    with closing(own.connect()) as connection:
        yield Ear(connection)


class Ear:
    """Somebody who listens."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        with connection.cursor() as cursor:
            cursor.execute("listen overload")

    def hears(self) -> list[dict[str, Any]]:
        """What came: all of it, for PostgreSQL delivers in the order of the commits, and ours is the last one."""
        with self.connection.cursor() as cursor:
            cursor.execute("notify overload, 'all'")
        while not (self.connection.notifies and self.connection.notifies[-1].payload == "all"):
            assert select.select([self.connection], [], [], SECONDS)[0]
            self.connection.poll()
        payloads = [notify.payload for notify in self.connection.notifies[:-1]]
        self.connection.notifies.clear()
        assert all(len(payload.encode()) < 8000 for payload in payloads)
        return [json.loads(payload) for payload in payloads]

    def hosts(self) -> list[str]:
        return [heard["host"] for heard in self.hears()]


def record(own: Own, *rows: dict[str, str | None], commit: bool = True) -> None:
    """What Database.record() does: the rows and their news in one transaction."""
    batch = own.batch(rows)
    with own.database.transaction() as cursor:
        rejected = own.database.store(cursor, batch)
        refused = {id(record) for record, _ in rejected}
        notify_new_episodes(cursor, "overload", (line for record, line in batch.rows if id(record) not in refused))
        if commit:
            cursor.execute("commit")
            (own.next_offset,) = batch.next_offsets.values()


def at(second: float) -> str:
    return (START + timedelta(seconds=second)).isoformat()


def test_the_first_warning_of_an_overload_is_notified_and_no_other(own: Own, ear: Ear) -> None:
    record(own, row(second=0), row(second=1))
    (heard,) = ear.hears()
    assert heard == {
        "host": "web-1",
        "episode_started_at": START.isoformat(),
        "bytes_per_second": 3932801.7,
        "limit_bytes_per_second": 1000000,
        "message": "Bandwidth exceeded on web-1: 3.93 MB/s is over the limit of 1.00 MB/s",
    }
    record(own, row(second=2))
    assert ear.hears() == []


def test_each_new_overload_of_a_batch_is_notified_in_their_order(own: Own, ear: Ear) -> None:
    record(own, row("old", 0))
    assert ear.hosts() == ["old"]
    later = {"episode_started_at": at(60)}
    record(own, row("old", 1), row("b", 2), row("a", 3), row("old", 60, **later), row("b", 4), row("a", 61, **later))
    heard = [(news["host"], news["episode_started_at"]) for news in ear.hears()]
    assert heard == [("b", at(0)), ("a", at(0)), ("old", at(60)), ("a", at(60))]


def test_a_batch_that_is_repeated_tells_nothing_again(own: Own, ear: Ear) -> None:
    rows = [row(second=second) for second in range(3)]
    record(own, *rows)
    record(own, *rows)
    assert ear.hosts() == ["web-1"]


def test_what_is_rolled_back_is_not_notified_and_what_follows_is(own: Own, ear: Ear) -> None:
    record(own, row(), commit=False)
    assert ear.hears() == []
    record(own, row())
    assert ear.hosts() == ["web-1"]


def test_an_overload_whose_only_row_is_rejected_is_not_notified(own: Own, ear: Ear) -> None:
    bad: dict[str, str | None] = {"seconds": "1e400"}
    record(own, row("good"), row("bad", **bad), row("mixed", 0, **bad), row("mixed", 1))
    assert ear.hosts() == ["good", "mixed"]


@pytest.mark.parametrize("host", ["Zürich 東京", "a\tb\\c\n\\N", "'; --", '{"a,b"}', "\x01" * 255, "𝄞" * 255])
def test_any_host_is_notified_as_it_is_in_fewer_than_8000_bytes(own: Own, ear: Ear, host: str) -> None:
    record(own, row(host, message=host * 40))
    record(own, row(host, 1))
    (heard,) = ear.hears()
    assert heard["host"] == host
    assert heard["message"] == (host * 40)[:500]


def test_the_table_is_asked_through_its_index_however_many_rows_it_has(own: Own, ear: Ear) -> None:
    """200,000 rows of one host's overload that goes on, and of many that are over."""
    own.sql("""
        insert into bandwidth_exceeds select gen_random_uuid(), %s::timestamptz + n * interval '1 s', 1,
            %s::timestamptz + case when n %% 2 = 0 then n / 100 else 0 end * interval '100 s', 'host-' || n %% 20, '{}',
            1, 1, 2, 1, 'much', 'topic', 0, n, now() - interval '1 day' from generate_series(1, 200000) as n""",
        START, START)  # fmt: skip
    for statement in ("select 'no statistics yet'", "analyze bandwidth_exceeds"):
        own.sql(statement)
        values = (["host-1", "host-2", "new"], [at(0), at(100), at(0)], "overload")
        plan = own.sql(f"explain {NOTIFY_NEW_EPISODES}", *values)
        text = "\n".join(line["QUERY PLAN"] for line in plan)
        assert "Seq Scan on bandwidth_exceeds" not in text, text
        assert "bandwidth_exceeds_host_episode" in text


@pytest.mark.parametrize("name", ["overload", "_x1", "a" * 63])
def test_a_channel_is_what_listen_finds_without_quotes(own: Own, name: str) -> None:
    assert channel_name(name) == name
    own.sql(f"listen {name}")


@pytest.mark.parametrize("name", ["", "Overload", "1st", "a-b", "a" * 64, "ü", "a b", "x\n"])
def test_other_channels_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a channel name"):
        channel_name(name)


# The README's listener


class Webhook(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    posted: ClassVar[SimpleQueue[Any]] = SimpleQueue()

    def do_POST(self) -> None:
        self.posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


WEBHOOK, MAIL = re.findall(r"^```python\n(.+?)^```", README, re.MULTILINE | re.DOTALL)
# A `mail` that keeps its arguments and its input where it is called.
FAKE_MAIL = 'cat > "$3.new"; printf "%s\\n" "$@" >> "$3.new"; mv "$3.new" "$3"'


def test_the_readme_turns_it_into_a_webhook(own: Own) -> None:
    own.record()
    with HTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": own.server.uri().replace("/events?", f"/{own.name}?"),
            "WEBHOOK_URL": f"http://127.0.0.1:{server.server_port}/",
        }
        listener = subprocess.Popen([sys.executable, "-c", WEBHOOK], env=environment)
        try:
            wait_until(lambda: own.sql(LISTENING, own.name), "listening", SECONDS)
            record(own, row("a"), row("b"))
            messages = [Webhook.posted.get(timeout=SECONDS)["text"] for _ in "ab"]
        finally:
            listener.kill()
            listener.wait()
            server.shutdown()
    assert [message.split(":")[0] for message in messages] == ["Bandwidth exceeded on a", "Bandwidth exceeded on b"]


def test_the_readme_turns_it_into_a_mail(own: Own, tmp_path: Path) -> None:
    added = re.findall(r"^For a mail, replace the last three lines .*`(import \w+)`", README, re.MULTILINE)
    program = "\n".join([*added, *WEBHOOK.splitlines()[:-3], MAIL])
    (tmp_path / "mail").write_text(f"#!/bin/sh\n{FAKE_MAIL}\n")
    (tmp_path / "mail").chmod(0o755)
    own.record()
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "DATABASE_URL": own.server.uri().replace("/events?", f"/{own.name}?"),
    }
    listener = subprocess.Popen([sys.executable, "-c", program], env=environment, cwd=tmp_path)
    try:
        wait_until(lambda: own.sql(LISTENING, own.name), "listening", SECONDS)
        record(own, row("a"))
        sent = tmp_path / "ops@example.com"
        wait_until(sent.exists, "sent", SECONDS)
    finally:
        listener.kill()
        listener.wait()
    body, arguments = sent.read_text().split("}")
    message = json.loads(body + "}")["message"]
    assert message.startswith("Bandwidth exceeded on a: ")
    assert arguments.splitlines() == ["-s", message, "ops@example.com"]


def test_kconsumer_tells_of_each_overload_once(pipeline: Pipeline) -> None:
    with closing(pipeline.servers.postgres.connect(dbname=pipeline.database)) as connection:
        ear = Ear(connection)
        consumer = pipeline.consumer("--notify", "overload")
        for count, rows in ((3, 3), (2, 5)):  # of one overload
            pipeline.send(warnings(count))
            pipeline.has_rows(rows)
            assert ear.hosts() == ["web-1"] * (count == rows)
        assert consumer.stop() == 0
