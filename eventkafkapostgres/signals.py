"""SIGINT and SIGTERM before anything was begun. The scripts import this first: their other imports take a while."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def handle_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Call this for SIGINT and SIGTERM: their default actions don't count for process 1 of a container."""
    for number in STOP_SIGNALS:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the image's entry point blocks them until here


def end_on_signals(arguments: Sequence[str]) -> None:
    """Let SIGINT and SIGTERM end the process: with 0 before anything was begun, else with the shell's 128 + N.

    Whoever started it with --check or --until-empty waits for a result.
    """
    has_result = not {"--check", "--until-empty"}.isdisjoint(arguments)
    handle_signals(lambda signum, frame: os._exit(128 + signum if has_result else 0))


# In a process of the scripts' own, not in a program that imports one of them. Python's handler prints a traceback.
if os.path.basename("".join(sys.argv[:1])).removesuffix(".py") in ("kproducer", "kconsumer"):
    end_on_signals(sys.argv)
