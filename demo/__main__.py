"""A demonstration: real bursts of traffic, the two scripts as processes, a real Apache Kafka and a real PostgreSQL.

$ python -m demo
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from socket import MSG_WAITALL, create_connection, create_server
from typing import Any

try:
    import psutil
    import psycopg2
    from kafka.errors import KafkaError

    from servers import servers
except ImportError as error:
    raise SystemExit(f"demo: {error}; run in the checkout: pip install '.[demo]', then: python -m demo") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

CHECKOUT = Path(__file__).resolve().parent.parent
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
LIMIT = 20  # MB/s, sent plus received, as all rates here
TRAFFIC = (3, 4, 3, 27, 36, 39, 34, 28, 4, 3, 3, 4, 3, 4, 31, 38, 35, 4, 3, 4, 3, 3, 4, 29, 37, 33, 28, 3, 4, 3)
CHUNK = 16384
WAIT_SECONDS = 15.0  # for what should take a moment
OTHER_SERVERS = ("KAFKA_", "PG", "DATABASE_URL")  # a person's own are not for us
WARNING = re.compile(r" WARNING Bandwidth exceeded on .* \(([0-9a-f-]{36})\)$")
EVENT_IDS = "select event_id::text from bandwidth_exceeds"
LAST_ROWS = """
with last as (select * from bandwidth_exceeds order by observed_at desc limit 6)
select event_id::text, to_char(observed_at, 'HH24:MI:SS.MS') as observed_at,
    to_char(bytes_per_second / 1e6, 'FM9990.0 "MB/s"') as bandwidth, partition || '/' || "offset" as offset,
    round(1000 * extract(epoch from recorded_at - observed_at)) || ' ms' as delay
from last order by last.observed_at"""
EPISODES = """
select host, to_char(started_at, 'HH24:MI:SS') as started_at, to_char(ended_at, 'HH24:MI:SS') as ended_at,
    round(seconds_over) || ' s' as over, to_char(peak_bytes_per_second / 1e6, 'FM9990.0 "MB/s"') as peak,
    to_char(mean_bytes_per_second / 1e6, 'FM9990.0 "MB/s"') as mean,
    to_char(bytes_over_limit / 1e6, 'FM9990.0 "MB"') as over_limit
from bandwidth_episodes order by bandwidth_episodes.started_at"""
DRAWN_EPISODES = """
select extract(epoch from started_at)::float8, extract(epoch from ended_at)::float8, seconds_over,
    peak_bytes_per_second / 1e6
from bandwidth_episodes order by started_at"""

TTY = sys.stdout.isatty()
COLOUR = TTY and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
BLOCK, MORE, MARK, YES, NO = "█»│✓✗" if sys.stdout.encoding.lower().startswith("utf") else "#>|+!"
BOLD, DIM, RED, GREEN = "1", "2", "31", "32"


# What a person sees


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


def bar(rate: float) -> str:
    """One character for each MB/s, up to twice the limit, which is marked; what is above it is red."""
    blocks = BLOCK * round(rate) if rate <= 2 * LIMIT else BLOCK * (2 * LIMIT - 1) + MORE
    return f"{blocks[:LIMIT]:{LIMIT}}{MARK}{paint(RED, f'{blocks[LIMIT:]:{LIMIT}}')}"


# What happens


class Interruption:
    """The handler of SIGINT and SIGTERM: ends the run by SystemExit once, and never the cleaning up."""

    status = 0
    raises = False

    def __call__(self, number: int, frame: object) -> None:
        if not self.status:
            self.status = 128 + number
            if self.raises:
                os.write(2, b"\ndemo: interrupted, cleaning up ...\n")
                raise SystemExit(self.status)


@contextmanager
def temporary_directory(interruption: Interruption) -> Iterator[Path]:
    """For everything that is written; at the end, however it comes, nothing that was started runs any more."""
    directory = Path(tempfile.mkdtemp(prefix="demo-"))
    try:
        directory.chmod(0o711)  # PostgreSQL runs as nobody when we are root
        tempfile.tempdir = str(directory)
        interruption.raises = True
        yield directory
    finally:
        interruption.raises = False
        children = psutil.Process().children(recursive=True)  # none, unless something was interrupted while it started
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        for child in psutil.wait_procs(children, timeout=WAIT_SECONDS)[1]:
            child.kill()
        shutil.rmtree(directory, ignore_errors=True)


class Script:
    """One of the two scripts as a process, and what it logs."""

    def __init__(self, directory: Path, environment: dict[str, str], name: str, *arguments: str) -> None:
        say(f"$ python {shlex.join([name, *arguments])}")
        self.name, self.log, self.seen = name, directory / f"{name}.log", 0
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(CHECKOUT / name), *arguments],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us
            )

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").split("\n")[:-1]

    def raised(self) -> list[str]:
        """The event_id of each warning that was logged."""
        return [found[1] for line in self.lines() if (found := WARNING.search(line))]

    def say_news(self) -> None:
        """Whatever else it logged meanwhile that a person should see."""
        for line in self.lines()[self.seen :]:
            self.seen += 1
            if not WARNING.search(line) and " INFO " not in line:
                say(f"{self.name}: {line}", RED)

    def end(self) -> int:
        """Wait for the end, say its last words, and give the status."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(WAIT_SECONDS)
        self.process.kill()
        status = self.process.wait()
        self.say_news()
        last_words = (self.lines() or ["nothing was logged"])[-1].rpartition(" INFO ")[2]
        say(f"{self.name} ended with status {status}: {last_words}")
        return status


