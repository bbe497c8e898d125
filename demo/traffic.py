"""The demonstration's traffic: real bytes over TCP on loopback."""

import sys
import threading
import time
from socket import MSG_WAITALL, create_connection, create_server

import psutil

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
LIMIT = 20  # MB/s, sent plus received, as all rates here
# MB/s in each second: three bursts. More than 5 seconds lie between two, so that each is an episode of its own.
TRAFFIC = (3, 4, 29, 38, 33, 4, 3, 3, 4, 3, 4, 31, 39, 36, 28, 3, 4, 3, 3, 4, 3, 27, 34, 38, 36, 29, 4, 3, 3, 4)
CHUNK = 16384


def make_traffic(stop: threading.Event) -> None:
    """Bytes over TCP on 127.0.0.1 at the rates of TRAFFIC; loopback counts each as sent and as received."""
    with create_server(("127.0.0.1", 0)) as server, create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        began, carried, due = time.monotonic(), 0.0, 0.0
        with receiver:
            for second, rate in enumerate(TRAFFIC):
                while (elapsed := time.monotonic() - began - second) < 1:
                    if carried < due + rate * 1e6 * elapsed:
                        sender.sendall(bytes(CHUNK))
                        carried += 2 * len(receiver.recv(CHUNK, MSG_WAITALL))
                    elif stop.wait(0.005):
                        return
                due += rate * 1e6


def carried_bytes() -> int:
    """Bytes sent and received on loopback."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)[LOOPBACK]
    return int(counters.bytes_sent + counters.bytes_recv)
