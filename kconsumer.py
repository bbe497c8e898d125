"""Record the warnings that come through Apache Kafka in PostgreSQL, each once.

$ python kconsumer.py
"""

from __future__ import annotations

import eventkafkapostgres.signals  # noqa: F401 (first: Ctrl-C during what follows shows no traceback)

# isort: split
import argparse
import gc
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from kafka import KafkaConsumer

from eventkafkapostgres import __version__
from eventkafkapostgres.calls import STOP_SECONDS, DatabaseCalls
from eventkafkapostgres.checks import check_consumer, print_results
from eventkafkapostgres.console import OneLineParser, Stop, argument, printable, run_command, run_process, topic_name
from eventkafkapostgres.database import Database
from eventkafkapostgres.group import GroupMember
from eventkafkapostgres.log import Terminal
from eventkafkapostgres.notify import channel_name
from eventkafkapostgres.outages import KafkaLog
from eventkafkapostgres.postgres_checks import check_postgres
from eventkafkapostgres.progress import Progress
from eventkafkapostgres.reader import Reader
from eventkafkapostgres.recorder import Recorder
from eventkafkapostgres.records import decode_faster
from eventkafkapostgres.recovery import Recovery
from eventkafkapostgres.settings import consumer_options, make_client, postgres_options
from eventkafkapostgres.tls import Certificates
from eventkafkapostgres.topic import log_config_problems
from eventkafkapostgres.workarounds import repair_fetcher

# A thread that comes back from a socket waits so long for one that computes; Python's 5 ms cost a quarter of the speed.
SWITCH_SECONDS = 0.0005
COLLECT_OBJECTS = 50_000  # new ones until Python looks for garbage: its 700 come dozens of times in a batch

logger = logging.getLogger("kconsumer")


def record_warnings(recorder: Recorder, stop: Stop) -> None:
    """Take what was read, record it, commit to Kafka; until `stop` is set, or all is recorded with --until-empty."""
    while not stop.is_set() and not recorder.reader.finished:
        batch = recorder.take()  # what was read from Kafka; None where there is nothing
        if batch and recorder.record(batch):  # one connection, one transaction, and the connection is closed
            recorder.commit_to_kafka(batch)


def make_database(settings: argparse.Namespace) -> Database:
    """SettingsError when a setting is wrong."""
    return Database(*postgres_options(os.environ), settings.group, settings.topic, settings.notify)


def check(settings: argparse.Namespace, kafka_log: KafkaLog) -> int:
    """--check: everything that the consumer needs."""
    options = partial(consumer_options, os.environ, settings.group, settings.until_empty)
    results = check_consumer(settings, options, lambda found: check_postgres(make_database(settings), found), kafka_log)
    return print_results(results)


def run(settings: argparse.Namespace, stop: Stop, kafka_log: KafkaLog, terminal: Terminal) -> int:
    """Record until stopped. SettingsError when a setting is wrong."""
    options = consumer_options(os.environ, settings.group, settings.until_empty)
    certificates = Certificates(options)
    certificates.renew()
    database = make_database(settings)
    make_kconsumer = partial(make_client, KafkaConsumer, certificates.context, options)
    kconsumer = make_kconsumer()
    log_config_problems(options, certificates.context, settings.topic)
    calls = DatabaseCalls(database, stop)
    member = GroupMember(kconsumer, make_kconsumer, settings.topic)
    recovery = Recovery(member, kafka_log, stop.wait, certificates.renew)
    reader = Reader(member, calls, recovery, settings.until_empty)
    recorder = Recorder(reader, Progress(terminal.set_status, certificates.renew))
    logger.info("started: topic %s, group %s", settings.topic, settings.group)
    try:
        record_warnings(recorder, stop)
    finally:
        recorder.close()
    if settings.until_empty and not reader.finished:
        logger.error("stopped before everything was recorded")
        return 1
    return reader.status


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=prog,
        description="Record the warnings that come through Apache Kafka in PostgreSQL, each once.",
        epilog="Environment: KAFKA_BOOTSTRAP_SERVERS, KAFKA_SSL_CAFILE, KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE, and "
        "KAFKA_<OPTION> for each option of kafka-python; DATABASE_URL, or PGHOST, PGPORT, PGUSER, PGPASSWORD, "
        "PGDATABASE, PGSSLMODE, PGSSLROOTCERT and libpq's others. Exit status: 0 done or stopped; 1 failed; 2 wrong "
        "usage or settings.",
    )
    add = parser.add_argument
    add("--topic", type=argument(topic_name), default="bandwidth_exceeds", metavar="NAME",
        help="Kafka's topic (default: bandwidth_exceeds)")  # fmt: skip
    add("--group", type=argument(printable), default="kconsumer", metavar="NAME",
        help="Kafka's consumer group (default: kconsumer)")  # fmt: skip
    add("--until-empty", action="store_true", help="end when everything that was in the topic at the start is recorded")
    add("--notify", type=argument(channel_name), metavar="CHANNEL",
        help="NOTIFY this channel of PostgreSQL of each overload that begins (default: off)")  # fmt: skip
    add("--check", action="store_true", help="try everything that is needed, change nothing, and say what to do")
    add("-v", "--verbose", action="store_true", help="log more, and tracebacks")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    # the grace: what the database is doing, a second each for the last commit and for leaving the group, and one more
    return run_command(build_parser("kconsumer"), argv, run, check, round(STOP_SECONDS) + 3)


def command() -> NoReturn:
    """Run main() and end at once: threads that wait for a silent network would hold up the end."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(COLLECT_OBJECTS)
    decode_faster()
    repair_fetcher()
    run_process(main)


if __name__ == "__main__":
    command()
