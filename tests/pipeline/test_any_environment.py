"""Whatever the settings and surroundings: results or one line, the documented status, and never a traceback."""

import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka import KafkaConsumer, KafkaProducer
from pipeline import LOOPBACK, SCRIPTS, WARNINGS, wait_until
from test_standard_error import full_pipe

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24
PASSWORD = "s3cret-Passw0rd"
STATUSES = {0, 1, 2}

OPTIONS = sorted({*KafkaProducer.DEFAULT_CONFIG, *KafkaConsumer.DEFAULT_CONFIG})
NAMES = st.one_of(
    st.sampled_from([f"KAFKA_{option.upper()}" for option in OPTIONS]),
    st.sampled_from(
        re.findall(
            r"\w+",
            "DATABASE_URL PGHOST PGHOSTADDR PGPORT PGUSER PGDATABASE PGSSLMODE PGSSLROOTCERT PGSERVICE PGSERVICEFILE "
            "PGCONNECT_TIMEOUT PGCLIENTENCODING PGOPTIONS PGPASSFILE PGTARGETSESSIONATTRS PGAPPNAME PGSSLCERT TERM TZ "
            "KAFKA_PORT KAFKA_SERVICE_HOST KAFKA_HEAP_OPTS KAFKA_BOOTSTRAP_SERVER NO_COLOR COLUMNS HOME TMPDIR LC_ALL "
            "STATE_DIRECTORY XDG_STATE_HOME JOURNAL_STREAM SSL_CERT_FILE LANG",
        )
    ),
    st.from_regex(r"KAFKA_[A-Z_]{0,20}", fullmatch=True),
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
VALUES = st.one_of(
    TEXT,
    st.integers(-(2**65), 2**65).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "0", "1", "-1", "true", "False", "None", "é", "東京", "\x1b[31m", "a\nb", "tcp://10.0.0.1:9092", "9" * 400,
         "/", "/dev/null", "/dev/full", "/proc/self/mem", "/nowhere/x", "{locked}", "{locked}/x", "{readonly}/x",
         "{file}", "{file}/x", "127.0.0.1:1", "[::1]:1", "a..b:1", "localhost:1,127.0.0.1:1", "SSL", "SASL_SSL",
         "PLAINTEXT", "SASL_PLAINTEXT", "PLAIN", "gzip", "zstd", "ascii", "latin-1", "utf-16", "C", "tr_TR.UTF-8",
         f"postgres://u:{PASSWORD}@127.0.0.1:1/d", f"postgres://u:p@{PASSWORD}@127.0.0.1/d", "postgres:///d",
         f"postgres://u:1/{PASSWORD}@127.0.0.1/d", f"host=127.0.0.1 port=1 password={PASSWORD}", "system"]
    ),
)  # fmt: skip
ARGUMENTS = {
    "kproducer": st.fixed_dictionaries(
        {}, optional={"--host": TEXT, "--topic": TEXT, "--outbox": VALUES, "--heartbeat": VALUES}
    ),
    "kconsumer": st.fixed_dictionaries({}, optional={"--group": TEXT, "--topic": TEXT}),
}
ENCODINGS = st.sampled_from(["", "ascii", "latin-1", "utf-8:strict"])  # others end Python itself
OUTPUTS = st.sampled_from(["read", "closed", "full", "unread", "without reader"])


class Surroundings(NamedTuple):
    """What one run gets."""

    script: str
    check: bool
    arguments: dict[str, str]
    environment: dict[str, str]
    encoding: str
    plain_text: bool
    stdout: str
    stderr: str
    seconds: float  # from the first moment in which a signal is handled, before most imports, until it comes


