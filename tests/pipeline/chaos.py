"""Random faults in every part of the pipeline, several at a time, and how each of them is over again.

All that chance decides is drawn from a seed before anything starts. Several faults are in force at a time, for each is
drawn regardless of those that are not over yet.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import psycopg2
from pipeline import QUICK, Pipeline, Script, wait_until

from servers import Mode, Postgres, Proxy

HOSTS = ("web-1", "web-2", "web-3")
CONSUMERS = ("consumer 1", "consumer 2")
BROKERS = ("broker 1", "broker 2", "broker 3")
KAFKAS_NETWORK, POSTGRES_NETWORK = NETWORKS = ("Kafka's network", "PostgreSQL's network")
MOST_PARTITIONS = 8

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


@dataclass
class UntilEmpty:
    """A run with --until-empty, and what was in the topic at its start. None: the database was restored meanwhile."""

    script: Script
    ends: dict[int, int] | None


class Chaos:
    """A pipeline of producers and consumers with what is broken in it at the moment."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.servers = pipeline, pipeline.servers
        self.began_at = time.monotonic()
        self.running: dict[str, Script] = {}
        self.runs: list[UntilEmpty] = []
        self.broken: dict[str, tuple[float, Heal]] = {}  # by place: until when, and how to fix it
        self.done: Counter[str] = Counter()

    def start(self, place: str) -> None:
        """Start a producer or a consumer."""
        if place in HOSTS:
            how, environment = ("--forever", "--flush-interval", "2"), self.pipeline.environment(proxied=True)
            self.running[place] = self.pipeline.producer(*how, host=place, environment=environment)
        else:
            self.running[place] = self.pipeline.consumer(environment=self.pipeline.environment(proxied=True, **QUICK))

    def begin(self, step: Step) -> None:
        """Break something; what is still broken at the same place is fixed first, unless this is over at once."""
        if step.seconds:
            self.fix(step.place)
        rows: object = "?"
        with suppress(psycopg2.Error):
            rows = self.pipeline.count()
        how_much = f"for {step.seconds:.1f} s" if step.seconds else f"({step.size})"
        self.say(f"{step.kind}: {step.place} {how_much}; {rows} rows")
        heal = KINDS[step.kind].begin(self, step)
        self.done[step.kind] += 1
        if step.seconds:
            self.broken[step.place] = time.monotonic() + step.seconds, heal

    def fix(self, place: str) -> None:
        if place in self.broken:
            _, heal = self.broken.pop(place)
            heal()

    def fix_all(self) -> None:
        for place in list(self.broken):
            self.fix(place)

    def rest(self, seconds: float) -> None:
        """Let time pass, and fix what was broken for long enough."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            for place in [place for place, (until, _) in self.broken.items() if until < time.monotonic()]:
                self.fix(place)
            for name, script in self.running.items():
                assert script.process.poll() is None, f"{name} ended by itself: {script.lines()[-5:]}"
            for run in [run for run in self.runs if run.script.process.poll() is not None]:
                self.runs.remove(run)
                self.assert_done(run)
            time.sleep(0.02)

    def assert_done(self, run: UntilEmpty) -> None:
        """A run with --until-empty has recorded what it had to, or gave up since a server was away for too long."""
        status, lines = run.script.ends(), run.script.lines()
        if status == 1 and any("gave up" in line for line in lines):
            self.say("  --until-empty gave up")
            return
        assert status == 0, lines
        if run.ends is not None:
            self.servers.postgres.start()
            self.servers.kafka.start()
            consumed = self.pipeline.consumed()
            assert {number: consumed.get(number, 0) >= end for number, end in run.ends.items()} == dict.fromkeys(
                run.ends, True
            ), f"{consumed} recorded when {run.script.name} ended, but {run.ends} were there at its start"

    def say(self, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {time.monotonic() - self.began_at:6.1f} s  {what}")

    def administer(self, statement: str) -> None:
        """As superuser, in a database where no sickness of the tests' one is felt."""
        for each in statement.format(database=self.pipeline.database).split(";"):
            self.pipeline.sql(each, dbname="postgres")


# What is broken, and how it is fixed


def kill_script(chaos: Chaos, step: Step) -> Heal:
    chaos.running.pop(step.place).kill()
    return lambda: chaos.start(step.place)


