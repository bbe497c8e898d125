"""Send a warning to Apache Kafka for each second in which this host uses more bandwidth than its limit.

$ python kproducer.py --limit 1MB/s
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kafka import KafkaProducer

from eventkafkapostgres.bandwidth import Interfaces, Sample, interface_name, samples
from eventkafkapostgres.checks import check_producer
from eventkafkapostgres.console import (
    CheckResult,
    OneLineParser,
    Stop,
    __version__,
    argument,
    printable,
    run_command,
    run_process,
    seconds,
    topic_name,
)
from eventkafkapostgres.delivery import Delivery, Sent
from eventkafkapostgres.log import Terminal
from eventkafkapostgres.message import heartbeat, to_json, uuid7, warning
from eventkafkapostgres.outages import KafkaLog
from eventkafkapostgres.outbox import open_outbox, outbox_path
from eventkafkapostgres.rates import format_rate, parse_rate
from eventkafkapostgres.settings import FIXED_PRODUCER_OPTIONS, PRODUCER_OPTIONS, kafka_options, make_client
from eventkafkapostgres.tls import Certificates
from simpleEvents import EventSystem

logger = logging.getLogger("kproducer")

FLUSH_SECONDS = 10.0  # how long the end of an interval waits for the last acknowledgements
STOP_SECONDS = 3.0  # the same after SIGINT or SIGTERM
UNTIL_THE_END: list[Any] = []  # a KafkaProducer that is garbage-collected waits for its broker, and complains


def bandwidth_exceed_event_system(
    delivery: Delivery,
    measured: Iterator[Sample | None],
    settings: argparse.Namespace,
    stop: Stop,
    flush_seconds: float = FLUSH_SECONDS,
    show: Callable[[str, bool], None] = lambda line, alert: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """One interval: a warning for each sample above the limit, registered and sent at once; flush; break out."""
    # half a tick early, so that the tick at the interval's end belongs to it
    ends_at = clock() + settings.flush_interval - settings.interval / 2
    sampled, raised, acknowledged_before = 0, 0, delivery.acknowledged
    key, limit = settings.host.encode(), format_rate(settings.limit)
    for sample in measured:
        if sample is None:
            continue
        sampled += 1
        exceeded = sample.bytes_per_second > settings.limit
        if exceeded:
            raised += 1
            event_id = uuid7(sample.observed_at.timestamp(), secrets.randbits(74))
            episode_started_at = delivery.episode_started_at(sample.observed_at, settings.interval)
            event = warning(sample, settings.host, settings.limit, event_id, episode_started_at)
            delivery.pump((key, to_json(event).encode()))
            logger.warning("%s (%s)", event["message"], event["event_id"])
        if settings.heartbeat and clock() >= delivery.heartbeat_at:
            beat = heartbeat(settings.host, sample.observed_at)
            delivery.beat(key, to_json(beat).encode(), settings.heartbeat)
        state = f"{raised} warnings raised, {delivery.waiting} waiting"
        show(f"{format_rate(sample.bytes_per_second)} of {limit}, {state}", exceeded)
        if clock() >= ends_at:
            break
    delivery.finish(STOP_SECONDS if stop.is_set() else flush_seconds)
    logger.info(
        "interval over: %d samples, %d warnings raised, %d acknowledged, %d left",
        sampled,
        raised,
        delivery.acknowledged - acknowledged_before,
        delivery.waiting,
    )


def check(settings: argparse.Namespace, kafka_log: KafkaLog) -> Iterator[CheckResult]:
    """Everything that the producer needs."""
    return check_producer(settings, producer_options, kafka_log)


def producer_options() -> dict[str, Any]:
    """What the KafkaProducer is made with. SettingsError when a setting is wrong."""
    return kafka_options(KafkaProducer, os.environ, PRODUCER_OPTIONS, FIXED_PRODUCER_OPTIONS)


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=prog,
        description="Warn through Apache Kafka of each second in which this host uses more bandwidth than its limit.",
        epilog="Environment: KAFKA_BOOTSTRAP_SERVERS, KAFKA_SSL_CAFILE, KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE, and "
        "KAFKA_<OPTION> for each option of kafka-python. Exit status: 0 done; 1 failed, or warnings are left in the "
        "outbox; 2 wrong usage or settings.",
    )
    add = parser.add_argument
    add("--limit", type=argument(parse_rate), default="1MB/s", metavar="RATE",
        help="bytes a second, sent plus received: 1000000, 1MB/s, 80Mbit/s, 1MiB/s (default: 1MB/s)")  # fmt: skip
    add("--interval", type=argument(seconds), default=1.0, metavar="SECONDS",
        help="time between two samples (default: 1)")  # fmt: skip
    add("--flush-interval", type=argument(seconds), default=120.0, metavar="SECONDS",
        help="time until the flush, and the end (default: 120)")  # fmt: skip
    add("--interface", type=argument(interface_name), action="append", default=[], metavar="NAME",
        help="an interface to measure; may be repeated (default: those that carry the host's traffic to others, "
        "each byte once)")  # fmt: skip
    add("--topic", type=argument(topic_name), default="bandwidth_exceeds", metavar="NAME",
        help="Kafka's topic (default: bandwidth_exceeds)")  # fmt: skip
    add("--host", type=argument(printable), default=socket.gethostname(), metavar="NAME",
        help="the name in the warnings (default: this host's name)")  # fmt: skip
    add("--outbox", type=Path, metavar="FILE",
        help="where warnings wait for Kafka (default: outbox.sqlite in $STATE_DIRECTORY, else in eventKafkaPostgres "
        "under $XDG_STATE_HOME or ~/.local/state)")  # fmt: skip
    add("--heartbeat", type=argument(seconds), metavar="SECONDS",
        help="also say in the table heartbeats, so often, that this host is watched (default: never)")  # fmt: skip
    add("--forever", action="store_true", help="start the next interval instead of ending")
    add("--check", action="store_true", help="try everything that is needed, change nothing, and say what to do")
    add("-v", "--verbose", action="store_true", help="log more, and tracebacks")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def run(settings: argparse.Namespace, stop: Stop, kafka_log: KafkaLog, terminal: Terminal) -> int:
    """Sample, warn and send until the interval is over, or for ever. SettingsError when a setting is wrong."""
    options = producer_options()
    certificates = Certificates(options)
    certificates.renew()
    outbox = open_outbox(settings.outbox or outbox_path(os.environ))
    kproducer = make_client(KafkaProducer, certificates.context, options)
    UNTIL_THE_END.append(kproducer)
    bandwidth_exceeds: EventSystem[Sent] = EventSystem()
    delivery = Delivery(kproducer, settings.topic, outbox, bandwidth_exceeds, kafka_log)
    logger.info("started: limit %s, topic %s, %d warnings wait in %s",
                format_rate(settings.limit), settings.topic, delivery.waiting, outbox.path)  # fmt: skip
    measured = samples(settings.interval, Interfaces(settings.interface), stop, delivery.idle)
    while True:
        # with --forever the flush may take what is left of this second, not the next sample's time
        flush_seconds = settings.interval / 2 if settings.forever else FLUSH_SECONDS
        bandwidth_exceed_event_system(delivery, measured, settings, stop, flush_seconds, terminal.set_status)
        certificates.renew()
        if stop.is_set() or not settings.forever:
            break
    terminal.set_status("")
    if not bandwidth_exceeds.events:
        kproducer.close(timeout=1)
    return 1 if delivery.waiting or delivery.lost or not delivery.topic_known else 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(build_parser("kproducer"), argv, run, check)


def command() -> NoReturn:
    """Run main() and end at once: kafka-python's threads would hold up the end of a process whose broker is away."""
    run_process(main)


if __name__ == "__main__":
    command()
