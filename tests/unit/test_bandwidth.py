import math
from datetime import UTC, datetime
from itertools import islice
from uuid import UUID

import psutil
import pytest

from eventkafkapostgres.bandwidth import (
    Sample,
    bandwidth,
    default_interfaces,
    format_rate,
    parse_rate,
    read_counters,
    samples,
)

OBSERVED_AT = datetime(2026, 11, 23, 16, 22, 4, 796005, tzinfo=UTC)


EVENT_ID = UUID("01a20b20-7007-7b5a-b044-fec6a3afb754")


# Rates


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("1000000", 1_000_000),
        ("0", 0),
        ("0.5", 0.5),
        (" 1MB/s ", 1_000_000),
        ("1 MB/s", 1_000_000),
        ("1.5kB/s", 1500),
        ("1KB/s", 1000),
        ("7B/s", 7),
        ("2GB/s", 2e9),
        ("1TB/s", 1e12),
        ("80Mbit/s", 10_000_000),
        ("8bit/s", 1),
        ("1Gbit/s", 125_000_000),
        ("1MiB/s", 1 << 20),
        ("1KiB/s", 1 << 10),
        ("8Mibit/s", 1 << 20),
    ],
)
def test_a_rate_is_read_in_bytes_a_second(text, bytes_per_second):
    assert parse_rate(text) == bytes_per_second


@pytest.mark.parametrize(
    "text",
    ["", "fast", "1MB", "MB/s", "1mB/s", "1Mb/s", "1 M B/s", "1iB/s", "1MB/h", "-1", "+1", "1e6", "1,5MB/s", ".5", "5.",
     "nan", "inf", "0x10", "\u0661", "1MB/s\x00", "1_000"],
)  # fmt: skip
def test_what_is_no_rate_is_refused_with_the_forms_that_are(text):
    with pytest.raises(ValueError, match=r"is no rate: write bytes a second as 1000000, 1MB/s, 80Mbit/s or 1MiB/s"):
        parse_rate(text)


def test_a_rate_beyond_all_numbers_is_refused():
    with pytest.raises(ValueError, match="beyond all rates"):
        parse_rate("9" * 400)


@pytest.mark.parametrize(
    ("bytes_per_second", "text"),
    [
        (0, "0.00 B/s"),
        (999, "999.00 B/s"),
        (999.994, "999.99 B/s"),
        (999.995, "1.00 kB/s"),
        (1000, "1.00 kB/s"),
        (3_932_801.7, "3.93 MB/s"),
        (999_999_999, "1.00 GB/s"),
        (12.5e12, "12500.00 GB/s"),
    ],
)
def test_a_rate_is_written_for_people(bytes_per_second, text):
    assert format_rate(bytes_per_second) == text


# The bandwidth


@pytest.mark.parametrize(
    ("before", "after", "seconds", "expected"),
    [
        ({"a": (100, 200)}, {"a": (1100, 2200)}, 1.0, (1000, 2000)),
        ({"a": (0, 0)}, {"a": (1000, 500)}, 2.0, (500, 250)),  # by the time that was measured
        ({"a": (0, 0), "b": (0, 0)}, {"a": (1, 2), "b": (10, 20)}, 1.0, (11, 22)),
        ({"a": (900, 100)}, {"a": (5, 400)}, 1.0, (0, 300)),  # a counter that went back
        ({"a": (900, 0), "b": (0, 0)}, {"a": (0, 0), "b": (7, 8)}, 1.0, (7, 8)),  # takes nothing from another
        ({}, {"a": (10**9, 10**9)}, 1.0, (0, 0)),  # an interface that came
        ({"a": (10**9, 10**9)}, {}, 1.0, (0, 0)),  # one that went
        ({"a": (1, 1)}, {"b": (9, 9)}, 1.0, (0, 0)),
        ({}, {}, 1.0, (0, 0)),
    ],
)
def test_bandwidth_is_what_the_counters_grew_by_over_the_time(before, after, seconds, expected):
    assert bandwidth(before, after, seconds) == expected


# Samples


@pytest.fixture
def counters(clock):
    """Each second eth0 sends 1000 bytes and receives 500."""
    return lambda: {"eth0": (round(1000 * clock.now), round(500 * clock.now)), "lo": (0, 0)}


def measure(clock, stop, counters, idle=lambda: math.inf, interval=1.0, interfaces=("eth0",)):
    def now():
        return datetime.fromtimestamp(clock.now, UTC)

    return samples(interval, interfaces, stop, idle, counters, clock, now)


def test_a_sample_tells_rates_by_the_second_and_which_interfaces(clock, stop, counters):
    (sample,) = islice(measure(clock, stop, counters), 1)
    assert sample == Sample(datetime.fromtimestamp(1001, UTC), ["eth0"], 1000, 500)


def test_ticks_do_not_drift_however_long_the_work_between_them_takes(clock, stop, counters):
    at = []
    for sample in islice(measure(clock, stop, counters), 1000):
        at.append(sample.observed_at.timestamp())
        clock.now += 0.3  # what is done with the sample
    assert at == [1001.0 + n for n in range(1000)]


def test_a_slow_idle_delays_its_own_tick_and_no_other(clock, stop, counters):
    def idle():
        clock.now += 0.03
        return math.inf

    at = [sample.observed_at.timestamp() for sample in islice(measure(clock, stop, counters, idle), 1000)]
    assert max(abs(seconds - (1001 + n)) for n, seconds in enumerate(at)) < 0.031


