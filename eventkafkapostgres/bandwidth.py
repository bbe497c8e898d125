"""How much bandwidth this host uses: the interfaces that count, and their counters, which become samples."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil

from eventkafkapostgres.outages import SettingsError

INTERVAL_SECONDS = (0.01, 3600.0)  # the shortest and the longest --interval
FLUSH_INTERVAL_SECONDS = (0.01, 86400.0)  # the shortest and the longest --flush-interval
LISTED_NAMES = 8  # a log line names at most so many of a host's interfaces

SYS_CLASS_NET = Path("/sys/class/net")
ROUTE_FILES = (Path("/proc/net/route"), Path("/proc/net/ipv6_route"))
ETHERNET, LOOPBACK = "1", "772"  # ARPHRD_ETHER, ARPHRD_LOOPBACK in /sys/class/net/X/type
REJECTED_ROUTE = 0x200  # RTF_REJECT: an unreachable route carries nothing

Counters = Mapping[str, tuple[int, int]]  # by interface: bytes sent, bytes received

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One measurement of the bandwidth, over the `seconds` that end at `observed_at`."""

    observed_at: datetime
    seconds: float
    interfaces: list[str]
    bytes_sent_per_second: float
    bytes_received_per_second: float

    @property
    def bytes_per_second(self) -> float:
        return round(self.bytes_sent_per_second + self.bytes_received_per_second, 1)


# Counters and rates


def bandwidth(before: Counters, after: Counters, seconds: float) -> tuple[float, float]:
    """Bytes sent and received per second between two readings, rounded to tenths.

    An interface that is in one reading only, or whose counter went back, adds nothing until the next reading.
    """
    shared = before.keys() & after.keys()
    sent, received = (sum(max(0, after[name][way] - before[name][way]) for name in shared) for way in (0, 1))
    return round(sent / seconds, 1), round(received / seconds, 1)


# Settings


def interface_name(text: str) -> str:
    """A name that an interface can have, whether it is there or not: one that comes later is waited for."""
    if not re.fullmatch(r"(?!\.\.?$)[^\s/:]+", text) or not text.isprintable() or len(text.encode()) > 15:
        raise ValueError(f"{text!r} is not an interface name: 1 to 15 bytes without space, '/' and ':'")
    return text


def check_intervals(interval: float, flush_interval: float) -> None:
    """SettingsError where --interval or --flush-interval is out of bounds, or the second is the shorter one."""
    for option, value, (shortest, longest) in (
        ("--interval", interval, INTERVAL_SECONDS),
        ("--flush-interval", flush_interval, FLUSH_INTERVAL_SECONDS),
    ):
        if not shortest <= value <= longest:
            raise SettingsError(f"{option} must be from {shortest:g} to {longest:g} seconds, not {value:g}")
    if flush_interval < interval:
        raise SettingsError(
            f"--flush-interval ({flush_interval:g} s) must not be shorter than --interval ({interval:g} s)"
        )


# The interfaces that count


def default_route_interfaces(route_files: Collection[Path] = ROUTE_FILES) -> set[str]:
    """The interfaces that hold a default route, from Linux's tables for IPv4 and IPv6."""
    found = set()
    for path in route_files:
        try:
            lines = path.read_text(errors="surrogateescape").splitlines()
        except OSError:  # no such protocol, or not Linux
            continue
        for fields in map(str.split, lines):
            if len(fields) == 10:  # IPv6: destination, its prefix's length, six more, flags, interface
                name, flags, is_default = fields[9], fields[8], (set(fields[0]), fields[1]) == ({"0"}, "00")
            elif len(fields) == 11 and fields[0] != "Iface":  # IPv4: interface, destination, gateway, flags, …, mask
                name, flags, is_default = fields[0], fields[3], fields[1] == fields[7] == "00000000"
            else:
                continue
            if is_default and not int(flags, 16) & REJECTED_ROUTE:
                found.add(name)
    return found


