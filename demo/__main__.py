"""A demonstration: real bursts of traffic, the two scripts as processes, a real Apache Kafka and a real PostgreSQL.

In the middle of the traffic the consumer is killed with -9, and PostgreSQL is stopped for some seconds.

$ python -m demo
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import psutil
    import psycopg2
    from kafka.errors import KafkaError

    from demo.run import WAIT_SECONDS, run_scripts
    from demo.terminal import progress, title
    from demo.traffic import LOOPBACK
    from servers import servers
except ImportError as error:
    raise SystemExit(f"demo: {error}; run in the checkout: pip install '.[demo]', then: python -m demo") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

OTHER_SERVERS = ("KAFKA_", "PG", "DATABASE_URL")  # a person's own are not for us


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
        status = run_scripts(stack, directory, running, picture)
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
