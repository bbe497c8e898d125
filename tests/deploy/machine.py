"""A Debian of its own with systemd as its first process, in the host's network: debootstrap and systemd-nspawn."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import psutil

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = "/root/eventKafkaPostgres"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3-venv", "ca-certificates")
START_SECONDS = 60.0
DEADLINE = 60.0  # for what takes seconds
# How the host reaches its package registries, if it is in a way of its own.
HOST_FILES = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/resolv.conf")

Result = TypeVar("Result")


def wait_until(condition: Callable[[], Result], what: str, seconds: float = DEADLINE) -> Result:
    """The first true result of a condition; AssertionError with the last one when the time is over."""
    ends_at = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < ends_at, f"after {seconds:.0f} seconds still not {what}: {result!r}"
        time.sleep(0.02)
    return result


class Machine:
    """A running machine. Commands are root's, and their failure is ours."""

    def __init__(self, name: str, root: Path, leader: int) -> None:
        self.name, self.root, self.leader = name, root, leader
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_") and "LINKS" not in name},
        }

    def run(self, command: str, check: bool = True) -> str:
        """What a shell's command prints, in the checkout."""
        enter = ["nsenter", "--target", str(self.leader), "--all", "--root", "--", "/bin/bash", "-ec"]
        done = subprocess.run(
            [*enter, f"cd {CHECKOUT}; {command}"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not check or done.returncode == 0, f"{command}\nended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def is_up(self) -> bool:
        """Whether systemd has started all that it starts."""
        return self.run("systemctl is-system-running", check=False).strip() in ("running", "degraded")

    def property(self, unit: str, name: str) -> str:
        return self.run(f"systemctl show --value --property {name} {unit}").strip()

    def is_active(self, unit: str) -> bool:
        return self.property(unit, "ActiveState") == "active"

    def failed(self) -> list[str]:
        """What systemctl --failed shows."""
        lines = self.run("systemctl --failed --plain --no-legend --no-pager").splitlines()
        return [line.split()[0] for line in lines]

    def journal(self, unit: str) -> list[dict[str, str]]:
        """What a service itself said since its last start: each line with its priority."""
        invocation = self.property(unit, "InvocationID")
        lines = self.run(f"journalctl --no-pager -o json _SYSTEMD_INVOCATION_ID={invocation}", check=False).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def says(self, unit: str, text: str) -> dict[str, str]:
        """Wait for a line of a service with this text."""

        def line() -> dict[str, str] | None:
            return next((line for line in self.journal(unit) if text in line["MESSAGE"]), None)

        try:
            found = wait_until(line, f"said by {unit}: {text}")
        except AssertionError:
            raise AssertionError(self.run(f"journalctl --no-pager -n 40 -u {unit}", check=False)) from None
        assert found
        return found

    def write(self, path: str, text: str) -> None:
        """Write a file that only root may read."""
        inside = self.root / path.lstrip("/")
        inside.touch(mode=0o600)
        inside.write_text(text)


def debootstrap(release: str, root: Path, packages: Iterable[str]) -> None:
    """A release of Debian in a directory."""
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", release, str(root)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()[-2000:]


def copy_checkout(checkout: Path) -> None:
    """What this checkout has under version control, or is about to have."""
    checkout.mkdir(parents=True)
    files = subprocess.run(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, stdout=subprocess.PIPE)
    tar = ["tar", "--create", f"--directory={ROOT}", "--ignore-failed-read", "--null", "--files-from=-"]
    with subprocess.Popen(tar, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as packed:
        assert packed.stdin
        packed.stdin.write(files.stdout)
        packed.stdin.close()
        subprocess.run(["tar", "--extract", "--directory", str(checkout)], stdin=packed.stdout, check=True)


@contextmanager
def own_cgroup(name: str) -> Iterator[Path]:
    """A control group (v2) for one machine: where machines share one, the second one's systemd does not start."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    top = Path(next(mount[1] for mount in mounts if mount[2] == "cgroup2"))
    group = top / name
    group.mkdir()
    try:
        yield group
    finally:
        for directory, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                os.rmdir(directory)


def first_process(container: "subprocess.Popen[bytes]", log: Path) -> int:
    """The machine's systemd, as the host sees it."""

    def found() -> int:
        assert container.poll() is None, log.read_text(errors="replace")
        children = psutil.Process(container.pid).children()
        return next((child.pid for child in children if child.name() == "systemd"), 0)

    return wait_until(found, "a first process", START_SECONDS)


@contextmanager
def booted(release: str, directory: Path) -> Iterator[Machine]:
    """A machine with a release of Debian, until the `with` ends."""
    assert os.geteuid() == 0, "debootstrap and systemd-nspawn need root"
    name, root = f"ekp-{release}-{os.getpid()}", directory / release
    debootstrap(release, root, PACKAGES)
    copy_checkout(root / CHECKOUT.lstrip("/"))
    nspawn = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"]
    binds = [f"--bind-ro={path}" for path in HOST_FILES if Path(path).exists()]
    with own_cgroup(name) as cgroup, (directory / f"{release}.log").open("wb") as log:
        # a shell that moves itself, not us, into the control group
        enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(cgroup / "cgroup.procs")]
        container = subprocess.Popen(
            [*enter, *nspawn, "--resolv-conf=off", f"--machine={name}", f"--directory={root}", *binds],
            env=os.environ | {"UNIFIED_CGROUP_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            machine = Machine(name, root, first_process(container, Path(log.name)))
            wait_until(machine.is_up, "started", START_SECONDS)
            assert machine.failed() == []
            yield machine
        finally:
            container.send_signal(signal.SIGTERM)  # nspawn shuts the machine down
            with suppress(subprocess.TimeoutExpired):
                container.wait(30)
            container.kill()
            container.wait()