class Interfaces:
    """The interfaces that are measured, chosen so that each byte on the host's links counts once.

    The `wanted` ones, as soon and as long as they are there. Where none is wanted, of those that are up: the ones with
    a device behind them (what passes a bridge, a VLAN, a tunnel or a container's veth passes one of these, too); where
    there is none, as in a container, those that hold a default route; else all but loopback.
    """

    def __init__(
        self,
        wanted: Collection[str] = (),
        sys_class_net: Path = SYS_CLASS_NET,
        route_files: Collection[Path] = ROUTE_FILES,
    ) -> None:
        self.wanted = sorted(set(wanted))
        self.sys_class_net = sys_class_net
        self.route_files = route_files
        self.measured: list[str] = []
        self.reason = ""
        self.errors: dict[str, str] = {}

    def update(self, there: Collection[str]) -> None:
        """Choose among the interfaces that are there; a change is logged once."""
        before = self.measured, self.reason
        self.choose(there)
        if (self.measured, self.reason) != before:
            level = logging.INFO if self.measured and len(self.measured) >= len(self.wanted) else logging.WARNING
            logger.log(level, "%s", self.describe(there))

    def choose(self, there: Collection[str]) -> None:
        """The same without a line in the log: --check prints describe()."""
        if self.wanted:
            self.measured, self.reason = [name for name in self.wanted if name in there], "--interface"
            return
        for reason, choose in (
            ("with a device", self._with_device),
            ("with a default route", self._with_default_route),
            ("all but loopback", self._up),
        ):
            self.measured, self.reason = sorted(choose(there)), reason
            if self.measured:
                return

    def describe(self, there: Collection[str]) -> str:
        """What choose() chose, and why: 'measuring eth0 (with a device)'."""
        text = f"measuring {', '.join(self.measured)} ({self.reason})" if self.measured else "nothing is measured"
        if missing := [name for name in self.wanted if name not in self.measured]:
            names = sorted(there)[:LISTED_NAMES] + ["…"] * (len(there) > LISTED_NAMES)
            return f"{text}: no interface {', '.join(missing)}; this host has {', '.join(names) or 'none'}"
        return text if self.measured else f"{text}: no interface but loopback is up"

    def report_once(self, what: str, error: OSError) -> None:
        """Log an error that may come with each tick, once."""
        if self.errors.get(what) != str(error):
            self.errors[what] = str(error)
            logger.warning("can't read %s: %s", what, error)

    def _with_device(self, there: Collection[str]) -> set[str]:
        """Those with a device, without one below such another: a VF below netvsc, the port that leads to a switch."""
        sys = self.sys_class_net
        if not os.path.isdir(sys):  # macOS: Ethernet and Wi-Fi are en0, en1, …; bridges, tunnels and AirDrop are not
            return self._up([name for name in there if re.fullmatch(r"en\d+", name)])
        found = self._up([name for name in there if os.path.exists(sys / name / "device")])
        above = {name: [sys / name / "master", *(sys / name).glob("upper_*")] for name in found}
        return {name for name in found if not any(os.path.exists(upper / "device") for upper in above[name])}

    def _with_default_route(self, there: Collection[str]) -> set[str]:
        """Those that hold a default route. What passes a tunnel passes the Ethernet beside it."""
        found = self._up(default_route_interfaces(self.route_files).intersection(there))
        return {name for name in found if self._read(name, "type") == ETHERNET} or found

    def _up(self, names: Collection[str]) -> set[str]:
        """Those that are up, without loopback."""
        in_sys = {name for name in names if os.path.isdir(self.sys_class_net / name)}
        found = {
            name
            for name in in_sys
            if self._read(name, "operstate") in ("up", "unknown")  # unknown: its driver doesn't say, as with tun
            and self._read(name, "type") != LOOPBACK
        }
        others = set(names) - in_sys  # not Linux, or a /sys of another network namespace
        return found | self._up_by_psutil(others) if others else found

    def _read(self, name: str, file: str) -> str:
        """A file of an interface; '' where it can't be read."""
        try:
            return (self.sys_class_net / name / file).read_text().strip()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # else it has just gone
                self.report_once(f"the state of interface {name}, it is not measured", error)
            return ""

    def _up_by_psutil(self, names: Collection[str]) -> set[str]:
        """_up() where /sys doesn't say it."""
        try:
            stats = psutil.net_if_stats()
        except OSError as error:  # of one interface; psutil doesn't say which, nor anything of the others
            self.report_once("which interfaces are up", error)
            return {name for name in names if not name.startswith("lo")}
        up = {name for name, nic in stats.items() if nic.isup and "loopback" not in nic.flags.split(",")}
        return up.intersection(names)


# Counters become samples


def read_counters() -> dict[str, tuple[int, int]]:
    """Bytes sent and received by each interface of this host since it came up."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    return {name: (counter.bytes_sent, counter.bytes_recv) for name, counter in counters.items() if name.isprintable()}


def samples(
    interval_seconds: float,
    interfaces: Interfaces,
    wait: Callable[[float], bool],
    pause: Callable[[], float],
    counters: Callable[[], Counters] = read_counters,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[Sample | None]:
    """The bandwidth at each tick, and None between two ticks whenever the caller has work.

    wait() waits for so many seconds, and ends the sampling where it is true, as Stop.wait() is. pause() says for how
    many seconds the caller has no work. Ticks are counted from the start, so the second doesn't drift. A tick that was
    missed (the host was asleep) is left out; its bytes are in the next, over the measured time.
    """
    started_at = measured_at = tick_at = clock()
    before: Counters | None = None
    while not wait(max(0.0, min(tick_at - clock(), pause()))):
        at = clock()
        if at < tick_at:
            yield None
            continue
        try:
            after = counters()
        except OSError as error:
            interfaces.report_once("the interfaces' counters, nothing is measured", error)
        else:
            interfaces.update(after)
            if before is not None:
                measured = {name: after[name] for name in interfaces.measured}
                seconds = at - measured_at
                yield Sample(now(), seconds, list(measured), *bandwidth(before, measured, seconds))
            before, measured_at = after, at
        tick = math.floor((at - started_at) / interval_seconds + 0.5) + 1
        tick_at = started_at + tick * interval_seconds
