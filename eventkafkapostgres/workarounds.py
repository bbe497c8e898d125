"""Defects of kafka-python 3.0.12, each with the smallest hook that works around it."""

from __future__ import annotations

import errno
import ssl
import time
from typing import Any

from kafka.consumer import group
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError, StaleMetadata
from kafka.net import KafkaNetClient, KafkaNetSocket

HANDSHAKE_SECONDS = 5.0  # a TLS handshake that takes longer has failed
CONNECT_SECONDS = 2.0  # then the next address of the host is tried; time for one SYN to be sent again
CONNECT_DELAY_MS = 250  # how long a producer waits at least for a broker that is not connected
METADATA_RETRY_MS = 1000  # no option; the default, 100, asks ten times a second for a topic that is missing


class HandshakeDeadline(ssl.SSLSocket):
    """kafka-python waits for ever for the TLS handshake of a peer that accepts the connection and stays silent."""

    def do_handshake(self, block: bool = False) -> None:
        """With a deadline. TimeoutError when it is over."""
        self.settimeout(HANDSHAKE_SECONDS)
        super().do_handshake(block)
        self.settimeout(0.0)


class DataBeforeEnd(HandshakeDeadline):
    """kafka-python throws away what it has read when the end of the connection follows in the same turn."""

    has_read = False

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """The end of the connection is returned in a turn of its own."""
        data = super().recv(buflen, flags)
        if not data and self.has_read:
            self.has_read = False
            raise ssl.SSLWantReadError
        self.has_read = bool(data)
        return data


class TLSContext(ssl.SSLContext):
    """An OSError of wrap_socket() ends kafka-python's refreshing of metadata for good."""

    sslsocket_class = DataBeforeEnd

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """KafkaConnectionError where the peer resets the connection before its TLS begins."""
        try:
            return super().wrap_socket(*arguments, **options)
        except OSError as error:
            raise KafkaConnectionError(str(error)) from error


class EachAddress(KafkaNetSocket):  # type: ignore[misc]
    """kafka-python gives all its time to the first address of a host: where that one is silent, no other is tried.

    kafka-python makes one of these for a connection whose option proxy_url has this scheme.
    """

    SCHEMES = ("each-address",)
    addresses_left = 0

    def dns_lookup(self, host: str, port: int, raise_error: bool = False) -> list[Any]:
        try:
            found: list[Any] = super().dns_lookup(host, port, raise_error)
        except UnicodeError as error:  # no host can have this name
            raise KafkaConnectionError(f"DNS lookup failed for {host}:{port}, {error!r}") from error
        self.addresses_left = len(found)
        return found

    async def sock_connect(self, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        """Try this address, for a while only where there is another one."""
        self.addresses_left -= 1
        until = time.monotonic() + CONNECT_SECONDS
        if self.addresses_left and (timeout_at is None or until < timeout_at):
            try:
                return await super().sock_connect(net, sock, sockaddr, timeout_at=until)
            except KafkaTimeoutError as error:
                sock.close()
                raise TimeoutError(errno.ETIMEDOUT, "connection timed out") from error
        return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)


class Client(KafkaNetClient):  # type: ignore[misc]
    """kafka-python passes these options on to nobody: who asks for a missing topic creates it, or asks all the time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cluster.config["allow_auto_create_topics"] = options.get("allow_auto_create_topics", False)
        self.cluster.config["retry_backoff_ms"] = options.get("retry_backoff_ms", 100)


class ProducerClient(Client):
    """kafka-python's sender turns as fast as it can while a partition has no leader or its broker is not connected."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cluster.config["retry_backoff_ms"] = METADATA_RETRY_MS
        self.connect_at: dict[object, float] = {}  # by node: not before
        self.ask_for_update, self.cluster.request_update = self.cluster.request_update, self.request_update

    def request_update(self) -> Any:
        """A partition without a leader asks for this in each turn, which wakes up the sender for the next turn."""
        future = self.cluster._future
        return future if self.cluster.need_update and future and not future.is_done else self.ask_for_update()

    def maybe_connect(self, node_id: object, **options: Any) -> None:
        """Who accepts connections and closes them, as a load balancer without a backend, is tried again at once."""
        now = time.monotonic()
        if now >= self.connect_at.get(node_id, now):
            self.connect_at[node_id] = now + CONNECT_DELAY_MS / 1000
            super().maybe_connect(node_id, **options)

    def connection_delay(self, node_id: object) -> float:
        """The sender takes it for milliseconds; it is in seconds, and 0 while it connects."""
        return max(CONNECT_DELAY_MS, 1000 * float(super().connection_delay(node_id)))


class RepairedFetcher(Fetcher):  # type: ignore[misc]
    """What a KafkaConsumer of this process reads with, see repair_fetcher()."""

    _next_partition_records: Any

    def fetched_records(self, *arguments: Any, **options: Any) -> Any:
        """kafka-python sets aside what it has read of a paused partition, and forgets it once another was read."""
        self._next_partition_records = self._next_partition_records or None  # what is used up bars the way back
        return super().fetched_records(*arguments, **options)

    async def _send_list_offsets_requests(self, timestamps: Any) -> Any:
        """kafka-python asks a broker that leads no more for offsets, as fast as it can, until its metadata are old."""
        try:
            found, retry = await super()._send_list_offsets_requests(timestamps)
        except NodeNotReadyError as error:
            raise StaleMetadata(str(error)) from error
        if retry:
            raise StaleMetadata  # ask who leads now, then again
        return found, retry


def repair_fetcher() -> None:
    """Let every KafkaConsumer of this process use the RepairedFetcher."""
    group.Fetcher = RepairedFetcher


def end_producer(kproducer: Any) -> None:
    """End a KafkaProducer at once, whatever its broker does: its thread closes the sockets when it is done.

    close() raises while a message is pending, and leaves the thread and the sockets.
    """
    kproducer._sender.force_close()
    kproducer._unregister_cleanup()
    kproducer._closed = True  # else its finaliser would wait for the broker


# For each client: a KafkaProducer, a KafkaConsumer, a KafkaAdminClient.
CLIENT_OPTIONS: dict[str, Any] = {"kafka_client": Client, "proxy_url": "each-address:"}
PRODUCER_CLIENT: dict[str, Any] = {"kafka_client": ProducerClient}  # besides: of a KafkaProducer
