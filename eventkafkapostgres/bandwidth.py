"""The bandwidth of this host: rates read and written, and samples taken from its counters."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import psutil

from eventkafkapostgres.console import Stop


class Sample(NamedTuple):
    """What one measurement of the bandwidth found."""

    observed_at: datetime
    interfaces: list[str]
    bytes_sent_per_second: float
    bytes_received_per_second: float


def parse_rate(text: str) -> float:
    """Bytes a second from '1000000', '1MB/s', '80Mbit/s' or '1MiB/s'. ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kKMGT]?)(i?)(B|bit)/s)?", text.strip(), re.ASCII)
    if not found or (found[3] and not found[2]):
        raise ValueError(f"{text!r} is no rate: write bytes a second as 1000000, 1MB/s, 80Mbit/s or 1MiB/s")
    number, prefix, binary, unit = found.groups()
    power = " KMGT".index((prefix or " ").upper())
    rate = float(number) * float((1024 if binary else 1000) ** power) / (8 if unit == "bit" else 1)
    if rate == math.inf:
        raise ValueError(f"{text[:20]}... is beyond all rates")
    return rate


def format_rate(bytes_per_second: float) -> str:
    """'3.93 MB/s': three figures or so, for people."""
    for unit in ("B/s", "kB/s", "MB/s", "GB/s"):
        if bytes_per_second < 999.995 or unit == "GB/s":
            break
        bytes_per_second /= 1000
    return f"{bytes_per_second:.2f} {unit}"


def bandwidth(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]], seconds: float
) -> tuple[float, float]:
    """Bytes sent and received a second between two readings of (bytes sent, bytes received) by interface.

    An interface that is in one reading only, or whose counter went back, adds nothing until the next reading.
    """
    shared = before.keys() & after.keys()
    sent, received = (sum(max(0, after[name][way] - before[name][way]) for name in shared) for way in (0, 1))
    return sent / seconds, received / seconds


def read_counters() -> dict[str, tuple[int, int]]:
    """Bytes sent and received by each interface of this host since it came up."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    return {name: (counter.bytes_sent, counter.bytes_recv) for name, counter in counters.items() if name.isprintable()}


def default_interfaces() -> set[str]:
    """The interfaces that are up, without loopback."""
    stats = psutil.net_if_stats()
    return {name for name, nic in stats.items() if nic.isup and "loopback" not in nic.flags.split(",")}


def samples(
    interval_seconds: float,
    interfaces: Sequence[str],
    stop: Stop,
    idle: Callable[[], float],
    counters: Callable[[], dict[str, tuple[int, int]]] = read_counters,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Sample]:
    """The bandwidth at each tick, until `stop` is set. Ticks are counted from the start, so the second doesn't drift.

    The time to the next tick is spent in idle(), which returns for how many seconds it has nothing to do.
    A tick that was missed (the host was asleep) is left out; its bytes are in the next one, over the time measured.
    """
    started_at = measured_at = clock()
    before, chosen = counters(), set(interfaces) or default_interfaces()
    tick = 1
    while True:
        while (left := started_at + tick * interval_seconds - clock()) > 0:
            if stop.wait(min(left, idle())):
                return
        after, at = counters(), clock()
        if not interfaces and (tick % 10 == 0 or after.keys() != before.keys()):
            chosen = default_interfaces()
        measured = {name: after[name] for name in sorted(after.keys() & chosen)}
        yield Sample(now(), list(measured), *bandwidth(before, measured, at - measured_at))
        before, measured_at = after, at
        tick = math.floor((at - started_at) / interval_seconds + 0.5) + 1


def interface(name: str) -> str:
    """The name of an interface that is there."""
    if name not in (there := read_counters()):
        raise ValueError(f"there is no interface {name!r}: this host has {', '.join(sorted(there))}")
    return name
