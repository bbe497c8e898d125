"""Calls of the database in a thread of its own: one at a time, watched, and tried again until there is an answer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import psycopg2

from eventkafkapostgres.console import Stop
from eventkafkapostgres.database import BatchTimeout, Database
from eventkafkapostgres.outages import Outage, explain_postgres_error

RETRY_SECONDS = (1.0, 4.0, 30.0)  # pauses: the first, the longest where nothing answers, the longest after a refusal
MOMENT_SECONDS = 0.5  # between two looks at what else there is to do
STOP_SECONDS = 3.0  # for what the database is doing after SIGINT or SIGTERM

Answer = TypeVar("Answer")
Meanwhile = Callable[["Future[Any] | None"], None]

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """A rebalance, an error of Kafka, or the end came before an answer of the database."""


class DatabaseCalls:
    """Waits for the database while its caller does something else: `meanwhile` is called again and again, with the
    call that goes on, or with None in a pause; it takes half a second or so.
    """

    def __init__(
        self,
        database: Database,
        stop: Stop,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        self.database, self.stop, self.clock = database, stop, clock
        self.outage = Outage("PostgreSQL", logger, clock)
        self.executor = executor or ThreadPoolExecutor(max_workers=1)

    def ask(
        self,
        call: Callable[[], Answer],
        meanwhile: Meanwhile,
        is_pointless: Callable[[], bool],
        is_divisible: bool = False,
    ) -> Answer:
        """The answer. Interrupted where there was none before it became pointless.

        Every psycopg2.Error is tried again after a pause, but for the BatchTimeout of a batch that is divisible.
        """
        pause = RETRY_SECONDS[0]
        while True:
            job = self.executor.submit(call)
            self.wait_for(job, meanwhile)
            try:
                answer = job.result()
            except psycopg2.Error as error:
                if is_divisible and isinstance(error, BatchTimeout):
                    raise
                self.outage.begin(explain_postgres_error(error))
                is_refusal = error.pgcode or "FATAL" in str(error)
                until = self.clock() + min(pause, RETRY_SECONDS[2] if is_refusal else RETRY_SECONDS[1])
                pause *= 2
            else:
                self.outage.end()
                return answer
            while self.clock() < until and not self.stop.is_set():
                meanwhile(None)
            if self.stop.is_set() or is_pointless():
                raise Interrupted

    def wait_a_moment(self, job: Future[Any] | None) -> bool:
        """For half a second at most; whether the call, or the pause, still goes on."""
        if job is None:
            return not self.stop.wait(MOMENT_SECONDS)
        return not wait([job], timeout=MOMENT_SECONDS).done

    def wait_for(self, job: Future[Any], meanwhile: Meanwhile) -> None:
        """Wait, and end the connection where it makes no progress, or not soon enough after a stop."""
        stop_at = math.inf
        while not job.done():
            if self.stop.is_set():
                stop_at = min(stop_at, self.clock() + STOP_SECONDS)
            if self.clock() > min(self.database.deadline, stop_at):
                self.database.abort_connection()
                stop_at = math.inf
            meanwhile(job)