def test_idle_is_called_again_as_soon_as_it_asks_for(clock, stop, counters):
    called = []

    def idle():
        called.append(clock.now)
        return 0.25

    list(islice(measure(clock, stop, counters, idle), 1))
    assert called == [1000.0, 1000.25, 1000.5, 1000.75]


def test_a_rate_is_divided_by_the_time_that_was_measured(clock, stop, counters):
    measured = measure(clock, stop, counters)
    next(measured)
    clock.now += 1.7  # the next sample comes 0.7 s late
    assert next(measured) == Sample(
        datetime.fromtimestamp(1002.7, UTC), ["eth0"], pytest.approx(1000), pytest.approx(500)
    )


def test_ticks_that_were_missed_are_left_out_and_their_bytes_are_in_the_next(clock, stop, counters):
    measured = measure(clock, stop, counters)
    next(measured)
    clock.now += 60.3  # asleep
    after_sleep = next(measured)
    assert after_sleep.observed_at.timestamp() == 1061.3
    assert after_sleep.bytes_sent_per_second == pytest.approx(1000)
    assert next(measured).observed_at.timestamp() == 1062.0  # and on the old grid again


@pytest.mark.parametrize("asleep", [5.0, 5.999])
def test_no_sample_is_measured_over_next_to_no_time(clock, stop, counters, asleep):
    measured = measure(clock, stop, counters)
    next(measured)
    clock.now += asleep
    next(measured)
    late = clock.now
    next(measured)
    assert clock.now - late >= 0.5


def test_sampling_ends_when_stop_is_set_and_not_before(clock, stop, counters):
    stop.at = 1004.5
    assert len(list(measure(clock, stop, counters))) == 4


def test_an_interval_of_part_of_a_second_is_kept_too(clock, stop, counters):
    at = [s.observed_at.timestamp() for s in islice(measure(clock, stop, counters, interval=0.25), 4)]
    assert at == [1000.25, 1000.5, 1000.75, 1001.0]


def test_only_the_interfaces_asked_for_are_measured(clock, stop):
    def three():
        return {name: (round(n * clock.now), 0) for n, name in enumerate(("a", "b", "c"), 1)}

    (sample,) = islice(measure(clock, stop, three, interfaces=("c", "a")), 1)
    assert sample[1:] == (["a", "c"], 4, 0)


def test_an_interface_that_was_asked_for_may_go_and_come_back(clock, stop):
    there = {"a": (0, 0), "b": (0, 0)}
    measured = measure(clock, stop, lambda: dict(there), interfaces=("a", "b"))
    there["a"], there["b"] = (10, 0), (1, 0)
    assert next(measured)[1:] == (["a", "b"], 0, 0)  # the generator's first reading is now
    del there["b"]
    there["a"] = (20, 0)
    assert next(measured)[1:] == (["a"], 10, 0)
    there.update(a=(30, 0), b=(10**9, 0))
    assert next(measured)[1:] == (["a", "b"], 10, 0)
    there.update(a=(40, 0), b=(10**9 + 5, 0))
    assert next(measured)[1:] == (["a", "b"], 15, 0)


def nics(**up):
    """What psutil.net_if_stats() returns, in its own type."""
    nic = type(next(iter(psutil.net_if_stats().values())))
    return {
        name: nic(isup=is_up, duplex=0, speed=0, mtu=1500, flags="up,loopback,running" if name == "lo" else "up")
        for name, is_up in up.items()
    }


def test_without_a_choice_what_is_up_is_measured_but_not_loopback(monkeypatch):
    stats = nics(lo=True, eth0=True, eth1=False)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: stats)
    assert default_interfaces() == {"eth0"}


def test_an_interface_that_is_plugged_in_is_measured_from_then_on(clock, stop, monkeypatch):
    stats, plugged = nics(lo=True, eth0=True), nics(lo=True, eth0=True, usb0=True)
    there = {"lo": (0, 0), "eth0": (0, 0)}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: stats)
    measured = measure(clock, stop, lambda: dict(there), interfaces=())
    assert next(measured).interfaces == ["eth0"]
    stats = plugged
    there["usb0"] = (5, 5)
    assert next(measured)[1:] == (["eth0", "usb0"], 0, 0)
    there["usb0"] = (9, 9)
    assert next(measured)[1:] == (["eth0", "usb0"], 4, 4)


def test_an_interface_that_comes_up_is_measured_within_ten_samples(clock, stop, monkeypatch):
    # its counters were there all the time, as Linux has it
    stats, later = nics(lo=True, eth0=True, wlan0=False), nics(lo=True, eth0=True, wlan0=True)
    there = {"lo": (0, 0), "eth0": (0, 0), "wlan0": (0, 0)}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: stats)
    measured = measure(clock, stop, lambda: dict(there), interfaces=())
    assert next(measured).interfaces == ["eth0"]
    stats = later
    list(islice(measured, 10))
    there["wlan0"] = (9, 9)
    assert next(measured)[1:] == (["eth0", "wlan0"], 9, 9)


def test_the_real_counters_are_pairs_of_whole_numbers_by_interface():
    for name, (sent, received) in read_counters().items():
        assert isinstance(name, str)
        assert isinstance(sent, int)
        assert isinstance(received, int)