def end_script(chaos: Chaos, step: Step) -> Heal:
    script = chaos.running.pop(step.place)
    script.process.send_signal(signal.SIGTERM)
    status = script.ends()
    started = any(" started: " in line for line in script.lines())  # before, Python itself may take the signal
    assert status in {0, *([1] if step.place in HOSTS else []), *([] if started else [-signal.SIGTERM])}
    return lambda: chaos.start(step.place)


def suspend_script(chaos: Chaos, step: Step) -> Heal:
    script = chaos.running[step.place]
    script.process.send_signal(signal.SIGSTOP)
    return lambda: script.process.send_signal(signal.SIGCONT)


def kill_kafka(chaos: Chaos, step: Step) -> Heal:
    number = BROKERS.index(step.place) + 1 if step.place in BROKERS else None
    chaos.servers.kafka.kill(number)
    return chaos.servers.kafka.start  # all that are down: one of three alone does not answer


def end_postgres(how: Callable[[Postgres], None], chaos: Chaos, step: Step) -> Heal:
    how(chaos.servers.postgres)
    return chaos.servers.postgres.start


def proxies(chaos: Chaos, step: Step) -> list[Proxy]:
    return chaos.servers.kafka_proxies if step.place == KAFKAS_NETWORK else [chaos.servers.postgres_proxy]


def network(mode: Mode, chaos: Chaos, step: Step) -> Heal:
    """Slow: 2 to 200 kB/s, and up to 0.4 s each way."""
    return change_network(mode, 2000 + 10 * step.size, step.size / 50_000, chaos, step)


def change_network(mode: Mode, bytes_per_second: int, latency_seconds: float, chaos: Chaos, step: Step) -> Heal:
    for proxy in proxies(chaos, step):
        proxy.bytes_per_second, proxy.latency_seconds = bytes_per_second, latency_seconds
        proxy.mode = mode
    return lambda: set_mode(proxies(chaos, step), "pass")


def set_mode(changed: list[Proxy], mode: Mode) -> None:
    for proxy in changed:
        proxy.mode = mode


def reset(chaos: Chaos, step: Step) -> Heal:
    for proxy in proxies(chaos, step):
        proxy.reset(after_bytes=step.size)
    return lambda: None


def sick(sicken: tuple[str, ...], cure: tuple[str, ...], chaos: Chaos, step: Step) -> Heal:
    chaos.servers.postgres.start()
    way = step.size % len(sicken)
    chaos.administer(sicken[way])
    return lambda: chaos.administer(cure[way])


RESTORE = """
update consumed_offsets set next_offset = next_offset - least(next_offset, %s) where topic_id = %s and partition = %s
returning next_offset"""
FORGET_ROWS = 'delete from bandwidth_exceeds where topic = %s and partition = %s and "offset" >= %s'


