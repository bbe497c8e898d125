"""A NOTIFY for each overload that begins: kconsumer --notify CHANNEL."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from eventkafkapostgres.message import COLUMNS
from eventkafkapostgres.refusals import copy_fields

HOST, EPISODE_STARTED_AT = COLUMNS.index("host"), COLUMNS.index("episode_started_at")
# An episode is new when no earlier transaction has recorded a row of it: then also a batch that is repeated, a half of
# one, or a warning that was sent twice announces nothing again. recorded_at is when the row's transaction began. A
# subquery with a limit, not a join: one look into the index for each episode, whatever the planner believes.
# Texts are cut so that the payload stays below NOTIFY's 8000 bytes: JSON writes a character in 6 bytes at most.
NOTIFY_NEW_EPISODES = """
with new as materialized (
    select host, episode_started_at from unnest(%s::text[], %s::timestamptz[]) as batch (host, episode_started_at)
    where (
        select true from bandwidth_exceeds as stored where stored.host = batch.host
        and stored.episode_started_at = batch.episode_started_at and stored.recorded_at < now() limit 1
    ) is null
)
select pg_notify(%s, json_build_object(
    'host', left(host, 255),
    'episode_started_at', episode_started_at,
    'bytes_per_second', bytes_per_second,
    'limit_bytes_per_second', limit_bytes_per_second,
    'message', left(message, 500)
)::text)
from new cross join lateral (
    select observed_at, bytes_per_second, limit_bytes_per_second, message from bandwidth_exceeds as stored
    where stored.host = new.host and stored.episode_started_at = new.episode_started_at
    order by observed_at limit 1
) as first order by observed_at, host"""


def channel_name(text: str) -> str:
    """A channel that LISTEN finds without quotes."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", text):
        raise ValueError(f"{text!r} is not a channel name: lower-case letters, digits and '_', at most 63")
    return text


def notify_new_episodes(cursor: Any, channel: str, lines: Iterable[str]) -> None:
    """Tell a channel, when the cursor's transaction is committed, of each episode that these recorded rows began.

    `lines` are the rows as COPY has read them, less those that were rejected: their values are known to be good.
    """
    stop = max(HOST, EPISODE_STARTED_AT) + 1
    episodes = {(columns[HOST], columns[EPISODE_STARTED_AT]) for columns in (line.split("\t", stop) for line in lines)}
    if episodes:
        hosts = copy_fields("\t".join(host for host, _ in episodes))
        cursor.execute(NOTIFY_NEW_EPISODES, (hosts, [started_at for _, started_at in episodes], channel))
