import errno
import itertools
import logging
import math
import os
from datetime import UTC, datetime
from itertools import islice

import psutil
import pytest
from fake_sys import LOOPBACK, TUNNEL, add_interface

from eventkafkapostgres.bandwidth import (
    Interfaces,
    Sample,
    bandwidth,
    check_intervals,
    default_route_interfaces,
    interface_name,
    read_counters,
    samples,
)

# The bandwidth


@pytest.mark.parametrize(
    ("before", "after", "seconds", "expected"),
    [
        ({"a": (100, 200)}, {"a": (1100, 2200)}, 1.0, (1000, 2000)),
        ({"a": (0, 0)}, {"a": (1000, 500)}, 2.0, (500, 250)),  # by the time that was measured
        ({"a": (0, 0), "b": (0, 0)}, {"a": (1, 2), "b": (10, 20)}, 1.0, (11, 22)),
        ({"a": (900, 100)}, {"a": (5, 400)}, 1.0, (0, 300)),  # a counter that went back
        ({"a": (900, 0), "b": (0, 0)}, {"a": (0, 0), "b": (7, 8)}, 1.0, (7, 8)),  # takes nothing from another
        ({"a": (2**32 - 1, 0)}, {"a": (99, 0)}, 1.0, (0, 0)),  # one of 32 bits that began again
        ({}, {"a": (10**9, 10**9)}, 1.0, (0, 0)),  # an interface that came
        ({"a": (10**9, 10**9)}, {}, 1.0, (0, 0)),  # one that went
        ({"a": (1, 1)}, {"b": (9, 9)}, 1.0, (0, 0)),
        ({}, {}, 1.0, (0, 0)),
    ],
)
def test_bandwidth_is_what_the_counters_grew_by_over_the_time(before, after, seconds, expected):
    assert bandwidth(before, after, seconds) == expected


# Settings


@pytest.mark.parametrize("name", ["eth0", "wg0", "eth0.100", "br-1a2b3c4d5e6f", "x" * 15, "é" * 7, "...", "eth0@x"])
def test_a_name_that_an_interface_can_have_is_accepted_although_none_has_it(name):
    assert interface_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a b", "a/b", "eth0:1", "x" * 16, "é" * 8, "a\n", "\x1b[0m", "\udcff"])
def test_a_name_that_no_interface_can_have_is_refused(name):
    with pytest.raises(ValueError, match="is not an interface name: 1 to 15 bytes without space") as caught:
        interface_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("interval", "flush_interval"), [(1, 120), (1, 1), (0.01, 0.01), (3600, 86400), (15, 15)])
def test_intervals_within_bounds_and_in_order_are_accepted(interval, flush_interval):
    check_intervals(interval, flush_interval)


@pytest.mark.parametrize(
    ("interval", "flush_interval", "message"),
    [
        (5, 1, "--flush-interval (1 s) must not be shorter than --interval (5 s)"),
        (1e10, 1e11, "--interval must be from 0.01 to 3600 seconds, not 1e+10"),
        (1e-320, 120, "--interval must be from 0.01 to 3600 seconds, not 9.99989e-321"),
        (math.inf, 120, "--interval must be from 0.01 to 3600 seconds, not inf"),
        (math.nan, 120, "--interval must be from 0.01 to 3600 seconds, not nan"),
        (-1, 120, "--interval must be from 0.01 to 3600 seconds, not -1"),
        (1, 1e10, "--flush-interval must be from 0.01 to 86400 seconds, not 1e+10"),
        (0.01, 0.001, "--flush-interval must be from 0.01 to 86400 seconds, not 0.001"),
    ],
)
def test_intervals_out_of_bounds_or_order_are_refused(interval, flush_interval, message):
    with pytest.raises(ValueError, match="must") as caught:
        check_intervals(interval, flush_interval)
    assert str(caught.value) == message


# The interfaces that count


@pytest.fixture
def sys_class_net(tmp_path):
    path = tmp_path / "sys" / "class" / "net"
    add_interface(path, "lo", operstate="unknown", kind=LOOPBACK)
    return path


ROUTES = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def ipv4_route(name, destination="00000000", mask="00000000", flags="0003"):
    return f"{name}\t{destination}\t010200C0\t{flags}\t0\t0\t0\t{mask}\t0\t0\t0\n"


def ipv6_route(name, destination="0" * 32, length="00", flags="00000003"):
    return f"{destination} {length} {'0' * 32} 00 {'fe80' + '0' * 28} 00000400 00000002 00000000 {flags} {name:>8}\n"


