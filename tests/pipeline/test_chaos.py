"""Minutes of random faults in every part of the pipeline; at the end each warning that was raised is one row.

    $ CHAOS_SEED=7 pytest -m chaos    # the same faults again; CHAOS_FAULTS sets how many

The faults, their pauses and all else that chance decides are drawn from the seed before anything starts. Several
faults are in force at a time, for each is drawn regardless of those that are not over yet.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import psycopg2
import pytest
from pipeline import Pipeline, Script

from servers import Mode, Postgres, Proxy

SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
COUNT = int(os.environ.get("CHAOS_FAULTS") or 100)
HOSTS = ("web-1", "web-2", "web-3")
CONSUMERS = ("consumer 1", "consumer 2")
STOP_SECONDS = 50.0
# A member that is killed holds its partitions for a session's time: a short one, so that more is recorded meanwhile.
QUICK = {
    "KAFKA_SESSION_TIMEOUT_MS": "6000",
    "KAFKA_HEARTBEAT_INTERVAL_MS": "2000",
    "KAFKA_REQUEST_TIMEOUT_MS": "1500",
}

Heal = Callable[[], object]


class Step(NamedTuple):
    """What chance drew: a fault, where, for how long, and how long until the next one."""

    kind: str
    place: str
    seconds: float
    pause: float
    size: int


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how often it is drawn, where it may happen, how long it may last, how it begins."""

    weight: int
    places: tuple[str, ...]
    seconds: tuple[float, float]
    begin: Callable[["Chaos", Step], Heal]


class Chaos:
    """A pipeline of producers and consumers with what is broken in it at the moment."""

    def __init__(self, pipeline: Pipeline, chance: random.Random) -> None:
        self.pipeline, self.servers, self.chance = pipeline, pipeline.servers, chance
        self.began_at = time.monotonic()
        self.running: dict[str, Script] = {}
        self.broken: dict[str, tuple[float, Heal]] = {}  # by place: until when, and how to mend it
        self.done: Counter[str] = Counter()
        self.lost = self.doubled = "?"  # how many warnings

    def start(self, place: str) -> None:
        """Start a producer or a consumer."""
        if place in HOSTS:
            how, environment = ("--forever", "--flush-interval", "2"), self.pipeline.environment(proxied=True)
            self.running[place] = self.pipeline.producer(*how, host=place, environment=environment)
        else:
            self.running[place] = self.pipeline.consumer(environment=self.pipeline.environment(proxied=True, **QUICK))

    def begin(self, step: Step) -> None:
        """Break something; what is still broken at the same place is mended first, unless this is over at once."""
        if step.seconds:
            self.mend(step.place)
        rows: object = "?"
        with suppress(psycopg2.Error):
            rows = self.pipeline.count()
        how_much = f"for {step.seconds:.1f} s" if step.seconds else f"({step.size})"
        self.say(f"{step.kind}: {step.place} {how_much}; {rows} rows")
        mend = KINDS[step.kind].begin(self, step)
        self.done[step.kind] += 1
        if step.seconds:
            self.broken[step.place] = time.monotonic() + step.seconds, mend

    def mend(self, place: str) -> None:
        if place in self.broken:
            _, mend = self.broken.pop(place)
            mend()

    def rest(self, seconds: float) -> None:
        """Let time pass, and mend what was broken for long enough."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            for place in [place for place, (until, _) in self.broken.items() if until < time.monotonic()]:
                self.mend(place)
            for name, script in self.running.items():
                assert script.process.poll() is None, f"{name} ended by itself: {script.lines()[-5:]}"
            time.sleep(0.02)

    def mend_all(self) -> None:
        for place in list(self.broken):
            self.mend(place)

    def say(self, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {time.monotonic() - self.began_at:6.1f} s  {what}")

    def administer(self, statement: str) -> None:
        """As superuser, in a database where no sickness of the tests' one is felt."""
        for each in statement.format(database=self.pipeline.database).split(";"):
            self.pipeline.sql(each, dbname="postgres")


# What is broken, and how it is mended


def kill_script(chaos: Chaos, step: Step) -> Heal:
    chaos.running.pop(step.place).kill()
    return lambda: chaos.start(step.place)


def end_script(chaos: Chaos, step: Step) -> Heal:
    script = chaos.running.pop(step.place)
    script.process.send_signal(signal.SIGTERM)
    status = script.ends(STOP_SECONDS)
    started = any(" started: " in line for line in script.lines())  # before, Python itself may take the signal
    assert status in {0, *([1] if step.place in HOSTS else []), *([] if started else [-signal.SIGTERM])}
    return lambda: chaos.start(step.place)


def suspend_script(chaos: Chaos, step: Step) -> Heal:
    script = chaos.running[step.place]
    script.process.send_signal(signal.SIGSTOP)
    return lambda: script.process.send_signal(signal.SIGCONT)


