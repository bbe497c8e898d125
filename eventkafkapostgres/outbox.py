"""Warnings on disk until Kafka has acknowledged them; in memory, at most 1,000 of them, while the disk refuses."""

from __future__ import annotations

import errno
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path

from eventkafkapostgres.outages import Outage, SettingsError, counted
from eventkafkapostgres.outbox_file import OutboxFile, StoredWarning, is_busy, is_damage, quarantine, salvage

logger = logging.getLogger(__name__)

MAX_IN_MEMORY = 1000  # warnings that are kept while the disk refuses them
MEMORY_LIMIT = f"at most {MAX_IN_MEMORY:,} warnings wait in memory"
GAP_SECONDS = 5.0  # warnings further apart than this, and than two intervals, are of different overloads
RETRY_SECONDS = 1.0  # how often a disk that refused is tried again
LOCK_SECONDS = 2.0  # how long the start waits for a run that is just ending
UNREADABLE_SECONDS = 30.0  # a file that can't be read for so long is treated as a damaged one
# What the state of a disk is to blame for. Any other error of the system at the start means that the path is wrong.
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


def outbox_path(environ: Mapping[str, str]) -> Path:
    """outbox.sqlite where systemd says, else where the XDG Base Directory Specification says.

    SettingsError where that is nowhere.
    """
    if state := environ.get("STATE_DIRECTORY"):
        return Path(state.split(":")[0], "outbox.sqlite")
    try:
        home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:  # a user who is not in the system's list
        raise SettingsError("HOME is not set, and this user has none: give --outbox FILE") from error
    return Path(home, "eventKafkaPostgres", "outbox.sqlite")


def check_path(path: Path, error: Exception) -> None:
    """SettingsError where an error at the start means that there can't be an outbox at this path."""
    if is_busy(error):
        raise SettingsError(f"{path} is in use: one producer per outbox, give this one another --outbox") from error
    if isinstance(error, OSError) and error.errno not in DISK_ERRNOS:
        raise SettingsError(f"the outbox {path} can't be used: {error.strerror}; give another --outbox") from error


def has_content(path: Path) -> bool:
    """Whether there is a file at this path, and something in it."""
    with suppress(OSError):
        return path.stat().st_size > 0
    return False


class Episodes(dict[str, tuple[datetime, datetime]]):
    """By host: observed_at of the first and of the last warning of its last overload."""

    def started_at(self, host: str, observed_at: datetime, interval_seconds: float) -> datetime:
        """observed_at of the first warning of the overload that a new warning belongs to.

        Where the clock was set back, a new overload begins rather than one that ends before it started.
        """
        started_at, last = self.get(host, (observed_at, observed_at))
        gap_seconds = abs((observed_at - last).total_seconds())
        if observed_at < started_at or gap_seconds > max(GAP_SECONDS, 2 * interval_seconds):
            started_at = observed_at
        self[host] = started_at, observed_at
        return started_at


@dataclass
class Memory:
    """What this process knows of its outbox, and the disk may not."""

    unsaved: dict[int, StoredWarning] = field(default_factory=dict)  # by position: not on the disk yet
    handed_out: dict[int, StoredWarning] = field(default_factory=dict)  # by position: on the way to Kafka
    removed: set[int] = field(default_factory=set)  # positions that the disk still has to take out
    episodes: Episodes = field(default_factory=Episodes)  # stored with each warning

    def remove(self, positions: Iterable[int]) -> None:
        """They are acknowledged. One that memory has lost is none of ours any more."""
        for position in positions:
            if self.handed_out.pop(position, None) and not self.unsaved.pop(position, None):
                self.removed.add(position)

    def is_stored(self) -> None:
        """The disk is up to date."""
        self.unsaved.clear()
        self.removed.clear()

    def has_no_file(self) -> None:
        """What is on the way to Kafka is nowhere else."""
        self.unsaved |= self.handed_out
        self.removed.clear()

    def drop_excess(self) -> int:
        """Keep the newest MAX_IN_MEMORY; how many are lost."""
        excess = sorted(self.unsaved)[:-MAX_IN_MEMORY]
        for position in excess:
            del self.unsaved[position]
            self.handed_out.pop(position, None)
        return len(excess)

    def take_over(self, file: OutboxFile, source: sqlite3.Connection, waiting: int, behind: int) -> bool:
        """Store what can be read of another file, and what memory knows; whether that is all that waits."""
        errors: list[sqlite3.Error] = []
        readable = (StoredWarning(behind + position, key, value) for position, key, value in salvage(source, errors)
                    if position not in self.removed)  # fmt: skip
        others = file.count
        file.write(chain(readable, (self.handed_out | self.unsaved).values()), (), self.episodes)
        self.is_stored()
        return not errors and file.count - others >= waiting


def reason(error: Exception) -> str:
    """What an error says."""
    return "another producer uses it" if is_busy(error) else str(error)


