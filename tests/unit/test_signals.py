"""Ctrl-C while the scripts import what they need, the first quarter of a second of each run.

What Python itself does before the first line of ours, some 20 ms, is not in our hands: a Ctrl-C then ends in Python's
own traceback, or by the signal. With the command `kproducer` these are also the lines of the file that pip writes.
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Python imports this first. At each module that is looked up from "argparse" on, the first one that a script imports
# when it handles signals, a copy of the process gets a signal: the name of the module and the status of the copy.
SIGNAL_AT_EACH_IMPORT = """
import os, sys

class Finder:
    begun = False

    def find_spec(self, name, path=None, target=None):
        self.begun |= name == "argparse"
        if self.begun:
            if not (copy := os.fork()):
                os.kill(os.getpid(), int(os.environ["SIGNAL"]))
                return None
            print(name, os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]), flush=True)
        return None

sys.meta_path.insert(0, Finder())
"""
# What pip makes of an entry point.
COMMAND = """
import sys
from {name} import command
if __name__ == "__main__":
    sys.exit(command())
"""


@pytest.fixture
def start(tmp_path):
    """Run a script, or its installed command, which gets a signal at each import."""
    (tmp_path / "sitecustomize.py").write_text(SIGNAL_AT_EACH_IMPORT)
    (tmp_path / "bin").mkdir()

    def run(name, is_installed, number, *arguments):
        script = ROOT / f"{name}.py"
        if is_installed:
            script = tmp_path / "bin" / name
            script.write_text(COMMAND.format(name=name))
        return subprocess.run(
            [sys.executable, str(script), *arguments],
            env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "SIGNAL": str(int(number))},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.mark.parametrize(
    ("name", "is_installed", "number", "arguments", "status"),
    [
        ("kproducer", False, signal.SIGINT, ["--help"], 0),
        ("kproducer", True, signal.SIGINT, ["--check", "--help"], 130),
        ("kconsumer", False, signal.SIGTERM, ["--check", "--help"], 143),
        ("kconsumer", True, signal.SIGTERM, ["--help"], 0),
        ("kconsumer", False, signal.SIGTERM, ["--until-empty", "--help"], 143),
    ],
)
def test_a_signal_during_the_imports_ends_it_without_a_word(start, name, is_installed, number, arguments, status):
    ended = start(name, is_installed, number, *arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    results, usage, _ = ended.stdout.partition("usage: ")
    statuses = dict(line.split() for line in results.splitlines())
    assert {"kafka", "psutil", "eventkafkapostgres.outages"} <= statuses.keys()
    assert ("psycopg2" in statuses) == (name == "kconsumer")  # it would cost kproducer 4 MB
    assert set(statuses.values()) == {str(status)}
    assert usage


IMPORT_BOTH = """
import signal
numbers = signal.SIGINT, signal.SIGTERM
before = [signal.getsignal(number) for number in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
import kconsumer, kproducer
after = [signal.getsignal(number) for number in numbers], signal.pthread_sigmask(signal.SIG_BLOCK, [])
print((before[0], {*numbers}) == after)
"""


@pytest.mark.parametrize("arguments", [["-c", IMPORT_BOTH], ["my program.py"]])
def test_who_imports_the_scripts_keeps_the_signals(tmp_path, arguments):
    (tmp_path / "my program.py").write_text(IMPORT_BOTH)
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (ended.stdout, ended.stderr) == ("True\n", "")