def kill_kafka(chaos: Chaos, step: Step) -> Heal:
    chaos.servers.kafka.kill()
    return chaos.servers.kafka.start


def end_postgres(how: Callable[[Postgres], None], chaos: Chaos, step: Step) -> Heal:
    how(chaos.servers.postgres)
    return chaos.servers.postgres.start


def proxy(chaos: Chaos, step: Step) -> Proxy:
    return chaos.servers.kafka_proxy if step.place == "Kafka's network" else chaos.servers.postgres_proxy


def network(mode: Mode, chaos: Chaos, step: Step) -> Heal:
    broken = proxy(chaos, step)
    broken.bytes_per_second, broken.latency_seconds = 2000 + 10 * step.size, step.size / 50_000
    broken.mode = mode
    return lambda: setattr(broken, "mode", "pass")


def reset(chaos: Chaos, step: Step) -> Heal:
    proxy(chaos, step).reset(after_bytes=step.size)
    return lambda: None


def sick(sicken: tuple[str, ...], cure: tuple[str, ...], chaos: Chaos, step: Step) -> Heal:
    chaos.servers.postgres.start()
    way = step.size % len(sicken)
    chaos.administer(sicken[way])
    return lambda: chaos.administer(cure[way])


PUT_BACK = """
update consumed_offsets set next_offset = next_offset - least(next_offset, %s) where partition = %s
returning next_offset"""