def make_traffic(stop: threading.Event) -> None:
    """Bytes over TCP on 127.0.0.1 at the rates of TRAFFIC; loopback counts each as sent and as received."""
    with create_server(("127.0.0.1", 0)) as server, create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        began, carried, due = time.monotonic(), 0.0, 0.0
        with receiver:
            for second, rate in enumerate(TRAFFIC):
                while (elapsed := time.monotonic() - began - second) < 1:
                    if carried < due + rate * 1e6 * elapsed:
                        sender.sendall(bytes(CHUNK))
                        carried += 2 * len(receiver.recv(CHUNK, MSG_WAITALL))
                    elif stop.wait(0.005):
                        return
                due += rate * 1e6


def carried_bytes() -> int:
    """Bytes sent and received on loopback."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)[LOOPBACK]
    return int(counters.bytes_sent + counters.bytes_recv)


def recorded(cursor: Any) -> list[str]:
    """The event_id of each row; none before the consumer has made the table."""
    try:
        cursor.execute(EVENT_IDS)
    except psycopg2.errors.UndefinedTable:
        return []
    return [event_id for (event_id,) in cursor]


def watch(kproducer: Script, kconsumer: Script, cursor: Any) -> tuple[list[float], list[float]]:
    """A line for each second, until the producer ends; when each began and the end, and the rates in MB/s."""
    limit = f"limit {LIMIT} MB/s"
    print("  " + paint(DIM, f"second   bandwidth  {limit:^{2 * LIMIT + 1}}  warnings   rows"), flush=True)
    began = measured_at = time.monotonic()
    before, edges, rates = carried_bytes(), [time.time()], []
    for second in range(1, len(TRAFFIC) + round(WAIT_SECONDS)):
        with suppress(subprocess.TimeoutExpired):
            kproducer.process.wait(max(0.0, began + second - time.monotonic()))
        after, now = carried_bytes(), time.monotonic()
        if now - measured_at < 0.5:  # it ended with the last line
            break
        rate = (after - before) / (now - measured_at) / 1e6
        before, measured_at = after, now
        edges.append(time.time())
        rates.append(rate)
        for script in (kproducer, kconsumer):
            script.say_news()
        numbers = f"{len(kproducer.raised()):>9} {len(recorded(cursor)):>6}"
        print(f"  {second:>6} {rate:>6.1f} MB/s  {bar(rate)} {numbers}", flush=True)
        if kproducer.process.poll() is not None:
            break
    return edges, rates


def wait_until(condition: Callable[[], bool]) -> None:
    """For a moment at most."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def run_scripts(
    stack: ExitStack, directory: Path, environment: dict[str, str], cursor: Any, picture: Path | None
) -> int:
    """Both scripts from start to end, and the status of the verdict; whatever happens, they end with the stack."""
    title("The two scripts, as anybody starts them")
    options = ["--interface", LOOPBACK, "--limit", f"{LIMIT}MB/s", "--flush-interval", str(len(TRAFFIC))]
    options += ["--host", "demo", "--outbox", str(directory / "outbox.sqlite")]
    kconsumer = Script(directory, environment, "kconsumer.py")
    stack.callback(kconsumer.process.kill)
    kproducer = Script(directory, environment, "kproducer.py", *options)
    stack.callback(kproducer.process.kill)
    wait_until(lambda: bool(kproducer.lines() or kproducer.process.poll()))
    title("Bursts of traffic on loopback: each second above the limit is a warning")
    stop = threading.Event()
    stack.callback(stop.set)
    threading.Thread(target=make_traffic, args=(stop,)).start()
    edges, rates = watch(kproducer, kconsumer, cursor)
    print()
    kproducer.end()
    wait_until(lambda: set(kproducer.raised()) <= set(recorded(cursor)))
    kconsumer.process.terminate()
    kconsumer.end()
    cursor.execute("select to_regclass('bandwidth_exceeds'), to_regclass('bandwidth_episodes')")
    table, view = cursor.fetchone()
    if table:
        show_table("The last rows in PostgreSQL: bandwidth_exceeds", cursor, LAST_ROWS)
    if view:
        show_table("What they amount to: bandwidth_episodes", cursor, EPISODES)
    failed = kproducer.process.returncode or kconsumer.process.returncode
    status = verdict(kproducer.raised(), recorded(cursor), failed)
    if picture and view and rates:
        draw(picture, edges, rates, cursor)
    return status