def restore(chaos: Chaos, step: Step) -> Heal:
    """What a backup of some seconds ago would hold of one partition: what follows its offset is gone."""
    pipeline = chaos.pipeline
    partition = step.size % pipeline.partitions
    for server in (chaos.servers.postgres, chaos.servers.kafka):
        server.start()
    for run in chaos.runs:
        run.ends = None
    connection = chaos.servers.postgres.connect("postgres", dbname=pipeline.database)
    connection.readonly = False
    with closing(connection), suppress(psycopg2.errors.UndefinedTable), connection, connection.cursor() as cursor:
        cursor.execute("set lock_timeout = '40 s'")
        topic_id = str(pipeline.described()["topic_id"])
        cursor.execute(RESTORE, (step.size // 100, topic_id, partition))
        for (next_offset,) in cursor.fetchall():
            cursor.execute(FORGET_ROWS, (pipeline.topic, partition, next_offset))
            chaos.say(f"  {cursor.rowcount} rows gone from partition {partition}")
    return lambda: None


def add_partition(chaos: Chaos, step: Step) -> Heal:
    pipeline, kafka = chaos.pipeline, chaos.servers.kafka
    if pipeline.partitions < MOST_PARTITIONS:
        kafka.start()
        with kafka.admin() as admin:
            admin.create_partitions({pipeline.topic: pipeline.partitions + 1})
        pipeline.partitions += 1
    return lambda: None


def recreate_topic(chaos: Chaos, step: Step) -> Heal:
    """Delete the topic when all that Kafka has acknowledged is recorded, and create it again.

    The producers sleep meanwhile, and are cut off from Kafka: none of them hears of an acknowledgement of what comes
    into the topic after it was drained, so all of that is sent again. The rows of the old topic get another name, for
    they are no longer in Kafka when the database is restored.
    """
    pipeline = chaos.pipeline
    chaos.fix_all()
    for name in HOSTS:
        chaos.running[name].process.send_signal(signal.SIGSTOP)
    set_mode(chaos.servers.kafka_proxies, "refuse")
    pipeline.drain()
    pipeline.sql("update bandwidth_exceeds set topic = topic || ' deleted' where topic = %s", pipeline.topic)
    pipeline.delete_topic()
    pipeline.create_topic(1 + step.size % pipeline.partitions)  # with as many partitions as before, or fewer
    for run in chaos.runs:
        run.ends = None
    set_mode(chaos.servers.kafka_proxies, "pass")
    for name in HOSTS:
        chaos.running[name].process.send_signal(signal.SIGCONT)
    return lambda: None


def run_until_empty(chaos: Chaos, step: Step) -> Heal:
    """Beside the services, in the same group."""
    chaos.servers.kafka.start()
    wait_until(lambda: chaos.pipeline.sent() >= 0, "answered by Kafka")
    ends = chaos.pipeline.ends()
    environment = chaos.pipeline.environment(proxied=True, **QUICK)
    chaos.runs.append(UntilEmpty(chaos.pipeline.consumer("--until-empty", environment=environment), ends))
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
KINDS = {
    "kproducer: kill -9": Kind(10, HOSTS, (0, 3), kill_script),
    "kconsumer: kill -9": Kind(10, CONSUMERS, (0, 3), kill_script),
    "Kafka: kill -9 of all brokers": Kind(3, ("Kafka",), (0, 3), kill_kafka),
    "Kafka: kill -9 of one broker": Kind(7, BROKERS, (0, 8), kill_kafka),
    "PostgreSQL: kill -9": Kind(6, ("PostgreSQL",), (0, 3), partial(end_postgres, Postgres.kill)),
    "PostgreSQL: immediate shutdown": Kind(
        5, ("PostgreSQL",), (0, 3), partial(end_postgres, lambda postgres: postgres.stop("immediate"))
    ),
    "PostgreSQL: read-only": Kind(5, ("PostgreSQL",), (1, 8), partial(sick, READ_ONLY, READ_WRITE)),
    "PostgreSQL: connection limit reached": Kind(5, ("PostgreSQL",), (1, 8), partial(sick, NO_MORE, AS_MANY)),
    "PostgreSQL: restored from a backup": Kind(5, ("backup",), (0, 0), restore),
    "kproducer: SIGTERM": Kind(7, HOSTS, (0, 3), end_script),
    "kconsumer: SIGTERM": Kind(7, CONSUMERS, (0, 3), end_script),
    "kproducer: suspended": Kind(3, HOSTS, (1, 8), suspend_script),
    "kconsumer: suspended": Kind(5, CONSUMERS, (4, 12), suspend_script),  # its session is 6 s
    "kconsumer: --until-empty beside them": Kind(7, ("runs",), (0, 0), run_until_empty),
    "topic: partition added": Kind(5, ("topic",), (0, 0), add_partition),
    "topic: deleted and recreated": Kind(4, ("topic",), (0, 0), recreate_topic),
    "network: connections refused": Kind(10, NETWORKS, (0.5, 6), partial(network, "refuse")),
    "network: reset in the middle of a record": Kind(16, NETWORKS, (0, 0), reset),
    "network: silent (black hole)": Kind(10, NETWORKS, (1, 8), partial(network, "black hole")),
    "network: slow": Kind(8, NETWORKS, (2, 8), partial(network, "slow")),
    "network: 0.3 s each way": Kind(8, NETWORKS, (5, 15), partial(change_network, "slow", 10_000_000, 0.3)),
}


def draw(chance: random.Random, amount: int) -> list[Step]:
    """So many faults in random order; each kind at each of its places at least once, if there are enough."""
    each = [(name, place) for name, kind in KINDS.items() for place in kind.places]
    weights = [KINDS[name].weight / len(KINDS[name].places) for name, _ in each]
    chance.shuffle(first := each[:])
    drawn = [*first, *chance.choices(each, weights, k=max(0, amount - len(first)))][:amount]
    chance.shuffle(drawn)
    return [
        Step(name, place, chance.uniform(*KINDS[name].seconds), draw_pause(chance), int(10 ** chance.uniform(1, 4.3)))
        for name, place in drawn
    ]


def draw_pause(chance: random.Random) -> float:
    """Mostly short, so that faults meet; now and then long enough for everything to recover."""
    return chance.uniform(8, 14) if chance.random() < 0.2 else chance.uniform(0, 1.2)
