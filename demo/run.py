"""The run: both scripts, the traffic, and what breaks in the middle of it."""

import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import NamedTuple

from demo.results import Rows, draw, show_result, show_rows
from demo.scripts import Script, say_command
from demo.terminal import DIM, say, show_heading, show_second, title
from demo.traffic import LIMIT, LOOPBACK, TRAFFIC, carried_bytes, make_traffic
from servers import Servers

WAIT_SECONDS = 15.0  # for what should take a moment
# Kafka gives the partitions of a consumer that was killed to the next one when its session has expired.
SESSION_SECONDS = 6  # the shortest that Kafka allows
SHORT_SESSION = {
    "KAFKA_SESSION_TIMEOUT_MS": f"{SESSION_SECONDS}000",
    "KAFKA_HEARTBEAT_INTERVAL_MS": "2000",
    "KAFKA_REQUEST_TIMEOUT_MS": "1500",
}


class Step(NamedTuple):
    """What is done at the end of a second of the traffic."""

    name: str
    note: str
    action: Callable[[], None]
    is_recovery: bool = False


def outages(kconsumer: Script, running: Servers) -> dict[int, Step]:
    """What breaks, and is started again, each in a burst of its own; the first burst is left alone."""
    postgres = running.postgres
    return {
        12: Step("kconsumer", "kill -9 kconsumer", kconsumer.kill),
        15: Step("kconsumer", "kconsumer started", kconsumer.start, is_recovery=True),
        22: Step("PostgreSQL", "PostgreSQL stopped", postgres.stop),
        25: Step("PostgreSQL", "PostgreSQL started", postgres.start, is_recovery=True),
    }


class Watch:
    """A line for each second, until the producer ends."""

    def __init__(self, kproducer: Script, kconsumer: Script, rows: Rows, steps: Mapping[int, Step]) -> None:
        self.kproducer, self.kconsumer, self.rows, self.steps = kproducer, kconsumer, rows, steps
        self.edges, self.rates = [time.time()], list[float]()  # when each second began and the end; MB/s
        self.catching_up = False
        self.waited: dict[str, set[str]] = {}  # for what, and the event_id of each warning that was no row yet

    def run(self, pool: ThreadPoolExecutor) -> None:
        """The steps are taken in the pool, for the lines go on meanwhile. RuntimeError when one failed."""
        show_heading(LIMIT)
        taken: list[Future[None]] = []
        began = measured_at = time.monotonic()
        before = carried_bytes()
        for second in range(1, len(TRAFFIC) + round(WAIT_SECONDS)):
            with suppress(subprocess.TimeoutExpired):
                self.kproducer.process.wait(max(0.0, began + second - time.monotonic()))
            after, now = carried_bytes(), time.monotonic()
            if now - measured_at < 0.5:  # it ended with the last line
                break
            self.edges.append(time.time())
            self.rates.append((after - before) / (now - measured_at) / 1e6)
            before, measured_at = after, now
            self.show(second)
            if self.kproducer.process.poll() is not None:
                break
            if step := self.steps.get(second):
                taken.append(pool.submit(step.action))
        for future in taken:
            future.result()

    def show(self, second: int) -> None:
        """The line of a second."""
        for script in (self.kproducer, self.kconsumer):
            script.say_news()
        raised, rows = self.kproducer.raised(), self.rows.event_ids()
        note = ""
        if step := self.steps.get(second):
            note, self.catching_up = step.note, step.is_recovery
            if step.is_recovery:
                self.waited[step.name] = set(raised) - set(rows)
        elif self.catching_up and len(rows) == len(raised):
            note, self.catching_up = "all rows are there", False
        show_second(second, self.rates[-1], LIMIT, len(raised), len(rows), note)


def wait_until(condition: Callable[[], bool]) -> None:
    """For a moment at most."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def start_scripts(stack: ExitStack, directory: Path, environment: dict[str, str]) -> tuple[Script, Script]:
    """kproducer and kconsumer; whatever happens, they end with the stack."""
    title("The two scripts, as anybody starts them")
    options = ["--interface", LOOPBACK, "--limit", f"{LIMIT}MB/s", "--flush-interval", str(len(TRAFFIC))]
    options += ["--host", "demo", "--outbox", str(directory / "outbox.sqlite")]
    say_command("kconsumer.py", [], SHORT_SESSION)
    kconsumer = Script("kconsumer.py", [], environment | SHORT_SESSION, directory / "kconsumer.log")
    stack.callback(kconsumer.kill)
    say_command("kproducer.py", options, {})
    kproducer = Script("kproducer.py", options, environment, directory / "kproducer.log")
    stack.callback(kproducer.kill)
    print()
    say(
        f"KAFKA_*_MS: after a kill Kafka lets the next kconsumer take over within {SESSION_SECONDS} seconds, not 20.",
        DIM,
    )
    wait_until(lambda: bool(kproducer.lines() or kproducer.process.poll()))
    return kproducer, kconsumer


def run_scripts(stack: ExitStack, directory: Path, running: Servers, picture: Path | None) -> int:
    """Both scripts from start to end with the outages between, and the status of the result."""
    kproducer, kconsumer = start_scripts(stack, directory, running.environment())
    title("Bursts of traffic on loopback: each second above the limit is a warning")
    stop = threading.Event()
    stack.callback(stop.set)
    pool = stack.enter_context(ThreadPoolExecutor(1))  # on the way out it is waited for before anything is ended
    threading.Thread(target=make_traffic, args=(stop,)).start()
    rows = Rows(running.postgres)
    watch = Watch(kproducer, kconsumer, rows, outages(kconsumer, running))
    watch.run(pool)
    print()
    kproducer.end()
    wait_until(lambda: set(kproducer.raised()) <= set(rows.event_ids()))
    kconsumer.process.terminate()
    kconsumer.end()
    failed = bool(kproducer.process.returncode or kconsumer.process.returncode)
    running.postgres.start()  # it is away still where the producer ended too early
    with closing(running.postgres.connect()) as connection, connection.cursor() as cursor:
        is_complete = show_rows(cursor)
        status = show_result(kproducer.raised(), rows.event_ids(), watch.waited, failed)
        if picture and is_complete and watch.rates:
            draw(picture, watch.edges, watch.rates, cursor)
    return status
