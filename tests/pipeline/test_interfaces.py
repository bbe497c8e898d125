"""Each byte on a host's links counts once, on networks of a real kernel: see network.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
UNSHARE = ["unshare", "--net", "--mount", *(["--map-root-user"] if os.geteuid() else [])]


def can_have_namespaces() -> bool:
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    return not subprocess.run([*UNSHARE, "mount", "-t", "sysfs", "sysfs", "/sys"], capture_output=True).returncode


pytestmark = pytest.mark.skipif(not can_have_namespaces(), reason="needs iproute2 and the right to network namespaces")


def run(scenario: str) -> Any:
    """What network.py prints."""
    ran = subprocess.run(
        [*UNSHARE, sys.executable, "-W", "error", str(Path(__file__).with_name("network.py")), scenario],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "Unknown device type" in ran.stderr:
        pytest.skip(f"this kernel can't: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("topology", "described", "times_by_all_but_loopback"),
    [
        ("server", "measuring eth0 (with a device)", 1),
        ("docker", "measuring eth0 (with a device)", 3),
        ("kvm", "measuring eth0 (with a device)", 2),
        ("kvm_host", "measuring eth0 (with a device)", 2),
        ("vlan", "measuring eth0 (with a device)", 2),
        ("vxlan", "measuring eth0 (with a device)", 2),
        ("macvlan", "measuring eth0 (with a device)", 1),
        ("macvlan_host", "measuring eth0 (with a device)", 2),
        ("ipvlan", "measuring eth0 (with a device)", 2),
        ("bond", "measuring eth0 (with a device)", 2),
        ("dummy", "measuring eth0 (with a device)", 1),
        ("container", "measuring eth0 (with a default route)", 3),
        ("container_ipv6", "measuring eth0 (with a default route)", 1),
        ("isolated", "measuring eth0 (all but loopback)", 1),
    ],
)
def test_each_byte_counts_once(topology: str, described: str, times_by_all_but_loopback: int) -> None:
    found = run(topology)
    assert found["described"] == described
    assert 1_000_000 < found["counted"] < 1_100_000  # what was sent, with its headers
    assert found["counted"] == found["on_the_wire"]
    # the network is the one that it should be: whoever counts all interfaces counts so many times
    assert found["all_but_loopback"] / found["on_the_wire"] == pytest.approx(times_by_all_but_loopback, rel=0.01)


def test_loopback_does_not_count() -> None:
    found = run("loopback_only")
    assert found["described"] == "nothing is measured: no interface but loopback is up"
    assert found["counted"] == 0


def test_an_interface_that_comes_and_goes_while_it_is_asked_for_is_logged_once() -> None:
    assert run("renamed") == [
        "WARNING nothing is measured: no interface dum0; this host has lo",
        "INFO measuring dum0 (--interface)",
        "WARNING nothing is measured: no interface dum0; this host has dum1, lo",
        "INFO measuring dum0 (--interface)",
    ]
