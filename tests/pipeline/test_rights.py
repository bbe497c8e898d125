"""Who may do what: SASL next to client certificates, and what becomes of warnings while a right is missing."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pipeline import Pipeline, Script, new_pipeline, wait_until, warnings

from servers import Servers

pytestmark = pytest.mark.long

MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN")


@pytest.fixture(scope="module")
def impatient(guarded: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """A consumer with --until-empty and without a right to its group; it gives up while other tests run."""
    with new_pipeline(guarded, tmp_path_factory.mktemp("impatient")) as pipeline:
        pipeline.send(warnings(5))
        allow(pipeline, "READ")
        yield pipeline.consumer("--until-empty", environment=pipeline.environment(**certificate(pipeline)))
        assert pipeline.rows() == pipeline.rejected() == []
        assert pipeline.consumed() == pipeline.committed() == {}
        guarded.kafka.disallow(pipeline.topic)


@pytest.fixture
def guarded_pipeline(impatient: Script, guarded: Servers, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline on a Kafka with ACLs, where the scripts' user may do nothing yet."""
    with new_pipeline(guarded, tmp_path) as made:
        yield made
        guarded.kafka.disallow(made.topic)


@pytest.fixture
def user(guarded_pipeline: Pipeline) -> dict[str, str | None]:
    """The environment of a user who is called as the topic is, and may do nothing yet."""
    return certificate(guarded_pipeline)


def certificate(pipeline: Pipeline) -> dict[str, str | None]:
    cert, key = pipeline.servers.certificates.client(pipeline.topic)
    return {"KAFKA_SSL_CERTFILE": str(cert), "KAFKA_SSL_KEYFILE": str(key)}


def sasl(pipeline: Pipeline, mechanism: str, **changes: str | None) -> dict[str, str]:
    """The environment with a user and a password, and without the client certificate."""
    without: dict[str, str | None] = {"KAFKA_SSL_CERTFILE": None, "KAFKA_SSL_KEYFILE": None}
    return pipeline.environment(**without | pipeline.servers.kafka.environment("SASL", mechanism) | changes)


def allow(pipeline: Pipeline, *operations: str) -> None:
    """Grant the scripts' user something on the topic."""
    pipeline.servers.kafka.allow(pipeline.topic, *operations, topic=pipeline.topic)


def allow_group(pipeline: Pipeline, *operations: str) -> None:
    pipeline.servers.kafka.allow(pipeline.topic, *operations, group=pipeline.group)


def said_of_kafka(script: Script) -> list[str]:
    """What it said of Kafka, without time and level."""
    return [line.split(" ", 3)[3] for line in script.lines() if re.search(" (?:INFO|WARNING) Kafka: ", line)]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_both_scripts_work_with_a_user_and_a_password(pipeline: Pipeline, mechanism: str) -> None:
    environment = sasl(pipeline, mechanism)
    producer = pipeline.producer("--flush-interval", "1", environment=environment)
    consumer = pipeline.consumer(environment=environment)
    assert producer.ends() == 0
    pipeline.has_rows(len(producer.raised()))
    assert consumer.stop() == 0
    assert len(pipeline.assert_recorded()) == len(producer.raised()) > 0
    assert producer.complaints() == consumer.complaints() == []


def test_without_a_ca_file_the_systems_cas_count(pipeline: Pipeline) -> None:
    # OpenSSL takes this file for the system's
    system = {"KAFKA_SSL_CAFILE": None, "SSL_CERT_FILE": str(pipeline.servers.certificates.ca)}
    environment = sasl(pipeline, "SCRAM-SHA-256", **system)
    assert pipeline.producer("--flush-interval", "1", environment=environment).ends() == 0
    pipeline.drain(environment=environment)
    assert pipeline.assert_recorded()


def test_the_systems_cas_do_not_trust_a_broker_of_ones_own_ca(pipeline: Pipeline) -> None:
    ca, *_ = pipeline.servers.certificates.foreign
    system = {"KAFKA_SSL_CAFILE": None, "SSL_CERT_FILE": str(ca)}
    producer = pipeline.producer(environment=sasl(pipeline, "PLAIN", **system))
    producer.says("Kafka: the broker's certificate is not signed by the CA")
    producer.stop()
    assert pipeline.sent() == 0