def put_back(chaos: Chaos, step: Step) -> Heal:
    """What a backup of some seconds ago would hold of one partition: what follows its offset is gone."""
    partition = step.size % chaos.pipeline.partitions
    chaos.servers.postgres.start()
    connection = chaos.servers.postgres.connect("postgres", dbname=chaos.pipeline.database)
    connection.readonly = False
    with suppress(psycopg2.errors.UndefinedTable), connection, connection.cursor() as cursor:
        cursor.execute("set lock_timeout = '40 s'")
        cursor.execute(PUT_BACK, (step.size // 100, partition))
        for (next_offset,) in cursor.fetchall():
            cursor.execute(
                'delete from bandwidth_exceeds where partition = %s and "offset" >= %s', (partition, next_offset)
            )
            chaos.say(f"  {cursor.rowcount} rows gone from partition {partition}")
    connection.close()
    return lambda: None


READ_ONLY = (
    'alter database "{database}" set default_transaction_read_only = on',
    "alter system set default_transaction_read_only = on; select pg_reload_conf()",
)
READ_WRITE = (
    'alter database "{database}" reset default_transaction_read_only',
    "alter system reset default_transaction_read_only; select pg_reload_conf()",
)
NO_MORE = ('alter database "{database}" connection limit 1', 'alter database "{database}" connection limit 0',
           "alter role events connection limit 0")  # fmt: skip
AS_MANY = ('alter database "{database}" connection limit -1', 'alter database "{database}" connection limit -1',
           "alter role events connection limit -1")  # fmt: skip
NETWORKS = ("Kafka's network", "PostgreSQL's network")
KINDS = {
    "kproducer: kill -9": Kind(10, HOSTS, (0, 3), kill_script),
    "kconsumer: kill -9": Kind(10, CONSUMERS, (0, 3), kill_script),
    "Kafka: kill -9": Kind(6, ("Kafka",), (0, 3), kill_kafka),
    "PostgreSQL: kill -9": Kind(6, ("PostgreSQL",), (0, 3), partial(end_postgres, Postgres.kill)),
    "PostgreSQL: immediate shutdown": Kind(
        5, ("PostgreSQL",), (0, 3), partial(end_postgres, lambda postgres: postgres.stop("immediate"))
    ),
    "PostgreSQL: read-only": Kind(5, ("PostgreSQL",), (1, 8), partial(sick, READ_ONLY, READ_WRITE)),
    "PostgreSQL: connection limit reached": Kind(5, ("PostgreSQL",), (1, 8), partial(sick, NO_MORE, AS_MANY)),
    "PostgreSQL: put back to a backup": Kind(5, ("backup",), (0, 0), put_back),
    "kproducer: SIGTERM": Kind(7, HOSTS, (0, 3), end_script),
    "kconsumer: SIGTERM": Kind(7, CONSUMERS, (0, 3), end_script),
    "kproducer: suspended": Kind(3, HOSTS, (1, 8), suspend_script),
    "kconsumer: suspended": Kind(5, CONSUMERS, (4, 12), suspend_script),  # its session is 6 s
    "network: connections refused": Kind(10, NETWORKS, (0.5, 6), partial(network, "refuse")),
    "network: reset in the middle of a record": Kind(16, NETWORKS, (0, 0), reset),
    "network: silent (black hole)": Kind(10, NETWORKS, (1, 8), partial(network, "black hole")),
    "network: slow": Kind(8, NETWORKS, (2, 8), partial(network, "slow")),
}


def draw(chance: random.Random, count: int) -> list[Step]:
    """So many faults in random order; each kind at each of its places at least once, if there are enough."""
    each = [(name, place) for name, kind in KINDS.items() for place in kind.places]
    weights = [KINDS[name].weight / len(KINDS[name].places) for name, _ in each]
    chance.shuffle(first := each[:])
    drawn = [*first, *chance.choices(each, weights, k=max(0, count - len(first)))][:count]
    chance.shuffle(drawn)
    return [
        Step(name, place, chance.uniform(*KINDS[name].seconds), draw_pause(chance), int(10 ** chance.uniform(1, 4.3)))
        for name, place in drawn
    ]


def draw_pause(chance: random.Random) -> float:
    """Mostly short, so that faults meet; now and then long enough for everything to recover."""
    return chance.uniform(8, 14) if chance.random() < 0.2 else chance.uniform(0, 1.2)


# The run


@pytest.mark.chaos
def test_each_warning_is_recorded_once_whatever_breaks(wide_pipeline: Pipeline, figures: list[str]) -> None:
    pipeline = wide_pipeline
    again = f"CHAOS_SEED={SEED} CHAOS_FAULTS={COUNT} pytest -m chaos"
    figures.append(f"to repeat this run: {again}")
    print(again)
    chaos = Chaos(pipeline, random.Random(SEED))
    plan = draw(chaos.chance, COUNT)
    try:
        for place in (*HOSTS, *CONSUMERS):
            chaos.start(place)
        pipeline.has_rows(20)
        for step in plan:
            chaos.begin(step)
            chaos.rest(step.pause)
        chaos.mend_all()
        chaos.rest(1)
        assert_all_is_well_in_the_end(chaos, figures)
    except BaseException:
        print(chaos.servers.tail(60))
        raise
    finally:
        figures += table(chaos)
        chaos.mend_all()


def assert_all_is_well_in_the_end(chaos: Chaos, figures: list[str]) -> None:
    pipeline, whole_at = chaos.pipeline, time.monotonic()
    chaos.say("all is whole")
    for host in HOSTS:
        chaos.running[host].process.send_signal(signal.SIGTERM)
    assert {chaos.running.pop(host).ends(STOP_SECONDS) for host in HOSTS} <= {0, 1}
    for host in HOSTS:
        assert pipeline.producer("--flush-interval", "1", host=host).ends() == 0
    raised = pipeline.raised()
    chaos.say(f"{len(raised)} warnings raised, all are in Kafka")
    pipeline.drain()
    chaos.say("all is recorded")
    seconds = time.monotonic() - whole_at
    for name in CONSUMERS:
        assert chaos.running.pop(name).stop() == 0
    rows, messages = pipeline.rows(), pipeline.messages()
    stored = Counter(row["event_id"] for row in rows)
    lost, unlogged = raised.keys() - stored.keys(), stored.keys() - raised.keys()
    doubled = [event_id for event_id, times in stored.items() if times > 1]
    sent = Counter(event_id_of(message.value) for message in messages)
    chaos.lost, chaos.doubled = str(len(lost)), str(len(doubled))
    figures += [
        f"{len(raised)} warnings raised, {len(rows)} rows ({len(unlogged)} of producers that were killed before they "
        f"said so), {len(lost)} lost, {len(doubled)} doubled",
        f"{sum(times > 1 for times in sent.values())} warnings came through Kafka more than once; the scripts were "
        f"started {len(pipeline.scripts)} times; {time.monotonic() - chaos.began_at:.0f} s in all, the last "
        f"{seconds:.0f} to record what was left",
    ]
    assert sorted(lost) == []
    assert doubled == []
    assert len(unlogged) <= chaos.done["kproducer: kill -9"]
    assert {row["event_id"]: row["message"] for row in rows if row["event_id"] in raised} == raised
    assert stored.keys() == sent.keys()
    pipeline.assert_in_order(rows)
    assert pipeline.rejected() == []
    assert pipeline.consumed() == pipeline.ends()
    assert [line for script in pipeline.scripts for line in script.lines() if "Traceback" in line] == []


def event_id_of(value: bytes) -> str:
    return str(json.loads(value)["event_id"])


def table(chaos: Chaos) -> list[str]:
    """What was broken and how often, to be quoted; what was lost and doubled can't be told of each kind."""
    head = f"| {'what was broken':<42} | times | lost | doubled |"
    lines = [f"| {name:<42} | {chaos.done[name]:>5} | {'':>4} | {'':>7} |" for name in KINDS]
    total = f"| {'all, several at a time':<42} | {chaos.done.total():>5} | {chaos.lost:>4} | {chaos.doubled:>7} |"
    return [head, f"|{'-' * 44}|{'-' * 7}|{'-' * 6}|{'-' * 9}|", *lines, total]
