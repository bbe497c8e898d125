"""How much was recorded: on a terminal each second, in the log each minute, or every ten where there was nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from eventkafkapostgres.message import Batch
from eventkafkapostgres.outages import counted

SHOW_SECONDS = 1.0  # between two changes of the line on a terminal
LOG_SECONDS, IDLE_LOG_SECONDS = 60.0, 600.0  # between two lines of the log: with something recorded, without

logger = logging.getLogger(__name__)


class Progress:
    """Counts what is recorded. Whatever else is due as rarely as a line of the log (`renew`) is done with it."""

    def __init__(
        self, show: Callable[[str], None], renew: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.show, self.renew, self.clock = show, renew, clock
        self.recorded = self.shown = self.logged = 0
        self.shown_at = self.logged_at = clock()

    def add(self, batch: Batch, rejected: Sequence[tuple[Any, str]]) -> None:
        """A batch was recorded, less the messages that were rejected, each with the reason."""
        recorded = len(batch.rows) + len(batch.rejected) - len(rejected)
        self.recorded += recorded
        if rejected:
            logger.warning("%s went to rejected_messages, the first: %s",
                           counted(len(rejected), "message"), rejected[0][1])  # fmt: skip
        logger.debug("recorded %d, rejected %d", recorded, len(rejected))

    def report(self, lag: Callable[[], int]) -> None:
        """Say what was recorded, where it is time to."""
        now = self.clock()
        if now - self.shown_at >= SHOW_SECONDS:
            per_second, to_go = (self.recorded - self.shown) / (now - self.shown_at), lag()
            left = f", {to_go:,} to go, {to_go / per_second:,.0f} s left" if to_go and per_second else ""
            self.show(f"{self.recorded:,} recorded, {per_second:,.0f} a second{left}")
            self.shown_at, self.shown = now, self.recorded
        if now - self.logged_at >= (LOG_SECONDS if self.recorded > self.logged else IDLE_LOG_SECONDS):
            logger.info("%d recorded in the last %.0f s, %d to go",
                        self.recorded - self.logged, now - self.logged_at, lag())  # fmt: skip
            self.logged_at, self.logged = now, self.recorded
            self.renew()

    def end(self) -> None:
        self.show("")
        logger.info("stopped: %d recorded since the start", self.recorded)
