"""The Dockerfile, built and run as deploy/README.md has it, but with buildah and podman: pytest -m container.

Needs root, debootstrap, buildah, podman, unshare and a mirror of Debian. Not part of .ci/run. The base is Debian 13 by
debootstrap, which has Python 3.13 as python:3.13-slim has, under that name in a storage of this test's own.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import HOST_FILES, ROOT, copy_checkout, debootstrap, wait_until

from servers import Servers, servers

pytestmark = pytest.mark.container

README = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8").split("## Containers")[1].split("\n## ")[0]
BUILD, KEYS, RUN_CONSUMER, RUN_PRODUCER = re.findall(r"^```sh\n(.+?)^```", README, re.MULTILINE | re.DOTALL)
PATHS = dict(line.split("=") for line in re.findall(r"^\w+=/tls/.+$", README, re.MULTILINE))
BASE = "docker.io/library/python:3.13-slim"
# crun refuses control groups of both versions at once: in a mount namespace of our own there is version 2 alone.
GROUPS = 'umount --recursive /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
# podman asks for more files and processes than a machine may be allowed to give.
LIMITS = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
ENTRYPOINT = ["env", "--block-signal=TERM,INT"]


class Engine:
    """buildah and podman with a storage of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.checkout = directory, directory / "checkout"
        self.storage = [f"--root={directory / 'storage'}", f"--runroot={directory / 'run'}"]

    def run(self, program: str, *arguments: str, check: bool = True) -> str:
        """What a command prints, in the checkout."""
        done = subprocess.run(
            [*self._enter(program), *arguments],
            cwd=self.checkout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not check or done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def _enter(self, program: str) -> list[str]:
        return ["unshare", "--mount", "--propagation=slave", "sh", "-c", GROUPS, "sh", program, *self.storage]

    def readme(self, block: str) -> list[str]:
        """A docker run of the README as podman's: in the host's network, where the servers are."""
        words = shlex.split(block.replace("\\\n", " ").replace("$PWD", str(self.checkout)))
        assert words[:2] == ["docker", "run"]
        words = [word for word in words[2:] if not word.startswith(("--restart", "--detach", "--network"))]
        return ["run", "--detach", "--cgroups=disabled", "--network=host", *LIMITS, *words]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The image, built without a warning."""
    engine = Engine(tmp_path_factory.mktemp("engine"))
    base = engine.directory / "base"
    debootstrap("trixie", base, ["python3-venv", "python-is-python3", "ca-certificates"])
    copy_checkout(engine.checkout)
    archive = engine.directory / "base.tar"
    subprocess.run(["tar", "--create", f"--file={archive}", f"--directory={base}", "."], check=True)
    engine.run("podman", "import", str(archive), BASE)
    assert shlex.split(BUILD) == ["docker", "build", "--tag", "eventkafkapostgres", "."]
    files = [f"--volume={path}:{path}:ro" for path in HOST_FILES if Path(path).exists() and "resolv" not in path]
    how = ["--pull-never", "--network=host", "--isolation=chroot", *files]
    said = engine.run("buildah", "build", *how, "--tag", "eventkafkapostgres", ".")
    assert not re.search("warn|deprecat", said, re.IGNORECASE), said
    yield engine
    engine.run("podman", "rm", "--all", "--force", check=False)
    engine.run("podman", "rmi", "--all", "--force", check=False)


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with servers() as started:
        started.kafka.create_topic("bandwidth_exceeds", 3)
        yield started


def shell(engine: Engine, command: str) -> str:
    options = ["--rm", "--cgroups=disabled", "--network=host", "--read-only", "--cap-drop=ALL", *LIMITS]
    return engine.run("podman", "run", *options, "eventkafkapostgres", "sh", "-c", command)


def test_the_image_has_a_user_with_a_group_of_its_own_and_nothing_left_over(engine: Engine) -> None:
    assert shell(engine, "id").strip() == "uid=10001(events) gid=10001(events) groups=10001(events)"
    assert shell(engine, "ls -A ~; ls -d /build /src 2>/dev/null; true") == ""
    assert shell(engine, "grep CapEff /proc/self/status").split() == ["CapEff:", "0" * 16]
    assert shell(engine, "kproducer --version; kconsumer --version").count("1.") == 2
    assert "Read-only" in shell(engine, "touch /etc/x 2>&1; true")


def test_the_readmes_commands_record_warnings(engine: Engine, running: Servers) -> None:
    tls = engine.checkout / "tls"
    tls.mkdir()
    made = running.certificates
    names = {"ca.pem": made.ca, "service.cert": made.service_cert, "service.key": made.service_key}
    for name, path in {**names, "postgres-ca.pem": made.ca}.items():
        shutil.copyfile(path, tls / name)
    subprocess.run(["sh", "-ec", KEYS], cwd=engine.checkout, check=True)
    settings = {**running.environment(), **PATHS}
    (engine.checkout / "docker.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    engine.run("podman", *engine.readme(RUN_CONSUMER))
    limit = "--limit 80Mbit/s"
    assert limit in RUN_PRODUCER
    engine.run("podman", *engine.readme(RUN_PRODUCER.replace(limit, "--limit 0 --interface lo")))
    wait_until(lambda: count(running) > 3, "recorded")
    for name in ("kproducer", "kconsumer"):
        begun = time.monotonic()
        engine.run("podman", "stop", name)
        assert time.monotonic() - begun < 9  # after 10 it is SIGKILL
        assert engine.run("podman", "inspect", "--format={{.State.ExitCode}}", name).strip() == "0"


def count(running: Servers) -> int:
    connection = running.postgres.connect("postgres")
    try:
        with connection.cursor() as cursor:
            cursor.execute("select coalesce(sum(n_live_tup), 0) from pg_stat_user_tables where relname = %s",
                           ("bandwidth_exceeds",))  # fmt: skip
            (found,) = cursor.fetchone() or (0,)
            return int(found)
    finally:
        connection.close()


def holds_back(pid: int, number: signal.Signals) -> bool:
    """Whether a process has blocked a signal."""
    (blocked,) = re.findall(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(blocked, 16) >> number - 1 & 1)


@pytest.mark.parametrize("milliseconds", [0, 10, 30, 60, 100, 150, 200])
@pytest.mark.parametrize("script", ["kproducer.py", "kconsumer.py"])
def test_sigterm_ends_process_1_however_early_it_comes(tmp_path: Path, script: str, milliseconds: int) -> None:
    """Nothing answers. As process 1 a script has no default action for a signal: without its entry it would be lost."""
    assert f"ENTRYPOINT {ENTRYPOINT}".replace("'", '"') in (ROOT / "Dockerfile").read_text()
    environment = {
        "PATH": os.environ["PATH"],
        "STATE_DIRECTORY": str(tmp_path),
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9",
        "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
        "DATABASE_URL": "postgres://nobody:none@127.0.0.1:9/none?sslmode=disable",
    }
    namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *ENTRYPOINT]
    outer = subprocess.Popen([*namespace, sys.executable, str(ROOT / script)], env=environment, cwd=tmp_path)
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    try:
        first = int(wait_until(children.read_text, "a process 1").split()[0])
        wait_until(lambda: holds_back(first, signal.SIGTERM), "begun")
        time.sleep(milliseconds / 1000)  # this time is what is tested
        os.kill(first, signal.SIGTERM)
        assert outer.wait(30) in (0, 1)
    finally:
        outer.kill()
        outer.wait()
