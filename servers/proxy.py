"""A TCP proxy whose network can be broken."""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Literal, Self

from servers.process import HOST, Address, Port

CHUNK = 65536
PIECES = 64  # on the line at a time, each way

Line = asyncio.Queue[tuple[float, bytes]]

Mode = Literal["pass", "refuse", "black hole", "slow"]


class _Connection:
    """One client's connection through a proxy, with its other half to the server."""

    def __init__(self, client: socket.socket) -> None:
        self.sockets = [client]
        self.dead = False
        self.task: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """RST to both ends."""
        for end in self.sockets:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends it
        if self.task:
            self.task.cancel()


class Proxy:
    """A TCP proxy on a port of its own, known before its target is, with a network that can be broken.

    `mode`:
    - "pass": bytes go both ways as they come.
    - "refuse": connecting is refused (ECONNREFUSED), and connections that are open are reset.
    - "black hole": new connections are accepted; they and those that are open stay silent for good, also after the
      mode has changed: whatever is sent is dropped, and neither end learns that the other has gone.
    - "slow": `bytes_per_second` each way, and each byte arrives `latency_seconds` after it was sent.
    A mode is in force when the assignment returns.
    """

    def __init__(self, target: Address | None = None) -> None:
        self.target = target
        self.bytes_per_second = 100_000
        self.latency_seconds = 0.05
        self._mode: Mode = "pass"
        self._port = Port()
        self.address: Address = (HOST, self._port.number)
        self._connections: set[_Connection] = set()
        self._bytes_left: int | None = None
        self._listener: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._call(self._apply("pass"))

    @property
    def mode(self) -> Mode:
        """How the network is now."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._call(self._apply(mode))

    def reset(self, after_bytes: int = 0) -> None:
        """Reset all connections (RST): now, or when so many more bytes have passed, whichever way, in any of them.

        The last piece is cut where the count says, so also in the middle of a record.
        """
        self._call(self._reset(after_bytes))

    def close(self) -> None:
        """Reset the connections and release the port."""
        if self._thread.is_alive():
            self._call(self._apply("refuse"))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _apply(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "black hole":
            for connection in self._connections:
                connection.dead = True
        if mode == "refuse":
            await self._reset(0)
            if self._listener:
                self._listener.cancel()
                await asyncio.wait([self._listener])
                self._listener = None
        elif self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(self.address)
            listener.listen(128)
            self._listener = asyncio.create_task(self._accept(listener))

    async def _reset(self, after_bytes: int) -> None:
        if after_bytes:
            self._bytes_left = after_bytes
            return
        tasks = [connection.task for connection in self._connections if connection.task]
        for connection in self._connections:
            connection.reset()
        if tasks:
            await asyncio.wait(tasks)

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                connection = _Connection(client)
                connection.dead = self._mode == "black hole"
                connection.task = asyncio.create_task(self._serve(connection))
                self._connections.add(connection)

    async def _serve(self, connection: _Connection) -> None:
        """Carry one connection until both ends have finished."""
        ends = connection.sockets
        try:
            if not connection.dead:
                ends.append(socket.socket())
                ends[1].setblocking(False)
                await self._loop.sock_connect(ends[1], self.target or (HOST, 0))
            async with asyncio.TaskGroup() as tasks:
                for source, sink in zip(ends, reversed(ends), strict=True):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    line = Line(PIECES)
                    tasks.create_task(self._receive(connection, source, line))
                    tasks.create_task(self._send(connection, line, sink))
        except* OSError:
            connection.reset()
        finally:
            for end in ends:
                end.close()
            self._connections.discard(connection)

    async def _receive(self, connection: _Connection, source: socket.socket, line: Line) -> None:
        """Put what comes from one end on the line, each piece with the time when it arrives at the other end."""
        data, free_at = b"not the end", 0.0
        while data:
            size = max(1, self.bytes_per_second // 10) if self._mode == "slow" else CHUNK
            try:
                data = await self._loop.sock_recv(source, size)
            except OSError:
                if not connection.dead:
                    raise
                data = b""
            latency = 0.0
            if self._mode == "slow":  # by the clock, for a sleep that takes too long must not lower the rate
                latency, free_at = self.latency_seconds, max(free_at, self._loop.time())
                free_at += len(data) / self.bytes_per_second
                await asyncio.sleep(free_at - self._loop.time())
            if not data or not connection.dead:
                await line.put((self._loop.time() + latency, data))

    async def _send(self, connection: _Connection, line: Line, sink: socket.socket) -> None:
        """Take one direction's pieces from the line when it is their time."""
        while True:
            arrives_at, data = await line.get()
            await asyncio.sleep(max(0.0, arrives_at - self._loop.time()))
            if not data:
                break
            if connection.dead:
                continue
            if self._bytes_left is not None:
                data, self._bytes_left = data[: self._bytes_left], self._bytes_left - len(data)
            await self._loop.sock_sendall(sink, data)
            if self._bytes_left is not None and self._bytes_left <= 0:
                self._bytes_left = None
                for each in self._connections:
                    each.reset()
        if not connection.dead:
            sink.shutdown(socket.SHUT_WR)