@pytest.fixture
def interfaces(sys_class_net, tmp_path):
    """Interfaces of a host of our own; its routes are given as text, where there are any."""

    def made(*wanted, ipv4=None, ipv6=None):
        files = []
        for name, text in (("route", ipv4), ("ipv6_route", ipv6)):
            files.append(tmp_path / name)
            if text is not None:
                files[-1].write_text(text)
        return Interfaces(wanted, sys_class_net, files)

    return made


def chosen(interfaces, sys_class_net):
    interfaces.choose([path.name for path in sys_class_net.iterdir()])
    return interfaces.measured, interfaces.reason


PCI, USB, VMBUS = "pci0000:00/0000:00:03.0", "pci0000:00/usb1/1-1", "vmbus/1"


@pytest.mark.parametrize(
    ("there", "measured"),
    [
        pytest.param({"eth0": {"device": PCI}}, ["eth0"], id="a server"),
        pytest.param({"eth0": {"device": PCI}, "eth1": {"device": USB}}, ["eth0", "eth1"], id="two networks"),
        pytest.param(
            {"eth0": {"device": PCI}, "docker0": {}, "veth1a2b": {"master": "docker0"}}, ["eth0"], id="Docker"
        ),
        pytest.param(
            {"br0": {}, "eth0": {"device": PCI, "master": "br0"}, "vnet0": {"operstate": "unknown", "master": "br0"}},
            ["eth0"],
            id="KVM",
        ),
        pytest.param(
            {"bond0": {}, "eth0": {"device": PCI, "master": "bond0"}, "eth1": {"device": USB, "master": "bond0"}},
            ["eth0", "eth1"],
            id="a bond",
        ),
        pytest.param(
            {"eth0": {"device": VMBUS}, "enP1s1": {"device": PCI, "master": "eth0"}}, ["eth0"], id="Azure's VF"
        ),
        pytest.param(
            {
                "br0": {},
                "lan1": {"device": "switch/1", "master": "br0"},
                "lan2": {"device": "switch/2", "master": "br0"},
                "eth0": {"device": PCI, "uppers": ["lan1", "lan2"]},
            },
            ["lan1", "lan2"],
            id="a router whose ports are a switch behind eth0",
        ),
        pytest.param(
            {"eth0": {"device": PCI, "uppers": ["eth0.5", "mv0"]}, "eth0.5": {}, "mv0": {}}, ["eth0"], id="a VLAN"
        ),
        pytest.param(
            {"wlan0": {"device": PCI}, "wg0": {"operstate": "unknown", "kind": TUNNEL}}, ["wlan0"], id="a VPN"
        ),
        pytest.param(
            {"eth0": {"device": PCI, "operstate": "down"}, "wlan0": {"device": USB}}, ["wlan0"], id="unplugged"
        ),
        pytest.param({"eth0": {"device": PCI, "operstate": "unknown"}}, ["eth0"], id="a driver that doesn't say"),
    ],
)  # fmt: skip
def test_each_byte_on_the_links_of_a_host_counts_once(there, measured, sys_class_net, interfaces):
    for name, how in there.items():
        add_interface(sys_class_net, name, **how)
    routes = ROUTES + "".join(map(ipv4_route, there))  # not asked where there is a device
    assert chosen(interfaces(ipv4=routes), sys_class_net) == (measured, "with a device")


@pytest.mark.parametrize(
    ("there", "routes", "measured"),
    [
        ({"eth0": {}}, {"ipv4": ROUTES + ipv4_route("eth0")}, ["eth0"]),
        ({"eth0": {}, "docker0": {}, "veth1": {}}, {"ipv4": ROUTES + ipv4_route("eth0")}, ["eth0"]),
        ({"eth0": {}, "eth1": {}}, {"ipv4": ROUTES + ipv4_route("eth1")}, ["eth1"]),
        ({"eth0": {}, "eth1": {}}, {"ipv4": ROUTES, "ipv6": ipv6_route("eth1")}, ["eth1"]),
        ({"eth0": {}, "eth1": {}}, {"ipv6": ipv6_route("eth1")}, ["eth1"]),
        ({"a": {}, "b": {}}, {"ipv4": ROUTES + ipv4_route("a"), "ipv6": ipv6_route("b")}, ["a", "b"]),
        ({"a": {}, "b": {}}, {"ipv4": ROUTES + ipv4_route("a") + ipv4_route("b")}, ["a", "b"]),
        # a tunnel over the Ethernet beside it; one that is alone
        (
            {"eth0": {}, "wg0": {"kind": TUNNEL}},
            {"ipv4": ROUTES + ipv4_route("eth0"), "ipv6": ipv6_route("wg0")},
            ["eth0"],
        ),
        ({"eth0": {}, "wg0": {"kind": TUNNEL}}, {"ipv4": ROUTES + ipv4_route("wg0")}, ["wg0"]),
        # with a device, but without a carrier
        ({"eth0": {"device": PCI, "operstate": "down"}, "ppp0": {"kind": 512, "operstate": "unknown"}},
         {"ipv4": ROUTES + ipv4_route("ppp0")}, ["ppp0"]),
    ],
)  # fmt: skip
def test_without_a_device_that_is_up_the_default_routes_count(there, routes, measured, sys_class_net, interfaces):
    for name, how in there.items():
        add_interface(sys_class_net, name, **how)
    assert chosen(interfaces(**routes), sys_class_net) == (measured, "with a default route")


