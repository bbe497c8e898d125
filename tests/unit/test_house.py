"""The house: imports run downwards only and never in a circle, and no room, class or script grows too large.

Whoever makes an exception smaller makes the limit here smaller; nobody makes it larger.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "eventkafkapostgres"
SCRIPTS = ("simpleEvents", "kproducer", "kconsumer")
ROOM_LINES, SCRIPT_LINES, CLASS_LINES = 300, 200, 150

# What a room may import of the package, beside outages, which explains errors to everybody.
ALLOWED = {
    "bandwidth": {"rates"},
    "calls": {"console", "database"},
    "checks": {"bandwidth", "console", "outbox", "positions", "rates", "settings", "tls", "topic"},
    "console": {"log", "signals"},
    "database": {"heartbeats", "message", "notify", "refusals", "schema"},
    "delivery": {"outbox", "workarounds"},
    "group": {"message", "positions"},
    "heartbeats": {"refusals"},
    "log": set(),
    "message": {"bandwidth", "rates"},
    "notify": {"message", "refusals"},
    "outages": set(),
    "outbox": {"outbox_file"},
    "outbox_file": set(),
    "positions": set(),
    "postgres_checks": {"checks", "database", "schema"},
    "progress": {"message"},
    "rates": set(),
    "offsets": {"group", "message", "positions"},
    "reader": {"calls", "console", "group", "message", "offsets", "recovery", "settings"},
    "recorder": {"calls", "database", "message", "progress", "reader", "recovery"},
    "records": set(),
    "recovery": {"group"},
    "refusals": {"message"},
    "schema": set(),
    "signals": set(),
    "settings": {"workarounds"},
    "tls": {"workarounds"},
    "topic": set(),
    "workarounds": set(),
}  # fmt: skip

# What is not as it should be yet.
KNOWN_LINES: dict[str, int] = {}
KNOWN_CLASS_LINES = {"Reader": 171}

ROOMS = sorted(path.stem for path in (ROOT / PACKAGE).glob("*.py") if path.stem != "__init__")


def source(name: str) -> str:
    path = ROOT / f"{name}.py" if name in SCRIPTS else ROOT / PACKAGE / f"{name}.py"
    return path.read_text(encoding="utf-8")


def imports(name: str) -> Iterator[str]:
    """The rooms and scripts that this one imports, wherever in the file."""
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            module, names = node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            module, names = "", [alias.name for alias in node.names]
        else:
            continue
        for full in [module, *names, *(f"{module}.{each}" for each in names)]:
            first, _, rest = full.partition(".")
            if first in SCRIPTS:
                yield first
            elif first == PACKAGE and rest.split(".")[0] in ROOMS:
                yield rest.split(".")[0]


def test_each_room_has_its_place():
    assert set(ROOMS) == ALLOWED.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_downwards_only(room):
    imported = set(imports(room))
    assert imported <= ALLOWED[room] | {"outages"}
    assert room not in imported


def test_no_allowed_direction_is_a_circle():
    left = {room: allowed | ({"outages"} - {room}) for room, allowed in ALLOWED.items()}
    while lowest := [room for room, allowed in left.items() if not allowed & left.keys()]:
        for room in lowest:
            del left[room]
    assert left == {}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_no_script_but_the_events(script):
    assert set(imports(script)) & set(SCRIPTS) <= ({"simpleEvents"} if script != "simpleEvents" else set())


@pytest.mark.parametrize("name", [*ROOMS, *SCRIPTS])
def test_no_room_is_too_large(name):
    limit = KNOWN_LINES.get(name, SCRIPT_LINES if name in SCRIPTS else ROOM_LINES)
    assert len(source(name).splitlines()) <= limit


@pytest.mark.parametrize("name", [*ROOMS, *SCRIPTS])
def test_no_class_is_too_large(name):
    lines = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(source(name)))
        if isinstance(node, ast.ClassDef)
    }
    assert {n: count for n, count in lines.items() if count > KNOWN_CLASS_LINES.get(n, CLASS_LINES)} == {}
