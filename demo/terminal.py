"""What a person sees of the demonstration."""

import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any

TTY = sys.stdout.isatty()
COLOUR = TTY and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
BLOCK, MORE, MARK, YES, NO = "█»│✓✗" if sys.stdout.encoding.lower().startswith("utf") else "#>|+!"
BOLD, DIM, RED, GREEN = "1", "2", "31", "32"
HALF_BAR = 10  # characters up to the limit, and as many above it


def paint(style: str, text: str) -> str:
    """The text in a style, where there are styles."""
    return f"\033[{style}m{text}\033[0m" if COLOUR and style and text.strip() else text


def wrap(text: str) -> list[str]:
    """Lines that fit into 80 columns; a command can be copied from them."""
    return textwrap.wrap(text, 76, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def say(text: str, style: str = "") -> None:
    for line in wrap(text):
        print(f"  {paint(style, line)}", flush=True)


def title(text: str) -> None:
    print(f"\n{paint(BOLD, text)}\n", flush=True)


def show_table(heading: str, cursor: Any, query: str) -> None:
    """What a query finds: the first column stands to the left, the others to the right."""
    title(heading)
    cursor.execute(query)
    lines = [[column.name for column in cursor.description], *cursor.fetchall()]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    for line in lines:
        cells = [line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))]
        print("  " + paint(DIM if line is lines[0] else "", "  ".join(cells)), flush=True)


def show_heading(limit: float) -> None:
    """The heading of what show_second() prints."""
    text = f"limit {limit:g} MB/s"
    print("  " + paint(DIM, f"second   bandwidth  {text:^{2 * HALF_BAR + 1}}  warnings  rows"), flush=True)


def show_second(second: int, rate: float, limit: float, warnings: int, rows: int, note: str) -> None:
    """One second of the traffic: its rate in MB/s, the numbers so far, and what happens at its end."""
    numbers = f"{warnings:>9} {rows:>5}" + (f"  {paint(BOLD, note)}" if note else "")
    print(f"  {second:>6} {rate:>6.1f} MB/s  {bar(rate, limit)} {numbers}", flush=True)


def bar(rate: float, limit: float) -> str:
    """A bar up to twice the limit, which is marked; what is above it is red."""
    length = round(HALF_BAR * rate / limit)
    blocks = BLOCK * length if length <= 2 * HALF_BAR else BLOCK * (2 * HALF_BAR - 1) + MORE
    return f"{blocks[:HALF_BAR]:{HALF_BAR}}{MARK}{paint(RED, f'{blocks[HALF_BAR:]:{HALF_BAR}}')}"


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A report for what takes time; on a terminal with the seconds that the last line has taken so far."""
    if not TTY:
        yield say
        return
    lines: SimpleQueue[str | None] = SimpleQueue()
    writer = threading.Thread(target=show_progress, args=(lines,), daemon=True)
    writer.start()
    try:
        yield lines.put
    finally:
        lines.put(None)
        writer.join()


def show_progress(lines: SimpleQueue[str | None]) -> None:
    """Write lines as they come, until None."""
    text = lines.get()
    while text is not None:
        *above, line = wrap(text)
        print(*(f"  {each}\n" for each in above), f"  {line}", sep="", end="", flush=True)
        for seconds in count(1):
            with suppress(Empty):
                text = lines.get(timeout=1)
                break
            print(f"\r  {line} {seconds} s", end="", flush=True)
        print(flush=True)
