"""The demonstration as anybody starts it: from a checkout under any name, and with nothing left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pipeline import DEADLINE, wait_until

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
MARK = "DEMONSTRATION_OF_A_TEST"
VERDICT = re.compile(
    r"^  ✓ (\d+) warnings raised, \1 rows, compared by event_id: every one arrived, once\.$", re.MULTILINE
)


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


def test_the_demonstration_ends_with_its_verdict_and_leaves_nothing_behind(demonstration: Demonstration) -> None:
    """Half a minute of traffic, and the servers' start."""
    wait_until(demonstration.processes, "running")
    assert demonstration.process.wait(2 * DEADLINE) == 0
    assert VERDICT.search(demonstration.text())
    demonstration.assert_nothing_is_left()


@pytest.mark.parametrize("stage", ["Starting Apache Kafka", "Bursts of traffic"])
def test_a_demonstration_that_is_interrupted_leaves_nothing_behind_either(
    demonstration: Demonstration, stage: str
) -> None:
    """The servers' start."""
    wait_until(lambda: stage in demonstration.text(), f"at {stage}")
    demonstration.process.send_signal(signal.SIGINT)
    assert demonstration.process.wait(DEADLINE) == 128 + signal.SIGINT
    demonstration.assert_nothing_is_left()
