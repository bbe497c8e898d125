"""The network that the other tests break."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from servers import HOST, Proxy


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(ConnectionError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before a server that sends back all that it gets."""
    with socketserver.ThreadingTCPServer((HOST, 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with Proxy((HOST, server.server_address[1])) as proxy:
            yield proxy
        server.shutdown()
        thread.join()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(proxy.address, timeout=10) as connection:
        yield connection


def receive(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = client.recv(count - len(data))
        assert piece
        data += piece
    return data


def test_latency_is_added_both_ways(proxy: Proxy, client: socket.socket) -> None:
    client.sendall(b"x")
    receive(client, 1)  # the proxy now waits for what comes next
    proxy.mode, proxy.latency_seconds = "slow", 0.3
    begun = time.monotonic()
    client.sendall(b"y")
    assert receive(client, 1) == b"y"
    assert time.monotonic() - begun >= 0.6


def test_latency_does_not_lower_the_rate(proxy: Proxy, client: socket.socket) -> None:
    proxy.mode, proxy.latency_seconds, proxy.bytes_per_second = "slow", 1.5, 1_000_000
    data = bytes(range(250)) * 4_000
    begun = time.monotonic()
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert receive(client, len(data)) == data
    sender.join()
    # 1 s for 1 MB and 3 s of latency; it would be 16 s if each tenth waited for the one before to arrive
    assert 4 <= time.monotonic() - begun < 12


def test_what_is_slow_keeps_its_order_when_the_mode_changes(proxy: Proxy, client: socket.socket) -> None:
    proxy.mode, proxy.latency_seconds = "slow", 0.3
    client.sendall(b"first ")
    proxy.mode = "pass"
    client.sendall(b"second")
    assert receive(client, 12) == b"first second"


def test_a_count_of_bytes_is_let_through(proxy: Proxy, client: socket.socket) -> None:
    proxy.reset(after_bytes=5)
    client.sendall(b"0123456789")
    with pytest.raises(ConnectionResetError):
        receive(client, 10)


def test_a_refused_connection_is_refused_and_one_that_is_open_is_reset(proxy: Proxy, client: socket.socket) -> None:
    client.sendall(b"x")
    receive(client, 1)
    proxy.mode = "refuse"
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.address)


def test_a_connection_in_a_black_hole_stays_silent_when_it_is_over(proxy: Proxy, client: socket.socket) -> None:
    client.sendall(b"x")
    receive(client, 1)
    proxy.mode = "black hole"
    client.sendall(b"lost")
    proxy.mode = "pass"
    client.sendall(b"lost too")
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(1)
