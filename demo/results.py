"""What the demonstration finds in PostgreSQL, and the result of it."""

from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from demo.terminal import GREEN, NO, RED, YES, paint, say, show_table, title
from demo.traffic import LIMIT
from servers import Postgres

EVENT_IDS = "select event_id::text from bandwidth_exceeds"
LAST_ROWS = """
with last as (select * from bandwidth_exceeds order by observed_at desc limit 6)
select event_id::text, to_char(observed_at, 'HH24:MI:SS.MS') as observed_at,
    to_char(bytes_per_second / 1e6, 'FM9990.0 "MB/s"') as bandwidth, partition || '/' || "offset" as offset,
    to_char(extract(epoch from recorded_at - observed_at), 'FM990.00 "s"') as delay
from last order by last.observed_at"""
EPISODES = """
select host, to_char(started_at, 'HH24:MI:SS') as started_at, to_char(ended_at, 'HH24:MI:SS') as ended_at,
    round(seconds_over) || ' s' as over, to_char(peak_bytes_per_second / 1e6, 'FM9990.0 "MB/s"') as peak,
    to_char(mean_bytes_per_second / 1e6, 'FM9990.0 "MB/s"') as mean,
    to_char(bytes_over_limit / 1e6, 'FM9990.0 "MB"') as over_limit
from bandwidth_episodes order by bandwidth_episodes.started_at"""
DRAWN_EPISODES = """
select extract(epoch from started_at)::float8, extract(epoch from ended_at)::float8, seconds_over,
    peak_bytes_per_second / 1e6
from bandwidth_episodes order by started_at"""


class Rows:
    """The rows in PostgreSQL, which may be stopped meanwhile."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres
        self.last_seen: list[str] = []

    def event_ids(self) -> list[str]:
        """The event_id of each row: of those last seen while PostgreSQL is stopped, none before the table is there."""
        try:
            with closing(self.postgres.connect()) as connection, connection.cursor() as cursor:
                cursor.execute(EVENT_IDS)
                self.last_seen = [event_id for (event_id,) in cursor]
        except (psycopg2.OperationalError, psycopg2.errors.UndefinedTable):
            pass
        return self.last_seen


def show_rows(cursor: Any) -> bool:
    """The last rows and the episodes, as far as the table and the view are there; whether both are."""
    cursor.execute("select to_regclass('bandwidth_exceeds'), to_regclass('bandwidth_episodes')")
    table, view = cursor.fetchone()
    if table:
        show_table("The last rows in PostgreSQL: bandwidth_exceeds", cursor, LAST_ROWS)
    if view:
        show_table("What they amount to: bandwidth_episodes", cursor, EPISODES)
    return bool(table and view)


def show_result(raised: list[str], rows: list[str], waited: dict[str, set[str]], failed: bool) -> int:
    """Compare warnings and rows one by one, print what came of it, and give the status of the demonstration."""
    title("The result")
    wrong = [f"{event_id} was raised and is no row" for event_id in raised if event_id not in rows]
    wrong += [f"{event_id} is a row and was not raised" for event_id in rows if event_id not in raised]
    wrong += ["there is nothing to compare"] * (not raised) + ["a script failed"] * failed
    mark, outcome = (paint(RED, NO), "") if wrong else (paint(GREEN, YES), ": every one arrived, once")
    print(f"  {mark} {len(raised)} warnings raised, {len(rows)} rows, compared by event_id{outcome}.", flush=True)
    if waited and not wrong:
        count = len(set().union(*waited.values()))
        numbers = ", ".join(f"{len(event_ids)} of {name}" for name, event_ids in waited.items())
        print(f"    {count} of them waited for a restart: {numbers}.", flush=True)
    for line in wrong:
        say(f"  {line}")
    return 1 if wrong else 0


def draw(path: Path, edges: list[float], rates: list[float], cursor: Any) -> None:
    """The picture, or a line that says why there is none."""
    print()
    cursor.execute(DRAWN_EPISODES)
    try:
        from demo.picture import Episode, draw  # here: a demonstration without its picture is one all the same

        episodes = [Episode(start - edges[0], end - edges[0], over, peak) for start, end, over, peak in cursor]
        draw(path, [edge - edges[0] for edge in edges], rates, LIMIT, episodes)
    except ImportError as error:
        say(f"No picture: {error}; pip install '.[demo]'")
    except OSError as error:
        say(f"No picture: {error}")
    else:
        say(f"The picture of it: {path}")
