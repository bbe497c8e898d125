"""What deploy/ and the workflow say agrees with the scripts and with each other."""

import configparser
import re
from pathlib import Path

import pytest

import kconsumer
import kproducer

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
EXAMPLE = (DEPLOY / "eventKafkaPostgres.env.example").read_text(encoding="utf-8")
SETTING = re.compile(r"^#?([A-Z_]+)=(.*)$", re.MULTILINE)
WORKFLOW = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", [kproducer, kconsumer])
def test_the_example_has_options_that_the_script_accepts(script) -> None:
    name = f"{script.__name__.upper()}_OPTIONS"
    (words,) = [value for setting, value in SETTING.findall(EXAMPLE) if setting == name]
    script.build_parser(script.__name__).parse_args(words.split())
    assert f" ${name}\n" in (DEPLOY / f"{script.__name__}.service").read_text(encoding="utf-8")


def test_what_the_example_does_not_leave_to_be_chosen_is_safe() -> None:
    active = dict(re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert active.keys() == {"KAFKA_BOOTSTRAP_SERVERS", "KPRODUCER_OPTIONS"}
    assert "PLAINTEXT" not in EXAMPLE
    assert "sslmode=verify-full" in EXAMPLE


def test_the_two_units_differ_only_where_they_must() -> None:
    lines = {
        name: set((DEPLOY / f"{name}.service").read_text(encoding="utf-8").splitlines())
        for name in ("kproducer", "kconsumer")
    }
    differing = {line.split("=")[0] for line in lines["kproducer"] ^ lines["kconsumer"] if not line.startswith("#")}
    assert differing == {"Description", "Environment", "ExecStart", "MemoryMax", "StateDirectory", "SuccessExitStatus"}


def test_status_2_is_not_started_again() -> None:
    for path in DEPLOY.glob("*.service"):
        unit = configparser.RawConfigParser(strict=False)
        unit.read(path)
        assert unit["Service"]["RestartPreventExitStatus"] == "2"


def test_the_workflow_runs_what_the_readme_has() -> None:
    (command,) = re.findall(r"- run: (python3 .+)$", WORKFLOW, re.MULTILINE)
    assert f"\n{command}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert str(versions).replace("'", '"') in WORKFLOW


def test_the_workflow_pins_each_action() -> None:
    actions = re.findall(r"uses: (.+)$", WORKFLOW, re.MULTILINE)
    assert actions
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in actions)
