"""What the documents say is what the programs do."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import kconsumer
import kproducer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [kproducer, kconsumer])
def test_the_readme_has_every_flag_with_the_words_of_help(script):
    for action in script.build_parser("script")._actions:
        if action.dest in ("help", "version"):
            continue
        flag = ", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else "")
        assert f"| `{flag}` | {action.help} |" in README


def test_the_readme_has_no_flag_that_the_scripts_do_not_have():
    flags = {
        option
        for script in (kproducer, kconsumer)
        for a in script.build_parser("x")._actions
        for option in a.option_strings
    }
    assert set(re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE)) <= flags


def test_the_version_is_the_same_everywhere():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert version
    assert version[1] == kproducer.__version__ == kconsumer.__version__
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", ["kproducer.py", "kconsumer.py"])
def test_optimized_python_which_kafka_python_cannot_bear_is_refused_in_one_line(script):
    ended = subprocess.run([sys.executable, "-O", ROOT / script, "--check"], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "unset PYTHONOPTIMIZE, start without -O" in ended.stderr.splitlines()[-1]
