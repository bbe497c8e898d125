"""The servers that the other tests stand on: what a cluster survives, and what is left of them."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource
from kafka.errors import KafkaError
from pipeline import CLIENT, wait_until

from servers import Servers, servers
from servers.process import is_running

# From a thread that ends: to Linux a thread is a parent too.
HOLDER = """
import json, sys, threading
from servers import servers
with servers() as running:
    running.kafka.kill()
    running.postgres.kill()
    for each in running.processes:
        thread = threading.Thread(target=each.start)
        thread.start()
        thread.join()
    print(json.dumps([str(running.directory), *(each.pid for each in running.processes)]), flush=True)
    sys.stdin.read()
"""


def test_no_server_outlives_a_process_that_was_killed() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=root, stdin=-1, stdout=-1) as holder:
        assert holder.stdout
        directory, *pids = json.loads(holder.stdout.readline())
        processes = [psutil.Process(pid) for pid in pids]
        processes += [child for each in processes for child in each.children()]
        assert len(processes) > 5
        assert all(map(is_running, processes))
        holder.kill()
    wait_until(lambda: not any(map(is_running, processes)), "ended")
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def cluster(fast_kafka: None) -> Iterator[Servers]:
    with servers(brokers=3) as running:
        yield running


class Stream:
    """Numbers through a topic. Each attempt has new clients: kafka-python's may be stuck after an outage."""

    def __init__(self, cluster: Servers, topic: str) -> None:
        self.options = cluster.kafka.options("PROXIED") | CLIENT
        self.topic = topic
        self.acknowledged: set[int] = set()

    def flows(self) -> bool:
        """Another number comes through, and all that were acknowledged are there."""
        return wait_until(self.attempt, "read")

    def attempt(self) -> bool:
        with suppress(KafkaError, OSError):
            with closing(KafkaProducer(**self.options, acks="all")) as producer:
                number = len(self.acknowledged)
                producer.send(self.topic, str(number).encode()).get(timeout=10)
                self.acknowledged.add(number)
            return self.read() >= self.acknowledged
        return False

    def read(self) -> set[int]:
        read: set[int] = set()
        group = {"group_id": str(uuid4()), "auto_offset_reset": "earliest", "enable_auto_commit": False}
        with closing(KafkaConsumer(self.topic, **self.options, **group)) as consumer:
            ends_at = time.monotonic() + 10
            while not read >= self.acknowledged and time.monotonic() < ends_at:
                for records in consumer.poll(timeout_ms=500).values():
                    read.update(int(record.value) for record in records)
        return read


@pytest.fixture
def stream(cluster: Servers) -> Iterator[Stream]:
    topic = f"t{uuid4().hex[:12]}"
    cluster.kafka.create_topic(topic)
    yield Stream(cluster, topic)
    print(cluster.tail())
    cluster.kafka.start()


def kill(cluster: Servers, number: int) -> None:
    cluster.kafka.kill(number)


def stop(cluster: Servers, number: int) -> None:
    cluster.kafka.stop(number)


@pytest.mark.parametrize("end", [kill, stop])
def test_a_cluster_goes_on_without_the_leader(
    cluster: Servers, stream: Stream, end: Callable[[Servers, int], None]
) -> None:
    kafka, topic = cluster.kafka, stream.topic
    wait_until(lambda: kafka.in_sync(topic) == {1, 2, 3}, "in sync")
    assert stream.flows()
    leader = kafka.leader_of(topic)
    assert leader
    end(cluster, leader)
    assert stream.flows()
    wait_until(lambda: kafka.in_sync(topic) == {1, 2, 3} - {leader}, "without it")
    assert kafka.leader_of(topic) != leader
    kafka.start(leader)
    wait_until(lambda: kafka.in_sync(topic) == {1, 2, 3}, "in sync")
    assert stream.flows()


def test_a_rolling_restart_is_survived(cluster: Servers, stream: Stream) -> None:
    for number in cluster.kafka.brokers:
        cluster.kafka.stop(number)
        cluster.kafka.start(number)
        wait_until(lambda: cluster.kafka.in_sync(stream.topic) == {1, 2, 3}, "in sync")
        assert stream.flows()


def test_a_write_needs_two_of_three_replicas(cluster: Servers, stream: Stream) -> None:
    assert stream.flows()  # so that there is a __consumer_offsets
    topics = [stream.topic, "__consumer_offsets"]
    with cluster.kafka.admin() as admin:
        described = admin.describe_topics(topics)
        resources = [ConfigResource("topic", name) for name in topics]
        configs = admin.describe_configs(resources, config_filter="all")["topic"]
    assert [len(topic["partitions"][0]["replica_nodes"]) for topic in described] == [3, 3]
    assert [configs[name]["min.insync.replicas"]["value"] for name in topics] == ["2", "2"]
