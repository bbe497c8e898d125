"""Client certificates end, and are renewed on disk: new connections use the new ones, without a restart."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pipeline import SCRIPTS, Pipeline, new_pipeline, wait_until

from servers import Servers

pytestmark = pytest.mark.long


class Files:
    """The certificate and the key that a script is told of, in places where they can be replaced."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.certificates, self.directory = pipeline.servers.certificates, pipeline.directory
        self.cert, self.key = self.directory / "service.cert", self.directory / "service.key"
        self.environment = pipeline.environment(
            proxied=True, KAFKA_SSL_CERTFILE=str(self.cert), KAFKA_SSL_KEYFILE=str(self.key)
        )

    def write(self, cert: Path | None, key: Path | None) -> None:
        """Put other contents there."""
        for new, path in ((key, self.key), (cert, self.cert)):
            if new:
                before = path.stat().st_mtime_ns if path.exists() else 0
                path.write_bytes(new.read_bytes())
                os.utime(path, ns=(before + 10**9, before + 10**9))  # a coarse clock must not hide it


@pytest.fixture
def guarded_pipeline(guarded: Servers, tmp_path: Path) -> Iterator[Pipeline]:
    with new_pipeline(guarded, tmp_path) as made:
        yield made
        for user in (f"old-{made.topic}", f"new-{made.topic}"):
            guarded.kafka.disallow(user)


@pytest.fixture
def clients(guarded_pipeline: Pipeline) -> dict[str, tuple[Path, Path]]:
    """Certificate and key of two clients, whom Kafka tells apart, and who may do everything here."""
    servers, topic = guarded_pipeline.servers, guarded_pipeline.topic
    made = {}
    for name in ("old", "new"):
        user = f"{name}-{topic}"
        made[name] = servers.certificates.client(user)
        servers.kafka.allow(user, "DESCRIBE", "WRITE", "READ", topic=topic)
        servers.kafka.allow(user, "READ", group=guarded_pipeline.group)
    return made


def impatient(directory: Path) -> Path:
    """Copies of the scripts, whose consumer looks at its files each second instead of each minute or ten."""
    scripts = directory / "scripts"
    scripts.mkdir()
    for name in ("kproducer.py", "kconsumer.py", "simpleEvents.py"):
        shutil.copy(SCRIPTS / name, scripts)
    shutil.copytree(SCRIPTS / "eventkafkapostgres", scripts / "eventkafkapostgres")
    script = scripts / "eventkafkapostgres" / "progress.py"
    text = script.read_text()
    assert text.count("LOG_SECONDS, IDLE_LOG_SECONDS = 60.0, 600.0") == 1
    script.write_text(
        text.replace("LOG_SECONDS, IDLE_LOG_SECONDS = 60.0, 600.0", "LOG_SECONDS, IDLE_LOG_SECONDS = 1.0, 1.0")
    )
    return scripts


def test_a_certificate_that_ends_soon_is_logged_once(pipeline: Pipeline) -> None:
    files = Files(pipeline)
    files.write(*pipeline.servers.certificates.client("soon", days=5.5))
    producer = pipeline.producer("--forever", "--flush-interval", "0.5", environment=files.environment)
    consumer = pipeline.consumer(environment=files.environment, scripts=impatient(pipeline.directory))
    producer.raises(20)
    pipeline.has_rows(20)
    consumer.says("recorded in the last")
    for script in (producer, consumer):
        assert script.says(r"WARNING KAFKA_SSL_CERTFILE expires in 5 days: get a new one$")
        assert sum("expires in" in line for line in script.lines()) == 1
        assert script.stop() == 0


def test_a_producer_uses_certificates_that_were_renewed_on_disk(
    guarded_pipeline: Pipeline, clients: dict[str, tuple[Path, Path]]
) -> None:
    pipeline, files = guarded_pipeline, Files(guarded_pipeline)
    files.write(*clients["old"])
    producer = pipeline.producer("--forever", "--flush-interval", "0.5", environment=files.environment)
    renewed_files_are_used(pipeline, files, clients, producer.says)
    assert producer.stop() == 0
    pipeline.drain()
    assert len(pipeline.assert_recorded()) == len(producer.raised())


def test_a_consumer_uses_certificates_that_were_renewed_on_disk(
    guarded_pipeline: Pipeline, clients: dict[str, tuple[Path, Path]]
) -> None:
    pipeline, files = guarded_pipeline, Files(guarded_pipeline)
    files.write(*clients["old"])
    consumer = pipeline.consumer(environment=files.environment, scripts=impatient(pipeline.directory))
    producer = pipeline.producer("--forever", "--flush-interval", "0.5")
    renewed_files_are_used(pipeline, files, clients, consumer.says)
    pipeline.assert_all_arrive(producer, consumer)


def renewed_files_are_used(
    pipeline: Pipeline, files: Files, clients: dict[str, tuple[Path, Path]], says: Callable[[str], str]
) -> None:
    """Replace the old client's files by the new one's, in two steps, and lock the old one out."""
    kafka, proxy = pipeline.servers.kafka, pipeline.servers.kafka_proxy

    def goes_on() -> None:
        """More arrives, through connections that are new."""
        proxy.reset()
        if any(script.log.stem.endswith("kconsumer") for script in pipeline.scripts):
            pipeline.has_rows(pipeline.count() + 10)
        else:
            count = pipeline.sent() + 10
            wait_until(lambda: pipeline.sent() >= count, f"{count} messages sent")

    goes_on()
    files.write(None, clients["new"][1])  # half of it
    says("WARNING the certificates on disk can't be used, the old ones are: .* don't fit")
    goes_on()
    files.write(clients["new"][0], None)
    says("INFO the certificates on disk were renewed: new connections use them")
    kafka.disallow(f"old-{pipeline.topic}")
    goes_on()


def test_scripts_whose_certificate_had_expired_go_on_once_the_files_are_renewed(pipeline: Pipeline) -> None:
    files = Files(pipeline)
    files.write(*pipeline.servers.certificates.client("expired", days=-1))
    producer = pipeline.producer("--forever", "--flush-interval", "0.5", environment=files.environment)
    consumer = pipeline.consumer(environment=files.environment)
    for script in (producer, consumer):
        script.says("Kafka: the broker does not accept the client certificate in KAFKA_SSL_CERTFILE; trying again")
        assert script.says("WARNING KAFKA_SSL_CERTFILE expired 1 day ago: get a new one")
    for path in (files.cert, files.key):
        path.unlink()
    for script in (producer, consumer):
        script.says("WARNING the certificates on disk can't be used, the old ones are: .*No such file")
    files.write(*pipeline.servers.certificates.client("renewed"))
    for script in (producer, consumer):
        script.says("Kafka: works again")
        assert sum("can't be used" in line for line in script.lines()) <= 3  # gone, and perhaps half written
    pipeline.assert_all_arrive(producer, consumer)
