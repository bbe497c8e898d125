"""Who is refused says the cause once, with what to do, and ends: by Kafka, by PostgreSQL, both scripts."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline import Script, new_pipeline, warnings

from servers import Servers

pytestmark = pytest.mark.long

Refusal = tuple[str, dict[str, str | None], list[str], str]


def kafka_refusals(servers: Servers) -> list[Refusal]:
    certificates = servers.certificates
    foreign_ca, foreign_cert, foreign_key = certificates.foreign
    late_cert, late_key = certificates.client("late", days=-1)

    def client(cert: Path, key: Path) -> dict[str, str | None]:
        return {"KAFKA_SSL_CERTFILE": str(cert), "KAFKA_SSL_KEYFILE": str(key)}

    nobody: dict[str, str | None] = {"KAFKA_SSL_CERTFILE": None, "KAFKA_SSL_KEYFILE": None}
    sasl = nobody | servers.kafka.environment("SASL") | {"KAFKA_SASL_PLAIN_PASSWORD": "not-this-one"}
    return [
        ("wrong CA", {"KAFKA_SSL_CAFILE": str(foreign_ca)}, [], r"certificate.*KAFKA_SSL_CAFILE"),
        ("foreign client certificate", client(foreign_cert, foreign_key), [], r"KAFKA_SSL_CERTFILE"),
        ("expired client certificate", client(late_cert, late_key), [], r"KAFKA_SSL_CERTFILE"),
        ("no client certificate", nobody, [], r"KAFKA_SSL_CERTFILE"),
        ("plain text to a TLS port", nobody | {"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT", "KAFKA_SSL_CAFILE": None}, [],
         r"KAFKA_SECURITY_PROTOCOL|TLS|SSL"),
        ("wrong SASL password", sasl, [], r"KAFKA_SASL_PLAIN_PASSWORD|[Pp]assword|[Aa]uthentication"),
        ("nothing there", {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}, [], r"127\.0\.0\.1:1\b|refused"),
        ("unknown name", {"KAFKA_BOOTSTRAP_SERVERS": "no-such-host.invalid:9092"}, [], r"no-such-host\.invalid"),
        ("missing topic", {}, ["--topic", "none-such"], r"none-such"),
    ]  # fmt: skip


def postgres_refusals(servers: Servers) -> list[Refusal]:
    return [
        ("PG wrong password", {"PGPASSWORD": "not-this-one"}, [], r"password"),
        ("PG wrong CA", {"PGSSLROOTCERT": str(servers.certificates.foreign[0])}, [], r"certificate"),
        ("PG no such database", {"PGDATABASE": "none-such"}, [], r"none-such"),
        ("PG nothing there", {"PGPORT": "1"}, [], r"refused"),
        ("PG may not make tables", {"PGDATABASE": "postgres"}, [], r"bandwidth_exceeds.*permission denied"),
        ("PG other name", {"PGHOST": "127.0.0.2"}, [], r"127\.0\.0\.2"),
    ]


PRODUCER_REFUSED = ("wrong CA", "foreign client certificate", "expired client certificate", "no client certificate",
                    "plain text to a TLS port", "wrong SASL password", "nothing there", "unknown name",
                    "missing topic")  # fmt: skip
CONSUMER_REFUSED = (*PRODUCER_REFUSED, "PG wrong password", "PG wrong CA", "PG no such database", "PG nothing there",
                    "PG may not make tables", "PG other name")  # fmt: skip


@pytest.fixture(scope="module")
def refused(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Script, str]]]:
    """All scripts that are refused, at once, for a consumer tries for 15 seconds; and the causes that they owe us."""
    with new_pipeline(running, tmp_path_factory.mktemp("refused")) as pipeline:
        pipeline.send(warnings(1))
        started = {}
        for number, (name, changes, arguments, cause) in enumerate(kafka_refusals(running)):
            environment = pipeline.environment(**changes)
            producer = pipeline.producer("--forever", *arguments, host=f"web-{number}", environment=environment)
            started[f"producer {name}"] = producer, cause
        for name, changes, arguments, cause in (*kafka_refusals(running), *postgres_refusals(running)):
            own = ["--group", name.replace(" ", "-")]
            consumer = pipeline.consumer("--until-empty", *own, *arguments, environment=pipeline.environment(**changes))
            started[f"consumer {name}"] = consumer, cause
        yield started


@pytest.mark.parametrize(
    "name", [*(f"producer {name}" for name in PRODUCER_REFUSED), *(f"consumer {name}" for name in CONSUMER_REFUSED)]
)
def test_who_is_refused_logs_the_cause_once_and_ends_with_1(
    refused: dict[str, tuple[Script, str]], name: str, running: Servers
) -> None:
    """The consumers try for 15 seconds, all at once; a producer is stopped when it has named the cause."""
    script, cause = refused[name]
    if name.startswith("producer"):
        assert script.says(f"(?:{cause}).*; trying again")
    assert (script.stop() if name.startswith("producer") else script.ends()) == 1
    said = "\n".join(script.lines())
    assert "Traceback" not in said
    for secret in ("not-this-one", *running.postgres.passwords.values(), running.kafka.password):
        assert secret not in said
    complaints = [line.split(maxsplit=2)[-1] for line in script.complaints()]  # without the time
    outages = [line for line in complaints if line.endswith("; trying again")]
    assert sum(bool(re.search(cause, line)) for line in outages) == 1
    assert len(complaints) == len(set(complaints))
