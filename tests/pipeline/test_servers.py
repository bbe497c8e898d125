"""The servers that the other tests stand on: what a cluster survives, and what is left of them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource
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
    """Numbers through a topic, acknowledged one by one."""

    def __init__(self, cluster: Servers, topic: str) -> None:
        options = cluster.kafka.options("PROXIED")
        self.topic = topic
        self.producer = KafkaProducer(**options, **CLIENT, acks="all")
        self.consumer = KafkaConsumer(topic, **options, **CLIENT, group_id=topic, auto_offset_reset="earliest")
        self.sent = 0
        self.read: list[int] = []

    def flows(self) -> bool:
        """Send ten more until they are acknowledged, and read until all have come."""
        for number in range(self.sent, self.sent + 10):
            self.producer.send(self.topic, str(number).encode()).get(timeout=30)
        self.sent += 10
        wait_until(lambda: self.poll() >= set(range(self.sent)), "read")
        return True

    def poll(self) -> set[int]:
        for records in self.consumer.poll(timeout_ms=500).values():
            self.read += [int(record.value) for record in records]
        return set(self.read)

    def close(self) -> None:
        self.producer.close()
        self.consumer.close()


@pytest.fixture
def stream(cluster: Servers, request: pytest.FixtureRequest) -> Iterator[Stream]:
    topic = request.node.name.replace("[", "-").replace("]", "")
    cluster.kafka.create_topic(topic)
    stream = Stream(cluster, topic)
    yield stream
    stream.close()
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
    assert kafka.in_sync(topic) == {1, 2, 3}
    assert stream.flows()
    leader = kafka.leader_of(topic)
    assert leader
    end(cluster, leader)
    assert stream.flows()
    assert kafka.leader_of(topic) not in (leader, None)
    assert kafka.in_sync(topic) == {1, 2, 3} - {leader}
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
