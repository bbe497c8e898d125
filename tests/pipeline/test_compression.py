"""Topics whose messages the broker compresses: each codec but gzip needs a Python package, which may be missing."""

import os
import re
from pathlib import Path

import pytest
from kafka.admin import ConfigResource, ConfigResourceType
from pipeline import Pipeline, Script, warnings

pytestmark = pytest.mark.long

PACKAGES = {"lz4": "lz4", "snappy": "python-snappy", "zstd": "zstandard"}
MODULES = {"lz4": ["lz4", "lz4f", "lz4framed"], "snappy": ["snappy"], "zstd": ["zstandard"]}  # kafka-python imports


def without_packages(directory: Path) -> dict[str, str | None]:
    """What of an environment hides the packages."""
    hidden = directory / "hidden"
    hidden.mkdir()
    for modules in MODULES.values():
        for module in modules:
            (hidden / f"{module}.py").write_text("raise ImportError\n")
    return {"PYTHONPATH": str(hidden)}


def compress(pipeline: Pipeline, codec: str) -> None:
    """From now on the broker compresses what comes."""
    wanted = ConfigResource(ConfigResourceType.TOPIC, pipeline.topic, {"compression.type": codec})
    with pipeline.servers.kafka.admin() as admin:
        admin.alter_configs([wanted])


@pytest.fixture
def bare(pipeline: Pipeline) -> dict[str, str]:
    return pipeline.environment(**without_packages(pipeline.directory))


def remedy(codec: str) -> str:
    package = PACKAGES[codec]
    return f"needs the Python package {package}: pip install {package} (all of them: the extra 'compression')"


def assert_ended_for_want_of(codec: str, consumer: Script) -> None:
    """With one line, which names the package."""
    assert consumer.ends() == 2
    errors = [re.sub(r"^\S+ \S+ ", "", line) for line in consumer.complaints() if codec in line]
    assert errors == [f"ERROR Kafka: compression {codec} {remedy(codec)}"]


@pytest.mark.parametrize("codec", PACKAGES)
def test_a_package_that_is_missing_is_named_and_nothing_is_lost(
    pipeline: Pipeline, bare: dict[str, str], codec: str
) -> None:
    pipeline.send(warnings(5))
    compress(pipeline, codec)
    pipeline.send(warnings(7))
    checking = pipeline.consumer("--check", environment=bare)
    assert checking.ends() == 1
    assert [line for line in checking.lines() if line.startswith("✗")] == [
        f"✗ topic {pipeline.topic}: compression.type={codec} {remedy(codec)}"
    ]
    for _ in range(2):  # the second one finds nothing that it can read
        assert_ended_for_want_of(codec, pipeline.consumer(environment=bare))
        assert pipeline.count() == 5
        assert pipeline.consumed() == {0: 5}
    assert pipeline.rejected() == []


def test_a_consumer_that_runs_ends_at_the_first_message_that_it_cannot_read(
    pipeline: Pipeline, bare: dict[str, str]
) -> None:
    consumer = pipeline.consumer(environment=bare)
    pipeline.send(warnings(5))
    pipeline.has_rows(5)
    compress(pipeline, "zstd")
    pipeline.send(warnings(7))
    assert_ended_for_want_of("zstd", consumer)
    assert pipeline.consumed() == {0: 5}


def test_a_producer_needs_no_package_for_what_the_broker_compresses(pipeline: Pipeline, bare: dict[str, str]) -> None:
    compress(pipeline, "zstd")
    producer = pipeline.producer("--check", environment=bare)
    assert producer.ends() == 0, producer.lines()


@pytest.mark.parametrize("codec", ["gzip", *PACKAGES])
def test_once_its_package_is_there_everything_arrives(pipeline: Pipeline, bare: dict[str, str], codec: str) -> None:
    if codec in PACKAGES:
        pytest.importorskip(MODULES[codec][0])
    environment = pipeline.environment(PYTHONPATH=os.environ.get("PYTHONPATH"))
    pipeline.send(warnings(5))
    compress(pipeline, codec)
    pipeline.send(warnings(7))
    if codec in PACKAGES:
        assert_ended_for_want_of(codec, pipeline.consumer(environment=bare))
    checking = pipeline.consumer("--check", environment=environment)
    assert checking.ends() == 0, checking.lines()
    consumer = pipeline.consumer("--until-empty", environment=environment)
    assert consumer.ends() == 0
    assert consumer.complaints() == []
    pipeline.assert_topic_is_recorded()
    assert pipeline.count() == 12