@pytest.mark.parametrize(
    "routes",
    [
        {},
        {"ipv4": "", "ipv6": ""},
        {"ipv4": ROUTES, "ipv6": ipv6_route("lo", flags="00200200")},  # as Linux has it where there is none
        {"ipv4": ROUTES + ipv4_route("eth0", "000011AC", "0000FFFF")},
        {"ipv4": ROUTES + ipv4_route("eth0", "00000000", "00000080")},  # 0.0.0.0/1
        {"ipv4": ROUTES + ipv4_route("eth0", flags="0201")},  # unreachable
        {"ipv4": ROUTES + ipv4_route("*", flags="0200")},
        {"ipv4": ROUTES + ipv4_route("gone0")},
        {"ipv6": ipv6_route("eth0", "fe80" + "0" * 28, "40")},
        {"ipv6": ipv6_route("eth0", length="01") + ipv6_route("eth1", flags="00000200")},
        {"ipv6": "no table\n\n"},
    ],
)
def test_with_neither_all_but_loopback_count(routes, sys_class_net, interfaces):
    for name, operstate in (("eth0", "up"), ("eth1", "up"), ("eth2", "down"), ("eth3", "lowerlayerdown")):
        add_interface(sys_class_net, name, operstate=operstate)
    assert chosen(interfaces(**routes), sys_class_net) == (["eth0", "eth1"], "all but loopback")


def test_the_real_route_tables_are_read_and_name_real_interfaces():
    assert default_route_interfaces() <= {*read_counters()}


NIC = type(next(iter(psutil.net_if_stats().values())))


def nics(**up):
    """What psutil.net_if_stats() returns, in its own type."""
    return {
        name: NIC(
            isup=is_up, duplex=0, speed=0, mtu=1500, flags="up,loopback,running" if name.startswith("lo") else "up"
        )
        for name, is_up in up.items()
    }


@pytest.mark.parametrize(
    ("stats", "measured", "reason"),
    [
        # macOS
        ({"lo0": True, "en0": True, "en1": False, "bridge0": True, "utun3": True}, ["en0"], "with a device"),
        ({"lo0": True, "en0": False, "ppp0": True}, ["ppp0"], "all but loopback"),
        # a Linux whose /sys is hidden
        ({"lo": True, "eth0": True, "eth1": False}, ["eth0"], "all but loopback"),
    ],
)  # fmt: skip
def test_without_a_sys_psutil_reports_what_is_up(stats, measured, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "net_if_stats", lambda: nics(**stats))
    interfaces = Interfaces((), tmp_path / "nowhere", [])
    interfaces.choose([*stats])
    assert (interfaces.measured, interfaces.reason) == (measured, reason)


def test_in_a_network_namespace_with_the_sys_of_another_psutil_reports_what_is_up(interfaces, monkeypatch):
    monkeypatch.setattr(psutil, "net_if_stats", lambda: nics(lo=True, veth7=True, veth8=False))
    made = interfaces()
    made.choose(["lo", "veth7", "veth8"])
    assert (made.measured, made.reason) == (["veth7"], "all but loopback")


@pytest.mark.parametrize("code", [errno.EBUSY, errno.ENOTTY, errno.EPERM])
def test_where_psutil_can_read_no_state_everything_but_loopback_is_measured_and_it_is_logged_once(
    code, tmp_path, monkeypatch, caplog
):
    def fails():
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(psutil, "net_if_stats", fails)
    interfaces = Interfaces((), tmp_path / "nowhere", [])
    for _ in range(3):
        interfaces.update(["lo0", "en0", "utun0"])
    assert interfaces.measured == ["en0"]
    assert caplog.messages == [f"can't read which interfaces are up: [Errno {code}] {os.strerror(code)}"]