@st.composite
def surroundings(draw: Any) -> Surroundings:
    script = draw(st.sampled_from(sorted(ARGUMENTS)))
    return Surroundings(
        script,
        draw(st.booleans()),
        draw(ARGUMENTS[script]),
        draw(st.dictionaries(NAMES, VALUES, max_size=4)),
        draw(ENCODINGS),
        draw(st.booleans()),
        draw(OUTPUTS),
        draw(OUTPUTS),
        draw(st.sampled_from([0.0, 0.3, 0.6, 2.0])),
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder that may not be entered, one that may not be written, a file, and a home."""
    root = tmp_path_factory.mktemp("any")
    made = {name: root / name for name in ("locked", "readonly", "home")}
    for path in made.values():
        path.mkdir()
    (root / "file").write_text("a file")
    for path, mode in ((made["locked"], 0o000), (made["readonly"], 0o555), (made["home"], 0o777)):
        path.chmod(mode)
    return {**{name: str(path) for name, path in made.items()}, "file": str(root / "file")}


def become_normal() -> None:
    """Root without the capabilities that let it read and write everything is as good as any user."""
    if os.geteuid() == 0 and sys.platform == "linux":
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0


def open_output(kind: str) -> tuple[Any, list[int]]:
    """What Popen gets for it, and the descriptors to close afterwards."""
    if kind == "full":
        writer = os.open("/dev/full", os.O_WRONLY)
        return writer, [writer]
    if kind == "unread":
        reader, writer = full_pipe()
        return writer, [writer, reader]
    if kind == "without reader":
        reader, writer = os.pipe()
        os.close(reader)
        return writer, [writer]
    return subprocess.PIPE, []


def handles_signals(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has come so far, or has ended. Where /proc doesn't say it: after a second."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        time.sleep(1.0)
        return True
    mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(mask >> 14 & 1) or process.poll() is not None


def run(around: Surroundings, places: dict[str, str]) -> None:
    """One run, and what has to hold of it."""
    fields = around.environment | around.arguments
    filled = {
        name: re.sub(r"^{(\w+)}", lambda found: places.get(found[1], found[0]), value) for name, value in fields.items()
    }
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": places["home"],
        "PYTHONWARNINGS": WARNINGS,
        "PYTHONIOENCODING": around.encoding,
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "PGHOST": "127.0.0.1",
        "PGPORT": "1",
        "PGPASSWORD": PASSWORD,
        **({"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT", "PGSSLMODE": "disable"} if around.plain_text else {}),
        **{name: filled[name] for name in around.environment},
    }
    arguments = [f"{name}={filled[name]}" for name in around.arguments] + ["--check"] * around.check
    if around.script == "kproducer":
        arguments += [
            "--interface",
            LOOPBACK,
            "--limit",
            "0",
            "--interval",
            "0.1",
            "--flush-interval",
            "1",
            "--forever",
        ]
    closing = "".join(f" {n}>&-" for n, kind in ((1, around.stdout), (2, around.stderr)) if kind == "closed")
    command = [sys.executable, str(SCRIPTS / f"{around.script}.py"), *arguments]
    (stdout, mine), (stderr, more) = open_output(around.stdout), open_output(around.stderr)
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@"{closing}', "sh", *command],
        env=environment,
        cwd=places["home"],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        preexec_fn=become_normal,
    )
    try:
        if not around.check:
            wait_until(lambda: handles_signals(process), "handling signals")
            time.sleep(around.seconds)
            process.terminate()
        out, err = (text.decode(errors="replace") if text else "" for text in process.communicate(timeout=90))
    finally:
        process.kill()
        process.wait()
        for descriptor in (*mine, *more):
            os.close(descriptor)
    assert_documented(around, process.returncode, out, err)


def assert_documented(around: Surroundings, status: int, out: str, err: str) -> None:
    assert status in STATUSES, (status, out, err)
    assert "Traceback" not in out + err
    assert "unexpected error" not in err
    assert PASSWORD not in out + err
    if around.check:
        assert [line for line in out.splitlines() if line[:2] not in ("✓ ", "✗ ", "+ ", "x ")] == []
    else:
        assert out == ""
    if status == 2 and err:
        assert err.splitlines()[-1].partition(": ")[0].removeprefix("<3>") == around.script


@settings(max_examples=8, suppress_health_check=list(HealthCheck), deadline=None)
@given(around=surroundings())
def test_any_surroundings(around: Surroundings, places: dict[str, str]) -> None:
    run(around, places)


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))  # for as many of pytest's workers
@settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
@given(around=surroundings())
def test_many_more_surroundings(part: int, around: Surroundings, places: dict[str, str]) -> None:
    """Each runs a script, which takes a second or more."""
    run(around, places)
