"""When each host was heard of last: the table heartbeats."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg2
import psycopg2.extras

from eventkafkapostgres.outages import first_line
from eventkafkapostgres.refusals import insert_halving

# A host's clock may be wrong: a heartbeat of the future counts as one of now, and so does one that is stored already.
# No ON CONFLICT DO UPDATE: it needs the key, which a foreign table or a partitioned one does not have.
UPSERT_HEARTBEATS = """
with beats (host, heartbeat_at) as (values %s), updated as (
    update heartbeats as stored set heartbeat_at = beats.heartbeat_at, recorded_at = default from beats
    where stored.host = beats.host and (stored.heartbeat_at < beats.heartbeat_at or stored.heartbeat_at > now())
) insert into heartbeats (host, heartbeat_at) select host, heartbeat_at from beats on conflict do nothing"""
HEARTBEAT = "(%s, least(%s, now()))"

# Data and constraints (SQLSTATE classes 22 and 23), what a trigger raises, an index that is too small for the text.
ROW_ERRORS = (psycopg2.DataError, psycopg2.IntegrityError, psycopg2.errors.RaiseException,
              psycopg2.errors.ProgramLimitExceeded)  # fmt: skip

logger = logging.getLogger(__name__)


def upsert_heartbeats(cursor: Any, heartbeats: Mapping[str, datetime], left_out: set[str]) -> None:
    """When hosts were heard of last. A host that can't be stored is left out, and logged once."""

    def upsert(beats: Sequence[tuple[str, datetime]]) -> None:
        psycopg2.extras.execute_values(cursor, UPSERT_HEARTBEATS, beats, HEARTBEAT, page_size=len(beats))

    def leave_out(beat: tuple[str, datetime], error: psycopg2.Error) -> None:
        if not isinstance(error, ROW_ERRORS):
            raise error
        if beat[0] not in left_out:
            left_out.add(beat[0])
            logger.warning("the heartbeats of %s can't be stored: %s", ascii(beat[0]), first_line(error))

    cursor.execute("savepoint part")
    insert_halving(cursor, sorted(heartbeats.items()), upsert, leave_out)