def test_a_wrong_password_is_logged_and_loses_nothing(pipeline: Pipeline) -> None:
    mechanism, wrong = "SCRAM-SHA-512", "not the password"
    environment = sasl(pipeline, mechanism, KAFKA_SASL_PLAIN_PASSWORD=wrong)
    producer = pipeline.producer("--forever", "--flush-interval", "1", environment=environment)
    consumer = pipeline.consumer(environment=environment)
    for script in (producer, consumer):
        script.says("Kafka: the broker does not accept KAFKA_SASL_PLAIN_USERNAME with its password; trying again")
    assert producer.stop() == 1
    assert consumer.stop() == 0
    for script in (producer, consumer):
        assert len(said_of_kafka(script)) == 1
        assert not any(wrong in line or pipeline.servers.kafka.password in line for line in script.lines())
    environment = sasl(pipeline, mechanism)
    assert pipeline.producer("--flush-interval", "1", environment=environment).ends() == 0
    pipeline.drain(environment=environment)
    assert len(pipeline.assert_recorded()) > len(producer.raised()) > 0


@pytest.mark.parametrize("granted", ["", "DESCRIBE"])
def test_without_the_right_to_write_warnings_wait_and_go_out_once_it_is_granted(
    guarded_pipeline: Pipeline, user: dict[str, str | None], granted: str
) -> None:
    pipeline = guarded_pipeline
    if granted:
        allow(pipeline, granted)
    producer = pipeline.producer("--forever", "--flush-interval", "1", environment=pipeline.environment(**user))
    producer.says("Kafka: no right to the topic: this user needs DESCRIBE and WRITE .*; trying again")
    producer.raises(20)
    assert pipeline.sent() == 0
    allow(pipeline, "DESCRIBE", "WRITE")
    producer.says("Kafka: works again")
    wait_until(lambda: pipeline.sent() >= 20, "20 warnings sent")
    assert producer.stop() == 0
    assert [line.partition(":")[2][:9] for line in said_of_kafka(producer)] == [" no right", " works ag"]
    pipeline.drain()
    assert len(pipeline.assert_recorded()) == len(producer.raised())


@pytest.mark.parametrize("missing", ["topic", "consumer group"])
def test_without_a_right_to_read_nothing_is_recorded_and_all_is_once_it_is_granted(
    guarded_pipeline: Pipeline, user: dict[str, str | None], missing: str
) -> None:
    pipeline = guarded_pipeline
    grants: dict[str, Callable[[], None]] = {
        "topic": lambda: allow(pipeline, "READ"),
        "consumer group": lambda: allow_group(pipeline, "READ"),
    }
    grant = grants.pop(missing)
    for other in grants.values():
        other()
    pipeline.send(warnings(50))
    consumer = pipeline.consumer(environment=pipeline.environment(**user))
    consumer.says(f"Kafka: no right to the {missing}: this user needs .*READ.*; trying again")
    assert pipeline.count() == 0
    assert pipeline.consumed() == pipeline.committed() == {}
    grant()
    pipeline.has_rows(50)
    pipeline.send(warnings(50))
    pipeline.has_rows(100)
    consumer.says("Kafka: works again")
    assert consumer.stop() == 0
    assert [line.partition(":")[2][:9] for line in said_of_kafka(consumer)] == [" no right", " works ag"]
    assert pipeline.count() == 100
    assert pipeline.rejected() == []


def test_rights_that_are_taken_away_and_given_back_lose_nothing_and_repeat_nothing(
    guarded_pipeline: Pipeline, user: dict[str, str | None]
) -> None:
    pipeline, environment = guarded_pipeline, guarded_pipeline.environment(**user)
    allow(pipeline, "DESCRIBE", "WRITE", "READ")
    allow_group(pipeline, "READ")
    producer = pipeline.producer("--forever", "--flush-interval", "1", environment=environment)
    consumer = pipeline.consumer(environment=environment)
    pipeline.has_rows(10)
    pipeline.servers.kafka.disallow(pipeline.topic)
    for script in (producer, consumer):
        script.says("Kafka: no right to the .*; trying again")
    producer.raises(len(producer.raised()) + 20)
    allow(pipeline, "DESCRIBE", "WRITE", "READ")
    allow_group(pipeline, "READ")
    for script in (producer, consumer):
        script.says("Kafka: works again")
    pipeline.assert_all_arrive(producer, consumer)


def test_until_empty_gives_up_without_the_right_to_the_group(impatient: Script) -> None:
    assert impatient.ends() == 1
    assert impatient.says("Kafka: no right to the consumer group")
    assert impatient.says("gave up after 15 seconds")