class Outbox:
    """The warnings that Kafka has not acknowledged yet. In a file they survive a kill and a power cut.

    No method raises for what a disk does: while it refuses, warnings stay in memory, and each loss is logged.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """SettingsError says why there can't be an outbox at this path."""
        self.path, self.clock, self.outage = path, clock, Outage("Outbox", logger)
        self.file: OutboxFile | None = None  # None: there is none that could be used
        self.memory = Memory()
        self.episodes = self.memory.episodes
        self.last_position = self.lost = 0  # of the newest warning; how many are lost
        self.left_behind = False  # whether a file may hold warnings that could not be read
        self.retry_at, self.unreadable_at = clock(), math.inf  # when to try the disk; since when it can't be read
        try:
            self._use(OutboxFile(path, LOCK_SECONDS))
        except (OSError, sqlite3.Error) as error:
            check_path(path, error)
            self._recover(error)

    def __len__(self) -> int:
        """How many warnings wait."""
        return (self.file.count if self.file else 0) - len(self.memory.removed) + len(self.memory.unsaved)

    def put(self, key: bytes, value: bytes) -> None:
        """Store a warning: when this returns it is on the disk, or in memory while the disk refuses."""
        self.last_position += 1
        self.memory.unsaved[self.last_position] = StoredWarning(self.last_position, key, value)
        self._store()

    def after(self, position: int, limit: int) -> list[StoredWarning]:
        """The oldest warnings behind a position, at most so many."""
        found = [warning for warning in self.memory.unsaved.values() if warning.position > position]
        if self.file:
            try:
                rows = self.file.after(position, limit + len(self.memory.removed))
            except sqlite3.Error as error:
                self.unreadable_at = min(self.unreadable_at, self.clock())
                self.outage.begin(f"{self.path} can't be read: {error}")
                if is_damage(error) or self.clock() - self.unreadable_at > UNREADABLE_SECONDS:
                    self._recover(error, damaged=True)
                return []  # those in memory wait as well, else older ones would be skipped
            found += [warning for warning in rows if warning.position not in self.memory.removed]
        self.unreadable_at = math.inf
        found = sorted(found)[:limit]
        self.memory.handed_out |= {warning.position: warning for warning in found}
        return found

    def remove(self, positions: Iterable[int]) -> None:
        """Take out what Kafka has acknowledged."""
        self.memory.remove(positions)
        self._store()

    def maintain(self) -> None:
        """Notice a file that was removed or replaced; go back to a disk that takes something again."""
        if self.clock() >= self.retry_at:
            if not self.file or not self.file.is_in_place():
                self.retry_at = self.clock() + RETRY_SECONDS
                self._reopen()
            self._store()

    def close(self) -> None:
        """The end of the run: what memory holds, or a file that was removed, is lost. The rest is left on the disk."""
        self.retry_at = self.clock()
        self.maintain()
        waiting, is_in_place = len(self), bool(self.file and self.file.is_in_place())
        self.left_behind |= not self.file and has_content(self.path)
        if self.file:
            self.file.close()
        if not is_in_place:
            self.file = None
            self.memory.removed.clear()
        self.memory.unsaved.clear()
        self._lose(waiting - len(self))

    def _store(self) -> None:
        """Bring the disk up to date. What it refuses stays in memory: the newest MAX_IN_MEMORY of it."""
        memory = self.memory
        if self.file and (memory.unsaved or memory.removed) and self.clock() >= self.retry_at:
            try:
                self.file.write(memory.unsaved.values(), memory.removed, memory.episodes if memory.unsaved else {})
                memory.is_stored()
                self.outage.end()
            except sqlite3.Error as error:
                if is_damage(error):
                    self._recover(error)
                else:
                    self.retry_at = self.clock() + RETRY_SECONDS
                    self.outage.begin(f"{self.path} can't be written: {error}")
        self._lose(memory.drop_excess())

    def _lose(self, count: int) -> None:
        if count:
            self.lost += count
            lost = counted(count, "warning") + (" is" if count == 1 else " are")
            logger.error("Outbox: %s lost: neither the disk nor Kafka took what memory can't keep", lost)

    def _use(self, file: OutboxFile, source: sqlite3.Connection | None = None) -> bool:
        """Go on with a file, and with what can be read of the one before; whether that is all of it."""
        try:
            behind = 0 if self.file else self.last_position  # what was never ours collides with what memory holds
            complete = not source or self.memory.take_over(file, source, len(self), behind)
            self.last_position = max(self.last_position, file.last_position())
            self.episodes.update(file.episodes() | self.episodes)
        except sqlite3.Error:
            file.close()
            raise
        self.left_behind |= not complete
        self.file, self.retry_at = file, self.clock()
        return complete

    def _reopen(self) -> None:
        """Use the file at our path, created where there is none, and bring along what a removed one holds."""
        old = self.file
        source = old.make_room() if old else None
        try:
            complete = self._use(OutboxFile(self.path, behind=0 if old and not source else self.last_position), source)
        except (OSError, sqlite3.Error) as error:
            if not source:
                self._recover(error)
            elif is_damage(error):  # it is none of ours: the next time there is room for a new one
                with suppress(OSError):
                    quarantine(self.path)
            else:
                self.outage.begin(f"{self.path} was removed, and no new file can be used: {reason(error)}")
        else:
            if old:
                old.close()
                holds = "what waits" if complete else "what could be read of it, and the rest is lost"
                logger.error("Outbox: %s was removed or replaced; a new file holds %s", self.path, holds)

    def _recover(self, error: Exception, damaged: bool = False) -> None:
        """Set a damaged file aside and go on with what can be read of it, in a new one. Else memory has to do."""
        if self.file:
            self.file.close()
        if damaged or is_damage(error):
            try:
                aside = quarantine(self.path)
                logger.error("Outbox: %s is damaged (%s): it is kept as %s, a new one begins", self.path, error, aside)
                with closing(sqlite3.connect(aside)) as source:
                    if not self._use(OutboxFile(self.path), source):
                        logger.error("Outbox: what could not be read of it is still in %s: try sqlite3 .recover", aside)
                return
            except (OSError, sqlite3.Error) as worse:
                self.left_behind = True
                logger.error("Outbox: %s", worse)
        self.file, self.retry_at = None, self.clock() + RETRY_SECONDS
        self.memory.has_no_file()
        self.outage.begin(f"{self.path} can't be used ({reason(error)}): {MEMORY_LIMIT}")
