"""A network of this test's own: builds one in network namespaces, sends bytes through it, prints what was counted.

$ unshare --net --mount python tests/pipeline/network.py docker
{"described": "measuring eth0 (with a device)", "counted": 1003136, "on_the_wire": 1003136, "all_but_loopback": 3009230}

The process is in the host that is measured. `wire` is the far end of its eth0, in a namespace of its own.
"""

import json
import logging
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from eventkafkapostgres.bandwidth import Interfaces, bandwidth, read_counters, samples

SENT_BYTES = 1_000_000
PORT = 9000  # in a namespace of our own every port is free
DEADLINE_SECONDS = 10
SYS_CLASS_NET = Path("/sys/class/net")

RECEIVE = f"""
import socket
with socket.create_server(("::", {PORT}), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("listening", flush=True)
    with server.accept()[0] as peer:
        while peer.recv(65536):
            pass
"""
SEND = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {PORT}), timeout={DEADLINE_SECONDS}) as peer:
    peer.sendall(bytes({SENT_BYTES}))
    peer.shutdown(socket.SHUT_WR)
    peer.recv(1)
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


class Namespace:
    """A host, or a container, of which only the network is its own. Number 0 is the one of this process."""

    def __init__(self, stack: ExitStack, own: bool = False) -> None:
        self.enter: list[str] = []
        self.proc = Path("/proc/self")
        if not own:
            process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
            stack.callback(process.wait)
            stack.callback(process.kill)
            self.enter, self.proc = ["nsenter", f"--net=/proc/{process.pid}/ns/net"], Path(f"/proc/{process.pid}")
            wait_until(lambda: (self.proc / "comm").read_text() == "sleep\n")
        self.ip("link set lo up")

    def __call__(self, *command: str) -> None:
        done = subprocess.run([*self.enter, *command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")

    def ip(self, *commands: str) -> None:
        for command in commands:
            self("ip", *command.split())

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self.enter, sys.executable, "-c", *command], stdout=subprocess.PIPE, text=True)

    def counters(self) -> dict[str, int]:
        """Bytes sent and received by each interface, as this namespace's kernel counts them."""
        lines = [line.split() for line in (self.proc / "net" / "dev").read_text().splitlines()[2:]]
        return {fields[0].rstrip(":"): int(fields[1]) + int(fields[9]) for fields in lines}


def link(one: Namespace, name: str, other: Namespace, other_name: str) -> None:
    """A cable between two namespaces."""
    one.ip(f"link add {name} type veth peer name {other_name} netns {other.proc.name}", f"link set {name} up")
    other.ip(f"link set {other_name} up")


