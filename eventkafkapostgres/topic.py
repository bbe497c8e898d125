"""What Kafka says of a topic, and what is wrong with its configuration."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.codec import has_lz4, has_snappy, has_zstd
from kafka.errors import KafkaError

from eventkafkapostgres.outages import INSTALL_PACKAGE

logger = logging.getLogger(__name__)

CODECS: dict[str, Callable[[], bool]] = {"lz4": has_lz4, "snappy": has_snappy, "zstd": has_zstd}


class Topic(NamedTuple):
    """A topic as this user sees it: one that may not be described looks like one that is missing."""

    name: str
    partitions: list[int]
    without_leader: list[int]  # partitions
    operations: list[str]  # what this user may do with it
    topic_id: uuid.UUID | None  # None before Kafka 2.8
    configs: Mapping[str, str]  # empty where this user may not describe them


def make_admin(options: Mapping[str, Any], context: Any, seconds: float) -> KafkaAdminClient:
    """A client that asks Kafka and never creates what it asks for. KafkaError when Kafka does not answer in time."""
    known = {name: value for name, value in options.items() if name in KafkaAdminClient.DEFAULT_CONFIG}
    return KafkaAdminClient(ssl_context=context, **known | {"bootstrap_timeout_ms": seconds * 1000})


def describe_topic(admin: KafkaAdminClient, name: str) -> Topic:
    """Ask Kafka for a topic. KafkaError when it refuses or does not answer."""
    described = admin.describe_topics([name])[0]
    partitions = {each["partition_index"]: each["leader_id"] for each in described["partitions"]}
    topic_id = described.get("topic_id")
    configs: dict[str, str] = {}
    if partitions:
        wanted = ConfigResource(ConfigResourceType.TOPIC, name, {"cleanup.policy": None, "compression.type": None})
        answer = admin.describe_configs([wanted], config_filter="all")["topic"][name]
        configs = {key: config["value"] for key, config in answer.items()}
    return Topic(
        name,
        sorted(partitions),
        sorted(number for number, leader in partitions.items() if leader < 0),
        described["authorized_operations"] or [],
        uuid.UUID(str(topic_id)) if topic_id else None,
        configs,
    )


def config_problems(topic: Topic, reads: bool = True) -> Iterator[str]:
    """What is wrong with the topic's configuration for who reads it, or writes to it; and what to do."""
    if "compact" in topic.configs.get("cleanup.policy", ""):
        yield (
            f"topic {topic.name}: cleanup.policy={topic.configs['cleanup.policy']} deletes all but the last warning "
            "of each host: set cleanup.policy=delete"
        )
    codec = topic.configs.get("compression.type", "")
    if reads and codec in CODECS and not CODECS[codec]():
        yield f"topic {topic.name}: compression.type={codec} {INSTALL_PACKAGE[codec]}"


def log_config_problems(
    options: Mapping[str, Any], context: Any, name: str, seconds: float = 30.0, pause_seconds: float = 60.0
) -> None:
    """Log once what is wrong with the topic's configuration, in a thread: nobody waits for Kafka, or for the topic.

    A package that is missing is left to the first message that needs it: then it is one line, with the end.
    """

    def ask() -> Topic | None:
        try:
            with closing(make_admin(options, context, seconds)) as admin:
                return describe_topic(admin, name)
        except KafkaError as error:  # the script itself says so
            logger.debug("the topic's configuration is unknown: %s", error)
            return None

    def ask_until_known() -> None:
        while not ((described := ask()) and described.partitions):
            time.sleep(pause_seconds)
        for problem in config_problems(described, reads=False):
            logger.warning("Kafka: %s", problem)

    threading.Thread(target=ask_until_known, name="topic", daemon=True).start()
