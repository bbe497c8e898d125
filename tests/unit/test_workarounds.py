"""Defects of kafka-python, seen where they are worked around."""

import socket
import threading
from types import SimpleNamespace

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.consumer import group
from kafka.consumer.fetcher import CompletedFetch, Fetcher
from kafka.errors import KafkaTimeoutError, NodeNotReadyError, StaleMetadata
from test_records import encoded

from eventkafkapostgres import workarounds
from eventkafkapostgres.workarounds import CLIENT_OPTIONS, Client, ProducerClient, RepairedFetcher, repair_fetcher


@pytest.fixture
def two_addresses(monkeypatch):
    """The port of a host of two addresses: the first swallows every SYN, the second says when it is reached."""
    hole = socket.socket()
    hole.bind(("127.0.0.1", 0))
    hole.listen(0)
    address = hole.getsockname()
    fillers = [socket.socket() for _ in range(4)]  # the queue is full: SYNs are dropped
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(address)
    open_end = socket.create_server(("127.0.0.1", 0))
    reached = threading.Event()

    def accept():
        connection, _ = open_end.accept()
        reached.set()
        connection.close()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    resolve = socket.getaddrinfo

    def getaddrinfo(host, port, *arguments, **options):
        if host != "two.example":
            return resolve(host, port, *arguments, **options)
        ends = (address, open_end.getsockname())
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", end) for end in ends]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield reached
    for each in (*fillers, hole):
        each.close()
    if accepting.is_alive():
        socket.create_connection(open_end.getsockname()).close()
    accepting.join()
    open_end.close()


def producer(**options):
    made = KafkaProducer(api_version=(3, 9), **options)
    return lambda: made.close(timeout=0)


def consumer(**options):
    made = KafkaConsumer("topic", api_version=(3, 9), **options)
    made.poll(timeout_ms=1)
    return lambda: made.close(timeout_ms=0)


def admin(**options):
    with pytest.raises(KafkaTimeoutError):
        KafkaAdminClient(bootstrap_timeout_ms=4000, **options)
    return lambda: None


@pytest.mark.parametrize("client", [producer, consumer, admin])
def test_each_address_of_a_host_is_tried(two_addresses, client):
    close = client(bootstrap_servers="two.example:9092", **CLIENT_OPTIONS)
    try:
        assert two_addresses.wait(60)
    finally:
        close()


def test_a_host_without_an_address_is_reported_as_ever(caplog):
    with pytest.raises(KafkaTimeoutError):
        KafkaAdminClient(bootstrap_servers="nowhere.invalid:1", bootstrap_timeout_ms=100, **CLIENT_OPTIONS)
    assert "DNS lookup failed for nowhere.invalid" in caplog.text


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({}, False), ({"allow_auto_create_topics": False}, False), ({"allow_auto_create_topics": True}, True)],
)
def test_whether_asking_for_a_topic_may_create_it_is_passed_on(options, allowed):
    client = Client(bootstrap_servers="127.0.0.1:1", **options)
    assert client.cluster.metadata_request().allow_auto_topic_creation is allowed
    client.close()


def test_how_often_a_missing_topic_is_asked_for_is_passed_on():
    client = Client(bootstrap_servers="127.0.0.1:1", retry_backoff_ms=700)
    assert client.cluster.refresh_backoff() == 700
    client.close()


def test_a_partition_that_was_paused_is_read_on_after_another_one(monkeypatch):
    monkeypatch.setattr(group, "Fetcher", Fetcher)
    repair_fetcher()
    kconsumer = KafkaConsumer(bootstrap_servers="127.0.0.1:1", api_version=(3, 9), group_id=None)
    paused, other = (TopicPartition("bandwidth_exceeds", number) for number in range(2))
    kconsumer.assign([paused, other])
    fetcher = kconsumer._fetcher

    def fetched(partition):
        kconsumer.seek(partition, 0)
        records = encoded([(1, b"web-1", b"{}", [])] * 2)
        answer = SimpleNamespace(error_code=0, high_watermark=2, records=records, aborted_transactions=None,
                                 diverging_epoch=None, preferred_read_replica=-1)  # fmt: skip
        fetcher._completed_fetches.append(CompletedFetch(partition, 0, 12, answer, None))

    def read(most=10):
        records, _ = fetcher.fetched_records(most)
        return [(at, record.offset) for at, found in records.items() for record in found]

    try:
        fetched(paused)
        assert read(1) == [(paused, 0)]
        kconsumer.pause(paused)
        fetched(other)
        assert read() == [(other, 0), (other, 1)]
        kconsumer.resume(paused)
        assert read() == [(paused, 1)]
    finally:
        kconsumer.close(timeout_ms=0)


@pytest.mark.parametrize("answer", [({}, {TopicPartition("bandwidth_exceeds", 0)}), NodeNotReadyError(1)])
def test_before_offsets_are_asked_for_again_it_asks_who_leads_now(monkeypatch, answer):
    async def ask(self, timestamps):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(Fetcher, "_send_list_offsets_requests", ask)
    with pytest.raises(StaleMetadata):
        object.__new__(RepairedFetcher)._send_list_offsets_requests({}).send(None)


def test_who_accepts_connections_and_closes_them_is_tried_four_times_a_second(monkeypatch, clock):
    tried = []
    monkeypatch.setattr(workarounds, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(Client, "maybe_connect", lambda self, node_id: tried.append((node_id, clock.now)))
    client = ProducerClient(bootstrap_servers="127.0.0.1:1")
    try:
        for _ in range(30):
            client.maybe_connect(1)
            client.maybe_connect(2)
            clock.now += 0.05
    finally:
        client.close()
    assert 5 <= len([node for node, _ in tried if node == 1]) <= 7
    assert len(tried) == 2 * len([node for node, _ in tried if node == 1])


def test_a_partition_without_a_leader_wakes_the_sender_up_once_until_there_is_an_answer(monkeypatch):
    client, woken = ProducerClient(bootstrap_servers="127.0.0.1:1"), []
    monkeypatch.setattr(client.cluster._wakeup, "notify", lambda: woken.append(1))
    try:
        first = client.cluster.request_update()
        assert client.cluster.request_update() is first
        assert woken == [1]
        first.success(None)
        assert client.cluster.request_update() is not first
        assert woken == [1, 1]
    finally:
        client.close()