def send(sender: Namespace, receiver: Namespace, address: str) -> None:
    """SENT_BYTES over TCP."""
    with receiver.start(RECEIVE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        with sender.start(SEND, address) as client:
            pass
    if server.returncode or client.returncode:
        raise SystemExit("the bytes did not arrive")


class Network:
    """A host (this process) whose eth0 is a cable to `wire`: 10.0.0.1 and 10.0.0.2, fd00::1 and fd00::2."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.host, self.wire = Namespace(stack, own=True), Namespace(stack)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        link(self.host, "eth0", self.wire, "eth0")
        self.wire.ip("addr add 10.0.0.2/24 dev eth0", "addr add fd00::2/64 dev eth0 nodad")
        self.wire.ip("route add default via 10.0.0.1", "route add default via fd00::1")
        self.hardware = ["eth0"]
        self.sender, self.address = self.host, "10.0.0.2"

    def address_on(self, interface: str) -> None:
        self.host.ip(f"addr add 10.0.0.1/24 dev {interface}", f"addr add fd00::1/64 dev {interface} nodad")

    def container(self, address: str, *commands: str) -> Namespace:
        """Traffic comes from a container from now on: its eth0 is `port` here, which the commands connect."""
        self.sender = Namespace(self.stack)
        link(self.host, "port", self.sender, "eth0")
        self.host.ip(*commands)
        self.sender.ip(f"addr add {address} dev eth0")
        return self.sender


def server(network: Network) -> None:
    network.address_on("eth0")


def docker(network: Network) -> None:
    """A container behind a bridge, routed by the host."""
    network.address_on("eth0")
    network.host.ip("link add docker0 type bridge", "link set docker0 up", "addr add 172.17.0.1/16 dev docker0")
    network.container("172.17.0.2/16", "link set port master docker0").ip("route add default via 172.17.0.1")


def kvm(network: Network) -> None:
    """A guest on the same bridge as the host's eth0, which holds the host's address."""
    network.host.ip("link add br0 type bridge", "link set br0 up", "link set eth0 master br0")
    network.address_on("br0")
    network.container("10.0.0.3/24", "link set port master br0")


def kvm_host(network: Network) -> None:
    """The same, with the host itself as the sender: its bytes pass br0 and eth0."""
    kvm(network)
    network.sender = network.host


def vlan(network: Network) -> None:
    for end in (network.host, network.wire):
        end.ip("link add eth0.5 link eth0 type vlan id 5", "link set eth0.5 up")
    network.host.ip("addr add 10.5.0.1/24 dev eth0.5")
    network.wire.ip("addr add 10.5.0.2/24 dev eth0.5")
    network.address = "10.5.0.2"


def vxlan(network: Network) -> None:
    network.address_on("eth0")
    for end, own, other in ((network.host, 1, 2), (network.wire, 2, 1)):
        tunnel = f"local 10.0.0.{own} remote 10.0.0.{other} dstport 4789 dev eth0"
        end.ip(
            f"link add vxlan0 type vxlan id 5 {tunnel}", "link set vxlan0 up", f"addr add 10.6.0.{own}/24 dev vxlan0"
        )
    network.address = "10.6.0.2"


def macvlan(network: Network) -> None:
    """A container whose eth0 is a macvlan on the host's; a second one stays on the host."""
    network.sender = Namespace(network.stack)
    network.host.ip("link add mv0 link eth0 type macvlan mode bridge", "link set mv0 up")
    network.host.ip("link add mv1 link eth0 type macvlan mode bridge", f"link set mv1 netns {network.sender.proc.name}")
    network.sender.ip("link set mv1 up", "addr add 10.0.0.3/24 dev mv1")


def macvlan_host(network: Network) -> None:
    network.host.ip("link add mv0 link eth0 type macvlan mode bridge", "link set mv0 up")
    network.address_on("mv0")


def ipvlan(network: Network) -> None:
    network.host.ip("link add iv0 link eth0 type ipvlan mode l2", "link set iv0 up")
    network.address_on("iv0")


def bond(network: Network) -> None:
    network.host.ip("link add bond0 type bond mode active-backup", "link set eth0 down", "link set eth0 master bond0")
    network.host.ip("link set bond0 up")
    network.address_on("bond0")


def dummy(network: Network) -> None:
    """An interface that is up, of no use, and beside the one that counts."""
    network.address_on("eth0")
    network.host.ip("link add dum0 type dummy", "link set dum0 up", "addr add 10.9.0.1/24 dev dum0")


def container(network: Network) -> None:
    """No device, as in a container; what it runs is in a network behind a bridge of its own."""
    docker(network)
    network.hardware = []
    network.host.ip("route add default via 10.0.0.2")


def container_ipv6(network: Network) -> None:
    """The same where only IPv6 has a default route."""
    docker(network)
    network.hardware = []
    network.address = "fd00::2"
    network.host.ip("route add default via fd00::2")
    network.sender = network.host


def isolated(network: Network) -> None:
    """A container without a default route."""
    network.address_on("eth0")
    network.hardware = []


def loopback_only(network: Network) -> None:
    """No interface is up but loopback."""
    network.host.ip("link set eth0 down")
    network.hardware = []
    network.wire, network.address = network.host, "127.0.0.1"


TOPOLOGIES = (server, docker, kvm, kvm_host, vlan, vxlan, macvlan, macvlan_host, ipvlan, bond, dummy, container,
              container_ipv6, isolated, loopback_only)  # fmt: skip


def with_devices(folder: Path, hardware: list[str]) -> Path:
    """This namespace's /sys/class/net, in which the interfaces named have a device behind them, as no veth has."""
    for real in SYS_CLASS_NET.iterdir():
        if real.is_dir():
            shown = folder / real.name
            shown.mkdir()
            for entry in real.iterdir():
                is_neighbour = entry.name == "master" or entry.name.startswith(("upper_", "lower_"))
                (shown / entry.name).symlink_to(folder / entry.resolve().name if is_neighbour else entry)
            if real.name in hardware:
                (shown / "device").mkdir()
    return folder


def measure(build: Callable[[Network], None], stack: ExitStack) -> dict[str, Any]:
    """Build, send, and compare what the host counts with what its far end does."""
    network = Network(stack)
    build(network)
    sys_class_net = SYS_CLASS_NET
    if network.hardware:
        sys_class_net = with_devices(Path(stack.enter_context(tempfile.TemporaryDirectory())), network.hardware)
    interfaces = Interfaces(sys_class_net=sys_class_net)
    before, wire_before = read_counters(), network.wire.counters()["eth0"]
    while (again := read_counters()) != before:  # the kernel's own packets: both must be of the same moment
        before, wire_before = again, network.wire.counters()["eth0"]
    interfaces.choose(before)
    send(network.sender, network.wire, network.address)

    def counted(names: Collection[str]) -> int:
        after = read_counters()
        return round(sum(bandwidth(before, {name: after[name] for name in names}, 1.0)))

    def on_the_wire() -> int:
        return network.wire.counters()["eth0"] - wire_before

    wait_until(lambda: counted(interfaces.measured) == on_the_wire())  # the last acknowledgement may be on its way
    return {
        "described": interfaces.describe(before),
        "counted": counted(interfaces.measured),
        "on_the_wire": on_the_wire(),
        "all_but_loopback": counted(before.keys() - {"lo"}),
    }


def wait(seconds: float) -> bool:
    """Of a stop that is never set."""
    time.sleep(seconds)
    return False


def renamed(stack: ExitStack) -> list[str]:
    """The log of an interface that was asked for, comes after the start, is renamed, and gets its name back."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    host = Namespace(stack, own=True)
    measured = samples(0.01, Interfaces(["dum0"]), wait, lambda: math.inf)
    for change, interfaces in (
        ("link set lo up", []),
        ("link add dum0 type bridge", ["dum0"]),
        ("link set dum0 name dum1", []),
        ("link set dum1 name dum0", ["dum0"]),
    ):
        host.ip(change)
        seen = (sample.interfaces == interfaces for sample in islice(measured, 1000) if sample)
        assert any(seen), change
        next(measured)
    return lines


def main() -> None:
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)  # that of this network namespace
    builders = {build.__name__: build for build in TOPOLOGIES}
    with ExitStack() as stack:
        print(json.dumps(renamed(stack) if sys.argv[1] == "renamed" else measure(builders[sys.argv[1]], stack)))


if __name__ == "__main__":
    main()