@pytest.mark.parametrize("code", [errno.EBUSY, errno.ENOTTY, errno.EPERM])
def test_an_interface_that_cannot_be_read_is_left_out_and_it_is_logged_once(
    code, sys_class_net, interfaces, monkeypatch, caplog
):
    add_interface(sys_class_net, "eth0", PCI)
    add_interface(sys_class_net, "ib0", USB)
    read = type(sys_class_net).read_text

    def fails(path, *arguments, **options):
        if "ib0" in path.parts:
            raise OSError(code, os.strerror(code))
        return read(path, *arguments, **options)

    monkeypatch.setattr(type(sys_class_net), "read_text", fails)
    made = interfaces()
    for _ in range(3):
        made.update(["eth0", "ib0", "lo"])
    assert made.measured == ["eth0"]
    assert caplog.messages == [
        f"can't read the state of interface ib0, it is not measured: [Errno {code}] {os.strerror(code)}"
    ]


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV])
def test_an_interface_that_goes_while_it_is_read_is_no_error(code, sys_class_net, interfaces, monkeypatch, caplog):
    add_interface(sys_class_net, "eth0", PCI)

    def fails(path, *arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(type(sys_class_net), "read_text", fails)
    made = interfaces()
    made.update(["eth0", "lo"])
    assert caplog.messages == ["nothing is measured: no interface but loopback is up"]


# What is said about them


def logged(caplog):
    """The lines since the last time."""
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    caplog.clear()
    return lines


def test_a_wanted_interface_that_goes_or_comes_is_logged_once(interfaces, caplog):
    caplog.set_level(logging.INFO)
    made = interfaces("dum0")
    steps = [
        (["dum0", "lo"], ("INFO", "measuring dum0 (--interface)")),
        (["dum1", "lo"], ("WARNING", "nothing is measured: no interface dum0; this host has dum1, lo")),
        (["lo"], None),
        (["dum0", "lo"], ("INFO", "measuring dum0 (--interface)")),
    ]
    for there, line in steps:
        for _ in range(3):
            made.update(there)
        assert logged(caplog) == ([line] if line else [])


def test_a_wanted_interface_may_come_later_than_the_start(interfaces, caplog):
    caplog.set_level(logging.INFO)
    made = interfaces("wg0", "eth0", "wg0")
    made.update(["eth0"])
    assert logged(caplog) == [("WARNING", "measuring eth0 (--interface): no interface wg0; this host has eth0")]
    made.update(["eth0", "wg0"])
    assert logged(caplog) == [("INFO", "measuring eth0, wg0 (--interface)")]


def test_a_wanted_interface_that_was_never_there_is_reported_at_the_start(interfaces, caplog):
    made = interfaces("eht0")
    made.update([f"veth{n}" for n in range(500)])
    made.update([f"veth{n}" for n in range(501)])
    assert logged(caplog) == [
        ("WARNING", "nothing is measured: no interface eht0; this host has veth0, veth1, veth10, veth100, veth101, "
         "veth102, veth103, veth104, …")
    ]  # fmt: skip


def test_a_host_without_any_interface_is_no_error(interfaces):
    for made in (interfaces(), interfaces("eth0")):
        made.choose([])
        assert made.describe([]).startswith("nothing is measured: no interface ")


def test_that_nothing_is_measured_is_logged_once_and_so_is_that_something_is(sys_class_net, interfaces, caplog):
    caplog.set_level(logging.INFO)
    made = interfaces()
    for _ in range(3):
        made.update(["lo"])
    assert logged(caplog) == [("WARNING", "nothing is measured: no interface but loopback is up")]
    add_interface(sys_class_net, "eth0", PCI)
    for _ in range(3):
        made.update(["lo", "eth0"])
    assert logged(caplog) == [("INFO", "measuring eth0 (with a device)")]


def test_what_is_measured_can_be_described_without_a_line_in_the_log(sys_class_net, interfaces, caplog):
    caplog.set_level(logging.INFO)
    add_interface(sys_class_net, "eth0")
    made = interfaces(ipv4=ROUTES + ipv4_route("eth0"))
    made.choose(["eth0", "lo"])
    assert made.describe(["eth0", "lo"]) == "measuring eth0 (with a default route)"
    assert logged(caplog) == []


# Samples


@pytest.fixture
def counters(clock):
    """Each second eth0 sends 1000 bytes and receives 500."""
    return lambda: {"eth0": (round(1000 * clock.now), round(500 * clock.now)), "lo": (0, 0)}


def no_work():
    return math.inf


def measure(clock, stop, counters, pause=no_work, interval=1.0, interfaces=("eth0",)):
    def now():
        return datetime.fromtimestamp(clock.now, UTC)

    if not isinstance(interfaces, Interfaces):
        interfaces = Interfaces(interfaces)
    return samples(interval, interfaces, stop.wait, pause, counters, clock, now)


def only_samples(measured):
    return filter(None, measured)


def test_a_sample_tells_rates_per_second_and_which_interfaces(clock, stop, counters):
    (sample,) = islice(measure(clock, stop, counters), 1)
    assert sample == Sample(datetime.fromtimestamp(1001, UTC), 1.0, ["eth0"], 1000, 500)
    assert sample.bytes_per_second == 1500


def test_ticks_do_not_drift_however_long_the_work_between_them_takes(clock, stop, counters):
    at = []
    for sample in islice(only_samples(measure(clock, stop, counters)), 1000):
        at.append(sample.observed_at.timestamp())
        clock.now += 0.3  # what is done with the sample
    assert at == [1001.0 + n for n in range(1000)]


def test_slow_work_delays_its_own_tick_and_no_other(clock, stop, counters):
    at = []
    for sample in measure(clock, stop, counters, pause=lambda: 0.05):
        if sample:
            at.append(sample.observed_at.timestamp())
        clock.now += 0.03
        if len(at) == 1000:
            break
    assert max(abs(seconds - (1001 + n)) for n, seconds in enumerate(at)) < 0.031


def test_the_caller_gets_its_turn_as_soon_as_it_has_work(clock, stop, counters):
    turns = [
        (clock.now, sample is not None) for sample in islice(measure(clock, stop, counters, pause=lambda: 0.25), 5)
    ]
    assert turns == [(1000.25, False), (1000.5, False), (1000.75, False), (1001.0, True), (1001.25, False)]


def test_the_caller_gets_no_turn_while_it_has_no_work(clock, stop, counters):
    assert all(islice(measure(clock, stop, counters), 10))
    assert [wait for wait in stop.waits if wait] == [1.0] * 10


def test_a_caller_with_work_at_once_gets_its_turn_at_once(clock, stop, counters):
    pauses = iter([math.inf, 0.0, -1.0, math.inf, math.inf])
    assert [bool(turn) for turn in islice(measure(clock, stop, counters, lambda: next(pauses)), 3)] == [
        False,
        False,
        True,
    ]
    assert clock.now == 1001.0


def test_a_rate_is_divided_by_the_time_that_was_measured(clock, stop, counters):
    measured = measure(clock, stop, counters)
    next(measured)
    clock.now += 1.7  # the next sample comes 0.7 s late
    assert next(measured) == Sample(
        datetime.fromtimestamp(1002.7, UTC), pytest.approx(1.7), ["eth0"], pytest.approx(1000), pytest.approx(500)
    )


def test_ticks_that_were_missed_are_left_out_and_their_bytes_are_in_the_next(clock, stop, counters):
    measured = measure(clock, stop, counters)
    next(measured)
    clock.now += 60.3  # asleep
    after_sleep = next(measured)
    assert after_sleep.observed_at.timestamp() == 1061.3
    assert (after_sleep.seconds, after_sleep.bytes_sent_per_second) == (pytest.approx(60.3), pytest.approx(1000))
    assert next(only_samples(measured)).observed_at.timestamp() == 1062.0  # and on the old grid again


@pytest.mark.parametrize("asleep", [5.0, 5.999])
def test_no_sample_is_measured_over_next_to_no_time(clock, stop, counters, asleep):
    measured = only_samples(measure(clock, stop, counters))
    next(measured)
    clock.now += asleep
    next(measured)
    assert next(measured).seconds >= 0.5


def test_sampling_ends_when_stop_is_set_and_not_before(clock, stop, counters):
    stop.at = 1004.5
    assert len(list(measure(clock, stop, counters))) == 4


def test_sampling_ends_even_where_each_tick_comes_too_late(clock, stop, counters):
    seen = 0
    for _ in measure(clock, stop, counters):
        seen += 1
        clock.now += 5.0
        if seen == 3:
            stop.set()
    assert seen == 3


def test_an_interval_of_part_of_a_second_is_kept_too(clock, stop, counters):
    at = [s.observed_at.timestamp() for s in islice(measure(clock, stop, counters, interval=0.25), 4)]
    assert at == [1000.25, 1000.5, 1000.75, 1001.0]


def rates(sample):
    return sample.interfaces, sample.bytes_sent_per_second, sample.bytes_received_per_second


def test_only_the_interfaces_asked_for_are_measured(clock, stop):
    def three():
        return {name: (round(n * clock.now), 0) for n, name in enumerate(("a", "b", "c"), 1)}

    (sample,) = islice(measure(clock, stop, three, interfaces=("c", "a")), 1)
    assert rates(sample) == (["a", "c"], 4, 0)


def test_an_interface_that_was_asked_for_may_go_and_come_back(clock, stop, caplog):
    there = {"a": (0, 0), "b": (0, 0)}
    measured = measure(clock, stop, lambda: dict(there), interfaces=("a", "b"))
    there["a"], there["b"] = (10, 0), (1, 0)
    assert rates(next(measured)) == (["a", "b"], 0, 0)  # the generator's first reading is now
    del there["b"]
    there["a"] = (20, 0)
    assert rates(next(measured)) == (["a"], 10, 0)
    there.update(a=(30, 0), b=(10**9, 0))
    assert rates(next(measured)) == (["a", "b"], 10, 0)
    there.update(a=(40, 0), b=(10**9 + 5, 0))
    assert rates(next(measured)) == (["a", "b"], 15, 0)
    assert logged(caplog) == [("WARNING", "measuring a (--interface): no interface b; this host has a")]


def test_while_nothing_is_measured_samples_go_on(clock, stop, caplog):
    there = {"lo": (0, 0)}
    measured = measure(clock, stop, lambda: dict(there), interfaces=("wg0",))
    assert [rates(sample) for sample in islice(measured, 20)] == [([], 0, 0)] * 20
    there["wg0"] = (5, 5)
    assert rates(next(measured)) == (["wg0"], 0, 0)
    there["wg0"] = (9, 8)
    assert rates(next(measured)) == (["wg0"], 4, 3)
    assert logged(caplog) == [("WARNING", "nothing is measured: no interface wg0; this host has lo")]


def test_an_interface_that_is_plugged_in_is_measured_from_then_on(clock, stop, sys_class_net, interfaces):
    there = {"lo": (0, 0), "eth0": (0, 0)}
    add_interface(sys_class_net, "eth0", PCI)
    measured = measure(clock, stop, lambda: dict(there), interfaces=interfaces())
    assert next(measured).interfaces == ["eth0"]
    add_interface(sys_class_net, "usb0", USB)
    there["usb0"] = (5, 5)
    assert rates(next(measured)) == (["eth0", "usb0"], 0, 0)
    there["usb0"] = (9, 9)
    assert rates(next(measured)) == (["eth0", "usb0"], 4, 4)


def test_an_interface_that_comes_up_is_measured_at_the_next_sample(clock, stop, sys_class_net, interfaces):
    # its counters were there all the time, as Linux has it
    there = {"lo": (0, 0), "eth0": (0, 0), "wlan0": (0, 0)}
    add_interface(sys_class_net, "eth0", PCI)
    add_interface(sys_class_net, "wlan0", USB, operstate="down")
    measured = measure(clock, stop, lambda: dict(there), interfaces=interfaces())
    assert next(measured).interfaces == ["eth0"]
    (sys_class_net / "wlan0" / "operstate").write_text("up\n")
    there["wlan0"] = (9, 9)
    assert rates(next(measured)) == (["eth0", "wlan0"], 9, 9)


@pytest.mark.parametrize("failing", [{0}, {0, 1, 2}, {3}, {3, 4}, {1, 3, 5}])
def test_counters_that_cannot_be_read_cost_their_tick_and_it_is_logged_once(clock, stop, counters, failing, caplog):
    calls = itertools.count()

    def sometimes():
        if next(calls) in failing:
            raise OSError(errno.EMFILE, "Too many open files")
        return counters()

    for sample in islice(measure(clock, stop, sometimes), 10):
        assert rates(sample) == (["eth0"], pytest.approx(1000), pytest.approx(500))
    line = f"can't read the interfaces' counters, nothing is measured: [Errno {errno.EMFILE}] Too many open files"
    assert logged(caplog) == [("WARNING", line)]


def test_the_real_counters_are_pairs_of_whole_numbers_by_interface():
    for name, (sent, received) in read_counters().items():
        assert isinstance(name, str)
        assert isinstance(sent, int)
        assert isinstance(received, int)
