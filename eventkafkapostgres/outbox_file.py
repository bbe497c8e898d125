"""The SQLite file of the outbox: one transaction for each change, and what can be read of a damaged one."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

COLUMNS = "position, cast(key as blob), cast(value as blob)"  # their type is one bit of the file
MAX_POSITION = 1 << 53  # a higher one is damage, and would leave no room for what comes behind it
Episodes = Mapping[str, tuple[datetime, datetime]]  # by host: observed_at of the first and of the last warning


class StoredWarning(NamedTuple):
    """A warning as the outbox keeps it. Positions rise in the order in which the warnings were raised."""

    position: int
    key: bytes
    value: bytes


def is_busy(error: Exception) -> bool:
    """Whether another process has the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_damage(error: Exception) -> bool:
    """Whether the file is to blame rather than the disk."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def quarantine(path: Path) -> Path:
    """Give the files of a damaged outbox another name, so that nothing in them is lost for good."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    return aside


def salvage(connection: sqlite3.Connection, errors: list[sqlite3.Error]) -> Iterator[StoredWarning]:
    """What can be read: from the oldest on, and where that breaks off, from the newest back."""
    last = 0
    readable = (
        f"select {COLUMNS} from warnings where position > ? and position <= {MAX_POSITION} "
        "and key is not null and value is not null"
    )
    for order in ("asc", "desc"):
        try:
            for row in connection.execute(f"{readable} order by position {order}", (last,)):
                yield (warning := StoredWarning(*row))
                last = warning.position if order == "asc" else last
            return
        except sqlite3.Error as error:
            errors.append(error)


class OutboxFile:
    """The SQLite file, held by an exclusive lock until it is closed. Its methods raise sqlite3.Error."""

    def __init__(self, path: Path, lock_seconds: float = 0.0, behind: int = 0) -> None:
        """Open it, or make it, for its owner alone. OSError or sqlite3.Error when that can't be.

        `lock_seconds`: how long to wait for another process to let it go. What is in it gets positions `behind` one.
        """
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # /dev/null would be closed to everybody else
                raise OSError(errno.EINVAL, "not a regular file")
            with suppress(PermissionError):  # it is somebody else's, who lets us write into it
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        self.connection = sqlite3.connect(path, timeout=lock_seconds, isolation_level=None)
        self.connection.text_factory = lambda text: text.decode(errors="replace")  # a bit may be wrong
        try:
            for statement in (
                "pragma locking_mode = exclusive",
                "pragma journal_mode = wal",
                "pragma synchronous = full",
                "create table if not exists warnings (position integer primary key, key, value)",
                "create table if not exists episodes (host primary key, started_at, last_observed_at)",
            ):
                self.connection.execute(statement)
            if (found := self.connection.execute("pragma quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(found)
            summary = "select count(*), coalesce(min(position), 1), coalesce(max(position), 1) from warnings"
            self.count, first, last = self.connection.execute(summary).fetchone()
            if first < 1 or last > MAX_POSITION:
                raise sqlite3.DatabaseError("a position is out of range")
            if behind:
                shift = max(behind, last) + 1  # so far that it collides with nothing on the way
                self.connection.execute("update warnings set position = position + ?", (shift,))
        except sqlite3.Error:
            self.connection.close()
            raise
        self.identity = self._identity()

    def _identity(self) -> list[tuple[int, int] | None]:
        """Device and inode of what stands at the path of the file and of its write-ahead log."""
        found: list[tuple[int, int] | None] = []
        for name in (self.path, f"{self.path}-wal"):
            try:
                found.append((os.stat(name).st_dev, os.stat(name).st_ino))
            except OSError:
                found.append(None)
        return found

    def is_in_place(self) -> bool:
        """Whether nobody has removed or replaced it."""
        return self._identity() == self.identity

    def make_room(self) -> sqlite3.Connection | None:
        """Before another file is opened at our path; the connection, where this one holds what is nowhere else."""
        (file, log), (our_file, our_log) = self._identity(), self.identity
        if file == our_file:  # only the log was removed: closing stores what is in it
            self.close()
            return None
        if log == our_log:  # the other file would be changed by it
            with suppress(OSError):
                os.unlink(f"{self.path}-wal")
        return self.connection

    def after(self, position: int, limit: int) -> list[StoredWarning]:
        """The oldest warnings behind a position, at most so many."""
        query = f"select {COLUMNS} from warnings where position > ? order by position limit ?"
        return [StoredWarning(*row) for row in self.connection.execute(query, (position, limit))]

    def write(self, add: Iterable[StoredWarning], remove: Iterable[int], episodes: Episodes) -> None:
        """Store all of this in one transaction, or nothing."""
        begun = [(host, *(time.isoformat() for time in times)) for host, times in episodes.items()]
        self.connection.execute("begin immediate")
        with self.connection as to:
            added = to.executemany("insert or ignore into warnings values (?, ?, ?)", add).rowcount
            removed = to.executemany("delete from warnings where position = ?", ((at,) for at in remove)).rowcount
            to.executemany("insert or replace into episodes values (?, ?, ?)", begun)
        self.count += added - removed

    def last_position(self) -> int:
        return int(self.connection.execute("select coalesce(max(position), 0) from warnings").fetchone()[0])

    def episodes(self) -> dict[str, tuple[datetime, datetime]]:
        """The last episode (overload) of each host."""
        found = {}
        for host, started_at, last_observed_at in self.connection.execute("select * from episodes"):
            with suppress(TypeError, ValueError):  # nothing of ours
                found[host] = datetime.fromisoformat(started_at), datetime.fromisoformat(last_observed_at)
        return found

    def close(self) -> None:
        self.connection.close()
