"""The demonstration as anybody starts it: from a checkout under any name, and with nothing left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from pipeline import DEADLINE, wait_until

from servers.process import is_running

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
MARK = "DEMONSTRATION_OF_A_TEST"
RESULT = re.compile(
    r"^  ✓ (\d+) warnings raised, \1 rows, compared by event_id: every one arrived, once\.\n"
    r"    \d+ of them waited for a restart: (\d+) of kconsumer, (\d+) of PostgreSQL\.$",
    re.MULTILINE,
)
SECOND = re.compile(r"^ +\d+ +[\d.]+ MB/s  .{21} +(?P<warnings>\d+) +(?P<rows>\d+)(?:  (?P<note>.+))?$", re.MULTILINE)
TRAFFIC = "Bursts of traffic on loopback"


class Demonstration:
    """`python -m demo` as a process in a copy of the checkout, with a folder for temporary files of its own."""

    def __init__(self, directory: Path) -> None:
        # not pytest's folder: PostgreSQL runs as nobody when we are root, and could not enter that
        self.temporary = Path(tempfile.mkdtemp(prefix="demonstration-"))
        self.temporary.chmod(0o755)
        self.checkout, self.log = directory / "an other-name 2.0", directory / "demo.log"
        shutil.copytree(ROOT, self.checkout, ignore=shutil.ignore_patterns(".*", "__pycache__", "bandwidth.png"))
        self.files = self.found()
        environment = {MARK: str(directory), "TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "demo", "--no-picture"],
                env=os.environ | environment | {"PYTHONUTF8": "1"},
                cwd=self.checkout,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def found(self) -> set[Path]:
        return set(self.checkout.rglob("*"))

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def processes(self) -> list[psutil.Process]:
        """Whatever it started and runs still: the mark in the environment is handed down."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.log.parent) and process.status() != psutil.STATUS_ZOMBIE:
                    mine.append(process)
            except psutil.Error:  # somebody else's, or gone meanwhile
                continue
        return mine

    def assert_nothing_is_left(self) -> None:
        assert self.processes() == []
        assert list(self.temporary.iterdir()) == []
        assert self.found() == self.files

    def close(self) -> None:
        self.process.terminate()
        for process in self.processes():
            process.kill()
        self.process.wait()
        shutil.rmtree(self.temporary)
        print(self.text())


@pytest.fixture
def demonstration(tmp_path: Path) -> Iterator[Demonstration]:
    started = Demonstration(tmp_path)
    yield started
    started.close()


def test_the_demonstration_ends_with_its_result_and_leaves_nothing_behind(demonstration: Demonstration) -> None:
    """Half a minute of traffic, and the servers' start."""
    wait_until(demonstration.processes, "running")
    assert demonstration.process.wait(2 * DEADLINE) == 0
    result = RESULT.search(demonstration.text())
    assert result
    assert all(int(waited) > 1 for waited in result.groups()[1:])
    assert all(len(line) <= 80 for line in demonstration.text().splitlines())
    demonstration.assert_nothing_is_left()
    assert_the_table_shows_the_outages(demonstration.text())


def assert_the_table_shows_the_outages(text: str) -> None:
    """While something is away, warnings go on and rows stand still; then the rows catch up."""
    seconds = list(SECOND.finditer(text))
    at = {second["note"]: number for number, second in enumerate(seconds) if second["note"]}
    for away, back in (("kill -9 kconsumer", "kconsumer started"), ("PostgreSQL stopped", "PostgreSQL started")):
        first, *_, last = seconds[at[away] + 1 : at[back] + 1]
        assert first["rows"] == last["rows"]
        assert int(first["warnings"]) < int(last["warnings"])
    assert at["PostgreSQL stopped"] < at["PostgreSQL started"] < at["all rows are there"]


@pytest.mark.parametrize("stage", ["Starting Apache Kafka", TRAFFIC, "PostgreSQL stopped"])
def test_a_demonstration_that_is_interrupted_leaves_nothing_behind_either(
    demonstration: Demonstration, stage: str
) -> None:
    """The servers' start."""
    wait_until(lambda: stage in demonstration.text(), f"at {stage}")
    demonstration.process.send_signal(signal.SIGINT)
    assert demonstration.process.wait(DEADLINE) == 128 + signal.SIGINT
    demonstration.assert_nothing_is_left()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sends a signal when the parent ends")
@pytest.mark.parametrize("stage", ["Starting Apache Kafka", TRAFFIC, "kconsumer started"])
def test_a_demonstration_that_is_killed_leaves_no_server_and_no_script_behind(
    demonstration: Demonstration, stage: str
) -> None:
    """The servers' start."""
    wait_until(lambda: stage in demonstration.text(), f"at {stage}")
    children = partial(psutil.Process(demonstration.process.pid).children, recursive=True)
    started = wait_until(children, "running, a program of the servers'")
    if stage != "Starting Apache Kafka":
        arguments = {argument for process in started for argument in process.cmdline()}
        assert {str(demonstration.checkout / name) for name in ("kproducer.py", "kconsumer.py")} <= arguments
    demonstration.process.kill()
    wait_until(lambda: not any(map(is_running, started)), "ended, all that it started")
    wait_until(lambda: not demonstration.processes(), "ended, what it was about to start too")
