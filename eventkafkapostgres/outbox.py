"""Warnings on disk until Kafka has acknowledged them."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from eventkafkapostgres.outages import SettingsError

logger = logging.getLogger(__name__)


def outbox_path(environ: Mapping[str, str]) -> Path:
    """outbox.sqlite where systemd says, else where the XDG Base Directory Specification says."""
    if state := environ.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0], "outbox.sqlite")
    home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home, "eventKafkaPostgres", "outbox.sqlite")


class Outbox:
    """The warnings that Kafka has not acknowledged yet, in a SQLite file: they survive a kill and a power cut.

    Its methods raise sqlite3.OperationalError when the disk refuses, sqlite3.DatabaseError when the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, timeout=2.0, isolation_level=None)
        try:
            # An exclusive lock is held until the process ends: it is what keeps a second producer out.
            for statement in (
                "pragma locking_mode = exclusive",
                "pragma journal_mode = wal",
                "pragma synchronous = full",
                "create table if not exists warnings (position integer primary key autoincrement, key, value)",
            ):
                self.connection.execute(statement)
            if (found := self.connection.execute("pragma quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
        except sqlite3.Error:
            self.connection.close()
            raise

    def transaction(self) -> sqlite3.Connection:
        """Use with `with`: what is inside is stored on disk as a whole, or not at all."""
        self.connection.execute("begin immediate")
        return self.connection

    def change(self, add: Iterable[tuple[bytes, bytes]], remove: Iterable[int]) -> None:
        """Store warnings as (key, value) and take others out by position, in one transaction."""
        with self.transaction():
            self.connection.executemany("insert into warnings (key, value) values (?, ?)", add)
            self.connection.executemany("delete from warnings where position = ?", ((at,) for at in remove))

    def after(self, position: int, most: int) -> list[tuple[int, bytes, bytes]]:
        """The oldest warnings behind a position, at most so many, as (position, key, value)."""
        rows = self.connection.execute(
            "select position, key, value from warnings where position > ? order by position limit ?", (position, most)
        )
        return rows.fetchall()

    def count(self) -> int:
        """How many warnings wait."""
        return int(self.connection.execute("select count(*) from warnings").fetchone()[0])


def open_outbox(path: Path) -> Outbox:
    """The outbox at this path; a damaged file is set aside first. SettingsError says why there can't be one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Outbox(path)
    except OSError as error:
        raise SettingsError(f"the outbox {path} can't be made: {error.strerror}; give another --outbox") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            raise SettingsError(f"{path} is in use: one producer per outbox, give this one another --outbox") from error
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
            raise SettingsError(f"the outbox {path} can't be used: {error}; give another --outbox") from error
        return outbox_in_memory(path, error)
    except sqlite3.DatabaseError as error:
        return set_aside(path, error)


def set_aside(path: Path, error: sqlite3.DatabaseError) -> Outbox:
    """Give a damaged outbox another name, so that nothing in it is lost for good, and begin a new one."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    try:
        for suffix in ("", "-wal"):
            if (part := Path(f"{path}{suffix}")).exists():
                part.rename(f"{aside}{suffix}")
        logger.error("Outbox: %s is damaged (%s); it is kept as %s, a new one begins", path, error, aside)
        return Outbox(path)
    except (OSError, sqlite3.Error) as worse:
        return outbox_in_memory(path, worse)


def outbox_in_memory(path: Path, error: Exception) -> Outbox:
    """What there is where the disk takes nothing at all: sampling and sending go on."""
    logger.error("Outbox: %s can't be used (%s); warnings wait in memory until the next start", path, error)
    return Outbox(Path(":memory:"))