def verdict(raised: list[str], rows: list[str], failed: int) -> int:
    """Compare warnings and rows one by one, say what came of it, and give the status of the demonstration."""
    title("The verdict")
    wrong = [f"{event_id} was raised and is no row" for event_id in raised if event_id not in rows]
    wrong += [f"{event_id} is a row and was not raised" for event_id in rows if event_id not in raised]
    wrong += ["there is nothing to compare"] * (not raised) + ["a script failed"] * bool(failed)
    mark, outcome = (paint(RED, NO), "") if wrong else (paint(GREEN, YES), ": every one arrived, once")
    print(f"  {mark} {len(raised)} warnings raised, {len(rows)} rows, compared by event_id{outcome}.", flush=True)
    for line in wrong:
        say(f"  {line}")
    return 1 if wrong else 0


def draw(path: Path, edges: list[float], rates: list[float], cursor: Any) -> None:
    """The picture, or a line that says why there is none."""
    print()
    cursor.execute(DRAWN_EPISODES)
    try:
        from demo.picture import Episode, draw  # here: a demonstration without its picture is one all the same

        episodes = [Episode(start - edges[0], end - edges[0], over, peak) for start, end, over, peak in cursor]
        draw(path, [edge - edges[0] for edge in edges], rates, LIMIT, episodes)
    except ImportError as error:
        say(f"No picture: {error}; pip install '.[demo]'")
    except OSError as error:
        say(f"No picture: {error}")
    else:
        say(f"The picture of it: {path}")


def stay(environment: dict[str, str]) -> None:
    """Say how to play on, until a signal comes."""
    title("To play on, paste this into another terminal, in this folder:")
    for name, value in environment.items():
        quoted = value.replace("'", r"'\''")
        print(f"export {name}='{quoted}'")
    python = shlex.quote(sys.executable)
    print("\n  then one of these; the other one in a third terminal, with the same settings:")
    print(f"{python} kconsumer.py")
    print(f"{python} kproducer.py --interface {LOOPBACK} --limit 1kB/s")
    print("  The servers stay up until Ctrl-C here.", flush=True)
    while True:
        signal.pause()


def demonstrate(keep: bool, picture: Path | None, interruption: Interruption) -> int:
    """The whole demonstration, and its status."""
    with temporary_directory(interruption) as directory, ExitStack() as stack:
        title("The servers")
        with progress() as report:
            running = stack.enter_context(servers(report))
        running.kafka.create_topic("bandwidth_exceeds", partitions=3)
        connection = stack.enter_context(closing(running.postgres.connect()))
        connection.autocommit = True
        status = run_scripts(stack, directory, running.environment(), connection.cursor(), picture)
        if keep:
            stay(running.environment())
        interruption.raises = False
    return interruption.status or status


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Show the two scripts at work on real servers.")
    parser.add_argument("--keep", action="store_true", help="leave the servers up at the end, to play on")
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path("bandwidth.png"),
        metavar="FILE",
        help="where the rate, the limit and the episodes are drawn (default: bandwidth.png)",
    )
    parser.add_argument("--no-picture", dest="picture", action="store_const", const=None, help="draw none")
    settings = parser.parse_args(argv)
    for name in [name for name in os.environ if name.startswith(OTHER_SERVERS)]:
        del os.environ[name]
    interruption = Interruption()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN):  # as nohup wants it
            signal.signal(number, interruption)
    try:
        return demonstrate(settings.keep, settings.picture, interruption)
    except (RuntimeError, OSError, psycopg2.Error, KafkaError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
