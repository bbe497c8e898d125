"""The log can't stop the work: whatever becomes of standard error, warnings are raised, sent and recorded."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from pipeline import LOOPBACK, SCRIPTS, Pipeline, wait_until

FOREVER = ("--forever", "--flush-interval", "1", "--interval", "0.1", "--limit", "0", "--interface", LOOPBACK)


def full_pipe() -> tuple[int, int]:
    """A pipe into which nothing more goes, and which nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(65536))
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"\0")
    os.set_blocking(writer, True)
    return reader, writer


@contextmanager
def both_scripts(pipeline: Pipeline, stderr: int | None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A producer and a consumer with this standard error; None: a closed one."""
    where = {
        "kproducer": ["--topic", pipeline.topic, "--outbox", str(pipeline.directory / "outbox.sqlite"), *FOREVER],
        "kconsumer": ["--topic", pipeline.topic, "--group", pipeline.group],
    }
    with ExitStack() as stack:
        started = []
        for script, arguments in where.items():
            command = [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]
            process = subprocess.Popen(
                ["sh", "-c", 'exec "$@" 2>&-', "sh", *command] if stderr is None else command,
                env=pipeline.environment(),
                cwd=pipeline.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
        yield started


def full(stack: ExitStack) -> int:
    return stack.enter_context(open("/dev/full", "wb")).fileno()


def closed(stack: ExitStack) -> None:
    return None


def unread(stack: ExitStack) -> int:
    reader, writer = full_pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    return writer


def without_reader(stack: ExitStack) -> int:
    reader, writer = os.pipe()
    os.close(reader)
    stack.callback(os.close, writer)
    return writer


@pytest.mark.parametrize("stderr", [full, closed, unread, without_reader])
def test_both_scripts_work_on_whatever_standard_error_is(
    pipeline: Pipeline, stderr: Callable[[ExitStack], int | None]
) -> None:
    with ExitStack() as stack, both_scripts(pipeline, stderr(stack)) as started:
        pipeline.has_rows(20)
        for process in started:
            process.terminate()
        assert [process.wait(60) for process in started] == [0, 0]
    pipeline.drain()
    assert pipeline.count() == pipeline.sent()


def test_both_scripts_work_on_after_their_terminal_was_closed(pipeline: Pipeline) -> None:
    parent, child = pty.openpty()
    with both_scripts(pipeline, child) as started:
        os.close(child)
        pipeline.has_rows(10)
        os.close(parent)
        for process in started:
            process.send_signal(signal.SIGHUP)  # as the kernel does to the session of a terminal that is gone
        pipeline.has_rows(pipeline.count() + 20)
        for process in started:
            process.terminate()
        assert [process.wait(60) for process in started] == [0, 0]


def test_under_systemd_each_line_has_its_priority_and_no_time(pipeline: Pipeline) -> None:
    log = pipeline.directory / "journal"
    with log.open("wb") as file:
        status = os.fstat(file.fileno())
        environment = pipeline.environment(JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}")
        command = [sys.executable, str(SCRIPTS / "kproducer.py"), "--topic", pipeline.topic, *FOREVER[1:]]
        assert subprocess.run(command, env=environment, cwd=pipeline.directory, stderr=file).returncode == 0
        assert subprocess.run([*command, "--limit", "fast"], env=environment, stderr=file).returncode == 2
    lines = log.read_text().splitlines()
    assert [line for line in lines if not re.match(r"<[346]>\D", line)] == []
    assert any(line.startswith("<4>Bandwidth exceeded on") for line in lines)
    assert any(line.startswith("<6>started: ") for line in lines)
    assert lines[-1].startswith("<3>kproducer: argument --limit: 'fast'")


# The script becomes a background job of the terminal that its standard streams are.
IN_BACKGROUND = """
import fcntl, os, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
job = subprocess.Popen([sys.executable, *sys.argv[1:]], process_group=0)
print("job", job.pid, flush=True)
job.wait()
"""


def test_a_background_job_logs_to_its_terminal_and_draws_nothing(pipeline: Pipeline) -> None:
    parent, child = pty.openpty()
    attributes = termios.tcgetattr(child)
    attributes[3] |= termios.TOSTOP  # a job in the background that writes would be stopped
    termios.tcsetattr(child, termios.TCSANOW, attributes)
    script = str(SCRIPTS / "kproducer.py")
    shell = subprocess.Popen(
        [sys.executable, "-c", IN_BACKGROUND, script, "--topic", pipeline.topic, *FOREVER],
        env={"TERM": "xterm-256color", **pipeline.environment()},
        cwd=pipeline.directory,
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
    )
    os.close(child)
    fcntl.fcntl(parent, fcntl.F_SETFL, os.O_NONBLOCK)
    text = b""

    def logged() -> bool:
        nonlocal text
        with suppress(BlockingIOError):
            text += os.read(parent, 65536)
        return text.count(b"Bandwidth exceeded") >= 20

    try:
        wait_until(logged, "20 warnings logged")
    finally:
        found = re.search(rb"job (\d+)", text)
        assert found
        os.kill(int(found[1]), signal.SIGTERM)
        shell.wait(60)
        os.close(parent)
    assert b"\x1b" not in text
    assert not re.search(rb"warnings? raised, \d+ waiting", text)
