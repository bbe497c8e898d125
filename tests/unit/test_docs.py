"""What the documents say is what the programs do."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kconsumer
import kproducer
from eventkafkapostgres.message import FIELDS, copy_columns
from eventkafkapostgres.schema import PRIVILEGES, TABLES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = sorted(f"eventkafkapostgres/{path.name}" for path in (ROOT / "eventkafkapostgres").glob("*.py"))


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


# README.md


def anchors(markdown: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "name", ["README.md", "deploy/README.md", "docs/demo.md", "bench/README.md", "CONTRIBUTING.md"]
)
def test_each_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), target
            assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), target


def test_the_readmes_commands_have_flags_that_the_scripts_accept() -> None:
    blocks = re.findall(r"^ *```sh\n(.+?)^ *```", README, re.MULTILINE | re.DOTALL)
    commands = re.findall(r"/(kproducer|kconsumer) (.*)$|/(kconsumer)$", "\n".join(blocks), re.MULTILINE)
    assert len(commands) == 4
    for name, arguments, alone in commands:
        script = {"kproducer": kproducer, "kconsumer": kconsumer}[name or alone]
        script.build_parser("script").parse_args(arguments.split())


def test_the_readme_has_each_column_with_its_type() -> None:
    types = {
        column.strip("`"): kind.split(",")[0]
        for names, kinds in re.findall(r'^\| (`[a-z_`, "]+) \| ([^|]+) \|', README, re.MULTILINE)
        for column, kind in zip(re.findall(r'`"?(\w+)"?`', names), kinds.split(", ") * 9, strict=False)
    }
    for column, kind in TABLES["bandwidth_exceeds"].items():
        assert types[column] == kind, column
    for table in TABLES.keys() - {"bandwidth_exceeds"}:
        (row,) = re.findall(rf"^\| `{table}`: .*$", README, re.MULTILINE)
        assert set(re.findall(r'`"?(\w+)"?`', row)) == {table, *TABLES[table]}


def test_the_readme_has_the_rights_that_are_checked() -> None:
    rights = {
        table: kinds.split(", ")
        for names, kinds in re.findall(r"^ *\| (`\w+`(?:, `\w+`)*) \| ([A-Z, ]+) \|$", README, re.MULTILINE)
        for table in re.findall(r"\w+", names)
    }
    assert rights == PRIVILEGES


def test_the_readmes_message_is_one() -> None:
    (message,) = re.findall(r"^```json\n(.+?)^```", README, re.MULTILINE | re.DOTALL)
    copy_columns(message)
    assert list(json.loads(message)) == list(FIELDS)


@pytest.mark.parametrize("name", ["kproducer.py", "kconsumer.py", *CODE])
def test_the_readme_has_each_line_of_the_log(name: str) -> None:
    """Of the text of each line, the longest part between two values."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("info", "warning", "error")
            and isinstance(node.args[0], ast.Constant)
        ):
            longest = max(re.split(r"%[\d.,]*[a-z]", node.args[0].value), key=len)
            words = longest.replace("%%", "%").strip(" (),:;")
            assert words.split(";")[0].split(":")[0] in README, node.args[0].value
