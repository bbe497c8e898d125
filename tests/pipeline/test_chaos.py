"""Minutes of random faults in every part of the pipeline; at the end each warning that was raised is one row.

$ CHAOS_SEED=7 pytest -m chaos    # the same faults again; CHAOS_FAULTS sets how many
"""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos import CONSUMERS, HOSTS, KINDS, Chaos, draw
from pipeline import Pipeline, encoded, new_pipeline, wait_until, warning

from servers import Servers

MARKER = "marker"  # the host of warnings that show who works


@pytest.fixture
def chaos(cluster: Servers, tmp_path: Path) -> Iterator[Chaos]:
    """A topic of four partitions on three brokers, three producers and two consumers."""
    with new_pipeline(cluster, tmp_path, partitions=4) as pipeline:
        made = Chaos(pipeline)
        for place in (*HOSTS, *CONSUMERS):
            made.start(place)
        pipeline.has_rows(20)
        yield made
        made.fix_all()


@pytest.mark.chaos
def test_each_warning_is_recorded_once_whatever_breaks(
    chaos: Chaos, figures: list[str], seed: Callable[[str], int]
) -> None:
    """100 faults and their pauses are five minutes or more."""
    number, amount = seed("CHAOS_SEED"), int(os.environ.get("CHAOS_FAULTS") or 100)
    figures.append(f"to repeat this run: CHAOS_SEED={number} CHAOS_FAULTS={amount} pytest -m chaos")
    print(figures[-1])
    try:
        for step in draw(random.Random(number), amount):
            chaos.begin(step)
            chaos.rest(step.pause)
        chaos.fix_all()
        chaos.say("all is whole")
        wait_until(lambda: chaos.rest(0.1) or not chaos.runs, "ended with --until-empty")
        assert_who_is_there_works(chaos)
        assert_each_warning_is_one_row(chaos, figures)
    finally:
        figures += table(chaos)


def assert_who_is_there_works(chaos: Chaos) -> None:
    """Each producer's warnings arrive, and so does what each consumer alone is there for."""
    for host in HOSTS:
        before = set(chaos.running[host].raised())
        wait_until(lambda: stored(chaos.pipeline) & (set(chaos.running[host].raised()) - before), f"heard of {host}")  # noqa: B023
    for name in CONSUMERS:
        others = [chaos.running[other] for other in CONSUMERS if other != name]
        for other in others:
            other.process.send_signal(signal.SIGSTOP)
        ids = send_markers(chaos.pipeline)
        wait_until(lambda: ids <= stored(chaos.pipeline), f"recorded by {name} alone")  # noqa: B023
        chaos.say(f"{name} works")
        for other in others:
            other.process.send_signal(signal.SIGCONT)


def stored(pipeline: Pipeline) -> set[str]:
    return {row["event_id"] for row in pipeline.sql("select event_id from bandwidth_exceeds")}


def send_markers(pipeline: Pipeline) -> set[str]:
    """A warning to each partition; their event_ids."""
    markers = [warning(MARKER) for _ in range(pipeline.partitions)]
    for partition, marker in enumerate(markers):
        pipeline.send([encoded(marker)], MARKER.encode(), partition)
    return {marker["event_id"] for marker in markers}


def assert_each_warning_is_one_row(chaos: Chaos, figures: list[str]) -> None:
    pipeline, whole_at = chaos.pipeline, time.monotonic()
    for host in HOSTS:
        chaos.running[host].process.send_signal(signal.SIGTERM)
    assert {chaos.running.pop(host).ends() for host in HOSTS} <= {0, 1}
    for host in HOSTS:
        assert pipeline.producer("--flush-interval", "1", host=host).ends() == 0
    raised = pipeline.raised()
    chaos.say(f"{len(raised)} warnings raised, all are in Kafka")
    pipeline.drain()
    chaos.say("all is recorded")
    seconds = time.monotonic() - whole_at
    for name in CONSUMERS:
        assert chaos.running.pop(name).stop() == 0
    rows = [row for row in pipeline.rows() if row["host"] != MARKER]
    times = Counter(row["event_id"] for row in rows)
    lost, unlogged = raised.keys() - times.keys(), times.keys() - raised.keys()
    duplicated = [event_id for event_id, count in times.items() if count > 1]
    sent: dict[str, list[str]] = {}  # where each stands in the topic
    for message in pipeline.messages():
        if message.key != MARKER.encode():
            event_id = json.loads(message.value)["event_id"]
            sent.setdefault(event_id, []).append(f"{message.partition}/{message.offset}")
    figures += [
        f"{len(raised)} warnings raised, {len(rows)} rows ({len(unlogged)} of producers that were killed before they "
        f"logged them), {len(lost)} lost, {len(duplicated)} duplicated",
        f"{sum(len(places) > 1 for places in sent.values())} of those in the last topic are in it more than once; "
        f"the scripts were started {len(pipeline.scripts)} times; {time.monotonic() - chaos.began_at:.0f} s in all, "
        f"the last {seconds:.0f} to record what was left",
    ]
    assert {event_id: sent.get(event_id, "not in the topic") for event_id in lost} == {}
    assert duplicated == []
    assert len(unlogged) <= chaos.done["kproducer: kill -9"]
    assert {row["event_id"]: row["message"] for row in rows if row["event_id"] in raised} == raised
    assert sent.keys() <= times.keys()
    assert_in_order(rows)
    assert pipeline.rejected() == []
    assert pipeline.consumed() == pipeline.ends()
    assert [line for script in pipeline.scripts for line in script.lines() if "Traceback" in line] == []


def assert_in_order(rows: list[dict[str, Any]]) -> None:
    """Of each host and partition in the order in which they were observed; a new partition changes a host's one."""
    rows = sorted(rows, key=lambda row: row["offset"])
    for place in {(row["topic"], row["partition"], row["host"]) for row in rows if " deleted" not in row["topic"]}:
        observed = [row["observed_at"] for row in rows if (row["topic"], row["partition"], row["host"]) == place]
        assert observed == sorted(observed)


def table(chaos: Chaos) -> list[str]:
    """What was broken and how often, to be quoted."""
    head = f"| {'what was broken':<42} | times |"
    lines = [f"| {name:<42} | {chaos.done[name]:>5} |" for name in KINDS]
    return [head, f"|{'-' * 44}|{'-' * 7}|", *lines, f"| {'all, several at a time':<42} | {chaos.done.total():>5} |"]
